"""What each strategy costs beside the plain loop: python benchmarks/strategies.py [RECIPE]

For every strategy the same network on the same batches; a block is so many gradient evaluations,
and blocks of all strategies take turns, the plain optimizer in every second place, so that
whatever else the machine does hits all alike. The figure is the time of a gradient evaluation over
that of the plain loop beside it: the median of the blocks' ratios, and their quartiles. Prints the
machine, the versions and a Markdown table.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
import time
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

from training.config import RunConfig, override
from training.datasets import load_dataset
from training.recipes import recipe
from training.run import begin_run
from training.stacking import stack
from training.stages import build_stage
from training.strategies.compiled import compile_updates

PLAIN = "adamw"
STRATEGIES = [
    "accumulate(adamw, 4)",
    "ema(adamw)",
    "swa(adamw, start=0)",
    "lookahead(adamw, k=5)",
    "sam(adamw)",
    "extragradient(adamw)",
    "fgm(adamw)",
    "r_drop(adamw)",
    "gradient_noise(adamw)",
    "l2(adamw)",
    "loss_scale(adamw)",
    "local_sgd(adamw, workers=2, steps=8)",
    "diloco(adamw, workers=2, steps=20)",
    "reptile(adamw)",
    "sgd",
    "momentum",
    "lion",
    "adafactor",
    "lamb",
    "muon",
    "schedule_free_adamw",
]


class Runner:
    """One strategy made ready; `block(n)` takes updates worth n evaluations and times them."""

    def __init__(self, config: RunConfig, data, strategy: str, folder: Path):
        config = replace(config, strategy=strategy)
        learner = begin_run(config, folder / str(abs(hash(strategy))), data)
        self.stage = build_stage(config, 0, learner)
        self.rule, self.step = self.stage.rule, 0
        self.take = compile_updates(self.rule)
        began = time.perf_counter()
        self.block(self.rule.num_evaluations)
        self.first = time.perf_counter() - began

    def block(self, evaluations: int) -> float:
        """Seconds for each gradient evaluation."""
        count = max(round(evaluations / self.rule.num_evaluations), 1)
        began = time.perf_counter()
        for _ in range(count):
            first, size = self.step * self.rule.num_batches, self.rule.num_batches
            batches = [self.stage.batches.at(i) for i in range(first, first + size)]
            sums = self.take(stack(batches))
            self.step += 1
        float(sums["loss_sum"][-1])
        return (time.perf_counter() - began) / (count * self.rule.num_evaluations)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("recipe", nargs="?", default="shakespeare")
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--blocks", type=int, default=12)
    parser.add_argument("--evaluations", type=int, default=40)
    parser.add_argument("--strategies", help="separated by ';' (default: all)")
    options = parser.parse_args()
    packages = ("tensorflow", "keras", "numpy")
    print(
        f"machine: {platform.machine()}, {os.cpu_count()} CPUs; Python {platform.python_version()}"
    )
    print("versions: " + ", ".join(f"{package} {version(package)}" for package in packages))
    print(f"command: python benchmarks/strategies.py {' '.join(sys.argv[1:])}\n", flush=True)
    config = override(recipe(options.recipe), options.set)
    data = load_dataset(config.dataset, config.task)
    chosen = options.strategies.split(";") if options.strategies else STRATEGIES
    print(
        "| strategy | evaluations an update | time of one over plain | quartiles | first call s |"
    )
    print("|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        plain = Runner(config, data, PLAIN, Path(folder))
        for strategy in chosen:
            runner = Runner(config, data, strategy, Path(folder))
            ratios = []
            for _ in range(options.blocks):
                before = plain.block(options.evaluations)
                own = runner.block(options.evaluations)
                after = plain.block(options.evaluations)
                ratios.append(2 * own / (before + after))
            low, middle, high = np.percentile(ratios, [25, 50, 75])
            print(
                f"| `{strategy}` | {runner.rule.num_evaluations} | {middle:.3f} | "
                f"{low:.3f} to {high:.3f} | {runner.first:.1f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
