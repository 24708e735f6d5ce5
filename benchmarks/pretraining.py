"""Pre-trained against from scratch on a tenth of the labels: python benchmarks/pretraining.py

For each set and seed two runs of the network of `<set>_ulmfit`, whose supervised stages see the
same tenth of the training labels. Pre-trained: the recipe as it is; its language models read the
training texts without labels (and IMDB's for SST-2), anew for every seed. From scratch: the same
words, one stage, all of the network at one rate. Both keep what was best on the whole validation
split. Prints the machine, the versions and a Markdown table of test accuracy with paired tests.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import sys
import tempfile
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from training.config import OptimizerConfig, RunConfig
from training.datasets import load_dataset
from training.datasets.config import DatasetConfig
from training.recipes import recipe
from training.run import fit_run
from training.runs import CONFIG_FILE, LABELS_FILE, RESULTS_FILE, read_json, run_folder, write_json
from training.statistics import compare_scores

DEFAULT = ["sst2", "chnsenticorp"]
SCRATCH, PRETRAINED = "from scratch", "pre-trained"
WORDS_FILE = "vocabulary.json"


def from_scratch(config: RunConfig) -> RunConfig:
    """One stage; the rates 1e-3, 3e-3 and 1e-2 came within a point on validation (SST-2)."""
    return replace(
        config,
        name=f"{config.name}_scratch",
        earlier=(),
        rate_factors="",
        optimizer=OptimizerConfig(peak_learning_rate=3e-3),
    )


def measure(config: RunConfig, runs: Path, words_of: Path | None = None) -> tuple[Path, dict]:
    """The run's folder and results; `words_of` is the folder of a run whose words it takes."""
    folder = run_folder(runs, config)
    if words_of is not None and not folder.exists():
        folder.mkdir(parents=True)
        for file in (WORDS_FILE, LABELS_FILE):
            shutil.copy(words_of / file, folder / file)
        write_json(folder / CONFIG_FILE, config.to_dict())  # begun: it is gone on with as it is
    fit_run(config, runs)
    return folder, read_json(folder / RESULTS_FILE)


def compare(name: str, seeds: range, runs: Path) -> None:
    """The rows of one set."""
    config = recipe(f"{name}_ulmfit")
    tenth = len(load_dataset(config.dataset, config.task).train) // 10
    few = DatasetConfig(name=name, max_examples=tenth)
    config = replace(config, dataset=few, epochs=20)  # short ones, so twice as many
    scores: dict[str, dict[int, float | None]] = {SCRATCH: {}, PRETRAINED: {}}
    seconds = dict.fromkeys(scores, 0.0)
    for seed in seeds:
        pretrained = replace(config, seed=seed)
        folder, results = measure(pretrained, runs)
        _, results_scratch = measure(from_scratch(pretrained), runs, words_of=folder)
        for who, result in ((PRETRAINED, results), (SCRATCH, results_scratch)):
            scores[who][seed] = result["test"]["accuracy"]
            seconds[who] += result["seconds"] / len(seeds)
            print(
                f"# {name}, seed {seed}, {who}: {result['test']['accuracy']:.2%}", file=sys.stderr
            )
    for result in compare_scores(scores, higher_is_better=True):
        each = ", ".join(f"{accuracy:.2%}" for accuracy in result.scores.values())
        difference = ""
        if result.difference:
            interval = result.difference.student
            difference = f"{100 * result.difference.mean:+.2f}"
            if interval:
                difference += f" ({100 * interval.low:+.2f} to {100 * interval.high:+.2f})"
        print(
            f"| {name} | {tenth} | {result.label} | {result.mean:.2%} | {each} | {difference} | "
            f"{result.verdict} | {seconds[result.label]:.0f} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("sets", nargs="*", default=DEFAULT)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--runs", type=Path, help="keep the runs here, and go on with those there")
    options = parser.parse_args()
    packages = ("tensorflow", "keras", "numpy", "scipy")
    print(
        f"machine: {platform.machine()}, {os.cpu_count()} CPUs; Python {platform.python_version()}"
    )
    print("versions: " + ", ".join(f"{package} {version(package)}" for package in packages))
    print(f"command: python benchmarks/pretraining.py {' '.join(sys.argv[1:])}\n")
    print(
        "| set | labels | network | mean test accuracy | by seed | difference, points (95 %) | "
        "verdict | training s a run |"
    )
    print("|---|---|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for name in options.sets:
            compare(name, range(options.seeds), options.runs or Path(folder))


if __name__ == "__main__":
    main()
