"""Muon: momentum, orthogonalised, for the matrices of a network; AdamW for all else.

A kernel may be seen as other matrices than the array it is kept in: three side by side in a fused
query, key and value, or one with several axes for its inputs or outputs. Axes: M matrices of one
kernel, R rows (inputs), C columns (outputs).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import prod

import tensorflow as tf

from training.optimizers.base import ByVariable, dense
from training.optimizers.classic import Adam

# Embeddings, the head that is one, and heads of their own (Jordan et al., 2024).
_NEVER = re.compile(r"embedding|(^|/)(head|logits)(/|$)")
# Kernels that hold several maps side by side in their columns: path -> how many.
_FUSED = {
    r"(^|/)qkv/kernel$": 3,  # model.attention.SelfAttention
    r"(^|/)key_value/kernel$": 2,
    r"(^|/)gate_expand/kernel$": 2,  # of model.transformer's SwiGLU
    r"(^|/)lstm_cell\w*/(recurrent_)?kernel$": 4,
    r"(^|/)gru_cell\w*/(recurrent_)?kernel$": 3,
}
# Kernels of three axes, of keras.layers.MultiHeadAttention and its kin: path -> axes of the input.
_INPUT_AXES = {
    r"(^|/)(query|key|value|gate)\w*/kernel$": 1,  # (D, N, H)
    r"(^|/)(attention_)?output\w*/kernel$": 2,  # (N, H, D)
}


@dataclass(frozen=True)
class Matrices:
    """`count` matrices of `rows` x `columns`, side by side in a kernel of the shape `shape`."""

    shape: tuple[int, ...]
    count: int
    rows: int
    columns: int

    def of(self, kernel: tf.Tensor) -> tf.Tensor:
        """(M, R, C)"""
        apart = tf.reshape(kernel, [self.rows, self.count, self.columns])
        return tf.transpose(apart, [1, 0, 2])

    def to_kernel(self, matrices: tf.Tensor) -> tf.Tensor:
        """The inverse of `of`."""
        return tf.reshape(tf.transpose(matrices, [1, 0, 2]), self.shape)


def matrices_of(path: str, shape: tuple[int, ...]) -> Matrices | None:
    """How Muon sees the variable; None if it leaves it to AdamW.

    >>> matrices_of("block/attention/qkv/kernel", (64, 192))
    Matrices(shape=(64, 192), count=3, rows=64, columns=64)
    """
    shape = tuple(shape)
    input_axes = _found(_INPUT_AXES, path, None) if len(shape) == 3 else 1
    if len(shape) < 2 or len(shape) > 3 or input_axes is None or _NEVER.search(path):
        return None
    rows, columns = prod(shape[:input_axes]), prod(shape[input_axes:])
    count = _found(_FUSED, path, 1) if len(shape) == 2 else 1
    if columns % count:
        count = 1
    if min(rows, columns // count) < 2:  # a vector
        return None
    return Matrices(shape, count, rows, columns // count)


def _found(table: dict[str, int], path: str, default):
    return next((value for pattern, value in table.items() if re.search(pattern, path)), default)


def newton_schulz(matrices: tf.Tensor) -> tf.Tensor:
    """Nearly U V^T for every matrix U S V^T: float (..., R, C) -> the same shape.

    Five steps of the quintic of Jordan et al. (2024), whose steep start brings all singular values
    above 0.003 of the Frobenius norm to between 0.68 and 1.21; smaller ones grow up to 485-fold.
    Zero stays zero.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    is_tall = matrices.shape[-2] > matrices.shape[-1]
    x = tf.linalg.matrix_transpose(matrices) if is_tall else matrices
    x = x / (tf.norm(x, axis=(-2, -1), keepdims=True) + 1e-7)
    for _ in range(5):
        square = tf.matmul(x, x, transpose_b=True)
        x = a * x + tf.matmul(b * square + c * tf.matmul(square, square), x)
    return tf.linalg.matrix_transpose(x) if is_tall else x


class Muon(Adam):
    """m <- mu m + g; W <- W - rate sqrt(max(1, C / R)) NewtonSchulz(g + mu m).

    Jordan et al. (2024), for matrices as `matrices_of` sees them, attention among them. The factor
    is for outputs over inputs, rows over columns in the paper and columns over rows in Keras.
    Embeddings, heads, biases, gains and other shapes get `Adam`, with its lazy rows, at
    `adamw_rate` times the rate; `rule_of` says which. For matrices a sparse gradient acts as the
    dense one. Keras' Muon leaves every variable that has not two axes to AdamW and takes fused ones
    for one matrix.
    """

    def __init__(self, learning_rate, momentum=0.95, adamw_rate=0.15):
        super().__init__(learning_rate)
        self.momentum, self.adamw_rate = momentum, adamw_rate

    def build(self, variables):
        ByVariable.build(self, variables)
        self._views = [matrices_of(v.path, v.shape) for v in variables]
        self._momentums = self.add_optimizer_variables(variables, "momentum")
        self._velocities = [
            None if view else self.add_variable_from_reference(variable, "velocity")
            for variable, view in zip(variables, self._views, strict=True)
        ]

    def step(self, index, gradient, variable, rate):
        view = self._views[index]
        if view is None:
            super().step(index, gradient, variable, rate * self.adamw_rate)
            return
        gradient, momentum = dense(gradient, variable.shape), self._momentums[index]
        self.apply_decay(index, variable, rate)
        m = self.momentum * tf.convert_to_tensor(momentum) + gradient
        self.assign(momentum, m)
        update = view.to_kernel(newton_schulz(view.of(gradient + self.momentum * m)))
        rate = tf.cast(rate * max(1.0, view.columns / view.rows) ** 0.5, variable.dtype)
        self.assign_sub(variable, rate * update)

    def rule_of(self, index):
        view = self._views[index]
        if view is None:
            return "adamw"
        size = f"{view.rows}x{view.columns}"
        return f"muon ({size})" if view.count == 1 else f"muon ({view.count} of {size})"
