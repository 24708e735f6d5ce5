"""What a text is judged by: its label, its labels, its grade or its number.

A target says how many outputs the network has, what the loss is, which figures tell how well it
goes, and what is served. Axes: B batch, K labels.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from model import signatures
from training.config import BALANCED, StageConfig
from training.datasets.config import CLASS, GRADE, LABELS, NUMBER, DatasetError
from training.losses import Batch, Sums, classification_loss, multi_label_loss, squared_error
from training.plots import draw_confusion_matrix

LossOfLogits = Callable[[Batch, tf.Tensor], Sums]
Scale = tuple[float, float]  # mean and standard deviation of the numbers of the training split


class ClassTarget:
    """One of the labels: softmax and cross-entropy."""

    kind = signatures.CLASSIFIER  # of what is served
    is_graded = False
    has_classes = True  # the softmax of the logits is a distribution over the labels
    correct: str | None = "accuracy"  # what the share of "num_correct" is called
    score_name = "accuracy"  # the figure on validation that is to grow

    def __init__(self, label_names: Sequence[str]):
        self.label_names = tuple(label_names)
        self.num_outputs = len(self.label_names)

    def loss(self, stage: StageConfig, labels: np.ndarray) -> LossOfLogits:
        """That of a stage whose training split has `labels`."""
        weights = class_weights(stage, labels, self.label_names)
        return functools.partial(
            classification_loss, label_smoothing=stage.label_smoothing, class_weights=weights
        )

    def score(self, figures: dict[str, float]) -> float:
        return figures[self.score_name]

    def figures(self, logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """Loss (nats) and accuracy."""
        return _means(classification_loss, logits, labels, self.correct)

    def report(self, logits: np.ndarray, labels: np.ndarray, folder: Path) -> dict[str, Any]:
        """Accuracy, macro F1 and a table by label; the confusion matrix as a PNG in `folder`.

        Macro F1 is the mean over the labels that a text has or is given, as in scikit-learn.
        """
        from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

        predicted, indices = logits.argmax(axis=1), range(len(self.label_names))
        precision, recall, f1, support = precision_recall_fscore_support(
            labels, predicted, labels=list(indices), zero_division=0.0
        )
        matrix = confusion_matrix(labels, predicted, labels=list(indices))
        occurs = matrix.sum(axis=0) + matrix.sum(axis=1) > 0
        draw_confusion_matrix(matrix, self.label_names, folder / "confusion_matrix.png")
        return self.figures(logits, labels) | {
            "macro_f1": float(f1[occurs].mean()) if occurs.any() else 0.0,
            "num_examples": len(labels),
            "by_label": _by_label(self.label_names, precision, recall, f1, support),
            "confusion_matrix": matrix.tolist(),
        }

    def outputs(self, logits: tf.Tensor, temperature: float) -> dict[str, tf.Tensor]:
        """What is served for `logits` float32 (B, K), by alias; graph ops.

        The label follows from the logits: no temperature can change it, not by rounding either.
        """
        labels = tf.constant(self.label_names)
        return {
            signatures.LABEL: tf.gather(labels, tf.argmax(logits, axis=-1)),
            signatures.SCORES: tf.nn.softmax(logits / temperature),
            # Row by row, as TensorFlow Serving's row format wants the batch in front everywhere.
            signatures.LABELS: tf.tile(labels[None, :], [tf.shape(logits)[0], 1]),
        }


class GradeTarget(ClassTarget):
    """One of the labels, which have an order: logarithms of the probabilities of `model.heads`."""

    is_graded = True

    def figures(self, logits, labels):
        """Loss (nats), accuracy, and how many grades off: absolute on average, and kappa."""
        predicted = logits.argmax(axis=1)
        return super().figures(logits, labels) | {
            "mean_absolute_error": float(np.abs(predicted - labels).mean()) if len(labels) else 0.0,
            "quadratic_kappa": quadratic_kappa(labels, predicted, len(self.label_names)),
        }


class LabelsTarget:
    """Any number of the labels: a sigmoid and a binary cross-entropy for each."""

    kind = signatures.MULTI_LABEL
    is_graded = False
    has_classes = False
    correct: str | None = "exact_match"
    score_name = "micro_f1"

    def __init__(self, label_names: Sequence[str]):
        self.label_names = tuple(label_names)
        self.num_outputs = len(self.label_names)

    def loss(self, stage: StageConfig, labels: np.ndarray) -> LossOfLogits:
        return multi_label_loss

    def score(self, figures: dict[str, float]) -> float:
        return figures[self.score_name]

    def figures(self, logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """Loss (nats a text), exact match, micro and macro F1; labels bool (B, K).

        Macro F1 is the mean over the labels that a text has or is given.
        """
        said = logits >= 0
        hits, wrong = (said & labels).sum(axis=0), (said != labels).sum(axis=0)
        occurs = 2 * hits + wrong > 0
        by_label = 2 * hits[occurs] / (2 * hits + wrong)[occurs]
        return _means(multi_label_loss, logits, labels, self.correct) | {
            "micro_f1": float(2 * hits.sum() / max(2 * hits.sum() + wrong.sum(), 1)),
            "macro_f1": float(by_label.mean()) if occurs.any() else 0.0,
        }

    def report(self, logits: np.ndarray, labels: np.ndarray, folder: Path) -> dict[str, Any]:
        """The figures and a table by label."""
        from sklearn.metrics import precision_recall_fscore_support

        table = precision_recall_fscore_support(labels, logits >= 0, zero_division=0.0)
        return self.figures(logits, labels) | {
            "num_examples": len(labels),
            "by_label": _by_label(self.label_names, *table),
        }

    def outputs(self, logits: tf.Tensor, temperature: float) -> dict[str, tf.Tensor]:
        labels = tf.constant(self.label_names)
        return {
            signatures.IS_LABEL: logits >= 0,
            signatures.SCORES: tf.sigmoid(logits),
            signatures.LABELS: tf.tile(labels[None, :], [tf.shape(logits)[0], 1]),
        }


class NumberTarget:
    """A number: squared error on a scale where the training split has mean 0 and deviation 1."""

    kind = signatures.REGRESSOR
    is_graded = False
    has_classes = False
    correct: str | None = None  # no number is right or wrong
    score_name = "loss"
    label_names: tuple[str, ...] = ()
    num_outputs = 1

    def __init__(self, scale: Scale):
        self.mean, self.deviation = scale

    def loss(self, stage: StageConfig, labels: np.ndarray) -> LossOfLogits:
        return functools.partial(squared_error, mean=self.mean, deviation=self.deviation)

    def score(self, figures: dict[str, float]) -> float:
        return -figures[self.score_name]

    def figures(self, logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """Loss (variances of the training split), RMSE and MAE in the unit of the data, R2, and the
        correlations of Pearson and Spearman, 0 where a side is constant.
        """
        from scipy.stats import rankdata

        loss = functools.partial(squared_error, mean=self.mean, deviation=self.deviation)
        values, wanted = self._values(logits).astype(np.float64), labels.astype(np.float64)
        error = values - wanted
        spread = float(np.square(wanted - wanted.mean()).sum())
        return _means(loss, logits, labels, None) | {
            "rmse": float(np.sqrt(np.square(error).mean())),
            "mean_absolute_error": float(np.abs(error).mean()),
            "r2": 1.0 - float(np.square(error).sum()) / spread if spread else 0.0,
            "pearson": _correlation(values, wanted),
            "spearman": _correlation(rankdata(values), rankdata(wanted)),
        }

    def report(self, logits: np.ndarray, labels: np.ndarray, folder: Path) -> dict[str, Any]:
        return self.figures(logits, labels) | {"num_examples": len(labels)}

    def outputs(self, logits: tf.Tensor, temperature: float) -> dict[str, tf.Tensor]:
        return {signatures.VALUE: self._values(logits)}

    def _values(self, logits):
        """float32 (B,) in the unit of the data."""
        return self.mean + self.deviation * logits[:, 0]


Target = ClassTarget | LabelsTarget | NumberTarget
_CLASSES: dict[str, type[ClassTarget] | type[LabelsTarget]] = {
    CLASS: ClassTarget,
    LABELS: LabelsTarget,
    GRADE: GradeTarget,
}


def build_target(name: str, label_names: Sequence[str], scale: Scale | None = None) -> Target:
    """What `target=name` in a recipe stands for; numbers need the `scale` of the training split."""
    if name == NUMBER:
        if scale is None:
            raise ValueError("target=number needs the mean and deviation of its numbers.")
        return NumberTarget(scale)
    return _CLASSES[name](label_names)


def score_name(name: str) -> str:
    """The figure of validation by which runs with `target=name` are compared."""
    return NumberTarget.score_name if name == NUMBER else _CLASSES[name].score_name


def scale_of(numbers: np.ndarray) -> Scale:
    """Mean and standard deviation of a training split; raises DatasetError when all are equal."""
    mean, deviation = float(numbers.mean(dtype=np.float64)), float(numbers.std(dtype=np.float64))
    if not deviation > 0:
        raise DatasetError(
            f"target=number learns differences, and all {len(numbers):,} numbers of the training "
            f"split are {mean:g}."
        )
    return mean, deviation


def class_weights(
    stage: StageConfig, labels: np.ndarray, label_names: Sequence[str]
) -> list[float] | None:
    """A weight for each label, scaled so that the rows of the training split weigh 1 on average.

    `balanced` is n / (K n_k), as in scikit-learn, over the K labels that occur: all weigh the same
    in all. With a mean of 1 the size of the loss and the meaning of the learning rate stay.
    Raises ValueError for labels that are not in `label_names`.
    """
    if stage.class_weights is None:
        return None
    counts = np.bincount(labels, minlength=len(label_names))
    if stage.class_weights == BALANCED:
        weights = np.where(counts > 0, 1.0 / np.maximum(counts, 1), 0.0)
    else:
        given = stage.weights_of_classes()
        if unknown := sorted(set(given) - set(label_names)):
            raise ValueError(
                f"class_weights must name labels of the data: {', '.join(label_names)}. "
                f"Received: {', '.join(unknown)}"
            )
        weights = np.array([given.get(name, 1.0) for name in label_names])
    total = float(counts @ weights)
    if not total > 0:
        raise ValueError(
            "class_weights must leave a label of the training split with a weight above 0. "
            f"Received: {stage.class_weights!r}"
        )
    return (weights * (counts.sum() / total)).tolist()


def quadratic_kappa(labels: np.ndarray, predicted: np.ndarray, num_labels: int) -> float:
    """Agreement beyond chance, a disagreement by d grades counting d^2 (Cohen, 1968, eq. 9).

    1 - sum w O / sum w E with w = (i - j)^2, O the confusion matrix and E what it would be if its
    marginals were independent. 1 is perfect, 0 chance; 0 too where both name one and the same grade
    alone, which is no evidence of either.
    """
    flat = np.bincount(labels * num_labels + predicted, minlength=num_labels**2)
    found = flat.reshape(num_labels, num_labels).astype(np.float64)
    grade = np.arange(num_labels)
    weight = np.square(grade[:, None] - grade[None, :])
    by_chance = np.outer(found.sum(axis=1), found.sum(axis=0)) / max(found.sum(), 1.0)
    disagreement = float((weight * by_chance).sum())
    return 1.0 - float((weight * found).sum()) / disagreement if disagreement else 0.0


def _means(
    loss: LossOfLogits, logits: np.ndarray, labels: np.ndarray, correct: str | None
) -> dict[str, float]:
    sums = loss({"label": tf.constant(labels)}, tf.constant(logits))
    count = max(float(sums["num_targets"]), 1.0)
    figures = {"loss": float(sums["loss_sum"]) / count}
    return figures | ({correct: float(sums["num_correct"]) / count} if correct else {})


def _by_label(names: Sequence[str], precision, recall, f1, support) -> dict[str, dict]:
    return {
        name: {
            "precision": float(precision[i]),
            "recall": float(recall[i]),
            "f1": float(f1[i]),
            "num_examples": int(support[i]),
        }
        for i, name in enumerate(names)
    }


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a - a.mean(), b - b.mean()
    size = float(np.sqrt(np.square(a).sum() * np.square(b).sum()))
    return float(a @ b) / size if size else 0.0
