"""Matrix products of bfloat16 factors in a network that is float32 everywhere else.

A processor that multiplies bfloat16 gains most of what mixed precision gains, while activations,
norms, softmax, weights and their sums keep all of their bits. Not with XLA on a processor, which
multiplies bfloat16 no faster. Axes: D inputs, K outputs.
"""

from typing import Any

import keras
import tensorflow as tf

from model.config.checks import BFLOAT16_PRODUCTS


class ProductsPolicy(keras.DTypePolicy):
    """Keras' float32 for a layer, whose products round their factors to `product_type`."""

    product_type = tf.bfloat16

    def __init__(self):
        super().__init__("float32")


def policy_of(precision: str) -> keras.DTypePolicy:
    """What layers are made with under a precision of `model.config.checks.PRECISIONS`."""
    return ProductsPolicy() if precision == BFLOAT16_PRODUCTS else keras.DTypePolicy(precision)


def product_type(layer: keras.layers.Layer) -> tf.DType | None:
    """The type that the factors of a layer's products are rounded to; None: they stay as is."""
    return getattr(layer.dtype_policy, "product_type", None)


def product(a: tf.Tensor, b: tf.Tensor, factors: tf.DType | None = None, **settings) -> tf.Tensor:
    """`tf.matmul` with its factors rounded to the type `factors`; float of the type of `a`.

    The gradient's products round theirs alike.
    """
    if factors is None:
        return tf.matmul(a, b, **settings)
    return tf.cast(tf.matmul(tf.cast(a, factors), tf.cast(b, factors), **settings), a.dtype)


def sizes(x: tf.Tensor) -> list[tf.Tensor]:
    """The dimensions of `x`, int32 scalars: each of `tf.shape(x)[i]` would be five operations."""
    return tf.unstack(tf.shape(x), num=len(x.shape))


def unflattened(rows: tf.Tensor, x: tf.Tensor, size: int) -> tf.Tensor:
    """`rows` (N, `size`), one for each vector of `x` (..., D), as (..., `size`)."""
    y = tf.reshape(rows, tf.stack([*sizes(x)[:-1], size]))
    y.set_shape([*x.shape[:-1], size])
    return y


class Dense(keras.layers.Dense):
    """Keras' layer: `x` float (..., D) -> float (..., K), its product as its policy says.

    Or with a matrix that `model.stored.store` put in place of the kernel.
    """

    stored: Any = None

    def call(self, x, training=None):
        rows = x if x.shape.rank == 2 else tf.reshape(x, [-1, x.shape[-1]])
        if self.stored is None:
            y = product(rows, tf.convert_to_tensor(self.kernel), product_type(self))
        else:
            y = self.stored.product(rows)
        if self.bias is not None:
            y = tf.nn.bias_add(y, tf.convert_to_tensor(self.bias))
        if x.shape.rank != 2:
            y = unflattened(y, x, self.units)
        return y if self.activation is None else self.activation(y)


class Embedding(keras.layers.Embedding):
    """Keras' layer, int (...) -> float (..., D), or with a matrix that `model.stored` put there."""

    stored: Any = None
    head: tf.Tensor | None = None  # (D, tokens), within `model.stored.held`

    def call(self, inputs):
        if self.stored is None:
            return super().call(inputs)
        return tf.cast(self.stored.take(inputs), self.compute_dtype)
