"""Matrices kept in fewer bytes than they are computed with, for the export of a decoder.

Axes: N rows of activations, D inputs, K outputs or tokens.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import keras
import numpy as np
import tensorflow as tf

from model.products import Dense, Embedding
from model.signatures import WEIGHTS_BFLOAT16, WEIGHTS_INT8

KINDS = (WEIGHTS_BFLOAT16, WEIGHTS_INT8)


class Stored(tf.Module):
    """A matrix (K, D) as bfloat16, or as int8 with a scale for each of the K outputs.

    An int8 w stands for w max|W_k| / 127, the nearest to the weight. Products are of the type of
    the activations: only what is kept is rounded. Outputs come first, as then XLA multiplies one
    row of activations without unpacking the matrix.
    """

    def __init__(self, matrix: np.ndarray, kind: str):
        super().__init__()
        self.scale: tf.Variable | None = None
        if kind == WEIGHTS_BFLOAT16:
            rows = tf.cast(matrix, tf.bfloat16)
        else:
            scale = np.abs(matrix).max(axis=1) / 127
            rows = np.rint(matrix / np.where(scale > 0, scale, 1.0)[:, None]).astype(np.int8)
            self.scale = tf.Variable(scale, trainable=False, dtype=tf.float32, name="scale")
        self.rows = tf.Variable(rows, trainable=False, name="rows")
        self._held: tf.Tensor | None = None  # float32 (D, K)

    def take(self, index: tf.Tensor) -> tf.Tensor:
        """Rows float32 (..., D) by their index int (...)."""
        rows = tf.cast(tf.gather(self.rows, index), tf.float32)
        return rows if self.scale is None else rows * tf.gather(self.scale, index)[..., None]

    def product(self, x: tf.Tensor) -> tf.Tensor:
        """float (N, D) -> (N, K), of the type of `x`."""
        if self._held is not None:
            return tf.matmul(x, tf.cast(self._held, x.dtype))
        # In a branch that XLA can not foresee it neither unpacks a matrix in front of a loop, whose
        # steps would all read the large copy, nor computes `x` again for each output.
        y = tf.cond(
            (tf.shape(x)[0] == 1) & ~tf.math.is_nan(x[0, 0]),
            lambda: tf.matmul(x, tf.cast(self.rows, x.dtype), transpose_b=True),
            lambda: tf.matmul(x, tf.transpose(tf.cast(self.rows, x.dtype))),
        )
        return y if self.scale is None else y * tf.cast(self.scale, x.dtype)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Within it `product` reads a float32 copy that is made here."""
        whole = tf.cast(self.rows, tf.float32)
        self._held = tf.transpose(whole if self.scale is None else whole * self.scale[:, None])
        try:
            yield
        finally:
            self._held = None


def store(model: keras.Model, kind: str) -> None:
    """Rounds the matrices of `transformer_decoder` in place; it can not be trained any more.

    Biases, gains and scales stay float32. Raises ValueError for another network or kind.
    """
    if kind not in KINDS:
        raise ValueError(f"weights must be one of {', '.join(KINDS)}. Received: {kind!r}")
    if not hasattr(model, "read"):
        raise ValueError(
            f"weights={kind} is for transformer_decoder; export {model.name} with weights=float32."
        )
    for layer in model._flatten_layers():
        if isinstance(layer, Dense):
            name, matrix = "_kernel", np.transpose(layer.kernel.numpy())
        elif isinstance(layer, Embedding):
            name, matrix = "_embeddings", layer.embeddings.numpy()
        else:
            continue
        layer.stored = Stored(matrix, kind)
        layer._untrack_variable(getattr(layer, name))
        setattr(layer, name, None)


@contextlib.contextmanager
def held(model: keras.Model, *, with_head: bool = False) -> Iterator[None]:
    """Within it a loop reads float32 copies of what is stored, unpacked once in front of it.

    With `with_head` also one of the embedding of `transformer_decoder`, inputs first, for its tied
    head: XLA multiplies several rows by that twice as fast, and one row no faster.
    """
    with contextlib.ExitStack() as stack:
        for layer in model._flatten_layers():
            if getattr(layer, "stored", None) is not None:
                stack.enter_context(layer.stored.held())
        if with_head and model.embedding.stored is None:
            model.embedding.head = tf.transpose(model.embedding.embeddings)
            stack.callback(setattr, model.embedding, "head", None)
        yield
