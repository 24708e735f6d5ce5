"""A random order of a billion things that is worked out, not stored.

Axes: N things.
"""

from __future__ import annotations

import numpy as np

_ROUNDS = 6


class Permutation:
    """A permutation of 0 to `count` - 1 that follows from `seed`; it takes no memory.

    A balanced Feistel network (Luby & Rackoff, 1988) over the next power of 4, whose values beyond
    `count` are walked on until they are below it (cycle walking; Black & Rogaway, 2002, sec. 4).
    Each step can be undone, so it is one to one whatever the mixing does.
    """

    def __init__(self, count: int, seed: int | list[int]):
        if not 0 < count <= 2**62:
            raise ValueError(f"A permutation is of 1 to 2**62 things. Received: {count}")
        self.count = count
        half = max(((count - 1).bit_length() + 1) // 2, 1)  # bits of each half
        self._half, self._mask = np.uint64(half), np.uint64(2**half - 1)
        self._keys = np.random.default_rng(seed).integers(2**63, size=_ROUNDS, dtype=np.uint64)

    def __call__(self, index: np.ndarray) -> np.ndarray:
        """Where the things at `index` go: int (N,), each from 0 to count - 1 -> int64 (N,)."""
        values = self._step(np.asarray(index).astype(np.uint64))
        while len(outside := np.flatnonzero(values >= self.count)):
            values[outside] = self._step(values[outside])
        return values.astype(np.int64)

    def _step(self, values: np.ndarray) -> np.ndarray:
        left, right = values >> self._half, values & self._mask
        for key in self._keys:
            left, right = right, left ^ (mixed(right ^ key) & self._mask)
        return left << self._half | right


def mixed(values: np.ndarray) -> np.ndarray:
    """uint64 (N,) -> uint64 (N,) that look random: SplitMix64 (Steele et al., 2014, fig. 17)."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def hashed(seed: list[int], *columns: np.ndarray) -> np.ndarray:
    """uint64 (N,) that follow from the seed and the int (N,) columns: a random number for each."""
    values = np.zeros(len(columns[0]), np.uint64)
    for number in seed:
        values = mixed(values ^ np.uint64(number))
    for column in columns:
        values = mixed(values ^ np.asarray(column).astype(np.uint64))
    return values
