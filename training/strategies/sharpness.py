"""Gradients taken elsewhere than at the weights: SAM, extragradient."""

from __future__ import annotations

import tensorflow as tf

from training.strategies.gradients import global_norm, scale
from training.strategies.replicas import assign
from training.strategies.rules import Around, UpdateRule


class Elsewhere(Around):
    """The gradient after a step away from the weights, which are put back bit for bit."""

    def __init__(self, inner: UpdateRule):
        super().__init__(inner)
        self.num_evaluations = 2 * inner.num_evaluations

    def changes(self, gradients: list, num_targets: tf.Tensor) -> list:
        """Where to step: the change of every weight, given the gradient of the summed loss."""
        raise NotImplementedError

    def gradient(self, batches):
        here, sums = self.inner.gradient(batches)
        # All replicas have to step to the same place.
        whole, counts = self.replicas.sum(here, {"num_targets": sums["num_targets"]})
        kept = move(self.weights, self.changes(whole, counts["num_targets"]))
        there, moved = self.inner.gradient(batches)
        put_back(self.weights, kept)
        return there, sums | {"moved_loss_sum": moved["loss_sum"]}


class SharpnessAware(Elsewhere):
    """SAM: the gradient at w + rho g / |g| (Foret et al., 2021, eq. 2-3).

    Reports how much the loss rises on the way, the sharpness that it makes small.
    """

    def __init__(self, inner: UpdateRule, rho: float):
        super().__init__(inner)
        self.rho = rho
        self.measures = (*inner.measures, "moved_loss_sum")

    def changes(self, gradients, num_targets):
        return scale(gradients, tf.math.divide_no_nan(self.rho, global_norm(gradients)))


class Extragradient(Elsewhere):
    """The gradient after a look-ahead step of plain descent, w - rate g(w) (Korpelevich, 1976)."""

    def __init__(self, inner: UpdateRule, rate: float):
        super().__init__(inner)
        self.rate = rate

    def changes(self, gradients, num_targets):
        return scale(gradients, -self.rate * tf.math.divide_no_nan(1.0, num_targets))


def move(weights: list, changes: list) -> list:
    """Adds `changes`, sparse ones row by row, to the weights; returns what `put_back` needs."""
    kept, dense, values = [], [], []
    for weight, change in zip(weights, changes, strict=True):
        if isinstance(change, tf.IndexedSlices) and not tf.distribute.has_strategy():
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
        else:
            dense.append(weight)
            values.append(before)
    assign(dense, values)
