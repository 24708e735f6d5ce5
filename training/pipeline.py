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
    """{"tokens": int32 (B, T), "targets": int32 (B, T)}: windows of one long stream of tokens.

    Every pass cuts the stream at another random offset and draws a new order of windows.
    """

    def __init__(self, stream: np.ndarray, *, num_tokens: int, batch_size: int, seed: int):
        if len(stream) < 2:
            raise ValueError(f"Training needs at least 2 tokens. Received: {len(stream)}")
        self.stream, self.seed = stream, seed
        self.num_tokens = min(num_tokens, len(stream) - 1)
        # One window less than fit, so that every offset leaves as many.
        windows = max((len(stream) - 1) // self.num_tokens - 1, 1)
        self.batch_size = min(batch_size, windows)
        self.num_batches = windows // self.batch_size
        self._epoch = -1  # the pass whose order is at hand

    def at(self, step: int) -> Batch:
        """The batch of parameter update `step`, counted from 0."""
        epoch, position = divmod(step, self.num_batches)
        if epoch != self._epoch:
            self._epoch, self._batches = epoch, self._order(epoch)
        starts = self._batches[position]
        windows = self.stream[starts[:, None] + np.arange(self.num_tokens + 1)]  # (B, T + 1)
        return {"tokens": windows[:, :-1], "targets": windows[:, 1:]}

    def _order(self, epoch: int) -> np.ndarray:
        """Where every window of a pass starts, (num_batches, B)."""
        rng = np.random.default_rng([self.seed, epoch])
        windows = (len(self.stream) - 1) // self.num_tokens
        spare = len(self.stream) - 1 - max(windows - 1, 1) * self.num_tokens
        starts = rng.integers(spare + 1) + np.arange(max(windows - 1, 1)) * self.num_tokens
        order = rng.permutation(starts)[: self.num_batches * self.batch_size]
        return order.reshape(self.num_batches, self.batch_size)


def language_model_windows(
    stream: np.ndarray, *, num_tokens: int, batch_size: int
) -> Iterator[Batch]:
    """The stream in order, every token but the first a target exactly once; 0 pads the last."""
    count = max(len(stream) - 1, 0)
    num_windows = -(-count // num_tokens)
    padded = np.zeros(num_windows * num_tokens + 1, np.int32)
    padded[: len(stream)] = stream
    index = np.arange(num_windows)[:, None] * num_tokens + np.arange(num_tokens + 1)
    for start in range(0, num_windows, batch_size):
        windows = padded[index[start : start + batch_size]]
        yield {"tokens": windows[:, :-1], "targets": windows[:, 1:]}


def token_stream(documents: Sequence[np.ndarray], begin: int, end: int) -> np.ndarray:
    """begin, document, end, begin, document, end ... as one int32 (L,)."""
    pieces = [[begin, *document, end] for document in documents]
    return np.concatenate(pieces).astype(np.int32) if pieces else np.zeros(0, np.int32)
