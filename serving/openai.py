"""OpenAI's API over the models that write: completions, chats, embeddings, whole or as events.

What is asked is read by `openai_requests`, written by a `Writer` (the engine where a version has
one, else its signatures), and put here into OpenAI's form. Under its URLs, errors have it too.
"""

import asyncio
import base64
import codecs
import contextlib
import json
import logging
import math
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import orjson
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from serving import json_text, metrics, openai_requests
from serving.config import ServerConfig
from serving.errors import INTERNAL_TEXT, Code, ServingError, as_serving_error
from serving.next_tokens import NextTokensWriter
from serving.openai_requests import Asked, Embed, Prompt
from serving.service import Service
from serving.writing import InvalidField, Piece, TokenLogprob, Writer, check_tokens

log = logging.getLogger(__name__)

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
EMBEDDINGS, MODELS = "/v1/embeddings", "/v1/models"
PATHS = (COMPLETIONS, CHAT, EMBEDDINGS)
CLIENT_HEADER = "x-stainless-lang"  # what OpenAI's own clients say on every request
OWNER = "stepwise"
SMALL_BODY = 16 * 1024  # bytes that the event loop reads itself

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

    def __init__(self, field: str, num_tokens: int, context_length: int) -> None:
        ServingError.__init__(
            self,
            Code.INVALID_ARGUMENT,
            f"This model's context is {context_length} tokens, with one before the text and at "
            f"least one of an answer, and {field} has {num_tokens}. Send less, or have only its "
            "end read: truncate_prompt_tokens: -1.",
        )
        self.field = field


def handles(method: str, path: str) -> bool:
    return method == "POST" and path in PATHS


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
    elif known.code is Code.UNAUTHENTICATED:
        code = "invalid_api_key"
    status = known.code.http_status
    return status, error_body(status, known.message, param=param, code=code)


async def answer(service: Service, config: ServerConfig, request: HttpRequest) -> Response:
    """The answer to a POST of one of `PATHS`; an error is one, too, in OpenAI's form."""
    path, name = request.url.path, ""
    try:
        body = await _body(request, config)
        if path == EMBEDDINGS:
            asked = openai_requests.embeddings(body, config)
            name = request.state.model_name = asked.model
            response = await _embed(service, config, request, asked)
        else:
            read = openai_requests.chat if path == CHAT else openai_requests.completion
            wanted = replace(read(body, config), caller=getattr(request.state, "caller", ""))
            name = request.state.model_name = wanted.model
            response = await _write(service, config, request, wanted)
    except ClientDisconnect:
        raise
    except Exception as error:
        known = as_serving_error(error)
        if hasattr(request.state, "model_version"):  # a name that is known, not any that is sent
            metrics.count_request(name, known.code.name if known else Code.INTERNAL.name)
        status, content = error_of(error)
        return Response(content, status, media_type="application/json")
    return response


def model_object(name: str) -> dict[str, Any]:
    """A model as OpenAI's list has it."""
    return {"id": name, "object": "model", "created": _STARTED, "owned_by": OWNER}


async def _body(request: HttpRequest, config: ServerConfig) -> Any:
    if "gzip" in request.headers.get("content-encoding", ""):
        raise ServingError(Code.INVALID_ARGUMENT, "Send the body as it is, without gzip.")
    body = await request.body()
    if len(body) > SMALL_BODY:
        return await asyncio.to_thread(json_text.parse, body, config.max_json_depth)
    return json_text.parse(body, config.max_json_depth)


# ---------------------------------------------------------------- the model


@contextlib.asynccontextmanager
async def _writer(service: Service, request: HttpRequest, name: str) -> AsyncIterator[Writer]:
    """The model's writer, which stays loaded in the block; the task counts as running."""
    async with service.stream(), contextlib.AsyncExitStack() as stack:
        acquired = service.repository.acquire(name)
        try:
            servable = await service.in_thread(acquired.__enter__)
        except ServingError as error:
            if error.code is Code.NOT_FOUND:
                raise NoSuchModel(name, error.message) from error
            raise
        stack.push(acquired.__exit__)
        writer = servable.writer or NextTokensWriter(servable, service.in_thread)
        request.state.model_version = servable.version
        yield writer


async def _read(writer: Writer, asked: Asked) -> list[tuple[int, ...]]:
    """The prompts as tokens. Raises TooLong for one that leaves no room for an answer."""
    texts = [prompt for prompt in asked.prompts if isinstance(prompt, str)]
    found = iter(await writer.tokenize(texts))
    prompts = []
    most = writer.context_length - 2  # BEGIN and a token of the answer
    field = "messages" if asked.is_chat else "prompt"
    for prompt in asked.prompts:
        if isinstance(prompt, str):
            read = next(found)
            tokens, size = read.tokens, read.num_tokens
        else:
            check_tokens(field, prompt, writer.vocabulary_size)
            tokens, size = prompt, len(prompt)
        if asked.truncate is not None:
            kept = most
            if asked.truncate > 0:
                kept = min(most, asked.truncate)
            elif asked.max_tokens:  # as many as leave room, but at most half of the context
                kept = writer.context_length - 1
                kept -= min(asked.max_tokens, writer.context_length // 2)
            tokens = tokens[max(len(tokens) - kept, 0) :]
            size = min(size, kept)
        if size > most:
            raise TooLong(field, size, writer.context_length)
        prompts.append(tuple(tokens))
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
    num_prompt: int = 0
    num_cached: int = 0
    num_completion: int = 0

    def to_json(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self.num_prompt,
            "completion_tokens": self.num_completion,
            "total_tokens": self.num_prompt + self.num_completion,
            "prompt_tokens_details": {"cached_tokens": self.num_cached},
        }


async def _parts(
    writer: Writer,
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
    usage.num_prompt = sum(map(len, prompts))
    if asked.echo:
        echoes = await _echoes(writer, asked, prompts)
        for choice in choices:
            yield _Part(choice, *echoes[choice.prompt])
    streams = []
    for choice in choices:
        prompt = prompts[choice.prompt]
        most = writer.context_length - 1 - len(prompt)
        number = choice.index - choice.prompt * asked.best_of
        streams.append(writer.write(asked.request(prompt, number, most, deadline)))
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
    writer: Writer, asked: Asked, prompts: list[tuple[int, ...]]
) -> list[tuple[str, tuple[int, ...], list[TokenLogprob]]]:
    """Text, tokens and, if asked for, their probabilities, the first one's after BEGIN."""
    texts: list[str] = [prompt for prompt in asked.prompts if isinstance(prompt, str)]
    if len(texts) < len(prompts) or asked.truncate is not None:
        texts = await writer.detokenize(prompts)
    top = asked.logprobs
    if top is None:
        return [(text, (), []) for text in texts]
    scores = await writer.score(prompts)
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
    async with _writer(service, request, asked.model) as writer:
        prompts = await _read(writer, asked)
        parts = [part async for part in _parts(writer, asked, prompts, usage, deadline)]
        form = _Form(asked, writer)
        content = await form.whole(parts, usage, len(prompts))
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
        async with _writer(service, request, asked.model) as writer:
            prompts = await _read(writer, asked)
            form = _Form(asked, writer)
            async with contextlib.aclosing(
                _parts(writer, asked, prompts, usage, deadline)
            ) as parts:
                async for part in parts:
                    for chunk in await form.chunks(part):
                        yield _event(chunk)
                        has_begun = True
            if asked.include_usage:
                yield _event(form.usage_chunk(usage))
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

    def __init__(self, asked: Asked, writer: Writer) -> None:
        self._asked, self._writer = asked, writer
        self._id = f"{'chatcmpl' if asked.is_chat else 'cmpl'}-{uuid.uuid4().hex}"
        self._created = int(time.time())
        self._introduced: set[int] = set()
        self._blanks: set[int] = set()  # choices of a chat that have begun with text

    async def whole(self, parts: Sequence[_Part], usage: _Usage, num_prompts: int) -> Any:
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
        return self._head(kind, choices) | {"usage": usage.to_json()}

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

    def usage_chunk(self, usage: _Usage) -> dict[str, Any]:
        return self._chunk([]) | {"usage": usage.to_json()}

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        kind = "chat.completion.chunk" if self._asked.is_chat else "text_completion"
        usage = {"usage": None} if self._asked.include_usage else {}
        return self._head(kind, choices) | usage

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
        likely = {shown(spelled[other]): logprob for other, logprob in entry.top}
        top.append({shown(spelled[token]): entry.logprob} | likely)
    return {
        "tokens": [shown(spelled[token]) for _, token, _ in entries],
        "token_logprobs": [entry.logprob for *_, entry in entries],
        "top_logprobs": top,
        "text_offset": offsets,
    }


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
    async with _writer(service, request, asked.model) as writer:
        texts, usage = await _texts(writer, asked.inputs)
        vectors = await writer.embed(texts)
    if asked.dimensions not in (None, vectors.shape[1]):
        raise InvalidField("dimensions", f"left out or {vectors.shape[1]}", asked.dimensions)
    vectors = vectors.astype("<f4")
    data = [
        {
            "object": "embedding",
            "index": i,
            "embedding": base64.b64encode(vector.tobytes()).decode()
            if asked.is_base64
            else vector.tolist(),
        }
        for i, vector in enumerate(vectors)
    ]
    metrics.count_request(asked.model, Code.OK.name)
    content = {
        "object": "list",
        "data": data,
        "model": asked.model,
        "usage": {"prompt_tokens": usage, "total_tokens": usage},
    }
    return Response(orjson.dumps(content), media_type="application/json")


async def _texts(writer: Writer, inputs: Sequence[Prompt]) -> tuple[list[str], int]:
    """The inputs as texts, and how many tokens all of them have."""
    rows = [one for one in inputs if not isinstance(one, str)]
    for row in rows:
        check_tokens("input", row, writer.vocabulary_size)
        if len(row) > writer.context_length - 1:
            raise TooLong("input", len(row), writer.context_length)
    made = iter(await writer.detokenize(rows) if rows else [])
    texts = [one if isinstance(one, str) else next(made) for one in inputs]
    found = await writer.tokenize(texts)
    for one in found:
        if one.num_tokens > writer.context_length - 1:
            raise TooLong("input", one.num_tokens, writer.context_length)
    return texts, sum(one.num_tokens for one in found)
