"""Writing through a model's signatures, a few tokens a call: what any server of the model can do.

Each call reads the text from its beginning, so this costs more than the engine's cache; but it
needs nothing beside `predict`, a stock server's batcher mixes the calls of many, and whoever leaves
is out after one call.
"""

import asyncio
import math
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from model import signatures
from serving.codec import Arrays
from serving.errors import Code, ServingError
from serving.writing import (
    Assembler,
    InvalidField,
    Piece,
    Request,
    Scored,
    Spelling,
    TokenLogprob,
    Tokens,
    check_tokens,
    differences,
    last_tokens,
    token_logprobs,
)

ROWS_AT_ONCE = 256  # in one call of a signature
READ_AT_ONCE = 32  # of one that runs the network over whole texts: bounds memory
TOO_MANY_ROWS = "larger than maximum input batch size"  # in TensorFlow Serving's words
MOST_TOKENS = 8  # of one call: the first text comes after one token, then calls grow

_FLOATS = (
    signatures.TEMPERATURE,
    signatures.TOP_P,
    signatures.MIN_P,
    signatures.REPETITION_PENALTY,
    signatures.PRESENCE_PENALTY,
    signatures.FREQUENCY_PENALTY,
)

InThread = Callable[..., Awaitable[Any]]


class Runs(Protocol):
    """What is asked of a servable, the embedded one or the backend's."""

    name: str
    signatures: Any  # of SignatureDef by name
    shared: dict[str, Any]  # kept for as long as the version is

    def run(
        self, signature_name: str, inputs: Arrays, *, timeout: float | None = None
    ) -> Arrays: ...


def check_writes(servable: Runs) -> None:
    """Raises ServingError INVALID_ARGUMENT, with what to do, for a model that does not write."""
    wanted = (signatures.TOKENIZE, signatures.DETOKENIZE, signatures.NEXT_TOKENS)
    missing = [name for name in wanted if name not in servable.signatures]
    if not missing:
        return
    default = servable.signatures.get(signatures.SERVING_DEFAULT)
    if default is not None and signatures.PROMPT in default.inputs:
        advice = "it was exported by an older Stepwise: export it again"
    else:
        advice = f"it is no language model: ask /v1/models/{servable.name}:predict"
    raise ServingError(
        Code.INVALID_ARGUMENT,
        f"Model {servable.name!r} does not write text piece by piece, {advice}. "
        f"(It has no signature {', '.join(missing)}.)",
    )


class ModelText:
    """What a `Writer` does besides writing, by a servable's signatures; `run` goes by `in_thread`.

    Raises ServingError, as `check_writes`, for a servable that does not write.
    """

    def __init__(self, servable: Runs, in_thread: InThread = asyncio.to_thread) -> None:
        check_writes(servable)
        self._servable, self._in_thread = servable, in_thread
        shape = servable.signatures[signatures.NEXT_TOKENS].inputs[signatures.TOKENS].tensor_shape
        self.context_length: int = shape.dim[1].size
        self.vocabulary_size = _vocabulary_size(servable)
        self._spelling: Spelling | None = None
        if signatures.TEXT_BYTES in servable.signatures[signatures.DETOKENIZE].outputs:
            self._spelling = servable.shared.setdefault("spelling", Spelling(self._bytes))

    async def tokenize(self, texts: Sequence[str]) -> list[Tokens]:
        found: list[Tokens] = []
        for batch in _batches(texts, ROWS_AT_ONCE):  # whoever leaves is out after one of them
            found += await self._in_thread(self._tokenize, batch)
        return found

    async def detokenize(self, rows: Sequence[Sequence[int]]) -> list[str]:
        return [text.decode(errors="replace") for text in await self._in_thread(self._texts, rows)]

    async def spell(self, tokens: Sequence[int]) -> list[bytes]:
        if self._spelling:
            return await self._in_thread(self._spelling, tokens)
        return await self._in_thread(self._texts, [(token,) for token in tokens])

    def _tokenize(self, texts: Sequence[str]) -> list[Tokens]:
        outputs = self._run(signatures.TOKENIZE, {signatures.TEXT: _column(texts)})
        rows, sizes = outputs[signatures.TOKENS].tolist(), outputs[signatures.NUM_TOKENS].tolist()
        return [
            Tokens(tuple(row[: min(size, self.context_length)]), size)
            for row, size in zip(rows, sizes, strict=True)
        ]

    def _texts(self, rows: Sequence[Sequence[int]]) -> list[bytes]:
        return self._joined(self._padded(rows), list(map(len, rows)), signatures.TEXT)

    def _bytes(self, tokens: np.ndarray, num_tokens: np.ndarray) -> list[bytes]:
        return self._joined(
            self._padded(tokens.tolist()), num_tokens.tolist(), signatures.TEXT_BYTES
        )

    def _joined(self, tokens: np.ndarray, num_tokens: list[int], output: str) -> list[bytes]:
        if not len(tokens):
            return []
        inputs = {
            signatures.TOKENS: tokens,
            signatures.NUM_TOKENS: np.array(num_tokens, np.int32),
        }
        return self._run(signatures.DETOKENIZE, inputs)[output].tolist()

    def _run(
        self,
        signature_name: str,
        inputs: Arrays,
        at_once: int = ROWS_AT_ONCE,
        deadline: float = math.inf,
    ) -> Arrays:
        """The outputs of all rows, run by so many, or by fewer where the server's batches are
        smaller: of a remote one nobody tells how small. `deadline` is of `time.monotonic()`."""
        num_rows = len(next(iter(inputs.values())))
        if num_rows <= at_once:
            try:
                return self._servable.run(signature_name, inputs, timeout=_left(deadline))
            except ServingError as error:
                if num_rows == 1 or TOO_MANY_ROWS not in error.message:
                    raise
                at_once = num_rows // 2
        parts = [
            self._run(
                signature_name,
                {alias: array[start : start + at_once] for alias, array in inputs.items()},
                at_once,
                deadline,
            )
            for start in range(0, num_rows, at_once)
        ]
        return {alias: np.concatenate([part[alias] for part in parts]) for alias in parts[0]}

    def _padded(self, rows: Sequence[Sequence[int]]) -> np.ndarray:
        padded = np.zeros((len(rows), self.context_length), np.int32)
        for row, tokens in zip(padded, rows, strict=True):
            row[: len(tokens)] = tokens
        return padded

    def _prompt(self, request: Request) -> tuple[int, ...]:
        prompt = request.prompt
        if isinstance(prompt, str):
            (found,) = self._tokenize([prompt])
            prompt = found.tokens
        else:
            check_tokens("prompt", prompt, self.vocabulary_size)
        return last_tokens(prompt, request.max_tokens, self.context_length)

    def _spelled(
        self, written: Sequence[int], tokens: Sequence[int], text: str, *, is_end: bool
    ) -> tuple[list[bytes], str]:
        """What each of `tokens` adds to `text`, the text of `written`, and the text with them.

        Of tokenizers that are concatenations the text is not needed and comes back as it is.
        """
        if self._spelling:
            return self._spelling(tokens), text
        # As many rows as tokens: the whole answer after each of them.
        answers = [(*written, *tokens[: i + 1]) for i in range(len(tokens))]
        texts = [data.decode(errors="replace") for data in self._texts(answers)]
        spelled = differences(text, texts, is_end=is_end)
        return spelled, text + b"".join(spelled).decode()


class NextTokensWriter(ModelText):
    """A `Writer` that asks `next_tokens` again and again, for 1, 2, 4, then 8 tokens; and what else
    its model's signatures tell of texts, `READ_AT_ONCE` of them after the other: whoever leaves is
    out after one call, and by its `deadline`, a time of `time.monotonic()`."""

    @property
    def embedding_size(self) -> int | None:
        """Numbers of an embedding; None where the model makes none, or does not tell."""
        signature = self._servable.signatures.get(signatures.EMBED)
        if signature is None:
            return None
        size = signature.outputs[signatures.EMBEDDING].tensor_shape.dim[1].size
        return size if size > 0 else None

    async def embed(self, texts: Sequence[str], deadline: float = math.inf) -> np.ndarray:
        """float32 (B, D): rows of length 1."""
        self._check_has(signatures.EMBED, "makes no embeddings")
        parts = []
        for batch in _batches(texts, READ_AT_ONCE):
            inputs = {signatures.TEXT: _column(batch)}
            parts.append(
                await self._in_thread(self._run, signatures.EMBED, inputs, READ_AT_ONCE, deadline)
            )
        return np.concatenate([part[signatures.EMBEDDING] for part in parts])

    async def score(
        self, prompts: Sequence[Sequence[int]], deadline: float = math.inf
    ) -> list[Scored]:
        """Of prompts that are shorter than the context, and tokens as their text is made into."""
        self._check_has(signatures.SCORE, "tells no probabilities of a text")
        scored: list[Scored] = []
        for batch in _batches(prompts, READ_AT_ONCE):
            scored += await self._in_thread(self._score, batch, deadline)
        return scored

    def _check_has(self, signature_name: str, lack: str) -> None:
        if signature_name not in self._servable.signatures:
            raise ServingError(
                Code.INVALID_ARGUMENT,
                f"Model {self._servable.name!r} {lack}: it has no signature {signature_name}.",
            )

    def _score(self, prompts: Sequence[Sequence[int]], deadline: float) -> list[Scored]:
        """By text, as the signature takes it: tokens that no text has are refused."""
        column = np.array(self._texts(prompts), object)
        outputs = self._run(signatures.SCORE, {signatures.TEXT: column}, READ_AT_ONCE, deadline)
        scored = []
        for row, prompt in enumerate(prompts):
            size = int(outputs[signatures.NUM_TOKENS][row])
            tokens = outputs[signatures.TOKENS][row, :size].tolist()
            if tokens != list(prompt):
                expected = "the tokens that `tokenize` makes of its text, or that text"
                raise InvalidField("prompt", expected, list(prompt))
            logprobs = _logprobs(outputs, row, size, signatures.NUM_TOP)
            scored.append(Scored(tuple(tokens), tuple(logprobs)))
        return scored

    async def write(self, request: Request) -> AsyncGenerator[Piece, None]:
        prompt = await self._in_thread(self._prompt, request)
        assembler = Assembler(request, num_prompt_tokens=len(prompt))
        written: list[int] = []
        text, num_more = "", 1
        while not assembler.finish_reason:
            left = request.max_tokens - len(written)
            tokens, spelled, logprobs, reason, text = await self._in_thread(
                self._next, request, prompt, written, text, min(num_more, left)
            )
            written += tokens
            num_more = min(2 * num_more, MOST_TOKENS)
            yield assembler.add(tokens, spelled, logprobs, reason)

    def _next(
        self, request: Request, prompt: tuple[int, ...], written: list[int], text: str, count: int
    ) -> tuple[list[int], list[bytes], list[TokenLogprob], str | None, str]:
        """Up to `count` more tokens, what each adds to the text, and why there are no more.

        `text` is that of `written`, and comes back with what was added to it.
        """
        if count <= 0:
            return [], [], [], signatures.FINISH_LENGTH, text
        values: dict[str, Any] = {
            name: getattr(request, name)
            for name in signatures.NEXT_TOKENS_INPUTS
            if hasattr(request, name)
        }
        values[signatures.MAX_TOKENS] = count
        values[signatures.NUM_PROMPT] = len(prompt)
        values[signatures.NUM_TOKENS] = len(prompt) + len(written)
        inputs = {
            name: np.array([value], np.float32 if name in _FLOATS else np.int32)
            for name, value in values.items()
        }
        inputs[signatures.TOKENS] = self._padded([(*prompt, *written)])
        deadline = math.inf if request.deadline is None else request.deadline
        outputs = self._servable.run(signatures.NEXT_TOKENS, inputs, timeout=_left(deadline))
        num_new = int(outputs[signatures.NUM_TOKENS][0])
        tokens = outputs[signatures.TOKENS][0, :num_new].tolist()
        reason = bytes(outputs[signatures.FINISH_REASON][0]).decode() or None
        if not tokens and reason is None:
            raise ServingError(Code.INTERNAL, "The model wrote nothing and did not end.")
        logprobs = _logprobs(outputs, 0, num_new, request.logprobs)
        is_end = reason is not None or len(written) + num_new >= request.max_tokens
        spelled, text = self._spelled(written, tokens, text, is_end=is_end)
        return tokens, spelled, logprobs, reason, text


def _vocabulary_size(servable: Runs) -> int | None:
    """By the logits of a signature, else as the manifest says, which no backend shows."""
    decode = servable.signatures.get(signatures.DECODE)
    if decode is not None:
        return decode.outputs[signatures.LOGITS].tensor_shape.dim[1].size
    return servable.shared.get(signatures.VOCABULARY_SIZE)


def _left(deadline: float) -> float | None:
    """Seconds; None: as many as it takes."""
    return None if deadline == math.inf else deadline - time.monotonic()


def _batches(rows: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    return (rows[start : start + size] for start in range(0, len(rows), size))


def _column(texts: Sequence[str]) -> np.ndarray:
    return np.array([text.encode(errors="replace") for text in texts], object)


def _logprobs(outputs: Arrays, row: int, count: int, num_top: int | None) -> list[TokenLogprob]:
    """Those of the first `count` places of a row, none if they are not asked for."""
    return token_logprobs(
        outputs[signatures.LOGPROBS][row, :count],
        outputs[signatures.TOP_TOKENS][row, :count],
        outputs[signatures.TOP_LOGPROBS][row, :count],
        num_top,
    )
