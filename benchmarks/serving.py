"""Requests per second and latencies of the model server: python benchmarks/serving.py [--exports F]

Two models, a small Transformer of sentiments and the topics of `make demo`, are asked over REST and
gRPC by 1, 8, 32 and 64 callers with batching off and on; each caller sends its next text when it
has the last answer. Beside them the bare session call in a process of its own, and with
`--litserve PYTHON` and `--bentoml PYTHON` the same SavedModel behind LitServe and BentoML, run by
that interpreter (it needs the package, tensorflow and tensorflow-text). A `tensorflow_model_server`
on the PATH is asked, too. All
servers are up at once and asked in turns, round by round, as the speed of a shared machine drifts.

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
import re
import shutil
import signal
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from benchmarks.processes import Process
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


Key = tuple[str, str, str, int]  # server, way, batching, callers


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
    check: Callable[[], int]  # bytes of an answer; raises if it is none


def rest(port: int, path: str, words: list[str]) -> Way:
    bodies = [json.dumps({"instances": [word]}).encode() for word in words]
    url = f"http://127.0.0.1:{port}{path}"

    def check() -> int:
        import httpx

        answer = httpx.post(url, content=bodies[0], headers={"content-type": "application/json"})
        if "label" not in answer.text:
            raise RuntimeError(f"no label in {answer.text!r}")
        return len(answer.content)

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

    def check() -> int:
        import grpc

        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            answer = channel.unary_unary(method)(requests[0])
        if b"label" not in answer:
            raise RuntimeError(f"no label in {answer!r}")
        return len(answer)

    # A message of gRPC: not compressed, its length, itself.
    bodies = [b"\0" + struct.pack(">I", len(request)) + request for request in requests]
    options = ("-H", "content-type: application/grpc", "-H", "te: trailers")
    return Way(f"http://127.0.0.1:{port}{method}", options, bodies, check)


def load(way: Way, callers: int, seconds: float, folder: Path) -> Figures:
    """Figures of so many callers, each with a connection of its own, after a third of a second."""
    size = way.check()
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
            "--warm-up-time=300ms",
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
        counts = re.search(r"(\d+) done,.* 0 failed, 0 errored", text)
        data = re.search(r"\(([\d,]+)\) data", text)
        if process.returncode or not (counts and data) or " 0 4xx, 0 5xx" not in text:
            raise RuntimeError(f"{way.url}: {text}")
        # A refusal of gRPC has status 200, too, but no data.
        total = int(data[1].replace(",", ""))
        if total < 0.8 * size * int(counts[1]):
            raise RuntimeError(f"{way.url}: {total} bytes in {counts[1]} answers of about {size}")
    lines = [line.split() for log in logs for line in log.read_text().splitlines()]
    done = [line for line in lines if line[1] == "200"]  # what the end cut off has none
    return figures_of([int(microseconds) / 1e6 for _, _, microseconds in done], seconds)


# ---------------------------------------------------------------- what is asked


def serve_session(path: Path, words: list[str]) -> None:
    """The bare session call of one caller, in a process of its own, by orders of
    `benchmarks/processes.py`: so many rows, for so many seconds."""
    import numpy as np

    from serving import servable
    from serving.config import ServerConfig

    # With the threads that the server gives it.
    loaded = servable.load("m", 1, path, config=ServerConfig(exports=path.parents[1]))
    signature = loaded.signatures["serving_default"]
    feeds = (signature.inputs["text"].name,)
    fetches = tuple(sorted(info.name for info in signature.outputs.values()))
    print("{}", flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        batch = words * (32 // len(words)) if order["rows"] > 1 else [words[len(words) // 2]]
        array = np.array([word.encode() for word in batch], object)
        latencies: list[float] = []
        begin = time.perf_counter() + 0.3
        while (start := time.perf_counter()) < begin + order["seconds"]:
            loaded._run_session((feeds, fetches), (array,), 30.0)
            if start >= begin:
                latencies.append(time.perf_counter() - start)
        print(json.dumps(vars(figures_of(latencies, order["seconds"]))), flush=True)


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
        start_new_session=True,  # a group of its own: peers leave workers behind when they end
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
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)


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
OURS, STOCK = "ours", "TensorFlow Serving"
ORDER = ("bare session", OURS, STOCK, *PEERS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("--exports", type=Path, help="folder with the models (default: trains)")
    parser.add_argument("--models", nargs="+", default=MODELS, help="of a text input")
    parser.add_argument("--seconds", type=float, default=1.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3, help="of all measurements in turn")
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
        serve_session(options.session_only, words)
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
    path = max((exports / name).iterdir(), key=lambda child: int(child.name))
    rounds: list[dict[Key, Figures]] = []
    with ExitStack() as stack:
        session = Process([sys.executable, __file__, "--session-only", str(path)])
        stack.callback(session.close)
        ways = started(options, exports, name, words, folder, stack)
        for how in ways.values():  # the first batches of each size and length take longer
            load(how, max(options.callers), 1.0, folder)
        for _ in range(options.rounds):
            found: dict[Key, Figures] = {}
            for rows in (1, 32):
                answer = session.ask(rows=rows, seconds=options.seconds)
                found["bare session", f"{rows} rows", "", 1] = Figures(**answer)
            for callers in options.callers:
                for way, how in ways.items():
                    found[*way, callers] = load(how, callers, options.seconds, folder)
            rounds.append(found)
    print(f"\n{name}\n")
    print("| server | way | batching | callers | requests/s | p50 ms | p95 ms | p99 ms |")
    print("|---|---|---|---|---|---|---|---|")
    for key in sorted(rounds[0], key=lambda key: (ORDER.index(key[0]), *key[1:3], key[3])):
        columns = zip(*(vars(found[key]).values() for found in rounds), strict=True)
        per_second, *times = map(statistics.median, columns)
        cells = (*map(str, key), f"{per_second:,.0f}", *(f"{value:.2f}" for value in times))
        print(f"| {' | '.join(cells)} |")
    tell_ratios(rounds, options.callers)


def started(
    options: argparse.Namespace,
    exports: Path,
    name: str,
    words: list[str],
    folder: Path,
    stack: ExitStack,
) -> dict[tuple[str, str, str], Way]:
    """All servers, up to the end of `stack`, so that they can be asked in turns: by server, way and
    batching."""
    path = max((exports / name).iterdir(), key=lambda child: int(child.name))
    parameters = folder / "batching.config"
    parameters.write_text(options.batching)
    flags = ["--enable_batching", f"--batching_parameters_file={parameters}"]
    programs = {OURS: [sys.executable, "-m", "serving", f"--exports={exports}", f"--models={name}"]}
    if stock := shutil.which("tensorflow_model_server"):
        programs[STOCK] = [stock, f"--model_name={name}", f"--model_base_path={exports / name}"]
    ways = {}
    for server, program in programs.items():
        for batching in ("off", "on"):
            ports = free_port(), free_port()
            command = [*program, f"--rest_api_port={ports[0]}", f"--port={ports[1]}"]
            command += flags if batching == "on" else []
            is_ready = "/readyz" if server == OURS else f"/v1/models/{name}"
            stack.enter_context(running(command, ports[0], is_ready))
            ways[server, "REST", batching] = rest(ports[0], f"/v1/models/{name}:predict", words)
            ways[server, "gRPC", batching] = grpc(ports[1], name, words)
    for peer, how_to in PEERS.items():
        python = getattr(options, peer.lower())
        for batching, rows in (("off", 1), ("on", 64)) if python else ():
            port = free_port()
            command, variables = how_to.start(python, path, port, rows)
            stack.enter_context(running(command, port, how_to.ready, **variables))
            ways[peer, "REST", batching] = rest(port, "/predict", words)
    return ways


def tell_ratios(rounds: list[dict[Key, Figures]], numbers: list[int]) -> None:
    """Medians over the rounds of what was measured within one."""

    def ratio(of: Callable[[dict[Key, Figures]], float]) -> str:
        return f"{statistics.median(map(of, rounds)):.2f}"

    print()
    if 1 in numbers:
        for way in ("REST", "gRPC"):

            def more(found: dict[Key, Figures], way: str = way) -> float:
                return found[OURS, way, "off", 1].p50 - found["bare session", "1 rows", "", 1].p50

            print(f"{way} over the bare session call, one caller, median: {ratio(more)} ms more")
    peers = sorted({server for server, *_ in rounds[0]} & {STOCK, *PEERS})
    for callers in numbers:

        def rate(found: dict[Key, Figures], *key: str, callers: int = callers) -> float:
            return found[*key, callers].per_second

        parts = [
            f"batching on over off, {way} "
            + ratio(lambda f, w=way: rate(f, OURS, w, "on") / rate(f, OURS, w, "off"))
            for way in ("REST", "gRPC")
        ]
        parts += [
            f"gRPC over REST, batching {batching} "
            + ratio(lambda f, b=batching: rate(f, OURS, "gRPC", b) / rate(f, OURS, "REST", b))
            for batching in ("off", "on")
        ]
        parts += [
            f"REST over the better {peer} "
            + ratio(
                lambda f, p=peer: (
                    rate(f, OURS, "REST", "on") / max(rate(f, p, "REST", b) for b in ("off", "on"))
                )
            )
            for peer in peers
        ]
        print(f"{callers} callers: {'; '.join(parts)}")


if __name__ == "__main__":
    main()
