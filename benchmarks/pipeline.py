"""What making batches costs beside training: python benchmarks/pipeline.py [RECIPE ...]

Trains each recipe as `fit` does, a call at a time, and times within one run how long a call waits
for its batches and how long the update then takes. With --packed and --corpus FILE also from ids on
disk. The figure is the share of the whole that is waiting: the median of blocks, and their
quartiles. Prints the machine, the versions and a Markdown table.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

from training.config import override
from training.datasets import load_dataset
from training.recipes import recipe
from training.run import begin_run
from training.stacking import stack
from training.stages import build_stage
from training.strategies.compiled import compile_updates

DEFAULT = ["sentiment", "topics", "shakespeare", "stories"]


def shares(name: str, assignments: list[str], blocks: int, updates: int) -> tuple[list, list]:
    """(share of waiting, seconds of an update) for each block."""
    config = override(recipe(name), assignments)
    data = load_dataset(config.dataset, config.task)
    with tempfile.TemporaryDirectory() as folder:
        learner = begin_run(config, Path(folder), data)
        stage = build_stage(config, len(config.stages) - 1, learner)
        take, size, step = compile_updates(stage.rule), stage.rule.num_batches, 0
        found: tuple[list, list] = [], []
        for block in range(blocks + 1):
            waited, began = 0.0, time.perf_counter()
            for _ in range(updates):
                asked = time.perf_counter()
                batch = stack([stage.batches.at(step * size + i) for i in range(size)])
                waited += time.perf_counter() - asked
                said = take(batch)
                step += 1
            float(said["loss_sum"][-1])
            seconds = time.perf_counter() - began
            if block:  # the first one compiles
                found[0].append(waited / seconds)
                found[1].append(seconds / updates)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("recipes", nargs="*", default=DEFAULT)
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--blocks", type=int, default=7)
    parser.add_argument("--updates", type=int, default=40)
    options = parser.parse_args()
    packages = ("tensorflow", "keras", "numpy")
    print(
        f"machine: {platform.machine()}, {os.cpu_count()} CPUs; Python {platform.python_version()}"
    )
    print("versions: " + ", ".join(f"{package} {version(package)}" for package in packages))
    print(f"command: python benchmarks/pipeline.py {' '.join(sys.argv[1:])}\n", flush=True)
    print("| recipe | ms an update | of it waiting for batches | quartiles |")
    print("|---|---|---|---|", flush=True)
    for name in options.recipes:
        share, seconds = shares(name, options.set, options.blocks, options.updates)
        low, middle, high = np.percentile(share, [25, 50, 75])
        print(
            f"| {name} | {np.median(seconds) * 1e3:.2f} | {middle:.2%} | {low:.2%} to {high:.2%} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
