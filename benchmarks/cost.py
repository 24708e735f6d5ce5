"""How the cost of a language model's update grows: python benchmarks/cost.py

Characters a second of training against width, depth, context and batch (AdamW, bfloat16 products),
beside the floor: the time that the update's matrix products alone take, each of its very shape,
forward and both gradients, measured in the same process. Also a plain large product's rate. One
process a row, never two at once. Prints machine, versions, command and a Markdown table.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

BASE = {"num_layers": 4, "num_heads": 4, "width": 128, "context": 64, "batch": 12}
LARGE = {"num_layers": 6, "num_heads": 6, "width": 384, "context": 256, "batch": 8}
ROWS = [
    BASE,
    *(BASE | {"width": width} for width in (64, 256, 512)),
    *(BASE | {"num_layers": layers} for layers in (2, 8)),
    *(BASE | {"context": context} for context in (128, 256)),
    *(BASE | {"batch": batch} for batch in (4, 48)),
    LARGE,
]


REPEATS = 16  # products a call, so that the way into TensorFlow costs little


def products_of(size: dict, vocabulary_size: int) -> list[tuple[int, int, int, int, int]]:
    """(how many times, batch, rows, inner, columns) of an update's products, gradients included."""
    D, T, B, N = size["width"], size["context"], size["batch"], size["num_heads"]
    L, tokens, H = size["num_layers"], size["batch"] * size["context"], size["width"] // N
    dense = [(L, D, 3 * D), (L, D, D), (L, D, 4 * D), (L, 4 * D, D), (1, D, vocabulary_size)]
    found = []
    for count, inner, columns in dense:
        found += [
            (count, 1, tokens, inner, columns),  # y = x w
            (count, 1, tokens, columns, inner),  # dx = dy w'
            (count, 1, inner, tokens, columns),  # dw = x' dy
        ]
    # Scores and what they weigh, and two gradients of each: all targets with all sources.
    found += [(L, B * N, T, H, T), (2 * L, B * N, T, T, H)]
    found += [(L, B * N, T, T, H), (L, B * N, T, H, T), (L, B * N, T, T, H)]
    return found


def seconds_of(function, least: float = 0.3) -> float:
    """Median time of a call, of calls for `least` seconds and at least five."""
    function()
    times: list[float] = []
    while len(times) < 5 or sum(times) < least:
        since = time.perf_counter()
        function()
        times.append(time.perf_counter() - since)
    return statistics.median(times)


def floor_of(products: list[tuple[int, int, int, int, int]]) -> tuple[float, float]:
    """Seconds of all products in bfloat16, and how many operations they are."""
    import tensorflow as tf

    seconds, operations = 0.0, 0
    for count, batch, rows, inner, columns in products:
        shape = [rows, inner] if batch == 1 else [batch, rows, inner]
        # Products of one pair of factors would be computed once.
        many = [
            tf.cast(tf.random.stateless_normal(shape, [0, i]), tf.bfloat16) for i in range(REPEATS)
        ]
        b = tf.cast(tf.random.stateless_normal([*shape[:-2], inner, columns], [1, 0]), tf.bfloat16)
        call = tf.function(lambda many, b: [tf.matmul(a, b)[..., 0, 0] for a in many])
        each = seconds_of(lambda call=call, many=many, b=b: call(many, b)[-1].numpy(), 0.1)
        seconds += count * each / REPEATS
        operations += count * 2 * batch * rows * inner * columns
    return seconds, operations


def measure(size: dict) -> dict:
    """One row, in this process."""
    from benchmarks.language_model import Ours

    with tempfile.TemporaryDirectory() as folder:
        setting = {"size": "small", "sizes": size, "precision": "bfloat16_products"}
        network = {"num_layers": size["num_layers"], "num_heads": size["num_heads"]}
        network |= {"width": size["width"], "inner_width": 4 * size["width"]}
        setting |= {"network": network | {"context_length": size["context"]}}
        runner = Ours(
            setting | {"strategy": "adamw", "per_call": 8, "updates": 10_000}, Path(folder)
        )
        runner.updates(8)
        update = seconds_of(lambda: runner.updates(8), 4.0) / 8
        vocabulary_size = runner.learner.tokenizer.vocabulary_size
    floor, operations = floor_of(products_of(size, vocabulary_size))
    return {"update": update, "floor": floor, "operations": operations}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--row", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.row:
        print(json.dumps(measure(json.loads(options.row))))
        return
    print(
        f"machine: {platform.machine()}, {os.cpu_count()} CPUs; Python {platform.python_version()}"
    )
    print("versions: " + ", ".join(f"{p} {version(p)}" for p in ("tensorflow", "keras", "numpy")))
    print(f"command: python benchmarks/cost.py {' '.join(sys.argv[1:])}", flush=True)
    print("\n| layers x width, context, batch | threads | characters a second | ms an update "
          "| floor ms | GFLOP/s of the floor | of the floor |")  # fmt: skip
    print("|---|---|---|---|---|---|---|", flush=True)
    for size in ROWS:
        environment, threads = dict(os.environ), "default"
        if size["width"] < 256:  # as training.hardware.use_threads chooses
            threads = f"1x{os.cpu_count()}"
            environment |= {"TF_NUM_INTRAOP_THREADS": "1"}
            environment |= {"TF_NUM_INTEROP_THREADS": str(os.cpu_count())}
        command = [sys.executable, __file__, "--row", json.dumps(size)]
        answer = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=True
        )
        row = json.loads(answer.stdout.splitlines()[-1])
        name = f"{size['num_layers']} x {size['width']}, {size['context']}, {size['batch']}"
        characters = size["batch"] * size["context"] / row["update"]
        print(
            f"| {name} | {threads} | {characters:,.0f} | {1000 * row['update']:.1f} | "
            f"{1000 * row['floor']:.1f} | {row['operations'] / row['floor'] / 1e9:.0f} | "
            f"{row['floor'] / row['update']:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
