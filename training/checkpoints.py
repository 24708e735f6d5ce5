"""The last and the best states of a run on disk: whole, checked, readable without TensorFlow.

A checkpoint is one `.npz` file, which `numpy.load` opens: an array for every variable, and
`metadata.json` with the step and the loop's own numbers. Its last 64 bytes, the comment of the
zip archive, are the sha256 of the file in hexadecimal, taken with "0" in their place. It is
written beside its place, flushed to the disk and renamed, so a kill or a power cut at any moment
leaves either all of it or none.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

logger = logging.getLogger(__name__)

FORMAT = 1
METADATA = "metadata.json"
NUM_BEST = 2  # the best, and the one before it in case the file is damaged

_NO_CHECKSUM = b"0" * 64  # stands where the checksum goes, while it is computed


class DamagedCheckpoint(ValueError):
    """A file that is not what was written: cut short, overwritten, or with a bit turned."""


@dataclass(frozen=True)
class Checkpoint:
    """What one file holds. `arrays` keeps the variables' order and dtypes, bfloat16 included."""

    path: Path
    step: int
    progress: dict[str, Any]
    arrays: dict[str, np.ndarray]


class Checkpoints:
    """Weights, optimizer and strategy state, random state and progress of one run.

    `last` is where an interrupted run goes on: the newest `keep` states and one more, which takes
    over when the newest file is damaged. `best` is what is evaluated and exported: the values of
    `best_variables` (default: all of the model's), and of the best before. The model's variables
    include the seeds and rates of dropout; `rule.variables` is all state besides them.

    `progress` are the loop's own numbers, plain ones, exact on the way back, infinities included;
    the caller may add keys. They travel with the weights, so that a resumed run knows its step,
    its best score and its patience.

    Of several processes with one folder only one writes; the others, `writes=False`, restore what
    it wrote. `wait`, called after restoring, returns when all have restored. Processes with a
    folder each go on together: `common_step` is given the step of the newest intact state here, -1
    without any, and returns the one that all restore.
    """

    def __init__(
        self,
        folder: Path,
        model: Any,
        rule: Any = None,
        *,
        keep: int = 1,
        best_variables: Iterable[Any] | None = None,
        writes: bool = True,
        wait: Callable[[], None] = lambda: None,
        common_step: Callable[[int], int] = lambda newest: newest,
    ):
        if keep < 1:
            raise ValueError(f"keep must be 1 or more. Received: {keep}")
        self.last, self.best, self.keep = folder / "last", folder / "best", keep
        self.writes, self.wait, self.common_step = writes, wait, common_step
        weights = list(model.variables)
        self.state = _named("weights", weights) | _named("rule", rule.variables if rule else [])
        self.best_state = _named("weights", weights if best_variables is None else best_variables)
        self.progress: dict[str, Any] = {
            "step": 0,
            "best_step": -1,
            "best_score": float("-inf"),
            "best_loss": float("inf"),
            "num_stale": 0,
            "seconds": 0.0,
        }

    def restore_last(self) -> int:
        """Loads the newest intact state; returns the number of updates done, 0 without any.

        The process that writes also removes what a kill left half written. Raises ValueError when
        every state is damaged, or the state is not of these variables.
        """
        checkpoint = self._common(checkpoint_files(self.last))
        if checkpoint:
            _assign(checkpoint, self.state)
            self.progress.update(checkpoint.progress)
        self.wait()
        if self.writes:
            self._tidy(checkpoint.step if checkpoint else None)
        return checkpoint.step if checkpoint else 0

    def _common(self, files: list[Path]) -> Checkpoint | None:
        """The newest intact state, or the older one at which all processes go on."""
        newest = _newest(files) if files else None
        step = self.common_step(newest.step if newest else -1)
        if newest is None or newest.step == step or step < 0:
            return newest if step >= 0 else None
        earlier = [path for path in files if _step(path) <= step]
        checkpoint = _newest(earlier) if earlier else None
        if checkpoint is None or checkpoint.step != step:
            raise ValueError(
                f"{self.last} has no intact checkpoint of update {step}, the last one that another "
                "process has. Begin again with --restart."
            )
        return checkpoint

    def _tidy(self, step: int | None) -> None:
        for folder in (self.last, self.best):
            for leftover in folder.glob("*.part"):
                leftover.unlink()
        if step is None:
            return
        # A best of later than this has not happened yet: it must not be what is rolled back to.
        bests = checkpoint_files(self.best)
        later = [path for path in bests if _step(path) > step]
        if len(later) < len(bests):
            for path in later:
                path.unlink()

    def restore_best(self) -> None:
        """Loads the best weights; raises FileNotFoundError when none were saved yet."""
        files = checkpoint_files(self.best)
        if not files:
            raise FileNotFoundError(
                f"No checkpoint in {self.best}. The run has not got as far as its first "
                "evaluation: fit it first."
            )
        _assign(_newest(files), self.best_state)

    def save_last(self, step: int) -> None:
        self.progress["step"] = step
        if self.writes:
            _save(self.last, step, self.progress, self.state, self.keep + 1)

    def save_best(self, step: int) -> None:
        if self.writes:
            _save(self.best, step, {}, self.best_state, NUM_BEST)


def checkpoint_files(folder: Path) -> list[Path]:
    """The checkpoints in `folder`, that of the highest step first."""
    names = folder.glob("ckpt-*.npz")
    found = [path for path in names if path.stem.removeprefix("ckpt-").isdecimal()]
    return sorted(found, key=_step, reverse=True)


def write_checkpoint(
    path: Path, step: int, progress: Mapping[str, Any], arrays: Iterable[tuple[str, np.ndarray]]
) -> None:
    """Writes `path` as a whole or not at all; `arrays` are (name, array), read one at a time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".part")
    try:
        with beside.open("wb") as file:
            _write(file, step, progress, arrays)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)  # there only if something went wrong, as on a full disk
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the new name, too, has to survive a power cut
    finally:
        os.close(folder)


def read_checkpoint(path: Path) -> Checkpoint:
    """The content of `path`; raises DamagedCheckpoint when it is not what was written."""
    data = path.read_bytes()
    body, checksum = memoryview(data)[:-64], data[-64:]
    digest = hashlib.sha256(body)
    digest.update(_NO_CHECKSUM)
    if digest.hexdigest().encode() != checksum:
        raise DamagedCheckpoint(f"{path} is damaged: its {len(data)} bytes do not fit its checksum")
    with np.load(io.BytesIO(data), allow_pickle=False) as archive:
        metadata = json.loads(archive[METADATA])
        if metadata["format"] != FORMAT:
            raise ValueError(
                f"{path} has format {metadata['format']}, this version reads format {FORMAT}. "
                "Use the version that wrote it, or begin again with --restart."
            )
        special = metadata["dtypes"]
        arrays = {
            name: archive[name].view(_dtype(special[name])) if name in special else archive[name]
            for name in archive.files
            if name != METADATA
        }
    return Checkpoint(path, metadata["step"], metadata["progress"], arrays)


class _Hashing:
    """A file that only goes forward and hashes what it is given."""

    def __init__(self, file: BinaryIO):
        self.file, self.sha256 = file, hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.sha256.update(data)
        return self.file.write(data)

    def flush(self) -> None:
        self.file.flush()


def _write(
    file: BinaryIO, step: int, progress: Mapping[str, Any], arrays: Iterable[tuple[str, np.ndarray]]
) -> None:
    hashing = _Hashing(file)
    dtypes = {}
    with zipfile.ZipFile(hashing, "w") as archive:  # type: ignore[call-overload]
        archive.comment = _NO_CHECKSUM
        for name, array in arrays:
            if array.dtype.isbuiltin != 1:  # bfloat16 and the like: npy knows numpy's own alone
                dtypes[name] = array.dtype.name
                array = array.view(f"uint{8 * array.dtype.itemsize}")
            # ZipInfo rather than a name, which would bring the time of day into the file.
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, array, allow_pickle=False)
        metadata = {"format": FORMAT, "step": step, "progress": progress, "dtypes": dtypes}
        archive.writestr(zipfile.ZipInfo(METADATA), json.dumps(metadata, default=_plain_number))
    file.seek(-len(_NO_CHECKSUM), os.SEEK_END)
    file.write(hashing.sha256.hexdigest().encode())


def _plain_number(value: Any) -> int | float | bool:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"progress holds plain numbers. Received: {value!r}")


def _dtype(name: str) -> np.dtype:
    import ml_dtypes  # comes with TensorFlow; only files that hold such arrays need it

    return np.dtype(getattr(ml_dtypes, name))


def _step(path: Path) -> int:
    return int(path.stem.removeprefix("ckpt-"))


def _named(kind: str, variables: Iterable[Any]) -> dict[str, Any]:
    """Variables by names that are unique, and the same in every process that makes them."""
    return {f"{kind}/{i:03}:{_stable_path(v)}": v for i, v in enumerate(variables)}


def _stable_path(variable: Any) -> str:
    """The path without the numbers by which Keras tells the models of one process apart."""
    path = getattr(variable, "path", None) or variable.name.partition(":")[0]
    return re.sub(r"_\d+(?=[/_]|$)", "", path)


def _save(
    folder: Path, step: int, progress: Mapping[str, Any], state: Mapping[str, Any], num_kept: int
) -> None:
    arrays = ((name, np.asarray(variable.numpy())) for name, variable in state.items())
    write_checkpoint(folder / f"ckpt-{step}.npz", step, progress, arrays)
    files = checkpoint_files(folder)
    # Of later steps are only those that could not be gone on from.
    kept = [path for path in files if _step(path) <= step][:num_kept]
    for path in set(files) - set(kept):
        path.unlink()


def _newest(files: list[Path]) -> Checkpoint:
    """The first of `files` that is intact."""
    for i, path in enumerate(files):
        try:
            return read_checkpoint(path)
        except DamagedCheckpoint as error:
            if path != files[-1]:
                logger.warning(f"{error}. It is passed over for the one before, {files[i + 1]}.")
    names = ", ".join(path.name for path in files)
    raise ValueError(
        f"Every checkpoint in {files[0].parent} is damaged ({names}: the content does not fit the "
        "checksum). Begin again with --restart."
    )


def _assign(checkpoint: Checkpoint, state: Mapping[str, Any]) -> None:
    """Sets the variables in `state` to what the checkpoint holds."""
    _check(checkpoint.path, state, checkpoint.arrays)
    for variable, array in zip(state.values(), checkpoint.arrays.values(), strict=True):
        variable.assign(array)


def _check(path: Path, state: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Raises ValueError with the first variables that `path` holds otherwise than expected."""
    expected = {
        name: f"{getattr(v.dtype, 'name', v.dtype)} {tuple(v.shape)}" for name, v in state.items()
    }
    found = {name: f"{array.dtype.name} {array.shape}" for name, array in arrays.items()}
    wrong = list(_mismatches(expected, found))
    if wrong:
        more = f", and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise ValueError(
            f"{path} is not a checkpoint of this run's variables: {'; '.join(wrong[:3])}{more}. "
            "It was written with other settings or by another version: use those, or begin again "
            "with --restart."
        )


def _mismatches(expected: dict[str, str], found: dict[str, str]) -> Iterator[str]:
    for name in expected | found:
        wanted, given = expected.get(name, "no such variable"), found.get(name, "none")
        if wanted != given:
            yield f"{name}: expected {wanted}, found {given}"
