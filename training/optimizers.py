"""Named optimizers: Keras' own where they are right, with a rate for each variable beside them.

What ours add to Keras': the learning rate of the whole run as a table, factors on it by variable,
decoupled weight decay that may follow a schedule, and embeddings whose rows move only when used.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from training.config import OptimizerConfig
from training.schedules import tabulate
from training.strategies.catalogue import Link

# Variables whose path holds one of these never decay.
NOT_DECAYED = ("embedding", "bias", "gamma", "beta")


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


class _ByVariable:
    """Rate factors and decoupled decay, w <- w (1 - rate decay), by the path of the variable."""

    _learning_rate: TabulatedRate
    factors: Callable[[str], float] = staticmethod(lambda path: 1.0)
    decay_table: tf.Tensor | None = None

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
        index = self._get_variable_index(variable)
        if self.decay_table is not None and self._decays[index]:
            update = self.rate.of_run(self.iterations)
            decay = learning_rate * tf.cast(at(self.decay_table, update), learning_rate.dtype)
            self.assign_sub(variable, variable * tf.cast(decay, variable.dtype))
        super().update_step(gradient, variable, learning_rate * self._factors[index])


class SGD(_ByVariable, keras.optimizers.SGD):
    pass


class RMSprop(_ByVariable, keras.optimizers.RMSprop):
    pass


class _LazyAdam:
    """Adam (Kingma & Ba, 2015, alg. 1) that touches only the rows a sparse gradient names.

    Keras makes such a gradient dense and moves every row, by old momentum too; here a row's
    moments stand still while it is unused. Bias correction counts all updates. Rows must be
    distinct: the strategy adds up repeated ones before clipping.
    """

    def update_step(self, gradient, variable, learning_rate):
        if not isinstance(gradient, tf.IndexedSlices):
            return super().update_step(gradient, variable, learning_rate)
        index = self._get_variable_index(variable)
        rows, g = gradient.indices, gradient.values
        momentum, velocity = self._momentums[index].value, self._velocities[index].value
        step = tf.cast(self.iterations + 1, g.dtype)
        rate = tf.cast(learning_rate, g.dtype)
        m = tf.gather(momentum, rows) * self.beta_1 + g * (1 - self.beta_1)
        v = tf.gather(velocity, rows) * self.beta_2 + tf.square(g) * (1 - self.beta_2)
        rate = rate * tf.sqrt(1 - tf.pow(self.beta_2, step)) / (1 - tf.pow(self.beta_1, step))
        momentum.scatter_update(tf.IndexedSlices(m, rows))
        velocity.scatter_update(tf.IndexedSlices(v, rows))
        change = -rate * m / (tf.sqrt(v) + self.epsilon)
        self.assign_add(variable, tf.IndexedSlices(change, rows))


class Adam(_ByVariable, _LazyAdam, keras.optimizers.Adam):
    pass


class Lion(_ByVariable, keras.optimizers.Lion):
    pass


class Adafactor(_ByVariable, keras.optimizers.Adafactor):
    pass


class Lamb(_ByVariable, keras.optimizers.Lamb):
    pass


# Each is called with the rate and the part's numbers (`training/strategies/catalogue.py`).
OPTIMIZERS: dict[str, Callable[..., Any]] = {
    "sgd": SGD,
    "momentum": SGD,
    "nesterov": lambda rate, momentum: SGD(rate, momentum=momentum, nesterov=True),
    "rmsprop": RMSprop,
    "adam": Adam,
    "adamw": Adam,
    "lion": Lion,
    "adafactor": lambda rate: Adafactor(rate, relative_step=False),
    "lamb": Lamb,
}


def build_optimizer(
    link: Link,
    config: OptimizerConfig,
    weights: Sequence,
    num_updates: int,
    rate_factors: Sequence[tuple[str, float]] = (),
) -> keras.optimizers.Optimizer:
    """The optimizer `link` names, its slots made for `weights`.

    `num_updates` is the length of its schedules; `rate_factors` are (regular expression, factor):
    the rate of a variable is that of the run times every factor whose expression is found in its
    path.
    """
    peak = config.peak_learning_rate
    rate = TabulatedRate(peak * tabulate(config.schedule, num_updates))
    optimizer = OPTIMIZERS[link.name](rate, **link.numbers)
    factors = [("embedding", config.embedding_rate_factor), *rate_factors]
    optimizer.factors = lambda path: float(np.prod([f for p, f in factors if re.search(p, path)]))
    if config.weight_decay:
        table = tabulate(str(config.weight_decay), num_updates)
        optimizer.decay_table = tf.constant(table, tf.float64)
    optimizer.build(weights)
    return optimizer
