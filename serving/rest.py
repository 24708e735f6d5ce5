"""The REST front end: TensorFlow Serving's URLs below /v1/, and two health pages of ours.

One function, `_api`, takes every request below /v1/ and is the only place where an exception
becomes a response: the protocol's URL rules (case-blind, matched before percent-decoding, 400 for
a wrong verb) are not those of a router.
"""

import logging
import re
import zlib
from functools import partial
from typing import Any
from urllib.parse import unquote

import orjson
from google.protobuf import json_format
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from tensorflow_serving.apis import get_model_metadata_pb2

from model.signatures import SERVING_DEFAULT
from serving import codec, metrics
from serving.config import MAX_VERSION
from serving.errors import (
    INTERNAL_TEXT,
    Code,
    ServingError,
    as_serving_error,
    invalid_argument,
)
from serving.repository import Repository
from serving.service import Service

log = logging.getLogger(__name__)

VERBS = ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"]
MAX_UNPACKED_BYTES = 100 * 2**20  # of a gzip body

_SPEC = r"(?:/versions/(?P<version>\d+)|/labels/(?P<label>[^/:]+))?"
RUN_PATH = re.compile(
    rf"/v1/models/(?P<name>[^/:]+){_SPEC}:(?P<method>predict|classify|regress)",
    re.IGNORECASE | re.ASCII,
)
READ_PATH = re.compile(
    rf"/v1/models(?:/(?P<name>[^/:]+))?{_SPEC}(?P<metadata>/metadata)?", re.IGNORECASE | re.ASCII
)


def create_app(service: Service, metrics_path: str | None = None) -> Starlette:
    """`metrics_path`: where Prometheus may read the metrics; None is nowhere."""
    monitoring = [Route(metrics_path, _metrics)] if metrics_path else []
    return Starlette(
        routes=[
            Route("/healthz", partial(_healthz, service)),
            Route("/readyz", partial(_readyz, service)),
            *monitoring,
            Route("/{path:path}", partial(_api, service), methods=VERBS),
        ]
    )


async def _healthz(service: Service, request: Request) -> Response:
    """The process lives and its event loop turns."""
    return _json(200, {"status": "alive"})


async def _readyz(service: Service, request: Request) -> Response:
    is_ready, models = service.repository.readiness()
    if service.is_draining:
        status = "draining"
    else:
        has_failed = any(m.state.name == "END" for m in models)
        status = "ready" if is_ready else "failed" if has_failed else "loading"
    body = {
        "status": status,
        "models": [{"name": m.name, "version": m.version, "state": m.state.name} for m in models],
    }
    return _json(200 if status == "ready" else 503, body)


async def _metrics(request: Request) -> Response:
    return Response(metrics.page(), media_type="text/plain")


async def _api(service: Service, request: Request) -> Response:
    path = request.scope["raw_path"].decode("latin-1").partition("?")[0]
    if not path.lower().startswith("/v1/"):
        return Response("<h1>Not Found</h1>", 404, media_type="text/html")
    try:
        return await _answer(service, request, path)
    except ClientDisconnect:
        return Response(status_code=Code.CANCELLED.http_status)  # nobody reads it
    except Exception as error:
        known = as_serving_error(error)
        if known is None:
            log.exception("%s %s failed", request.method, path)
            known = ServingError(Code.INTERNAL, INTERNAL_TEXT)
        message = known.message.encode(errors="replace").decode()  # it may quote invalid UTF-8
        return _json(known.code.http_status, {"error": message})


async def _answer(service: Service, request: Request, path: str) -> Response:
    if request.method == "OPTIONS":
        has_origin = request.headers.get("origin", "").startswith(("http://", "https://"))
        return Response(status_code=200 if has_origin else 400)
    pattern = {"POST": RUN_PATH, "GET": READ_PATH}.get(request.method)
    match = pattern.fullmatch(path) if pattern else None
    if match is None:
        raise invalid_argument(f"Malformed request: {request.method} {path}")
    digits = match["version"].lstrip("0") or "0" if match["version"] else None
    version = int(digits) if digits and len(digits) < 20 else None
    if digits and (version is None or version > MAX_VERSION):
        return Response(status_code=400)
    if match["name"] is None:
        raise invalid_argument("Missing model name in request.")
    name = unquote(match["name"])
    label = unquote(match["label"]) if match["label"] else None

    if request.method == "POST":
        method = match["method"].lower()
        if method != "predict":
            raise ServingError(
                Code.UNIMPLEMENTED,
                f"This server has no {method} yet; call predict, or run tensorflow_model_server "
                "(python -m serving --engine binary).",
            )
        encoding = request.headers.get("content-encoding", "")
        body = await request.body()
        content = await service.run(_predict, name, version, label, body, encoding)
    elif match["metadata"]:
        content = await service.run(_metadata, name, version, label)
    else:
        content = await service.run(_status, name, version)
    return Response(content, media_type="application/json")


def _predict(
    repository: Repository,
    name: str,
    version: int | None,
    label: str | None,
    body: bytes,
    encoding: str,
) -> bytes:
    """The order of checks is the protocol's: JSON, signature name, model, signature, inputs."""
    request = codec.parse_json(_unpack(body) if "gzip" in encoding else body)
    if not isinstance(request, dict):
        raise invalid_argument(f"{codec.shown(request)} Is not object")
    signature_name = request.get("signature_name", "")
    if not isinstance(signature_name, str):
        raise invalid_argument(
            f"{codec.shown(request)} not formatted correctly. "
            "'signature_name' key must be a string value."
        )
    with repository.acquire(name, version, label) as servable:
        signature = servable.signatures.get(signature_name or SERVING_DEFAULT)
        if signature is None:
            raise invalid_argument(
                f'Serving signature name: "{signature_name or SERVING_DEFAULT}" '
                "not found in signature def"
            )
        if not signature.inputs:
            raise invalid_argument(
                f"Failed to get input map for signature: {signature_name or 'DEFAULT'}"
            )
        dtypes = {alias: info.dtype for alias, info in signature.inputs.items()}
        inputs, row_format = codec.inputs_from_json(request, dtypes)
        outputs = servable.run(signature_name, inputs)
    return codec.outputs_to_json(outputs, row_format=row_format)


def _unpack(body: bytes) -> bytes:
    """A gzip body; empty when it is broken, cut off or too large, as in TensorFlow Serving."""
    unpacker = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
    try:
        unpacked = unpacker.decompress(body, MAX_UNPACKED_BYTES)
    except zlib.error:
        return b""
    return unpacked if unpacker.eof else b""


def _status(repository: Repository, name: str, version: int | None) -> bytes:
    statuses = [
        {
            "version": str(number),
            "state": state.name,
            "status": {
                "error_code": error.code.name if error else "OK",
                "error_message": error.message if error else "",
            },
        }
        for number, state, error in repository.statuses(name, version)
    ]
    return orjson.dumps({"model_version_status": statuses})


def _metadata(repository: Repository, name: str, version: int | None, label: str | None) -> bytes:
    with repository.acquire(name, version, label) as servable:
        signatures = get_model_metadata_pb2.SignatureDefMap(signature_def=servable.signatures)
        version = servable.version
    answer = {
        "model_spec": {"name": name, "signature_name": "", "version": str(version)},
        "metadata": {
            "signature_def": json_format.MessageToDict(
                signatures,
                preserving_proto_field_name=True,
                always_print_fields_with_no_presence=True,
            )
        },
    }
    return orjson.dumps(answer)


def _json(status: int, content: dict[str, Any]) -> Response:
    return Response(orjson.dumps(content), status, media_type="application/json")
