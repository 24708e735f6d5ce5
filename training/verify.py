"""Proof that resuming is exact on this machine: a run that is killed ends as one left alone.

The recipe, shortened, is fitted once without interruption and once with SIGKILL at random moments,
each sitting a process of its own. Then every bit of the two final states is compared. No
TensorFlow here: the files say it all.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from training.checkpoints import DamagedCheckpoint, checkpoint_files, read_checkpoint
from training.config import RunConfig, override
from training.recipes import recipe
from training.runs import RESULTS_FILE, read_json

METRICS_FILE, OUTPUT_FILE = "metrics.jsonl", "output.txt"
NUM_UPDATES, UPDATES_PER_PASS = 100, 25  # so that kills also fall into later passes over the data
START_UP_EVERY = 5  # of so many kills one comes while a sitting starts up
NUM_SPARE_RUNS = 5  # that may end before their kill
SHOWN = 20  # differences at most
POLL = 0.01  # seconds

Command = Callable[[Path], list[str]]  # the program that fits the recipe below a folder of runs


def verify_resume(options: argparse.Namespace) -> int:
    """Prints the kills and the verdict; 0 when both runs end alike to the last bit, else 1.

    `options`: `recipe` (a name), `set` (settings that go after the shortening ones), `kills` (at
    least 1) and `seed` (of the moments of the kills). Raises ValueError when a run cannot be
    finished or is over too soon to be killed.
    """
    if options.kills < 1:
        raise ValueError(f"--kills must be 1 or more. Received: {options.kills}")
    config = override(recipe(options.recipe), options.set)
    settings = [*short_settings(config), *options.set]

    def command(runs: Path) -> list[str]:
        changes = [word for setting in settings for word in ("--set", setting)]
        fit = ["--runs", str(runs), "fit", options.recipe, *changes]
        return [sys.executable, "-m", "training", *fit]

    print(f"{options.recipe}, shortened: {' '.join(settings)}")
    folder = Path(tempfile.mkdtemp(prefix="verify-resume-"))
    try:
        found = prove(command, folder, kills=options.kills, seed=options.seed)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    if found:
        print(f"The runs are kept in {folder}")
        return 1
    shutil.rmtree(folder)
    return 0


def short_settings(config: RunConfig) -> list[str]:
    """Settings for `--set` that make of `config` a short run over several passes of its data.

    Validation and test texts are not cut, as no setting does that.
    """
    num_examples = config.batch_size * UPDATES_PER_PASS
    if config.dataset.max_examples is not None:
        num_examples = min(num_examples, config.dataset.max_examples)
    return [
        f"dataset.max_examples={num_examples}",
        f"epochs={NUM_UPDATES}",  # never the one that ends it
        f"max_updates={NUM_UPDATES}",
        f"evaluate_every={NUM_UPDATES * 2 // 5}",
        "patience=0",
        "save_every=0.2",
    ]


# The two runs -------------------------------------------------------------------------------------


def prove(command: Command, folder: Path, *, kills: int, seed: int) -> list[str]:
    """Runs and compares what `command` fits, below `folder`; returns the differences, printed.

    A run that ends before its last kill is followed by another one, until `kills` have struck.
    """
    began = time.monotonic()
    timing = _run_alone(command(folder / "a"), folder / "a")
    print(f"Uninterrupted: {time.monotonic() - began:.1f} s\n")
    print(_row("kill", "run", "killed after update", "resumed from"))
    rng, number, found = random.Random(seed), 0, []
    for attempt in range(1, kills + NUM_SPARE_RUNS):
        runs = folder / (f"b{attempt}" if attempt > 1 else "b")
        for kill in draw_kills(rng, kills - number, timing):
            killed_after = _sitting(command(runs), runs, kill)
            if killed_after is None:
                break
            number += 1
            print(_row(number, runs.name, killed_after, _resume_point(runs)), flush=True)
        _sitting(command(runs), runs, None)
        found += differences(_only_run(folder / "a"), _only_run(runs))
        if found or number == kills:
            break
    else:
        raise ValueError(
            f"Only {number} of {kills} kills struck before the end: the run is too short. "
            "Lengthen it, for example with --set max_updates=500."
        )
    _print_verdict(found, _only_run(folder / "a"), number)
    if found:
        _run_alone(command(folder / "again"), folder / "again")
        _print_whether_repeatable(differences(_only_run(folder / "a"), _only_run(folder / "again")))
    return found


@dataclass(frozen=True)
class Timing:
    """Of the uninterrupted run, in seconds."""

    start_up: float  # until its first figure
    tracing: float  # what the first updates of a process take longer than later ones
    training: float  # without `tracing`


@dataclass(frozen=True)
class Kill:
    """`seconds` after the process starts, or after it begins to train."""

    in_start_up: bool
    seconds: float


def draw_kills(rng: random.Random, count: int, timing: Timing) -> list[Kill]:
    """The moments of `count` kills of one run: together they leave a part of the training undone.

    The training is cut at random points, and each sitting is given one of the pieces, after the
    tracing that each has to go through.
    """
    in_start_up = set(rng.sample(range(count), count // START_UP_EVERY))
    cuts = sorted(rng.uniform(0, timing.training) for _ in range(count - len(in_start_up)))
    pieces = (after - before for before, after in pairwise([0.0, *cuts]))
    return [
        Kill(True, rng.uniform(0, timing.start_up))
        if i in in_start_up
        else Kill(False, timing.tracing + next(pieces))
        for i in range(count)
    ]


def timing_of(start_up: float, lines: list[dict]) -> Timing:
    """From the `seconds` of the lines in metrics.jsonl, the last line of every update."""
    moments = list({line["step"]: line["seconds"] for line in lines}.values())
    intervals = [after - before for before, after in pairwise(moments)]
    tracing = max(intervals[0] - statistics.median(intervals), 0.0) if intervals else 0.0
    return Timing(start_up, tracing, max(sum(intervals) - tracing, 0.0))


def _run_alone(command: list[str], runs: Path) -> Timing:
    began = time.monotonic()
    process = _start(command, runs)
    try:
        _wait_for_training(process, runs, None)
        start_up = time.monotonic() - began
        _finish(process, runs)
    finally:
        _end(process)
    return timing_of(start_up, _lines(runs))


def _sitting(command: list[str], runs: Path, kill: Kill | None) -> str | None:
    """Runs `command` until it ends (None) or is killed: the last update it told of before that."""
    before = _metrics_stamp(runs)
    process = _start(command, runs)
    try:
        if kill is not None:
            if not kill.in_start_up:
                _wait_for_training(process, runs, before)
            try:
                process.wait(kill.seconds)
            except subprocess.TimeoutExpired:
                process.kill()
                if process.wait() == -signal.SIGKILL:  # else it ended in the meantime
                    return "start-up" if _metrics_stamp(runs) == before else _last_update(runs)
        _finish(process, runs)
    finally:
        _end(process)
    return None


def _start(command: list[str], runs: Path) -> subprocess.Popen:
    runs.mkdir(exist_ok=True)
    with _output(runs).open("ab") as output:
        return subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)


def _wait_for_training(process: subprocess.Popen, runs: Path, before: object) -> None:
    """Until metrics.jsonl is written to: by the first figure, or by cutting off what is done again.

    `before` is how the file was when the process started.
    """
    while process.poll() is None and _metrics_stamp(runs) == before:
        time.sleep(POLL)


def _finish(process: subprocess.Popen, runs: Path) -> None:
    code = process.wait()
    if code != 0:
        tail = _output(runs).read_text(encoding="utf-8", errors="replace").splitlines()[-10:]
        raise ValueError(
            f"A run ended with code {code} instead of 0. Its last lines:\n" + "\n".join(tail)
        )


def _end(process: subprocess.Popen) -> None:
    if process.poll() is None:
        process.kill()
        process.wait()


# What a folder of runs tells ----------------------------------------------------------------------


def _output(runs: Path) -> Path:
    return runs.with_name(f"{runs.name}-{OUTPUT_FILE}")


def _only_run(runs: Path) -> Path:
    (folder,) = (path for path in runs.iterdir() if path.is_dir())
    return folder


def _metrics_stamp(runs: Path) -> object:
    """Changes when metrics.jsonl is written to; None before there is one."""
    for path in runs.glob(f"*/{METRICS_FILE}"):
        status = path.stat()
        return status.st_ino, status.st_mtime_ns, status.st_size
    return None


def _lines(runs: Path) -> list[dict]:
    """What metrics.jsonl holds, without a last line that a kill cut short."""
    found = []
    for path in runs.glob(f"*/{METRICS_FILE}"):
        whole, _, _ = path.read_text(encoding="utf-8").rpartition("\n")
        found += [json.loads(line) for line in whole.splitlines()]
    return found


def _last_update(runs: Path) -> str:
    lines = _lines(runs)
    return str(lines[-1]["step"]) if lines else "none"


def _resume_point(runs: Path) -> int:
    """The step of the newest state; 0 when there is none yet."""
    folders = {path.parent for path in runs.rglob("last/ckpt-*.npz")}
    files = [path for folder in folders for path in checkpoint_files(folder)[:1]]
    return max((read_checkpoint(path).step for path in files), default=0)


# The comparison -----------------------------------------------------------------------------------


def differences(folder_a: Path, folder_b: Path) -> list[str]:
    """What the runs in two folders ended with otherwise, one sentence each; empty if nothing.

    Compared bit for bit: every array in the newest file of each folder of checkpoints, last and
    best; the loop's numbers; `results.json`. Seconds are left out.
    """
    states_a, states_b = _newest_states(folder_a), _newest_states(folder_b)
    found = [] if states_a else [f"no checkpoint in {folder_a}"]
    for place in sorted(states_a | states_b):
        if place not in states_a or place not in states_b:
            found.append(f"{place}: only in {folder_a if place in states_a else folder_b}")
            continue
        found += (f"{place}: {text}" for text in _of_states(states_a[place], states_b[place]))
    found += (f"{RESULTS_FILE}: {text}" for text in _of_results(folder_a, folder_b))
    return found


def _newest_states(folder: Path) -> dict[str, Path]:
    """{"checkpoints/last": its newest file, ...}"""
    places = {path.parent for path in (folder / "checkpoints").rglob("ckpt-*.npz")}
    return {
        place.relative_to(folder).as_posix(): path
        for place in places
        for path in checkpoint_files(place)[:1]
    }


def _of_states(path_a: Path, path_b: Path) -> Iterator[str]:
    try:
        a, b = read_checkpoint(path_a), read_checkpoint(path_b)
    except DamagedCheckpoint as error:
        yield str(error)
        return
    yield from _of_values({"step": a.step} | a.progress, {"step": b.step} | b.progress)
    for name in a.arrays | b.arrays:
        if name not in a.arrays or name not in b.arrays:
            yield f"{name} is only in {path_a if name in a.arrays else path_b}"
        else:
            yield from _of_arrays(name, a.arrays[name], b.arrays[name])


def _of_arrays(name: str, a: np.ndarray, b: np.ndarray) -> Iterator[str]:
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        yield f"{name} is {a.dtype.name} {a.shape} and {b.dtype.name} {b.shape}"
        return
    # Bytes, as 0 equals -0 and NaN does not equal itself.
    bytes_a, bytes_b = (
        np.frombuffer(array.tobytes(), np.uint8).reshape(array.size, array.dtype.itemsize)
        for array in (a, b)
    )
    (unequal,) = np.nonzero((bytes_a != bytes_b).any(axis=1))
    if unequal.size:
        first = tuple(int(i) for i in np.unravel_index(unequal[0], a.shape))
        yield (
            f"{name} differs in {unequal.size:,} of {a.size:,} numbers, first at {first}: "
            f"{a[first]!r} and {b[first]!r}"
        )


def _of_results(folder_a: Path, folder_b: Path) -> Iterator[str]:
    missing = [folder for folder in (folder_a, folder_b) if not (folder / RESULTS_FILE).is_file()]
    if missing:
        yield f"missing in {' and '.join(map(str, missing))}"
        return
    yield from _of_values(*(read_json(folder / RESULTS_FILE) for folder in (folder_a, folder_b)))


def _of_values(a: Any, b: Any) -> Iterator[str]:
    """Leaves of two JSON values that differ, those whose name tells of seconds left out."""
    leaves_a, leaves_b = dict(_leaves(a)), dict(_leaves(b))
    for name in leaves_a | leaves_b:
        texts = [leaves.get(name, "missing") for leaves in (leaves_a, leaves_b)]
        if texts[0] != texts[1]:
            yield f"{name} is {texts[0]} and {texts[1]}"


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, dict | list) and value:
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inner in items:
            if "second" not in str(key):
                yield from _leaves(inner, f"{name}.{key}" if name else str(key))
    else:
        yield name, json.dumps(value, ensure_ascii=False)  # exact for every float, NaN included


# The report ---------------------------------------------------------------------------------------


def _row(*cells: object) -> str:
    widths = (4, 5, 19, 12)
    return "  ".join(str(c).ljust(width) for c, width in zip(cells, widths, strict=True)).rstrip()


def _print_verdict(found: list[str], run: Path, num_kills: int) -> None:
    kills = f"{num_kills} kill{'s' * (num_kills != 1)}"
    if not found:
        arrays = [
            array
            for path in _newest_states(run).values()
            for array in read_checkpoint(path).arrays.values()
        ]
        print(
            f"\nIdentical after {kills}: {len(arrays)} arrays of {sum(a.size for a in arrays):,} "
            f"numbers (last and best state), progress and {RESULTS_FILE} agree to the last bit."
        )
        return
    print(f"\nDifferent after {kills}:")
    for text in found[:SHOWN]:
        print(f"  {text}")
    if len(found) > SHOWN:
        print(f"  and {len(found) - SHOWN} more")


def _print_whether_repeatable(found: list[str]) -> None:
    """Tells a machine that never computes the same twice from a fault in resuming."""
    if found:
        print(
            "Two runs without any kill differ as well, so this machine does not compute the same "
            f"twice: {found[0]}"
        )
    else:
        print("Two runs without any kill agree: the difference comes from resuming.")
