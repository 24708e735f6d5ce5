"""Rows of a user's file, each with the line it starts on, whatever the format.

A row that cannot be read is kept as a problem with its line number. What a row means (text,
label) is decided in `user_file`.
"""

import csv
import io
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from training.datasets.config import DatasetError
from training.datasets.encoding import decode, is_damaged

DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs"}
# Never in a text: with it, csv reads a file of one column, still minding quotes.
NO_DELIMITER = "\x1f"
SNIFFED_CHARACTERS = 64 * 1024
TEXT_SUFFIX = ".txt"
DOCUMENT_CHARACTERS = 2_000


@dataclass(frozen=True)
class Table:
    """Rows as (line number, {column: value}) and problems as (line number, what is wrong)."""

    columns: tuple[str, ...]
    rows: list[tuple[int, dict[str, Any]]]
    problems: list[tuple[int, str]]
    description: str  # "GB18030, separated by commas"
    unit: str = "line"  # what the numbers count
    remarks: tuple[str, ...] = field(default=())


def read_table(path: Path) -> Table:
    """Reads .csv, .tsv, .jsonl or .parquet. Raises `DatasetError` if it is none of these."""
    suffix = path.suffix.lower()
    if suffix not in READERS:
        raise DatasetError(
            f"{path} must end in {', '.join(READERS)}, or {TEXT_SUFFIX} for plain text. "
            f"Received: {suffix!r}"
        )
    return READERS[suffix](path)


def read_plain_text(path: Path) -> tuple[str, str]:
    """The text of a file with "\\n" for every line end, and the name of its encoding."""
    text, encoding = decode(_bytes_of(path))
    return re.sub(r"\r\n?", "\n", text), encoding


def documents_of(text: str) -> tuple[list[tuple[int, str]], str]:
    """(line number, document) of a plain text, and a sentence on how it was cut.

    Blank lines separate documents. A text without any is cut at line ends into pieces of about
    2,000 characters; a line longer than that is cut after a sentence or a word.
    """
    blocks = list(blocks_of(text))
    if len(blocks) != 1:
        return blocks, "documents are separated by blank lines"
    number, whole = blocks[0]
    sentence = f"no blank lines, so cut into pieces of about {DOCUMENT_CHARACTERS:,} characters"
    return list(pieces_of(whole, number)), sentence


def blocks_of(text: str) -> Iterator[tuple[int, str]]:
    """(line number, lines) of what stands between blank lines."""
    number, seen = 1, 0
    for match in re.finditer(r"[^\n]*\S[^\n]*(?:\n[^\n]*\S[^\n]*)*", text):
        number += text.count("\n", seen, match.start())
        seen = match.start()
        yield number, match[0].rstrip()


def pieces_of(text: str, number: int = 1) -> Iterator[tuple[int, str]]:
    """(line number, piece) of a text that is cut at line ends, after a sentence or a word."""
    start, piece = number, ""
    for offset, line in enumerate(text.split("\n")):
        for part in _short_enough(line):
            if piece and len(piece) + len(part) > DOCUMENT_CHARACTERS:
                yield start, piece.rstrip()
                start, piece = number + offset, ""
            piece += part
        piece += "\n"
    yield start, piece.rstrip()


def _short_enough(line: str) -> Iterator[str]:
    while len(line) > DOCUMENT_CHARACTERS:
        window = line[:DOCUMENT_CHARACTERS]
        ends = [m.end() for m in re.finditer(r"[.!?。！？]+[\"'”’」]*\s*", window)]
        ends = ends or [m.end() for m in re.finditer(r"\s+", window)] or [len(window)]
        yield line[: ends[-1]]
        line = line[ends[-1] :]
    yield line


def _read_delimited(path: Path) -> Table:
    """CSV and TSV with a header line; the separator is found, quoted fields may span lines."""
    # A long document in one field is no mistake. The limit is csv's own and global.
    csv.field_size_limit(2**31 - 1)
    text, encoding = decode(_bytes_of(path))
    delimiter = _delimiter_of(text, "\t" if path.suffix.lower() == ".tsv" else ",")
    (columns, rows, problems), remark = _parse_delimited(text, delimiter)
    separated = DELIMITERS.get(delimiter)
    return Table(
        columns,
        rows,
        problems,
        f"{encoding}, separated by {separated}" if separated else f"{encoding}, one column",
        remarks=(remark,) if remark else (),
    )


def _delimiter_of(text: str, usual: str) -> str:
    """The separator under which most records have as many fields as the header, at least two."""

    def score(delimiter: str) -> float:
        sample = io.StringIO(text[:SNIFFED_CHARACTERS], newline="")
        records = [record for record in csv.reader(sample, delimiter=delimiter) if record]
        if not records or len(records[0]) < 2:
            return 0.0
        return sum(len(record) == len(records[0]) for record in records) / len(records)

    scores = {delimiter: score(delimiter) for delimiter in (usual, *DELIMITERS)}
    best = max(scores, key=lambda delimiter: scores[delimiter])
    return best if scores[best] > 0 else NO_DELIMITER


_Parsed = tuple[tuple[str, ...], list[tuple[int, dict[str, Any]]], list[tuple[int, str]]]


def _parse_delimited(text: str, delimiter: str) -> tuple[_Parsed, str]:
    """Reads by the rules of CSV; where quotes break them, whichever reading loses fewer rows."""
    try:
        return _parse_records(text, delimiter, strict=True), ""
    except csv.Error as error:
        reason = str(error)
    # One stray quote at the start of a field would swallow every line up to the next one.
    lenient = _parse_records(text, delimiter)
    literal = _parse_records(text, delimiter, quoting=csv.QUOTE_NONE)
    if len(literal[1]) > len(lenient[1]):
        return (
            literal,
            f"its quotation marks break the rules of CSV and were read as text ({reason})",
        )
    return lenient, f"some quotation marks break the rules of CSV ({reason})"


def _parse_records(text: str, delimiter: str, **options: Any) -> _Parsed:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, **options)
    columns: tuple[str, ...] = ()
    rows: list[tuple[int, dict[str, Any]]] = []
    problems: list[tuple[int, str]] = []
    start = 1
    for record in reader:
        line, start = start, reader.line_num + 1
        if not record:
            continue
        if not columns:
            columns = tuple(name.strip() for name in record)
        elif len(record) != len(columns):
            problems.append((line, f"expected {len(columns)} fields, found {len(record)}"))
        else:
            rows.append((line, dict(zip(columns, record, strict=True))))
    return columns, rows, problems


def _read_json_lines(path: Path) -> Table:
    """One JSON object per line; columns are all names that occur."""
    text, encoding = decode(_bytes_of(path))
    rows: list[tuple[int, dict[str, Any]]] = []
    problems: list[tuple[int, str]] = []
    columns: dict[str, None] = {}  # an ordered set
    # "\n" alone ends a line: U+2028 may stand inside a JSON string.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            reason = "undecodable bytes" if is_damaged(line) else f"not JSON: {error}"
            problems.append((number, reason))
            continue
        if not isinstance(value, dict):
            problems.append((number, f"{type(value).__name__} instead of a JSON object"))
            continue
        rows.append((number, value))
        columns.update(dict.fromkeys(value))
    return Table(tuple(columns), rows, problems, f"{encoding}, JSON lines")


def _read_parquet(path: Path) -> Table:
    """All columns of a Parquet file; numbers count rows from 1."""
    import pyarrow
    import pyarrow.parquet

    _bytes_of(path, count=0)  # for its error about a missing file
    try:
        table = pyarrow.parquet.read_table(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise DatasetError(f"{path} is not a Parquet file: {error}") from error
    rows = list(enumerate(table.to_pylist(), start=1))
    return Table(tuple(table.column_names), rows, [], "Parquet", unit="row")


def _bytes_of(path: Path, count: int = -1) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(count)
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror}.") from error
    if data.startswith(b"PK\x03\x04"):
        raise DatasetError(
            f"{path} is a zip archive or an Excel workbook. Save it as CSV and name that file."
        )
    return data


READERS: dict[str, Callable[[Path], Table]] = {
    ".csv": _read_delimited,
    ".tsv": _read_delimited,
    ".jsonl": _read_json_lines,
    ".parquet": _read_parquet,
}
