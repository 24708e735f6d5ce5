import keras
import numpy as np
import pytest
import tensorflow as tf

from model.catalogue import construct
from model.config.first_steps import (
    DenseClassifierConfig,
    LinearRegressionConfig,
    LSTMClassifierConfig,
    LSTMTaggerConfig,
)
from model.first_steps import DenseClassifier, LinearRegression, LSTMClassifier, LSTMTagger

TOKENS = np.array([[3, 7, 9, 4], [5, 0, 0, 0], [2, 8, 1, 0]], np.int32)
FEATURES = np.random.default_rng(0).normal(size=(3, 5)).astype("float32")
# A builder, an input, and what every example of it should be told.
NETWORKS = {
    "linear_regression": (
        lambda: LinearRegression(LinearRegressionConfig()),
        FEATURES[:, :1],
        None,
    ),
    "dense_classifier": (
        lambda: DenseClassifier(DenseClassifierConfig(units=8), 3),
        FEATURES,
        np.array([2, 0, 1]),
    ),
    "lstm_tagger": (
        lambda: LSTMTagger(LSTMTaggerConfig(embedding_size=8, units=8), 20, 4),
        TOKENS,
        np.array([[1, 2, 3, 0], [3, 0, 0, 0], [0, 0, 1, 0]]),
    ),
    "lstm_classifier": (
        lambda: LSTMClassifier(LSTMClassifierConfig(embedding_size=8, units=8), 20, 2),
        TOKENS,
        np.array([1, 0, 1]),
    ),
}


def build(name, **options):
    make, inputs, _ = NETWORKS[name]
    return construct(make, inputs, **{"seed": 0} | options)


@pytest.mark.parametrize("name", NETWORKS)
class TestEveryFirstStep:
    def test_the_seed_decides_the_weights(self, name):
        first, again, other = build(name), build(name), build(name, seed=1)
        pairs = zip(first.variables, again.variables, other.variables, strict=True)
        differs = False
        for a, b, c in pairs:
            np.testing.assert_array_equal(a, b)
            differs |= bool((a.numpy() != c.numpy()).any())
        assert differs and first.name == name

    def test_a_gradient_reaches_every_variable(self, name):
        model, (_, inputs, _) = build(name), NETWORKS[name]
        values = [variable.value for variable in model.trainable_variables]
        with tf.GradientTape() as tape:
            total = tf.reduce_sum(tf.sin(model(inputs, training=True) + 1.0))
        for variable, g in zip(
            model.trainable_variables, tape.gradient(total, values), strict=True
        ):
            assert np.any(tf.convert_to_tensor(g)), variable.path

    @pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
    def test_answers_are_float32_in_half_precision_too(self, name, precision):
        inputs = NETWORKS[name][1]
        answer, expected = build(name, precision=precision)(inputs), build(name)(inputs)
        assert answer.dtype == tf.float32
        np.testing.assert_allclose(answer, expected, atol=0.03)


@pytest.mark.parametrize("name", [name for name, row in NETWORKS.items() if row[2] is not None])
def test_it_learns_one_batch_by_heart(name):
    model, (_, inputs, labels) = build(name), NETWORKS[name]
    optimizer = keras.optimizers.Adam(0.05)
    optimizer.build(model.trainable_variables)
    values = [variable.value for variable in model.trainable_variables]
    counts = TOKENS != 0 if name == "lstm_tagger" else np.ones(3, bool)

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            logits = model(inputs, training=True)
            nats = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
            loss = tf.reduce_mean(nats[counts])
        gradients = tape.gradient(loss, values)
        optimizer.apply([tf.convert_to_tensor(g) for g in gradients], model.trainable_variables)
        return loss

    losses = [float(step()) for _ in range(60)]
    assert losses[0] > 0.5 and losses[-1] < 0.05, losses[::10]


def test_linear_regression_is_a_line_through_two_numbers():
    model = build("linear_regression")
    weight, bias = model.trainable_variables
    weight.assign([[3.0]])
    bias.assign([-1.0])
    np.testing.assert_allclose(model(np.array([[0.0], [2.0]], np.float32)), [[-1.0], [5.0]])


@pytest.mark.parametrize("name", ["lstm_tagger", "lstm_classifier"])
def test_padding_changes_no_token(name):
    model = build(name)
    longer = np.pad(TOKENS, [(0, 0), (0, 3)])
    expected, found = model(TOKENS).numpy(), model(longer).numpy()
    if name == "lstm_tagger":
        expected, found = expected[TOKENS != 0], found[longer != 0]
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_the_tagger_reads_from_left_to_right():
    model, changed = build("lstm_tagger"), TOKENS.copy()
    changed[0, 2] = 11
    difference = np.abs(model(changed).numpy() - model(TOKENS).numpy()).max(-1)
    assert (difference[0, :2] == 0).all() and (difference[0, 2:] > 1e-5).all()
    assert (difference[1:] == 0).all()
