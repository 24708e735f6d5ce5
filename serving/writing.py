"""What a network is asked to write, what comes of it, and the text that tokens add up to.

The seam between those who write, the engine and `serving/next_tokens.py`, and the doors that ask
them. Plain Python, no TensorFlow.
"""

import codecs
import math
import reprlib
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from model.signatures import FINISH_LENGTH, FINISH_STOP
from serving.errors import Code, ServingError

MAX_LOGPROBS = 5  # alternatives that a network's `score` tells of
MAX_STOP_STRINGS = 4  # that a caller may ask for, as at OpenAI
MAX_STOP_CHARACTERS = 256  # of one stop string
MAX_SHOWN = 80  # characters of a caller's value in a message

Detokenize = Callable[[np.ndarray, np.ndarray], Sequence[bytes]]
"""Tokens int32 (B, T), num_tokens int32 (B,) -> the bytes of each row, UTF-8 or not."""


_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = MAX_SHOWN


def short(value: object) -> str:
    """A value for a message, cut: what callers send does not come back whole.

    >>> short(["a", 2]), short("a" * 100), short([0] * 1000)
    ("['a', 2]", 'a str of 100', 'a list of 1000')
    """
    if isinstance(value, list | dict | str) and len(value) > MAX_SHOWN:
        return f"a {type(value).__name__} of {len(value)}"
    return cut(_REPR.repr(value))  # not `repr`, which would write out all that is inside


def cut(text: str) -> str:
    return text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 3]}..."


class InvalidField(ServingError):
    """A field of a request that is out of range; `field` is its name."""

    def __init__(self, field: str, wanted: str, received: object) -> None:
        text = f"{field} must be {wanted}. Received: {short(received)}"
        super().__init__(Code.INVALID_ARGUMENT, text)
        self.field = field


@dataclass(frozen=True, kw_only=True)
class Request:
    """One text to be continued. Raises InvalidField for what is out of range, but of `stop`, which
    `stop_strings` checks where it comes in.

    Of a `prompt` that is too long for the context the last tokens are read (`last_tokens`). A
    prompt of tokens has no BEGIN. `deadline` is a time of `time.monotonic()`.
    """

    prompt: str | tuple[int, ...]
    max_tokens: int = 16  # 0 writes nothing
    temperature: float = 1.0  # 0 is greedy
    top_k: int = 0  # 0 switches it off
    top_p: float = 1.0  # 1 switches it off
    min_p: float = 0.0  # 0 switches it off
    repetition_penalty: float = 1.0  # 1 changes nothing
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int = 0
    stop: tuple[str, ...] = ()  # the text ends in front of the first of them
    logprobs: int | None = None  # how many alternatives to each token; None: no log-probabilities
    deadline: float | None = None
    caller: str = ""  # between callers turns are taken

    def __post_init__(self) -> None:
        _whole("max_tokens", self.max_tokens, 0, 2**31 - 1)
        _number("temperature", self.temperature, 0, 100)
        _whole("top_k", self.top_k, 0, 2**31 - 1)
        _number("top_p", self.top_p, 0, 1)
        if self.top_p == 0:
            raise InvalidField("top_p", "above 0 and at most 1", self.top_p)
        _number("min_p", self.min_p, 0, 1)
        _number("repetition_penalty", self.repetition_penalty, 0, 10)
        if self.repetition_penalty == 0:
            raise InvalidField("repetition_penalty", "above 0 and at most 10", 0)
        _number("presence_penalty", self.presence_penalty, -2, 2)
        _number("frequency_penalty", self.frequency_penalty, -2, 2)
        _whole("seed", self.seed, -(2**31), 2**31 - 1)
        if self.logprobs is not None:
            _whole("logprobs", self.logprobs, 0, MAX_LOGPROBS)


def stop_strings(stop: object) -> tuple[str, ...]:
    """One or several stop strings as a caller gives them. Raises InvalidField."""
    strings = [stop] if isinstance(stop, str) else stop
    if not isinstance(strings, list) or len(strings) > MAX_STOP_STRINGS:
        raise InvalidField("stop", f"a string or at most {MAX_STOP_STRINGS} of them", stop)
    for one in strings:
        if not isinstance(one, str) or not 0 < len(one) <= MAX_STOP_CHARACTERS:
            raise InvalidField("stop", f"strings of 1 to {MAX_STOP_CHARACTERS} characters", one)
    return tuple(strings)


@dataclass(frozen=True)
class TokenLogprob:
    """Natural logarithms of probabilities, of the network's own distribution: temperature 1, before
    anything narrows it."""

    logprob: float
    top: tuple[tuple[int, float], ...] = ()  # (token, logprob) of the likeliest, in that order


@dataclass(frozen=True)
class Piece:
    """What was written since the piece before. The last piece alone has a `finish_reason`.

    `text` never ends in half a character, and lags behind `tokens` while it may turn out to be the
    beginning of a stop string. `logprobs` are as many as `tokens`, or none if none were asked for.
    """

    text: str
    tokens: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...]
    finish_reason: str | None  # "stop": the network ended it or a stop string did; or "length"
    num_prompt_tokens: int  # that were read
    num_cached_tokens: int = 0  # of them, whose keys and values were there already


@dataclass(frozen=True)
class Tokens:
    """A text as tokens, without BEGIN: of a text that is longer than the context, the last ones."""

    tokens: tuple[int, ...]
    num_tokens: int  # of the whole text


@dataclass(frozen=True)
class Scored:
    """A text and how likely each of its tokens was after those before it, the first after BEGIN."""

    tokens: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...]


class Writer(Protocol):
    """A network that writes. What it lacks it refuses with a ServingError UNIMPLEMENTED."""

    context_length: int  # tokens of BEGIN, prompt and answer together
    vocabulary_size: int | None  # tokens are below it; None where nobody says

    def write(self, request: Request) -> AsyncGenerator[Piece, None]:
        """Pieces as they come, the last one with a finish reason. Closing it (`aclose`) cancels.

        Raises ServingError, of a deadline DEADLINE_EXCEEDED.
        """
        ...

    async def tokenize(self, texts: Sequence[str]) -> list[Tokens]: ...

    async def detokenize(self, rows: Sequence[Sequence[int]]) -> list[str]: ...

    async def spell(self, tokens: Sequence[int]) -> list[bytes]:
        """The bytes of each token by itself, to be shown."""
        ...


class Spelling:
    """The bytes that each token stands for, asked of `detokenize` the first time it is met.

    For tokenizers whose texts are the bytes of their tokens one after another. Safe to call from
    many threads.
    """

    def __init__(self, detokenize: Detokenize) -> None:
        self._detokenize = detokenize
        self._known: dict[int, bytes] = {}

    def learn(self, tokens: Iterable[int]) -> None:
        """Asks for all that are not known, so that they are there when they are wanted."""
        # Not a difference of sets, which would go through all that is known at every token.
        new = sorted({token for token in tokens if token not in self._known})
        if new:
            rows = np.array(new, np.int32)[:, None]
            spelled = self._detokenize(rows, np.ones(len(new), np.int32))
            self._known.update(zip(new, map(bytes, spelled), strict=True))

    def __call__(self, tokens: Sequence[int]) -> list[bytes]:
        self.learn(tokens)
        return [self._known[token] for token in tokens]


class Assembler:
    """Makes the pieces of one answer out of its tokens: text, counts, end.

    What a stop string may begin with is held back until that is decided, half characters until the
    rest comes. What is no UTF-8 comes as U+FFFD, as from `detokenize`.
    """

    def __init__(
        self, request: Request, *, num_prompt_tokens: int, num_cached_tokens: int = 0
    ) -> None:
        self._request = request
        self._num_prompt_tokens, self._num_cached_tokens = num_prompt_tokens, num_cached_tokens
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""  # decoded and not given out: a stop string may begin in it
        self.num_tokens = 0
        self.finish_reason: str | None = None

    def add(
        self,
        tokens: Sequence[int],
        spelled: Sequence[bytes],
        logprobs: Sequence[TokenLogprob] = (),
        finish_reason: str | None = None,
    ) -> Piece:
        """The piece of further tokens, each with what it adds to the bytes of the text.

        `finish_reason` is why the network writes no more after them. The answer ends earlier with
        the token that completes a stop string, or with its `max_tokens`; the rest is left out.
        Raises ValueError after the end.
        """
        if self.finish_reason:
            raise ValueError(f"The answer has ended ({self.finish_reason}), and more tokens came")
        sure, taken, stopped = "", 0, False
        left = self._request.max_tokens - self.num_tokens
        for data in spelled[: max(left, 0)]:
            text, stopped = self._sure(self._decoder.decode(data))
            sure, taken, self.num_tokens = sure + text, taken + 1, self.num_tokens + 1
            if stopped:
                break
        if taken >= left:
            finish_reason = FINISH_LENGTH
        if finish_reason and not stopped:
            text, stopped = self._sure(self._decoder.decode(b"", final=True))
            sure += text if stopped else text + self._held
        self.finish_reason = FINISH_STOP if stopped else finish_reason
        return Piece(
            sure,
            tuple(tokens[:taken]),
            tuple(logprobs[:taken]),
            self.finish_reason,
            self._num_prompt_tokens,
            self._num_cached_tokens,
        )

    def _sure(self, text: str) -> tuple[str, bool]:
        """What may be given out now that `text` has come, and whether a stop string has."""
        stop, text = self._request.stop, self._held + text
        found = [start for one in stop if (start := text.find(one)) >= 0]
        if found:
            self._held = ""
            return text[: min(found)], True
        held = _held_back(text, stop)
        self._held = text[len(text) - held :]
        return text[: len(text) - held], False


def token_logprobs(
    logprobs: np.ndarray, top_tokens: np.ndarray, top_logprobs: np.ndarray, num_top: int | None
) -> list[TokenLogprob]:
    """Of the tokens of a row, float (T,), with `num_top` of their alternatives, (T, at least so
    many); none if that is None."""
    if num_top is None:
        return []
    return [
        TokenLogprob(logprob, tuple(zip(tokens[:num_top], likely[:num_top], strict=True)))
        for logprob, tokens, likely in zip(
            logprobs.tolist(), top_tokens.tolist(), top_logprobs.tolist(), strict=True
        )
    ]


def last_tokens(prompt: Sequence[int], max_tokens: int, context_length: int) -> tuple[int, ...]:
    """The end of a prompt that, behind BEGIN, leaves room for the answer in the context: for its
    `max_tokens`, but at most half of the context, and one at least."""
    room = min(max(max_tokens, 1), context_length // 2)
    return tuple(prompt[max(len(prompt) - (context_length - room - 1), 0) :])


def check_tokens(field: str, tokens: Iterable[int], vocabulary_size: int | None) -> None:
    """Raises InvalidField for the first of `tokens` that the vocabulary does not have."""
    most = (vocabulary_size or 2**31) - 1
    for token in tokens:
        if not 1 <= token <= most:
            wanted = f"from 1 to {most}: its vocabulary has {vocabulary_size}"
            if vocabulary_size is None:
                wanted = "which begin at 1"
            raise InvalidField(field, f"of tokens of the model, {wanted}", token)


def differences(before: str, texts: Sequence[str], *, is_end: bool) -> list[bytes]:
    """What each of `texts`, the whole answer after one more token, adds to `before`.

    For tokenizers that are no concatenation of bytes. A text may end in half a character, which
    `detokenize` writes as U+FFFD: these count only at the end of the answer.
    """
    spelled = []
    for i, text in enumerate(texts):
        if not (is_end and i == len(texts) - 1):
            text = text.rstrip("\ufffd")
        grown = text[len(before) :] if text.startswith(before) else ""
        before += grown
        spelled.append(grown.encode())
    return spelled


def _held_back(text: str, stop: tuple[str, ...]) -> int:
    """How many characters at the end of `text` a stop string may begin with."""
    longest = max(map(len, stop), default=1) - 1
    for size in range(min(longest, len(text)), 0, -1):
        end = text[len(text) - size :]
        if any(one.startswith(end) for one in stop):
            return size
    return 0


def _whole(field: str, value: object, least: int, most: int) -> None:
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    if not is_whole or not least <= value <= most:  # type: ignore[operator]
        raise InvalidField(field, f"a whole number from {least} to {most}", value)


def _number(field: str, value: object, least: float, most: float) -> None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or not least <= value <= most:  # type: ignore[arg-type,operator]
        raise InvalidField(field, f"a number from {least:g} to {most:g}", value)
