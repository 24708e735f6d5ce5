"""Functions whose gradients are written out: the same formulas in fewer passes over memory.

TensorFlow derives the gradient of each operation and keeps what each of them needs; on a processor
such chains of small operations wait for memory. First derivatives only: asking for a second one
raises NotImplementedError. Axes: D width.
"""

import math

import keras
import tensorflow as tf


@tf.custom_gradient
def gelu(x):
    """x P(X <= x) for a standard normal X (Hendrycks & Gimpel, 2016, the exact form); any shape.

    The derivative is P(X <= x) + x p(x), p the density.
    """
    below = 0.5 * tf.math.erfc(-math.sqrt(0.5) * x)

    def gradient(dy):
        density = math.sqrt(0.5 / math.pi) * tf.exp(-0.5 * tf.square(x))
        return _last(dy * (below + x * density))

    return x * below, gradient


def standardize(x, epsilon: float):
    """(x - mean) / sqrt(variance + epsilon) over the last axis: float (..., D) -> the same.

    With y the answer, r the factor and means over D, the gradient is
    r (dy - mean(dy) - y mean(dy y)).
    """

    @tf.custom_gradient
    def function(x):
        centred = x - tf.reduce_mean(x, axis=-1, keepdims=True)
        variance = tf.reduce_mean(tf.square(centred), axis=-1, keepdims=True)
        factor = tf.math.rsqrt(variance + epsilon)
        y = centred * factor

        def gradient(dy):
            mean = tf.reduce_mean(dy, axis=-1, keepdims=True)
            along = tf.reduce_mean(dy * y, axis=-1, keepdims=True)
            return _last(factor * (dy - mean - y * along))

        return y, gradient

    return function(x)


class LayerNormalization(keras.layers.LayerNormalization):
    """Keras' layer over the last axis (Ba et al., 2016), computed in float32 or better."""

    def call(self, inputs):
        at_least = tf.float64 if inputs.dtype == tf.float64 else tf.float32
        y = standardize(tf.cast(inputs, at_least), self.epsilon)
        y = y * tf.cast(self.gamma, at_least)
        if self.beta is not None:
            y = y + tf.cast(self.beta, at_least)
        return tf.cast(y, inputs.dtype)


@tf.custom_gradient
def _last(dx):
    """`dx`, of which no further derivative is taken: what a gradient kept is a constant to it."""

    def refuse(_):
        raise NotImplementedError("model.written_out gives first derivatives only.")

    return tf.identity(dx), refuse
