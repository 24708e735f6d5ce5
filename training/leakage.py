"""Texts that occur twice: within training, or in training and in what is to measure it.

Three degrees, each counted without the one before: the same text; the same but for case, width,
marks and blanks; and nearly the same, when at least 80 % of a text's runs of eight words
(characters in Chinese) occur in other texts (Broder, 1997, containment of shingles). Texts of fewer
than eight words are compared as a whole alone.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from training.datasets.examples import TEST, TRAIN, VALIDATION, ClassificationData, TextData

SHINGLE = 8  # words
CONTAINED = 0.8  # of a text's shingles that occur elsewhere
MAX_CHARACTERS = 40_000_000  # of all splits together, for the third degree: its memory and time
SAME, ALIKE, NEARLY = "the same text", "the same but for case, marks and blanks", "nearly the same"

_SHOWN = 90  # characters of a text in a report
_UNSPACED = re.compile(r"([\u2e80-\u9fff\uf900-\ufaff\U00020000-\U0003ffff])")
_MARKS = re.compile(r"[\W_]+")


@dataclass(frozen=True)
class Finding:
    """Texts of `split` that also occur in `other`, or earlier in the same split."""

    split: str
    other: str
    degree: str
    num_texts: int  # of the split
    pairs: tuple[tuple[int, int], ...]  # (index in split, index in other of one it is found in)

    def __str__(self) -> str:
        where = "earlier in it" if self.split == self.other else f"in {self.other}"
        count = f"{len(self.pairs):,} of {self.num_texts:,} texts"
        return f"{self.split}: {count} are {where}, {self.degree}"


@dataclass(frozen=True)
class Leakage:
    """All that was found; `conflicts` are groups of one text with several labels."""

    findings: tuple[Finding, ...]
    conflicts: tuple[tuple[tuple[str, int], ...], ...]  # each of (split, index)
    is_complete: bool  # False: too much text for the third degree

    def lines(self) -> Iterator[str]:
        """A sentence for each kind of finding; one that says so if there is none."""
        for finding in self.findings:
            yield f"{finding}."
        if self.conflicts:
            yield (
                f"Contradictions: {len(self.conflicts):,} texts carry more than one label (case, "
                "marks and blanks aside)."
            )
        if not self.is_complete:
            yield f"Near repeats were not looked for: more than {MAX_CHARACTERS:,} characters."
        if not self.findings and not self.conflicts:
            yield "No repeats, no leakage, no contradictions."


def find_leakage(data: ClassificationData | TextData, *, is_joined: bool = False) -> Leakage:
    """Looks through all splits of `data`; the same for the same texts.

    Where validation is in training on purpose, `is_joined`, it is left out.
    """
    if is_joined and isinstance(data, ClassificationData):
        data = replace(data, validation=data.validation.take([]))
    splits = texts_by_split(data)
    plain = {name: [normalised(text) for text in texts] for name, texts in splits.items()}
    is_complete = sum(len(text) for texts in plain.values() for text in texts) <= MAX_CHARACTERS
    shingles = _Shingles(plain) if is_complete else None
    findings = []
    for split, other in (
        (TRAIN, TRAIN),
        (VALIDATION, TRAIN),
        (TEST, TRAIN),
        (TEST, VALIDATION),
    ):
        found: dict[int, int] = {}  # of all degrees so far
        for degree, pairs in (
            (SAME, _equal(splits[split], splits[other], split == other)),
            (ALIKE, _equal(plain[split], plain[other], split == other)),
            (NEARLY, shingles.contained(split, other) if shingles else {}),
        ):
            new = {index: where for index, where in pairs.items() if index not in found}
            found |= new
            if new:
                findings.append(
                    Finding(split, other, degree, len(splits[split]), tuple(new.items()))
                )
    conflicts: tuple = ()
    if isinstance(data, ClassificationData) and data.train.labels.dtype == np.int32:
        conflicts = _conflicts(data, plain)  # texts may well have several labels, or numbers
    return Leakage(tuple(findings), conflicts, is_complete)


def texts_by_split(data: ClassificationData | TextData) -> dict[str, list[str]]:
    """The texts alone."""
    parts = {TRAIN: data.train, VALIDATION: data.validation, TEST: data.test}
    return {n: part if isinstance(part, list) else part.texts for n, part in parts.items()}


def examples(data: ClassificationData | TextData, found: Leakage, count: int) -> Iterator[str]:
    """Of each finding its sentence and at most `count` pairs of texts; of conflicts the labels."""
    texts = texts_by_split(data)
    for finding in found.findings:
        yield f"\n{finding}"
        for index, other in finding.pairs[:count]:
            yield f"  {finding.split} {index:,}: {_short(texts[finding.split][index])}"
            if finding.degree != SAME:
                yield f"    {finding.other} {other:,}: {_short(texts[finding.other][other])}"
    if isinstance(data, ClassificationData) and found.conflicts:
        yield "\nContradictions"
        for places in found.conflicts[:count]:
            split, index = places[0]
            yield f"  {_short(texts[split][index])}"
            for split, index in places:
                label = data.label_names[getattr(data, split).labels[index]]
                yield f"    {split} {index:,}: {label}"


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _SHOWN else line[: _SHOWN - 1] + "…"


def normalised(text: str) -> str:
    """NFKC and case folded, one blank for any run of blanks and marks, Chinese apart.

    A text of nothing but marks stays what it is, or all of them would be one.

    >>> normalised("  Great,GREAT film… "), normalised("好！电影"), normalised(":-)")
    ('great great film', '好 电 影', ':-)')
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    spaced = _UNSPACED.sub(r" \1 ", folded) if not folded.isascii() else folded
    return _MARKS.sub(" ", spaced).strip() or folded.strip()


def _equal(texts: Sequence[str], others: Sequence[str], is_same_split: bool) -> dict[int, int]:
    """Index of each text that is among the others, or before itself: index of the first."""
    first: dict[str, int] = {}
    for index, other in enumerate(others):
        first.setdefault(other, index)
    places = ((index, first.get(text)) for index, text in enumerate(texts))
    return {
        index: place
        for index, place in places
        if place is not None and not (is_same_split and place == index)
    }


class _Shingles:
    """The runs of `SHINGLE` words of every text, as numbers."""

    def __init__(self, plain: dict[str, list[str]]):
        words: dict[str, int] = {}
        # By split, in the order of texts: of each shingle its number, uint64 (S,), and its text.
        self.hashes: dict[str, np.ndarray] = {}
        self.texts: dict[str, np.ndarray] = {}
        for split, texts in plain.items():
            rows = [[words.setdefault(w, len(words)) for w in text.split()] for text in texts]
            lengths = np.array([len(row) for row in rows], np.int64)
            flat = np.fromiter((word for row in rows for word in row), np.uint64, lengths.sum())
            size = max(len(flat) - SHINGLE + 1, 0)
            # A polynomial over the odd numbers modulo 2^64, after a mix of the word's number.
            mixed = (flat + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
            mixed ^= mixed >> np.uint64(29)
            hashes = np.zeros(size, np.uint64)
            for offset in range(SHINGLE):
                hashes = hashes * np.uint64(0xBF58476D1CE4E5B9) + mixed[offset : offset + size]
            text_of = np.repeat(np.arange(len(rows)), lengths)
            is_whole = text_of[:size] == text_of[len(flat) - size :]  # within one text
            hashes, text_of = hashes[is_whole], text_of[:size][is_whole]
            order = np.lexsort((hashes, text_of))
            hashes, text_of = hashes[order], text_of[order]
            is_new = np.ones(len(hashes), bool)  # one that a text repeats counts once
            is_new[1:] = (hashes[1:] != hashes[:-1]) | (text_of[1:] != text_of[:-1])
            self.hashes[split], self.texts[split] = hashes[is_new], text_of[is_new]

    def contained(self, split: str, other: str) -> dict[int, int]:
        """Index of each text whose shingles others have: index of one that has the most."""
        hashes, texts = self.hashes[split], self.texts[split]
        # Sorted by hash, then by text: the first of equal ones is the earliest text.
        order = np.argsort(self.hashes[other], kind="stable")
        known, owners = self.hashes[other][order], self.texts[other][order]
        place = np.searchsorted(known, hashes)
        place[place == len(known)] = 0
        is_found = (known[place] == hashes) if len(known) else np.zeros(len(hashes), bool)
        owner = owners[place] if len(known) else np.zeros(len(hashes), np.int64)
        if split == other:
            is_found &= owner < texts
        count = np.bincount(texts)
        share = np.bincount(texts, is_found) / np.maximum(count, 1)
        chosen = np.flatnonzero((count > 0) & (share >= CONTAINED))
        starts = np.searchsorted(texts, [chosen, chosen + 1])
        return {
            int(text): int(np.bincount(owner[a:b][is_found[a:b]]).argmax())
            for text, a, b in zip(chosen, *starts, strict=True)
        }


def _conflicts(data: ClassificationData, plain: dict[str, list[str]]) -> tuple:
    places: dict[str, list[tuple[str, int]]] = {}
    labels: dict[str, set[int]] = {}
    for split, texts in plain.items():
        for index, (text, label) in enumerate(
            zip(texts, getattr(data, split).labels.tolist(), strict=True)
        ):
            places.setdefault(text, []).append((split, index))
            labels.setdefault(text, set()).add(label)
    return tuple(tuple(places[text]) for text, found in labels.items() if len(found) > 1)
