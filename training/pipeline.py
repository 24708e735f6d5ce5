"""Batches as a pure function of the seed and the index.

Texts are tokenised once and kept as ids. `batches.at(index)` then depends on nothing but the seed
and the index, so a run that was stopped anywhere goes on with exactly the batch that was next:
there is no iterator state to save. Which examples make up a batch is in `sampling.py`. An index
counts micro-batches; an update reads `batches_per_update` of them, and schedules are read at the
update. Axes: B batch, T tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol, Required, TypedDict, Unpack

import numpy as np

from training.sampling import FULL, POISSON, SHUFFLED, Plan, choose_plan, whole_numbers
from training.schedules import tabulate

Batch = dict[str, np.ndarray]

_WINDOWS = 1  # sets the draws of windows apart from those of orders


class Batches(Protocol):
    num_batches: int  # of one pass
    batch_size: int  # rows of the largest batch (Poisson: on average)
    longest: int  # tokens of the longest row in the whole run

    def at(self, index: int) -> Batch:
        """Micro-batch `index`, counted from 0."""


class Settings(TypedDict, total=False):
    """What all kinds of batches take besides their data.

    A schedule of `batch_size`, such as `linear(8, 64, steps=300)`, is rounded and reads an endless
    stream of shuffled passes; `num_batches` is then the number of batches that add up to one pass
    at the start. "full" is full-batch gradient descent: an update reads all `num_batches` pieces of
    at most 256 rows.

    With "poisson" a batch takes each example with probability batch_size / n. It then has "weight"
    float32 (B,) besides: 1, and 0 for the one row of padding of an empty batch, whose loss must not
    count.
    """

    batch_size: Required[int | str]  # rows: a number, "full", or a schedule
    seed: Required[int]
    num_updates: int | None  # of the run; schedules need it
    batches_per_update: int  # micro-batches, 1 unless told; schedules are read at the update
    max_tokens: int | str | None  # rows are cut to; a number or a schedule
    sampling: str  # "shuffled" or "poisson"


class PlannedBatches:
    """Batches by `Settings`; what an example is and how it becomes a row is left to others."""

    num_examples: int
    fields: dict[str, int]  # of a batch, with their ranks

    def __init__(
        self,
        *,
        batch_size: int | str,
        seed: int,
        num_updates: int | None = None,
        batches_per_update: int = 1,
        max_tokens: int | str | None = None,
        sampling: str = SHUFFLED,
    ):
        self.seed, self.sampling = seed, sampling
        self.plan = self.choose_plan(
            batch_size,
            sampling=sampling,
            seed=seed,
            num_updates=num_updates,
            batches_per_update=batches_per_update,
        )
        self.num_batches, self.batch_size = self.plan.num_batches, self.plan.batch_size
        self.batches_per_update = self.num_batches if batch_size == FULL else batches_per_update
        self._limits = _limits(max_tokens, num_updates)
        longest = self.longest_example()
        self.longest = longest if self._limits is None else min(longest, int(self._limits.max()))

    def choose_plan(self, batch_size: int | str, **settings) -> Plan:
        return choose_plan(self, batch_size, **settings)

    def examples(self, rng: np.random.Generator | None) -> np.ndarray:
        raise NotImplementedError

    def example_lengths(self, examples: np.ndarray) -> np.ndarray:
        raise NotImplementedError

    def longest_example(self) -> int:
        """Tokens of the longest."""
        return int(self.example_lengths(self.examples(None)).max())

    def batch_of(self, examples: np.ndarray, limit: int | None, index: int) -> Batch:
        """The batch of these examples, at least one, each cut to `limit` tokens."""
        raise NotImplementedError

    def at(self, index: int) -> Batch:
        """Micro-batch `index`, counted from 0."""
        examples = self.plan.at(index)
        if not len(examples):
            return self.nothing() | {"weight": np.zeros(1, np.float32)}
        batch = self.batch_of(examples, self._limit(index), index)
        if self.sampling == POISSON:
            batch["weight"] = np.ones(len(examples), np.float32)
        return batch

    def nothing(self) -> Batch:
        """A row of padding."""
        return {name: np.zeros((1,) * rank, np.int32) for name, rank in self.fields.items()}

    def _limit(self, index: int) -> int | None:
        if self._limits is None:
            return None
        update = index // self.batches_per_update
        return int(self._limits[min(update, len(self._limits) - 1)])


def _limits(max_tokens: int | str | None, num_updates: int | None) -> np.ndarray | None:
    """Tokens that rows are cut to, by update; the last one stays."""
    if isinstance(max_tokens, str):
        return whole_numbers(max_tokens, num_updates, "max_tokens")
    return None if max_tokens is None else np.array([max_tokens])


class ClassificationBatches(PlannedBatches):
    """{"tokens": int32 (B, T), "label": ...}; T is the batch's longest text, id 0 pads.

    A label is int32 (B,), bool (B, K) or float32 (B,), as `labels` are.

    Every pass draws a new order, and texts of like length share a batch unless the batch size is a
    schedule. Further: `Settings`.
    """

    fields = {"tokens": 2, "label": 1}

    def __init__(
        self, rows: Sequence[np.ndarray], labels: np.ndarray, **settings: Unpack[Settings]
    ):
        if not len(rows):
            raise ValueError("Training needs at least one text. Received: none")
        self.rows, self.labels, self.num_examples = rows, labels, len(rows)
        self.lengths = np.array([len(row) for row in rows])
        super().__init__(**settings)

    def examples(self, rng: np.random.Generator | None) -> np.ndarray:
        return np.arange(self.num_examples)

    def example_lengths(self, examples: np.ndarray) -> np.ndarray:
        return self.lengths[examples]

    def batch_of(self, examples: np.ndarray, limit: int | None, index: int) -> Batch:
        return _pad(self.rows, self.labels, examples, limit)

    def nothing(self) -> Batch:
        row = super().nothing()
        return row | ({"label": _labels(np.zeros_like(self.labels[:1]))} if "label" in row else {})


def classification_rows(
    rows: Sequence[np.ndarray], labels: np.ndarray, *, batch_size: int
) -> Iterator[tuple[np.ndarray, Batch]]:
    """Every text once, for evaluation: (indices, batch), sorted by length, last batch short."""
    order = np.argsort([len(row) for row in rows], kind="stable")
    for start in range(0, len(order), batch_size):
        indices = order[start : start + batch_size]
        yield indices, _pad(rows, labels, indices)


def _pad(
    rows: Sequence[np.ndarray], labels: np.ndarray, indices: np.ndarray, limit: int | None = None
) -> Batch:
    texts = [rows[i][:limit] for i in indices]
    tokens = np.zeros((len(texts), max(map(len, texts))), np.int32)
    for line, text in zip(tokens, texts, strict=True):
        line[: len(text)] = text
    return {"tokens": tokens, "label": _labels(labels[indices])}


def _labels(labels: np.ndarray) -> np.ndarray:
    return labels.astype(np.int32) if np.issubdtype(labels.dtype, np.integer) else labels


class LanguageModelBatches(PlannedBatches):
    """{"tokens": int32 (B, T), "targets": int32 (B, T)}: the next token of each, id 0 pads.

    A row is one document, begin and end included, or a piece of one that is longer than
    `num_tokens`. Every pass cuts long documents elsewhere, uses each token as a target once (but
    for the pieces that do not fill a last batch), draws a new order, and lets pieces of like length
    share a batch unless the batch size is a schedule. Further: `Settings`.

    Under `max_tokens` a batch keeps its pieces, and of each that is longer one window of that many
    tokens is read, at a random place that a later pass draws anew (sequence-length warm-up, Li et
    al., 2022, who keep the beginning). Batches that nothing is cut from are those of a run without
    it. Full batches and Poisson sampling cut long documents the same way in every pass; what
    Poisson sampling draws, and differential privacy protects, is then the piece.
    """

    fields = {"tokens": 2, "targets": 2}

    def __init__(
        self, documents: Sequence[np.ndarray], *, num_tokens: int, **settings: Unpack[Settings]
    ):
        self.documents, self.num_tokens = documents, num_tokens
        targets = np.array([len(document) - 1 for document in documents], np.int64)
        self.num_examples = int(num_pieces(targets, num_tokens).sum())
        if not self.num_examples:
            raise ValueError("Training needs at least one document of 2 tokens. Received: none")
        if settings.get("batch_size") == FULL and settings.get("max_tokens") is not None:
            raise ValueError(
                "max_tokens must be none with batch_size=full: windows at random places are not "
                f"the full batch. Received: {settings['max_tokens']!r}"
            )
        super().__init__(**settings)

    def examples(self, rng: np.random.Generator | None) -> np.ndarray:
        return _cut(self.documents, self.num_tokens, rng)

    def example_lengths(self, examples: np.ndarray) -> np.ndarray:
        return examples[:, 2]

    def batch_of(self, examples: np.ndarray, limit: int | None, index: int) -> Batch:
        if limit is not None:
            examples = windows_of(examples, limit, [self.seed, index])
        return _shifted(self.documents, examples)


def language_model_windows(
    documents: Sequence[np.ndarray], *, num_tokens: int, batch_size: int
) -> Iterator[Batch]:
    """Every token but a document's first as a target exactly once, for evaluation."""
    pieces = _cut(documents, num_tokens, None)
    pieces = pieces[np.argsort(pieces[:, 2], kind="stable")]
    for start in range(0, len(pieces), batch_size):
        yield _shifted(documents, pieces[start : start + batch_size])


def num_pieces(num_targets: np.ndarray, num_tokens: int) -> np.ndarray:
    """One, or as many as leave at least half of `num_tokens` for the first cut to move in.

    int (n,) -> int (n,), of documents with so many targets.
    """
    fewest = -(-num_targets // num_tokens)
    rest = num_targets - (fewest - 1) * num_tokens
    return np.where((fewest > 1) & (rest > max(num_tokens // 2, 1)), fewest + 1, fewest)


def _cut(
    documents: Sequence[np.ndarray], num_tokens: int, rng: np.random.Generator | None
) -> np.ndarray:
    """Rows of (document, first token, number of targets), covering every document in pieces.

    The first piece of a long document has a random length, the others `num_tokens` and what is
    left; without `rng` the first is as long as can be.
    """
    pieces = []
    for index, document in enumerate(documents):
        num_targets = len(document) - 1
        first = min(num_tokens, num_targets)
        if rng is not None and num_targets > num_tokens:
            # The lengths of the first piece that give the number of pieces counted on.
            count = int(num_pieces(np.array(num_targets), num_tokens))
            shortest = max(num_targets - (count - 1) * num_tokens, 1)
            longest = min(num_targets - (count - 2) * num_tokens - 1, num_tokens)
            first = int(rng.integers(shortest, longest + 1))
        start = 0
        while start < num_targets:
            length = min(num_tokens if start else first, num_targets - start)
            pieces.append((index, start, length))
            start += length
    return np.array(pieces, np.int64).reshape(-1, 3)


def windows_of(pieces: np.ndarray, num_tokens: int, seed: list[int]) -> np.ndarray:
    """Of (document, start, length) pieces of at most `num_tokens`, anywhere within those given."""
    rng = np.random.default_rng([*seed, _WINDOWS])
    spare = np.maximum(pieces[:, 2] - num_tokens, 0)
    start = pieces[:, 1] + rng.integers(0, spare + 1)
    return np.stack([pieces[:, 0], start, pieces[:, 2] - spare], axis=1)


def _shifted(documents: Sequence[np.ndarray], pieces: np.ndarray) -> Batch:
    longest = pieces[:, 2].max()
    windows = np.zeros((len(pieces), longest + 1), np.int32)
    targets = np.zeros((len(pieces), longest), np.int32)
    for row, (index, start, length) in enumerate(pieces):
        window = documents[index][start : start + length + 1]
        windows[row, : len(window)] = window
        targets[row, :length] = window[1:]
    return {"tokens": windows[:, :-1], "targets": targets}


# Several sources ----------------------------------------------------------------------------------


class MixedBatches:
    """Batch i comes from `second` with probability `share`, a schedule, else from `first`.

    Each source goes on where it was, however the two alternate; schedules within a source are read
    by its own count. `num_batches` is one pass of both. Raises ValueError for sources of different
    fields and for a share that leaves 0 to 1.
    """

    def __init__(
        self,
        first: Batches,
        second: Batches,
        *,
        share: str,
        num_updates: int,
        seed: int,
        batches_per_update: int = 1,
    ):
        if first.at(0).keys() != second.at(0).keys():
            raise ValueError(
                "Both sources of a mixture must give the same fields. "
                f"Received: {', '.join(first.at(0))} and {', '.join(second.at(0))}"
            )
        shares = tabulate(share, num_updates, "mixture_share")
        if shares.min() < 0 or shares.max() > 1:
            raise ValueError(
                f"mixture_share must stay from 0 to 1. Received: {share!r}, which goes from "
                f"{shares.min():g} to {shares.max():g}"
            )
        self.first, self.second, self.seed = first, second, seed
        self.num_batches = first.num_batches + second.num_batches
        self.batch_size = max(first.batch_size, second.batch_size)
        self.longest = max(first.longest, second.longest)
        self._shares = np.repeat(shares, batches_per_update)
        self._draw(len(self._shares))

    def at(self, index: int) -> Batch:
        """Micro-batch `index`, counted from 0."""
        if index >= len(self._is_second):
            self._draw(2 * index)
        before = int(self._num_second[index])
        if self._is_second[index]:
            return self.second.at(before)
        return self.first.at(index - before)

    def _draw(self, count: int) -> None:
        """Decides the first `count` batches; more of them never change the ones before."""
        draws = np.random.default_rng(self.seed).random(count)
        shares = self._shares[np.minimum(np.arange(count), len(self._shares) - 1)]
        self._is_second = draws < shares
        self._num_second = np.cumsum([0, *self._is_second])  # before each
