"""Rules as graphs: one call takes one update or several."""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

from training.strategies.rules import Batch, Sums, UpdateRule, pick


def compile_updates(rule: UpdateRule, *, xla: bool = False) -> Callable[[Batch], Sums]:
    """A function of stacked micro-batches that takes an update for every `rule.num_batches`.

    Returns what each update said: float32 (K,) for each name in `rule.measures`. Several updates a
    call save the way into TensorFlow and back; the order of all operations is the same.
    """
    if rule.replicas.strategy and xla:
        raise ValueError(
            "xla=true compiles for one device only (TensorFlow cannot compile a replicated step). "
            "Set xla=false, or train on one device."
        )
    rule.optimizer_rule.is_compiled = xla
    update = _update_of(rule)

    def updates(batches: Batch) -> Sums:
        count = _count(batches) // rule.num_batches
        if isinstance(count, int) and count == 1:
            return {name: value[None] for name, value in update(batches, 0).items()}
        written = [tf.TensorArray(tf.float32, count, element_shape=[]) for _ in rule.measures]

        def one(i, written):
            sums = update(batches, i)
            written = [w.write(i, sums[n]) for w, n in zip(written, rule.measures, strict=True)]
            return i + 1, written

        _, written = tf.while_loop(lambda i, _: i < count, one, (0, written), parallel_iterations=1)
        return {n: w.stack() for n, w in zip(rule.measures, written, strict=True)}

    return tf.function(updates, reduce_retracing=not xla, jit_compile=xla or None, autograph=False)


def _update_of(rule: UpdateRule) -> Callable[[Batch, tf.Tensor | int], Sums]:
    """(batches, i) -> what update i of them said, everything added up over the replicas."""

    def update(batches, i):
        sums = rule.update(pick(batches, i * rule.num_batches, rule.num_batches))
        return {name: tf.cast(sums[name], tf.float32) for name in rule.measures}

    strategy = rule.replicas.strategy
    if strategy is None:
        return update

    def update_on_all(batches, i):
        # Equal on all replicas, as they were added up before: the first one speaks.
        sums = strategy.run(update, args=(batches, i))
        return {name: strategy.experimental_local_results(v)[0] for name, v in sums.items()}

    return update_on_all


def _count(batches: Batch):
    """How many micro-batches are stacked: a number if the shape is known, else a tensor."""
    value = next(iter(batches.values()))
    if isinstance(value, tf.distribute.DistributedValues):
        value = value.values[0]
    return value.shape[0] if value.shape[0] is not None else tf.shape(value)[0]
