"""Losses as sums and counts: averages are taken where all of a report is known.

Each takes a batch and its logits and returns float32 scalars "loss_sum" (nats), "num_targets" and
"num_correct"; padding counts nowhere, and a row counts `batch["weight"]` times where that is given.
A row may weigh more in the loss alone (`class_weights`): counts and what is right stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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


def classification_loss(
    batch: Batch,
    logits: tf.Tensor,
    *,
    label_smoothing: float = 0.0,
    class_weights: Sequence[float] | None = None,
) -> Sums:
    """Cross-entropy of `batch["label"]` int32 (B,) under `logits` (B, K).

    With `label_smoothing` s the target is 1 - s on the label and s spread evenly over all K
    (Szegedy et al., 2016, sec. 7). `class_weights`, K numbers, multiply the nats of rows with each
    label, as in Keras; the mean stays one over rows. Over weights, as in PyTorch, a batch of one
    row would know nothing of its weight, and the mean of a small batch would be biased.
    """
    importance = None
    if class_weights is not None:
        importance = tf.gather(tf.constant(class_weights, tf.float32), batch["label"])
    weight = target_weights(batch)
    return cross_entropy(batch["label"], logits, weight, label_smoothing, importance)


def multi_label_loss(batch: Batch, logits: tf.Tensor) -> Sums:
    """-log P of the row's set of labels, `batch["label"]` bool (B, K), each label by itself.

    P(label k) = sigmoid(logit k), so a row's nats are the sum of K binary cross-entropies. Correct
    is a row all of whose labels are right, a label being said at a logit of at least 0.
    """
    logits, is_label = tf.cast(logits, tf.float32), tf.cast(batch["label"], tf.bool)
    nats = tf.nn.sigmoid_cross_entropy_with_logits(tf.cast(is_label, tf.float32), logits)
    is_correct = tf.reduce_all((logits >= 0) == is_label, axis=-1)
    return _sums(tf.reduce_sum(nats, axis=-1), is_correct, target_weights(batch))


def squared_error(batch: Batch, logits: tf.Tensor, *, mean: float, deviation: float) -> Sums:
    """(z - (y - mean) / deviation)^2 of `batch["label"]` float32 (B,) and `logits` z (B, 1).

    "num_correct" is 0: no number is right or wrong.
    """
    wanted = (tf.cast(batch["label"], tf.float32) - mean) / deviation
    error = tf.cast(logits[:, 0], tf.float32) - wanted
    return _sums(tf.square(error), tf.zeros_like(error), target_weights(batch))


def language_model_loss(batch: Batch, logits: tf.Tensor, *, label_smoothing: float = 0.0) -> Sums:
    """Cross-entropy of `batch["targets"]` int32 (B, T), 0 is padding, under `logits` (B, T, V)."""
    return cross_entropy(batch["targets"], logits, target_weights(batch), label_smoothing)


def further_tokens_loss(batch: Batch, logits: tf.Tensor, *, label_smoothing: float = 0.0) -> Sums:
    """`language_model_loss` of the next token, plus that of those behind it.

    Gloeckle et al. (2024), eq. 2: -log P summed over the tokens that are predicted at a step.
    `logits` (B, T, 1 + n, V) at entry k are of the token k steps after the next. Where the row or
    its document ends before that, a step without a target lies between, and none is predicted.
    "num_targets" and "num_correct" are of the next token alone.
    """
    weight, targets = target_weights(batch), tf.convert_to_tensor(batch["targets"])
    sums = cross_entropy(targets, logits[:, :, 0], weight, label_smoothing)
    is_target = tf.cast(weight > 0, tf.float32)
    unbroken = tf.ones_like(weight)  # whether all steps between have a target, (B, T - k)
    for k in range(1, logits.shape[2]):
        unbroken = unbroken[:, :-1] * is_target[:, k - 1 : -1]
        own = weight[:, k:] * unbroken
        further = cross_entropy(targets[:, k:], logits[:, :-k, k], own, label_smoothing)
        sums["loss_sum"] += further["loss_sum"]
    return sums


def target_weights(batch: Batch) -> tf.Tensor:
    """How often each target counts: float32 (B, T) for `batch["targets"]`, else (B,) for rows."""
    if "targets" in batch:
        is_target = tf.cast(batch["targets"] != 0, tf.float32)
        return is_target * batch["weight"][:, None] if "weight" in batch else is_target
    if "weight" in batch:
        return tf.cast(batch["weight"], tf.float32)
    label = tf.convert_to_tensor(batch["label"])
    return tf.ones_like(label if label.shape.rank == 1 else label[:, 0], tf.float32)


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
    targets: tf.Tensor,
    logits: tf.Tensor,
    weight: tf.Tensor,
    label_smoothing: float = 0.0,
    importance: tf.Tensor | None = None,
) -> Sums:
    """Sums over all positions, each counted `weight` times; in float32 under any policy.

    `importance`, of the shape of `targets`, multiplies the nats and no count.
    """
    logits = tf.cast(logits, tf.float32)
    nats = tf.nn.sparse_softmax_cross_entropy_with_logits(targets, logits)
    if label_smoothing:
        even = -tf.reduce_mean(tf.nn.log_softmax(logits), axis=-1)
        nats = (1 - label_smoothing) * nats + label_smoothing * even
    if importance is not None:
        nats *= importance
    is_correct = tf.argmax(logits, axis=-1, output_type=targets.dtype) == targets
    return _sums(nats, is_correct, weight)


def _sums(nats: tf.Tensor, is_correct: tf.Tensor, weight: tf.Tensor) -> Sums:
    return {
        "loss_sum": tf.reduce_sum(nats * weight),
        "num_targets": tf.reduce_sum(weight),
        "num_correct": tf.reduce_sum(tf.cast(is_correct, tf.float32) * weight),
    }
