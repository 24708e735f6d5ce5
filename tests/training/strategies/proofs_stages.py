"""Proofs of what makes a run of several parts (rows 14 and 20 to 24 of the catalogue).

Schedules, exact resume through the real loop, what a stage freezes and how far its layers move,
what it starts from, low-rank changes, and learning from a teacher.
"""

import functools
import json
import math
import re
import tempfile
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import keras
import numpy as np
import tensorflow as tf

from model import lora
from tests.proofs import AT_LEAST, Ledger
from tests.training.strategies.measures import joined
from tests.training.strategies.proofs_accumulation import counted_per_batch, mean_of_means
from tests.training.strategies.proofs_across import forget
from tests.training.strategies.proofs_optimizers import edited, without
from tests.training.strategies.toys import CURVATURE, START, Quadratic, Toy, Words
from training import losses, run, schedules, stages
from training.checkpoints import Checkpoints, checkpoint_files, read_checkpoint
from training.config import RunConfig, StageConfig
from training.loop import Plan, fit
from training.losses import TaskLoss, classification_loss
from training.schedules import SCHEDULES
from training.stacking import stack
from training.strategies import build
from training.strategies.accumulation import Accumulate
from training.strategies.lookahead import Lookahead
from training.strategies.rules import OptimizerRule

LEDGER = Ledger()
proof = LEDGER.proof
PROOFS, MUTANTS = LEDGER.proofs, LEDGER.mutants


def mutant(name, breaks, apply, *arguments):
    """A fault, there while `apply(*arguments)` is entered; `breaks` is the proof to notice it."""
    LEDGER.planted(name, breaks, functools.partial(apply, *arguments))


def apart(a, b) -> float:
    return float(np.max(np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64))))


def resumed(make, count=4) -> float:
    """How far runs that are stopped after each update end from the whole one, at worst."""
    whole, states = make(), []
    for _ in range(count):
        states.append(whole.state())
        whole.run(1)
    worst, fresh = 0.0, make()
    for done, state in enumerate(states):
        fresh.restore(state)
        fresh.run(count - done)
        worst = max(worst, apart(fresh.flat(), whole.flat()))
    return worst


# A small network ----------------------------------------------------------------------------------

ALL = StageConfig(name="all")


def network(dropout=0.0) -> keras.Model:
    """Embedding, mean, a dense layer and a head; the same weights at every call."""
    layers = keras.layers
    model = keras.Sequential(
        [
            layers.Embedding(
                Words.vocabulary_size,
                4,
                mask_zero=True,
                embeddings_initializer=keras.initializers.RandomNormal(seed=1),
                name="embedding",
            ),
            layers.GlobalAveragePooling1D(),
            layers.Dense(
                4,
                activation="tanh",
                kernel_initializer=keras.initializers.GlorotNormal(seed=2),
                name="body",
            ),
            layers.Dropout(dropout, seed=5),
            layers.Dense(
                Words.num_labels,
                kernel_initializer=keras.initializers.GlorotNormal(seed=3),
                name="head",
            ),
        ],
        name="tiny",
    )
    model(np.ones((1, 2), np.int32))
    return model


class Tiny(Toy):
    """The network in a stage: what it trains, how far each layer moves, low-rank changes."""

    vocabulary_size, num_labels, data_seed = Words.vocabulary_size, Words.num_labels, 0

    def __init__(
        self,
        expression,
        *,
        stage=ALL,
        model=None,
        dropout=0.0,
        sizes=(3,),
        loss=classification_loss,
        **settings,
    ):
        self.model, self.sizes = model or network(dropout), sizes
        if stage.lora_rank:
            self.adapted = lora.add_lora(
                self.model, stage.lora_layers, stage.lora_rank, stage.lora_alpha, seed=1
            )
        self.task = TaskLoss(lambda batch: self.model(batch["tokens"], training=True), loss)
        self.weights = stages.moving_weights(stage, self.model, self.task, self.batch(0))
        super().__init__(expression, rate_factors=stage.factors(), **settings)

    def batch(self, i):
        batch = Words.batch(self, i)
        teacher = np.random.default_rng([8, i]).normal(size=(len(batch["label"]), self.num_labels))
        return batch | {"teacher_logits": teacher.astype(np.float32)}

    def logits(self):
        return self.model(self.batch(0)["tokens"], training=False).numpy()

    def values(self):
        """{path: value} of all variables of the network."""
        return {variable.path: variable.numpy() for variable in self.model.variables}

    def state(self):
        return [v.numpy() for v in [*self.model.variables, *self.rule.variables]], self.index

    def restore(self, state):
        arrays, self.index = state
        for variable, array in zip(
            [*self.model.variables, *self.rule.variables], arrays, strict=True
        ):
            variable.assign(array)


class Joined(Tiny):
    """Every batch is four of `Tiny` in one."""

    def batch(self, i):
        parts = [super(Joined, self).batch(4 * i + j) for j in range(4)]
        teacher = np.concatenate([part.pop("teacher_logits") for part in parts])
        return joined(parts) | {"teacher_logits": teacher}


UNEQUAL = {"sizes": (2, 5, 1, 3)}


def changes(before, after, pattern, inside=True) -> list[float]:
    """How far each variable moved in whose path `pattern` is, or is not, found."""
    return [
        apart(before[path], after[path])
        for path in before
        if (re.search(pattern, path) is not None) == inside
    ]


def accumulated_apart(**settings) -> float:
    large = Joined("sgd", **settings, **UNEQUAL).run(3)
    return apart(large, Tiny("accumulate(sgd, 4)", **settings, **UNEQUAL).run(3))


def _every_variable_moves(config, variable):
    return True


MEAN_OF_MEANS = (patch.object, Accumulate, "gradient", mean_of_means)


# 14. Schedules ------------------------------------------------------------------------------------

WARMUP, LENGTH = 10, 100
# (its numbers, its value at a share of the way after the warm-up), written out by hand.
CLOSED_FORMS = {
    "constant": ("0.4", lambda s: 0.4),
    "step": ("0.8, factor=0.5, every=40", lambda s: 0.8 / 2 ** int(LENGTH * s / 40)),
    "exponential": ("1, 0.01", lambda s: 10 ** (-2 * s)),
    "linear": ("8, 64", lambda s: 8 + 56 * s),
    "polynomial": ("1, 0.2, power=3", lambda s: 0.2 + 0.8 * (1 - s) ** 3),
    "inverse_sqrt": ("2", lambda s: 2 / math.sqrt(1 + LENGTH * s / WARMUP)),
    "cosine": ("1, 0.1", lambda s: 0.1 + 0.9 * math.cos(math.pi * s / 2) ** 2),
    "cosine_restarts": (  # the first cycle is 1/7 of the way, the third 4/7
        "1, 0.2",
        lambda s: (
            0.2 + 0.8 * math.cos(math.pi / 2 * ((7 * s - 3) / 4 if s > 3 / 7 else 7 * s)) ** 2
        ),
    ),
    "one_cycle": (
        "0.2, 1, 0.02, rise=0.4",
        lambda s: min(0.2 + 2 * s, 1 - 2 * (s - 0.4)) if s < 0.8 else 0.02 + 0.9 * (1 - s),
    ),
    "warmup_stable_decay": ("2, 0.5, decay=0.75", lambda s: min(2.0, 2 - 2 * (s - 0.25))),
    "slanted_triangular": (
        "1, rise=0.25, ratio=10",
        lambda s: 0.1 + 0.9 * min(s / 0.25, (1 - s) / 0.75),
    ),
    "plateau": ("0.3, factor=0.1", lambda s: 0.3),
}


def off_its_closed_form(name) -> float:
    numbers, value = CLOSED_FORMS[name]
    table = schedules.tabulate(
        f"{name}({numbers}, warmup={WARMUP}, warmup_start=0.05, steps={LENGTH})", 150
    )
    expected = {0: 0.05, 5: (0.05 + value(0.0)) / 2}  # of the warm-up
    expected |= {WARMUP + u: value(u / LENGTH) for u in (0, 50, 99, 100)}
    expected |= {WARMUP + LENGTH + 1: value(1.0), 150: value(1.0)}
    return max(abs(table[t] - wanted) for t, wanted in expected.items())


_POINTS = "at 0, the end of its warm-up, the middle, the last update and the one after"
BY_SCHEDULE = {
    name: proof(14, "schedules", "golden", f"{name}: its value {_POINTS}", 1e-12)(
        functools.partial(off_its_closed_form, name)
    )
    for name in SCHEDULES
}


@proof(14, "schedules", "identity", "a line from 1 to 1 is the constant rate, bit for bit", 0.0)
def schedule_of_nothing():
    line = Quadratic("adam", schedule="linear(1, 1)").run(8)
    return apart(line, Quadratic("adam", schedule="constant").run(8))


@proof(14, "schedules", "differs", "no two are one, plateau aside, which waits", 0.1, AT_LEAST)
def schedules_apart():
    names = [name for name in SCHEDULES if name != "plateau"]
    tables = {name: schedules.tabulate(f"{name}(warmup={WARMUP})", 110) for name in names}
    pairs = [(a, b) for i, a in enumerate(names) for b in names[:i]]
    return min(apart(tables[a], tables[b]) for a, b in pairs)


def scheduled(expression):
    return Quadratic(expression, rate=0.1, schedule="cosine(1, 0.1, warmup=3)", num_updates=9)


def scheduled_path():
    rates = np.array([0, 1 / 3, 2 / 3, *(CLOSED_FORMS["cosine"][1](u / 6) for u in range(6))])
    return START * np.cumprod(1 - 0.1 * rates[:, None] * CURVATURE, axis=0)


@proof(14, "schedules", "composed", "around SGD in accumulate it counts updates", 1e-14)
def schedule_of_updates():
    return apart(scheduled("accumulate(sgd, 4)").run(9), scheduled_path())


@proof(14, "schedules", "resume", "a new run goes on at the value where one stopped", 1e-14)
def schedule_resumed():
    whole, new, states = scheduled("sgd"), scheduled("sgd"), []
    for _ in range(9):
        states.append(whole.state())
        whole.run(1)
    expected, worst = scheduled_path(), 0.0
    for update in reversed(range(9)):  # so that the count has to be put back
        new.restore(states[update])
        worst = max(worst, apart(new.run(1)[0], expected[update]))
    return worst


def _other_function(name, function):
    return patch.dict(SCHEDULES, {name: replace(SCHEDULES[name], function=function)})


def _whole_cosine(u, L, *, start, end):
    return end + (start - end) * (1 + np.cos(2 * np.pi * u / L)) / 2


mutant("a whole cosine", BY_SCHEDULE["cosine"], _other_function, "cosine", _whole_cosine)
mutant(
    "warm-up from 0 whatever is asked",
    BY_SCHEDULE["constant"],
    edited,
    schedules,
    "tabulate",
    ('numbers["warmup_start"] * (1 - share)', "0.0"),
)
mutant(
    "it goes on after its last update",
    BY_SCHEDULE["linear"],
    edited,
    schedules,
    "tabulate",
    ("np.clip(t - warmup, 0.0, length)", "np.maximum(t - warmup, 0.0)"),
)
mutant("a line for a cosine", schedules_apart, _other_function, "cosine", schedules.linear)
mutant(
    "counted by batches",
    schedule_of_updates,
    patch.object,
    OptimizerRule,
    "apply",
    counted_per_batch,
)
mutant("the count of updates is not saved", schedule_resumed, without, "iteration")


# 20. Exact resume ---------------------------------------------------------------------------------


class Kill(Exception):
    """Stands for a power cut: nothing is saved on the way out."""


class Lines(list):
    """A log that only remembers."""

    unit = "examples"

    def begin(self, start, seconds):
        pass

    def report(self, step, metrics):
        self.append((step, metrics))


def sitting(folder, expression, *, ask_at=None, kill_at=None):
    """One process of a run of nine updates, all of it made anew; what it ends with, as arrays."""
    toy, told = Tiny(expression, dropout=0.3, schedule="cosine", num_updates=9), []
    checkpoints = Checkpoints(folder, toy.model, toy.rule)
    size = toy.rule.num_batches

    def batches_of(step, count):
        if step == kill_at:
            raise Kill
        told.append(step)
        return stack([toy.batch(i) for i in range(step * size, (step + count) * size)])

    def evaluate():
        batch = toy.batch(1000)
        sums = classification_loss(batch, toy.model(batch["tokens"], training=False))
        return {"loss": float(sums["loss_sum"])}

    fit(
        Plan(steps=9, evaluate_every=3),
        rule=toy.rule,
        take_updates=toy.take,
        batches_of=batches_of,
        evaluate=evaluate,
        score=lambda metrics: metrics["loss"],  # falls, so that the best has to be remembered
        checkpoints=checkpoints,
        log=Lines(),
        agree=lambda stop, save: (bool(told) and told[-1] + 1 == ask_at, save),
    )
    progress = [float(v) for k, v in checkpoints.progress.items() if k != "seconds"]
    state = [*toy.state()[0], np.array(progress)]
    checkpoints.restore_best()
    return [*state, *toy.values().values()]


def resumed_in_the_loop(expression) -> float:
    """Asked to stop after update 2, killed before update 7, and gone on from what was written."""
    with tempfile.TemporaryDirectory() as name:
        whole = sitting(Path(name) / "whole", expression)
        folder = Path(name) / "part"
        sitting(folder, expression, ask_at=2)
        with suppress(Kill):
            sitting(folder, expression, kill_at=7)
        end = sitting(folder, expression)
    return max(apart(a, b) for a, b in zip(whole, end, strict=True))


@proof(
    20,
    "checkpoints",
    "resume",
    "stopped and killed in the loop, it ends with the same state, best weights and figures",
    0.0,
)
def loop_resumed():
    return resumed_in_the_loop("adamw")


@proof(20, "checkpoints", "composed", "so does Lookahead, from inside a cycle", 0.0)
def loop_of_lookahead_resumed():
    return resumed_in_the_loop("lookahead(accumulate(momentum, 2), 4)")


def _without_seeds():
    def begun(self, folder, model, rule, begin=Checkpoints.__init__, **settings):
        begin(self, folder, model, rule, **settings)
        self.state = {name: v for name, v in self.state.items() if "seed" not in name}

    return patch.object(Checkpoints, "__init__", begun)


mutant("the random state of dropout is not saved", loop_resumed, _without_seeds)
mutant("the count of updates is not saved", loop_resumed, without, "iteration")
mutant(
    "the best score is forgotten",
    loop_resumed,
    edited,
    Checkpoints,
    "restore_last",
    ("self.progress.update(checkpoint.progress)", 'self.progress["best_step"] = 0'),
)
mutant(
    "the position in the cycle is not saved",
    loop_of_lookahead_resumed,
    patch.object,
    Lookahead,
    "variables",
    forget("lookahead_position"),
)


# 21. ULMFiT ---------------------------------------------------------------------------------------

FACTORS = {"embedding": 1 / 2.6**2, "body": 1 / 2.6, "head": 1.0}  # Howard & Ruder, sec. 3.2
SLOWER = StageConfig(
    name="slower", rate_factors=", ".join(f"{name}={f:.12f}" for name, f in FACTORS.items())
)
HEAD = StageConfig(name="head", trainable="head")


def trained(expression="adamw", count=3, **settings):
    """The variables before and after so many updates."""
    toy = Tiny(expression, weight_decay=0.1, **settings)
    before = toy.values()
    toy.run(count)
    return before, toy.values()


@proof(21, "ulmfit", "identity", "what a stage does not train is the same bit for bit", 0.0)
def frozen_variables():
    return max(changes(*trained(stage=HEAD), "head", inside=False))


@proof(21, "ulmfit", "differs", "all that it trains moves", 1e-3, AT_LEAST)
def unfrozen_variables():
    return min(changes(*trained(stage=HEAD), "head"))


@proof(21, "ulmfit", "golden", "layers' first steps of SGD have the ratios of the factors", 1e-4)
def ratios_of_rates():
    plain, slower = (trained("sgd", 1, stage=stage, rate=1.0) for stage in (ALL, SLOWER))
    worst = 0.0
    for path, start in plain[0].items():
        step, scaled = (np.linalg.norm(after[path] - start) for _, after in (plain, slower))
        (factor,) = [f for name, f in FACTORS.items() if name in path] or [None]
        if factor is not None:
            worst = max(worst, abs(scaled / step / factor - 1))
    return worst


@proof(21, "ulmfit", "composed", "thawed layer by layer under accumulate, the rest stays", 0.0)
def gradual_unfreezing():
    model, worst = network(), 0.0
    for thawed in ("head", "head|body"):
        stage = StageConfig(name="stage", trainable=thawed)
        before, after = trained("accumulate(adamw, 2)", stage=stage, model=model)
        worst = max(worst, *changes(before, after, thawed, inside=False))
    return worst


@proof(21, "ulmfit", "resume", "slanted rates by layer go on bit for bit", 0.0)
def ulmfit_resumed():
    settings = {"schedule": "slanted_triangular", "num_updates": 4, "dropout": 0.3}
    return resumed(lambda: Tiny("momentum", stage=SLOWER, **settings))


def _one_rate(link, config, weights, num_updates, factors, built=build.build_optimizer):
    return built(link, config, weights, num_updates)


for _claim in (frozen_variables, gradual_unfreezing):
    mutant(
        "all variables are trained", _claim, patch.object, stages, "_moves", _every_variable_moves
    )
mutant(
    "one rate for all layers", ratios_of_rates, patch.object, build, "build_optimizer", _one_rate
)


# 22. Stages ---------------------------------------------------------------------------------------


@functools.cache
def _two_stages(go_on) -> tuple[list, ...]:
    """Weights of a run: the best and the last of stage one, the first of stage two."""
    lines = [
        {"text": f"{word} film number {i}", "label": word}
        for i in range(20)
        for word in ("good", "bad")
    ]
    first = {
        "name": "first",
        "strategy": "sgd",
        "max_updates": 3,
        "evaluate_every": 1,
        "batch_size": 8,
        "label_smoothing": 0.5,
        # Grows to what makes it worse, so that its best weights are not its last.
        "optimizer": {
            "peak_learning_rate": 30.0,
            "schedule": "linear(0.001, 1)",
            "clip_norm": None,
        },
    }
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "texts.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        config = RunConfig.from_dict(
            {
                "name": "second",
                "dataset": {"name": "file", "path": str(path)},
                "tokenizer": {"name": "word", "min_count": 1},
                "model": {"name": "bag_of_ngrams", "naive_bayes_scale": 0.0, "ngram_dropout": 0.0},
                "batch_size": 8,
                "max_updates": 1,
                "earlier": [first],
            }
        )
        folder, _ = run.fit_run(config, Path(name) / "runs")

        def weights(stage, kind, number):
            files = checkpoint_files(folder / "checkpoints" / stage / kind)  # the newest first
            arrays = read_checkpoint(files[number]).arrays
            return [value for name, value in arrays.items() if name.startswith("weights/")]

        return (
            weights("first", "best", 0),
            weights("first", "last", 0),
            weights("second", "last", -1),
        )


@proof(22, "stages", "identity", "a stage starts at the best weights of the one before", 0.0)
def starts_from_the_best():
    best, _, start = _two_stages(run._go_on_from)
    return max(apart(a, b) for a, b in zip(best, start, strict=True))


@proof(22, "stages", "differs", "those are not its last weights", 1e-3, AT_LEAST)
def starts_not_from_the_last():
    _, last, start = _two_stages(run._go_on_from)
    return max(apart(a, b) for a, b in zip(last, start, strict=True))


for _claim in (starts_from_the_best, starts_not_from_the_last):
    mutant(
        "it goes on from the last weights",
        _claim,
        patch.object,
        run,
        "_go_on_from",
        lambda folder, stage, learner, rates: None,
    )


# 23. LoRA -----------------------------------------------------------------------------------------

LORA = StageConfig(name="lora", lora_rank=2, lora_alpha=6.0, lora_layers="embedding|body|head")


def adapted(count=3):
    toy = Tiny("adamw", stage=LORA, rate=0.05)
    toy.run(count)
    return toy


@proof(23, "lora", "identity", "the outputs are unchanged at first, bit for bit", 0.0)
def lora_at_first():
    return apart(Tiny("sgd").logits(), Tiny("sgd", stage=LORA).logits())


@proof(23, "lora", "identity", "merged into the matrices it is the same function", 1e-5)
def lora_merged():
    toy = adapted()
    before = toy.logits()
    lora.merge_lora(toy.adapted)
    return apart(before, toy.logits())


@proof(23, "lora", "identity", "all but A and B are the same bit for bit after training", 0.0)
def lora_leaves_the_base():
    before, after = trained(stage=LORA)
    return max(changes(before, after, "lora_", inside=False))


@proof(23, "lora", "golden", "the matrix in use is W + alpha / r A B, by NumPy", 1e-6)
def lora_by_hand():
    worst = 0.0
    for layer in adapted().adapted:
        values = {variable.name: variable.numpy() for variable in layer.variables}
        name = "kernel" if "kernel" in values else "embeddings"
        a, b = values[f"lora_{name}_a"], values[f"lora_{name}_b"]
        effective = np.array(getattr(layer, name))
        worst = max(worst, apart(effective, values[name] + 6.0 / 2 * a @ b))
    return worst


@proof(23, "lora", "differs", "trained, it is another function; A and B all move", 1e-3, AT_LEAST)
def lora_moves():
    before, after = trained(stage=LORA, rate=0.05)
    change = apart(Tiny("sgd").logits(), adapted().logits())
    return min(change, *changes(before, after, "lora_"))


@proof(23, "lora", "composed", "inside accumulate it is that of one large batch", 1e-6)
def lora_accumulated():
    return accumulated_apart(stage=LORA)


@proof(23, "lora", "resume", "stopped after any update it goes on bit for bit", 0.0)
def lora_resumed():
    return resumed(lambda: Tiny("adamw", stage=LORA, dropout=0.3))


def _adding(change):
    """`add_lora` with its arguments and layers changed by `change`."""
    return patch.object(lora, "add_lora", functools.partial(change, lora.add_lora))


def _drawn(add, model, *arguments, **settings):
    layers = add(model, *arguments, **settings)
    for variable in model.trainable_variables:
        if variable.name.endswith("_b"):
            variable.assign(tf.ones_like(variable.value) / 10)
    return layers


def _not_over_the_rank(add, model, pattern, rank, alpha, seed):
    return add(model, pattern, rank, alpha * rank, seed)


mutant("B does not start at zero", lora_at_first, _adding, _drawn)
mutant("alpha is not divided by the rank", lora_by_hand, _adding, _not_over_the_rank)
mutant(
    "merged without alpha / r",
    lora_merged,
    edited,
    lora,
    "lora_delta",
    (" * (layer.lora_alpha / layer.lora_rank)", ""),
)
mutant(
    "merged and left in place",
    lora_merged,
    edited,
    lora,
    "merge_lora",
    ("b.assign(tf.zeros_like(b.value))", "pass"),
)
mutant(
    "biases are trained too",
    lora_leaves_the_base,
    patch.object,
    stages,
    "_moves",
    _every_variable_moves,
)
mutant("mean of means", lora_accumulated, *MEAN_OF_MEANS)


# 24. Distillation ---------------------------------------------------------------------------------


def taught(temperature=2.0, share=0.5):
    """Settings of a network that learns from a teacher."""
    loss = functools.partial(losses.distillation_loss, temperature=temperature, share=share)
    return {"loss": loss}


LABELS = np.array([0, 2, 1], np.int32)


def soft_loss(student, teacher, temperature, share=1.0):
    """The mean loss of three rows and its gradient by the student's logits."""
    batch = {"label": tf.constant(LABELS), "teacher_logits": tf.constant(teacher)}
    with tf.GradientTape() as tape:
        logits = tf.constant(student)
        tape.watch(logits)
        loss = losses.distillation_loss(batch, logits, temperature=temperature, share=share)
        mean = loss["loss_sum"] / 3
    return float(mean), tape.gradient(mean, logits).numpy()


def _logits(seed):
    logits = np.random.default_rng(seed).normal(size=(3, 4)).astype(np.float32)
    return logits - logits.mean(-1, keepdims=True)  # centred


@proof(24, "distillation", "identity", "share = 0 is training without a teacher, bit for bit", 0.0)
def distillation_of_nothing():
    return apart(Tiny("adamw", **taught(share=0.0)).run(4), Tiny("adamw").run(4))


@proof(24, "distillation", "golden", "a student like its teacher has nothing to learn", 1e-6)
def distillation_of_equals():
    loss, gradient = soft_loss(_logits(1), _logits(1), 3.0)
    return max(abs(loss), np.abs(gradient).max())


@proof(24, "distillation", "golden", "(1-s) CE + s T^2 KL(teacher || student), by NumPy", 1e-5)
def distillation_by_hand():
    student, teacher = _logits(1).astype(np.float64), _logits(2).astype(np.float64)

    def log_softmax(x):
        return x - np.log(np.exp(x).sum(-1, keepdims=True))

    p, q = log_softmax(teacher / 3), log_softmax(student / 3)
    divergence = np.mean(np.sum(np.exp(p) * (p - q), axis=-1))
    entropy = -np.mean(log_softmax(student)[np.arange(3), LABELS])
    return abs(
        0.3 * entropy + 0.7 * 9 * divergence - soft_loss(_logits(1), _logits(2), 3.0, 0.7)[0]
    )


@proof(24, "distillation", "golden", "for large T the gradient is (z - v) / K, whatever T", 0.02)
def distillation_at_high_temperatures():
    expected = (_logits(1) - _logits(2)) / 4 / 3  # of centred logits, in the mean of three rows
    found = [soft_loss(_logits(1), _logits(2), temperature)[1] for temperature in (50.0, 100.0)]
    return max(apart(gradient, expected) for gradient in found) / np.abs(expected).max()


@proof(
    24, "distillation", "differs", "half of the loss from a teacher leads elsewhere", 1e-3, AT_LEAST
)
def distillation_differs():
    return apart(Tiny("sgd", **taught()).run(4), Tiny("sgd").run(4))


@proof(24, "distillation", "composed", "inside accumulate it is that of one large batch", 1e-6)
def distillation_accumulated():
    return accumulated_apart(**taught())


@proof(24, "distillation", "resume", "stopped after any update it goes on bit for bit", 0.0)
def distillation_resumed():
    return resumed(lambda: Tiny("adamw", dropout=0.3, **taught()))


_KL = "tf.exp(teacher) * (teacher - student)"
for _name, _claim, _change in (
    ("KL the other way", distillation_by_hand, (_KL, "tf.exp(student) * (student - teacher)")),
    ("cross-entropy for KL", distillation_of_equals, (_KL, "-tf.exp(teacher) * student")),
    ("T^2 is forgotten", distillation_at_high_temperatures, ("temperature**2 * ", "")),
    ("no share of the teacher", distillation_of_nothing, ("share * soft", "soft")),
    (
        "the teacher is not heard",
        distillation_differs,
        ('(1 - share) * sums["loss_sum"] + share * soft', 'sums["loss_sum"]'),
    ),
):
    mutant(_name, _claim, edited, losses, "distillation_loss", _change)
mutant("mean of means", distillation_accumulated, *MEAN_OF_MEANS)
