"""Products of bfloat16 factors: what is rounded, and that nothing else is."""

import numpy as np
import pytest
import tensorflow as tf

from model.catalogue import build_model
from model.config import TransformerDecoderConfig, TransformerEncoderConfig
from model.config.checks import BFLOAT16_PRODUCTS
from model.products import Dense, policy_of, product

SIZES = {"num_layers": 2, "width": 16, "num_heads": 2, "inner_width": 24, "dropout": 0.0}
TOKENS = np.array([[3, 7, 9, 4, 12], [5, 2, 8, 1, 6]], np.int32)


def rounded(x):
    return tf.cast(tf.cast(x, tf.bfloat16), tf.float32)


def test_a_product_rounds_its_factors_and_sums_to_bfloat16():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 4, 4)).astype("float32")
    found = product(tf.constant(a), tf.constant(b), tf.bfloat16)
    assert found.dtype == tf.float32
    exact = rounded(a).numpy().astype(np.float64) @ rounded(b).numpy()
    np.testing.assert_allclose(found, exact, rtol=2**-7, atol=1e-6)
    assert np.abs(found - a @ b).max() > 1e-4
    np.testing.assert_array_equal(product(tf.constant(a), tf.constant(b)), tf.matmul(a, b))


def test_a_dense_layer_rounds_only_under_its_policy():
    x = np.random.default_rng(1).normal(size=(3, 5, 8)).astype("float32")
    plain, ours = Dense(4), Dense(4, dtype=policy_of(BFLOAT16_PRODUCTS))
    plain(x), ours(x)
    for mine, other in zip(ours.variables, plain.variables, strict=True):
        mine.assign(other)
        assert mine.dtype == "float32"
    expected = rounded(x) @ rounded(plain.kernel)
    np.testing.assert_allclose(ours(x), expected, rtol=2**-7, atol=1e-5)
    assert np.abs(ours(x) - plain(x)).max() > 1e-4


@pytest.mark.parametrize(
    "config", [TransformerDecoderConfig(**SIZES), TransformerEncoderConfig(**SIZES)]
)
def test_a_network_stays_float32_but_for_its_products(config):
    labels = 3 if isinstance(config, TransformerEncoderConfig) else None
    ours, plain = (
        build_model(config, 20, labels, seed=0, precision=precision)
        for precision in (BFLOAT16_PRODUCTS, "float32")
    )
    rng = np.random.default_rng(1)
    for mine, other in zip(ours.trainable_variables, plain.trainable_variables, strict=True):
        other.assign(other.numpy() + rng.normal(scale=0.2, size=other.shape))
        mine.assign(other)
        assert mine.dtype == "float32"
    values = [v.value for v in ours.trainable_variables]
    with tf.GradientTape() as tape:
        logits = ours(TOKENS, training=True)
        total = tf.reduce_sum(tf.sin(logits))
    expected = plain(TOKENS).numpy()
    assert logits.dtype == tf.float32
    difference = np.abs(logits - expected).max()
    assert 0 < difference < 0.06 * np.abs(expected).max()
    for gradient in tape.gradient(total, values):
        gradient = tf.convert_to_tensor(gradient)
        assert gradient.dtype == tf.float32 and np.isfinite(gradient).all()
