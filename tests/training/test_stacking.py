import numpy as np
import pytest

from training.pipeline import ClassificationBatches
from training.stacking import stack

ROWS = [np.arange(1, n + 1, dtype=np.int32) for n in (3, 5, 2, 4, 1, 6, 3)]


def batches_of(batch_size="linear(1, 3, steps=2)", count=3, **settings):
    batches = ClassificationBatches(
        ROWS, np.arange(7), batch_size=batch_size, seed=0, num_updates=9, **settings
    )
    return [batches.at(i) for i in range(count)]


def test_micro_batches_can_be_cut_out_of_the_stack_again():
    batches = batches_of()
    assert len({batch["tokens"].shape for batch in batches}) == 3
    stacked = stack(batches)
    assert stacked.keys() == {"tokens", "label", "shape/tokens", "shape/label"}
    assert stacked["shape/tokens"].dtype == stacked["tokens"].dtype == np.int32
    assert stacked["shape/label"].shape == (3, 1)
    for i, batch in enumerate(batches):
        for name, array in batch.items():
            whole = stacked[name][i]
            inside = tuple(map(slice, stacked[f"shape/{name}"][i]))
            np.testing.assert_array_equal(whole[inside], array)
            assert np.count_nonzero(whole) == np.count_nonzero(array)  # the rest is 0


def test_one_batch_is_stacked_as_it_is():
    (batch, *_) = batches_of()
    for shapes in (True, False):
        stacked = stack([batch], shapes=shapes)
        assert stacked.keys() == batch.keys()
        for name in batch:
            np.testing.assert_array_equal(stacked[name], batch[name][None])


def test_without_shapes_weights_leave_out_the_rows_that_were_added():
    batches = batches_of()
    stacked = stack(batches, shapes=False, pad_to={"tokens": (4, 8)})
    assert {name: array.shape for name, array in stacked.items()} == {
        "tokens": (3, 4, 8),
        "label": (3, 4),
        "weight": (3, 4),
    }
    sizes = [len(batch["label"]) for batch in batches]
    assert sizes == [1, 2, 3]
    expected = [[float(row < size) for row in range(4)] for size in sizes]
    assert stacked["weight"].dtype == np.float32
    np.testing.assert_array_equal(stacked["weight"], expected)


def test_weights_of_the_batches_stay():
    batches = batches_of(batch_size=1, count=12, sampling="poisson")
    assert {float(batch["weight"].sum()) for batch in batches} >= {0.0, 1.0}
    stacked = stack(batches, shapes=False)
    assert stacked["weight"].sum(axis=1).tolist() == [batch["weight"].sum() for batch in batches]


@pytest.mark.parametrize("shapes", [True, False])
def test_the_fields_do_not_depend_on_the_data(shapes):
    same = [batches_of()[0]] * 2
    assert stack(same, shapes=shapes).keys() == stack(batches_of(), shapes=shapes).keys()
    padded = stack(same[:1], shapes=shapes, pad_to={"tokens": (5, 7), "label": (5,)})
    assert padded.keys() == stack(same, shapes=shapes).keys()
    assert padded["tokens"].shape == (1, 5, 7)


@pytest.mark.parametrize(
    ("pad_to", "message"),
    [
        ({"tokens": (3, 2)}, r"pad_to\['tokens'\] must be \(3, \d\) or more. Received: \(3, 2\)"),
        ({"tokens": (3,)}, r"pad_to\['tokens'\] must be"),
        ({"label": (2,)}, r"pad_to\['label'\] must be \(3,\) or more. Received: \(2,\)"),
        ({"targets": (3, 9)}, "fields of the batches: tokens, label. Received: targets"),
    ],
)
def test_a_shape_that_does_not_fit_is_refused(pad_to, message):
    with pytest.raises(ValueError, match=message):
        stack(batches_of(), pad_to=pad_to)


def test_batches_of_different_fields_are_refused():
    first, second, _ = batches_of()
    for batches in ([], [first, {"tokens": second["tokens"]}]):
        with pytest.raises(ValueError, match="must have the same fields. Received"):
            stack(batches)
