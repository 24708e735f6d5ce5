"""The gRPC client: its messages are the protocol's, and its calls those of the REST client."""

import subprocess
import sys

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.framework import tensor_pb2
from tensorflow_serving.apis import get_model_status_pb2, predict_pb2

from serving.client import (
    AccessDenied,
    Classification,
    Client,
    Generation,
    InvalidRequest,
    ModelNotFound,
    ModelNotReady,
    RequestTimedOut,
    ServerFailed,
    ServerUnreachable,
    VersionStatus,
)
from serving.grpc_client import _CLASSES, AsyncGrpcClient, GrpcClient, array_of, tensor_proto

NUMBERS = ["float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32"]
NUMBERS += ["uint64", "bool", "float16"]


@pytest.mark.parametrize("kind", NUMBERS)
def test_tensors_are_those_of_tensorflow_in_all_their_forms(kind):
    array = np.array([[0, 1, 5], [7, 1, 1]]).astype(kind)
    there = tensor_pb2.TensorProto.FromString(tensor_proto(array).SerializeToString())
    np.testing.assert_array_equal(tf.make_ndarray(there), array)
    assert there.dtype == tf.as_dtype(kind).as_datatype_enum
    forms = [tf.make_tensor_proto(array), tf.make_tensor_proto(array[1, 1:], shape=(2, 2))]
    whole = tf.make_tensor_proto(array)
    if kind == "int32":  # one by one, and cut short where the rest is like the last
        whole.tensor_content = b""
        whole.int_val.extend([0, 1, 5, 7, 1])
        forms.append(whole)
    for form in forms:
        found = array_of(_CLASSES["tensorflow.TensorProto"].FromString(form.SerializeToString()))
        assert found.dtype == array.dtype
        np.testing.assert_array_equal(found, tf.make_ndarray(form))


def test_texts_and_pythons_own_numbers_have_the_types_of_json():
    array = tf.make_ndarray(
        tensor_pb2.TensorProto.FromString(tensor_proto(["é", b"\xff"]).SerializeToString())
    )
    assert array.tolist() == ["é".encode(), b"\xff"]
    assert array_of(tensor_proto(["é", b"\xff"])).tolist() == ["é".encode(), b"\xff"]
    assert tensor_proto([1.5]).dtype == tf.float32.as_datatype_enum
    assert tensor_proto([1]).dtype == tf.int64.as_datatype_enum
    assert array_of(tensor_proto(np.zeros((0, 3), np.float32))).shape == (0, 3)
    with pytest.raises(InvalidRequest, match="holds texts: str or bytes. Received: None"):
        tensor_proto([None])
    with pytest.raises(InvalidRequest, match="no type complex128"):
        tensor_proto([1j])
    with pytest.raises(ServerFailed, match="unknown DataType 99"):
        array_of(_CLASSES["tensorflow.TensorProto"](dtype=99))


def test_requests_are_those_of_the_real_classes():
    """What goes over the wire, taken by a server that only records it."""
    seen = []

    def record(request, context):
        seen.append((request, dict(context.invocation_metadata()), context.time_remaining()))
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, "recorded")

    methods = {name: grpc.unary_unary_rpc_method_handler(record) for name in ("Predict",)}
    status = {"GetModelStatus": grpc.unary_unary_rpc_method_handler(record)}
    with serving(
        ("tensorflow.serving.PredictionService", methods),
        ("tensorflow.serving.ModelService", status),
    ) as address:
        client = GrpcClient(address, api_key="secret", timeout=50)
        for settings in ({"version": 5}, {"label": "stable"}, {}):
            with pytest.raises(InvalidRequest, match="recorded"):
                client.predict(
                    "m",
                    {"x": [1.5], "y": ["a"]},
                    signature_name="s",
                    output_filter=["z"],
                    **settings,
                )
        with pytest.raises(InvalidRequest):
            client.status("m")
        client.close()
    numbered, labelled, plain = (predict_pb2.PredictRequest.FromString(r[0]) for r in seen[:3])
    assert numbered.model_spec.version.value == 5 and numbered.model_spec.name == "m"
    assert labelled.model_spec.version_label == "stable"
    assert plain.model_spec.WhichOneof("version_choice") is None
    assert plain.model_spec.signature_name == "s" and plain.output_filter == ["z"]
    assert tf.make_ndarray(plain.inputs["x"]).tolist() == [1.5]
    assert tf.make_ndarray(plain.inputs["y"]).tolist() == [b"a"]
    assert get_model_status_pb2.GetModelStatusRequest.FromString(seen[3][0]).model_spec.name == "m"
    assert seen[0][1]["x-api-key"] == "secret" and 40 < seen[0][2] < 51


def serving(*services):
    import contextlib
    from concurrent import futures

    @contextlib.contextmanager
    def running():
        server = grpc.server(futures.ThreadPoolExecutor(1))
        for name, methods in services:
            server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, methods),))
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        yield f"127.0.0.1:{port}"
        server.stop(0)

    return running()


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("UNAVAILABLE", ModelNotReady),
        ("RESOURCE_EXHAUSTED", ModelNotReady),
        ("NOT_FOUND", ModelNotFound),
        ("UNAUTHENTICATED", AccessDenied),
        ("PERMISSION_DENIED", AccessDenied),
        ("DEADLINE_EXCEEDED", RequestTimedOut),
        ("INVALID_ARGUMENT", InvalidRequest),
        ("FAILED_PRECONDITION", InvalidRequest),
        ("INTERNAL", ServerFailed),
    ],
)
def test_errors_are_the_rest_clients_with_the_servers_text(code, expected):
    asked, slept = [], []

    def fail(request, context):
        asked.append(request)
        context.abort(grpc.StatusCode[code], "the server's text")

    methods = {"Predict": grpc.unary_unary_rpc_method_handler(fail)}
    with serving(("tensorflow.serving.PredictionService", methods)) as address:
        with GrpcClient(address, sleep=slept.append, retries=1) as client:
            with pytest.raises(expected, match="the server's text"):
                client.predict("m", {"x": [1]})
    assert len(asked) == 1 + (expected is ModelNotReady) == 1 + len(slept)


def test_no_server(free_port):
    with GrpcClient(f"127.0.0.1:{free_port}") as client:
        with pytest.raises(ServerUnreachable, match="python -m serving"):
            client.status("m")


def test_calls_on_a_real_server_give_what_rest_gives(stubs, rest):
    with GrpcClient(stubs.address) as client:
        (answer,) = client.classify("classifier", ["so good"])
        assert isinstance(answer, Classification) and answer.label == "positive"
        assert list(answer.scores) == ["negative", "positive", "neutral"]
        assert answer.scores["positive"] == pytest.approx(0.8)
        settings = {"max_tokens": 7, "temperature": 0.5, "top_k": 4, "top_p": 1, "seed": 3}
        found = client.generate("generator", "从前", **settings)
        assert found == Generation("从前 0.50 4.00 1.00 3.00", 7, "length")
        assert client.status("mixed") == [VersionStatus(3, "AVAILABLE", "OK", "")]
        found = client.predict("half_plus_two", {"x": np.array([2.0], np.float32)}, version=3)
        assert found["y"].tolist() == [3.0]
        assert client.classify("classifier", []) == []
        with pytest.raises(InvalidRequest, match="correct the input"):
            client.classify("half_plus_two", ["a"])
        with pytest.raises(ModelNotFound, match="Specific\\(mixed, 8\\)"):
            client.predict("mixed", {"x": [1]}, version=8)


@pytest.mark.asyncio
async def test_an_event_loop_has_the_same_calls(stubs):
    async with AsyncGrpcClient(stubs.address) as client:
        (answer,) = await client.classify("classifier", ["so good"])
        assert answer.label == "positive"
        with pytest.raises(ModelNotFound):
            await client.predict("no such", {"x": [1]})
    public = {name for name in dir(GrpcClient) if name[0] != "_"}
    assert public == {name for name in dir(AsyncGrpcClient) if name[0] != "_"}
    assert {"predict", "classify", "generate", "status"} <= public & set(dir(Client))


def test_it_needs_no_tensorflow():
    program = (
        "import sys; import serving.grpc_client; "
        "assert not {m.partition('.')[0] for m in sys.modules} & {'tensorflow', 'keras', "
        "'tensorflow_serving'}; assert 'serving.config' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
