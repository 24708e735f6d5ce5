"""Memory and time of corpora of two sizes: python benchmarks/corpus.py [--size 2GB]

Generates text of 20 MB and of the size asked for, each in a process of its own, and does with it
what a run does before and in its first updates: look at the texts, make a vocabulary from a sample,
tokenise into shards, and read batches of an epoch, packed and by documents, walking through all of
the corpus. Prints the machine, the versions and a Markdown table: seconds, megabytes of text a
second, and the most memory that the process held, of which TensorFlow itself takes a good part.
Texts and shards are removed at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

SMALL = 20 * 10**6
NUM_BATCHES = 2_000  # of each kind, from all of the first epoch
BATCH_SIZE, CONTEXT = 12, 64
WORDS = 30_000  # different ones, by Zipf's law


def generate(path: Path, num_bytes: int) -> None:
    """Documents of 1 to 12 sentences of made-up words."""
    rng = np.random.default_rng(0)
    letters = np.array(list("etaoinshrdlucmfwypvbgk"))
    words = ["".join(rng.choice(letters, rng.integers(2, 9))) for _ in range(WORDS)]
    shares = 1 / np.arange(1, WORDS + 1)
    shares /= shares.sum()
    written = 0
    with path.open("w", encoding="ascii") as file:
        while written < num_bytes:
            drawn = rng.choice(WORDS, 60_000, p=shares)
            ends = np.cumsum(rng.integers(5, 120, 2_000))
            documents = np.split(drawn, ends[ends < len(drawn)])
            text = "\n\n".join(" ".join(words[i] for i in one) + "." for one in documents) + "\n\n"
            written += file.write(text)


def measure(path: Path, model_type: str, num_threads: int) -> dict:
    """What one process does with one corpus; seconds of the clock, bytes of memory."""
    import tensorflow as tf

    from model.config import SentencePieceTokenizerConfig
    from model.tokenizers import END, train_tokenizer
    from training.corpora import shards_of
    from training.datasets import DatasetConfig, load_dataset
    from training.packing import language_model_batches

    tf.constant(0)
    figures: dict = {"bytes": path.stat().st_size, "started": most_memory()}
    began = time.perf_counter()

    def lap(name: str) -> None:
        nonlocal began
        figures[name] = time.perf_counter() - began
        began = time.perf_counter()

    data = load_dataset(DatasetConfig(name="file", path=str(path), streaming=True), "generation")
    lap("look")
    size = 100 if model_type == "char" else 4_000
    config = SentencePieceTokenizerConfig(model_type=model_type, vocabulary_size=size)
    tokenizer = train_tokenizer(data.train, config)
    lap("vocabulary")
    used = time.process_time()
    shards = shards_of(data.corpus, tokenizer, config, num_threads=num_threads)
    figures["cpu"] = time.process_time() - used
    lap("tokenise")
    figures["tokens"] = int(shards.num_tokens.sum())
    figures["after_tokenising"] = most_memory()
    for packing in ("packed", "documents"):
        batches = language_model_batches(
            shards, num_tokens=CONTEXT, packing=packing, end=END, batch_size=BATCH_SIZE, seed=0
        )
        lap("ready")
        # Batches from everywhere, as a whole epoch would touch the whole corpus.
        chosen = np.unique(np.linspace(0, batches.num_batches - 1, NUM_BATCHES // 64).astype(int))
        count = sum(len(batches.at(i + j)["tokens"]) for i in chosen.tolist() for j in range(64))
        lap(packing)
        figures[packing] *= BATCH_SIZE / count  # seconds a batch
    return figures | {"most": most_memory()}


def most_memory() -> int:
    """Bytes that this process held at most: the resident set, mapped pages included."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def bytes_of(text: str) -> int:
    for unit, factor in (("GB", 10**9), ("MB", 10**6)):
        if text.upper().endswith(unit):
            return int(float(text[: -len(unit)]) * factor)
    raise argparse.ArgumentTypeError(f"expected a size such as 2GB or 500MB; received {text!r}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", type=bytes_of, default=bytes_of("2GB"))
    parser.add_argument("--tokenizer", choices=("unigram", "bpe", "char"), default="unigram")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--folder", type=Path, help="for texts and shards (a temporary one)")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)  # in a process of its own
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure, options.tokenizer, options.threads)))
        return
    packages = ("tensorflow", "tensorflow-text", "numpy")
    print(
        f"machine: {platform.machine()}, {os.cpu_count()} CPUs; Python {platform.python_version()}"
    )
    print("versions: " + ", ".join(f"{package} {version(package)}" for package in packages))
    print(f"command: python benchmarks/corpus.py {' '.join(sys.argv[1:])}\n", flush=True)
    print(
        "| text MB | look s | vocabulary s | tokenise s | MB/s of both | CPU s of the latter "
        "| million tokens | packed ms a batch | documents ms a batch | memory at start MB | "
        "after tokenising | at most |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|---|", flush=True)
    most = []
    for num_bytes in (SMALL, options.size):
        folder = Path(tempfile.mkdtemp(prefix="stepwise-corpus-", dir=options.folder))
        try:
            path = folder / "corpus.txt"
            generate(path, num_bytes)
            program = [sys.executable, __file__, "--measure", str(path)]
            program += ["--tokenizer", options.tokenizer, "--threads", str(options.threads)]
            environment = os.environ | {"STEPWISE_CACHE": str(folder / "cache")}
            done = subprocess.run(program, capture_output=True, text=True, env=environment)
            if done.returncode:
                sys.exit(done.stderr[-4000:])
            x = json.loads(done.stdout.splitlines()[-1])
        finally:
            shutil.rmtree(folder)
        most.append(x["most"])
        megabytes = x["bytes"] / 1e6
        print(
            f"| {megabytes:,.0f} | {x['look']:.1f} | {x['vocabulary']:.1f} | {x['tokenise']:.1f} | "
            f"{megabytes / (x['look'] + x['tokenise']):.1f} | {x['cpu']:.0f} | "
            f"{x['tokens'] / 1e6:.1f} | {x['packed'] * 1e3:.2f} | {x['documents'] * 1e3:.2f} | "
            f"{x['started'] / 1e6:.0f} | {x['after_tokenising'] / 1e6:.0f} | "
            f"{x['most'] / 1e6:.0f} |",
            flush=True,
        )
    print(f"\nThe larger corpus took {(most[1] - most[0]) / 1e6:+.0f} MB of memory more.")


if __name__ == "__main__":
    main()
