"""Where the files of a public data set are: a folder of the user's, the cache, or the internet.

`STEPWISE_DATA` names a folder laid out like `sources.json` (`sst2/train.tsv`, ...). What it does
not hold is looked for in the cache (`STEPWISE_CACHE`, default `~/.cache/stepwise`) and fetched
into it from the address in `sources.json` if it is not there either.
"""

import functools
import gzip
import hashlib
import json
import logging
import os
import tarfile
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from training.datasets.config import DatasetError
from training.datasets.download import DownloadError, download, sha256_of, sha256_of_stream
from training.datasets.rebuild import MAKERS, urls_of

logger = logging.getLogger(__name__)

SOURCES_FILE = Path(__file__).with_name("sources.json")


@dataclass(frozen=True, kw_only=True)
class SourceFile:
    """A file of a public data set, pinned by its content."""

    path: str  # below STEPWISE_DATA or the cache
    num_rows: int  # examples, or lines of a plain text
    num_bytes: int
    sha256: str
    url: str  # what to download; with {number} in it, several files
    content_sha256: str | None = None  # of the unpacked content of a .gz file
    made_by: str | None = None  # a key of rebuild.MAKERS; None: the download is the file
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Source:
    """A public data set: where it comes from and under what terms, as far as they are stated."""

    homepage: str
    licence: str
    files: tuple[SourceFile, ...]


@functools.cache
def sources() -> dict[str, Source]:
    """The content of `sources.json`."""
    entries = json.loads(SOURCES_FILE.read_text(encoding="utf-8"))
    return {
        name: Source(
            homepage=entry["homepage"],
            licence=entry["licence"],
            files=tuple(SourceFile(**file) for file in entry["files"]),
        )
        for name, entry in entries.items()
    }


def locate(name: str) -> tuple[dict[str, Path], list[str]]:
    """The files of source `name` by their path in `sources.json`, and sentences for the log.

    Downloads what is missing. Raises `DatasetError` if a file is neither here nor to be had.
    """
    source = sources()[name]
    located: dict[str, Path] = {}
    notes: list[str] = []
    downloads: set[Path] = set()
    for file in source.files:
        path = _in_data_folder(file, notes) or _in_cache(file)
        if path is None:
            path = _fetch(file, located, downloads)
            notes.append(
                f"{file.path} was fetched into {cache_folder()}. "
                f"Licence: {source.licence} ({source.homepage})."
            )
        located[file.path] = path
    for path in downloads:  # archives, kept until every file made of them is there
        path.unlink(missing_ok=True)
    return located, notes


def digests(name: str) -> list[str]:
    """The sha256 of each file of source `name`, as it is here or, if it is not, as it is pinned."""
    values = []
    for file in sources()[name].files:
        folder = data_folder()
        path = folder / file.path if folder else None
        is_changed = path is not None and path.is_file() and not _is_intact(path, file)
        values.append(sha256_of(path) if is_changed and path else file.sha256)
    return values


def data_folder() -> Path | None:
    """`STEPWISE_DATA`, if it is set. Raises `DatasetError` if it names no folder."""
    value = os.environ.get("STEPWISE_DATA")
    if not value:
        return None
    folder = Path(value).expanduser()
    if not folder.is_dir():
        raise DatasetError(f"STEPWISE_DATA must name a folder. Received: {value!r}")
    return folder


def cache_folder() -> Path:
    """Where downloads are kept."""
    value = os.environ.get("STEPWISE_CACHE")
    return (Path(value).expanduser() if value else Path.home() / ".cache" / "stepwise") / "data"


def _in_data_folder(file: SourceFile, notes: list[str]) -> Path | None:
    folder = data_folder()
    if folder is None or not (folder / file.path).is_file():
        return None
    path = folder / file.path
    if not _is_intact(path, file):
        note = (
            f"{path} is not the published file (sha256 {sha256_of(path)[:12]}..., expected "
            f"{file.sha256[:12]}...); it is used as it is."
        )
        logger.warning(note)
        notes.append(note)
    return path


def _in_cache(file: SourceFile) -> Path | None:
    path = cache_folder() / file.path
    if not path.is_file():
        return None
    if _is_intact(path, file):
        return path
    logger.warning("%s is damaged and will be fetched again.", path)
    path.unlink()
    return None


def _is_intact(path: Path, file: SourceFile) -> bool:
    """Whether the bytes are the pinned ones, or the same content packed by another gzip."""
    if path.stat().st_size == file.num_bytes and sha256_of(path) == file.sha256:
        return True
    if file.content_sha256 is None:
        return False
    try:
        with gzip.open(path) as unpacked:
            return sha256_of_stream(unpacked) == file.content_sha256
    except (OSError, EOFError):
        return False


def _fetch(file: SourceFile, located: dict[str, Path], downloads: set[Path]) -> Path:
    target = cache_folder() / file.path
    logger.info("Fetching %s from %s", file.path, file.url)
    try:
        if file.made_by is None:
            download(file.url, target, sha256=file.sha256)
        else:
            _make(file, target, located, downloads)
    except DownloadError as error:
        way_out = ", or connect to the internet and run again" if error.is_offline else ""
        raise DatasetError(
            f"{file.path} is not on this machine and could not be fetched ({error}): set "
            f"STEPWISE_DATA to a folder that holds {file.path}{way_out}."
        ) from error
    return target


def _make(file: SourceFile, target: Path, located: dict[str, Path], downloads: set[Path]) -> None:
    """Downloads what `file` is made of and makes it. Raises `DownloadError` for a wrong result."""
    parts = []
    for url in urls_of(file.url, file.options):
        # Archives of one name and different content exist: the address goes into the name.
        prefix = hashlib.sha256(url.encode()).hexdigest()[:12]
        part = cache_folder() / "upstream" / f"{prefix}-{url.rsplit('/', 1)[-1]}"
        if not part.exists():
            download(url, part)
        parts.append(part)
    downloads.update(parts)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    try:
        part.write_bytes(MAKERS[file.made_by or ""](parts, file.options, located))
        is_right = _is_intact(part, file)
        reason = f"has sha256 {sha256_of(part)[:12]}..., expected {file.sha256[:12]}..."
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, OSError, ValueError, KeyError) as error:
        is_right, reason = False, f"cannot be read ({error})"
    if not is_right:
        for path in (part, *parts):  # or the next run would trip over the same bytes
            path.unlink(missing_ok=True)
        raise DownloadError(f"what was made of {file.url} {reason}; the downloads were removed")
    part.replace(target)
