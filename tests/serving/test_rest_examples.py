"""`:classify` and `:regress` over REST, from JSON to tf.Examples and back."""

import math
import re

import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import regression_pb2

from serving.errors import ServingError
from serving.examples import examples_from_json, regressions_to_json


def post(rest, method, signature, **body):
    body = {"signature_name": signature} | body
    return rest.post(f"/v1/models/examples:{method}", json=body)


def test_classify(rest):
    response = post(rest, "classify", "classify_with_names", examples=[{"x": 2.0}, {"x": 0.5}])
    assert response.json() == {"results": [[["y", 3.0]], [["y", 2.25]]]}
    response = post(rest, "classify", "classify_x_to_y", examples=[{"x": 2.0}])
    assert response.json() == {"results": [[["", 3.0]]]}


def test_regress_and_a_context_behind_the_examples(rest):
    examples = [{"x": [4.0]}, {}]
    response = post(rest, "regress", "regress_x_to_y", examples=examples, context={"x": 2.0})
    assert response.json() == {"results": [4.0, 3.0]}


def test_an_integer_fails_on_a_float_feature(rest):
    response = post(rest, "regress", "regress_x_to_y", examples=[{"x": 2}])
    assert response.status_code == 400
    assert "Data types don't match" in response.json()["error"]


@pytest.mark.parametrize("method", ["classify", "regress"])
def test_the_json_is_read_before_the_model_is_looked_up(rest, method):
    response = rest.post(f"/v1/models/no:{method}", json={"examples": [1]})
    assert response.json() == {"error": "Example must be JSON object but got JSON Number"}
    response = rest.post(f"/v1/models/no:{method}", json={"examples": [{}]})
    assert response.status_code == 404
    response = post(rest, method, "nope", examples=[{}])
    assert response.json() == {"error": "No signature was found with the name: nope"}


def test_every_kind_of_feature():
    features = {
        "float": [1.0, 1e300],
        "int64": [1, True, -(2**63)],
        "bytes": ["é", {"b64": "/w=="}, "\udcff"],
        "single": False,
        "empty": [],
    }
    (serialized,) = examples_from_json({"examples": [features]})
    read = tf.train.Example.FromString(serialized).features.feature
    assert list(read["float"].float_list.value) == [1.0, math.inf]
    assert list(read["int64"].int64_list.value) == [1, 1, -(2**63)]
    assert list(read["bytes"].bytes_list.value) == ["é".encode(), b"\xff", b"\xff"]
    assert list(read["single"].int64_list.value) == [0]
    assert read["empty"].WhichOneof("kind") is None


ERRORS = [
    ({}, "JSON Value: {} When method is classify, key 'examples' is expected and was not found"),
    ({"examples": 1}, 'JSON Value: {\n    "examples": 1\n} Expecting \'examples\' value to be an '
                      "list/array"),
    ({"examples": []}, 'JSON Value: {\n    "examples": []\n} \'examples\' value is an empty array'),
    ({"examples": ["a"]}, "Example must be JSON object but got JSON String"),
    ({"context": [], "examples": [{}]}, "Example must be JSON object but got JSON Array"),
    ({"examples": [{"x": None}]}, "Feature: x has element with unexpected JSON type: Null"),
    ({"examples": [{"x": [[1]]}]}, "Feature: x has element with unexpected JSON type: Array"),
    ({"examples": [{"x": {"a": 1}}]}, "Feature: x has element with unexpected JSON type: Object"),
    ({"examples": [{"x": [1, 1.0]}]},
     "Unexpected element type in feature: x expecting type: int64"),
    ({"examples": [{"x": [1.0, True]}]},
     "Unexpected element type in feature: x expecting type: float"),
    ({"examples": [{"x": ["a", 1]}]},
     "Unexpected element type in feature: x expecting type: bytes"),
    ({"examples": [{"x": 2**63}]}, "Feature: x has uint64_t element. Only int64_t is supported."),
    ({"examples": [{"x": {"b64": "-_-_"}}]}, "Unable to base64 decode"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "text"), ERRORS)
def test_errors(body, text):
    with pytest.raises(ServingError, match=f"^{re.escape(text)}$"):
        examples_from_json(body)


def test_values_are_float32_and_may_be_nan():
    result = regression_pb2.RegressionResult()
    for value in (0.1, math.nan, -math.inf):
        result.regressions.add(value=np.float32(value))
    assert regressions_to_json(result) == b'{"results":[0.1,NaN,-Infinity]}'
