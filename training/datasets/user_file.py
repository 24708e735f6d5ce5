"""The user's own file: texts and labels found, bad rows reported, splits made.

Nothing is left out in silence: every note names the file, what was read and what was not.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from training.datasets.config import (
    CLASS,
    GRADE,
    LABELS,
    NUMBER,
    DatasetConfig,
    DatasetError,
)
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
    """The good rows of one file; `labels` is empty where none were asked for.

    A label is what stands in the cell: a text, or a list where a format has lists.
    """

    texts: list[str]
    labels: list[Any]
    notes: list[str]


# What the rest of training calls


def load_classification_file(config: DatasetConfig, target: str = CLASS) -> ClassificationData:
    """The labelled texts of `config.path`, with the user's validation and test files if named.

    Labels are those of the training file: numbers in their order, else by alphabet, or of grades as
    `config.label_order` says; of `target` number there are none. Raises `DatasetError`.
    """
    rows = _read(config.path, config.text_column, config.label_column or _FIND, target)
    label_names = _label_names(config, rows, target)
    train = _labelled(config.path, rows, label_names, target, config.label_separator)
    parts, notes = {}, rows.notes
    for side, path in ((VALIDATION, config.validation_path), (TEST, config.test_path)):
        if path is not None:
            parts[side], file_notes = read_labelled(
                path,
                config.text_column,
                config.label_column,
                label_names,
                target=target,
                separator=config.label_separator,
            )
            notes += file_notes
    held_out = [side for side in (TEST, VALIDATION) if side not in parts]
    names = label_names or ["number"]
    sides, split_notes = _split(train.texts, _labels_by_row(train), names, held_out)
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
        sides, split_notes = _split(documents, [[0]] * len(documents), ["document"], held_out)
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
    *,
    target: str = CLASS,
    separator: str = "|",
) -> tuple[LabelledTexts, tuple[str, ...]]:
    """The labelled texts of a file whose labels are already known, and sentences for the log.

    Raises `DatasetError`, also for labels that are not in `label_names`.
    """
    rows = _read(path, text_column, label_column or _FIND, target)
    return _labelled(path, rows, label_names, target, separator), tuple(rows.notes)


# Rows


_FIND = ""  # for a column that is to be found by its name


def _read(
    path: str | Path | None,
    text_column: str | None,
    label_column: str | None,
    target: str = CLASS,
) -> _Rows:
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
    text_name = find_column(path, table, "text", text_column, TEXT_NAMES)
    label_name = None
    if label_column is not None:
        label_name = find_column(path, table, "label", label_column, LABEL_NAMES)
    return _good_rows(path, table, text_name, label_name, _READ_LABEL[target])


def find_column(
    path: Path, table: Table, role: str, wanted: str | None, usual: Sequence[str]
) -> str:
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


def _good_rows(
    path: Path,
    table: Table,
    text_name: str,
    label_name: str | None,
    read_label: Callable[[Any], Any] = str,
) -> _Rows:
    """Rows with a text, and a label if `label_name` is given. Raises if most rows are bad."""
    problems = list(table.problems)
    texts, labels = [], []
    for number, row in table.rows:
        text, label, wrong = _text_of(row.get(text_name)), None, ""
        if label_name is not None:
            try:
                label = read_label(row.get(label_name))
            except ValueError as error:
                wrong = str(error)
        if text is None:
            problems.append((number, f"{text_name!r} is not a text"))
        elif is_damaged(text) or is_damaged(str(label or "")):
            problems.append((number, "undecodable bytes"))
        elif not text:
            problems.append((number, "empty text"))
        elif wrong:
            problems.append((number, wrong))
        elif label_name is not None and label == "":
            problems.append((number, "no label"))
        else:
            texts.append(text)
            labels.append(label)
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


def _labels_of(value: Any) -> Any:
    """Several labels: a text, which a separator divides, or where a format has lists, a list."""
    if isinstance(value, list | tuple | np.ndarray):
        return [label for label in map(_label_of, value) if label]
    text = _label_of(value)
    if not text:  # forgotten, or none of them? Only the user knows
        raise ValueError("no label; a text that has none says so by the separator alone")
    return text


def _number_of(value: Any) -> Any:
    """A finite number, "" where there is none; raises ValueError for what is not one."""
    text = _label_of(value)
    if not text:
        return ""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number) or isinstance(value, bool):
        raise ValueError(f"{text[:40]!r} is not a number")
    return number


_READ_LABEL: dict[str, Callable[[Any], Any]] = {
    CLASS: _label_of,
    GRADE: _label_of,
    LABELS: _labels_of,
    NUMBER: _number_of,
}


# Labels


def _label_names(config: DatasetConfig, rows: _Rows, target: str) -> list[str]:
    """The labels of the training file in order. Adds notes on rare ones; raises on odd columns."""
    path = config.path
    if target == NUMBER:
        if len(set(rows.labels)) < 2:
            raise DatasetError(f"{path} has one number only: {rows.labels[0]:g}.")
        return []
    several = _divided(rows, config.label_separator) if target == LABELS else None
    counts = Counter(label for row in several for label in row) if several else Counter(rows.labels)
    if several is not None and not counts:
        raise DatasetError(
            f"{path} has no label in any row. Does --label-column name the right one?"
        )
    if several is None and len(counts) < 2:
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
    if config.label_order is not None and target == GRADE:
        return _ordered(config, counts)
    try:
        return sorted(counts, key=float if target == GRADE else int)
    except ValueError:
        if target != GRADE:
            return sorted(counts)
    example = config.label_separator.join(sorted(counts))
    raise DatasetError(
        f"target=grade needs to know the order of the labels of {path}, which are no numbers. Say "
        f"it from the lowest to the highest: --set 'dataset.label_order={example}' has them by "
        "alphabet."
    )


def _ordered(config: DatasetConfig, counts: Iterable[str]) -> list[str]:
    parts = (config.label_order or "").split(config.label_separator)
    order, found = [part.strip() for part in parts], sorted(counts)
    if len(set(order)) < len(order) or not set(found) <= set(order):
        raise DatasetError(
            f"dataset.label_order must name each label of {config.path} once, divided by "
            f"{config.label_separator!r}. Labels there: {', '.join(map(repr, found))}. "
            f"Received: {config.label_order!r}"
        )
    return order


def _divided(rows: _Rows, separator: str) -> list[list[str]]:
    """The labels of each row; a cell that holds separators alone has none."""
    return [
        row
        if isinstance(row, list)
        else [p for part in row.split(separator) if (p := part.strip())]
        for row in rows.labels
    ]


def _labels_by_row(split: LabelledTexts) -> list[list[int]]:
    """The indices of each row's labels; 0 for a number."""
    if split.labels.ndim == 2:
        return [np.flatnonzero(row).tolist() for row in split.labels]
    if split.labels.dtype == np.float32:
        return [[0]] * len(split)
    return [[label] for label in split.labels.tolist()]


def _labelled(
    path: str | Path | None,
    rows: _Rows,
    label_names: Sequence[str],
    target: str,
    separator: str,
) -> LabelledTexts:
    if target == NUMBER:
        return LabelledTexts(rows.texts, np.array(rows.labels, np.float32))
    several = _divided(rows, separator) if target == LABELS else [[label] for label in rows.labels]
    index = {name: i for i, name in enumerate(label_names)}
    unknown = sorted({label for row in several for label in row} - set(index))
    if unknown:
        raise DatasetError(
            f"{path} has labels that training does not know: "
            f"{', '.join(repr(label[:40]) for label in unknown[:10])}. "
            f"Known: {', '.join(repr(name) for name in list(label_names)[:20])}."
        )
    if target == LABELS:
        is_label = np.zeros((len(several), len(label_names)), bool)
        for row, labels in zip(is_label, several, strict=True):
            row[[index[label] for label in labels]] = True
        return LabelledTexts(rows.texts, is_label)
    return LabelledTexts(rows.texts, np.array([index[label] for label in rows.labels], np.int32))


# Splits


def _split(
    texts: Sequence[str],
    labels: Sequence[Sequence[int]],
    label_names: Sequence[str],
    held_out: list[str],
) -> tuple[dict[str, list[int]], list[str]]:
    """Indices per split, by hash; labels too rare for that are dealt out by the rank of the hash.

    Equal texts stay on one side. The notes say what was dealt out and what still misses a part.
    """
    wanted = [TRAIN, *held_out]
    side_of = {text: split_of(text, held_out) for text in texts}
    texts_of: dict[int, set[str]] = {}
    for text, row in zip(texts, labels, strict=True):
        for label in row:
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
