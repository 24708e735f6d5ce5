"""Proofs of truncated back-propagation through time (row 13)."""

import keras
import numpy as np
import tensorflow as tf

from model.catalogue import build_model
from model.config import RecurrentLanguageModelConfig
from tests.proofs import AT_LEAST, Ledger
from tests.training.strategies.measures import apart, end, joined, resumed
from tests.training.strategies.toys import Toy
from training.losses import TaskLoss, language_model_loss
from training.strategies.gradients import scale
from training.strategies.truncation import Truncate

LEDGER = Ledger()
proof, mutant = LEDGER.proof, LEDGER.mutant
PROOFS, MUTANTS = LEDGER.proofs, LEDGER.mutants


class Recurrent(Toy):
    """h <- tanh(E[token] + U h), logits h V, in float64; `detach_every` cuts the gradient of h.

    Rows have different lengths; padding leaves the state as it is and is no target.
    """

    vocabulary_size, width = 7, 3

    def __init__(self, expression, *, detach_every=None, sizes=(3,), **settings):
        rng = np.random.default_rng(11)

        def variable(name, *shape):
            return keras.Variable(rng.normal(size=shape), dtype="float64", name=name)

        self.weights = [
            variable("embedding", self.vocabulary_size, self.width),
            variable("recurrent", self.width, self.width),
            variable("head", self.width, self.vocabulary_size),
        ]
        self.detach_every, self.sizes = detach_every, sizes
        self.task = TaskLoss(
            lambda batch: self.run_over(batch, None)[0], self.of_logits, self.run_over
        )
        super().__init__(expression, **settings)

    def run_over(self, batch, state):
        embedding, recurrent, head = (weight.value for weight in self.weights)
        tokens = batch["tokens"]
        x = tf.transpose(tf.gather(embedding, tokens), [1, 0, 2])  # (T, B, D)
        is_token = tf.transpose(tokens != 0)[:, :, None]  # (T, B, 1)
        cuts = tf.range(tf.shape(tokens)[1]) % (self.detach_every or 10_000) == 0
        if state is None:
            state = tf.zeros_like(x[0])

        def step(h, now):
            x, is_token, cut = now
            h = tf.where(cut, tf.stop_gradient(h), h)
            return tf.where(is_token, tf.tanh(x + h @ recurrent), h)

        states = tf.scan(step, (x, is_token, cuts), initializer=state)
        return tf.transpose(states, [1, 0, 2]) @ head, states[-1]

    def of_logits(self, batch, logits):
        nats = tf.nn.sparse_softmax_cross_entropy_with_logits(batch["targets"], logits)
        weight = tf.cast(batch["targets"] != 0, tf.float64)
        count = tf.reduce_sum(weight)
        return {
            "loss_sum": tf.reduce_sum(nats * weight),
            "num_targets": count,
            "num_correct": tf.zeros_like(count),
        }

    def batch(self, i):
        rng = np.random.default_rng([3, i])
        count = self.sizes[i % len(self.sizes)]
        rows = np.zeros((count, 8), np.int32)
        for row, length in zip(rows, rng.integers(3, 9, count), strict=True):
            row[:length] = rng.integers(1, self.vocabulary_size, length)
        rows[0] = rng.integers(1, self.vocabulary_size, 8)  # one row of full length
        return {"tokens": rows[:, :-1], "targets": rows[:, 1:]}


class RecurrentInOne(Recurrent):
    def batch(self, i):
        return joined([super(RecurrentInOne, self).batch(2 * i + j) for j in range(2)])


@proof(13, "truncate", "identity", "a window as long as the rows is full back-propagation", 1e-15)
def truncate_nothing():
    plain = end(Recurrent, "sgd", rate=0.5)
    return max(apart(plain, end(Recurrent, f"truncate(sgd, {k})", rate=0.5)) for k in (7, 50))


@proof(13, "truncate", "identity", "chunk after chunk the loss is that of one long forward", 1e-6)
def truncated_forward():
    plain, cut = Recurrent("sgd"), Recurrent("truncate(sgd, 2)")
    plain.run(1)
    cut.run(1)
    same = all(plain.said[0][n] == cut.said[0][n] for n in ("num_targets", "num_correct"))
    return abs(plain.said[0]["loss_sum"] - cut.said[0]["loss_sum"]) if same else np.inf


@proof(
    13,
    "truncate",
    "golden",
    "the gradient is that of one long graph whose state is detached every window",
    1e-12,
)
def truncated_gradient():
    return max(
        apart(
            end(Recurrent, "sgd", rate=0.5, detach_every=window),
            end(Recurrent, f"truncate(sgd, {window})", rate=0.5),
        )
        for window in (1, 2, 3, 5)
    )


@proof(
    13,
    "truncate",
    "differs",
    "a window of 2 forgets what full back-propagation sees",
    1e-3,
    AT_LEAST,
)
def truncation_differs():
    return apart(end(Recurrent, "sgd", rate=0.5), end(Recurrent, "truncate(sgd, 2)", rate=0.5))


@proof(13, "truncate", "identity", "compiled by XLA it is the same", 1e-6)
def truncated_by_xla():
    plain = end(Recurrent, "truncate(sgd, 3)")
    return apart(plain, end(Recurrent, "truncate(sgd, 3)", xla=True))


@proof(13, "truncate", "composed", "inside accumulate it is that of one large batch", 1e-12)
def accumulated_truncation():
    one = end(RecurrentInOne, "truncate(sgd, 3)", sizes=(1, 4))
    return apart(one, end(Recurrent, "accumulate(truncate(sgd, 3), 2)", sizes=(1, 4)))


@proof(13, "truncate", "composed", "sam with rho = 0 and loss_scale around it change nothing", 0.0)
def truncation_inside():
    inside = "truncate(momentum, 3)"
    plain = end(Recurrent, inside)
    return max(
        apart(plain, end(Recurrent, f"{e}({inside}{n})"))
        for e, n in (("sam", ", 0"), ("loss_scale", ""))
    )


@proof(13, "truncate", "resume", "stopped between any two updates it goes on bit for bit", 0.0)
def truncation_resumed():
    return resumed(Recurrent, "accumulate(truncate(momentum, 3), 2)", sizes=(1, 4))


_chunk = Truncate._chunk


def _without_state(self, batch, start, window, state):
    gradients, sums, new = _chunk(self, batch, start, window, None)
    return gradients, sums, new


def _not_detached(self, batches):
    return self.optimizer_rule.gradient(batches)


def _only_first_chunk(self, batch, start, window, state):
    gradients, sums, new = _chunk(self, batch, start, window, state)
    return scale(gradients, 0.0 if state is not None else 1.0), sums, new


def _mean_of_chunks(self, batch, start, window, state):
    gradients, sums, new = _chunk(self, batch, start, window, state)
    return scale(gradients, tf.math.divide_no_nan(1.0, sums["num_targets"])), sums, new


mutant("the state is reset at each chunk", truncated_forward, (Truncate, "_chunk", _without_state))
mutant("the state is not detached", truncated_gradient, (Truncate, "gradient", _not_detached))
mutant(
    "only the first chunk is learned", truncated_gradient, (Truncate, "_chunk", _only_first_chunk)
)
mutant("every chunk weighs the same", truncated_gradient, (Truncate, "_chunk", _mean_of_chunks))


class Writer(Recurrent):
    """The language model that recipes train, on the same rows."""

    def __init__(self, expression, **settings):
        config = RecurrentLanguageModelConfig(embedding_size=4, units=5, num_layers=2, dropout=0.0)
        model = build_model(config, self.vocabulary_size, seed=1)
        self.weights, self.sizes = model.trainable_variables, (3,)
        self.task = TaskLoss(
            lambda batch: model(batch["tokens"], training=True),
            language_model_loss,
            lambda batch, state: model(
                batch["tokens"], training=True, state=state, return_state=True
            ),
        )
        Toy.__init__(self, expression, **settings)


@proof(13, "truncate", "identity", "so it is with recurrent_language_model, loss and weights", 1e-6)
def truncated_writer():
    plain, full, cut = (
        Writer(e, rate=1.0) for e in ("sgd", "truncate(sgd, 7)", "truncate(sgd, 3)")
    )
    ends = [toy.run(1)[-1] for toy in (plain, full, cut)]
    losses = [toy.said[0]["loss_sum"] for toy in (plain, cut)]
    return max(apart(ends[0], ends[1]), abs(losses[0] / losses[1] - 1))


@proof(13, "truncate", "differs", "and a window of 3 forgets there too", 1e-6, AT_LEAST)
def truncated_writer_differs():
    return apart(end(Writer, "sgd", 1, rate=1.0), end(Writer, "truncate(sgd, 3)", 1, rate=1.0))
