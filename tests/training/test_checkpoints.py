from types import SimpleNamespace

import keras
import numpy as np
import pytest

from training.checkpoints import Checkpoints


def state(folder, value=0.0, slot=0.0):
    """A network of one weight and an optimizer of one slot, with their checkpoints."""
    weight, slot = keras.Variable([value]), keras.Variable([slot])
    checkpoints = Checkpoints(
        folder, SimpleNamespace(variables=[weight]), SimpleNamespace(variables=[slot])
    )
    return weight, slot, checkpoints


def test_a_fresh_run_starts_at_zero(tmp_path):
    weight, _, checkpoints = state(tmp_path, 4.0)
    assert checkpoints.restore_last() == 0
    assert weight.numpy() == [4.0]


def test_the_last_state_comes_back_whole(tmp_path):
    _, _, checkpoints = state(tmp_path, 1.5, 2.5)
    numbers = {
        "best_step": 7,
        "best_score": 0.1 + 0.2,  # as float64: a comparison after a resume is exact
        "best_loss": 1 / 3,
        "num_stale": 2,
        "seconds": 12.25,
    }
    for name, value in numbers.items():
        checkpoints.progress[name].assign(value)
    checkpoints.save_last(9)
    weight, slot, again = state(tmp_path)
    assert again.restore_last() == 9
    assert (weight.numpy(), slot.numpy()) == ([1.5], [2.5])
    assert {k: v.numpy().item() for k, v in again.progress.items()} == numbers | {"step": 9}


def test_the_newest_of_each_is_kept_and_the_best_is_left_alone(tmp_path):
    weight, slot, checkpoints = state(tmp_path)
    for step in range(1, 6):
        weight.assign([float(step)])
        checkpoints.save_last(step)
        if step in (2, 3):
            checkpoints.save_best(step)
    weight, slot, again = state(tmp_path)
    assert again.restore_last() == 5
    assert weight.numpy() == [5.0]
    slot.assign([8.0])
    again.restore_best()
    assert weight.numpy() == [3.0]
    assert slot.numpy() == [8.0]  # the best is weights alone
    for folder in ("last", "best"):
        assert len(list((tmp_path / folder).glob("*.index"))) == 1


def test_the_best_can_be_read_without_an_optimizer(tmp_path):
    weight, _, checkpoints = state(tmp_path, 6.0)
    checkpoints.save_best(1)
    reader = keras.Variable([0.0])
    Checkpoints(tmp_path, SimpleNamespace(variables=[reader])).restore_best()
    np.testing.assert_array_equal(reader.numpy(), weight.numpy())


def test_no_best_yet_says_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match="first evaluation: fit it first"):
        state(tmp_path)[2].restore_best()


def test_a_file_that_a_kill_cut_short_is_not_taken_for_a_checkpoint(tmp_path):
    """A kill while saving leaves data without the index that names it."""
    _, _, checkpoints = state(tmp_path, 3.0)
    checkpoints.save_last(4)
    (tmp_path / "last" / "ckpt-5.data-00000-of-00001").write_bytes(b"half")
    weight, _, again = state(tmp_path)
    assert again.restore_last() == 4
    assert weight.numpy() == [3.0]
