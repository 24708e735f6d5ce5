"""OpenAI's API over the models that write: completions, chats, embeddings, whole or as events.

What is asked is read by `openai_requests`, written by a `Writer` (the engine where a version has
one, else its signatures), and put here into OpenAI's form. Under its URLs, errors have it too.
"""

import asyncio
import base64
import codecs
import contextlib
import functools
import json
import logging
import math
import time
import uuid
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Callable,
    Container,
    Mapping,
    Sequence,
)
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import orjson
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from serving import json_text, metrics, openai_requests
from serving.config import ServerConfig
from serving.errors import INTERNAL_TEXT, Code, ServingError, as_serving_error
from serving.next_tokens import NextTokensWriter
from serving.openai_requests import Asked, Embed, Prompt
from serving.service import Service, is_small
from serving.writing import InvalidField, Piece, Request, TokenLogprob, Writer, check_tokens, cut

log = logging.getLogger(__name__)

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
EMBEDDINGS, MODELS = "/v1/embeddings", "/v1/models"
PATHS = (COMPLETIONS, CHAT, EMBEDDINGS)
# What OpenAI's URLs begin with, those that we have and others that its clients ask for.
_FIRST = frozenset(
    {
        *("completions", "chat", "embeddings", "responses", "conversations", "audio", "images"),
        *("videos", "moderations", "files", "uploads", "batches", "fine_tuning", "evals"),
        *("assistants", "threads", "vector_stores", "containers", "realtime"),
    }
)
CLIENT_HEADER = "x-stainless-lang"  # what OpenAI's own clients say on every request
OWNER = "stepwise"
# Bytes that the event loop reads and checks itself, in less than a millisecond: a thread costs a
# tenth of that, and where others write it is the last to get its turn.
SMALL_BODY = 16 * 1024

_STARTED = int(time.time())  # when models are said to be made: TensorFlow's answers do not tell
_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class NoSuchModel(ServingError):
    def __init__(self, name: str, reason: str) -> None:
        super().__init__(
            Code.NOT_FOUND,
            f"The model {name!r} does not exist or is not loaded ({reason}); GET {MODELS} lists "
            "those that are.",
        )


class TooLong(InvalidField):
    """A prompt that the context has no room for."""

    def __init__(
        self,
        field: str,
        num_tokens: int,
        context_length: int,
        *,
        has_answer: bool = True,
        may_cut: bool = True,
    ) -> None:
        ServingError.__init__(
            self,
            Code.INVALID_ARGUMENT,
            f"This model's context is {context_length} tokens, with one before the text"
            + (" and at least one of an answer" if has_answer else "")
            + f", and {field} has {num_tokens}. Send less"
            + (", or have only its end read: truncate_prompt_tokens: -1." if may_cut else "."),
        )
        self.field = field


def is_openais(path: str) -> bool:
    """Whether a URL is one of OpenAI's API and none of TensorFlow Serving's: whatever goes wrong
    under it has OpenAI's form."""
    start, _, rest = path.partition("/v1/")
    return not start and rest.partition("/")[0] in _FIRST


def has_openais_form(path: str, headers: Container[str]) -> bool:
    """Whether what goes wrong is told in OpenAI's form: under its URLs, and to its own clients that
    ask for models."""
    return is_openais(path) or (CLIENT_HEADER in headers and path.startswith(MODELS))


def error_body(
    status: int, message: str, *, param: str | None = None, code: str | None = None
) -> bytes:
    """An error in OpenAI's form."""
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    error = {"message": message, "type": kind, "param": param, "code": code}
    return json.dumps({"error": error}).encode()  # lone surrogates become escapes


def error_of(error: Exception) -> tuple[int, bytes]:
    """HTTP status and body. An error of ours that callers may not see is logged."""
    known = as_serving_error(error)
    if known is None:
        log.error("A request failed", exc_info=error)
        known = ServingError(Code.INTERNAL, INTERNAL_TEXT)
    param = known.field if isinstance(known, InvalidField) else None
    code = None
    if isinstance(known, NoSuchModel):
        param, code = "model", "model_not_found"
    elif isinstance(known, TooLong):
        code = "context_length_exceeded"
    elif known.code is Code.RESOURCE_EXHAUSTED:
        code = "rate_limit_exceeded"
    status = known.code.http_status
    return status, error_body(status, known.message, param=param, code=code)


async def answer(service: Service, config: ServerConfig, request: HttpRequest) -> Response:
    """The answer to a request of a URL that `is_openais`; errors are answers, too."""
    path, name = request.url.path, ""
    if path not in PATHS:
        text = f"There is no {cut(path)} here, only POST {', '.join(PATHS)} and GET {MODELS}."
        return _error(404, error_body(404, text))
    if request.method != "POST":
        text = f"{path} takes POST, with a JSON object as its body, and no {request.method}."
        return _error(405, error_body(405, text), allow="POST")
    try:
        asked = await _asked(service, config, request)
        name = request.state.model_name = asked.model
        if isinstance(asked, Embed):
            response = await _embed(service, config, request, asked)
        else:
            response = await _write(service, config, request, asked)
    except ClientDisconnect:
        raise
    except Exception as error:
        known = as_serving_error(error)
        if hasattr(request.state, "model_version"):  # a name that is known, not any that is sent
            metrics.count_request(name, known.code.name if known else Code.INTERNAL.name)
        return error_response(error)
    return response


def error_response(error: Exception) -> Response:
    return _error(*error_of(error))


def _error(status: int, content: bytes, **headers: str) -> Response:
    return Response(content, status, headers, media_type="application/json")


def model_object(name: str) -> dict[str, Any]:
    """A model as OpenAI's list has it."""
    return {"id": name, "object": "model", "created": _STARTED, "owned_by": OWNER}


_READERS: Mapping[str, Callable[[Any, ServerConfig], Asked | Embed]] = {
    COMPLETIONS: openai_requests.completion,
    CHAT: openai_requests.chat,
    EMBEDDINGS: openai_requests.embeddings,
}


async def _asked(service: Service, config: ServerConfig, request: HttpRequest) -> Asked | Embed:
    """What the body asks for, read and checked in a thread of requests if it is large."""
    if "gzip" in request.headers.get("content-encoding", ""):
        raise ServingError(Code.INVALID_ARGUMENT, "Send the body as it is, without gzip.")
    body = await request.body()
    read = functools.partial(_read_body, body, _READERS[request.url.path], config)
    asked = read() if len(body) <= SMALL_BODY else await service.run(lambda repository: read())
    if isinstance(asked, Asked):
        return replace(asked, caller=getattr(request.state, "caller", ""))
    return asked


def _read_body(
    body: bytes, read: Callable[[Any, ServerConfig], Asked | Embed], config: ServerConfig
) -> Asked | Embed:
    if len(body) > SMALL_BODY:
        json_text.check_counts(body, config.max_rows, config.max_characters)
    return read(json_text.parse(body, config.max_json_depth), config)


# ---------------------------------------------------------------- the model


@dataclass(frozen=True)
class _Model:
    """A loaded version by what is asked of it: the writer, and what its signatures tell of texts,
    which is the writer, too, where there is no engine."""

    writer: Writer
    signatures: NextTokensWriter
    service: Service

    def write(self, request: Request) -> AsyncGenerator[Piece, None]:
        """The pieces of one text. The engine bounds how many wait, else all threads together do."""
        pieces = self.writer.write(request)
        return self._counted(pieces) if self.writer is self.signatures else pieces

    async def _counted(self, pieces: AsyncGenerator[Piece, None]) -> AsyncGenerator[Piece, None]:
        async with contextlib.aclosing(pieces):
            with self.service.text():
                async for piece in pieces:
                    yield piece


@contextlib.asynccontextmanager
async def _model(service: Service, request: HttpRequest, name: str) -> AsyncIterator[_Model]:
    """The model's newest version, loaded in the block; the task counts as running."""
    async with service.stream(), contextlib.AsyncExitStack() as stack:
        acquired = service.repository.acquire(name)
        try:
            servable = await service.in_thread(acquired.__enter__)
        except ServingError as error:
            if error.code is Code.NOT_FOUND:
                raise NoSuchModel(name, error.message) from error
            raise
        stack.push(acquired.__exit__)
        signatures = NextTokensWriter(servable, service.in_thread)
        request.state.model_version = servable.version
        engine = servable.writer
        writer = signatures if engine is None or engine.has_ended else engine
        yield _Model(writer, signatures, service)


async def _read(model: _Model, asked: Asked, usage: "_Usage") -> list[tuple[int, ...]]:
    """The prompts as tokens, counted. Raises TooLong for one that leaves no room for an answer."""
    texts = [prompt for prompt in asked.prompts if isinstance(prompt, str)]
    writer = model.writer
    # The engine reads texts one after another: those behind a long one would wait a second for it.
    is_long = sum(map(len, texts)) > SMALL_BODY
    found = iter(await (model.signatures if is_long else writer).tokenize(texts))
    prompts = []
    has_answer = asked.max_tokens != 0
    most = writer.context_length - 1 - has_answer  # BEGIN and a token of the answer
    field = "messages" if asked.is_chat else "prompt"
    for prompt in asked.prompts:
        if isinstance(prompt, str):
            read = next(found)
            tokens, size = read.tokens, read.num_tokens
        else:
            tokens, size = prompt, len(prompt)
        if asked.truncate is not None:
            kept = most
            if asked.truncate > 0:
                kept = min(most, asked.truncate)
            elif has_answer:  # as many as leave room, but at most half of the context
                half = writer.context_length // 2
                answer = half if asked.max_tokens is None else min(asked.max_tokens, half)
                kept = writer.context_length - 1 - answer
            tokens = tokens[max(len(tokens) - kept, 0) :]
            usage.num_truncated += max(size - kept, 0)
            size = min(size, kept)
        if size > most:
            raise TooLong(field, size, writer.context_length, has_answer=has_answer)
        if not isinstance(prompt, str):
            check_tokens(field, tokens, writer.vocabulary_size)  # of few now
        prompts.append(tuple(tokens))
        usage.num_prompt += size
    return prompts


# ---------------------------------------------------------------- writing


@dataclass
class _Choice:
    """One answer as it grows. `logprobs` go with `tokens` where they were asked for."""

    index: int
    prompt: int
    decoder: Any = field(default_factory=lambda: codecs.getincrementaldecoder("utf-8")("replace"))
    offset: int = 0  # in characters of the text, where the next token begins
    num_tokens: int = 0
    sum_logprobs: float = 0.0


@dataclass
class _Part:
    """What a choice grew by."""

    choice: _Choice
    text: str
    tokens: Sequence[int] = ()
    logprobs: Sequence[TokenLogprob] = ()
    finish_reason: str | None = None


@dataclass
class _Usage:
    num_prompt: int = 0  # tokens that are read
    num_truncated: int = 0  # that stood before them and are not
    num_cached: int = 0
    num_completion: int = 0

    def to_json(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self.num_prompt,
            "completion_tokens": self.num_completion,
            "total_tokens": self.num_prompt + self.num_completion,
            "prompt_tokens_details": {
                "cached_tokens": self.num_cached,
                "truncated_tokens": self.num_truncated,
            },
        }


async def _parts(
    model: _Model,
    asked: Asked,
    prompts: list[tuple[int, ...]],
    usage: _Usage,
    deadline: float,
) -> AsyncGenerator[_Part, None]:
    """The parts of all answers as they come, each prompt's own before its answers if echoed."""
    choices = [
        _Choice(prompt * asked.best_of + number, prompt)
        for prompt in range(len(prompts))
        for number in range(asked.best_of)
    ]
    if asked.echo:
        echoes = await _echoes(model, asked, prompts, deadline)
        for choice in choices:
            yield _Part(choice, *echoes[choice.prompt])
    streams = []
    for choice in choices:
        prompt = prompts[choice.prompt]
        most = model.writer.context_length - 1 - len(prompt)
        number = choice.index - choice.prompt * asked.best_of
        streams.append(model.write(asked.request(prompt, number, most, deadline)))
    has_begun = [False] * len(prompts)
    clock = _Clock(asked.model, len(choices))
    try:
        async with contextlib.aclosing(merged(streams)) as pieces:
            async for index, piece in pieces:
                choice = choices[index]
                clock.note(index, len(piece.tokens))
                usage.num_completion += len(piece.tokens)
                if not has_begun[choice.prompt]:
                    has_begun[choice.prompt] = True
                    usage.num_cached += piece.num_cached_tokens
                choice.num_tokens += len(piece.tokens)
                choice.sum_logprobs += sum(entry.logprob for entry in piece.logprobs)
                yield _Part(choice, piece.text, piece.tokens, piece.logprobs, piece.finish_reason)
    finally:  # also what was written for somebody who left
        metrics.count_tokens(asked.model, usage.num_prompt, usage.num_completion)


async def _echoes(
    model: _Model, asked: Asked, prompts: list[tuple[int, ...]], deadline: float
) -> list[tuple[str, tuple[int, ...], list[TokenLogprob]]]:
    """Text, tokens and, if asked for, their probabilities, the first one's after BEGIN."""
    texts: list[str] = [prompt for prompt in asked.prompts if isinstance(prompt, str)]
    if len(texts) < len(prompts) or asked.truncate is not None:
        texts = await model.writer.detokenize(prompts)
    top = asked.logprobs
    if top is None:
        return [(text, (), []) for text in texts]
    with model.service.text():
        scores = await model.signatures.score(prompts, deadline)
    return [
        (text, prompt, [TokenLogprob(one.logprob, one.top[:top]) for one in score.logprobs])
        for text, prompt, score in zip(texts, prompts, scores, strict=True)
    ]


async def merged(
    streams: Sequence[AsyncGenerator[Piece, None]],
) -> AsyncGenerator[tuple[int, Piece], None]:
    """(number of the stream, piece) of all of them as they come. Closing it closes them.

    Raises the first error of any of them.
    """
    if len(streams) == 1:  # most requests want one answer, and need no tasks
        async with contextlib.aclosing(streams[0]) as pieces:
            async for only in pieces:
                yield 0, only
        return
    queue: asyncio.Queue[tuple[int, Piece | BaseException | None]] = asyncio.Queue(1)

    async def pump(number: int, stream: AsyncGenerator[Piece, None]) -> None:
        try:
            async with contextlib.aclosing(stream):
                async for piece in stream:
                    await queue.put((number, piece))
        except Exception as error:
            await queue.put((number, error))
        else:
            await queue.put((number, None))

    tasks = [asyncio.ensure_future(pump(i, stream)) for i, stream in enumerate(streams)]
    try:
        left = len(tasks)
        while left:
            number, piece = await queue.get()
            if isinstance(piece, BaseException):
                raise piece
            if piece is None:
                left -= 1
            else:
                yield number, piece
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class _Clock:
    """Tells the metrics when text came."""

    def __init__(self, model: str, count: int) -> None:
        self._model = model
        self._began = time.perf_counter()
        self._last: list[float | None] = [None] * count

    def note(self, index: int, num_tokens: int) -> None:
        if not num_tokens:
            return
        now, last = time.perf_counter(), self._last[index]
        if last is None:
            metrics.observe_first_token(self._model, now - self._began)
        else:
            metrics.observe_next_tokens(self._model, (now - last) / num_tokens, num_tokens)
        self._last[index] = now


async def _write(
    service: Service, config: ServerConfig, request: HttpRequest, asked: Asked
) -> Response:
    if asked.stream:
        events = _events(service, config, request, asked)
        first = await anext(events)  # what fails before it is an error with a status
        return EventStream(first, events)
    deadline = time.monotonic() + (config.request_timeout_seconds or math.inf)
    usage = _Usage()
    async with _model(service, request, asked.model) as model:
        prompts = await _read(model, asked, usage)
        parts = [part async for part in _parts(model, asked, prompts, usage, deadline)]
        form = _Form(asked, model.writer, usage)
        content = await form.whole(parts, len(prompts))
    metrics.count_request(asked.model, Code.OK.name)
    return Response(orjson.dumps(content), media_type="application/json")


async def _events(
    service: Service, config: ServerConfig, request: HttpRequest, asked: Asked
) -> AsyncGenerator[bytes, None]:
    """The events of a stream. An error after the first of them is one, and the last."""
    deadline = time.monotonic() + config.stream_timeout_seconds
    has_begun = False
    usage = _Usage()
    try:
        async with _model(service, request, asked.model) as model:
            prompts = await _read(model, asked, usage)
            form = _Form(asked, model.writer, usage)
            async with contextlib.aclosing(_parts(model, asked, prompts, usage, deadline)) as parts:
                async for part in parts:
                    for chunk in await form.chunks(part):
                        yield _event(chunk)
                        has_begun = True
            if asked.include_usage:
                yield _event(form.usage_chunk())
            yield b"data: [DONE]\n\n"
    except Exception as error:
        if not has_begun:
            raise
        known = as_serving_error(error)
        metrics.count_request(asked.model, known.code.name if known else Code.INTERNAL.name)
        yield b"data: " + error_of(error)[1] + b"\n\n"
    else:
        metrics.count_request(asked.model, Code.OK.name)


def _event(content: Mapping[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(content) + b"\n\n"


class EventStream(Response):
    """Server-sent events, each sent when it comes; the generator is closed whatever happens."""

    media_type = "text/event-stream"

    def __init__(self, first: bytes, events: AsyncGenerator[bytes, None]) -> None:
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._first, self._events = first, events

    async def __call__(self, scope: Any, receive: Any, send: Callable[..., Any]) -> None:
        async with contextlib.aclosing(self._events):
            await send(
                {
                    "type": "http.response.start",
                    "status": self.status_code,
                    "headers": self.raw_headers,
                }
            )
            await send({"type": "http.response.body", "body": self._first, "more_body": True})
            async for event in self._events:
                await send({"type": "http.response.body", "body": event, "more_body": True})
            await send({"type": "http.response.body", "body": b""})


# ---------------------------------------------------------------- OpenAI's form


class _Form:
    """The JSON of one answer, of a completion's or a chat's."""

    def __init__(self, asked: Asked, writer: Writer, usage: _Usage) -> None:
        self._asked, self._writer, self._usage = asked, writer, usage
        self._id = f"{'chatcmpl' if asked.is_chat else 'cmpl'}-{uuid.uuid4().hex}"
        self._created = int(time.time())
        self._introduced: set[int] = set()
        self._blanks: set[int] = set()  # choices of a chat that have begun with text

    async def whole(self, parts: Sequence[_Part], num_prompts: int) -> Any:
        by_choice: dict[int, list[_Part]] = {}
        for part in parts:
            by_choice.setdefault(part.choice.index, []).append(part)
        kept = [index for prompt in range(num_prompts) for index in self._best(by_choice, prompt)]
        choices = []
        for number, index in enumerate(kept):
            own = by_choice[index]
            text = "".join(self._text(part) for part in own)
            entry: dict[str, Any] = {"index": number}
            if self._asked.is_chat:
                entry["message"] = {"role": "assistant", "content": text, "refusal": None}
            else:
                entry["text"] = text
            entry["logprobs"] = await self._logprobs(own)
            entry["finish_reason"] = own[-1].finish_reason
            choices.append(entry)
        kind = "chat.completion" if self._asked.is_chat else "text_completion"
        return self._head(kind, choices) | {"usage": self._usage.to_json()}

    async def chunks(self, part: _Part) -> list[dict[str, Any]]:
        """The events that a part makes: none while there is nothing to tell."""
        asked, index = self._asked, part.choice.index
        text = self._text(part)
        wants_logprobs = asked.logprobs is not None and len(part.tokens) > 0
        is_news = bool(text or part.finish_reason or wants_logprobs)
        found = []
        if asked.is_chat and index not in self._introduced:
            self._introduced.add(index)
            first = {"role": "assistant", "content": "", "refusal": None}
            found.append({"index": index, "delta": first, "logprobs": None, "finish_reason": None})
        if is_news:
            entry: dict[str, Any] = {"index": index}
            if asked.is_chat:
                entry["delta"] = {"content": text} if text else {}
            else:
                entry["text"] = text
            entry["logprobs"] = await self._logprobs([part])
            entry["finish_reason"] = part.finish_reason
            found.append(entry)
        return [self._chunk([entry]) for entry in found]

    def usage_chunk(self) -> dict[str, Any]:
        return self._chunk([]) | {"usage": self._usage.to_json()}

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        kind = "chat.completion.chunk" if self._asked.is_chat else "text_completion"
        chunk = self._head(kind, choices)
        if self._asked.tells_usage:
            chunk["usage"] = self._usage.to_json()
        elif self._asked.include_usage:
            chunk["usage"] = None
        return chunk

    def _head(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": kind,
            "created": self._created,
            "model": self._asked.model,
            "choices": choices,
        }

    def _best(self, by_choice: Mapping[int, list[_Part]], prompt: int) -> list[int]:
        """The choices of a prompt to show: the likeliest by token, best first, if some are left
        out."""
        asked = self._asked
        own = [i for i, parts in by_choice.items() if parts[0].choice.prompt == prompt]
        if asked.best_of == asked.n:
            return sorted(own)

        def per_token(index: int) -> float:
            choice = by_choice[index][0].choice
            return choice.sum_logprobs / max(choice.num_tokens, 1)

        return sorted(sorted(own), key=per_token, reverse=True)[: asked.n]

    def _text(self, part: _Part) -> str:
        """The text of a part; that of a chat without the one blank behind `Assistant:`."""
        index = part.choice.index
        if not self._asked.is_chat or not part.text or index in self._blanks:
            return part.text
        self._blanks.add(index)
        return part.text.removeprefix(" ")

    async def _logprobs(self, parts: Sequence[_Part]) -> dict[str, Any] | None:
        asked = self._asked
        if asked.logprobs is None:
            return None
        entries = [
            (part.choice, token, entry)
            for part in parts
            for token, entry in zip(part.tokens, part.logprobs, strict=True)
        ]
        numbers = {token for _, token, _ in entries}
        numbers |= {token for *_, entry in entries for token, _ in entry.top}
        order = sorted(numbers)
        spelled = dict(zip(order, await self._writer.spell(order), strict=True))
        if asked.is_chat:
            content = [_chat_logprob(token, entry, spelled) for _, token, entry in entries]
            return {"content": content, "refusal": None}
        return _completion_logprobs(entries, spelled)


def _completion_logprobs(
    entries: Sequence[tuple[_Choice, int, TokenLogprob]], spelled: Mapping[int, bytes]
) -> dict[str, Any]:
    offsets, top = [], []
    for choice, token, entry in entries:
        offsets.append(choice.offset)
        choice.offset += len(choice.decoder.decode(spelled[token]))
        # The written token is among them, likely or not.
        top.append(_by_name({token: entry.logprob} | dict(entry.top), spelled))
    return {
        "tokens": [shown(spelled[token]) for _, token, _ in entries],
        "token_logprobs": [entry.logprob for *_, entry in entries],
        "top_logprobs": top,
        "text_offset": offsets,
    }


def _by_name(logprobs: Mapping[int, float], spelled: Mapping[int, bytes]) -> dict[str, float]:
    """By what tokens are shown as; of those shown alike, all but the first as vLLM writes a number
    of a token, so that none is lost."""
    named: dict[str, float] = {}
    for token, logprob in logprobs.items():
        name = shown(spelled[token])
        named[f"token_id:{token}" if name in named else name] = logprob
    return named


def _chat_logprob(token: int, entry: TokenLogprob, spelled: Mapping[int, bytes]) -> dict[str, Any]:
    def one(token: int, logprob: float) -> dict[str, Any]:
        data = spelled[token]
        return {"token": shown(data), "logprob": logprob, "bytes": list(data)}

    top = [one(*other) for other in entry.top]
    return one(token, entry.logprob) | {"top_logprobs": top}


def shown(data: bytes) -> str:
    """A token as OpenAI shows it: text, or its bytes where it is a part of a character."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


# ---------------------------------------------------------------- embeddings


async def _embed(
    service: Service, config: ServerConfig, request: HttpRequest, asked: Embed
) -> Response:
    deadline = time.monotonic() + (config.request_timeout_seconds or math.inf)
    async with _model(service, request, asked.model) as model:
        size = model.signatures.embedding_size
        if asked.dimensions not in (None, size):
            raise InvalidField("dimensions", f"left out or {size}", asked.dimensions)
        with service.text():
            texts, usage = await _texts(model.signatures, asked.inputs)
            vectors = await model.signatures.embed(texts, deadline)
        write = functools.partial(_embedding_list, asked, vectors, usage)
        content = write() if is_small([vectors]) else await service.in_thread(write)
    metrics.count_request(asked.model, Code.OK.name)
    return Response(content, media_type="application/json")


def _embedding_list(asked: Embed, vectors: np.ndarray, num_tokens: int) -> bytes:
    rows = []
    for i, vector in enumerate(vectors.astype("<f4")):
        if asked.is_base64:
            found: Any = base64.b64encode(vector.tobytes()).decode()
        else:
            found = vector.tolist()
        # Row by row: nobody else gets on while orjson writes.
        rows.append(orjson.dumps({"object": "embedding", "index": i, "embedding": found}))
    usage = {"prompt_tokens": num_tokens, "total_tokens": num_tokens}
    rest = orjson.dumps({"model": asked.model, "usage": usage})
    return b'{"object":"list","data":[' + b",".join(rows) + b"]," + rest[1:]


def _too_long(num_tokens: int, writer: Writer) -> TooLong:
    return TooLong("input", num_tokens, writer.context_length, has_answer=False, may_cut=False)


async def _texts(writer: Writer, inputs: Sequence[Prompt]) -> tuple[list[str], int]:
    """The inputs as texts, and how many tokens all of them have."""
    rows = [one for one in inputs if not isinstance(one, str)]
    for row in rows:
        if len(row) > writer.context_length - 1:
            raise _too_long(len(row), writer)
        check_tokens("input", row, writer.vocabulary_size)
    made = iter(await writer.detokenize(rows) if rows else [])
    texts = [one if isinstance(one, str) else next(made) for one in inputs]
    found = await writer.tokenize(texts)
    for one in found:
        if one.num_tokens > writer.context_length - 1:
            raise _too_long(one.num_tokens, writer)
    return texts, sum(one.num_tokens for one in found)
