"""Attention and whole Transformers against plain NumPy: every option, every gradient."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
import transformer_papers as papers
from transformer_papers import DECODERS, ENCODERS, LABELS, ROWS, VOCABULARY, padded

from model.attention import CrossAttention, SelfAttention
from model.catalogue import build_model
from model.config import TransformerDecoderConfig, TransformerEncoderConfig
from model.config.transformers import BlocksConfig

B, T, S, D = 2, 4, 3, 4  # two heads of two channels
PAST = np.broadcast_to(np.tril(np.ones((T, T), bool)), (B, T, T))
IS_TOKEN = np.broadcast_to(np.arange(T) < np.array([T, 2])[:, None, None], (B, T, T))
IS_SOURCE = np.broadcast_to(np.arange(S) < np.array([2, S])[:, None, None], (B, T, S))


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def weights_of(model):
    """Every variable that is trained, by its path within the network."""
    return {v.path.partition("/")[2]: v for v in model.trainable_variables}


def central_difference(function, arrays, name, direction, step=1e-5):
    moved = [arrays | {name: arrays[name] + sign * step * direction} for sign in (1, -1)]
    return (function(moved[0]) - function(moved[1])) / (2 * step)


def check_layer(layer, inputs, call, formula):
    """The layer equals the formula, and so do the gradients of all inputs and all weights.

    `call` takes the inputs by name, `formula` the inputs and the weights, float64, by name.
    """
    variables, rng = weights_of(layer), np.random.default_rng(4)
    weights = {path: rng.normal(size=v.shape) for path, v in variables.items()}
    for path, variable in variables.items():
        variable.assign(weights[path])
    arrays = inputs | weights
    expected = formula(arrays)
    readout = normal(*expected.shape, seed=9)
    tensors = {name: tf.constant(value, tf.float32) for name, value in inputs.items()}
    with tf.GradientTape() as tape:
        tape.watch(list(tensors.values()))
        y = call(tensors)
        total = tf.reduce_sum(y * tf.constant(readout, tf.float32))
    np.testing.assert_allclose(y, expected, atol=2e-5)
    gradients = tape.gradient(total, tensors | {k: v.value for k, v in variables.items()})
    for name, array in arrays.items():
        differences = np.zeros(array.size)
        for i, direction in enumerate(np.eye(array.size)):
            differences[i] = central_difference(
                lambda moved: np.sum(formula(moved) * readout),
                arrays,
                name,
                direction.reshape(array.shape),
            )
        assert np.any(differences), name
        found = tf.convert_to_tensor(gradients[name]).numpy().ravel()
        np.testing.assert_allclose(found, differences, atol=5e-4, rtol=1e-4, err_msg=name)


@pytest.mark.parametrize("may_attend", [PAST, IS_TOKEN], ids=["past", "padding"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"positions": "alibi"},
        {"positions": "none", "qk_norm": True},
        {"qk_norm": True},
        {"positions": "alibi", "num_heads": 4, "num_key_value_heads": 2, "qk_norm": True},
        {"num_heads": 2, "num_key_value_heads": 1},
    ],
    ids=["rotary", "alibi", "normed", "rotary-normed", "grouped", "rotary-grouped"],
)
def test_self_attention_and_its_gradients(options, may_attend):
    config = BlocksConfig(num_layers=1, width=D, **{"num_heads": 2} | options)
    layer = SelfAttention(config, name="layer")
    layer.build((None, None, D))
    position = tf.range(T)[None, :]

    def formula(given):
        return np.array(
            [
                papers.self_attention(config, x, mask, given, more)
                for x, more, mask in zip(given["x"], given["more"], may_attend, strict=True)
            ]
        )

    check_layer(
        layer,
        {"x": normal(B, T, D), "more": normal(B, T, config.key_value_width, seed=1)},
        lambda given: layer(given["x"], position, may_attend[:, None], more_values=given["more"]),
        formula,
    )


def test_cross_attention_and_its_gradients():
    config = BlocksConfig(num_layers=1, width=D, num_heads=2)
    layer = CrossAttention(config, name="layer")
    layer.build((None, None, D))

    def formula(given):
        return np.array(
            [
                papers.cross_attention(config, x, source, mask, given)
                for x, source, mask in zip(given["x"], given["source"], IS_SOURCE, strict=True)
            ]
        )

    check_layer(
        layer,
        {"x": normal(B, T, D), "source": normal(B, S, D, seed=1)},
        lambda given: layer(given["x"], given["source"], IS_SOURCE[:, None]),
        formula,
    )


# Whole networks -----------------------------------------------------------------------------------

SIZES = {"num_layers": 2, "width": 12, "num_heads": 2, "inner_width": 7, "dropout": 0.0}


def network(kind, name):
    """With weights that are all large enough to matter."""
    if kind == "decoder":
        config = TransformerDecoderConfig(**SIZES | DECODERS[name], context_length=5)
        model = build_model(config, VOCABULARY, seed=0)
    else:
        config = TransformerEncoderConfig(**SIZES | ENCODERS[name])
        model = build_model(config, VOCABULARY, LABELS, seed=0)
    rng = np.random.default_rng(1)
    for variable in model.trainable_variables:
        variable.assign(variable.numpy() + rng.normal(scale=0.3, size=variable.shape))
    return config, model


@pytest.mark.parametrize(
    ("kind", "name"), [("decoder", n) for n in DECODERS] + [("encoder", n) for n in ENCODERS]
)
def test_a_network_and_the_gradient_of_each_variable(kind, name):
    """Each variable's gradient along one random direction: a number that any fault would change."""
    config, model = network(kind, name)
    variables = weights_of(model)
    weights = {path: v.numpy().astype(np.float64) for path, v in variables.items()}
    row_of = papers.decoder if kind == "decoder" else papers.encoder

    def formula(weights):
        return [row_of(config, row, weights) for row in ROWS]

    rows = [np.sin(np.arange(y.size) + 1.0).reshape(y.shape) for y in formula(weights)]
    readout = np.stack(rows) if kind == "encoder" else np.zeros((len(ROWS), *rows[0].shape))
    for i, row in enumerate(rows if kind == "decoder" else []):
        readout[i, : len(row)] = row  # and nothing of padding
    values = {path: v.value for path, v in variables.items()}
    with tf.GradientTape() as tape:
        run = model if kind == "encoder" else model.all_logits
        logits = run(padded(ROWS), training=True)
        total = tf.reduce_sum(logits * tf.constant(readout, tf.float32))
    for found, expected in zip(logits.numpy(), formula(weights), strict=True):
        found = found[: len(expected)] if kind == "decoder" else found
        np.testing.assert_allclose(found, expected, atol=1e-4)
    if kind == "decoder":
        np.testing.assert_allclose(model(padded(ROWS)), logits[:, :, 0], atol=1e-5)
    for path, gradient in tape.gradient(total, values).items():
        direction = normal(*weights[path].shape, seed=len(path))
        expected = central_difference(
            lambda moved: sum(np.sum(y * r) for y, r in zip(formula(moved), rows, strict=True)),
            weights,
            path,
            direction,
        )
        found = np.sum(tf.convert_to_tensor(gradient).numpy() * direction)
        assert abs(expected) > 1e-2, path
        assert found == pytest.approx(expected, rel=2e-3, abs=2e-3), path


def test_every_option_of_the_blocks_is_among_those_compared():
    """A new setting of a block has its equations here."""
    compared = {name for options in (*DECODERS.values(), *ENCODERS.values()) for name in options}
    settings = {field.name for field in dataclasses.fields(TransformerDecoderConfig)}
    elsewhere = {"dropout_kind", "recompute", "context_length", "name"}  # tests of their own
    assert settings - compared - set(SIZES) == elsewhere
