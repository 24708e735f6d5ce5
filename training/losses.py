"""Losses as sums and counts: averages are taken where all of a report is known.

Each takes a batch and its logits and returns float32 scalars "loss_sum" (nats), "num_targets" and
"num_correct"; padding counts nowhere, and a row counts `batch["weight"]` times where that is given.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

Batch = dict[str, tf.Tensor]
Sums = dict[str, tf.Tensor]


class TaskLoss:
    """The loss of one batch, in two halves that a strategy may call on its own.

    `logits(batch)` runs the network for training, `of_logits(batch, logits)` gives the sums.
    A recurrent network that takes and gives back its state has `logits_and_state(batch, state)` ->
    (logits, state) besides; state None is where a text begins.
    """

    def __init__(
        self,
        logits: Callable[[Batch], tf.Tensor],
        of_logits: Callable[[Batch, tf.Tensor], Sums],
        logits_and_state: Callable[[Batch, Any], tuple[tf.Tensor, Any]] | None = None,
    ):
        self.logits, self.of_logits = logits, of_logits
        self.logits_and_state = logits_and_state

    def __call__(self, batch: Batch) -> Sums:
        return self.of_logits(batch, self.logits(batch))

    @property
    def has_state(self) -> bool:
        return self.logits_and_state is not None

    def with_state(self, batch: Batch, state: Any = None) -> tuple[Sums, Any]:
        """The sums of one piece of every text, and the state that its next piece goes on from."""
        if self.logits_and_state is None:
            raise ValueError("This loss is that of a network without a state to carry on.")
        logits, state = self.logits_and_state(batch, state)
        return self.of_logits(batch, logits), state


def classification_loss(batch: Batch, logits: tf.Tensor, *, label_smoothing: float = 0.0) -> Sums:
    """Cross-entropy of `batch["label"]` int32 (B,) under `logits` (B, K).

    With `label_smoothing` s the target is 1 - s on the label and s spread evenly over all K
    (Szegedy et al., 2016, sec. 7).
    """
    return cross_entropy(batch["label"], logits, target_weights(batch), label_smoothing)


def language_model_loss(batch: Batch, logits: tf.Tensor, *, label_smoothing: float = 0.0) -> Sums:
    """Cross-entropy of `batch["targets"]` int32 (B, T), 0 is padding, under `logits` (B, T, V)."""
    return cross_entropy(batch["targets"], logits, target_weights(batch), label_smoothing)


def target_weights(batch: Batch) -> tf.Tensor:
    """How often each target counts: float32 (B, T) for `batch["targets"]`, else (B,) for labels."""
    if "targets" in batch:
        is_target = tf.cast(batch["targets"] != 0, tf.float32)
        return is_target * batch["weight"][:, None] if "weight" in batch else is_target
    if "weight" in batch:
        return tf.cast(batch["weight"], tf.float32)
    return tf.ones_like(batch["label"], tf.float32)


def distillation_loss(
    batch: Batch,
    logits: tf.Tensor,
    *,
    temperature: float,
    share: float,
    label_smoothing: float = 0.0,
) -> Sums:
    """(1 - s) CE + s T^2 KL(p_T of the teacher || p_T of the student) (Hinton et al., 2015).

    `batch["teacher_logits"]` float32 (B, K) are those of the teacher for the same rows. T^2 keeps
    the size of the gradient: for large T it is (z - v) / K of centred logits, whatever T (eq. 4).
    """
    sums = classification_loss(batch, logits, label_smoothing=label_smoothing)
    teacher = tf.nn.log_softmax(batch["teacher_logits"] / temperature)
    student = tf.nn.log_softmax(tf.cast(logits, tf.float32) / temperature)
    divergence = tf.reduce_sum(tf.exp(teacher) * (teacher - student), axis=-1)  # (B,)
    soft = temperature**2 * tf.reduce_sum(divergence * target_weights(batch))
    return sums | {"loss_sum": (1 - share) * sums["loss_sum"] + share * soft}


def cross_entropy(
    targets: tf.Tensor, logits: tf.Tensor, weight: tf.Tensor, label_smoothing: float = 0.0
) -> Sums:
    """Sums over all positions, each counted `weight` times; in float32 under any policy."""
    logits = tf.cast(logits, tf.float32)
    nats = tf.nn.sparse_softmax_cross_entropy_with_logits(targets, logits)
    if label_smoothing:
        even = -tf.reduce_mean(tf.nn.log_softmax(logits), axis=-1)
        nats = (1 - label_smoothing) * nats + label_smoothing * even
    is_correct = tf.argmax(logits, axis=-1, output_type=targets.dtype) == targets
    return {
        "loss_sum": tf.reduce_sum(nats * weight),
        "num_targets": tf.reduce_sum(weight),
        "num_correct": tf.reduce_sum(tf.cast(is_correct, tf.float32) * weight),
    }
