"""Token ids on disk: written once, part by part, and mapped into memory to be read.

A folder holds, for part 12 of a corpus, `00012.tokens` (the ids of its documents one after the
other, uint16 if the vocabulary fits, else int32, little-endian), `00012.ends` (int32: where each
document ends) and `00012.json` (counts, dtype, sizes and sha256 of both). The last is written when
the others are whole and in place, so a part that was stopped is a part that is not there.
`index.json` lists all of them. TensorFlow is not needed to read.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import mmap
import os
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

logger = logging.getLogger(__name__)

INDEX_FILE = "index.json"
_ENDS = np.dtype("<i4")
_RELEASE_EVERY = 32  # calls of `has_read`: of pages around a few hundred rows, 64 KB each

# Documents of a part, a block at a time: (ids of all of them, (D,) tokens of each, bytes read).
Blocks = Iterator[tuple[np.ndarray, np.ndarray, int]]


@dataclass(frozen=True, kw_only=True)
class Shard:
    """What `00012.json` says."""

    name: str
    dtype: str
    num_documents: int
    num_tokens: int
    longest: int  # tokens of its longest document
    sha256: dict[str, str]  # by the ending of the file
    modified: dict[str, int]  # when the file was written: a later time is a reason to look again


class Shards:
    """The documents of a corpus as ids, mapped: no more of them is in memory than is read.

    `num_documents`, `num_tokens` and `longest` are int64 (S,), of each shard.
    """

    def __init__(self, folder: Path, shards: list[Shard]):
        self.folder, self.shards = folder, shards
        self.num_documents = np.array([shard.num_documents for shard in shards], np.int64)
        self.num_tokens = np.array([shard.num_tokens for shard in shards], np.int64)
        self.longest = np.array([shard.longest for shard in shards], np.int64)
        self._maps: dict[str, mmap.mmap] = {}
        self._num_reads = 0

    def tokens(self, shard: int) -> np.ndarray:
        """All ids of a shard, (num_tokens,), uint16 or int32; read only."""
        return self._mapped(f"{self.shards[shard].name}.tokens", self.shards[shard].dtype)

    def ends(self, shard: int) -> np.ndarray:
        """int32 (num_documents,): where in `tokens` each document ends."""
        return self._mapped(f"{self.shards[shard].name}.ends", _ENDS)

    def document(self, shard: int, number: int) -> np.ndarray:
        """The ids of one document, BEGIN and END included."""
        ends = self.ends(shard)
        return self.tokens(shard)[int(ends[number - 1]) if number else 0 : int(ends[number])]

    def number_of_pieces(self, num_tokens: int, count: Callable[[np.ndarray], np.ndarray]):
        """int32 (num_documents,) of each shard: pieces up to and with each document, mapped.

        `count` gives the pieces of documents of so many tokens, at most `num_tokens` targets each;
        what it gives is kept in a file.
        """
        offsets = np.cumsum([0, *self.num_documents])
        name = f"pieces-{num_tokens}-{self.digest[:8]}"
        path = self.folder / name
        if not path.is_file() or path.stat().st_size != offsets[-1] * _ENDS.itemsize:
            beside = path.with_name(f"{name}.{os.getpid()}.part")
            with beside.open("wb") as file:
                for shard in range(len(self.shards)):
                    lengths = np.diff(self.ends(shard), prepend=0)
                    np.cumsum(count(lengths)).astype(_ENDS).tofile(file)
                    self.release()
            os.replace(beside, path)
        whole = self._mapped(name, _ENDS)
        return [whole[a:b] for a, b in zip(offsets, offsets[1:], strict=False)]

    @functools.cached_property
    def digest(self) -> str:
        """A sha256 of all that is in the shards."""
        return hashlib.sha256("".join(s.sha256["tokens"] for s in self.shards).encode()).hexdigest()

    def release(self) -> None:
        """Gives back the pages that were read: they stay cached by the system, not in the process.

        Without it a process that has walked through a corpus would count as large as the corpus.
        """
        if hasattr(mmap, "MADV_DONTNEED"):
            for mapped in list(self._maps.values()):
                mapped.madvise(mmap.MADV_DONTNEED)

    def has_read(self) -> None:
        """Told after every batch, and after looking rows up; releases pages from time to time."""
        self._num_reads += 1
        if self._num_reads % _RELEASE_EVERY == 0:
            self.release()

    def _mapped(self, name: str, dtype: str | np.dtype) -> np.ndarray:
        if name not in self._maps:
            path = self.folder / name
            if not path.stat().st_size:  # of no documents: an empty file cannot be mapped
                return np.zeros(0, dtype)
            with path.open("rb") as file:
                self._maps[name] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return np.frombuffer(self._maps[name], dtype)


def make_shards(
    folder: Path,
    part_bytes: list[int],
    encoded: Callable[[int], Blocks],
    *,
    vocabulary_size: int,
    verify: bool = False,
    num_threads: int | None = None,
) -> Shards:
    """The shards of a corpus, written as far as they are not there yet.

    `part_bytes` are the sizes of the parts, as `encoded(part)` counts them. Parts that are whole
    are left as they are; one whose files have another size, or another content, is reported and
    made again. Contents are looked at (sha256) where a file was written to since it was made, and
    everywhere with `verify`. Two processes may ask at the same time: the second waits.
    """
    folder.mkdir(parents=True, exist_ok=True)
    dtype = "<u2" if vocabulary_size <= 2**16 else "<i4"
    with locked(folder / "lock"):
        names = [f"{part:05}" for part in range(len(part_bytes))]
        found = [_intact(folder, name, verify) for name in names]
        missing = [part for part, shard in enumerate(found) if shard is None]
        if missing:
            for part, shard in _write_all(
                folder, names, missing, part_bytes, encoded, dtype, num_threads
            ):
                found[part] = shard
        shards = [shard for shard in found if shard is not None]
        index = {"dtype": dtype, "shards": [vars(shard) for shard in shards]}
        if missing or not (folder / INDEX_FILE).is_file():
            _write_json(folder / INDEX_FILE, index)
    return Shards(folder, shards)


def open_shards(folder: Path) -> Shards:
    """Those that `make_shards` finished in `folder`, as they are.

    Raises FileNotFoundError where there are none, ValueError where a file has another size than
    was written.
    """
    index = json.loads((folder / INDEX_FILE).read_text(encoding="utf-8"))
    shards = [Shard(**shard) for shard in index["shards"]]
    for shard in shards:
        if reason := _damage(folder, shard, verify=False):
            raise ValueError(
                f"{folder}: {reason}. Run the command that made it again, which repairs it."
            )
    return Shards(folder, shards)


# Writing ------------------------------------------------------------------------------------------


def _write_all(
    folder: Path,
    names: list[str],
    missing: list[int],
    part_bytes: list[int],
    encoded: Callable[[int], Blocks],
    dtype: str,
    num_threads: int | None,
) -> Iterator[tuple[int, Shard]]:
    """Several parts at once: what tokenises them leaves Python's lock to the others meanwhile."""
    from tqdm import tqdm

    threads = num_threads or len(os.sched_getaffinity(0))
    done = sum(part_bytes) - sum(part_bytes[part] for part in missing)
    logger.info(f"Tokenising {len(missing)} of {len(names)} parts into {folder}.")
    bar = tqdm(
        total=sum(part_bytes),
        initial=done,
        desc="tokenising",
        unit="B",
        unit_scale=True,
        file=sys.stderr,
        dynamic_ncols=True,
        disable=None,  # where nobody looks
    )
    stop, errors = threading.Event(), []  # the first error is the one to tell
    with bar, ThreadPoolExecutor(threads) as pool:

        def write(part: int) -> tuple[int, Shard]:
            try:
                blocks = _until(stop, _counted(encoded(part), bar))
                return part, _write(folder, names[part], blocks, dtype)
            except BaseException as error:
                errors.append(error)
                stop.set()
                raise

        waiting = [pool.submit(write, part) for part in missing]
        try:
            for future in as_completed(waiting):
                yield future.result()
        except BaseException:  # Ctrl-C too: parts that are not whole are begun again next time
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            if errors:
                raise errors[0] from None
            raise


class _Stopped(Exception):
    """Another part failed, or the user wants no more."""


def _until(stop: threading.Event, blocks: Blocks) -> Blocks:
    for block in blocks:
        if stop.is_set():
            raise _Stopped
        yield block


def _counted(blocks: Blocks, bar) -> Blocks:
    for block in blocks:
        yield block
        bar.update(block[2])


def _write(folder: Path, name: str, blocks: Blocks, dtype: str) -> Shard:
    paths = {ending: folder / f"{name}.{ending}" for ending in ("tokens", "ends")}
    beside = {ending: path.with_name(path.name + ".part") for ending, path in paths.items()}
    hashes = {ending: hashlib.sha256() for ending in paths}
    num_documents = num_tokens = longest = 0
    (folder / f"{name}.json").unlink(missing_ok=True)  # of a part that is made again
    with beside["tokens"].open("wb") as tokens, beside["ends"].open("wb") as ends:
        for ids, lengths, _ in blocks:
            if num_tokens + len(ids) > np.iinfo(_ENDS).max:
                raise ValueError(
                    f"A part of a corpus can have 2,147,483,647 tokens, and {name} has more. "
                    "Divide its file."
                )
            written = {
                "tokens": (tokens, ids.astype(dtype)),
                "ends": (ends, (num_tokens + np.cumsum(lengths)).astype(_ENDS)),
            }
            for ending, (file, values) in written.items():
                data = values.tobytes()
                file.write(data)
                hashes[ending].update(data)
            num_documents += len(lengths)
            num_tokens += len(ids)
            longest = max(longest, int(lengths.max(initial=0)))
    for ending, path in paths.items():
        os.replace(beside[ending], path)
    shard = Shard(
        name=name,
        dtype=dtype,
        num_documents=num_documents,
        num_tokens=num_tokens,
        longest=longest,
        sha256={ending: hashed.hexdigest() for ending, hashed in hashes.items()},
        modified={ending: path.stat().st_mtime_ns for ending, path in paths.items()},
    )
    _write_json(folder / f"{name}.json", vars(shard))
    return shard


# Looking ------------------------------------------------------------------------------------------


def _intact(folder: Path, name: str, verify: bool) -> Shard | None:
    """The shard if it is there and whole; what is damaged is told."""
    path = folder / f"{name}.json"
    if not path.is_file():
        return None
    try:
        shard = Shard(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError):
        logger.warning(f"{path} cannot be read; its part is made again.")
        return None
    if reason := _damage(folder, shard, verify):
        logger.warning(f"{folder}: {reason}; it is made again.")
        return None
    return shard


def _damage(folder: Path, shard: Shard, verify: bool) -> str:
    """What is wrong with the files of a shard, or nothing."""
    sizes = {
        "tokens": shard.num_tokens * np.dtype(shard.dtype).itemsize,
        "ends": shard.num_documents * _ENDS.itemsize,
    }
    for ending, size in sizes.items():
        path = folder / f"{shard.name}.{ending}"
        if not path.is_file():
            return f"{path.name} is missing"
        stat = path.stat()
        if stat.st_size != size:
            return f"{path.name} is damaged: expected {size:,} bytes, found {stat.st_size:,}"
        if verify or stat.st_mtime_ns != shard.modified[ending]:
            with path.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != shard.sha256[ending]:
                    return f"{path.name} is damaged: its sha256 is not that of what was written"
    return ""


def _write_json(path: Path, value: dict) -> None:
    beside = path.with_name(path.name + ".part")
    beside.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    os.replace(beside, path)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Inside, no other process of this machine is."""
    try:
        import fcntl
    except ImportError:  # not there on Windows: two at once do the work twice, into the same files
        yield
        return
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
