"""Named update rules: Keras' optimizers with a rate for each variable and lazy embeddings."""

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from training.config import OptimizerConfig
from training.schedules import SCHEDULES

# Variables whose name holds one of these never decay.
NOT_DECAYED = ["embedding", "bias", "gamma", "beta"]


class _RateByVariable:
    """Multiplies the learning rate of embeddings: their rows see few of the gradients."""

    embedding_rate_factor = 1.0

    def build(self, variables):
        super().build(variables)
        self._rate_factors = [
            self.embedding_rate_factor if "embedding" in variable.path else 1.0
            for variable in variables
        ]

    def update_step(self, gradient, variable, learning_rate):
        factor = self._rate_factors[self._get_variable_index(variable)]
        super().update_step(gradient, variable, learning_rate * factor)


class SGD(_RateByVariable, keras.optimizers.SGD):
    pass


class RMSprop(_RateByVariable, keras.optimizers.RMSprop):
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


class Adam(_RateByVariable, _LazyAdam, keras.optimizers.Adam):
    """With `weight_decay` this is AdamW: Keras decays every rule's weights the decoupled way."""


OPTIMIZERS: dict[str, Callable[..., Any]] = {
    "sgd": lambda rate, config: SGD(rate),
    "momentum": lambda rate, config: SGD(rate, momentum=0.9),
    "rmsprop": lambda rate, config: RMSprop(rate),
    "adam": lambda rate, config: Adam(rate),
    # None rather than 0, which would rewrite every weight in every step for nothing.
    "adamw": lambda rate, config: Adam(rate, weight_decay=config.weight_decay or None),
}


def build_optimizer(config: OptimizerConfig, variables, steps: int) -> keras.optimizers.Optimizer:
    """The rule `config` names, its slots made for `variables`; `steps` is the schedule's length."""
    optimizer = OPTIMIZERS[config.name](SCHEDULES[config.schedule](config, steps), config)
    optimizer.embedding_rate_factor = config.embedding_rate_factor
    if config.weight_decay:
        optimizer.exclude_from_weight_decay(var_names=NOT_DECAYED)
    optimizer.build(variables)
    return optimizer
