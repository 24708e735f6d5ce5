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
from training.config import RunConfig, StageConfig
from training.hardware import by_device
from training.recipes import recipe
from training.runs import RESULTS_FILE, STAGES_FILE, read_json, run_folder
from training.strategies.catalogue import batches_per_update, resolve

METRICS_FILE = "metrics.jsonl"
MOST_UPDATES, FEWEST_UPDATES, NUM_BATCHES = 100, 12, 400  # of a stage
BATCHES_PER_PASS = 25  # so that kills also fall into later passes over the data
USUAL_BATCH = 32  # rows, where the batch size is a schedule or the whole split
START_UP_EVERY = 4  # of so many kills one comes before a sitting has done an update
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
    config = by_device(recipe(options.recipe), options.set)
    settings = [*short_settings(config), *options.set]
    run_name = run_folder(Path(), by_device(recipe(options.recipe), settings)).name

    def command(runs: Path) -> list[str]:
        changes = [word for setting in settings for word in ("--set", setting)]
        fit = ["--runs", str(runs), "fit", options.recipe, *changes]
        return [sys.executable, "-m", "training", *fit]

    print(f"{options.recipe}, shortened: {' '.join(settings)}")
    folder = Path(tempfile.mkdtemp(prefix="verify-resume-"))
    try:
        found = prove(command, folder, run_name, kills=options.kills, seed=options.seed)
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
    earlier = [s for stage in config.earlier for s in _short_stage(stage, f"earlier.{stage.name}.")]
    return [*earlier, *_short_stage(config, ""), "save_every=0.2"]


def _short_stage(stage: StageConfig, prefix: str) -> Iterator[str]:
    batch_size = stage.batch_size if isinstance(stage.batch_size, int) else USUAL_BATCH
    for section, dataset in (("dataset", stage.dataset), ("mixture", stage.mixture)):
        if dataset is not None:
            num_examples = min(batch_size * BATCHES_PER_PASS, dataset.max_examples or 2**31)
            yield f"{prefix}{section}.max_examples={num_examples}"
    num_updates = NUM_BATCHES // batches_per_update(resolve(stage.strategy))
    num_updates = max(min(num_updates, MOST_UPDATES), FEWEST_UPDATES)
    yield f"{prefix}max_updates={num_updates}"
    # States are saved there: at no multiple of the small numbers by which strategies count.
    yield f"{prefix}evaluate_every={max(num_updates * 37 // 100, 1)}"
    yield f"{prefix}patience=0"


# The two runs -------------------------------------------------------------------------------------


def prove(command: Command, folder: Path, run_name: str, *, kills: int, seed: int) -> list[str]:
    """Runs and compares what `command` fits, below `folder`; returns the differences, printed.

    `run_name` is what the run's folder is called in a folder of runs. A run that ends before its
    last kill is followed by another one, until `kills` have struck.
    """
    began, whole = time.monotonic(), folder / "a" / run_name
    timing = _run_alone(command(folder / "a"), whole)
    print(f"Uninterrupted: {time.monotonic() - began:.1f} s\n")
    print(_row("kill", "run", "killed after update", "resumed from"))
    rng, number, found = random.Random(seed), 0, []
    for attempt in range(1, kills + NUM_SPARE_RUNS):
        runs = folder / (f"b{attempt}" if attempt > 1 else "b")
        run = runs / run_name
        for kill in draw_kills(rng, kills - number, timing):
            killed_after = _sit(command(runs), run, kill)
            if killed_after is None:
                break
            number += 1
            print(_row(number, runs.name, killed_after, resume_point(run)), flush=True)
        _sit(command(runs), run)
        found += differences(whole, run)
        if found or number == kills:
            break
    else:
        raise ValueError(
            f"Only {number} of {kills} kills struck before the end: the run is too short. "
            "Lengthen it, for example with --set max_updates=500."
        )
    _print_verdict(found, whole, number)
    if found:
        again = folder / "again"
        _run_alone(command(again), again / run_name)
        _print_whether_repeatable(differences(whole, again / run_name))
    return found


@dataclass(frozen=True)
class Timing:
    """Of the uninterrupted run, in seconds."""

    start_up: float  # until it tells of its first update
    training: float  # from there until it tells of its last


@dataclass(frozen=True)
class Kill:
    """`seconds` after the process starts, or after it has told of an update of its own."""

    in_start_up: bool
    seconds: float


def draw_kills(rng: random.Random, count: int, timing: Timing) -> list[Kill]:
    """The moments of `count` kills of one run: together they leave a part of the training undone.

    The training is cut at random points, and each sitting is given one of the pieces.
    """
    in_start_up = set(rng.sample(range(count), count // START_UP_EVERY))
    cuts = sorted(rng.uniform(0, timing.training) for _ in range(count - len(in_start_up)))
    pieces = (after - before for before, after in pairwise([0.0, *cuts]))
    return [
        Kill(True, rng.uniform(0, timing.start_up))
        if i in in_start_up
        else Kill(False, next(pieces))
        for i in range(count)
    ]


def _run_alone(command: list[str], run: Path) -> Timing:
    sitting, began = _Sitting(command, run), time.time()
    try:
        sitting.wait_for_update()
        start_up = time.time() - began
        sitting.finish()
    finally:
        sitting.stop()
    if not _lines(run):
        raise ValueError(f"The run wrote no {METRICS_FILE} into {run}.")
    return Timing(start_up, max((run / METRICS_FILE).stat().st_mtime - began - start_up, 0.0))


def _sit(command: list[str], run: Path, kill: Kill | None = None) -> str | None:
    """Runs `command` until it ends (None) or is killed: the last update it told of before that."""
    sitting = _Sitting(command, run)
    try:
        if kill is not None:
            if not kill.in_start_up:
                sitting.wait_for_update()
            if sitting.is_killed_after(kill.seconds):
                return str(_last_update(run)) if sitting.has_updated() else "start-up"
        sitting.finish()
    finally:
        sitting.stop()
    return None


class _Sitting:
    """A process that begins a run, or goes on with it."""

    def __init__(self, command: list[str], run: Path):
        self.run, self.start, self.before = run, resume_point(run), _metrics_stamp(run)
        # What it prints, beside the folder of runs.
        self.output = run.parent.with_name(f"{run.parent.name}-output.txt")
        run.parent.mkdir(exist_ok=True)
        with self.output.open("ab") as output:
            self.process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)

    def has_updated(self) -> bool:
        """Whether it has told of an update; it first cuts off the lines of those to do again."""
        return _metrics_stamp(self.run) != self.before and _last_update(self.run) > self.start

    def wait_for_update(self) -> None:
        while self.process.poll() is None and not self.has_updated():
            time.sleep(POLL)

    def is_killed_after(self, seconds: float) -> bool:
        """Sends SIGKILL after `seconds`; False if it had ended by then."""
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
        return self.process.wait() == -signal.SIGKILL

    def finish(self) -> None:
        code = self.process.wait()
        if code != 0:
            text = self.output.read_text(encoding="utf-8", errors="replace")
            raise ValueError(
                f"A run ended with code {code} instead of 0. Its last lines:\n"
                + "\n".join(text.splitlines()[-10:])
            )

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


# What the folder of a run tells -------------------------------------------------------------------


def _metrics_stamp(run: Path) -> object:
    """Changes when metrics.jsonl is written to; None before there is one."""
    try:
        status = (run / METRICS_FILE).stat()
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


def _lines(run: Path) -> list[dict]:
    """What metrics.jsonl holds, without a last line that a kill cut short."""
    path = run / METRICS_FILE
    whole, _, _ = path.read_text(encoding="utf-8").rpartition("\n") if path.exists() else ("",) * 3
    return [json.loads(line) for line in whole.splitlines()]


def _last_update(run: Path) -> int:
    lines = _lines(run)
    return lines[-1]["step"] if lines else 0


def resume_point(run: Path) -> int:
    """The update of the whole run from which its next sitting goes on; 0 before the first state."""
    done = read_json(run / STAGES_FILE) if (run / STAGES_FILE).is_file() else []
    over = {stage["stage"] for stage in done}
    folders = [p for p in (run / "checkpoints").glob("*/last") if p.parent.name not in over]
    files = [path for folder in folders for path in checkpoint_files(folder)[:1]]
    steps = [read_checkpoint(path).step for path in files]
    return sum(stage["steps"] for stage in done) + max(steps, default=0)


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
