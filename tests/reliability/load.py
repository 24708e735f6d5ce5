"""Callers for the reliability checks: HTTP over bare sockets, so that anything can be sent."""

import asyncio
import json
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Answer:
    status: int  # 0: the connection ended without one
    headers: dict[str, str]
    body: bytes
    seconds: float  # from sending to the end of the body


NOTHING = Answer(0, {}, b"", 0.0)


class Caller:
    """One kept connection; opens another when the server has closed it."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, request: bytes, seconds: float = 5.0) -> Answer:
        """Raises TimeoutError when no answer has come in `seconds`: a hang."""
        began = time.perf_counter()
        try:
            async with asyncio.timeout(seconds):
                if self._streams is None:
                    self._streams = await asyncio.open_connection("127.0.0.1", self._port)
                reader, writer = self._streams
                writer.write(request)
                answer = await read_answer(reader, began)
        except TimeoutError:  # an OSError, too
            self.close()
            raise
        except (OSError, asyncio.IncompleteReadError):
            answer = NOTHING
        if answer.status == 0 or answer.headers.get("connection") == "close":
            self.close()
        return answer

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


async def read_answer(reader: asyncio.StreamReader, began: float) -> Answer:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = {}
    for line in head[1:]:
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    return Answer(int(head[0].split()[1]), headers, body, time.perf_counter() - began)


async def exchange(port: int, request: bytes, seconds: float = 5.0) -> Answer:
    """One request on a connection of its own."""
    caller = Caller(port)
    try:
        return await caller.ask(request, seconds)
    finally:
        caller.close()


class Stream:
    """An answer of server-sent events, read up to the first one and then to its end."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def begun(cls, port: int, body: bytes) -> "Stream":
        """The stream that a completion of `body` is answered by, once its first event is there."""
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(http("/v1/completions", body, "connection: close"))
        try:
            await reader.readuntil(b"data: {")
        except asyncio.IncompleteReadError as error:
            writer.close()
            raise AssertionError(f"No stream but {error.partial.decode()}") from error
        return cls(reader, writer)

    async def is_complete(self) -> bool:
        """Reads on; whether the last event says that all has come, and none an error."""
        rest = await self._reader.read()
        return b"data: [DONE]" in rest and b'"error"' not in rest

    def close(self) -> None:
        self._writer.close()


def http(path: str, body: bytes | None = None, *headers: str) -> bytes:
    """The bytes of a request: GET without a body, POST with one."""
    lines = [f"{'GET' if body is None else 'POST'} {path} HTTP/1.1", "host: localhost", *headers]
    if body is not None:
        lines.append(f"content-length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + (body or b"")


def predict(model: str, rows: Sequence[object]) -> bytes:
    return http(f"/v1/models/{model}:predict", json.dumps({"instances": rows}).encode())


@dataclass
class Load:
    """What a time under load gave."""

    answers: list[Answer] = field(default_factory=list)
    hangs: int = 0
    seconds: float = 0.0

    @property
    def good(self) -> list[Answer]:
        return [answer for answer in self.answers if answer.status == 200]

    @property
    def shed(self) -> list[Answer]:
        return [answer for answer in self.answers if answer.status in (429, 503)]

    @property
    def rate(self) -> float:
        """Good answers a second."""
        return len(self.good) / self.seconds if self.seconds else 0.0

    @property
    def statuses(self) -> set[int]:
        return {answer.status for answer in self.answers}


def percentile(answers: Sequence[Answer], share: float) -> float:
    """Seconds that `share` of the answers took at most; 0 for none."""
    ordered = sorted(answer.seconds for answer in answers)
    return ordered[min(len(ordered) - 1, math.floor(share * len(ordered)))] if ordered else 0.0


async def callers(port: int, request: bytes, *, num_callers: int, seconds: float) -> Load:
    """So many callers, each with its next request as soon as it has an answer."""
    load, began = Load(), time.perf_counter()

    async def run() -> None:
        caller = Caller(port)
        while time.perf_counter() < began + seconds:
            await _count(load, caller, request)
        caller.close()

    await asyncio.gather(*(run() for _ in range(num_callers)))
    load.seconds = time.perf_counter() - began
    return load


async def arrivals(port: int, request: bytes, *, rate: float, seconds: float) -> Load:
    """`rate` requests a second, whether earlier ones are answered or not."""
    load, began = Load(), time.perf_counter()
    idle: list[Caller] = []
    tasks = []

    async def one() -> None:
        caller = idle.pop() if idle else Caller(port)
        await _count(load, caller, request)
        idle.append(caller)

    for number in range(round(rate * seconds)):
        await asyncio.sleep(max(0.0, began + number / rate - time.perf_counter()))
        tasks.append(asyncio.create_task(one()))
    load.seconds = time.perf_counter() - began
    good_within = len(load.good)
    await asyncio.gather(*tasks)
    load.seconds *= len(load.good) / good_within if good_within else 1.0
    for caller in idle:
        caller.close()
    return load


async def _count(load: Load, caller: Caller, request: bytes) -> None:
    try:
        load.answers.append(await caller.ask(request, 30.0))
    except TimeoutError:
        load.hangs += 1


async def beside(
    work: Awaitable[Load], port: int, request: bytes, *, pause: float
) -> tuple[Load, Load]:
    """`work`, and another caller who asks every `pause` seconds until it is done."""
    other, caller = Load(), Caller(port)
    done = asyncio.Event()

    async def ask() -> None:
        while not done.is_set():
            await _count(other, caller, request)
            await asyncio.sleep(pause)

    asking = asyncio.create_task(ask())
    try:
        result = await work
    finally:
        done.set()
        await asking
        caller.close()
    return result, other


async def until(condition: Callable[[], Awaitable[bool]], seconds: float) -> bool:
    """Whether it became true within so many seconds."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        if await condition():
            return True
        await asyncio.sleep(0.02)
    return False
