"""Truncated back-propagation through time. Axes: B batch, T tokens."""

from __future__ import annotations

import tensorflow as tf

from training.strategies.accumulation import add_up
from training.strategies.rules import Around, UpdateRule, only

_OVER_TIME = ("tokens", "targets")  # fields (B, T) that are cut; the others go with every chunk


class Truncate(Around):
    """Cuts every row into chunks of `window` tokens; the gradient stops between them.

    The state goes on from chunk to chunk as a value, the gradients of all chunks are added, and
    there is one update: BPTT(h; h') of Williams & Peng (1990) with h = h' = window. Each batch
    begins without a state. A window as long as the rows is back-propagation through all of them.

    Raises ValueError for a network that has no state to carry on.
    """

    def __init__(self, inner: UpdateRule, window: int):
        super().__init__(inner)
        self.window = window
        if not getattr(self.optimizer_rule.loss, "has_state", False):
            raise ValueError(
                "strategy: truncate carries the state of a recurrent network from chunk to chunk, "
                "and this network has none that it takes and gives back. Take one that has, such "
                "as model=recurrent_language_model, or leave truncate out."
            )

    def gradient(self, batches):
        batch = only(batches)
        T = _static_or_dynamic(batch["tokens"], 1)
        window = min(self.window, T) if isinstance(T, int) else tf.minimum(self.window, T)
        num_chunks = -(-T // window)
        batch = {
            name: _padded(x, num_chunks * window - T) if name in _OVER_TIME else x
            for name, x in batch.items()
        }
        return add_up(
            num_chunks,
            lambda i, state: self._chunk(batch, i * window, window, state),
            fixed_shapes=self.optimizer_rule.is_compiled,
        )

    def _chunk(self, batch, start, window, state):
        """Gradients and sums of `window` tokens from `start` on, and the state behind them."""
        chunk = {
            name: tf.slice(x, [0, start], [-1, window]) if name in _OVER_TIME else x
            for name, x in batch.items()
        }
        if state is not None:
            state = tf.nest.map_structure(tf.stop_gradient, state)
        rule = self.optimizer_rule
        with tf.GradientTape() as tape:
            sums, state = rule.loss.with_state(chunk, state)
            scaled = rule.scaled(sums)
        return rule.differentiate(tape, scaled), sums, state


def _static_or_dynamic(x: tf.Tensor, axis: int):
    return x.shape[axis] if x.shape[axis] is not None else tf.shape(x)[axis]


def _padded(x: tf.Tensor, num_tokens) -> tf.Tensor:
    """With so many tokens of padding behind: all chunks have one length, as XLA needs."""
    return tf.pad(x, [[0, 0], [0, num_tokens]])
