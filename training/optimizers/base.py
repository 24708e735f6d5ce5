"""What all optimizers share: the rate of the run, its factors by variable, decay, sparse rows."""

from __future__ import annotations

from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

# Variables whose path holds one of these never decay.
NOT_DECAYED = ("embedding", "bias", "gamma", "beta", "_norm/scale")


class TabulatedRate(keras.optimizers.schedules.LearningRateSchedule):
    """The rate of update t is entry t of a table, times a multiplier that validation may lower."""

    def __init__(self, table: np.ndarray):
        self.table = tf.constant(table, tf.float64)
        self.multiplier = tf.Variable(
            1.0,
            trainable=False,
            dtype=tf.float64,
            name="rate_multiplier",
            aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
        )
        # Updates before the optimizer's first; a variable of a rule that begins it anew.
        self.begun: tf.Variable | int = 0

    def __call__(self, step):
        return at(self.table, self.of_run(step)) * self.multiplier

    def of_run(self, step):
        """The update of the run that is number `step` of the optimizer."""
        return tf.cast(step, tf.int64) + self.begun


def at(table: tf.Tensor, step) -> tf.Tensor:
    """Entry `step` of a schedule's table, the last one for all later steps."""
    return tf.gather(table, tf.minimum(tf.cast(step, tf.int64), tf.size(table, tf.int64) - 1))


class ByVariable(keras.optimizers.Optimizer):
    """An optimizer with rate factors and decoupled decay by the path of the variable.

    A variable's own rate is that of the run times its factor; weights decay by
    w <- w (1 - rate decay), rate their own (Loshchilov & Hutter, 2019, alg. 2), whatever the
    optimizer. Subclasses override `step`, or stand before a class of Keras whose step is right. A
    sparse gradient reaches them as rows, each of them once, if they say that they take rows, else
    as a dense one.
    """

    _learning_rate: TabulatedRate
    name_of_rule = ""  # as the catalogue calls it
    factors: Callable[[str], float] = staticmethod(lambda path: 1.0)
    decay_table: tf.Tensor | None = None
    takes_rows = False

    def build(self, variables):
        super().build(variables)
        self._factors = [self.factors(variable.path) for variable in variables]
        self._decays = [not any(word in v.path for word in NOT_DECAYED) for v in variables]

    @property
    def rate(self) -> TabulatedRate:
        """The table of the learning rate, and what validation makes of it."""
        return self._learning_rate

    @property
    def variables(self):
        return [*super().variables, self.rate.multiplier]

    def update_step(self, gradient, variable, learning_rate):
        """`learning_rate` is that of the run, float64; so is the `rate` that `step` is given."""
        index = self._get_variable_index(variable)
        gradient = tf.cast(gradient, variable.dtype)
        if not self.takes_rows:
            gradient = dense(gradient, variable.shape)
        self.step(index, gradient, variable, learning_rate * self._factors[index])

    def step(self, index: int, gradient, variable, rate) -> None:
        """Moves variable number `index` once, at its own `rate`."""
        self.apply_decay(index, variable, rate)
        super().update_step(gradient, variable, rate)

    def decay_of(self, index: int) -> tf.Tensor | None:
        """The weight decay of this update, float64; None for variables that never decay."""
        if self.decay_table is None or not self._decays[index]:
            return None
        return at(self.decay_table, self.rate.of_run(self.iterations))

    def apply_decay(self, index: int, variable, rate) -> None:
        decay = self.decay_of(index)
        if decay is not None:
            self.assign_sub(variable, variable * tf.cast(rate * decay, variable.dtype))

    def rule_of(self, index: int) -> str:
        """What moves variable number `index`, in words."""
        return self.name_of_rule

    def _all_reduce_sum_gradients(self, grads_and_vars):
        # The strategy has added them up over the replicas before clipping; Keras would once more.
        return grads_and_vars


def dense(gradient, shape) -> tf.Tensor:
    """A gradient with all of its rows, those that a sparse one does not name zero."""
    if not isinstance(gradient, tf.IndexedSlices):
        return gradient
    rows = gradient.indices
    return tf.scatter_nd(rows[:, None], gradient.values, tf.constant(tuple(shape), rows.dtype))


def read(slot, gradient) -> tf.Tensor:
    """The part of a slot that belongs to the entries of the gradient."""
    slot = tf.convert_to_tensor(slot)
    return tf.gather(slot, gradient.indices) if isinstance(gradient, tf.IndexedSlices) else slot


def entries(gradient) -> tf.Tensor:
    """The entries of a gradient, dense or of some rows."""
    return gradient.values if isinstance(gradient, tf.IndexedSlices) else gradient


def in_place_of(gradient, values):
    """`values`, standing where the entries of `gradient` stand."""
    if isinstance(gradient, tf.IndexedSlices):
        return tf.IndexedSlices(values, gradient.indices, gradient.dense_shape)
    return values
