"""What every setting of a tokenizer or a network is checked by."""

from __future__ import annotations

from typing import Any

BFLOAT16_PRODUCTS = "bfloat16_products"  # float32, but for the factors of matrix products
PRECISIONS = ("float32", BFLOAT16_PRODUCTS, "mixed_bfloat16", "mixed_float16")
DROPOUT_KINDS = ("elementwise", "locked", "token", "layer")
CELLS = ("rnn", "lstm", "peephole_lstm", "gru", "gru_reset_before")  # of `model.cells`
POOLINGS = ("max", "mean", "last", "attention")
UNBRANCHED = tuple(kind for kind in DROPOUT_KINDS if kind != "layer")  # no branch to leave out


def require(holds: bool, setting: str, expected: str, received: object) -> None:
    """Raises ValueError naming the setting as the user types it, unless `holds`."""
    if not holds:
        raise ValueError(f"{setting} must be {expected}. Received: {received!r}")


def check_rate(setting: str, value: float) -> None:
    require(0 <= value < 1, setting, "at least 0 and below 1", value)


def check_dropout(rate: float, kind: str, kinds: tuple[str, ...] = DROPOUT_KINDS) -> None:
    check_rate("model.dropout", rate)
    require(kind in kinds, "model.dropout_kind", f"one of {', '.join(kinds)}", kind)


def check_positive(setting: str, value: int) -> None:
    require(value > 0, setting, "a whole number above 0", value)


def check_cell(cell: str) -> None:
    require(cell in CELLS, "model.cell", f"one of {', '.join(CELLS)}", cell)


def check_pooling(pooling: str) -> None:
    require(pooling in POOLINGS, "model.pooling", f"one of {', '.join(POOLINGS)}", pooling)


def check_convolutions(config: Any) -> None:
    check_positive("model.width", config.width)
    require(
        config.kernel_size > 0 and config.kernel_size % 2 == 1,
        "model.kernel_size",
        "an odd number above 0, as a window is centred on its token",
        config.kernel_size,
    )
    check_dropout(config.dropout, config.dropout_kind, UNBRANCHED)


def check_recurrent_stack(config: Any) -> None:
    check_positive("model.embedding_size", config.embedding_size)
    check_positive("model.units", config.units)
    check_positive("model.num_layers", config.num_layers)
    check_dropout(config.dropout, config.dropout_kind, UNBRANCHED)
