"""Every network of the table through the same tests, under the names of model/catalogue.py."""

import random

import keras
import numpy as np
import pytest
import tensorflow as tf

from model.catalogue import CLASSIFIERS, GENERATORS, PRESETS, WORD_VECTOR_MODELS, build_model
from model.config import (
    MODEL_CONFIGS,
    BagOfNgramsConfig,
    DPCNNConfig,
    GatedConvolutionConfig,
    HierarchicalConfig,
    RecurrentConfig,
    RecurrentLanguageModelConfig,
    TextCNNConfig,
    TransformerDecoderConfig,
    TransformerEncoderConfig,
    ULMFiTLSTMConfig,
)
from model.config.word_vectors import WORD_VECTORS
from model.signatures import CLASSIFIER, GENERATOR

VOCABULARY, LABELS = 30, 3
SMALL = {
    "bag_of_ngrams": BagOfNgramsConfig(ngram_dropout=0.3, scale=4.0),
    "text_cnn": TextCNNConfig(embedding_size=8, filters=6),
    "gated_convolution": GatedConvolutionConfig(width=8),
    "dpcnn": DPCNNConfig(embedding_size=8, width=8, num_blocks=3),
    "recurrent": RecurrentConfig(embedding_size=8, units=6),
    "hierarchical": HierarchicalConfig(embedding_size=8, units=4, sentence_tokens=2),
    "ulmfit_lstm": ULMFiTLSTMConfig(embedding_size=8, units=6),
    "transformer_encoder": TransformerEncoderConfig(width=16, num_heads=2, inner_width=24),
    "transformer_decoder": TransformerDecoderConfig(
        num_layers=2, width=16, num_heads=2, inner_width=24, context_length=16
    ),
    "recurrent_language_model": RecurrentLanguageModelConfig(
        embedding_size=8, units=6, context_length=16
    ),
}
# Distinct ids in a row, as n-grams are; rows of four lengths.
ROWS = [[3, 7, 9, 4, 12, 2], [5], [11, 2, 8], [29, 1, 6, 7]]


def build(name, seed=0, **options):
    """A small network; one that has no small configuration here is tested as it comes."""
    config = SMALL.get(name) or MODEL_CONFIGS[name]()
    labels = None if name in GENERATORS else LABELS
    return build_model(config, VOCABULARY, labels, seed=seed, **options)


def with_random_weights(model):
    """No weight is left at its start, where a zero or a one hides faults."""
    rng = np.random.default_rng(1)
    for variable in model.trainable_variables:
        variable.assign(variable.numpy() + rng.normal(scale=0.3, size=variable.shape))
    return model


def padded(rows, extra=0):
    length = max(map(len, rows)) + extra
    return np.array([row + [0] * (length - len(row)) for row in rows], np.int32)


def gradients(model, tokens, loss):
    values = [variable.value for variable in model.trainable_variables]
    with tf.GradientTape() as tape:
        total = loss(model(tokens, training=False))
    return [
        None if g is None else tf.convert_to_tensor(g).numpy() for g in tape.gradient(total, values)
    ]


@pytest.fixture(scope="module")
def networks():
    """Built once, for the tests that only read them."""
    return {name: with_random_weights(build(name)) for name in CLASSIFIERS | GENERATORS}


def test_every_name_has_a_configuration_and_a_kind():
    tables = (CLASSIFIERS, GENERATORS, PRESETS, WORD_VECTOR_MODELS)
    assert set(MODEL_CONFIGS) == {name for table in tables for name in table}
    assert {MODEL_CONFIGS[name].kind for name in CLASSIFIERS} == {CLASSIFIER}
    assert {MODEL_CONFIGS[name].kind for name in GENERATORS} == {GENERATOR}
    assert {MODEL_CONFIGS[name].kind for name in WORD_VECTOR_MODELS} == {WORD_VECTORS}


@pytest.mark.parametrize("name", CLASSIFIERS | GENERATORS)
class TestEveryNetwork:
    def test_the_seed_alone_decides_weights_and_dropout(self, name):
        random.seed(5)
        first = build(name, seed=1)
        random.seed(6)
        keras.layers.Dense(1).build((1, 1))  # an earlier layer of the process changes nothing
        again, other = build(name, seed=1), build(name, seed=2)
        for a, b in zip(first.variables, again.variables, strict=True):
            np.testing.assert_array_equal(a, b, err_msg=a.path)
        pairs = list(zip(first.variables, other.variables, strict=True))
        assert any((a.numpy() != b.numpy()).any() for a, b in pairs)
        tokens = padded(ROWS)
        for model in (first, again):
            with_random_weights(model)
        draws = [model(tokens, training=True).numpy() for model in (first, first, again, again)]
        np.testing.assert_array_equal(draws[0], draws[2])
        np.testing.assert_array_equal(draws[1], draws[3])
        assert (draws[0] != draws[1]).any()  # dropout goes on drawing

    def test_building_leaves_the_process_random_state_alone(self, name):
        random.seed(3)
        state = random.getstate()
        build(name)
        assert random.getstate() == state

    def test_logits_are_float32_and_prediction_draws_nothing(self, name, networks):
        first, second = (networks[name](padded(ROWS), training=False) for _ in range(2))
        assert first.dtype == tf.float32
        np.testing.assert_array_equal(first, second)

    def test_a_gradient_reaches_every_variable(self, name, networks):
        found = gradients(networks[name], padded(ROWS), lambda y: tf.reduce_sum(tf.sin(y * 3)))
        for variable, gradient in zip(networks[name].trainable_variables, found, strict=True):
            if variable.name == "token_bias":  # of token_logits alone
                continue
            assert gradient is not None, variable.path
            assert np.isfinite(gradient).all() and np.any(gradient), variable.path

    def test_it_is_built_with_all_of_its_variables(self, name):
        model = build(name)
        before = len(model.variables)
        model(padded(ROWS), training=True)
        assert len(model.variables) == before > 0


HALF = {"mixed_bfloat16": 0.06, "mixed_float16": 0.01}  # of the largest logit


@pytest.mark.parametrize("precision", HALF)
@pytest.mark.parametrize("name", CLASSIFIERS | GENERATORS)
class TestEveryNetworkInHalfPrecision:
    def test_it_is_close_to_float32(self, name, precision, networks):
        half, tokens = with_random_weights(build(name, precision=precision)), padded(ROWS)
        for ours, theirs in zip(half.variables, networks[name].variables, strict=True):
            assert ours.dtype == theirs.dtype
        logits, expected = half(tokens), networks[name](tokens).numpy()
        assert logits.dtype == tf.float32
        is_token = (tokens != 0) if name in GENERATORS else slice(None)
        difference = np.abs(logits.numpy() - expected)[is_token].max()
        assert difference < HALF[precision] * np.abs(expected[is_token]).max()
        assert difference > 0 or name == "bag_of_ngrams"  # which has nothing to gain from it

    def test_training_and_gradients_are_finite_and_float32(self, name, precision):
        model, tokens = with_random_weights(build(name, precision=precision)), padded(ROWS)
        values = [v.value for v in model.trainable_variables if v.name != "token_bias"]
        with tf.GradientTape() as tape:
            logits = model(tokens, training=True)
            total = tf.reduce_sum(tf.sin(logits))
        assert logits.dtype == tf.float32
        for value, gradient in zip(values, tape.gradient(total, values), strict=True):
            gradient = tf.convert_to_tensor(gradient)
            assert gradient.dtype == tf.float32 and np.isfinite(gradient).all(), value.name

    def test_an_empty_text_stays_finite(self, name, precision):
        model = build(name, precision=precision)
        assert np.isfinite(model(padded([ROWS[0], []]))).all()

    def test_the_process_keeps_its_policy(self, name, precision):
        build(name, precision=precision)
        assert keras.config.dtype_policy().name == "float32"


def test_an_unknown_precision_is_refused():
    with pytest.raises(ValueError, match="precision must be one of float32, .*'bfloat16'"):
        build("bag_of_ngrams", precision="bfloat16")


@pytest.mark.parametrize("name", CLASSIFIERS)
class TestEveryClassifier:
    def test_padding_changes_nothing(self, name, networks):
        model = networks[name]
        batch = model(padded(ROWS)).numpy()
        np.testing.assert_allclose(model(padded(ROWS, extra=5)), batch, atol=1e-5)
        alone = [model(padded([row])).numpy()[0] for row in ROWS]
        np.testing.assert_allclose(alone, batch, atol=1e-5)

    def test_a_row_depends_on_itself_alone(self, name, networks):
        model, others = networks[name], [[1, 2, 3, 4, 5, 6, 7, 8], ROWS[2], [20]]
        np.testing.assert_allclose(
            model(padded(others)).numpy()[1], model(padded(ROWS)).numpy()[2], atol=1e-5
        )
        different = model(padded(ROWS)).numpy()
        assert np.abs(different[0] - different[1]).max() > 1e-3  # and it does depend on itself

    def test_an_empty_text_has_one_finite_answer(self, name, networks):
        model = networks[name]
        shapes = [np.zeros((1, T), np.int32) for T in (0, 1, 4)]
        answers = [model(tokens).numpy()[0] for tokens in shapes]
        answers.append(model(padded([ROWS[0], [], ROWS[1]])).numpy()[1])
        assert np.isfinite(answers).all()
        np.testing.assert_allclose(answers, np.broadcast_to(answers[0], (4, LABELS)), atol=1e-6)

    def test_it_learns_eight_texts_by_heart(self, name):
        model, rng = build(name), np.random.default_rng(0)
        tokens = np.array([rng.permutation(np.arange(1, VOCABULARY))[:6] for _ in range(8)])
        labels, optimizer = np.arange(8) % LABELS, keras.optimizers.Adam(0.05)
        values = [variable.value for variable in model.trainable_variables]

        @tf.function
        def step():
            with tf.GradientTape() as tape:
                logits = model(tokens, training=False)
                loss = tf.reduce_mean(
                    tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
                )
            optimizer.apply(tape.gradient(loss, values), model.trainable_variables)
            return loss

        optimizer.build(model.trainable_variables)
        losses = [float(step()) for _ in range(30)]
        assert losses[0] > 0.8 and losses[-1] < 0.1, losses


@pytest.mark.parametrize("name", GENERATORS)
class TestEveryGenerator:
    @pytest.mark.parametrize("position", [1, 4, 7])
    def test_the_future_changes_nothing_and_the_present_does(self, name, networks, position):
        tokens = np.array([[2, 5, 9, 3, 7, 7, 1, 8]], np.int32)
        changed = tokens.copy()
        changed[:, position:] = [11] * (8 - position)
        before, after = (networks[name](x).numpy() for x in (tokens, changed))
        np.testing.assert_allclose(before[:, :position], after[:, :position], atol=1e-6)
        for later in range(position, 8):
            assert np.abs(before[:, later] - after[:, later]).max() > 1e-3

    def test_the_past_changes_every_later_step(self, name, networks):
        tokens = np.array([[2, 5, 9, 3, 7, 7, 1, 8]], np.int32)
        changed = tokens.copy()
        changed[:, 1] = 6
        before, after = (networks[name](x).numpy() for x in (tokens, changed))
        assert (np.abs(before - after).max(axis=-1)[0, 1:] > 1e-4).all()

    def test_prefill_and_decode_equal_the_whole(self, name, networks):
        """Rows of different lengths, and one cache slot more than is ever used."""
        model, num_new = networks[name], 4
        rows = [row[:6] + [13, 14, 15, 16] for row in ROWS]
        lengths = np.array([len(row) - num_new for row in rows], np.int32)
        prompts = padded([row[:-num_new] for row in rows])
        whole = model(padded(rows)).numpy()
        logits, cache = model.prefill(prompts, lengths, prompts.shape[1] + num_new + 1)
        B = np.arange(len(rows))
        np.testing.assert_allclose(logits, whole[B, lengths - 1], atol=1e-4)
        for step in range(num_new):
            token = np.array([rows[b][lengths[b] + step] for b in B], np.int32)
            logits, cache = model.decode(token, tf.constant(lengths + step), cache)
            np.testing.assert_allclose(logits, whole[B, lengths + step], atol=1e-4)

    @pytest.mark.parametrize("precision", HALF)
    def test_prefill_and_decode_run_in_half_precision(self, name, precision):
        model = with_random_weights(build(name, precision=precision))
        whole = model(padded(ROWS)).numpy()
        logits, cache = model.prefill(padded(ROWS)[:, :1], np.ones(4, np.int32), 6)
        second = padded(ROWS)[:, 1]
        after, _ = model.decode(second, tf.constant([1] * 4), cache)
        assert logits.dtype == after.dtype == tf.float32
        bound = HALF[precision] * np.abs(whole).max()
        np.testing.assert_allclose(logits, whole[:, 0], atol=bound)
        np.testing.assert_allclose(after.numpy()[second != 0], whole[second != 0, 1], atol=bound)


# Bag of n-grams -----------------------------------------------------------------------------------


def naive_bayes_logits(rows, labels, text, smoothing, scale):
    """Wang & Manning (2012), eq. 2, for each label against the mean of all; one loop at a time."""
    seen = sorted({ngram for row in rows for ngram in row})
    log_share = np.zeros((len(seen), LABELS))
    for label in range(LABELS):
        counts = np.array(
            [
                smoothing
                + sum(ngram in row for row, own in zip(rows, labels, strict=True) if own == label)
                for ngram in seen
            ]
        )
        log_share[:, label] = np.log(counts / counts.sum())
    weight = log_share - log_share.mean(axis=1, keepdims=True)
    logits = np.zeros(LABELS)
    for ngram in text:
        if ngram in seen:
            logits += weight[seen.index(ngram)]
    prior = np.log([(np.sum(labels == k) + 1) / (len(labels) + LABELS) for k in range(LABELS)])
    return scale / np.sqrt(max(len(text), 1)) * logits + prior - prior.mean()


TRAIN_ROWS = [np.array(row, np.int32) for row in ([1, 2, 5], [2, 3], [4], [5, 6, 7], [1, 7], [])]
TRAIN_LABELS = np.array([0, 0, 1, 2, 2, 1], np.int32)


@pytest.mark.parametrize("smoothing", [0.3, 1.0])
def test_adapt_is_naive_bayes(smoothing):
    config = BagOfNgramsConfig(naive_bayes_scale=1.0, smoothing=smoothing, scale=2.5)
    model = build_model(config, VOCABULARY, LABELS, seed=0)
    model.adapt(TRAIN_ROWS, TRAIN_LABELS)
    texts = [[1, 2], [4, 5, 6, 7], [20], [3, 20], []]
    expected = [
        naive_bayes_logits(TRAIN_ROWS, TRAIN_LABELS, text, smoothing, 2.5) for text in texts
    ]
    np.testing.assert_allclose(model(padded(texts)), expected, atol=1e-5)


@pytest.mark.parametrize("min_texts", [1, 2])
@pytest.mark.parametrize("weighting", ["idf", "naive_bayes"])
def test_weighted_ngrams_make_a_text_a_vector_of_length_one(weighting, min_texts):
    config = BagOfNgramsConfig(
        weighting=weighting, min_texts=min_texts, naive_bayes_scale=0.0, smoothing=0.5, scale=2.0
    )
    model = build_model(config, VOCABULARY, LABELS, seed=0)
    model.adapt(TRAIN_ROWS, TRAIN_LABELS)
    seen = {i for row in TRAIN_ROWS for i in row}
    has = np.array([[i in row for i in range(VOCABULARY)] for row in TRAIN_ROWS])
    if weighting == "idf":
        expected = np.log((1 + len(TRAIN_ROWS)) / (1 + has.sum(axis=0))) + 1
    else:
        counts = np.stack([has[TRAIN_LABELS == k].sum(axis=0) for k in range(LABELS)]) + 0.5
        logs = np.log(counts / counts[:, sorted(seen)].sum(axis=1, keepdims=True))
        expected = np.abs(logs - logs.mean(axis=0)).max(axis=0)
    expected[has.sum(axis=0) < min_texts] = 0
    np.testing.assert_allclose(model.ngram_weight, expected, rtol=1e-5)

    model = with_random_weights(model)
    model.ngram_weight.assign(expected)
    weights, bias = model.weight.embeddings.numpy(), model.bias.numpy()
    value = np.where(np.isin(np.arange(VOCABULARY), [1, 2, 5, 20]), expected, 0.0)
    logits = 2.0 * value @ weights / np.linalg.norm(value) + bias
    np.testing.assert_allclose(model(padded([[1, 2, 5, 20]]))[0], logits, rtol=1e-4, atol=1e-5)
    # What training never saw says nothing, alone or beside what it did.
    np.testing.assert_allclose(model(padded([[20], []])), [bias, bias], atol=1e-6)


def test_counted_ngrams_are_scikit_learns_sublinear_tf_idf():
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(analyzer=lambda row: row, sublinear_tf=True)
    vectorizer.fit([row for row in TRAIN_ROWS])
    text = [1, 2, 2, 2, 2, 2, 5, 5]
    vector = vectorizer.transform([text]).toarray()[0]
    config = BagOfNgramsConfig(weighting="idf", naive_bayes_scale=0.0, scale=2.0)
    model = build_model(config, VOCABULARY, LABELS, seed=0)
    # Of a training text too only whether it has an n-gram counts for idf.
    model.adapt([row + VOCABULARY * (i % 3) for i, row in enumerate(TRAIN_ROWS)], TRAIN_LABELS)
    weights = np.random.default_rng(0).normal(size=(VOCABULARY, LABELS)).astype("float32")
    model.weight.embeddings.assign(weights)
    known = [int(i) for i in vectorizer.get_feature_names_out()]
    expected = 2.0 * vector @ weights[known] + model.bias.numpy()
    counted = [1, 2 + 4 * VOCABULARY, 5 + VOCABULARY]
    np.testing.assert_allclose(model(padded([counted]))[0], expected, rtol=1e-4, atol=1e-5)


def test_the_scale_of_naive_bayes_multiplies_its_weights_and_zero_leaves_the_prior():
    weights = {}
    for scale in (0.0, 0.5, 1.0):
        config = BagOfNgramsConfig(naive_bayes_scale=scale)
        model = build_model(config, VOCABULARY, LABELS, seed=0)
        model.adapt(TRAIN_ROWS, TRAIN_LABELS)
        weights[scale] = model.weight.embeddings.numpy()
        np.testing.assert_allclose(model(padded([[20], []])), [model.bias.numpy()] * 2, atol=1e-6)
    assert not weights[0.0].any() and weights[1.0].any()
    np.testing.assert_allclose(weights[0.5], weights[1.0] / 2, atol=1e-6)
    # Two texts each: no label is likelier than another before a word is read.
    np.testing.assert_allclose(model.bias, 0.0, atol=1e-6)


def test_a_label_that_training_never_saw_stays_finite():
    model = build_model(BagOfNgramsConfig(), VOCABULARY, LABELS, seed=0)
    model.adapt(TRAIN_ROWS[:3], TRAIN_LABELS[:3])  # labels 0 and 1 only
    logits = model(padded([[1, 2], [4], []])).numpy()
    assert np.isfinite(logits).all()
    assert (logits[0].argmax(), logits[1].argmax()) == (0, 1)


def test_ngram_dropout_leaves_out_whole_ngrams_and_keeps_the_mean():
    model = with_random_weights(build("bag_of_ngrams"))
    model.weight.embeddings.assign(np.ones((VOCABULARY, LABELS)))
    model.bias.assign(np.zeros(LABELS))
    tokens = np.tile(np.arange(1, 17, dtype=np.int32), (400, 1))
    logits = model(tokens, training=True).numpy()
    # One n-gram counts scale / sqrt(16) / 0.7 for every label alike: a whole number of them is in.
    counts = logits / (4.0 / 4 / 0.7)
    np.testing.assert_allclose(counts, np.round(counts), atol=1e-3)
    np.testing.assert_allclose(counts[:, 0], counts[:, 2], atol=1e-5)
    assert abs(counts[:, 0].mean() - 0.7 * 16) < 0.4
    assert counts.std() > 1


def penalised_gradients(model, rows, labels):
    """Of C (sum of cross-entropies) + |scale W|^2 / 2, by W and b, written out."""
    config = model.config
    with tf.GradientTape() as tape:
        logits = model(padded(rows))
        if labels.ndim == 2:
            losses = tf.nn.sigmoid_cross_entropy_with_logits(labels.astype("float32"), logits)
        else:
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
        penalty = tf.reduce_sum((config.scale * model.weight.embeddings) ** 2) / 2
        loss = config.logistic_regression * tf.reduce_sum(losses) + penalty
    gradients = tape.gradient(loss, model.trainable_variables)
    return [tf.convert_to_tensor(gradient).numpy() for gradient in gradients]


@pytest.mark.parametrize("weighting", ["none", "idf", "naive_bayes"])
@pytest.mark.parametrize("kind", ["class", "labels"])
def test_a_bag_can_start_at_the_optimum_of_logistic_regression(weighting, kind):
    rng = np.random.default_rng(0)
    rows = [np.flatnonzero(rng.random(VOCABULARY) < 0.2).tolist() for _ in range(500)]
    rows = [[i for i in row if i] for row in rows]
    labels = np.array([(2 in row) + (5 in row and rng.random() < 0.8) for row in rows])
    if kind == "labels":
        labels = np.stack([labels == 0, labels != 1, labels > 5], axis=1)
    config = BagOfNgramsConfig(weighting=weighting, logistic_regression=0.5, scale=2.5)
    model = build_model(config, VOCABULARY, LABELS, seed=0)
    model.weight.embeddings.assign(0.1 * rng.normal(size=(VOCABULARY, LABELS)))
    before = penalised_gradients(model, rows, labels)
    model.adapt([np.array(row, np.int32) for row in rows], labels)
    after = penalised_gradients(model, rows, labels)
    told = slice(None) if kind == "class" else slice(2)  # nobody has the third label
    for first, last in zip(before, after, strict=True):
        assert np.abs(last[..., told]).max() < 0.05 * np.abs(first[..., told]).max()


def test_logistic_regression_leaves_out_labels_without_texts_and_refuses_grades():
    config = BagOfNgramsConfig(weighting="idf", logistic_regression=3.0)
    model = build_model(config, VOCABULARY, LABELS, seed=0)
    model.adapt(TRAIN_ROWS[:3], TRAIN_LABELS[:3])  # labels 0 and 1 only
    weights = model.weight.embeddings.numpy()
    np.testing.assert_allclose(weights[:, 0], -weights[:, 1], atol=1e-6)
    assert weights[:, 0].any()
    assert (model(padded([[1, 2], [4], [2, 3]])).numpy().argmax(axis=1) == [0, 1, 0]).all()
    model.adapt(TRAIN_ROWS[:2], TRAIN_LABELS[:2])  # one label: nothing to tell apart
    assert np.isfinite(model(padded([[1], []]))).all()
    with pytest.raises(ValueError, match="logistic_regression must be 0 with target=grade"):
        model.adapt_to_grades(TRAIN_ROWS, TRAIN_LABELS, LABELS)
