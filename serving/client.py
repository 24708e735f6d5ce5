"""A small client for TensorFlow Serving's REST API, for threads or an event loop: `Client` and
`AsyncClient`. The server may be ours or a stock one; gRPC is spoken by `serving/grpc_client.py`.

Each call is written once, as steps that want an answer or a pause; the two classes differ in how
they take the steps.

This file imports nothing of the repository, so it can be copied or installed alone beside httpx.
That is why the names of our two signatures stand here a second time;
`tests/serving/test_serving_client.py` holds them equal to `model/signatures.py`.

Every failure is a `ClientError` whose text is one sentence that ends in what to do.
"""

import asyncio
import base64
import contextlib
import functools
import json
import os
import random
import time
from collections.abc import (
    AsyncGenerator,
    Callable,
    Generator,
    Mapping,
    Sequence,
)
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar
from urllib.parse import quote, urlsplit

import httpx

CLASSIFIER_INPUTS = frozenset({"text"})
CLASSIFIER_OUTPUTS = frozenset({"label", "scores", "labels"})
MULTI_LABEL_OUTPUTS = frozenset({"is_label", "scores", "labels"})
REGRESSOR_OUTPUTS = frozenset({"value"})
GENERATOR_INPUTS = frozenset({"prompt", "max_tokens", "temperature", "top_k", "top_p", "seed"})
GENERATOR_OUTPUTS = frozenset({"text", "num_tokens", "finish_reason"})

COMPLETIONS = "/v1/completions"
METRICS = "/monitoring/prometheus/metrics"
STREAMED = {
    "stream": True,
    "stream_options": {"include_usage": True, "continuous_usage_stats": True},
}
AVAILABLE = "AVAILABLE"
API_KEY = "STEPWISE_API_KEY"


class ClientError(Exception):
    """Base of everything this client raises."""


class ServerUnreachable(ClientError):
    """Nothing answers at the address."""


class ModelNotFound(ClientError):
    """The server has no such model, or not that version of it."""


class ModelNotReady(ClientError):
    """The model is loading or failed to load, or the server is draining or too busy. Try later."""


class InvalidRequest(ClientError):
    """The server refused the input; the text is the server's own."""


class AccessDenied(ClientError):
    """The server wants a key, or another one."""


class ServerFailed(ClientError):
    """The server failed, or what answered does not speak this protocol."""


class RequestTimedOut(ClientError):
    """No answer within the time limit."""


class MetricsOff(ClientError):
    """The server was not told to show its metrics."""


@dataclass(frozen=True)
class Classification:
    """A label and the score of every label, in the model's label order."""

    label: str
    scores: dict[str, float]


@dataclass(frozen=True)
class Generation:
    """The continuation without its prompt. `finish_reason` is "stop" or "length"."""

    text: str
    num_tokens: int
    finish_reason: str


@dataclass(frozen=True)
class Part:
    """What was written since the part before. The last one alone has a `finish_reason`."""

    text: str
    finish_reason: str | None = None
    num_tokens: int | None = None  # of the answer so far; None: nobody told
    num_prompt_tokens: int | None = None  # that were read
    num_truncated_tokens: int = 0  # of the prompt, before them, for which there was no room


@dataclass(frozen=True)
class VersionStatus:
    """`state` is START, LOADING, AVAILABLE, UNLOADING or END; END with an error: a failed load."""

    version: int
    state: str
    error_code: str
    error_message: str


@dataclass(frozen=True)
class ModelInfo:
    """One model of a server. `version` is the served one, or the newest seen when none is served.

    `kind` is "classifier", "multi_label", "regressor" or "generator", None when the signature is
    none of these or nothing is served.
    """

    name: str
    version: int | None
    state: str
    kind: str | None


@dataclass(frozen=True)
class _Ask:
    """A step of a call: send this. It is answered with the response."""

    method: str
    path: str
    content: bytes | None = None
    timeout: float | None = None
    is_stream: bool = False  # a good answer is left to be read line by line


@dataclass(frozen=True)
class Pause:
    """A step of a call: wait so many seconds."""

    seconds: float


P = ParamSpec("P")
R = TypeVar("R")
Steps = Generator[Any, Any, R]  # yields pauses, and what is sent; returns the call's result


def call(steps: Callable[Concatenate[Any, P], Steps[R]]) -> Callable[Concatenate[Any, P], R]:
    """A public method out of the generator of its steps."""

    @functools.wraps(steps)
    def method(self: Any, *args: P.args, **kwargs: P.kwargs) -> R:
        return self._take(steps(self, *args, **kwargs))

    return method


def take(steps: Steps[R], send: Callable[[Any], Any], sleep: Callable[[float], Any]) -> R:
    """Takes the steps in this thread; an error of `send` is raised where the step was asked for."""
    answer, error = None, None
    while True:
        try:
            step = steps.throw(error) if error else steps.send(answer)
        except StopIteration as end:
            return end.value
        answer, error = None, None
        try:
            answer = sleep(step.seconds) if isinstance(step, Pause) else send(step)
        except ClientError as failure:
            error = failure


async def take_in_loop(
    steps: Steps[R], send: Callable[[Any], Any], sleep: Callable[[float], Any]
) -> R:
    """As `take`, where `send` and `sleep` are coroutines."""
    answer, error = None, None
    while True:
        try:
            step = steps.throw(error) if error else steps.send(answer)
        except StopIteration as end:
            return end.value
        answer, error = None, None
        try:
            answer = await (sleep(step.seconds) if isinstance(step, Pause) else send(step))
        except ClientError as failure:
            error = failure


class Closes:
    """`with` closes it at the end."""

    def close(self) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class ClosesInLoop:
    """`async with` closes it at the end."""

    async def close(self) -> None:
        raise NotImplementedError

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()


class _Calls:
    """What a server can be asked, in steps. `_take` is how a subclass takes them."""

    def __init__(
        self,
        url: str = "http://127.0.0.1:8501",
        *,
        timeout: float = 10.0,
        api_key: str | None = None,
        retries: int = 2,
        transport: Any = None,
        sleep: Callable[[float], Any] | None = None,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ClientError(
                f"The server's address must look like http://127.0.0.1:8501. Received: {url!r}."
            )
        self.url = url.rstrip("/")
        self.timeout, self.retries = timeout, retries
        key = os.environ.get(API_KEY) if api_key is None else api_key
        # A proxy set for the browser must not swallow requests to this machine.
        is_local = parts.hostname in ("127.0.0.1", "localhost", "::1")
        self._open(
            sleep,
            transport=transport,
            timeout=timeout,
            trust_env=not is_local,
            headers={"x-api-key": key} if key else None,
        )

    def _open(self, sleep: Callable[[float], Any] | None, **options: Any) -> None:
        raise NotImplementedError

    def _take(self, steps: Steps[R]) -> R:
        raise NotImplementedError

    @call
    def predict(
        self,
        model: str,
        instances: Sequence[Any],
        *,
        version: int | None = None,
        signature_name: str | None = None,
        timeout: float | None = None,
    ) -> Steps[list[Any]]:
        """Row format: one instance in, one prediction out. `bytes` are sent as base64 objects."""
        body = {"instances": list(instances)}
        answer = yield from self._predict(
            model, body, "predictions", version, signature_name, timeout
        )
        if not isinstance(answer, list):
            raise ServerFailed(_not_the_protocol(self.url, '"predictions" is no list'))
        return answer

    @call
    def predict_columns(
        self,
        model: str,
        inputs: Any,
        *,
        version: int | None = None,
        signature_name: str | None = None,
        timeout: float | None = None,
    ) -> Steps[Any]:
        """Column format: all values of each input together, and so come the outputs."""
        body = {"inputs": inputs}
        return (yield from self._predict(model, body, "outputs", version, signature_name, timeout))

    @call
    def classify(
        self,
        model: str,
        texts: Sequence[str],
        *,
        version: int | None = None,
        timeout: float | None = None,
    ) -> Steps[list[Classification]]:
        """One `Classification` per text, in order. No texts: an empty list, and no request.

        Raises InvalidRequest for a single str, whose letters would be the texts.
        """
        if isinstance(texts, str):
            raise InvalidRequest(f"Texts are a list of str. Received one str: {texts[:40]!r}")
        if not texts:
            return []
        body = {"instances": [{"text": text} for text in texts]}
        rows = yield from self._predict(model, body, "predictions", version, None, timeout)
        _require_fields(model, "classifier", rows, CLASSIFIER_OUTPUTS)
        return [
            Classification(row["label"], dict(zip(row["labels"], row["scores"], strict=True)))
            for row in rows
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
        instance = {
            "prompt": prompt,
            "max_tokens": int(max_tokens),  # numpy integers are no JSON
            "temperature": float(temperature),
            "top_k": int(top_k),
            "top_p": float(top_p),
            "seed": int(seed),
        }
        body = {"instances": [instance]}
        rows = yield from self._predict(model, body, "predictions", version, None, timeout)
        _require_fields(model, "generator", rows, GENERATOR_OUTPUTS)
        return Generation(rows[0]["text"], rows[0]["num_tokens"], rows[0]["finish_reason"])

    @call
    def complete(
        self,
        model: str,
        prompt: str,
        *,
        timeout: float | None = 60.0,
        **options: Any,
    ) -> Steps[Generation]:
        """As `generate`, over `/v1/completions`, which our server has.

        `options` are `max_tokens`, `temperature`, `top_k`, `top_p`, `seed` and any other field of a
        completion, such as `stop` or `min_p`.
        """
        content = json.dumps(_completion(model, prompt, options)).encode()
        ask = _Ask("POST", COMPLETIONS, content, timeout)
        answer = self._json((yield from self._insist(ask)))
        try:
            (choice,), usage = answer["choices"], answer["usage"]
            return Generation(choice["text"], usage["completion_tokens"], choice["finish_reason"])
        except (KeyError, TypeError, ValueError) as error:
            detail = "its completion has an unknown form"
            raise ServerFailed(_not_the_protocol(self.url, detail)) from error

    @call
    def status(self, model: str) -> Steps[list[VersionStatus]]:
        """Every version the server has seen of the model, highest first, ended ones included."""
        return (yield from self._status(model))

    def _status(self, model: str) -> Steps[list[VersionStatus]]:
        response = yield _Ask("GET", f"/v1/models/{quote(model, safe='')}")
        if response.status_code == 404:
            raise ModelNotFound(self._not_found(model, None))
        answer = self._json(response)
        try:
            return [
                VersionStatus(
                    version=int(entry["version"]),
                    state=entry["state"],
                    error_code=entry["status"]["error_code"],
                    error_message=entry["status"]["error_message"],
                )
                for entry in answer["model_version_status"]
            ]
        except (KeyError, TypeError, ValueError) as error:
            detail = f"the status of {model!r} has an unknown form"
            raise ServerFailed(_not_the_protocol(self.url, detail)) from error

    @call
    def metadata(self, model: str) -> Steps[dict[str, Any]]:
        """The server's answer as it is: `model_spec` and, doubly nested, the `signature_def`s."""
        return (yield from self._metadata(model))

    def _metadata(self, model: str) -> Steps[dict[str, Any]]:
        response = yield _Ask("GET", f"/v1/models/{quote(model, safe='')}/metadata")
        if response.status_code == 404:
            raise (yield from self._missing(model, None))
        return self._json(response)

    @call
    def metrics(self) -> Steps[str]:
        """The page for Prometheus, in its text format. Raises MetricsOff where there is none."""
        response = yield _Ask("GET", METRICS)
        if response.status_code == 404:
            raise MetricsOff(
                f"The server at {self.url} has no page {METRICS}; start it with "
                "--monitoring_config_file=FILE, the file being: prometheus_config { enable: true }"
            )
        if response.status_code != 200:
            self._json(response)  # raises by its code
        return response.text

    @call
    def is_alive(self) -> Steps[bool]:
        """True when a server answers. A stock server has no health page; its 404 counts too."""
        try:
            response = yield _Ask("GET", "/healthz")
            return response.status_code < 500
        except (ServerUnreachable, RequestTimedOut):
            return False

    @call
    def models(self, names: Sequence[str] = ()) -> Steps[list[ModelInfo]]:
        """The server's models, only those in `names` if given.

        A stock server has no list: there, `names` are asked for one by one, and those it does not
        know are left out.
        """
        response = yield _Ask("GET", "/readyz")
        listed = _parse(response)
        if response.status_code in (200, 503) and "models" in listed:
            found = [(m["name"], m["version"], m["state"]) for m in listed["models"]]
            found = [entry for entry in found if not names or entry[0] in names]
        else:
            found = []
            for name in names:
                try:
                    found.append((name, *_served_version((yield from self._status(name)))))
                except ModelNotFound:
                    continue  # documented: an unknown name is left out
        models = []
        for name, version, state in found:
            kind = yield from self._kind(name, state)
            models.append(ModelInfo(name, version, state, kind))
        return models

    def _kind(self, model: str, state: str) -> Steps[str | None]:
        if state != AVAILABLE:
            return None
        try:
            return _kind_of((yield from self._metadata(model)))
        except (ModelNotFound, ModelNotReady):
            return None  # unloaded since it was listed

    def _predict(
        self,
        model: str,
        body: dict[str, Any],
        answer_key: str,
        version: int | None,
        signature_name: str | None,
        timeout: float | None,
    ) -> Steps[Any]:
        if signature_name is not None:
            body["signature_name"] = signature_name
        path = f"/v1/models/{quote(model, safe='')}"
        if version is not None:
            path += f"/versions/{version}"
        content = json.dumps(body, default=_encode_bytes).encode()
        response = yield from self._insist(_Ask("POST", f"{path}:predict", content, timeout))
        if response.status_code == 404:
            raise (yield from self._missing(model, version))
        answer = self._json(response)
        if answer_key not in answer:
            raise ServerFailed(_not_the_protocol(self.url, f"no {answer_key!r} in the answer"))
        return answer[answer_key]

    def _insist(self, ask: _Ask) -> Steps[httpx.Response]:
        """Again where the server says when: what it turned away it has not computed."""
        left = self._seconds(ask)
        for _ in range(self.retries):
            response = yield ask
            wait = _retry_after(response)
            if wait is None or wait > left:
                return response
            left -= wait
            yield Pause(wait)
        return (yield ask)

    def _event_stream(self, path: str, body: Any, timeout: float | None) -> Steps[httpx.Response]:
        """The open response of a request that is answered by server-sent events."""
        content = json.dumps(body, default=_encode_bytes).encode()
        response = yield from self._insist(_Ask("POST", path, content, timeout, is_stream=True))
        if response.status_code != 200:
            self._json(response)
            raise ServerFailed(_not_the_protocol(self.url, f"HTTP {response.status_code}"))
        return response

    def _request(self, http: Any, ask: _Ask) -> httpx.Request:
        headers = {"Content-Type": "application/json"} if ask.content is not None else None
        return http.build_request(
            ask.method,
            self.url + ask.path,
            content=ask.content,
            headers=headers,
            timeout=self._seconds(ask),
        )

    def _seconds(self, ask: _Ask) -> float:
        return self.timeout if ask.timeout is None else ask.timeout

    def _known(self, error: Exception, ask: _Ask) -> ClientError:
        """What an error of the network means."""
        if isinstance(error, httpx.ConnectTimeout | httpx.ConnectError):
            return ServerUnreachable(self._unreachable())
        if isinstance(error, httpx.TimeoutException | TimeoutError):
            return RequestTimedOut(
                f"The server at {self.url} did not answer within {self._seconds(ask):g} seconds; "
                "ask for less (shorter input, fewer tokens) or allow more time."
            )
        return ServerFailed(
            f"The connection to {self.url} broke before the answer was complete ({error}); "
            "see the server's log and try again."
        )

    def _unreachable(self) -> str:
        return (
            f"No server answers at {self.url}; start one with `python -m serving`, "
            "or correct the address."
        )

    def _json(self, response: httpx.Response) -> dict[str, Any]:
        """The body of a good answer; a bad one raises by its code. 404 is the caller's matter."""
        answer = _parse(response)
        code, text = response.status_code, _error_text(answer)
        if code == 200 and answer:
            return answer
        if not text:
            raise ServerFailed(_not_the_protocol(self.url, f"HTTP {code} without an error text"))
        if code in (401, 403):
            raise AccessDenied(
                f"The server at {self.url} wants a key; set {API_KEY} to one that it knows: {text}"
            )
        if code in (429, 503):
            raise ModelNotReady(f"The server at {self.url} is not ready, try again later: {text}")
        if code == 504:
            raise RequestTimedOut(
                f"The server stopped the request at its time limit; ask for less: {text}"
            )
        if 400 <= code < 500:
            raise InvalidRequest(f"The server refused the request; correct the input: {text}")
        raise ServerFailed(f"The server at {self.url} failed with HTTP {code}; see its log: {text}")

    def _missing(self, model: str, version: int | None) -> Steps[ClientError]:
        """Why a model was not found: the protocol says 404 for a loading or failed one too."""
        try:
            statuses = yield from self._status(model)
        except ModelNotFound as error:
            return error
        for status in statuses:
            if version not in (None, status.version):
                continue
            if status.state in ("START", "LOADING"):
                return ModelNotReady(
                    f"Version {status.version} of model {model!r} is still loading; try again in a "
                    "few seconds."
                )
            if status.state == "END" and status.error_code != "OK":
                return ModelNotReady(
                    f"Version {status.version} of model {model!r} failed to load; export it again: "
                    f"{status.error_message}"
                )
        return ModelNotFound(self._not_found(model, version))

    def _not_found(self, model: str, version: int | None) -> str:
        what = f"model {model!r}" if version is None else f"version {version} of model {model!r}"
        return (
            f"The server at {self.url} has no {what}; check the name, or make an export with "
            "`python -m training`."
        )


class Client(_Calls, Closes):
    """Talks to one server. Threads may share an instance; connections are kept open between calls.

    `timeout` is in seconds, for each of connecting, sending and waiting for the answer. `api_key`
    is sent along; without one that of the variable STEPWISE_API_KEY is. A request that the server
    turns away with 429 or 503 and a Retry-After is sent again, up to `retries` times, after that
    time and a little more by chance, unless all would take longer than `timeout`. `transport` and
    `sleep` replace the network and the clock in tests.
    """

    def _open(self, sleep: Callable[[float], Any] | None, **options: Any) -> None:
        self._http, self._sleep = httpx.Client(**options), sleep or time.sleep

    def close(self) -> None:
        self._http.close()

    def stream(
        self, path: str, body: Any, *, timeout: float | None = None
    ) -> Generator[Any, None, None]:
        """POSTs `body` to `path` and gives the JSON of each server-sent event as it comes.

        Ends at `[DONE]` or with the answer. Whoever stops early hangs up, which cancels the work.
        Raises ServerFailed where an event tells of an error.
        """
        steps = self._event_stream(path, body, timeout)
        with contextlib.closing(self._take(steps)) as response:
            try:
                data = _Data()
                for line in response.iter_lines():
                    yield from data.of(line)
                    if data.is_done:
                        return
            except httpx.TransportError as error:
                raise self._known(error, _Ask("POST", path, timeout=timeout)) from error

    def write(
        self, model: str, prompt: str, *, timeout: float | None = 60.0, **options: Any
    ) -> Generator[Part, None, None]:
        """`complete` as it is written. `timeout` is for each part; whoever stops early hangs up."""
        body = _completion(model, prompt, options) | STREAMED
        parts = _Parts()
        with contextlib.closing(self.stream(COMPLETIONS, body, timeout=timeout)) as events:
            for event in events:
                yield from parts.of(event, self.url)
        parts.check_end(self.url)

    def _take(self, steps: Steps[R]) -> R:
        return take(steps, self._send, self._sleep)

    def _send(self, ask: _Ask) -> httpx.Response:
        try:
            response = self._http.send(self._request(self._http, ask), stream=ask.is_stream)
            if ask.is_stream and response.status_code != 200:
                response.read()
        except httpx.TransportError as error:
            raise self._known(error, ask) from error
        return response


class AsyncClient(_Calls, ClosesInLoop):
    """`Client` for an event loop: the same settings and methods, each method to be awaited.

    `timeout` is in seconds and for the whole of a request. Leaving a call cancels the request.
    """

    def _open(self, sleep: Callable[[float], Any] | None, **options: Any) -> None:
        self._http, self._sleep = httpx.AsyncClient(**options), sleep or asyncio.sleep

    async def close(self) -> None:
        await self._http.aclose()

    async def stream(
        self, path: str, body: Any, *, timeout: float | None = None
    ) -> AsyncGenerator[Any, None]:
        """As `Client.stream`; `timeout` is for each event."""
        response = await self._take(self._event_stream(path, body, timeout))
        try:
            data = _Data()
            async for line in response.aiter_lines():
                for event in data.of(line):
                    yield event
                if data.is_done:
                    return
        except httpx.TransportError as error:
            raise self._known(error, _Ask("POST", path, timeout=timeout)) from error
        finally:
            await response.aclose()

    async def write(
        self, model: str, prompt: str, *, timeout: float | None = 60.0, **options: Any
    ) -> AsyncGenerator[Part, None]:
        """As `Client.write`."""
        body = _completion(model, prompt, options) | STREAMED
        parts = _Parts()
        async with contextlib.aclosing(self.stream(COMPLETIONS, body, timeout=timeout)) as events:
            async for event in events:
                for part in parts.of(event, self.url):
                    yield part
        parts.check_end(self.url)

    async def _take(self, steps: Steps[R]) -> R:  # type: ignore[override]
        return await take_in_loop(steps, self._send, self._sleep)

    async def _send(self, ask: _Ask) -> httpx.Response:
        request = self._request(self._http, ask)
        try:
            async with asyncio.timeout(self._seconds(ask)):
                response = await self._http.send(request, stream=ask.is_stream)
                if ask.is_stream and response.status_code != 200:
                    await response.aread()
        except (httpx.TransportError, TimeoutError) as error:
            raise self._known(error, ask) from error
        return response


class _Data:
    """The data of server-sent events, line by line; other fields and comments are left out."""

    def __init__(self) -> None:
        self.is_done = False
        self._lines: list[str] = []

    def of(self, line: str) -> list[Any]:
        """The event that `line` ends, if it ends one. Raises ServerFailed for what is no JSON."""
        if line.startswith("data:"):
            self._lines.append(line[5:].removeprefix(" "))
            return []
        if line or not self._lines:
            return []
        text, self._lines = "\n".join(self._lines), []
        if text == "[DONE]":
            self.is_done = True
            return []
        try:
            event = json.loads(text)
        except json.JSONDecodeError as error:
            raise ServerFailed(f"An event of the stream is no JSON: {text[:80]!r}.") from error
        if isinstance(event, dict) and event.get("error"):
            raise ServerFailed(f"The server ended the stream; see its log: {_error_text(event)}")
        return [event]


class _Parts:
    """Parts out of the events of a completion. The end comes in two of them, and is told as one."""

    def __init__(self) -> None:
        self._reason: str | None = None
        self._has_ended = False

    def of(self, event: Any, url: str) -> list[Part]:
        try:
            usage = event.get("usage") or {}
            counts = (
                usage.get("completion_tokens"),
                usage.get("prompt_tokens"),
                (usage.get("prompt_tokens_details") or {}).get("truncated_tokens", 0),
            )
            if event["choices"]:
                (choice,) = event["choices"]
                self._reason = choice["finish_reason"]
                return [Part(choice["text"], None, *counts)] if choice["text"] else []
            self._has_ended = True
            return [Part("", self._reason, *counts)]
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            detail = "an event of its stream has an unknown form"
            raise ServerFailed(_not_the_protocol(url, detail)) from error

    def check_end(self, url: str) -> None:
        if not self._has_ended:
            raise ServerFailed(
                f"The stream of {url} ended before the text did; see the server's log, try again."
            )


def _retry_after(response: httpx.Response) -> float | None:
    """Seconds to wait before the same request may succeed, up to a half more by chance."""
    said = response.headers.get("retry-after", "")
    if response.status_code not in (429, 503) or not said.isdecimal():
        return None
    return float(said) * (1 + random.random() / 2)  # else all come back at once


def _encode_bytes(value: object) -> dict[str, str]:
    if isinstance(value, bytes):
        return {"b64": base64.b64encode(value).decode("ascii")}
    raise TypeError(
        f"Inputs must be str, bytes, bool, int, float, None, lists or dicts of these. "
        f"Received: {type(value).__name__}."
    )


def _parse(response: httpx.Response) -> dict[str, Any]:
    """The JSON object in the body, empty when there is none; NaN and Infinity become floats."""
    # TensorFlow Serving writes string outputs raw, valid UTF-8 or not.
    text = response.content.decode("utf-8", errors="replace")
    try:
        answer = json.loads(text)
    except json.JSONDecodeError:
        return {}
    return answer if isinstance(answer, dict) else {}


def _error_text(answer: Mapping[str, Any]) -> str:
    """What the server says, in TensorFlow Serving's form or in OpenAI's."""
    error = answer.get("error", "")
    return str(error.get("message", error) if isinstance(error, dict) else error).strip()


def _completion(model: str, prompt: str, options: Mapping[str, Any]) -> dict[str, Any]:
    # Of a prompt that is too long its end is read, as by `generate`.
    return {"model": model, "prompt": prompt, "truncate_prompt_tokens": -1, **options}


def _require_fields(model: str, kind: str, rows: list[Any], fields: frozenset[str]) -> None:
    if not all(isinstance(row, Mapping) and fields <= row.keys() for row in rows):
        raise InvalidRequest(
            f"Model {model!r} is no {kind}: its answer lacks one of {', '.join(sorted(fields))}; "
            "choose another model."
        )


def _served_version(statuses: list[VersionStatus]) -> tuple[int | None, str]:
    for status in statuses:
        if status.state == AVAILABLE:
            return status.version, status.state
    return (statuses[0].version, statuses[0].state) if statuses else (None, "END")


def _kind_of(metadata: dict[str, Any]) -> str | None:
    try:
        signature = metadata["metadata"]["signature_def"]["signature_def"]["serving_default"]
        inputs, outputs = set(signature["inputs"]), set(signature["outputs"])
    except (KeyError, TypeError):
        return None
    if inputs == CLASSIFIER_INPUTS and outputs >= CLASSIFIER_OUTPUTS:
        return "classifier"
    if inputs == CLASSIFIER_INPUTS and outputs >= MULTI_LABEL_OUTPUTS:
        return "multi_label"
    if inputs == CLASSIFIER_INPUTS and outputs >= REGRESSOR_OUTPUTS:
        return "regressor"
    if inputs == GENERATOR_INPUTS and outputs >= GENERATOR_OUTPUTS:
        return "generator"
    return None


def _not_the_protocol(url: str, detail: str) -> str:
    return (
        f"What answers at {url} does not speak TensorFlow Serving's REST API ({detail}); "
        "check the address and port."
    )
