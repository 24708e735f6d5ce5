"""Sends the cases to a server and gives every difference."""

import json
import re
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import httpx
import numpy as np
import tensorflow as tf
from google.protobuf import json_format, text_format
from tensorflow.core.framework import tensor_pb2
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    model_management_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
    regression_pb2,
)

from tests.conformance.case import ERRORS, Case, Raw
from tests.conformance.grpc_cases import grpc_cases
from tests.conformance.rest_cases import rest_cases
from tests.serving.toy_exports import example

TIMEOUT_SECONDS = 20
REST, GRPC = rest_cases(), grpc_cases()
REQUESTS = {
    "Predict": predict_pb2.PredictRequest,
    "Classify": classification_pb2.ClassificationRequest,
    "Regress": regression_pb2.RegressionRequest,
    "MultiInference": inference_pb2.MultiInferenceRequest,
    "GetModelStatus": get_model_status_pb2.GetModelStatusRequest,
    "GetModelMetadata": get_model_metadata_pb2.GetModelMetadataRequest,
    "HandleReloadConfigRequest": model_management_pb2.ReloadConfigRequest,
}


@dataclass(frozen=True)
class Answer:
    """What came: `is_as_expected` or not, and both sides for people."""

    address: str
    case: Case
    is_as_expected: bool
    expected: str
    received: str


def ask(address: str, features: Collection[str] = (), folder: str = "") -> list[Answer]:
    """Asks the server at `address`, a URL of REST or HOST:PORT of gRPC.

    `features` are those of `models.FEATURES` that it was started with; `folder` holds the models as
    it sees them, and without that nothing is reloaded.
    """
    with _asking(address, folder) as one:
        cases = REST if "://" in address else GRPC
        given = {*features, *(["reload"] if folder else [])}
        return [Answer(address, case, *one(case)) for case in cases if _is_for(case, given)]


def table(answers: Iterable[Answer]) -> str:
    """Every difference, then the rows of the error table with the requests that look at each."""
    answers = list(answers)
    lines = []
    for answer in answers:
        if not answer.is_as_expected:
            request = "" if answer.case.request is None else f" {answer.case.request}"
            lines += [
                f"{answer.address} {answer.case.name}{request[:300]}",
                f"    expected {answer.expected}",
                f"    received {answer.received}",
            ]
    lines.append(f"{'error':44} requests  differ")
    for row in ERRORS:
        found = [answer for answer in answers if row in answer.case.rows]
        num_differ = sum(not answer.is_as_expected for answer in found)
        lines.append(f"{row:44} {len(found):8} {num_differ:7}")
    num_differ = sum(not answer.is_as_expected for answer in answers)
    return "\n".join([*lines, f"{len(answers)} requests, {num_differ} differences"])


def _is_for(case: Case, features: Collection[str]) -> bool:
    if case.needs.startswith("no "):
        return case.needs.removeprefix("no ") not in features
    return not case.needs or case.needs in features


@contextmanager
def _asking(address: str, folder: str) -> Iterator[Any]:
    if "://" in address:
        with httpx.Client(base_url=address, timeout=TIMEOUT_SECONDS, trust_env=False) as client:
            yield lambda case: _ask_rest(client, case)
    else:
        with grpc.insecure_channel(address) as channel:
            yield lambda case: _ask_grpc(channel, folder, case)


def _ask_rest(client: httpx.Client, case: Case) -> tuple[bool, str, str]:
    verb, path = case.name.split()
    body = case.request
    content = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    response = client.request(verb, path, content=content, headers=dict(case.sent_headers))
    received = _parsed(response.content)
    error = received.get("error") if isinstance(received, dict) else None
    raw = response.content.decode(errors="replace")
    headers = {name: response.headers.get(name) for name in case.headers}
    is_as_expected = (
        response.status_code == case.status
        and all(_is_header(case.headers[name], headers[name]) for name in headers)
        and _fits(case.answer, raw if error is None else error, received, raw)
    )
    return (
        is_as_expected,
        f"{case.status} {_shown(case.answer)} {dict(case.headers) or ''}",
        f"{response.status_code} {raw[:500]} {headers or ''}",
    )


def _ask_grpc(channel: grpc.Channel, folder: str, case: Case) -> tuple[bool, str, str]:
    method = case.name
    has_models = method in ("GetModelStatus", "HandleReloadConfigRequest")
    service = (
        model_service_pb2_grpc.ModelServiceStub(channel)
        if has_models
        else prediction_service_pb2_grpc.PredictionServiceStub(channel)
    )
    text, received, status = None, None, "OK"
    try:
        response = getattr(service, method)(
            _request(method, case.request, folder), timeout=TIMEOUT_SECONDS
        )
        received = _values(response)
    except grpc.RpcError as error:
        text, status = error.details(), error.code().name
    return (
        status == case.status and _fits(case.answer, text, received, ""),
        f"{case.status} {_shown(case.answer)}",
        f"{status} {received if text is None else text}",
    )


def _request(method: str, fields: dict[str, Any], folder: str) -> Any:
    request = REQUESTS[method]()
    if "config" in fields:
        text_format.Parse(fields["config"].replace("{folder}", folder), request.config)
    if "name" in fields:
        request.model_spec.SetInParent()
        request.model_spec.name = fields["name"]
        request.model_spec.signature_name = fields.get("signature_name", "")
        if "version" in fields:
            request.model_spec.version.value = fields["version"]
        if "label" in fields:
            request.model_spec.version_label = fields["label"]
    for alias, given in fields.get("inputs", {}).items():
        if isinstance(given, str):
            request.inputs[alias].CopyFrom(text_format.Parse(given, tensor_pb2.TensorProto()))
        else:
            request.inputs[alias].CopyFrom(tf.make_tensor_proto(given[1], given[0]))
    for name in ("output_filter", "metadata_field", "metric_names"):
        if name in fields:
            getattr(request, name).extend(fields[name])
    for name, signature, task_method in fields.get("tasks", ()):
        task = request.tasks.add(method_name=task_method)
        task.model_spec.name, task.model_spec.signature_name = name, signature
    if "examples" in fields:
        target = request.input.example_list
        if "context" in fields:
            target = request.input.example_list_with_context
            target.context.ParseFromString(example(**fields["context"]))
        for features in fields["examples"]:
            target.examples.add().ParseFromString(example(**features))
    return request


def _values(response: Any) -> dict[str, Any]:
    """What the cases compare of a reply."""
    found: dict[str, Any] = {}
    if hasattr(response, "model_spec"):
        found["version"] = response.model_spec.version.value
        found["signature_name"] = response.model_spec.signature_name
    if isinstance(response, predict_pb2.PredictResponse):
        found |= {"fields": {}, "outputs": sorted(response.outputs)}
        found["has_shapes"] = all(p.HasField("tensor_shape") for p in response.outputs.values())
        for alias, proto in response.outputs.items():
            found[alias] = _plain(tf.make_ndarray(proto).tolist())
            for field, value in proto.ListFields():
                if field.name not in ("dtype", "tensor_shape"):
                    found["fields"][alias] = [field.name, len(value)]
    elif isinstance(response, classification_pb2.ClassificationResponse):
        classes = [c for row in response.result.classifications for c in row.classes]
        found |= {"scores": [c.score for c in classes], "labels": [c.label for c in classes]}
    elif isinstance(response, regression_pb2.RegressionResponse):
        found["values"] = [r.value for r in response.result.regressions]
    elif isinstance(response, inference_pb2.MultiInferenceResponse):
        found["results"] = [
            [
                result.model_spec.signature_name,
                result.model_spec.version.value,
                [
                    [c.label, c.score]
                    for row in result.classification_result.classifications
                    for c in row.classes
                ]
                or [r.value for r in result.regression_result.regressions],
            ]
            for result in response.results
        ]
    elif isinstance(response, get_model_status_pb2.GetModelStatusResponse):
        found["states"] = [
            [e.version, e.state, e.status.error_code] for e in response.model_version_status
        ]
        found["has_status"] = all(e.HasField("status") for e in response.model_version_status)
    elif isinstance(response, get_model_metadata_pb2.GetModelMetadataResponse):
        signatures = get_model_metadata_pb2.SignatureDefMap()
        response.metadata["signature_def"].Unpack(signatures)
        found["signatures"] = json_format.MessageToDict(
            signatures, preserving_proto_field_name=True
        )["signature_def"]
    elif isinstance(response, model_management_pb2.ReloadConfigResponse):
        found["code"] = response.status.error_code
        found["metrics"] = [[m.name, m.int64_value_increase] for m in response.metric]
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return list(map(_plain, value))
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _fits(expected: Any, text: str | None, received: Any, raw: str) -> bool:
    if expected is None:
        return True
    if isinstance(expected, Raw):
        return "".join(raw.split()) == "".join(expected.split())
    if isinstance(expected, str):
        return text == expected
    if isinstance(expected, re.Pattern):
        return text is not None and bool(expected.search(text))
    return _equal(expected, received)


def _is_header(expected: str | None, received: str | None) -> bool:
    """Parameters, as `; charset=utf-8`, are not looked at."""
    return expected == (received.partition(";")[0] if received is not None else None)


def _equal(expected: Any, received: Any) -> bool:
    if isinstance(expected, dict):
        return isinstance(received, dict) and all(
            key in received and _equal(value, received[key]) for key, value in expected.items()
        )
    if isinstance(expected, list):
        return (
            isinstance(received, list)
            and len(expected) == len(received)
            and all(map(_equal, expected, received))
        )
    if isinstance(expected, bool) or isinstance(received, bool):
        return expected is received
    if isinstance(expected, int | float) and isinstance(received, int | float):
        return expected == received or bool(np.isclose(expected, received, rtol=1e-6, atol=1e-5))
    return bool(expected == received)


def _parsed(content: bytes) -> Any:
    try:
        return json.loads(content.decode(errors="replace"))
    except json.JSONDecodeError:
        return None


def _shown(answer: Any) -> str:
    return answer.pattern if isinstance(answer, re.Pattern) else str(answer)
