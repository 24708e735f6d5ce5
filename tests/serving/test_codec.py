"""What the tables of test_rest.py cannot reach: types without a JSON form, and made-up bodies."""

import random

import ml_dtypes
import numpy as np
import pytest
from tensorflow.core.framework import types_pb2

from serving.codec import inputs_from_json, outputs_to_json, tensor_to_proto
from serving.errors import ServingError
from serving.json_text import parse


@pytest.mark.parametrize(
    ("dtype", "name"),
    [
        (np.float16, "half"),
        (ml_dtypes.bfloat16, "bfloat16"),
        (np.complex64, "complex64"),
        (np.uint16, "uint16"),
    ],
)
def test_types_that_json_cannot_hold(dtype, name):
    with pytest.raises(ServingError, match=f"Failed to write JSON value for tensor type: {name}"):
        outputs_to_json({"y": np.zeros(1, dtype)}, row_format=True)


def test_complex_and_bfloat16_travel_as_their_parts():
    proto = tensor_to_proto(np.array([1 + 2j], np.complex64))
    assert list(proto.scomplex_val) == [1.0, 2.0]
    proto = tensor_to_proto(np.array([1.0], ml_dtypes.bfloat16))
    assert list(proto.half_val) == [0x3F80]


@pytest.mark.parametrize("row_format", [True, False])
def test_every_float32_is_read_back_exactly(row_format):
    bits = np.random.default_rng(0).integers(0, 2**32, 5000, dtype=np.uint64).astype(np.uint32)
    values = bits.view(np.float32)  # NaN and infinities among them
    for array in (values, values[np.isfinite(values)]):
        body = parse(outputs_to_json({"y": array}, row_format=row_format), max_depth=64)
        back = np.array(body["predictions" if row_format else "outputs"]).astype(np.float32)
        np.testing.assert_array_equal(back, array)


def made_up_value(rng, depth=0):
    kind = rng.randrange(10 if depth < 3 else 7)
    if kind < 7:
        leaves = [rng.randrange(3), 1.5, "a", True, None, {"b64": "YQ=="}, 2**70]
        return leaves[0 if rng.random() < 0.6 else kind]
    if kind == 9 and rng.random() < 0.3:
        return {rng.choice("ab"): made_up_value(rng, depth + 1)}
    return [made_up_value(rng, depth + 1) for _ in range(rng.randrange(4))]


@pytest.mark.parametrize(
    "dtypes",
    [
        {"a": types_pb2.DT_INT32},
        {"a": types_pb2.DT_FLOAT, "b": types_pb2.DT_STRING},
        {"a": types_pb2.DT_HALF},
    ],
)
def test_made_up_bodies_are_read_or_refused(dtypes):
    """Whatever the fast way refuses, the walk for the error text must find a fault in."""
    rng = random.Random(0)
    num_read = num_refused = 0
    for _ in range(5000):
        rows = [made_up_value(rng) for _ in range(rng.randrange(1, 4))]
        if rng.random() < 0.5:
            rows = [{alias: made_up_value(rng, 2) for alias in dtypes} for _ in rows]
        columns = {alias: made_up_value(rng) for alias in dtypes}
        for body in ({"instances": rows}, {"inputs": columns}):
            try:
                arrays, _ = inputs_from_json(body, dtypes)
            except ServingError:
                num_refused += 1
            else:
                num_read += 1
                assert arrays.keys() == dtypes.keys()
    assert num_read and num_refused


@pytest.mark.parametrize("row_format", [True, False])
def test_texts_come_out_as_they_went_in(row_format):
    texts = ["", 'a"b\\', "\n\r\t", "文😀", "naïve"]
    for odd in ([], ["\x00"], ["\x01\x1f"], ["\udcff"], ["\udcff", "\x01"]):
        for picked in ([*texts, *odd], odd, texts[:1]):
            array = np.array([text.encode(errors="surrogateescape") for text in picked], object)
            body = outputs_to_json({"y": array}, row_format=row_format)
            assert list(parse(body, max_depth=9).values()) == [picked]


@pytest.mark.parametrize("dtype", [types_pb2.DT_FLOAT, types_pb2.DT_INT32, types_pb2.DT_UINT64])
@pytest.mark.parametrize("odd", [True, False, None, "1", [], {}, -1.5, 2**64 * 1.0])
def test_one_odd_leaf_among_many_numbers_is_found(dtype, odd):
    column = [0, 1, 2, 3, 1, 0] * 50
    assert inputs_from_json({"inputs": column}, {"x": dtype})[0]["x"].tolist() == column
    column[37] = odd
    if isinstance(odd, float) and dtype == types_pb2.DT_FLOAT:
        assert inputs_from_json({"inputs": column}, {"x": dtype})[0]["x"][37] == odd
    else:
        with pytest.raises(ServingError):
            inputs_from_json({"inputs": column}, {"x": dtype})
