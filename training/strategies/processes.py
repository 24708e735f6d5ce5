"""Workers as processes: which of them this one is, what they exchange, which batches it reads.

`TF_CONFIG` describes the processes, as for all of `tf.distribute`; the collective is that of
`tf.distribute.MultiWorkerMirroredStrategy`. Nothing else of the strategy is used: variables are
made outside its scope, so weights and optimizer state are this process's own.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping

import tensorflow as tf


class Exchange:
    """The meeting of N processes, this one being number `index` of `num`.

    Every process has to call the same methods in the same order; each call waits for all.
    """

    def __init__(self, strategy: tf.distribute.Strategy, num: int, index: int):
        self.strategy, self.num, self.index = strategy, num, index

    def mean(self, tensors: list[tf.Tensor]) -> list[tf.Tensor]:
        """The mean over the processes of each tensor, of the same shape in all of them."""

        def reduce(values):
            context = tf.distribute.get_replica_context()
            here = [tf.identity(value) for value in values]  # on the device of the replica
            return context.all_reduce(tf.distribute.ReduceOp.MEAN, here)

        return self.strategy.run(reduce, args=(tensors,))

    def numbers(self, value: float) -> list[float]:
        """What every process gave as its `value`, in their order: to agree on a step to resume."""
        own = tf.one_hot(self.index, self.num, on_value=float(value) * self.num, dtype=tf.float64)
        return [float(number) for number in tf.function(self.mean)([own])[0]]


class WorkerBatches:
    """The micro-batches of one process: those that the simulation gives to that worker.

    Of the `batches_per_update` micro-batches of each worker, this process reads part `index` of
    every `num`. `at(i)` counts the micro-batches of this process, and so does `num_batches`, one
    pass; all else is as in `batches`.
    """

    def __init__(self, batches, exchange: Exchange, batches_per_update: int):
        self.batches, self.exchange, self.size = batches, exchange, batches_per_update

        self.num_batches = batches.num_batches // exchange.num

    def __getattr__(self, name: str):
        return getattr(self.batches, name)

    def at(self, index: int):
        update, within = divmod(index, self.size)
        return self.batches.at(
            (update * self.exchange.num + self.exchange.index) * self.size + within
        )


def processes() -> Exchange | None:
    """The processes that TF_CONFIG names; None without it or with one process alone.

    Has to be called before TensorFlow does anything else: that is when collectives can be set up.
    Waits until all processes are there. Raises ValueError for a TF_CONFIG that makes no sense.
    """
    num, index = place(os.environ)
    if num == 1:
        return None
    return Exchange(tf.distribute.MultiWorkerMirroredStrategy(), num, index)


def place(environment: Mapping[str, str]) -> tuple[int, int]:
    """How many processes TF_CONFIG names, and which of them this is, the chief being the first.

    >>> cluster, task = '{"worker": ["a:1", "b:1"]}', '{"type": "worker", "index": 1}'
    >>> place({"TF_CONFIG": f'{{"cluster": {cluster}, "task": {task}}}'})
    (2, 1)
    """
    text = environment.get("TF_CONFIG", "")
    if not text:
        return 1, 0
    try:
        config = json.loads(text)
        cluster, task = config["cluster"], config["task"]
        unknown = cluster.keys() - {"chief", "worker"}
        addresses = [
            (role, i) for role in ("chief", "worker") for i in range(len(cluster.get(role, [])))
        ]
        index = addresses.index((task["type"], int(task["index"])))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            'TF_CONFIG must be like {"cluster": {"worker": ["localhost:5001", "localhost:5002"]}, '
            f'"task": {{"type": "worker", "index": 0}}}}, the task one of the cluster. '
            f"Received: {text!r}"
        ) from error
    if unknown:
        raise ValueError(
            "TF_CONFIG may name processes of the type chief and worker. "
            f"Received: {', '.join(sorted(unknown))}"
        )
    return len(addresses), index
