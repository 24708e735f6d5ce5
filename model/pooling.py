"""One vector for a text, whatever its padding. Axes: B batch, T steps, D features.

Each takes the hidden states `x` (B, T, D) and `is_token` bool (B, T), and gives (B, D): zeros where
a row has no token.
"""

from collections.abc import Callable

import keras
import tensorflow as tf


def pooling(kind: str) -> Callable:
    """The one of that name in `model.config.checks.POOLINGS`; `attention` is a layer."""
    if kind == "attention":
        return AttentionPooling(name="attention")
    return {"max": maximum, "mean": mean, "last": last}[kind]


def maximum(x, is_token):
    """Of each feature over the steps with a token, in the type of `x`."""
    largest = tf.reduce_max(tf.where(is_token[:, :, None], x, x.dtype.min), axis=1)
    return tf.where(tf.reduce_any(is_token, axis=1)[:, None], largest, tf.zeros_like(largest))


def mean(x, is_token):
    """Over the steps with a token, float32: sums of many steps lose too much in half precision."""
    weight = tf.cast(is_token, tf.float32)[:, :, None]
    total = tf.reduce_sum(tf.cast(x, tf.float32) * weight, axis=1)
    return tf.math.divide_no_nan(total, tf.reduce_sum(weight, axis=1))


def last(x, is_token):
    """The step of a row's last token, in the type of `x`. Rows are padded on the right."""
    length = tf.reduce_sum(tf.cast(is_token, tf.int32), axis=1)  # (B,)
    found = tf.gather(x, tf.maximum(length - 1, 0), axis=1, batch_dims=1)
    return tf.where(length[:, None] > 0, found, tf.zeros_like(found))


class AttentionPooling(keras.layers.Layer):
    """A mean whose weights are learned (Yang et al., 2016, eq. 5-7), float32.

    u_t = tanh(W x_t + b)      a = softmax over the tokens of u_t . q      sum_t a_t x_t
    """

    supports_masking = True  # or Keras warns of a mask that it need not see

    def build(self, x_shape, is_token_shape):
        D = x_shape[-1]
        self.project = keras.layers.Dense(D, activation="tanh", name="project")
        self.project.build(x_shape)
        self.query = self.add_weight(shape=(D,), name="query")

    def call(self, x, is_token):
        query = tf.cast(tf.convert_to_tensor(self.query), tf.float32)
        score = tf.reduce_sum(tf.cast(self.project(x), tf.float32) * query, axis=-1)  # (B, T)
        weight = tf.nn.softmax(tf.where(is_token, score, score.dtype.min), axis=1)
        weight = weight * tf.cast(is_token, tf.float32)  # of a row without a token
        return tf.reduce_sum(weight[:, :, None] * tf.cast(x, tf.float32), axis=1)

    def compute_mask(self, x, previous_mask):
        """None: no step is left that a mask could speak of."""
