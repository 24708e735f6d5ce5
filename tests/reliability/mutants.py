"""Servers with one fault each, on which a check must fail. They are sound but for it."""

import asyncio
import contextlib
import json
import tempfile
import zlib
from collections.abc import AsyncIterator
from pathlib import Path

import checks
from load import predict

LARGE = 2**24  # bytes, more than the buffers between two sockets hold
REASONS = {200: "OK", 400: "Bad Request", 408: "Timeout", 413: "Too Large", 429: "Busy"}


class Server:
    """Answers every good request with 200; a subclass is a mutant by what it overrides.

    `running` requests take `seconds` each, two at once; more than `waiting` are refused.
    """

    limit, inflated, header_seconds = 4_000, 10_000, 0.3
    seconds, running, waiting = 0.01, 2, 10
    retry = "retry-after: 1\r\n"
    send_seconds = patience = 0.3

    def __init__(self) -> None:
        self.held = self.peak = 0
        self.version = 1
        self.is_available = {1: True}
        self.bad: set[int] = set()
        self._slots = asyncio.Semaphore(self.running)
        self._waiting = 0

    @contextlib.asynccontextmanager
    async def at_port(self) -> AsyncIterator[int]:
        self._tasks: set[asyncio.Task[None] | None] = set()
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0, limit=2**24)
        try:
            yield server.sockets[0].getsockname()[1]
        finally:
            server.close()
            for task in self._tasks:
                if task:
                    task.cancel()
            await asyncio.gather(*filter(None, self._tasks), return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        self._tasks.add(task)
        try:
            while True:
                async with asyncio.timeout(self.header_seconds):
                    head = await reader.readuntil(b"\r\n\r\n")
                    body = await self._body(reader, head)
                path = head.split(b" ")[1].decode("latin-1") if b" " in head else ""
                status, answer = await self.answer(path, head, body)
                if isinstance(answer, AsyncIterator):
                    self._write(writer, status, "")
                    async for event in answer:
                        writer.write(event)
                    return
                self._write(writer, status, answer)
                try:
                    async with asyncio.timeout(self.send_seconds):
                        await writer.drain()
                except TimeoutError:
                    writer.transport.abort()
                    return
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass
        except asyncio.CancelledError:
            pass  # the end of the server
        except TimeoutError:
            self._write(writer, 408, {"error": "slow"})
        except Exception:
            self.failed(writer)
        finally:
            writer.close()
            self._tasks.discard(task)

    async def _body(self, reader: asyncio.StreamReader, head: bytes) -> bytes:
        if b"chunked" in head:
            size = int(await reader.readline(), 16)
            body = await reader.readexactly(size)
            await reader.readuntil(b"0\r\n\r\n")
            return body
        for line in head.lower().split(b"\r\n"):
            if line.startswith(b"content-length:"):
                return await reader.readexactly(int(line.partition(b":")[2]))
        return b""

    async def answer(self, path: str, head: bytes, body: bytes) -> tuple[int, object]:
        if path == "/healthz":
            return 200, {}
        if "/versions/" in path and not path.endswith("predict"):
            version = int(path.rpartition("/")[2])
            state = "AVAILABLE" if self.is_available.get(version) else "LOADING"
            if version in self.bad:
                state = "END"
            error = {"error_message": "broken" if version in self.bad else ""}
            return 200, {"model_version_status": [{"state": state, "status": error}]}
        if path == "/v1/models/large:predict":
            return 200, "x" * LARGE
        if len(body) > self.limit:
            return 413, {"error": "large"}
        if b"gzip" in head:
            self.held = len(zlib.decompressobj(wbits=31).decompress(body, self.inflated))
            return 400, {"error": "large"}
        if self._waiting >= self.waiting:
            return self.refused()
        self._waiting += 1
        async with self._slots:
            self._waiting -= 1
            await asyncio.sleep(self.seconds)
        return self.computed(body)

    def computed(self, body: bytes) -> tuple[int, object]:
        try:
            rows = json.loads(body).get("instances", [])
        except (AttributeError, ValueError, RecursionError):
            return 400, {"error": "no JSON"}
        return 200, {"predictions": rows}

    def refused(self) -> tuple[int, object]:
        return 429, {"error": "busy"}

    def failed(self, writer: asyncio.StreamWriter) -> None:
        self._write(writer, 400, {"error": "no HTTP"})

    def _write(self, writer: asyncio.StreamWriter, status: int, answer: object) -> None:
        body = (answer if isinstance(answer, str) else json.dumps(answer)).encode()
        head = f"HTTP/1.1 {status} {REASONS.get(status, 'Error')}\r\n"
        head += f"content-length: {len(body)}\r\nx-model-version: {self.version}\r\n"
        if status in (429, 503):
            head += self.retry
        if status in (400, 408):
            head += "connection: close\r\n"
        writer.write(f"{head}\r\n".encode() + body)

    def memory(self) -> int:
        return self.held

    async def install(self, version: int) -> None:
        self.is_available[version] = True
        self.version = version

    async def install_bad(self) -> int:
        self.bad.add(self.version + 1 + len(self.bad))
        return max(self.bad)


class Stops(Server):
    """Takes the stop signal as a process does, and finishes what runs."""

    waiting = 100
    cuts_streams = False

    def __init__(self) -> None:
        super().__init__()
        self.running_requests, self.num_streams, self.is_draining = 0, 0, False

    async def answer(self, path: str, head: bytes, body: bytes) -> tuple[int, object]:
        if path == checks.METRICS:
            gauges = {"running_requests": self.running_requests, "streams": self.num_streams}
            page = (f"\n:stepwise:serving:{name}{{}} {value}" for name, value in gauges.items())
            return 200, "".join(page)
        if path == "/readyz":
            return (503 if self.is_draining else 200), {}
        if self.is_draining:
            return 503, {"error": "stops"}
        if path == "/v1/completions":
            self.num_streams += 1
            self.running_requests += json.loads(body)["n"]
            return 200, self.events()
        if "gate" not in path:
            return await super().answer(path, head, body)
        self.running_requests += 1
        (row,) = json.loads(body)["instances"]
        while not Path(row["leave"]).exists():
            await asyncio.sleep(0.01)
            if self.is_cut_off:
                return 503, {"error": "stops"}
        return 200, {}

    async def events(self) -> AsyncIterator[bytes]:
        yield b"data: {}\n\n"
        while not self.is_draining:
            await asyncio.sleep(0.01)
        if not self.cuts_streams:
            yield b"data: [DONE]\n\n"

    @property
    def is_cut_off(self) -> bool:
        return False

    def send_signal(self, signum: int) -> None:
        self.is_draining = True

    def wait(self, seconds: float) -> int:
        return 0


class CutsOff(Stops):
    @property
    def is_cut_off(self) -> bool:
        return self.is_draining


class CutsStreams(Stops):
    cuts_streams = True


class EndsBadly(Stops):
    def wait(self, seconds: float) -> int:
        return 143


class FailsOnNonsense(Server):
    def failed(self, writer: asyncio.StreamWriter) -> None:
        self._write(writer, 500, {"error": "bug"})


class FailsOnBadJson(Server):
    def computed(self, body: bytes) -> tuple[int, object]:
        try:
            return super().computed(body) if json.loads(body) else (200, {})
        except (ValueError, RecursionError):
            return 500, {"error": "bug"}


class TakesOneMore(Server):
    limit = Server.limit + 1


class Unpacks(Server):
    inflated = 2**30


class IsPatient(Server):
    header_seconds = 60.0


class NeverRefuses(Server):
    waiting = 10**6


class DoesNotSayWhen(Server):
    retry = ""


class FailsWhenBusy(Server):
    def refused(self) -> tuple[int, object]:
        return 500, {"error": "bug"}


class FailsSometimes(Server):
    def computed(self, body: bytes) -> tuple[int, object]:
        self.version += 1
        return super().computed(body) if self.version % 50 else (500, {"error": "bug"})


class Mixes(Server):
    """Gives some callers the numbers of another."""

    latest: object = None

    def computed(self, body: bytes) -> tuple[int, object]:
        status, answer = super().computed(body)
        if "predictions" in answer and self._waiting:
            self.latest, answer = answer, self.latest or answer
        return status, answer


class WaitsForReaders(Server):
    send_seconds = 60.0


class TakesTheBad(Server):
    async def install_bad(self) -> int:
        version = await super().install_bad()
        self.version = version
        return version


class SaysNothing(Server):
    async def install_bad(self) -> int:
        return self.version + 1


class SwapsWithAGap(Server):
    async def install(self, version: int) -> None:
        self.computed = lambda body: (404, {"error": "none"})  # type: ignore[method-assign]
        await asyncio.sleep(0.05)
        del self.computed
        await super().install(version)


class StaysWithTheOld(Server):
    async def install(self, version: int) -> None:
        self.is_available[version] = True


async def check_http(server: Server, port: int) -> None:
    await checks.wrong_http(port, number=200)


async def check_hang(server: Server, port: int) -> None:
    await checks.wrong_http(port, number=200, hang_seconds=Server.header_seconds + 0.7)


async def check_json(server: Server, port: int) -> None:
    await checks.wrong_json(port, number=60)


async def check_bodies(server: Server, port: int) -> None:
    await checks.body_limits(port, limit=Server.limit)


async def check_bomb(server: Server, port: int) -> None:
    await checks.gzip_bomb(port, inflated=2**21, memory=server.memory, growth=2**20)


async def check_slow(server: Server, port: int) -> None:
    await checks.slow_clients(port, number=6, seconds=Server.header_seconds + 0.7)


async def check_overload(server: Server, port: int) -> None:
    server.header_seconds = 10.0  # so that kept connections may idle
    await checks.overload(port, checks.GOOD, seconds=0.3, memory=server.memory, is_strict=False)


async def check_steady(server: Server, port: int) -> None:
    server.header_seconds = 10.0
    await checks.steady(port, checks.GOOD, seconds=0.6, is_strict=False)


async def check_same(server: Server, port: int) -> None:
    requests = [predict("m", [float(i)]) for i in range(4)]
    await checks.same_beside_others(port, requests, at_once=3)


async def check_readers(server: Server, port: int) -> None:
    server.header_seconds = 10.0
    large = predict("large", [])
    await checks.slow_readers(port, large, number=2, seconds=server.patience + 0.5)


async def check_bad_versions(server: Server, port: int) -> None:
    server.header_seconds = 10.0
    await checks.bad_versions(
        port, checks.GOOD, model="m", good=1, install=[server.install_bad] * 2, seconds=1.0
    )


async def check_swaps(server: Server, port: int) -> None:
    await checks.hot_swaps(port, checks.GOOD, model="m", versions=[2, 3], install=server.install)


async def check_stop(server: Stops, port: int) -> None:
    server.header_seconds = 10.0
    with tempfile.TemporaryDirectory() as folder:
        await checks.stop_in_flight(port, server, Path(folder), number=3)


MUTANTS = [
    (check_http, FailsOnNonsense),
    (check_hang, IsPatient),
    (check_json, FailsOnBadJson),
    (check_bodies, TakesOneMore),
    (check_bomb, Unpacks),
    (check_slow, IsPatient),
    (check_overload, NeverRefuses),
    (check_overload, DoesNotSayWhen),
    (check_overload, FailsWhenBusy),
    (check_steady, FailsSometimes),
    (check_same, Mixes),
    (check_readers, WaitsForReaders),
    (check_bad_versions, TakesTheBad),
    (check_bad_versions, SaysNothing),
    (check_swaps, SwapsWithAGap),
    (check_swaps, StaysWithTheOld),
    (check_stop, CutsOff),
    (check_stop, CutsStreams),
    (check_stop, EndsBadly),
]
