"""Proofs of what happens inside one update (rows 4, 8, 9, 13, 15 to 18), and of regularisers.

The regularisers have no row in the catalogue and stand under row 0. A mutant names in
`claim_it_breaks` the claim of the proof that it must not pass.
"""

import sys
from unittest.mock import patch

import keras
import numpy as np
import tensorflow as tf

from model.catalogue import build_model
from model.config import LSTMLanguageModelConfig, TransformerEncoderConfig
from model.dropout import Dropout
from tests.proofs import AT_LEAST, AT_MOST, Mutant, Proof
from tests.training.strategies.toys import CURVATURE, START, Quadratic, Toy, Words
from training.losses import TaskLoss, classification_loss, language_model_loss
from training.stacking import stack
from training.strategies import privacy, rules, sharpness
from training.strategies.accumulation import Accumulate
from training.strategies.adversarial import FastGradient
from training.strategies.averaging import ExponentialMovingAverage
from training.strategies.gradients import add, global_norm, scale
from training.strategies.loss_scaling import LossScale
from training.strategies.penalties import GradientNoise, Penalty
from training.strategies.privacy import DifferentiallyPrivate, epsilon
from training.strategies.r_drop import RDrop
from training.strategies.rules import Around, OptimizerRule, pick
from training.strategies.sharpness import Extragradient, SharpnessAware
from training.strategies.truncation import Truncate

PROOFS: list[Proof] = []
MUTANTS: list[Mutant] = []
REGULARISER = 0  # in place of a row


def proof(row, strategy, kind, claim, tolerance, holds=AT_MOST):
    """Makes a `Proof` of the function below it, which measures."""

    def made(measure):
        PROOFS.append(
            Proof(
                row=row,
                strategy=strategy,
                kind=kind,
                claim=claim,
                tolerance=tolerance,
                measure=measure,
                holds=holds,
            )
        )
        return PROOFS[-1]

    return made


def mutant(name, breaks, *patches):
    """A fault, as (object, attribute, replacement); `breaks` is the proof that must notice."""

    def apply():
        return _Patched([patch.object(*where) for where in patches])

    MUTANTS.append(
        Mutant(name=name, strategy=breaks.strategy, claim_it_breaks=breaks.claim, apply=apply)
    )


class _Patched:
    def __init__(self, patches):
        self.patches = patches

    def __enter__(self):
        for each in self.patches:
            each.start()

    def __exit__(self, *_):
        for each in self.patches:
            each.stop()


# What proofs measure -----------------------------------------------------------------------------


def apart(a, b):
    """The largest difference of two arrays."""
    return float(np.max(np.abs(np.asarray(a) - np.asarray(b))))


def end(problem, expression, count=3, **settings):
    """The weights after `count` updates."""
    return problem(expression, **settings).run(count)[-1]


def all_of(toy):
    """Everything that a checkpoint keeps, in one array."""
    arrays, _ = toy.state()
    arrays = [*arrays[0], arrays[1]] if isinstance(arrays, tuple) else arrays
    return np.concatenate([np.asarray(array, np.float64).ravel() for array in arrays])


def resumed(problem, expression, count=4, **settings):
    """How far from the uninterrupted run one ends that is stopped once, at worst."""
    whole, states = problem(expression, **settings), []
    for _ in range(count):
        states.append(whole.state())
        whole.run(1)
    worst = 0.0
    for done, state in enumerate(states[1:], start=1):
        other = problem(expression, **settings)
        other.restore(state)
        other.run(count - done)
        worst = max(worst, apart(all_of(whole), all_of(other)))
    return worst


def stepped(size, mask, *, combine):
    """Words after one step of SGD at rate 1 with the gradient taken after a step uphill.

    That step is `size` long, over the weights where `mask` is 1; `combine` adds the gradient at the
    start. All by plain SGD.
    """
    here, there = Words("sgd", rate=1.0), Words("sgd", rate=1.0)
    start = here.flat()
    gradient = start - here.run(1)[-1]
    masked = gradient * mask
    moved = start + size * masked / np.linalg.norm(masked)
    place = 0
    for weight in there.weights:
        count = int(np.prod(weight.shape))
        weight.assign(moved[place : place + count].reshape(weight.shape))
        place += count
    moved = there.flat()
    total = moved - there.run(1)[-1] + (gradient if combine else 0)
    return start - total


def moved_by_gradient(toy):
    """How far the weights are from where they were, after a gradient and no update."""
    before = toy.flat()
    batches = [toy.batch(i) for i in range(toy.rule.num_batches)]
    gradient = tf.function(lambda b: toy.rule.gradient(b)[1]["loss_sum"])
    gradient(stack(batches))
    return apart(before, toy.flat())


def joined(batches):
    """Several batches as one, padded to the longest row."""
    longest = max(batch["tokens"].shape[1] for batch in batches)

    def padded(x):
        return np.pad(x, [(0, 0), (0, longest - x.shape[1])]) if x.ndim > 1 else x

    return {name: np.concatenate([padded(b[name]) for b in batches]) for name in batches[0]}


class Joined(Words):
    """Every batch is `parts` batches of `Words` in one."""

    parts = 4

    def batch(self, i):
        return joined([super(Joined, self).batch(self.parts * i + j) for j in range(self.parts)])


class JoinedMany(Joined):
    parts = 32


class DenseWords(Words):
    """The same network with a dense gradient for its embedding."""

    def logits(self, batch):
        is_word = tf.cast(batch["tokens"] != 0, tf.float32)[:, :, None]
        vectors = tf.one_hot(batch["tokens"], self.vocabulary_size) @ self.embedding.value
        mean = tf.math.divide_no_nan(tf.reduce_sum(vectors * is_word, 1), tf.reduce_sum(is_word, 1))
        return tf.matmul(mean, self.kernel.value) + self.bias.value


UNEQUAL = {"sizes": (2, 5, 1, 3)}
REAL = {"weight_decay": 0.1, "clip_norm": 0.3, "schedule": "cosine", "num_updates": 8}


# 4. Accumulation ---------------------------------------------------------------------------------


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


def _mean_of_means(self, batches):
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


def _counted_per_batch(self, gradients):
    said = _apply(self, gradients)
    self.optimizer.iterations.assign_add(3)
    return said


mutant("mean of means", unequal_batches, (Accumulate, "gradient", _mean_of_means))
mutant("only the first batch", equal_batches, (Accumulate, "gradient", _one_batch_forgotten))
mutant(
    "clipping before aggregation",
    unequal_batches,
    (OptimizerRule, "differentiate", _clipped_at_once),
)
mutant(
    "the count of updates counts batches",
    counted_updates,
    (OptimizerRule, "apply", _counted_per_batch),
)
mutant(
    "EMA per micro-batch",
    averaged_once,
    (ExponentialMovingAverage, "share", _average_of_micro_batches),
)


# 15. Clipping ------------------------------------------------------------------------------------


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


# 8. SAM ------------------------------------------------------------------------------------------


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


# 9. Extragradient --------------------------------------------------------------------------------


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


# 13. Truncated back-propagation ------------------------------------------------------------------


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
        config = LSTMLanguageModelConfig(embedding_size=4, units=5, num_layers=2, dropout=0.0)
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


@proof(13, "truncate", "identity", "so it is with lstm_language_model, loss and weights", 1e-6)
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


# 16. DP-SGD --------------------------------------------------------------------------------------


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


# 18. Loss scaling --------------------------------------------------------------------------------


@tf.custom_gradient
def amplified(x, gain):
    """x, whose gradient is `gain` times as large."""
    return x, lambda dy: (dy * gain, None)


class Overflowing(Words):
    """Words whose gradient is not finite in the micro-batches `bad`; the loss stays finite."""

    def __init__(self, expression, *, bad=(), **settings):
        self.bad = bad
        super().__init__(expression, **settings)

    def logits(self, batch):
        return amplified(super().logits(batch), batch["gain"][:, None])

    def batch(self, i):
        batch = super().batch(i)
        gain = np.inf if i in self.bad else 1.0
        return batch | {"gain": np.full(len(batch["label"]), gain, np.float32)}


class Leaving(Overflowing):
    """The same without the bad windows: what should have been learned."""

    window = 2

    def batch(self, i):
        skipped = {bad // self.window for bad in self.bad}
        kept = [w for w in range(20) if w not in skipped]
        return super().batch(kept[i // self.window] * self.window + i % self.window)


SCALED = "loss_scale(accumulate(adamw, 2), 1024, 2)"


@proof(
    18, "loss_scale", "identity", "powers of 2 leave float32 training bit for bit as it was", 0.0
)
def scaled_by_powers_of_two():
    worst = 0.0
    for inside in ("accumulate(adamw, 2)", "momentum"):
        settings = REAL | {"clip_norm": 1.5}  # between the norms that occur
        plain = end(Words, inside, 6, **settings)
        worst = max(
            worst, apart(plain, end(Words, f"loss_scale({inside}, 1024, 2)", 6, **settings))
        )
    return worst


@proof(18, "loss_scale", "golden", "S halves on overflow and doubles after n good updates", 0.0)
def scale_by_scale():
    toy, path = Overflowing("loss_scale(sgd, 8, 2)", bad=(1, 4, 5)), []
    for _ in range(10):
        toy.run(1)
        path.append(float(toy.rule.diagnostics()["loss_scale"]))
    return apart(path, [8, 4, 4, 8, 4, 2, 2, 4, 4, 8])


@proof(18, "loss_scale", "identity", "an overflow in one batch skips all of its window", 0.0)
def skipped_whole():
    toy = Overflowing(SCALED, bad=(2,))
    toy.run(1)
    inner = [*toy.weights, *toy.rule.inner.variables]
    before = [np.array(tf.convert_to_tensor(v)) for v in inner]
    toy.run(1)
    return max(apart(b, tf.convert_to_tensor(v)) for b, v in zip(before, inner, strict=True))


@proof(18, "loss_scale", "identity", "the windows after it are the run without it", 0.0)
def goes_on_after_a_skip():
    bad = end(Overflowing, SCALED, 5, bad=(2, 7))  # windows 1 and 3
    return apart(bad, end(Leaving, SCALED, 3, bad=(2, 7)))


@proof(18, "loss_scale", "golden", "a skip is counted and does not look like divergence", 0.0)
def skip_reported():
    toy = Overflowing(SCALED, bad=(2,))
    toy.run(3)
    wrong = apart([said["num_skipped"] for said in toy.said], [0, 1, 0])
    return (
        wrong + abs(toy.said[1]["grad_norm"]) + (0.0 if np.isfinite(toy.said[1]["loss_sum"]) else 1)
    )


@proof(
    18,
    "loss_scale",
    "golden",
    "at S = 1 an overflow is reported as the divergence it is",
    1,
    AT_LEAST,
)
def divergence_reported():
    toy = Overflowing("loss_scale(sgd, 2)", bad=(0, 1))
    toy.run(2)
    return np.isfinite(toy.said[0]["grad_norm"]) and not np.isfinite(toy.said[1]["grad_norm"])


@proof(18, "loss_scale", "identity", "compiled by XLA it is the same", 1e-6)
def scaled_by_xla():
    plain = end(Overflowing, SCALED, 3, bad=(2,))
    return apart(plain, end(Overflowing, SCALED, 3, bad=(2,), xla=True))


@proof(18, "loss_scale", "differs", "without it the weights are lost", 1, AT_LEAST)
def lost_without():
    return not np.isfinite(end(Overflowing, "sgd", 2, bad=(1,))).all()


@proof(18, "loss_scale", "composed", "around sam, fgm and r_drop it changes nothing", 0.0)
def scaled_strategies():
    worst = 0.0
    for inside in ("sam(adamw, 0.3)", "fgm(adamw, 0.3)", "l2(r_drop(adamw), 0.1)"):
        plain = end(Words, inside, dropout=0.3)
        worst = max(worst, apart(plain, end(Words, f"loss_scale({inside})", dropout=0.3)))
    return worst


@proof(18, "loss_scale", "resume", "stopped before, behind and between skips it goes on", 0.0)
def scaled_resumed():
    return resumed(Overflowing, SCALED, 5, bad=(2, 5, 8), dropout=0.3)


def _skips_a_batch(self, tape, scaled):
    gradients = _differentiate(self, tape, scaled)
    is_finite = tf.math.is_finite(global_norm(gradients))
    return [
        tf.where(is_finite, tf.convert_to_tensor(g), tf.zeros_like(tf.convert_to_tensor(g)))
        for g in gradients
    ]


def _steps_by_zeros(self, is_finite, gradients):
    kept = [tf.where(is_finite, tf.convert_to_tensor(g), 0.0) for g in gradients]
    return self.inner.apply(kept)["grad_norm"]


mutant(
    "an overflow skips one micro-batch only",
    skipped_whole,
    (OptimizerRule, "differentiate", _skips_a_batch),
)
mutant(
    "a skipped update is a step of the optimizer",
    skipped_whole,
    (LossScale, "_apply_when", _steps_by_zeros),
)
mutant("gradients stay scaled", scaled_by_powers_of_two, (LossScale, "gradient", Around.gradient))
mutant(
    "the scale never changes", scale_by_scale, (LossScale, "_adapt", lambda self, is_finite: None)
)


class Network(Toy):
    """A small Transformer of the catalogue, its loss times `factor`."""

    def __init__(
        self,
        expression,
        *,
        precision="float32",
        recompute=False,
        dropout=0.0,
        factor=1.0,
        **settings,
    ):
        config = TransformerEncoderConfig(
            num_layers=2, width=8, num_heads=2, inner_width=8, dropout=dropout, recompute=recompute
        )
        self.model = build_model(
            config, Words.vocabulary_size, Words.num_labels, seed=4, precision=precision
        )
        self.weights, self.precision = self.model.trainable_variables, precision
        self.sizes, self.data_seed = (4,), 0

        def loss(batch, logits):
            sums = classification_loss(batch, logits)
            return sums | {"loss_sum": factor * sums["loss_sum"]}

        self.task = TaskLoss(lambda batch: self.model(batch["tokens"], training=True), loss)
        super().__init__(expression, **settings)

    batch = Words.batch
    vocabulary_size, num_labels = Words.vocabulary_size, Words.num_labels

    def num_softmax(self):
        """How often the graph of one update works out attention."""
        graph = self.take.get_concrete_function(stack([self.batch(0)])).graph
        return sum(op.type == "Softmax" for op in graph.get_operations())


def direction(toy):
    """Of one step from the start, of length 1; zeros for no step."""
    before = toy.flat()
    step = before - toy.run(1)[-1]
    return step / max(np.linalg.norm(step), 1e-30)


TINY = {"factor": 2.0**-22, "rate": 2.0**22}  # gradients below what float16 can hold


@proof(
    18, "mixed_float16", "composed", "with loss_scale tiny gradients point where float32's do", 0.1
)
def tiny_gradients_survive():
    exact = direction(Network("sgd", **TINY))
    scaled = Network("loss_scale(sgd, 4194304)", precision="mixed_float16", **TINY)
    return float(np.linalg.norm(exact - direction(scaled)))


@proof(18, "mixed_float16", "differs", "without it they vanish", 0.3, AT_LEAST)
def tiny_gradients_vanish():
    exact = direction(Network("sgd", **TINY))
    return float(
        np.linalg.norm(exact - direction(Network("sgd", precision="mixed_float16", **TINY)))
    )


def _losses(precision, expression):
    toy = Network(expression, precision=precision, rate=0.01)
    toy.run(12)
    assert all(weight.dtype == "float32" for weight in toy.weights)
    return np.array([said["loss_sum"] / said["num_targets"] for said in toy.said])


@proof(18, "mixed_float16", "identity", "the loss follows float32's, weights stay float32", 0.05)
def float16_follows():
    plain = _losses("float32", "adamw")
    return apart(plain, _losses("mixed_float16", "loss_scale(adamw, 256)"))


@proof(18, "mixed_bfloat16", "identity", "the loss follows float32's, weights stay float32", 0.1)
def bfloat16_follows():
    return apart(_losses("float32", "adamw"), _losses("mixed_bfloat16", "adamw"))


@proof(18, "mixed_bfloat16", "identity", "steps below its rounding add up as in float32", 0.1)
def bfloat16_adds_up():
    exact, mixed = (Network("sgd", precision=p, rate=1e-3) for p in ("float32", "mixed_bfloat16"))
    start = exact.flat()
    wanted = exact.run(8)[-1] - start
    return float(np.linalg.norm(mixed.run(8)[-1] - start - wanted) / np.linalg.norm(wanted))


@proof(18, "mixed_bfloat16", "differs", "it is not float32", 1e-5, AT_LEAST)
def bfloat16_differs():
    return apart(_losses("float32", "adamw"), _losses("mixed_bfloat16", "adamw"))


def _weights_in_bfloat16(self, num_updates):
    path = []
    for _ in range(num_updates):
        path += list(Toy.run(self, 1))
        for weight in self.weights if self.precision == "mixed_bfloat16" else ():
            weight.assign(tf.cast(tf.cast(weight.value, tf.bfloat16), weight.dtype))
    return np.array(path)


def _in_float32(config, *sizes, seed, precision, built=build_model):
    return built(config, *sizes, seed=seed)


mutant("the weights are bfloat16", bfloat16_adds_up, (Network, "run", _weights_in_bfloat16))
mutant(
    "the precision is not heard",
    bfloat16_differs,
    (sys.modules[__name__], "build_model", _in_float32),
)

mutant(
    "the loss is not scaled",
    tiny_gradients_survive,
    (OptimizerRule, "scaled", lambda self, sums: sums["loss_sum"]),
)


# 17. Gradient checkpointing ----------------------------------------------------------------------


@proof(17, "recompute", "identity", "the same weights with and without, dropout included", 1e-6)
def recomputed():
    settings = {"rate": 0.5, "dropout": 0.5}
    return apart(end(Network, "sgd", **settings), end(Network, "sgd", recompute=True, **settings))


@proof(17, "recompute", "differs", "attention is worked out again for the gradient", 2, AT_LEAST)
def computed_again():
    return Network("sgd", recompute=True).num_softmax() - Network("sgd").num_softmax()


@proof(17, "recompute", "composed", "inside sam(accumulate(...)) too", 1e-6)
def recomputed_inside():
    strategy = "sam(accumulate(momentum, 2), 0.3)"
    return apart(end(Network, strategy, 2), end(Network, strategy, 2, recompute=True))


_dropout = Dropout.call


def _draws_anew(self, x, seed=None, training=False):
    return _dropout(self, x, seed=self.next_seed() if training else None, training=training)


mutant("the second computation drops other units", recomputed, (Dropout, "call", _draws_anew))


# Regularisers: R-Drop ----------------------------------------------------------------------------


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


# Regularisers: FGM -------------------------------------------------------------------------------


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


# Regularisers: penalties and noise ---------------------------------------------------------------


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


def _penalise_each_batch(self, batches):
    gradients, sums = self.inner.gradient(batches)
    return [self._penalised(g, w) for g, w in zip(gradients, self.weights, strict=True)], sums


mutant("penalties on biases (l1)", l1_of_matrices, (Penalty, "apply", _penalise_all))
mutant("penalties on biases (l2)", l2_of_matrices, (Penalty, "apply", _penalise_all))
mutant(
    "a penalty for every micro-batch",
    l2_accumulated,
    (Penalty, "apply", Around.apply),
    (Penalty, "gradient", _penalise_each_batch),
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
