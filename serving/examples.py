"""JSON of `:classify` and `:regress` to tf.Examples, and the results back to JSON."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import classification_pb2, regression_pb2

from serving import codec
from serving.errors import invalid_argument
from serving.json_text import shown

# What a list of each kind holds, by the name of its field in a tf.train.Feature.
KINDS = {"bytes_list": "bytes", "float_list": "float", "int64_list": "int64"}


def examples_from_json(body: Mapping[str, Any]) -> list[bytes]:
    """The serialised tf.Examples of a request, each behind its context, whose features it may
    override. The types come from the JSON: 2 is an int64, 2.0 a float, a text is bytes.
    """
    context = _example(body["context"]) if "context" in body else b""
    if "examples" not in body:
        raise invalid_argument(
            f"{shown(body)} When method is classify, key 'examples' is expected and was not found"
        )
    examples = body["examples"]
    if not isinstance(examples, list):
        raise invalid_argument(f"{shown(body)} Expecting 'examples' value to be an list/array")
    if not examples:
        raise invalid_argument(f"{shown(body)} 'examples' value is an empty array")
    return [context + _example(example) for example in examples]


def _example(features: Any) -> bytes:
    if not isinstance(features, dict):
        raise invalid_argument(
            f"Example must be JSON object but got JSON {codec.json_type(features)}"
        )
    example = tf.train.Example()
    for name, content in features.items():
        text = name.encode(errors="surrogateescape").decode(errors="replace")  # a proto's key
        feature = example.features.feature[text]
        for value in content if isinstance(content, list) else [content]:
            _add(feature, text, value)
    return example.SerializeToString()


def _add(feature: tf.train.Feature, name: str, value: Any) -> None:
    kind = _kind(value)
    if kind is None:
        raise invalid_argument(
            f"Feature: {name} has element with unexpected JSON type: {codec.json_type(value)}"
        )
    first_kind = feature.WhichOneof("kind")
    if first_kind not in (None, kind):
        raise invalid_argument(
            f"Unexpected element type in feature: {name} expecting type: {KINDS[first_kind]}"
        )
    if kind == "bytes_list":
        try:
            value = codec.to_bytes(value)
        except codec.Fault:
            raise invalid_argument(codec.BAD_BASE64) from None
    elif kind == "float_list":
        with np.errstate(over="ignore"):  # beyond float32 is infinity, as in a C++ cast
            value = float(np.float32(value)) if math.isfinite(value) else value
    else:
        value = int(value)  # of a boolean
        if value >= 2**63:
            raise invalid_argument(
                f"Feature: {name} has uint64_t element. Only int64_t is supported."
            )
    getattr(feature, kind).value.append(value)


def _kind(value: Any) -> str | None:
    if isinstance(value, str) or codec.is_base64_object(value):
        return "bytes_list"
    if isinstance(value, float):
        return "float_list"
    return "int64_list" if isinstance(value, int) else None  # true and false, too


def classifications_to_json(result: classification_pb2.ClassificationResult) -> bytes:
    """`{"results": [[["label", score], ...], ...]}`, a list for each example."""
    return codec.dumps(
        {
            "results": [
                [[entry.label, codec.numbers(np.float32(entry.score))] for entry in one.classes]
                for one in result.classifications
            ]
        }
    )


def regressions_to_json(result: regression_pb2.RegressionResult) -> bytes:
    """`{"results": [value, ...]}`, one for each example."""
    values = np.array([one.value for one in result.regressions], np.float32)
    return codec.dumps({"results": codec.numbers(values)})
