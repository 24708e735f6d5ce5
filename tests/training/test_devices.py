"""Several devices and processes: chosen, refused, and trained with by the command itself."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from tests.training.strategies.proofs_devices import _observed, run_config
from training.checkpoints import checkpoint_files, read_checkpoint
from training.config import override
from training.devices import check_replicas, choose_replicas, refusal_of_chain
from training.strategies.catalogue import OPTIMIZERS, STRATEGIES, resolve
from training.strategies.replicas import Replicas, _rows_of

ROOT = Path(__file__).resolve().parents[2]


class Two(Replicas):
    def __init__(self):
        super().__init__()
        self.num = 2


# Choosing and refusing ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("strategy", "parts"),
    [
        ("diloco(adamw)", ["the workers of diloco", "Leave out --replicas"]),
        ("ema(local_sgd(adamw))", ["the workers of local_sgd"]),
        ("dp_sgd(sgd)", ["Train on one device"]),
        ("accumulate(sam(adamw))", ["Write sam(accumulate(...))"]),
        ("accumulate(fgm(adamw))", ["Write fgm(accumulate(...))"]),
    ],
)
def test_what_replicas_cannot_do_is_refused_with_what_to_write(strategy, parts, tmp_path):
    config = run_config("bag_of_ngrams", tmp_path, strategy=strategy)
    check_replicas(config, Replicas())  # one device can
    with pytest.raises(ValueError) as refusal:
        check_replicas(config, Two())
    for part in [f"strategy={strategy}", *parts]:
        assert part in str(refusal.value)


def test_most_strategies_may_be_shared_out():
    refused = {name for name in STRATEGIES if refusal_of_chain(resolve(f"{name}(adamw)"))}
    assert refused == {"local_sgd", "diloco", "dp_sgd"}
    assert refusal_of_chain(resolve("lookahead(sam(accumulate(adamw, 4)), k=5)")) is None


@pytest.mark.slow
def test_every_strategy_and_optimizer_is_the_same_on_two_replicas():
    names = [f"{name}(adamw)" for name in STRATEGIES] + list(OPTIMIZERS)
    names = [name for name in names if not refusal_of_chain(resolve(name))]
    names.remove("truncate(adamw)")  # for recurrent networks, which this small one is not
    observed = _observed(tuple(names))
    # Newton-Schulz iterations enlarge what rounding leaves.
    limits = {name: 1e-5 if name == "muon" else 1e-6 for name in names}
    assert {name: x for name, x in observed.items() if x > limits[name]} == {}


def test_xla_is_for_one_device(tmp_path):
    with pytest.raises(ValueError, match="Set xla=false, or train on one device"):
        check_replicas(run_config("bag_of_ngrams", tmp_path, xla=True), Two())


def test_xla_is_not_for_batches_whose_size_is_drawn(tmp_path):
    with pytest.raises(ValueError, match="xla must be false with dp_sgd"):
        run_config("bag_of_ngrams", tmp_path, xla=True, strategy="dp_sgd(sgd)")


def test_without_being_asked_there_is_one_device(tmp_path, monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    config = run_config("bag_of_ngrams", tmp_path)
    for num in (None, 1):
        replicas = choose_replicas(config, num)
        assert (replicas.num, replicas.strategy, replicas.is_chief) == (1, None, True)
    with pytest.raises(ValueError, match=r"--replicas must be 1 or more.* Received: 0"):
        choose_replicas(config, 0)


def test_replicas_and_processes_are_one_or_the_other(tmp_path, monkeypatch):
    monkeypatch.setenv("TF_CONFIG", cluster(["a:1", "b:1"], 0))
    with pytest.raises(ValueError, match="Leave out one of them. Received: --replicas 2, 2 proc"):
        choose_replicas(run_config("bag_of_ngrams", tmp_path), 2)


def test_every_row_is_dealt_to_one_replica():
    batch = {
        "tokens": np.arange(2 * 5 * 3).reshape(2, 5, 3),
        "shape/tokens": np.array([[5, 3], [2, 1]], np.int32),
        "weight": np.array([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]], np.float32),
    }
    parts = [_rows_of(batch, replica, 3) for replica in range(3)]
    rows = np.concatenate([part["tokens"] for part in parts], axis=1)
    assert sorted(rows.ravel()) == list(range(30))
    # Of the second micro-batch, with two rows, the third replica gets none.
    assert [part["shape/tokens"][:, 0].tolist() for part in parts] == [[2, 1], [2, 1], [1, 0]]
    assert sum(part["weight"].sum() for part in parts) == 7


# The command --------------------------------------------------------------------------------------


def cluster(addresses, index):
    return json.dumps(
        {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
    )


def free_addresses(count):
    with ExitStack() as open_ones:
        sockets = [open_ones.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("localhost", 0))
        return [f"localhost:{one.getsockname()[1]}" for one in sockets]


class Command:
    """`python -m training fit` of a run in its folder, in one process or several."""

    def __init__(self, folder, **settings):
        self.folder, self.environment = folder, dict(os.environ)
        self.environment.pop("TF_CONFIG", None)
        self.file = folder / "config.json"
        config = run_config("bag_of_ngrams", folder, **settings)
        self.file.write_text(json.dumps(override(config, []).to_dict()), encoding="utf-8")
        self.processes = []

    def start(self, runs, *options, tf_config=None):
        words = ["--runs", str(self.folder / runs), "fit", "--config", str(self.file), *options]
        self.processes.append(
            subprocess.Popen(
                [sys.executable, "-m", "training", *words],
                cwd=ROOT,
                env=self.environment | ({"TF_CONFIG": tf_config} if tf_config else {}),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )

    def start_two(self, runs):
        addresses = free_addresses(2)
        for index in range(2):
            self.start(runs, tf_config=cluster(addresses, index))

    def ends(self, timeout=300):
        """(exit code, output) of all that were started."""
        try:
            texts = [process.communicate(timeout=timeout)[0] for process in self.processes]
        finally:
            for process in self.processes:
                process.kill()
        codes = [process.returncode for process in self.processes]
        self.processes = []
        return codes, texts

    def run(self, runs):
        return next(path.parent for path in (self.folder / runs).glob("*/config.json"))

    def state(self, runs):
        files = checkpoint_files(self.run(runs) / "checkpoints" / "bag_of_ngrams" / "last")
        return read_checkpoint(files[0])


def largest_difference(a, b):
    assert a.step == b.step and a.arrays.keys() == b.arrays.keys()
    pairs = [(a.arrays[name].astype(float), b.arrays[name].astype(float)) for name in a.arrays]
    return max(np.abs(x - y).max(initial=0.0) for x, y in pairs)


@pytest.mark.slow
def test_replicas_and_processes_end_where_one_device_does(tmp_path):
    command = Command(
        tmp_path, strategy="ema(accumulate(adamw, 2))", evaluate_every=20, updates_per_call=4
    )
    command.start("one")
    command.ends()
    one = command.state("one")
    assert one.step == 50
    command.start("replicas", "--replicas", "2")
    command.start_two("processes")
    codes, texts = command.ends()
    assert codes == [0, 0, 0], texts
    assert largest_difference(command.state("replicas"), one) < 1e-6
    assert largest_difference(command.state("processes"), one) < 1e-6
    # Only the chief tells the results and writes: every line of the log is there once.
    assert "On the test split" in texts[1] and "On the test split" not in texts[2]
    steps = []
    for runs in ("one", "replicas", "processes"):
        lines = (command.run(runs) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        steps.append([json.loads(line)["step"] for line in lines])
    assert steps[0] == steps[1] == steps[2]


@pytest.mark.slow
def test_one_process_that_is_told_to_stop_stops_all_and_they_go_on_together(tmp_path):
    command = Command(tmp_path, max_updates=4000, evaluate_every=50)
    command.start_two("runs")
    metrics = tmp_path / "runs"
    deadline = time.monotonic() + 240
    while not any(path.stat().st_size > 600 for path in metrics.glob("*/metrics.jsonl")):
        assert time.monotonic() < deadline and command.processes[0].poll() is None
        time.sleep(0.1)
    command.processes[1].send_signal(signal.SIGTERM)
    codes, texts = command.ends()
    assert codes == [130, 130], texts
    assert all("The same command goes on." in text for text in texts)
    stopped = command.state("runs").step
    assert 0 < stopped < 4000
    # What two processes left, one goes on with: the state does not depend on their number.
    command.start("runs")
    while command.processes[0].poll() is None and command.state("runs").step <= stopped:
        time.sleep(0.1)
    command.processes[0].send_signal(signal.SIGTERM)
    codes, texts = command.ends()
    assert codes in ([130], [0]) and f"Going on from update {stopped}" in texts[0]


@pytest.mark.slow
def test_a_process_that_dies_ends_the_others_with_an_error(tmp_path):
    command = Command(tmp_path, max_updates=4000, evaluate_every=50)
    command.start_two("runs")
    deadline = time.monotonic() + 240
    while not any((tmp_path / "runs").glob("*/checkpoints/*/last/*.npz")):
        assert time.monotonic() < deadline and command.processes[0].poll() is None
        time.sleep(0.1)
    command.processes[1].kill()
    codes, texts = command.ends()
    assert codes[0] not in (0, None) and codes[1] == -signal.SIGKILL
    assert "another process" in texts[0], texts[0][-2000:]
