"""Runs as comparisons and searches need them: trained to a number of updates, told as a record.

The record is read from the run's own `results.json` and `metrics.jsonl`, so that whatever `fit`
does is what is compared.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from training.compare import INTERRUPTED, Cost, Record
from training.config import CLASSIFICATION, RunConfig
from training.datasets.catalogue import load_dataset
from training.rate_finder import RangeTest, find_rate
from training.run import begin_run, fit_run, teacher_of
from training.runs import RESULTS_FILE, read_json
from training.stacking import stack
from training.stages import build_stage
from training.strategies.compiled import compile_updates
from training.strategies.replicas import Replicas
from training.targets import score_name

NUM_EVALUATIONS = 20  # points of a curve, besides the start
TIMED_UPDATES = 10  # in each window of a timing
TIMED_WINDOWS = 3  # the first of which compiles


def train(config: RunConfig, seed: int, updates: int, folder: Path) -> Record:
    """The record of a run of `updates` updates in its last stage, begun or gone on in `folder`.

    It never stops early: the budget is spent. Raises FloatingPointError if it diverges.
    """
    config = dataclasses.replace(
        config,
        seed=seed,
        max_updates=updates,
        evaluate_every=max(updates // NUM_EVALUATIONS, 1),
        patience=0,
    )
    run, outcome = fit_run(config, folder)
    if outcome.reason == INTERRUPTED:
        return {"ended": INTERRUPTED}
    results = read_json(run / RESULTS_FILE)
    metric = metric_of(config)
    last = results["stages"][-1]
    return {
        "ended": results["ended"],
        "updates": last["steps"],
        "gradient_evaluations": last["gradient_evaluations"],
        "seconds": (points := curve(run, config.name, last))[-1]["seconds"],
        "score_name": f"validation_{metric}",
        "higher_is_better": metric != "loss",
        "score": results["validation"][metric],
        "test": {n: v for n, v in results["test"].items() if isinstance(v, int | float)},
        "curve": points,
        "initial_weights": last.get("initial_weights", ""),
        "message": "",
    }


def calibrate(config: RunConfig) -> Cost:
    """What an update of the last stage costs, timed in a short run that is thrown away."""
    with tempfile.TemporaryDirectory() as folder:
        short = dataclasses.replace(
            config,
            max_updates=TIMED_UPDATES * TIMED_WINDOWS,
            evaluate_every=TIMED_UPDATES,
            patience=0,
        )
        run, outcome = fit_run(short, Path(folder))
        if outcome.reason == INTERRUPTED:
            raise KeyboardInterrupt
        last = read_json(run / RESULTS_FILE)["stages"][-1]
        points = curve(run, config.name, last)
    compiled, end = points[1], points[-1]
    return Cost(
        seconds=(end["seconds"] - compiled["seconds"]) / (end["updates"] - compiled["updates"]),
        gradient_evaluations=last["gradient_evaluations"] // last["steps"],
    )


def metric_of(config: RunConfig) -> str:
    """The figure on the validation split that is compared: of all but loss more is better."""
    return score_name(config.target) if config.task == CLASSIFICATION else "loss"


def try_settings(config: RunConfig, on_evaluation: Callable[[int, float], None]) -> float:
    """The score of a run of the recipe's own length, which leaves nothing behind.

    `on_evaluation(updates, score)` hears of every evaluation and may raise to end the run.
    """
    metric = metric_of(config)
    with tempfile.TemporaryDirectory() as folder:
        run, outcome = fit_run(
            config,
            Path(folder),
            observe=lambda update, metrics: on_evaluation(update, metrics[metric]),
        )
        if outcome.reason == INTERRUPTED:
            raise KeyboardInterrupt
        return read_json(run / RESULTS_FILE)["validation"][metric]


def range_test(
    config: RunConfig, runs: Path, *, low: float, high: float, num_updates: int
) -> RangeTest:
    """`find_rate` on the last stage of a recipe, from its initial weights, with its strategy.

    Rates are those of `optimizer.peak_learning_rate`; the network is thrown away. A teacher is
    looked for in `runs`, and trained there first if need be.
    """
    config = dataclasses.replace(
        config,
        max_updates=num_updates,
        optimizer=dataclasses.replace(
            config.optimizer, peak_learning_rate=1.0, schedule="constant"
        ),
    )
    with tempfile.TemporaryDirectory() as folder:
        data: Any = load_dataset(config.dataset, config.task, config.target)
        learner = begin_run(config, Path(folder) / "run", data)
    teacher = teacher_of(config, learner, runs, Replicas())
    stage = build_stage(config, len(config.stages) - 1, learner, teacher=teacher)
    rule, take_updates = stage.rule, compile_updates(stage.rule)
    batches = (stage.batches.at(i) for i in itertools.count())

    def step(rate: float) -> float:
        rule.optimizer_rule.optimizer.rate.multiplier.assign(rate)
        said = take_updates(stack(list(itertools.islice(batches, rule.num_batches))))
        return float(said["loss_sum"][0]) / max(float(said["num_targets"][0]), 1.0)

    return find_rate(step, low=low, high=high, num_updates=num_updates)


def curve(run: Path, stage: str, record: dict[str, Any]) -> list[dict[str, float]]:
    """One point for each evaluation of the run's last stage, counted from its beginning.

    `seconds` are those of updates, the compiling of the first included; evaluating and saving are
    not in them.
    """
    entries = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    entries = [entry for entry in entries if entry.get("stage", stage) == stage]
    evaluations = record["gradient_evaluations"] // max(record["steps"], 1)
    points: list[dict[str, float]] = []
    first, seconds, loss = entries[0]["step"], 0.0, None
    for entry in entries:
        if "validation_loss" not in entry:
            seconds += entry["update_seconds"]
            loss = entry["loss"]
        else:
            updates = entry["step"] - first
            point = {
                "updates": updates,
                "gradient_evaluations": updates * evaluations,
                "seconds": round(seconds, 3),
            }
            if loss is not None:
                point["loss"] = loss
            points.append(point | {k: v for k, v in entry.items() if k.startswith("validation_")})
    return points
