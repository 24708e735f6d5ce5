"""Proofs of R-Drop, FGM, L1, L2 and gradient noise, which have no row in the catalogue."""

import keras
import numpy as np
import tensorflow as tf

from tests.proofs import AT_LEAST, Ledger
from tests.training.strategies.measures import (
    UNEQUAL,
    Joined,
    apart,
    end,
    moved_by_gradient,
    resumed,
    stepped,
)
from tests.training.strategies.proofs_privacy import Still
from tests.training.strategies.toys import CURVATURE, START, Quadratic, Toy, Words
from training.losses import TaskLoss, classification_loss, language_model_loss
from training.strategies import sharpness
from training.strategies.adversarial import FastGradient
from training.strategies.gradients import global_norm, scale
from training.strategies.penalties import GradientNoise, Penalty
from training.strategies.r_drop import RDrop
from training.strategies.rules import Around

LEDGER = Ledger()
proof, mutant = LEDGER.proof, LEDGER.mutant
PROOFS, MUTANTS = LEDGER.proofs, LEDGER.mutants
REGULARISER = 0  # in place of a row


# Regularisers: R-Drop -----------------------------------------------------------------------------


@proof(REGULARISER, "r_drop", "identity", "without dropout it is the plain loss", 1e-6)
def r_drop_without_dropout():
    return apart(end(Words, "sgd"), end(Words, "r_drop(sgd, 3)"))


def kl(p, q):
    return np.sum(p * (np.log(p) - np.log(q)), axis=-1)


def softmax(x):
    return np.exp(x) / np.exp(x).sum(-1, keepdims=True)


def r_drop_of(batch, loss, logits, alpha=0.7):
    """The summed loss for two given sets of logits, and that by the paper's equations."""
    draws = iter(map(tf.constant, logits))
    found = RDrop(TaskLoss(lambda _: next(draws), loss), alpha)(batch)
    p, q = map(softmax, logits)
    targets = batch.get("targets", batch.get("label"))
    weight = (batch["targets"] != 0) if "targets" in batch else batch["weight"]
    nll = [-np.log(np.take_along_axis(x, targets[..., None], -1)[..., 0]) for x in (p, q)]
    wanted = (nll[0] + nll[1]) / 2 + alpha / 2 * (kl(p, q) + kl(q, p)) / 2
    return float(found["loss_sum"]), np.sum(wanted * weight)


@proof(REGULARISER, "r_drop", "golden", "the loss is eq. 3-4 of the paper, padding left out", 1e-4)
def r_drop_golden():
    rng = np.random.default_rng(0)
    labels = {"label": np.array([0, 2, 1], np.int32), "weight": np.array([1, 1, 0], np.float32)}
    tokens = {"targets": np.array([[1, 4, 2], [3, 0, 0]], np.int32)}
    pairs = (
        r_drop_of(labels, classification_loss, rng.normal(size=(2, 3, 4)).astype("float32")),
        r_drop_of(tokens, language_model_loss, rng.normal(size=(2, 2, 3, 5)).astype("float32")),
    )
    return max(abs(found - wanted) for found, wanted in pairs)


@proof(REGULARISER, "r_drop", "differs", "with dropout the divergence is learned", 1e-3, AT_LEAST)
def r_drop_differs():
    return apart(
        end(Words, "r_drop(sgd, 0)", dropout=0.5), end(Words, "r_drop(sgd, 5)", dropout=0.5)
    )


@proof(REGULARISER, "r_drop", "composed", "inside accumulate it is that of one large batch", 1e-6)
def r_drop_accumulated():
    return apart(
        end(Joined, "r_drop(sgd)", **UNEQUAL), end(Words, "accumulate(r_drop(sgd), 4)", **UNEQUAL)
    )


@proof(
    REGULARISER, "r_drop", "resume", "stopped between any two updates it goes on bit for bit", 0.0
)
def r_drop_resumed():
    return resumed(Words, "r_drop(adamw)", dropout=0.5)


_r_drop = RDrop.__call__


def _one_mask(self, batch):
    logits = self.task.logits(batch)
    return _r_drop(RDrop(TaskLoss(lambda _: logits, self.task.of_logits), self.alpha), batch)


mutant("R-Drop with one mask", r_drop_differs, (RDrop, "__call__", _one_mask))


# Regularisers: FGM --------------------------------------------------------------------------------


class Table(Quadratic):
    """The quadratic, its weights an embedding."""

    def __init__(self, expression, **settings):
        super().__init__("sgd", **settings)
        self.weights = [keras.Variable(START.copy(), dtype="float64", name="embedding")]
        Toy.__init__(self, expression, **settings)


@proof(REGULARISER, "fgm", "golden", "the gradient is A w + A (w + eps A w / |A w|)", 1e-12)
def fgm_closed_form():
    w, path = START.copy(), []
    for _ in range(10):
        g = CURVATURE * w
        w = w - 0.02 * (g + CURVATURE * (w + 0.3 * g / np.linalg.norm(g)))
        path.append(w)
    return apart(path, Table("fgm(sgd, 0.3)", rate=0.02).run(10))


@proof(REGULARISER, "fgm", "identity", "epsilon = 0 is the gradient twice", 1e-6)
def fgm_of_nothing():
    return apart(end(Words, "sgd", rate=0.1), end(Words, "fgm(sgd, 0)", rate=0.05))


@proof(REGULARISER, "fgm", "golden", "only embeddings are changed", 1e-6)
def fgm_of_embeddings():
    toy = Words("fgm(sgd, 0.5)", rate=1.0)
    embeddings = np.arange(len(toy.flat())) < Words.vocabulary_size * Words.width
    return apart(toy.run(1)[-1], stepped(0.5, embeddings, combine=True))


@proof(REGULARISER, "fgm", "identity", "the weights are put back bit for bit", 0.0)
def fgm_puts_back():
    return max(moved_by_gradient(Words("fgm(adamw)", data_seed=s)) for s in range(3))


@proof(REGULARISER, "fgm", "identity", "compiled by XLA it is the same", 1e-6)
def fgm_by_xla():
    return apart(end(Words, "fgm(sgd)"), end(Words, "fgm(sgd)", xla=True))


@proof(REGULARISER, "fgm", "differs", "epsilon = 1 leads elsewhere", 1e-3, AT_LEAST)
def fgm_differs():
    return apart(end(Words, "fgm(sgd, 0)"), end(Words, "fgm(sgd, 1)"))


@proof(REGULARISER, "fgm", "composed", "around accumulate it is that of one large batch", 1e-6)
def fgm_accumulated():
    return apart(
        end(Joined, "fgm(sgd)", **UNEQUAL), end(Words, "fgm(accumulate(sgd, 4))", **UNEQUAL)
    )


@proof(REGULARISER, "fgm", "resume", "stopped between any two updates it goes on bit for bit", 0.0)
def fgm_resumed():
    return resumed(Words, "fgm(accumulate(adamw, 2))", dropout=0.3, **UNEQUAL)


def _changes_all(self, gradients, num_targets):
    return scale(gradients, self.epsilon / global_norm(gradients))


mutant("FGM does not put the weights back", fgm_puts_back, (sharpness, "put_back", lambda *_: None))
mutant("FGM changes all weights", fgm_of_embeddings, (FastGradient, "changes", _changes_all))
mutant(
    "FGM leaves out the gradient at the weights",
    fgm_closed_form,
    (FastGradient, "combined", lambda self, here, there: there),
)


# Regularisers: penalties and noise ----------------------------------------------------------------


@proof(REGULARISER, "l2", "golden", "w <- w - lr (A w + c w)", 1e-12)
def l2_closed_form():
    path = START * np.cumprod(np.tile(1 - 0.05 * (CURVATURE + 0.3), (10, 1)), axis=0)
    return apart(path, Quadratic("l2(sgd, 0.3)").run(10))


@proof(REGULARISER, "l1", "golden", "w <- w - lr (A w + c sign w)", 1e-12)
def l1_closed_form():
    w, path = START.copy(), []
    for _ in range(10):
        w = w - 0.05 * (CURVATURE * w + 0.3 * np.sign(w))
        path.append(w)
    return apart(path, Quadratic("l1(sgd, 0.3)").run(10))


def _beside_matrices(name):
    """How far a penalty moves embeddings and biases in its first update."""
    toys = [Words(e) for e in ("sgd", f"{name}(sgd, 0.5)")]
    for toy in toys:
        toy.bias.assign(np.ones(3, np.float32))
        toy.run(1)
    plain, penalised = toys
    return max(
        apart(plain.embedding.numpy(), penalised.embedding.numpy()),
        apart(plain.bias.numpy(), penalised.bias.numpy()),
    )


@proof(REGULARISER, "l1", "identity", "embeddings and biases are not penalised", 0.0)
def l1_of_matrices():
    return _beside_matrices("l1")


@proof(REGULARISER, "l2", "identity", "embeddings and biases are not penalised", 0.0)
def l2_of_matrices():
    return _beside_matrices("l2")


for _name in ("l1", "l2"):

    @proof(REGULARISER, _name, "identity", "c = 0 is the rule inside", 0.0)
    def _penalty_of_nothing(name=_name):
        return apart(end(Words, "adamw"), end(Words, f"{name}(adamw, 0)"))

    @proof(REGULARISER, _name, "differs", "c = 0.1 leads elsewhere", 1e-3, AT_LEAST)
    def _penalty_differs(name=_name):
        return apart(end(Words, "sgd"), end(Words, f"{name}(sgd, 0.1)"))

    @proof(REGULARISER, _name, "resume", "stopped between any two updates it goes on", 0.0)
    def _penalty_resumed(name=_name):
        return resumed(Words, f"{name}(accumulate(adamw, 2))", dropout=0.3, **UNEQUAL)


@proof(
    REGULARISER, "l2", "composed", "one update, one penalty: inside accumulate and around it", 1e-6
)
def l2_accumulated():
    one = end(Joined, "l2(sgd, 0.3)", **UNEQUAL)
    return max(
        apart(one, end(Words, e, **UNEQUAL))
        for e in ("accumulate(l2(sgd, 0.3), 4)", "l2(accumulate(sgd, 4), 0.3)")
    )


def _penalise_all(self, gradients):
    return Around.apply(
        self, [self._penalised(g, w) for g, w in zip(gradients, self.weights, strict=True)]
    )


def penalise_each_batch(self, batches):
    gradients, sums = self.inner.gradient(batches)
    return [self._penalised(g, w) for g, w in zip(gradients, self.weights, strict=True)], sums


mutant("penalties on biases (l1)", l1_of_matrices, (Penalty, "apply", _penalise_all))
mutant("penalties on biases (l2)", l2_of_matrices, (Penalty, "apply", _penalise_all))
mutant(
    "a penalty for every micro-batch",
    l2_accumulated,
    (Penalty, "apply", Around.apply),
    (Penalty, "gradient", penalise_each_batch),
)
mutant(
    "the slope of c |w|^2",
    l2_closed_form,
    (Penalty, "_penalised", lambda self, g, w: g + 2 * self.c * self.slope(w.value)),
)


class Quiet(Still):
    """With targets in every batch."""

    def batch(self, i):
        return {"weight": np.ones(5, np.float32)}


@proof(REGULARISER, "gradient_noise", "golden", "its variance is eta / (1 + t)^gamma", 0.02)
def noise_dies_away():
    toy, worst = Quiet("gradient_noise(sgd, 0.3, 0.55)", rate=1.0), 0.0
    before = toy.flat()
    for t in range(6):
        after = toy.run(1)[-1]
        worst = max(worst, abs(np.std(after - before) / np.sqrt(0.3 / (1 + t) ** 0.55) - 1))
        before = after
    return worst


@proof(
    REGULARISER, "gradient_noise", "golden", "noise of one update tells nothing of the next", 0.05
)
def noise_anew():
    toy = Quiet("gradient_noise(sgd)", rate=1.0, num_weights=4_000)
    first = toy.run(1)[-1]
    return abs(np.corrcoef(first, toy.run(1)[-1] - first)[0, 1])


@proof(REGULARISER, "gradient_noise", "identity", "eta = 0 is the rule inside", 0.0)
def noise_of_nothing():
    return apart(end(Words, "adamw"), end(Words, "gradient_noise(adamw, 0)"))


@proof(REGULARISER, "gradient_noise", "identity", "rows of words that are not there stay", 0.0)
def noise_on_used_rows():
    toy = Words("gradient_noise(sgd)", sizes=(1,))
    before = toy.embedding.numpy()
    toy.run(1)
    absent = np.setdiff1d(np.arange(toy.vocabulary_size), toy.batch(0)["tokens"])
    return apart(before[absent], toy.embedding.numpy()[absent])


@proof(REGULARISER, "gradient_noise", "differs", "the default leads elsewhere", 1e-3, AT_LEAST)
def noise_differs():
    return apart(end(Words, "sgd"), end(Words, "gradient_noise(sgd)"))


@proof(REGULARISER, "gradient_noise", "composed", "one update of k batches, one noise", 1e-6)
def noise_accumulated():
    one = end(Joined, "gradient_noise(sgd)", **UNEQUAL)
    return apart(one, end(Words, "gradient_noise(accumulate(sgd, 4))", **UNEQUAL))


@proof(REGULARISER, "gradient_noise", "resume", "the noise goes on where it was", 0.0)
def noise_resumed():
    return resumed(Words, "gradient_noise(adamw)", dropout=0.3)


def _without_counting(self, gradients):
    # As if the count were kept outside of the state.
    before = tf.identity(self.count)
    said = _noisy(self, gradients)
    self.count.assign(before)
    return said


_noisy = GradientNoise.apply

mutant("noise that does not die away", noise_dies_away, (GradientNoise, "apply", _without_counting))
mutant("the same noise every update", noise_anew, (GradientNoise, "apply", _without_counting))
