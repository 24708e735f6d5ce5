"""Several classifiers as one: a mixture of their calibrated probabilities. B batch, K labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf

from training.classification import Classifier
from training.runs import ENSEMBLE_FILE, read_json

LEAST = 0.05  # of a mixture: what weighs less costs more time than it brings
_GAP = 1e-5  # nats that its loss may be above the least: by Jensen's inequality at most log(gain)
_MAX_STEPS = 10_000
_TINY = np.finfo(np.float32).tiny  # the least probability that has a logarithm


class Ensemble(Classifier):
    """Members that read the same texts, each by its own tokenizer, and know the same labels.

    p = sum_m w_m softmax(logits_m / T_m), T_m a member's temperature (Guo et al., 2017, sec. 4.2),
    the weights w_m above 0 with a sum of 1.
    """

    def __init__(self, members: Sequence[Classifier], weights: Sequence[float]):
        first = members[0]
        self.members, self.config = tuple(members), first.config
        self.weights = tuple(weights)
        self.label_names, self.target = first.label_names, first.target
        self.temperature = 1.0  # the members have their own

    @classmethod
    def read(cls, folder: Path, load: Callable[[Path], Classifier]) -> Ensemble:
        """The ensemble whose `ensemble.json` is in `folder`; `load` reads a member."""
        weights = read_json(folder / ENSEMBLE_FILE)
        return cls([load(folder / run) for run in weights], list(weights.values()))

    @property
    def resources(self) -> list:
        return [resource for member in self.members for resource in member.resources]

    def logits_in_graph(self, text):
        scores = [
            weight * tf.nn.softmax(member.logits_in_graph(text) / member.temperature)
            for member, weight in zip(self.members, self.weights, strict=True)
        ]
        return tf.math.log(tf.maximum(tf.add_n(scores), _TINY))

    def logits(self, texts):
        each = [softmax(member.logits(texts) / member.temperature) for member in self.members]
        return np.log(mixture(each, self.weights))

    def figures_of(self, split):
        return self.target.figures(self.logits(split.texts), split.labels)


def softmax(logits: np.ndarray) -> np.ndarray:
    """float32 (B, K) -> float32 (B, K)."""
    return tf.nn.softmax(logits.astype(np.float32)).numpy()


def mixture(probabilities: Sequence[np.ndarray], weights: Sequence[float]) -> np.ndarray:
    """sum_m w_m p_m of several (B, K), no entry so small that it has no logarithm."""
    return np.maximum(np.tensordot(np.asarray(weights, np.float32), probabilities, 1), _TINY)


def mixture_weights(probabilities: Sequence[np.ndarray], labels: np.ndarray) -> np.ndarray:
    """The weights with which a mixture of several (N, K) gives `labels` int (N,) the least loss.

    By expectation maximisation from equal weights, of texts that no member was trained on (stacked
    densities; Smyth & Wolpert, 1999, sec. 3). What is left with less than `LEAST` is no member:
    its weight is 0, and the others are found once more without it. float (M,).
    """
    right = np.stack(probabilities)[:, np.arange(len(labels)), labels].astype(float)  # (M, N)
    right = np.maximum(right, _TINY)
    weights = np.ones(len(right))
    for _ in ("all", "without the light ones"):
        is_member = weights >= LEAST
        weights = is_member / is_member.sum()
        for _ in range(_MAX_STEPS):
            gain = (right / (weights @ right)).mean(axis=1)  # (M,), of a little more of each
            weights = weights * gain
            if gain[is_member].max() < 1 + _GAP:
                break
    return weights
