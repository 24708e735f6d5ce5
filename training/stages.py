"""One stage of a run: its data, its objective, its rule, trained to its end."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from model.dropout import dropout_rates, let_rates_move
from model.lora import add_lora, merge_lora
from training.checkpoints import Checkpoints
from training.config import (
    DISTILLATION,
    FULL_BATCH,
    SUPERVISED,
    RunConfig,
    StageConfig,
    is_private,
)
from training.datasets.catalogue import TEXTS, load_dataset
from training.loop import Outcome, Plan, fit
from training.objectives import Objective, build_batches, build_objective
from training.optimizers import rules_by_variable
from training.pipeline import Batches
from training.progress import Log
from training.schedules import Plateau, cut_warmup, tabulate
from training.stacking import stack
from training.strategies.build import build_rule
from training.strategies.catalogue import Link, batches_per_update, resolve, with_full_batches
from training.strategies.compiled import compile_updates
from training.strategies.replicas import Replicas
from training.strategies.rules import UpdateRule, evaluating
from training.strategies.scheduled import Scheduled
from training.vectors.start import embedding_of

logger = logging.getLogger(__name__)

_APART = 7_919  # between the seeds of two stages
DELTA = 1e-5  # of differential privacy: the chance that its promise fails

Observe = Callable[[int, dict[str, float]], None]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A stage made ready: everything that the loop needs."""

    config: StageConfig
    objective: Objective
    batches: Batches
    rule: UpdateRule
    num_updates: int
    plain: list  # the variables that remain when the stage is over
    privacy: Callable[[int], float] | None  # updates -> epsilon at DELTA
    lora: list  # layers with low-rank changes

    @property
    def updates_of_a_pass(self) -> int:
        return max(self.batches.num_batches // self.rule.num_batches, 1)

    def record(self, outcome: Outcome) -> dict:
        """What is told of the stage when it is over; updates are counted from its beginning."""
        record = {
            "stage": self.config.name,
            "steps": outcome.step,
            "best_step": outcome.best_step,  # on validation, whatever is kept
            "kept_step": outcome.step if self.config.keep == "last" else outcome.best_step,
            "gradient_evaluations": outcome.step * self.rule.num_evaluations,
            "seconds": round(outcome.seconds, 1),
            "ended": outcome.reason,
            "moved_by": rules_by_variable(self.rule.optimizer_rule.optimizer),
        }
        if self.privacy:
            record |= {"epsilon": self.privacy(outcome.step), "delta": DELTA}
        return record

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Inside, the network is what is evaluated and exported: averages in, LoRA merged."""
        with evaluating(self.rule), merged(self.lora):
            yield


def build_stage(
    run: RunConfig, number: int, learner, *, teacher=None, replicas: Replicas | None = None
) -> Stage:
    """Stage `number` of `run`, from 0, for the network as it is now."""
    config, seed = run.stages[number], run.seed + _APART * number
    objective = build_objective(config, learner, load_data(run, config), seed=seed, teacher=teacher)
    strategy = config.strategy
    if config.batch_size == FULL_BATCH:
        pieces = objective.batches(batch_size=FULL_BATCH, seed=seed).num_batches
        strategy = with_full_batches(strategy, pieces)
    chain = resolve(strategy)
    private = is_private(chain)
    if number == 0 and hasattr(objective, "adapt") and not private:
        objective.adapt()  # reads every text and label, which no epsilon would cover
    per_update = batches_per_update(chain)
    objectives = [objective]
    if config.mixture:
        mixed_in = load_data(run, replace(config, dataset=config.mixture))
        objectives.append(build_objective(config, learner, mixed_in, seed=seed, teacher=teacher))
    settings: dict[str, Any] = {
        "batch_size": config.batch_size,
        "sampling": "poisson" if private else "shuffled",
        "batches_per_update": per_update,
        "seed": seed,
    }
    num_updates = config.max_updates or _num_updates(config.epochs, objectives, settings)
    for said in _cut_warmups(config, num_updates):
        logger.warning(f"{config.name}: {said}.")
    batches = build_batches(
        objectives, config, max_tokens=config.max_tokens, num_updates=num_updates, **settings
    )
    if config.dropout is not None:
        let_rates_move(learner.model)
    plain, lora = list(learner.model.variables), []
    replicas = replicas or Replicas()
    if config.lora_rank:
        with replicas.scope():
            lora = add_lora(
                learner.model, config.lora_layers, config.lora_rank, config.lora_alpha, seed
            )
    weights = moving_weights(
        config,
        learner.model,
        objective.loss,
        batches.at(0),
        frozen=[] if run.vectors is None or run.tune_vectors else [embedding_of(learner)],
    )
    with replicas.scope():
        rule = build_rule(
            strategy,
            objective.loss,
            weights,
            config.optimizer,
            num_updates=num_updates,
            seed=seed,
            batch_size=batches.batch_size,
            rate_factors=config.factors(),
            replicas=replicas,
            exchange=replicas.exchange,
        )
        if config.dropout is not None:
            table = tabulate(config.dropout, num_updates, "dropout")
            rule = Scheduled(rule, dropout_rates(learner.model), table, "dropout")
    replicas.draw_apart(learner.model)
    moved_by = rules_by_variable(rule.optimizer_rule.optimizer)
    if len(set(moved_by.values())) > 1:
        for path, how in moved_by.items():
            logger.info(f"{config.name}: {path} is moved by {how}.")
    return Stage(
        config=config,
        objective=objective,
        batches=replicas.batches_here(batches, rule.num_batches),
        rule=rule,
        num_updates=num_updates,
        plain=plain,
        lora=lora,
        privacy=_privacy(chain, batches),
    )


def _num_updates(epochs: float, objectives: list[Objective], settings: dict) -> int:
    """Of so many passes over all texts, at least one."""
    num_batches = sum(objective.batches(**settings).num_batches for objective in objectives)
    return max(round(epochs * num_batches / settings["batches_per_update"]), 1)


def _cut_warmups(config: StageConfig, num_updates: int) -> Iterator[str]:
    """What is told of warm-ups that are longer than half of the stage."""
    schedules: dict[str, Any] = {
        "optimizer.schedule": config.optimizer.schedule,
        "optimizer.weight_decay": config.optimizer.weight_decay,
        "batch_size": config.batch_size,
        "max_tokens": config.max_tokens,
        "dropout": config.dropout,
        "mixture_share": config.mixture_share,
    }
    for setting, expression in schedules.items():
        if isinstance(expression, str) and expression != FULL_BATCH:
            if said := cut_warmup(expression, num_updates, setting):
                yield said


def fit_stage(
    run: RunConfig, stage: Stage, learner, folder: Path, log: Log, observe: Observe | None = None
) -> Outcome:
    """Trains `stage`, from its checkpoint if it has one; what it ends with is its best checkpoint.

    `observe` is told every evaluation: (update, metrics).
    """
    config, rule = stage.config, stage.rule
    replicas = rule.replicas
    checkpoints = Checkpoints(
        stage_folder(replicas.state_folder(folder), config),
        learner.model,
        rule,
        keep=run.keep_checkpoints,
        best_variables=stage.plain,
        writes=replicas.keeps_state,
        wait=replicas.wait,
        common_step=replicas.common_step,
    )

    def batches_of(step: int, count: int) -> dict:
        first, size = step * rule.num_batches, count * rule.num_batches
        batches = [stage.batches.at(i) for i in range(first, first + size)]
        return replicas.share(stack(batches, shapes=not run.xla, pad_to=fixed))

    def evaluate() -> dict[str, float]:
        metrics = replicas.of_chief(stage.objective.validate())
        if observe:
            observe(int(checkpoints.progress["step"]), metrics)
        return metrics

    fixed = widest_shapes(stage.batches) if run.xla else None
    outcome = fit(
        Plan(
            steps=stage.num_updates,
            evaluate_every=config.evaluate_every or stage.updates_of_a_pass,
            patience=config.patience,
            updates_per_call=run.updates_per_call,
            save_every=run.save_every,
            agree_every=replicas.updates_between_agreements(config.strategy),
            stop_loss=config.stop_loss,
            stop_grad_norm=config.stop_grad_norm,
            stop_updates=config.stop_updates,
            correct=stage.objective.correct,
        ),
        rule=rule,
        take_updates=compile_updates(rule, xla=run.xla),
        batches_of=batches_of,
        evaluate=evaluate,
        score=stage.objective.score,
        checkpoints=checkpoints,
        log=log,
        evaluating=stage.evaluating,
        plateau=Plateau.from_expression(config.optimizer.schedule),
        set_rate_multiplier=rule.optimizer_rule.optimizer.rate.multiplier.assign,
        agree=replicas.any_of,
    )
    if outcome.reason != "interrupted" and config.keep == "last":
        with stage.evaluating():
            checkpoints.save_best(outcome.step)
    return outcome


def _privacy(chain: list[Link], batches: Batches) -> Callable[[int], float] | None:
    """What a run with dp_sgd has given away after so many updates."""
    for link in chain:
        if link.name == "dp_sgd":
            from training.strategies.privacy import epsilon

            rate = batches.plan.probability  # type: ignore[attr-defined]
            return lambda updates: epsilon(link.numbers["noise"], rate, updates, DELTA)
    return None


def stage_folder(folder: Path, config: StageConfig) -> Path:
    """Where the checkpoints of a stage are in the folder of its run."""
    return folder / "checkpoints" / config.name


def load_data(run: RunConfig, config: StageConfig) -> Any:
    """The data of a stage. Pre-training takes texts wherever they are, without their labels."""
    dataset = config.dataset or run.dataset
    if config.objective in (SUPERVISED, DISTILLATION):
        return load_dataset(dataset, run.task, run.target)
    return load_dataset(dataset, TEXTS)


def moving_weights(
    config: StageConfig, model, loss, batch: dict, frozen: Sequence[Any] = ()
) -> list:
    """The variables of `model` that the stage moves: those it names and the loss depends on.

    Those in `frozen` stay, whatever it names.
    """
    chosen = [
        v
        for v in model.trainable_variables
        if _moves(config, v) and not any(v is other for other in frozen)
    ]
    used = _are_used(chosen, model, loss, batch)
    weights = [v for v, is_used in zip(chosen, used, strict=True) if is_used]
    if not weights:
        paths = ", ".join(v.path for v in model.trainable_variables)
        raise ValueError(
            f"{config.name}: trainable={config.trainable!r} leaves nothing to train. Variables of "
            f"this network: {paths}."
        )
    if left := [v.path for v in chosen if not any(v is w for w in weights)]:
        logger.info(f"{config.name}: the loss does not depend on {', '.join(left)}.")
    return weights


def _moves(config: StageConfig, variable) -> bool:
    """What is named; of a LoRA stage the factors, and of the rest only what is named."""
    if config.lora_rank and variable.name.startswith("lora_"):
        return True
    is_named = re.search(config.trainable, variable.path) is not None
    return is_named and not (config.lora_rank and not config.trainable)


def _are_used(variables: list, model, loss, batch: dict) -> list[bool]:
    """For each variable whether the loss of a batch depends on it, found on two rows of it."""
    kept = [(v, v.numpy()) for v in model.non_trainable_variables]
    with tf.GradientTape() as tape:
        total = loss({name: tf.constant(value[:2]) for name, value in batch.items()})["loss_sum"]
    gradients = tape.gradient(total, [v.value for v in variables])
    for variable, value in kept:  # the seeds of dropout are as if nothing had been
        variable.assign(value)
    return [gradient is not None for gradient in gradients]


def widest_shapes(batches: Batches) -> dict[str, tuple[int, ...]]:
    """One shape for each field of every batch, as a compiled update wants it.

    Ids, int (B, T), get as many columns as the longest row of the run has tokens; other numbers,
    such as a teacher's logits (B, K), have as many columns in every batch.
    """

    def widest(value: np.ndarray) -> tuple[int, ...]:
        is_ids = value.ndim == 2 and np.issubdtype(value.dtype, np.integer)
        columns = (batches.longest,) if is_ids else value.shape[1:]
        return (batches.batch_size, *columns)

    return {name: widest(value) for name, value in batches.at(0).items()}


@contextmanager
def merged(layers: list) -> Iterator[None]:
    """Inside, low-rank changes are part of the kernels; afterwards all is as before."""
    state = [v for layer in layers for v in layer.variables]
    kept = [v.numpy() for v in state]
    merge_lora(layers)
    try:
        yield
    finally:
        for variable, value in zip(state, kept, strict=True):
            variable.assign(value)
