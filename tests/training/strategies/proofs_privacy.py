"""Proofs of DP-SGD (row 16)."""

import keras
import numpy as np
import tensorflow as tf

from tests.proofs import AT_LEAST, Ledger
from tests.training.strategies.measures import DenseWords, apart, end, resumed
from tests.training.strategies.toys import Toy, Words
from training.stacking import stack
from training.strategies import privacy, rules
from training.strategies.gradients import global_norm
from training.strategies.privacy import DifferentiallyPrivate, epsilon
from training.strategies.rules import OptimizerRule

LEDGER = Ledger()
proof, mutant = LEDGER.proof, LEDGER.mutant
PROOFS, MUTANTS = LEDGER.proofs, LEDGER.mutants


class Still(Toy):
    """Weights without any gradient: what moves them is noise."""

    def __init__(self, expression, *, num_weights=40_000, **settings):
        self.weights = [keras.Variable(np.zeros(num_weights, np.float32), name="w")]
        self.task = self.loss
        super().__init__(expression, **settings)

    def loss(self, batch):
        count = tf.reduce_sum(batch["weight"])
        return {
            "loss_sum": 0.0 * tf.reduce_sum(self.weights[0].value),
            "num_targets": count,
            "num_correct": tf.zeros_like(count),
        }

    def batch(self, i):
        return {"weight": np.ones(5, np.float32) if i % 2 else np.zeros(1, np.float32)}


DP = {"batch_size": 3}


def contributions(toy, num_rows=12):
    """The norm of what single rows add to the sum."""
    gradient = tf.function(lambda b: global_norm(toy.rule.gradient(b)[0]), reduce_retracing=True)
    return [float(gradient(stack([toy.batch(i)]))) for i in range(num_rows)]


@proof(16, "dp_sgd", "identity", "without noise and bound it is SGD", 1e-6)
def private_without_privacy():
    return apart(end(Words, "sgd"), end(Words, "dp_sgd(sgd, 1e9, 0)", **DP))


@proof(16, "dp_sgd", "golden", "a single row adds at most C, repeated words added up", 1e-5)
def bounded_contribution():
    toy = Words("dp_sgd(sgd, 0.1, 0)", sizes=(1,), **DP)
    free = Words("dp_sgd(sgd, 1e9, 0)", sizes=(1,), **DP)
    wanted = np.minimum(contributions(free), 0.1)  # norms of the whole gradient of each row
    dense = DenseWords("sgd", sizes=(1,))
    return max(apart(contributions(toy), wanted), apart(contributions(free), contributions(dense)))


@proof(
    16, "dp_sgd", "golden", "an update is the sum of its rows' updates, each clipped alone", 1e-6
)
def clipped_row_by_row():
    toy = Words("dp_sgd(sgd, 0.3, 0)", rate=1.0, sizes=(4,), batch_size=4)
    start, batch = toy.flat(), toy.batch(0)
    change = toy.run(1)[-1] - start
    total = np.zeros_like(start)
    for i in range(4):
        alone = Words("sgd", rate=1.0, clip_norm=0.3)
        alone.batch = lambda _, i=i: {name: value[i : i + 1] for name, value in batch.items()}
        total += (alone.run(1)[-1] - start) / 4
    return apart(change, total)


@proof(16, "dp_sgd", "golden", "the noise has deviation sigma C / B, whatever was drawn", 0.02)
def deviation_of_noise():
    worst = 0.0
    toy = Still("dp_sgd(sgd, 0.5, 2)", rate=1.0, batch_size=4)
    before = toy.flat()
    for _ in range(4):  # batches of no row and of five
        after = toy.run(1)[-1]
        worst = max(worst, abs(np.std(after - before) / (2 * 0.5 / 4) - 1))
        before = after
    return worst


@proof(16, "dp_sgd", "golden", "every entry gets noise, also of words that were not there", 0.0)
def noise_everywhere():
    toy = Words("dp_sgd(sgd, 0.5, 2)", **DP)
    before = toy.flat()
    return np.sum(toy.run(1)[-1] == before)


@proof(16, "dp_sgd", "golden", "noise of one update tells nothing of the next", 0.05)
def independent_noise():
    toy = Still("dp_sgd(sgd)", rate=1.0, num_weights=4_000, batch_size=1)
    first = toy.run(1)[-1]
    second = toy.run(1)[-1] - first
    other = end(Still, "dp_sgd(sgd)", 1, rate=1.0, num_weights=4_000, batch_size=1, seed=1)
    return max(abs(np.corrcoef(first, x)[0, 1]) for x in (second, other))


@proof(16, "dp_sgd", "differs", "clipping at 0.1 leads elsewhere", 1e-2, AT_LEAST)
def private_differs():
    return apart(end(Words, "sgd"), end(Words, "dp_sgd(sgd, 0.1, 0)", **DP))


@proof(16, "dp_sgd", "identity", "optimizer.clip_norm does not clip a second time", 0.0)
def clipped_once_only():
    free, bound = (end(Words, "dp_sgd(sgd, 1, 1)", clip_norm=norm, **DP) for norm in (None, 1e-3))
    return apart(free, bound)


@proof(16, "dp_sgd", "identity", "a batch without rows moves nothing but for noise", 0.0)
def empty_batch():
    toy = Words("dp_sgd(sgd, 1, 0)", **DP)
    nobody = {"tokens": np.zeros((1, 1), np.int32), "label": np.zeros(1, np.int32)}
    toy.batch = lambda i: nobody | {"weight": np.zeros(1, np.float32)}
    before = toy.flat()
    return apart(before, toy.run(1)[-1])


@proof(16, "dp_sgd", "golden", "epsilon is Opacus' 7.32911 (noise 1.5, rate 0.04, 90 epochs)", 1e-2)
def epsilon_of_opacus():
    # opacus/tests/accountants_test.py, test_rdp_accountant: an implementation of its own.
    return abs(epsilon(1.5, 0.04, 2250, 1e-5) - 7.32911117143)


@proof(
    16, "dp_sgd", "golden", "epsilon is below the 1.26 of Abadi et al., fig. 2, and near it", 0.25
)
def epsilon_of_the_paper():
    # Their moments accountant is the same composition, read off with a looser bound.
    value = epsilon(4.0, 0.01, 10_000, 1e-5)
    return 1.26 - value if value <= 1.26 else np.inf


@proof(16, "dp_sgd", "identity", "compiled by XLA it is the same, its noise too", 1e-5)
def private_by_xla():
    plain = end(Words, "dp_sgd(momentum, 0.5, 1)", **DP)
    return apart(plain, end(Words, "dp_sgd(momentum, 0.5, 1)", xla=True, **DP))


@proof(16, "dp_sgd", "composed", "lookahead with alpha = 1 around it changes nothing", 1e-6)
def private_lookahead():
    inside = "dp_sgd(adamw, 0.5, 1)"
    return apart(end(Words, inside, **DP), end(Words, f"lookahead({inside}, 2, 1)", **DP))


@proof(16, "dp_sgd", "resume", "the noise goes on where it was", 0.0)
def private_resumed():
    return resumed(Words, "dp_sgd(adamw, 0.5, 1)", dropout=0.3, **DP)


def _noise_of_examples(self, batches):
    gradients, sums = _private_gradient(self, batches)
    noise = privacy.gaussian(gradients, purpose=9, seed=self.seed, step=self.count)
    factor = (
        self.noise * self.limit * tf.sqrt(tf.cast(tf.shape(batches["weight"])[1] - 1, tf.float32))
    )
    return [g + factor * n for g, n in zip(gradients, noise, strict=True)], sums


_private_gradient = DifferentiallyPrivate.gradient


def _clipped_batch(self, batches):
    gradients, sums = self.inner.gradient(batches)
    clipped = tf.clip_by_global_norm(gradients, self.limit * sums["num_targets"])[0]
    return [tf.convert_to_tensor(g) for g in clipped], sums


def _clipped_each(gradients, limit):
    return [tf.clip_by_norm(tf.convert_to_tensor(g), limit) for g in gradients], None


_gaussian = privacy.gaussian


def _noise_where_it_was_used(like, **key):
    return [
        tf.where(x == 0, tf.zeros_like(x), n)
        for x, n in zip(like, _gaussian(like, **key), strict=True)
    ]


def _same_noise(like, *, step, **key):
    return _gaussian(like, step=tf.zeros_like(step), **key)


def _divided_by_the_number_drawn(self, batches):
    self.batch_size = tf.maximum(tf.cast(tf.shape(batches["weight"])[1], tf.float32), 1.0)
    return _private_update(self, batches)


_private_update = DifferentiallyPrivate.update


_apply = OptimizerRule.apply


def _clips_again(self, gradients):
    self.clip_norm = 1e-3
    return _apply(self, gradients)


mutant(
    "noise for every example",
    deviation_of_noise,
    (DifferentiallyPrivate, "gradient", _noise_of_examples),
)
mutant(
    "the batch's gradient is clipped",
    clipped_row_by_row,
    (DifferentiallyPrivate, "gradient", _clipped_batch),
)
mutant("every weight is clipped alone", bounded_contribution, (privacy, "clip", _clipped_each))
mutant(
    "the norm of sparse rows without repeats added up",
    bounded_contribution,
    (rules, "distinct_rows", lambda gradient: gradient),
)
mutant(
    "no noise for absent words", noise_everywhere, (privacy, "gaussian", _noise_where_it_was_used)
)
mutant("the same noise every time", independent_noise, (privacy, "gaussian", _same_noise))
mutant(
    "divided by the number of rows drawn",
    deviation_of_noise,
    (DifferentiallyPrivate, "update", _divided_by_the_number_drawn),
)
