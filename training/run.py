"""One run from data to results: the main path of this room."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import tensorflow as tf

from model.config.checks import require
from model.dropout import dropout_rates
from training.checkpoints import Checkpoints
from training.classification import Classifier
from training.config import CLASSIFICATION, GENERATION, RunConfig, StageConfig
from training.datasets.catalogue import load_dataset
from training.datasets.corpus import CorpusData
from training.datasets.examples import unseen_test_indices
from training.devices import check_replicas
from training.ensemble import Ensemble
from training.language_model import LanguageModel
from training.leakage import find_leakage
from training.loop import Outcome
from training.objectives import texts_of
from training.progress import Log, NoLog
from training.runs import (
    CALIBRATION_FILE,
    CONFIG_FILE,
    ENSEMBLE_FILE,
    LABELS_FILE,
    RESULTS_FILE,
    SCALE_FILE,
    STAGES_FILE,
    read_config,
    read_json,
    run_folder,
    write_json,
)
from training.stages import Observe, Stage, build_stage, fit_stage, load_data, stage_folder
from training.strategies.replicas import Replicas
from training.targets import NumberTarget
from training.vectors.learner import WordVectorModel
from training.vectors.start import find_vectors, start_from_vectors

logger = logging.getLogger(__name__)

Learner = Classifier | LanguageModel | WordVectorModel


def fit_run(
    config: RunConfig,
    runs: Path,
    *,
    replicas: Replicas | None = None,
    observe: Observe | None = None,
    describe: bool = True,
) -> tuple[Path, Outcome]:
    """Trains `config` in its folder below `runs`, going on if it was begun, and evaluates it.

    Returns the folder and how training ended; `results.json` is written unless interrupted.
    `observe` is told every evaluation of the last stage: (update, validation metrics). `describe`
    logs what is to be said of the data; False where an earlier run on the same said it.

    With `replicas` in several processes all call this at the same time, on one file system: the
    chief writes, the others read what it wrote; workers of `local_sgd` and `diloco` have besides
    checkpoints of their own. Raises ValueError for a strategy that cannot run on several replicas.
    """
    folder, replicas = run_folder(runs, config), replicas or Replicas()
    check_replicas(config, replicas)
    if config.deterministic:
        tf.config.experimental.enable_op_determinism()
    data: Any = load_dataset(config.dataset, config.task, config.target)
    if replicas.is_chief and describe:
        # Of a corpus on disk only samples are here, and equal documents are on one side anyway.
        leaks = (
            ()
            if isinstance(data, CorpusData)
            else find_leakage(data, is_joined=config.dataset.join_validation).lines()
        )
        for line in (*data.notes, *leaks):
            logger.info(line)
    learner = begin_run(config, folder, data, replicas)
    rates = [float(rate.numpy()) for rate in dropout_rates(learner.model)]  # as built
    done: list[dict] = read_json(folder / STAGES_FILE) if (folder / STAGES_FILE).is_file() else []
    outcome = None
    for number in range(len(done), len(config.stages)):
        if number:
            _go_on_from(folder, config.stages[number - 1], learner, rates)
        teacher = teacher_of(config.stages[number], learner, runs, replicas)
        stage = build_stage(config, number, learner, teacher=teacher, replicas=replicas)
        initial_weights = _digest(learner.model.variables)
        log = _log(config, folder, number, stage, done, replicas)
        is_last = number == len(config.stages) - 1
        with log:
            outcome = fit_stage(config, stage, learner, folder, log, observe if is_last else None)
        if outcome.reason == "interrupted":
            return folder, outcome
        replicas.wait()  # for the chief to have written the best weights
        if stage.lora:  # a network without the low-rank parts, which are merged into it
            with replicas.scope():
                learner = _load(config, folder)
        done.append(stage.record(outcome) | {"initial_weights": initial_weights})
        if replicas.is_chief:
            write_json(folder / STAGES_FILE, done)
    _go_on_from(folder, config, learner, rates)
    if replicas.is_chief:
        if isinstance(learner, Classifier) and learner.target.has_classes and config.calibrate:
            if config.calibrate is True:
                learner.calibrate(data.validation)
            else:
                learner.temperature = config.calibrate
            write_json(folder / CALIBRATION_FILE, {"temperature": learner.temperature})
        write_json(folder / RESULTS_FILE, _results(learner, data, folder, done))
    replicas.wait()  # a process that ends would end the others
    steps, last_stage = sum(stage["steps"] for stage in done), done[-1]
    return folder, outcome or Outcome(last_stage["ended"], steps, last_stage["best_step"], 0.0)


def _results(learner: Learner, data: Any, folder: Path, done: list[dict]) -> dict:
    return {
        "test": learner.evaluate(data.test, folder) | without_repeats(learner, data),
        "validation": learner.figures_of(data.validation),
        "best_step": done[-1]["best_step"],
        "kept_step": done[-1]["kept_step"],
        "steps": sum(stage["steps"] for stage in done),
        "gradient_evaluations": sum(stage["gradient_evaluations"] for stage in done),
        "seconds": round(sum(stage["seconds"] for stage in done), 1),
        "ended": done[-1]["ended"],
        "stages": done,
    }


def without_repeats(learner: Learner, data: Any) -> dict:
    """Accuracy on the test texts that training does not have, if it has some of a classifier's."""
    if not isinstance(learner, Classifier):
        return {}
    unseen = unseen_test_indices(data)
    if len(unseen) in (0, len(data.test)):
        return {}
    figures = learner.figures_of(data.test.take(unseen))
    if "accuracy" not in figures:  # several labels, or a number
        return {}
    return {"without_repeats": {"accuracy": figures["accuracy"], "num_examples": len(unseen)}}


def load_run(folder: Path) -> Learner:
    """The learner of a run with its best weights, ready to predict."""
    config = read_config(folder)
    if (folder / ENSEMBLE_FILE).is_file():
        return Ensemble.read(folder, load_run)  # type: ignore[arg-type]  # of classifiers alone
    learner = _load(config, folder)
    Checkpoints(stage_folder(folder, config), learner.model).restore_best()
    return learner


def _go_on_from(folder: Path, stage: StageConfig, learner: Learner, rates: list[float]) -> None:
    """Loads what `stage` ended with; dropout rates that it moved are again as built."""
    Checkpoints(stage_folder(folder, stage), learner.model).restore_best()
    for variable, rate in zip(dropout_rates(learner.model), rates, strict=True):
        variable.assign(rate)


def teacher_of(stage: StageConfig, learner: Any, runs: Path, replicas: Replicas):
    """Texts to logits by the run that `stage` learns from, fitted first if it is not yet."""
    if stage.teacher is None:
        return None
    from training.recipes import recipe

    config = recipe(stage.teacher)
    folder = run_folder(runs, config)
    if replicas.is_chief and not (folder / RESULTS_FILE).is_file():
        logger.info(f"{stage.name} learns from {stage.teacher}, which is trained first.")
        _, outcome = fit_run(config, runs)
        if outcome.reason == "interrupted":
            raise KeyboardInterrupt
    replicas.wait()
    teacher: Any = load_run(folder)
    labels = getattr(teacher, "label_names", ())
    require(
        labels == learner.label_names and teacher.target.has_classes,
        "teacher",
        f"a recipe with the labels {', '.join(learner.label_names)}, one a text",
        f"{stage.teacher} with {', '.join(labels) or 'none'}, target={config.target}",
    )
    return teacher.logits


def _log(
    config: RunConfig, folder: Path, number: int, stage: Stage, done: list[dict], replicas: Replicas
) -> Log:
    if not replicas.is_chief:
        return NoLog(stage.objective.unit)
    return Log(
        folder,
        title=_title(config, number),
        stage=stage.config.name,
        offset=sum(earlier["steps"] for earlier in done),
        steps=stage.num_updates,
        unit=stage.objective.unit,
    )


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


def begin_run(
    config: RunConfig, folder: Path, data: Any, replicas: Replicas | None = None
) -> Learner:
    """A new learner, its configuration and vocabulary written first; or the one begun before."""
    replicas = replicas or Replicas()
    if replicas.num_processes > 1:
        if replicas.is_chief and not (folder / CONFIG_FILE).is_file():
            _create(config, folder, data)  # for the files: variables of all are made together
        replicas.wait()
    with replicas.scope():
        is_begun = (folder / CONFIG_FILE).is_file()
        learner = _load(config, folder) if is_begun else _create(config, folder, data)
        if config.vectors:
            start_from_vectors(learner, folder)
    return learner


def _create(config: RunConfig, folder: Path, data: Any) -> Learner:
    folder.mkdir(parents=True, exist_ok=True)
    texts = _texts_besides(config, data)
    learner: Any
    if config.task == CLASSIFICATION:
        learner = Classifier.create(config, data, texts)
        write_json(folder / LABELS_FILE, list(data.label_names))
        if isinstance(target := learner.target, NumberTarget):
            write_json(folder / SCALE_FILE, [target.mean, target.deviation])
    elif config.task == GENERATION:
        learner = LanguageModel.create(config, data, texts)
    else:
        learner = WordVectorModel.create(config, data, texts)
        learner.save(folder)
    learner.tokenizer.save(folder)
    if config.vectors:
        find_vectors(config, learner.tokenizer, texts_of(data, "train"), folder)
    write_json(folder / CONFIG_FILE, config.to_dict())  # last: with it the folder is a run
    return learner


def _texts_besides(config: RunConfig, data: Any) -> list[str]:
    """Training texts of the run that are not in `data`: the vocabulary has to know their words.

    Each once, however many stages read it, or words would seem more frequent than they are.
    """
    mixed_in = [replace(stage, dataset=stage.mixture) for stage in config.stages if stage.mixture]
    own = set(texts_of(data, "train"))
    texts = (
        text
        for stage in (*config.earlier, *mixed_in)
        for text in texts_of(load_data(config, stage), "train")
    )
    return [text for text in dict.fromkeys(texts) if text not in own]


def _load(config: RunConfig, folder: Path) -> Learner:
    if config.task == CLASSIFICATION:
        return Classifier.load(config, folder, read_json(folder / LABELS_FILE))
    kind = LanguageModel if config.task == GENERATION else WordVectorModel
    return kind.load(config, folder)
