"""The gRPC front end: TensorFlow Serving's PredictionService and ModelService on the event loop."""

import logging
from collections.abc import Callable
from typing import Any

import grpc
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from model.signatures import SERVING_DEFAULT
from serving import inference
from serving.codec import tensor_to_proto
from serving.errors import INTERNAL_TEXT, Code, ServingError, as_serving_error, invalid_argument
from serving.repository import Repository
from serving.service import Service

log = logging.getLogger(__name__)

MAX_MESSAGE_BYTES = 2**31 - 1
MAX_ERROR_BYTES = 1024

OPTIONS = [
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    # Shared ports would let a second server start unseen and take half of the requests.
    ("grpc.so_reuseport", 0),
]


def create_server(service: Service) -> grpc.aio.Server:
    server = grpc.aio.server(options=OPTIONS)
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(
        PredictionService(service), server
    )
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(ModelService(service), server)
    return server


class PredictionService(prediction_service_pb2_grpc.PredictionServiceServicer):
    def __init__(self, service: Service) -> None:
        self._service = service

    async def Predict(self, request: Any, context: Any) -> predict_pb2.PredictResponse:
        return await _answer(self._service, context, _predict, request)

    async def GetModelMetadata(
        self, request: Any, context: Any
    ) -> get_model_metadata_pb2.GetModelMetadataResponse:
        return await _answer(self._service, context, _metadata, request)

    async def Classify(self, request: Any, context: Any) -> None:
        await _refuse(context, "Classify")

    async def Regress(self, request: Any, context: Any) -> None:
        await _refuse(context, "Regress")

    async def MultiInference(self, request: Any, context: Any) -> None:
        await _refuse(context, "MultiInference")


class ModelService(model_service_pb2_grpc.ModelServiceServicer):
    def __init__(self, service: Service) -> None:
        self._service = service

    async def GetModelStatus(
        self, request: Any, context: Any
    ) -> get_model_status_pb2.GetModelStatusResponse:
        return await _answer(self._service, context, _status, request)

    async def HandleReloadConfigRequest(self, request: Any, context: Any) -> None:
        await _refuse(context, "HandleReloadConfigRequest")


async def _answer(
    service: Service, context: Any, work: Callable[[Repository, Any], Any], request: Any
) -> Any:
    """The one place where an exception becomes a gRPC status."""
    try:
        return await service.run(work, request)
    except Exception as error:
        known = as_serving_error(error)
        if known is None:
            log.exception("%s failed", type(request).__name__)
            known = ServingError(Code.INTERNAL, INTERNAL_TEXT)
    await context.abort(grpc.StatusCode[known.code.name], _cut(known.message))


async def _refuse(context: Any, method: str) -> None:
    await context.abort(
        grpc.StatusCode.UNIMPLEMENTED,
        f"This server has no {method} yet; call Predict, or run tensorflow_model_server "
        "(python -m serving --engine binary).",
    )


def _cut(message: str) -> str:
    text = message.encode(errors="replace")
    if len(text) <= MAX_ERROR_BYTES:
        return text.decode()
    return text[:MAX_ERROR_BYTES].decode(errors="ignore") + "...TRUNCATED"


def _target(request: Any) -> tuple[str, int | None, str | None]:
    """(name, version, label) of a request's model_spec."""
    if not request.HasField("model_spec"):
        raise invalid_argument("Missing ModelSpec")
    spec = request.model_spec
    if not spec.name:
        raise invalid_argument("ModelSpec has no name specified.")
    choice = spec.WhichOneof("version_choice")
    version = spec.version.value if choice == "version" else None
    label = spec.version_label if choice == "version_label" else None
    return spec.name, version, label


def _predict(
    repository: Repository, request: predict_pb2.PredictRequest
) -> predict_pb2.PredictResponse:
    name, version, label = _target(request)
    with repository.acquire(name, version, label) as servable:
        outputs = inference.predict(servable, request)
        version = servable.version
    spec = model_pb2.ModelSpec(
        name=name, signature_name=request.model_spec.signature_name or SERVING_DEFAULT
    )
    spec.version.value = version
    return predict_pb2.PredictResponse(
        model_spec=spec,
        outputs={alias: tensor_to_proto(array) for alias, array in outputs.items()},
    )


def _metadata(
    repository: Repository, request: get_model_metadata_pb2.GetModelMetadataRequest
) -> get_model_metadata_pb2.GetModelMetadataResponse:
    name, version, label = _target(request)
    if not request.metadata_field:
        raise invalid_argument("GetModelMetadataRequest must specify at least one metadata_field")
    for field in request.metadata_field:
        if field != "signature_def":
            raise invalid_argument(f"Metadata field {field} is not supported")
    response = get_model_metadata_pb2.GetModelMetadataResponse()
    with repository.acquire(name, version, label) as servable:
        signatures = get_model_metadata_pb2.SignatureDefMap(signature_def=servable.signatures)
        response.model_spec.name = name
        response.model_spec.version.value = servable.version
    response.metadata["signature_def"].Pack(signatures)
    return response


def _status(
    repository: Repository, request: get_model_status_pb2.GetModelStatusRequest
) -> get_model_status_pb2.GetModelStatusResponse:
    name, version, _ = _target(request)  # a label is not looked at, as in TensorFlow Serving
    response = get_model_status_pb2.GetModelStatusResponse()
    for number, state, error in repository.statuses(name, version):
        entry = response.model_version_status.add(version=number, state=state.value)
        if error:
            entry.status.error_code = error.code.number
            entry.status.error_message = error.message
    return response
