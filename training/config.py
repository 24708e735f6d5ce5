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
import re
import types
import typing
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from model import signatures
from model.config import MODEL_CONFIGS, TOKENIZER_CONFIGS, ModelConfig, TokenizerConfig
from model.config.checks import PRECISIONS, require
from model.config.word_vectors import WORD_VECTORS
from training.datasets.config import (
    CLASS,
    GRADE,
    LABELS,
    NUMBER,
    TARGETS,
    USER_FILE,
    DatasetConfig,
)
from training.expressions import Call, parse_value
from training.schedules import Plateau
from training.schedules import check as check_schedule
from training.strategies.catalogue import SCHEDULE_FREE, Link, resolve

CLASSIFICATION, GENERATION = "classification", "generation"

# What a stage may learn from its texts.
SUPERVISED, LANGUAGE_MODEL, MASKED_LANGUAGE_MODEL, DISTILLATION = (
    "supervised",
    "language_model",
    "masked_language_model",
    "distillation",
)
OBJECTIVES = {
    SUPERVISED: "the run's own task: labels, or the next token of a generator",
    LANGUAGE_MODEL: "the next token, by a classifier's token_logits (pre-training)",
    MASKED_LANGUAGE_MODEL: "tokens that were hidden, by a classifier's token_logits (pre-training)",
    DISTILLATION: "the softened scores of a teacher beside the labels (Hinton et al., 2015)",
}
BALANCED = "balanced"  # as class_weights: every label weighs the same in all
_OF_TOKENS = (LANGUAGE_MODEL, MASKED_LANGUAGE_MODEL)  # objectives that look at no label
DOCUMENTS, PACKED = "documents", "packed"  # what a row of a language model's batch is made of
FULL_BATCH = "full"  # as a batch size: every update sees the whole training split


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    peak_learning_rate: float = 1e-3
    schedule: str = "cosine"  # of the rate, in fractions of the peak; see `list`
    weight_decay: float | str = 0.0  # decoupled, of any optimizer; no embedding, norm, bias decays
    embedding_rate_factor: float = 1.0  # learning rate of embeddings over that of the rest
    clip_norm: float | None = 1.0  # of the whole gradient; None never clips

    def __post_init__(self) -> None:
        rate = self.peak_learning_rate
        require(0 < rate < math.inf, "optimizer.peak_learning_rate", "above 0 and finite", rate)
        check_schedule(self.schedule, "optimizer.schedule", least=0)
        decay = self.weight_decay
        if isinstance(decay, str):
            check_schedule(decay, "optimizer.weight_decay", least=0)
        else:
            require(0 <= decay < math.inf, "optimizer.weight_decay", "0 or more", decay)
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
class StageConfig:
    """One stage of a run: data, objective, what moves, how, and when to stop.

    A stage starts from the weights that the one before it ended with. Regular expressions are
    searched for in the paths of variables, such as `ulmfit_lstm/lstm_0/lstm_cell/kernel`.
    """

    name: str
    dataset: DatasetConfig | None = None  # None: the run's
    objective: str = SUPERVISED
    strategy: str = "adamw"  # how batches become updates: parts around an optimizer; see `list`
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    trainable: str = ""  # a regular expression over variables that move; empty: all
    rate_factors: str = ""  # "expression=factor, ..." on the rate of the variables it is found in
    batch_size: int | str = 32  # rows; "full" for the whole split; or linear(8, 64), a schedule
    packing: str = DOCUMENTS  # a row of a generator's batch: one document's, or packed, of several
    max_tokens: int | str | None = None  # a row's longest part that is read; or a schedule
    epochs: float = 5.0  # passes over the training split
    max_updates: int | None = None  # in place of epochs
    evaluate_every: int | None = None  # updates; None is once an epoch
    patience: int = 3  # evaluations without a new best before stopping; 0 never stops early
    keep: str = "best"  # which weights the stage ends with: best (on validation) or last
    stop_loss: float | None = None  # converged when an update's loss is at most this ...
    stop_grad_norm: float | None = None  # ... or its gradient norm is at most this ...
    stop_updates: int = 1  # ... so many updates in a row
    dropout: str | None = None  # a schedule for every dropout rate of the network; None: as built
    label_smoothing: float = 0.0  # share of each target that is spread over all labels
    class_weights: str | None = None  # of the loss: balanced, or "label=weight, ..."; the rest: 1
    mixture: DatasetConfig | None = None  # a second data set whose batches are mixed in ...
    mixture_share: str = "0.5"  # ... with this probability, or a schedule of it
    mask_rate: float = 0.15  # of masked_language_model: tokens that are hidden
    lora_rank: int = 0  # above 0: low-rank changes of lora_layers, and what trainable names
    lora_alpha: float = 16.0  # the change is alpha / rank times the product of its factors
    lora_layers: str = "kernel"  # a regular expression
    teacher: str | None = None  # of distillation: a recipe, trained first if need be
    distillation_temperature: float = 2.0
    distillation_share: float = 0.5  # of the loss that comes from the teacher

    def __post_init__(self) -> None:
        # "." and ".." are folders already, and not ours.
        valid = bool(self.name.strip(".")) and all(c.isalnum() or c in "_-." for c in self.name)
        require(valid, "name", "letters, digits, '_', '-' or '.', as it names folders", self.name)
        _one_of("objective", self.objective, OBJECTIVES)
        resolve(self.strategy)
        for setting in ("trainable", "lora_layers"):
            _check_expression(setting, getattr(self, setting))
        self.factors()
        self._check_batches()
        self._check_ends()
        self._check_objective()

    def factors(self) -> list[tuple[str, float]]:
        """`rate_factors`, read: (regular expression, factor of the rate)."""
        pairs = []
        for pair in filter(None, (part.strip() for part in self.rate_factors.split(","))):
            pattern, separator, factor = pair.rpartition("=")
            try:
                number = float(factor)
            except ValueError:
                number = -1.0
            require(
                bool(separator and pattern.strip()) and 0 <= number < math.inf,
                "rate_factors",
                'pairs such as "embedding=0.1, lstm_0=0.3"',
                self.rate_factors,
            )
            _check_expression("rate_factors", pattern.strip())
            pairs.append((pattern.strip(), number))
        return pairs

    def weights_of_classes(self) -> dict[str, float]:
        """`class_weights`, read: the labels it names and their weights; {} for balanced."""
        if self.class_weights in (None, BALANCED):
            return {}
        weights = {}
        for pair in str(self.class_weights).split(","):
            label, separator, text = pair.rpartition("=")
            try:
                weight = float(text)
            except ValueError:
                weight = -1.0
            require(
                bool(separator and label.strip()) and 0 <= weight < math.inf,
                "class_weights",
                f'none, {BALANCED}, or pairs such as "negative=1, positive=2.5"',
                self.class_weights,
            )
            weights[label.strip()] = weight
        return weights

    def _check_batches(self) -> None:
        size = self.batch_size
        if isinstance(size, int):
            require(size > 0, "batch_size", "above 0", size)
        elif size != FULL_BATCH:
            check_schedule(size, "batch_size", least=1)
        if isinstance(self.max_tokens, int):
            require(self.max_tokens > 0, "max_tokens", "above 0, or none", self.max_tokens)
        elif self.max_tokens is not None:
            check_schedule(self.max_tokens, "max_tokens", least=1)
        _one_of("packing", self.packing, (DOCUMENTS, PACKED))
        require(
            self.packing == DOCUMENTS or size != FULL_BATCH,
            "batch_size",
            "a number or a schedule with packing=packed",
            size,
        )
        moves = isinstance(size, str) and size != FULL_BATCH
        require(
            not moves or self.max_updates is not None,
            "max_updates",
            "set when batch_size is a schedule, as the length of the run follows from neither",
            self.max_updates,
        )
        check_schedule(self.mixture_share, "mixture_share", least=0, most=1)
        chain = resolve(self.strategy)
        check_rate_of(chain[-1].name, self.optimizer.schedule)
        private = is_private(chain)
        require(
            self.mixture is None or not private and size != FULL_BATCH,
            "mixture",
            "none with dp_sgd, which counts on one data set, and with batch_size=full, whose "
            "pieces are those of one",
            self.mixture and self.mixture.name,
        )
        require(
            not private or isinstance(size, int),
            "batch_size",
            "a number with dp_sgd, whose epsilon holds for examples drawn at one rate",
            size,
        )

    def _check_ends(self) -> None:
        require(0 < self.epochs < math.inf, "epochs", "above 0 and finite", self.epochs)
        for setting in ("max_updates", "evaluate_every"):
            value = getattr(self, setting)
            require(value is None or value > 0, setting, "above 0, or none", value)
        require(self.patience >= 0, "patience", "0 or more", self.patience)
        plateau = Plateau.from_expression(self.optimizer.schedule)
        require(
            plateau is None or not self.patience or self.patience > plateau.patience,
            "patience",
            f"0, or above the {plateau and plateau.patience} evaluations after which "
            f"optimizer.schedule={self.optimizer.schedule} lowers the rate: it would end first",
            self.patience,
        )
        _one_of("keep", self.keep, ("best", "last"))
        for setting in ("stop_loss", "stop_grad_norm"):
            value = getattr(self, setting)
            require(value is None or value >= 0, setting, "0 or more, or none", value)
        require(self.stop_updates > 0, "stop_updates", "above 0", self.stop_updates)

    def _check_objective(self) -> None:
        if self.dropout is not None:
            check_schedule(self.dropout, "dropout", least=0, most=0.99)  # at 1 nothing is left
        smoothing = self.label_smoothing
        require(0 <= smoothing < 1, "label_smoothing", "at least 0 and below 1", smoothing)
        require(0 < self.mask_rate < 1, "mask_rate", "above 0 and below 1", self.mask_rate)
        require(self.lora_rank >= 0, "lora_rank", "0 or more", self.lora_rank)
        require(self.lora_alpha > 0, "lora_alpha", "above 0", self.lora_alpha)
        self.weights_of_classes()
        distils = self.objective == DISTILLATION
        require(
            distils == (self.teacher is not None),
            "teacher",
            "a recipe's name with objective=distillation, and none without",
            self.teacher,
        )
        temperature, share = self.distillation_temperature, self.distillation_share
        require(temperature > 0, "distillation_temperature", "above 0", temperature)
        require(0 <= share <= 1, "distillation_share", "from 0 to 1", share)


@dataclass(frozen=True, kw_only=True)
class RunConfig(StageConfig):
    """All that decides what a run computes; equal configurations and data give equal runs.

    A run is its last stage, whose settings stand here, after those in `earlier`.
    """

    dataset: DatasetConfig = field()  # without it the default of a stage, None, would be ours
    tokenizer: TokenizerConfig
    model: ModelConfig
    earlier: tuple[StageConfig, ...] = ()  # stages before; set as earlier.NAME.SETTING
    vectors: str | None = None  # a file of word vectors that the embedding starts from
    tune_vectors: bool = True  # false: the embedding stays as it started, words not found too
    target: str = CLASS  # of a classifier: class, labels, grade or number; see `list`
    calibrate: bool | float = True  # scores by a temperature fitted on validation, or this one
    seed: int = 0  # of weights, data order, dropout and noise
    precision: str = "float32"  # or mixed_bfloat16, mixed_float16 (with loss_scale): of the layers
    deterministic: bool = True  # only operations that give the same bits every time
    xla: bool = False  # compile updates; every row is then padded to the longest
    updates_per_call: int = 1  # updates in one call of TensorFlow
    save_every: float = 20.0  # seconds of work at most that a kill may cost
    keep_checkpoints: int = 1  # of the last states, besides one in reserve

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.seed >= 0, "seed", "0 or more", self.seed)
        _one_of("precision", self.precision, PRECISIONS)
        require(self.updates_per_call > 0, "updates_per_call", "above 0", self.updates_per_call)
        require(
            isinstance(self.calibrate, bool) or self.calibrate > 0,
            "calibrate",
            "true, false, or a temperature above 0",
            self.calibrate,
        )
        require(self.save_every >= 0, "save_every", "0 or more", self.save_every)
        require(self.keep_checkpoints > 0, "keep_checkpoints", "above 0", self.keep_checkpoints)
        names = [stage.name for stage in self.stages]
        require(len(set(names)) == len(names), "earlier", "stages of different names", names)
        self._check_privacy()
        self._check_target()
        fitting = self.model.tokenizers
        require(
            self.tokenizer.name in fitting,
            "tokenizer",
            f"{' or '.join(fitting)} for model={self.model.name}",
            self.tokenizer.name,
        )
        self._check_vectors()
        for stage in self.stages:
            private = is_private(resolve(stage.strategy))
            require(
                not (self.xla and private),
                "xla",
                "false with dp_sgd, whose batches have as many rows as chance will have it; XLA "
                "compiles for one number of rows",
                self.xla,
            )
            allowed = list(OBJECTIVES) if self.task == CLASSIFICATION else [SUPERVISED]
            _one_of(f"{stage.name}'s objective", stage.objective, allowed)
            require(
                stage.packing == DOCUMENTS or not private,
                "packing",
                "documents with dp_sgd, which draws each row by itself",
                stage.packing,
            )
            scales = any(link.name == "loss_scale" for link in resolve(stage.strategy))
            require(
                scales or self.precision != "mixed_float16",
                "strategy",
                "around loss_scale with precision=mixed_float16, whose gradients underflow "
                "otherwise, for example loss_scale(adamw)",
                stage.strategy,
            )
        require(
            self.objective in (SUPERVISED, DISTILLATION),
            "objective",
            "supervised or distillation in the last stage, whose model is evaluated and exported",
            self.objective,
        )

    def _check_target(self) -> None:
        _one_of("target", self.target, TARGETS)
        require(
            self.task == CLASSIFICATION or self.target == CLASS,
            "target",
            f"{CLASS} with model={self.model.name}, which writes texts and judges none",
            self.target,
        )
        private = any(is_private(resolve(stage.strategy)) for stage in self.stages)
        require(
            not private or self.target != NUMBER,
            "target",
            "class, labels or grade with dp_sgd: the scale of numbers follows from all of them, "
            "which no epsilon covers",
            self.target,
        )
        for stage in self.stages:
            prefix = "" if stage is self else f"earlier.{stage.name}."
            require(
                stage.class_weights is None or not private,
                f"{prefix}class_weights",
                "none with dp_sgd: they follow from how often each label occurs, which no epsilon "
                "covers",
                stage.class_weights,
            )
            if self.target not in (LABELS, NUMBER) or stage.objective in _OF_TOKENS:
                continue
            why = f"with target={self.target}, which has no distribution over the labels"
            require(
                stage.objective == SUPERVISED,
                f"{prefix}objective",
                f"supervised {why}",
                DISTILLATION,
            )
            require(
                stage.label_smoothing == 0,
                f"{prefix}label_smoothing",
                f"0 {why}",
                stage.label_smoothing,
            )
            require(
                stage.class_weights is None,
                f"{prefix}class_weights",
                f"none with target={self.target}, whose texts have no one label to be weighed by",
                stage.class_weights,
            )
            softmax = [link.name for link in resolve(stage.strategy) if link.name == "r_drop"]
            require(
                not softmax,
                f"{prefix}strategy",
                f"without r_drop {why} for its divergence to compare",
                stage.strategy,
            )

    def _check_privacy(self) -> None:
        if not any(is_private(resolve(stage.strategy)) for stage in self.stages):
            return
        require(
            self.task != WORD_VECTORS,
            "strategy",
            f"one without dp_sgd for model={self.model.name}: counts of words are in no epsilon",
            self.strategy,
        )
        require(
            not self.earlier,
            "earlier",
            "empty with dp_sgd: its epsilon counts the updates of one stage, and only if that is "
            "the first to see the texts. Let dp_sgd be the strategy of a run of one stage",
            [stage.name for stage in self.earlier],
        )
        require(
            self.teacher is None,
            "teacher",
            "none with dp_sgd: what a teacher has learned from the texts is in no epsilon",
            self.teacher,
        )

    def _check_vectors(self) -> None:
        takes_them = self.task == CLASSIFICATION and self.embedding_size is not None
        require(
            self.vectors is None or (takes_them and self.tokenizer.name == "word"),
            "vectors",
            "none but for a classifier with an embedding of words, as with tokenizer=word and "
            "model=recurrent",
            self.vectors,
        )

    @property
    def embedding_size(self) -> tuple[str, int] | None:
        """The setting that says how long vectors of tokens are, and its value; None without one."""
        for name in ("embedding_size", "width"):
            if hasattr(self.model, name):
                return f"model.{name}", getattr(self.model, name)
        return None

    @property
    def task(self) -> str:
        """classification, generation, or word_vectors, which learns from texts of any data set."""
        tasks = {signatures.CLASSIFIER: CLASSIFICATION, signatures.GENERATOR: GENERATION}
        return tasks.get(self.model.kind, WORD_VECTORS)

    @property
    def stages(self) -> tuple[StageConfig, ...]:
        """All stages in order, the run itself as the last."""
        return (*self.earlier, self)

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
        for setting in ("save_every", "keep_checkpoints"):  # change nothing that is computed
            del values[setting]
        text = json.dumps([values, data_fingerprint], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:8]


# Sections whose class follows from a name: `model=recurrent` swaps the whole section.
_CHOICES = {"model": MODEL_CONFIGS, "tokenizer": TOKENIZER_CONFIGS}


# What a setting needs in order to do anything: (whether it has it, what that is).
_StageNeed = tuple[Callable[[StageConfig], bool], str]
_RunNeed = tuple[Callable[[RunConfig], bool], str]


def _watches_updates(stage: StageConfig) -> bool:
    return stage.stop_loss is not None or stage.stop_grad_norm is not None


def _counts_by_label(run: RunConfig) -> bool:
    scale = getattr(run.model, "naive_bayes_scale", 0.0)
    weighting = getattr(run.model, "weighting", "none")
    is_used = scale > 0 or weighting == "naive_bayes"
    return is_used and run.target != NUMBER and not is_private(resolve(run.strategy))


_LOW_RANK: _StageNeed = (lambda stage: stage.lora_rank > 0, "{}lora_rank above 0")
_TEACHER: _StageNeed = (
    lambda stage: stage.objective == DISTILLATION,
    f"{{0}}objective={DISTILLATION} and {{0}}teacher",
)
NEEDS: dict[str, _StageNeed] = {  # "{}" is for the name of a stage before the last
    "epochs": (
        lambda stage: stage.max_updates is None,
        "{0}max_updates=none, as {0}max_updates takes its place",
    ),
    "optimizer.clip_norm": (
        lambda stage: stage.optimizer.clip_norm is None or not is_private(resolve(stage.strategy)),
        "a strategy without dp_sgd, which clips what each row contributes by a number of its own",
    ),
    "stop_updates": (_watches_updates, "{0}stop_loss or {0}stop_grad_norm"),
    "mixture_share": (lambda stage: stage.mixture is not None, "{}mixture.name"),
    "class_weights": (
        lambda stage: stage.class_weights is None or stage.objective == SUPERVISED,
        f"{{}}objective={SUPERVISED}, whose targets are the labels alone",
    ),
    "mask_rate": (
        lambda stage: stage.objective == MASKED_LANGUAGE_MODEL,
        f"{{}}objective={MASKED_LANGUAGE_MODEL}",
    ),
    "lora_alpha": _LOW_RANK,
    "lora_layers": _LOW_RANK,
    "distillation_temperature": _TEACHER,
    "distillation_share": _TEACHER,
}
_DROPOUT: _RunNeed = (
    lambda run: any(stage.dropout is None for stage in run.stages),
    "a stage with dropout=none, as dropout takes its place",
)
_READS_ROWS: _RunNeed = (
    lambda run: run.task != WORD_VECTORS,
    "a network that reads texts; word vectors learn from windows of words",
)
NEEDS_OF_RUN: dict[str, _RunNeed] = {
    "label_smoothing": _READS_ROWS,
    "max_tokens": _READS_ROWS,
    "dropout": _READS_ROWS,
    "tune_vectors": (lambda run: run.vectors is not None, "vectors"),
    "updates_per_call": (
        lambda run: run.updates_per_call == 1 or not all(map(_watches_updates, run.stages)),
        "a stage without stop_loss and stop_grad_norm, which look at every update",
    ),
    "model.dropout": _DROPOUT,
    "model.ngram_dropout": _DROPOUT,
    "model.naive_bayes_scale": (
        lambda run: (
            not getattr(run.model, "naive_bayes_scale", 0.0)
            or run.target != NUMBER
            and not is_private(resolve(run.strategy))
        ),
        "labels to count, so another target than number, and a strategy without dp_sgd, whose "
        "epsilon would not count such a start",
    ),
    "model.weighting": (
        lambda run: (
            getattr(run.model, "weighting", "none") == "none"
            or not is_private(resolve(run.strategy))
        ),
        "a strategy without dp_sgd, whose epsilon would not count what is seen for it",
    ),
    "model.min_texts": (
        lambda run: (
            getattr(run.model, "weighting", "none") != "none"
            and not is_private(resolve(run.strategy))
        ),
        "model.weighting other than none, and a strategy without dp_sgd",
    ),
    "model.smoothing": (
        _counts_by_label,
        "model.naive_bayes_scale above 0 or model.weighting=naive_bayes, a target other than "
        "number, and no dp_sgd",
    ),
    "target": (lambda run: run.task == CLASSIFICATION, "a model that classifies"),
    "calibrate": (
        lambda run: (
            not run.calibrate or run.task == CLASSIFICATION and run.target in (CLASS, GRADE)
        ),
        "a model that classifies, with target=class or grade",
    ),
    "dataset.label_separator": (
        lambda run: (
            run.dataset.name == USER_FILE
            and (run.target == LABELS or run.dataset.label_order is not None)
        ),
        "your own file (--data FILE) and target=labels, or dataset.label_order",
    ),
    "dataset.label_order": (
        lambda run: run.dataset.name == USER_FILE and run.target == GRADE,
        "your own file (--data FILE) and target=grade",
    ),
    "model.max_positions": (
        lambda run: getattr(run.model, "positions", "learned") == "learned",
        "model.positions=learned",
    ),
    "tokenizer.max_tokens": (
        lambda run: run.task != GENERATION,
        "a model that does not write: one that does reads its documents whole",
    ),
    "tokenizer.min_character_ngram": (
        lambda run: getattr(run.tokenizer, "max_character_ngram", 0) > 0,
        "tokenizer.max_character_ngram above 0",
    ),
}


def idle_settings(config: RunConfig) -> dict[str, str]:
    """The settings that do nothing in this run, by the names that users type: what each needs."""
    idle = {}
    for stage in config.stages:
        prefix = "" if stage is config else f"earlier.{stage.name}."
        for name, (has_it, needed) in NEEDS.items():
            if not has_it(stage):
                idle[prefix + name] = needed.format(prefix)
        if config.task != GENERATION:
            idle[prefix + "packing"] = "a generator, such as model=transformer_decoder"
    for name, (run_has_it, needed) in NEEDS_OF_RUN.items():
        if not run_has_it(config):
            idle[name] = needed
    return idle


_Config = TypeVar("_Config")  # a dataclass: a run's, or a first step's


def override(config: _Config, assignments: Iterable[str]) -> _Config:
    """Applies `name=value` settings such as `optimizer.peak_learning_rate=1e-3`, in order.

    `model=NAME` and `tokenizer=NAME` replace the section by that name's defaults, so settings
    inside it go after. Raises ValueError with the known names when a name is unknown, and for a
    setting that does nothing with the others as they are in the end (`NEEDS`): what a user sets is
    not ignored in silence, what a recipe leaves idle is no mistake.
    """
    typed = []
    values = dataclasses.asdict(typing.cast(Any, config))
    for assignment in assignments:
        path, separator, text = assignment.partition("=")
        path, text = path.strip(), text.strip()
        if not separator or not path:
            raise ValueError(
                f"--set takes name=value, for example batch_size=64. Received: {assignment!r}"
            )
        if isinstance(config, RunConfig) and path in _CHOICES:
            _one_of(path, text, _CHOICES[path])
            values[path] = {"name": text}
            continue
        typed.append(path)
        *sections, leaf = path.split(".")
        target, cls, prefix = values, typing.cast(type, type(config)), ""
        while sections:
            section = sections.pop(0)
            _known(cls, section, prefix)
            if stages := _stage_type(cls, section):
                if not sections:
                    raise ValueError(f"{path}: say which stage and what, as earlier.NAME.SETTING.")
                name = sections.pop(0)
                target, cls = _stage(target[section], name, path), stages
                prefix = f"{section}.{name}."
                continue
            inner = _section_class(cls, section, target[section])
            if inner is None:
                raise ValueError(f"{prefix}{section} has no settings inside. Received: {path}")
            if target[section] is None:  # a section that was left out: begin it with its name
                target[section] = {"name": text} if leaf == "name" and not sections else {}
            target, cls = target[section], inner
            prefix += section + "."
        _known(cls, leaf, prefix)
        hint = typing.get_type_hints(cls)[leaf]
        if leaf == "name" and prefix[:-1] in _CHOICES:
            raise ValueError(f"{path} decides the whole section. Set it as {prefix[:-1]}=NAME.")
        section_class = _section_class(cls, leaf, target.get(leaf))
        if section_class is not None and text.lower() not in ("none", "null"):
            names = ", ".join(f"{path}.{f.name}" for f in dataclasses.fields(section_class))
            raise ValueError(f"{path} is a section. Set one of {names}. Received: {text!r}")
        if _stage_type(cls, leaf):
            raise ValueError(f"{path}: set the settings of a stage, as earlier.NAME.SETTING.")
        if section_class is not None:
            target[leaf] = None
            continue
        target[leaf] = _parse(text, hint, path)
    changed = _from_dict(type(config), values, "")
    if isinstance(changed, RunConfig):
        _refuse_idle(changed, typed)
    return changed


def _refuse_idle(config: RunConfig, typed: Iterable[str]) -> None:
    idle = idle_settings(config)
    for path in typed:
        if path in idle:
            raise ValueError(
                f"{path} does nothing here: it needs {idle[path]}. Set that too, or leave {path} "
                "out."
            )


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
        if stages := _stage_type(cls, name):
            value = _stages_from(stages, value, path)
        elif section is not None and not (value is None and _is_optional(hint)):
            value = _from_dict(section, value, path + ".")
        elif not _fits(value, hint):
            raise ValueError(f"{path} must be {_describe(hint)}. Received: {value!r}")
        is_number = isinstance(value, int) and not isinstance(value, bool)
        arguments[name] = float(value) if _is_float(hint) and is_number else value
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


def _stages_from(cls: type, values: Any, path: str) -> tuple[Any, ...]:
    if not isinstance(values, list | tuple):
        raise ValueError(f"{path} must be a list of stages. Received: {values!r}")
    names = [v.get("name", i) if isinstance(v, dict) else i for i, v in enumerate(values)]
    return tuple(
        _from_dict(cls, stage, f"{path}.{name}.") for name, stage in zip(names, values, strict=True)
    )


def _section_class(cls: type, name: str, value: Any) -> Any:
    """The dataclass behind a section of settings; None when `name` is a plain value."""
    if cls is RunConfig and name in _CHOICES:
        chosen: Any = value.get("name") if isinstance(value, dict) else value
        _one_of(f"{name}.name", chosen, _CHOICES[name])
        return _CHOICES[name][chosen]
    hint = typing.get_type_hints(cls)[name]
    classes = [part for part in _alternatives(hint) if dataclasses.is_dataclass(part)]
    return classes[0] if len(classes) == 1 else None


def _stage_type(cls: type, name: str) -> Any:
    """The dataclass in a tuple of sections; None for everything else."""
    hint = typing.get_type_hints(cls)[name]
    return typing.get_args(hint)[0] if typing.get_origin(hint) is tuple else None


def _stage(stages: Any, name: str, path: str) -> Any:
    for stage in stages:
        if stage["name"] == name:
            return stage
    known = ", ".join(stage["name"] for stage in stages) or "none"
    raise ValueError(
        f"{path}: no earlier stage is named {name!r}. Stages before the last: {known}."
    )


def _is_optional(hint: Any) -> bool:
    return type(None) in _alternatives(hint)


def is_private(chain: Iterable[Link]) -> bool:
    """Whether a strategy promises differential privacy."""
    return any(link.name == "dp_sgd" for link in chain)


def check_rate_of(optimizer: str, schedule: str) -> None:
    """Raises ValueError for a schedule of the rate that the optimizer has no use for."""
    value = parse_value(schedule, "optimizer.schedule")
    name = value.name if isinstance(value, Call) else "constant"
    require(
        optimizer not in SCHEDULE_FREE or name in ("constant", "plateau"),
        "optimizer.schedule",
        f"constant(warmup=...) with {optimizer}, which averages in place of a lower rate",
        schedule,
    )


def _check_expression(setting: str, pattern: str) -> None:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(
            f"{setting} must be a regular expression. Received: {pattern!r} ({error})"
        ) from error


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
