"""Language models: documents to windows, logits to figures and samples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from model import signatures
from model.catalogue import build_model
from model.generation import generate
from model.tokenizers import (
    BEGIN,
    END,
    ReversibleTokenizer,
    encode,
    load_tokenizer,
    train_tokenizer,
)
from training.config import RunConfig
from training.datasets.examples import TextData
from training.losses import language_model_loss
from training.objectives import Generation
from training.pipeline import language_model_windows

_EVALUATION_BATCH = 16


class LanguageModel:
    """A trained or trainable generator: tokenizer and network together."""

    supervised = Generation

    def __init__(self, config: RunConfig, tokenizer: ReversibleTokenizer):
        self.config, self.tokenizer = config, tokenizer
        self.model = build_model(
            config.model,
            tokenizer.vocabulary_size,
            seed=config.seed,
            precision=config.precision,
            preset=getattr(tokenizer, "preset", None),
        )
        spec = tf.TensorSpec([None, None], tf.int32)
        self._sums = tf.function(
            lambda tokens, targets: language_model_loss(
                {"targets": targets}, self.model(tokens, training=False)
            ),
            input_signature=[spec, spec],
        )
        self.generate = tf.function(
            lambda *inputs: generate(self.model, self.tokenizer, *inputs),
            input_signature=generation_inputs(),
        )

    @classmethod
    def create(cls, config: RunConfig, data: TextData, texts: Sequence[str] = ()) -> LanguageModel:
        """Untrained, with a vocabulary from the training split and from more `texts`."""
        return cls(config, train_tokenizer([*data.train, *texts], _whole(config.tokenizer)))

    @classmethod
    def load(cls, config: RunConfig, folder: Path) -> LanguageModel:
        return cls(config, load_tokenizer(folder, _whole(config.tokenizer)))

    @property
    def resources(self) -> list:
        """What an export has to carry: the network and what the tokenizer looks up."""
        return [self.model, self.tokenizer]

    def figures_of(self, split: Sequence[str]) -> dict[str, float]:
        return self.figures(self.encoded(split), sum(map(len, split)))

    def evaluate(self, split: Sequence[str], folder: Path) -> dict:
        """Loss (nats a token), perplexity, bits a character, and samples from fixed seeds."""
        figures = self.figures_of(split)
        openings = [_opening(document) for document in split[:: max(len(split) // 4, 1)][:4]]
        answers = [self.continue_text(opening, seed=i) for i, opening in enumerate(openings)]
        return figures | {
            "perplexity": math.exp(min(figures["loss"], 700.0)),
            "num_documents": len(split),
            "samples": [
                {"prompt": opening, "text": text}
                for opening, text in zip(openings, answers, strict=True)
            ],
        }

    def continue_text(
        self,
        prompt: str,
        *,
        max_tokens: int = 120,
        temperature: float = 0.8,
        top_k: int = 0,
        top_p: float = 0.95,
        seed: int = 0,
    ) -> str:
        """The text that follows `prompt`, without it."""
        settings = (prompt, max_tokens, temperature, top_k, top_p, seed)
        inputs = [
            tf.constant([value], spec.dtype)
            for value, spec in zip(settings, generation_inputs(), strict=True)
        ]
        return self.generate(*inputs)[signatures.TEXT].numpy()[0].decode()

    def encoded(self, documents: Sequence[str]) -> list[np.ndarray]:
        """Token ids of each document, begin and end included."""
        rows = encode(self.tokenizer, documents)
        return [np.array([BEGIN, *row, END], np.int32) for row in rows]

    def figures(self, documents: list[np.ndarray], num_characters: int) -> dict[str, float]:
        """Loss (nats a token), accuracy and bits a character on tokenised documents."""
        loss_sum = num_targets = num_correct = 0.0
        for batch in language_model_windows(
            documents, num_tokens=self.model.config.context_length, batch_size=_EVALUATION_BATCH
        ):
            sums = self._sums(batch["tokens"], batch["targets"])
            loss_sum += float(sums["loss_sum"])
            num_targets += float(sums["num_targets"])
            num_correct += float(sums["num_correct"])
        return {
            "loss": loss_sum / max(num_targets, 1.0),
            "accuracy": num_correct / max(num_targets, 1.0),
            # Ends of documents are predicted too, and their cost belongs to the characters.
            "bits_per_character": loss_sum / math.log(2) / max(num_characters, 1),
        }


def generation_inputs() -> list[tf.TensorSpec]:
    """The inputs of a generator's signature, in order, each (B,)."""
    dtypes = [tf.string, tf.int32, tf.float32, tf.int32, tf.float32, tf.int32]
    return [
        tf.TensorSpec([None], dtype, name=name)
        for name, dtype in zip(signatures.GENERATOR_INPUTS, dtypes, strict=True)
    ]


def _whole(tokenizer: Any) -> Any:
    """Its settings without the cut, which is for texts to classify: a document is read whole."""
    return replace(tokenizer, max_tokens=None)


def _opening(document: str) -> str:
    """The first few words, or the first few characters of an unspaced script."""
    return document[:6] if ord(document[0]) > 0x2E80 else " ".join(document.split(" ")[:4])
