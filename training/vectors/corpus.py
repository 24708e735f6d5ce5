"""Running words to batches of windows, and to co-occurrences.

Words out of the vocabulary are left out, as if they had not been written; no window reaches into
another document. Axes: N running words, B batch, W words on each side of a window, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Unpack

import numpy as np

from model.config import CBOWConfig, SkipGramConfig
from training.pipeline import Batch, PlannedBatches, Settings

FIRST_WORD = 2  # ids of padding and of unknown words are before
_NEGATIVES = 2_000_003  # keeps these draws apart from those of the order


@dataclass(frozen=True, eq=False)
class Stream:
    """Running words: ids int32 (N,), and the number of the document that each is in (N,)."""

    words: np.ndarray
    document: np.ndarray

    @classmethod
    def of(cls, rows: Sequence[np.ndarray]) -> Stream:
        """From the token ids of every document."""
        words = np.concatenate([np.zeros(0, np.int32), *rows])
        document = np.repeat(np.arange(len(rows), dtype=np.int32), [len(row) for row in rows])
        is_word = words >= FIRST_WORD
        return cls(words[is_word], document[is_word])


def kept_share(counts: np.ndarray, subsampling: float) -> np.ndarray:
    """The chance with which a word is kept, float64 (V,): min(1, sqrt(t / f)).

    f is its share of all running words, t `subsampling` (Mikolov et al., 2013b, sec. 2.3); 0 keeps
    all.
    """
    if not subsampling:
        return np.ones(len(counts))
    frequency = counts / max(counts.sum(), 1)
    return np.sqrt(np.minimum(subsampling / np.maximum(frequency, 1e-300), 1.0))


def noise(counts: np.ndarray, power: float) -> np.ndarray:
    """Chances of the words as noise, float64 (V,): frequency ** power, for words that occur."""
    weight = np.where(counts > 0, counts.astype(np.float64) ** power, 0.0)
    return weight / max(weight.sum(), 1e-300)


class WindowBatches(PlannedBatches):
    """int32 {"inputs": (B, I), "outputs": (B, O), "negatives": (B, K)}; id 0 pads.

    An example is a word with a window of b words on each side, b even in 1 to W, as in word2vec.c;
    so near words are in more windows. Skip-gram has the word as its input and the window as its
    outputs, CBOW the other way round. Frequent words are left out of each pass first, by other
    draws in each, so a window then reaches farther. As many are kept in every pass: they are picked
    by a comb of even steps over the summed chances, laid at a random place (systematic sampling).

    The K words of noise are drawn once for a window (Ji et al., 2016). One that is among
    the outputs of its row is left out, as in word2vec.c.

    `counts` (V,) are those of the training split, whichever stream is read. A pass is held in
    memory: 4 (1 + 2 W) bytes for each word kept. Further: `Settings`.
    """

    fields = {"inputs": 2, "outputs": 2, "negatives": 2}

    def __init__(
        self,
        stream: Stream,
        counts: np.ndarray,
        config: SkipGramConfig | CBOWConfig,
        **settings: Unpack[Settings],
    ):
        self.stream, self.config = stream, config
        share = np.cumsum(kept_share(counts, config.subsampling)[stream.words])
        self.num_examples = int(share[-1]) if len(share) else 0
        if not self.num_examples:
            raise ValueError(
                "Word vectors need running words of the vocabulary. Received: none that is kept. "
                "Lower tokenizer.min_count, or raise model.subsampling"
            )
        self._summed = share / share[-1] * self.num_examples
        self._noise = np.cumsum(noise(counts, config.noise_power))
        self._columns = max(2 * config.window, config.num_negatives)
        super().__init__(**settings)

    def examples(self, rng: np.random.Generator | None) -> np.ndarray:
        """int32 (n, 1 + 2 W): a word, and the words around it."""
        rng = rng or np.random.default_rng(self.seed)
        teeth = np.arange(self.num_examples) + rng.random()
        kept = np.minimum(np.searchsorted(self._summed, teeth), len(self._summed) - 1)
        words, document = self.stream.words[kept], self.stream.document[kept]
        W, n = self.config.window, len(words)
        reach = rng.integers(1, W + 1, n)
        rows = np.zeros((n, 1 + 2 * W), np.int32)
        rows[:, 0] = words
        for d in range(1, min(W, n - 1) + 1):
            together = document[d:] == document[:-d]
            rows[d:, d] = np.where(together & (reach[d:] >= d), words[:-d], 0)
            rows[:-d, W + d] = np.where(together & (reach[:-d] >= d), words[d:], 0)
        return rows

    def example_lengths(self, examples: np.ndarray) -> np.ndarray:
        return np.full(len(examples), self._columns)  # none waits for its like

    def batch_of(self, examples: np.ndarray, limit: int | None, index: int) -> Batch:
        word, window = examples[:, :1], examples[:, 1:]
        is_skip_gram = isinstance(self.config, SkipGramConfig)
        inputs, outputs = (word, window) if is_skip_gram else (window, word)
        if not is_skip_gram:  # a word that stands alone is told by nothing
            outputs = np.where(window.any(axis=1, keepdims=True), outputs, 0)
        rng = np.random.default_rng([self.seed, index, _NEGATIVES])
        draws = rng.random((len(examples), self.config.num_negatives))
        drawn = np.minimum(np.searchsorted(self._noise, draws, "right"), len(self._noise) - 1)
        is_output = (drawn[:, :, None] == outputs[:, None, :]).any(axis=2)
        negatives = np.where(is_output, 0, drawn).astype(np.int32)
        return {"inputs": inputs, "outputs": outputs, "negatives": negatives}


# Co-occurrences -----------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Cells:
    """The cells of a matrix that are not 0: places int32 (M,) and (M,), and values float32 (M,)."""

    rows: np.ndarray
    columns: np.ndarray
    counts: np.ndarray


def co_occurrences(stream: Stream, window: int, vocabulary_size: int) -> Cells:
    """How often each two words are within `window` of each other; at distance d it counts 1 / d.

    Symmetric (Pennington et al., 2014, sec. 4.2).
    """
    from scipy import sparse  # only where it is needed

    shape = (vocabulary_size, vocabulary_size)
    total = sparse.csr_matrix(shape)
    for d in range(1, window + 1):
        together = stream.document[d:] == stream.document[:-d]
        places = stream.words[:-d][together], stream.words[d:][together]
        total += sparse.coo_matrix((np.full(len(places[0]), 1 / d), places), shape).tocsr()
    both = (total + total.T).tocoo()
    rows, columns = (x.astype(np.int32) for x in both.coords)
    return Cells(rows, columns, both.data.astype(np.float32))


class CellBatches(PlannedBatches):
    """{"inputs": int32 (B, 1), "outputs": int32 (B, 1), "count": float32 (B,)}, a cell each.

    Every pass has each cell once in a new order. Further: `Settings`.
    """

    fields = {"inputs": 2, "outputs": 2, "count": 1}

    def __init__(self, cells: Cells, **settings: Unpack[Settings]):
        self.cells, self.num_examples = cells, len(cells.counts)
        if not self.num_examples:
            raise ValueError(
                "GloVe needs words of the vocabulary that stand together. Received: none. Lower "
                "tokenizer.min_count, or give longer texts"
            )
        super().__init__(**settings)

    def examples(self, rng: np.random.Generator | None) -> np.ndarray:
        return np.arange(self.num_examples)

    def example_lengths(self, examples: np.ndarray) -> np.ndarray:
        return np.ones(len(examples), np.int64)

    def batch_of(self, examples: np.ndarray, limit: int | None, index: int) -> Batch:
        return {
            "inputs": self.cells.rows[examples, None],
            "outputs": self.cells.columns[examples, None],
            "count": self.cells.counts[examples],
        }
