"""Reptile: towards where a few updates on one task after another lead."""

from __future__ import annotations

import tensorflow as tf

from training.strategies.lookahead import Lookahead
from training.strategies.replicas import assign_when
from training.strategies.rules import UpdateRule


class Reptile(Lookahead):
    """Every `k` updates: w <- w + rate (w_k - w) (Nichol et al., 2018, alg. 1).

    The `k` updates of a cycle are one task; the data decide what it is, for this rule it is a
    stretch of the stream. Each task starts with an optimizer as it was before the first update
    (moments and the count of their bias correction), so nothing but the weights passes from one to
    the next. That is all that sets Reptile apart from Lookahead: with SGD, which remembers nothing,
    they are equal. Schedules go on counting over the whole run, and so does the state of what
    stands between (noise, the scale of a loss).
    """

    name = "reptile"

    def __init__(self, inner: UpdateRule, k: int, rate: float):
        super().__init__(inner, k, rate)
        optimizer = self.optimizer_rule.optimizer
        self.begun = self.new_variable("reptile_begun", 0, tf.int64)  # updates before this task
        optimizer.rate.begun = self.begun
        # All of them begin at zero (tests/training/strategies/test_reptile.py).
        self.memory = [v for v in optimizer.variables if v is not optimizer.rate.multiplier]

    def update(self, batches):
        sums = super().update(batches)
        assign_when(self.position == 0, [self.begun, *self.memory], self._new_task)
        return sums

    def _new_task(self) -> list[tf.Tensor]:
        nothing = [tf.zeros_like(tf.convert_to_tensor(variable)) for variable in self.memory]
        return [self.begun + self.k, *nothing]

    def diagnostics(self):
        """Between the start and the end of the last task."""
        return self.inner.diagnostics() | {"task_distance": tf.convert_to_tensor(self.distance)}
