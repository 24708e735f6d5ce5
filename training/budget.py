"""How long a recipe may be on this machine: seconds become updates."""

from __future__ import annotations

import logging
import re
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from training.config import RunConfig
from training.datasets.catalogue import load_dataset
from training.run import begin_run, teacher_of
from training.runs import read_json, run_folder, write_json
from training.stacking import stack
from training.stages import Stage, build_stage, widest_shapes
from training.strategies.compiled import compile_updates
from training.strategies.replicas import Replicas

logger = logging.getLogger(__name__)

TIMED_SECONDS = 2.0  # of each stage, or as many updates as ...
TIMED_UPDATES = 60  # ... if that is less
_UNITS = {"s": 1.0, "m": 60.0}


@dataclass(frozen=True)
class Timing:
    """What a stage costs on this machine, compiled."""

    update: float  # seconds each
    evaluation: float  # seconds each
    num_updates: int  # of the recipe's own length
    of_a_pass: int  # updates
    evaluate_every: int

    def seconds(self, num_updates: int) -> float:
        """Of a stage of so many updates, evaluated before, on its way and at its end."""
        evaluations = 2 + num_updates // self.evaluate_every
        return num_updates * self.update + evaluations * self.evaluation


def parse_seconds(text: str) -> float:
    """Reads "60s" or "20m".

    >>> parse_seconds("60s"), parse_seconds("20m")
    (60.0, 1200.0)
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([sm])\s*", text)
    seconds = float(match[1]) * _UNITS[match[2]] if match else 0.0
    if not seconds:
        raise ValueError(
            f"--budget takes seconds or minutes above 0, as 60s or 20m. Received: {text!r}"
        )
    return seconds


@dataclass(frozen=True)
class Fitted:
    """A recipe cut to a budget."""

    config: RunConfig
    passes: float  # over its texts, in the last stage
    of_a_pass: int  # updates, in the last stage
    overhead: float  # seconds, of reading and tokenising


def within(config: RunConfig, seconds: float, runs: Path) -> Fitted:
    """`config` as long as fits into `seconds` on this machine, no longer than it is by itself.

    A short timing of every stage, kept in `runs/budgets/` so that the same call names the same run
    again; all stages are then cut by the same factor and their schedules span what is left.
    Reading and tokenising count, compiling and the test split do not.
    """
    path = runs / "budgets" / f"{run_folder(runs, config).name}-{seconds:g}s.json"
    if not path.is_file():
        overhead, timings = time_stages(config, runs)
        path.parent.mkdir(parents=True, exist_ok=True)
        found = {
            "overhead": overhead,
            "updates": _lengths(timings, seconds - overhead),
            "updates_of_a_pass": timings[-1].of_a_pass,
        }
        write_json(path, found)
    found = read_json(path)
    lengths = found["updates"]
    logger.info(
        f"{config.name} in {seconds:g} s on this machine: "
        + ", ".join(f"{length:,} updates" for length in lengths)
    )
    *earlier, last = lengths
    cut = replace(
        config,
        max_updates=last,
        earlier=tuple(
            replace(stage, max_updates=length)
            for stage, length in zip(config.earlier, earlier, strict=True)
        ),
    )
    of_a_pass = found["updates_of_a_pass"]
    return Fitted(cut, last / of_a_pass, of_a_pass, found["overhead"])


def _lengths(timings: list[Timing], seconds: float) -> list[int]:
    """Updates of each stage: the largest common share of their own lengths that fits."""

    def at(share: float) -> list[int]:
        return [max(int(share * timing.num_updates), 1) for timing in timings]

    def fits(share: float) -> bool:
        pairs = zip(timings, at(share), strict=True)
        return sum(timing.seconds(count) for timing, count in pairs) <= seconds

    low, high = 0.0, 1.0
    if fits(high):
        return at(high)
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return at(low)


def time_stages(config: RunConfig, runs: Path) -> tuple[float, list[Timing]]:
    """Seconds that reading and tokenising take, and what each stage costs; keeps nothing."""
    began = time.perf_counter()
    data: Any = load_dataset(config.dataset, config.task, config.target)
    timings = []
    with tempfile.TemporaryDirectory() as folder:
        overhead = time.perf_counter() - began
        for number, stage_config in enumerate(config.stages):
            learner = begin_run(config, Path(folder) / "run", data)
            teacher = teacher_of(stage_config, learner, runs, Replicas())
            began = time.perf_counter()
            stage = build_stage(config, number, learner, teacher=teacher)
            overhead += time.perf_counter() - began
            timings.append(_time(config, stage))
    return overhead, timings


def _time(run: RunConfig, stage: Stage) -> Timing:
    rule, count = stage.rule, run.updates_per_call
    take_updates = compile_updates(rule, xla=run.xla)
    fixed = widest_shapes(stage.batches) if run.xla else None

    def take(step: int) -> None:
        indices = range(step * rule.num_batches, (step + count) * rule.num_batches)
        said = take_updates(
            stack([stage.batches.at(i) for i in indices], shapes=not run.xla, pad_to=fixed)
        )
        said["loss_sum"].numpy()  # or only the call would be timed

    for step in (0, count):  # the first traces, the second may once more, for other shapes
        take(step)
    began, done = time.perf_counter(), 0
    while done < TIMED_UPDATES and time.perf_counter() - began < TIMED_SECONDS:
        take(2 * count + done)
        done += count
    update = (time.perf_counter() - began) / done
    with stage.evaluating():
        evaluation = min(_seconds(stage.objective.validate) for _ in range(2))  # the first traces
    return Timing(
        update=update,
        evaluation=evaluation,
        num_updates=stage.num_updates,
        of_a_pass=stage.updates_of_a_pass,
        evaluate_every=stage.config.evaluate_every or stage.updates_of_a_pass,
    )


def _seconds(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
