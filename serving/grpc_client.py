"""A client for TensorFlow Serving's gRPC API that needs neither TensorFlow nor generated code.

The messages are described below, as far as the calls here use them, and made at run time; on the
wire they are those of tensorflow_serving/apis (field numbers and types are the protocol's). Needs
grpcio, protobuf, numpy and `serving/client.py`, whose errors are raised here too.
"""

import asyncio
import os
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, wrappers_pb2

from serving.client import (
    API_KEY,
    CLASSIFIER_OUTPUTS,
    GENERATOR_OUTPUTS,
    AccessDenied,
    Classification,
    ClientError,
    Closes,
    ClosesInLoop,
    Generation,
    InvalidRequest,
    ModelNotFound,
    ModelNotReady,
    Pause,
    RequestTimedOut,
    ServerFailed,
    ServerUnreachable,
    Steps,
    VersionStatus,
    call,
    take,
    take_in_loop,
)

MAX_MESSAGE_BYTES = 2**31 - 1
RETRY_SECONDS = 1.0  # gRPC has no Retry-After

_FIELD = descriptor_pb2.FieldDescriptorProto
_TENSOR, _SERVING = "tensorflow", "tensorflow.serving"
# Of each message: name of a field -> (number, type); a star is for repeated. Enums are int32 here,
# which is the same on the wire.
_MESSAGES: dict[str, dict[str, tuple[int, str]]] = {
    "tensorflow.Dim": {"size": (1, "int64")},
    "tensorflow.TensorShapeProto": {"dim": (2, "*tensorflow.Dim")},
    "tensorflow.TensorProto": {
        "dtype": (1, "int32"),
        "tensor_shape": (2, "tensorflow.TensorShapeProto"),
        "tensor_content": (4, "bytes"),
        "float_val": (5, "*float"),
        "double_val": (6, "*double"),
        "int_val": (7, "*int32"),
        "string_val": (8, "*bytes"),
        "int64_val": (10, "*int64"),
        "bool_val": (11, "*bool"),
        "half_val": (13, "*int32"),
        "uint32_val": (16, "*uint32"),
        "uint64_val": (17, "*uint64"),
    },
    "tensorflow.serving.ModelSpec": {
        "name": (1, "string"),
        "version": (2, "google.protobuf.Int64Value"),
        "signature_name": (3, "string"),
        "version_label": (4, "string"),
    },
    "tensorflow.serving.NamedTensor": {
        "key": (1, "string"),
        "value": (2, "tensorflow.TensorProto"),
    },
    "tensorflow.serving.PredictRequest": {
        "model_spec": (1, "tensorflow.serving.ModelSpec"),
        "inputs": (2, "*tensorflow.serving.NamedTensor"),  # a map is such a list on the wire
        "output_filter": (3, "*string"),
    },
    "tensorflow.serving.PredictResponse": {
        "outputs": (1, "*tensorflow.serving.NamedTensor"),
        "model_spec": (2, "tensorflow.serving.ModelSpec"),
    },
    "tensorflow.serving.StatusProto": {
        "error_code": (1, "int32"),
        "error_message": (2, "string"),
    },
    "tensorflow.serving.ModelVersionStatus": {
        "version": (1, "int64"),
        "state": (2, "int32"),
        "status": (3, "tensorflow.serving.StatusProto"),
    },
    "tensorflow.serving.GetModelStatusRequest": {
        "model_spec": (1, "tensorflow.serving.ModelSpec"),
    },
    "tensorflow.serving.GetModelStatusResponse": {
        "model_version_status": (1, "*tensorflow.serving.ModelVersionStatus"),
    },
}
_PREDICT = "/tensorflow.serving.PredictionService/Predict"
_STATUS = "/tensorflow.serving.ModelService/GetModelStatus"
_STATES = {10: "START", 20: "LOADING", 30: "AVAILABLE", 40: "UNLOADING", 50: "END"}

# DataType numbers; the second is the field of a TensorProto that holds values one by one.
_TYPES: dict[int, tuple[Any, str]] = {
    1: (np.float32, "float_val"),
    2: (np.float64, "double_val"),
    3: (np.int32, "int_val"),
    4: (np.uint8, "int_val"),
    5: (np.int16, "int_val"),
    6: (np.int8, "int_val"),
    7: (object, "string_val"),
    9: (np.int64, "int64_val"),
    10: (np.bool_, "bool_val"),
    17: (np.uint16, "int_val"),
    19: (np.float16, "half_val"),
    22: (np.uint32, "uint32_val"),
    23: (np.uint64, "uint64_val"),
}
_NUMBERS = {np.dtype(kind): number for number, (kind, _) in _TYPES.items()}


def _made(messages: dict[str, dict[str, tuple[int, str]]]) -> dict[str, Any]:
    """Classes by full name, in a pool of their own: the real ones may be in this process too."""
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(wrappers_pb2.DESCRIPTOR.serialized_pb)
    files = {
        package: descriptor_pb2.FileDescriptorProto(
            name=f"stepwise/{package}.proto", package=package, syntax="proto3"
        )
        for package in (_TENSOR, _SERVING)
    }
    files[_SERVING].dependency.extend([wrappers_pb2.DESCRIPTOR.name, files[_TENSOR].name])
    for full_name, fields in messages.items():
        package, _, name = full_name.rpartition(".")
        message = files[package].message_type.add(name=name)
        for field_name, (number, kind) in fields.items():
            label = _FIELD.LABEL_REPEATED if kind.startswith("*") else _FIELD.LABEL_OPTIONAL
            field = message.field.add(name=field_name, number=number, label=label)
            kind = kind.removeprefix("*")
            if "." in kind:
                field.type, field.type_name = _FIELD.TYPE_MESSAGE, f".{kind}"
            else:
                field.type = _FIELD.Type.Value(f"TYPE_{kind.upper()}")
    for file in files.values():
        pool.AddSerializedFile(file.SerializeToString())
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(name)) for name in messages
    }


_CLASSES = _made(_MESSAGES)


def tensor_proto(values: Any) -> Any:
    """A tensorflow.TensorProto of an array, or of what numpy makes one of; texts are UTF-8.

    Python's floats become float32 and its integers int64, as in TensorFlow Serving's JSON. Raises
    InvalidRequest for other types.
    """
    array = values
    if not isinstance(values, np.ndarray | np.generic):
        try:
            array = np.array(values, object)
            if not any(isinstance(value, str | bytes) for value in array.flat):
                array = np.array(values)
        except ValueError as error:
            raise InvalidRequest(f"A tensor has rows of one length. {error}") from error
        if array.dtype == np.float64:
            array = array.astype(np.float32)
    proto = _CLASSES["tensorflow.TensorProto"]()
    for size in array.shape:
        proto.tensor_shape.dim.add(size=size)
    if array.dtype.kind in "OSU":
        proto.dtype = 7
        for value in array.ravel().tolist():
            if not isinstance(value, str | bytes):
                raise InvalidRequest(
                    f"A tensor of objects holds texts: str or bytes. Received: {value!r}"
                )
            proto.string_val.append(value.encode() if isinstance(value, str) else value)
    elif array.dtype in _NUMBERS:
        proto.dtype = _NUMBERS[array.dtype]
        proto.tensor_content = np.ascontiguousarray(array).tobytes()
    else:
        raise InvalidRequest(f"Tensors have no type {array.dtype}; convert the array.")
    return proto


def array_of(proto: Any) -> np.ndarray:
    """The array in a tensorflow.TensorProto, texts as bytes in an array of objects.

    Raises ServerFailed for a type that is not known here.
    """
    if proto.dtype not in _TYPES:
        raise ServerFailed(f"The answer holds a tensor of the unknown DataType {proto.dtype}.")
    kind, field = _TYPES[proto.dtype]
    shape = tuple(dim.size for dim in proto.tensor_shape.dim)
    count = int(np.prod(shape))
    if proto.tensor_content:
        return np.frombuffer(proto.tensor_content, kind).reshape(shape)
    values = list(getattr(proto, field))
    if 0 < len(values) < count:
        values += values[-1:] * (count - len(values))  # the rest is like the last
    if kind is np.float16:
        return np.array(values, np.uint16).view(np.float16).reshape(shape)
    if not values and kind is not object:
        return np.zeros(shape, kind)
    array = np.empty(count, kind)
    array[:] = values or b""
    return array.reshape(shape)


@dataclass(frozen=True)
class _Rpc:
    """A step of a call: send this. It is answered with the response's message."""

    method: str
    request: Any
    answer: str  # name of its message
    timeout: float | None = None


class _GrpcCalls:
    """What a server can be asked, in steps. `_take` is how a subclass takes them."""

    def __init__(
        self,
        address: str = "127.0.0.1:8500",
        *,
        timeout: float = 10.0,
        api_key: str | None = None,
        retries: int = 2,
        credentials: grpc.ChannelCredentials | None = None,
        sleep: Callable[[float], Any] | None = None,
    ) -> None:
        self.address, self.timeout, self.retries = address, timeout, retries
        key = os.environ.get(API_KEY) if api_key is None else api_key
        self._metadata = (("x-api-key", key),) if key else ()
        options = [
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        ]
        self._open(address, credentials, options, sleep)

    def _open(self, address: str, credentials: Any, options: Any, sleep: Any) -> None:
        raise NotImplementedError

    def _take(self, steps: Steps[Any]) -> Any:
        raise NotImplementedError

    @call
    def predict(
        self,
        model: str,
        inputs: Mapping[str, Any],
        *,
        version: int | None = None,
        label: str | None = None,
        signature_name: str = "",
        output_filter: Sequence[str] = (),
        timeout: float | None = None,
    ) -> Steps[dict[str, np.ndarray]]:
        """Arrays by name in, arrays by name out; texts come as bytes. See `tensor_proto`."""
        return (
            yield from self._predict(
                model, inputs, version, label, signature_name, output_filter, timeout
            )
        )

    @call
    def classify(
        self,
        model: str,
        texts: Sequence[str],
        *,
        version: int | None = None,
        timeout: float | None = None,
    ) -> Steps[list[Classification]]:
        """One `Classification` per text, in order. No texts: an empty list, and no request."""
        if not texts:
            return []
        inputs = {"text": list(texts)}
        found = yield from self._predict(model, inputs, version, None, "", (), timeout)
        _require_outputs(model, "classifier", found, CLASSIFIER_OUTPUTS)
        rows = zip(found["label"], found["labels"], found["scores"], strict=True)
        return [
            Classification(
                label.decode(),
                {name.decode(): float(score) for name, score in zip(names, scores, strict=True)},
            )
            for label, names, scores in rows
        ]

    @call
    def generate(
        self,
        model: str,
        prompt: str,
        *,
        max_tokens: int = 100,
        temperature: float = 0.8,
        top_k: int = 0,
        top_p: float = 0.95,
        seed: int = 0,
        version: int | None = None,
        timeout: float | None = 60.0,
    ) -> Steps[Generation]:
        """Continues `prompt`. Temperature 0 is greedy; top_k 0 and top_p 1 are off."""
        inputs = {
            "prompt": [prompt],
            "max_tokens": np.array([max_tokens], np.int32),
            "temperature": np.array([temperature], np.float32),
            "top_k": np.array([top_k], np.int32),
            "top_p": np.array([top_p], np.float32),
            "seed": np.array([seed], np.int32),
        }
        found = yield from self._predict(model, inputs, version, None, "", (), timeout)
        _require_outputs(model, "generator", found, GENERATOR_OUTPUTS)
        text, reason = found["text"][0].decode(), found["finish_reason"][0].decode()
        return Generation(text, int(found["num_tokens"][0]), reason)

    @call
    def status(self, model: str) -> Steps[list[VersionStatus]]:
        """Every version the server has seen of the model, highest first, ended ones included."""
        request = _CLASSES["tensorflow.serving.GetModelStatusRequest"]()
        request.model_spec.name = model
        answer = yield from self._insist(_Rpc(_STATUS, request, "GetModelStatusResponse"))
        found = [
            VersionStatus(
                entry.version,
                _STATES.get(entry.state, str(entry.state)),
                _CODES.get(entry.status.error_code, str(entry.status.error_code)),
                entry.status.error_message,
            )
            for entry in answer.model_version_status
        ]
        return sorted(found, key=lambda status: -status.version)

    def _predict(
        self,
        model: str,
        inputs: Mapping[str, Any],
        version: int | None,
        label: str | None,
        signature_name: str,
        output_filter: Sequence[str],
        timeout: float | None,
    ) -> Steps[dict[str, np.ndarray]]:
        request = _CLASSES["tensorflow.serving.PredictRequest"]()
        request.model_spec.name, request.model_spec.signature_name = model, signature_name
        if version is not None:
            request.model_spec.version.value = version
        elif label is not None:
            request.model_spec.version_label = label
        for name, values in inputs.items():
            request.inputs.add(key=name, value=tensor_proto(values))
        request.output_filter.extend(output_filter)
        rpc = _Rpc(_PREDICT, request, "PredictResponse", timeout)
        answer = yield from self._insist(rpc)
        return {entry.key: array_of(entry.value) for entry in answer.outputs}

    def _insist(self, rpc: _Rpc) -> Steps[Any]:
        """Again while the server says that it is busy: what it turned away it has not computed."""
        left = self._seconds(rpc)
        for _ in range(self.retries):
            try:
                return (yield rpc)
            except ModelNotReady:
                wait = RETRY_SECONDS * (1 + random.random() / 2)
                if wait > left:
                    raise
            left -= wait
            yield Pause(wait)
        return (yield rpc)

    def _seconds(self, rpc: _Rpc) -> float:
        return self.timeout if rpc.timeout is None else rpc.timeout

    def _calls(self, rpc: _Rpc) -> Any:
        return self._channel.unary_unary(  # type: ignore[attr-defined]
            rpc.method,
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=_CLASSES[f"tensorflow.serving.{rpc.answer}"].FromString,
        )(rpc.request, timeout=self._seconds(rpc), metadata=self._metadata)

    def _known(self, error: grpc.RpcError, rpc: _Rpc) -> ClientError:
        """What an error of gRPC means; the texts are those of the REST client."""
        code, text = error.code(), error.details() or ""
        of = grpc.StatusCode
        if code is of.UNAVAILABLE and "failed to connect" in text.lower():
            return ServerUnreachable(
                f"No server answers at {self.address}; start one with `python -m serving`, or "
                "correct the address."
            )
        if code in (of.UNAVAILABLE, of.RESOURCE_EXHAUSTED):
            return ModelNotReady(
                f"The server at {self.address} is not ready, try again later: {text}"
            )
        if code is of.NOT_FOUND:
            return ModelNotFound(
                f"The server at {self.address} has no such model; check the name and the version, "
                f"or make an export with `python -m training`: {text}"
            )
        if code in (of.UNAUTHENTICATED, of.PERMISSION_DENIED):
            return AccessDenied(
                f"The server at {self.address} wants a key; set {API_KEY} to one that it knows: "
                f"{text}"
            )
        if code is of.DEADLINE_EXCEEDED:
            return RequestTimedOut(
                f"The server at {self.address} did not answer within {self._seconds(rpc):g} "
                f"seconds; ask for less (shorter input, fewer tokens) or allow more time: {text}"
            )
        if code in (of.INVALID_ARGUMENT, of.FAILED_PRECONDITION, of.OUT_OF_RANGE):
            return InvalidRequest(f"The server refused the request; correct the input: {text}")
        return ServerFailed(
            f"The server at {self.address} failed with {code.name}; see its log: {text}"
        )


class GrpcClient(_GrpcCalls, Closes):
    """Talks to one server by gRPC. Threads may share an instance.

    `timeout` is in seconds, for a whole call, and the server is told of it. `api_key`, `retries`
    and `sleep` are as for `serving.client.Client`; `credentials` make it TLS. What the server
    turns away with UNAVAILABLE or RESOURCE_EXHAUSTED is asked again after about a second.
    """

    def _open(self, address: str, credentials: Any, options: Any, sleep: Any) -> None:
        self._channel = (
            grpc.secure_channel(address, credentials, options)
            if credentials
            else grpc.insecure_channel(address, options)
        )
        self._sleep = sleep or time.sleep

    def close(self) -> None:
        self._channel.close()

    def _take(self, steps: Steps[Any]) -> Any:
        return take(steps, self._send, self._sleep)

    def _send(self, rpc: _Rpc) -> Any:
        try:
            return self._calls(rpc)
        except grpc.RpcError as error:
            raise self._known(error, rpc) from error


class AsyncGrpcClient(_GrpcCalls, ClosesInLoop):
    """`GrpcClient` for an event loop: the same settings and methods, each method to be awaited."""

    def _open(self, address: str, credentials: Any, options: Any, sleep: Any) -> None:
        self._channel = (
            grpc.aio.secure_channel(address, credentials, options)
            if credentials
            else grpc.aio.insecure_channel(address, options)
        )
        self._sleep = sleep or asyncio.sleep

    async def close(self) -> None:
        await self._channel.close()

    async def _take(self, steps: Steps[Any]) -> Any:
        return await take_in_loop(steps, self._send, self._sleep)

    async def _send(self, rpc: _Rpc) -> Any:
        try:
            return await self._calls(rpc)
        except grpc.RpcError as error:
            raise self._known(error, rpc) from error


_CODES = {code.value[0]: code.name for code in grpc.StatusCode}


def _require_outputs(
    model: str, kind: str, found: Mapping[str, np.ndarray], wanted: frozenset[str]
) -> None:
    if not wanted <= found.keys():
        raise InvalidRequest(
            f"Model {model!r} is no {kind}: its answer lacks one of {', '.join(sorted(wanted))}; "
            "choose another model."
        )
