"""The six small programs that tutorials begin with, each ending in a check of its known answer.

A first step makes its own data, takes its updates by the same rules as the big runs and is over in
seconds; `training/first_steps.py` runs it. Settings that a recipe has too are named as there.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from model.config.checks import require
from training.config import FULL_BATCH, OptimizerConfig, check_rate_of
from training.schedules import Plateau
from training.strategies.catalogue import resolve


@dataclass(frozen=True, kw_only=True)
class FirstStep:
    """All that decides what a first step computes; it checks itself on construction."""

    name: str
    strategy: str = "sgd"  # how batches become updates: parts around an optimizer; see `list`
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    batch_size: int | str = 32  # examples, or "full" for all of them
    updates: int = 500
    seed: int = 0  # of the data, the weights and the order of the examples

    def __post_init__(self) -> None:
        require(
            self.name in FIRST_STEPS,
            "name",
            f"as it is, one of {', '.join(FIRST_STEPS)}: it says which program runs",
            self.name,
        )
        check_rate_of(resolve(self.strategy)[-1].name, self.optimizer.schedule)
        require(
            Plateau.from_expression(self.optimizer.schedule) is None,
            "optimizer.schedule",
            "another one than plateau, which follows a validation that first steps do not have",
            self.optimizer.schedule,
        )
        size = self.batch_size
        require(
            size > 0 if isinstance(size, int) else size == FULL_BATCH,
            "batch_size",
            f"a number of examples above 0, or {FULL_BATCH}",
            size,
        )
        require(self.updates > 0, "updates", "above 0", self.updates)
        require(self.seed >= 0, "seed", "0 or more", self.seed)


def linear_regression() -> FirstStep:
    """A line through noisy points by full-batch gradient descent, against least squares."""
    return FirstStep(
        name="linear_regression",
        strategy="sgd",
        optimizer=_constant(0.2),
        batch_size=FULL_BATCH,
        updates=200,
    )


def dense_classifier() -> FirstStep:
    """A disc inside a ring, which no line divides: two dense layers, an update an example."""
    return FirstStep(
        name="dense_classifier",
        strategy="sgd",
        optimizer=_constant(0.05),
        batch_size=1,
        updates=3_000,
    )


def lstm_tagger() -> FirstStep:
    """Is the number of ones so far odd or even? Embedding + LSTM, an answer at every token."""
    return FirstStep(name="lstm_tagger", strategy="adam", optimizer=_cosine(0.02), updates=400)


def lstm_classifier() -> FirstStep:
    """Praise or blame in English and Chinese: Tokenizer + padding + Embedding + LSTM."""
    return FirstStep(
        name="lstm_classifier", strategy="adam", optimizer=_cosine(0.01), batch_size=8, updates=200
    )


def copy_transformer() -> FirstStep:
    """Says what it read: encoder-decoder Transformer by a multi-step strategy."""
    return _transformer("copy_transformer")


def reverse_transformer() -> FirstStep:
    """Says what it read backwards: encoder-decoder Transformer by a multi-step strategy."""
    return _transformer("reverse_transformer")


def _transformer(name: str) -> FirstStep:
    return FirstStep(
        name=name,
        strategy="lookahead(accumulate(adamw, 2), k=5)",
        optimizer=OptimizerConfig(
            peak_learning_rate=5e-3, schedule="cosine(end=0.1, warmup=50)", weight_decay=0.01
        ),
        updates=600,
    )


def _constant(rate: float) -> OptimizerConfig:
    """The plainest: one rate, nothing clipped."""
    return OptimizerConfig(peak_learning_rate=rate, schedule="constant", clip_norm=None)


def _cosine(rate: float) -> OptimizerConfig:
    return OptimizerConfig(peak_learning_rate=rate, schedule="cosine")


FIRST_STEPS: dict[str, Callable[[], FirstStep]] = {
    "linear_regression": linear_regression,
    "dense_classifier": dense_classifier,
    "lstm_tagger": lstm_tagger,
    "lstm_classifier": lstm_classifier,
    "copy_transformer": copy_transformer,
    "reverse_transformer": reverse_transformer,
}
