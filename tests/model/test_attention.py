import numpy as np
import pytest
import tensorflow as tf

from model.attention import CrossAttention, SelfAttention, empty_cache
from model.config.transformers import BlocksConfig
from model.positions import rotary

STEPS = np.arange(6, dtype=np.int32)[None]  # (1, T)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def causal(T, S=None):
    return np.arange(S or T)[None, :] <= np.arange(T)[:, None]


# Rotary positions ---------------------------------------------------------------------------------


def turned(x, position):
    """`x` (H,) at one position."""
    return rotary(tf.constant(x[None, None, None]), tf.constant([[position]])).numpy()[0, 0, 0]


def test_rotary_leaves_position_zero_and_keeps_lengths():
    x = normal(2, 3, 5, 8)
    position = tf.constant([[0, 1, 2, 30, 400], [7, 0, 0, 1, 2]])
    y = rotary(tf.constant(x), position).numpy()
    np.testing.assert_array_equal(y[0, :, 0], x[0, :, 0])
    np.testing.assert_array_equal(y[1, :, 1:3], x[1, :, 1:3])
    np.testing.assert_allclose(np.linalg.norm(y, axis=-1), np.linalg.norm(x, axis=-1), rtol=1e-5)


def test_rotary_products_depend_on_the_distance_alone():
    q, k = normal(8), normal(8, seed=1)
    products = {
        distance: [turned(q, start + distance) @ turned(k, start) for start in (0, 1, 17, 200)]
        for distance in (0, 1, 5, -3)
    }
    for same in products.values():
        np.testing.assert_allclose(same, same[0], atol=1e-4)
    # ... and they do depend on it.
    assert np.ptp([same[0] for same in products.values()]) > 0.1
    np.testing.assert_allclose(products[0][0], q @ k, atol=1e-5)


def test_rotary_turns_pairs_by_the_angle_of_the_paper():
    """eq. 34: pair i by position * base^(-2i/H), here channels 1 and 3 of H = 4."""
    x = np.array([0.0, 1.0, 0.0, 0.0], np.float32)
    angle = 3 * 10_000.0 ** (-2 / 4)
    np.testing.assert_allclose(turned(x, 3), [0, np.cos(angle), 0, np.sin(angle)], atol=1e-6)


# Attention ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def layer():
    layer = SelfAttention(BlocksConfig(width=8, num_heads=2))
    layer.build((None, None, 8))
    return layer


def test_attention_equals_the_formula(layer):
    """eq. 1 head by head in NumPy, with the same rotary turn."""
    x, position, may_attend = normal(2, 5, 8), STEPS[:, :5], causal(5)
    q, k, v = np.split(x @ layer.qkv.kernel.numpy(), 3, axis=-1)
    heads = []
    for head in (slice(0, 4), slice(4, 8)):
        q_turned, k_turned = (
            rotary(tf.constant(z[:, None, :, head]), tf.constant(position)).numpy()[:, 0]
            for z in (q, k)
        )
        scores = np.einsum("bth,bsh->bts", q_turned, k_turned) / np.sqrt(4)
        weights = np.exp(scores) * may_attend
        weights /= weights.sum(-1, keepdims=True)
        heads.append(weights @ v[:, :, head])
    expected = np.concatenate(heads, -1) @ layer.output_projection.kernel.numpy()
    np.testing.assert_allclose(layer(x, position, may_attend), expected, atol=1e-5)


@pytest.mark.parametrize("hidden", [0, 2, 4])
def test_a_hidden_source_changes_nothing(layer, hidden):
    x, position = normal(1, 5, 8), STEPS[:, :5]
    may_attend = np.arange(5)[None, None, None, :] != hidden
    changed = x.copy()
    changed[:, hidden] += 1.0
    before, after = (layer(z, position, may_attend).numpy() for z in (x, changed))
    others = [t for t in range(5) if t != hidden]
    np.testing.assert_allclose(before[:, others], after[:, others], atol=1e-6)
    seen_before, seen_after = (
        layer(z, position, np.ones((1, 1, 1, 5), bool)).numpy() for z in (x, changed)
    )
    assert np.abs(seen_before[:, others] - seen_after[:, others]).max() > 1e-3


def test_a_target_that_may_look_nowhere_stays_finite(layer):
    assert np.isfinite(layer(normal(1, 3, 8), STEPS[:, :3], np.zeros((1, 1, 1, 3), bool))).all()


def test_the_cache_holds_each_position_in_its_slot(layer):
    x = normal(2, 3, 8)
    position = np.array([[0, 1, 2], [4, 5, 1]], np.int32)
    (cache,) = empty_cache(2, 6, num_layers=1, num_heads=2, head_size=4)
    _, (keys, values) = layer(x, position, causal(3, 6), cache)
    _, _, v = np.split(x @ layer.qkv.kernel.numpy(), 3, axis=-1)  # (B, T, D) each
    for row in range(2):
        for step, slot in enumerate(position[row]):
            for head in range(2):
                expected = v[row, step, 4 * head : 4 * head + 4]
                np.testing.assert_allclose(values[row, head, slot], expected, atol=1e-5)
        unwritten = [slot for slot in range(6) if slot not in position[row]]
        assert not np.any(keys.numpy()[row][:, unwritten])
        assert not np.any(values.numpy()[row][:, unwritten])


def test_attending_through_a_cache_equals_attending_at_once(layer):
    x, position = normal(2, 6, 8), STEPS
    whole = layer(x, position, causal(6)).numpy()
    (cache,) = empty_cache(2, 9, num_layers=1, num_heads=2, head_size=4)
    first, cache = layer(x[:, :4], position[:, :4], causal(4, 9), cache)
    np.testing.assert_allclose(first, whole[:, :4], atol=1e-5)
    for step in (4, 5):
        may_attend = np.arange(9)[None, None, None, :] <= step
        y, cache = layer(
            x[:, step : step + 1], np.array([[step], [step]], np.int32), may_attend, cache
        )
        np.testing.assert_allclose(y[:, 0], whole[:, step], atol=1e-5)


def test_a_later_write_covers_what_stood_in_the_slot(layer):
    """Padding of a prompt is written first and covered by the tokens that follow."""
    x, position = normal(1, 3, 8), STEPS[:, :3]
    (empty,) = empty_cache(1, 3, num_layers=1, num_heads=2, head_size=4)
    _, clean = layer(x, position, causal(3), empty)
    _, used = layer(normal(1, 3, 8, seed=5), position, causal(3), empty)
    _, again = layer(x, position, causal(3), used)
    for a, b in zip(clean, again, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


# Attention to another text ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cross():
    layer = CrossAttention(BlocksConfig(width=8, num_heads=2))
    layer.build((None, None, 8))
    return layer


def test_cross_attention_equals_the_formula(cross):
    x, source = normal(2, 3, 8), normal(2, 5, 8, seed=1)
    may_attend = np.arange(5)[None, None, None, :] < np.array([5, 2])[:, None, None, None]
    q = x @ cross.query.kernel.numpy()
    k, v = np.split(source @ cross.key_value.kernel.numpy(), 2, axis=-1)
    heads = []
    for head in (slice(0, 4), slice(4, 8)):
        scores = np.einsum("bth,bsh->bts", q[..., head], k[..., head]) / np.sqrt(4)
        weights = np.exp(scores) * may_attend[:, 0]
        weights /= weights.sum(-1, keepdims=True)
        heads.append(weights @ v[..., head])
    expected = np.concatenate(heads, -1) @ cross.output_projection.kernel.numpy()
    np.testing.assert_allclose(cross(x, source, may_attend), expected, atol=1e-5)
    read_once = cross.keys_values(source)
    assert [part.shape for part in read_once] == [(2, 2, 5, 4)] * 2
    np.testing.assert_array_equal(cross(x, read_once, may_attend), cross(x, source, may_attend))
