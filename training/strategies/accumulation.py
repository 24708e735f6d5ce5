"""Gradient accumulation: one update from several batches."""

from __future__ import annotations

import tensorflow as tf

from training.strategies.gradients import add, flatten, unflatten
from training.strategies.rules import Around, UpdateRule, pick


class Accumulate(Around):
    """The gradient of `k` micro-batches together: g = sum_j n_j g_j / sum_j n_j.

    Gradients of summed losses are added and the targets counted, so micro-batches of different
    sizes, or with padding, weigh what they would in one large batch (a mean of means would not).
    Clipping, decay, averages and schedules see one update.
    """

    def __init__(self, inner: UpdateRule, k: int):
        super().__init__(inner)
        self.k = k
        self.num_batches, self.num_evaluations = k * inner.num_batches, k * inner.num_evaluations

    def gradient(self, batches):
        size = self.inner.num_batches
        gradients, sums = self.inner.gradient(pick(batches, 0, size))
        names = list(sums)

        def add_one(j, tensors, totals):
            more, new = self.inner.gradient(pick(batches, j * size, size))
            total = add(unflatten(gradients, tensors), more)
            return (
                j + 1,
                flatten(total)[0],
                [t + new[n] for t, n in zip(totals, names, strict=True)],
            )

        tensors, shapes = flatten(gradients)
        totals = [sums[name] for name in names]
        _, tensors, totals = tf.while_loop(
            lambda j, *_: j < self.k,
            add_one,
            (1, tensors, totals),
            shape_invariants=(tf.TensorShape([]), shapes, [t.shape for t in totals]),
            parallel_iterations=1,
        )
        return unflatten(gradients, tensors), dict(zip(names, totals, strict=True))
