"""Classifiers: data to batches, logits to figures. Axes: B batch, T tokens, K labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf

from model.catalogue import build_model
from model.tokenizers import Tokenizer, encode, load_tokenizer, train_tokenizer
from training.config import RunConfig
from training.datasets.examples import ClassificationData, LabelledTexts
from training.losses import classification_loss
from training.objectives import Classification
from training.pipeline import classification_rows

_EVALUATION_BATCH = 128
_MAX_WEIGHTS = 64_000_000  # of a bag of n-grams; training peaked at 4.6 GB with so many
_MAX_NAMED = 40  # labels; of more the picture shows the shades alone


class Classifier:
    """A trained or trainable text classifier: tokenizer, network and label names together."""

    supervised = Classification

    def __init__(self, config: RunConfig, tokenizer: Tokenizer, label_names: Sequence[str]):
        self.config, self.tokenizer, self.label_names = config, tokenizer, tuple(label_names)
        weights = tokenizer.vocabulary_size * len(self.label_names)
        if config.model.name == "bag_of_ngrams" and weights > _MAX_WEIGHTS:
            raise ValueError(
                f"{len(self.label_names)} labels times tokenizer.num_buckets="
                f"{tokenizer.vocabulary_size - 1} are {weights:,} weights, more than the "
                f"{_MAX_WEIGHTS:,} that a usual memory holds with their training state. Set "
                f"tokenizer.num_buckets to {_MAX_WEIGHTS // len(self.label_names)} or less."
            )
        self.model = build_model(
            config.model,
            tokenizer.vocabulary_size,
            len(self.label_names),
            seed=config.seed,
            precision=config.precision,
            preset=getattr(tokenizer, "preset", None),
        )
        spec = tf.TensorSpec([None, None], tf.int32)
        self._logits = tf.function(
            lambda tokens: self.model(tokens, training=False), input_signature=[spec]
        )

    @classmethod
    def create(
        cls, config: RunConfig, data: ClassificationData, texts: Sequence[str] = ()
    ) -> Classifier:
        """Untrained, with a vocabulary from the training split and from more `texts`."""
        tokenizer = train_tokenizer([*data.train.texts, *texts], config.tokenizer)
        return cls(config, tokenizer, data.label_names)

    @classmethod
    def load(cls, config: RunConfig, folder: Path, label_names: Sequence[str]) -> Classifier:
        return cls(config, load_tokenizer(folder, config.tokenizer), label_names)

    def figures(self, rows: Sequence[np.ndarray], labels: np.ndarray) -> dict[str, float]:
        """Loss (nats) and accuracy on tokenised texts."""
        return _loss_and_accuracy(self._logits_of(rows), labels)

    def figures_of(self, split: LabelledTexts) -> dict[str, float]:
        return self.figures(encode(self.tokenizer, split.texts), split.labels)

    def logits(self, texts: Sequence[str]) -> np.ndarray:
        """float32 (B, K), the labels in the order of `label_names`."""
        return self._logits_of(encode(self.tokenizer, texts))

    def probabilities(self, texts: Sequence[str]) -> np.ndarray:
        """float32 (B, K), the labels in the order of `label_names`."""
        return tf.nn.softmax(self.logits(texts)).numpy()

    def evaluate(self, split: LabelledTexts, folder: Path) -> dict:
        """Accuracy, macro F1 and a table by label; the confusion matrix as a PNG in `folder`."""
        from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

        logits = self.logits(split.texts)
        predicted, indices = logits.argmax(axis=1), range(len(self.label_names))
        precision, recall, f1, support = precision_recall_fscore_support(
            split.labels, predicted, labels=list(indices), zero_division=0.0
        )
        matrix = confusion_matrix(split.labels, predicted, labels=list(indices))
        draw_confusion_matrix(matrix, self.label_names, folder / "confusion_matrix.png")
        return _loss_and_accuracy(logits, split.labels) | {
            "macro_f1": float(f1.mean()),
            "num_examples": len(split),
            "by_label": {
                name: {
                    "precision": float(precision[i]),
                    "recall": float(recall[i]),
                    "f1": float(f1[i]),
                    "num_examples": int(support[i]),
                }
                for i, name in enumerate(self.label_names)
            },
            "confusion_matrix": matrix.tolist(),
        }

    def _logits_of(self, rows: Sequence[np.ndarray]) -> np.ndarray:
        logits = np.zeros((len(rows), len(self.label_names)), np.float32)
        no_labels = np.zeros(len(rows), np.int32)
        for indices, batch in classification_rows(rows, no_labels, batch_size=_EVALUATION_BATCH):
            logits[indices] = self._logits(batch["tokens"]).numpy()
        return logits


def _loss_and_accuracy(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    sums = classification_loss({"label": tf.constant(labels)}, tf.constant(logits))
    count = max(float(sums["num_targets"]), 1.0)
    return {
        "loss": float(sums["loss_sum"]) / count,
        "accuracy": float(sums["num_correct"]) / count,
    }


def draw_confusion_matrix(matrix: np.ndarray, names: Sequence[str], path: Path) -> None:
    """Rows are true labels, columns predicted ones; counts in the cells, shade by row share.

    Of more than 40 labels the shades alone, in the order of the labels.
    """
    import warnings

    from matplotlib import font_manager, rc_context
    from matplotlib.figure import Figure  # without pyplot: no global state, no display

    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    side = min(max(4.0, 0.55 * len(names) + 2.0), 20.0)  # inches
    # Label names may be Chinese: a font that has the characters is used if there is one.
    wanted = ["DejaVu Sans", "Noto Sans CJK SC", "PingFang SC", "Microsoft YaHei", "SimHei"]
    installed = font_manager.get_font_names()
    fonts = [font for font in wanted if font in installed]
    with rc_context({"font.family": fonts}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # an empty box is better than no picture
        figure = Figure(figsize=(side, side), layout="constrained")
        axes = figure.subplots()
        axes.imshow(share, cmap="Blues", vmin=0.0, vmax=1.0)
        if len(names) <= _MAX_NAMED:
            # A label such as "$$" is text, not mathematics.
            axes.set_xticks(range(len(names)), names, rotation=45, ha="right", parse_math=False)
            axes.set_yticks(range(len(names)), names, parse_math=False)
        axes.set_xlabel("predicted")
        axes.set_ylabel("true")
        for (row, column), count in np.ndenumerate(matrix if len(names) <= _MAX_NAMED else []):
            color = "white" if share[row, column] > 0.5 else "black"
            axes.text(column, row, str(count), ha="center", va="center", color=color, fontsize=8)
        figure.savefig(path, dpi=110)
