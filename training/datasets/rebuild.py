"""Makes the files of `sources.json` that are not stored anywhere as one file.

Each maker returns the exact bytes whose sha256 is pinned: rows in a fixed order, JSON with a space
after separators, gzip at level 9 without a name or a time.
"""

import base64
import csv
import gzip
import hashlib
import io
import json
import re
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from training.datasets.config import DatasetError

IMDB_VALIDATION_FILE = Path(__file__).with_name("imdb_validation.json")

# (what was downloaded, the entry's options, files of the same data set that are already there)
Maker = Callable[[Sequence[Path], Mapping[str, Any], Mapping[str, Path]], bytes]


def zip_member(
    downloads: Sequence[Path], options: Mapping[str, Any], located: Mapping[str, Path]
) -> bytes:
    """One file of a zip archive, wherever it lies inside."""
    with zipfile.ZipFile(downloads[0]) as archive:
        for name in archive.namelist():
            if name.rsplit("/", 1)[-1] == options["member"] and not name.startswith("__MACOSX"):
                return archive.read(name)
    raise DatasetError(f"{downloads[0].name} holds no file {options['member']}")


def imdb_reviews(
    downloads: Sequence[Path], options: Mapping[str, Any], located: Mapping[str, Path]
) -> bytes:
    """One split of aclImdb_v1.tar.gz, a JSON line per review in the order of md5(id).

    The archive knows train and test. Every fifth of the 25,000 training reviews is validation;
    `imdb_validation.json` says which: per class, bit n of the base64 bytes stands for review n.
    """
    split = options["split"]
    folder = "test" if split == "test" else "train"
    bits = {
        label: base64.b64decode(encoded)
        for label, encoded in json.loads(IMDB_VALIDATION_FILE.read_text(encoding="utf-8")).items()
    }
    rows = []
    for match, content in _members(downloads[0], rf"[^/]+/{folder}/(neg|pos)/((\d+)_(\d+))\.txt"):
        label, number = match[1], int(match[3])
        is_validation = bool(bits[label][number // 8] >> number % 8 & 1)
        if split == "test" or is_validation == (split == "val"):
            rows.append(
                {
                    "id": f"{split}/{label}/{match[2]}",
                    "label": label,
                    "rating": int(match[4]),
                    "text": content.decode("utf-8"),
                }
            )
    return packed_json_lines(_by_hashed_id(rows))


def newsgroup_posts(
    downloads: Sequence[Path], options: Mapping[str, Any], located: Mapping[str, Path]
) -> bytes:
    """One split of 20news-bydate, a JSON line per post in the order of md5(id)."""
    split = options["split"]
    rows = [
        {
            "id": f"{split}/{match[1]}/{match[2]}",
            "label": match[1],
            "text": content.decode("latin-1"),
        }
        for match, content in _members(
            downloads[0], rf"(?:.*/)?20news-bydate-{split}/([^/]+)/(\d+)"
        )
    ]
    return packed_json_lines(_by_hashed_id(rows))


def poems(
    downloads: Sequence[Path], options: Mapping[str, Any], located: Mapping[str, Path]
) -> bytes:
    """The numbered JSON files joined in order, a line per poem."""
    rows = []
    first, last, step = options["numbers"]
    for path, number in zip(downloads, range(first, last + 1, step), strict=True):
        for poem in json.loads(path.read_text(encoding="utf-8")):
            rows.append(
                {
                    "title": poem["title"],
                    "author": poem["author"],
                    "lines": poem["paragraphs"],
                    "src": f"poet.tang.{number}.json",
                }
            )
    return packed_json_lines(rows)


def ag_news_sample(
    downloads: Sequence[Path], options: Mapping[str, Any], located: Mapping[str, Path]
) -> bytes:
    """ "text,label" with labels 0-3 becomes "label","text" with labels 1-4, test rows left out."""
    with located[options["test"]].open(encoding="utf-8", newline="") as file:
        test_texts = {f"{title} {description}" for _, title, description in csv.reader(file)}
    output = io.StringIO()
    writer = csv.writer(output, quoting=csv.QUOTE_ALL, lineterminator="\n")
    with downloads[0].open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if row["text"] not in test_texts:
                writer.writerow([int(row["label"]) + 1, row["text"]])
    return output.getvalue().encode("utf-8")


MAKERS: dict[str, Maker] = {
    "zip_member": zip_member,
    "imdb_reviews": imdb_reviews,
    "newsgroup_posts": newsgroup_posts,
    "poems": poems,
    "ag_news_sample": ag_news_sample,
}


def urls_of(url: str, options: Mapping[str, Any]) -> list[str]:
    """The addresses an entry needs: `url`, or one for each of `options["numbers"]`.

    `numbers` is (first, last, step) for the `{number}` in the address.
    """
    if "numbers" not in options:
        return [url]
    first, last, step = options["numbers"]
    return [url.format(number=number) for number in range(first, last + 1, step)]


def packed_json_lines(rows: Iterable[Mapping[str, Any]]) -> bytes:
    """JSON lines in gzip, the same bytes for the same rows with the zlib of CPython."""
    buffer = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", fileobj=buffer, compresslevel=9, mtime=0) as file:
        for row in rows:
            file.write((json.dumps(row, ensure_ascii=False) + "\n").encode("utf-8"))
    return buffer.getvalue()


def _by_hashed_id(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    def hashed_id(row: dict[str, Any]) -> str:
        return hashlib.md5(row["id"].encode("utf-8"), usedforsecurity=False).hexdigest()

    return sorted(rows, key=hashed_id)


def _members(archive_path: Path, pattern: str) -> Iterator[tuple[re.Match[str], bytes]]:
    """Files of a .tar.gz whose whole name matches; nothing is unpacked to the disk."""
    with tarfile.open(archive_path, "r:gz") as archive:
        for member in archive:
            match = re.fullmatch(pattern, member.name)
            file = archive.extractfile(member) if match and member.isfile() else None
            if match and file is not None:
                yield match, file.read()
