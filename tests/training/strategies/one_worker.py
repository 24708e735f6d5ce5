"""A process that is one worker of a rule: `test_processes.py` starts several of them.

Called with an expression, the update to stop and go on in a fresh rule, the updates in all, and the
file for what came out.
"""

import os
import sys
from types import SimpleNamespace

import numpy as np
import tensorflow as tf

from tests.training.strategies.toys import Words
from training.strategies.processes import Exchange, WorkerBatches, place

SETTINGS = {"sizes": (3, 2)}


def main(expression: str, stop: int, total: int, file: str) -> None:
    strategy = tf.distribute.MultiWorkerMirroredStrategy()  # before anything else
    exchange = Exchange(strategy, *place(os.environ))

    class Worker(Words):
        def batch(self, i):
            every = SimpleNamespace(at=super().batch, num_batches=0)
            return WorkerBatches(every, exchange, self.rule.num_batches).at(i)

    toy = Worker(expression, exchange=exchange, **SETTINGS)
    before = toy.run(stop)
    fresh = Worker(expression, exchange=exchange, **SETTINGS)
    fresh.restore(toy.state())
    path = np.concatenate([before, fresh.run(total - stop)])
    np.savez(
        file,
        path=path,
        evaluated=fresh.evaluated(),
        drift=fresh.rule.diagnostics()["worker_drift"],
        losses=[said["loss_sum"] for said in toy.said + fresh.said],
        numbers=exchange.numbers(10.0 + exchange.index),
    )


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
