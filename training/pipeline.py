"""Batches as a pure function of the seed and the step.

Texts are tokenised once and kept as ids. `batches.at(step)` then depends on nothing but the seed
and the step, so a run that was stopped anywhere goes on with exactly the batch that was next:
there is no iterator state to save. Axes: B batch, T tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

Batch = dict[str, np.ndarray]

_POOL = 64  # batches that are sorted by length together: little padding, still a random order


class ClassificationBatches:
    """{"tokens": int32 (B, T), "label": int32 (B,)}; T is the batch's longest text, id 0 pads.

    Every pass draws a new order, and texts of like length share a batch.
    """

    def __init__(
        self, rows: Sequence[np.ndarray], labels: np.ndarray, *, batch_size: int, seed: int
    ):
        if not len(rows):
            raise ValueError("Training needs at least one text. Received: none")
        self.rows, self.labels, self.seed = rows, labels, seed
        self.batch_size = min(batch_size, len(rows))
        self.num_batches = len(rows) // self.batch_size  # of a pass; the order decides what waits
        self.lengths = np.array([len(row) for row in rows])
        self._epoch = -1  # the pass whose order is at hand

    def at(self, step: int) -> Batch:
        """The batch of parameter update `step`, counted from 0."""
        epoch, position = divmod(step, self.num_batches)
        if epoch != self._epoch:
            self._epoch, self._batches = epoch, self._order(epoch)
        return _pad(self.rows, self.labels, self._batches[position])

    def _order(self, epoch: int) -> np.ndarray:
        """Indices of every batch of a pass, (num_batches, B)."""
        rng = np.random.default_rng([self.seed, epoch])
        order = rng.permutation(len(self.rows))[: self.num_batches * self.batch_size]
        pool = _POOL * self.batch_size
        for start in range(0, len(order), pool):
            piece = order[start : start + pool]
            order[start : start + pool] = piece[np.argsort(self.lengths[piece], kind="stable")]
        batches = order.reshape(self.num_batches, self.batch_size)
        return batches[rng.permutation(self.num_batches)]


def classification_rows(
    rows: Sequence[np.ndarray], labels: np.ndarray, *, batch_size: int
) -> Iterator[tuple[np.ndarray, Batch]]:
    """Every text once, for evaluation: (indices, batch), sorted by length, last batch short."""
    order = np.argsort([len(row) for row in rows], kind="stable")
    for start in range(0, len(order), batch_size):
        indices = order[start : start + batch_size]
        yield indices, _pad(rows, labels, indices)


def _pad(rows: Sequence[np.ndarray], labels: np.ndarray, indices: np.ndarray) -> Batch:
    longest = max(len(rows[i]) for i in indices)
    tokens = np.zeros((len(indices), longest), np.int32)
    for line, i in zip(tokens, indices, strict=True):
        line[: len(rows[i])] = rows[i]
    return {"tokens": tokens, "label": labels[indices].astype(np.int32)}


class LanguageModelBatches:
    """{"tokens": int32 (B, T), "targets": int32 (B, T)}: the next token of each, id 0 pads.

    A row is one document, begin and end included, or a piece of one that is longer than
    `num_tokens`. Every pass cuts long documents elsewhere, uses each token as a target once (but
    for the pieces that do not fill a last batch), draws a new order, and lets pieces of like length
    share a batch.
    """

    def __init__(
        self, documents: Sequence[np.ndarray], *, num_tokens: int, batch_size: int, seed: int
    ):
        self.documents, self.num_tokens, self.seed = documents, num_tokens, seed
        num_pieces = sum(_num_pieces(len(d) - 1, num_tokens) for d in documents)
        if not num_pieces:
            raise ValueError("Training needs at least one document of 2 tokens. Received: none")
        self.batch_size = min(batch_size, num_pieces)
        self.num_batches = num_pieces // self.batch_size
        self._epoch = -1  # the pass whose order is at hand

    def at(self, step: int) -> Batch:
        """The batch of parameter update `step`, counted from 0."""
        epoch, position = divmod(step, self.num_batches)
        if epoch != self._epoch:
            self._epoch, self._batches = epoch, self._order(epoch)
        return _shifted(self.documents, self._batches[position])

    def _order(self, epoch: int) -> np.ndarray:
        """The pieces of every batch of a pass, (num_batches, B, 3): see `_cut`."""
        rng = np.random.default_rng([self.seed, epoch])
        pieces = _cut(self.documents, self.num_tokens, rng)
        order = rng.permutation(pieces)[: self.num_batches * self.batch_size]
        pool = _POOL * self.batch_size
        for start in range(0, len(order), pool):
            piece = order[start : start + pool]
            order[start : start + pool] = piece[np.argsort(piece[:, 2], kind="stable")]
        batches = order.reshape(self.num_batches, self.batch_size, 3)
        return batches[rng.permutation(self.num_batches)]


def language_model_windows(
    documents: Sequence[np.ndarray], *, num_tokens: int, batch_size: int
) -> Iterator[Batch]:
    """Every token but a document's first as a target exactly once, for evaluation."""
    pieces = _cut(documents, num_tokens, None)
    pieces = pieces[np.argsort(pieces[:, 2], kind="stable")]
    for start in range(0, len(pieces), batch_size):
        yield _shifted(documents, pieces[start : start + batch_size])


def _num_pieces(num_targets: int, num_tokens: int) -> int:
    """One, or as many as leave at least half of `num_tokens` for the first cut to move in."""
    fewest = -(-num_targets // num_tokens)
    rest = num_targets - (fewest - 1) * num_tokens
    return fewest + 1 if fewest > 1 and rest > max(num_tokens // 2, 1) else fewest


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
            count = _num_pieces(num_targets, num_tokens)
            shortest = max(num_targets - (count - 1) * num_tokens, 1)
            longest = min(num_targets - (count - 2) * num_tokens - 1, num_tokens)
            first = int(rng.integers(shortest, longest + 1))
        start = 0
        while start < num_targets:
            length = min(num_tokens if start else first, num_targets - start)
            pieces.append((index, start, length))
            start += length
    return np.array(pieces, np.int64).reshape(-1, 3)


def _shifted(documents: Sequence[np.ndarray], pieces: np.ndarray) -> Batch:
    longest = pieces[:, 2].max()
    windows = np.zeros((len(pieces), longest + 1), np.int32)
    targets = np.zeros((len(pieces), longest), np.int32)
    for row, (index, start, length) in enumerate(pieces):
        window = documents[index][start : start + length + 1]
        windows[row, : len(window)] = window
        targets[row, :length] = window[1:]
    return {"tokens": windows[:, :-1], "targets": targets}
