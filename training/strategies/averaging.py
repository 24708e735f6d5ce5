"""Averages of the weights over the updates, to be evaluated and exported in their place."""

from __future__ import annotations

import tensorflow as tf

from training.strategies.gradients import global_norm
from training.strategies.replicas import assign
from training.strategies.rules import AcrossUpdates, UpdateRule


class Average(AcrossUpdates):
    """Watches the inner rule; moves nothing itself."""

    def __init__(self, inner: UpdateRule, name: str):
        super().__init__(inner)
        self.count = self.new_variable(f"{name}_count", 0, tf.int64)  # updates seen
        self.average = self.copies(name)

    def update(self, batches):
        sums = self.inner.update(batches)
        self.watch()
        return sums

    def watch(self) -> None:
        """Takes the weights as they are into the average."""
        count = self.count + 1
        share = self.share(count)
        weights = [tf.convert_to_tensor(weight.value) for weight in self.weights]
        moved = [_towards(w, a, share) for w, a in zip(weights, self.average, strict=True)]
        assign([*self.average, self.count], [*moved, count])

    def share(self, count: tf.Tensor) -> tf.Tensor:
        """Of the newest weights in the average after update `count` (from 1): float64 scalar."""
        raise NotImplementedError

    def evaluation_weights(self):
        return [
            tf.where(self.count == 0, tf.convert_to_tensor(weight.value), average)
            for weight, average in zip(self.weights, self.average, strict=True)
        ]

    def diagnostics(self):
        distance = [
            tf.convert_to_tensor(w.value) - a
            for w, a in zip(self.weights, self.average, strict=True)
        ]
        return super().diagnostics() | {"average_distance": global_norm(distance)}


def _towards(weight: tf.Tensor, average, share: tf.Tensor) -> tf.Tensor:
    """average + share (weight - average), without rounding where that is one of them."""
    moved = average + tf.cast(share, average.dtype) * (weight - average)
    return tf.where(share == 1, weight, moved)


class ExponentialMovingAverage(Average):
    """e <- b e + (1-b) w once an update, over the weight that its start still has.

    The correction is that of Kingma & Ba (2015, sec. 7.2): after t updates the average holds
    (1-b) sum_s b^(t-s) w_s / (1 - b^t), so the random start takes no part in it and beta = 0 is the
    weights themselves.
    """

    def __init__(self, inner: UpdateRule, beta: float):
        super().__init__(inner, "ema")
        self.beta = beta

    def share(self, count):
        beta = tf.constant(self.beta, tf.float64)
        return (1 - beta) / (1 - tf.pow(beta, tf.cast(count, tf.float64)))


class StochasticWeightAverage(Average):
    """The plain mean of the weights, one in every `every` updates from `start` on (Izmailov, 2018).

    Before `first_update` the weights themselves are evaluated.
    """

    def __init__(self, inner: UpdateRule, first_update: int, every: int):
        super().__init__(inner, "swa")
        self.first_update, self.every = first_update, every

    def share(self, count):
        since = count - max(self.first_update, 1)  # 0 at the first weights that count
        number = tf.cast(since // self.every + 1, tf.float64)
        is_taken = tf.cast(since % self.every == 0, tf.float64)
        return tf.where(since < 0, tf.ones_like(number), is_taken / tf.maximum(number, 1.0))
