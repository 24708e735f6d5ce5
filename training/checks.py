"""Before a long run: is all of it in order, and can it learn at all? Nothing goes into `runs/`."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from training.config import DISTILLATION, SUPERVISED, RunConfig, StageConfig, idle_settings
from training.datasets.catalogue import load_dataset
from training.datasets.corpus import CorpusData
from training.optimizers import rules_by_variable
from training.run import Learner, begin_run, teacher_of
from training.runs import RESULTS_FILE, run_folder
from training.stacking import stack
from training.stages import Stage, build_stage, load_data, widest_shapes
from training.strategies.compiled import compile_updates
from training.strategies.replicas import Replicas

NEAR_ZERO = 0.1  # of the loss of the first update
REPORT_EVERY = 20  # updates


# A dry run ----------------------------------------------------------------------------------------


def dry_run(config: RunConfig, runs: Path) -> Iterator[str]:
    """What the run will be, in lines, while all of it is built and each stage takes an update.

    Every setting that does something, the size of every split, the network, and of each stage: how
    many updates of which batches, what moves which variable, and the loss and time of one compiled
    update. Raises whatever the run would raise before and in its first update.
    """
    yield "Settings, as --set takes them"
    yield from (f"  {line}" for line in setting_lines(config))
    yield f"\nA run would be kept in {run_folder(runs, config)}; this one keeps nothing."
    with _begun(config) as (learner, data, folder):
        yield f"\nData: {config.dataset.name}"
        yield from (f"  {name:<12} {count:,}" for name, count in _sizes(data))
        yield f"\nNetwork: {config.model.name}, {_count(learner.model.trainable_variables)}"
        for number in range(len(config.stages)):
            teacher, lines = _teacher(config.stages[number], learner, runs)
            stage = build_stage(config, number, learner, teacher=teacher)
            yield f"\nStage {number + 1} of {len(config.stages)}: {stage.config.name}"
            yield from lines
            yield from _stage_lines(config, stage, learner)
            if number + 1 < len(config.stages):  # which wants dropout and layers as built
                learner = begin_run(config, folder, data)


def setting_lines(config: RunConfig) -> Iterator[str]:
    """`name=value` for every setting that does something in the run, sections with a dot."""
    idle = idle_settings(config)
    return (line for line in _lines(config.to_dict()) if line.partition("=")[0] not in idle)


def _lines(values: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in values.items():
        path = prefix + name
        if name == "earlier":
            for stage in value:
                yield from _lines(stage, f"{path}.{stage['name']}.")
        elif isinstance(value, dict):
            chosen = path in ("model", "tokenizer")  # whose name decides the whole section
            if chosen:
                yield f"{path}={value['name']}"
            rest = {k: v for k, v in value.items() if not (chosen and k == "name")}
            yield from _lines(rest, path + ".")
        else:
            yield f"{path}={_as_typed(value)}"


def _as_typed(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return str(value)


def _stage_lines(config: RunConfig, stage: Stage, learner: Learner) -> Iterator[str]:
    rule, batches = stage.rule, stage.batches
    if stage.config is not config and stage.config.dataset:  # the run's own stands above
        sizes = _sizes(load_data(config, stage.config))
        texts = ", ".join(f"{name} {count:,}" for name, count in sizes)
        yield f"  data         {stage.config.dataset.name}: {texts}"
    yield f"  strategy     {stage.config.strategy}"
    yield f"  updates      {stage.num_updates:,} at most; a pass takes {stage.updates_of_a_pass:,}"
    fixed = widest_shapes(batches) if config.xla else None
    micro_batches = [batches.at(i) for i in range(rule.num_batches)]
    first = stack(micro_batches, shapes=not config.xla, pad_to=fixed)
    shapes = ", ".join(
        f"{name} {' x '.join(map(str, value.shape[1:]))}"
        for name, value in first.items()
        if not name.startswith("shape/")
    )
    yield f"  an update    {rule.num_batches} of these batches: {shapes}"
    yield f"  moved        {_count(rule.weights)}"
    yield from (f"    {line}" for line in _movers(stage))
    if left := _not_moved(stage, learner):
        yield f"  not moved    {', '.join(left)}"
    take = compile_updates(rule, xla=config.xla)
    began = time.monotonic()
    loss = _mean_loss(take(first))
    compiled = time.monotonic()
    take(first)
    seconds = time.monotonic() - compiled
    yield f"  first loss   {loss:.4f}"
    yield (
        f"  time         {compiled - began:.1f} s to compile; then {seconds:.3f} s an update, "
        f"about {_duration(seconds * stage.num_updates)} for all"
    )
    if not math.isfinite(loss):
        raise FloatingPointError(f"{stage.config.name}: the loss of the first update is {loss}.")


def _movers(stage: Stage) -> Iterator[str]:
    """What moves which variable: the optimizer, or the part of it that does."""
    moved_by = rules_by_variable(stage.rule.optimizer_rule.optimizer)
    width = max(map(len, moved_by.values()))
    for weight in stage.rule.weights:
        yield f"{moved_by[weight.path]:<{width}}  {weight.path} {tuple(weight.shape)}"


def _not_moved(stage: Stage, learner: Learner) -> list[str]:
    moved = {weight.path for weight in stage.rule.weights}
    return [v.path for v in learner.model.trainable_variables if v.path not in moved]


def _sizes(data: Any) -> Iterator[tuple[str, int]]:
    for split in ("train", "validation", "test"):
        streamed = isinstance(data, CorpusData) and split == "train"
        yield split, data.num_documents if streamed else len(getattr(data, split))


def _count(variables: list) -> str:
    count = sum(math.prod(variable.shape) for variable in variables)
    return f"{count:,} weights in {len(variables)} variable{'s' * (len(variables) != 1)}"


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def _teacher(stage: StageConfig, learner: Any, runs: Path) -> tuple[Callable | None, list[str]]:
    """Texts to logits, and what to say of it. A dry run trains no teacher."""
    if stage.teacher is None:
        return None, []
    from training.recipes import recipe

    folder = run_folder(runs, recipe(stage.teacher))
    if (folder / RESULTS_FILE).is_file():
        return teacher_of(stage, learner, runs, Replicas()), [f"  teacher      {folder}"]
    num_labels = len(learner.label_names)
    return lambda texts: np.zeros((len(texts), num_labels), np.float32), [
        f"  teacher      {stage.teacher} is not trained yet. The run will train it first; here one "
        "that knows nothing stands in."
    ]


# One batch by heart -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Overfit:
    """How far the loss of one batch fell."""

    first: float  # mean loss of the first update
    last: float
    updates: int

    @property
    def ratio(self) -> float:
        return self.last / self.first if self.first else 0.0

    @property
    def is_near_zero(self) -> bool:
        return self.ratio <= NEAR_ZERO


def overfit_one_batch(
    config: RunConfig,
    *,
    stage_name: str | None = None,
    num_updates: int = 200,
    report: Callable[[int, float], None] = lambda update, loss: None,
) -> Overfit:
    """Trains on the first batch alone until its loss is near 0, `num_updates` at most.

    A network that cannot learn one batch by heart will learn nothing from many. Of the last stage,
    or of the one named, from the initial weights. What keeps a loss above 0 on purpose is off:
    dropout, label smoothing, and a teacher. The schedule is that of a run of `num_updates`. The
    strategy's batches of one update are the batch. Raises ValueError for an unknown stage,
    FloatingPointError when the loss is not finite any more.
    """
    if num_updates < 1:
        raise ValueError(f"--updates must be 1 or more. Received: {num_updates}")
    config, number = _bare(config, stage_name, num_updates)
    with _begun(config) as (learner, _, _):
        stage = build_stage(config, number, learner)
        rule, batches = stage.rule, stage.batches
        take = compile_updates(rule)
        batch = stack([batches.at(i) for i in range(rule.num_batches)])
        first = last = math.nan
        for update in range(1, num_updates + 1):
            last = _mean_loss(take(batch))
            first = last if update == 1 else first
            if not math.isfinite(last):
                raise FloatingPointError(
                    f"The loss of one batch is not finite any more: {last} at update {update}. "
                    "Lower optimizer.peak_learning_rate or optimizer.clip_norm."
                )
            found = Overfit(first, last, update)
            if found.is_near_zero or update % REPORT_EVERY == 0 or update in (1, num_updates):
                report(update, last)
            if found.is_near_zero:
                break
    return found


def _bare(config: RunConfig, stage_name: str | None, num_updates: int) -> tuple[RunConfig, int]:
    """`config` with the stage without what holds its loss up, and the number of the stage."""
    names = [stage.name for stage in config.stages]
    if stage_name is not None and stage_name not in names:
        raise ValueError(
            f"--stage must be one of {', '.join(names)}, the stages of {config.name}. "
            f"Received: {stage_name!r}"
        )
    number = names.index(stage_name) if stage_name else len(names) - 1
    changes: dict[str, Any] = {
        "max_updates": num_updates,
        "dropout": "0",
        "label_smoothing": 0.0,
    }
    if config.stages[number].objective == DISTILLATION:
        changes |= {"objective": SUPERVISED, "teacher": None}
    if number == len(names) - 1:
        return replace(config, **changes), number
    earlier: list[StageConfig] = list(config.earlier)
    earlier[number] = replace(earlier[number], **changes)
    return replace(config, earlier=tuple(earlier)), number


# What both need -----------------------------------------------------------------------------------


@contextmanager
def _begun(config: RunConfig) -> Iterator[tuple[Learner, Any, Path]]:
    """An untrained learner, the data of the run, and a folder that goes away again."""
    if config.deterministic:
        tf.config.experimental.enable_op_determinism()
    data: Any = load_dataset(config.dataset, config.task, config.target)
    with tempfile.TemporaryDirectory(prefix="stepwise-check-") as folder:
        yield begin_run(config, Path(folder), data), data, Path(folder)


def _mean_loss(said: dict[str, tf.Tensor]) -> float:
    return float(said["loss_sum"][-1]) / max(float(said["num_targets"][-1]), 1.0)
