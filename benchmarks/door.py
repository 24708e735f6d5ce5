"""The door of a server whose slots are all taken: python benchmarks/door.py [SIZE] [--exports DIR]

Over HTTP, against a server process with 16 slots that writes 16 greedy streams, random weights:

* a caller closes its socket: until the stream that waits for a slot goes on, with its second part
  (the first token comes with the reading of its prompt, before it has a slot);
* a request that is out of range: until its 400 has come;
* a large body: the longest gap between two parts of one of the streams.

SIZE as in serve_generation.py. Prints Markdown.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import httpx

from benchmarks.serve_generation import (
    NUM_SLOTS,
    ROOT,
    SIZES,
    first_token,
    header,
    make_export,
    p,
    row,
    url_of,
)

PORT = 18713
HANG_UPS, REFUSALS = 60, 200
OUT_OF_RANGE: tuple[dict[str, object], ...] = (
    *({"n": 0}, {"best_of": 1000}, {"max_tokens": -1}, {"logprobs": 6}, {"stop": ["a"] * 5}),
    *({"temperature": -1}, {"top_p": 2}, {"presence_penalty": 3}, {"logit_bias": {"5": 1}}),
    *({"seed": 0.5}, {"suffix": "a"}, {"tools": [{}]}, {"stream_options": {"a": 1}}),
)
BODIES = {
    "30 MB, one text": {"prompt": "x y " * 7_500_000},
    "7 MB, a million tokens": {"prompt": [12_345] * 999_999},
    "30 MB, five million tokens": {"prompt": [12_345] * 5_000_000},
    "25 MB, 600,000 messages": {"messages": [{"role": "user", "content": "a"}] * 600_000},
    "30 MB, ten million lists": {"prompt": [[]] * 10_000_000},
}


class Stream:
    """A stream over a socket of its own. `writes` is done when its second part has come: it has a
    slot. `gaps` are in seconds."""

    def __init__(self, size: str, seed: int) -> None:
        prompt = [5 + seed % 1000] * 8
        # As long as the context allows, so that none ends before it is hung up.
        longest = SIZES[size].context_length - len(prompt) - 1
        self._body = {"model": size, "prompt": prompt, "max_tokens": longest}
        self._body |= {"temperature": 0, "stream": True}
        self.writes = asyncio.get_running_loop().create_future()
        self.gaps: list[float] = []
        self.has_ended = False
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        reader, self._writer = await asyncio.open_connection("127.0.0.1", PORT)
        body = json.dumps(self._body).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
        self._writer.write(head.encode() + body)
        last = None
        with contextlib.suppress(ConnectionError):
            while line := await reader.readline():
                if line.startswith(b"HTTP/1.1 ") and b" 200 " not in line:
                    raise RuntimeError((line + await reader.read(1000)).decode())
                if line.startswith(b"data: [DONE]"):
                    break
                if line.startswith(b"data: "):
                    now = time.perf_counter()
                    if last is not None:
                        self.gaps.append(now - last)
                        if not self.writes.done():
                            self.writes.set_result(now)
                    last = now
        self.has_ended = True
        if not self.writes.done():  # it was that short
            self.writes.set_result(time.perf_counter())

    def hang_up(self) -> float:
        """The time at which the socket was closed."""
        self._task.cancel()
        self._writer.close()
        return time.perf_counter()


class Full:
    """As many streams as there are slots, and one that waits; oldest first."""

    def __init__(self, size: str) -> None:
        self._size, self._seeds = size, itertools.count()
        self.streams = [self._new() for _ in range(NUM_SLOTS)]

    def _new(self) -> Stream:
        return Stream(self._size, next(self._seeds))

    async def fill(self) -> None:
        """Waits until all write. Those that came to their end are begun anew."""
        self.streams = [one for one in self.streams if not one.has_ended]
        self.streams += [self._new() for _ in range(NUM_SLOTS - len(self.streams))]
        await asyncio.gather(*(one.writes for one in self.streams))

    async def replace_oldest(self) -> float | None:
        """Seconds from hanging up to the going on of who waited; None if another one has ended
        meanwhile, so that it may have got that slot."""
        await self.fill()
        waiting = self._new()
        await asyncio.sleep(0.1 + 0.1 * random.random())
        has_waited = not waiting.writes.done()
        began = self.streams.pop(0).hang_up()
        seconds = await waiting.writes - began
        others_go_on = not any(one.has_ended for one in self.streams)
        self.streams.append(waiting)
        return seconds if has_waited and others_go_on else None

    def end(self) -> None:
        for one in self.streams:
            one.hang_up()


async def measure(size: str, folder: Path) -> None:
    full = Full(size)
    found = [await full.replace_oldest() for _ in range(HANG_UPS)]
    waits = [seconds for seconds in found if seconds is not None]
    header("beside 16 streams, ms", "times", "p50", "p95", "longest")
    row(
        "a socket is closed: who waited goes on",
        len(waits),
        p(waits, 50),
        p(waits, 95),
        p(waits, 100),
    )
    seconds = []
    async with httpx.AsyncClient() as client:
        for _, fields in zip(range(REFUSALS), itertools.cycle(OUT_OF_RANGE), strict=False):
            await full.fill()
            await asyncio.sleep(0.02 * random.random())
            body = {"model": size, "prompt": "a"} | fields
            began = time.perf_counter()
            answer = await client.post(url_of(PORT), json=body)
            seconds.append(time.perf_counter() - began)
            if answer.status_code != 400:
                raise RuntimeError(f"{fields} is no 400: {answer.text}")
    row("a 400", len(seconds), p(seconds, 50), p(seconds, 95), p(seconds, 100))

    header("beside 16 streams", "answer", "after, ms", "longest gap of a stream, ms")
    for name, fields in {"nothing": None, **BODIES}.items():
        await full.replace_oldest()  # its successor is young enough to go on for long
        watched = full.streams[-1]
        before = len(watched.gaps)
        began = time.perf_counter()
        status = "none" if fields is None else await post(folder / name, "messages" in fields)
        took = time.perf_counter() - began
        await asyncio.sleep(1.0)
        row(name, status, round(1000 * took), round(1000 * max(watched.gaps[before:])))
    full.end()


async def post(file: Path, is_chat: bool) -> str:
    """The status, by another process, so that sending costs this one's streams nothing."""
    url = url_of(PORT)
    if is_chat:
        url = url.replace("completions", "chat/completions")
    command = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "--data-binary", f"@{file}"]
    process = await asyncio.create_subprocess_exec(*command, url, stdout=subprocess.PIPE)
    out, _ = await process.communicate()
    return out.decode()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("size", nargs="?", choices=SIZES, default="small")
    parser.add_argument("--exports", type=Path, help="made there once, and found there again")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.exports or Path(temporary)
        if not (folder / options.size / "1").is_dir():
            make_export(options.size, folder, "float32")
        command = [sys.executable, "-m", "serving", "--engine=embedded", "--port=0"]
        command += [f"--grpc_socket_path={temporary}/grpc", f"--rest_api_port={PORT}"]
        command += [f"--exports={folder}", "--wait-for-engine", f"--xla-cache={folder}/cache"]
        process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
        try:
            asyncio.run(first_token(PORT, options.size))
            for name, fields in BODIES.items():  # before, as this holds this process up
                body = {"model": options.size} | fields
                (Path(temporary) / name).write_text(json.dumps(body, separators=(",", ":")))
            asyncio.run(measure(options.size, Path(temporary)))
        finally:
            process.terminate()
            process.wait()


if __name__ == "__main__":
    main()
