"""One run from data to results: the main path of this room."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import Any

import tensorflow as tf

from model.config import require
from model.dropout import dropout_rates
from training.checkpoints import Checkpoints
from training.classification import Classifier
from training.config import CLASSIFICATION, RunConfig, StageConfig
from training.datasets.catalogue import load_dataset
from training.language_model import LanguageModel
from training.loop import Outcome
from training.objectives import texts_of
from training.progress import Log
from training.runs import (
    CONFIG_FILE,
    LABELS_FILE,
    RESULTS_FILE,
    STAGES_FILE,
    read_config,
    read_json,
    run_folder,
    write_json,
)
from training.stages import Observe, build_stage, fit_stage, load_data, stage_folder
from training.strategies.replicas import Replicas

logger = logging.getLogger(__name__)

Learner = Classifier | LanguageModel


def fit_run(
    config: RunConfig,
    runs: Path,
    *,
    replicas: Replicas | None = None,
    observe: Observe | None = None,
) -> tuple[Path, Outcome]:
    """Trains `config` in its folder below `runs`, going on if it was begun, and evaluates it.

    Returns the folder and how training ended; `results.json` is written unless interrupted.
    `observe` is told every evaluation of the last stage: (update, validation metrics).
    """
    folder, replicas = run_folder(runs, config), replicas or Replicas()
    if config.deterministic:
        tf.config.experimental.enable_op_determinism()
    data: Any = load_dataset(config.dataset, config.task)  # the shape follows the task
    for note in data.notes:
        logger.info(note)
    with replicas.scope():
        learner = begin_run(config, folder, data)
    rates = [float(rate.numpy()) for rate in dropout_rates(learner.model)]  # as built
    done: list[dict] = read_json(folder / STAGES_FILE) if (folder / STAGES_FILE).is_file() else []
    outcome = None
    for number in range(len(done), len(config.stages)):
        if number:
            _go_on_from(folder, config.stages[number - 1], learner, rates)
        teacher = teacher_of(config.stages[number], learner, runs)
        with replicas.scope():
            stage = build_stage(config, number, learner, teacher=teacher, replicas=replicas)
        initial_weights = _digest(learner.model.variables)
        log = Log(
            folder,
            title=_title(config, number),
            stage=stage.config.name,
            offset=sum(earlier["steps"] for earlier in done),
            steps=stage.num_updates,
            unit=stage.objective.unit,
        )
        is_last = number == len(config.stages) - 1
        with log:
            outcome = fit_stage(config, stage, learner, folder, log, observe if is_last else None)
        if outcome.reason == "interrupted":
            return folder, outcome
        if stage.lora:  # a network without the low-rank parts, which are merged into it
            with replicas.scope():
                learner = _load(config, folder)
        done.append(stage.record(outcome) | {"initial_weights": initial_weights})
        write_json(folder / STAGES_FILE, done)
    _go_on_from(folder, config, learner, rates)
    results = {
        "test": learner.evaluate(data.test, folder),
        "validation": learner.figures_of(data.validation),
        "best_step": done[-1]["best_step"],
        "steps": sum(stage["steps"] for stage in done),
        "gradient_evaluations": sum(stage["gradient_evaluations"] for stage in done),
        "seconds": round(sum(stage["seconds"] for stage in done), 1),
        "ended": done[-1]["ended"],
        "stages": done,
    }
    write_json(folder / RESULTS_FILE, results)
    return folder, outcome or Outcome(results["ended"], results["steps"], results["best_step"], 0.0)


def load_run(folder: Path) -> Learner:
    """The learner of a run with its best weights, ready to predict."""
    config = read_config(folder)
    learner = _load(config, folder)
    Checkpoints(stage_folder(folder, config), learner.model).restore_best()
    return learner


def _go_on_from(folder: Path, stage: StageConfig, learner: Learner, rates: list[float]) -> None:
    """Loads what `stage` ended with; dropout rates that it moved are again as built."""
    Checkpoints(stage_folder(folder, stage), learner.model).restore_best()
    for variable, rate in zip(dropout_rates(learner.model), rates, strict=True):
        variable.assign(rate)


def teacher_of(stage: StageConfig, learner: Any, runs: Path):
    """Texts to logits by the run that `stage` learns from, fitted first if it is not yet."""
    if stage.teacher is None:
        return None
    from training.recipes import recipe

    config = recipe(stage.teacher)
    folder = run_folder(runs, config)
    if not (folder / RESULTS_FILE).is_file():
        logger.info(f"{stage.name} learns from {stage.teacher}, which is trained first.")
        _, outcome = fit_run(config, runs)
        if outcome.reason == "interrupted":
            raise KeyboardInterrupt
    teacher: Any = load_run(folder)
    labels = getattr(teacher, "label_names", ())
    require(
        labels == learner.label_names,
        "teacher",
        f"a recipe with the labels {', '.join(learner.label_names)}",
        f"{stage.teacher} with {', '.join(labels) or 'none'}",
    )
    return teacher.logits


def _digest(variables) -> str:
    """Sixteen hexadecimal digits that differ when any of the values do."""
    hashed = hashlib.sha256()
    for variable in variables:
        hashed.update(variable.numpy().tobytes())
    return hashed.hexdigest()[:16]


def _title(config: RunConfig, number: int) -> str:
    stage = config.stages[number]
    if len(config.stages) == 1:
        return config.name
    return f"{config.name} ({number + 1}/{len(config.stages)} {stage.name})"


def begin_run(config: RunConfig, folder: Path, data: Any) -> Learner:
    """A new learner, its configuration and vocabulary written first; or the one begun before."""
    if (folder / CONFIG_FILE).is_file():
        return _load(config, folder)
    folder.mkdir(parents=True, exist_ok=True)
    # The vocabulary has to know the words of every stage.
    texts = [
        text for stage in config.earlier for text in texts_of(load_data(config, stage), "train")
    ]
    if config.task == CLASSIFICATION:
        learner: Learner = Classifier.create(config, data, texts)
        write_json(folder / LABELS_FILE, list(data.label_names))
    else:
        learner = LanguageModel.create(config, data, texts)
    learner.tokenizer.save(folder)
    write_json(folder / CONFIG_FILE, config.to_dict())  # last: with it the folder is a run
    return learner


def _load(config: RunConfig, folder: Path) -> Learner:
    if config.task == CLASSIFICATION:
        return Classifier.load(config, folder, read_json(folder / LABELS_FILE))
    return LanguageModel.load(config, folder)
