"""Loss scaling: float16 gradients that neither vanish nor spoil the weights."""

from __future__ import annotations

import tensorflow as tf

from training.strategies.gradients import global_norm, scale
from training.strategies.replicas import assign, assign_when
from training.strategies.rules import Around, UpdateRule


class LossScale(Around):
    """g = grad(S loss) / S; S halves on overflow, doubles after `growth_updates` good updates.

    Dynamic loss scaling (Micikevicius et al., 2018, sec. 3.2). An update whose gradient is not
    finite is skipped as a whole, all batches of an accumulation window with it: no weight moves and
    no state of the optimizer, its count of updates included. Rules across updates see an update
    that moved nothing. With S a power of 2 scaling is exact.

    Reports "num_skipped", 1 or 0, and a gradient norm of 0 when skipped. At S = 1 there is nothing
    left to halve: the norm is then reported as it is, not finite, and the run ends.
    """

    def __init__(self, inner: UpdateRule, initial: float, growth_updates: int):
        super().__init__(inner)
        self.growth_updates = growth_updates
        self.factor = self.new_variable("loss_scale", initial, tf.float32)
        self.num_good = self.new_variable("loss_scale_num_good", 0, tf.int64)  # in a row
        self.measures = (*inner.measures, "num_skipped")
        self.optimizer_rule.loss_factor = lambda: tf.convert_to_tensor(self.factor)

    def gradient(self, batches):
        gradients, sums = self.inner.gradient(batches)
        return scale(gradients, 1.0 / self.factor), sums

    def apply(self, gradients):
        norm = global_norm(gradients)
        is_finite = tf.math.is_finite(norm)
        reported = self._apply_when(is_finite, gradients)
        is_over = self.factor <= 1.0
        skipped = tf.where(is_over, norm, tf.zeros_like(norm))
        self._adapt(is_finite)
        return {
            "grad_norm": tf.where(is_finite, reported, skipped),
            "num_skipped": 1.0 - tf.cast(is_finite, tf.float32),
        }

    def _apply_when(self, is_finite, gradients):
        """The inner rule's step, or nothing at all; returns its gradient norm."""
        if self.replicas.num == 1:
            return tf.cond(
                is_finite,
                lambda: self.inner.apply(gradients)["grad_norm"],
                lambda: tf.zeros_like(global_norm(gradients)),
            )
        # No state can be set inside a branch there: the step is taken, and taken back.
        state = [*self.weights, *self.inner.variables]
        kept = [tf.identity(tf.convert_to_tensor(variable)) for variable in state]
        norm = self.inner.apply(gradients)["grad_norm"]
        assign_when(tf.logical_not(is_finite), state, lambda: kept)
        return norm

    def _adapt(self, is_finite):
        none = tf.zeros([], tf.int64)
        num_good = tf.where(is_finite, self.num_good + 1, none)
        grows = num_good >= self.growth_updates
        halved = tf.maximum(self.factor / 2, 1.0)
        factor = tf.where(is_finite, tf.where(grows, self.factor * 2, self.factor), halved)
        assign([self.factor, self.num_good], [factor, tf.where(grows, none, num_good)])

    def diagnostics(self):
        return super().diagnostics() | {"loss_scale": tf.convert_to_tensor(self.factor)}
