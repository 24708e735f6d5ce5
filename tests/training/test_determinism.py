"""One seed decides a run: what it reaches, and that nothing else does."""

import random
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.training.strategies.proofs_devices import run_config
from training.checkpoints import checkpoint_files, read_checkpoint
from training.config import CLASSIFICATION
from training.datasets.catalogue import load_dataset
from training.run import begin_run
from training.stages import build_stage

ROOT = Path(__file__).resolve().parents[2]
FIT = """
import sys
from pathlib import Path
from tensorflow.python.framework import config as of_tensorflow
from tests.training.strategies.proofs_devices import run_config
from training.run import fit_run

folder, deterministic = Path(sys.argv[1]), sys.argv[2] == "on"
config = run_config("transformer_encoder", folder, dropout=0.3, deterministic=deterministic,
                    strategy="ema(accumulate(adamw, 2))", max_updates=10)
fit_run(config, folder / "runs")
print(of_tensorflow.is_op_determinism_enabled())
"""


def fit_in_a_process(folder, deterministic):
    """The last state of a run, and whether TensorFlow's switch was on."""
    folder.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", FIT, str(folder), deterministic],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    states = next((folder / "runs").glob("*/checkpoints/transformer_encoder/last"))
    return read_checkpoint(checkpoint_files(states)[0]), done.stdout.split()[-1]


@pytest.mark.slow
def test_the_same_seed_is_the_same_run_in_another_process(tmp_path):
    (a, is_on), (b, _) = (fit_in_a_process(tmp_path / name, "on") for name in "ab")
    assert is_on == "True" and a.step == b.step == 10
    assert a.arrays.keys() == b.arrays.keys()
    for name, array in a.arrays.items():
        np.testing.assert_array_equal(array, b.arrays[name], err_msg=name)


@pytest.mark.slow
def test_off_is_off(tmp_path):
    assert fit_in_a_process(tmp_path / "off", "off")[1] == "False"


def drawn(folder, seed=0):
    """What the seed decides: (initial weights, seeds of dropout, the first batches, a mask)."""
    folder.mkdir()
    config = run_config("transformer_encoder", folder, dropout=0.5, seed=seed)
    data = load_dataset(config.dataset, CLASSIFICATION)
    learner = begin_run(config, folder / "run", data)
    stage = build_stage(config, 0, learner)
    model = learner.model
    seeds = [v.numpy() for v in model.non_trainable_variables if "seed" in v.path]
    batches = [stage.batches.at(i)["tokens"] for i in range(3)]
    masked = model.dropout(tf.ones([4, 8]), training=True).numpy()
    return [v.numpy() for v in model.trainable_variables], seeds, batches, masked


def equal(a, b):
    return len(a) == len(b) and all(map(np.array_equal, a, b))


def test_another_seed_is_other_weights_another_order_and_other_dropout(tmp_path):
    first, second = drawn(tmp_path / "0", seed=0), drawn(tmp_path / "1", seed=1)
    for one, other in zip(first[0], second[0], strict=True):
        is_constant = np.ptp(one) == 0  # biases and norms begin at 0 and 1
        assert is_constant == np.array_equal(one, other)
    assert not any(map(np.array_equal, first[1], second[1]))
    assert not equal(first[2], second[2])
    assert not np.array_equal(first[3], second[3])


def test_no_other_generator_has_a_say(tmp_path):
    before = drawn(tmp_path / "before")
    random.seed(5)
    np.random.seed(5)
    keras.random.normal([3])
    np.random.random(3)
    state = random.getstate()
    after = drawn(tmp_path / "after")
    for one, other in zip(before, after, strict=True):
        assert equal(list(one), list(other))
    assert random.getstate() == state  # and none is moved by a run
