"""What a network that classifies is made of. Sizes are units of a layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from model import signatures
from model.config.checks import (
    UNBRANCHED,
    check_dropout,
    check_lstm_stack,
    check_positive,
    check_rate,
    require,
)
from model.config.transformers import BlocksConfig


@dataclass(frozen=True, kw_only=True)
class BagOfNgramsConfig:
    """Linear in the set of n-grams, started from naive-Bayes weights (Wang & Manning, 2012)."""

    kind: ClassVar[str] = signatures.CLASSIFIER
    tokenizers: ClassVar[tuple[str, ...]] = ("ngram", "word")  # that it reads
    naive_bayes_scale: float = 0.3  # 1 starts as naive Bayes, 0 from nothing, between: milder
    smoothing: float = 0.3  # added to every count before the logarithm
    scale: float = 4.0  # of the normalised sum, so that logits can grow with small weights
    ngram_dropout: float = 0.5
    name: str = "bag_of_ngrams"

    def __post_init__(self) -> None:
        require(
            self.naive_bayes_scale >= 0,
            "model.naive_bayes_scale",
            "at least 0",
            self.naive_bayes_scale,
        )
        require(self.smoothing > 0, "model.smoothing", "above 0", self.smoothing)
        require(self.scale > 0, "model.scale", "above 0", self.scale)
        check_rate("model.ngram_dropout", self.ngram_dropout)


@dataclass(frozen=True, kw_only=True)
class BidirectionalLSTMConfig:
    """Embedding, one bidirectional LSTM, maximum over time."""

    kind: ClassVar[str] = signatures.CLASSIFIER
    tokenizers: ClassVar[tuple[str, ...]] = ("word",)  # that it reads
    embedding_size: int = 128
    units: int = 96  # in each direction
    dropout: float = 0.4
    dropout_kind: str = "elementwise"  # or locked: a feature at all steps; token: a whole step
    name: str = "bidirectional_lstm"

    def __post_init__(self) -> None:
        check_positive("model.embedding_size", self.embedding_size)
        check_positive("model.units", self.units)
        check_dropout(self.dropout, self.dropout_kind, UNBRANCHED)


@dataclass(frozen=True, kw_only=True)
class ULMFiTLSTMConfig:
    """Left-to-right LSTMs that can learn as a language model first (Howard & Ruder, 2018)."""

    kind: ClassVar[str] = signatures.CLASSIFIER
    tokenizers: ClassVar[tuple[str, ...]] = ("word",)  # that it reads
    embedding_size: int = 128  # and the units of the last layer, whose head is the embedding
    units: int = 192  # of the layers before the last
    num_layers: int = 2
    dropout: float = 0.4
    dropout_kind: str = "locked"
    name: str = "ulmfit_lstm"

    def __post_init__(self) -> None:
        check_lstm_stack(self)


@dataclass(frozen=True, kw_only=True)
class TransformerEncoderConfig(BlocksConfig):
    """Pre-norm Transformer encoder, mean over time."""

    kind: ClassVar[str] = signatures.CLASSIFIER
    tokenizers: ClassVar[tuple[str, ...]] = ("word",)  # that it reads
    dropout: float = 0.3
    max_positions: int = 512  # that positions=learned has; a token behind them stands at the last
    token_head: bool = False  # also predicts hidden tokens, for pre-training
    name: str = "transformer_encoder"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive("model.max_positions", self.max_positions)


@dataclass(frozen=True, kw_only=True)
class PresetClassifierConfig:
    """A KerasHub network of tokenizer.preset, with KerasHub's head for classification."""

    kind: ClassVar[str] = signatures.CLASSIFIER
    tokenizers: ClassVar[tuple[str, ...]] = ("preset",)
    name: str = "preset_classifier"
