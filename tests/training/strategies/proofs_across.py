"""Proofs of what acts across updates (rows 5, 6, 10, 11 and 12 of the catalogue).

A mutant names in `claim_it_breaks` the claim of the proof that it must not pass. Of row 12 there is
Reptile; MAML, which differentiates through the inner updates, is left out.
"""

import numpy as np
import tensorflow as tf

from tests.proofs import AT_LEAST, Ledger
from tests.training.strategies.toys import START, Quadratic, Words
from training.strategies import build, local_sgd
from training.strategies.averaging import (
    Average,
    ExponentialMovingAverage,
    StochasticWeightAverage,
)
from training.strategies.local_sgd import DiLoCo, LocalSGD
from training.strategies.lookahead import Lookahead
from training.strategies.reptile import Reptile
from training.strategies.rules import pick

LEDGER = Ledger()
proof, mutant = LEDGER.proof, LEDGER.mutant
PROOFS, MUTANTS = LEDGER.proofs, LEDGER.mutants


# What proofs measure ------------------------------------------------------------------------------

CENTRES = ((0.0, 0.0), (1.0, 1.0), (-1.0, 0.5), (2.0, -1.0))


class TwoValleys(Quadratic):
    """The two functions of the golden numbers, one in every even batch and one in every odd."""

    def loss(self, batch):
        difference = self.weights[0].value - batch["centre"]
        total = 0.5 * tf.reduce_sum(batch["curvature"] * difference**2)
        one = tf.ones_like(total)
        return {"loss_sum": total, "num_targets": one, "num_correct": tf.zeros_like(one)}

    def batch(self, i):
        centre, curvature = (((0.0, 0.0), (1.0, 10.0)), ((1.0, 1.0), (2.0, 4.0)))[i % 2]
        return {"centre": np.array([centre]), "curvature": np.array([curvature])}


class Joined(Quadratic):
    """Every `join` micro-batches as one large batch."""

    def __init__(self, expression, *, join, **settings):
        self.join = join
        super().__init__(expression, **settings)

    def batch(self, i):
        parts = [super(Joined, self).batch(self.join * i + j) for j in range(self.join)]
        return {"centre": np.concatenate([part["centre"] for part in parts])}


def distance(a, b):
    return np.abs(np.asarray(a) - np.asarray(b)).max()


def after_resume(expression, updates=7, **settings):
    """Between an uninterrupted run and those stopped after each update and begun in a new rule."""
    settings |= {"sizes": (3, 2), "dropout": 0.3}
    toy = Words(expression, **settings)
    states, path = [], []
    for _ in range(updates):
        path += list(toy.run(1))
        states.append(toy.state())
    fresh, worst = Words(expression, **settings), 0.0
    for stop in range(2, updates):  # from the middle of a cycle
        fresh.restore(states[stop - 1])
        worst = max(worst, distance(fresh.run(updates - stop), path[stop:]))
        worst = max(worst, distance(fresh.evaluated(), toy.evaluated()))
    return worst


def forget(*names):
    """A fault: what a rule's `variables` does not name is not saved."""

    def variables(self):
        own = [v for v in self.own_variables if not v.name.startswith(names)]
        return [*self.inner.variables, *own]

    return property(variables)


def _built(name, rule):
    """A fault: the part `name` is this one."""
    return build, "RULES", build.RULES | {name: rule}


# Lookahead ----------------------------------------------------------------------------------------


@proof(5, "lookahead", "identity", "alpha=1 is the rule inside, its moments kept", 1e-14)
def lookahead_of_all_is_inner():
    fast = Quadratic("adam", centres=CENTRES).run(20)
    return distance(Quadratic("lookahead(adam, 5, 1)", centres=CENTRES).run(20), fast)


@proof(5, "lookahead", "identity", "alpha=0 never moves", 0.0)
def lookahead_of_nothing_stays():
    return distance(Quadratic("lookahead(adam, 5, 0)").run(10)[[4, 9]], START)


@proof(5, "lookahead", "golden", "k=5, alpha=0.5 over SGD, 10 updates", 1e-9)
def lookahead_golden():
    path = Quadratic("lookahead(sgd, 5, 0.5)").run(10)
    return distance(path[-1], (0.7865747036, -0.5317382812))


@proof(5, "lookahead", "identity", "within a cycle the weights of its start are evaluated", 0.0)
def lookahead_evaluates_slow():
    toy, worst = Quadratic("lookahead(sgd, 4)"), 0.0
    slow = toy.flat()
    for update in range(1, 10):
        path = toy.run(1)
        slow = path[-1] if update % 4 == 0 else slow
        worst = max(worst, distance(toy.evaluated(), slow))
    return worst


@proof(5, "lookahead", "differs", "alpha=0.5 is not the rule inside", 0.1, AT_LEAST)
def lookahead_differs():
    return distance(Quadratic("lookahead(sgd, 5)").run(10)[-1], Quadratic("sgd").run(10)[-1])


@proof(5, "lookahead", "resume", "stopped after any update it goes on bit for bit", 0.0)
def lookahead_resumes():
    return after_resume("lookahead(adamw, 3)")


@proof(
    5, "lookahead", "composed", "around accumulation it is Lookahead on the large batches", 1e-14
)
def lookahead_of_accumulation():
    small = Quadratic("lookahead(accumulate(momentum, 4), 3)", centres=CENTRES, examples=(1, 3, 2))
    large = Joined("lookahead(momentum, 3)", join=4, centres=CENTRES, examples=(1, 3, 2))
    return distance(small.run(8), large.run(8))


def _synchronised(new):
    """Of `Lookahead`, with the new weights by `new(slow, fast, alpha)`."""

    def synchronised(self):
        pairs = zip(self.slow, self._fast(), strict=True)
        return [tf.constant(0.0), *(new(slow, fast, self.alpha) for slow, fast in pairs)]

    return Lookahead, "_synchronised", synchronised


mutant(
    "the slow weights are not copied back to the fast ones",
    lookahead_golden,
    _synchronised(lambda slow, fast, alpha: fast),
)
mutant(
    "alpha is applied twice",
    lookahead_golden,
    _synchronised(lambda slow, fast, alpha: slow + alpha * alpha * (fast - slow)),
)
mutant(
    "the change has the wrong sign",
    lookahead_golden,
    _synchronised(lambda slow, fast, alpha: slow - alpha * (fast - slow)),
)
mutant(
    "alpha weighs the slow weights",
    lookahead_of_nothing_stays,
    _synchronised(lambda slow, fast, alpha: fast + alpha * (slow - fast)),
)
mutant(
    "the optimizer is begun anew at every cycle",
    lookahead_of_all_is_inner,
    _built("lookahead", lambda inner, run, k, alpha: Reptile(inner, k, alpha)),
)
mutant(
    "a cycle is one update too long",
    lookahead_golden,
    _built("lookahead", lambda inner, run, k, alpha: Lookahead(inner, k + 1, alpha)),
)
mutant(
    "the fast weights are evaluated",
    lookahead_evaluates_slow,
    (Lookahead, "evaluation_weights", lambda self: self._fast()),
)
mutant(
    "the position in the cycle is not saved",
    lookahead_resumes,
    (Lookahead, "variables", forget("lookahead_position")),
)
mutant(
    "the slow weights are not saved",
    lookahead_resumes,
    (Lookahead, "variables", forget("lookahead_slow")),
)
mutant(
    "cycles count micro-batches",
    lookahead_of_accumulation,
    (Lookahead, "update", lambda self, batches: _counted(self, batches)),
)


def _counted(self, batches, update=Lookahead.update):
    self.position.assign_add(self.num_batches - 1)
    return update(self, batches)


# Averages -----------------------------------------------------------------------------------------


def corrected_ema(path, beta):
    """(1-b) sum_s b^(t-s) w_s / (1 - b^t) after each t."""
    averages = []
    for t in range(1, len(path) + 1):
        weight = beta ** np.arange(t - 1, -1, -1.0)
        averages.append(weight @ path[:t] / weight.sum())
    return np.array(averages)


def observe(toy, updates):
    """The weights and what would be evaluated, after each update."""
    path, evaluated = [], []
    for _ in range(updates):
        path += list(toy.run(1))
        evaluated.append(toy.evaluated())
    return np.array(path), np.array(evaluated)


@proof(6, "ema", "identity", "beta=0 evaluates the weights as they are", 0.0)
def ema_of_the_newest():
    path, evaluated = observe(Words("ema(adamw, 0)"), 5)
    return distance(evaluated, path)


@proof(
    6, "ema", "identity", "the average is that of its definition, its start without weight", 1e-14
)
def ema_is_its_definition():
    path, evaluated = observe(Quadratic("ema(momentum, 0.9)", centres=CENTRES), 12)
    return distance(evaluated, corrected_ema(path, 0.9))


@proof(6, "ema", "identity", "training is that of the rule inside", 0.0)
def ema_only_watches():
    return distance(Words("ema(adamw, 0.9)").run(5), Words("adamw").run(5))


@proof(6, "ema", "differs", "beta=0.9 does not evaluate the weights as they are", 0.1, AT_LEAST)
def ema_differs():
    path, evaluated = observe(Quadratic("ema(sgd, 0.9)"), 10)
    return distance(evaluated[-1], path[-1])


@proof(6, "ema", "resume", "stopped after any update it goes on bit for bit", 0.0)
def ema_resumes():
    return after_resume("ema(adamw, 0.9)")


@proof(6, "ema", "composed", "around accumulation it counts updates, not micro-batches", 1e-14)
def ema_of_accumulation():
    small = Quadratic("ema(accumulate(sgd, 4), 0.8)", centres=CENTRES, examples=(1, 3, 2))
    large = Joined("sgd", join=4, centres=CENTRES, examples=(1, 3, 2))
    return distance(observe(small, 8)[1], corrected_ema(large.run(8), 0.8))


@proof(6, "ema", "composed", "around DiLoCo it averages the shared weights, once an update", 1e-14)
def ema_of_diloco():
    composite = Quadratic("ema(diloco(accumulate(sgd, 2), 2, 4), 0.8)", centres=CENTRES)
    shared = Joined("diloco(sgd, 2, 4)", join=2, centres=CENTRES)
    return distance(observe(composite, 9)[1], corrected_ema(shared.run(9), 0.8))


@proof(6, "swa", "identity", "every update from the first on is the mean of all iterates", 1e-14)
def swa_is_the_mean():
    path, evaluated = observe(Quadratic("swa(momentum, 0)", centres=CENTRES), 12)
    return distance(evaluated, np.cumsum(path, 0) / np.arange(1, 13)[:, None])


@proof(6, "swa", "identity", "start=0.5, every=3: the mean of updates 10, 13, ... of 20", 1e-14)
def swa_takes_some():
    toy = Quadratic("swa(momentum, 0.5, 3)", centres=CENTRES, num_updates=20)
    path, evaluated = observe(toy, 20)
    expected = [path[9 : t + 1 : 3].mean(0) if t >= 9 else path[t] for t in range(20)]
    return distance(evaluated, expected)


@proof(6, "swa", "differs", "the mean of the iterates is not the last one", 0.1, AT_LEAST)
def swa_differs():
    path, evaluated = observe(Quadratic("swa(sgd, 0)"), 10)
    return distance(evaluated[-1], path[-1])


@proof(6, "swa", "resume", "stopped after any update it goes on bit for bit", 0.0)
def swa_resumes():
    return after_resume("swa(adamw, 0.02)")


@proof(6, "swa", "composed", "around Lookahead over Lion it is the mean of their iterates", 1e-14)
def swa_of_lookahead():
    path = Quadratic("lookahead(lion)", centres=CENTRES).run(8)
    _, evaluated = observe(Quadratic("swa(lookahead(lion), 0)", centres=CENTRES), 8)
    return distance(evaluated, np.cumsum(path, 0) / np.arange(1, 9)[:, None])


def _at_every_micro_batch(self, batches, update=Average.update):
    sums = update(self, batches)
    for _ in range(self.num_batches - 1):
        self.watch()
    return sums


def _train_on_the_average(self, batches, update=Average.update):
    sums = update(self, batches)
    local_sgd.assign(self.weights, [tf.convert_to_tensor(a) for a in self.average])
    return sums


def _share_of(number):
    """Of SWA, by `number(weights taken before)`, and which are taken by its own rule."""

    def share(self, count):
        since = count - max(self.first_update, 1)
        is_taken = tf.cast(since % self.every == 0, tf.float64)
        taken = tf.cast(since // self.every, tf.float64)
        return tf.where(since < 0, tf.ones_like(taken), is_taken / number(taken))

    return StochasticWeightAverage, "share", share


def _swa(start, every):
    """Its numbers through `start` and `every`."""

    def built(inner, run, **numbers):
        first = round(start(numbers["start"]) * run.num_updates)
        return StochasticWeightAverage(inner, first, every(numbers["every"]))

    return _built("swa", built)


mutant(
    "the average counts micro-batches",
    ema_of_accumulation,
    (Average, "update", _at_every_micro_batch),
)
mutant(
    "the average starts from the random weights, uncorrected",
    ema_is_its_definition,
    (ExponentialMovingAverage, "share", lambda self, count: tf.constant(1 - self.beta, tf.float64)),
)
mutant(
    "beta weighs the newest weights",
    ema_of_the_newest,
    (ExponentialMovingAverage, "share", lambda self, count: tf.constant(self.beta, tf.float64)),
)
mutant(
    "the weights as they are are evaluated",
    ema_is_its_definition,
    (Average, "evaluation_weights", lambda self: [w.value.read_value() for w in self.weights]),
)
mutant(
    "training goes on from the average",
    ema_only_watches,
    (Average, "update", _train_on_the_average),
)
mutant(
    "the number of updates is not saved",
    ema_resumes,
    (Average, "variables", forget("ema_count")),
)
mutant("the average is not saved", ema_resumes, (Average, "variables", forget("ema/")))
mutant("the start counts as an iterate", swa_is_the_mean, _share_of(lambda taken: taken + 2))
mutant(
    "the newest weights weigh as much as all before",
    swa_is_the_mean,
    _share_of(lambda taken: tf.minimum(taken + 1, 2)),
)
mutant("the average begins with the run", swa_takes_some, _swa(lambda s: 0.0, lambda e: e))
mutant("every update is taken", swa_takes_some, _swa(lambda s: s, lambda e: 1))
mutant("its count is not saved", swa_resumes, (Average, "variables", forget("swa_count")))


# Workers ------------------------------------------------------------------------------------------


def against_joined(inner):
    """Between two workers that meet at every update and one batch of both."""
    workers = Quadratic(f"local_sgd({inner}, 2, 1)", centres=CENTRES, examples=(2,))
    together = Joined(inner, join=2, centres=CENTRES, examples=(2,))
    return distance(workers.run(10), together.run(10))


@proof(10, "local_sgd", "identity", "H=1 over SGD is synchronous data parallelism", 1e-14)
def local_sgd_is_data_parallel():
    return against_joined("sgd")


@proof(10, "local_sgd", "differs", "H=1 over Adam is not, as moments are local", 0.01, AT_LEAST)
def local_adam_is_not_data_parallel():
    return against_joined("adam")


@proof(10, "local_sgd", "identity", "one worker is the rule inside, its moments kept", 0.0)
def one_worker_is_inner():
    alone = Words("adamw", sizes=(3, 2)).run(9)
    return distance(Words("local_sgd(adamw, 1, 3)", sizes=(3, 2)).run(9)[2::3], alone[2::3])


@proof(10, "local_sgd", "identity", "between meetings each worker is a run of its own", 0.0)
def workers_are_runs_of_their_own():
    toy = Quadratic("local_sgd(adam, 3, 100)", centres=CENTRES[:3])
    toy.run(6)
    theirs = toy.rule.their_weights[0].numpy()
    alone = [Quadratic("adam", centres=[centre]).run(6)[-1] for centre in CENTRES[:3]]
    return distance(theirs, alone)


@proof(10, "local_sgd", "identity", "H=4 is the mean of runs of four updates each", 1e-15)
def a_meeting_takes_the_mean():
    alone = [Quadratic("sgd", centres=[centre]).run(4)[-1] for centre in CENTRES[:3]]
    toy = Quadratic("local_sgd(sgd, 3, 4)", centres=CENTRES[:3])
    return distance(toy.run(4)[-1], np.mean(alone, 0))


@proof(10, "local_sgd", "resume", "stopped after any update it goes on bit for bit", 0.0)
def local_sgd_resumes():
    return after_resume("local_sgd(adamw, 2, 3)")


@proof(10, "local_sgd", "composed", "around accumulation it is Local SGD on large batches", 1e-14)
def local_sgd_of_accumulation():
    small = Quadratic("local_sgd(accumulate(sgd, 2), 2, 3)", centres=CENTRES, examples=(1, 3))
    large = Joined("local_sgd(sgd, 2, 3)", join=2, centres=CENTRES, examples=(1, 3))
    return distance(small.run(9), large.run(9))


@proof(11, "diloco", "identity", "one worker, outer rate 1, no momentum is the rule inside", 1e-14)
def diloco_is_inner():
    alone = Quadratic("adam", centres=CENTRES).run(12)
    toy = Quadratic("diloco(adam, 1, 4, 1, 0)", centres=CENTRES)
    return distance(toy.run(12)[3::4], alone[3::4])


@proof(11, "diloco", "identity", "one worker, outer rate a, no momentum is Lookahead(a)", 0.0)
def diloco_is_lookahead():
    slow = observe(Quadratic("lookahead(adam, 4, 0.3)", centres=CENTRES), 12)[1]
    return distance(Quadratic("diloco(adam, 1, 4, 0.3, 0)", centres=CENTRES).run(12), slow)


@proof(11, "diloco", "golden", "two workers, H=4, outer 0.7, Nesterov 0.9, 3 rounds", 1e-9)
def diloco_golden():
    path = TwoValleys("diloco(sgd, 2, 4, 0.7, 0.9)").run(12)
    return distance(path[-1], (0.6294532187, 1.2835615944))


@proof(11, "diloco", "differs", "the outer step is not a mere mean", 0.1, AT_LEAST)
def diloco_differs():
    mean = TwoValleys("local_sgd(sgd, 2, 4)").run(12)[-1]
    return distance(TwoValleys("diloco(sgd, 2, 4)").run(12)[-1], mean)


@proof(
    11, "diloco", "identity", "within a cycle the weights of the last meeting are evaluated", 0.0
)
def diloco_evaluates_the_shared_weights():
    path, evaluated = observe(TwoValleys("diloco(sgd, 2, 4)"), 12)
    held = np.concatenate([[START] * 3, *([path[i]] * 4 for i in (3, 7)), path[11:]])
    return distance(evaluated, held)


@proof(11, "diloco", "resume", "stopped after any update it goes on bit for bit", 0.0)
def diloco_resumes():
    return after_resume("diloco(adamw, 2, 3)")


@proof(11, "diloco", "composed", "around SAM and accumulation it is DiLoCo on large batches", 1e-13)
def diloco_of_sam():
    small = Quadratic("diloco(sam(accumulate(adam, 2)), 2, 3)", centres=CENTRES, examples=(1, 3))
    large = Joined("diloco(sam(adam), 2, 3)", join=2, centres=CENTRES, examples=(1, 3))
    return distance(small.run(9), large.run(9))


def _no_state_of_their_own(self, *arguments, begin=LocalSGD.__init__, **keywords):
    begin(self, *arguments, **keywords)
    self.inner_state, self.their_state = [], []


def _begin_anew(self, shared, meeting=LocalSGD._meeting):
    for stacked in self.their_state:
        stacked.assign(tf.zeros_like(stacked))
    return meeting(self, shared)


def _start_from_the_shared_weights(self, batches, shared, work=LocalSGD._every_worker):
    self.position.assign(0)
    return work(self, batches, shared)


def _outer(step):
    """`outer_step` of DiLoCo, the change and the old velocity given; returns (step, velocity)."""

    def outer_step(self, shared, mean):
        after = []
        for old, new, v in zip(shared, mean, self.velocity, strict=True):
            move, velocity = step(old - new, tf.identity(v), self.momentum)
            v.assign(velocity)
            after.append(old - self.rate * move)
        return after

    return DiLoCo, "outer_step", outer_step


def _aliased(d, v, mu):
    v = mu * v + d
    v = mu * v + d  # read again after it was written
    return d + mu * v, v


mutant(
    "all workers read the first one's batches",
    local_sgd_is_data_parallel,
    (local_sgd, "pick", lambda batches, start, size: pick(batches, 0, size)),
)
mutant(
    "changes are added up, not averaged",
    a_meeting_takes_the_mean,
    (
        LocalSGD,
        "outer_step",
        lambda self, shared, mean: [
            old + self.num_here * (new - old) for old, new in zip(shared, mean, strict=True)
        ],
    ),
)
mutant(
    "workers share the optimizer's state",
    workers_are_runs_of_their_own,
    (LocalSGD, "__init__", _no_state_of_their_own),
)
mutant(
    "a meeting begins the optimizers anew",
    one_worker_is_inner,
    (LocalSGD, "_meeting", _begin_anew),
)
mutant(
    "workers start every update from the shared weights",
    workers_are_runs_of_their_own,
    (LocalSGD, "_every_worker", _start_from_the_shared_weights),
)
mutant(
    "the position in the cycle is not saved",
    local_sgd_resumes,
    (LocalSGD, "variables", forget("workers_position")),
)
mutant(
    "the workers' weights and moments are not saved",
    local_sgd_resumes,
    (LocalSGD, "variables", forget("workers/")),
)
mutant(
    "the change has the wrong sign",
    diloco_is_lookahead,
    _outer(lambda d, v, mu: (-d - mu * (mu * v - d), mu * v - d)),
)
mutant(
    "the outer momentum is read after it was written",
    diloco_golden,
    _outer(_aliased),
)
mutant(
    "the outer momentum is begun anew at every meeting",
    diloco_golden,
    _outer(lambda d, v, mu: (d + mu * d, v)),
)
mutant(
    "the outer momentum is Polyak's",
    diloco_golden,
    _outer(lambda d, v, mu: (mu * v + d, mu * v + d)),
)
mutant(
    "the outer momentum is not saved",
    diloco_resumes,
    (DiLoCo, "variables", forget("diloco_velocity")),
)
mutant(
    "a worker's weights are evaluated",
    diloco_evaluates_the_shared_weights,
    (LocalSGD, "evaluation_weights", lambda self: [theirs[0] for theirs in self.their_weights]),
)


# Reptile ------------------------------------------------------------------------------------------


def reptile_over_adam(k, rate, updates, lr=0.05):
    """Nichol et al. (2018), alg. 1, over Adam, on the function of the golden numbers: NumPy."""
    slow = START
    for _ in range(updates // k):
        w, m, v = slow, 0.0, 0.0
        for t in range(1, k + 1):
            g = np.array([1.0, 10.0]) * w
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
            size = lr * np.sqrt(1 - 0.999**t) / (1 - 0.9**t)
            w = w - size * m / (np.sqrt(v) + 1e-7)
        slow = slow + rate * (w - slow)
    return slow


@proof(12, "reptile", "golden", "over Adam, four tasks of three updates, as written in NumPy", 1e-5)
def reptile_is_its_definition():
    # Keras rounds its betas to float32, hence the tolerance.
    path = Quadratic("reptile(adam, 3, 0.4)").run(12)
    return distance(path[-1], reptile_over_adam(3, 0.4, 12))


@proof(12, "reptile", "identity", "over SGD, which has no state, it is Lookahead", 0.0)
def reptile_over_sgd_is_lookahead():
    settings = {"centres": CENTRES, "schedule": "linear", "num_updates": 12}
    slow = Quadratic("lookahead(sgd, 3, 0.4)", **settings).run(12)
    return distance(Quadratic("reptile(sgd, 3, 0.4)", **settings).run(12), slow)


@proof(12, "reptile", "identity", "within one task it is the rule inside", 0.0)
def a_task_is_the_rule_inside():
    return distance(Words("reptile(adamw, 9)").run(5), Words("adamw").run(5))


@proof(12, "reptile", "differs", "over Adam, begun anew, it is not Lookahead", 0.01, AT_LEAST)
def reptile_over_adam_is_not_lookahead():
    slow = Quadratic("lookahead(adam, 3, 0.4)", centres=CENTRES).run(12)
    return distance(Quadratic("reptile(adam, 3, 0.4)", centres=CENTRES).run(12), slow)


@proof(12, "reptile", "resume", "stopped after any update it goes on bit for bit", 0.0)
def reptile_resumes():
    return after_resume("reptile(adamw, 3)", schedule="linear", num_updates=9)


@proof(12, "reptile", "composed", "around accumulation it is Reptile on the large batches", 1e-14)
def reptile_of_accumulation():
    small = Quadratic("reptile(accumulate(adam, 2), 3)", centres=CENTRES, examples=(1, 3))
    large = Joined("reptile(adam, 3)", join=2, centres=CENTRES, examples=(1, 3))
    return distance(small.run(8), large.run(8))


def _forget_to_reset(*names):
    """Reptile that leaves some of the optimizer's variables as they are."""

    def begin(self, *arguments, begin=Reptile.__init__):
        begin(self, *arguments)
        self.memory = [v for v in self.memory if not any(name in v.path for name in names)]

    return Reptile, "__init__", begin


mutant(
    "the moments pass to the next task",
    reptile_is_its_definition,
    _forget_to_reset("momentum", "velocity"),
)
mutant(
    "the count of bias correction passes to the next task",
    reptile_is_its_definition,
    _forget_to_reset("iteration"),
)
mutant(
    "the schedule begins anew with every task",
    reptile_over_sgd_is_lookahead,
    (
        Reptile,
        "_new_task",
        lambda self: [self.begun, *(tf.zeros_like(tf.convert_to_tensor(v)) for v in self.memory)],
    ),
)
mutant(
    "the rate is applied twice",
    reptile_is_its_definition,
    _synchronised(lambda slow, fast, rate: slow + rate * rate * (fast - slow)),
)
mutant(
    "the updates before a task are not saved",
    reptile_resumes,
    (Reptile, "variables", forget("reptile_begun")),
)
mutant(
    "the position in the task is not saved",
    reptile_resumes,
    (Reptile, "variables", forget("reptile_position")),
)
