"""What all Transformers are made of. Lengths are tokens, sizes are units of a layer."""

from __future__ import annotations

import math
from dataclasses import dataclass

from model.config.checks import check_dropout, check_positive, require

POSITIONS = ("rotary", "learned", "sinusoidal", "alibi", "none")
ACTIVATIONS = ("gelu", "relu_squared", "swiglu")


@dataclass(frozen=True, kw_only=True)
class BlocksConfig:
    """A stack of pre-norm blocks."""

    num_layers: int = 2
    width: int = 128
    num_heads: int = 4
    num_key_value_heads: int | None = None  # of self-attention; none: as many as model.num_heads
    inner_width: int = 256
    dropout: float = 0.1
    dropout_kind: str = "elementwise"  # or locked, token, or layer: whole residual branches
    recompute: bool = False  # activations again in the backward pass: less memory, more time
    positions: str = "rotary"  # or learned, sinusoidal, alibi, none
    normalization: str = "layer"  # or rms: no mean is taken off (Zhang & Sennrich, 2019)
    activation: str = "gelu"  # or relu_squared; or swiglu, with a half more weights
    bias: bool = True  # of the inner network and, with layer, of the norms
    qk_norm: bool = False  # queries and keys of length sqrt(head size) (Henry et al., 2020)
    initialization: str = "default"  # or gpt2: 0.02, smaller at the end of deep branches
    zero_output_projections: bool = False  # at the start: every block begins as the identity

    def __post_init__(self) -> None:
        check_positive("model.num_layers", self.num_layers)
        check_positive("model.inner_width", self.inner_width)
        check_positive("model.num_heads", self.num_heads)
        require(
            self.width > 0 and self.width % self._multiple() == 0,
            "model.width",
            f"a multiple of {self._multiple()} with model.num_heads={self.num_heads} and "
            f"model.positions={self.positions}",
            self.width,
        )
        require(
            self.num_key_value_heads is None
            or (self.num_key_value_heads > 0 and self.num_heads % self.num_key_value_heads == 0),
            "model.num_key_value_heads",
            f"a divisor of model.num_heads={self.num_heads}, or none",
            self.num_key_value_heads,
        )
        check_dropout(self.dropout, self.dropout_kind)
        for setting, known in (
            ("positions", POSITIONS),
            ("normalization", ("layer", "rms")),
            ("activation", ACTIVATIONS),
            ("initialization", ("default", "gpt2")),
        ):
            value = getattr(self, setting)
            require(value in known, f"model.{setting}", f"one of {', '.join(known)}", value)

    @property
    def key_value_width(self) -> int:
        """Of all keys, or all values, of one token: D, or less with fewer heads of them."""
        return self.width // self.num_heads * (self.num_key_value_heads or self.num_heads)

    def _multiple(self) -> int:
        """Of which the width is one: heads are alike, and some positions take channels in pairs."""
        if self.positions == "rotary":  # pairs of every head
            return 2 * self.num_heads
        return math.lcm(2, self.num_heads) if self.positions == "sinusoidal" else self.num_heads
