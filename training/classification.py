"""Classifiers: data to batches, logits to figures. Axes: B batch, T tokens, K labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf

from model import signatures
from model.catalogue import build_model
from model.tokenizers import Tokenizer, encode, load_tokenizer, train_tokenizer
from training.calibration import calibration_figures, draw_reliability, fit_temperature
from training.config import RunConfig
from training.datasets.config import NUMBER
from training.datasets.examples import ClassificationData, LabelledTexts
from training.objectives import Classification
from training.pipeline import classification_rows
from training.runs import CALIBRATION_FILE, SCALE_FILE, read_json
from training.targets import Scale, build_target, scale_of

_EVALUATION_BATCH = 128
_MAX_WEIGHTS = 64_000_000  # of a bag of n-grams; training peaked at 4.6 GB with so many


class Classifier:
    """A trained or trainable judge of texts: tokenizer, network, target and names of labels."""

    supervised = Classification

    def __init__(
        self,
        config: RunConfig,
        tokenizer: Tokenizer,
        label_names: Sequence[str],
        scale: Scale | None = None,
    ):
        self.config, self.tokenizer, self.label_names = config, tokenizer, tuple(label_names)
        self.target = build_target(config.target, label_names, scale)
        self.temperature = 1.0  # of the scores: they are softmax(logits / temperature)
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
            self.target.num_outputs,
            seed=config.seed,
            precision=config.precision,
            preset=getattr(tokenizer, "preset", None),
            is_graded=self.target.is_graded,
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
        scale = scale_of(data.train.labels) if config.target == NUMBER else None
        return cls(config, tokenizer, data.label_names, scale)

    @classmethod
    def load(cls, config: RunConfig, folder: Path, label_names: Sequence[str]) -> Classifier:
        scale = read_json(folder / SCALE_FILE) if config.target == NUMBER else None
        learner = cls(config, load_tokenizer(folder, config.tokenizer), label_names, scale)
        if (folder / CALIBRATION_FILE).is_file():
            learner.temperature = read_json(folder / CALIBRATION_FILE)["temperature"]
        return learner

    @property
    def resources(self) -> list:
        """What an export has to carry: the network and what the tokenizer looks up."""
        return [self.model, self.tokenizer]

    def logits_in_graph(self, text: tf.Tensor) -> tf.Tensor:
        """In the graph: string (B,) -> float32 (B, K)."""
        return self.model(self.tokenizer(text).to_tensor(), training=False)

    def figures(self, rows: Sequence[np.ndarray], labels: np.ndarray) -> dict[str, float]:
        """Loss and figures of the target on tokenised texts, as trained: without temperature."""
        return self.target.figures(self._logits_of(rows), labels)

    def figures_of(self, split: LabelledTexts) -> dict[str, float]:
        return self.figures(encode(self.tokenizer, split.texts), split.labels)

    def logits(self, texts: Sequence[str]) -> np.ndarray:
        """float32 (B, K), the labels in the order of `label_names`; (B, 1) for numbers."""
        return self._logits_of(encode(self.tokenizer, texts))

    def probabilities(self, texts: Sequence[str]) -> np.ndarray:
        """float32 (B, K), the labels in the order of `label_names`; raises ValueError for numbers.

        Of target=labels those of each label by itself.
        """
        answer = self.answer(texts)
        if signatures.SCORES not in answer:
            raise ValueError("target=number gives values, no probabilities. Use answer(texts).")
        return answer[signatures.SCORES]

    def answer(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """What an export answers, by alias (`model/signatures.py`); strings as bytes."""
        outputs = self.target.outputs(tf.constant(self.logits(texts)), self.temperature)
        return {alias: tensor.numpy() for alias, tensor in outputs.items()}

    def calibrate(self, split: LabelledTexts) -> None:
        """Fits the temperature of the scores; `split` is one that was not trained on."""
        self.temperature = fit_temperature(self.logits(split.texts), split.labels)

    def evaluate(self, split: LabelledTexts, folder: Path) -> dict:
        """The target's report, with its pictures in `folder`; loss and figures are as trained.

        Of a classifier also how far its scores can be believed, without and with the temperature.
        """
        logits = self.logits(split.texts)
        report = self.target.report(logits, split.labels, folder)
        if self.target.has_classes and len(split):
            arguments = logits, split.labels, self.temperature
            report["calibration"] = calibration_figures(*arguments)
            draw_reliability(*arguments, folder / "reliability.png")
        return report

    def _logits_of(self, rows: Sequence[np.ndarray]) -> np.ndarray:
        logits = np.zeros((len(rows), max(len(self.label_names), 1)), np.float32)
        no_labels = np.zeros(len(rows), np.int32)
        for indices, batch in classification_rows(rows, no_labels, batch_size=_EVALUATION_BATCH):
            logits[indices] = self._logits(batch["tokens"]).numpy()
        return logits
