"""What word vectors learn from. Axes: B batch, O outputs, K negatives, V vocabulary."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import numpy as np
import tensorflow as tf

from training.config import StageConfig
from training.losses import Sums, TaskLoss
from training.objectives import texts_of
from training.pipeline import Batch, Batches
from training.sampling import FULL
from training.vectors.corpus import (
    CellBatches,
    Cells,
    Stream,
    WindowBatches,
    co_occurrences,
)


def negative_sampling_loss(batch: Batch, scores: tuple[tf.Tensor, tf.Tensor]) -> Sums:
    """The sum over pairs of -log s(u_o h) - sum_k log s(-u_k h) (Mikolov et al., 2013b, eq. 4).

    A pair is a row and one of its "outputs" (B, O); all pairs of a row share its "negatives"
    (B, K). A pair is correct whose score is above those of its noise.
    """
    output, negative = scores
    is_output = tf.cast(batch["outputs"] != 0, tf.float32)
    is_negative = tf.cast(batch["negatives"] != 0, tf.float32)
    num_pairs = tf.reduce_sum(is_output, axis=1)  # (B,)
    # log s(x) = -softplus(-x), exact for large x too.
    nats = tf.reduce_sum(tf.nn.softplus(-output) * is_output, axis=1)
    nats += num_pairs * tf.reduce_sum(tf.nn.softplus(negative) * is_negative, axis=1)
    highest = tf.reduce_max(tf.where(is_negative > 0, negative, negative.dtype.min), axis=1)
    is_correct = tf.cast(output > highest[:, None], tf.float32)
    return {
        "loss_sum": tf.reduce_sum(nats),
        "num_targets": tf.reduce_sum(num_pairs),
        "num_correct": tf.reduce_sum(is_correct * is_output),
    }


def glove_loss(batch: Batch, scores: tf.Tensor, *, full_count: float, weight_power: float) -> Sums:
    """The sum of f(X) (w_i w~_j + b_i + b~_j - log X)^2 (Pennington et al., 2014, eq. 8 and 9).

    f(X) = min(1, X / full_count) ** weight_power; X is "count" float (B,), 0 for a row of padding.
    A number is never counted as correct.
    """
    count = tf.cast(batch["count"], tf.float32)
    is_cell = count > 0
    weight = tf.where(is_cell, tf.minimum(count / full_count, 1.0) ** weight_power, 0.0)
    error = scores - tf.math.log(tf.where(is_cell, count, 1.0))
    return {
        "loss_sum": tf.reduce_sum(weight * tf.square(error)),
        "num_targets": tf.reduce_sum(tf.cast(is_cell, tf.float32)),
        "num_correct": tf.constant(0.0),
    }


class Windows:
    """Skip-gram and CBOW: which words stand together, and which noise does not."""

    unit = "pairs"
    correct = None

    def __init__(self, learner: Any, data: Any, *, stage: StageConfig, seed: int):
        self.learner, self.loss = learner, learner.loss
        self.stream = learner.stream(texts_of(data, "train"))
        self.held_out = learner.stream(texts_of(data, "validation"))

    def batches(self, **settings) -> Batches:
        return WindowBatches(
            self.stream, self.learner.counts, self.learner.config.model, **settings
        )

    def validate(self) -> dict[str, float]:
        return self.learner.figures(self.held_out)

    def score(self, metrics: dict[str, float]) -> float:
        return -metrics["loss"]

    @staticmethod
    def loss_of(model: Any) -> TaskLoss:
        return TaskLoss(model.scores, negative_sampling_loss)

    @staticmethod
    def held_out_batches(learner: Any, stream: Stream) -> Batches:
        """The same windows and the same noise every time."""
        return WindowBatches(stream, learner.counts, learner.config.model, **_ALL)


class CoOccurrences(Windows):
    """GloVe: how often words stand together."""

    unit = "cells"
    correct = None

    def __init__(self, learner: Any, data: Any, *, stage: StageConfig, seed: int):
        super().__init__(learner, data, stage=stage, seed=seed)
        self.cells = _cells(learner, self.stream)

    def batches(self, **settings) -> Batches:
        return CellBatches(self.cells, **settings)

    @staticmethod
    def loss_of(model: Any) -> TaskLoss:
        config = model.config
        return TaskLoss(
            model.scores,
            functools.partial(
                glove_loss, full_count=config.full_count, weight_power=config.weight_power
            ),
        )

    @staticmethod
    def held_out_batches(learner: Any, stream: Stream) -> Batches:
        """Counts are scaled to the size of the training split, as if it were that long."""
        cells = _cells(learner, stream)
        scale = np.float32(learner.counts.sum() / max(len(stream.words), 1))
        return CellBatches(replace(cells, counts=cells.counts * scale), **_ALL)


_ALL: dict[str, Any] = {"batch_size": FULL, "seed": 0}  # every example once


def _cells(learner: Any, stream: Stream) -> Cells:
    return co_occurrences(stream, learner.config.model.window, learner.tokenizer.vocabulary_size)
