"""Gaussian noise as a pure function of a seed and a step: a resumed run draws what comes next."""

from __future__ import annotations

import math

import tensorflow as tf

# What the numbers are for; two kinds of noise of one run are independent.
GRADIENT_NOISE, PRIVACY = range(2)


def gaussian(like: list, *, purpose: int, seed: int, step: tf.Tensor) -> list[tf.Tensor]:
    """Standard normal numbers with the shapes and dtypes in `like`, others for every step."""
    random = tf.random.experimental
    key = random.stateless_fold_in(tf.constant([seed, purpose], tf.int64), step, alg="philox")
    keys = random.stateless_split(key, len(like), alg="philox")
    return [tf.cast(_normal(x.shape, keys[i]), x.dtype) for i, x in enumerate(like)]


def _normal(shape, key: tf.Tensor) -> tf.Tensor:
    """By Box & Muller (1958), float64, from random bits: TensorFlow's normal numbers, unlike its
    bits, are others when XLA compiles them.
    """
    bits = tf.random.stateless_uniform([2, *shape], key, None, None, tf.uint32, alg="philox")
    radius, angle = tf.unstack((tf.cast(bits, tf.float64) + 0.5) / 2.0**32)  # in (0, 1)
    return tf.sqrt(-2.0 * tf.math.log(radius)) * tf.cos(2 * math.pi * angle)
