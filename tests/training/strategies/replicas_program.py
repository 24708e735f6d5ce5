"""A process with two logical devices, in which rules run on both at once: measures, prints JSON.

TensorFlow can be told of logical devices only while it starts, so this is no part of the process
that tests. Called with the names of measurements and, as `--fault NAME`, what is wrong with the
code: `proofs_devices.py` says what each of them means.
"""

import argparse
import functools
import json
from unittest.mock import patch

import keras
import numpy as np
import tensorflow as tf

from tests.training.strategies import toys
from training.devices import choose_replicas
from training.optimizers.classic import SGD, Adam
from training.recipes import RECIPES
from training.strategies import replicas as replicas_module
from training.strategies.gradients import clip, scale
from training.strategies.replicas import Replicas
from training.strategies.rules import OptimizerRule, UpdateRule

NUM_UPDATES = 24
# Shares of 2 and 1, 1 and none, 3 and 2 rows; the limit is below the norm of most gradients.
SETTINGS = {"sizes": (3, 1, 5), "rate": 0.05, "clip_norm": 0.3, "weight_decay": 0.1}


def words(expression: str, replicas: Replicas) -> toys.Words:
    build = functools.partial(toys.build_rule, replicas=replicas)
    with patch.object(toys, "build_rule", build), replicas.scope():
        toy = toys.Words(expression, **SETTINGS)
    take = toy.take
    toy.take = lambda batches: take(replicas.share(batches))
    return toy


def from_one_device(expression: str, replicas: Replicas, per_call: int = 1) -> float:
    """The largest difference in any weight after any call, and in what is evaluated at the end."""
    one, two = words(expression, Replicas()), words(expression, replicas)
    paths = [toy.run(NUM_UPDATES, per_call) for toy in (one, two)]
    moved = np.abs(paths[0][-1] - paths[0][0]).max()
    if moved < 0.01:
        raise ValueError(f"{expression} hardly moves on one device, {moved}: nothing is compared.")
    said = [
        [sums[name] for sums in toy.said for name in ("loss_sum", "grad_norm")]
        for toy in (one, two)
    ]
    return max(
        np.abs(paths[0] - paths[1]).max(),
        np.abs(one.evaluated() - two.evaluated()).max(),
        np.abs(np.subtract(*said)).max() / max(np.abs(said[0]).max(), 1.0),
    )


# Faults -------------------------------------------------------------------------------------------


def clip_first(self, batches):
    """As Keras' global_clipnorm does under MirroredStrategy."""
    gradients, sums = self.gradient(batches)
    mean = scale(gradients, tf.math.divide_no_nan(1.0, sums["num_targets"]))
    clipped, _ = clip(mean, self.clip_norm)
    share = sums["num_targets"]
    gradients, sums = self.replicas.sum(scale(clipped, share), sums)
    return sums | self.apply(scale(gradients, 1.0 / sums["num_targets"]))


def mean_of_means(self, batches):
    gradients, sums = self.gradient(batches)
    mean = scale(gradients, tf.math.divide_no_nan(1.0, sums["num_targets"]))
    gradients, sums = self.replicas.sum(mean, sums)
    return sums | self.apply(scale(gradients, 1.0 / self.replicas.num))


def sum_of_sums_alone(self, gradients, sums):
    if self.num == 1:
        return gradients, sums
    context = tf.distribute.get_replica_context()
    return gradients, context.all_reduce(tf.distribute.ReduceOp.SUM, sums)


def plain_used_rows(gradient, uses, dtype):
    return gradient


def first_share(batches, replica, num_replicas, deal=replicas_module._rows_of):
    return deal(batches, 0, num_replicas)


FAULTS = {
    "clip before aggregation": [(OptimizerRule, "update", clip_first)],
    "mean of the replicas' means": [(UpdateRule, "update", mean_of_means)],
    "gradients are not added up": [(Replicas, "sum", sum_of_sums_alone)],
    "every row of an embedding counts as used": [(replicas_module, "used_rows", plain_used_rows)],
    "all replicas get the first share": [(replicas_module, "_rows_of", first_share)],
    "the optimizer adds up once more": [
        (cls, "_all_reduce_sum_gradients", keras.Optimizer._all_reduce_sum_gradients)
        for cls in (SGD, Adam)
    ],
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("measurements", nargs="+", help="EXPRESSION or EXPRESSION@UPDATES_PER_CALL")
    parser.add_argument("--fault", choices=FAULTS)
    options = parser.parse_args()
    recipe = RECIPES[next(iter(RECIPES))]()  # any: what is measured brings its own strategy
    replicas, observed = choose_replicas(recipe, 2), {}
    for place in FAULTS[options.fault] if options.fault else []:
        patch.object(*place).start()
    for measurement in options.measurements:
        expression, _, per_call = measurement.partition("@")
        observed[measurement] = float(from_one_device(expression, replicas, int(per_call or 1)))
    print(json.dumps(observed))


if __name__ == "__main__":
    main()
