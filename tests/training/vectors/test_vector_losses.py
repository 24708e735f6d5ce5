"""The losses of word vectors against plain transcriptions of the papers' equations."""

import numpy as np
import pytest
import tensorflow as tf

from model.catalogue import build_model
from model.config import CBOWConfig, GloVeConfig, SkipGramConfig
from training.config import OptimizerConfig
from training.stacking import stack
from training.strategies.build import build_rule
from training.strategies.compiled import compile_updates
from training.vectors.objectives import CoOccurrences, Windows

V, D = 9, 3
WORD = np.array([[3], [5], [2], [0]], np.int32)
WINDOW = np.array([[2, 0, 7, 7], [0, 0, 4, 0], [0, 0, 0, 0], [0, 0, 0, 0]], np.int32)
NEGATIVES = np.array([[8, 4, 0], [6, 6, 3], [5, 4, 3], [0, 0, 0]], np.int32)
SKIP_GRAM = {"inputs": WORD, "outputs": WINDOW, "negatives": NEGATIVES}
CBOW = {
    "inputs": WINDOW,
    "outputs": np.array([[3], [5], [0], [0]], np.int32),
    "negatives": NEGATIVES,
}
CELLS = {
    "inputs": np.array([[3], [3], [8], [0]], np.int32),
    "outputs": np.array([[2], [3], [2], [0]], np.int32),
    "count": np.array([0.5, 12.0, 3.0, 0.0], np.float32),
}


def model_of(config):
    """With random numbers everywhere: zeros would hide faults."""
    model = build_model(config, V, seed=0)
    rng = np.random.default_rng(2)
    for variable in model.trainable_variables:
        variable.assign(rng.normal(size=variable.shape))
    return model


def log_sigmoid(x):
    return -np.log(1 + np.exp(-x))


def negative_sampling(weights, inputs, outputs, negatives):
    """Mikolov et al., 2013b, eq. 4, pair by pair."""
    v, u = weights
    loss = pairs = correct = 0
    for row in range(len(inputs)):
        words = [i for i in inputs[row] if i]
        noise = [k for k in negatives[row] if k]
        for o in (o for o in outputs[row] if o):
            h = sum(v[i] for i in words) / len(words)
            loss -= log_sigmoid(u[o] @ h) + sum(log_sigmoid(-u[k] @ h) for k in noise)
            pairs += 1
            correct += all(u[o] @ h > u[k] @ h for k in noise)
    return loss, pairs, correct


def glove(weights, inputs, outputs, count):
    """Pennington et al., 2014, eq. 8 and 9, with x_max = 10 and alpha = 3/4."""
    w, w_tilde, b, b_tilde = weights
    loss = cells = 0
    for (i,), (j,), x in zip(inputs, outputs, count, strict=True):
        if x:
            f = (x / 10) ** 0.75 if x < 10 else 1.0
            loss += f * (w[i] @ w_tilde[j] + b[i, 0] + b_tilde[j, 0] - np.log(x)) ** 2
            cells += 1
    return loss, cells, 0


CASES = {
    "skip_gram": (SkipGramConfig(embedding_size=D), Windows, SKIP_GRAM, negative_sampling),
    "cbow": (CBOWConfig(embedding_size=D), Windows, CBOW, negative_sampling),
    "glove": (GloVeConfig(embedding_size=D, full_count=10.0), CoOccurrences, CELLS, glove),
}


@pytest.mark.parametrize("name", CASES)
def test_loss_and_gradient_are_those_of_the_equation(name):
    config, objective, batch, equation = CASES[name]
    model = model_of(config)
    weights = [v.numpy().astype(np.float64) for v in model.trainable_variables]
    with tf.GradientTape() as tape:
        sums = objective.loss_of(model)({key: tf.constant(x) for key, x in batch.items()})
    gradients = tape.gradient(sums["loss_sum"], [v.value for v in model.trainable_variables])
    # Rows that no word of the batch has are not even touched.
    assert all(isinstance(g, tf.IndexedSlices) for g in gradients)

    loss, targets, correct = equation(weights, *batch.values())
    assert float(sums["loss_sum"]) == pytest.approx(loss, rel=1e-5)
    assert (float(sums["num_targets"]), float(sums["num_correct"])) == (targets, correct)
    assert name == "glove" or 0 < correct < targets
    h = 1e-6
    for weight, gradient in zip(weights, gradients, strict=True):
        slope = np.zeros_like(weight)
        for place in np.ndindex(weight.shape):
            kept = weight[place]
            weight[place] = kept + h
            above = equation(weights, *batch.values())[0]
            weight[place] = kept - h
            below = equation(weights, *batch.values())[0]
            weight[place], slope[place] = kept, (above - below) / (2 * h)
        found = tf.convert_to_tensor(gradient).numpy()
        np.testing.assert_allclose(found, slope, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_rows_of_padding_count_nowhere(name):
    """As XLA and several updates a call add them."""
    config, objective, batch, _ = CASES[name]
    loss = objective.loss_of(model_of(config))
    columns = {key: 2 if key == "count" else 3 for key in batch}
    longer = {
        key: np.pad(x, [(0, 2)] + [(0, columns[key])] * (x.ndim - 1)) for key, x in batch.items()
    }
    expected, found = loss(batch), loss(longer)
    for key, value in expected.items():
        assert float(found[key]) == pytest.approx(float(value), rel=1e-6), key


def test_glove_recovers_the_logarithm_of_counts_that_its_form_can_express():
    config = GloVeConfig(embedding_size=3, full_count=20.0)
    rng = np.random.default_rng(0)
    w, w_tilde = rng.normal(size=(2, 6, 2))
    log_count = w @ w_tilde.T + rng.normal(size=(6, 1)) + rng.normal(size=(1, 6)) + 3
    i, j = np.indices(log_count.shape).reshape(2, -1, 1).astype(np.int32) + 2
    count = np.exp(log_count).reshape(-1).astype(np.float32)
    model = build_model(config, V, seed=0)
    rule = build_rule(
        "adam",
        CoOccurrences.loss_of(model),
        model.trainable_variables,
        OptimizerConfig(peak_learning_rate=0.1, clip_norm=None),
        num_updates=400,
    )
    batch = {"inputs": i, "outputs": j, "count": count}
    updates = compile_updates(rule)
    for _ in range(20):
        updates(stack([batch] * 20))
    found = model.scores(batch).numpy().reshape(log_count.shape)
    np.testing.assert_allclose(found, log_count, atol=0.02)
    first, second = (
        layer.embeddings.numpy() for layer in (model.embedding, model.output_embedding)
    )
    np.testing.assert_array_equal(model.word_vectors(), first + second)


def test_word2vec_starts_as_the_program_does():
    model = build_model(SkipGramConfig(embedding_size=50), 400, seed=0)
    vectors = model.word_vectors().numpy()
    assert abs(vectors).max() <= 0.5 / 50 and vectors.std() == pytest.approx(
        0.01 / 3**0.5, rel=0.03
    )
    assert not model.output_embedding.embeddings.numpy().any()
