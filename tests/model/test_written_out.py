"""Gradients written out are those that TensorFlow derives from the plain formulas."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from model.written_out import LayerNormalization, gelu


def value_and_gradients(function, x, *more):
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = function(x)
        loss = tf.reduce_sum(tf.sin(y))  # a gradient that differs from entry to entry
    return y, tape.gradient(loss, [x, *more])


@pytest.fixture
def x():
    values = np.random.default_rng(0).normal(size=(3, 4, 6)) * 3
    return tf.constant(values, tf.float64)


def test_gelu_is_the_exact_one(x):
    def plain(x):
        return 0.5 * x * (1 + tf.math.erf(x / np.sqrt(2.0)))

    for ours, theirs in zip(
        tf.nest.flatten(value_and_gradients(gelu, x)),
        tf.nest.flatten(value_and_gradients(plain, x)),
        strict=True,
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-14)


def test_gelu_keeps_small_negative_values():
    # 1 + erf would round to nothing out there.
    assert float(gelu(tf.constant(-6.0))) == pytest.approx(-5.9195e-9, rel=1e-3)


@pytest.mark.parametrize("center", [True, False])
def test_layer_normalization_is_that_of_keras(x, center):
    ours = LayerNormalization(epsilon=1e-5, center=center, dtype="float64")
    theirs = keras.layers.LayerNormalization(epsilon=1e-5, center=center, dtype="float64")
    ours.build(x.shape), theirs.build(x.shape)
    for i, (mine, other) in enumerate(zip(ours.variables, theirs.variables, strict=True)):
        other.assign(np.linspace(0.5, 2.0, 6) - i)
        mine.assign(other)
    found = value_and_gradients(ours, x, *[v.value for v in ours.trainable_variables])
    expected = value_and_gradients(theirs, x, *[v.value for v in theirs.trainable_variables])
    for mine, other in zip(tf.nest.flatten(found), tf.nest.flatten(expected), strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-8, atol=1e-10)


def test_layer_normalization_computes_half_types_in_float32():
    x = tf.constant([[1000.0, 1001.0, 1002.0]], tf.float16)
    layer = LayerNormalization(epsilon=1e-5, dtype="mixed_float16")
    y = layer(x)
    assert y.dtype == tf.float16
    np.testing.assert_allclose(y, [[-1.2247, 0, 1.2247]], atol=2e-3)


@pytest.mark.parametrize("function", [gelu, lambda x: LayerNormalization(dtype="float64")(x)])
def test_a_second_derivative_is_refused_not_wrong(x, function):
    with tf.GradientTape() as outer:
        outer.watch(x)
        with tf.GradientTape() as inner:
            inner.watch(x)
            y = tf.reduce_sum(tf.sin(function(x)))
        first = inner.gradient(y, x)
    with pytest.raises(NotImplementedError, match="first derivatives only"):
        outer.gradient(first, x)
