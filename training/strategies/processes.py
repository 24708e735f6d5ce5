"""Workers as processes: which of them this one is, what they exchange, which batches it reads.

`TF_CONFIG` describes the processes, as for all of `tf.distribute`; the collective is that of
`tf.distribute.MultiWorkerMirroredStrategy`. Nothing else of the strategy is used: variables are
made outside its scope, so weights and optimizer state are this process's own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import tensorflow as tf

from model.dropout import draw_apart
from training.pipeline import Batches
from training.strategies.catalogue import updates_between_meetings
from training.strategies.replicas import Replicas


class Exchange:
    """The meeting of N processes, this one being number `index` of `num`.

    Every process has to call the same methods in the same order; each call waits for all. The
    strategy has to be made before TensorFlow does anything else: that is when collectives can be
    set up. It waits until all processes are there.
    """

    def __init__(self, strategy: tf.distribute.Strategy, num: int, index: int):
        self.strategy, self.num, self.index = strategy, num, index
        self._mean_now = tf.function(self.mean, autograph=False)

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
        return [float(number) for number in self._mean_now([own])[0]]


class Workers(Replicas):
    """Processes that are one worker each: no batch is shared out, each keeps a state of its own.

    Number 0, the chief, has its checkpoints where a run in one process has them; its best weights
    are the shared ones. The others have theirs in `worker-<index>/`. All save after the same
    updates, and go on together from the newest update that all of them have.
    """

    def __init__(self, exchange: Exchange):
        super().__init__(num_processes=exchange.num, index=exchange.index)
        self.exchange: Exchange = exchange

    @property
    def keeps_state(self) -> bool:
        return True

    def state_folder(self, folder: Path) -> Path:
        return folder if self.is_chief else folder / f"worker-{self.index}"

    def any_of(self, *values: bool) -> tuple[bool, ...]:
        bits = sum(bool(value) << i for i, value in enumerate(values))
        asked = [round(number) for number in self.exchange.numbers(bits)]
        return tuple(any(number >> i & 1 for number in asked) for i in range(len(values)))

    def common_step(self, newest: int) -> int:
        steps = [round(step) for step in self.exchange.numbers(newest)]
        if min(steps) < 0 < max(steps):  # without the first one, nothing is lost by beginning anew
            raise ValueError(
                f"Worker {steps.index(min(steps))} has no checkpoint, and worker "
                f"{steps.index(max(steps))} has one of update {max(steps)}. A run goes on in as "
                "many processes as it was begun in, all on the same files; or begin again with "
                "--restart."
            )
        return min(steps)

    def updates_between_agreements(self, strategy: str) -> int:
        return updates_between_meetings(strategy) or 1  # nobody waits for the others between them

    def of_chief(self, metrics: dict[str, float]) -> dict[str, float]:
        # They are those of the same weights, but two kinds of processors may round apart.
        return {name: self.exchange.numbers(metrics[name])[0] for name in sorted(metrics)}

    def batches_here(self, batches: Batches, batches_per_update: int) -> Batches:
        return WorkerBatches(batches, self.exchange, batches_per_update)

    def draw_apart(self, model) -> None:
        draw_apart(model, self.index)


class WorkerBatches:
    """The micro-batches of one process: those that the simulation gives to that worker.

    Of the `batches_per_update` micro-batches of each worker, this process reads part `index` of
    every `num`. `at(i)` counts the micro-batches of this process, and so does `num_batches`, one
    pass; all else is as in `batches`.
    """

    batch_size: int
    longest: int

    def __init__(self, batches: Batches, exchange: Exchange, batches_per_update: int):
        self.batches, self.exchange, self.size = batches, exchange, batches_per_update
        self.num_batches = batches.num_batches // exchange.num

    def __getattr__(self, name: str):
        return getattr(self.batches, name)

    def at(self, index: int):
        update, within = divmod(index, self.size)
        return self.batches.at(
            (update * self.exchange.num + self.exchange.index) * self.size + within
        )


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
