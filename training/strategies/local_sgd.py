"""Workers that each take updates of their own and meet only now and then.

They are simulated one after another in one process, or each is a process of its own
(`processes.py`): what differs is where the workers' weights are kept and how their mean is taken.
"""

from __future__ import annotations

import tensorflow as tf

from training.strategies.gradients import global_norm
from training.strategies.processes import Exchange
from training.strategies.replicas import assign
from training.strategies.rules import AcrossUpdates, UpdateRule, pick


class LocalSGD(AcrossUpdates):
    """Every `steps` updates the weights become the mean over the workers (Stich, 2019, alg. 1).

    One update is one update of every worker, each on batches of its own: worker w reads the w-th
    part of the update's micro-batches. A worker has weights and a state of the inner rule (moments,
    counters) of its own, kept between the meetings and across them. Between updates `weights` are
    the global ones, those of the last meeting, and they are what is evaluated and exported.

    With `exchange` this process is one of the workers: an update reads its part alone, and only a
    meeting waits for the others. What an update says (its sums) is then said of this worker;
    `num_evaluations` are always those of all workers.
    Random generators of the model are no state of the rule: simulated workers share them.
    """

    def __init__(
        self, inner: UpdateRule, workers: int, steps: int, exchange: Exchange | None = None
    ):
        super().__init__(inner)
        if inner.replicas.num > 1:
            raise ValueError(
                "Simulated workers run on one device. Train on one device, or start every worker "
                f"as a process of its own (TF_CONFIG). Received: {inner.replicas.num} replicas"
            )
        if exchange is not None and exchange.num != workers:
            raise ValueError(
                "Every process is one worker: start as many processes as the strategy has workers, "
                f"or give it workers={exchange.num}. Received: {workers=}, {exchange.num} processes"
            )
        self.steps, self.exchange = steps, exchange
        self.num_here = workers if exchange is None else 1
        self.num_batches = self.num_here * inner.num_batches
        self.num_evaluations = workers * inner.num_evaluations  # of all, wherever they are
        self.position = self.new_variable("workers_position", 0, tf.int64)  # in the cycle
        self.drift = self.new_variable("workers_drift", 0.0, tf.float32)
        # The multiplier of the rate is set from outside and holds for all.
        multiplier = self.optimizer_rule.optimizer.rate.multiplier
        self.inner_state = [v for v in inner.variables if v is not multiplier]
        self.their_weights = [self._for_each_worker(weight) for weight in self.weights]
        self.their_state = [self._for_each_worker(variable) for variable in self.inner_state]

    def _for_each_worker(self, variable) -> tf.Variable:
        """(N, ...): a copy for every worker here, its own from now on."""
        value = tf.convert_to_tensor(variable)
        name = getattr(variable, "path", variable.name.split(":")[0])
        return self.new_variable(f"workers/{name}", tf.stack([value] * self.num_here))

    def update(self, batches):
        shared = [tf.identity(weight.value) for weight in self.weights]
        sums = self._every_worker(batches, shared)
        position = self.position + 1
        is_due = position >= self.steps
        after = tf.cond(is_due, lambda: self._meeting(shared), lambda: shared)
        assign(self.weights, after)
        assign([self.position], [tf.where(is_due, tf.zeros_like(position), position)])
        return sums

    def _every_worker(self, batches, shared: list[tf.Tensor]) -> dict[str, tf.Tensor]:
        """One inner update of each; what they said, sums added up and the rest averaged."""
        is_first = self.position == 0  # of the cycle: all start from the shared weights

        def work(worker, totals):
            theirs = [stacked[worker] for stacked in self.their_weights]
            assign(
                self.weights,
                [tf.where(is_first, s, t) for s, t in zip(shared, theirs, strict=True)],
            )
            assign(self.inner_state, [stacked[worker] for stacked in self.their_state])
            size = self.inner.num_batches
            sums = self.inner.update(pick(batches, worker * size, size))
            self._keep(worker)
            said = [tf.cast(sums[name], tf.float32) for name in self.measures]
            return worker + 1, [total + value for total, value in zip(totals, said, strict=True)]

        _, totals = tf.while_loop(
            lambda worker, _: worker < self.num_here,
            work,
            (0, [tf.constant(0.0) for _ in self.measures]),
            parallel_iterations=1,
        )
        return {
            name: total if _is_sum(name) else total / self.num_here
            for name, total in zip(self.measures, totals, strict=True)
        }

    def _keep(self, worker) -> None:
        live = [*self.weights, *self.inner_state]
        for stacked, variable in zip([*self.their_weights, *self.their_state], live, strict=True):
            value = tf.convert_to_tensor(variable)
            stacked.scatter_update(tf.IndexedSlices(value[None], [worker]))

    def _meeting(self, shared: list[tf.Tensor]) -> list[tf.Tensor]:
        """The shared weights after a meeting."""
        mean = self._mean([tf.reduce_mean(theirs, 0) for theirs in self.their_weights])
        distances = [self._distance(worker, mean) for worker in range(self.num_here)]
        assign([self.drift], self._mean([tf.add_n(distances) / self.num_here]))
        return self.outer_step(shared, mean)

    def _distance(self, worker: int, mean: list[tf.Tensor]) -> tf.Tensor:
        apart = [theirs[worker] - m for theirs, m in zip(self.their_weights, mean, strict=True)]
        return tf.cast(global_norm(apart), tf.float32)

    def _mean(self, tensors: list[tf.Tensor]) -> list[tf.Tensor]:
        return tensors if self.exchange is None else self.exchange.mean(tensors)

    def outer_step(self, shared: list[tf.Tensor], mean: list[tf.Tensor]) -> list[tf.Tensor]:
        """The new shared weights, from the old ones and the mean of the workers'."""
        return mean

    def evaluation_weights(self):
        return None  # between updates the weights are the shared ones

    def diagnostics(self):
        """Mean distance of the workers from their mean, when they last met."""
        return super().diagnostics() | {"worker_drift": tf.convert_to_tensor(self.drift)}


class DiLoCo(LocalSGD):
    """An outer Nesterov step on the mean change of the workers (Douillard et al., 2023, alg. 1).

    d = w - mean_i w_i;  m <- mu m + d;  w <- w - rate (d + mu m): Nesterov's momentum in PyTorch's
    form, as in OpenDiLoCo's train_diloco_torch.py.
    """

    def __init__(
        self,
        inner: UpdateRule,
        workers: int,
        steps: int,
        rate: float,
        momentum: float,
        exchange: Exchange | None = None,
    ):
        super().__init__(inner, workers, steps, exchange)
        self.rate, self.momentum = rate, momentum
        self.velocity = [
            self.new_variable(f"diloco_velocity/{weight.path}", tf.zeros_like(weight.value))
            for weight in self.weights
        ]

    def outer_step(self, shared, mean):
        changes = [old - new for old, new in zip(shared, mean, strict=True)]
        velocity = [
            self.momentum * v + change for v, change in zip(self.velocity, changes, strict=True)
        ]
        assign(self.velocity, velocity)
        return [
            old - self.rate * (change + self.momentum * v)
            for old, change, v in zip(shared, changes, velocity, strict=True)
        ]


def _is_sum(name: str) -> bool:
    return name.startswith("num_") or name.endswith("_sum")
