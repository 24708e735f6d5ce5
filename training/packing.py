"""Batches of a language model from ids on disk, and rows that hold several documents.

The contract is that of `training/pipeline.py`: a batch is a pure function of the seed and its
index, {"tokens": int32 (B, T), "targets": int32 (B, T)}, 0 for padding and for what is no target.
Neither class holds a list of its rows: which row has which number is worked out, and their order
is a permutation that is computed (`training/permutations.py`).

`ShardBatches`: a row is one document or a piece of a longer one, as in `LanguageModelBatches`.

`PackedBatches`: a row is `num_tokens` tokens of all documents one after the other, each from its
BEGIN to its END, so no row has padding. No target crosses the end of a document: behind END there
is none. Attention does look back across it, and a recurrent state goes on, as in GPT-2 and GPT-3
(Brown et al., 2020, app. B): the two special tokens tell the network that what comes before them
is another text. Rows cut documents anywhere, elsewhere in every pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack

import numpy as np

from training.config import DOCUMENTS, PACKED
from training.permutations import hashed
from training.pipeline import (
    Batch,
    Batches,
    LanguageModelBatches,
    PlannedBatches,
    Settings,
    num_pieces,
    windows_of,
)
from training.sampling import Plan, choose_permuted_plan
from training.shards import Shards

_OFFSETS, _CUTS = 2, 3  # keep the draws of both apart, and from those of the order


def language_model_batches(
    documents: Sequence[np.ndarray] | Shards,
    *,
    num_tokens: int,
    packing: str = DOCUMENTS,
    end: int,
    **settings: Unpack[Settings],
) -> Batches:
    """Batches of documents in memory or on disk; `end` is the id that ends each of them.

    Raises ValueError for settings that do not go with a corpus on disk or with packed rows.
    """
    if packing == PACKED:
        shards = documents if isinstance(documents, Shards) else _InMemory(documents)
        return PackedBatches(shards, num_tokens=num_tokens, end=end, **settings)
    if isinstance(documents, Shards):
        return ShardBatches(documents, num_tokens=num_tokens, **settings)
    return LanguageModelBatches(documents, num_tokens=num_tokens, **settings)


class _InMemory:
    """Documents in memory as one shard."""

    def __init__(self, documents: Sequence[np.ndarray]):
        self._tokens = np.concatenate([np.zeros(0, np.int32), *documents])
        self.num_tokens = np.array([len(self._tokens)])

    def tokens(self, shard: int) -> np.ndarray:
        return self._tokens

    def has_read(self) -> None:
        """Nothing is to be given back."""


class _Rows(PlannedBatches):
    """Rows are (shard, first token in it, number of targets), int64 (n, 3)."""

    fields = {"tokens": 2, "targets": 2}

    def choose_plan(self, batch_size: int | str, **settings) -> Plan:
        return choose_permuted_plan(self, batch_size, **settings)

    def located(self, epoch: int, numbers: np.ndarray) -> np.ndarray:
        raise NotImplementedError

    def example_lengths(self, examples: np.ndarray) -> np.ndarray:
        return examples[:, 2]

    def batch_of(self, examples: np.ndarray, limit: int | None, index: int) -> Batch:
        if limit is not None:
            examples = windows_of(examples, limit, [self.seed, index])
        longest = int(examples[:, 2].max())
        windows = np.zeros((len(examples), longest + 1), np.int32)
        targets = np.zeros((len(examples), longest), np.int32)
        for row, (shard, start, length) in enumerate(examples.tolist()):
            window = self.window(shard, start, length + 1)
            windows[row, : length + 1] = window
            targets[row, :length] = window[1:]
        return {"tokens": windows[:, :-1], "targets": targets}

    def window(self, shard: int, start: int, count: int) -> np.ndarray:
        raise NotImplementedError


class PackedBatches(_Rows):
    """Rows of `num_tokens` tokens, several documents in each; see above.

    A pass begins in every shard at another place, goes round it once, and uses every token but a
    remainder of less than a row exactly once. Further: `Settings`, but for full batches and Poisson
    sampling.
    """

    def __init__(
        self, shards: Shards | _InMemory, *, num_tokens: int, end: int, **settings: Unpack[Settings]
    ):
        self.shards, self.num_tokens, self.end = shards, num_tokens, end
        self._ends = np.cumsum(shards.num_tokens // num_tokens)  # (S,): rows up to and with each
        self.num_examples = int(self._ends[-1]) if len(self._ends) else 0
        if not self.num_examples:
            raise ValueError(
                f"packing=packed fills rows of {num_tokens} tokens, and the training split has "
                f"{int(shards.num_tokens.sum())}. Set packing=documents, or a shorter context"
            )
        super().__init__(**settings)

    def longest_example(self) -> int:
        return self.num_tokens

    def located(self, epoch: int, numbers: np.ndarray) -> np.ndarray:
        shard = np.searchsorted(self._ends, numbers, side="right")
        size = self.shards.num_tokens[shard]
        within = numbers - np.concatenate([[0], self._ends])[shard]
        offset = (hashed([self.seed, epoch, _OFFSETS], shard) % size.astype(np.uint64)).astype(int)
        start = (offset + within * self.num_tokens) % size
        return np.stack([shard, start, np.full_like(start, self.num_tokens)], axis=1)

    def window(self, shard: int, start: int, count: int) -> np.ndarray:
        tokens = self.shards.tokens(shard)
        start %= len(tokens)
        window = tokens[start : start + count]
        if missing := count - len(window):  # the last document of a shard is followed by its first
            window = np.concatenate([window, tokens[:missing]])
        return window

    def batch_of(self, examples: np.ndarray, limit: int | None, index: int) -> Batch:
        batch = super().batch_of(examples, limit, index)
        batch["targets"][batch["tokens"] == self.end] = 0  # the next document is no target
        self.shards.has_read()
        return batch


class ShardBatches(_Rows):
    """One document a row, or a piece of a longer one, from a corpus on disk.

    As `LanguageModelBatches`, which cuts and orders by other random numbers. Further: `Settings`,
    but for full batches and Poisson sampling.
    """

    def __init__(self, shards: Shards, *, num_tokens: int, **settings: Unpack[Settings]):
        self.shards, self.num_tokens = shards, num_tokens
        self._pieces = shards.number_of_pieces(
            num_tokens, lambda lengths: num_pieces(lengths - 1, num_tokens)
        )
        counts = [int(pieces[-1]) if len(pieces) else 0 for pieces in self._pieces]
        self._ends = np.cumsum(counts)  # (S,): rows up to and with each shard
        self.num_examples = int(self._ends[-1]) if len(self._ends) else 0
        if not self.num_examples:
            raise ValueError("Training needs at least one document of 2 tokens. Received: none")
        super().__init__(**settings)

    def longest_example(self) -> int:
        return min(int(self.shards.longest.max()) - 1, self.num_tokens)

    def located(self, epoch: int, numbers: np.ndarray) -> np.ndarray:
        rows = np.zeros((len(numbers), 3), np.int64)
        of_shard = np.searchsorted(self._ends, numbers, side="right")
        for shard in np.unique(of_shard).tolist():
            here = of_shard == shard
            before = int(self._ends[shard - 1]) if shard else 0
            rows[here, 1:] = self._located_in(shard, epoch, numbers[here] - before)
            rows[here, 0] = shard
        self.shards.has_read()
        return rows

    def _located_in(self, shard: int, epoch: int, numbers: np.ndarray) -> np.ndarray:
        """(first token, number of targets) of rows of a shard, int64 (n, 2)."""
        pieces, ends = self._pieces[shard], self.shards.ends(shard)
        document = np.searchsorted(pieces, numbers, side="right")
        piece = numbers - _before(pieces, document)
        begin = _before(ends, document)
        num_targets = ends[document] - begin - 1
        first = self._first_piece(num_targets, epoch, shard, document)
        start = np.where(piece > 0, first + (piece - 1) * self.num_tokens, 0)
        whole = np.where(piece > 0, self.num_tokens, first)
        return np.stack([begin + start, np.minimum(whole, num_targets - start)], axis=1)

    def _first_piece(self, num_targets: np.ndarray, epoch: int, shard: int, document: np.ndarray):
        """Targets in the first piece of each document: random in a long one, as in `_cut`."""
        count, size = num_pieces(num_targets, self.num_tokens), self.num_tokens
        shortest = np.maximum(num_targets - (count - 1) * size, 1)
        longest = np.minimum(num_targets - (count - 2) * size - 1, size)
        draws = hashed([self.seed, epoch, shard, _CUTS], document)
        room = np.maximum(longest - shortest + 1, 1).astype(np.uint64)
        first = shortest + (draws % room).astype(np.int64)
        return np.where(num_targets > size, first, num_targets)

    def window(self, shard: int, start: int, count: int) -> np.ndarray:
        return self.shards.tokens(shard)[start : start + count]

    def batch_of(self, examples: np.ndarray, limit: int | None, index: int) -> Batch:
        batch = super().batch_of(examples, limit, index)
        self.shards.has_read()
        return batch


def _before(ends: np.ndarray, index: np.ndarray) -> np.ndarray:
    """int64 (n,): where the things at `index` begin, given where all of them end."""
    return np.where(index > 0, ends[np.maximum(index - 1, 0)].astype(np.int64), 0)
