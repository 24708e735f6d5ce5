"""Ordered labels: the likelihood, its gradient, and what stands around a network for them."""

import numpy as np
import pytest
import tensorflow as tf

from model.catalogue import build_model
from model.config import BagOfNgramsConfig, TransformerEncoderConfig, ULMFiTLSTMConfig
from model.heads import cut_bias_of, grade_log_probabilities
from training.optimizers.base import NOT_DECAYED


def sigmoid(x):
    return 1 / (1 + np.exp(-np.asarray(x, np.float64)))


def thresholds_of(cut_bias):
    cut_bias = np.asarray(cut_bias, np.float64)
    return cut_bias[0] + np.concatenate([[0.0], np.cumsum(np.log1p(np.exp(cut_bias[1:])))])


def plain_probabilities(score, cut_bias):
    """McCullagh's model as it is written: differences of P(y <= k)."""
    below = sigmoid(thresholds_of(cut_bias)[None, :] - np.asarray(score, np.float64))
    edges = np.concatenate([np.zeros((len(below), 1)), below, np.ones((len(below), 1))], axis=1)
    return np.diff(edges, axis=1)


@pytest.fixture
def case():
    rng = np.random.default_rng(3)
    score, cut_bias = rng.normal(size=(7, 1)) * 2, rng.normal(size=4)
    return score.astype(np.float32), cut_bias.astype(np.float32)


def test_probabilities_are_those_of_proportional_odds(case):
    found = np.exp(grade_log_probabilities(*map(tf.constant, case)))
    np.testing.assert_allclose(found, plain_probabilities(*case), atol=1e-6)
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-6)


def test_gradient_is_that_of_the_likelihood_through_the_thresholds(case):
    """Against central differences in NumPy, in the score and in what makes the thresholds."""
    score, cut_bias = case
    labels = np.array([0, 1, 2, 3, 4, 2, 0])

    def loss(score, cut_bias):
        chosen = plain_probabilities(score, cut_bias)[np.arange(7), labels]
        return -np.log(chosen).sum()

    s, c = tf.Variable(score), tf.Variable(cut_bias)
    with tf.GradientTape() as tape:
        log_p = grade_log_probabilities(s, c.read_value())
        total = tf.reduce_sum(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, log_p))
    found = [g.numpy() for g in tape.gradient(total, [s, c])]
    arguments = [score.astype(np.float64), cut_bias.astype(np.float64)]
    for number, gradient in enumerate(found):
        for place in np.ndindex(gradient.shape):
            sides = []
            for step in (1e-5, -1e-5):
                moved = [a.copy() for a in arguments]
                moved[number][place] += step
                sides.append(loss(*moved))
            assert gradient[place] == pytest.approx((sides[0] - sides[1]) / 2e-5, abs=1e-4)


@pytest.mark.parametrize("score", [-200.0, 200.0])
def test_far_from_the_thresholds_loss_and_gradient_stay_finite(score):
    """A difference of two sigmoids would be 0 there, its logarithm -inf, its gradient NaN."""
    s = tf.Variable([[score]])
    cuts = tf.constant([-1.0, -100.0, 2.0])  # the second and the third threshold all but meet
    with tf.GradientTape() as tape:
        log_p = grade_log_probabilities(s, cuts)
        total = tf.reduce_sum(log_p)
    assert np.isfinite(log_p).all()
    gradient = tape.gradient(total, s).numpy()
    assert np.isfinite(gradient).all() and np.sign(gradient) == -np.sign(score)
    assert abs(gradient) > 1


def test_cut_bias_gives_the_frequencies_asked_for():
    wanted = np.array([0.1, 0.15, 0.7, 0.95])
    found = np.exp(
        grade_log_probabilities(tf.zeros([1, 1]), tf.constant(cut_bias_of(wanted), tf.float32))
    )
    np.testing.assert_allclose(np.cumsum(found[0])[:-1], wanted, atol=1e-6)


ROWS = [np.array(row, np.int32) for row in ([1, 2], [1, 3], [2, 4], [4, 5], [5, 3], [6])]
LABELS = np.array([0, 0, 1, 1, 2, 2])
BAG = BagOfNgramsConfig(naive_bayes_scale=1.0)


def graded(num_labels, config=BAG):
    return build_model(config, 8, num_labels, seed=0, is_graded=True)


def probabilities(model, rows):
    tokens = np.zeros((len(rows), 2), np.int32)
    for line, row in zip(tokens, rows, strict=True):
        line[: len(row)] = row
    return tf.nn.softmax(model(tokens)).numpy()


def test_two_grades_start_as_the_two_labels_of_naive_bayes():
    labels = LABELS.clip(max=1)
    model, plain = graded(2), build_model(BAG, 8, 2, seed=0)
    model.adapt(ROWS, labels)
    plain.adapt(ROWS, labels)
    np.testing.assert_allclose(probabilities(model, ROWS), probabilities(plain, ROWS), atol=1e-5)


def test_the_start_orders_the_texts_and_knows_the_frequencies():
    model = graded(3)
    np.testing.assert_allclose(probabilities(model, [[0]])[0], np.full(3, 1 / 3), atol=1e-6)
    model.adapt(ROWS, LABELS)
    expected = probabilities(model, ROWS) @ np.arange(3)
    by_label = [expected[LABELS == k].mean() for k in range(3)]
    assert by_label[0] < by_label[1] < by_label[2]
    model.adapt(ROWS, np.array([0, 0, 0, 0, 1, 2]))
    np.testing.assert_allclose(probabilities(model, [[0]])[0], np.array([5, 2, 2]) / 9, atol=1e-6)


def test_thresholds_learn_and_never_decay():
    (cuts,) = [v for v in graded(3).trainable_variables if "head" in v.path]
    assert cuts.shape == (2,) and any(word in cuts.path for word in NOT_DECAYED)


@pytest.mark.parametrize(
    "config",
    [
        ULMFiTLSTMConfig(embedding_size=4, units=3),
        TransformerEncoderConfig(
            num_layers=1, width=8, num_heads=2, inner_width=8, token_head=True, dropout=0.0
        ),
    ],
    ids=lambda config: config.name,
)
def test_a_network_that_can_pretrain_still_can(config):
    model, tokens = graded(5, config), np.array([[2, 3, 4]], np.int32)
    assert model(tokens).shape == (1, 5)
    assert model.token_logits(tokens).shape == (1, 3, 8)
    assert model.token_bias.shape == (8,)
    inside = build_model(config, 8, 1, seed=0)
    assert len(model.variables) == len(inside.variables) + 1  # the thresholds, and nothing twice
    np.testing.assert_array_equal(inside.token_logits(tokens), model.token_logits(tokens))
    assert not hasattr(graded(5), "token_logits")


def test_labels_by_themselves_start_as_naive_bayes_of_each():
    """With a label and its opposite the two are mirror images, and the first is the usual start."""
    has = LABELS > 0
    each = build_model(BAG, 8, 2, seed=0)
    each.adapt(ROWS, np.stack([has, ~has], axis=1))
    plain = build_model(BAG, 8, 2, seed=0)
    plain.adapt(ROWS, has.astype(int))
    weights = plain.weight.embeddings.numpy()
    found = each.weight.embeddings.numpy()
    np.testing.assert_allclose(found[:, 0], weights[:, 1] - weights[:, 0], atol=1e-6)
    np.testing.assert_allclose(found[:, 0], -found[:, 1], atol=1e-6)
    np.testing.assert_allclose(each.bias.numpy(), [np.log(5 / 3), np.log(3 / 5)], atol=1e-6)
