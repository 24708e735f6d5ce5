"""Lookahead: slow weights behind fast ones."""

from __future__ import annotations

import tensorflow as tf

from training.strategies.gradients import global_norm
from training.strategies.replicas import assign, assign_when
from training.strategies.rules import AcrossUpdates, UpdateRule


class Lookahead(AcrossUpdates):
    """Every `k` updates: slow <- slow + alpha (fast - slow); fast <- slow (Zhang et al., 2019).

    The inner rule's state is kept. The slow weights are what is evaluated and exported: in the
    middle of a cycle the weights at its beginning.
    """

    name = "lookahead"

    def __init__(self, inner: UpdateRule, k: int, alpha: float):
        super().__init__(inner)
        self.k, self.alpha = k, alpha
        self.position = self.new_variable(f"{self.name}_position", 0, tf.int64)  # in the cycle
        self.distance = self.new_variable(f"{self.name}_distance", 0.0, tf.float32)
        self.slow = self.copies(f"{self.name}_slow")  # read from the cycle's first update on

    def update(self, batches):
        # Not at the end of the cycle before: so weights that were loaded in between count.
        assign_when(self.position == 0, self.slow, self._fast)
        sums = self.inner.update(batches)
        position = self.position + 1
        is_due = position >= self.k
        assign_when(is_due, [self.distance, *self.weights], self._synchronised)
        assign([self.position], [tf.where(is_due, tf.zeros_like(position), position)])
        return sums

    def _fast(self) -> list[tf.Tensor]:
        return [tf.convert_to_tensor(weight.value) for weight in self.weights]

    def _synchronised(self) -> list[tf.Tensor]:
        changes = [fast - slow for fast, slow in zip(self._fast(), self.slow, strict=True)]
        moved = [
            slow + change * self.alpha for slow, change in zip(self.slow, changes, strict=True)
        ]
        return [tf.cast(global_norm(changes), tf.float32), *moved]

    def evaluation_weights(self):
        is_between = self.position == 0  # two cycles, or before the first
        return [
            tf.where(is_between, fast, slow)
            for fast, slow in zip(self._fast(), self.slow, strict=True)
        ]

    def diagnostics(self):
        """Of the slow weights from the fast ones, when they last met."""
        return super().diagnostics() | {"slow_fast_distance": tf.convert_to_tensor(self.distance)}
