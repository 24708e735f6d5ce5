"""A run once more on the training and validation texts together, when all is decided."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from model.config.checks import require
from training.config import CLASSIFICATION, RunConfig
from training.datasets.catalogue import load_dataset
from training.runs import CALIBRATION_FILE, RESULTS_FILE, read_json


def refitted(config: RunConfig, folder: Path) -> RunConfig:
    """The run that follows the finished one of `config` in `folder`.

    It sees the texts as often as the first one had when it was at its best, its schedules cut to
    that length, keeps its last weights, and takes the temperature that the first one found, for no
    text is held out any more: its own figures on validation are of texts it was trained on.
    Raises ValueError for runs that have no labels or several stages.
    """
    require(
        config.task == CLASSIFICATION and not config.earlier,
        "--refit",
        "with a classifier that is trained in one stage",
        config.name,
    )
    return replace(config, **_changes(config, folder))


def _changes(config: RunConfig, folder: Path) -> dict[str, Any]:
    results: Mapping[str, Any] = read_json(folder / RESULTS_FILE)
    data: Any = load_dataset(config.dataset, config.task, config.target)
    more = (len(data.train) + len(data.validation)) / max(len(data.train), 1)
    calibrated = folder / CALIBRATION_FILE
    temperature = read_json(calibrated)["temperature"] if calibrated.is_file() else False
    return {
        "name": f"{config.name}_refit",
        "dataset": replace(config.dataset, join_validation=True),
        "max_updates": max(round(results["kept_step"] * more), 1),
        "keep": "last",
        "patience": 0,
        "calibrate": temperature,
    }
