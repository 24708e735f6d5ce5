"""Optimising at prediction time: what is claimed of it, measured, and the faults that would show.

Rows 26 to 28 of the catalogue. Toy networks have closed forms, worked out here in numpy.
"""

import contextlib
import functools
import json
import math
from pathlib import Path
from unittest import mock

import keras
import numpy as np
import tensorflow as tf

from model import adaptation
from model.adaptation import (
    DynamicEvaluation,
    NearestTexts,
    NeighbourTraining,
    Tent,
    padded,
    token_sums,
)
from model.catalogue import build_model
from model.config import BagOfNgramsConfig, TransformerDecoderConfig, TransformerEncoderConfig
from tests.proofs import AT_LEAST, Mutant, Proof

ROOT = Path(__file__).resolve().parents[2]
V, K = 7, 3  # tokens and labels of the toy networks
DYNAMIC, TENT = "dynamic_evaluation", "tent"
TTT, NEIGHBOURS = "test_time_training", "neighbour_training"


# Networks -----------------------------------------------------------------------------------------


class Table(keras.Model):
    """Logits of the next token are the last one's row of a table; of a label, the rows' mean."""

    def __init__(self, seed=0):
        super().__init__()
        self.table = self.add_weight(shape=(V, V), name="table")
        self.table.assign(np.random.default_rng(seed).normal(size=(V, V)))
        self.built = True

    def call(self, tokens, training=False):
        return self.token_logits(tokens)

    def token_logits(self, tokens, training=False):
        return tf.gather(self.table.value, tokens)


class TableClassifier(Table):
    def call(self, tokens, training=False):
        return tf.reduce_mean(self.token_logits(tokens), axis=1)[:, :K]


class NeighbouringWords(keras.Model):
    """Tells a token from the sum of all others' rows: it sees ahead. Classifies by the sum."""

    def __init__(self):
        super().__init__()
        rng = np.random.default_rng(1)
        self.table = self.add_weight(shape=(V, 4), name="table")
        self.head = self.add_weight(shape=(4, K), name="head")
        self.table.assign(rng.normal(size=(V, 4)))
        self.head.assign(rng.normal(size=(4, K)))
        self.built = True

    def call(self, tokens, training=False):
        return tf.reduce_sum(tf.gather(self.table.value, tokens), axis=1) @ self.head.value

    def token_logits(self, tokens, training=False):
        rows = tf.gather(self.table.value, tokens)  # (B, T, D)
        others = tf.reduce_sum(rows, axis=1, keepdims=True) - rows
        return tf.einsum("btd,vd->btv", others, self.table.value)


class NormalizedTable(keras.Model):
    """Logits are the normalised row of a text's first token, scaled and shifted: gamma x + beta."""

    def __init__(self):
        super().__init__()
        rng = np.random.default_rng(2)
        self.table = self.add_weight(shape=(V, K), name="table")
        self.table.assign(rng.normal(size=(V, K)))
        self.norm = keras.layers.LayerNormalization(epsilon=1e-5)
        self.norm.build((None, K))
        self.norm.gamma.assign(1 + 0.1 * rng.normal(size=K))
        self.norm.beta.assign(0.1 * rng.normal(size=K))
        self.built = True

    def call(self, tokens, training=False):
        return self.norm(tf.gather(self.table.value, tokens[:, 0]))


def small_decoder(vocabulary_size, seed=0):
    config = TransformerDecoderConfig(
        num_layers=1, width=16, num_heads=2, inner_width=32, context_length=32
    )
    return build_model(config, vocabulary_size, seed=seed)


def small_encoder(seed=0):
    config = TransformerEncoderConfig(num_layers=1, width=16, num_heads=2, inner_width=16)
    return build_model(config, 20, K, seed=seed)


def state(model):
    return [variable.numpy() for variable in model.variables]


def distance(first, second):
    return max(float(np.abs(a - b).max()) for a, b in zip(first, second, strict=True))


def texts(count, seed=0, lowest=2, highest=V, longest=9):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(3, longest, count)
    return [rng.integers(lowest, highest, n).astype(np.int32) for n in lengths]


def softmax(logits):
    p = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return p / p.sum(axis=-1, keepdims=True)


# Dynamic evaluation -------------------------------------------------------------------------------


def chunks(ids, length):
    """(tokens, targets), int32 (1, T) each, in reading order."""
    for start in range(0, len(ids) - 1, length):
        piece = ids[start : start + length + 1][None].astype(np.int32)
        yield piece[:, :-1], piece[:, 1:]


def total_loss(score, pairs):
    """Nats a target."""
    sums = [score(*pair) for pair in pairs]
    return sum(float(s["loss_sum"]) for s in sums) / sum(float(s["num_targets"]) for s in sums)


def rate_zero_against_static():
    """The greatest relative difference of a chunk's loss."""
    pairs = list(chunks(np.random.default_rng(0).integers(4, 30, 400), 32))
    dynamic = DynamicEvaluation(small_decoder(30), rate=0.0, decay=0.1)
    dynamic_losses = [float(dynamic.score(*pair)["loss_sum"]) for pair in pairs]
    static = [float(dynamic.sums(*pair)["loss_sum"]) for pair in pairs]
    return max(abs(a / b - 1) for a, b in zip(dynamic_losses, static, strict=True))


def dynamic_by_hand(scaling):
    """The greatest difference from the formula in float64: weights and losses of four chunks."""
    rate, decay, epsilon = 0.5, 0.2, 1e-5
    model = Table()
    dynamic = DynamicEvaluation(model, rate=rate, decay=decay, scaling=scaling, epsilon=epsilon)
    theta_0 = theta = model.table.numpy().astype(float)
    mean_square, difference = np.zeros((V, V)), 0.0
    for count, row in enumerate(texts(4, lowest=1), start=1):
        tokens, targets = row[None, :-1], row[None, 1:]
        loss = float(dynamic.score(tokens, targets)["loss_sum"])
        p, n = softmax(theta[tokens[0]]), len(row) - 1
        expected = -np.log(p[np.arange(n), targets[0]]).sum()
        gradient = np.zeros((V, V))
        np.add.at(gradient, tokens[0], (p - np.eye(V)[targets[0]]) / n)
        pull = decay
        if scaling == "rms":
            mean_square = mean_square + (gradient**2 - mean_square) / count
            root = np.sqrt(mean_square)
            pull = np.minimum(decay * root / root.mean(), 1.0)
            gradient = gradient / (root + epsilon)
        theta = theta - rate * gradient + pull * (theta_0 - theta)
        difference = max(
            difference, abs(loss - expected), np.abs(model.table.numpy() - theta).max()
        )
    return difference


@functools.cache
def reader():
    """A vocabulary of characters and the weights of a decoder trained a little on stories."""
    lines = (ROOT / "training/datasets/starter/stories_en.jsonl").read_text(encoding="utf-8")
    text = "\n".join(json.loads(line)["text"] for line in lines.splitlines()[:60])
    licence = (ROOT / "LICENSE").read_text(encoding="utf-8")
    ids = {character: i for i, character in enumerate(sorted(set(text + licence)), start=4)}
    model, optimizer = small_decoder(len(ids) + 4), keras.optimizers.Adam(1e-2)
    encoded = np.array([ids[c] for c in text], np.int32)
    pieces = encoded[: len(encoded) // 33 * 33].reshape(-1, 33)

    @tf.function(reduce_retracing=True)
    def train_step(piece):
        with tf.GradientTape() as tape:
            sums = token_sums(piece[:, 1:], model(piece[:, :-1], training=False))
            loss = sums["loss_sum"] / sums["num_targets"]
        variables = model.trainable_variables
        optimizer.apply(tape.gradient(loss, [v.value for v in variables]), variables)

    for start in range(0, len(pieces) - 15, 16):
        train_step(tf.constant(pieces[start : start + 16]))
    return ids, licence, [v.numpy() for v in model.variables]


def perplexity_ratio_on_a_licence():
    """Perplexity adapted over static, of a reader of stories on a licence: repetitive text."""
    ids, licence, weights = reader()
    model = small_decoder(len(ids) + 4)
    for variable, value in zip(model.variables, weights, strict=True):
        variable.assign(value)
    pairs = list(chunks(np.array([ids[c] for c in licence[:7000]]), 32))
    with DynamicEvaluation(model, rate=0.1) as dynamic:
        static = total_loss(dynamic.sums, pairs)
        # A planted fault may diverge: what matters is that it is far above 1.
        return math.exp(min(total_loss(dynamic.score, pairs) - static, 700.0))


def gain_on_random_characters():
    """How far below the entropy of the source, as a share: nobody who guesses first gets there."""
    pairs = list(chunks(np.random.default_rng(3).integers(1, 27, 3000), 32))
    dynamic = DynamicEvaluation(small_decoder(27), rate=0.3)
    return 1 - total_loss(dynamic.score, pairs) / math.log(26)


def not_restored_after_an_exception():
    model = small_decoder(30)
    before = state(model)
    with contextlib.suppress(KeyError), DynamicEvaluation(model, rate=0.3, decay=0.1) as dynamic:
        for pair in chunks(np.arange(4, 30), 8):
            dynamic.score(*pair)
        raise KeyError("the reader left")
    return distance(before, state(model))


def second_reading_after_reset():
    """The greatest difference of a chunk's loss between two readings, mean squares in play."""
    pairs = list(chunks(np.arange(4, 30), 8))
    dynamic = DynamicEvaluation(small_decoder(30), rate=1e-3, decay=0.1, scaling="rms")
    dynamic.collect(*pairs[0])
    readings = []
    for _ in range(2):
        readings.append([float(dynamic.score(*pair)["loss_sum"]) for pair in pairs])
        dynamic.reset()
    return max(abs(a - b) for a, b in zip(*readings, strict=True))


# TENT ---------------------------------------------------------------------------------------------

TOKENS = padded(texts(6, highest=20))


def tent_without_steps():
    model = small_encoder()
    plain = model(TOKENS, training=False).numpy()
    return np.abs(Tent(model, rate=0.1, steps=0).predict(TOKENS) - plain).max()


def tent_moves(of_normalization):
    """The greatest change of a variable that belongs, or does not, to a normalisation layer."""
    model = small_encoder()
    before = state(model)
    Tent(model, rate=0.05, steps=3).predict(TOKENS)
    chosen = [
        (a, b.numpy())
        for a, b in zip(before, model.variables, strict=True)
        if b.path.endswith(("/gamma", "/beta")) == of_normalization
    ]
    return max(float(np.abs(a - b).max()) for a, b in chosen)


def greatest_rise_of_entropy():
    """Over twenty steps on the same batch; below zero is a fall at every one."""
    tent = Tent(small_encoder(), rate=0.01)
    entropies = []
    for _ in range(20):
        p = softmax(tent.predict(TOKENS).astype(np.float64))
        entropies.append(-(p * np.log(p)).sum(axis=-1).mean())
    return np.diff(entropies).max()


def tent_by_hand():
    """Gamma and beta after a step against the closed form: dH/dz = -p (ln p + H)."""
    model, tokens, rate = NormalizedTable(), np.array([[1], [2], [5], [6]], np.int32), 0.5
    gamma, beta = model.norm.gamma.numpy(), model.norm.beta.numpy()
    rows = model.table.numpy().astype(float)[tokens[:, 0]]
    centred = rows - rows.mean(axis=1, keepdims=True)
    x = centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + 1e-5)
    p = softmax(gamma * x + beta)
    h = -(p * np.log(p)).sum(axis=1, keepdims=True)
    slope = -p * (np.log(p) + h) / len(tokens)
    Tent(model, rate=rate).predict(tokens)
    expected = [gamma - rate * (slope * x).sum(axis=0), beta - rate * slope.sum(axis=0)]
    return distance(expected, [model.norm.gamma.numpy(), model.norm.beta.numpy()])


def tent_batches_in_two_orders():
    tent = Tent(small_encoder(), rate=0.1, steps=2, episodic=True, optimizer="adam")
    batches = [TOKENS[:2], TOKENS[2:4], TOKENS[4:]]
    forwards = [tent.predict(batch) for batch in batches]
    backwards = [tent.predict(batch) for batch in reversed(batches)][::-1]
    return distance(forwards, backwards)


# Test-time training -------------------------------------------------------------------------------


# Looked up on use, so that a mutant's class is the one that is built.
def test_time(model, **keywords):
    return adaptation.TestTimeTraining(model, **keywords)


test_time.__test__ = False


def ttt_without_steps():
    model, tokens = NeighbouringWords(), padded(texts(4))
    plain = model(tokens, training=False).numpy()
    # Padding has a row of its own in this network: each text goes alone.
    alone = [model(row[None], training=False).numpy() for row in texts(4)]
    assert np.abs(plain - np.concatenate(alone)).max() > 0.01
    answers = test_time(model, rate=0.1, steps=0).predict(tokens)
    return np.abs(answers - np.concatenate(alone)).max()


def ttt_in_two_orders():
    """Masked tokens, Adam: masks, weights and moments begin anew for every text."""
    tokens = padded(texts(5))
    learner = test_time(NeighbouringWords(), rate=0.05, steps=3, optimizer="adam")
    forwards, backwards = learner.predict(tokens), learner.predict(tokens[::-1])[::-1]
    return np.abs(forwards - backwards).max()


def ttt_not_restored():
    model = NeighbouringWords()
    before = state(model)
    test_time(model, rate=0.05, steps=3).predict(padded(texts(3)))
    return distance(before, state(model))


def ttt_by_hand():
    """Three steps of Adam on the next token, each text from the start, against numpy."""
    model, rate, rows = TableClassifier(), 0.1, texts(3)
    answers = test_time(model, rate=rate, steps=3, optimizer="adam").predict(padded(rows))
    expected = []
    for row in rows:
        theta = model.table.numpy().astype(float)
        m, v = np.zeros((V, V)), np.zeros((V, V))
        for t in (1, 2, 3):
            p, n = softmax(theta[row[:-1]]), len(row) - 1
            g = np.zeros((V, V))
            np.add.at(g, row[:-1], (p - np.eye(V)[row[1:]]) / n)
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
            theta = theta - rate * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        expected.append(theta[row].mean(axis=0)[:K])
    return np.abs(answers - np.array(expected)).max()


def fall_of_the_self_supervised_loss():
    """Of hidden tokens, over ten steps on one text whose tokens tell each other."""
    learner = test_time(NeighbouringWords(), rate=0.02, num_copies=64)
    tokens = tf.constant([[2, 3, 2, 3, 2, 3, 2, 3]])
    losses = [learner.step(number, tokens) for number in range(10)]
    return losses[0] - losses[-1]


# Neighbours ---------------------------------------------------------------------------------------


def cosines_against_scikit_learn():
    from sklearn.feature_extraction.text import TfidfVectorizer

    rows, questions = texts(40, highest=15), texts(10, seed=1, lowest=0, highest=18)
    vectorizer = TfidfVectorizer(analyzer=lambda row: [int(t) for t in row if t])
    vectors = vectorizer.fit_transform(rows)
    expected = (vectorizer.transform(questions) @ vectors.T).toarray()
    index = NearestTexts(rows)
    return max(
        float(np.abs(index.similarities(q) - e).max())
        for q, e in zip(questions, expected, strict=True)
    )


TRAINING = [np.array(row, np.int32) for row in ([2, 3], [2, 4], [3, 4, 5], [5, 6], [2, 3, 6])]
LABELS = np.array([0, 1, 2, 1, 0], np.int32)


def bag(seed=0):
    model = build_model(BagOfNgramsConfig(), V, K, seed=seed)
    model.weight.embeddings.assign(np.random.default_rng(seed).normal(size=(V, K)) / 4)
    return model


def neighbours_by_hand():
    """Two passes over three neighbours, nearest first, against softmax regression in numpy."""
    model, rate, question = bag(), 0.2, np.array([2, 3], np.int32)
    scale = BagOfNgramsConfig().scale
    weight, bias = model.weight.embeddings.numpy().astype(float), model.bias.numpy().astype(float)

    def logits(row):
        return scale / np.sqrt(len(row)) * weight[row].sum(axis=0) + bias

    for index in [0, 4, 1] * 2:  # texts 0, 4 and 1 share most with the question, in this order
        row = TRAINING[index]
        slope = softmax(logits(row)) - np.eye(K)[LABELS[index]]
        weight[row] -= rate * scale / np.sqrt(len(row)) * slope
        bias -= rate * slope
    learner = NeighbourTraining(model, TRAINING, LABELS, rate=rate, steps=2, num_neighbours=3)
    return np.abs(learner.predict(question[None])[0] - logits(question)).max()


def neighbours_without_steps():
    model, tokens = bag(), padded(TRAINING)
    plain = model(tokens, training=False).numpy()
    answers = NeighbourTraining(model, TRAINING, LABELS, rate=0.2, steps=0).predict(tokens)
    return np.abs(answers - plain).max()


def neighbours_in_two_orders():
    tokens = padded(TRAINING)
    learner = NeighbourTraining(bag(), TRAINING, LABELS, rate=0.2, optimizer="adam")
    forwards, backwards = learner.predict(tokens), learner.predict(tokens[::-1])[::-1]
    return np.abs(forwards - backwards).max()


def neighbours_not_restored():
    model = bag()
    before = state(model)
    NeighbourTraining(model, TRAINING, LABELS, rate=0.2).predict(padded(TRAINING))
    return distance(before, state(model))


def loss_saved_by_neighbours():
    """Nats a text, on texts that each share their telling token with a training text."""
    model, questions = bag(), padded([np.array([2, 3]), np.array([5, 6])])
    labels = np.array([0, 1])

    def loss(logits):
        return -np.log(softmax(np.asarray(logits, np.float64))[[0, 1], labels]).mean()

    learner = NeighbourTraining(model, TRAINING, LABELS, rate=0.1, num_neighbours=2)
    return loss(model(questions)) - loss(learner.predict(questions))


# What is claimed ----------------------------------------------------------------------------------

_SAME = "a rate of 0 gives the static figures"
_HAND = "weights and losses follow the formula worked out by hand"
_RMS = "with scaling=rms they follow the formula worked out by hand"
_FALLS = "perplexity falls on real, repetitive text of another domain"
_FIRST = "nothing is gained on random characters, as scoring precedes the step"
_RESTORED = "the weights are restored bit for bit"
_AGAIN = "a second reading after reset gives the same figures"
_NO_STEPS = "no steps give the plain prediction"
_UNTOUCHED = "nothing but normalisation layers moves"
_MOVED = "normalisation layers do move"
_MONOTONE = "entropy falls at every step of a small rate"
_ORDER = "the order of inputs does not matter in episodes"
_LEARNS = "the self-supervised loss falls"
_COSINES = "cosines are those of scikit-learn's TF-IDF"
_PULL = "training on neighbours lowers the loss on texts like them"


def _proof(row, strategy, kind, claim, measure, tolerance=0.0, holds="at most"):
    return Proof(
        row=row,
        strategy=strategy,
        kind=kind,
        claim=claim,
        measure=measure,
        tolerance=tolerance,
        holds=holds,
    )


PROOFS = [
    _proof(26, DYNAMIC, "identity", _SAME, rate_zero_against_static, 1e-8),
    _proof(26, DYNAMIC, "golden", _HAND, lambda: dynamic_by_hand("none"), 1e-5),
    _proof(26, DYNAMIC, "golden", _RMS, lambda: dynamic_by_hand("rms"), 1e-4),
    _proof(26, DYNAMIC, "differs", _FALLS, perplexity_ratio_on_a_licence, 0.95),
    _proof(26, DYNAMIC, "identity", _FIRST, gain_on_random_characters, 0.002),
    _proof(26, DYNAMIC, "resume", _RESTORED, not_restored_after_an_exception),
    _proof(26, DYNAMIC, "resume", _AGAIN, second_reading_after_reset),
    _proof(27, TENT, "identity", _NO_STEPS, tent_without_steps, 1e-6),
    _proof(27, TENT, "identity", _UNTOUCHED, lambda: tent_moves(False)),
    _proof(27, TENT, "differs", _MOVED, lambda: tent_moves(True), 1e-3, AT_LEAST),
    _proof(27, TENT, "differs", _MONOTONE, greatest_rise_of_entropy, -1e-7),
    _proof(27, TENT, "golden", _HAND, tent_by_hand, 1e-6),
    _proof(27, TENT, "resume", _ORDER, tent_batches_in_two_orders),
    _proof(28, TTT, "identity", _NO_STEPS, ttt_without_steps, 1e-6),
    _proof(28, TTT, "golden", _HAND, ttt_by_hand, 1e-5),
    _proof(28, TTT, "differs", _LEARNS, fall_of_the_self_supervised_loss, 0.1, AT_LEAST),
    _proof(28, TTT, "resume", _ORDER, ttt_in_two_orders),
    _proof(28, TTT, "resume", _RESTORED, ttt_not_restored),
    _proof(28, NEIGHBOURS, "golden", _COSINES, cosines_against_scikit_learn, 1e-12),
    _proof(28, NEIGHBOURS, "golden", _HAND, neighbours_by_hand, 1e-5),
    _proof(28, NEIGHBOURS, "identity", _NO_STEPS, neighbours_without_steps, 1e-6),
    _proof(28, NEIGHBOURS, "differs", _PULL, loss_saved_by_neighbours, 0.1, AT_LEAST),
    _proof(28, NEIGHBOURS, "resume", _ORDER, neighbours_in_two_orders),
    _proof(28, NEIGHBOURS, "resume", _RESTORED, neighbours_not_restored),
]


# What would be wrong ------------------------------------------------------------------------------


def _changed(owner, name, make):
    """Enters with `owner.name` replaced by `make(original)`."""
    return lambda: mock.patch.object(owner, name, make(getattr(owner, name)))


def _never_at_rest(score):
    def mutant(self, tokens, targets):
        self.rate = max(self.rate, 1e-3)
        return score(self, tokens, targets)

    return mutant


def _step_then_score(score):
    def mutant(self, tokens, targets):
        score(self, tokens, targets)
        return self.sums(tokens, targets)

    return mutant


def _no_decay(init):
    def mutant(self, *arguments, **keywords):
        init(self, *arguments, **keywords)
        self.decay = 0.0

    return mutant


def _gradient_of_the_sum(gradients):
    def mutant(self, tokens, targets):
        sums, g = gradients(self, tokens, targets)
        return sums, [one * sums["num_targets"] for one in g]

    return mutant


def _uphill(gradients):
    def mutant(self, tokens, targets):
        sums, g = gradients(self, tokens, targets)
        return sums, [-one for one in g]

    return mutant


def _forgets_a_variable(reset):
    def mutant(self):
        moved = self.variables[0]
        value = moved.numpy()
        reset(self)
        moved.assign(value)

    return mutant


def _only_without_exceptions(exit_):
    return lambda self, kind, *rest: None if kind else exit_(self, kind, *rest)


def _keeps(name):
    """A reset that leaves an attribute as it is."""

    def make(reset):
        def mutant(self):
            value = getattr(self, name)
            reset(self)
            setattr(self, name, value)

        return mutant

    return make


def _at_least_one_step(init):
    def mutant(self, *arguments, steps=1, **keywords):
        init(self, *arguments, steps=max(steps, 1), **keywords)

    return mutant


def _masks_from_a_counter(step):
    return lambda self, number, *inputs: step(self, self.num_gradients, *inputs)


def _no_bias_correction(adam):
    def mutant(values, gradients, rate, slots):
        return adam(values, gradients, rate, [slots[0] + 1e6, *slots[1:]])

    return mutant


def _of_the_whole_batch(objective):
    def mutant(self, step, tokens):
        return objective(self, step, tokens) * tf.cast(tf.shape(tokens)[0], tf.float32)

    return mutant


def _all_variables(_):
    return lambda model: model.trainable_variables


def _negated_step(sgd):
    return lambda values, gradients, rate, slots: sgd(values, gradients, -rate, slots)


def _without_idf(init):
    def mutant(self, rows):
        with mock.patch.object(np, "log", lambda x: np.zeros_like(x)):
            init(self, rows)

    return mutant


def _farthest_first(nearest):
    return lambda self, row, count: nearest(self, row, count)[::-1]


def _wrong_labels(init):
    def mutant(self, model, rows, labels, **keywords):
        init(self, model, rows, (labels + 1) % K, **keywords)

    return mutant


def _never(_):
    return lambda *arguments, **keywords: []


def _mutant(strategy, claim, name, owner, attribute, make):
    return Mutant(
        name=name, strategy=strategy, claim_it_breaks=claim, apply=_changed(owner, attribute, make)
    )


_STEPS, _RESET = adaptation.GradientSteps, adaptation.Adaptation
_LEARNER = adaptation.TestTimeTraining
_IGNORES_EPISODES = ("answers move on in episodes", _STEPS, "reset", lambda _: lambda self: None)
_FORGETS = ("reset forgets a variable", _RESET, "reset", _forgets_a_variable)
_SURVIVE = ("moments of Adam survive a reset", _STEPS, "reset", _keeps("_slots"))
_EAGER = ("at least one step", _STEPS, "__init__", _at_least_one_step)
_NEGATED = ("steps uphill", adaptation, "_sgd", _negated_step)
_ADAM = ("no bias correction", adaptation, "_adam", _no_bias_correction)

MUTANTS = [
    _mutant(DYNAMIC, _SAME, "a rate that is never 0", DynamicEvaluation, "score", _never_at_rest),
    _mutant(DYNAMIC, _HAND, "no decay", DynamicEvaluation, "__init__", _no_decay),
    _mutant(
        DYNAMIC, _HAND, "gradient of the sum", DynamicEvaluation, "_gradients", _gradient_of_the_sum
    ),
    _mutant(
        DYNAMIC,
        _RMS,
        "mean square of one chunk",
        DynamicEvaluation,
        "_averaged",
        lambda _: staticmethod(lambda g, m: (m[0] + 1.0, [tf.square(one) for one in g])),
    ),
    _mutant(DYNAMIC, _RMS, "no decay", DynamicEvaluation, "__init__", _no_decay),
    _mutant(DYNAMIC, _FALLS, "steps uphill", DynamicEvaluation, "_gradients", _uphill),
    _mutant(DYNAMIC, _FIRST, "step, then score", DynamicEvaluation, "score", _step_then_score),
    _mutant(DYNAMIC, _RESTORED, *_FORGETS),
    _mutant(
        DYNAMIC,
        _RESTORED,
        "no reset after an exception",
        _RESET,
        "__exit__",
        _only_without_exceptions,
    ),
    _mutant(
        DYNAMIC,
        _AGAIN,
        "mean squares survive a reset",
        DynamicEvaluation,
        "reset",
        _keeps("_statistics"),
    ),
    _mutant(DYNAMIC, _AGAIN, *_FORGETS),
    _mutant(TENT, _NO_STEPS, *_EAGER),
    _mutant(
        TENT, _UNTOUCHED, "kernels move too", adaptation, "normalization_variables", _all_variables
    ),
    _mutant(TENT, _MOVED, "nothing is applied", adaptation, "_sgd", _never),
    _mutant(TENT, _MONOTONE, *_NEGATED),
    _mutant(TENT, _HAND, "entropy of the whole batch", Tent, "objective", _of_the_whole_batch),
    _mutant(TENT, _ORDER, *_IGNORES_EPISODES),
    _mutant(TENT, _ORDER, *_SURVIVE),
    _mutant(TTT, _NO_STEPS, *_EAGER),
    _mutant(TTT, _HAND, *_ADAM),
    _mutant(TTT, _HAND, *_SURVIVE),
    _mutant(TTT, _LEARNS, *_NEGATED),
    _mutant(
        TTT, _ORDER, "masks depend on the texts before", _LEARNER, "step", _masks_from_a_counter
    ),
    _mutant(TTT, _ORDER, *_SURVIVE),
    _mutant(TTT, _ORDER, *_IGNORES_EPISODES),
    _mutant(TTT, _RESTORED, *_FORGETS),
    _mutant(NEIGHBOURS, _COSINES, "counts without idf", NearestTexts, "__init__", _without_idf),
    _mutant(NEIGHBOURS, _HAND, "farthest first", NearestTexts, "nearest", _farthest_first),
    _mutant(NEIGHBOURS, _NO_STEPS, *_EAGER),
    _mutant(NEIGHBOURS, _PULL, "labels of others", NeighbourTraining, "__init__", _wrong_labels),
    _mutant(NEIGHBOURS, _ORDER, *_SURVIVE),
    _mutant(NEIGHBOURS, _RESTORED, *_FORGETS),
    _mutant(NEIGHBOURS, _RESTORED, *_IGNORES_EPISODES),
]
