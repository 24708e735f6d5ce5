"""Optimizers that treat every entry of a variable alike."""

from __future__ import annotations

import keras
import tensorflow as tf

from training.optimizers.base import ByVariable, entries, in_place_of, read


class SGD(ByVariable):
    """Plain, with Polyak's momentum (1964), or with Nesterov's (Sutskever et al., 2013, eq. 3-4).

    v <- m v - lr g; w <- w + v, and for Nesterov w <- w + m v - lr g: the weights hold the point
    that his gradient is taken at, as is usual. With momentum a sparse gradient acts as the dense
    one: rows out of use move on by what they have. Ours, as Keras' rounds m to float32 for weights
    in float64 too.
    """

    def __init__(self, learning_rate, momentum=None, nesterov=False):
        super().__init__(learning_rate)
        self.momentum, self.nesterov = momentum, nesterov

    @property
    def takes_rows(self):
        return self.momentum is None  # the rows that are not named would not move anyway

    def build(self, variables):
        super().build(variables)
        if self.momentum is not None:
            self._velocities = self.add_optimizer_variables(variables, "velocity")

    def step(self, index, gradient, variable, rate):
        self.apply_decay(index, variable, rate)
        change = -tf.cast(rate, variable.dtype) * entries(gradient)
        if self.momentum is not None:
            velocity = self._velocities[index]
            v = self.momentum * tf.convert_to_tensor(velocity) + change
            self.assign(velocity, v)
            change = self.momentum * v + change if self.nesterov else v
        self.assign_add(variable, in_place_of(gradient, change))


class RMSprop(ByVariable, keras.optimizers.RMSprop):
    """w <- w - lr g / sqrt(s + eps), s the running mean of g^2 (Hinton, 2012, lecture 6e).

    Epsilon, 1e-7, stands under the root. A sparse gradient acts as the dense one.
    """


class Adam(ByVariable):
    """Bias-corrected moments (Kingma & Ba, 2015), lazily for the rows of a sparse gradient.

    In the paper's efficient order (end of sec. 2): epsilon, 1e-7, is added to the root of the
    second moment before its correction. Ours, as Keras makes a sparse gradient dense and moves
    every row, by old momentum too; here a row's moments stand still while it is unused, and bias
    correction counts all updates. Dense gradients of float32 give the bits of Keras' Adam.
    """

    takes_rows = True
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
        self.apply_decay(index, variable, rate)
        g, momentum, velocity = entries(gradient), self._momentums[index], self._velocities[index]
        t = tf.cast(self.iterations + 1, g.dtype)
        m, v = read(momentum, gradient), read(velocity, gradient)
        m += (g - m) * (1 - self.beta_1)
        v += (tf.square(g) - v) * (1 - self.beta_2)
        self.assign(momentum, in_place_of(gradient, m))
        self.assign(velocity, in_place_of(gradient, v))
        rate = tf.cast(rate, g.dtype) * tf.sqrt(1 - self.beta_2**t) / (1 - self.beta_1**t)
        change = m * rate / (tf.sqrt(v) + self.epsilon)
        self.assign_sub(variable, in_place_of(gradient, change))


class Lion(ByVariable):
    """The sign of an interpolated momentum (Chen et al., 2023, alg. 2), lazily for sparse rows.

    The sign of a momentum that fades is as large as ever: a dense step would move a row that is not
    used any more by the whole rate for ever. So, unlike Keras', rows out of use stand still.
    """

    takes_rows = True

    def __init__(self, learning_rate, beta_1=0.9, beta_2=0.99):
        super().__init__(learning_rate)
        self.beta_1, self.beta_2 = beta_1, beta_2

    def build(self, variables):
        super().build(variables)
        self._momentums = self.add_optimizer_variables(variables, "momentum")

    def step(self, index, gradient, variable, rate):
        self.apply_decay(index, variable, rate)
        g, momentum = entries(gradient), self._momentums[index]
        m = read(momentum, gradient)
        change = tf.cast(rate, g.dtype) * tf.sign(self.beta_1 * m + (1 - self.beta_1) * g)
        self.assign_sub(variable, in_place_of(gradient, change))
        m = self.beta_2 * m + (1 - self.beta_2) * g
        self.assign(momentum, in_place_of(gradient, m))
