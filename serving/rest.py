"""The REST front end: TensorFlow Serving's URLs below /v1/, and two health pages of ours.

One function, `_api`, takes every request below /v1/ and is the only place where an exception
becomes a response. There is no router: the protocol's rules for URLs (case-blind, matched before
percent-decoding, 400 for a wrong verb) are not those of one, and each of its layers costs time.
"""

import asyncio
import json
import logging
import re
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import unquote

import orjson
from google.protobuf import json_format
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send
from tensorflow_serving.apis import get_model_metadata_pb2

from model.signatures import SERVING_DEFAULT
from serving import codec, examples, inference, json_text, metrics, openai
from serving.config import HEALTH_PAGES, MAX_VERSION, ServerConfig
from serving.errors import (
    INTERNAL_TEXT,
    Code,
    ServingError,
    as_serving_error,
    invalid_argument,
)
from serving.repository import Repository
from serving.service import Service, is_small, needs_no_thread
from serving.timing import Timing

log = logging.getLogger(__name__)

CORS_HEADERS = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Allow-Methods": "POST, GET",
    "Access-Control-Allow-Headers": "Content-Type",
}

_SPEC = r"(?:/versions/(?P<version>\d+)|/labels/(?P<label>[^/:]+))?"
RUN_PATH = re.compile(
    rf"/v1/models/(?P<name>[^/:]+){_SPEC}:(?P<method>predict|classify|regress)",
    re.IGNORECASE | re.ASCII,
)
READ_PATH = re.compile(
    rf"/v1/models(?:/(?P<name>[^/:]+))?{_SPEC}(?P<metadata>/metadata)?", re.IGNORECASE | re.ASCII
)


DEFAULTS = ServerConfig()


@dataclass(frozen=True)
class Call:
    """A request for inference, as it goes to a thread."""

    method: str  # predict, classify or regress
    name: str
    version: int | None
    label: str | None
    body: bytes
    is_gzip: bool
    timing: Timing


def create_app(
    service: Service, metrics_path: str | None = None, config: ServerConfig = DEFAULTS
) -> ASGIApp:
    """`metrics_path`: where Prometheus may read the metrics; None is nowhere.

    Leaves `model_name`, `model_version` (once one has answered) and `timing` on `request.state`.
    """

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
            return
        request, path = Request(scope, receive, send), scope["path"]
        if path in HEALTH_PAGES:
            response = _health(service, request)
        elif path == metrics_path:
            response = Response(metrics.page(), media_type="text/plain")
        else:
            response = await _api(service, config, request)
        await response(scope, receive, send)

    return app


async def _lifespan(receive: Receive, send: Send) -> None:
    for phase in ("startup", "shutdown"):  # of which nothing is to be done
        await receive()
        await send({"type": f"lifespan.{phase}.complete"})


def _health(service: Service, request: Request) -> Response:
    if request.method not in ("GET", "HEAD"):
        return Response(status_code=405, headers={"Allow": "GET, HEAD"})
    if request.scope["path"] == "/healthz":
        return _json(200, {"status": "alive"})  # the process lives and its event loop turns
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


async def _api(service: Service, config: ServerConfig, request: Request) -> Response:
    path = request.scope["raw_path"].decode("latin-1").partition("?")[0]
    if not path.lower().startswith("/v1/"):
        return Response("<h1>Not Found</h1>", 404, media_type="text/html")
    try:
        if request.method != "OPTIONS" and openai.is_openais(path):
            response = await openai.answer(service, config, request)
        else:
            response = await _answer(service, config, request, path)
    except ClientDisconnect:
        return Response(status_code=Code.CANCELLED.http_status)  # nobody reads it
    except Exception as error:
        if openai.has_openais_form(path, request.headers):
            response = openai.error_response(error)
        else:
            known = as_serving_error(error)
            if known is None:
                log.exception("%s %s failed", request.method, path)
                known = ServingError(Code.INTERNAL, INTERNAL_TEXT)
            response = _error(known)
    if config.rest_api_enable_cors_support:
        response.headers.update(CORS_HEADERS)
    return response


async def _answer(service: Service, config: ServerConfig, request: Request, path: str) -> Response:
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
        return Response(status_code=400, media_type="application/json")
    if match["name"] is None:
        if path.lower() != "/v1/models":
            raise invalid_argument("Missing model name in request.")
        return _json_body(await service.run(_models))
    name = unquote(match["name"])
    label = unquote(match["label"]) if match["label"] else None
    request.state.model_name = name

    if request.method == "POST":
        timing = request.state.timing = Timing()
        call = Call(
            method=match["method"].lower(),
            name=name,
            version=version,
            label=label,
            body=await request.body(),
            is_gzip="gzip" in request.headers.get("content-encoding", ""),
            timing=timing,
        )
        try:
            with _counted(call):
                is_predict = call.method == "predict" and not call.is_gzip
                if is_predict and needs_no_thread(config, len(call.body)):
                    content = await service.run_in_loop(_predict_in_loop, call, config)
                else:
                    content = await service.run(_infer, call, config)
        finally:  # of an error too, once a version was found
            request.state.model_version = timing.version
    elif match["metadata"]:
        content, request.state.model_version = await service.run(_metadata, name, version, label)
    else:
        content = await service.run(_status, name, version)
        if openai.CLIENT_HEADER in request.headers and match["version"] is None:
            content = _pretty(openai.model_object(name))  # it is there, and asked for in that form
    return _json_body(content)


@contextmanager
def _counted(call: Call) -> Iterator[None]:
    start = time.perf_counter()
    try:
        yield
    except Exception as error:
        known = as_serving_error(error)
        metrics.count_request(call.name, known.code.name if known else Code.INTERNAL.name)
        raise
    seconds = time.perf_counter() - start
    metrics.count_request(call.name, Code.OK.name)
    metrics.observe_request(call.name, call.method, "REST", call.timing, seconds)
    metrics.observe_runtime(
        call.name, call.method.capitalize(), call.timing.queue + call.timing.compute
    )


def _infer(repository: Repository, call: Call, config: ServerConfig) -> bytes:
    """The order of checks is the protocol's: JSON, signature name, model, signature, inputs."""
    timing, start = call.timing, time.perf_counter()
    request, signature_name = _request_of(call, config)
    timeout = config.rest_api_timeout_in_ms / 1000 or None
    if call.method == "predict":
        _check_rows(request, "instances", config)
        with repository.acquire(call.name, call.version, call.label) as servable:
            inputs, row_format = _inputs_of(request, servable, signature_name, config)
            timing.parse = time.perf_counter() - start
            outputs = servable.run(signature_name, inputs, timeout=timeout, timing=timing)
        start = time.perf_counter()
        content = codec.outputs_to_json(outputs, row_format=row_format)
    else:
        _check_rows(request, "examples", config)
        serialized = examples.examples_from_json(request)
        codec.check_texts(_texts_of(request), config.max_characters)
        timing.parse = time.perf_counter() - start
        metrics.observe_examples(call.name, len(serialized))
        with repository.acquire(call.name, call.version, call.label) as servable:
            if call.method == "classify":
                classes = inference.classify(
                    servable,
                    signature_name,
                    serialized,
                    timeout=timeout,
                    timing=timing,
                    check_method_name=config.enable_signature_method_name_check,
                )
            else:
                values = inference.regress(
                    servable,
                    signature_name,
                    serialized,
                    timeout=timeout,
                    timing=timing,
                    check_method_name=config.enable_signature_method_name_check,
                )
        start = time.perf_counter()
        if call.method == "classify":
            content = examples.classifications_to_json(classes)
        else:
            content = examples.regressions_to_json(values)
    timing.serialize = time.perf_counter() - start
    return content


async def _predict_in_loop(repository: Repository, call: Call, config: ServerConfig) -> bytes:
    """As `_infer`, for a small request of a model whose runs are batched."""
    timing, start = call.timing, time.perf_counter()
    request, signature_name = _request_of(call, config)
    _check_rows(request, "instances", config)
    with repository.acquire(call.name, call.version, call.label) as servable:
        inputs, row_format = _inputs_of(request, servable, signature_name, config)
        timing.parse = time.perf_counter() - start
        timeout = config.rest_api_timeout_in_ms / 1000 or None
        outputs = await servable.run_without_thread(
            signature_name, inputs, timeout=timeout, timing=timing
        )
    start = time.perf_counter()
    to_json = partial(codec.outputs_to_json, outputs, row_format=row_format)
    content = to_json() if is_small(outputs.values()) else await asyncio.to_thread(to_json)
    timing.serialize = time.perf_counter() - start
    return content


def _request_of(call: Call, config: ServerConfig) -> tuple[dict[str, Any], str]:
    """The body's object, and the name of the signature that it wants."""
    body = _unpack(call.body, config.max_inflated_bytes) if call.is_gzip else call.body
    request = json_text.parse(body, config.max_json_depth)
    if not isinstance(request, dict):
        raise invalid_argument(f"{json_text.shown(request)} Is not object")
    signature_name = request.get("signature_name", "")
    if not isinstance(signature_name, str):
        raise invalid_argument(
            f"{json_text.shown(request)} not formatted correctly. "
            "'signature_name' key must be a string value."
        )
    return request, signature_name


def _inputs_of(
    request: dict[str, Any], servable: Any, signature_name: str, config: ServerConfig
) -> tuple[codec.Arrays, bool]:
    """The arrays to feed by alias, and whether they came row by row."""
    types = _input_types(servable.signatures, signature_name)
    inputs, row_format = codec.inputs_from_json(request, types)
    for array in inputs.values():
        if array.dtype == object:
            codec.check_texts(array.ravel().tolist(), config.max_characters)
    if config.enable_signature_method_name_check:
        inference.check_predict_method(servable, signature_name)
    return inputs, row_format


def _input_types(signatures: Any, name: str) -> dict[str, int]:
    """The DataTypes of the inputs of a signature for predict, by alias."""
    signature = signatures.get(name or SERVING_DEFAULT)
    if signature is None:
        raise invalid_argument(
            f'Serving signature name: "{name or SERVING_DEFAULT}" not found in signature def'
        )
    if not signature.inputs:
        raise invalid_argument(f"Failed to get input map for signature: {name or 'DEFAULT'}")
    return {alias: info.dtype for alias, info in signature.inputs.items()}


def _check_rows(request: dict[str, Any], key: str, config: ServerConfig) -> None:
    rows = request.get(key)
    if isinstance(rows, list) and len(rows) > config.max_rows:
        raise invalid_argument(
            f"'{key}' holds {len(rows)} rows; --max-rows allows {config.max_rows} in a request."
        )


def _texts_of(request: dict[str, Any]) -> Iterator[bytes]:
    for features in (request.get("context", {}), *request["examples"]):
        for content in features.values():
            for value in content if isinstance(content, list) else [content]:
                if isinstance(value, str | dict):
                    yield codec.to_bytes(value)


def _unpack(body: bytes, max_bytes: int) -> bytes:
    """A gzip body; empty when it is broken, cut off or too large, as in TensorFlow Serving."""
    unpacker = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
    try:
        unpacked = unpacker.decompress(body, max_bytes)
    except zlib.error:
        return b""
    return unpacked if unpacker.eof else b""


def _models(repository: Repository) -> bytes:
    """Every configured model; `state` is that of the version that answers, or of the newest."""
    states = {model.name: model.state.name for model in repository.readiness()[1]}
    models = [
        {
            "name": name,
            "versions": [
                {"version": str(number), "state": state.name}
                for number, state, _ in _statuses(repository, name)
            ],
            "labels": {label: str(number) for label, number in repository.labels(name).items()},
            "state": states.get(name, "START"),
        }
        for name in repository.names()
    ]
    data = [openai.model_object(name) for name, state in states.items() if state == "AVAILABLE"]
    return _pretty({"models": models, "object": "list", "data": data})


def _statuses(repository: Repository, name: str) -> list[Any]:
    try:
        return repository.statuses(name)
    except ServingError:  # no version of it was seen
        return []


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
    return _pretty({"model_version_status": statuses})


def _metadata(
    repository: Repository, name: str, version: int | None, label: str | None
) -> tuple[bytes, int]:
    """The answer and the version that it is about."""
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
    return _pretty(answer), version


def _error(error: ServingError) -> Response:
    # The message may quote bytes that are no UTF-8.
    message = error.message.encode(errors="replace").decode()
    content = _pretty({"error": message}, indent=4)
    return Response(content, error.code.http_status, media_type="application/json")


def _pretty(content: dict[str, Any], indent: int = 1) -> bytes:
    return json.dumps(content, indent=indent, ensure_ascii=False).encode(errors="replace")


def _json_body(content: bytes) -> Response:
    return Response(content, media_type="application/json")


def _json(status: int, content: dict[str, Any]) -> Response:
    return Response(orjson.dumps(content), status, media_type="application/json")
