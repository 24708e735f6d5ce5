"""Arithmetic on lists of gradients, dense tensors and sparse rows (`tf.IndexedSlices`) alike."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

Gradient = Any  # tf.Tensor or tf.IndexedSlices


def add(a: list, b: list, *, fixed_shapes: bool = False) -> list:
    """Entry by entry; rows that both name stand in the sum once.

    With `fixed_shapes` by whole tables: XLA joins lists of rows whose lengths it does not know to
    one that is too long.
    """
    if fixed_shapes:
        tables = zip(to_fixed(a)[0], to_fixed(b)[0], strict=True)
        return from_fixed(a, [x + y for x, y in tables])
    return [_add(x, y) for x, y in zip(a, b, strict=True)]


def scale(gradients: list, factor) -> list:
    """Every gradient times the scalar `factor`."""
    return [_with_values(g, _values(g) * tf.cast(factor, _values(g).dtype)) for g in gradients]


def global_norm(gradients: list) -> tf.Tensor:
    """Euclidean norm of all entries together; 0 for no gradient at all."""
    return tf.linalg.global_norm(gradients) if gradients else tf.constant(0.0)


def clip(gradients: list, limit: float | None) -> tuple[list, tf.Tensor]:
    """Scaled to a global norm of at most `limit` (Pascanu et al., 2013); and the norm before."""
    norm = global_norm(gradients)
    if limit is not None:
        gradients, _ = tf.clip_by_global_norm(gradients, limit, use_norm=norm)
    return gradients, norm


def distinct_rows(gradient: Gradient) -> Gradient:
    """A sparse gradient with each row once; its norm is then that of the dense gradient."""
    if not isinstance(gradient, tf.IndexedSlices):
        return gradient
    rows, position = tf.unique(gradient.indices)
    values = tf.math.unsorted_segment_sum(gradient.values, position, tf.size(rows))
    return tf.IndexedSlices(values, rows, gradient.dense_shape)


def is_sparse(gradient: Gradient) -> bool:
    return isinstance(gradient, tf.IndexedSlices)


def dense(gradient: Gradient) -> tf.Tensor:
    """The same gradient with a row for each of the variable, zeros where it names none."""
    if not isinstance(gradient, tf.IndexedSlices):
        return gradient
    return tf.math.unsorted_segment_sum(gradient.values, gradient.indices, gradient.dense_shape[0])


def row_uses(gradient: Gradient) -> tf.Tensor:
    """How often a sparse gradient names each row of its variable; nothing for a dense one.

    float32, as collectives take all of their inputs from one kind of memory, and whole numbers are
    kept in another.
    """
    if not isinstance(gradient, tf.IndexedSlices):
        return tf.zeros([0])
    ones = tf.ones_like(gradient.indices, tf.float32)
    return tf.math.unsorted_segment_sum(ones, gradient.indices, gradient.dense_shape[0])


def used_rows(gradient: tf.Tensor, uses: tf.Tensor, dtype: tf.DType = tf.int64) -> tf.IndexedSlices:
    """The rows of a dense gradient that `uses` counts, each once, as a sparse one."""
    rows = tf.cast(tf.where(uses > 0)[:, 0], dtype)
    return tf.IndexedSlices(tf.gather(gradient, rows), rows, tf.shape(gradient))


def flatten(gradients: list) -> tuple[list[tf.Tensor], list[tf.TensorShape]]:
    """Plain tensors for a `tf.while_loop`, and the shapes that hold in every turn of it."""
    tensors: list[tf.Tensor] = []
    shapes: list[tf.TensorShape] = []
    for g in gradients:
        if not isinstance(g, tf.IndexedSlices):
            tensors.append(g)
            shapes.append(g.shape)
        else:
            tensors += [g.values, g.indices]
            shapes += [tf.TensorShape([None, *g.values.shape[1:]]), tf.TensorShape([None])]
    return tensors, shapes


def unflatten(like: list, tensors: list[tf.Tensor]) -> list:
    """The inverse of `flatten`: `tensors` in the form of the gradients `like`."""
    rest, gradients = iter(tensors), []
    for g in like:
        if not isinstance(g, tf.IndexedSlices):
            gradients.append(next(rest))
        else:
            gradients.append(tf.IndexedSlices(next(rest), next(rest), g.dense_shape))
    return gradients


def to_fixed(gradients: list) -> tuple[list[tf.Tensor], list[tf.TensorShape]]:
    """Tensors whose shapes do not depend on which rows are named, to be added one by one.

    A sparse gradient is two: the whole table, and float (rows of it,) above 0 where a row is named.
    """
    tensors: list[tf.Tensor] = []
    for g in gradients:
        tensors.append(tf.convert_to_tensor(g))
        if isinstance(g, tf.IndexedSlices):
            ones = tf.ones_like(g.indices, g.values.dtype)
            tensors.append(tf.math.unsorted_segment_sum(ones, g.indices, g.dense_shape[0]))
    return tensors, [t.shape for t in tensors]


def from_fixed(like: list, tensors: list[tf.Tensor]) -> list:
    """The inverse of `to_fixed`: `tensors` in the form of the gradients `like`."""
    rest, gradients = iter(tensors), []
    for g in like:
        table = next(rest)
        if isinstance(g, tf.IndexedSlices):
            rows = tf.cast(tf.where(next(rest) > 0)[:, 0], g.indices.dtype)
            gradients.append(tf.IndexedSlices(tf.gather(table, rows), rows, g.dense_shape))
        else:
            gradients.append(table)
    return gradients


def _add(x: Gradient, y: Gradient) -> Gradient:
    if isinstance(x, tf.IndexedSlices) and isinstance(y, tf.IndexedSlices):
        both = tf.IndexedSlices(
            tf.concat([x.values, y.values], 0), tf.concat([x.indices, y.indices], 0), x.dense_shape
        )
        return distinct_rows(both)
    return tf.convert_to_tensor(x) + tf.convert_to_tensor(y)


def _values(gradient: Gradient) -> tf.Tensor:
    return gradient.values if isinstance(gradient, tf.IndexedSlices) else gradient


def _with_values(gradient: Gradient, values: tf.Tensor) -> Gradient:
    if isinstance(gradient, tf.IndexedSlices):
        return tf.IndexedSlices(values, gradient.indices, gradient.dense_shape)
    return values
