"""Seconds from the start of `python -m serving` to its first answers, and memory for each model.

`python benchmarks/cold_start.py [--exports FOLDER]`, a folder with models as `make demo` leaves it.
The server's time runs from the start of its process to the first answer of any model and to the
moment when every model has answered once. Beside it the time of a process that imports TensorFlow
and TensorFlow Text and loads the same versions one by one, without a request: by
`tf.saved_model.load`, and by the session loader that the server and TensorFlow Serving use. A
model's memory is what the server holds beyond a server without that model, after one answer of each
model. Each figure is the median of the rounds; the processes of a round run one after another.
Prints the machine, the versions and Markdown tables.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
START_SECONDS = 120
POLL_SECONDS = 0.01

IMPORT = "import sys, tensorflow as tf, tensorflow_text"
LOADERS = {
    "`tf.saved_model.load`": f"""
{IMPORT}
models = [tf.saved_model.load(path) for path in sys.argv[1:]]
print("loaded", flush=True)
""",
    "the session loader": f"""
{IMPORT}
def load(path):
    session = tf.compat.v1.Session(graph=tf.Graph())
    tf.compat.v1.saved_model.load(session, ["serve"], path)
    return session
models = [load(path) for path in sys.argv[1:]]
print("loaded", flush=True)
""",
}


def newest(folder: Path) -> Path:
    """The newest version of the model in `folder`."""
    return max(
        (child for child in folder.iterdir() if child.name.isdigit()), key=lambda c: int(c.name)
    )


def first_request(version_folder: Path) -> bytes:
    """One row of the manifest's first golden request."""
    golden = json.loads((version_folder / "manifest.json").read_text(encoding="utf-8"))["golden"][0]
    inputs = {alias: values[:1] for alias, values in golden["inputs"].items()}
    return json.dumps({"signature_name": golden["signature_name"], "inputs": inputs}).encode()


def load_seconds(script: str, paths: list[Path]) -> float:
    """From the start of the process until everything is loaded."""
    start = time.perf_counter()
    command = [sys.executable, "-c", script, *map(str, paths)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as child:
        if child.stdout is None or child.stdout.readline() != "loaded\n":
            raise RuntimeError(f"could not load {', '.join(map(str, paths))}")
        return time.perf_counter() - start


def served(exports: Path, names: list[str]) -> tuple[float, float, float]:
    """Seconds to the first answer, seconds until each model has answered, MB held then."""
    with socket.socket() as rest, socket.socket() as grpc:
        for probe in (rest, grpc):
            probe.bind(("127.0.0.1", 0))
        ports = rest.getsockname()[1], grpc.getsockname()[1]
    requests = {name: first_request(newest(exports / name)) for name in names}
    command = [
        *(sys.executable, "-m", "serving", "--engine=embedded", f"--exports={exports}"),
        *(f"--models={','.join(names)}", f"--rest_api_port={ports[0]}", f"--port={ports[1]}"),
    ]
    start = time.perf_counter()
    child = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        answered: list[float] = []
        while requests:
            if child.poll() is not None or time.perf_counter() > start + START_SECONDS:
                raise RuntimeError(f"no answer of {', '.join(requests)}: {' '.join(command)}")
            for name in list(requests):
                if is_answered(ports[0], name, requests[name]):
                    answered.append(time.perf_counter() - start)
                    del requests[name]
            time.sleep(POLL_SECONDS)
        return answered[0], answered[-1], megabytes(child.pid)
    finally:
        child.terminate()
        child.wait(60)


def is_answered(port: int, name: str, body: bytes) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=START_SECONDS)
    try:
        headers = {"content-type": "application/json"}
        connection.request("POST", f"/v1/models/{name}:predict", body, headers)
        answer = connection.getresponse()
        return answer.status == 200 and "outputs" in json.loads(answer.read())
    except ConnectionRefusedError:  # not listening yet
        return False
    finally:
        connection.close()


def megabytes(process: int) -> float:
    """What the process holds in memory (its resident set)."""
    command = ["ps", "-o", "rss=", "-p", str(process)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return int(said) * 1024 / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--exports", type=Path, default=ROOT / "exports", help="folder of models")
    parser.add_argument("--models", help="A,B (default: all in the folder)")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    exports = options.exports.resolve()
    names = options.models.split(",") if options.models else sorted(os.listdir(exports))
    if len(names) < 2:
        parser.error(f"memory for each model needs two models or more; {exports} has {names}")
    paths = [newest(exports / name) for name in names]

    print(f"{platform.platform()}, {os.cpu_count()} CPUs, Python {platform.python_version()}")
    packages = ("tensorflow", "tensorflow-text", "grpcio", "uvicorn")
    print(", ".join(f"{package} {version(package)}" for package in packages))
    print(f"python {' '.join(sys.argv)}, medians of {options.rounds}\n", flush=True)

    loading: dict[str, list[float]] = {loader: [] for loader in LOADERS}
    importing, whole = [], []
    without: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(options.rounds):
        importing.append(load_seconds(f"{IMPORT}\nprint('loaded', flush=True)", []))
        for loader, script in LOADERS.items():
            loading[loader].append(load_seconds(script, paths))
        whole.append(served(exports, names))
        for name in names:
            without[name].append(served(exports, [other for other in names if other != name])[2])

    first, every, held = (statistics.median(column) for column in zip(*whole, strict=True))
    print("| from the start of the process to | seconds |\n|---|---|")
    print(f"| TensorFlow and TensorFlow Text are imported | {statistics.median(importing):.2f} |")
    for loader, seconds in loading.items():
        print(
            f"| ... and {len(names)} models loaded by {loader} | {statistics.median(seconds):.2f} |"
        )
    print(f"| the server's first answer | {first:.2f} |")
    print(f"| each of its {len(names)} models has answered | {every:.2f} |\n")
    for loader, seconds in loading.items():
        median = statistics.median(seconds)
        print(f"over {loader}: first answer {first / median:.2f}, every model {every / median:.2f}")

    print(f"\nmemory: {held:.0f} MB with all\n")
    print("| model | on disk, MB | in memory, MB |\n|---|---|---|")
    for name, path in zip(names, paths, strict=True):
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) / 1e6
        print(f"| {name} | {size:.1f} | {held - statistics.median(without[name]):.0f} |")


if __name__ == "__main__":
    main()
