"""States on disk: what comes back is what was saved, or an error, never something in between."""

import json
import logging
import math
import random
import subprocess
import sys
import textwrap
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf

from training.checkpoints import Checkpoints, checkpoint_files, read_checkpoint, write_checkpoint

ROOT = Path(__file__).resolve().parents[2]


def state(folder, value=0.0, slot=0.0, **settings):
    """A network of one weight and a rule of one slot, with their checkpoints."""
    weight, slot = keras.Variable([value]), keras.Variable([slot])
    checkpoints = Checkpoints(
        folder, SimpleNamespace(variables=[weight]), SimpleNamespace(variables=[slot]), **settings
    )
    return weight, slot, checkpoints


def saved(folder, *steps, **settings):
    """Checkpoints in which the weight is the step."""
    weight, _, checkpoints = state(folder, **settings)
    for step in steps:
        weight.assign([float(step)])
        checkpoints.save_last(step)
        checkpoints.save_best(step)
    return checkpoints


def steps_in(folder):
    return [int(path.stem.removeprefix("ckpt-")) for path in checkpoint_files(folder)]


# There and back


def test_a_fresh_run_starts_at_zero(tmp_path):
    weight, _, checkpoints = state(tmp_path / "none", 4.0)
    assert checkpoints.restore_last() == 0
    assert weight.numpy() == [4.0]
    assert checkpoints.progress == {
        "step": 0,
        "best_step": -1,
        "best_score": -math.inf,
        "best_loss": math.inf,
        "num_stale": 0,
        "seconds": 0.0,
    }


def test_the_last_state_comes_back_whole(tmp_path):
    _, _, checkpoints = state(tmp_path, 1.5, 2.5)
    numbers = {
        "best_step": 7,
        "best_score": 0.1 + 0.2,  # a comparison after a resume is exact
        "best_loss": 1 / 3,
        "num_stale": 2,
        "seconds": 12.25,
        "stage": 1,
        "plateau_best": -math.inf,
        "window": np.float32(0.1),
    }
    checkpoints.progress.update(numbers)
    checkpoints.save_last(9)
    weight, slot, again = state(tmp_path)
    progress = again.progress
    assert again.restore_last() == 9
    assert (weight.numpy(), slot.numpy()) == ([1.5], [2.5])
    assert again.progress is progress  # a loop that holds it sees the restored numbers
    assert progress == numbers | {"step": 9}
    assert {type(value) for value in progress.values()} == {int, float}


def test_what_is_no_number_is_refused_and_leaves_nothing_behind(tmp_path):
    checkpoints = saved(tmp_path, 1)
    checkpoints.progress["step_of"] = tf.constant(1)
    with pytest.raises(TypeError, match="plain numbers"):
        checkpoints.save_last(2)
    assert [path.name for path in (tmp_path / "last").iterdir()] == ["ckpt-1.npz"]


KINDS = {
    "float32": [1.1, -0.0, math.nan, math.inf],
    "float64": [0.1 + 0.2],
    "float16": [0.1],
    "bfloat16": [0.1, 3e38, -0.0],
    "int64": [2**62 + 1],
    "int32": [-7],
    "uint32": [2**32 - 1],
    "uint8": [255],
    "bool": [True, False],
}


@pytest.mark.parametrize("make", ["keras", "tensorflow"])
@pytest.mark.parametrize("shape", ["flat", "scalar", "empty", "matrix"])
@pytest.mark.parametrize("dtype", KINDS)
def test_every_kind_of_variable_comes_back_bit_for_bit(tmp_path, dtype, shape, make):
    value = tf.constant(KINDS[dtype], dtype)
    value = {
        "flat": value,
        "scalar": value[0],
        "empty": tf.zeros([0, 3], dtype),
        "matrix": tf.stack([value, value]),
    }[shape]
    kind = keras.Variable if make == "keras" else tf.Variable

    def run(initial):
        variable = kind(initial, dtype=dtype)
        rule = SimpleNamespace(variables=[variable])
        return variable, Checkpoints(tmp_path, SimpleNamespace(variables=[]), rule)

    run(value)[1].save_last(1)
    variable, checkpoints = run(tf.zeros_like(value))
    checkpoints.restore_last()
    assert variable.numpy().tobytes() == value.numpy().tobytes()
    (array,) = read_checkpoint(tmp_path / "last" / "ckpt-1.npz").arrays.values()
    assert (array.dtype.name, array.shape) == (dtype, tuple(value.shape))


def test_dropout_and_the_optimizer_go_on_where_they_were(tmp_path):
    def run():
        model = keras.Sequential([keras.layers.Dropout(0.5, seed=3), keras.layers.Dense(2)])
        model.build((None, 4))
        optimizer = keras.optimizers.Adam(0.1)
        optimizer.build(model.trainable_variables)
        return model, optimizer, Checkpoints(tmp_path, model, optimizer)

    def updates(model, optimizer, count):
        for _ in range(count):
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(model(tf.ones([3, 4]), training=True) ** 2)
            weights = model.trainable_variables
            optimizer.apply(tape.gradient(loss, weights), weights)
        return [v.numpy() for v in [*model.variables, *optimizer.variables]]

    model, optimizer, checkpoints = run()
    updates(model, optimizer, 2)
    checkpoints.save_last(2)
    expected = updates(model, optimizer, 3)
    model, optimizer, checkpoints = run()  # Keras names its layers dropout_1 and dense_1 now
    assert checkpoints.restore_last() == 2
    for a, b in zip(updates(model, optimizer, 3), expected, strict=True):
        np.testing.assert_array_equal(a, b)


TWO_REPLICAS = """
    import sys
    from pathlib import Path
    from types import SimpleNamespace
    import keras
    import tensorflow as tf
    from training.checkpoints import Checkpoints

    device = tf.config.LogicalDeviceConfiguration()
    (cpu,) = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(cpu, [device, device])
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])

    def run(value):
        with strategy.scope():
            weight, slot = keras.Variable([value]), tf.Variable([value])
        model, rule = SimpleNamespace(variables=[weight]), SimpleNamespace(variables=[slot])
        return weight, slot, Checkpoints(Path(sys.argv[1]), model, rule)

    run(5.0)[2].save_last(1)
    weight, slot, checkpoints = run(0.0)
    checkpoints.restore_last()
    for variable in (weight.value, slot):
        copies = strategy.experimental_local_results(variable)
        print([copy.numpy().tolist() for copy in copies])
"""


@pytest.mark.slow
def test_variables_of_two_replicas_are_all_assigned(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(TWO_REPLICAS), tmp_path],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.stdout.splitlines() == ["[[5.0], [5.0]]"] * 2, done.stderr


def test_a_file_is_read_without_tensorflow(tmp_path):
    weight = keras.Variable([1.5, 2.0], dtype="bfloat16", name="kernel")
    Checkpoints(tmp_path, SimpleNamespace(variables=[weight])).save_last(3)
    program = """
        import sys
        from pathlib import Path
        import numpy as np
        from training.checkpoints import read_checkpoint
        path = Path(sys.argv[1])
        found = read_checkpoint(path)
        print(found.step, {name: array.tolist() for name, array in found.arrays.items()})
        print(sorted(np.load(path).files))
        print(sorted({"tensorflow", "keras"} & set(sys.modules)))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), tmp_path / "last" / "ckpt-3.npz"],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.stdout.splitlines() == [
        "3 {'weights/000:kernel': [1.5, 2.0]}",
        "['metadata.json', 'weights/000:kernel']",
        "[]",
    ], done.stderr


def test_equal_states_are_equal_files(tmp_path):
    saved(tmp_path / "a", 1)
    saved(tmp_path / "b", 1)
    first, second = ((tmp_path / run / "last" / "ckpt-1.npz").read_bytes() for run in "ab")
    assert first == second


def test_a_file_is_a_zip_without_remarks(tmp_path):
    """Its checksum is the archive's comment: nothing follows what other programs read."""
    saved(tmp_path, 1)
    with zipfile.ZipFile(tmp_path / "last" / "ckpt-1.npz") as archive:
        assert archive.testzip() is None
        assert len(archive.comment) == 64
        assert json.loads(archive.read("metadata.json"))["format"] == 1


# Which are kept


@pytest.mark.parametrize(("keep", "kept"), [(1, [5, 4]), (3, [5, 4, 3, 2])])
def test_the_newest_of_each_are_kept(tmp_path, keep, kept):
    saved(tmp_path, 1, 2, 3, 4, 5, keep=keep)
    assert steps_in(tmp_path / "last") == kept
    assert steps_in(tmp_path / "best") == [5, 4]
    weight, _, checkpoints = state(tmp_path)
    assert checkpoints.restore_last() == 5
    assert weight.numpy() == [5.0]


def test_steps_are_ordered_as_numbers(tmp_path):
    saved(tmp_path, 9, 10)
    assert state(tmp_path)[2].restore_last() == 10


def test_a_step_that_is_saved_again_replaces_itself(tmp_path):
    weight, _, checkpoints = state(tmp_path, 1.0)
    checkpoints.save_last(1)
    checkpoints.save_last(2)
    weight.assign([7.0])
    checkpoints.save_last(2)
    assert steps_in(tmp_path / "last") == [2, 1]
    weight, _, again = state(tmp_path)
    again.restore_last()
    assert weight.numpy() == [7.0]


def test_the_best_is_left_alone_by_later_states_and_leaves_the_rule_alone(tmp_path):
    weight, slot, checkpoints = state(tmp_path, 3.0)
    checkpoints.save_best(3)
    weight.assign([5.0])
    checkpoints.save_last(5)
    slot.assign([8.0])
    checkpoints.restore_best()
    assert (weight.numpy(), slot.numpy()) == ([3.0], [8.0])


def test_the_best_can_be_read_without_a_rule(tmp_path):
    weight, _, checkpoints = state(tmp_path, 6.0)
    checkpoints.save_best(1)
    reader = keras.Variable([0.0])
    Checkpoints(tmp_path, SimpleNamespace(variables=[reader])).restore_best()
    np.testing.assert_array_equal(reader.numpy(), weight.numpy())


def test_the_best_holds_the_variables_asked_for(tmp_path):
    weight, adapter = keras.Variable([1.0], name="kernel"), keras.Variable([2.0], name="lora")
    model = SimpleNamespace(variables=[weight, adapter])
    checkpoints = Checkpoints(tmp_path, model, best_variables=[weight])
    checkpoints.save_last(1)
    checkpoints.save_best(1)
    assert list(read_checkpoint(tmp_path / "best" / "ckpt-1.npz").arrays) == ["weights/000:kernel"]
    assert len(read_checkpoint(tmp_path / "last" / "ckpt-1.npz").arrays) == 2
    reader = keras.Variable([0.0], name="kernel")  # a plain model, without adapters
    Checkpoints(tmp_path, SimpleNamespace(variables=[reader])).restore_best()
    assert reader.numpy() == [1.0]


def test_no_best_yet_says_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match="first evaluation: fit it first"):
        state(tmp_path)[2].restore_best()


def test_a_best_that_was_saved_after_the_state_gone_on_from_is_forgotten(tmp_path):
    """A kill between the two saves: the update is done again, and the best found again."""
    checkpoints = saved(tmp_path, 1, 2)
    checkpoints.save_best(4)
    weight, _, again = state(tmp_path)
    assert again.restore_last() == 2
    again.restore_best()
    assert weight.numpy() == [2.0]


def test_the_only_best_is_not_forgotten(tmp_path):
    _, _, checkpoints = state(tmp_path, 4.0)
    checkpoints.save_last(1)
    checkpoints.save_best(4)
    weight, _, again = state(tmp_path)
    again.restore_last()
    again.restore_best()
    assert weight.numpy() == [4.0]


def test_at_least_one_state_is_kept(tmp_path):
    with pytest.raises(ValueError, match="keep must be 1 or more. Received: 0"):
        state(tmp_path, keep=0)


# Damage


def flipped(position):
    def change(data):
        index = int(position * (len(data) - 1))
        return data[:index] + bytes([data[index] ^ 1]) + data[index + 1 :]

    return change


DAMAGES = {
    **{f"a bit turned at {p:.0%}": flipped(p) for p in np.linspace(0, 1, 21)},
    "cut in half": lambda data: data[: len(data) // 2],
    "one byte short": lambda data: data[:-1],
    "no trailer": lambda data: data[:-64],
    "only the trailer": lambda data: data[-64:],
    "empty": lambda data: b"",
    "garbage": lambda data: np.random.default_rng(0).bytes(len(data)),
    "zeros": lambda data: bytes(len(data)),
    "longer": lambda data: data + b"\0",
}


def damage(path, change):
    path.write_bytes(change(path.read_bytes()))


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_state_is_reported_and_the_one_before_is_used(tmp_path, caplog, name):
    saved(tmp_path, 1, 2, 3)
    damage(tmp_path / "last" / "ckpt-3.npz", DAMAGES[name])
    weight, _, checkpoints = state(tmp_path)
    with caplog.at_level(logging.WARNING):
        assert checkpoints.restore_last() == 2
    assert weight.numpy() == [2.0]
    assert checkpoints.progress["step"] == 2
    (record,) = caplog.records
    assert "last/ckpt-3.npz is damaged" in record.message
    assert "passed over for the one before" in record.message
    assert "last/ckpt-2.npz" in record.message


def test_every_byte_is_under_the_checksum(tmp_path):
    """Of a small file each byte is changed in turn, as the positions above are only some."""
    path = tmp_path / "ckpt-1.npz"
    write_checkpoint(path, 1, {}, [("a", np.zeros(1, np.uint8))])
    data = path.read_bytes()
    read_checkpoint(path)
    for index in range(len(data)):
        path.write_bytes(data[:index] + bytes([data[index] ^ 128]) + data[index + 1 :])
        with pytest.raises(ValueError, match="damaged"):
            read_checkpoint(path)


def test_a_run_goes_on_from_the_state_before_and_drops_the_damaged_one(tmp_path, caplog):
    saved(tmp_path, 1, 2, 3)
    damage(tmp_path / "last" / "ckpt-3.npz", DAMAGES["cut in half"])
    weight, _, checkpoints = state(tmp_path)
    checkpoints.restore_last()
    for step in (3, 4):  # done again
        weight.assign([10.0 * step])
        checkpoints.save_last(step)
    caplog.clear()
    assert state(tmp_path)[2].restore_last() == 4
    assert steps_in(tmp_path / "last") == [4, 3]
    assert not caplog.records


def test_a_damaged_state_beyond_the_next_save_does_not_come_back(tmp_path):
    saved(tmp_path, 10, 20)
    damage(tmp_path / "last" / "ckpt-20.npz", DAMAGES["garbage"])
    checkpoints = state(tmp_path)[2]
    checkpoints.restore_last()
    checkpoints.save_last(11)
    assert steps_in(tmp_path / "last") == [11, 10]


def test_a_damaged_best_is_reported_and_the_one_before_is_used(tmp_path, caplog):
    saved(tmp_path, 1, 2, 3)
    damage(tmp_path / "best" / "ckpt-3.npz", DAMAGES["no trailer"])
    weight, _, checkpoints = state(tmp_path)
    checkpoints.restore_best()
    assert weight.numpy() == [2.0]
    assert "best/ckpt-3.npz is damaged" in caplog.text


@pytest.mark.parametrize("which", ["last", "best"])
def test_without_an_intact_one_it_says_what_to_do_each_time(tmp_path, which):
    saved(tmp_path, 1, 2)
    for path in checkpoint_files(tmp_path / which):
        damage(path, DAMAGES["empty"])
    weight, _, checkpoints = state(tmp_path, 9.0)
    for _ in range(2):  # the second start must not begin again in silence
        with pytest.raises(ValueError, match=r"ckpt-2.npz, ckpt-1.npz.*--restart"):
            getattr(checkpoints, f"restore_{which}")()
    assert weight.numpy() == [9.0]


# Kills


def test_what_a_kill_left_half_written_is_removed_by_the_next_start_alone(tmp_path):
    saved(tmp_path, 1)
    leftovers = [tmp_path / which / "ckpt-2.npz.part" for which in ("last", "best")]
    for path in leftovers:
        path.write_bytes(b"half")
    reader = state(tmp_path)[2]
    reader.restore_best()  # another process may be writing: `evaluate` while `fit` runs
    assert all(path.exists() for path in leftovers)
    assert state(tmp_path)[2].restore_last() == 1
    assert not any(path.exists() for path in leftovers)


SAVING_FOR_EVER = """
    import sys
    from pathlib import Path
    from types import SimpleNamespace
    import numpy as np
    from training.checkpoints import Checkpoints

    class Variable:
        path, dtype, shape = "weight", "int64", (100_000,)
        def __init__(self): self.array = np.zeros(self.shape, np.int64)
        def numpy(self): return self.array
        def assign(self, array): self.array = array

    variables = [Variable(), Variable()]
    checkpoints = Checkpoints(Path(sys.argv[1]), SimpleNamespace(variables=variables))
    step = checkpoints.restore_last()
    assert all((v.array == step).all() for v in variables), "weights of another step"
    print(step, flush=True)
    while True:
        step += 1
        for variable in variables:
            variable.array[:] = step
        checkpoints.save_last(step)
        checkpoints.save_best(step)
"""


@pytest.mark.slow
def test_a_kill_at_any_moment_leaves_states_that_load(tmp_path, caplog):
    rng = random.Random(0)
    started_from, num_half_written = [], 0
    for _ in range(25):
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(SAVING_FOR_EVER), tmp_path],
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        started_from.append(int(process.stdout.readline()))
        time.sleep(rng.uniform(0, 0.15))
        process.kill()
        process.wait()
        process.stdout.close()
        num_half_written += bool(list(tmp_path.rglob("*.part")))
        for path in [*checkpoint_files(tmp_path / "last"), *checkpoint_files(tmp_path / "best")]:
            step = read_checkpoint(path).step  # raises if it is damaged
            assert path.name == f"ckpt-{step}.npz"
    assert started_from == sorted(started_from)
    assert started_from[-1] > started_from[0]
    assert num_half_written  # else no kill came in the middle of a save


# States of something else


def layers(folder, *variables, rule=()):
    return Checkpoints(
        folder, SimpleNamespace(variables=variables), SimpleNamespace(variables=list(rule))
    )


def zeros(name, *shape, dtype="float32"):
    return keras.Variable(np.zeros(shape), dtype=dtype, name=name)


@pytest.mark.parametrize(
    ("other", "sentence"),
    [
        ([zeros("kernel", 2, 4), zeros("bias", 3)], "float32 (2, 4), found float32 (2, 3)"),
        (
            [zeros("kernel", 2, 3, dtype="float16"), zeros("bias", 3)],
            "weights/000:kernel: expected float16 (2, 3), found float32 (2, 3)",
        ),
        ([zeros("kernel", 2, 3)], "weights/001:bias: expected no such variable, found float32"),
        (
            [zeros("kernel", 2, 3), zeros("bias", 3), zeros("gamma", 3)],
            "weights/002:gamma: expected float32 (3,), found none",
        ),
        ([zeros("kernel", 2, 3), zeros("beta", 3)], "weights/001:beta: expected float32 (3,)"),
    ],
    ids=["shape", "dtype", "one too many", "one missing", "another name"],
)
def test_a_state_of_other_variables_is_refused_in_a_sentence(tmp_path, other, sentence):
    layers(tmp_path, zeros("kernel", 2, 3), zeros("bias", 3)).save_last(1)
    other[0].assign(np.ones(other[0].shape))
    with pytest.raises(ValueError) as error:
        layers(tmp_path, *other).restore_last()
    assert sentence in str(error.value)
    assert "last/ckpt-1.npz" in str(error.value) and "--restart" in str(error.value)
    assert (other[0].numpy() == 1).all()  # nothing was assigned in part


def test_the_rule_is_checked_too(tmp_path):
    layers(tmp_path, zeros("kernel", 2), rule=[zeros("momentum", 2)]).save_last(1)
    with pytest.raises(ValueError, match="rule/000:velocity: expected float32"):
        layers(tmp_path, zeros("kernel", 2), rule=[zeros("velocity", 2)]).restore_last()


def test_of_many_differences_the_first_are_named(tmp_path):
    layers(tmp_path, *[zeros("kernel", 2) for _ in range(9)]).save_last(1)
    with pytest.raises(ValueError, match=r"weights/002:kernel[^;]*, and 6 more"):
        layers(tmp_path, *[zeros("kernel", 3) for _ in range(9)]).restore_last()


def test_a_format_of_another_version_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("training.checkpoints.FORMAT", 2)
    saved(tmp_path, 1)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="has format 2, this version reads format 1"):
        state(tmp_path)[2].restore_last()
