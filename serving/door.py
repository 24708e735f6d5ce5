"""What stands before every HTTP request: who asks, how much, how fast, and what is told of it.

Plain ASGI around the REST app. Health pages pass untouched, so that they answer under any load. A
request that is turned away is answered before its body is read, and holds nothing.
"""

import asyncio
import json
import logging
import math
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.datastructures import Headers

from serving import metrics, openai
from serving.config import HEALTH_PAGES, ServerConfig
from serving.errors import INTERNAL_TEXT, Code, ServingError, as_serving_error
from serving.keys import Keys
from serving.rates import RateLimit
from serving.request_ids import REQUEST_ID, request_id_of
from serving.service import Service
from serving.telemetry import Tracer

log = logging.getLogger(__name__)
access_log = logging.getLogger("serving.access")

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

RETRY_SECONDS = 1  # what those turned away are told to wait
SLOWEST = 32 * 1024  # bytes a second that a body must come with after its first seconds
LOOK_SECONDS = 0.05  # how long a request runs before it is asked whether its caller is still there
BODIES = 8  # of the largest size, that may be held at once

TOO_LARGE, TOO_SLOW = 413, 408


class Refused(Exception):
    """An answer without the app: HTTP status, text, further headers."""

    def __init__(self, status: int, message: str, *headers: tuple[bytes, bytes]) -> None:
        super().__init__(message)
        self.status, self.message, self.headers = status, message, headers

    @property
    def code(self) -> str | None:
        """OpenAI's word for it."""
        return {401: "invalid_api_key", 429: "rate_limit_exceeded"}.get(self.status)


class Door:
    """The REST app behind keys, limits and deadlines. `clock` is for tests."""

    def __init__(
        self,
        app: App,
        service: Service,
        config: ServerConfig,
        *,
        rates: RateLimit | None = None,
        tracer: Tracer | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._app, self._service, self._config = app, service, config
        self._keys, self._rates = Keys.from_config(config), rates
        self._tracer, self._clock = tracer, clock
        self._metrics_path = metrics.page_path(config.monitoring_config_file)
        self._held = 0  # bytes of bodies that have come, whole or in part, and are not answered yet

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in HEALTH_PAGES:
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        headers = {k.decode("latin-1"): v.decode("latin-1") for k, v in scope["headers"]}
        request_id = request_id_of(headers)
        answer = _Answer(send, scope, request_id)
        who = ""
        chunks: list[bytes] = []
        try:
            who = self._whose(headers)
            self._admit(scope, headers, who)
            await self._read(headers, receive, chunks)
            chunks[:] = [b"".join(chunks)]
            await self._answer(scope, chunks[0], receive, answer)
        except Refused as refused:
            await answer.refuse(refused)
        except _Gone:
            answer.status = answer.status or Code.CANCELLED.http_status
        finally:
            self._held -= sum(map(len, chunks))
            self._tell(scope, answer, began, request_id, who)

    def _whose(self, headers: dict[str, str]) -> str:
        """Whose request it is. Raises Refused for one without a key that is known."""
        if self._service.is_draining:
            raise _later(503, "The server is shutting down; try again later or elsewhere.")
        try:
            return self._keys.check(headers)
        except ServingError as error:
            header = (b"www-authenticate", b"Bearer")
            raise Refused(error.code.http_status, error.message, header) from error

    def _admit(self, scope: MutableMapping[str, Any], headers: dict[str, str], who: str) -> None:
        """Raises Refused for a request that may not be worked on now."""
        caller = who or _address(scope)
        scope.setdefault("state", {})["caller"] = caller
        is_scraper = scope["path"] == self._metrics_path  # which reads while others are held back
        if self._rates and not is_scraper and (seconds := self._rates.wait(caller)):
            metrics.count_shed("rate")
            raise _later(
                429, f"More than --rate-limit={self._config.rate_limit}; slow down.", seconds
            )
        length = headers.get("content-length", "")
        if length.isdigit() and int(length) > self._config.max_body_bytes:
            raise self._too_large()
        if self._service.is_full or self._holds_much:
            raise self._busy()

    @property
    def _holds_much(self) -> bool:
        return self._held > BODIES * self._config.max_body_bytes

    async def _read(self, headers: dict[str, str], receive: Receive, chunks: list[bytes]) -> None:
        """Fills `chunks` with the whole body and counts it as held.

        Raises Refused for one that is too large, comes too slowly, or is one too many.
        """
        if "content-length" not in headers and "transfer-encoding" not in headers:
            return
        size, began = 0, self._clock()
        while True:
            allowed = self._config.body_timeout_seconds + size / SLOWEST
            left = began + allowed - self._clock()
            try:
                if left <= 0:  # a message that is there already would come through
                    raise TimeoutError
                async with asyncio.timeout(left):
                    message = await receive()
            except TimeoutError:
                raise Refused(
                    TOO_SLOW,
                    "The body did not come in time (--body-timeout-seconds="
                    f"{self._config.body_timeout_seconds:g}).",
                    (b"connection", b"close"),
                ) from None
            if message["type"] == "http.disconnect":
                raise _Gone
            chunk = message.get("body", b"")
            size += len(chunk)
            if size > self._config.max_body_bytes:
                raise self._too_large()
            chunks.append(chunk)
            self._held += len(chunk)
            if self._holds_much:
                raise self._busy()
            if len(chunks) > self._config.max_body_chunks:
                raise Refused(
                    TOO_LARGE,
                    f"The body came in more than {self._config.max_body_chunks:,} pieces "
                    "(--max-body-chunks).",
                )
            if not message.get("more_body"):
                return

    def _busy(self) -> Refused:
        metrics.count_shed("queue")
        return _later(429, "The server is busy: too many requests wait; try again later.")

    def _too_large(self) -> Refused:
        return Refused(
            TOO_LARGE,
            f"The body is larger than {self._config.max_body_bytes:,} bytes (--max-body-bytes); "
            "send fewer rows a request.",
        )

    async def _answer(
        self, scope: MutableMapping[str, Any], body: bytes, receive: Receive, answer: "_Answer"
    ) -> None:
        """Runs the app on the body; ends it at the deadline or when the caller has gone."""
        is_read = False

        async def replay() -> Message:
            nonlocal is_read
            if is_read:
                return await receive()
            is_read = True
            return {"type": "http.request", "body": body, "more_body": False}

        # Most requests are done before they are looked after, and need no task for it.
        watch = _Watch(self._config.request_timeout_seconds, receive, answer)
        timer = asyncio.get_running_loop().call_later(LOOK_SECONDS, watch.start)
        try:
            await self._traced(scope, replay, answer)
        except asyncio.CancelledError:
            if watch.verdict is None:
                raise
            watch.caller.uncancel()
            raise watch.verdict from None
        except Exception as error:
            self._fail(error, answer)
        finally:
            timer.cancel()
            watch.end()

    async def _traced(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if self._tracer is None:
            await self._app(scope, receive, send)
            return
        with self._tracer.span(scope):
            await self._app(scope, receive, send)

    def _fail(self, error: Exception, answer: "_Answer") -> None:
        known = as_serving_error(error)
        if known is None:
            log.error("A request failed", exc_info=error)
            known = ServingError(Code.INTERNAL, INTERNAL_TEXT)
        if not answer.status:
            raise Refused(known.code.http_status, known.message)

    def _tell(
        self,
        scope: MutableMapping[str, Any],
        answer: "_Answer",
        began: float,
        request_id: str,
        who: str,
    ) -> None:
        if not access_log.isEnabledFor(logging.INFO):
            return
        state = scope.get("state", {})
        milliseconds = 1000 * (time.perf_counter() - began)
        fields = {
            "method": scope["method"],
            "path": scope["path"],
            "status": answer.status,
            "milliseconds": round(milliseconds, 3),
            "request_id": request_id,
            "caller": who,
            "address": _address(scope),
            "version": state.get("model_version"),
            **_split(state.get("timing")),
        }
        text = f"{fields['method']} {fields['path']} {answer.status} {milliseconds:.1f} ms"
        access_log.info("%s %s", text, request_id, extra={"fields": fields})


class _Gone(Exception):
    """The caller has hung up."""


class _Watch:
    """Cancels the task it is made in when its deadline is over or its caller has gone; `verdict`
    says which."""

    def __init__(self, seconds: float, receive: Receive, answer: "_Answer") -> None:
        caller = asyncio.current_task()
        if caller is None:
            raise RuntimeError("A request is watched by its task, and this runs in none")
        self.caller = caller
        self.verdict: Refused | _Gone | None = None
        self._seconds = seconds or math.inf
        self._receive, self._answer = receive, answer
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.ensure_future(self._run())

    def end(self) -> None:
        if self._task:
            self._task.cancel()

    async def _run(self) -> None:
        gone = asyncio.ensure_future(_disconnected(self._receive))
        try:
            left = None if self._seconds == math.inf else max(self._seconds - LOOK_SECONDS, 0.0)
            done, _ = await asyncio.wait({gone}, timeout=left)
            if not done and self._answer.status:
                await gone  # what has begun to be sent is sent to its end, while somebody reads it
            self.verdict = (
                _Gone()
                if gone.done()
                else Refused(
                    504,
                    f"Not answered in time (--request-timeout-seconds={self._seconds:g}).",
                )
            )
            self.caller.cancel()
        finally:
            gone.cancel()


class _Answer:
    """`send` that adds our headers and remembers the status."""

    def __init__(self, send: Send, scope: MutableMapping[str, Any], request_id: str) -> None:
        self._send, self._scope, self._request_id = send, scope, request_id
        self.status = 0

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = [*message.get("headers", ()), *self._headers()]
            if self.status in (429, 503) and not any(name == b"retry-after" for name, _ in headers):
                headers += _later(self.status, "").headers  # refused further in
            message["headers"] = headers
        await self._send(message)

    async def refuse(self, refused: Refused) -> None:
        if self.status:
            return
        if openai.has_openais_form(self._scope["path"], Headers(scope=self._scope)):
            body = openai.error_body(refused.status, refused.message, code=refused.code)
        else:
            body = json.dumps({"error": refused.message}, indent=4, ensure_ascii=False).encode()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            *refused.headers,
        ]
        await self({"type": "http.response.start", "status": refused.status, "headers": headers})
        await self._send({"type": "http.response.body", "body": body})

    def _headers(self) -> list[tuple[bytes, bytes]]:
        headers = [(REQUEST_ID.encode(), self._request_id.encode())]
        state = self._scope.get("state", {})
        if version := state.get("model_version"):
            headers.append((b"x-model-version", str(version).encode()))
        if split := _split(state.get("timing")):
            parts = (f"{stage};dur={1000 * seconds:.3f}" for stage, seconds in split.items())
            headers.append((b"server-timing", ", ".join(parts).encode()))
        return headers


def _address(scope: MutableMapping[str, Any]) -> str:
    return (scope.get("client") or ("",))[0]


def _split(timing: Any) -> dict[str, float]:
    """Seconds of each stage."""
    if timing is None:
        return {}
    return {stage: getattr(timing, stage) for stage in ("parse", "queue", "compute", "serialize")}


def _later(status: int, message: str, seconds: float = RETRY_SECONDS) -> Refused:
    wait = str(max(1, round(seconds))).encode()
    close = ((b"connection", b"close"),) if status == 503 else ()
    return Refused(status, message, (b"retry-after", wait), *close)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
