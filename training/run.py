"""One run from data to results: the main path of this room."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from training.checkpoints import Checkpoints
from training.classification import Classifier
from training.config import CLASSIFICATION, RunConfig
from training.datasets.catalogue import load_dataset
from training.language_model import LanguageModel
from training.loop import Outcome, fit
from training.optimizers import build_optimizer
from training.progress import Log
from training.runs import (
    CONFIG_FILE,
    LABELS_FILE,
    RESULTS_FILE,
    read_config,
    read_json,
    run_folder,
    write_json,
)
from training.strategies.single_step import single_step

logger = logging.getLogger(__name__)

Learner = Classifier | LanguageModel


def fit_run(config: RunConfig, runs: Path) -> tuple[Path, Outcome]:
    """Trains `config` in its folder below `runs`, going on if it was begun, and evaluates it.

    Returns the folder and how training ended; `results.json` is written unless interrupted.
    """
    folder = run_folder(runs, config)
    data: Any = load_dataset(config.dataset, config.task)  # the shape follows the task
    for note in data.notes:
        logger.info(note)
    learner = _begin(config, folder, data)
    learner.prepare(data)

    steps = max(round(config.epochs * learner.batches.num_batches), 1)
    optimizer = build_optimizer(config.optimizer, learner.model.trainable_variables, steps)
    checkpoints = Checkpoints(folder / "checkpoints", learner.model, optimizer)
    start = checkpoints.restore_last()
    if start:
        logger.info(f"Going on from update {start} of {steps} in {folder}.")
    log = Log(folder, steps=steps, start=start, unit=learner.unit, title=config.name)
    try:
        outcome = fit(
            steps=steps,
            evaluate_every=config.evaluate_every or learner.batches.num_batches,
            patience=config.patience,
            train_step=single_step(
                learner.model, optimizer, learner.loss, clip_norm=config.optimizer.clip_norm
            ),
            batch_at=learner.batches.at,
            evaluate=learner.validate,
            score=learner.score,
            checkpoints=checkpoints,
            log=log,
        )
    finally:
        log.close()
    if outcome.reason != "interrupted":
        checkpoints.restore_best()
        results = {
            "test": learner.evaluate(data.test, folder),
            "validation": learner.validate(),
            "best_step": outcome.best_step,
            "steps": outcome.step,
            "seconds": round(outcome.seconds, 1),
            "ended": outcome.reason,
        }
        write_json(folder / RESULTS_FILE, results)
    return folder, outcome


def load_run(folder: Path) -> Learner:
    """The learner of a run with its best weights, ready to predict."""
    config = read_config(folder)
    learner = _load(config, folder)
    Checkpoints(folder / "checkpoints", learner.model).restore_best()
    return learner


def _begin(config: RunConfig, folder: Path, data: Any) -> Learner:
    """A new learner, its configuration and vocabulary written first; or the one begun before."""
    if (folder / CONFIG_FILE).is_file():
        return _load(config, folder)
    folder.mkdir(parents=True, exist_ok=True)
    if config.task == CLASSIFICATION:
        learner: Learner = Classifier.create(config, data)
        write_json(folder / LABELS_FILE, list(data.label_names))
    else:
        learner = LanguageModel.create(config, data)
    learner.tokenizer.save(folder)
    write_json(folder / CONFIG_FILE, config.to_dict())  # last: with it the folder is a run
    return learner


def _load(config: RunConfig, folder: Path) -> Learner:
    if config.task == CLASSIFICATION:
        return Classifier.load(config, folder, read_json(folder / LABELS_FILE))
    return LanguageModel.load(config, folder)
