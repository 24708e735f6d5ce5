"""Recurrent cells and poolings against a transcription of their equations, gradients included."""

import network_papers as papers
import numpy as np
import pytest
import tensorflow as tf

from model import pooling
from model.cells import CELLS, recurrence
from model.config import checks

B, T, D, U = 2, 6, 3, 2
# Padding behind, and in the middle, where a state has to be kept.
IS_TOKEN = np.array([[1, 1, 0, 1, 1, 1], [1, 1, 1, 1, 0, 0]], bool)


def test_the_names_are_those_a_user_may_type():
    assert tuple(CELLS) == checks.CELLS == tuple(papers.CELLS)


@pytest.mark.parametrize("cell", CELLS)
def test_a_cell_and_all_of_its_gradients_are_those_of_its_equations(cell):
    """In float64: hidden states, last state; gradients of weights, input and first state."""
    rng = np.random.default_rng(0)
    layer = recurrence(cell, U, name="cell", return_state=True, dtype="float64")
    layer.build((None, None, D))
    num_weights, num_states = len(layer.trainable_weights), papers.CELLS[cell][1]
    shapes = [tuple(w.shape) for w in layer.trainable_weights]
    arrays = [rng.normal(scale=0.8, size=shape) for shape in shapes]
    for weight, value in zip(layer.trainable_weights, arrays, strict=True):
        weight.assign(value)
    arrays.append(rng.normal(size=(B, T, D)))
    arrays += [rng.normal(size=(B, U)) for _ in range(num_states)]
    # Any function of all that comes out: so every output's gradient counts.
    loud, loud_at_end = rng.normal(size=(B, T, U)), rng.normal(size=(num_states, B, U))

    def read(arrays):
        weights, x, states = arrays[:num_weights], arrays[num_weights], arrays[num_weights + 1 :]
        return [
            papers.read(cell, x[b], weights, tuple(s[b] for s in states), IS_TOKEN[b])
            for b in range(B)
        ]

    def total(arrays):
        sums = 0
        for b, (hidden, end) in enumerate(read(arrays)):
            sums += (np.array(hidden) ** 2 * loud[b, IS_TOKEN[b]]).sum()
            sums += sum((end[s] * loud_at_end[s, b]).sum() for s in range(num_states))
        return sums

    inputs = [tf.constant(value) for value in arrays[num_weights:]]
    values = [weight.value for weight in layer.trainable_weights]
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        hidden, *end = layer(inputs[0], initial_state=inputs[1:], mask=tf.constant(IS_TOKEN))
        of_steps = tf.reduce_sum((hidden**2 * loud)[IS_TOKEN])
        loss = of_steps + tf.reduce_sum(tf.stack(end) * loud_at_end)
    found = tape.gradient(loss, [*values, *inputs])

    for b, (own, own_end) in enumerate(read(arrays)):
        np.testing.assert_allclose(hidden.numpy()[b, IS_TOKEN[b]], own, rtol=0, atol=1e-12)
        np.testing.assert_allclose([s.numpy()[b] for s in end], own_end, rtol=0, atol=1e-12)
    for ours, expected in zip(found, papers.complex_step(total, arrays), strict=True):
        assert np.abs(expected).max() > 1e-3
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-11)


def test_a_peephole_lstm_begins_as_the_plain_one():
    x = tf.constant(np.random.default_rng(0).normal(size=(B, T, D)), tf.float32)
    plain, peeping = (recurrence(cell, U, name=cell) for cell in ("lstm", "peephole_lstm"))
    plain.build(x.shape), peeping.build(x.shape)
    names = [weight.name for weight in peeping.trainable_weights]
    assert names == ["kernel", "recurrent_kernel", "bias", "peephole"]
    assert not np.any(peeping.trainable_weights[3])
    np.testing.assert_array_equal(peeping.trainable_weights[2], plain.trainable_weights[2])
    for ours, theirs in zip(peeping.trainable_weights, plain.trainable_weights, strict=False):
        ours.assign(theirs)
    np.testing.assert_allclose(peeping(x), plain(x), atol=1e-6)


def test_a_peephole_lstm_is_copied_as_a_whole_by_keras():
    """As Bidirectional does; a setting that was lost would be another layer backwards."""
    layer = recurrence("peephole_lstm", U, name="p", return_state=True, go_backwards=True)
    again = layer.from_config(layer.get_config())
    assert again.get_config() == layer.get_config()
    assert (again.cell.units, again.return_sequences, again.return_state) == (U, True, True)


@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
def test_a_peephole_lstm_runs_in_half_precision(precision):
    x = np.random.default_rng(0).normal(size=(B, T, D)).astype(np.float32)
    layer = recurrence("peephole_lstm", U, name="p", dtype=precision)
    half = layer(x, mask=tf.constant(IS_TOKEN))
    whole = recurrence("peephole_lstm", U, name="p")
    whole.build(x.shape)
    for ours, theirs in zip(whole.weights, layer.weights, strict=True):
        assert theirs.dtype == "float32"
        ours.assign(theirs)
    assert half.dtype == tf.as_dtype(precision.removeprefix("mixed_"))
    expected = whole(x, mask=tf.constant(IS_TOKEN))
    np.testing.assert_allclose(tf.cast(half, tf.float32), expected, atol=0.02)


# Poolings -----------------------------------------------------------------------------------------

PADDED = np.array([[1, 1, 1, 1, 1, 1], [1, 1, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0]], bool)


@pytest.mark.parametrize("kind", checks.POOLINGS)
def test_a_pooling_is_that_of_the_tokens_alone(kind):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, T, D)) - 2  # so that a zero of padding would be the maximum
    pool, weights = pooling.pooling(kind), []
    if kind == "attention":
        pool.build(x.shape, PADDED.shape)
        for weight in pool.trainable_weights:
            weight.assign(rng.normal(size=weight.shape))
        weights = [w.numpy() for w in (pool.project.kernel, pool.project.bias, pool.query)]
    plain = {
        "max": lambda row: row.max(axis=0),
        "mean": lambda row: row.mean(axis=0),
        "last": lambda row: row[-1],
        "attention": lambda row: papers.attention_pooling(row, *weights),
    }[kind]
    found = pool(tf.constant(x, tf.float32), tf.constant(PADDED))
    expected = [plain(row[own]) for row, own in zip(x, PADDED, strict=True)]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    empty = pool(tf.constant(x, tf.float32), tf.zeros([3, T], tf.bool))
    np.testing.assert_array_equal(empty, np.zeros((3, D)))


def test_attention_and_its_gradients_are_those_of_its_equations():
    rng = np.random.default_rng(1)
    layer = pooling.AttentionPooling(name="attention")
    layer.build((None, None, D), (None, None))
    weights = [layer.project.kernel, layer.project.bias, layer.query]
    arrays = [rng.normal(size=weight.shape) for weight in weights]
    for weight, value in zip(weights, arrays, strict=True):
        weight.assign(value)
    x, loud = rng.normal(size=(4, D)), rng.normal(size=D)
    padded = np.concatenate([x, rng.normal(size=(2, D))])[None].astype(np.float32)
    with tf.GradientTape() as tape:
        tape.watch(inputs := tf.constant(padded))
        pooled = layer(inputs, tf.constant([[True] * 4 + [False] * 2]))
        loss = tf.reduce_sum(pooled * loud.astype(np.float32))
    *found, of_input = tape.gradient(loss, [*(w.value for w in weights), inputs])
    *expected, of_x = papers.complex_step(
        lambda a: papers.attention_pooling(a[3], *a[:3]) @ loud, [*arrays, x]
    )
    for ours, theirs in zip([*found, of_input[0, :4]], [*expected, of_x], strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    assert not np.any(of_input[0, 4:])
