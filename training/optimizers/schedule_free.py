"""Schedule-Free optimizers (Defazio et al., 2024, arXiv 2405.15682): an average in place of decay.

Three sequences: z takes the steps, x is the weighted mean of the z, and the gradient is taken at
y = (1 - b) z + b x, which the weights of the network hold during training. x is what is to be
evaluated and exported.

z and x are both kept, as in the authors' reference code, at the price of one more slot: x worked
out from y and z would drift by a rounding at each update. The weight of z in x is
c_t = lr_max^2 / sum_t lr_max^2, with lr_max the highest rate so far, so that steps of a warm-up
count for less. Meant for a constant rate after a warm-up: `constant(warmup=100)`. Keras'
ScheduleFreeAdamW is another method: it reads the old z after it has changed it, weighs by 1/t,
and never shows x. A sparse gradient acts as the dense one.
"""

from __future__ import annotations

import tensorflow as tf

from training.optimizers.base import ByVariable


class ScheduleFreeSGD(ByVariable):
    """z <- z - rate (g(y) + wd y); x <- (1 - c) x + c z; y <- (1 - b) z + b x (eq. 4-6).

    The decay is taken at y, within the step of z, as in the authors' code.
    """

    def __init__(self, learning_rate, beta=0.9):
        super().__init__(learning_rate)
        self.beta = beta

    def build(self, variables):
        super().build(variables)
        self._z, self._x = self.add_optimizer_variables(variables, ["z", "x"])
        for slots in (self._z, self._x):
            for slot, variable in zip(slots, variables, strict=True):
                slot.assign(variable.value)
        self._highest_rate = self._scalar("highest_rate")
        self._weight_sum = self._scalar("weight_sum")

    def _scalar(self, name):
        return self.add_variable((), dtype="float64", name=name, aggregation="only_first_replica")

    def apply(self, grads, trainable_variables=None):
        rate = tf.cast(self._get_current_learning_rate(), tf.float64)
        highest = tf.maximum(tf.convert_to_tensor(self._highest_rate), rate)
        self._highest_rate.assign(highest)
        self._weight_sum.assign_add(tf.square(highest))
        super().apply(grads, trainable_variables)

    def share(self) -> tf.Tensor:
        """c of this update, float64: the weight of the new z in x; 0 while all rates were 0."""
        highest = tf.convert_to_tensor(self._highest_rate)
        return tf.math.divide_no_nan(tf.square(highest), tf.convert_to_tensor(self._weight_sum))

    def step(self, index, gradient, variable, rate):
        y = tf.convert_to_tensor(variable)
        step = self.direction(index, gradient)
        decay = self.decay_of(index)
        if decay is not None:
            step += tf.cast(decay, y.dtype) * y
        c = tf.cast(self.share(), y.dtype)
        z = tf.convert_to_tensor(self._z[index]) - tf.cast(rate, y.dtype) * step
        x = (1 - c) * tf.convert_to_tensor(self._x[index]) + c * z
        self.assign(self._z[index], z)
        self.assign(self._x[index], x)
        self.assign(variable, (1 - self.beta) * z + self.beta * x)

    def direction(self, index: int, gradient) -> tf.Tensor:
        return gradient

    def evaluation_weights(self) -> list[tf.Tensor]:
        """x of every variable, in the order that the optimizer was built for."""
        return [tf.convert_to_tensor(x) for x in self._x]


class ScheduleFreeAdamW(ScheduleFreeSGD):
    """z <- z - rate (g / (sqrt(v^) + eps) + wd y), the rest as in `ScheduleFreeSGD` (alg. 1).

    v is Adam's second moment, v^ without its bias; beta_1 is the b of the interpolation and takes
    the place of momentum. Epsilon is the authors', 1e-8.
    """

    epsilon = 1e-8

    def __init__(self, learning_rate, beta_1=0.9, beta_2=0.999):
        super().__init__(learning_rate, beta_1)
        self.beta_2 = beta_2

    def build(self, variables):
        super().build(variables)
        self._velocities = self.add_optimizer_variables(variables, "velocity")

    def direction(self, index, gradient):
        velocity = self._velocities[index]
        t = tf.cast(self.iterations + 1, gradient.dtype)
        v = tf.convert_to_tensor(velocity)
        v = self.beta_2 * v + (1 - self.beta_2) * tf.square(gradient)
        self.assign(velocity, v)
        return gradient / (tf.sqrt(v / (1 - self.beta_2**t)) + self.epsilon)
