"""What an update is: a transition (state, batches) -> (state, sums).

State lives in variables. A rule reads `num_batches` micro-batches, makes one gradient of them and
moves the weights once. Rules nest: the innermost is an optimizer, what stands around it changes how
the gradient is made (`gradient`, `apply`) or what happens across updates (`update`). Everything
here is traced into one graph by `compiled.py`.

Gradients that travel between rules are those of the *summed* loss, and sums travel with them, so
that batches of different sizes weigh what they should; the division by the number of targets comes
last, in `update`. With several replicas (`replicas.py`) the same order holds: add up, then divide,
then clip.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager

import tensorflow as tf

from training.strategies.gradients import clip, distinct_rows, scale
from training.strategies.replicas import Replicas, assign

Batch = dict[str, tf.Tensor]
Sums = dict[str, tf.Tensor]
Loss = Callable[[Batch], Sums]  # "loss_sum", "num_targets" and "num_correct" of one batch

SUMS = ("loss_sum", "num_targets", "num_correct")


class UpdateRule:
    """The interface; what a subclass leaves alone is what one optimizer over one batch does.

    `weights` are the Keras variables it moves, `variables` all other state it needs to go on where
    it was, in a fixed order. `batches` are micro-batches stacked along a leading axis.
    """

    weights: list
    replicas: Replicas
    num_batches = 1  # micro-batches that one update reads
    num_evaluations = 1  # micro-batches run forward and backward for one update
    measures: tuple[str, ...] = (*SUMS, "grad_norm")  # the names in what `update` returns

    @property
    def variables(self) -> list:
        return []

    def gradient(self, batches: Batch) -> tuple[list, Sums]:
        """Of the summed loss, on this replica; sparse ones name each row once."""
        raise NotImplementedError

    def apply(self, gradients: list) -> Sums:
        """Moves the weights by the gradient of the mean loss, the same on every replica."""
        raise NotImplementedError

    def update(self, batches: Batch) -> Sums:
        """One parameter update."""
        gradients, sums = self.gradient(batches)
        gradients, sums = self.replicas.sum(gradients, sums)
        return sums | self.apply(scale(gradients, tf.math.divide_no_nan(1.0, sums["num_targets"])))

    @property
    def optimizer_rule(self) -> OptimizerRule:
        """The innermost rule."""
        raise NotImplementedError

    def evaluation_weights(self) -> list[tf.Tensor] | None:
        """What is evaluated and exported in place of `weights`; None: they themselves."""
        return None

    def diagnostics(self) -> dict[str, tf.Tensor]:
        """Scalars that say how things stand between updates; worked out only for a report."""
        return {}


class OptimizerRule(UpdateRule):
    """The innermost rule: one batch, one gradient, one step of an optimizer.

    `loss` gives the sums of one batch; the optimizer is a Keras one, built for `weights`. Clipping
    sees the whole gradient of the update, rows of embeddings added up.
    """

    def __init__(
        self,
        loss: Loss,
        optimizer,
        weights: list,
        *,
        clip_norm: float | None = None,
        replicas: Replicas | None = None,
    ):
        self.loss, self.optimizer, self.weights = loss, optimizer, list(weights)
        self.clip_norm, self.replicas = clip_norm, replicas or Replicas()
        self.loss_factor: Callable[[], tf.Tensor | float] = lambda: 1.0  # of `loss_scale`
        self.is_compiled = False  # by XLA, whose loops need shapes that do not change

    @property
    def optimizer_rule(self) -> OptimizerRule:
        return self

    @property
    def variables(self) -> list:
        return list(self.optimizer.variables)

    def gradient(self, batches):
        batch = only(batches)
        with tf.GradientTape() as tape:
            sums = self.loss(batch)
            scaled = self.scaled(sums)
        return self.differentiate(tape, scaled), sums

    def scaled(self, sums: Sums) -> tf.Tensor:
        """What is differentiated: the summed loss, times the factor of `loss_scale`."""
        return sums["loss_sum"] * tf.cast(self.loss_factor(), sums["loss_sum"].dtype)

    def differentiate(self, tape: tf.GradientTape, scaled: tf.Tensor) -> list:
        """The gradient of every weight; sparse ones name each row once."""
        gradients = tape.gradient(scaled, [weight.value for weight in self.weights])
        return [distinct_rows(gradient) for gradient in gradients]

    def apply(self, gradients):
        gradients, norm = clip(gradients, self.clip_norm)
        self.optimizer.apply(gradients, self.weights)
        return {"grad_norm": norm}

    def evaluation_weights(self):
        # Schedule-Free optimizers hold the average that is to be evaluated.
        average = getattr(self.optimizer, "evaluation_weights", None)
        return average() if average else None


class Around(UpdateRule):
    """A rule around another one; all that it does not change is the inner one's."""

    def __init__(self, inner: UpdateRule):
        self.inner, self.weights, self.replicas = inner, inner.weights, inner.replicas
        self.num_batches, self.num_evaluations = inner.num_batches, inner.num_evaluations
        self.measures = inner.measures
        self.own_variables: list = []

    @property
    def variables(self) -> list:
        return [*self.inner.variables, *self.own_variables]

    @property
    def optimizer_rule(self) -> OptimizerRule:
        return self.inner.optimizer_rule

    def gradient(self, batches):
        return self.inner.gradient(batches)

    def apply(self, gradients):
        return self.inner.apply(gradients)

    def evaluation_weights(self):
        return self.inner.evaluation_weights()

    def diagnostics(self):
        return self.inner.diagnostics()

    def new_variable(self, name: str, value, dtype=None) -> tf.Variable:
        """State of this rule that checkpoints keep."""
        variable = tf.Variable(
            value,
            trainable=False,
            dtype=dtype,
            name=name,
            aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
        )
        self.own_variables.append(variable)
        return variable

    def copies(self, name: str) -> list[tf.Variable]:
        """A copy of every weight, as state of this rule."""
        return [
            self.new_variable(f"{name}/{weight.path}", weight.value.read_value())
            for weight in self.weights
        ]


class AcrossUpdates(Around):
    """A rule that acts between updates of the inner one: it overrides `update`."""

    def update(self, batches):
        raise NotImplementedError


def pick(batches: Batch, start, size: int) -> Batch:
    """`size` micro-batches from number `start` on."""
    return {name: value[start : start + size] for name, value in batches.items()}


def only(batches: Batch) -> Batch:
    """The one micro-batch of a stack of one, cut to its own shape (`training.stacking.stack`)."""
    batch = {name: value[0] for name, value in batches.items() if not name.startswith("shape/")}
    for name, value in batch.items():
        if f"shape/{name}" in batches:
            shape = batches[f"shape/{name}"][0]
            batch[name] = tf.slice(value, tf.zeros_like(shape), shape)
    return batch


@contextmanager
def evaluating(rule: UpdateRule):
    """Inside, the weights are those to be evaluated and exported; afterwards exactly as before."""
    values = rule.evaluation_weights()
    if values is None:
        yield
        return
    kept = [weight.numpy().copy() for weight in rule.weights]
    try:
        assign(rule.weights, values)
        yield
    finally:
        assign(rule.weights, kept)
