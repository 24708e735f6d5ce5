"""The user's own file: texts and labels found, bad rows reported, splits made.

Nothing is left out in silence: every note names the file, what was read and what was not.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from training.datasets.config import DatasetConfig, DatasetError
from training.datasets.encoding import is_damaged
from training.datasets.examples import (
    TEST,
    TRAIN,
    VALIDATION,
    ClassificationData,
    LabelledTexts,
    TextData,
    classification_data,
    split_of,
    text_data,
    text_hash,
)
from training.datasets.tables import (
    TEXT_SUFFIX,
    Table,
    documents_of,
    read_plain_text,
    read_table,
)

# In the order they are looked for; case does not matter.
TEXT_NAMES = (
    *("text", "review", "sentence", "content", "comment", "document", "message", "body"),
    *("text_a", "texts", "reviews", "post", "tweet", "headline", "question", "query", "title"),
    *("文本", "评论", "内容", "句子", "正文", "評論", "內容", "标题"),
)
LABEL_NAMES = (
    *("label", "labels", "class", "sentiment", "category", "stars", "rating", "topic", "target"),
    *("polarity", "score", "标签", "类别", "情感", "分类", "标注", "星级", "標籤", "類別"),
)

MAX_LABELS = 1_000
NUM_REPORTED = 5  # bad rows that are named one by one


@dataclass(frozen=True)
class _Rows:
    """The good rows of one file; `labels` is empty where none were asked for."""

    texts: list[str]
    labels: list[str]
    notes: list[str]


# What the rest of training calls


def load_classification_file(config: DatasetConfig) -> ClassificationData:
    """The labelled texts of `config.path`, with the user's validation and test files if named.

    Labels are those of the training file: whole numbers in their order, else by alphabet.
    Raises `DatasetError`.
    """
    rows = _read(config.path, config.text_column, config.label_column or _FIND)
    label_names = _label_names(config.path, rows)
    train = _labelled(config.path, rows, label_names)
    parts, notes = {}, rows.notes
    for side, path in ((VALIDATION, config.validation_path), (TEST, config.test_path)):
        if path is not None:
            parts[side], file_notes = read_labelled(
                path, config.text_column, config.label_column, label_names
            )
            notes += file_notes
    held_out = [side for side in (TEST, VALIDATION) if side not in parts]
    sides, split_notes = _split(train.texts, train.labels.tolist(), label_names, held_out)
    notes += split_notes
    parts |= {side: train.take(sides[side]) for side in (TRAIN, *held_out)}
    notes += _fill_empty(parts)
    return classification_data(label_names, parts[TRAIN], parts[VALIDATION], parts[TEST], notes)


def load_text_file(config: DatasetConfig) -> TextData:
    """The documents of `config.path`: a row of a table each, or pieces of a plain text.

    Raises `DatasetError`.
    """
    documents, notes = _documents(config.path, config.text_column)
    parts: dict[str, list[str]] = {}
    for side, path in ((VALIDATION, config.validation_path), (TEST, config.test_path)):
        if path is not None:
            parts[side], file_notes = _documents(path, config.text_column)
            notes += file_notes
    held_out = [side for side in (TEST, VALIDATION) if side not in parts]
    if held_out and len(set(documents)) <= len(held_out):
        cut, note = _cut_by_position(config.path, documents, held_out)
        notes.append(note)
        parts |= cut
    else:
        sides, split_notes = _split(documents, [0] * len(documents), ["document"], held_out)
        notes += split_notes
        parts |= {side: [documents[i] for i in sides[side]] for side in (TRAIN, *held_out)}
    return text_data(parts[TRAIN], parts[VALIDATION], parts[TEST], notes)


def read_documents(
    path: str | Path, text_column: str | None = None
) -> tuple[list[str], tuple[str, ...]]:
    """The documents of a file as a language model is trained on them; raises `DatasetError`."""
    documents, notes = _documents(path, text_column)
    return documents, tuple(notes)


def read_texts(
    path: str | Path, text_column: str | None = None
) -> tuple[list[str], tuple[str, ...]]:
    """The texts of a file to predict, in order, and sentences for the log.

    Of a plain text, every line that is not blank. Raises `DatasetError`.
    """
    path = Path(path).expanduser()
    if path.suffix.lower() == TEXT_SUFFIX:
        content, encoding = read_plain_text(path)
        rows = [
            (number, {"text": line})
            for number, line in enumerate(content.split("\n"), start=1)
            if line.strip()
        ]
        table = Table(("text",), rows, [], f"{encoding}, a text per line")
        result = _good_rows(path, table, "text", None)
    else:
        result = _read(path, text_column, None)
    return result.texts, tuple(result.notes)


def read_labelled(
    path: str | Path,
    text_column: str | None,
    label_column: str | None,
    label_names: Sequence[str],
) -> tuple[LabelledTexts, tuple[str, ...]]:
    """The labelled texts of a file whose labels are already known, and sentences for the log.

    Raises `DatasetError`, also for labels that are not in `label_names`.
    """
    rows = _read(path, text_column, label_column or _FIND)
    return _labelled(path, rows, label_names), tuple(rows.notes)


# Rows


_FIND = ""  # for a column that is to be found by its name


def _read(path: str | Path | None, text_column: str | None, label_column: str | None) -> _Rows:
    """The rows of a table; `label_column` None means that labels are not wanted."""
    path = Path(path or "").expanduser()
    if path.suffix.lower() == TEXT_SUFFIX and label_column is not None:
        raise DatasetError(
            f"{path} is plain text and has no labels. "
            "Name a .csv, .tsv, .jsonl or .parquet file with a text and a label column."
        )
    table = read_table(path)
    if not table.columns:
        raise DatasetError(f"{path} holds no rows.")
    text_name = _column(path, table, "text", text_column, TEXT_NAMES)
    label_name = None
    if label_column is not None:
        label_name = _column(path, table, "label", label_column, LABEL_NAMES)
    return _good_rows(path, table, text_name, label_name)


def _column(path: Path, table: Table, role: str, wanted: str | None, usual: Sequence[str]) -> str:
    """The column `wanted`, or the first of the `usual` names that the table has."""
    listed = ", ".join(repr(name[:40]) for name in table.columns[:20])
    if wanted:
        found = [name for name in table.columns if name == wanted]
        if not found:
            raise DatasetError(
                f"{path} has no column {wanted!r} (--{role}-column). Columns: {listed}."
            )
    else:
        by_name: dict[str, list[str]] = {}
        for name in table.columns:
            by_name.setdefault(name.strip().casefold(), []).append(name)
        found = next((by_name[name] for name in usual if name in by_name), [])
        if not found:
            raise DatasetError(
                f"Which column of {path} holds the {role}? Say it with --{role}-column. "
                f"Columns, as the first line names them: {listed}."
            )
    if len(found) > 1:
        raise DatasetError(
            f"{path} has {len(found)} columns named {found[0]!r}: rename all but the {role}'s."
        )
    return found[0]


def _good_rows(path: Path, table: Table, text_name: str, label_name: str | None) -> _Rows:
    """Rows with a text, and a label if `label_name` is given. Raises if most rows are bad."""
    problems = list(table.problems)
    texts, labels = [], []
    for number, row in table.rows:
        text, label = _text_of(row.get(text_name)), None
        if label_name is not None:
            label = _label_of(row.get(label_name))
        if text is None:
            problems.append((number, f"{text_name!r} is not a text"))
        elif is_damaged(text) or is_damaged(label or ""):
            problems.append((number, "undecodable bytes"))
        elif not text:
            problems.append((number, "empty text"))
        elif label_name is not None and not label:
            problems.append((number, "no label"))
        else:
            texts.append(text)
            labels.append(label or "")
    num_rows = len(texts) + len(problems)
    report = _report(path, sorted(problems), num_rows, table.unit)
    if not texts or 2 * len(problems) > num_rows:
        raise DatasetError(report or f"{path} holds no rows.")
    columns = f"text in {text_name!r}" + (f", label in {label_name!r}" if label_name else "")
    notes = [f"{path.name}: {len(texts):,} rows; {table.description}; {columns}."]
    notes += [f"{path.name}: {remark}." for remark in table.remarks]
    if report:
        notes.append(report)
    return _Rows(texts, labels if label_name else [], notes)


def _report(path: Path, problems: list[tuple[int, str]], num_rows: int, unit: str) -> str:
    if not problems:
        return ""
    named = "; ".join(f"{unit} {number}: {reason}" for number, reason in problems[:NUM_REPORTED])
    more = len(problems) - NUM_REPORTED
    rest = f"; and {more:,} more" if more > 0 else ""
    return (
        f"{path.name}: {len(problems):,} of {num_rows:,} rows cannot be used and are left out "
        f"({named}{rest})."
    )


def _text_of(value: Any) -> str | None:
    """A text without space around it, "" for nothing, None for what is no text."""
    if value is None:
        return ""
    return value.strip() if isinstance(value, str) else None


def _label_of(value: Any) -> str:
    """A label as text: 1, 1.0 and "1" are the same label; "" where there is none."""
    if value is None or value != value:  # NaN: how a table of numbers writes "nothing"
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip()


# Labels


def _label_names(path: str | Path | None, rows: _Rows) -> list[str]:
    """The labels of the training file in order. Adds notes on rare ones; raises on odd columns."""
    counts = Counter(rows.labels)
    if len(counts) < 2:
        raise DatasetError(
            f"{path} has one label only: {next(iter(counts))!r}. A classifier needs two or more."
        )
    if len(counts) > MAX_LABELS or 2 * len(counts) > len(rows.labels):
        some = ", ".join(repr(label[:40]) for label in sorted(counts)[:3])
        raise DatasetError(
            f"{path} has {len(counts):,} different labels in {len(rows.labels):,} rows "
            f"({some}, ...). Does --label-column name the right column?"
        )
    rare = sorted(label for label, count in counts.items() if count < 2)
    if rare:
        rows.notes.append(f"Labels with a single example: {', '.join(map(repr, rare))}.")
    try:
        return sorted(counts, key=int)
    except ValueError:
        return sorted(counts)


def _labelled(path: str | Path | None, rows: _Rows, label_names: Sequence[str]) -> LabelledTexts:
    index = {name: i for i, name in enumerate(label_names)}
    unknown = sorted(set(rows.labels) - set(index))
    if unknown:
        raise DatasetError(
            f"{path} has labels that training does not know: "
            f"{', '.join(repr(label[:40]) for label in unknown[:10])}. "
            f"Known: {', '.join(repr(name) for name in list(label_names)[:20])}."
        )
    return LabelledTexts(rows.texts, np.array([index[label] for label in rows.labels], np.int32))


# Splits


def _split(
    texts: Sequence[str], labels: Sequence[int], label_names: Sequence[str], held_out: list[str]
) -> tuple[dict[str, list[int]], list[str]]:
    """Indices per split, by hash; labels too rare for that are dealt out by the rank of the hash.

    Equal texts stay on one side. The notes say what was dealt out and what still misses a part.
    """
    wanted = [TRAIN, *held_out]
    side_of = {text: split_of(text, held_out) for text in texts}
    texts_of: dict[int, set[str]] = {}
    for text, label in zip(texts, labels, strict=True):
        texts_of.setdefault(label, set()).add(text)
    dealt: set[str] = set()
    dealt_labels, missing_labels = [], []
    for label, members in sorted(texts_of.items()):
        if {side_of[text] for text in members} >= set(wanted):
            continue
        free = sorted(members - dealt, key=text_hash)
        share = max(1, len(free) // 10)
        for position, text in enumerate(free):
            # Train gets the first, then each held-out part its share, train the rest.
            turn = (position - 1) // share if position else -1
            side_of[text] = held_out[turn] if 0 <= turn < len(held_out) else TRAIN
        dealt.update(free)
        dealt_labels.append(label_names[label])
    for label, members in sorted(texts_of.items()):
        sides = {side_of[text] for text in members}
        if TRAIN not in sides:  # a text with two labels went elsewhere with the other one
            side_of.update(dict.fromkeys(members, TRAIN))
            sides = {TRAIN}
        if sides < set(wanted):
            missing_labels.append(label_names[label])
    indices: dict[str, list[int]] = {TRAIN: [], VALIDATION: [], TEST: []}
    for index, text in enumerate(texts):
        indices[side_of[text]].append(index)
    notes = []
    if held_out:
        parts = ", ".join(f"{len(indices[side]):,} {side}" for side in wanted)
        notes.append(f"Split by a hash of the text: {parts}.")
    if dealt_labels:
        notes.append(
            "Too few examples for the hash alone, dealt out so that every part gets some: "
            f"{', '.join(map(repr, dealt_labels))}."
        )
    if missing_labels:
        notes.append(
            f"Not in every part, for want of examples: {', '.join(map(repr, missing_labels))}."
        )
    return indices, notes


def _fill_empty(parts: dict[str, LabelledTexts]) -> list[str]:
    """Lets an empty part of a tiny file stand for another, so that a run can still go through."""
    notes = []
    for side, others in ((TEST, (VALIDATION, TRAIN)), (VALIDATION, (TEST, TRAIN))):
        if not len(parts[side]):
            other = next(name for name in others if len(parts[name]))
            parts[side] = parts[other]
            notes.append(
                f"Too few rows for a {side} part: it is the {other} part again, "
                "so its figures say little."
            )
    return notes


def _documents(path: str | Path | None, text_column: str | None) -> tuple[list[str], list[str]]:
    path = Path(path or "").expanduser()
    if path.suffix.lower() != TEXT_SUFFIX:
        rows = _read(path, text_column, None)
        return rows.texts, rows.notes
    content, encoding = read_plain_text(path)
    found, how = documents_of(content)
    table = Table(
        ("text",), [(n, {"text": document}) for n, document in found], [], f"{encoding}; {how}"
    )
    rows = _good_rows(path, table, "text", None)
    return rows.texts, rows.notes


def _cut_by_position(
    path: str | Path | None, documents: list[str], held_out: list[str]
) -> tuple[dict[str, list[str]], str]:
    """Too few documents to deal out: the end of each goes to the held-out parts, a tenth each."""
    parts: dict[str, list[str]] = {side: [] for side in (TRAIN, *held_out)}
    for document in dict.fromkeys(documents):
        tenth = len(document) // 10
        end = len(document) - tenth * len(held_out)
        parts[TRAIN].append(document[:end])
        for i, side in enumerate(held_out):
            parts[side].append(document[end + tenth * i : end + tenth * (i + 1)])
    # A document of a few characters leaves nothing for the held-out parts.
    parts = {side: [piece for piece in pieces if piece.strip()] for side, pieces in parts.items()}
    if not all("".join(pieces).strip() for pieces in parts.values()):
        raise DatasetError(
            f"{path} holds too little text to train on: {len(documents[0])} characters."
        )
    names = " and ".join(held_out)
    return parts, f"Too few documents to split: the last tenths of the text are {names}."
