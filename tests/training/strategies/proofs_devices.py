"""Proofs of how a rule is executed (rows 15 and 19 of the catalogue): devices, XLA, calls.

However an update is executed, it is the same update. Replicas are measured in a process of its own
(`replicas_program.py`), XLA and several updates a call through whole runs.
"""

import functools
import json
import os
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import numpy as np

from tests.proofs import Mutant, Proof
from training import stages
from training.config import RunConfig
from training.diagnostics import Totals
from training.run import fit_run
from training.strategies import compiled

ROOT = Path(__file__).resolve().parents[3]
FLOAT32 = 1e-6
NUM_UPDATES = 50

# Replicas -----------------------------------------------------------------------------------------

# What is measured -> the strategy that it is about.
ON_REPLICAS = {
    "sgd": "sgd",
    "momentum": "momentum",
    "adamw": "adamw",
    "adamw@8": "adamw",
    "accumulate(adamw, 2)": "accumulate",
    "accumulate(adamw, 2)@4": "accumulate",
    "ema(momentum, 0.9)": "ema",
    "lookahead(adamw, 3)": "lookahead",
    "sam(accumulate(adamw, 2))": "sam",
    "lookahead(sam(accumulate(adamw, 2)), k=3)@2": "lookahead",
}
_fault: list[str] = []  # the one that is planted


@functools.cache
def _observed(measurements: tuple[str, ...], fault: str | None = None) -> dict[str, float]:
    program = [sys.executable, "-m", "tests.training.strategies.replicas_program", *measurements]
    if fault:
        program += ["--fault", fault]
    environment = {k: v for k, v in os.environ.items() if k != "TF_CONFIG"}
    done = subprocess.run(program, capture_output=True, text=True, cwd=ROOT, env=environment)
    if done.returncode:
        raise RuntimeError(done.stderr[-4000:])
    return json.loads(done.stdout.splitlines()[-1])


def _on_replicas(measurement: str) -> float:
    if _fault:
        return _observed((measurement,), _fault[0])[measurement]
    return _observed(tuple(ON_REPLICAS))[measurement]


@contextmanager
def _planted(fault: str):
    _fault.append(fault)
    try:
        yield
    finally:
        _fault.clear()


def _claim(measurement: str) -> str:
    expression, _, per_call = measurement.partition("@")
    several = f", {per_call} updates a call" if per_call else ""
    return f"{expression}: two replicas with unequal shares are one device{several}"


PROOFS = [
    Proof(
        row=15,
        strategy=strategy,
        kind="composed" if "(sam(" in measurement else "identity",
        claim=_claim(measurement),
        tolerance=FLOAT32,
        measure=functools.partial(_on_replicas, measurement),
    )
    for measurement, strategy in ON_REPLICAS.items()
]
MUTANTS = [
    Mutant(
        name=f"on two replicas, {fault}",
        strategy=ON_REPLICAS[measurement],
        claim_it_breaks=_claim(measurement),
        apply=functools.partial(_planted, fault),
    )
    for fault, measurement in (
        ("clip before aggregation", "sgd"),
        ("mean of the replicas' means", "sgd"),
        ("gradients are not added up", "momentum"),
        ("every row of an embedding counts as used", "adamw"),
        ("all replicas get the first share", "accumulate(adamw, 2)"),
        ("the optimizer adds up once more", "adamw"),
    )
]

# XLA, and several updates a call ------------------------------------------------------------------

WORDS = ("red", "green", "blue", "round", "flat", "tall", "old", "new")
NETWORKS = {
    "transformer_encoder": {
        "tokenizer": {"name": "word", "min_count": 1},
        "model": {"num_layers": 1, "width": 8, "num_heads": 2, "inner_width": 16},
    },
    "bag_of_ngrams": {
        "tokenizer": {"name": "ngram", "num_buckets": 64},
        "model": {},
    },
    "recurrent": {
        "tokenizer": {"name": "word", "min_count": 1},
        "model": {"embedding_size": 4, "units": 4},
    },
    "transformer_decoder": {
        "tokenizer": {"name": "sentencepiece", "vocabulary_size": 24, "model_type": "char"},
        "model": {
            "num_layers": 1,
            "width": 8,
            "num_heads": 2,
            "inner_width": 16,
            "context_length": 12,
        },
    },
}
_DROPOUT = {"bag_of_ngrams": "ngram_dropout"}


def run_config(network: str, folder: Path, dropout: float = 0.0, **settings) -> RunConfig:
    """A run of a tiny `network` on a file of a few lines that is written to `folder`."""
    rng, path = np.random.default_rng(0), folder / "lines.jsonl"
    texts = [" ".join(rng.choice(WORDS, rng.integers(2, 9))) for _ in range(80)]
    lines = [{"text": t, "label": "warm" if "red" in t else "cold"} for t in texts]
    if network == "transformer_decoder":
        path = folder / "lines.txt"
        path.write_text("".join(text + "\n" for text in texts), encoding="utf-8")
    else:
        path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    parts = NETWORKS[network]
    rate = {_DROPOUT.get(network, "dropout"): dropout}
    return RunConfig.from_dict(
        {
            "name": network,
            "dataset": {"name": "file", "path": str(path)},
            "tokenizer": parts["tokenizer"],
            "model": {"name": network, **parts["model"], **rate},
            "optimizer": {"peak_learning_rate": 0.003, "weight_decay": 0.1},
            "batch_size": 8,
            "max_updates": NUM_UPDATES,
            "evaluate_every": NUM_UPDATES,
            "patience": 0,
            **settings,
        }
    )


def losses(network: str, **settings) -> np.ndarray:
    """float (50,): the mean loss of every update of a run, as the loop is told it."""
    said: list[dict] = []
    original = Totals.add

    def add(self, sums):
        said.append({name: np.asarray(value) for name, value in sums.items()})
        original(self, sums)

    with tempfile.TemporaryDirectory() as folder, patch.object(Totals, "add", add):
        fit_run(run_config(network, Path(folder), **settings), Path(folder))
    series = [np.concatenate([sums[name] for sums in said]) for name in ("loss_sum", "num_targets")]
    if len(series[0]) != NUM_UPDATES:
        raise ValueError(f"Expected {NUM_UPDATES} losses. Received: {len(series[0])}")
    return series[0] / series[1]


def difference(network: str, changed: dict, **settings) -> float:
    """The largest one in any update's loss that `changed` settings make."""
    return float(np.abs(losses(network, **settings) - losses(network, **settings | changed)).max())


# (network, the settings of both runs): batches differ in their lengths, and here in their rows.
UNEQUAL = {"batch_size": "linear(4, 8)"}
COMPILED = {
    "xla: transformer_encoder": ("transformer_encoder", UNEQUAL),
    "xla: bag_of_ngrams, accumulated, Lookahead": (
        "bag_of_ngrams",
        UNEQUAL | {"strategy": "lookahead(accumulate(adamw, 2), k=3)"},
    ),
    "xla: recurrent": ("recurrent", UNEQUAL),
    "xla: transformer_decoder": ("transformer_decoder", {}),
}
SEVERAL = {
    "calls: transformer_encoder": ("transformer_encoder", {"dropout": 0.3}),
    "calls: bag_of_ngrams": (
        "bag_of_ngrams",
        UNEQUAL | {"dropout": 0.5, "strategy": "ema(sam(accumulate(adamw, 2)))"},
    ),
    "calls: transformer_decoder": ("transformer_decoder", {"dropout": 0.3}),
}


def _execution(name: str, place: tuple[str, dict], changed: dict, text: str) -> Proof:
    network, settings = place
    return Proof(
        row=19,
        strategy=name.partition(":")[0],
        kind="identity",
        claim=f"{name.partition(': ')[2]}: {text}",
        tolerance=FLOAT32,
        measure=functools.partial(difference, network, changed, **settings),
    )


_XLA = [
    _execution(name, place, {"xla": True, "updates_per_call": 4}, "50 losses with XLA as without")
    for name, place in COMPILED.items()
]
_CALLS = [
    _execution(
        name, place, {"updates_per_call": 8}, "50 losses, 8 updates a call or one, dropout on"
    )
    for name, place in SEVERAL.items()
]
PROOFS += _XLA + _CALLS


def _all_rows_count(batches, *, stack=stages.stack, **settings):
    stacked = stack(batches, **settings)
    if "weight" in stacked:
        stacked["weight"] = np.ones_like(stacked["weight"])
    return stacked


def _first_batches(batches, start, size, pick=compiled.pick):
    return pick(batches, 0, size)


MUTANTS += [
    Mutant(
        name="rows that pad a batch for XLA count",
        strategy="xla",
        claim_it_breaks=_XLA[0].claim,
        apply=lambda: patch.object(stages, "stack", _all_rows_count),
    ),
    Mutant(
        name="all updates of a call read the first one's batches",
        strategy="calls",
        claim_it_breaks=_CALLS[0].claim,
        apply=lambda: patch.object(compiled, "pick", _first_batches),
    ),
]
