import keras
import numpy as np
import pytest
import tensorflow as tf

from training.config import OptimizerConfig
from training.losses import TaskLoss, classification_loss, language_model_loss
from training.stacking import stack
from training.strategies.build import build_rule
from training.strategies.compiled import compile_updates
from training.strategies.gradients import distinct_rows

LR, VOCABULARY, LABELS = 0.5, 6, 3


class SumOfRows:
    """Adds up one row of a table for each token; the gradient of the table is sparse or dense."""

    def __init__(self, is_sparse=True):
        rng = np.random.default_rng(0)
        start = rng.normal(size=(VOCABULARY, LABELS)).astype("float32")
        self.table = keras.Variable(start, name="embedding")
        self.bias = keras.Variable(np.zeros(LABELS, np.float32), name="bias")
        self.trainable_variables = [self.table, self.bias]
        self.is_sparse = is_sparse

    def __call__(self, tokens, training):
        assert training
        if self.is_sparse:
            rows = tf.gather(self.table.value, tokens)
        else:
            rows = tf.one_hot(tokens, VOCABULARY) @ self.table.value
        return tf.reduce_sum(rows, axis=1) + self.bias.value


BATCH = {
    "tokens": np.array([[1, 1, 1, 2], [3, 1, 5, 5]], np.int32),
    "label": np.array([0, 2], np.int32),
}


def gradient_by_hand(model, batch):
    """Of the mean loss: counts^T (p - one_hot) / B for the table, its sum for the bias."""
    counts = np.stack([np.bincount(row, minlength=VOCABULARY) for row in batch["tokens"]])
    logits = counts @ model.table.numpy() + model.bias.numpy()
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    difference = (p - np.eye(LABELS)[batch["label"]]) / len(counts)
    return counts.T @ difference, difference.sum(axis=0)


def update(model, clip_norm, batch=BATCH, loss=classification_loss):
    """One SGD update; returns what the rule said."""
    config = OptimizerConfig(peak_learning_rate=LR, schedule="constant", clip_norm=clip_norm)
    task = TaskLoss(lambda b: model(b["tokens"], training=True), loss)
    rule = build_rule("sgd", task, model.trainable_variables, config, num_updates=10)
    return {name: float(v[0]) for name, v in compile_updates(rule)(stack([batch])).items()}


def whole_norm(gradients):
    return np.sqrt(sum(np.sum(g**2) for g in gradients))


@pytest.mark.parametrize("is_sparse", [True, False])
def test_an_update_is_the_rate_times_the_gradient_of_the_mean(is_sparse):
    model = SumOfRows(is_sparse)
    start = [v.numpy() for v in model.trainable_variables]
    gradients = gradient_by_hand(model, BATCH)
    sums = update(model, clip_norm=None)
    for v, before, g in zip(model.trainable_variables, start, gradients, strict=True):
        np.testing.assert_allclose(v.numpy(), before - LR * g, rtol=1e-5, atol=1e-6)
    assert float(sums["grad_norm"]) == pytest.approx(whole_norm(gradients), rel=1e-5)
    assert float(sums["num_targets"]) == 2


@pytest.mark.parametrize("is_sparse", [True, False])
def test_clipping_scales_the_whole_gradient_to_the_norm_that_is_asked_for(is_sparse):
    """Rows that repeat in a sparse gradient are added up first, or its norm would be another."""
    model = SumOfRows(is_sparse)
    start = [v.numpy() for v in model.trainable_variables]
    gradients = gradient_by_hand(model, BATCH)
    norm = whole_norm(gradients)
    sums = update(model, clip_norm=norm / 4)
    for v, before, g in zip(model.trainable_variables, start, gradients, strict=True):
        np.testing.assert_allclose(v.numpy(), before - LR * g / 4, rtol=1e-5, atol=1e-6)
    assert float(sums["grad_norm"]) == pytest.approx(norm, rel=1e-5)  # before it was clipped


def test_clipping_above_the_norm_changes_nothing():
    ends = []
    for clip_norm in (None, 1e6):
        model = SumOfRows()
        update(model, clip_norm)
        ends.append([v.numpy() for v in model.trainable_variables])
    for unclipped, clipped in zip(*ends, strict=True):
        np.testing.assert_array_equal(unclipped, clipped)


def test_padding_does_not_make_the_gradient_smaller():
    """The mean is over targets counted, not over positions."""
    ends = []
    for extra in (0, 5):
        model = SumOfRows()
        targets = np.array([[1, 2, *[0] * extra]], np.int32)

        def at_every_position(batch, logits, length=2 + extra):
            return language_model_loss(batch, tf.repeat(logits[:, None], length, axis=1))

        batch = {"tokens": BATCH["tokens"][:1], "targets": targets}
        sums = update(model, None, batch, at_every_position)
        assert float(sums["num_targets"]) == 2
        ends.append(model.table.numpy())
    np.testing.assert_allclose(*ends, rtol=1e-6)


def test_a_batch_of_padding_alone_moves_nothing():
    model = SumOfRows()
    before = model.table.numpy()

    def nothing_counts(batch, logits):
        return language_model_loss({"targets": np.zeros((2, 1), np.int32)}, logits[:, None])

    sums = update(model, 1.0, BATCH, nothing_counts)
    np.testing.assert_array_equal(model.table.numpy(), before)
    assert float(sums["grad_norm"]) == 0.0


def test_repeated_rows_are_added_and_dense_gradients_left_alone():
    slices = tf.IndexedSlices(
        tf.constant([[1.0, 2.0], [10.0, 0.0], [3.0, 4.0], [5.0, 5.0]]),
        tf.constant([4, 0, 4, 2]),
        tf.constant([6, 2]),
    )
    added = distinct_rows(slices)
    assert sorted(added.indices.numpy()) == [0, 2, 4]
    np.testing.assert_array_equal(
        tf.convert_to_tensor(added), [[10, 0], [0, 0], [5, 5], [0, 0], [4, 6], [0, 0]]
    )
    dense = tf.ones([2, 2])
    assert distinct_rows(dense) is dense
