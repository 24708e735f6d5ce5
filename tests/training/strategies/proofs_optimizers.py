"""Proofs of the optimizers (rows 1, 2, 3, 7 and 15 of the catalogue) and the faults they find."""

import inspect
import re
import textwrap
from collections.abc import Callable
from functools import partial
from unittest import mock

import keras
import numpy as np
import tensorflow as tf

from tests.proofs import AT_LEAST, Mutant, Proof
from tests.training.strategies.papers import PAPERS
from tests.training.strategies.toys import CURVATURE, START, Quadratic, Toy, Words
from training import optimizers
from training.losses import TaskLoss, classification_loss
from training.optimizers import OPTIMIZERS, muon
from training.optimizers.classic import SGD, Adam, Lion, RMSprop
from training.optimizers.layerwise import Adafactor, Lamb
from training.optimizers.muon import Muon, matrices_of
from training.optimizers.schedule_free import ScheduleFreeAdamW, ScheduleFreeSGD
from training.strategies import rules
from training.strategies.catalogue import SCHEDULE_FREE
from training.strategies.gradients import clip
from training.strategies.rules import evaluating

LR, DECAY = 0.05, 0.1
ROWS = {
    "sgd": 1,
    "momentum": 1,
    "nesterov": 1,
    "rmsprop": 2,
    "adam": 2,
    "adamw": 2,
    "lion": 3,
    "adafactor": 3,
    "lamb": 3,
    "muon": 3,
    "schedule_free_sgd": 7,
    "schedule_free_adamw": 7,
}


# Problems -----------------------------------------------------------------------------------------


class Bowl(Toy):
    """f(W) = 1/2 sum a W^2 of one float64 (3, 5) matrix, a kernel."""

    def __init__(self, expression, *, scale=1.0, **settings):
        rng = np.random.default_rng(2)
        self.start, self.curvature = rng.normal(size=(3, 5)), scale * rng.uniform(0.5, 4, (3, 5))
        self.weights = [keras.Variable(self.start, dtype="float64", name="kernel")]
        self.task = self.loss
        super().__init__(expression, **settings)

    def loss(self, batch):
        total = 0.5 * tf.reduce_sum(self.curvature * self.weights[0].value ** 2)
        ones = tf.ones_like(total)
        return {"loss_sum": total, "num_targets": ones, "num_correct": 0 * ones}

    def batch(self, i):
        return {"nothing": np.zeros((1, 1))}


class Network(Words):
    """Words, through a fused query, key and value and one more matrix, to a head with a bias."""

    def __init__(self, expression, *, sizes=(3,), **settings):
        rng = np.random.default_rng(7)
        self.weights = []
        for path, shape in NETWORK.items():
            layer, _, name = path.rpartition("/")
            with keras.name_scope(layer or "network"):
                value = rng.normal(size=shape).astype("float32")
                self.weights.append(keras.Variable(value, name=name))
        self.dropout = keras.layers.Dropout(0.2, seed=5)
        self.sizes, self.data_seed = sizes, 0
        self.task = TaskLoss(self.logits, classification_loss)
        Toy.__init__(self, expression, **settings)

    def logits(self, batch):
        embedding, qkv, kernel, head, bias = (weight.value for weight in self.weights)
        x = tf.reduce_mean(tf.gather(embedding, batch["tokens"]), 1)
        x = tf.tanh(tf.matmul(self.dropout(x, training=True), qkv))
        return tf.matmul(tf.tanh(tf.matmul(x, kernel)), head) + bias

    def parts(self, flat):
        """A flat array, cut into those of the weights, by path."""
        edges = np.cumsum([np.prod(shape) for shape in NETWORK.values()])[:-1]
        arrays = np.split(flat, edges)
        return {p: a.reshape(s) for (p, s), a in zip(NETWORK.items(), arrays, strict=True)}


NETWORK = {
    "embedding/embeddings": (12, 4),
    "qkv/kernel": (4, 12),
    "expand/kernel": (12, 5),
    "head/kernel": (5, 3),
    "head/bias": (3,),
}
BY_MUON = {"qkv/kernel": "muon (3 of 4x4)", "expand/kernel": "muon (12x5)"}


def apart(a, b) -> float:
    return float(np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64)).max())


def path_apart(problem, one, other, num_updates=6, **settings) -> float:
    return apart(
        problem(one, **settings).run(num_updates), problem(other, **settings).run(num_updates)
    )


def drawn_from(paper, start, curvature, rate, decay, num_updates):
    """The weights after each update, by a rule of papers.py on f = 1/2 sum a w^2."""
    path = [start]

    def gradients():
        while True:
            yield curvature * path[-1]

    for w, _ in zip(paper(start, gradients(), rate, decay), range(num_updates), strict=False):
        path.append(w)
    return np.array(path[1:])


# What is measured ---------------------------------------------------------------------------------


def from_the_paper(name, problem=Bowl, scale=1.0) -> float:
    """In the problem's own size, relative to the step where gradients are tiny."""
    if problem is Bowl:
        toy = Bowl(name, rate=LR, weight_decay=DECAY, scale=scale)
        start, curvature = toy.start, toy.curvature
    else:
        toy = Quadratic(name, rate=LR, weight_decay=DECAY, curvature=scale * CURVATURE)
        start, curvature = START, scale * CURVATURE
    expected = drawn_from(PAPERS[name], start, curvature, LR, DECAY, 10)
    return apart(toy.run(10), expected.reshape(10, -1))


def from_the_recurrence(name) -> float:
    """(w, v) after t updates is M^t (w, v) on each axis of a quadratic."""
    m = {"sgd": 0.0}.get(name, 0.9)
    path, worst = Quadratic(name, rate=LR).run(12), 0.0
    for axis, a in enumerate(CURVATURE):
        step = LR * a
        matrix = np.array([[1 - step, m], [-step, m]])
        if name == "nesterov":
            matrix[0] = [1 - step * (1 + m), m * m]
        for t in range(12):
            w, _ = np.linalg.matrix_power(matrix, t + 1) @ [START[axis], 0.0]
            worst = max(worst, abs(path[t, axis] - w))
    return worst


def first_step_from_signs(name) -> float:
    """Relative to the rate: w_1 - w_0 = -rate sign(g)."""
    change = Quadratic(name, rate=LR).run(1)[0] - START
    return apart(change / LR, -np.sign(CURVATURE * START))


def every_step_from_the_rate(name) -> float:
    path = np.concatenate([[START], Quadratic(name, rate=LR).run(8)])
    return apart(np.abs(np.diff(path, axis=0)) / LR, 1.0)


def adafactor_on_rank_one() -> float:
    """V is exact where g^2 has rank one, so the first step is -rate RMS(w) sign(g)."""
    toy = Bowl("adafactor", rate=LR)
    toy.weights[0].assign(np.outer([1.0, -2.0, 0.5], [3.0, 1.0, -1.0, 0.2, 2.0]))
    w = toy.weights[0].numpy()
    toy.curvature = np.ones((3, 5))  # before it is traced
    size = np.sqrt(np.mean(w**2))
    return apart((toy.run(1)[0] - w.ravel()) / (LR * size), -np.sign(w).ravel())


def lamb_steps_from_the_norm() -> float:
    toy = Bowl("lamb", rate=LR, weight_decay=DECAY)
    path = np.concatenate([[toy.start.ravel()], toy.run(8)])
    steps = np.linalg.norm(np.diff(path, axis=0), axis=1)
    return apart(steps / np.linalg.norm(path[:-1], axis=1), LR)


def decoupled_from_l2(name) -> float:
    """Adam's penalty is part of the quadratic's curvature; decay is not."""
    decoupled = Quadratic(name, rate=LR, weight_decay=1.0).run(6)
    return apart(decoupled, Quadratic(name, rate=LR, curvature=CURVATURE + 1.0).run(6))


def first_step_from_decay_and_sign(name) -> float:
    after = Quadratic(name, rate=LR, weight_decay=1.0).run(1)[0]
    return apart(after, START * (1 - LR) - LR * np.sign(START))


def rows_out_of_use_move(name, problem=Words) -> float:
    toy, worst = problem(name, rate=LR), 0.0
    for i in range(6):
        before = toy.weights[0].numpy()
        unused = np.setdiff1d(np.arange(12), toy.batch(i)["tokens"])
        toy.run(1)
        worst = max(worst, apart(toy.weights[0].numpy()[unused], before[unused]))
    return worst


def muon_singular_values() -> float:
    """How far those of a first step, over its rate, lie outside 0.7 to 1.2; of full rank."""
    toy = Network("muon", rate=LR, sizes=(32,))
    before = toy.parts(toy.flat())
    after, outside = toy.parts(toy.run(1)[0]), 0.0
    for path in BY_MUON:
        step = (before[path] - after[path]) / LR
        parts = np.split(step, 3, axis=1) if path.startswith("qkv") else [step]
        for part in parts:
            values = np.linalg.svd(part, compute_uv=False)  # neither grows outputs over inputs
            outside = max(outside, 0.7 - values.min(), values.max() - 1.2)
    return outside


def muon_rest_from_adamw() -> float:
    settings = {"weight_decay": DECAY}
    mine, adamw = Network("muon", rate=LR, **settings), Network("adamw", rate=0.15 * LR, **settings)
    mine, adamw = mine.parts(mine.run(1)[0]), adamw.parts(adamw.run(1)[0])
    return max(apart(mine[path], adamw[path]) for path in NETWORK if path not in BY_MUON)


def muon_list_errors() -> float:
    said = optimizers.rules_by_variable(Network("muon").rule.optimizer)
    said = {re.sub("^network/", "", path): rule for path, rule in said.items()}
    kernels = {"mha/query/kernel": (8, 2, 4), "mha/attention_output/kernel": (2, 4, 8)}
    seen = [matrices_of(path, shape) for path, shape in kernels.items()]
    wrong = sum(view is None or (view.rows, view.columns) != (8, 8) for view in seen)
    return wrong + sum(said.get(path) != BY_MUON.get(path, "adamw") for path in NETWORK)


def z_of(toy) -> np.ndarray:
    slots = toy.rule.optimizer.variables[:-1]
    return next(slot.numpy() for slot in slots if slot.path.endswith("_z"))


def schedule_free_off(name, golden, num_updates=10, **settings) -> float:
    toy = Quadratic(name, rate=LR, **settings)
    seen = {"y": toy.run(num_updates)[-1], "x": toy.evaluated(), "z": z_of(toy)}
    return max(apart(seen[which], value) for which, value in golden.items())


def average_from_mean_of_iterates(name, **settings) -> float:
    """x against the plain mean of all z so far."""
    toy, iterates, worst = Quadratic(name, rate=LR, **settings), [], 0.0
    for _ in range(8):
        toy.run(1)
        iterates.append(z_of(toy))
        worst = max(worst, apart(toy.evaluated(), np.mean(iterates, axis=0)))
    return worst


def plain_descent_apart() -> float:
    free, plain = Quadratic("schedule_free_sgd(0)", rate=LR), Quadratic("sgd", rate=LR)
    return apart(free.run(10), plain.run(10))


def swapping_apart(name) -> float:
    """Evaluating between updates shows x and changes nothing."""
    toy, plain, worst = Words(name, rate=LR), Words(name, rate=LR), 0.0
    for _ in range(6):
        toy.run(1)
        with evaluating(toy.rule):
            worst = max(worst, apart(toy.flat(), toy.evaluated()))
            still_y = apart(toy.flat(), plain.run(1)[0])
        worst = max(worst, apart(toy.flat(), plain.flat()), float(still_y == 0))
    return worst


CENTRES = ((0.0, 0.0), (3.0, -1.0), (-1.0, 4.0), (0.5, 0.5))
EXAMPLES = (1, 4, 2, 1)


def clipped_window_apart() -> float:
    """One update clips the weighted mean of four unequal batches, not each of them."""
    toy = Quadratic(
        "accumulate(sgd, 4)", rate=LR, clip_norm=0.1, centres=CENTRES, examples=EXAMPLES
    )
    centre = np.average(CENTRES, axis=0, weights=EXAMPLES)
    g = CURVATURE * (START - centre)
    g *= min(1.0, 0.1 / np.linalg.norm(g))
    return apart(toy.run(1)[0], START - LR * g)


def clipped_steps_from_the_limit() -> float:
    path = np.concatenate([[START], Quadratic("sgd", rate=LR, clip_norm=0.1).run(5)])
    return apart(np.linalg.norm(np.diff(path, axis=0), axis=1), LR * 0.1)


def reported_norm_apart() -> float:
    """The norm said is that of the dense gradient, repeated words added up, before clipping."""
    toy = Words("sgd", rate=1e-9, clip_norm=0.1, sizes=(8,))
    batch = {name: tf.constant(value) for name, value in toy.batch(0).items()}
    with tf.GradientTape() as tape:
        sums = toy.task(batch)
        loss = sums["loss_sum"] / sums["num_targets"]
    sparse, *rest = tape.gradient(loss, [weight.value for weight in toy.weights])
    dense = np.zeros((12, 4))
    np.add.at(dense, sparse.indices.numpy(), sparse.values.numpy())
    expected = np.sqrt(sum(np.sum(np.square(g)) for g in [dense, *map(np.array, rest)]))
    toy.run(1)
    return abs(toy.said[0]["grad_norm"] - expected)


def huge_limit_apart(name) -> float:
    return apart(Words(name, clip_norm=1e6).run(5), Words(name, clip_norm=None).run(5))


def resumed_apart(name) -> float:
    """Stopped after each of six updates and gone on in a newly made run."""
    settings = {
        "rate": LR,
        "weight_decay": "linear(0, 0.2)",
        "schedule": "constant(warmup=3)" if name in SCHEDULE_FREE else "cosine(warmup=2)",
        "num_updates": 6,
    }
    whole, states = Network(name, **settings), []
    for _ in range(6):
        states.append(whole.state())
        whole.run(1)
    fresh, worst = Network(name, **settings), 0.0
    for stop, state in enumerate(states):
        fresh.restore(state)
        fresh.run(6 - stop)
        worst = max(worst, apart(fresh.flat(), whole.flat()))
        worst = max(worst, apart(fresh.evaluated(), whole.evaluated()))
        fresh.run(1)  # so that the next stop has to put everything right
    return worst


# The table ----------------------------------------------------------------------------------------

RESUMES = "stopped after any update, it goes on bit for bit"
PAPER = "ten updates of a matrix with decay follow the paper's equations"
VECTOR = "ten updates of a vector with decay follow the paper's equations"
TINY = "so do ten of a matrix whose gradients are as small as epsilon"
ROWS_STILL = "rows of an embedding stand still while out of use"
RECURRENCE = "its iterates on a quadratic are powers of a 2x2 matrix"
NO_MOMENTUM = "momentum=0 is SGD bit for bit"
FIRST_SIGN = "the first step is -rate sign(g)"
EVERY_SIGN = "every step of every weight is the rate"
NO_DECAY = "with weight_decay=0 it is Adam bit for bit"
DECAY_ASIDE = "the first step is the decay beside -rate sign(g)"
NOT_L2 = "its decay is not an L2 penalty"
IS_L2 = "of plain SGD alone, decay and an L2 penalty are one"
RANK_ONE = "the first step is -rate RMS(w) sign(g) where g^2 has rank one"
UPHILL = "so do ten whose gradients grow, where steps are clipped"
LAYER_NORM = "every step has the norm rate |w|"
SINGULAR = (
    "singular values of a step, of each map of attention too, lie in 0.7 to 1.2 (0.68 to 1.21)"
)
ADAMW_REST = "embeddings, head and bias move by AdamW at adamw_rate times the rate"
LISTED = "the list says which rule moves which variable, attention by Muon"
GOLDEN = "y, z and x after 10 updates"
GOLDEN_YX = "y and x after 10 updates"
GOLDEN_TWO = "x after 2 updates"
GOLDEN_WARM = "x after 10 updates, warm-up 5"
GOLDEN_DECAY = "x after 10 updates, decay 0.1"
BETA_ZERO = "beta=0 takes the steps of SGD"
PLAIN_MEAN = "x is the mean of all z at a constant rate"
FALLING = "x is the mean of all z at a falling rate, as the highest one counts"
WARM_UP = "x is not their mean with a warm-up, which counts for less"
SWAPPED = "evaluation sees x and not y, and leaves y as it was, bit for bit"
HUGE = "a huge clip_norm is none, bit for bit"
LIMIT = "every step of SGD has the norm rate clip_norm while the gradient is longer"
AGGREGATED = "accumulated batches are clipped as one"
NORM = "the norm clipped by is that of the whole dense gradient"


def proof(strategy, kind, claim, tolerance, measure, *arguments, row=None, holds=None, **keywords):
    return Proof(
        row=row or ROWS[strategy],
        strategy=strategy,
        kind=kind,
        claim=claim,
        tolerance=tolerance,
        measure=partial(measure, *arguments, **keywords),
        **({"holds": holds} if holds else {}),
    )


PROOFS: list[Proof] = [
    *(proof(name, "golden", PAPER, 1e-12, from_the_paper, name) for name in OPTIMIZERS),
    *(proof(n, "golden", VECTOR, 1e-12, from_the_paper, n, Quadratic) for n in OPTIMIZERS),
    *(proof(n, "resume", RESUMES, 0.0, resumed_apart, n) for n in OPTIMIZERS),
    # Row 1
    *(
        proof(name, "identity", RECURRENCE, 1e-13, from_the_recurrence, name)
        for name in ("sgd", "momentum", "nesterov")
    ),
    *(
        proof(n, "identity", NO_MOMENTUM, 0.0, path_apart, Words, f"{n}(0)", "sgd", weight_decay=1)
        for n in ("momentum", "nesterov")
    ),
    proof(
        "momentum",
        "differs",
        "it is not SGD",
        1e-2,
        path_apart,
        Quadratic,
        "momentum",
        "sgd",
        holds=AT_LEAST,
    ),
    proof(
        "nesterov",
        "differs",
        "it is not Polyak's momentum",
        1e-2,
        path_apart,
        Quadratic,
        "nesterov",
        "momentum",
        holds=AT_LEAST,
    ),
    proof("sgd", "identity", IS_L2, 1e-14, decoupled_from_l2, "sgd"),
    # Row 2
    proof("rmsprop", "golden", TINY, 1e-12, from_the_paper, "rmsprop", scale=1e-4),
    proof("adam", "golden", TINY, 1e-12, from_the_paper, "adam", scale=1e-7),
    proof("adam", "identity", FIRST_SIGN, 1e-5, first_step_from_signs, "adam"),
    proof("adam", "identity", ROWS_STILL, 0.0, rows_out_of_use_move, "adam"),
    proof("adamw", "identity", NO_DECAY, 0.0, path_apart, Words, "adamw", "adam"),
    proof("adamw", "identity", DECAY_ASIDE, 1e-6, first_step_from_decay_and_sign, "adamw"),
    proof("adamw", "differs", NOT_L2, 1e-2, decoupled_from_l2, "adamw", holds=AT_LEAST),
    # Row 3
    proof("lion", "identity", EVERY_SIGN, 1e-13, every_step_from_the_rate, "lion"),
    proof("lion", "identity", ROWS_STILL, 0.0, rows_out_of_use_move, "lion"),
    proof("adafactor", "golden", UPHILL, 1e-12, from_the_paper, "adafactor", Quadratic, -1.0),
    proof("adafactor", "identity", RANK_ONE, 1e-12, adafactor_on_rank_one),
    proof("lamb", "identity", LAYER_NORM, 1e-13, lamb_steps_from_the_norm),
    proof("muon", "identity", SINGULAR, 0.02, muon_singular_values),
    proof("muon", "identity", ADAMW_REST, 1e-7, muon_rest_from_adamw),
    proof("muon", "identity", LISTED, 0.0, muon_list_errors),
    proof("muon", "identity", ROWS_STILL, 0.0, rows_out_of_use_move, "muon", Network),
    # Row 7
    proof(
        "schedule_free_sgd",
        "golden",
        GOLDEN,
        1e-10,
        schedule_free_off,
        "schedule_free_sgd",
        {
            "y": (0.7329865792, 0.1063648681),
            "z": (0.5673832483, 0.3695104860),
            "x": (0.7513869493, 0.0771264661),
        },
    ),
    proof(
        "schedule_free_sgd",
        "golden",
        GOLDEN_TWO,
        1e-14,
        schedule_free_off,
        "schedule_free_sgd",
        {"x": (0.92625, -0.75)},
        2,
    ),
    proof(
        "schedule_free_adamw",
        "golden",
        GOLDEN_YX,
        1e-10,
        schedule_free_off,
        "schedule_free_adamw",
        {"y": (0.7183456826, -1.7101424075), "x": (0.7386174283, -1.7315771064)},
    ),
    proof(
        "schedule_free_adamw",
        "golden",
        GOLDEN_WARM,
        1e-10,
        schedule_free_off,
        "schedule_free_adamw",
        {"x": (0.7712763604, -1.7646355172)},
        schedule="constant(warmup=4, warmup_start=0.2)",  # rates 1/5, 2/5, ... as in the reference
    ),
    proof(
        "schedule_free_adamw",
        "golden",
        GOLDEN_DECAY,
        1e-10,
        schedule_free_off,
        "schedule_free_adamw",
        {"x": (0.7154864633, -1.6811904578)},
        weight_decay=0.1,
    ),
    proof("schedule_free_sgd", "identity", BETA_ZERO, 1e-15, plain_descent_apart),
    *(
        each
        for name in SCHEDULE_FREE
        for each in (
            proof(name, "identity", PLAIN_MEAN, 1e-13, average_from_mean_of_iterates, name),
            proof(
                name,
                "identity",
                FALLING,
                1e-13,
                average_from_mean_of_iterates,
                name,
                schedule="linear(1, 0.1, steps=8)",
            ),
            proof(
                name,
                "differs",
                WARM_UP,
                1e-3,
                average_from_mean_of_iterates,
                name,
                holds=AT_LEAST,
                schedule="constant(warmup=4)",
            ),
            proof(name, "identity", SWAPPED, 0.0, swapping_apart, name),
        )
    ),
    # Row 15
    *(proof(n, "identity", HUGE, 0.0, huge_limit_apart, n, row=15) for n in ("sgd", "adam")),
    proof("sgd", "identity", LIMIT, 1e-14, clipped_steps_from_the_limit, row=15),
    proof("sgd", "composed", AGGREGATED, 1e-14, clipped_window_apart, row=15),
    proof("sgd", "identity", NORM, 1e-6, reported_norm_apart, row=15),
]


# Faults -------------------------------------------------------------------------------------------


def edited(owner, name: str, *changes: tuple[str, str]):
    """Inside, `owner.name` is the function whose source has these pieces replaced."""
    source = textwrap.dedent(inspect.getsource(inspect.getattr_static(owner, name)))
    for old, new in changes:
        if source.count(old) != 1:
            raise ValueError(f"{name} must hold {old!r} once, to be changed. It reads:\n{source}")
        source = source.replace(old, new)
    source = source.replace("super()", "super(Owner, self)")
    namespace = {**getattr(owner, name).__globals__, "Owner": owner}
    exec(compile(source, f"<{name} with a fault>", "exec"), namespace)
    return mock.patch.object(owner, name, namespace[name])


def listed(name: str, new: Callable):
    return mock.patch.dict(OPTIMIZERS, {name: new})


def without(*endings: str):
    """A checkpoint that leaves out the variables of the optimizer with these names."""

    def variables(self):
        return [v for v in self.optimizer.variables if not v.name.endswith(endings)]

    return mock.patch.object(rules.OptimizerRule, "variables", property(variables))


def faults(strategy, name, claims, apply, *arguments) -> list[Mutant]:
    """One fault for each of the claims that it breaks; their names differ by the claim."""
    names = [name, *(f"{name}: {claim}" for claim in claims[1:])]
    return [
        Mutant(name=n, strategy=strategy, claim_it_breaks=claim, apply=partial(apply, *arguments))
        for n, claim in zip(names, claims, strict=True)
    ]


class DecayedByDefault(Adam):
    """As Keras' AdamW, whose decay is 0.004 unless it is told otherwise."""

    decay_table = tf.constant([0.004], tf.float64)


def rmsprop_with_epsilon_outside(self, index, gradient, variable, rate):
    self.apply_decay(index, variable, rate)
    velocity = self._velocities[index]
    v = self.rho * tf.convert_to_tensor(velocity) + (1 - self.rho) * gradient**2
    self.assign(velocity, v)
    rate = tf.cast(rate, variable.dtype)
    self.assign_sub(variable, rate * gradient / (tf.sqrt(v) + self.epsilon))


def clipping_each_batch():
    """As Keras does on each replica."""
    of_one_batch = rules.OptimizerRule.gradient

    def gradient(self, batches):
        gradients, sums = of_one_batch(self, batches)
        count = sums["num_targets"]
        clipped, _ = rules.clip(rules.scale(gradients, 1 / count), self.clip_norm)
        return rules.scale(clipped, count), sums

    return mock.patch.object(rules.OptimizerRule, "gradient", gradient)


def evaluating_y():
    def weights(self):
        return [tf.convert_to_tensor(weight) for weight in self._trainable_variables]

    return mock.patch.object(ScheduleFreeSGD, "evaluation_weights", weights)


replaced = mock.patch.object
PAPERS_CLAIMS = (PAPER, VECTOR)
NO_DECAY_AT_ALL = ("self.apply_decay(index, variable, rate)", "pass")
COUPLED = (
    "self.apply_decay(index, variable, rate)",
    "decay = self.decay_of(index)\n"
    "    if decay is not None:\n"
    "        gradient = gradient + tf.cast(decay, gradient.dtype) * variable",
)
UNCORRECTED = (" * tf.sqrt(1 - self.beta_2**t) / (1 - self.beta_1**t)", "")
DAMPENED = ("+ change\n", "+ (1 - self.momentum) * change\n")
BESIDE = ("update += tf.cast(decay, w.dtype) * w", "self.apply_decay(index, variable, rate)")
ALIASED = (
    "(1 - c) * tf.convert_to_tensor(self._x[index])",
    "(1 - c) * (y - (1 - self.beta) * z) / self.beta",
)
BY_COUNT = (
    "return tf.math.divide_no_nan(tf.square(highest), tf.convert_to_tensor(self._weight_sum))",
    "return 1 / tf.cast(self.iterations + 1, tf.float64)",
)

MUTANTS: list[Mutant] = [
    # Row 1
    *faults("sgd", "no decay", (*PAPERS_CLAIMS, IS_L2), edited, SGD, "step", NO_DECAY_AT_ALL),
    *faults("sgd", "up the hill", (RECURRENCE,), edited, SGD, "step", ("-tf.cast", "tf.cast")),
    *faults("momentum", "dampened", (*PAPERS_CLAIMS, RECURRENCE), edited, SGD, "step", DAMPENED),
    *faults(
        "momentum", "none", ("it is not SGD",), listed, "momentum", lambda rate, **_: SGD(rate)
    ),
    *(
        fault
        for name in ("momentum", "nesterov")
        for fault in faults(
            name,
            "0 taken for not given",
            (NO_MOMENTUM,),
            listed,
            name,
            lambda rate, momentum: SGD(rate, momentum or 0.9),
        )
    ),
    *faults(
        "nesterov",
        "Polyak's momentum instead",
        (*PAPERS_CLAIMS, RECURRENCE, "it is not Polyak's momentum"),
        listed,
        "nesterov",
        SGD,
    ),
    # Row 2
    *faults(
        "rmsprop",
        "epsilon outside the root",
        (*PAPERS_CLAIMS, TINY),
        replaced,
        RMSprop,
        "step",
        rmsprop_with_epsilon_outside,
    ),
    *faults(
        "adam",
        "epsilon under the root",
        (TINY,),
        edited,
        Adam,
        "step",
        ("(tf.sqrt(v) + self.epsilon)", "tf.sqrt(v + self.epsilon)"),
    ),
    *faults(
        "adam",
        "bias correction forgotten",
        (*PAPERS_CLAIMS, FIRST_SIGN),
        edited,
        Adam,
        "step",
        UNCORRECTED,
    ),
    *(
        fault
        for name, owner in (("adam", Adam), ("lion", Lion), ("muon", Adam))
        for fault in faults(
            name, "every row moves", (ROWS_STILL,), replaced, owner, "takes_rows", False
        )
    ),
    *faults("adamw", "decays by default", (NO_DECAY,), listed, "adamw", DecayedByDefault),
    *faults(
        "adamw",
        "decay coupled",
        (*PAPERS_CLAIMS, DECAY_ASIDE, NOT_L2),
        edited,
        Adam,
        "step",
        COUPLED,
    ),
    # Row 3
    *faults("lion", "no sign", (EVERY_SIGN,), edited, Lion, "step", ("tf.sign(", "tf.tanh(")),
    *faults(
        "lion",
        "the sign of the new momentum",
        (PAPER,),
        edited,
        Lion,
        "step",
        ("self.beta_1 * m + (1 - self.beta_1)", "self.beta_2 * m + (1 - self.beta_2)"),
    ),
    *faults("lion", "no decay", (VECTOR,), edited, Lion, "step", NO_DECAY_AT_ALL),
    *faults(
        "adafactor",
        "rate not relative to the weights",
        (*PAPERS_CLAIMS, RANK_ONE),
        edited,
        Adafactor,
        "step",
        ("* size * update", "* update"),
    ),
    *faults(
        "adafactor",
        "no clipping",
        (UPHILL,),
        edited,
        Adafactor,
        "step",
        ("tf.maximum(_rms(update) / self.clip_threshold, 1.0)", "1.0"),
    ),
    *faults(
        "lamb",
        "decay beside the ratio, as in Keras",
        (*PAPERS_CLAIMS, LAYER_NORM),
        edited,
        Lamb,
        "step",
        BESIDE,
    ),
    *faults(
        "muon",
        "one iteration",
        (SINGULAR,),
        edited,
        muon,
        "newton_schulz",
        ("range(5)", "range(1)"),
    ),
    *faults("muon", "attention in one", (SINGULAR, LISTED), replaced, muon, "_FUSED", {}),
    *faults(
        "muon",
        "attention left to AdamW",
        (SINGULAR, LISTED),
        replaced,
        muon,
        "_NEVER",
        re.compile("embedding|head|qkv"),
    ),
    *faults("muon", "Keras' attention left to AdamW", (LISTED,), replaced, muon, "_INPUT_AXES", {}),
    *faults(
        "muon", "heads by Muon", (ADAMW_REST,), replaced, muon, "_NEVER", re.compile("embedding")
    ),
    *faults(
        "muon",
        "AdamW at the whole rate",
        (ADAMW_REST, VECTOR),
        edited,
        Muon,
        "step",
        ("rate * self.adamw_rate", "rate"),
    ),
    *faults(
        "muon",
        "plain momentum",
        (PAPER,),
        edited,
        Muon,
        "step",
        ("gradient + self.momentum * m)", "m)"),
    ),
    *faults(
        "muon",
        "inputs over outputs",
        (PAPER,),
        edited,
        Muon,
        "step",
        ("view.columns / view.rows", "view.rows / view.columns"),
    ),
    # Row 7
    *(
        fault
        for name, goldens, warm in (
            ("schedule_free_sgd", (GOLDEN, GOLDEN_TWO), ()),
            ("schedule_free_adamw", (GOLDEN_YX,), (GOLDEN_WARM,)),
        )
        for fault in (
            *faults(
                name,
                "x out of y and the new z, as in Keras",
                (PLAIN_MEAN, PAPER, *goldens),
                edited,
                ScheduleFreeSGD,
                "step",
                ALIASED,
            ),
            *faults(name, "c = 1/t", (WARM_UP, *warm), edited, ScheduleFreeSGD, "share", BY_COUNT),
            *faults(
                name,
                "c by the rate of the update",
                (FALLING,),
                edited,
                ScheduleFreeSGD,
                "apply",
                ("tf.maximum(tf.convert_to_tensor(self._highest_rate), rate)", "rate"),
            ),
            *faults(
                name,
                "decay at z",
                PAPERS_CLAIMS if name == "schedule_free_sgd" else (VECTOR, GOLDEN_DECAY),
                edited,
                ScheduleFreeSGD,
                "step",
                ("tf.cast(decay, y.dtype) * y", "tf.cast(decay, y.dtype) * self._z[index]"),
            ),
            *faults(name, "evaluates y", (SWAPPED, PLAIN_MEAN), evaluating_y),
            *faults(name, "the sum of the weights is not kept", (RESUMES,), without, "weight_sum"),
        )
    ),
    *faults(
        "schedule_free_sgd",
        "z and x changed over",
        (BETA_ZERO,),
        edited,
        ScheduleFreeSGD,
        "step",
        ("(1 - self.beta) * z + self.beta * x", "self.beta * z + (1 - self.beta) * x"),
    ),
    *faults(
        "schedule_free_adamw",
        "bias of the second moment",
        (*PAPERS_CLAIMS, GOLDEN_YX, GOLDEN_WARM, GOLDEN_DECAY),
        edited,
        ScheduleFreeAdamW,
        "direction",
        ("v / (1 - self.beta_2**t)", "v"),
    ),
    # Row 15
    *faults("sgd", "clips each batch", (AGGREGATED,), clipping_each_batch),
    *faults("sgd", "never clips", (LIMIT,), replaced, rules, "clip", lambda g, _: clip(g, None)),
    *faults(
        "sgd", "repeated rows not added up", (NORM,), replaced, rules, "distinct_rows", lambda g: g
    ),
    *(
        fault
        for name in ("sgd", "adam")
        for fault in faults(
            name,
            "clips at 0.01 whatever the limit",
            (HUGE,),
            edited,
            rules.OptimizerRule,
            "apply",
            ("self.clip_norm)", "self.clip_norm and 0.01)"),
        )
    ),
    # Resume
    *faults("sgd", "updates are not counted on", (RESUMES,), without, "iteration"),
    *faults("adafactor", "row means are not kept", (RESUMES,), without, "rows"),
    *(
        fault
        for name in ("momentum", "nesterov", "rmsprop", "adam", "adamw", "lion", "lamb", "muon")
        for fault in faults(
            name, "moments are not kept", (RESUMES,), without, "momentum", "velocity"
        )
    ),
]
