"""What each part of a small GPT is worth in equal time: python benchmarks/architecture.py

Starts from nanoGPT's network for a CPU (benchmarks/language_model.py, the recipe
`shakespeare_nanogpt`, moved by Muon) and changes one thing at a time; then all that are told apart
by --variants. First every variant is timed, in turns, over short runs with its whole schedule,
as rows that grow longer cost more at the end; then each takes as many updates as fit into
--seconds, with its schedule of that length, and all are judged on the same windows of 64 characters
of the validation text. Prints machine, versions, command and a Markdown table.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from benchmarks.language_model import threads_of  # noqa: E402
from benchmarks.processes import Process  # noqa: E402

# What differs from the first: of the network, of the run, its rate and its batch.
PLAIN: dict = {}
ROTARY = {"network": {"positions": "rotary"}}
RMS = {"network": {"normalization": "rms"}}
RELU2 = {"network": {"activation": "relu_squared"}}
SWIGLU = {"network": {"activation": "swiglu", "inner_width": 344}}  # as many weights
QK_NORM = {"network": {"qk_norm": True}}
VALUES = {"network": {"value_embeddings": True, "inner_width": 480}}  # as many weights
FURTHER = {"network": {"further_tokens": 1, "num_layers": 3}}  # as many weights
BATCH_24 = {"sizes": {"batch": 24}}
BATCH_48 = {"sizes": {"batch": 48}}
# Sequence-length warm-up: rows of 16 characters at first, of all 64 from the middle on.
LONGER = {"settings": {"max_tokens": "linear(16, 112)"}}


def together(*parts: dict) -> dict:
    """Several changes at once."""
    merged: dict = {}
    for part in parts:
        for key, value in part.items():
            merged[key] = merged.get(key, {}) | value if isinstance(value, dict) else value
    return merged


SMALL_BATCH = together(ROTARY, QK_NORM, VALUES)
BEST = together(SMALL_BATCH, BATCH_24)
VARIANTS = {
    "as nanoGPT": PLAIN,
    "rotary positions": ROTARY,
    "RMSNorm": RMS,
    "squared ReLU": RELU2,
    "SwiGLU": SWIGLU,
    "QK-norm": QK_NORM,
    "value embeddings": VALUES,
    "a further token": FURTHER,
    "batch 24": BATCH_24,
    "batch 48": BATCH_48,
    "rows that grow longer": LONGER,
    "rows that grow longer, batch 24": together(LONGER, BATCH_24),
    "rate 0.01": {"rate": 0.01},
    "rate 0.04": {"rate": 0.04},
    "rotary, RMSNorm, squared ReLU, QK-norm": together(ROTARY, RMS, RELU2, QK_NORM),
    "the same and value embeddings": together(ROTARY, RMS, RELU2, QK_NORM, VALUES),
    "rotary, QK-norm, value embeddings": SMALL_BATCH,
    "rotary, QK-norm, value embeddings, batch 24": BEST,
    "the last and dropout 0.1": together(BEST, {"network": {"dropout": 0.1}}),
}


def start(changes: dict, updates: int, threads: str) -> Process:
    setting = {"size": "small", "precision": "bfloat16_products", "strategy": "muon"}
    setting |= {"per_call": 16, "updates": updates} | changes
    script = str(ROOT / "benchmarks" / "language_model.py")
    command = [sys.executable, script, "--serve", json.dumps(setting)]
    return Process(command, **threads_of(threads))


def seconds_of_an_update(names: list[str], threads: str) -> dict[str, float]:
    """Means over short runs of their own, in turns; two processes are never at work at once."""
    block, blocks = 32, 6
    started = {name: start(VARIANTS[name], (1 + blocks) * block, threads) for name in names}
    found: dict[str, list[float]] = {name: [] for name in names}
    for process in started.values():
        process.ask(do="updates", count=block)  # traces
    for _ in range(blocks):
        for name, process in started.items():
            found[name].append(process.ask(do="updates", count=block)["seconds"] / block)
    for process in started.values():
        process.close()
    return {name: statistics.mean(times) for name, times in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=180.0, help="of updates, for each variant")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--threads", default=f"1x{os.cpu_count()}")
    parser.add_argument("--times", type=Path, help="keep the timings here, or read them from here")
    options = parser.parse_args()
    print(
        f"machine: {platform.machine()}, {os.cpu_count()} CPUs; Python {platform.python_version()}"
    )
    print("versions: " + ", ".join(f"{p} {version(p)}" for p in ("tensorflow", "keras", "numpy")))
    print(f"command: python benchmarks/architecture.py {' '.join(sys.argv[1:])}", flush=True)
    if options.times and options.times.is_file():
        times = json.loads(options.times.read_text())
    else:
        times = seconds_of_an_update(options.variants, options.threads)
        if options.times:
            options.times.write_text(json.dumps(times))
    print("\n| variant | weights | ms an update | updates | seconds | loss, nats a character |")
    print("|---|---|---|---|---|---|", flush=True)
    for name in options.variants:
        updates = int(options.seconds / times[name])
        process = start(VARIANTS[name], updates, options.threads)
        seconds = process.ask(do="updates", count=updates)["seconds"]
        answer = process.ask(do="evaluate")
        process.close()
        print(
            f"| {name} | {answer['weights']:,} | {1000 * times[name]:.1f} | {updates} | "
            f"{seconds:.0f} | "
            f"{answer['loss']:.3f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
