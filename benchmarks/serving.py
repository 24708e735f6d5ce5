"""Requests per second and latencies of the model server: python benchmarks/serving.py [--exports F]

Two models, a small Transformer of sentiments and the topics of `make demo`, are asked over REST and
gRPC by 1, 8, 32 and 64 callers with batching off and on; each caller sends its next text when it
has the last answer. Beside them the bare session call in a process of its own, and with
`--litserve PYTHON` and `--bentoml PYTHON` the same SavedModel behind LitServe and BentoML, run by
that interpreter (it needs the package, tensorflow and tensorflow-text).

The callers are those of `h2load` (Debian: nghttp2-client), which costs next to nothing beside a
server on the same processors; a client in Python would cost as much as what it measures. One caller
sends a review of median length, several send reviews of four lengths. An answer is checked for each
measurement. Without `--exports` both are trained, the Transformer for one pass over the starter
reviews, and exported. Prints the machine, the versions and a Markdown table.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from training.datasets import load_dataset
from training.datasets.config import DatasetConfig

ROOT = Path(__file__).resolve().parents[1]
MODELS = ("sentiment_transformer", "topics")
CALLERS = (1, 8, 32, 64)
# What waits is taken at once, by one thread, so that more waits until the next batch.
BATCHING = """
max_batch_size { value: 64 }
batch_timeout_micros { value: 0 }
num_batch_threads { value: 1 }
max_enqueued_batches { value: 100 }
"""
START_SECONDS = 90


@dataclass(frozen=True)
class Figures:
    per_second: float
    p50: float  # milliseconds
    p95: float
    p99: float


def texts() -> list[str]:
    """Reviews of the starter set of four lengths, shortest first; the third is the median."""
    data = load_dataset(DatasetConfig(name="starter_sentiment"), "classification")
    by_length = sorted(data.test.texts, key=len)
    return [by_length[len(by_length) * percent // 100] for percent in (10, 30, 50, 90)]


def figures_of(latencies: list[float], seconds: float) -> Figures:
    cuts = statistics.quantiles(latencies, n=100)
    return Figures(len(latencies) / seconds, *(1000 * cuts[p - 1] for p in (50, 95, 99)))


# ---------------------------------------------------------------- the two ways to ask


@dataclass(frozen=True)
class Way:
    """How a server is asked: its address, h2load's options, and a body for each text."""

    url: str
    options: tuple[str, ...]
    bodies: list[bytes]
    check: Callable[[], None]  # raises if an answer is no answer


def rest(port: int, path: str, words: list[str]) -> Way:
    bodies = [json.dumps({"instances": [word]}).encode() for word in words]
    url = f"http://127.0.0.1:{port}{path}"

    def check() -> None:
        import httpx

        answer = httpx.post(url, content=bodies[0], headers={"content-type": "application/json"})
        if "label" not in answer.text:
            raise RuntimeError(f"no label in {answer.text!r}")

    return Way(url, ("--h1", "-H", "content-type: application/json"), bodies, check)


def grpc(port: int, name: str, words: list[str]) -> Way:
    import numpy as np
    from tensorflow_serving.apis import predict_pb2

    from serving.codec import tensor_to_proto

    requests = []
    for word in words:
        request = predict_pb2.PredictRequest()
        request.model_spec.name = name
        request.inputs["text"].CopyFrom(tensor_to_proto(np.array([word.encode()], object)))
        requests.append(request.SerializeToString())
    method = "/tensorflow.serving.PredictionService/Predict"

    def check() -> None:
        import grpc

        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            answer = channel.unary_unary(method)(requests[0])
        if b"label" not in answer:
            raise RuntimeError(f"no label in {answer!r}")

    # A message of gRPC: not compressed, its length, itself.
    bodies = [b"\0" + struct.pack(">I", len(request)) + request for request in requests]
    options = ("-H", "content-type: application/grpc", "-H", "te: trailers")
    return Way(f"http://127.0.0.1:{port}{method}", options, bodies, check)


def load(way: Way, callers: int, seconds: float, folder: Path) -> Figures:
    """Figures of so many callers, each with a connection of its own, after half a second."""
    way.check()
    bodies = way.bodies if callers > 1 else [way.bodies[len(way.bodies) // 2]]
    parts = min(callers, len(bodies))
    logs, running = [], []
    for i in range(parts):
        body, log = folder / f"body-{i}", folder / f"log-{i}"
        body.write_bytes(bodies[i])
        log.unlink(missing_ok=True)
        share = callers // parts + (i < callers % parts)
        command = ["h2load", "-c", str(share), "-m1", "-D", f"{1000 * seconds:.0f}ms"]
        command += [
            "--warm-up-time=500ms",
            f"--log-file={log}",
            "-d",
            str(body),
            *way.options,
            way.url,
        ]
        running.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        logs.append(log)
    said = [process.communicate()[0] for process in running]
    for process, text in zip(running, said, strict=True):
        if process.returncode or " 0 failed, 0 errored" not in text or " 0 5xx" not in text:
            raise RuntimeError(f"{way.url}: {text}")
    lines = [line.split() for log in logs for line in log.read_text().splitlines()]
    done = [line for line in lines if line[1] == "200"]  # what the end cut off has none
    return figures_of([int(microseconds) / 1e6 for _, _, microseconds in done], seconds)


# ---------------------------------------------------------------- what is asked


def session_figures(path: Path, words: list[str], seconds: float) -> list[dict]:
    """The bare session call, one caller, rows 1 and 32. Runs in a process of its own."""
    import numpy as np

    from serving import servable
    from serving.config import ServerConfig

    # With the threads that the server gives it.
    loaded = servable.load("m", 1, path, config=ServerConfig(exports=path.parents[1]))
    signature = loaded.signatures["serving_default"]
    feeds = (signature.inputs["text"].name,)
    fetches = tuple(sorted(info.name for info in signature.outputs.values()))
    rows = []
    median = words[len(words) // 2]
    for batch in ([median], words * (32 // len(words))):
        array = np.array([word.encode() for word in batch], object)
        latencies: list[float] = []
        begin = time.perf_counter() + 0.5
        while (start := time.perf_counter()) < begin + seconds:
            loaded._run_session((feeds, fetches), (array,), 30.0)
            if start >= begin:
                latencies.append(time.perf_counter() - start)
        rows.append(vars(figures_of(latencies, seconds)))
    return rows


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def running(command: list[str], port: int, path: str, **environment: str) -> Iterator[None]:
    """A server as a child, from the first 200 at `path` on."""
    import httpx

    child = subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
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
    for name, options in ((MODELS[0], ["--set", "epochs=1"]), (MODELS[1], [])):
        for command in (
            [*training, "fit", name, "--runs", str(runs), *options],
            [*training, "export", name, "--runs", str(runs), "--exports", str(exports)],
        ):
            subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return exports


# ---------------------------------------------------------------- its peers


@dataclass(frozen=True)
class Peer:
    """How to start one: its command and variables for a version's folder, a port and rows a batch;
    and where it says that it is ready."""

    start: Callable[[str, Path, int, int], tuple[list[str], dict[str, str]]]
    ready: str


def _litserve(python: str, path: Path, port: int, rows: int) -> tuple[list[str], dict[str, str]]:
    script = str(Path(__file__).with_name("litserve_peer.py"))
    return [python, script, str(path), str(port), str(rows)], {}


def _bentoml(python: str, path: Path, port: int, rows: int) -> tuple[list[str], dict[str, str]]:
    command = [python, "-m", "bentoml", "serve", "benchmarks/bentoml_peer.py:Classifier"]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    variables = {"VERSION_FOLDER": str(path), "MAX_BATCH_SIZE": str(rows)}
    return command, variables | {"BENTOML_DO_NOT_TRACK": "True"}


PEERS = {"LitServe": Peer(_litserve, "/health"), "BentoML": Peer(_bentoml, "/readyz")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("--exports", type=Path, help="folder with the models (default: trains)")
    parser.add_argument("--models", nargs="+", default=MODELS, help="of a text input")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    parser.add_argument("--callers", type=int, nargs="+", default=CALLERS)
    for name in PEERS:
        flag, text = f"--{name.lower()}", f"a Python that has {name}, to measure that too"
        parser.add_argument(flag, help=text)
    parser.add_argument("--batching", default=BATCHING, help="parameters, where it is on")
    parser.add_argument("--session-only", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not shutil.which("h2load"):
        parser.error("h2load asks the servers and is not here: apt-get install nghttp2-client")
    words = texts()
    if options.session_only:
        print(json.dumps(session_figures(options.session_only, words, options.seconds)))
        return
    with tempfile.TemporaryDirectory() as folder:
        exports = options.exports or make_export(Path(folder))
        print(f"{platform.platform()}, {os.cpu_count()} CPUs, Python {platform.python_version()}")
        packages = ("tensorflow", "grpcio", "uvicorn", "starlette", "orjson")
        print(", ".join(f"{package} {version(package)}" for package in packages))
        print(" ".join(sys.argv))
        for name in options.models:
            compare(options, exports.resolve(), name, words, Path(folder))


def compare(
    options: argparse.Namespace, exports: Path, name: str, words: list[str], folder: Path
) -> None:
    seconds = options.seconds
    path = max((exports / name).iterdir(), key=lambda child: child.name)
    print(f"\n{name}\n")
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

    parameters = folder / "batching.config"
    parameters.write_text(options.batching)
    reached: dict[tuple[str, str, int], Figures] = {}
    for batching in ("off", "on"):
        ports = free_port(), free_port()
        flags = ["--enable_batching", f"--batching_parameters_file={parameters}"]
        server = [
            *(sys.executable, "-m", "serving", f"--exports={exports}", f"--models={name}"),
            *(f"--rest_api_port={ports[0]}", f"--port={ports[1]}"),
            *(flags if batching == "on" else []),
        ]
        ways = {
            "REST": rest(ports[0], f"/v1/models/{name}:predict", words),
            "gRPC": grpc(ports[1], name, words),
        }
        with running(server, ports[0], "/readyz"):
            # The first batches of each size and length take longer.
            load(ways["REST"], max(options.callers), seconds, folder)
            for way, how in ways.items():
                for callers in options.callers:
                    figures = load(how, callers, seconds, folder)
                    reached[way, batching, callers] = row("ours", way, batching, callers, figures)
    peers: dict[tuple[str, int], list[Figures]] = {}
    for peer, how_to in PEERS.items():
        python = getattr(options, peer.lower())
        for batching, rows in (("off", 1), ("on", 64)) if python else ():
            port = free_port()
            command, variables = how_to.start(python, path, port, rows)
            with running(command, port, how_to.ready, **variables):
                how = rest(port, "/predict", words)
                load(how, max(options.callers), seconds, folder)
                for callers in options.callers:
                    figures = load(how, callers, seconds, folder)
                    row(peer, "REST", batching, callers, figures)
                    peers.setdefault((peer, callers), []).append(figures)

    print()
    if 1 in options.callers:
        overhead = reached["REST", "off", 1].p50 - one.p50
        print(f"REST over the bare session call, one caller, median: {overhead:.2f} ms more")
    for callers in options.callers:
        on = {way: reached[way, "on", callers].per_second for way in ("REST", "gRPC")}
        gains = (f"{way} {on[way] / reached[way, 'off', callers].per_second:.2f}" for way in on)
        line = f"{callers} callers: batching on over off: {', '.join(gains)}"
        line += f"; gRPC over REST {on['gRPC'] / on['REST']:.2f}"
        for (peer, number), both in peers.items():
            if number == callers:
                best = max(figures.per_second for figures in both)
                line += f"; REST over the better {peer} {on['REST'] / best:.2f}"
        print(line)


if __name__ == "__main__":
    main()
