"""What a server must stand. Each check asks one at a port and raises Broken with its figures.

They know nothing of how the server is made, so that they can be tried on servers with a fault.
"""

import asyncio
import gzip
import json
import random
import re
import signal
import time
import zlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from load import (
    Answer,
    Caller,
    Load,
    Stream,
    arrivals,
    beside,
    callers,
    exchange,
    http,
    percentile,
    predict,
    until,
)

HANG_SECONDS = 5.0
HEALTH = http("/healthz")
METRICS = "/monitoring/prometheus/metrics"
GOOD = predict("half_plus_two", [1.0, 2.0])


class Broken(AssertionError):
    """The server did what it must not."""


def must(condition: bool, what: str) -> None:
    if not condition:
        raise Broken(what)


@dataclass(frozen=True)
class Figure:
    """One measured value beside its limit."""

    name: str
    value: float
    limit: float

    def __str__(self) -> str:
        return f"{self.name} {self.value:.4g} (limit {self.limit:.4g})"


# ---------------------------------------------------------------- wrong requests

SEEDS = [
    GOOD,
    HEALTH,
    http("/v1/models/half_plus_two"),
    http("/v1/models/half_plus_two/metadata"),
    http("/v1/models/half_plus_two/versions/3:predict", b'{"inputs": [[1.5], [2]]}'),
    http("/v1/models/mixed/labels/x:classify", b'{"examples": [{"a": [1, "b"]}]}'),
    http("/v1/models/types:predict", b'{"signature_name": "string", "instances": ["\\u00e9"]}'),
    http("/v1/models/half_plus_two:predict", gzip.compress(b'{"instances": [1]}', mtime=0),
         "content-encoding: gzip"),
    b"POST /v1/models/half_plus_two:predict HTTP/1.1\r\nhost: x\r\n"
    b"transfer-encoding: chunked\r\n\r\n12\r\n{\"instances\": [1]}\r\n0\r\n\r\n",
    b"OPTIONS /v1/models/x:predict HTTP/1.1\r\nhost: x\r\norigin: http://x\r\n\r\n",
]  # fmt: skip
PIECES = [
    b"\r\n", b"\n", b"\0", b"\xff", b":", b"%", b"%zz", b"..", b"//", b"?", b" ", b"\t",
    b"HTTP/9.9", b"content-length: 5\r\n", b"content-length: -1\r\n",
    b"transfer-encoding: chunked\r\n", b"expect: 100-continue\r\n", b"connection: close\r\n",
    b"upgrade: websocket\r\n", b"[" * 200, b"9" * 40, b"1e999", b"NaN", b"\\ud800", b'{"b64": "a"}',
    b"ffffffffffffffff\r\n", b"x" * 5_000,
]  # fmt: skip


def mutated(seed: bytes, random: random.Random, pieces: Sequence[bytes] = PIECES) -> bytes:
    """`seed` with one to four changes."""
    data = bytearray(seed)
    for _ in range(random.randint(1, 4)):
        start = random.randrange(len(data) + 1)
        end = min(len(data), start + random.choice([1, 2, 8, 40]))
        change = random.randrange(6)
        if change == 0:
            del data[start:end]
        elif change == 1:
            data[start:start] = random.choice(pieces)
        elif change == 2:
            data[start:end] = random.randbytes(end - start)
        elif change == 3:
            data[start:start] = data[start:end] * random.choice([1, 2, 50])
        elif change == 4 and start < len(data):
            data[start] ^= 1 << random.randrange(8)
        else:
            del data[start:]
    return bytes(data)


async def wrong_http(
    port: int,
    *,
    number: int,
    seed: int = 0,
    at_once: int = 50,
    hang_seconds: float = HANG_SECONDS,
) -> list[Figure]:
    """Mutated requests: no 5xx, no hang, and the server lives."""
    source = random.Random(seed)
    requests = [mutated(source.choice(SEEDS), source) for _ in range(number)]
    return await _all_refused(port, requests, at_once, hang_seconds=hang_seconds)


async def wrong_json(port: int, *, number: int, seed: int = 0) -> list[Figure]:
    """Mutated and made-up bodies: an answer each, no 5xx, errors in the protocol's shape."""
    source = random.Random(seed)
    bodies = [
        b"", b"{", b"[]", b"null", b"1", b'"x"', b"\xff\xfe", b'{"instances": null}',
        b"[" * 100_000,
        b'{"instances": ' + b"[" * 63 + b"1" + b"]" * 63 + b"}", b'{"inputs": {"x": {"b64": 5}}}',
        b'{"instances": [1' + b"0" * 5_000 + b"]}", b'{"instances": [[1], [1, 2]]}',
        b'{"instances": [{"x": 1}, 2]}', b'{"a":' * 50_000, b'{"instances": ["\\ud800"]}',
    ]  # fmt: skip
    valid = [request.partition(b"\r\n\r\n")[2] for request in SEEDS if b'{"i' in request]
    while len(bodies) < number:
        bodies.append(mutated(source.choice(valid), source))
    requests = [http("/v1/models/half_plus_two:predict", body) for body in bodies]
    return await _all_refused(port, requests, 20, must_answer=True)


async def _all_refused(
    port: int,
    requests: Sequence[bytes],
    at_once: int,
    *,
    must_answer: bool = False,
    hang_seconds: float = HANG_SECONDS,
) -> list[Figure]:
    """Each request on a connection of its own."""
    left = list(enumerate(requests))
    faults: list[str] = []
    slowest = 0.0

    async def work() -> None:
        nonlocal slowest
        while left:
            number, request = left.pop()
            began = time.perf_counter()
            try:
                answer = await exchange(port, request, hang_seconds)
            except TimeoutError:
                faults.append(f"no answer in {hang_seconds} s to {number}: {request[:300]!r}")
                continue
            except (ValueError, IndexError) as error:
                faults.append(f"an answer that is no HTTP ({error}) to {request[:300]!r}")
                continue
            slowest = max(slowest, time.perf_counter() - began)
            if answer.status >= 500:
                faults.append(f"{answer.status} {answer.body[:200]!r} to {request[:300]!r}")
            if must_answer and answer.status == 0:
                faults.append(f"no answer to {request[:300]!r}")
            if must_answer and answer.status >= 400 and not _is_error(answer):
                faults.append(f"an error of another shape: {answer.body[:200]!r}")

    await asyncio.gather(*(work() for _ in range(at_once)))
    must(not faults, f"{len(faults)} of {len(requests)}, the first: {faults[:1]}")
    await _lives(port)
    return [Figure("slowest answer, s", slowest, hang_seconds)]


def _is_error(answer: Answer) -> bool:
    try:
        body = json.loads(answer.body)
    except ValueError:
        return False
    return list(body) == ["error"] and isinstance(body["error"], str)


async def _lives(port: int) -> None:
    answer = await exchange(port, HEALTH, HANG_SECONDS)
    must(answer.status == 200, f"not well afterwards: {answer}")


def wrong_protobuf(
    call: Callable[[str, bytes], str], requests: dict[str, bytes], *, number: int, seed: int = 0
) -> None:
    """`call(method, bytes)` gives the name of the status; `requests` are good ones by method."""
    source = random.Random(seed)
    pieces = [b"\x0a\xff\xff\xff\xff\x0f", b"\x08\x80", b"\x12\x00", b"\xff" * 10, b"\0" * 100]
    for _ in range(number):
        method = source.choice(sorted(requests))
        body = mutated(requests[method], source, pieces)
        status = call(method, body)
        must(
            status not in ("INTERNAL", "UNKNOWN", "UNAVAILABLE", "DEADLINE_EXCEEDED"),
            f"{status} to {method} of {body!r}",
        )


# ---------------------------------------------------------------- too much, too slow


async def body_limits(port: int, *, limit: int) -> list[Figure]:
    """Bodies around the limit: those above get 413 and its reason, however they are sent."""
    for size in (limit - 1, limit, limit + 1, 10 * limit):
        body = b'{"instances": [1.0]}'.ljust(size)
        chunked = b"POST /v1/models/half_plus_two:predict HTTP/1.1\r\nhost: x\r\n"
        chunked += b"transfer-encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (size, body)
        for request in (http("/v1/models/half_plus_two:predict", body), chunked):
            answer = await exchange(port, request, 2 * HANG_SECONDS)
            expected = 413 if size > limit else 200
            must(answer.status == expected, f"{answer.status} to {size:,} bytes of {limit:,}")
            must(size <= limit or _is_error(answer), f"413 of another shape: {answer.body!r}")
    await _lives(port)
    return []


async def gzip_bomb(
    port: int, *, inflated: int, memory: Callable[[], int], growth: int
) -> list[Figure]:
    """A small body that unpacks to `inflated` bytes: refused, and never held (`growth` bytes)."""
    packer, pieces = zlib.compressobj(9, wbits=31), []
    for _ in range(inflated // 2**20):
        pieces.append(packer.compress(bytes(2**20)))
    body = b"".join([*pieces, packer.flush()])
    before = memory()
    request = http("/v1/models/half_plus_two:predict", body, "content-encoding: gzip")
    answer = await exchange(port, request, 2 * HANG_SECONDS)
    must(400 <= answer.status < 500, f"{answer.status} to a bomb")
    figure = Figure("growth, MB", (memory() - before) / 1e6, growth / 1e6)
    must(figure.value <= figure.limit, str(figure))
    await _lives(port)
    return [figure]


async def slow_clients(port: int, *, number: int, seconds: float) -> list[Figure]:
    """Callers that drip headers, or bodies, are ended in `seconds`; a good one notices nothing."""
    heads = [
        b"GET /v1/models/half_plus_two HTTP/1.1\r\nx: ",
        b"POST /v1/models/half_plus_two:predict HTTP/1.1\r\ncontent-length: 9999\r\n\r\n",
        b"",
    ]

    async def drip(head: bytes) -> float:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        began = time.perf_counter()
        writer.write(head)
        reading = asyncio.create_task(_read_to_end(reader))
        while not reading.done() and time.perf_counter() < began + 2 * seconds:
            if head:
                writer.write(b"y")
            await asyncio.wait({reading}, timeout=0.2)
        taken = time.perf_counter() - began
        reading.cancel()
        writer.close()
        return taken

    async def all_slow() -> Load:
        taken.extend(await asyncio.gather(*(drip(heads[i % len(heads)]) for i in range(number))))
        return Load()

    taken: list[float] = []
    _, good = await beside(all_slow(), port, GOOD, pause=0.05)
    must(good.statuses == {200} and not good.hangs, f"a good caller got {good.statuses}")
    figure = Figure("the slowest was ended after, s", max(taken), seconds)
    must(figure.value <= figure.limit, str(figure))
    return [figure]


async def _read_to_end(reader: asyncio.StreamReader) -> None:
    try:
        await reader.read()
    except OSError:
        pass


async def overload(
    port: int,
    request: bytes,
    *,
    seconds: float,
    memory: Callable[[], int],
    is_strict: bool,
) -> list[Figure]:
    """Three times as much as can be done. `is_strict` holds to times, which wants a quiet machine.

    What cannot be done is refused at once and told when to come again; what is done, is not less
    for it; health is answered throughout, and afterwards all is as before.
    """
    full = await callers(port, request, num_callers=8, seconds=seconds)
    must(full.statuses == {200}, f"{full.statuses} before any overload")
    before = memory()
    flood = arrivals(port, request, rate=3 * full.rate, seconds=2 * seconds)
    load, health = await beside(flood, port, HEALTH, pause=0.05)
    must(load.statuses <= {200, 429, 503} and not load.hangs, f"{load.statuses}, {load.hangs} hung")
    must(bool(load.shed), "nothing was refused at three times the capacity")
    hasty = [a for a in load.shed if not a.headers.get("retry-after", "").isdigit()]
    must(not hasty, f"{len(hasty)} of {len(load.shed)} refused without Retry-After")
    must(health.statuses == {200} and not health.hangs, f"health: {health.statuses}")

    async def is_well() -> bool:
        return (await exchange(port, request, HANG_SECONDS)).status == 200

    must(await until(is_well, 5.0), "not back to normal within 5 s")
    growth = Figure("growth, MB", (memory() - before) / 1e6, 100)
    must(growth.value <= growth.limit, str(growth))
    goodput = Figure("good answers beside capacity (at least)", load.rate / full.rate, 0.85)
    shed = Figure("refused within, ms (p95)", 1000 * percentile(load.shed, 0.95), 50)
    healthy = Figure("health within, ms (p99)", 1000 * percentile(health.answers, 0.99), 250)
    if is_strict:
        must(goodput.value >= goodput.limit, str(goodput))
        must(shed.value <= shed.limit, str(shed))
        must(healthy.value <= healthy.limit, str(healthy))
    return [growth, goodput, shed, healthy]


async def steady(port: int, request: bytes, *, seconds: float, is_strict: bool) -> list[Figure]:
    """Seven tenths of what can be done: no error, no long wait, and health is answered throughout.

    `is_strict` holds to times, which wants a quiet machine; without it the load is half of that,
    as other work may take the other half of the machine meanwhile.
    """
    share = 0.7 if is_strict else 0.35
    full = await callers(port, request, num_callers=8, seconds=min(seconds, 5.0))
    must(full.statuses == {200}, f"{full.statuses} before any load")
    work = arrivals(port, request, rate=share * full.rate, seconds=seconds)
    load, health = await beside(work, port, HEALTH, pause=0.05)
    must(load.statuses == {200} and not load.hangs, f"{load.statuses}, {load.hangs} hung")
    must(health.statuses == {200} and not health.hangs, f"health: {health.statuses}")
    usual = percentile(load.answers, 0.5)
    figures = [
        Figure("p99 in medians", percentile(load.answers, 0.99) / usual, 5),
        Figure("health within, ms (p99)", 1000 * percentile(health.answers, 0.99), 250),
    ]
    for figure in figures if is_strict else ():
        must(figure.value <= figure.limit, str(figure))
    return [Figure("requests (at least)", len(load.answers), 1), *figures]


async def same_beside_others(port: int, requests: Sequence[bytes], *, at_once: int) -> list[Figure]:
    """Each request is answered as when it was alone, its numbers to 1e-5."""

    async def numbers(request: bytes) -> list[float]:
        answer = await exchange(port, request, 30.0)
        must(answer.status == 200, f"{answer.status} {answer.body!r}")
        return [float(value) for value in json.loads(answer.body)["predictions"]]

    alone = [await numbers(request) for request in requests]
    together = await asyncio.gather(*(numbers(request) for request in requests * at_once))
    far = 0.0
    for index, found in enumerate(together):
        wanted = alone[index % len(requests)]
        must(len(found) == len(wanted), f"{len(found)} numbers, {len(wanted)} alone")
        far = max(far, *(abs(a - b) for a, b in zip(found, wanted, strict=True)))
    figure = Figure("furthest from alone", far, 1e-5)
    must(figure.value <= figure.limit, str(figure))
    return [figure]


async def slow_readers(port: int, request: bytes, *, number: int, seconds: float) -> list[Figure]:
    """Callers that ask for much and do not read it are cut off; a good one notices nothing."""

    async def ask() -> bool:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**16)
        reader._transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(request)
        await asyncio.sleep(seconds)
        reader._transport.resume_reading()  # type: ignore[attr-defined]
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(re.search(rb"content-length: (\d+)", head.lower())[1])  # type: ignore[index]
            async with asyncio.timeout(HANG_SECONDS):
                await reader.readexactly(length)
        except (OSError, asyncio.IncompleteReadError):
            return True
        finally:
            writer.close()
        return False

    async def all_slow() -> Load:
        cut_off.extend(await asyncio.gather(*(ask() for _ in range(number))))
        return Load()

    cut_off: list[bool] = []
    _, good = await beside(all_slow(), port, GOOD, pause=0.05)
    must(good.statuses == {200} and not good.hangs, f"a good caller got {good.statuses}")
    must(all(cut_off), f"{cut_off.count(False)} of {number} were waited for")
    return [Figure("cut off (at least)", number, number)]


# ---------------------------------------------------------------- changes under load


class Process(Protocol):
    """What subprocess.Popen gives."""

    def send_signal(self, signum: int, /) -> None: ...

    def wait(self, seconds: float, /) -> int: ...


async def hot_swaps(
    port: int,
    request: bytes,
    *,
    model: str,
    versions: Sequence[int],
    install: Callable[[int], Awaitable[None]],
    num_callers: int = 4,
) -> list[Figure]:
    """New versions one after the other: no request fails, and once status says that a version is
    there, none is answered by an older one a second later."""
    answers: list[tuple[float, Answer]] = []  # when asked
    done = asyncio.Event()

    async def call() -> None:
        caller = Caller(port)
        while not done.is_set():
            asked = time.perf_counter()
            answers.append((asked, await caller.ask(request, 30.0)))
        caller.close()

    async def is_available(version: int) -> bool:
        answer = await exchange(port, http(f"/v1/models/{model}/versions/{version}"))
        if answer.status != 200:
            return False
        (status,) = json.loads(answer.body)["model_version_status"]
        return bool(status["state"] == "AVAILABLE")

    calling = [asyncio.create_task(call()) for _ in range(num_callers)]
    since: dict[int, float] = {}
    try:
        for version in versions:
            await install(version)
            there = await until(lambda version=version: is_available(version), 30.0)
            must(there, f"version {version} did not come")
            since[version] = time.perf_counter()
            await asyncio.sleep(0.2)
        await asyncio.sleep(1.2)
    finally:
        done.set()
        await asyncio.gather(*calling)
    failed = [answer for _, answer in answers if answer.status != 200]
    must(not failed, f"{len(failed)} of {len(answers)} failed, the first: {failed[:1]}")
    for version, moment in since.items():
        late = [
            answer.headers.get("x-model-version")
            for asked, answer in answers
            if asked > moment + 1.0 and int(answer.headers.get("x-model-version", 0)) < version
        ]
        must(not late, f"after {version} was there, {len(late)} by {set(late)}")
    must(answers[-1][1].headers.get("x-model-version") == str(versions[-1]), "the last is not used")
    return [Figure("requests (at least)", len(answers), 10_000 if len(versions) >= 20 else 1)]


async def bad_versions(
    port: int,
    request: bytes,
    *,
    model: str,
    good: int,
    install: Sequence[Callable[[], Awaitable[int]]],
    seconds: float = 30.0,
) -> list[Figure]:
    """Versions that cannot be loaded come under load: the good one answers everything, and status
    tells of each that it has failed. `install` puts one there and says its number."""
    answers: list[Answer] = []
    done = asyncio.Event()

    async def call() -> None:
        caller = Caller(port)
        while not done.is_set():
            answers.append(await caller.ask(request, 30.0))
        caller.close()

    async def has_failed(version: int) -> bool:
        answer = await exchange(port, http(f"/v1/models/{model}/versions/{version}"))
        if answer.status != 200:
            return False
        (status,) = json.loads(answer.body)["model_version_status"]
        return bool(status["state"] == "END" and status["status"]["error_message"])

    calling = [asyncio.create_task(call()) for _ in range(2)]
    try:
        for put in install:
            version = await put()
            told = await until(lambda version=version: has_failed(version), seconds)
            must(told, f"nothing is said of version {version}")
    finally:
        done.set()
        await asyncio.gather(*calling)
    failed = [answer for answer in answers if answer.status != 200]
    must(not failed, f"{len(failed)} of {len(answers)} failed, the first: {failed[:1]}")
    others = {answer.headers.get("x-model-version") for answer in answers} - {str(good)}
    must(not others, f"answers of {others}")
    return [Figure("requests (at least)", len(answers), 1)]


async def stop_in_flight(
    port: int,
    process: Process,
    folder: Path,
    *,
    number: int,
) -> list[Figure]:
    """A stop signal with `number` requests and as many streams running: all are answered to their
    end, later ones are refused."""
    leave = folder / "leave"
    # As many calls of the model as last until the requests have taken all threads.
    num_texts = 16
    body = {"model": "writer", "prompt": "a", "max_tokens": 80, "n": num_texts, "stream": True}
    content = json.dumps(body).encode()
    streams = await asyncio.gather(*(Stream.begun(port, content) for _ in range(number)))
    try:
        asked = []
        for index in range(number):
            row = {"entry": str(folder / f"entry{index}"), "leave": str(leave)}
            asked.append(asyncio.create_task(exchange(port, predict("gate", [row]), 60.0)))

        async def are_all_taken() -> bool:
            page = (await exchange(port, http(METRICS))).body.decode()
            found = dict(re.findall(r"^:stepwise:serving:(\w+?)(?:{.*})? (\d+)$", page, re.M))
            taken = sum(int(found.get(f"{kind}_requests", 0)) for kind in ("running", "waiting"))
            # Each text of a stream counts as a request.
            return int(found.get("streams", 0)) == number and taken == number + number * num_texts

        must(await until(are_all_taken, 30.0), "not all requests and streams run at once")
        process.send_signal(signal.SIGTERM)

        async def is_draining() -> bool:
            return (await exchange(port, http("/readyz"))).status == 503

        must(await until(is_draining, 5.0), "readiness does not tell")
        later = await exchange(port, GOOD)
        later_stream = await exchange(port, http("/v1/completions", content))
        leave.touch()
        answers = await asyncio.gather(*asked)
        complete = Figure("complete (at least)", sum(a.status == 200 for a in answers), number)
        must(complete.value == number, str(complete))
        ended = await asyncio.gather(*(stream.is_complete() for stream in streams))
        whole = Figure("complete streams (at least)", sum(ended), number)
        must(whole.value == number, str(whole))
        for status in (later.status, later_stream.status):
            must(status == 503, f"{status} to a request after the signal")
        must("retry-after" in later.headers, "503 without Retry-After")
        code = await asyncio.to_thread(process.wait, 30)
        must(code == 0, f"exit code {code}")
    finally:
        for stream in streams:
            stream.close()
    return [complete, whole]
