"""Gradient accumulation: one update from several batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from training.strategies.gradients import add, flatten, from_fixed, to_fixed, unflatten
from training.strategies.rules import Around, Sums, UpdateRule, pick


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

        def one(j, _):
            return *self.inner.gradient(pick(batches, j * size, size)), ()

        return add_up(self.k, one, fixed_shapes=self.optimizer_rule.is_compiled)


def add_up(
    num,
    part: Callable[[Any, Any], tuple[list, Sums, Any]],
    *,
    fixed_shapes: bool,
) -> tuple[list, Sums]:
    """The gradients and sums of `part(0, None)`, ..., `part(num - 1, ...)`, in a loop of the graph.

    `part(j, carried)` returns gradients, sums and what the next part is handed as `carried`,
    tensors in any nest. Sparse gradients grow by their rows; `fixed_shapes` keeps them in tables
    meanwhile, as XLA compiles no loop whose tensors grow.
    """
    like, sums, carried = part(0, None)
    names, totals = list(sums), list(sums.values())
    split = to_fixed if fixed_shapes else flatten
    tensors, shapes = split(like)
    values = tf.nest.flatten(carried)

    def add_part(j, tensors, totals, values):
        more, new, after = part(j, tf.nest.pack_sequence_as(carried, values))
        if fixed_shapes:
            tensors = [t + m for t, m in zip(tensors, to_fixed(more)[0], strict=True)]
        else:
            tensors = flatten(add(unflatten(like, tensors), more))[0]
        totals = [t + new[name] for t, name in zip(totals, names, strict=True)]
        return j + 1, tensors, totals, tf.nest.flatten(after)

    _, tensors, totals, _ = tf.while_loop(
        lambda j, *_: j < num,
        add_part,
        (1, tensors, totals, values),
        shape_invariants=(
            tf.TensorShape([]),
            shapes,
            [t.shape for t in totals],
            [v.shape for v in values],
        ),
        parallel_iterations=1,
    )
    join = from_fixed if fixed_shapes else unflatten
    return join(like, tensors), dict(zip(names, totals, strict=True))
