"""Proofs of loss scaling and mixed precision (row 18), and of gradient checkpointing (row 17)."""

import sys

import numpy as np
import tensorflow as tf

from model.catalogue import build_model
from model.config import TransformerEncoderConfig
from model.dropout import Dropout
from tests.proofs import AT_LEAST, Ledger
from tests.training.strategies.measures import REAL, apart, end, resumed
from tests.training.strategies.toys import Toy, Words
from training.losses import TaskLoss, classification_loss
from training.stacking import stack
from training.strategies.gradients import global_norm
from training.strategies.loss_scaling import LossScale
from training.strategies.rules import Around, OptimizerRule

LEDGER = Ledger()
proof, mutant = LEDGER.proof, LEDGER.mutant
PROOFS, MUTANTS = LEDGER.proofs, LEDGER.mutants


# 18. Loss scaling ---------------------------------------------------------------------------------


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


_differentiate = OptimizerRule.differentiate


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


# 17. Gradient checkpointing -----------------------------------------------------------------------


@proof(17, "recompute", "identity", "the same weights with and without, dropout included", 2e-5)
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
