"""Language models: documents to windows, logits to figures and samples."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from model import endpoints, signatures
from model.catalogue import build_model
from model.generation import generate
from model.stored import held, store
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
_INPUTS = {
    signatures.SERVING_DEFAULT: signatures.GENERATOR_INPUTS,
    signatures.TOKENIZE: (signatures.TEXT,),
    signatures.DETOKENIZE: (signatures.TOKENS, signatures.NUM_TOKENS),
    signatures.NEXT_TOKENS: signatures.NEXT_TOKENS_INPUTS,
    signatures.SCORE: (signatures.TEXT,),
    signatures.EMBED: (signatures.TEXT,),
}
_DTYPES = dict.fromkeys((signatures.TEXT, signatures.PROMPT), tf.string) | dict.fromkeys(
    (
        signatures.TEMPERATURE,
        signatures.TOP_P,
        signatures.MIN_P,
        signatures.REPETITION_PENALTY,
        signatures.PRESENCE_PENALTY,
        signatures.FREQUENCY_PENALTY,
    ),
    tf.float32,
)  # the others are int32


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
        self.weights = signatures.WEIGHTS_FLOAT32
        self._num_parameters = self.model.count_params()
        spec = tf.TensorSpec([None, None], tf.int32)
        self._sums = tf.function(
            lambda tokens, targets: language_model_loss(
                {"targets": targets}, self.model(tokens, training=False)
            ),
            input_signature=[spec, spec],
        )
        self.endpoints = {
            name: tf.function(function, input_signature=self._inputs_of(name), autograph=False)
            for name, function in self._functions().items()
        }
        self.generate = self.endpoints[signatures.SERVING_DEFAULT]

    def _functions(self) -> dict[str, Callable]:
        """What the export answers by the name of the signature; traced when it is first called."""
        model, tokenizer = self.model, self.tokenizer
        context = model.config.context_length
        functions: dict[str, Callable] = {
            signatures.SERVING_DEFAULT: self._held(
                lambda *inputs: generate(model, tokenizer, *inputs)
            ),
            signatures.TOKENIZE: lambda text: endpoints.tokenize(tokenizer, text, context),
            signatures.DETOKENIZE: lambda *inputs: endpoints.detokenize(tokenizer, *inputs),
            signatures.NEXT_TOKENS: self._held(
                lambda *inputs: endpoints.next_tokens(model, *inputs)
            ),
            signatures.SCORE: lambda text: endpoints.score(model, tokenizer, text),
        }
        if hasattr(model, "states"):
            functions[signatures.EMBED] = lambda text: endpoints.embed(model, tokenizer, text)
        if hasattr(model, "read"):
            functions[signatures.PREFILL] = lambda *inputs: endpoints.prefill(model, *inputs)
            functions[signatures.DECODE] = lambda *inputs: endpoints.decode(model, *inputs)
        return functions

    def _held(self, function: Callable) -> Callable:
        """`function` with what is stored unpacked once a call, as it has a loop."""

        def run(*inputs):
            with held(self.model):
                return function(*inputs)

        return run

    def store_weights(self, weights: str) -> None:
        """Rounds the matrices, before anything was asked for: `weights` as the manifest has it."""
        if weights != self.weights:
            store(self.model, weights)
            self.weights = weights

    def _inputs_of(self, name: str) -> list[tf.TensorSpec]:
        if name in (signatures.PREFILL, signatures.DECODE):
            tokens = tf.TensorSpec([None, None], tf.int32, signatures.TOKENS)
            specs = [tokens, tf.TensorSpec([None], tf.int32, signatures.NUM_TOKENS)]
            if name == signatures.PREFILL:
                return specs
            tensors = [x for pair in self.model.empty_cache(1, 1) for x in pair]
            return [
                *specs,
                tf.TensorSpec([None], tf.int32, signatures.POSITION),
                *(
                    tf.TensorSpec([None, x.shape[1], None, x.shape[3]], x.dtype, alias)
                    for alias, x in zip(
                        signatures.cache_names(len(tensors) // 2), tensors, strict=True
                    )
                ),
            ]
        return [
            tf.TensorSpec(
                [None, self.model.config.context_length] if alias == signatures.TOKENS else [None],
                _DTYPES.get(alias, tf.int32),
                name=alias,
            )
            for alias in _INPUTS[name]
        ]

    def examples(self, prompts: Sequence[str]) -> dict[str, dict[str, tf.Tensor]]:
        """For each signature the inputs of a request that asks for `prompts`, by alias.

        Not for those with a cache, which no server calls but the engine that knows it. Greedy
        only: sampled text may turn on the last bit of a probability.
        """
        count = len(prompts)
        tokenized = self.endpoints[signatures.TOKENIZE](tf.constant(prompts))
        values = {
            signatures.TEXT: prompts,
            signatures.PROMPT: prompts,
            signatures.TOKENS: tokenized[signatures.TOKENS],
            signatures.NUM_TOKENS: tokenized[signatures.NUM_TOKENS],
            signatures.NUM_PROMPT: tokenized[signatures.NUM_TOKENS],
            signatures.MAX_TOKENS: [24] * count,
            signatures.TEMPERATURE: [0.0] * count,
            signatures.TOP_K: [0] * count,
            signatures.TOP_P: [1.0] * count,
            signatures.SEED: list(range(count)),
            signatures.MIN_P: [0.0] * count,
            signatures.REPETITION_PENALTY: [1.0] * (count - 1) + [1.2],
            signatures.PRESENCE_PENALTY: [0.0] * count,
            signatures.FREQUENCY_PENALTY: [0.0] * count,
        }
        return {
            name: {
                alias: tf.cast(values[alias], tf.int32)
                if _DTYPES.get(alias, tf.int32) == tf.int32
                else tf.constant(values[alias], _DTYPES[alias])
                for alias in _INPUTS[name]
            }
            for name in self.endpoints
            if name in _INPUTS
        }

    @property
    def sizes(self) -> dict[str, Any]:
        """What the manifest of an export says of the network."""
        return {
            signatures.CONTEXT_LENGTH: self.model.config.context_length,
            signatures.VOCABULARY_SIZE: self.model.vocabulary_size,
            signatures.NUM_PARAMETERS: self._num_parameters,
            signatures.WEIGHTS: self.weights,
        }

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
            for value, spec in zip(settings, self.generate.input_signature, strict=True)
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


def _whole(tokenizer: Any) -> Any:
    """Its settings without the cut, which is for texts to classify: a document is read whole."""
    return replace(tokenizer, max_tokens=None)


def _opening(document: str) -> str:
    """The first few words, or the first few characters of an unspaced script."""
    return document[:6] if ord(document[0]) > 0x2E80 else " ".join(document.split(" ")[:4])
