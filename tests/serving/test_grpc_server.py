"""gRPC: the same answers as REST, the protocol's texts, typed value fields."""

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.framework import types_pb2
from tensorflow.core.framework.tensor_pb2 import TensorProto
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    predict_pb2,
)


def predict_request(model, inputs, signature_name="", version=None, output_filter=()):
    request = predict_pb2.PredictRequest(output_filter=output_filter)
    request.model_spec.name = model
    request.model_spec.signature_name = signature_name
    if version is not None:
        request.model_spec.version.value = version
    for alias, value in inputs.items():
        is_proto = isinstance(value, TensorProto)
        request.inputs[alias].CopyFrom(value if is_proto else tf.make_tensor_proto(value))
    return request


def refused(call, request):
    with pytest.raises(grpc.RpcError) as caught:
        call(request, timeout=10)
    return caught.value.code().name, caught.value.details()


MIXED = {
    "words": np.array([b"a", "é".encode()], object),
    "counts": np.array([[1, 2], [3, 4]], np.int32),
    "is_loud": np.array([True, False]),
}


def test_grpc_equals_rest(stubs, rest):
    response = stubs.prediction.Predict(predict_request("mixed", MIXED), timeout=10)
    over_grpc = {alias: tf.make_ndarray(proto) for alias, proto in response.outputs.items()}
    columns = {"words": ["a", "é"], "counts": [[1, 2], [3, 4]], "is_loud": [True, False]}
    over_rest = rest.post("/v1/models/mixed:predict", json={"inputs": columns}).json()["outputs"]
    assert [text.decode() for text in over_grpc["joined"]] == over_rest["joined"]
    assert over_grpc["total"].tolist() == over_rest["total"] == [3, 7]
    assert over_grpc["is_quiet"].tolist() == over_rest["is_quiet"]
    assert over_grpc["raw_bytes"].tolist() == [b"a\xff\x00", "é".encode() + b"\xff\x00"]


def test_the_answer_names_version_and_signature(stubs):
    response = stubs.prediction.Predict(predict_request("half_plus_two", {"x": [1.0]}), timeout=10)
    assert response.model_spec.version.value == 3
    assert response.model_spec.signature_name == "serving_default"
    assert list(response.outputs["y"].float_val) == [2.5]
    assert not response.outputs["y"].tensor_content


@pytest.mark.parametrize(
    "array",
    [
        np.array([[1.5, -2.0]], np.float32),
        np.array(3.25, np.float64),
        np.array([-128, 127], np.int8),
        np.array([255], np.uint8),
        np.array([-5], np.int16),
        np.array([2**31 - 1], np.int32),
        np.array([-(2**63)], np.int64),
        np.array([2**32 - 1], np.uint32),
        np.array([2**64 - 1], np.uint64),
        np.array([[True], [False]]),
        np.array([b"\xff", b""], object),
        np.array([0.5, -1.25], np.float16),
        np.zeros((2, 0), np.float32),
    ],
    ids=lambda array: str(array.dtype),
)
def test_every_type_comes_back_in_its_typed_field(stubs, array):
    name = "string" if array.dtype == object else array.dtype.name
    request = predict_request("types", {"x": array}, signature_name=name)
    proto = stubs.prediction.Predict(request, timeout=10).outputs["y"]
    assert not proto.tensor_content
    back = tf.make_ndarray(proto)
    assert back.dtype == array.dtype
    np.testing.assert_array_equal(back, array)


def test_the_last_value_fills_a_short_tensor(stubs):
    short = TensorProto(dtype=types_pb2.DT_FLOAT, float_val=[1.0, 2.0])
    short.tensor_shape.dim.add(size=4)
    request = predict_request("types", {"x": short}, signature_name="float32")
    outputs = stubs.prediction.Predict(request, timeout=10).outputs
    assert list(outputs["y"].float_val) == [1.0, 2.0, 2.0, 2.0]


def test_output_filter_computes_only_what_is_asked(stubs):
    request = predict_request("mixed", MIXED, output_filter=["total"])
    assert list(stubs.prediction.Predict(request, timeout=10).outputs) == ["total"]


def test_messages_above_four_megabytes(stubs):
    big = np.zeros(2**21, np.float32)  # 8 MB
    request = predict_request("types", {"x": big}, signature_name="float32")
    outputs = stubs.prediction.Predict(request, timeout=30).outputs
    assert len(outputs["y"].float_val) == len(big)


def no_shape_proto():
    proto = TensorProto(dtype=types_pb2.DT_FLOAT, float_val=[1.0])
    proto.tensor_shape.dim.add(size=-1)
    return proto


X = {"x": [1.0]}
CASES = {
    "unknown model": (
        predict_request("no", X), "NOT_FOUND", "Servable not found for request: Latest(no)"),
    "unknown version": (
        predict_request("mixed", X, version=9), "NOT_FOUND",
        "Servable not found for request: Specific(mixed, 9)"),
    "no name": (
        predict_request("", X), "INVALID_ARGUMENT", "ModelSpec has no name specified."),
    "no model_spec": (
        predict_pb2.PredictRequest(), "INVALID_ARGUMENT", "Missing ModelSpec"),
    "unknown signature": (
        predict_request("mixed", X, "nope"), "FAILED_PRECONDITION",
        'Serving signature key "nope" not found.'),
    "too many inputs": (
        predict_request("half_plus_two", X | {"z": [1.0]}), "INVALID_ARGUMENT",
        "input size does not match signature: 2!=1 len({x,z}) != len({x}). Sent extra: {z}. "
        "Missing but required: {}."),
    "too few inputs": (
        predict_request("mixed", {"words": MIXED["words"]}), "INVALID_ARGUMENT",
        "input size does not match signature: 1!=3 len({words}) != len({counts,is_loud,words}). "
        "Sent extra: {}. Missing but required: {counts,is_loud}."),
    "wrong name": (
        predict_request("half_plus_two", {"z": [1.0]}), "INVALID_ARGUMENT",
        "Signature input alias: x(feed name: x:0) not found in request and no default value "
        "provided. Inputs expected to be in the set {x}."),
    "wrong dtype": (
        predict_request("half_plus_two", {"x": [1]}), "INVALID_ARGUMENT",
        "Expects arg[0] to be float but int32 is provided"),
    "undecodable tensor": (
        predict_request("half_plus_two", {"x": no_shape_proto()}), "INVALID_ARGUMENT",
        "tensor parsing error: x"),
    "unknown output": (
        predict_request("half_plus_two", X, output_filter=["z"]), "INVALID_ARGUMENT",
        "output tensor alias not found in signature: z Outputs expected to be in the set {y}."),
    "output asked for twice": (
        predict_request("half_plus_two", X, output_filter=["y", "y"]), "INVALID_ARGUMENT",
        "duplicate output tensor alias: y"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_predict_error(stubs, case):
    request, code, text = CASES[case]
    assert refused(stubs.prediction.Predict, request) == (code, text)


def test_long_error_texts_are_cut(stubs):
    code, text = refused(stubs.prediction.Predict, predict_request("文" * 1000, X))
    assert code == "NOT_FOUND"
    assert text.endswith("...TRUNCATED") and len(text.encode()) <= 1024 + len("...TRUNCATED")


def test_metadata(stubs):
    request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    request.model_spec.name = "half_plus_two"
    response = stubs.prediction.GetModelMetadata(request, timeout=10)
    assert response.model_spec.version.value == 3
    signatures = get_model_metadata_pb2.SignatureDefMap()
    assert response.metadata["signature_def"].Unpack(signatures)
    assert signatures.signature_def["serving_default"].inputs["x"].dtype == types_pb2.DT_FLOAT


def test_metadata_fields_are_checked(stubs):
    request = get_model_metadata_pb2.GetModelMetadataRequest()
    request.model_spec.name = "mixed"
    assert refused(stubs.prediction.GetModelMetadata, request) == (
        "INVALID_ARGUMENT",
        "GetModelMetadataRequest must specify at least one metadata_field",
    )
    request.metadata_field.append("graph")
    assert refused(stubs.prediction.GetModelMetadata, request) == (
        "INVALID_ARGUMENT",
        "Metadata field graph is not supported",
    )


def test_status(stubs):
    request = get_model_status_pb2.GetModelStatusRequest()
    request.model_spec.name = "mixed"
    (status,) = stubs.model.GetModelStatus(request, timeout=10).model_version_status
    assert (status.version, status.State.Name(status.state)) == (3, "AVAILABLE")
    request.model_spec.name = "no"
    assert refused(stubs.model.GetModelStatus, request) == (
        "NOT_FOUND",
        "Could not find any versions of model no",
    )


def test_a_bug_of_ours_is_internal_with_the_traceback_in_the_log(stubs, monkeypatch, caplog):
    monkeypatch.setattr("serving.inference.predict", lambda *_, **__: 1 / 0)
    code, text = refused(stubs.prediction.Predict, predict_request("half_plus_two", X))
    assert code == "INTERNAL" and "division" not in text
    assert "ZeroDivisionError" in caplog.text
