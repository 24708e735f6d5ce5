"""Positions as their papers define them, and attention against plain NumPy, gradients included."""

import numpy as np
import pytest
import tensorflow as tf

from model.attention import CrossAttention, SelfAttention
from model.catalogue import build_model
from model.config import TransformerDecoderConfig, TransformerEncoderConfig
from model.config.transformers import POSITIONS, BlocksConfig
from model.positions import alibi, alibi_slopes, rotary, sinusoidal
from model.transformer import Inner, Place

SIZES = {"num_layers": 2, "width": 16, "num_heads": 2, "inner_width": 24, "dropout": 0.0}
TOKENS = np.array([[3, 7, 9, 4, 12, 5, 8, 2]], np.int32)


def randomised(model, scale=0.3):
    rng = np.random.default_rng(1)
    for variable in model.trainable_variables:
        variable.assign(variable.numpy() + rng.normal(scale=scale, size=variable.shape))
    return model


# What each kind of position is --------------------------------------------------------------------


def test_rotary_scores_depend_on_the_distance_alone():
    rng = np.random.default_rng(0)
    q, k = rng.normal(size=(2, 1, 1, 1, 8)).astype("float32")

    def score(target, source):
        at = [tf.constant([[place]]) for place in (target, source)]
        return float(tf.reduce_sum(rotary(tf.constant(q), at[0]) * rotary(tf.constant(k), at[1])))

    assert score(3, 1) == pytest.approx(score(1003, 1001), abs=1e-3)
    assert score(3, 1) != pytest.approx(score(3, 2), abs=1e-3)
    assert score(3, 1) != pytest.approx(score(1, 3), abs=1e-3)


def test_sinusoids_are_those_of_the_paper_and_a_shift_turns_them():
    table = sinusoidal(tf.range(40)[None, :], 6).numpy()[0]
    for position in (0, 1, 17):
        for i in range(3):
            angle = position / 10_000 ** (2 * i / 6)
            expected = [np.sin(angle), np.cos(angle)]
            np.testing.assert_allclose(table[position, 2 * i : 2 * i + 2], expected, atol=1e-5)
    # One matrix takes every position five further.
    turn, *_ = np.linalg.lstsq(table[:-5], table[5:], rcond=None)
    np.testing.assert_allclose(table[:-5] @ turn, table[5:], atol=1e-4)
    np.testing.assert_allclose(turn @ turn.T, np.eye(6), atol=1e-3)


def test_slopes_are_those_of_the_paper():
    np.testing.assert_allclose(alibi_slopes(8), [2.0**-i for i in range(1, 9)])
    # Twelve heads, as the authors' code gives them.
    np.testing.assert_allclose(alibi_slopes(12)[8:], [2**-0.5, 2**-1.5, 2**-2.5, 2**-3.5])


def test_the_bias_is_minus_slope_times_distance():
    bias = alibi(tf.constant([[2, 5]]), 7, 2).numpy()
    assert bias.shape == (1, 2, 2, 7)
    for head, slope in enumerate((2.0**-4, 2.0**-8)):
        for row, target in enumerate((2, 5)):
            expected = [-slope * abs(target - source) for source in range(7)]
            np.testing.assert_allclose(bias[0, head, row], expected)


def test_learned_places_are_added_and_the_last_one_stays():
    place = randomised(_built(Place(BlocksConfig(**SIZES, positions="learned"), 4)))
    x = np.zeros((1, 6, 16), "float32")
    rows = place(x, tf.range(6)[None, :]).numpy()[0]
    np.testing.assert_array_equal(rows[:4], place.table.embeddings)
    np.testing.assert_array_equal(rows[4:], [rows[3]] * 2)


def _built(layer):
    layer(np.zeros((1, 2, 16), "float32"), tf.range(2)[None, :])
    return layer


@pytest.mark.parametrize("positions", POSITIONS)
def test_an_encoder_hears_the_order_unless_it_has_no_positions(positions):
    config = TransformerEncoderConfig(**SIZES, positions=positions)
    model = randomised(build_model(config, 20, 3, seed=0))
    apart = np.abs(model(TOKENS) - model(TOKENS[:, ::-1].copy())).max()
    if positions == "none":
        assert apart < 1e-5
    elif positions == "alibi":  # which tells how far, not to which side
        assert apart < 1e-5
        assert np.abs(model(TOKENS) - model(TOKENS[:, [0, 2, 1, *range(3, 8)]])).max() > 1e-3
    else:
        assert apart > 1e-3


@pytest.mark.parametrize("positions", POSITIONS)
def test_longer_texts_than_were_trained_on_change_nothing_before(positions):
    config = TransformerDecoderConfig(**SIZES, positions=positions, context_length=8)
    model = randomised(build_model(config, 20, seed=0))
    longer = np.concatenate([TOKENS, TOKENS], axis=1)
    logits = model(longer).numpy()
    assert np.isfinite(logits).all()
    np.testing.assert_allclose(logits[:, :8], model(TOKENS), atol=1e-5)


# A decoder with each option: cached equals whole, and the option does something -----------------

OPTIONS = [
    *({"positions": name} for name in POSITIONS[1:]),
    {"normalization": "rms", "activation": "relu_squared", "qk_norm": True},
    {"activation": "swiglu", "bias": False, "tied_head": False},
    {"value_embeddings": True, "initialization": "gpt2"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(map(str, o.values())))
def test_a_decoder_with_options_writes_as_it_reads(options):
    config = TransformerDecoderConfig(**SIZES, **options, context_length=16)
    model = randomised(build_model(config, 20, seed=0))
    whole = model(TOKENS).numpy()
    plain = TransformerDecoderConfig(**SIZES, context_length=16)
    assert np.abs(whole - randomised(build_model(plain, 20, seed=0))(TOKENS)).max() > 1e-3
    lengths = np.array([5], np.int32)
    logits, cache = model.prefill(TOKENS[:, :5], lengths, 9)
    np.testing.assert_allclose(logits, whole[:, 4], atol=1e-4)
    for position in (5, 6, 7):
        at = tf.constant([position])
        logits, cache = model.decode(TOKENS[:, position], at, cache)
        np.testing.assert_allclose(logits, whole[:, position], atol=1e-4)
    changed = TOKENS.copy()
    changed[0, 4:] = 11
    np.testing.assert_allclose(model(changed)[:, :4], whole[:, :4], atol=1e-5)


def test_the_documented_network_of_nanogpt_has_its_number_of_weights():
    config = TransformerDecoderConfig(
        num_layers=4,
        width=128,
        num_heads=4,
        inner_width=512,
        context_length=64,
        positions="learned",
        bias=False,
        initialization="gpt2",
        dropout=0.0,
    )
    model = build_model(config, 65, seed=0)
    blocks = 4 * (12 * 128**2 + 2 * 128)  # attention 4 D^2, inner 8 D^2, two gains
    assert sum(v.numpy().size for v in model.trainable_variables) == blocks + (65 + 64 + 1) * 128
    spread = {v.path: v.numpy().std() for v in model.trainable_variables}
    for path, stddev in spread.items():
        if path.endswith(("output_projection/kernel", "contract/kernel")):
            assert stddev == pytest.approx(0.02 / 8**0.5, rel=0.05), path
        elif not path.endswith("gamma"):
            assert stddev == pytest.approx(0.02, rel=0.05), path


# Formulas in plain NumPy, float64 -----------------------------------------------------------------


def softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def rms(x, gain):
    return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + 1e-5) * gain


def turned(x):
    """Su et al. (2021), eq. 34, one pair (i, i + H/2) after another."""
    y, half = x.copy(), x.shape[-1] // 2
    for position in range(x.shape[-2]):
        for i in range(half):
            angle = position / 10_000 ** (i / half)
            a, b = x[..., position, i], x[..., position, i + half]
            y[..., position, i] = a * np.cos(angle) - b * np.sin(angle)
            y[..., position, i + half] = b * np.cos(angle) + a * np.sin(angle)
    return y


def attended(q, k, v, allowed, slopes=None):
    """(N, T, H), (N, S, H) twice -> (T, D), one head and one target after another."""
    rows = np.zeros((q.shape[1], q.shape[0] * q.shape[2]))
    for head in range(q.shape[0]):
        for target in range(q.shape[1]):
            scores = k[head] @ q[head, target] / np.sqrt(q.shape[2])
            if slopes is not None:
                scores = scores - slopes[head] * np.abs(target - np.arange(k.shape[1]))
            scores = np.where(allowed[target], scores, -np.inf)
            width = q.shape[2]
            rows[target, head * width : (head + 1) * width] = softmax(scores) @ v[head]
    return rows


def heads_of(x, count=2):
    return np.stack(np.split(x, count, axis=-1))  # (N, T, H)


def self_attention(config, x, allowed, qkv, out, *gains):
    q, k, v = (heads_of(part) for part in np.split(x @ qkv, 3, axis=-1))
    if config.qk_norm:
        q, k = rms(q, gains[0]), rms(k, gains[1])
    if config.positions == "rotary":
        q, k = turned(q), turned(k)
    slopes = alibi_slopes(2) if config.positions == "alibi" else None
    return attended(q, k, v, allowed, slopes) @ out


def inner(config, x, *weights):
    expand, contract = weights
    x = x @ expand
    if config.activation == "swiglu":
        gate, value = np.split(x, 2, axis=-1)
        return gate / (1 + np.exp(-gate)) * value @ contract
    return np.maximum(x, 0) ** 2 @ contract


def check_against(layer, call, formula, x, atol=2e-4):
    """The layer and all of its gradients are those of the formula, by central differences."""
    call(tf.constant(x, tf.float32))
    rng = np.random.default_rng(3)
    weights = [rng.normal(scale=0.5, size=v.shape) for v in layer.trainable_variables]
    for variable, value in zip(layer.trainable_variables, weights, strict=True):
        variable.assign(value)
    inputs = tf.constant(x, tf.float32)
    values = [variable.value for variable in layer.trainable_variables]
    direction = rng.normal(size=x.shape)
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        y = call(inputs)
        total = tf.reduce_sum(y * tf.constant(direction, tf.float32))
    found = tape.gradient(total, [inputs, *values])
    arguments = [x.astype(np.float64), *weights]
    np.testing.assert_allclose(y[0], formula(x[0], *weights), atol=atol)
    for number, gradient in enumerate(found):
        gradient = np.asarray(gradient)
        for index in rng.choice(gradient.size, size=min(12, gradient.size), replace=False):
            sides = []
            for step in (1e-5, -1e-5):
                moved = [a.copy() for a in arguments]
                moved[number].flat[index] += step
                sides.append(np.sum(formula(moved[0][0], *moved[1:]) * direction[0]))
            expected = (sides[0] - sides[1]) / 2e-5
            assert gradient.flat[index] == pytest.approx(expected, abs=2e-3, rel=2e-3)


X = np.random.default_rng(2).normal(size=(1, 5, 8))
PAST = np.tril(np.ones((5, 5), bool))
SMALL = {"num_layers": 1, "width": 8, "num_heads": 2, "inner_width": 6, "bias": False}


@pytest.mark.parametrize(
    "options", [{}, {"positions": "alibi"}, {"positions": "none", "qk_norm": True}]
)
def test_self_attention_is_the_formula_and_so_are_its_gradients(options):
    config = BlocksConfig(**SMALL, **options)
    layer = SelfAttention(config)
    check_against(
        layer,
        lambda x: layer(x, tf.range(5)[None, :], PAST),
        lambda x, *weights: self_attention(config, x, PAST, *weights),
        X,
    )


def test_cross_attention_is_the_formula_and_so_are_its_gradients():
    layer = CrossAttention(BlocksConfig(**SMALL))
    source = np.random.default_rng(4).normal(size=(1, 4, 8))
    is_source = np.array([True, True, True, False])

    def formula(x, query, key_value, out):
        k, v = (heads_of(part) for part in np.split(source[0] @ key_value, 2, axis=-1))
        allowed = np.broadcast_to(is_source, (5, 4))
        return attended(heads_of(x @ query), k, v, allowed) @ out

    told = tf.constant(source, tf.float32)
    check_against(layer, lambda x: layer(x, told, is_source[None, None, None, :]), formula, X)


@pytest.mark.parametrize("activation", ["relu_squared", "swiglu"])
def test_the_inner_network_is_the_formula_and_so_are_its_gradients(activation):
    config = BlocksConfig(**SMALL, activation=activation)
    layer = Inner(config)
    check_against(layer, layer, lambda x, *weights: inner(config, x, *weights), X)
