"""Proofs of steps that take a second gradient elsewhere: SAM (row 8), extragradient (row 9)."""

import numpy as np
import tensorflow as tf

from tests.proofs import AT_LEAST, Ledger
from tests.training.strategies.measures import (
    UNEQUAL,
    DenseWords,
    Joined,
    apart,
    end,
    moved_by_gradient,
    resumed,
    stepped,
)
from tests.training.strategies.toys import CURVATURE, START, Quadratic, Words
from training.strategies import sharpness
from training.strategies.gradients import global_norm, scale
from training.strategies.sharpness import Extragradient, SharpnessAware

LEDGER = Ledger()
proof, mutant = LEDGER.proof, LEDGER.mutant
PROOFS, MUTANTS = LEDGER.proofs, LEDGER.mutants


# 8. SAM -------------------------------------------------------------------------------------------


@proof(8, "sam", "identity", "rho = 0 is the rule inside", 0.0)
def sam_of_nothing():
    return apart(end(Words, "adamw"), end(Words, "sam(adamw, 0)"))


@proof(8, "sam", "golden", "one step from (1, -2) is that of the paper's equations", 1e-9)
def sam_golden():
    return apart(end(Quadratic, "sam(sgd, 0.05)", 1, rate=0.1), [0.8997503119, 0.0499376169])


@proof(8, "sam", "golden", "the gradient is A (w + rho A w / |A w|), step after step", 1e-12)
def sam_closed_form():
    w, path = START.copy(), []
    for _ in range(10):
        g = CURVATURE * w
        w = w - 0.05 * CURVATURE * (w + 0.3 * g / np.linalg.norm(g))
        path.append(w)
    return apart(path, Quadratic("sam(sgd, 0.3)").run(10))


@proof(8, "sam", "golden", "the step is rho long over all weights together", 1e-6)
def sam_of_all_weights():
    return apart(end(Words, "sam(sgd, 0.5)", 1, rate=1.0), stepped(0.5, np.ones(1), combine=False))


@proof(8, "sam", "identity", "the weights are put back bit for bit, sparse rows too", 0.0)
def sam_puts_back():
    return max(moved_by_gradient(Words("sam(adamw, 0.3)", data_seed=s)) for s in range(3))


@proof(8, "sam", "identity", "sparse gradients step where dense ones do", 1e-6)
def sam_sparse():
    return apart(end(Words, "sam(sgd, 0.5)"), end(DenseWords, "sam(sgd, 0.5)"))


@proof(8, "sam", "identity", "compiled by XLA it is the same", 1e-6)
def sam_by_xla():
    return apart(end(Words, "sam(momentum, 0.3)"), end(Words, "sam(momentum, 0.3)", xla=True))


@proof(8, "sam", "differs", "rho = 0.05 leads elsewhere", 1e-2, AT_LEAST)
def sam_differs():
    return apart(end(Quadratic, "sgd", 1, rate=0.1), end(Quadratic, "sam(sgd)", 1, rate=0.1))


@proof(8, "sam", "composed", "around accumulate, rho = 0 is accumulate", 0.0)
def sam_around_accumulate():
    inside = "accumulate(adamw, 4)"
    return apart(end(Words, inside, **UNEQUAL), end(Words, f"sam({inside}, 0)", **UNEQUAL))


@proof(8, "sam", "composed", "around accumulate it is SAM of one large batch", 1e-6)
def sam_of_a_large_batch():
    one = end(Joined, "sam(sgd, 0.3)", **UNEQUAL)
    return apart(one, end(Words, "sam(accumulate(sgd, 4), 0.3)", **UNEQUAL))


@proof(8, "sam", "resume", "stopped between any two updates it goes on bit for bit", 0.0)
def sam_resumed():
    return resumed(Words, "sam(accumulate(adamw, 2))", dropout=0.3, **UNEQUAL)


_move, _put_back = sharpness.move, sharpness.put_back


def _keep_changes(weights, changes):
    _move(weights, changes)
    return changes


def _subtract(weights, changes):
    _move(weights, scale(changes, -1.0))


def _norm_of_each(self, gradients, num_targets):
    return [scale([g], self.rho / global_norm([g]))[0] for g in gradients]


def _downhill(self, gradients, num_targets):
    return scale(gradients, -self.rho / global_norm(gradients))


def _gradient_here(self, here, there):
    return here


mutant("SAM does not put the weights back", sam_puts_back, (sharpness, "put_back", lambda *_: None))
mutant(
    "SAM puts back by a subtraction that rounds",
    sam_puts_back,
    (sharpness, "move", _keep_changes),
    (sharpness, "put_back", _subtract),
)
mutant(
    "SAM takes the gradient where it was", sam_golden, (SharpnessAware, "combined", _gradient_here)
)
mutant("SAM steps downhill", sam_closed_form, (SharpnessAware, "changes", _downhill))
mutant(
    "SAM takes the norm weight by weight",
    sam_of_all_weights,
    (SharpnessAware, "changes", _norm_of_each),
)


# 9. Extragradient ---------------------------------------------------------------------------------


class Game(Quadratic):
    """min over x, max over y of x y: the second half of the gradient is negated."""

    def loss(self, batch):
        x, y = tf.unstack(self.weights[0].value)
        value = x * tf.stop_gradient(y) - tf.stop_gradient(x) * y
        return super().loss(batch) | {"loss_sum": value}


TURN = np.array([[0.0, 1.0], [-1.0, 0.0]])  # the gradient field of the game


@proof(9, "extragradient", "identity", "rate = 0 is the rule inside", 0.0)
def extragradient_of_nothing():
    return apart(end(Words, "adamw"), end(Words, "extragradient(adamw, 0)"))


@proof(9, "extragradient", "golden", "w <- w - lr J (w - rate J w) on min max x y", 1e-12)
def extragradient_closed_form():
    w, path = START.copy(), []
    for _ in range(20):
        w = w - 0.1 * TURN @ (w - 0.2 * TURN @ w)
        path.append(w)
    return apart(path, Game("extragradient(sgd, 0.2)", rate=0.1).run(20))


@proof(9, "extragradient", "golden", "it reaches the saddle point of min max x y", 1e-3)
def extragradient_converges():
    return np.linalg.norm(Game("extragradient(sgd, 0.3)", rate=0.3).run(320, per_call=80)[-1])


@proof(9, "extragradient", "differs", "descent and ascent diverge there", 10.0, AT_LEAST)
def descent_diverges():
    return np.linalg.norm(Game("sgd", rate=0.3).run(320, per_call=80)[-1])


@proof(9, "extragradient", "identity", "the weights are put back bit for bit", 0.0)
def extragradient_puts_back():
    return moved_by_gradient(Words("extragradient(adamw, 0.3)"))


@proof(
    9, "extragradient", "composed", "a batch counts once: around accumulate as on one batch", 1e-6
)
def extragradient_of_a_large_batch():
    one = end(Joined, "extragradient(sgd, 0.5)", **UNEQUAL)
    return apart(one, end(Words, "extragradient(accumulate(sgd, 4), 0.5)", **UNEQUAL))


@proof(9, "extragradient", "composed", "a scaled loss does not make its steps longer", 0.0)
def extragradient_of_a_scaled_loss():
    inside = "extragradient(sgd, 0.5)"
    return apart(end(Words, inside), end(Words, f"loss_scale({inside})"))


@proof(9, "extragradient", "resume", "stopped between any two updates it goes on bit for bit", 0.0)
def extragradient_resumed():
    return resumed(Words, "extragradient(adamw, 0.3)", dropout=0.3)


def _step_of_a_sum(self, gradients, num_targets):
    return scale(gradients, -self.rate)


mutant(
    "extragradient takes the gradient where it was",
    extragradient_converges,
    (Extragradient, "combined", _gradient_here),
)
mutant(
    "extragradient steps by the summed, scaled gradient",
    extragradient_of_a_scaled_loss,
    (Extragradient, "changes", _step_of_a_sum),
)
mutant(
    "extragradient does not put the weights back",
    extragradient_puts_back,
    (sharpness, "put_back", lambda *_: None),
)
