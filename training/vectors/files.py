"""Files of word vectors: GloVe text, word2vec text and word2vec binary, each also gzipped.

What a file is follows from its first bytes. Of a large file only the words that are asked for are
kept, and only their numbers are converted and checked; of every other line the number of fields is
checked. Nothing is left out in silence: `Faults` names the lines that could not be used.
Axes: V words, D numbers of a vector.
"""

from __future__ import annotations

import collections
import gzip
import os
import re
import unicodedata
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

from training.datasets import encoding

_SNIFFED_LINES = 100  # whose most frequent length is that of the vectors
_HEADER = re.compile(rb"[ \t]*([0-9]+)[ \t]+([0-9]+)[ \t\r]*\n?")
_CONTROL = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f]")  # bytes that no text has
_NUM_NAMED = 3  # faults that are named one by one
_LONGEST_WORD = 2_000  # bytes, in a binary file; longer than that it is none


class VectorsError(ValueError):
    """A file of vectors that cannot be used; the message says what it is and what to do."""


@dataclass(frozen=True, eq=False)
class WordVectors:
    """Different words in the order of a file, and `matrix` float32 (V, D)."""

    words: list[str]
    matrix: np.ndarray


@dataclass
class Faults:
    """Places of a file that could not be used: how many, and the first of them with reasons."""

    place: str = "line"  # of a text; of a binary file it is the word
    count: int = 0
    named: list[str] = field(default_factory=list)

    def add(self, number: int, reason: str) -> None:
        self.count += 1
        if len(self.named) < _NUM_NAMED:
            self.named.append(f"{self.place} {number}: {reason}")

    def __str__(self) -> str:
        more = f"; and {self.count - len(self.named):,} more" * (self.count > len(self.named))
        places = f"{self.count:,} {self.place}{'s' * (self.count != 1)}"
        return f"{places} left out: {'; '.join(self.named)}{more}"


@dataclass(frozen=True, eq=False)
class Lookup:
    """What a file knows of a list of words.

    `rows` int32 (F,) are the places in that list whose word was found, ascending, `values` float32
    (F, D) their vectors, `num_loose` how many were found in another case or width only.
    """

    rows: np.ndarray
    values: np.ndarray
    num_loose: int
    faults: Faults


def read_vectors(path: str | Path) -> tuple[WordVectors, Faults]:
    """All of a file; raises VectorsError."""
    faults, words, vectors = Faults(), dict[str, int](), []
    for number, word, numbers in _entries(Path(path), faults):
        if word in words:
            faults.add(number, f"{word!r} again, first on {faults.place} {words[word]}")
        elif (vector := _vector(numbers, number, faults)) is not None:
            words[word] = number
            vectors.append(vector)
    if not words:
        raise VectorsError(f"{path} has no vector that can be read. {faults}.")
    return WordVectors(list(words), np.stack(vectors)), faults


def look_up(path: str | Path, words: Sequence[str]) -> Lookup:
    """The vectors of `words`, all different, in a file that is read once and not kept.

    A word that the file does not have as it stands takes the first entry that is equal to it but
    for case and width (NFKC, case folding, the typographic apostrophe as the plain one): files
    made of cased text serve a tokenizer that folds case. Raises VectorsError.
    """
    faults, exact = Faults(), {word: i for i, word in enumerate(words)}
    loose = collections.defaultdict(list)
    for i, word in enumerate(words):
        loose[_loosely(word)].append(i)
    first_on: dict[str, int] = {}
    found: dict[int, np.ndarray] = {}
    found_loosely: dict[int, np.ndarray] = {}
    for number, word, numbers in _entries(Path(path), faults):
        wanted = [i for i in loose.get(_loosely(word), ()) if i not in found_loosely]
        if word not in exact and not wanted:
            continue
        if word in first_on:
            faults.add(number, f"{word!r} again, first on {faults.place} {first_on[word]}")
            continue
        vector = _vector(numbers, number, faults)
        if vector is None:
            continue
        first_on[word] = number
        if word in exact:
            found[exact[word]] = vector
        found_loosely |= dict.fromkeys(wanted, vector)
    num_loose = len(found_loosely.keys() - found.keys())
    found = found_loosely | found
    if not found:
        example = ", ".join(map(repr, words[:5]))
        raise VectorsError(
            f"{path} has none of the {len(words):,} words of the vocabulary ({example}, ...): is "
            f"it of another language?{f' {faults}.' * (faults.count > 0)}"
        )
    rows = sorted(found)
    return Lookup(
        np.array(rows, np.int32), np.stack([found[row] for row in rows]), num_loose, faults
    )


def write_vectors(path: Path, vectors: WordVectors) -> None:
    """As word2vec text, header first, nine digits: float32 comes back bit for bit."""
    beside = path.with_name(path.name + ".part")
    with beside.open("w", encoding="utf-8", newline="\n") as file:
        file.write("{} {}\n".format(*vectors.matrix.shape))
        for word, vector in zip(vectors.words, vectors.matrix.tolist(), strict=True):
            file.write(f"{word} {' '.join(f'{x:.9g}' for x in vector)}\n")
    os.replace(beside, path)


def _loosely(word: str) -> str:
    return unicodedata.normalize("NFKC", word).casefold().replace("’", "'")


def _vector(numbers: bytes | list[bytes], number: int, faults: Faults) -> np.ndarray | None:
    """float32 (D,); None, and a fault, for what is no vector of finite numbers."""
    if isinstance(numbers, bytes):
        vector = np.frombuffer(numbers, "<f4").astype(np.float32)
    else:
        try:
            values = np.array([float(x) for x in numbers])
        except ValueError as error:
            faults.add(number, str(error).replace("could not convert string to float", "no number"))
            return None
        with np.errstate(over="ignore"):  # becomes infinite, and is told
            vector = values.astype(np.float32)
    if not np.isfinite(vector).all():
        faults.add(number, f"holds {vector[~np.isfinite(vector)][0]}")
        return None
    return vector


# Entries of a file --------------------------------------------------------------------------------

_Entry = tuple[int, str, bytes | list[bytes]]  # line or number of the word, word, its numbers


def _entries(path: Path, faults: Faults) -> Iterator[_Entry]:
    """Every entry with as many fields as it should have, its numbers not converted yet."""
    try:
        with path.open("rb") as raw:
            is_gzip = raw.read(2) == b"\x1f\x8b"
        with (
            cast(BinaryIO, gzip.open(path)) if is_gzip else path.open("rb")
        ) as file:  # both are buffered
            yield from _entries_of(path, file, faults)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise VectorsError(f"{path} is cut short or damaged: {error}. Fetch it again.") from error
    except OSError as error:
        raise VectorsError(f"{path} cannot be read: {error.strerror or error}.") from error


def _entries_of(path: Path, file: BinaryIO, faults: Faults) -> Iterator[_Entry]:
    head = file.read(encoding.SAMPLE_BYTES)
    if head.startswith(b"PK\x03\x04"):
        raise VectorsError(f"{path} is a zip archive. Unpack it and name the file inside.")
    file.seek(3 if head.startswith(b"\xef\xbb\xbf") else 0)
    head = head.removeprefix(b"\xef\xbb\xbf")
    header = _HEADER.match(head)
    if header:
        file.readline()
        count, size = (int(number) for number in header.groups())
        if not size:
            raise VectorsError(f"{path} says in its first line that its vectors have no numbers.")
        if _CONTROL.search(head, header.end()):
            faults.place = "word"
            yield from _binary_entries(path, file, count, size, faults)
            return
        num_seen = yield from _text_entries(path, file, size, 2, faults)
        if num_seen != count:
            faults.add(1, f"promises {count:,} words, and {num_seen:,} lines follow")
        return
    if _CONTROL.search(head):
        marked = head.startswith(tuple(mark for mark, _ in encoding.BYTE_ORDER_MARKS))
        if marked or head.count(0) > len(head) // 5:  # so many zeros have numbers in UTF-16
            name = encoding.decode(head)[1]
            raise _wrong_encoding(path, "its first bytes are not UTF-8", name)
        raise VectorsError(
            f"{path} is neither text nor word2vec binary, which begins with a line of two numbers: "
            "how many words, and how long their vectors are."
        )
    yield from _text_entries(path, file, _size_of(path, head), 1, faults)


def _size_of(path: Path, head: bytes) -> int:
    """How long the vectors of a text without a header are: as most of its first lines say."""
    lines = head.split(b"\n")
    whole = lines[:-1] or lines  # the last one may be cut
    counts = collections.Counter(len(line.split()) for line in whole[:_SNIFFED_LINES])
    size = counts.most_common(1)[0][0] - 1
    if size < 1:
        raise VectorsError(
            f"{path} holds no vectors: expected lines of a word and its numbers, blanks between. "
            f"Its first line is {whole[0][:60]!r}"
        )
    return size


def _text_entries(path: Path, file: BinaryIO, size: int, first: int, faults: Faults):
    """The entries of lines from number `first` on; returns how many lines there were."""
    number = first - 1
    for number, line in enumerate(file, first):
        line = line.rstrip(b" \t\r\n")
        if b"\t" in line:
            line = line.replace(b"\t", b" ")
        # From the right: GloVe's words may have blanks inside.
        word, *numbers = line.rsplit(b" ", size)
        try:
            text = word.decode("utf-8")
        except UnicodeDecodeError as error:
            byte = f"line {number} has the byte 0x{word[error.start]:02x}, which is not UTF-8 there"
            raise _wrong_encoding(path, byte, _name_of_encoding(word, file)) from error
        if len(numbers) != size or not text:
            faults.add(number, f"{len(numbers) if word else 0} numbers in place of {size}")
        elif b" " in word and _is_number(word.rpartition(b" ")[2]):
            faults.add(number, f"more than {size} numbers")
        else:
            yield number, text, numbers
    return number - first + 1


def _is_number(text: bytes) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _binary_entries(
    path: Path, file: BinaryIO, count: int, size: int, faults: Faults
) -> Iterator[_Entry]:
    """`count` times a word, a blank and `size` float32, little-endian; line ends may be between."""
    for number in range(1, count + 1):
        word = bytearray()
        while (byte := file.read(1)) != b" ":
            if not byte or len(word) > _LONGEST_WORD:
                raise VectorsError(
                    f"{path} promises {count:,} words of {size} numbers, and word {number} is not "
                    "there: it is cut short or damaged. Fetch it again."
                )
            if word or byte != b"\n":
                word += byte
        numbers = file.read(4 * size)
        if len(numbers) < 4 * size:
            raise VectorsError(f"{path} ends inside the vector of word {number} of {count:,}.")
        try:
            text = word.decode("utf-8")
        except UnicodeDecodeError:  # word2vec cuts long words by bytes: one here and there is usual
            faults.add(number, f"{bytes(word)!r} is not UTF-8")
            continue
        yield number, text, numbers


def _name_of_encoding(word: bytes, rest: Iterable[bytes]) -> str:
    """What words that are not UTF-8 look like, `word` and those of the lines after it."""
    telling, size = [word], 0
    for line in rest:
        if not line.isascii():
            telling.append(line.partition(b" ")[0])
            size += len(line)
        if size > encoding.SAMPLE_BYTES:
            break
    return encoding.decode(b"\n".join(telling))[1]


def _wrong_encoding(path: Path, what: str, name: str) -> VectorsError:
    if name == "UTF-8":  # most other lines are
        return VectorsError(f"{path}: {what}, though most of it is UTF-8: it is damaged there.")
    codec = next(codec for codec, known in encoding.NAMES.items() if known == name).upper()
    codec = codec.replace("_", "-").replace("-LE", "LE").replace("-BE", "BE")  # as iconv calls it
    return VectorsError(
        f"{path}: {what}. It looks like {name}, in which words would not match. Convert it first: "
        f"iconv -f {codec} -t UTF-8 {path.name} > utf8.txt"
    )
