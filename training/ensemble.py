"""Several classifiers as one: the mean of their calibrated probabilities. B batch, K labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf

from training.classification import Classifier
from training.runs import ENSEMBLE_FILE, read_json

_TINY = np.finfo(np.float32).tiny  # the least probability that has a logarithm


class Ensemble(Classifier):
    """Members that read the same texts, each by its own tokenizer, and know the same labels.

    p = mean_m softmax(logits_m / T_m), T_m a member's temperature (Guo et al., 2017, sec. 4.2).
    """

    def __init__(self, members: Sequence[Classifier]):
        first = members[0]
        self.members, self.config = tuple(members), first.config
        self.label_names, self.target = first.label_names, first.target
        self.temperature = 1.0  # the members have their own

    @classmethod
    def read(cls, folder: Path, load: Callable[[Path], Classifier]) -> Ensemble:
        """The ensemble whose `ensemble.json` is in `folder`; `load` reads a member."""
        return cls([load(folder / run) for run in read_json(folder / ENSEMBLE_FILE)])

    @property
    def resources(self) -> list:
        return [resource for member in self.members for resource in member.resources]

    def logits_in_graph(self, text):
        scores = [tf.nn.softmax(m.logits_in_graph(text) / m.temperature) for m in self.members]
        return tf.math.log(tf.maximum(tf.add_n(scores) / len(scores), _TINY))

    def logits(self, texts):
        return np.log(mean_of([softmax(m.logits(texts) / m.temperature) for m in self.members]))

    def figures_of(self, split):
        return self.target.figures(self.logits(split.texts), split.labels)


def softmax(logits: np.ndarray) -> np.ndarray:
    """float32 (B, K) -> float32 (B, K)."""
    return tf.nn.softmax(logits.astype(np.float32)).numpy()


def mean_of(probabilities: Sequence[np.ndarray]) -> np.ndarray:
    """Of several (B, K), no entry so small that it has no logarithm."""
    return np.maximum(np.mean(probabilities, axis=0), _TINY)
