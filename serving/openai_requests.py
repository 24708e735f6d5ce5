"""Bodies of OpenAI's API as what we are asked to do, and nothing half understood.

Every field is checked before anything runs. What we lack is refused in a sentence rather than left
out in silence; a field of null is one that was not sent.
"""

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from serving.config import ServerConfig
from serving.errors import Code, ServingError
from serving.writing import MAX_LOGPROBS, InvalidField, Request, cut, stop_strings

DEFAULT_TOKENS = 16  # of a completion, as at OpenAI; a chat's answer may fill the context

# The last one is vLLM's; obfuscation there is none to leave out.
STREAM_OPTIONS = ("include_usage", "include_obfuscation", "continuous_usage_stats")
# Known fields that change nothing here.
WITHOUT_EFFECT = frozenset(
    {"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"}
)
LACKING = {
    "suffix": "these networks write from left to right",
    "logit_bias": "tokens have no weights here",
    "tools": "these networks call no functions",
    "tool_choice": "these networks call no functions",
    "parallel_tool_calls": "these networks call no functions",
    "functions": "these networks call no functions",
    "function_call": "these networks call no functions",
    "audio": "these networks know only text",
    "prediction": "there are no predicted outputs here",
    "reasoning_effort": "these networks do not reason apart from their answer",
    "verbosity": "the length of an answer is bounded by max_completion_tokens",
    "web_search_options": "this server searches nothing",
}
OF_BOTH = frozenset(
    {
        "model",
        "n",
        "stop",
        "seed",
        "stream",
        "stream_options",
        "max_tokens",
        "temperature",
        "top_p",
        "presence_penalty",
        "frequency_penalty",
        "logprobs",
        # beyond OpenAI's, by the names that vLLM has for them
        "top_k",
        "min_p",
        "repetition_penalty",
        "truncate_prompt_tokens",
    }
)
OF_COMPLETIONS = OF_BOTH | {"prompt", "echo", "best_of"}
OF_CHAT = OF_BOTH | {
    "messages",
    "max_completion_tokens",
    "top_logprobs",
    "response_format",
    "modalities",
}
OF_EMBEDDINGS = frozenset({"model", "input", "encoding_format", "dimensions"})

# The template of a chat: a turn a line, and the next turn is the assistant's. It ends where the
# network goes on with the user's.
ROLES = {"system": "", "developer": "", "user": "User: ", "assistant": "Assistant: "}
NEXT_TURN = "Assistant:"
END_OF_TURN = "\nUser:"
MOST_OF_A_NAME = 256  # characters of a model's

Prompt = str | tuple[int, ...]


@dataclass(frozen=True)
class Asked:
    """What is to be written: `n` answers to each prompt, the likeliest of `best_of`."""

    model: str
    prompts: tuple[Prompt, ...]
    settings: Mapping[str, Any]  # of a Request, without prompt, max_tokens, seed and deadline
    logprobs: int | None  # how many alternatives to show; None: no log-probabilities
    max_tokens: int | None  # None: what the context has left
    most_tokens: int  # of any answer
    seed: int
    n: int
    best_of: int
    is_chat: bool
    echo: bool
    stream: bool
    include_usage: bool  # in an event of its own at the end of a stream
    tells_usage: bool  # so far, in every event besides
    truncate: int | None  # how many last tokens of a prompt to read; -1: as many as have room
    caller: str = ""  # whose key or address it came with

    def request(self, prompt: tuple[int, ...], number: int, most: int, deadline: float) -> Request:
        """The one for answer `number` to a prompt, of at most `most` tokens."""
        seed = (self.seed + number + 2**31) % 2**32 - 2**31
        asked = self.most_tokens if self.max_tokens is None else self.max_tokens
        max_tokens = min(asked, most)
        return Request(
            prompt=prompt,
            max_tokens=max_tokens,
            seed=seed,
            deadline=deadline,
            caller=self.caller,
            **self.settings,
        )


@dataclass(frozen=True)
class Embed:
    model: str
    inputs: tuple[Prompt, ...]
    is_base64: bool
    dimensions: int | None


def completion(body: Any, config: ServerConfig) -> Asked:
    """POST /v1/completions. Raises InvalidField, of a field that we lack UNIMPLEMENTED's kin."""
    fields = _Fields(body, OF_COMPLETIONS)
    echo, stream = fields.flag("echo"), fields.flag("stream")
    n = fields.whole("n", 1, least=1, most=config.max_answers)
    best_of = fields.whole("best_of", n, least=1, most=config.max_answers)
    if best_of < n:
        raise InvalidField("best_of", f"at least n, {n}", best_of)
    if best_of > n and stream:
        raise InvalidField("best_of", "equal to n in a stream, where none can be chosen", best_of)
    prompts = fields.prompts("prompt", config)
    if len(prompts) * best_of > config.max_answers:
        wanted = f"so many that prompts times best_of are at most {config.max_answers}"
        raise InvalidField("prompt", f"{wanted} (--max-answers)", len(prompts))
    logprobs = fields.whole("logprobs", None, least=0, most=MAX_LOGPROBS)
    settings = fields.settings()
    settings["logprobs"] = 0 if logprobs is None and best_of > n else logprobs
    return _asked(
        fields,
        config,
        prompts=prompts,
        settings=settings,
        logprobs=logprobs,
        max_tokens=fields.whole(
            "max_tokens",
            min(DEFAULT_TOKENS, config.max_answer_tokens),
            most=config.max_answer_tokens,
        ),
        n=n,
        best_of=best_of,
        is_chat=False,
        echo=echo,
        stream=stream,
    )


def chat(body: Any, config: ServerConfig) -> Asked:
    """POST /v1/chat/completions: the messages as one text, by the template."""
    fields = _Fields(body, OF_CHAT)
    fields.only("response_format", lambda value: value == {"type": "text"}, '{"type": "text"}')
    fields.only("modalities", lambda value: value == ["text"], '["text"]')
    n = fields.whole("n", 1, least=1, most=config.max_answers)
    max_tokens = None
    for name in ("max_tokens", "max_completion_tokens"):  # the second is the newer name
        max_tokens = fields.whole(name, max_tokens, least=1, most=config.max_answer_tokens)
    top = fields.whole("top_logprobs", None, least=0, most=MAX_LOGPROBS)
    has_logprobs = fields.flag("logprobs")
    if top is not None and not has_logprobs:
        raise InvalidField("top_logprobs", "left out unless logprobs is true", top)
    settings = fields.settings()
    settings["stop"] += (END_OF_TURN,)
    settings["logprobs"] = (top or 0) if has_logprobs else None
    text = _template(fields.take("messages"))
    _check_length("messages", text, config)
    text = _valid(text)
    return _asked(
        fields,
        config,
        prompts=(text,),
        settings=settings,
        logprobs=settings["logprobs"],
        max_tokens=max_tokens,
        n=n,
        best_of=n,
        is_chat=True,
        echo=False,
        stream=fields.flag("stream"),
    )


def embeddings(body: Any, config: ServerConfig) -> Embed:
    """POST /v1/embeddings."""
    fields = _Fields(body, OF_EMBEDDINGS)
    form = fields.take("encoding_format", "float")
    if form not in ("float", "base64"):
        raise InvalidField("encoding_format", '"float" or "base64"', form)
    inputs = fields.prompts("input", config)
    if len(inputs) > config.max_rows:
        raise InvalidField("input", f"at most {config.max_rows} texts (--max-rows)", len(inputs))
    if not all(inputs):
        raise InvalidField("input", "texts that are not empty", "")
    return Embed(
        fields.model(), inputs, form == "base64", fields.whole("dimensions", None, least=1)
    )


def _asked(fields: "_Fields", config: ServerConfig, *, stream: bool, **parts: Any) -> Asked:
    seed = fields.whole("seed", None, least=-(2**63), most=2**63 - 1)
    seed = random.getrandbits(31) if seed is None else (seed + 2**31) % 2**32 - 2**31
    options = fields.take("stream_options", {})
    if options and not stream:
        raise InvalidField("stream_options", "left out unless stream is true", options)
    if not isinstance(options, dict) or options.keys() - set(STREAM_OPTIONS):
        raise InvalidField("stream_options", f"an object of {', '.join(STREAM_OPTIONS)}", options)
    wanted = {
        name: _is_true(f"stream_options.{name}", options.get(name)) for name in STREAM_OPTIONS
    }
    truncate = fields.whole("truncate_prompt_tokens", None, least=-1)
    if truncate == 0:
        raise InvalidField("truncate_prompt_tokens", "-1 or at least 1", 0)
    asked = Asked(
        most_tokens=config.max_answer_tokens,
        model=fields.model(),
        seed=seed,
        stream=stream,
        include_usage=wanted["include_usage"],
        tells_usage=wanted["continuous_usage_stats"],
        truncate=truncate,
        **parts,
    )
    # Any prompt will do to have all other fields checked now.
    asked.request((), 0, config.max_answer_tokens, time.monotonic())
    return asked


class _Fields:
    """The fields of a body by name. Raises InvalidField for one that there is not, or not here."""

    def __init__(self, body: Any, known: frozenset[str]) -> None:
        if not isinstance(body, dict):
            raise ServingError(Code.INVALID_ARGUMENT, "The body must be a JSON object.")
        self._fields = {name: value for name, value in body.items() if value is not None}
        for name, value in self._fields.items():
            if name in known or name in WITHOUT_EFFECT:
                continue
            if name in LACKING:
                if value not in ({}, [], "", "none", "auto", False):
                    raise Unsupported(name, LACKING[name])
            else:
                raise Unsupported(name, "this server knows no such field")

    def take(self, name: str, default: Any = None) -> Any:
        return self._fields.get(name, default)

    def model(self) -> str:
        name = self.take("model")
        if not isinstance(name, str) or not 0 < len(name) <= MOST_OF_A_NAME:
            text = "the name of a model; GET /v1/models lists them"
            raise InvalidField("model", text, name)
        return name

    def flag(self, name: str) -> bool:
        return _is_true(name, self.take(name))

    def whole(
        self, name: str, default: int | None, *, least: int = 0, most: int = 2**31 - 1
    ) -> Any:
        value = self.take(name, default)
        if value is default:
            return default
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise InvalidField(name, f"a whole number from {least} to {most}", value)
        return value

    def only(self, name: str, is_right: Callable[[Any], bool], wanted: str) -> None:
        value = self.take(name)
        if value is not None and not is_right(value):
            raise Unsupported(name, f"only {wanted} is known here")

    def settings(self) -> dict[str, Any]:
        """What a Request has by the same name, left to it to check."""
        names = (
            "temperature",
            "top_p",
            "top_k",
            "min_p",
            "repetition_penalty",
            "presence_penalty",
            "frequency_penalty",
        )
        settings = {name: self.take(name) for name in names if name in self._fields}
        if settings.get("top_k") == -1:  # how vLLM's clients switch it off
            settings["top_k"] = 0
        return {"stop": stop_strings(self.take("stop", [])), **settings}

    def prompts(self, name: str, config: ServerConfig) -> tuple[Prompt, ...]:
        """A text, a list of texts, a list of tokens, or a list of such lists."""
        value = self.take(name)
        if isinstance(value, list) and len(value) > config.max_characters:  # before they are read
            wanted = f"of at most {config.max_characters} texts or tokens (--max-characters)"
            raise InvalidField(name, wanted, len(value))
        if isinstance(value, str) or (_is_tokens(value) and value):
            value = [value]
        if not isinstance(value, list) or not value:
            wanted = "a string, a list of strings, a list of tokens, or a list of lists of tokens"
            raise InvalidField(name, wanted, value)
        prompts: list[Prompt] = []
        for one in value:
            if isinstance(one, str):
                _check_length(name, one, config)
                prompts.append(_valid(one))
            elif isinstance(one, list) and len(one) > config.max_characters:
                wanted = f"of at most {config.max_characters} tokens (--max-characters)"
                raise InvalidField(name, wanted, len(one))
            elif _is_tokens(one):
                prompts.append(tuple(one))
            else:
                raise InvalidField(name, "of strings or of lists of tokens", one)
        return tuple(prompts)


class Unsupported(InvalidField):
    """A field that this server has not, with the reason."""

    def __init__(self, field: str, reason: str) -> None:
        ServingError.__init__(
            self, Code.INVALID_ARGUMENT, f"{cut(field)} is not supported: {reason}. Leave it out."
        )
        self.field = cut(field)


def _template(messages: Any) -> str:
    """One text of all messages, ready for the assistant to go on."""
    if not isinstance(messages, list) or not messages:
        raise InvalidField("messages", "a list of at least one message", messages)
    lines = []
    for i, message in enumerate(messages):
        field = f"messages[{i}]"
        if not isinstance(message, dict):
            raise InvalidField(field, "an object with role and content", message)
        role = message.get("role")
        if role in ("tool", "function") or message.get("tool_calls"):
            raise Unsupported(field, LACKING["tools"])
        if not isinstance(role, str) or role not in ROLES:
            raise InvalidField(f"{field}.role", f"one of {', '.join(ROLES)}", role)
        lines.append(ROLES[role] + _content(f"{field}.content", message.get("content")))
    return "\n".join([*lines, NEXT_TURN])


def _content(field: str, content: Any) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise InvalidField(field, "a string or a list of parts of text", content)
    texts = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text":
            raise Unsupported(field, "a message has parts of type text only, no images or sound")
        if not isinstance(part.get("text"), str):
            raise InvalidField(field, "parts with a text", part)
        texts.append(part["text"])
    return "".join(texts)


def _valid(text: str) -> str:
    """The text with a ? for each byte that was no UTF-8; they came as lone surrogates."""
    return text.encode(errors="replace").decode()


def _is_tokens(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(token, int) and not isinstance(token, bool) for token in value
    )


def _is_true(name: str, value: Any) -> bool:
    if value is None:
        return False
    if not isinstance(value, bool):
        raise InvalidField(name, "true or false", value)
    return value


def _check_length(name: str, text: str, config: ServerConfig) -> None:
    if len(text) > config.max_characters:
        wanted = f"of at most {config.max_characters} characters (--max-characters)"
        raise InvalidField(name, wanted, len(text))
