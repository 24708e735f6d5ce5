"""What a stage learns: its batches, its loss, and the figures that say how well it goes.

Axes: B batch, T tokens, K labels, V vocabulary.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import tensorflow as tf

from model.tokenizers import END, UNKNOWN, encode
from training.config import (
    DISTILLATION,
    LANGUAGE_MODEL,
    MASKED_LANGUAGE_MODEL,
    SUPERVISED,
    StageConfig,
)
from training.corpora import shards_of
from training.datasets.corpus import CorpusData
from training.datasets.examples import ClassificationData, TextData, pick_by_hash
from training.losses import (
    TaskLoss,
    distillation_loss,
    further_tokens_loss,
    language_model_loss,
)
from training.packing import language_model_batches
from training.pipeline import (
    Batches,
    ClassificationBatches,
    LanguageModelBatches,
    MixedBatches,
    language_model_windows,
)
from training.shards import Shards

_EVALUATION_BATCH = 16
_MAX_HELD_OUT = 1_000  # texts that tell how pre-training goes; more would cost and say little more
MASK = UNKNOWN  # the id that stands for a hidden token


class Objective(Protocol):
    unit: str  # what a speed is counted in
    correct: str | None  # what the share of targets that are right is called, if any are
    loss: TaskLoss

    def batches(self, **settings) -> Batches:
        """The training split's, with the settings of `training.pipeline`."""
        ...

    def validate(self) -> dict[str, float]:
        """Figures on the validation split, "loss" among them."""
        ...

    def score(self, metrics: dict[str, float]) -> float:
        """The one of them that is to grow."""
        ...


def build_objective(stage: StageConfig, learner, data, *, seed: int, teacher=None) -> Objective:
    """What `stage` learns from `data`; `teacher` maps texts to logits float32 (N, K)."""
    make: Callable[..., Any] = {
        SUPERVISED: learner.supervised,
        LANGUAGE_MODEL: NextToken,
        MASKED_LANGUAGE_MODEL: MaskedToken,
        DISTILLATION: functools.partial(Distillation, teacher=teacher),
    }[stage.objective]
    return make(learner, data, stage=stage, seed=seed)


def build_batches(objectives: Sequence[Objective], stage: StageConfig, **settings) -> Batches:
    """The batches of a stage, those of a second data set mixed in if there is one."""
    first, *mixed_in = (objective.batches(**settings) for objective in objectives)
    if not mixed_in:
        return first
    return MixedBatches(
        first,
        *mixed_in,
        share=stage.mixture_share,
        seed=settings["seed"],
        num_updates=settings["num_updates"],
        batches_per_update=settings["batches_per_update"],
    )


class Classification:
    """What a text is judged by: the run's target."""

    unit = "examples"

    def __init__(self, learner, data: ClassificationData, *, stage: StageConfig, seed: int):
        if tuple(data.label_names) != learner.label_names:
            raise ValueError(
                f"{stage.name}: its texts must have the labels of the run, "
                f"{', '.join(learner.label_names)}. Received: {', '.join(data.label_names)}"
            )
        self.learner = learner
        self.rows, self.labels = encode(learner.tokenizer, data.train.texts), data.train.labels
        self.held_out = encode(learner.tokenizer, data.validation.texts), data.validation.labels
        self.correct = learner.target.correct
        self.loss = TaskLoss(
            lambda batch: learner.model(batch["tokens"], training=True),
            learner.target.loss(stage, self.labels),
        )

    def batches(self, **settings) -> Batches:
        return ClassificationBatches(self.rows, self.labels, **settings)

    def adapt(self) -> None:
        """Lets a network that can look at the training split before the first update.

        It counts labels, so with numbers it starts from nothing.
        """
        if self.learner.label_names and hasattr(self.learner.model, "adapt"):
            self.learner.model.adapt(self.rows, self.labels)

    def validate(self):
        return self.learner.figures(*self.held_out)

    def score(self, metrics):
        return self.learner.target.score(metrics)


class Distillation(Classification):
    """The label of a text and, softened, all that a teacher thinks of it."""

    def __init__(
        self, learner, data: ClassificationData, *, stage: StageConfig, seed: int, teacher
    ):
        super().__init__(learner, data, stage=stage, seed=seed)
        self.teacher_logits = teacher(data.train.texts).astype(np.float32)
        self.loss = TaskLoss(
            self.loss.logits,
            functools.partial(
                distillation_loss,
                temperature=stage.distillation_temperature,
                share=stage.distillation_share,
                label_smoothing=stage.label_smoothing,
            ),
        )

    def batches(self, **settings):
        return _TaughtBatches(self.rows, self.labels, self.teacher_logits, **settings)


class _TaughtBatches(ClassificationBatches):
    """With "teacher_logits" float32 (B, K)."""

    def __init__(self, rows, labels, teacher_logits: np.ndarray, **settings):
        self.teacher_logits = teacher_logits
        super().__init__(rows, labels, **settings)

    def batch_of(self, examples, limit, index):
        taught = {"teacher_logits": self.teacher_logits[examples]}
        return super().batch_of(examples, limit, index) | taught

    def at(self, index):
        nothing = np.zeros((1, self.teacher_logits.shape[1]), np.float32)  # of an empty batch
        return {"teacher_logits": nothing} | super().at(index)


class Generation:
    """The next token of a generator, over whole documents."""

    unit = "tokens"
    correct = "accuracy"

    def __init__(self, learner, data: TextData, *, stage: StageConfig, seed: int):
        self.learner, self.packing = learner, stage.packing
        self.documents: Sequence[np.ndarray] | Shards
        if isinstance(data, CorpusData):
            self.documents = shards_of(data.corpus, learner.tokenizer, learner.config.tokenizer)
        else:
            self.documents = learner.encoded(data.train)
        self.held_out = learner.encoded(data.validation), sum(map(len, data.validation))
        smoothing = stage.label_smoothing
        model, predict, loss = learner.model, learner.model, language_model_loss
        if getattr(model.config, "further_tokens", 0):
            predict, loss = model.all_logits, further_tokens_loss
        self.loss = TaskLoss(
            lambda batch: predict(batch["tokens"], training=True),
            functools.partial(loss, label_smoothing=smoothing),
            functools.partial(_logits_and_state, model) if _has_state(model) else None,
        )

    def batches(self, **settings) -> Batches:
        context = self.learner.model.config.context_length
        return language_model_batches(
            self.documents, num_tokens=context, packing=self.packing, end=END, **settings
        )

    def validate(self):
        return self.learner.figures(*self.held_out)

    def score(self, metrics):
        return -metrics["loss"]


def _has_state(model) -> bool:
    """Whether the network takes and gives back what it remembers of the tokens before."""
    return "return_state" in inspect.signature(model.call).parameters


def _logits_and_state(model, batch, state):
    return model(batch["tokens"], training=True, state=state, return_state=True)


class _TokenPretraining:
    """A classifier's `token_logits` over texts of any kind: labels are not looked at."""

    unit = "tokens"
    correct = "accuracy"

    def __init__(self, learner, data, *, stage: StageConfig, seed: int):
        if not hasattr(learner.model, "token_logits"):
            raise ValueError(
                f"objective={stage.objective} needs a network with token_logits, such as "
                f"ulmfit_lstm or transformer_encoder. Received: model={learner.config.model.name}"
            )
        self.num_tokens = learner.config.tokenizer.max_tokens
        if self.num_tokens is None:
            raise ValueError(
                f"objective={stage.objective} reads windows of tokenizer.max_tokens, which must "
                "be a number. Received: None"
            )
        self.learner, self.stage, self.seed = learner, stage, seed
        self.train = self._rows(texts_of(data, "train"))
        held_out = texts_of(data, "validation")
        chosen = pick_by_hash(held_out, _MAX_HELD_OUT)
        self.held_out = self._rows([held_out[i] for i in chosen])
        model = learner.model
        self.loss = TaskLoss(
            lambda batch: model.token_logits(batch["tokens"], training=True),
            functools.partial(language_model_loss, label_smoothing=stage.label_smoothing),
        )
        spec = tf.TensorSpec([None, None], tf.int32)
        self._sums = tf.function(
            lambda tokens, targets: language_model_loss(
                {"targets": targets}, model.token_logits(tokens, training=False)
            ),
            input_signature=[spec, spec],
        )

    def adapt(self) -> None:
        """Lets the head's bias start as the logarithm of each token's frequency.

        Left to find them by gradients, the network saturates until every hidden state is the one
        that gives them, and what was read is lost.
        """
        size = self.learner.tokenizer.vocabulary_size
        counts = np.bincount(np.concatenate(self.train), minlength=size) + 1.0
        self.learner.model.token_bias.assign(np.log(counts / counts.sum()))

    def _rows(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [row for row in encode(self.learner.tokenizer, texts) if len(row) > 1]

    def validate(self):
        total = {"loss_sum": 0.0, "num_targets": 0.0, "num_correct": 0.0}
        for batch in self.held_out_batches():
            sums = self._sums(batch["tokens"], batch["targets"])
            total = {name: value + float(sums[name]) for name, value in total.items()}
        count = max(total["num_targets"], 1.0)
        return {"loss": total["loss_sum"] / count, "accuracy": total["num_correct"] / count}

    def held_out_batches(self):
        raise NotImplementedError

    def score(self, metrics):
        return -metrics["loss"]


class NextToken(_TokenPretraining):
    """The next token, read from left to right (ULMFiT; Howard & Ruder, 2018, sec. 3.1)."""

    def batches(self, **settings):
        return LanguageModelBatches(self.train, num_tokens=self.num_tokens, **settings)

    def held_out_batches(self):
        return language_model_windows(
            self.held_out, num_tokens=self.num_tokens, batch_size=_EVALUATION_BATCH
        )


class MaskedToken(_TokenPretraining):
    """Tokens that were hidden (BERT; Devlin et al., 2019, sec. 3.1).

    Of the share `mask_rate` that is to be guessed, 80 % read as unknown, 10 % as a random token
    and 10 % stay. On validation the same tokens are hidden every time.
    """

    def batches(self, **settings):
        size = self.learner.tokenizer.vocabulary_size
        return _MaskedBatches(self.train, self.stage.mask_rate, size, **settings)

    def held_out_batches(self):
        masked = _MaskedBatches(
            self.held_out,
            self.stage.mask_rate,
            self.learner.tokenizer.vocabulary_size,
            batch_size=_EVALUATION_BATCH,
            seed=0,
        )
        return (masked.at(i) for i in range(masked.num_batches))


class _MaskedBatches(ClassificationBatches):
    """{"tokens", "targets"}: int32 (B, T); a target is 0 where nothing is to be guessed."""

    fields = {"tokens": 2, "targets": 2}

    def __init__(self, rows, rate: float, vocabulary_size: int, **settings):
        self.rate, self.vocabulary_size = rate, vocabulary_size
        super().__init__(rows, np.zeros(len(rows), np.int32), **settings)

    def batch_of(self, examples, limit, index):
        tokens = super().batch_of(examples, limit, index)["tokens"]
        rng = np.random.default_rng([self.seed, index, _MASKING])
        is_hidden = (rng.random(tokens.shape) < self.rate) & (tokens != 0)
        how, other = rng.random(tokens.shape), rng.integers(2, self.vocabulary_size, tokens.shape)
        shown = np.where(how < 0.8, MASK, np.where(how < 0.9, other, tokens))
        return {
            "tokens": np.where(is_hidden, shown, tokens).astype(np.int32),
            "targets": np.where(is_hidden, tokens, 0).astype(np.int32),
        }


_MASKING = 1_000_003  # keeps these draws apart from those of the order


def texts_of(data: ClassificationData | TextData, split: str) -> list[str]:
    """The texts of a split, whatever the data set is made for."""
    part = getattr(data, split)
    return part if isinstance(data, TextData) else part.texts
