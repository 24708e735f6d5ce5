"""Byte-pair encoding learns which neighbours to join (Sennrich et al., 2016, sec. 3.2)."""

from __future__ import annotations

import collections
import heapq
from collections.abc import Sequence

Pair = tuple[int, int]


def learn_merges(
    words: Sequence[Sequence[int]],
    counts: Sequence[int],
    *,
    first_id: int,
    num_merges: int,
    min_count: int,
) -> list[Pair]:
    """The most frequent pair of neighbours joined, again and again; the i-th makes `first_id` + i.

    `words` are symbol ids below `first_id`, seen `counts` times each. Ends early when no pair is
    left that was seen `min_count` times. Ties go to the smaller ids, so a run repeats.
    """
    spelled = [list(word) for word in words]  # by what has been joined so far
    totals: dict[Pair, int] = collections.defaultdict(int)
    where: dict[Pair, set[int]] = collections.defaultdict(set)  # words that have it, or had
    for i, (word, count) in enumerate(zip(spelled, counts, strict=True)):
        for pair in zip(word, word[1:], strict=False):
            totals[pair] += count
            where[pair].add(i)
    heap = [(-total, pair) for pair, total in totals.items() if total >= min_count]
    heapq.heapify(heap)
    merges: list[Pair] = []
    while heap and len(merges) < num_merges:
        total, pair = heapq.heappop(heap)
        if totals[pair] != -total:  # it lost some to merges since; none that is there gains
            if totals[pair] >= min_count:
                heapq.heappush(heap, (-totals[pair], pair))
            continue
        new_id = first_id + len(merges)
        merges.append(pair)
        fresh: set[Pair] = set()
        for i in where.pop(pair):
            for gained in _join(spelled[i], pair, new_id, counts[i], totals):
                where[gained].add(i)
                fresh.add(gained)
        for gained in fresh:
            if totals[gained] >= min_count:
                heapq.heappush(heap, (-totals[gained], gained))
    return merges


def _join(
    word: list[int], pair: Pair, new_id: int, count: int, totals: dict[Pair, int]
) -> list[Pair]:
    """Makes every `pair` in `word` one symbol, from the left, and keeps `totals` right.

    Returns the pairs that came into being; some of them may be gone again.
    """
    left, right = pair
    gained = []
    i = 0
    while i < len(word) - 1:
        if word[i] == left and word[i + 1] == right:
            word[i : i + 2] = [new_id]
            totals[pair] -= count
            if i > 0:
                totals[word[i - 1], left] -= count
                totals[word[i - 1], new_id] += count
                gained.append((word[i - 1], new_id))
            if i + 1 < len(word):
                totals[right, word[i + 1]] -= count
                totals[new_id, word[i + 1]] += count
                gained.append((new_id, word[i + 1]))
        i += 1
    return gained
