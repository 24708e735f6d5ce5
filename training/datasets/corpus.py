"""A corpus of any size: its documents a block at a time, its split, and samples of it.

The source is a .txt or .jsonl file, either of them packed by gzip, a folder of such files or a
pattern (`"texts/*.txt"`). It is divided into parts of about 16 MB that end where a document ends,
so that several threads can read it and work that was stopped goes on where it was. Nothing here
grows with the corpus but the list of parts.

Documents are those of `user_file`: what stands between blank lines, pieces of about 2,000
characters of a text without any (begun anew at every part), or the rows of a .jsonl file. So is
the split, by a hash of the document. Two things are samples, picked by another hash: the held-out
documents that figures are worked out on, and the training documents a vocabulary is made from.
"""

from __future__ import annotations

import functools
import glob
import gzip
import hashlib
import itertools
import json
import os
import re
import sys
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, cast

from training.datasets.config import DatasetConfig, DatasetError
from training.datasets.download import sha256_of
from training.datasets.encoding import SAMPLE_BYTES, decode, is_damaged
from training.datasets.examples import TEST, TRAIN, VALIDATION, TextData, split_of, text_hash
from training.datasets.sources import cache_folder
from training.datasets.tables import TEXT_SUFFIX, Table, blocks_of, pieces_of
from training.datasets.user_file import NUM_REPORTED, TEXT_NAMES, find_column, read_documents
from training.shards import locked

STREAM_FROM = 64 * 2**20  # bytes of a file that is not read into memory any more
PART_BYTES = 16 * 2**20  # of the source in a part; more where there would be over MAX_PARTS
MAX_PARTS = 1_000  # of each a few files are open
BLOCK_BYTES = 2**20  # read at a time
HELD_OUT_BYTES = 2**20  # about so much of validation and of test is kept
VOCABULARY_BYTES = 8 * 2**20  # about so much of train is what a vocabulary is made from

JSON_SUFFIX, PACKED_SUFFIX = ".jsonl", ".gz"
_PACKED = 3  # times smaller is a text that is packed, about: for the shares of the samples
_VERSION = 1  # of what is kept in the cache
BLANK_LINES, PIECES, ROWS = "blank lines", "pieces", "rows"

_BLANK_LINE = re.compile(rb"\n[^\S\n]*\n")
_LINE_END = re.compile(rb"\n")


@dataclass(frozen=True)
class Span:
    """The bytes from `start` to `end` of a file, or all of a packed one, and how to cut them."""

    path: Path
    start: int
    end: int | None
    how: str  # BLANK_LINES, PIECES or ROWS
    column: str = ""  # of ROWS

    @property
    def boundary(self) -> re.Pattern[bytes]:
        return _BLANK_LINE if self.how == BLANK_LINES else _LINE_END


@dataclass(frozen=True, eq=False)
class Corpus:
    """Where the documents are; `parts` are made of spans, each of which is read by itself."""

    name: str
    fingerprint: str  # sha256 of the content and of how it is read
    parts: tuple[tuple[Span, ...], ...]
    num_bytes: int
    held_out: tuple[str, ...]

    @property
    def folder(self) -> Path:
        """Where what is worked out from the corpus is kept."""
        return cache_folder() / "corpora" / f"{self.name}-{self.fingerprint[:12]}"

    def blocks(self, part: int) -> Iterator[Block]:
        """The documents of a part, in their order, about a megabyte of them at a time."""
        for span in self.parts[part]:
            yield from _blocks(span)

    def training_blocks(self, part: int) -> Iterator[tuple[list[str], int]]:
        """(documents of the training split, bytes read) for each block of a part."""
        for block in self.blocks(part):
            texts = [text for text in block.texts if split_of(text, self.held_out) == TRAIN]
            yield texts, block.num_bytes

    def part_bytes(self, part: int) -> int:
        """Of the source, as the progress bar counts them."""
        return sum(_span_bytes(span) for span in self.parts[part])


@dataclass
class Block:
    texts: list[str]
    num_bytes: int  # read for it
    problems: list[str] = field(default_factory=list)  # documents that are left out, and why


@dataclass(frozen=True, eq=False, kw_only=True)
class CorpusData(TextData):
    """`TextData` of a corpus that stays on disk.

    `train` holds the sample that a vocabulary is made from; all training documents, of which there
    are `num_documents`, are those of `corpus`.
    """

    corpus: Corpus
    num_documents: int


def is_streamed(config: DatasetConfig) -> bool:
    """Whether the texts of the user's file stay on disk (`dataset.streaming`)."""
    if config.streaming != "auto":
        return bool(config.streaming)
    if config.max_examples is not None:
        return False
    path = Path(config.path or "").expanduser()
    if not path.is_file():
        return path.is_dir() or _is_pattern(config.path)
    if path.suffix.lower() == PACKED_SUFFIX:
        return True
    return path.suffix.lower() in (TEXT_SUFFIX, JSON_SUFFIX) and path.stat().st_size >= STREAM_FROM


def load_corpus(config: DatasetConfig) -> CorpusData:
    """The corpus of `config.path`, surveyed once and remembered.

    Raises `DatasetError` for what cannot be streamed: other formats and encodings, `max_examples`,
    and a corpus too small for every split to get a document by hash.
    """
    if config.max_examples is not None:
        raise DatasetError(
            "dataset.max_examples picks among all texts, which dataset.streaming=true never has "
            f"together. Set dataset.streaming=false. Received: {config.max_examples}"
        )
    held_out = tuple(
        side
        for side, path in ((TEST, config.test_path), (VALIDATION, config.validation_path))
        if path is None
    )
    corpus = _corpus(config, held_out)
    found = _survey(corpus)
    num_documents = sum(part["train"] for part in found)
    parts: dict[str, list[str]] = {
        side: [text for part in found for text in part["samples"][side]]
        for side in (TRAIN, *held_out)
    }
    notes = [_describe(corpus, found, num_documents)]
    if report := _report(found):
        notes.append(report)
    for side, path in ((VALIDATION, config.validation_path), (TEST, config.test_path)):
        if path is not None:
            parts[side], file_notes = read_documents(path, config.text_column)
            notes += file_notes
    if empty := [side for side, texts in parts.items() if not texts]:
        raise DatasetError(
            f"{config.path} has too few documents for a hash to give {' and '.join(empty)} any. "
            "Set dataset.streaming=false, or name files with --validation-data and --test-data."
        )
    return CorpusData(
        parts[TRAIN],
        parts[VALIDATION],
        parts[TEST],
        tuple(notes),
        corpus=corpus,
        num_documents=num_documents,
    )


def fingerprint_of(path: str) -> str:
    """The sha256 of a file, or of the names and contents of the files of a folder or pattern.

    Remembered in this process as long as sizes and times stay. Raises OSError.
    """
    own = Path(path).expanduser()
    if not own.is_dir() and (own.is_file() or not _is_pattern(path)):
        return _sha256(own, *_stamp(own))
    files = corpus_files(path)
    named = [f"{file.name} {_sha256(file, *_stamp(file))}" for file in files]
    return hashlib.sha256("\n".join(named).encode()).hexdigest()


def corpus_files(path: str | None) -> list[Path]:
    """The files of a corpus in their order; raises `DatasetError` if there are none to be read."""
    own = Path(path or "").expanduser()
    if own.is_dir():
        files = [file for file in own.rglob("*") if file.is_file() and _suffix(file)]
    elif _is_pattern(path) and not own.is_file():
        files = [Path(name) for name in glob.glob(str(own), recursive=True)]
    else:
        files = [own]
    files = sorted(files)
    wrong = [file for file in files if not _suffix(file)]
    if wrong or not files:
        raise DatasetError(
            f"A corpus is read from {TEXT_SUFFIX} and {JSON_SUFFIX} files, packed by gzip or not: "
            "one, a folder of them, or a pattern in quotes. "
            f"Received: {path}{', which holds none' if not wrong else ''}"
        )
    if missing := [file for file in files if not file.is_file()]:
        raise DatasetError(f"{missing[0]} cannot be read: no such file.")
    return files


# Parts --------------------------------------------------------------------------------------------


def _corpus(config: DatasetConfig, held_out: tuple[str, ...]) -> Corpus:
    files = corpus_files(config.path)
    spans = [span for file in files if (span := _whole(file, config.text_column)) is not None]
    num_bytes = sum(map(_span_bytes, spans))
    if not spans:
        raise DatasetError(f"{config.path} holds no text.")
    limit = max(PART_BYTES, num_bytes // MAX_PARTS)
    parts: list[tuple[Span, ...]] = []
    waiting: list[Span] = []
    for span in spans:
        for piece in _divided(span, limit):
            waiting.append(piece)
            if 2 * sum(map(_span_bytes, waiting)) >= limit:
                parts.append(tuple(waiting))
                waiting = []
    if waiting and parts and 2 * sum(map(_span_bytes, waiting)) < limit:
        parts[-1] += tuple(waiting)  # rather than a part of its own that is hardly one
    elif waiting:
        parts.append(tuple(waiting))
    how = [_VERSION, config.text_column, list(held_out), PART_BYTES, BLOCK_BYTES]
    samples = [HELD_OUT_BYTES, VOCABULARY_BYTES]
    text = json.dumps([fingerprint_of(str(config.path)), how, samples])
    fingerprint = hashlib.sha256(text.encode()).hexdigest()
    name = "".join(
        c for c in Path(config.path or "").name.split(".")[0] if c.isalnum() or c in "-_"
    )
    return Corpus(name or "corpus", fingerprint, tuple(parts), num_bytes, held_out)


def _whole(path: Path, text_column: str | None) -> Span | None:
    """All of a file; None if it is empty."""
    with _opened(path) as file:
        head = _read(file, path, SAMPLE_BYTES)
    if not head.strip():
        return None
    _require_utf8(path, head)
    end = None if path.suffix.lower() == PACKED_SUFFIX else path.stat().st_size
    if _suffix(path) == JSON_SUFFIX:
        return Span(path, 0, end, ROWS, _text_column(path, head, text_column))
    return Span(path, 0, end, BLANK_LINES if _has_blank_lines(path) else PIECES)


def _require_utf8(path: Path, head: bytes) -> None:
    encoding = decode(head[: head.rfind(b"\n") + 1] or head)[1]
    if not encoding.startswith("UTF-8"):
        raise DatasetError(
            f"{path} seems to be in {encoding}, and a corpus that stays on disk is read as UTF-8. "
            "Convert it (iconv -t UTF-8), or set dataset.streaming=false if it fits into memory."
        )


def _text_column(path: Path, head: bytes, text_column: str | None) -> str:
    columns: dict[str, None] = {}
    for line in head.decode("utf-8-sig", errors="replace").split("\n"):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict):
            columns.update(dict.fromkeys(row))
    table = Table(tuple(columns), [], [], "JSON lines")
    return find_column(path, table, "text", text_column, TEXT_NAMES)


def _has_blank_lines(path: Path) -> bool:
    """Whether a blank line stands between two that are not."""
    before, blank = False, False
    with _opened(path) as file:
        for line in file:
            is_blank = not line.strip() or not line.decode(errors="replace").strip()
            if before and blank and not is_blank:
                return True
            before, blank = before or not is_blank, is_blank
    return False


def _divided(span: Span, limit: int) -> Iterator[Span]:
    """Pieces of about `limit` bytes that end where documents end; a packed file stays whole."""
    if span.end is None:
        yield span
        return
    count = max(round((span.end - span.start) / limit), 1)
    start = span.start
    with span.path.open("rb") as file:
        for i in range(1, count + 1):
            end = span.end
            if i < count:
                end = _boundary_after(file, span.end * i // count, span)
            if end > start:
                yield Span(span.path, start, end, span.how, span.column)
                start = end


def _boundary_after(file: BinaryIO, position: int, span: Span) -> int:
    file.seek(position)
    kept = b""
    while data := file.read(1 << 16):
        kept += data
        position += len(data)
        if match := span.boundary.search(kept):
            return position - len(kept) + match.end()
        kept = kept[max(kept.rfind(b"\n"), 0) :]
    return cast(int, span.end)


# Blocks -------------------------------------------------------------------------------------------


def _blocks(span: Span) -> Iterator[Block]:
    with _opened(span.path) as file:
        if span.start:
            file.seek(span.start)
        place = span.start
        for data, num_bytes in _whole_documents(file, span):
            text = data.decode("utf-8", errors="surrogateescape")
            if not place:
                text = text.removeprefix("\ufeff")
            yield _block(span, text, num_bytes, place)
            place += num_bytes


def _whole_documents(file: BinaryIO, span: Span) -> Iterator[tuple[bytes, int]]:
    """(bytes that end where a document ends, how many were read for them)."""
    left = None if span.end is None else span.end - span.start
    carried: list[bytes] = []  # no document ends in it
    while data := _read(file, span.path, BLOCK_BYTES if left is None else min(BLOCK_BYTES, left)):
        left = None if left is None else left - len(data)
        # A blank line may begin in what was carried and end in what is new.
        last = carried.pop() if carried else b""
        ends = [match.end() for match in span.boundary.finditer(last + data)]
        data = last + data
        if not ends:
            carried += _tail(data)
            continue
        whole = b"".join([*carried, data[: ends[-1]]])
        yield whole, len(whole)
        carried = [data[ends[-1] :]]
    rest = b"".join(carried)
    if rest:
        yield rest, len(rest)


def _tail(data: bytes) -> tuple[bytes, bytes]:
    """`data` in two, the second from its last line end on: where a blank line may have begun."""
    cut = data.rfind(b"\n")
    return (data, b"") if cut < 0 else (data[:cut], data[cut:])


def _block(span: Span, text: str, num_bytes: int, place: int) -> Block:
    block = Block([], num_bytes)
    where = f"{span.path.name}, near byte {place:,}"
    if span.how == ROWS:
        found: Iterator[Any] = (_row(line, span.column) for line in text.split("\n"))
    else:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
        cut = blocks_of if span.how == BLANK_LINES else pieces_of
        found = (document for _, document in cut(text))
    for document in found:
        if document is None:
            continue  # a blank line among rows
        if isinstance(document, _Problem):
            block.problems.append(f"{where}: {document.reason}")
        elif is_damaged(document):
            block.problems.append(f"{where}: undecodable bytes")
        elif document := document.strip():
            block.texts.append(document)
        elif span.how == ROWS:
            block.problems.append(f"{where}: empty text")
    return block


@dataclass(frozen=True)
class _Problem:
    reason: str


def _row(line: str, column: str) -> str | _Problem | None:
    if not line.strip():
        return None
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        return _Problem("undecodable bytes" if is_damaged(line) else f"not JSON: {error}")
    if not isinstance(row, dict):
        return _Problem(f"{type(row).__name__} instead of a JSON object")
    text = row.get(column, "")
    if text is None:
        return ""
    return text if isinstance(text, str) else _Problem(f"{column!r} is not a text")


# The survey ---------------------------------------------------------------------------------------


def _survey(corpus: Corpus) -> list[dict[str, Any]]:
    """Of each part: how many documents, which of them are in the samples, what cannot be used."""
    from tqdm import tqdm

    folder = corpus.folder / "survey"
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    with (
        locked(folder / "lock"),
        tqdm(
            total=corpus.num_bytes,
            desc="looking at the texts",
            unit="B",
            unit_scale=True,
            file=sys.stderr,
            dynamic_ncols=True,
            disable=None,  # where nobody looks
            leave=False,
        ) as bar,
    ):
        for part in range(len(corpus.parts)):
            found.append(_surveyed(corpus, part, folder))
            bar.update(corpus.part_bytes(part))
    return found


def _surveyed(corpus: Corpus, part: int, folder: Path) -> dict[str, Any]:
    path = folder / f"{part:05}.json"
    try:
        return cast(dict[str, Any], json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        pass  # not there yet, or cut short by something that is not ours
    found = _look_at(corpus, part)
    beside = path.with_name(f"{path.name}.{os.getpid()}.part")
    beside.write_text(json.dumps(found, ensure_ascii=False), encoding="utf-8")
    os.replace(beside, path)
    return found


def _look_at(corpus: Corpus, part: int) -> dict[str, Any]:
    shares = {side: HELD_OUT_BYTES * 10 / corpus.num_bytes for side in (VALIDATION, TEST)}
    shares[TRAIN] = VOCABULARY_BYTES / corpus.num_bytes
    counts = dict.fromkeys((TRAIN, *corpus.held_out), 0)
    samples: dict[str, list[str]] = {side: [] for side in counts}
    problems: list[str] = []
    num_problems = 0
    for block in corpus.blocks(part):
        for text in block.texts:
            side = split_of(text, corpus.held_out)
            counts[side] += 1
            if shares[side] >= 1 or text_hash("sample:" + text) < shares[side] * 2**128:
                samples[side].append(text)
        num_problems += len(block.problems)
        problems += block.problems[: NUM_REPORTED - len(problems)]
    return {
        "train": counts.pop(TRAIN),
        "held_out": sum(counts.values()),
        "num_problems": num_problems,
        "problems": problems,
        "samples": samples,
    }


def _describe(corpus: Corpus, found: Sequence[dict[str, Any]], num_documents: int) -> str:
    num_held_out = sum(part["held_out"] for part in found)
    return (
        f"{corpus.name}: {corpus.num_bytes / 1e6:,.0f} MB, read from disk in {len(corpus.parts):,} "
        f"parts. Split by a hash of the document: {num_documents:,} to train on, {num_held_out:,} "
        "held out, of which a sample by hash is used. Repeats are not counted; equal documents "
        "are on one side."
    )


def _report(found: Sequence[dict[str, Any]]) -> str:
    num_problems = sum(part["num_problems"] for part in found)
    num_good = sum(part["train"] + part["held_out"] for part in found)
    if not num_problems:
        return ""
    named = list(itertools.chain.from_iterable(part["problems"] for part in found))[:NUM_REPORTED]
    more = num_problems - len(named)
    rest = f"; and {more:,} more" if more else ""
    rest = f"; and {more:,} more" if more else ""
    report = (
        f"{num_problems:,} of {num_problems + num_good:,} documents cannot be used and are left "
        f"out ({'; '.join(named)}{rest})."
    )
    if num_problems > num_good:
        raise DatasetError(report)
    return report


# Files --------------------------------------------------------------------------------------------


def _suffix(path: Path) -> str | None:
    """.txt or .jsonl, also of a packed file; None for any other."""
    name = path.name.lower().removesuffix(PACKED_SUFFIX)
    return next((suffix for suffix in (TEXT_SUFFIX, JSON_SUFFIX) if name.endswith(suffix)), None)


def _is_pattern(path: str | None) -> bool:
    return any(character in (path or "") for character in "*?[")


def _opened(path: Path) -> BinaryIO:
    opened = gzip.open(path) if path.suffix.lower() == PACKED_SUFFIX else path.open("rb")
    return cast(BinaryIO, opened)


def _read(file: BinaryIO, path: Path, num_bytes: int) -> bytes:
    try:
        return file.read(num_bytes)
    except (OSError, EOFError, zlib.error) as error:
        raise DatasetError(f"{path} cannot be read: {error}.") from error


def _span_bytes(span: Span) -> int:
    if span.end is None:
        return span.path.stat().st_size * _PACKED
    return span.end - span.start


def _stamp(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns


@functools.lru_cache(maxsize=100_000)
def _sha256(path: Path, size: int, modified: int) -> str:
    return sha256_of(path)
