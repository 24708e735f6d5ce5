"""Adversarial training: embeddings changed for the worse, and learned from."""

from __future__ import annotations

import tensorflow as tf

from training.strategies.gradients import add, global_norm, scale
from training.strategies.rules import UpdateRule
from training.strategies.sharpness import Elsewhere


class FastGradient(Elsewhere):
    """The gradient plus that under the worst change of the embeddings, E + eps dE / |dE|.

    After Miyato et al. (2017, eq. 3-5), who change the embedded words of each text. Here, as usual
    for FGM, the tables themselves are changed: every trainable variable with "embedding" in its
    path, |dE| being the norm of all of them together over the batch. Both losses weigh the same.

    Raises ValueError when no such variable moves.
    """

    rise = "adversarial_rise_sum"

    def __init__(self, inner: UpdateRule, epsilon: float):
        super().__init__(inner)
        self.epsilon = epsilon
        self.is_embedding = ["embedding" in weight.path for weight in self.weights]
        if not any(self.is_embedding):
            paths = ", ".join(weight.path for weight in self.weights)
            raise ValueError(
                "strategy: fgm changes embeddings, but no variable that is trained has 'embedding' "
                f"in its path; sam moves all weights instead. Received: {paths}"
            )

    def changes(self, gradients, num_targets):
        chosen = [g for g, wanted in zip(gradients, self.is_embedding, strict=True) if wanted]
        factor = tf.math.divide_no_nan(self.epsilon, global_norm(chosen))
        steps = iter(scale(chosen, factor))
        return [next(steps) if wanted else None for wanted in self.is_embedding]

    def combined(self, here, there):
        return add(here, there, fixed_shapes=self.optimizer_rule.is_compiled)
