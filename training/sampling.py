"""Which examples make up batch i, as a pure function of the seed and i.

Four plans: `Shuffled` (a size, like lengths together), `Whole` (full-batch gradient descent),
`Streamed` (a size for each batch), `Poisson` (for differential privacy). A plan reads a `Source`,
and gives rows of its examples. Sizes are examples; i counts micro-batches from 0.

`Shuffled` and `Streamed` of a corpus on disk are `Permuted` and `PermutedStream`: they read a
`NumberedSource` and hold no list of its examples.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Protocol

import numpy as np

from training.permutations import Permutation
from training.schedules import tabulate

FULL, SHUFFLED, POISSON = "full", "shuffled", "poisson"

_POOL = 64  # batches that are sorted by length together: little padding, still a random order
_FULL_BATCH = 256  # examples of a piece of the full batch: what fits in memory at once


class Source(Protocol):
    num_examples: int  # of every pass with a generator

    def examples(self, rng: np.random.Generator | None) -> np.ndarray:
        """Those of a pass, (n, ...), in no special order; without `rng` the same every time."""

    def example_lengths(self, examples: np.ndarray) -> np.ndarray:
        """Tokens of each, (n,)."""


class NumberedSource(Protocol):
    num_examples: int  # of every pass

    def located(self, epoch: int, numbers: np.ndarray) -> np.ndarray:
        """Those of a pass that have these numbers, (n, ...), in their order."""

    def example_lengths(self, examples: np.ndarray) -> np.ndarray:
        """Tokens of each, (n,)."""


class Plan(Protocol):
    num_batches: int  # of one pass
    batch_size: int  # examples of the largest batch (Poisson: of a batch on average)

    def at(self, index: int) -> np.ndarray:
        """The examples of batch `index`."""


class Shuffled:
    """Batches of one size in a new order every pass; the order decides which examples wait.

    Examples of like length share a batch.
    """

    def __init__(self, source: Source, batch_size: int, seed: int):
        self.source, self.seed = source, seed
        self.batch_size = min(batch_size, source.num_examples)
        self.num_batches = source.num_examples // self.batch_size
        self._pass = lru_cache(maxsize=1)(self._order)

    def at(self, index: int) -> np.ndarray:
        epoch, position = divmod(index, self.num_batches)
        return self._pass(epoch)[position]

    def _order(self, epoch: int) -> np.ndarray:
        """The examples of every batch of a pass, (num_batches, B, ...)."""
        rng = np.random.default_rng([self.seed, epoch])
        examples = rng.permutation(self.source.examples(rng))
        examples = examples[: self.num_batches * self.batch_size]
        pool = _POOL * self.batch_size
        for start in range(0, len(examples), pool):
            piece = examples[start : start + pool]
            examples[start : start + pool] = _by_length(self.source, piece)
        batches = examples.reshape(self.num_batches, self.batch_size, *examples.shape[1:])
        return batches[rng.permutation(self.num_batches)]


class Permuted:
    """What `Shuffled` does, in memory that does not grow with the examples.

    A pass is a pseudo-random permutation of their numbers. Each run of 64 batches of it is sorted
    by length and its batches shuffled.
    """

    def __init__(self, source: NumberedSource, batch_size: int, seed: int):
        self.source, self.seed = source, seed
        self.batch_size = min(batch_size, source.num_examples)
        self.num_batches = source.num_examples // self.batch_size
        self._pool = lru_cache(maxsize=2)(self._batches)

    def at(self, index: int) -> np.ndarray:
        epoch, position = divmod(index, self.num_batches)
        pool, within = divmod(position, _POOL)
        return self._pool(epoch, pool)[within]

    def _batches(self, epoch: int, pool: int) -> np.ndarray:
        """The examples of every batch of a pool, (at most 64, B, ...)."""
        first = pool * _POOL
        count = min(_POOL, self.num_batches - first)
        order = _PermutedPass(self.source, epoch, self.seed)
        start = first * self.batch_size
        examples = order[start : start + count * self.batch_size]
        examples = examples[np.argsort(self.source.example_lengths(examples), kind="stable")]
        batches = examples.reshape(count, self.batch_size, *examples.shape[1:])
        return batches[np.random.default_rng([self.seed, epoch, pool]).permutation(count)]


class _PermutedPass:
    """A pass in its order, of which slices are worked out as they are asked for."""

    def __init__(self, source: NumberedSource, epoch: int, seed: int):
        self.source, self.epoch = source, epoch
        self.permutation = Permutation(source.num_examples, [seed, epoch])

    def __getitem__(self, places: slice) -> np.ndarray:
        numbers = np.arange(*places.indices(self.source.num_examples))
        return self.source.located(self.epoch, self.permutation(numbers))


class Whole:
    """Every example once in `num_batches` pieces, the last one short: together one full batch."""

    def __init__(self, source: Source):
        self.examples = _by_length(source, source.examples(None))
        self.batch_size = min(_FULL_BATCH, len(self.examples))
        self.num_batches = -(-len(self.examples) // self.batch_size)

    def at(self, index: int) -> np.ndarray:
        start = index % self.num_batches * self.batch_size
        return self.examples[start : start + self.batch_size]


class Streamed:
    """Batch i has `sizes[i]` examples (the last size from there on) of an endless stream of passes.

    Each pass has every example once in a new order. The place in the stream is the sum of the sizes
    before, so lengths are mixed: what shares a batch cannot wait for the size it will have.
    """

    def __init__(self, source: Any, sizes: np.ndarray, seed: int):
        self.source, self.seed = source, seed
        self.sizes = np.minimum(sizes, source.num_examples)
        self.starts = np.cumsum([0, *self.sizes[:-1]])  # (len(sizes),), examples
        self.batch_size = int(self.sizes.max())
        self.num_batches = self._num_batches()
        self._pass = lru_cache(maxsize=2)(self._order)  # a batch may lie across two passes

    def at(self, index: int) -> np.ndarray:
        start = self.start(index)
        end, parts = start + int(self.sizes[min(index, len(self.sizes) - 1)]), []
        while start < end:
            epoch, position = divmod(start, self.source.num_examples)
            parts.append(self._pass(epoch)[position : position + end - start])
            start += len(parts[-1])
        return np.concatenate(parts)

    def start(self, index: int) -> int:
        """Examples before batch `index`."""
        last = len(self.sizes) - 1
        return int(self.starts[min(index, last)] + max(index - last, 0) * self.sizes[last])

    def _num_batches(self) -> int:
        """The first batches whose sizes add up to a pass."""
        within = int(np.searchsorted(self.starts, self.source.num_examples))
        if within < len(self.starts):
            return within
        last = len(self.sizes) - 1
        left = self.source.num_examples - int(self.starts[last])
        return last + -(-left // int(self.sizes[last]))

    def _order(self, epoch: int) -> np.ndarray:
        rng = np.random.default_rng([self.seed, epoch])
        return rng.permutation(self.source.examples(rng))


class PermutedStream(Streamed):
    """The same over passes that are permutations, in memory that does not grow with them."""

    def _order(self, epoch: int):
        return _PermutedPass(self.source, epoch, self.seed)


class Poisson:
    """Every example is in batch i with probability q = batch_size / n, whatever the others do.

    Sizes differ and may be 0. This is the sampling that the accounting of DP-SGD counts on (Abadi
    et al., 2016, sec. 2.2 and 3.1); `probability` is its q.
    """

    def __init__(self, source: Source, batch_size: int, seed: int):
        self.examples, self.seed = source.examples(None), seed
        self.batch_size = min(batch_size, len(self.examples))
        self.num_batches = len(self.examples) // self.batch_size
        self.probability = self.batch_size / len(self.examples)

    def at(self, index: int) -> np.ndarray:
        draws = np.random.default_rng([self.seed, index]).random(len(self.examples))
        return self.examples[draws < self.probability]


def choose_plan(
    source: Source,
    batch_size: int | str,
    *,
    sampling: str,
    seed: int,
    num_updates: int | None,
    batches_per_update: int,
) -> Plan:
    """The plan that the settings `batch_size` and `sampling` ask for; ValueError if none does."""
    if sampling not in (SHUFFLED, POISSON):
        raise ValueError(f"sampling must be {SHUFFLED} or {POISSON}. Received: {sampling!r}")
    if sampling == POISSON:
        if isinstance(batch_size, str):
            raise ValueError(
                "batch_size must be a number with sampling=poisson: every example is drawn with "
                f"the same probability in every batch. Received: {batch_size!r}"
            )
        return Poisson(source, batch_size, seed)
    if batch_size == FULL:
        return Whole(source)
    if isinstance(batch_size, str):
        sizes = whole_numbers(batch_size, num_updates, "batch_size")
        return Streamed(source, np.repeat(sizes, batches_per_update), seed)
    return Shuffled(source, batch_size, seed)


def choose_permuted_plan(
    source: NumberedSource,
    batch_size: int | str,
    *,
    sampling: str,
    seed: int,
    num_updates: int | None,
    batches_per_update: int,
) -> Plan:
    """`choose_plan` of a corpus on disk; ValueError for what would need a list of all examples."""
    if batch_size == FULL or sampling != SHUFFLED:
        received = "batch_size=full" if batch_size == FULL else "a strategy with dp_sgd"
        raise ValueError(
            "packing=packed and a corpus that stays on disk (dataset.streaming) have batches of "
            f"shuffled examples only. Set packing=documents and dataset.streaming=false, or leave "
            f"out {received}"
        )
    if isinstance(batch_size, str):
        sizes = whole_numbers(batch_size, num_updates, "batch_size")
        return PermutedStream(source, np.repeat(sizes, batches_per_update), seed)
    return Permuted(source, batch_size, seed)


def whole_numbers(expression: str, num_updates: int | None, setting: str) -> np.ndarray:
    """The schedule's values rounded to whole numbers of 1 or more, int64 (num_updates + 1,)."""
    if num_updates is None:
        raise ValueError(
            f"{setting} is a schedule, and a schedule needs num_updates, the updates of the run. "
            f"Received: {setting}={expression!r}, num_updates=None"
        )
    table = np.rint(tabulate(expression, num_updates, setting))
    return np.clip(table, 1, np.iinfo(np.int32).max).astype(np.int64)


def _by_length(source: Source, examples: np.ndarray) -> np.ndarray:
    return examples[np.argsort(source.example_lengths(examples), kind="stable")]
