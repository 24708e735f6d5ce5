"""R-Drop: a loss that makes two dropout masks agree. Axes: B batch, T tokens, K classes."""

from __future__ import annotations

import tensorflow as tf

from training.losses import TaskLoss, target_weights


class RDrop:
    """Mean of both losses + alpha/2 (KL(p|q) + KL(q|p)) / 2 (Liang et al., 2021, eq. 3-4).

    p and q are what the network predicts for one batch under two dropout masks; this is half of the
    paper's sum, so that it has the size of a single loss. Padding counts nowhere, rows count
    `batch["weight"]` times where that is given.
    """

    num_passes = 2  # of the network, for one batch

    def __init__(self, task: TaskLoss, alpha: float):
        self.task, self.alpha = task, alpha

    def __call__(self, batch):
        first, second = self.task.logits(batch), self.task.logits(batch)
        a, b = self.task.of_logits(batch, first), self.task.of_logits(batch, second)
        sums = {name: (a[name] + b[name]) / 2 for name in a}
        divergence, weight = _divergence(first, second), target_weights(batch)
        while divergence.shape.rank > weight.shape.rank:  # several predictions at each target
            divergence = tf.reduce_sum(divergence, axis=-1)
        divergence = tf.reduce_sum(divergence * weight)
        return sums | {"loss_sum": sums["loss_sum"] + self.alpha / 2 * divergence}


def _divergence(first: tf.Tensor, second: tf.Tensor) -> tf.Tensor:
    """(KL(p|q) + KL(q|p)) / 2 in nats for logits (..., K), float32 under any policy."""
    p, q = (tf.nn.log_softmax(tf.cast(logits, tf.float32)) for logits in (first, second))
    return tf.reduce_sum((tf.exp(p) - tf.exp(q)) * (p - q), axis=-1) / 2
