import random

import keras
import numpy as np
import pytest
import tensorflow as tf

from model.catalogue import CLASSIFIERS, GENERATORS, build_model
from model.config import MODEL_CONFIGS, TransformerDecoderConfig
from model.config.checks import DROPOUT_KINDS
from model.dropout import Dropout, dropout_rates, let_rates_move

SHAPE = (40, 6, 25)  # (B, T, D)
# Which axes share one draw.
SHARED = {"elementwise": (), "locked": (1,), "token": (2,), "layer": (1, 2)}


def dropped(kind, rate=0.3, shape=SHAPE, seed=None):
    layer = Dropout(rate, kind)
    layer.seed_generator.state.assign([11, 0])
    return layer(tf.ones(shape), seed=seed, training=True).numpy()


def test_there_is_a_row_here_for_every_kind():
    assert set(SHARED) == set(DROPOUT_KINDS)


@pytest.mark.parametrize("kind", DROPOUT_KINDS)
class TestEveryKind:
    def test_a_draw_decides_what_the_kind_says_and_no_more(self, kind):
        y = dropped(kind)
        for axis in (1, 2):
            is_shared = (y == y.take([0], axis=axis)).all()
            assert is_shared == (axis in SHARED[kind])
        assert (y != y[:1]).any()  # rows are never dropped together

    def test_the_share_dropped_is_the_rate_and_the_mean_stays(self, kind):
        y = np.stack([dropped(kind, seed=[step, 5]) for step in range(40)])
        np.testing.assert_allclose(np.unique(y), [0, 1 / 0.7], rtol=1e-6)
        num_draws = y.size / np.prod([SHAPE[axis] for axis in SHARED[kind]])
        assert abs((y == 0).mean() - 0.3) < 5 * np.sqrt(0.3 * 0.7 / num_draws)

    def test_rate_zero_and_prediction_are_the_identity(self, kind):
        x = tf.constant(np.random.default_rng(0).normal(size=SHAPE), tf.float32)
        np.testing.assert_array_equal(Dropout(0.0, kind)(x, training=True), x)
        np.testing.assert_array_equal(Dropout(0.9, kind)(x, training=False), x)

    def test_a_rate_assigned_later_counts_in_the_graph_already_traced(self, kind):
        layer = Dropout(0.0, kind)
        let_rates_move(layer)
        run = tf.function(lambda x: layer(x, training=True))
        x = tf.ones(SHAPE)
        assert (run(x).numpy() == 1).all()
        layer.rate.assign(0.5)
        assert set(np.unique(run(x))) == {0.0, 2.0}
        layer.rate.assign(0.0)
        assert (run(x).numpy() == 1).all()

    def test_an_input_without_steps_is_dropped_feature_by_feature(self, kind):
        y = dropped(kind, shape=(30, 20))
        assert (y != y[:, :1]).any() and (y != y[:1]).any()

    def test_the_gradient_passes_where_the_input_did(self, kind):
        layer, x = Dropout(0.5, kind), tf.ones(SHAPE)
        seed = layer.next_seed()
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, seed=seed, training=True)
        np.testing.assert_array_equal(tape.gradient(y, x), y)


def test_elementwise_drops_what_keras_dropout_drops():
    """The same seed, the same units: a change of the library's draws would show here."""
    ours, theirs = Dropout(0.25), keras.layers.Dropout(0.25, seed=3)
    ours.seed_generator.state.assign(theirs.seed_generator.state)
    x = tf.constant(np.random.default_rng(0).normal(size=SHAPE), tf.float32)
    for _ in range(2):
        np.testing.assert_allclose(ours(x, training=True), theirs(x, training=True), rtol=1e-6)


def test_a_seed_given_makes_the_call_repeatable_and_moves_no_state():
    layer, x = Dropout(0.5), tf.ones(SHAPE)
    seed, state = layer.next_seed(), layer.seed_generator.state.numpy()
    first, again = (layer(x, seed=seed, training=True).numpy() for _ in range(2))
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(layer.seed_generator.state, state)
    assert (layer(x, seed=layer.next_seed(), training=True).numpy() != first).any()


def test_the_rate_and_the_random_state_are_variables_that_no_optimizer_sees():
    layer = Dropout(0.3)
    assert layer.trainable_variables == []
    rate, state = layer.variables
    assert rate is layer.rate and (rate.shape, rate.dtype) == ((), "float32")
    assert state is layer.seed_generator.state


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_half_precision_keeps_its_type_and_the_rate_its_own(policy):
    layer = Dropout(0.3, dtype=policy)
    y = layer(tf.ones(SHAPE), training=True)
    assert y.dtype == layer.compute_dtype
    assert layer.rate.dtype == "float32"
    # A rate rounded to bfloat16 would drop another share.
    assert abs(float(tf.reduce_mean(tf.cast(y == 0, tf.float32))) - 0.3) < 0.03


def test_a_layer_without_dropout_draws_nothing_until_its_rate_may_move():
    layer, x = Dropout(0.0), tf.ones(SHAPE)
    state = layer.seed_generator.state.numpy()
    graph = tf.function(lambda x: layer(x, training=True)).get_concrete_function(x).graph
    assert not [op for op in graph.get_operations() if "Random" in op.type]
    layer(x, seed=layer.next_seed(), training=True)
    np.testing.assert_array_equal(layer.seed_generator.state, state)
    let_rates_move(layer)
    assert layer.next_seed() is not None


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="kind must be one of elementwise, locked.*'columns'"):
        Dropout(0.1, "columns")


@pytest.mark.parametrize("name", CLASSIFIERS | GENERATORS)
def test_every_network_lists_its_rates_and_obeys_them(name):
    """Off, all runs in training are the run in prediction; on again, they differ."""
    labels = 3 if name in CLASSIFIERS else None
    model = build_model(MODEL_CONFIGS[name](), 30, labels, seed=0)
    rng = np.random.default_rng(1)
    for variable in model.trainable_variables:
        variable.assign(variable.numpy() + rng.normal(scale=0.3, size=variable.shape))
    tokens = np.array([[3, 7, 9, 4], [5, 2, 0, 0]], np.int32)
    rates = dropout_rates(model)
    assert rates and all(0 < float(rate) < 1 for rate in rates)
    assert len(rates) == sum("dropout_rate" in variable.path for variable in model.variables)
    assert (model(tokens, training=True).numpy() != model(tokens).numpy()).any()
    for rate in rates:
        rate.assign(0.0)
    np.testing.assert_array_equal(model(tokens, training=True), model(tokens))


def test_layers_that_start_without_dropout_take_no_seed_and_share_none():
    config = TransformerDecoderConfig(num_layers=3, width=8, num_heads=2, dropout=0.0)
    model = build_model(config, 20, seed=0)
    seeds = [int(v.numpy()[0]) for v in model.variables if "seed_generator" in v.path]
    assert len(set(seeds)) == len(seeds) == 4
    state = random.getstate()
    Dropout(0.0)
    assert random.getstate() == state
    Dropout(0.1)
    assert random.getstate() != state


@pytest.mark.parametrize("recompute", [False, True])
def test_gradients_of_examples_can_be_vectorised_through_dropout(recompute):
    """As private training takes them: at rate 0 those of one example after the other."""
    config = TransformerDecoderConfig(
        num_layers=1, width=8, num_heads=2, inner_width=8, dropout=0.0, recompute=recompute
    )
    model = build_model(config, 20, seed=0)
    let_rates_move(model)
    tokens = np.array([[3, 7, 9], [5, 2, 11]], np.int32)
    values = [variable.value for variable in model.trainable_variables]

    def gradient(row):
        with tf.GradientTape() as tape:
            total = tf.reduce_sum(tf.sin(30 * model(row[None], training=True)))
        return [tf.convert_to_tensor(g) for g in tape.gradient(total, values)]

    together = tf.vectorized_map(gradient, tf.constant(tokens))
    for i, row in enumerate(tokens):
        for g, expected in zip(together, gradient(tf.constant(row)), strict=True):
            np.testing.assert_allclose(g[i], expected, atol=1e-4)
    for rate in dropout_rates(model):
        rate.assign(0.5)
    dropped = tf.vectorized_map(gradient, tf.constant(tokens))
    assert np.abs(dropped[0] - together[0]).max() > 1e-3
