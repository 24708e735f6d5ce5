"""Networks of the learners' programs, which no recipe names."""

from __future__ import annotations

from dataclasses import dataclass

from model.config.checks import check_positive
from model.config.transformers import BlocksConfig


@dataclass(frozen=True, kw_only=True)
class LinearRegressionConfig:
    """One weight and one bias."""

    name: str = "linear_regression"


@dataclass(frozen=True, kw_only=True)
class DenseClassifierConfig:
    """One hidden layer of rectified units over a vector of features."""

    units: int = 32
    name: str = "dense_classifier"

    def __post_init__(self) -> None:
        check_positive("model.units", self.units)


@dataclass(frozen=True, kw_only=True)
class LSTMTaggerConfig:
    """Embedding and one LSTM, a label for every token."""

    embedding_size: int = 32
    units: int = 32
    name: str = "lstm_tagger"

    def __post_init__(self) -> None:
        check_positive("model.embedding_size", self.embedding_size)
        check_positive("model.units", self.units)


@dataclass(frozen=True, kw_only=True)
class LSTMClassifierConfig:
    """Embedding and one LSTM, a label from its last state."""

    embedding_size: int = 32
    units: int = 32
    name: str = "lstm_classifier"

    def __post_init__(self) -> None:
        check_positive("model.embedding_size", self.embedding_size)
        check_positive("model.units", self.units)


@dataclass(frozen=True, kw_only=True)
class Seq2SeqTransformerConfig(BlocksConfig):
    """Pre-norm encoder-decoder Transformer with one vocabulary for both texts."""

    width: int = 64
    inner_width: int = 128
    max_positions: int = 512  # that positions=learned has; a token behind them stands at the last
    name: str = "seq2seq_transformer"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive("model.max_positions", self.max_positions)
