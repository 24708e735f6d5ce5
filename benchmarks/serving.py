"""Requests per second and latencies of the model server: python benchmarks/serving.py [--exports F]

One model, a small Transformer classifier, is asked over REST and gRPC by 1, 8, 32 and 64 callers
with batching off and on; each caller sends its next text when it has the last answer. Beside it the
bare session call in a process of its own, and with `--litserve PYTHON` the same SavedModel behind
LitServe, run by that interpreter (it needs litserve, tensorflow and tensorflow-text).

The client is this process; its requests are made beforehand and its answers only counted, apart
from one that is checked for each measurement. Without `--exports` a Transformer is trained for one
pass over the starter reviews and exported. Prints the machine, the versions and a Markdown table.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from training.datasets import load_dataset
from training.datasets.config import DatasetConfig

ROOT = Path(__file__).resolve().parents[1]
CALLERS = (1, 8, 32, 64)
# What waits is taken at once, by one thread: two batches at a time would share the processors.
BATCHING = """
max_batch_size { value: 64 }
batch_timeout_micros { value: 0 }
num_batch_threads { value: 1 }
max_enqueued_batches { value: 100 }
"""
START_SECONDS = 90

Ask = Callable[[int], Awaitable[bytes]]  # the i-th text's answer


@dataclass(frozen=True)
class Figures:
    per_second: float
    p50: float  # milliseconds
    p95: float
    p99: float


def texts() -> list[str]:
    """Reviews of the starter set, as many as no caller ends up with one of its own."""
    data = load_dataset(DatasetConfig(name="starter_sentiment"), "classification")
    return list(data.test.texts[:257])


async def measured(callers: list[Ask], seconds: float) -> Figures:
    """What `callers` reach together, after a fifth of the time that is not counted."""
    latencies: list[float] = []
    begin = time.perf_counter() + seconds / 5
    end = begin + seconds

    async def call(index: int, ask: Ask) -> None:
        while (start := time.perf_counter()) < end:
            await ask(index)
            index += len(callers)
            done = time.perf_counter()
            if begin <= done <= end:
                latencies.append(done - start)

    await asyncio.gather(*(call(index, ask) for index, ask in enumerate(callers)))
    cuts = statistics.quantiles(latencies, n=100)
    return Figures(len(latencies) / seconds, *(1000 * cuts[p - 1] for p in (50, 95, 99)))


# ---------------------------------------------------------------- the two ways to ask


@contextmanager
def _loop() -> Iterator[asyncio.AbstractEventLoop]:
    import uvloop

    loop = uvloop.new_event_loop()
    try:
        yield loop
    finally:
        loop.close()


class Connection(asyncio.Protocol):
    """A kept-alive connection with one request at a time, as cheap as Python has it."""

    def connection_made(self, transport) -> None:
        self.transport, self.received = transport, b""

    def ask(self, request: bytes) -> asyncio.Future[bytes]:
        self.answer = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        return self.answer

    def data_received(self, data: bytes) -> None:
        self.received += data
        headers, end, body = self.received.partition(b"\r\n\r\n")
        length = headers.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
        if not end or len(body) < int(length):
            return
        self.received = b""
        if b" 200 " in headers[:20]:
            self.answer.set_result(body)
        else:
            self.answer.set_exception(RuntimeError(f"{headers!r} {body!r}"))


async def over_rest(path: str, port: int, bodies: list[bytes], count: int, seconds: float):
    """Figures of `count` callers, each with a connection of its own; and an answer."""
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    requests = [f"{head}Content-Length: {len(b)}\r\n\r\n".encode() + b for b in bodies]
    loop = asyncio.get_running_loop()
    connections = [
        (await loop.create_connection(Connection, "127.0.0.1", port))[1] for _ in range(count)
    ]

    def caller(connection: Connection) -> Ask:
        return lambda index: connection.ask(requests[index % len(requests)])

    callers = [caller(connection) for connection in connections]
    answer = await callers[0](0)
    figures = await measured(callers, seconds)
    for connection in connections:
        connection.transport.close()
    return figures, answer


async def over_grpc(name: str, port: int, words: list[str], count: int, seconds: float):
    import grpc
    import numpy as np
    from tensorflow_serving.apis import predict_pb2

    from serving.codec import tensor_to_proto

    requests = []
    for word in words:
        request = predict_pb2.PredictRequest()
        request.model_spec.name = name
        request.inputs["text"].CopyFrom(tensor_to_proto(np.array([word.encode()], object)))
        requests.append(request.SerializeToString())
    channels = [
        # Else all channels of a process share one connection.
        grpc.aio.insecure_channel(f"127.0.0.1:{port}", [("grpc.use_local_subchannel_pool", 1)])
        for _ in range(count)
    ]
    method = "/tensorflow.serving.PredictionService/Predict"

    def caller(channel: grpc.aio.Channel) -> Ask:
        predict = channel.unary_unary(method)  # bytes in, bytes out
        return lambda index: predict(requests[index % len(requests)])

    callers = [caller(channel) for channel in channels]
    answer = await callers[0](0)
    figures = await measured(callers, seconds)
    for channel in channels:
        await channel.close()
    return figures, answer


# ---------------------------------------------------------------- what is asked


def session_figures(path: Path, words: list[str], seconds: float) -> list[dict]:
    """The bare session call, one caller, rows 1 and 32. Runs in a process of its own."""
    import numpy as np

    from serving import servable

    loaded = servable.load("m", 1, path)
    signature = loaded.signatures["serving_default"]
    feeds = (signature.inputs["text"].name,)
    fetches = tuple(sorted(info.name for info in signature.outputs.values()))
    rows = []
    for size in (1, 32):
        arrays = [
            np.array([word.encode() for word in words[start : start + size]], object)
            for start in range(0, len(words) - size, size)
        ]

        async def ask(index: int, arrays: list = arrays) -> bytes:
            loaded._run_session((feeds, fetches), (arrays[index % len(arrays)],), 30.0)
            return b""

        rows.append(vars(asyncio.run(measured([ask], seconds))))
    return rows


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def running(command: list[str], port: int, path: str) -> Iterator[None]:
    """A server as a child, from the first 200 at `path` on."""
    import httpx

    child = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + START_SECONDS
        while True:
            if child.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"did not start: {' '.join(command)}")
            try:
                if httpx.get(f"http://127.0.0.1:{port}{path}").status_code == 200:
                    break
            except httpx.TransportError:
                pass
            time.sleep(0.2)
        yield
    finally:
        child.terminate()
        child.wait(30)


def make_export(folder: Path) -> Path:
    training = [sys.executable, "-m", "training"]
    runs, exports = folder / "runs", folder / "exports"
    for command in (
        [*training, "fit", "sentiment_transformer", "--runs", str(runs), "--set", "epochs=1"],
        [
            *training,
            "export",
            "sentiment_transformer",
            "--runs",
            str(runs),
            "--exports",
            str(exports),
        ],
    ):
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return exports


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("--exports", type=Path, help="folder with the model (default: trains one)")
    parser.add_argument("--model", default="sentiment_transformer", help="of a text input")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    parser.add_argument("--callers", type=int, nargs="+", default=CALLERS)
    parser.add_argument("--litserve", help="a Python that has litserve, to measure that too")
    parser.add_argument("--batching", default=BATCHING, help="parameters, where it is on")
    parser.add_argument("--session-only", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    words = texts()
    if options.session_only:
        print(json.dumps(session_figures(options.session_only, words, options.seconds)))
        return
    with tempfile.TemporaryDirectory() as folder:
        exports = options.exports or make_export(Path(folder))
        compare(options, exports.resolve(), words, Path(folder))


def compare(options: argparse.Namespace, exports: Path, words: list[str], folder: Path) -> None:
    name, seconds = options.model, options.seconds
    path = max((exports / name).iterdir(), key=lambda child: child.name)
    print(f"{platform.platform()}, {os.cpu_count()} CPUs, Python {platform.python_version()}")
    packages = ("tensorflow", "grpcio", "uvicorn", "starlette", "orjson")
    print(", ".join(f"{package} {version(package)}" for package in packages))
    print(f"{name}: {' '.join(sys.argv)}\n")
    print("| server | way | batching | callers | requests/s | p50 ms | p95 ms | p99 ms |")
    print("|---|---|---|---|---|---|---|---|", flush=True)

    def row(server: str, way: str, batching: str, callers: object, figures: Figures) -> Figures:
        cells = (f"{value:.2f}" for value in (figures.p50, figures.p95, figures.p99))
        per_second = f"{figures.per_second:,.0f}"
        print(
            f"| {' | '.join((server, way, batching, str(callers), per_second, *cells))} |",
            flush=True,
        )
        return figures

    command = [sys.executable, __file__, "--session-only", str(path), "--seconds", str(seconds)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    one, many = (Figures(**figures) for figures in json.loads(done.stdout.splitlines()[-1]))
    row("bare session", "1 row", "", 1, one)
    row("bare session", "32 rows", "", 1, many)

    bodies = [json.dumps({"instances": [word]}).encode() for word in words]
    parameters = folder / "batching.config"
    parameters.write_text(options.batching)
    url = f"/v1/models/{name}:predict"
    reached: dict[tuple[str, str, int], Figures] = {}
    for batching in ("off", "on"):
        rest, grpc = free_port(), free_port()
        flags = ["--enable_batching", f"--batching_parameters_file={parameters}"]
        server = [
            *(sys.executable, "-m", "serving", f"--exports={exports}", f"--models={name}"),
            *(f"--rest_api_port={rest}", f"--port={grpc}"),
            *(flags if batching == "on" else []),
        ]
        with running(server, rest, "/readyz"), _loop() as loop:
            # The first batches of each size and length take longer.
            loop.run_until_complete(over_rest(url, rest, bodies, max(options.callers), seconds))
            for callers in options.callers:
                figures, answer = loop.run_until_complete(
                    over_rest(url, rest, bodies, callers, seconds)
                )
                if "label" not in json.loads(answer)["predictions"][0]:
                    raise RuntimeError(f"no label in {answer!r}")
                reached["REST", batching, callers] = row("ours", "REST", batching, callers, figures)
            for callers in options.callers:
                figures, _ = loop.run_until_complete(over_grpc(name, grpc, words, callers, seconds))
                reached["gRPC", batching, callers] = row("ours", "gRPC", batching, callers, figures)
    peer = {}
    for batching in ("off", "on") if options.litserve else ():
        port = free_port()
        script = str(Path(__file__).with_name("litserve_peer.py"))
        size = "64" if batching == "on" else "1"
        with (
            running([options.litserve, script, str(path), str(port), size], port, "/health"),
            _loop() as loop,
        ):
            loop.run_until_complete(
                over_rest("/predict", port, bodies, max(options.callers), seconds)
            )
            for callers in options.callers:
                figures, _ = loop.run_until_complete(
                    over_rest("/predict", port, bodies, callers, seconds)
                )
                peer[batching, callers] = row("LitServe", "REST", batching, callers, figures)

    print()
    if 1 in options.callers:
        overhead = reached["REST", "off", 1].p50 - one.p50
        print(f"REST over the bare session call, one caller, median: {overhead:.2f} ms more")
    for callers in options.callers:
        on = {way: reached[way, "on", callers].per_second for way in ("REST", "gRPC")}
        gains = (f"{way} {on[way] / reached[way, 'off', callers].per_second:.2f}" for way in on)
        line = f"{callers} callers: batching on over off: {', '.join(gains)}"
        line += f"; gRPC over REST {on['gRPC'] / on['REST']:.2f}"
        if peer:
            best = max(peer[batching, callers].per_second for batching in ("off", "on"))
            line += f"; REST over the better of LitServe {on['REST'] / best:.2f}"
        print(line)


if __name__ == "__main__":
    main()
