"""One device or several: what is added up between them, and how state is set on all of them.

With `tf.distribute` a rule runs once on every replica, on its share of the batch. Gradients and
sums are added up before anything is decided by them, so all replicas take the same step; what a
rule writes is then equal everywhere and may be written replica by replica.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import tensorflow as tf

from training.strategies.gradients import dense, is_sparse, row_uses, used_rows

if TYPE_CHECKING:
    from training.pipeline import Batches
    from training.strategies.processes import Exchange


class Replicas:
    """`strategy` None is one device, without any cost.

    The replicas may be in several processes, this one being number `index` of `num_processes`.
    Processes that are workers of `local_sgd` or `diloco` are `processes.Workers`.
    """

    exchange: Exchange | None = None  # of processes that are workers

    def __init__(
        self,
        strategy: tf.distribute.Strategy | None = None,
        *,
        num_processes: int = 1,
        index: int = 0,
    ):
        self.strategy, self.num_processes, self.index = strategy, num_processes, index
        self.num = strategy.num_replicas_in_sync if strategy else 1

    @property
    def is_chief(self) -> bool:
        """Whether this is the one process that writes logs, results and what is exported."""
        return self.index == 0

    @property
    def keeps_state(self) -> bool:
        """Whether this process writes checkpoints: one does for all whose state is the same."""
        return self.is_chief

    def state_folder(self, folder: Path) -> Path:
        """Where the checkpoints of this process are, in the folder of the run."""
        return folder

    def scope(self) -> AbstractContextManager:
        """Where variables are made, so that every replica has them."""
        return self.strategy.scope() if self.strategy else nullcontext()

    def share(self, batches: dict) -> dict:
        """Stacked batches, their rows dealt out to the replicas one by one."""
        if self.strategy is None:
            return batches
        return self.strategy.experimental_distribute_values_from_function(
            lambda context: _rows_of(batches, context.replica_id_in_sync_group, self.num)
        )

    def sum(self, gradients: list, sums: dict) -> tuple[list, dict]:
        """Both added up over all replicas; sparse rows of several replicas stand there once.

        Sparse gradients travel as dense ones beside a count for each row, for a collective in a
        loop must have the same shape in every turn, and how many rows are used differs.
        """
        if self.num == 1:
            return gradients, sums
        context = tf.distribute.get_replica_context()
        whole, uses, sums = context.all_reduce(
            tf.distribute.ReduceOp.SUM,
            [[dense(g) for g in gradients], [row_uses(g) for g in gradients], sums],
        )
        pairs = zip(gradients, whole, uses, strict=True)
        return [used_rows(w, n, g.indices.dtype) if is_sparse(g) else w for g, w, n in pairs], sums

    def any(self, value: bool) -> bool:
        """Whether `value` is true in any process; waits until all have called it."""
        return self.any_of(value)[0]

    def any_of(self, *values: bool) -> tuple[bool, ...]:
        """For each value whether it is true in any process; waits until all have called it."""
        if self.num_processes == 1 or self.strategy is None:
            return values
        counts = self._sum_of_all(tf.constant(values, tf.float32))
        return tuple(bool(count > 0) for count in counts.numpy())

    def common_step(self, newest: int) -> int:
        """Where all processes go on, when the newest checkpoint of this one is of `newest`."""
        return newest

    def updates_between_agreements(self, strategy: str) -> int:
        """How often all processes agree on stopping and saving, by the strategy of a stage."""
        return 1

    def of_chief(self, metrics: dict[str, float]) -> dict[str, float]:
        """The metrics by which all processes decide."""
        return metrics

    def batches_here(self, batches: Batches, batches_per_update: int) -> Batches:
        """Those of all micro-batches that this process reads, so many an update."""
        return batches

    def draw_apart(self, model) -> None:
        """Gives the dropout of `model` the seeds of this process."""

    def wait(self) -> None:
        """Returns when all processes have called it."""
        self.any(False)

    @functools.cached_property
    def _sum_of_all(self) -> Callable[[tf.Tensor], tf.Tensor]:
        def add_up(value):
            here = tf.identity(value)  # on the device of the replica, as a collective wants it
            return tf.distribute.get_replica_context().all_reduce("SUM", here)

        @tf.function(autograph=False)
        def of_all(value):
            per_replica = self.strategy.run(add_up, args=(value,))
            return self.strategy.experimental_local_results(per_replica)[0]

        return of_all


def _rows_of(batches: dict, replica: int, num_replicas: int) -> dict:
    """Every `num_replicas`-th row of each micro-batch, from row `replica` on."""
    part = {}
    for name, value in batches.items():
        if name.startswith("shape/"):  # int32 (M, rank), the rows of each micro-batch in front
            part[name] = value.copy()
            part[name][:, 0] = np.maximum(-(-(value[:, 0] - replica) // num_replicas), 0)
        else:
            part[name] = value[:, replica::num_replicas]
    return part


def assign(variables: Sequence, values: Sequence) -> None:
    """Sets Keras or TensorFlow variables, also from within a replica."""
    raw = [_raw(variable) for variable in variables]
    if _is_one_of_several():
        tf.distribute.get_replica_context().merge_call(_assign_on_all, args=(raw, list(values)))
        return
    for variable, value in zip(raw, values, strict=True):
        variable.assign(value)


def assign_when(condition: tf.Tensor, variables: Sequence, values: Callable[[], list]) -> None:
    """Sets variables if `condition` holds; `values` is worked out only then on one device."""
    if _is_one_of_several():  # no state can be set inside a branch there
        kept = [tf.convert_to_tensor(_raw(variable)) for variable in variables]
        chosen = [tf.where(condition, n, k) for n, k in zip(values(), kept, strict=True)]
        assign(variables, chosen)
        return

    def set_them():
        assign(variables, values())
        return True

    tf.cond(condition, set_them, lambda: False)


def _raw(variable):
    return variable if isinstance(variable, tf.Variable) else getattr(variable, "value", variable)


def _is_one_of_several() -> bool:
    return (
        tf.distribute.has_strategy()
        and not tf.distribute.in_cross_replica_context()
        and tf.distribute.get_replica_context().num_replicas_in_sync > 1
    )


def _assign_on_all(strategy, variables, values) -> None:
    for variable, value in zip(variables, values, strict=True):
        strategy.extended.update(variable, lambda v, x: v.assign(x), args=(value,))
