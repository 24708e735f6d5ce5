"""Claims that are made of many strategies alike, and what the others leave open.

Every optimizer takes the steps of one large batch inside `accumulate`; none takes those of another;
and where a quadratic has a closed form, a strategy follows it.
"""

from contextlib import ExitStack
from functools import cache, partial
from unittest import mock

import keras
import numpy as np
import tensorflow as tf

from tests.proofs import AT_LEAST, Mutant, Proof
from tests.training.strategies.measures import UNEQUAL, Joined
from tests.training.strategies.proofs_accumulation import mean_of_means
from tests.training.strategies.proofs_across import TwoValleys
from tests.training.strategies.proofs_optimizers import (
    LR,
    apart,
    every_step_from_the_rate,
    faults,
    listed,
    proof,
    replaced,
)
from tests.training.strategies.proofs_regularisers import penalise_each_batch
from tests.training.strategies.toys import CURVATURE, START, Quadratic, Toy, Words
from training.optimizers import OPTIMIZERS
from training.optimizers.classic import SGD, Adam, RMSprop
from training.strategies.accumulation import Accumulate
from training.strategies.averaging import ExponentialMovingAverage, StochasticWeightAverage
from training.strategies.catalogue import OPTIMIZERS as PARTS
from training.strategies.local_sgd import LocalSGD
from training.strategies.penalties import Penalty
from training.strategies.rules import Around


class Valley(Toy):
    """f(W) = 1/2 sum a (W - C)^2 of one float64 (3, 5) matrix, C another one in every example.

    Batches hold 1 and 3 examples in turn; with `join` above 1 so many batches are one.
    """

    def __init__(self, expression, *, join=1, **settings):
        rng = np.random.default_rng(2)
        self.curvature, self.join = rng.uniform(0.5, 4, (3, 5)), join
        self.weights = [keras.Variable(rng.normal(size=(3, 5)), dtype="float64", name="kernel")]
        self.task = self.loss
        super().__init__(expression, rate=LR, **settings)

    def loss(self, batch):
        count = tf.reduce_sum(tf.ones_like(batch["centre"][:, 0, 0]))
        total = 0.5 * tf.reduce_sum(self.curvature * (self.weights[0].value - batch["centre"]) ** 2)
        return {"loss_sum": total, "num_targets": count, "num_correct": tf.zeros_like(count)}

    def batch(self, i):
        sizes = [1 + 2 * (j % 2) for j in range(self.join * (i + 1))]
        first, count = sum(sizes[: self.join * i]), sum(sizes[self.join * i :])
        rng = [np.random.default_rng([4, example]) for example in range(first, first + count)]
        return {"centre": np.stack([each.normal(size=(3, 5)) for each in rng])}


# Every optimizer ----------------------------------------------------------------------------------


def accumulated_apart(name) -> float:
    return apart(Valley(f"accumulate({name}, 2)").run(4), Valley(name, join=2).run(4))


@cache
def path_of(name) -> np.ndarray:
    return Valley(name).run(5)


def nearest_other(name) -> float:
    """How far the updates of any other optimizer stay away. `adam` without decay is `adamw`."""
    mine = Valley(name).run(5)
    others = PARTS.keys() - ({"adam", "adamw"} if name == "adam" else {name})
    return min(apart(mine, path_of(other)) for other in others)


LARGE = "inside accumulate it takes the steps of one large batch, of unequal small ones"
ALONE = "no other optimizer takes its steps"
SIGNS = "with rho = 0 every step of every weight is the rate"

PROOFS: list[Proof] = [
    *(proof(name, "composed", LARGE, 1e-13, accumulated_apart, name) for name in OPTIMIZERS),
    *(
        proof(name, "differs", ALONE, 1e-3, nearest_other, name, holds=AT_LEAST)
        for name in ("sgd", "adam", "rmsprop", "adafactor", "lamb", "lion", "muon")
    ),
    proof("rmsprop", "identity", SIGNS, 1e-6, every_step_from_the_rate, "rmsprop(0)"),
]
MUTANTS: list[Mutant] = [
    *(
        fault
        for name in OPTIMIZERS
        for fault in faults(
            name,
            "mean of means",
            (LARGE,),
            replaced,
            Accumulate,
            "gradient",
            mean_of_means,
        )
    ),
    *faults("sgd", "Adam under its name", (ALONE,), listed, "sgd", lambda rate: Adam(rate)),
    *(
        fault
        for name in ("adam", "rmsprop", "adafactor", "lamb", "lion", "muon")
        for fault in faults(
            name, "SGD under its name", (ALONE,), listed, name, lambda rate, **_: SGD(rate)
        )
    ),
    *faults(
        "rmsprop",
        "0 taken for not given",
        (SIGNS,),
        listed,
        "rmsprop",
        lambda rate, rho: RMSprop(rate, rho=rho or 0.9),
    ),
]


# Closed forms on a quadratic ----------------------------------------------------------------------


CENTRES, SIZES = ((1.0, 0.5), (-1.0, 2.0)), (1, 3)
KEPT = 1 - LR * CURVATURE  # of the distance to the minimum, by an update of SGD
STEPS = np.arange(1.0, 13.0)[:, None]  # the updates done


def accumulate_off() -> float:
    """Each update keeps the same share of the distance to the weighted mean of the centres."""
    centre = np.average(CENTRES, axis=0, weights=SIZES)
    toy = Quadratic("accumulate(sgd, 2)", rate=LR, centres=CENTRES, examples=SIZES)
    return apart(toy.run(12), centre + KEPT**STEPS * (START - centre))


def evaluated_off(name, expected) -> float:
    toy, evaluated = Quadratic(name, rate=LR), []
    for _ in STEPS:
        toy.run(1)
        evaluated.append(toy.evaluated())
    return apart(evaluated, expected)


def ema_off(beta=0.8) -> float:
    """(1-b) sum_s b^(t-s) r^s w_0 / (1-b^t), summed up."""
    total = KEPT * (KEPT**STEPS - beta**STEPS) / (KEPT - beta)
    return evaluated_off(f"ema(sgd, {beta})", START * (1 - beta) / (1 - beta**STEPS) * total)


def swa_off() -> float:
    """1/t sum_s r^s w_0, summed up."""
    return evaluated_off("swa(sgd, 0)", START * KEPT * (1 - KEPT**STEPS) / (1 - KEPT) / STEPS)


def local_sgd_off() -> float:
    """Three meetings, after each of which w is the mean of c_i + (1 - lr a_i)^H (w - c_i)."""
    w, path = START, []
    for _ in range(3):
        ends = []
        for centre, curvature in (((0, 0), (1, 10)), ((1, 1), (2, 4))):
            c, a = np.array(centre, float), np.array(curvature, float)
            ends.append(c + (1 - LR * a) ** 4 * (w - c))
        w = np.mean(ends, axis=0)
        path.append(w)
    return apart(TwoValleys("local_sgd(sgd, 2, 4)", rate=LR).run(12)[3::4], path)


def penalty_accumulated_apart() -> float:
    one = Joined("l1(sgd, 0.3)", **UNEQUAL).run(3)[-1]
    inside, around = "accumulate(l1(sgd, 0.3), 4)", "l1(accumulate(sgd, 4), 0.3)"
    return max(apart(one, Words(e, **UNEQUAL).run(3)[-1]) for e in (inside, around))


# (row, strategy, kind, claim, tolerance, what measures)
MORE = (
    (4, "accumulate", "golden", "two batches are SGD towards their weighted mean", 1e-13)
    + (accumulate_off,),
    (6, "ema", "golden", "over SGD it is the closed form of a sum of powers", 1e-13, ema_off),
    (6, "swa", "golden", "over SGD it is the closed form of a sum of powers", 1e-13, swa_off),
    (10, "local_sgd", "golden", "two workers, H=4, meet where powers say", 1e-13, local_sgd_off),
    (0, "l1", "composed", "one update, one penalty: inside accumulate and around it", 1e-6)
    + (penalty_accumulated_apart,),
)
NAMES = ("row", "strategy", "kind", "claim", "tolerance", "measure")
PROOFS += [Proof(**dict(zip(NAMES, values, strict=True))) for values in MORE]


def _added_up(self, shared, mean):
    return [w + self.num_here * (m - w) for w, m in zip(shared, mean, strict=True)]


def _uncorrected(self, count):
    return tf.constant(1 - self.beta, tf.float64)


def _start_counted(self, count):
    return 1 / tf.cast(count + 1, tf.float64)


# strategy -> its claim of MORE is broken by (fault, *what is replaced)
FAULTS = {
    "accumulate": ("mean of means here", (Accumulate, "gradient", mean_of_means)),
    "ema": ("its start is not left out", (ExponentialMovingAverage, "share", _uncorrected)),
    "swa": (
        "the random weights are one of them",
        (StochasticWeightAverage, "share", _start_counted),
    ),
    "local_sgd": ("the workers' changes are added up", (LocalSGD, "outer_step", _added_up)),
}


def _of_each_batch():
    stack = ExitStack()
    for name, value in (
        ("apply", Around.apply),
        ("gradient", penalise_each_batch),
    ):
        stack.enter_context(mock.patch.object(Penalty, name, value, create=True))
    return stack


MUTANTS += [
    Mutant(
        name=FAULTS[strategy][0],
        strategy=strategy,
        claim_it_breaks=text,
        apply=partial(mock.patch.object, *FAULTS[strategy][1]),
    )
    for _, strategy, _, text, *_ in MORE
    if strategy in FAULTS
]
MUTANTS += faults("l1", "a penalty for every micro-batch", (MORE[-1][3],), _of_each_batch)
