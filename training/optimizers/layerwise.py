"""Optimizers that look at a variable as a whole: at its rows and columns, or at its norm.

A sparse gradient acts as the dense one in both.
"""

from __future__ import annotations

import tensorflow as tf

from training.optimizers.base import ByVariable


class Adafactor(ByVariable):
    """Second moments of matrices from row and column means (Shazeer & Stern, 2018, alg. 4 and 5).

    The step is w <- w - rate max(1e-3, RMS(w)) u, so the rate is relative to the size of the
    weights (sec. 8). Variables of more than two axes are stacks of matrices, vectors are not
    factored. Ours, as Keras' bounds every rate by 1/sqrt(t) even with relative_step=False, keeps
    the whole V beside its factors, and gives 0/0 where a row and a column of the gradient are both
    zero, because V underflows there; here V is never multiplied out.
    """

    beta_power, epsilon_1, epsilon_2, clip_threshold = 0.8, 1e-30, 1e-3, 1.0  # of sec. 9

    def build(self, variables):
        super().build(variables)
        self._rows, self._columns, self._squares = [], [], []
        for variable in variables:
            shape, dtype, name = variable.shape, variable.dtype, variable.path.replace("/", "_")
            rows = columns = squares = None
            if len(shape) >= 2:
                rows = self.add_variable(shape[:-1], dtype=dtype, name=f"{name}_rows")
                columns = self.add_variable(
                    (*shape[:-2], shape[-1]), dtype=dtype, name=f"{name}_columns"
                )
            else:
                squares = self.add_variable(shape, dtype=dtype, name=f"{name}_squares")
            self._rows.append(rows)
            self._columns.append(columns)
            self._squares.append(squares)

    def step(self, index, gradient, variable, rate):
        t = tf.cast(self.iterations + 1, gradient.dtype)
        beta = 1 - t**-self.beta_power
        square = tf.square(gradient) + self.epsilon_1
        if self._squares[index] is not None:
            update = gradient * tf.math.rsqrt(self._moved(self._squares[index], beta, square))
        else:
            r = self._moved(self._rows[index], beta, tf.reduce_mean(square, -1))
            c = self._moved(self._columns[index], beta, tf.reduce_mean(square, -2))
            by_row = tf.math.rsqrt(r) * tf.sqrt(tf.reduce_mean(r, -1, keepdims=True))
            update = gradient * by_row[..., :, None] * tf.math.rsqrt(c)[..., None, :]
        update = update / tf.maximum(_rms(update) / self.clip_threshold, 1.0)
        size = tf.maximum(_rms(variable), self.epsilon_2)
        self.apply_decay(index, variable, rate)
        self.assign_sub(variable, tf.cast(rate, update.dtype) * size * update)

    def _moved(self, slot, beta, value):
        value = beta * tf.convert_to_tensor(slot) + (1 - beta) * value
        self.assign(slot, value)
        return value


class Lamb(ByVariable):
    """Adam's step and the decay, scaled to the norm of the weights (You et al., 2020, alg. 2).

    u = m^ / (sqrt(v^) + eps) + wd w; w <- w - rate |w| / |u| u, with 1 for a norm of zero. Ours, as
    Keras' leaves the decay out of u, so that the norm of a step is not rate |w| any more.
    """

    epsilon = 1e-7

    def __init__(self, learning_rate, beta_1=0.9, beta_2=0.999):
        super().__init__(learning_rate)
        self.beta_1, self.beta_2 = beta_1, beta_2

    def build(self, variables):
        super().build(variables)
        self._momentums, self._velocities = self.add_optimizer_variables(
            variables, ["momentum", "velocity"]
        )

    def step(self, index, gradient, variable, rate):
        t = tf.cast(self.iterations + 1, gradient.dtype)
        momentum, velocity = self._momentums[index], self._velocities[index]
        w = tf.convert_to_tensor(variable)
        m = self.beta_1 * tf.convert_to_tensor(momentum) + (1 - self.beta_1) * gradient
        v = self.beta_2 * tf.convert_to_tensor(velocity) + (1 - self.beta_2) * tf.square(gradient)
        self.assign(momentum, m)
        self.assign(velocity, v)
        m, v = m / (1 - self.beta_1**t), v / (1 - self.beta_2**t)
        update = m / (tf.sqrt(v) + self.epsilon)
        decay = self.decay_of(index)
        if decay is not None:
            update += tf.cast(decay, w.dtype) * w
        self.assign_sub(variable, tf.cast(rate, w.dtype) * _trust(w, update) * update)


def _trust(weights, update):
    """|w| / |u|, or 1 where one of them is zero."""
    weights, update = tf.norm(weights), tf.norm(update)
    is_zero = (weights == 0) | (update == 0)
    return tf.where(is_zero, tf.ones_like(weights), tf.math.divide_no_nan(weights, update))


def _rms(values):
    return tf.sqrt(tf.reduce_mean(tf.square(values)))
