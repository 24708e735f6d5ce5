"""All of training in reading order: fetch, update, report, evaluate, save."""

from __future__ import annotations

import functools
import logging
import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np

from training.checkpoints import Checkpoints
from training.diagnostics import Totals, UpdateToWeight
from training.progress import Interruption, Log
from training.schedules import Plateau
from training.strategies.rules import UpdateRule
from training.strategies.rules import evaluating as evaluation_of

logger = logging.getLogger(__name__)

REPORT_EVERY = 50  # updates; between reports the numbers stay on the device


@dataclass(frozen=True, kw_only=True)
class Plan:
    """When a stage evaluates, reports and ends. All counts are updates."""

    steps: int
    evaluate_every: int
    patience: int = 0  # evaluations without a new best; 0 never stops early
    updates_per_call: int = 1
    save_every: float = 20.0  # seconds
    stop_loss: float | None = None
    stop_grad_norm: float | None = None
    stop_updates: int = 1
    correct: str | None = "accuracy"  # what the share of targets that are right is called, if any
    agree_every: int = 1  # updates between two meetings of the processes; evaluations are others

    @property
    def watches_every_update(self) -> bool:
        return self.stop_loss is not None or self.stop_grad_norm is not None


@dataclass(frozen=True)
class Outcome:
    """How a stage ended.

    `reason` is "finished", "early" (no progress), "converged" (`stop_loss`, `stop_grad_norm`) or
    "interrupted".
    """

    reason: str
    step: int
    best_step: int
    seconds: float  # of training and evaluation, all sittings of the stage together


def fit(
    plan: Plan,
    *,
    rule: UpdateRule,
    take_updates: Callable[[dict], dict],
    batches_of: Callable[[int, int], dict],
    evaluate: Callable[[], dict[str, float]],
    score: Callable[[dict[str, float]], float],
    checkpoints: Checkpoints,
    log: Log,
    evaluating: Callable[[], AbstractContextManager] | None = None,
    plateau: Plateau | None = None,
    set_rate_multiplier: Callable[[float], None] = lambda multiplier: None,
    agree: Callable[..., tuple[bool, ...]] = lambda *asked: asked,
) -> Outcome:
    """Trains from the newest checkpoint, or from the start, until the plan's end.

    `batches_of(step, count)` are the batches of `count` updates from `step` on, stacked;
    `take_updates` takes them and returns what each update said. `evaluate` returns the validation
    metrics ("loss" among them), `score` the number of them that is to grow; of equal scores the
    lower loss is better. Within `evaluating()`, where both are called and the best is kept, the
    weights are those to be evaluated and exported (by default what the rule says). Ctrl-C saves
    and returns; `agree(stop, save)` tells of both whether any process of the run asks for it, and
    waits for all: it is called after a call in which the processes met, and on evaluations.
    Raises FloatingPointError when the loss or the gradient is not finite: the checkpoints then hold
    the last good state.
    """
    step, progress = checkpoints.restore_last(), checkpoints.progress
    if step:
        logger.info(f"Going on from update {step} of {plan.steps}.")
    earlier, began, saved = progress["seconds"], time.monotonic(), time.monotonic()
    is_fresh = step == 0 and progress["best_step"] < 0
    log.begin(None if is_fresh else step, earlier)
    totals, watch = Totals(log.unit, plan.correct), UpdateToWeight(rule)
    save_asked = False  # after the last call
    in_evaluation = evaluating or functools.partial(evaluation_of, rule)
    if plateau:
        vars(plateau).update(progress.get("plateau", {}))
        set_rate_multiplier(plateau.multiplier)

    def outcome(reason: str) -> Outcome:
        return Outcome(reason, step, progress["best_step"], progress["seconds"])

    def save() -> None:
        nonlocal saved
        progress["seconds"] = earlier + time.monotonic() - began
        checkpoints.save_last(step)
        saved = time.monotonic()

    def evaluate_and_keep() -> None:
        progress["step"] = step  # who observes the evaluation reads it
        with in_evaluation():
            metrics = evaluate()
            if not math.isfinite(metrics["loss"]):
                raise FloatingPointError(_not_finite("validation loss", metrics["loss"], step))
            log.report(step, {f"validation_{name}": value for name, value in metrics.items()})
            new = (score(metrics), -metrics["loss"])
            if new > (progress["best_score"], -progress["best_loss"]):
                progress.update(best_score=new[0], best_loss=metrics["loss"], best_step=step)
                progress["num_stale"] = 0
                checkpoints.save_best(step)
            else:
                progress["num_stale"] += 1
        if plateau:
            set_rate_multiplier(plateau.observe(new[0]))
            progress["plateau"] = vars(plateau).copy()

    with Interruption() as interruption:
        if is_fresh:  # not again after a kill in early updates
            evaluate_and_keep()  # where it starts from: the figure that training has to beat
            save()
            totals.restart()
        while step < plan.steps:
            if progress.get("has_converged"):  # and was killed before that could be told
                return outcome("converged")
            if plan.patience and progress["num_stale"] >= plan.patience:
                return outcome("early")
            count = _updates_until_due(plan, step)
            save_due, save_asked = save_asked, False
            report_due = save_due or _is_due(plan, step + count)  # what is saved is finite
            watch.before(report_due and count)
            said = take_updates(batches_of(step, count))
            step += count
            totals.add(said)
            has_converged = plan.watches_every_update and _converged(plan, progress, said)
            progress["has_converged"] = has_converged
            evaluation_due = step % plan.evaluate_every == 0 or step == plan.steps or has_converged
            is_stopped = False
            if evaluation_due or step // plan.agree_every > (step - count) // plan.agree_every:
                is_late = time.monotonic() - saved > plan.save_every
                is_stopped, save_asked = agree(bool(interruption), is_late)  # a later Ctrl-C waits
            if not (evaluation_due or is_stopped or report_due):
                continue
            report = totals.pop() | watch.after() | _plain(rule.diagnostics())
            if not all(map(math.isfinite, report.values())):
                what = f"loss or its gradient norm ({report['grad_norm']})"
                raise FloatingPointError(_not_finite(what, report["loss"], step))
            log.report(step, report | {"gradient_evaluations": step * rule.num_evaluations})
            if evaluation_due:
                evaluate_and_keep()
            if evaluation_due or is_stopped or save_due:
                save()
                save_asked = False
                totals.restart()
            if has_converged:
                return outcome("converged")
            if is_stopped and step < plan.steps:
                return outcome("interrupted")
    return outcome("finished")


def _updates_until_due(plan: Plan, step: int) -> int:
    """As many updates as one call may take without running past what is due."""
    if plan.watches_every_update:
        return 1
    ends = [step + plan.updates_per_call, plan.steps]
    ends += [(step // every + 1) * every for every in (plan.evaluate_every, REPORT_EVERY)]
    return min(ends) - step


def _is_due(plan: Plan, step: int) -> bool:
    return step == plan.steps or not (step % REPORT_EVERY and step % plan.evaluate_every)


def _converged(plan: Plan, progress: dict, said: dict) -> bool:
    """Whether the loss or the gradient norm has been low enough for so many updates in a row."""
    loss = float(said["loss_sum"][-1]) / max(float(said["num_targets"][-1]), 1.0)
    is_low = (plan.stop_loss is not None and loss <= plan.stop_loss) or (
        plan.stop_grad_norm is not None and float(said["grad_norm"][-1]) <= plan.stop_grad_norm
    )
    is_skipped = "num_skipped" in said and float(said["num_skipped"][-1]) > 0  # by loss_scale
    progress["num_low"] = progress.get("num_low", 0) + 1 if is_low and not is_skipped else 0
    return progress["num_low"] >= plan.stop_updates


def _plain(diagnostics: dict) -> dict[str, float]:
    return {name: float(np.asarray(value)) for name, value in diagnostics.items()}


def _not_finite(what: str, value: float, step: int) -> str:
    return (
        f"The {what} is not finite any more: {value} at update {step}. Lower "
        "optimizer.peak_learning_rate or optimizer.clip_norm and train again; the last good "
        "checkpoint is kept."
    )
