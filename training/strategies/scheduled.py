"""Numbers of the network that follow a schedule, such as its dropout rates."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from training.optimizers import at
from training.strategies.replicas import assign
from training.strategies.rules import AcrossUpdates, UpdateRule


class Scheduled(AcrossUpdates):
    """Sets `moved` variables to entry t of a table before update t."""

    def __init__(self, inner: UpdateRule, moved: Sequence, table: np.ndarray, name: str):
        super().__init__(inner)
        self.moved, self.table = list(moved), tf.constant(table, tf.float32)
        self.step = self.new_variable(f"{name}_step", 0, tf.int64)

    def update(self, batches):
        value = at(self.table, self.step)
        assign(self.moved, [tf.cast(value, v.dtype) for v in self.moved])
        sums = self.inner.update(batches)
        assign([self.step], [self.step + 1])
        return sums
