"""Gradients taken elsewhere than at the weights: SAM, extragradient."""

from __future__ import annotations

import tensorflow as tf

from training.strategies.gradients import global_norm, scale
from training.strategies.replicas import assign
from training.strategies.rules import Around, UpdateRule


class Elsewhere(Around):
    """The gradient after a step away from the weights, which are put back bit for bit.

    Reports under the name `rise` how much the summed loss rises on the way.
    """

    rise: str  # ends in "_sum", as what is added up over targets does

    def __init__(self, inner: UpdateRule):
        super().__init__(inner)
        self.num_evaluations = 2 * inner.num_evaluations
        self.measures = (*inner.measures, self.rise)

    def changes(self, gradients: list, num_targets: tf.Tensor) -> list:
        """Where to step: the change of every weight, given the gradient of the summed loss.

        None for a weight that stays.
        """
        raise NotImplementedError

    def combined(self, here: list, there: list) -> list:
        """What the update is made of: the gradient there."""
        return there

    def gradient(self, batches):
        here, sums = self.inner.gradient(batches)
        # All replicas have to step to the same place.
        whole, counts = self.replicas.sum(here, {"num_targets": sums["num_targets"]})
        kept = move(self.weights, self.changes(whole, counts["num_targets"]))
        there, moved = self.inner.gradient(batches)
        put_back(self.weights, kept)
        return self.combined(here, there), sums | {self.rise: moved["loss_sum"] - sums["loss_sum"]}


class SharpnessAware(Elsewhere):
    """SAM: the gradient at w + rho g / |g| (Foret et al., 2021, eq. 2-3).

    Dropout draws anew for the second gradient. Inside `accumulate` every micro-batch steps to a
    place of its own (m-sharpness, sec. 4.1 there); around it, all of the update to one.
    """

    rise = "sharpness_sum"

    def __init__(self, inner: UpdateRule, rho: float):
        super().__init__(inner)
        self.rho = rho

    def changes(self, gradients, num_targets):
        return scale(gradients, tf.math.divide_no_nan(self.rho, global_norm(gradients)))


class Extragradient(Elsewhere):
    """The gradient after a look-ahead step of plain descent, w - rate g(w) (Korpelevich, 1976)."""

    rise = "extrapolation_rise_sum"

    def __init__(self, inner: UpdateRule, rate: float):
        super().__init__(inner)
        self.rate = rate

    def changes(self, gradients, num_targets):
        # Of the loss itself: `loss_scale` around this makes gradients larger, not steps.
        per_target = tf.math.divide_no_nan(1.0, num_targets)
        factor = tf.cast(self.optimizer_rule.loss_factor(), per_target.dtype)
        return scale(gradients, -self.rate * per_target / factor)


def move(weights: list, changes: list) -> list:
    """Adds `changes` to the weights, sparse ones to their rows; returns what `put_back` needs."""
    kept: list = []
    dense, values = [], []
    for weight, change in zip(weights, changes, strict=True):
        if change is None:
            kept.append(None)
        elif isinstance(change, tf.IndexedSlices) and not tf.distribute.has_strategy():
            rows = tf.gather(weight.value, change.indices)
            weight.value.scatter_update(tf.IndexedSlices(rows + change.values, change.indices))
            kept.append(tf.IndexedSlices(rows, change.indices))
        else:
            before = tf.identity(weight.value)
            kept.append(before)
            dense.append(weight)
            values.append(before + tf.convert_to_tensor(change))
    assign(dense, values)
    return kept


def put_back(weights: list, kept: list) -> None:
    """Undoes `move` exactly: values that were kept, not a difference that rounds."""
    dense, values = [], []
    for weight, before in zip(weights, kept, strict=True):
        if isinstance(before, tf.IndexedSlices):
            weight.value.scatter_update(before)
        elif before is not None:
            dense.append(weight)
            values.append(before)
    assign(dense, values)
