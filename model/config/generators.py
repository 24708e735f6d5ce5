"""What a network that writes is made of. Sizes are units of a layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from model import signatures
from model.config.checks import check_lstm_stack, check_transformer, require


@dataclass(frozen=True, kw_only=True)
class TransformerDecoderConfig:
    """Decoder-only pre-norm Transformer with rotary positions and a tied output head."""

    kind: ClassVar[str] = signatures.GENERATOR
    tokenizers: ClassVar[tuple[str, ...]] = ("sentencepiece",)  # that it reads
    num_layers: int = 4
    width: int = 128
    num_heads: int = 4
    inner_width: int = 512
    dropout: float = 0.1
    dropout_kind: str = "elementwise"  # or locked, token, or layer: whole residual branches
    recompute: bool = False  # activations again in the backward pass: less memory, more time
    context_length: int = 256  # tokens, prompt and answer together
    name: str = "transformer_decoder"

    def __post_init__(self) -> None:
        check_transformer(self)
        require(self.context_length > 1, "model.context_length", "above 1", self.context_length)


@dataclass(frozen=True, kw_only=True)
class LSTMLanguageModelConfig:
    """Left-to-right LSTMs with a tied output head; its state can be carried from text to text."""

    kind: ClassVar[str] = signatures.GENERATOR
    tokenizers: ClassVar[tuple[str, ...]] = ("sentencepiece",)  # that it reads
    embedding_size: int = 128  # and the units of the last layer, whose head is the embedding
    units: int = 256  # of the layers before the last
    num_layers: int = 2
    dropout: float = 0.2
    dropout_kind: str = "locked"
    context_length: int = 256  # tokens, prompt and answer together
    name: str = "lstm_language_model"

    def __post_init__(self) -> None:
        check_lstm_stack(self)
        require(self.context_length > 1, "model.context_length", "above 1", self.context_length)
