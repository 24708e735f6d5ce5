"""What a network that classifies is made of. Sizes are units of a layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from model import signatures
from model.config.checks import (
    UNBRANCHED,
    check_cell,
    check_convolutions,
    check_dropout,
    check_pooling,
    check_positive,
    check_rate,
    check_recurrent_stack,
    require,
)
from model.config.tokenizers import SEQUENCES
from model.config.transformers import BlocksConfig

WEIGHTINGS = ("none", "idf", "naive_bayes")


@dataclass(frozen=True, kw_only=True)
class BagOfNgramsConfig:
    """Linear in the set of n-grams, started from naive-Bayes weights (Wang & Manning, 2012)."""

    kind: ClassVar[str] = signatures.CLASSIFIER
    tokenizers: ClassVar[tuple[str, ...]] = ("ngram", "word")  # that it reads
    weighting: str = "none"  # of an n-gram: idf, its rareness; naive_bayes, how much it tells
    min_texts: int = 1  # with a weighting: an n-gram that fewer training texts have counts nothing
    naive_bayes_scale: float = 0.3  # 1 starts as naive Bayes, 0 from nothing, between: milder
    smoothing: float = 0.3  # added to every count before the logarithm
    logistic_regression: float = 0.0  # above 0: start at its optimum; C, the inverse of its penalty
    scale: float = 4.0  # of the normalised sum, so that logits can grow with small weights
    ngram_dropout: float = 0.5
    name: str = "bag_of_ngrams"

    def __post_init__(self) -> None:
        require(
            self.weighting in WEIGHTINGS,
            "model.weighting",
            f"one of {', '.join(WEIGHTINGS)}",
            self.weighting,
        )
        check_positive("model.min_texts", self.min_texts)
        require(
            self.naive_bayes_scale >= 0,
            "model.naive_bayes_scale",
            "at least 0",
            self.naive_bayes_scale,
        )
        require(self.smoothing > 0, "model.smoothing", "above 0", self.smoothing)
        require(
            self.logistic_regression >= 0,
            "model.logistic_regression",
            "at least 0",
            self.logistic_regression,
        )
        require(self.scale > 0, "model.scale", "above 0", self.scale)
        check_rate("model.ngram_dropout", self.ngram_dropout)


@dataclass(frozen=True, kw_only=True)
class TextCNNConfig:
    """Convolutions of several widths, each the maximum over time (Kim, 2014)."""

    kind: ClassVar[str] = signatures.CLASSIFIER
    tokenizers: ClassVar[tuple[str, ...]] = SEQUENCES  # that it reads
    embedding_size: int = 128
    widths: str = "3, 4, 5"  # tokens under each filter
    filters: int = 100  # of each width
    dropout: float = 0.5
    dropout_kind: str = "elementwise"  # or locked: a feature at all steps; token: a whole step
    name: str = "text_cnn"

    def __post_init__(self) -> None:
        check_positive("model.embedding_size", self.embedding_size)
        parts = [part.strip() for part in self.widths.split(",")]
        require(
            all(part.isdecimal() and int(part) > 0 for part in parts),
            "model.widths",
            "whole numbers above 0 with commas between them, such as 3,4,5",
            self.widths,
        )
        check_positive("model.filters", self.filters)
        check_dropout(self.dropout, self.dropout_kind, UNBRANCHED)

    def sizes(self) -> list[int]:
        """`widths`, read: tokens under each filter."""
        return [int(part) for part in self.widths.split(",")]


@dataclass(frozen=True, kw_only=True)
class GatedConvolutionConfig:
    """Residual layers of gated convolutions (Dauphin et al., 2017)."""

    kind: ClassVar[str] = signatures.CLASSIFIER
    tokenizers: ClassVar[tuple[str, ...]] = SEQUENCES  # that it reads
    width: int = 128  # of the embedding and of every layer
    kernel_size: int = 3  # tokens
    num_layers: int = 2
    pooling: str = "max"  # or mean, last, attention
    dropout: float = 0.3
    dropout_kind: str = "elementwise"  # or locked: a feature at all steps; token: a whole step
    name: str = "gated_convolution"

    def __post_init__(self) -> None:
        check_convolutions(self)
        check_positive("model.num_layers", self.num_layers)
        check_pooling(self.pooling)


@dataclass(frozen=True, kw_only=True)
class DPCNNConfig:
    """Deep pyramid: each block of convolutions reads half as many steps (Johnson & Zhang, 2017)."""

    kind: ClassVar[str] = signatures.CLASSIFIER
    tokenizers: ClassVar[tuple[str, ...]] = SEQUENCES  # that it reads
    embedding_size: int = 128
    width: int = 128  # of every layer behind the embedding
    kernel_size: int = 3  # steps
    num_blocks: int = 4  # of two convolutions; the steps are halved between them
    dropout: float = 0.3
    dropout_kind: str = "elementwise"  # or locked: a feature at all steps; token: a whole step
    name: str = "dpcnn"

    def __post_init__(self) -> None:
        check_positive("model.embedding_size", self.embedding_size)
        check_convolutions(self)
        check_positive("model.num_blocks", self.num_blocks)


@dataclass(frozen=True, kw_only=True)
class RecurrentConfig:
    """Embedding, recurrent layers of any cell in one or both directions, pooled over time."""

    kind: ClassVar[str] = signatures.CLASSIFIER
    tokenizers: ClassVar[tuple[str, ...]] = SEQUENCES  # that it reads
    embedding_size: int = 128
    cell: str = "lstm"  # or rnn, peephole_lstm, gru, gru_reset_before
    units: int = 96  # in each direction
    num_layers: int = 1
    bidirectional: bool = True
    pooling: str = "max"  # or mean, last, attention
    dropout: float = 0.4
    dropout_kind: str = "elementwise"  # or locked: a feature at all steps; token: a whole step
    name: str = "recurrent"

    def __post_init__(self) -> None:
        check_cell(self.cell)
        check_recurrent_stack(self)
        check_pooling(self.pooling)


@dataclass(frozen=True, kw_only=True)
class HierarchicalConfig:
    """Words make sentences, sentences a document, by attention (Yang et al., 2016)."""

    kind: ClassVar[str] = signatures.CLASSIFIER
    tokenizers: ClassVar[tuple[str, ...]] = SEQUENCES  # that it reads
    embedding_size: int = 128
    sentence_tokens: int = 24  # tokenizers keep no sentences: a text is cut every so many tokens
    units: int = 64  # of the GRUs over words and over sentences, in each direction
    dropout: float = 0.3
    dropout_kind: str = "elementwise"  # or locked: a feature at all steps; token: a whole step
    name: str = "hierarchical"

    def __post_init__(self) -> None:
        check_positive("model.embedding_size", self.embedding_size)
        check_positive("model.sentence_tokens", self.sentence_tokens)
        check_positive("model.units", self.units)
        check_dropout(self.dropout, self.dropout_kind, UNBRANCHED)


@dataclass(frozen=True, kw_only=True)
class ULMFiTLSTMConfig:
    """Left-to-right LSTMs that can learn as a language model first (Howard & Ruder, 2018)."""

    kind: ClassVar[str] = signatures.CLASSIFIER
    tokenizers: ClassVar[tuple[str, ...]] = SEQUENCES  # that it reads
    embedding_size: int = 128  # and the units of the last layer, whose head is the embedding
    units: int = 192  # of the layers before the last
    num_layers: int = 2
    dropout: float = 0.4
    dropout_kind: str = "locked"
    name: str = "ulmfit_lstm"

    def __post_init__(self) -> None:
        check_recurrent_stack(self)


@dataclass(frozen=True, kw_only=True)
class TransformerEncoderConfig(BlocksConfig):
    """Pre-norm Transformer encoder, mean over time."""

    kind: ClassVar[str] = signatures.CLASSIFIER
    tokenizers: ClassVar[tuple[str, ...]] = SEQUENCES  # that it reads
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
