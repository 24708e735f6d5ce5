"""One run, described: frozen dataclasses that check themselves, no TensorFlow.

A recipe returns a `RunConfig`; `--set` changes it by exact name; what comes out is written to
`config.json` beside the results and can be read back. Steps are parameter updates, lengths are
tokens.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import math
import types
import typing
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from model import signatures
from model.config import (
    MODEL_CONFIGS,
    TOKENIZER_CONFIGS,
    ModelConfig,
    TokenizerConfig,
    require,
)
from training.datasets.config import DatasetConfig

CLASSIFICATION, GENERATION = "classification", "generation"

# One line each for `list`; the functions behind the names live in optimizers.py and schedules.py.
OPTIMIZER_NAMES = {
    "sgd": "gradient descent, one batch a step",
    "momentum": "SGD with Polyak momentum 0.9",
    "rmsprop": "RMSProp (Hinton, 2012)",
    "adam": "Adam (Kingma & Ba, 2015), rows of an embedding updated only when used",
    "adamw": "Adam with decoupled weight decay (Loshchilov & Hutter, 2019), lazy embeddings",
}
SCHEDULE_NAMES = ("cosine", "constant")


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    name: str = "adamw"
    peak_learning_rate: float = 1e-3
    schedule: str = "cosine"  # after the warm-up; constant stays at the peak
    warmup_steps: int = 0  # parameter updates, linear from 0
    final_fraction: float = 0.0  # of the peak, where cosine ends
    weight_decay: float = 0.0  # matrices only: no embedding, norm or bias decays; adamw only
    embedding_rate_factor: float = 1.0  # learning rate of embeddings over that of the rest
    clip_norm: float | None = 1.0  # of the whole gradient; None never clips

    def __post_init__(self) -> None:
        _one_of("optimizer.name", self.name, OPTIMIZER_NAMES)
        _one_of("optimizer.schedule", self.schedule, SCHEDULE_NAMES)
        rate = self.peak_learning_rate
        require(0 < rate < math.inf, "optimizer.peak_learning_rate", "above 0 and finite", rate)
        require(self.warmup_steps >= 0, "optimizer.warmup_steps", "0 or more", self.warmup_steps)
        require(
            0 <= self.final_fraction <= 1,
            "optimizer.final_fraction",
            "from 0 to 1",
            self.final_fraction,
        )
        require(
            self.weight_decay == 0 or (0 < self.weight_decay < math.inf and self.name == "adamw"),
            "optimizer.weight_decay",
            "0, or above 0 with optimizer.name=adamw",
            self.weight_decay,
        )
        factor = self.embedding_rate_factor
        require(
            0 < factor < math.inf, "optimizer.embedding_rate_factor", "above 0 and finite", factor
        )
        clip = self.clip_norm
        require(
            clip is None or 0 < clip < math.inf,
            "optimizer.clip_norm",
            "above 0 and finite, or none",
            clip,
        )


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """All that decides what a run computes; equal configurations and data give equal runs."""

    name: str  # of the run's folder and of the export
    dataset: DatasetConfig
    tokenizer: TokenizerConfig
    model: ModelConfig
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    batch_size: int = 32  # texts; windows of the context's length for generation
    epochs: float = 5.0  # passes over the training split
    evaluate_every: int | None = None  # updates; None is once an epoch
    patience: int = 3  # evaluations without a new best before stopping; 0 never stops early
    seed: int = 0  # of weights, data order and dropout

    def __post_init__(self) -> None:
        # "." and ".." are folders already, and not ours.
        valid = bool(self.name.strip(".")) and all(c.isalnum() or c in "_-." for c in self.name)
        require(valid, "name", "letters, digits, '_', '-' or '.', as it names folders", self.name)
        require(self.batch_size > 0, "batch_size", "above 0", self.batch_size)
        require(0 < self.epochs < math.inf, "epochs", "above 0 and finite", self.epochs)
        require(
            self.evaluate_every is None or self.evaluate_every > 0,
            "evaluate_every",
            "above 0, or none for once an epoch",
            self.evaluate_every,
        )
        require(self.patience >= 0, "patience", "0 or more", self.patience)
        require(self.seed >= 0, "seed", "0 or more", self.seed)
        fitting = self.model.tokenizers
        require(
            self.tokenizer.name in fitting,
            "tokenizer",
            f"{' or '.join(fitting)} for model={self.model.name}",
            self.tokenizer.name,
        )

    @property
    def task(self) -> str:
        return GENERATION if self.model.kind == signatures.GENERATOR else CLASSIFICATION

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> RunConfig:
        """The inverse of `to_dict`; raises ValueError for unknown, missing or mistyped settings."""
        return _from_dict(cls, values, "")

    def digest(self, data_fingerprint: str) -> str:
        """Eight hexadecimal digits that differ when the settings or the data differ."""
        # Read back first: 5 and 5.0 are one setting, whichever of them a recipe writes.
        values = RunConfig.from_dict(self.to_dict()).to_dict()
        text = json.dumps([values, data_fingerprint], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:8]


# Sections whose class follows from a name: `model=bidirectional_lstm` swaps the whole section.
_CHOICES = {"model": MODEL_CONFIGS, "tokenizer": TOKENIZER_CONFIGS}


def override(config: RunConfig, assignments: Iterable[str]) -> RunConfig:
    """Applies `name=value` settings such as `optimizer.peak_learning_rate=1e-3`, in order.

    `model=NAME` and `tokenizer=NAME` replace the section by that name's defaults, so settings
    inside it go after. Raises ValueError with the known names when a name is unknown.
    """
    values = config.to_dict()
    for assignment in assignments:
        path, separator, text = assignment.partition("=")
        path, text = path.strip(), text.strip()
        if not separator or not path:
            raise ValueError(
                f"--set takes name=value, for example batch_size=64. Received: {assignment!r}"
            )
        if path in _CHOICES:
            _one_of(path, text, _CHOICES[path])
            values[path] = {"name": text}
            continue
        *sections, leaf = path.split(".")
        target, cls, prefix = values, typing.cast(type, RunConfig), ""
        for section in sections:
            _known(cls, section, prefix)
            inner = _section_class(cls, section, target[section])
            if inner is None:
                raise ValueError(f"{prefix}{section} has no settings inside. Received: {path}")
            target, cls = target[section], inner
            prefix += section + "."
        _known(cls, leaf, prefix)
        hint = typing.get_type_hints(cls)[leaf]
        if leaf == "name" and prefix[:-1] in _CHOICES:
            raise ValueError(f"{path} decides the whole section. Set it as {prefix[:-1]}=NAME.")
        if dataclasses.is_dataclass(hint):
            names = ", ".join(f"{path}.{f.name}" for f in dataclasses.fields(hint))
            raise ValueError(f"{path} is a section. Set one of {names}. Received: {text!r}")
        target[leaf] = _parse(text, hint, path)
    return RunConfig.from_dict(values)


def _from_dict(cls: type, values: Any, prefix: str) -> Any:
    if not isinstance(values, dict):
        where = prefix[:-1] or "The configuration"
        raise ValueError(f"{where} must be an object of settings. Received: {values!r}")
    hints = typing.get_type_hints(cls)
    arguments = {}
    for name, value in values.items():
        _known(cls, name, prefix)
        hint, path = hints[name], prefix + name
        section = _section_class(cls, name, value)
        if section is not None:
            value = _from_dict(section, value, path + ".")
        elif not _fits(value, hint):
            raise ValueError(f"{path} must be {_describe(hint)}. Received: {value!r}")
        arguments[name] = float(value) if _is_float(hint) and value is not None else value
    missing = [
        f.name
        for f in dataclasses.fields(cls)
        if f.name not in arguments
        and f.default is dataclasses.MISSING
        and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ValueError(f"Missing settings: {', '.join(prefix + name for name in missing)}.")
    return cls(**arguments)


def _section_class(cls: type, name: str, value: Any) -> Any:
    """The dataclass behind a section of settings; None when `name` is a plain value."""
    if cls is RunConfig and name in _CHOICES:
        chosen: Any = value.get("name") if isinstance(value, dict) else value
        _one_of(f"{name}.name", chosen, _CHOICES[name])
        return _CHOICES[name][chosen]
    hint = typing.get_type_hints(cls)[name]
    return hint if dataclasses.is_dataclass(hint) else None


def _known(cls: type, name: str, prefix: str) -> None:
    names = [f.name for f in dataclasses.fields(cls)]
    if name not in names:
        close = difflib.get_close_matches(name, names, n=1)
        hint = f" Did you mean {prefix}{close[0]}?" if close else ""
        known = ", ".join(prefix + known for known in names)
        raise ValueError(f"Unknown setting {prefix}{name}.{hint} Known: {known}.")


def _one_of(setting: str, value: Any, known: Iterable[str]) -> None:
    names = list(known)
    if value not in names:
        raise ValueError(f"{setting} must be one of {', '.join(names)}. Received: {value!r}")


def _alternatives(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)


def _is_float(hint: Any) -> bool:
    return float in _alternatives(hint)


def _fits(value: Any, hint: Any) -> bool:
    if isinstance(value, bool):
        return bool in _alternatives(hint)
    allowed = tuple(_alternatives(hint)) + ((int,) if _is_float(hint) else ())
    return isinstance(value, allowed)


def _describe(hint: Any) -> str:
    words = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
    return " or ".join(words.get(part, "none") for part in _alternatives(hint))


def _parse(text: str, hint: Any, path: str) -> Any:
    """The value that a user typed, read as the setting's type."""
    alternatives = _alternatives(hint)
    if type(None) in alternatives and text.lower() in ("none", "null"):
        return None
    if bool in alternatives and text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float, str):
        if kind in alternatives:
            try:
                return kind(text)
            except ValueError:
                continue
    raise ValueError(f"{path} must be {_describe(hint)}. Received: {text!r}")
