"""Positions as their papers define them, and what networks that have them can and cannot tell."""

import numpy as np
import pytest
import tensorflow as tf

from model.attention import SelfAttention
from model.catalogue import build_model
from model.config import TransformerDecoderConfig, TransformerEncoderConfig
from model.config.transformers import POSITIONS, BlocksConfig
from model.positions import alibi, alibi_slopes, rotary, sinusoidal
from model.transformer import Place

SIZES = {"num_layers": 2, "width": 16, "num_heads": 2, "inner_width": 24, "dropout": 0.0}
TOKENS = np.array([[3, 7, 9, 4, 12, 5, 8, 2]], np.int32)


def with_random_weights(model):
    rng = np.random.default_rng(1)
    for variable in model.trainable_variables:
        variable.assign(variable.numpy() + rng.normal(scale=0.3, size=variable.shape))
    return model


def encoder(positions, **options):
    config = TransformerEncoderConfig(**SIZES, positions=positions, **options)
    return with_random_weights(build_model(config, 20, 3, seed=0))


# What each kind of position is --------------------------------------------------------------------


def test_rotary_scores_depend_on_the_distance_alone():
    """Every score of a whole text, moved by a thousand steps."""
    rng = np.random.default_rng(0)
    q, k = (tf.constant(rng.normal(size=(1, 2, 6, 8)), tf.float32) for _ in range(2))

    def scores(start):
        position = tf.range(start, start + 6)[None, :]
        return tf.matmul(rotary(q, position), rotary(k, position), transpose_b=True).numpy()

    np.testing.assert_allclose(scores(1000), scores(0), atol=2e-3)
    same = tf.tile(q[:, :, :1], [1, 1, 6, 1])  # with one vector everywhere only distance is left
    position = tf.range(6)[None, :]
    table = tf.matmul(rotary(same, position), rotary(same, position), transpose_b=True).numpy()
    for distance in range(6):
        diagonal = np.diagonal(table, distance, 2, 3)
        np.testing.assert_allclose(diagonal, diagonal[..., :1] + np.zeros(6 - distance), atol=1e-4)
    assert np.ptp(table[0, 0, 0]) > 0.1


def test_sinusoids_are_those_of_the_paper_and_a_shift_turns_every_pair():
    table = sinusoidal(tf.range(60)[None, :], 6).numpy()[0]
    for position in (0, 1, 17):
        for i in range(3):
            angle = position / 10_000 ** (2 * i / 6)
            expected = [np.sin(angle), np.cos(angle)]
            np.testing.assert_allclose(table[position, 2 * i : 2 * i + 2], expected, atol=1e-5)
    for shift in (1, 5, 40):  # one matrix for all positions: a rotation of each pair
        turn = np.zeros((6, 6))
        for i in range(3):
            angle = shift / 10_000 ** (2 * i / 6)
            c, s = np.cos(angle), np.sin(angle)
            turn[2 * i : 2 * i + 2, 2 * i : 2 * i + 2] = [[c, s], [-s, c]]
        np.testing.assert_allclose(table[:-shift] @ turn.T, table[shift:], atol=1e-4)


@pytest.mark.parametrize(
    ("num_heads", "slopes"),
    [
        (1, [2.0**-8]),
        (2, [2.0**-4, 2.0**-8]),
        (3, [2.0**-4, 2.0**-8, 2.0**-2]),
        (8, [2.0**-i for i in range(1, 9)]),
        (12, [2.0**-i for i in range(1, 9)] + [2.0 ** -(i + 0.5) for i in range(4)]),
        (16, [2.0 ** -(i / 2) for i in range(1, 17)]),
    ],
)
def test_slopes_are_those_of_the_paper(num_heads, slopes):
    np.testing.assert_allclose(alibi_slopes(num_heads), slopes)


def test_the_bias_is_minus_slope_times_distance_for_rows_at_their_own_positions():
    position = np.array([[2, 5], [0, 6]], np.int32)
    bias = alibi(tf.constant(position), 7, 2).numpy()
    assert bias.shape == (2, 2, 2, 7) and bias.dtype == np.float32
    for row in range(2):
        for head, slope in enumerate((2.0**-4, 2.0**-8)):
            for step, target in enumerate(position[row]):
                expected = [-slope * abs(target - source) for source in range(7)]
                np.testing.assert_allclose(bias[row, head, step], expected)


def test_learned_positions_are_added_and_the_last_one_stays():
    place = Place(BlocksConfig(**SIZES, positions="learned"), 4)
    x = np.random.default_rng(0).normal(size=(2, 6, 16)).astype("float32")
    place(x, tf.range(6)[None, :])
    added = place(x, tf.range(6)[None, :]).numpy() - x
    table = place.table.embeddings.numpy()
    np.testing.assert_allclose(added, [[*table, table[3], table[3]]] * 2, atol=1e-6)
    own = place(x, tf.constant([[3, 0, 1, 9, 2, 2], [0, 1, 2, 3, 4, 5]])).numpy() - x
    np.testing.assert_allclose(own[0], table[[3, 0, 1, 3, 2, 2]], atol=1e-6)


@pytest.mark.parametrize("positions", ["rotary", "alibi", "none"])
def test_what_attention_is_told_is_not_added(positions):
    place, x = Place(BlocksConfig(**SIZES, positions=positions), 4), np.ones((1, 3, 16), "float32")
    np.testing.assert_array_equal(place(x, tf.range(3)[None, :]), x)
    assert not place.variables


# What a network can tell --------------------------------------------------------------------------


@pytest.mark.parametrize("positions", POSITIONS)
def test_an_encoder_hears_the_order_unless_it_has_no_positions(positions):
    model = encoder(positions)
    logits = model(TOKENS).numpy()
    mixed, backwards = TOKENS[:, [3, 1, 0, 7, 2, 6, 5, 4]], TOKENS[:, ::-1].copy()
    if positions == "none":
        np.testing.assert_allclose(model(mixed), logits, atol=1e-5)
    else:
        assert np.abs(model(mixed) - logits).max() > 1e-3
    if positions in ("none", "alibi"):  # which tells how far, not to which side
        np.testing.assert_allclose(model(backwards), logits, atol=1e-5)
    else:
        assert np.abs(model(backwards) - logits).max() > 1e-3


def test_learned_positions_beyond_the_last_cannot_be_told_apart():
    model = encoder("learned", max_positions=4)
    logits = model(TOKENS).numpy()
    behind = model(TOKENS[:, [0, 1, 2, 7, 4, 6, 5, 3]]).numpy()  # 3 is the last position
    np.testing.assert_allclose(behind, logits, atol=1e-5)
    assert np.abs(model(TOKENS[:, [2, 1, 0, *range(3, 8)]]) - logits).max() > 1e-3


@pytest.mark.parametrize("positions", POSITIONS)
def test_longer_texts_than_the_context_are_finite_and_change_nothing_before(positions):
    config = TransformerDecoderConfig(**SIZES, positions=positions, context_length=4)
    model = with_random_weights(build_model(config, 20, seed=0))
    longer = np.tile(TOKENS, [1, 8])
    logits = model(longer).numpy()
    assert np.isfinite(logits).all()
    np.testing.assert_allclose(logits[:, :8], model(TOKENS), atol=1e-5)


@pytest.mark.parametrize("positions", ["rotary", "alibi"])
def test_a_repeated_text_is_read_the_same_wherever_it_begins(positions):
    """Without embeddings of places only distances count, at 3 as at 503."""
    config = BlocksConfig(**SIZES, positions=positions)
    layer = SelfAttention(config)
    x = tf.constant(np.random.default_rng(0).normal(size=(1, 5, 16)), tf.float32)
    past = np.tril(np.ones((5, 5), bool))
    first = layer(x, tf.range(5)[None, :], past).numpy()
    assert np.abs(layer(x[:, ::-1], tf.range(5)[None, :], past)[:, ::-1] - first).max() > 1e-3
    if positions == "rotary":
        moved = layer(x, tf.range(500, 505)[None, :], past)
    else:  # through a cache whose first slots are hidden
        may_attend = np.pad(past, [(0, 0), (500, 0)])
        empty = tf.zeros([1, 2, 505, 8])
        moved, _ = layer(x, tf.range(500, 505)[None, :], may_attend, (empty, empty))
    np.testing.assert_allclose(moved, first, atol=1e-3)


def losses_near_and_far(positions):
    """Nats a token within the 12 tokens trained on, and behind them to the 96th.

    The text: each token follows from the two before it, so that distance is all a place must tell.
    """

    def texts(seed, rows, length):
        x = np.zeros((rows, length + 1), np.int32)
        x[:, :2] = np.random.default_rng(seed).integers(1, 8, size=(rows, 2))
        for t in range(2, length + 1):
            x[:, t] = (x[:, t - 1] + 2 * x[:, t - 2]) % 7 + 1
        return x

    sizes = SIZES | {"width": 32, "inner_width": 64}
    config = TransformerDecoderConfig(**sizes, positions=positions, context_length=12)
    model = build_model(config, 8, seed=0)

    def nats(x):  # of what follows from something
        logits = model(x[:, :-1])
        return tf.nn.sparse_softmax_cross_entropy_with_logits(x[:, 1:], logits)[:, 1:]

    weights, optimizer = model.trainable_variables, tf.keras.optimizers.Adam(1e-2)
    optimizer.build(weights)

    @tf.function
    def update(x):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(nats(x))
        optimizer.apply_gradients(zip(tape.gradient(loss, weights), weights, strict=True))

    for seed in range(150):
        update(texts(seed, 32, 12))
    by_place = nats(texts(1_000, 64, 96)).numpy().mean(axis=0)
    return by_place[:11].mean(), by_place[11:].mean()


def test_what_alibi_learned_in_short_texts_holds_in_texts_eight_times_as_long():
    """Press et al., 2022; sinusoidal positions, which do not extrapolate, do not."""
    near, far = losses_near_and_far("alibi")
    assert near < 0.5 and far < near + 0.2  # ln 7 = 1.9 for a guess
    near, far = losses_near_and_far("sinusoidal")
    assert near < 0.6 and far > near + 1
