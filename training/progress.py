"""What a run tells while it trains: a bar for people, lines for programs, files for TensorBoard."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

import tensorflow as tf
from tqdm import tqdm


class Log:
    """Writes each report to the bar, to `metrics.jsonl` and to TensorBoard files.

    Where standard error is no terminal, a line for each evaluation stands in place of the bar.

    One for each stage of a run; lines count the updates of all stages, `offset` of them before.
    """

    def __init__(
        self,
        folder: Path,
        *,
        steps: int,
        unit: str,
        title: str,
        stage: str | None = None,
        offset: int = 0,
    ):
        self.path, self.stage, self.offset = folder / "metrics.jsonl", stage, offset
        self.unit, self.since = unit, time.monotonic()
        self.board = tf.summary.create_file_writer(str(folder / "tensorboard"))
        self.bar = tqdm(
            total=steps,
            desc=title,
            unit="update",
            file=sys.stderr,
            dynamic_ncols=True,
            mininterval=0.2,
            disable=not sys.stderr.isatty(),
        )
        self.title, self.steps = title, steps
        self.shown: dict[str, str] = {}

    def begin(self, start: int | None, seconds: float) -> None:
        """After `start` updates in `seconds`: lines of later ones go (None: of all)."""
        if self.path.exists():
            lines = self.path.read_text(encoding="utf-8").splitlines()
            kept = [line for line in lines if self._stands(_parsed(line), start)]
            beside = self.path.with_name(self.path.name + ".part")  # a kill leaves all or none
            beside.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
            os.replace(beside, self.path)
        self.since = time.monotonic() - seconds
        self.bar.n = start or 0

    def _stands(self, entry: dict | None, start: int | None) -> bool:
        if entry is None or entry.get("stage") != self.stage:
            return entry is not None and entry["step"] <= self.offset
        return start is not None and entry["step"] <= self.offset + start

    def report(self, step: int, metrics: dict[str, float]) -> None:
        """One line: metrics by name, means over what was seen since the last report."""
        entry: dict = {"step": self.offset + step}
        if self.stage is not None:
            entry["stage"] = self.stage
        entry |= {"seconds": round(time.monotonic() - self.since, 3)} | metrics
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
        with self.board.as_default(step=self.offset + step):
            for name, value in metrics.items():
                tf.summary.scalar(name, value)
        for name in ("loss", "validation_loss", "validation_accuracy"):
            if name in metrics:
                self.shown[name.replace("validation", "val")] = f"{metrics[name]:.4f}"
        if rate := metrics.get(f"{self.unit}_per_second"):
            self.shown[f"{self.unit}/s"] = f"{rate:,.0f}"
        self.bar.set_postfix(self.shown, refresh=False)
        self.bar.update(step - self.bar.n)
        if self.bar.disable and "validation_loss" in metrics:
            figures = "".join(f", {name}={value}" for name, value in self.shown.items())
            print(f"{self.title}: {step:,}/{self.steps:,} updates{figures}", file=sys.stderr)

    def close(self) -> None:
        self.bar.close()
        self.board.close()

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *error) -> None:
        self.close()


class NoLog(Log):
    """That of a process which leaves writing to another one."""

    def __init__(self, unit: str):
        self.unit = unit

    def begin(self, start: int | None, seconds: float) -> None:
        pass

    def report(self, step: int, metrics: dict[str, float]) -> None:
        pass

    def close(self) -> None:
        pass


def _parsed(line: str) -> dict | None:
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        return None  # the line that a kill cut in half


class Interruption:
    """Turns Ctrl-C and SIGTERM into a request to stop after the step; a second one stops at once.

    Truth value: whether stopping was asked for.
    """

    def __init__(self) -> None:
        self.is_requested = False

    def __enter__(self) -> Interruption:
        self.previous = {
            number: signal.signal(number, self._request)
            for number in (signal.SIGINT, signal.SIGTERM)
        }
        return self

    def __exit__(self, *error) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def __bool__(self) -> bool:
        return self.is_requested

    def _request(self, number, frame) -> None:
        if self.is_requested:
            raise KeyboardInterrupt
        self.is_requested = True
