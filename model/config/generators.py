"""What a network that writes is made of. Sizes are units of a layer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from model import signatures
from model.config.checks import check_cell, check_recurrent_stack, require
from model.config.tokenizers import REVERSIBLE
from model.config.transformers import BlocksConfig


@dataclass(frozen=True, kw_only=True)
class TransformerDecoderConfig(BlocksConfig):
    """Decoder-only pre-norm Transformer."""

    kind: ClassVar[str] = signatures.GENERATOR
    tokenizers: ClassVar[tuple[str, ...]] = REVERSIBLE  # that it reads
    num_layers: int = 4
    inner_width: int = 512
    context_length: int = 256  # tokens, prompt and answer together
    tied_head: bool = True  # the output head is the embedding (Press & Wolf, 2017)
    value_embeddings: bool = False  # a table of values for tokens in every block
    logit_cap: float | None = None  # that no logit goes beyond; none lets them
    further_tokens: int = 0  # behind the next, that training predicts by one more block each
    name: str = "transformer_decoder"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.context_length > 1, "model.context_length", "above 1", self.context_length)
        cap = self.logit_cap
        require(
            cap is None or 0 < cap < math.inf, "model.logit_cap", "above 0 and finite, or none", cap
        )
        require(self.further_tokens >= 0, "model.further_tokens", "0 or more", self.further_tokens)


@dataclass(frozen=True, kw_only=True)
class RecurrentLanguageModelConfig:
    """Left-to-right recurrent layers, a tied output head; the state goes on from text to text."""

    kind: ClassVar[str] = signatures.GENERATOR
    tokenizers: ClassVar[tuple[str, ...]] = REVERSIBLE  # that it reads
    cell: str = "lstm"  # or rnn, peephole_lstm, gru, gru_reset_before
    embedding_size: int = 128  # and the units of the last layer, whose head is the embedding
    units: int = 256  # of the layers before the last
    num_layers: int = 2
    dropout: float = 0.2
    dropout_kind: str = "locked"
    context_length: int = 256  # tokens, prompt and answer together
    name: str = "recurrent_language_model"

    def __post_init__(self) -> None:
        check_cell(self.cell)
        check_recurrent_stack(self)
        require(self.context_length > 1, "model.context_length", "above 1", self.context_length)


@dataclass(frozen=True, kw_only=True)
class PresetGeneratorConfig:
    """A KerasHub decoder of tokenizer.preset, which reads the whole text for every token."""

    kind: ClassVar[str] = signatures.GENERATOR
    tokenizers: ClassVar[tuple[str, ...]] = ("preset",)
    context_length: int = 128  # tokens, prompt and answer together
    name: str = "preset_generator"

    def __post_init__(self) -> None:
        require(self.context_length > 1, "model.context_length", "above 1", self.context_length)
