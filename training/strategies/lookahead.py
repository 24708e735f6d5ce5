"""Lookahead: slow weights behind fast ones."""

from __future__ import annotations

import tensorflow as tf

from training.strategies.gradients import global_norm
from training.strategies.replicas import assign, assign_when
from training.strategies.rules import AcrossUpdates, UpdateRule


class Lookahead(AcrossUpdates):
    """Every `k` updates: slow <- slow + alpha (fast - slow); fast <- slow (Zhang et al., 2019).

    The inner optimizer's state is kept. The slow weights are what is evaluated and exported: in the
    middle of a cycle those of its beginning.
    """

    def __init__(self, inner: UpdateRule, k: int, alpha: float):
        super().__init__(inner)
        self.k, self.alpha = k, alpha
        self.position = self.new_variable("lookahead_position", 0, tf.int64)  # in the cycle
        self.slow = self.copies("lookahead_slow")

    def update(self, batches):
        sums = self.inner.update(batches)
        position = self.position + 1
        is_due = position >= self.k
        assign_when(is_due, [*self.slow, *self.weights], self._synchronised)
        assign([self.position], [tf.where(is_due, tf.zeros_like(position), position)])
        return sums

    def _synchronised(self) -> list[tf.Tensor]:
        fast = [tf.convert_to_tensor(weight.value) for weight in self.weights]
        slow = [s + (f - s) * self.alpha for s, f in zip(self.slow, fast, strict=True)]
        return [*slow, *slow]

    def evaluation_weights(self):
        return [tf.convert_to_tensor(slow) for slow in self.slow]

    def diagnostics(self):
        fast = [tf.convert_to_tensor(weight.value) for weight in self.weights]
        distance = [f - s for f, s in zip(fast, self.slow, strict=True)]
        return super().diagnostics() | {"slow_fast_distance": global_norm(distance)}
