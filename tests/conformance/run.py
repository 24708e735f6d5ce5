"""Sends the cases to a server and gives every difference."""

import json
import re
from typing import Any

import grpc
import httpx
import numpy as np
import tensorflow as tf
from google.protobuf import any_pb2
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_management_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
    regression_pb2,
)

from tests.conformance.cases import GRPC, REST
from tests.serving.toy_exports import example

TIMEOUT_SECONDS = 20
REQUESTS = {
    "Predict": predict_pb2.PredictRequest,
    "Classify": classification_pb2.ClassificationRequest,
    "Regress": regression_pb2.RegressionRequest,
    "GetModelStatus": get_model_status_pb2.GetModelStatusRequest,
    "GetModelMetadata": get_model_metadata_pb2.GetModelMetadataRequest,
    "HandleReloadConfigRequest": model_management_pb2.ReloadConfigRequest,
}


def differences(rest: str = "", address: str = "") -> list[tuple[str, str, str]]:
    """(case, expected, received) of each that differs; `rest` is a URL, `address` gRPC's."""
    found = []
    if rest:
        with httpx.Client(base_url=rest, timeout=TIMEOUT_SECONDS, trust_env=False) as client:
            for case in REST:
                verb, path, body, status, answer = case
                content = body if isinstance(body, bytes) else json.dumps(body).encode()
                response = client.request(verb, path, content=None if body is None else content)
                received = _parsed(response.content)
                text = received.get("error") if isinstance(received, dict) else None
                if response.status_code != status or not _fits(answer, text, received):
                    shown = f"{verb} {path} {content.decode()[:80] if body is not None else ''}"
                    found.append((shown, f"{status} {_shown(answer)}",
                                  f"{response.status_code} {response.text[:300]}"))  # fmt: skip
    if address:
        with grpc.insecure_channel(address) as channel:
            prediction = prediction_service_pb2_grpc.PredictionServiceStub(channel)
            model = model_service_pb2_grpc.ModelServiceStub(channel)
            for method, fields, code, answer in GRPC:
                call = getattr(prediction, method, None) or getattr(model, method)
                text, received, status = None, None, "OK"
                try:
                    received = _values(call(_request(method, fields), timeout=TIMEOUT_SECONDS))
                except grpc.RpcError as error:
                    text, status = error.details(), error.code().name
                if status != code or not _fits(answer, text, received):
                    found.append((f"{method} {fields}", f"{code} {_shown(answer)}",
                                  f"{status} {text or received}"))  # fmt: skip
    return found


def _request(method: str, fields: dict[str, Any]) -> Any:
    request = REQUESTS[method]()
    if "name" in fields:
        request.model_spec.SetInParent()
        request.model_spec.name = fields["name"]
        request.model_spec.signature_name = fields.get("signature_name", "")
        if "version" in fields:
            request.model_spec.version.value = fields["version"]
        if "label" in fields:
            request.model_spec.version_label = fields["label"]
    for alias, (dtype, value) in fields.get("inputs", {}).items():
        request.inputs[alias].CopyFrom(tf.make_tensor_proto(value, dtype))
    for name in ("output_filter", "metadata_field"):
        if name in fields:
            getattr(request, name).extend(fields[name])
    for features in fields.get("examples", ()):
        request.input.example_list.examples.add().ParseFromString(example(**features))
    return request


def _values(response: Any) -> dict[str, Any]:
    """What the cases compare of a reply."""
    found: dict[str, Any] = {}
    if hasattr(response, "model_spec"):
        found["version"] = response.model_spec.version.value
        found["signature_name"] = response.model_spec.signature_name
    if isinstance(response, predict_pb2.PredictResponse):
        for alias, proto in response.outputs.items():
            values = tf.make_ndarray(proto).tolist()
            found[alias] = [v.decode() if isinstance(v, bytes) else v for v in values]
    elif isinstance(response, classification_pb2.ClassificationResponse):
        classes = [c for row in response.result.classifications for c in row.classes]
        found |= {"scores": [c.score for c in classes], "labels": [c.label for c in classes]}
    elif isinstance(response, regression_pb2.RegressionResponse):
        found["values"] = [r.value for r in response.result.regressions]
    elif isinstance(response, get_model_status_pb2.GetModelStatusResponse):
        found["states"] = [[e.version, e.state] for e in response.model_version_status]
    elif isinstance(response, get_model_metadata_pb2.GetModelMetadataResponse):
        packed: any_pb2.Any = response.metadata["signature_def"]
        signatures = get_model_metadata_pb2.SignatureDefMap()
        packed.Unpack(signatures)
        found["signatures"] = sorted(signatures.signature_def)
    return found


def _fits(expected: Any, text: str | None, received: Any) -> bool:
    if expected is None:
        return True
    if isinstance(expected, str):
        return text == expected
    if isinstance(expected, re.Pattern):
        return text is not None and bool(expected.search(text))
    return _equal(expected, received)


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
        return bool(np.isclose(expected, received, rtol=0, atol=1e-5))
    return bool(expected == received)


def _parsed(content: bytes) -> Any:
    try:
        return json.loads(content.decode(errors="replace"))
    except json.JSONDecodeError:
        return None


def _shown(answer: Any) -> str:
    return answer.pattern if isinstance(answer, re.Pattern) else str(answer)
