"""Proofs of gradient accumulation (row 4) and of clipping (row 15)."""

import numpy as np
import tensorflow as tf

from tests.proofs import AT_LEAST, Ledger
from tests.training.strategies.measures import (
    REAL,
    UNEQUAL,
    Joined,
    JoinedMany,
    apart,
    end,
    resumed,
)
from tests.training.strategies.toys import Words
from training.strategies import rules
from training.strategies.accumulation import Accumulate
from training.strategies.averaging import ExponentialMovingAverage
from training.strategies.gradients import add, scale
from training.strategies.rules import OptimizerRule, pick

LEDGER = Ledger()
proof, mutant = LEDGER.proof, LEDGER.mutant
PROOFS, MUTANTS = LEDGER.proofs, LEDGER.mutants


# 4. Accumulation ----------------------------------------------------------------------------------


@proof(4, "accumulate", "identity", "k equal batches are one large batch", 1e-6)
def equal_batches():
    one = end(Joined, "adamw", 5)
    return apart(one, end(Words, "accumulate(adamw, 4)", 5))


@proof(
    4,
    "accumulate",
    "identity",
    "unequal, padded batches of sparse gradients are one large batch (decay, clipping, schedule)",
    1e-6,
)
def unequal_batches():
    one = end(Joined, "adamw", 5, **UNEQUAL, **REAL)
    return apart(one, end(Words, "accumulate(adamw, 4)", 5, **UNEQUAL, **REAL))


@proof(4, "accumulate", "identity", "32 batches of one row are one batch of 32", 1e-6)
def many_batches():
    one = end(JoinedMany, "momentum", 2, sizes=(1,))
    return apart(one, end(Words, "accumulate(momentum, 32)", 2, sizes=(1,)))


@proof(4, "accumulate", "identity", "the optimizer counts updates, not batches", 0.0)
def counted_updates():
    toy = Words("accumulate(adamw, 4)")
    toy.run(3)
    return abs(int(toy.rule.optimizer_rule.optimizer.iterations) - 3)


@proof(4, "accumulate", "identity", "compiled by XLA it is the same", 1e-6)
def accumulated_by_xla():
    plain = end(Words, "accumulate(adamw, 4)", 3, **UNEQUAL)
    return apart(plain, end(Words, "accumulate(adamw, 4)", 3, xla=True, **UNEQUAL))


@proof(4, "accumulate", "identity", "two updates in one call are two calls", 0.0)
def accumulated_in_one_call():
    a, b = (Words("accumulate(adamw, 3)", **UNEQUAL) for _ in range(2))
    return apart(a.run(4)[-1], b.run(4, per_call=2)[-1])


@proof(4, "accumulate", "differs", "one update of 4 batches is not 4 updates", 1e-3, AT_LEAST)
def not_single_updates():
    return apart(end(Words, "adamw", 4), end(Words, "accumulate(adamw, 4)", 1))


@proof(4, "accumulate", "composed", "an average around it sees one update", 1e-6)
def averaged_once():
    one, many = (
        Joined("ema(adamw, 0.6)", **UNEQUAL),
        Words("ema(accumulate(adamw, 4), 0.6)", **UNEQUAL),
    )
    one.run(4)
    many.run(4)
    return apart(one.evaluated(), many.evaluated())


@proof(4, "accumulate", "resume", "stopped between any two updates it goes on bit for bit", 0.0)
def accumulation_resumed():
    return resumed(Words, "accumulate(adamw, 3)", dropout=0.3, **UNEQUAL)


def mean_of_means(self, batches):
    total, all_sums = None, None
    for j in range(self.k):
        gradients, sums = self.inner.gradient(pick(batches, j, 1))
        mean = scale(gradients, 1 / sums["num_targets"])
        total = mean if total is None else add(total, mean)
        all_sums = sums if all_sums is None else {n: all_sums[n] + sums[n] for n in sums}
    return scale(total, all_sums["num_targets"] / self.k), all_sums


def _average_of_micro_batches(self, count):
    beta = tf.cast(self.beta, tf.float64) ** self.num_batches
    return (1 - beta) / (1 - beta ** tf.cast(count, tf.float64))


_differentiate = OptimizerRule.differentiate


def _clipped_at_once(self, tape, scaled):
    return tf.clip_by_global_norm(_differentiate(self, tape, scaled), 0.3)[0]


_apply = OptimizerRule.apply


def _one_batch_forgotten(self, batches):
    return self.inner.gradient(pick(batches, 0, 1))


def counted_per_batch(self, gradients):
    said = _apply(self, gradients)
    self.optimizer.iterations.assign_add(3)
    return said


mutant("mean of means", unequal_batches, (Accumulate, "gradient", mean_of_means))
mutant("only the first batch", equal_batches, (Accumulate, "gradient", _one_batch_forgotten))
mutant(
    "clipping before aggregation",
    unequal_batches,
    (OptimizerRule, "differentiate", _clipped_at_once),
)
mutant(
    "the count of updates counts batches",
    counted_updates,
    (OptimizerRule, "apply", counted_per_batch),
)
mutant(
    "EMA per micro-batch",
    averaged_once,
    (ExponentialMovingAverage, "share", _average_of_micro_batches),
)


# 15. Clipping -------------------------------------------------------------------------------------


@proof(15, "clip_norm", "identity", "a huge bound changes nothing", 1e-6)
def huge_bound():
    return apart(end(Words, "sgd"), end(Words, "sgd", clip_norm=1e6))


@proof(15, "clip_norm", "golden", "a step of SGD is as long as rate times the bound", 1e-4)
def length_of_a_clipped_step():
    toy = Words("sgd", rate=1.0, clip_norm=0.01, sizes=(8,))  # words repeat within the batch
    before = toy.flat()
    return abs(np.linalg.norm(toy.run(1)[-1] - before) / 0.01 - 1)


@proof(15, "clip_norm", "differs", "a small bound shortens the way", 1e-2, AT_LEAST)
def small_bound():
    return apart(end(Words, "sgd"), end(Words, "sgd", clip_norm=0.01))


@proof(15, "clip_norm", "composed", "the gradient of all batches is clipped, once", 1e-6)
def clipped_once():
    settings = UNEQUAL | {"clip_norm": 0.05}
    return apart(end(Joined, "sgd", **settings), end(Words, "accumulate(sgd, 4)", **settings))


mutant(
    "repeated rows not added up before the norm",
    length_of_a_clipped_step,
    (rules, "distinct_rows", lambda gradient: gradient),
)
mutant(
    "clipping before aggregation (clip_norm)",
    clipped_once,
    (
        OptimizerRule,
        "differentiate",
        lambda self, tape, x: tf.clip_by_global_norm(_differentiate(self, tape, x), 0.05)[0],
    ),
)
