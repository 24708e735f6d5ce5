"""Named optimizers on Keras' slots and counters, with steps of their own where Keras' is not right.

Each class says why. All of them take the learning rate of the whole run as a table, a factor on it
for each variable, decoupled weight decay that may follow a schedule, and sparse gradients.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from training.config import OptimizerConfig
from training.optimizers.base import TabulatedRate, at
from training.optimizers.classic import SGD, Adam, Lion, RMSprop
from training.optimizers.layerwise import Adafactor, Lamb
from training.optimizers.muon import Muon
from training.optimizers.schedule_free import ScheduleFreeAdamW, ScheduleFreeSGD
from training.schedules import tabulate
from training.strategies.catalogue import Link

__all__ = ["OPTIMIZERS", "TabulatedRate", "at", "build_optimizer", "rules_by_variable"]

# Each is called with the rate and the part's numbers (`training/strategies/catalogue.py`).
OPTIMIZERS: dict[str, Callable[..., Any]] = {
    "sgd": SGD,
    "momentum": SGD,
    "nesterov": lambda rate, momentum: SGD(rate, momentum=momentum, nesterov=True),
    "rmsprop": RMSprop,
    "adam": Adam,
    "adamw": Adam,  # any optimizer decays decoupled: with optimizer.weight_decay, Adam is AdamW
    "lion": Lion,
    "adafactor": Adafactor,
    "lamb": Lamb,
    "muon": Muon,
    "schedule_free_sgd": ScheduleFreeSGD,
    "schedule_free_adamw": ScheduleFreeAdamW,
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
    optimizer.name_of_rule = link.name
    factors = [("embedding", config.embedding_rate_factor), *rate_factors]
    optimizer.factors = lambda path: float(np.prod([f for p, f in factors if re.search(p, path)]))
    if config.weight_decay:
        table = tabulate(str(config.weight_decay), num_updates)
        optimizer.decay_table = tf.constant(table, tf.float64)
    optimizer.build(list(weights))
    return optimizer


def rules_by_variable(optimizer) -> dict[str, str]:
    """The path of every variable and what moves it, such as "adamw" or "muon (3 of 64x64)"."""
    weights = optimizer._trainable_variables
    return {weight.path: optimizer.rule_of(i) for i, weight in enumerate(weights)}
