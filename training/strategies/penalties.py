"""What is added to the gradient of an update: L1 and L2 penalties, noise."""

from __future__ import annotations

import tensorflow as tf

from training.optimizers.base import NOT_DECAYED
from training.strategies.noise import GRADIENT_NOISE, gaussian
from training.strategies.replicas import assign
from training.strategies.rules import Around, UpdateRule


class Penalty(Around):
    """Adds c times the slope of a penalty to the mean gradient, in front of clipping.

    Matrices alone are penalised, as with weight decay: no embedding, norm or bias. Being part of
    the gradient, it passes through the moments of an adaptive optimizer, where decoupled weight
    decay does not. The loss that is reported is that of the task.
    """

    def __init__(self, inner: UpdateRule, c: float):
        super().__init__(inner)
        self.c = c
        self.is_penalised = [
            not any(word in weight.path for word in NOT_DECAYED) for weight in self.weights
        ]

    def slope(self, weight: tf.Tensor) -> tf.Tensor:
        raise NotImplementedError

    def apply(self, gradients):
        return super().apply(
            [
                self._penalised(gradient, weight) if is_penalised else gradient
                for gradient, weight, is_penalised in zip(
                    gradients, self.weights, self.is_penalised, strict=True
                )
            ]
        )

    def _penalised(self, gradient, weight):
        slope = self.slope(tf.convert_to_tensor(weight.value))
        return tf.convert_to_tensor(gradient) + self.c * slope


class L1(Penalty):
    """c |w|_1, whose slope is c sign(w), 0 at 0 (Tibshirani, 1996, there as a constraint)."""

    def slope(self, weight):
        return tf.sign(weight)


class L2(Penalty):
    """c/2 |w|^2, whose slope is c w (Hoerl & Kennard, 1970)."""

    def slope(self, weight):
        return weight


class GradientNoise(Around):
    """g + N(0, eta / (1 + t)^gamma), t updates done before (Neelakantan et al., 2015, eq. 1).

    eta / (1 + t)^gamma is a variance, that of every entry of the mean gradient. Of a sparse
    gradient only the rows that it names get noise: embeddings still move only when used.
    """

    def __init__(self, inner: UpdateRule, eta: float, gamma: float, *, seed: int):
        super().__init__(inner)
        self.eta, self.gamma, self.seed = eta, gamma, seed
        self.count = self.new_variable("gradient_noise_count", 0, tf.int64)  # updates done

    def apply(self, gradients):
        t = tf.cast(self.count, tf.float64)
        deviation = tf.sqrt(self.eta / tf.pow(1.0 + t, tf.cast(self.gamma, tf.float64)))
        noise = gaussian(self.weights, purpose=GRADIENT_NOISE, seed=self.seed, step=self.count)
        noisy = [_noisy(g, n, deviation) for g, n in zip(gradients, noise, strict=True)]
        said = super().apply(noisy)
        assign([self.count], [self.count + 1])
        return said


def _noisy(gradient, noise: tf.Tensor, deviation: tf.Tensor):
    deviation = tf.cast(deviation, noise.dtype)
    if not isinstance(gradient, tf.IndexedSlices):
        return gradient + deviation * noise
    rows = gradient.values + deviation * tf.gather(noise, gradient.indices)
    return tf.IndexedSlices(rows, gradient.indices, gradient.dense_shape)
