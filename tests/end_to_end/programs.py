"""Programs that tests start as users do: what they print, the signals they get, how they end."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 240  # seconds for anything on a busy machine, TensorFlow's start included


class Program:
    """`python ARGUMENTS` from the root of the repository, in a group of processes of its own."""

    def __init__(self, *arguments: object):
        self.process = subprocess.Popen(
            [sys.executable, *map(str, arguments)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
            env=os.environ | {"PYTHONFAULTHANDLER": "1"},  # a crash says where
        )
        self._lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        with self.process.stdout as stream:
            self._lines.extend(stream)

    @property
    def output(self) -> str:
        return "".join(self._lines)

    def wait_until(self, condition: Callable[[], object]) -> None:
        """Polls `condition` while the program runs; fails with what it printed when it ended."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            has_ended = self.process.poll() is not None
            if condition():
                return
            if has_ended:
                pytest.fail(f"It ended with code {self.end()}. It printed:\n{self.output}")
            time.sleep(0.05)
        pytest.fail(f"Nothing for {PATIENCE} seconds. It printed:\n{self.output}")

    def interrupt(self) -> None:
        """Ctrl-C: a terminal sends the signal to the whole group."""
        os.killpg(self.process.pid, signal.SIGINT)

    def end(self) -> int:
        """Waits for the end and returns the exit code; fails when a child was left running.

        Children inherit the pipe that is read here, so it ends when the last of them is gone.
        """
        code = self.process.wait(PATIENCE)
        self._reader.join(30)
        assert not self._reader.is_alive(), f"A child is still running:\n{self.output}"
        return code


@contextmanager
def running(*arguments: object) -> Iterator[Program]:
    program = Program(*arguments)
    try:
        yield program
    finally:
        if program.process.poll() is None:
            program.process.terminate()  # a chance to stop its own children
            try:
                program.process.wait(30)
            except subprocess.TimeoutExpired:
                program.process.kill()
                program.process.wait()


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [listener.getsockname()[1] for listener in sockets]
    for listener in sockets:
        listener.close()
    return ports


def is_free(port: int) -> bool:
    """Whether a server could listen there; connections that linger do not count."""
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True
