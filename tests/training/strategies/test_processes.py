import json
import os
import socket
import subprocess
import sys
from contextlib import ExitStack
from types import SimpleNamespace

import numpy as np
import pytest

from tests.training.strategies.one_worker import SETTINGS
from tests.training.strategies.toys import Quadratic, Words
from training.strategies.processes import WorkerBatches, place


def environment(cluster, kind, index):
    return {"TF_CONFIG": json.dumps({"cluster": cluster, "task": {"type": kind, "index": index}})}


def free_addresses(count):
    with ExitStack() as open_ones:
        sockets = [open_ones.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("localhost", 0))
        return [f"localhost:{one.getsockname()[1]}" for one in sockets]


def run_workers(expression, count, stop, total, folder):
    """What each of `count` processes wrote."""
    cluster = {"worker": free_addresses(count)}
    arguments = [sys.executable, "-m", "tests.training.strategies.one_worker", expression]
    files = [folder / f"{index}.npz" for index in range(count)]
    with ExitStack() as started:
        processes = []
        for index, file in enumerate(files):
            log = started.enter_context(file.with_suffix(".log").open("w"))
            process = subprocess.Popen(
                [*arguments, str(stop), str(total), str(file)],
                env=os.environ | environment(cluster, "worker", index),
                stdout=log,
                stderr=subprocess.STDOUT,
            )
            started.enter_context(process)
            started.callback(process.kill)
            processes.append(process)
        for process, file in zip(processes, files, strict=True):
            assert process.wait(timeout=240) == 0, file.with_suffix(".log").read_text()
    return [dict(np.load(file)) for file in files]


@pytest.mark.slow
def test_two_processes_are_two_simulated_workers(tmp_path):
    expression = "diloco(accumulate(adamw, 2), 2, 3, 0.7, 0.9)"
    workers = run_workers(expression, 2, stop=4, total=8, folder=tmp_path)
    simulated = Words(expression, **SETTINGS)
    path = simulated.run(8)
    assert np.abs(path[-1] - path[0]).max() > 0.01
    for worker in workers:
        # Within a rounding: what ran before in this process may have asked TensorFlow for
        # deterministic operations, which are others, and the workers are processes of their own.
        np.testing.assert_allclose(worker["path"], path, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(worker["evaluated"], simulated.evaluated(), rtol=1e-5)
        np.testing.assert_array_equal(worker["numbers"], [10.0, 11.0])
        drift = simulated.rule.diagnostics()["worker_drift"]
        np.testing.assert_allclose(worker["drift"], drift, rtol=1e-6)
    # Each reports its own losses, and they are not the same.
    losses = [worker["losses"] for worker in workers]
    both = [said["loss_sum"] for said in simulated.said]
    np.testing.assert_allclose(losses[0] + losses[1], both, rtol=1e-6)
    assert not np.allclose(losses[0], losses[1])


def test_a_worker_reads_the_micro_batches_that_the_simulation_gives_it():
    every = SimpleNamespace(at=lambda i: i, num_batches=7, longest=5)
    read = []
    for index in range(3):
        exchange = SimpleNamespace(num=3, index=index)
        batches = WorkerBatches(every, exchange, 2)
        assert (batches.num_batches, batches.longest) == (2, 5)
        read.append([batches.at(i) for i in range(4)])
    assert read == [[0, 1, 6, 7], [2, 3, 8, 9], [4, 5, 10, 11]]


def test_place_in_the_cluster():
    assert place({}) == (1, 0)
    assert place({"TF_CONFIG": ""}) == (1, 0)
    assert place(environment({"worker": ["a:1"]}, "worker", 0)) == (1, 0)
    assert place(environment({"worker": ["a:1", "b:1"]}, "worker", 1)) == (2, 1)
    cluster = {"worker": ["a:1", "b:1"], "chief": ["c:1"]}
    assert place(environment(cluster, "chief", 0)) == (3, 0)
    assert place(environment(cluster, "worker", 1)) == (3, 2)


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "{}",
        '{"cluster": {"worker": ["a:1"]}}',
        '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 1}}',
        '{"cluster": {"worker": ["a:1"]}, "task": {"type": "chief", "index": 0}}',
        '{"cluster": ["a:1"], "task": {"type": "worker", "index": 0}}',
        '{"cluster": {"worker": null}, "task": {"type": "worker", "index": 0}}',
    ],
)
def test_a_configuration_that_makes_no_sense_is_refused(text):
    with pytest.raises(ValueError, match="TF_CONFIG must be like"):
        place({"TF_CONFIG": text})


def test_other_kinds_of_processes_are_refused():
    cluster = {"worker": ["a:1"], "ps": ["b:1"]}
    with pytest.raises(ValueError, match=r"chief and worker. Received: ps"):
        place(environment(cluster, "worker", 0))


def test_there_are_as_many_processes_as_workers():
    exchange = SimpleNamespace(num=3, index=0)
    with pytest.raises(ValueError, match=r"workers=3. Received: workers=2, 3 processes"):
        Quadratic("local_sgd(sgd, 2)", exchange=exchange)
