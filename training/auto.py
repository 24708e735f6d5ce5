"""Tries several recipes on one data set within a time, and keeps the best or a mixture of several.

The folder `runs/auto-<digest>/` is a run like others: `ensemble.json` names its members, which are
runs in `members/`; its `config.json` is that of the strongest of them.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from model.config.checks import require
from training.budget import within
from training.config import CLASSIFICATION, RunConfig
from training.datasets.catalogue import load_dataset
from training.datasets.config import CLASS, DatasetConfig
from training.ensemble import Ensemble, mixture, mixture_weights, softmax
from training.recipes.auto import AUTO, candidates
from training.refit import refitted
from training.run import fit_run, load_run, without_repeats
from training.runs import (
    CONFIG_FILE,
    ENSEMBLE_FILE,
    LABELS_FILE,
    RESULTS_FILE,
    fingerprints,
    read_json,
    write_json,
)

logger = logging.getLogger(__name__)

_LONGEST = 256  # tokens of a text that a network reads
_CHINESE = range(0x2E80, 0x9FFF)


@dataclass(frozen=True)
class Member:
    """A candidate that is trained: its run, and what it says of the validation split."""

    name: str
    folder: Path
    config: RunConfig
    temperature: float
    probabilities: np.ndarray  # (N, K), calibrated
    figures: dict[str, float]
    updates: int
    seconds: float


def fit_auto(
    dataset: DatasetConfig,
    budget: float,
    runs: Path,
    *,
    name: str = AUTO,
    change: Callable[[RunConfig], RunConfig] = lambda config: config,
    refit: bool = False,
) -> tuple[Path, list[dict[str, Any]]] | None:
    """Trains the candidates on `dataset` in `budget` seconds, keeps the best on validation.

    What is kept is the mixture of least calibrated cross-entropy on validation, often of one
    candidate; the accuracy of so few texts would be more of a lottery. The first candidate sees
    every text at least once, however short the time. Returns the folder of the
    run and a line of a table for each that was tried; None when interrupted: the same call goes on.
    `change` is what the user sets in every candidate. With `refit` what is kept is trained once
    more on training and validation texts together (`training.refit`), for half of the time.
    """
    data: Any = load_dataset(dataset, CLASSIFICATION)
    tried = {name: change(config) for name, config in _candidates(dataset, data).items()}
    for config in tried.values():
        require(config.target == CLASS, "target", f"class with {AUTO}", config.target)
    folder = runs / f"{name}-{_digest(tried, budget, refit)}"
    if (folder / RESULTS_FILE).is_file():
        return folder, read_json(folder / RESULTS_FILE)["tried"]
    members: list[Member] = []
    left = budget / 2 if refit else budget
    for number, config in enumerate(tried.values()):
        # Bags take what they need of it and leave the rest to what comes after them.
        is_last = number == len(tried) - 1
        if members and left <= 0:
            logger.info(f"{config.name} is left out: no time is left.")
            continue
        fitted = within(config, round(left if is_last else left / 2, 1), folder)
        left -= fitted.overhead
        if fitted.passes < 1 and members:
            logger.info(f"{config.name} is left out: no time to see every text once.")
            continue
        if fitted.passes < 1:
            logger.warning(
                f"{budget:g} s are too short for {config.name} to see every text once; it takes "
                f"{fitted.of_a_pass:,} updates all the same, one pass over them."
            )
            whole = replace(fitted.config, max_updates=fitted.of_a_pass)
            fitted = replace(fitted, config=whole)
        run, outcome = fit_run(fitted.config, folder / "members", describe=not members)
        if outcome.reason == "interrupted":
            return None
        members.append(_member(fitted.config, run, data))
        left = max(left - members[-1].seconds, 0.0)
    chosen, weights, tried_lines = choose(members, data.validation.labels)
    kept = [member.folder for member in chosen]
    validation = Ensemble([_classifier(run) for run in kept], weights).figures_of(data.validation)
    seconds = sum(member.seconds for member in members)
    if refit:
        for i, member in enumerate(chosen):
            again = refitted(member.config, member.folder)
            kept[i], outcome = fit_run(again, folder / "members", describe=not i)
            if outcome.reason == "interrupted":
                return None
            seconds += read_json(kept[i] / RESULTS_FILE)["seconds"]
    names = [str(run.relative_to(folder)) for run in kept]
    write_json(folder / ENSEMBLE_FILE, dict(zip(names, weights, strict=True)))
    write_json(folder / LABELS_FILE, list(data.label_names))
    ensemble = Ensemble.read(folder, load_run)  # type: ignore[arg-type]
    strongest = min(chosen, key=lambda member: member.figures["loss"])
    write_json(
        folder / RESULTS_FILE,
        {
            "test": ensemble.evaluate(data.test, folder) | without_repeats(ensemble, data),
            "validation": validation,
            "steps": sum(member.updates for member in members),
            "seconds": round(seconds, 1),
            "ended": "finished",
            "members": [member.name for member in chosen],
            "tried": tried_lines,
        },
    )
    write_json(folder / CONFIG_FILE, replace(strongest.config, name=name).to_dict())
    return folder, tried_lines


def choose(
    members: list[Member], labels: np.ndarray
) -> tuple[list[Member], list[float], list[dict[str, Any]]]:
    """Members of the mixture with the least loss on validation, its weights, a line for each tried.

    The last line is that of the mixture, if it has several members.
    """
    probabilities = [member.probabilities for member in members]
    weights = mixture_weights(probabilities, labels)
    lines = [
        {
            "candidate": member.name,
            "updates": member.updates,
            "seconds": round(member.seconds, 1),
            "temperature": member.temperature,
            "weight": round(float(weight), 3),
        }
        | member.figures
        for member, weight in zip(members, weights, strict=True)
    ]
    chosen = [member for member, weight in zip(members, weights, strict=True) if weight]
    if len(chosen) > 1:
        together = {"candidate": " + ".join(m.name for m in chosen), "weight": 1.0}
        lines.append(together | figures_of(mixture(probabilities, list(weights)), labels))
    return chosen, [float(weight) for weight in weights if weight], lines


def _candidates(dataset: DatasetConfig, data: Any) -> dict[str, RunConfig]:
    texts = data.train.texts
    sample = "".join(texts[:: max(len(texts) // 1_000, 1)])
    letters = [ord(c) for c in sample if c.isalpha()]
    is_spaced = sum(code in _CHINESE for code in letters) < len(letters) / 2
    lengths = [len(text.split()) if is_spaced else len(text) for text in texts]
    typical = int(np.percentile(lengths, 95) * 1.2) + 8  # marks are tokens too
    return candidates(
        dataset,
        num_labels=len(data.label_names),
        num_texts=len(texts),
        is_spaced=is_spaced,
        num_tokens=min(typical, _LONGEST),
    )


def _member(config: RunConfig, run: Path, data: Any) -> Member:
    learner: Any = load_run(run)
    labels = data.validation.labels
    probabilities = softmax(learner.logits(data.validation.texts) / learner.temperature)
    results = read_json(run / RESULTS_FILE)
    return Member(
        name=config.name,
        folder=run,
        config=config,
        temperature=learner.temperature,
        probabilities=probabilities,
        figures=figures_of(probabilities, labels),
        updates=results["steps"],
        seconds=results["seconds"],
    )


def figures_of(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    right = np.maximum(probabilities[np.arange(len(labels)), labels], 1e-30)
    return {
        "loss": float(-np.log(right).mean()),
        "accuracy": float((probabilities.argmax(axis=1) == labels).mean()),
    }


def _classifier(run: Path) -> Any:
    return load_run(run)


def _digest(tried: dict[str, RunConfig], budget: float, refit: bool) -> str:
    parts: list[Any] = [budget, refit]
    parts += [config.digest(fingerprints(config)) for config in tried.values()]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:8]
