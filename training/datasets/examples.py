"""What a data set is once it is read, and how texts are split without an official split."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

TRAIN, VALIDATION, TEST = "train", "validation", "test"


@dataclass(frozen=True, eq=False)
class LabelledTexts:
    """Texts and what they are labelled with, by the target of the run.

    `labels` is int32 (N,), each an index into `label_names`; with several labels a text bool
    (N, K), which of them it has; for numbers float32 (N,).
    """

    texts: list[str]
    labels: np.ndarray

    def __post_init__(self) -> None:
        rank = {np.dtype(np.int32): 1, np.dtype(bool): 2, np.dtype(np.float32): 1}
        if self.labels.ndim != rank.get(self.labels.dtype) or len(self.labels) != len(self.texts):
            raise ValueError(
                f"labels must be int32 or float32 ({len(self.texts)},), or bool "
                f"({len(self.texts)}, K). Received: {self.labels.dtype} {self.labels.shape}"
            )

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, indices: Iterable[int]) -> "LabelledTexts":
        """The rows at `indices`, in that order."""
        chosen = list(indices)
        return LabelledTexts([self.texts[i] for i in chosen], self.labels[chosen])


@dataclass(frozen=True, eq=False)
class ClassificationData:
    """Three splits over one set of labels, none for numbers; `notes` are sentences for the log."""

    label_names: tuple[str, ...]
    train: LabelledTexts
    validation: LabelledTexts
    test: LabelledTexts
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class TextData:
    """Documents for a language model in three splits; `notes` are sentences for the log."""

    train: list[str]
    validation: list[str]
    test: list[str]
    notes: tuple[str, ...] = ()


def text_hash(text: str) -> int:
    """The md5 of the UTF-8 text as a number; the same on every machine and in every run."""
    digest = hashlib.md5(text.encode("utf-8"), usedforsecurity=False).hexdigest()
    return int(digest, 16)


def split_of(text: str, held_out: Sequence[str] = (TEST, VALIDATION)) -> str:
    """The split a text belongs to: hash % 10 is 0 for test, 1 for validation, else train.

    A split that is not in `held_out` (because an official one exists) stays in train.

    >>> split_of("a fine film"), split_of("a fine film") == split_of("a fine film")
    ('train', True)
    """
    side = {0: TEST, 1: VALIDATION}.get(text_hash(text) % 10, TRAIN)
    return side if side in held_out else TRAIN


def split_by_hash(
    texts: Sequence[str], held_out: Sequence[str] = (TEST, VALIDATION)
) -> dict[str, list[int]]:
    """Indices of the texts of "train", "validation" and "test", in their order.

    Never by position: rows of a file are often sorted. Equal texts land on the same side, and a
    text stays there when others are added or removed.
    """
    sides: dict[str, list[int]] = {TRAIN: [], VALIDATION: [], TEST: []}
    for index, text in enumerate(texts):
        sides[split_of(text, held_out)].append(index)
    return sides


def pick_by_hash(texts: Sequence[str], count: int) -> list[int]:
    """Indices of `count` texts with the smallest hash, in their order: a repeatable sample."""
    # Not split_of's hash: its last digit decides the split, and a sample should not depend on it.
    ranked = sorted(range(len(texts)), key=lambda i: (text_hash("sample:" + texts[i]), i))
    return sorted(ranked[:count])


def unseen_test_indices(data: ClassificationData | TextData) -> np.ndarray:
    """Indices int64 (M,) of the test texts that do not occur in train.

    For the figure beside the official one: several public sets repeat training texts in test.
    """
    if isinstance(data, TextData):
        train, test = data.train, data.test
    else:
        train, test = data.train.texts, data.test.texts
    seen = set(train)
    return np.array([i for i, text in enumerate(test) if text not in seen], dtype=np.int64)


def describe_repeats(train: Sequence[str], validation: Sequence[str], test: Sequence[str]) -> str:
    """One sentence that counts texts which occur twice in train, or in train and elsewhere."""
    seen = set(train)
    in_validation = sum(text in seen for text in validation)
    in_test = sum(text in seen for text in test)
    return (
        f"Repeats: {len(train) - len(seen):,} of {len(train):,} training texts repeat another; "
        f"{in_validation:,} of {len(validation):,} validation texts and "
        f"{in_test:,} of {len(test):,} test texts also occur in training."
    )


def describe_conflicts(*splits: LabelledTexts) -> tuple[str, ...]:
    """A sentence if some texts carry more than one label, else nothing."""
    first_label: dict[str, object] = {}
    conflicting = set()
    for split in splits:
        for text, label in zip(split.texts, split.labels.tolist(), strict=True):
            if first_label.setdefault(text, label) != label:
                conflicting.add(text)
    if not conflicting:
        return ()
    return (f"Texts that occur with more than one label: {len(conflicting):,}.",)


def classification_data(
    label_names: Sequence[str],
    train: LabelledTexts,
    validation: LabelledTexts,
    test: LabelledTexts,
    notes: Iterable[str] = (),
) -> ClassificationData:
    """`ClassificationData` whose notes end with what repeats and what contradicts itself."""
    return ClassificationData(
        tuple(label_names),
        train,
        validation,
        test,
        (
            *notes,
            describe_repeats(train.texts, validation.texts, test.texts),
            *describe_conflicts(train, validation, test),
        ),
    )


def text_data(
    train: list[str], validation: list[str], test: list[str], notes: Iterable[str] = ()
) -> TextData:
    """`TextData` whose notes end with what repeats."""
    return TextData(train, validation, test, (*notes, describe_repeats(train, validation, test)))
