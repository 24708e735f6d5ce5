"""The one place where the pages meet the model server: a client, its state, and its failures."""

import contextlib
import logging
import time
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

import streamlit as st

from serving.client import (
    AccessDenied,
    Classification,
    Client,
    ClientError,
    InvalidRequest,
    MetricsOff,
    ModelInfo,
    ModelNotFound,
    ModelNotReady,
    RequestTimedOut,
    ServerFailed,
    ServerUnreachable,
    VersionStatus,
)
from ui import settings
from ui.counts import Counts

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

AVAILABLE = "AVAILABLE"
CLASSIFIER, GENERATOR = "classifier", "generator"

LOOK_TIMEOUT = 2.0  # seconds; the sidebar waits no longer for a server that is gone
CLASSIFY_TIMEOUT = 30.0  # seconds
GENERATE_TIMEOUT = 120.0  # seconds
REMEMBER_STATE = 1.0  # seconds in which all browsers share one look at the server

# From the most special to the base: the first that fits names the sentence.
_CLIENT_ERRORS = (
    ServerUnreachable,
    MetricsOff,
    ModelNotFound,
    ModelNotReady,
    AccessDenied,
    InvalidRequest,
    RequestTimedOut,
    ServerFailed,
    ClientError,
)
clock = time.monotonic  # of the looks; tests put another one here

_TELLS_MORE = (ModelNotReady, InvalidRequest, ServerFailed)


@dataclass(frozen=True)
class Failure:
    """A sentence of the table of texts with its values; `detail` is text of the server's."""

    key: str
    values: dict[str, str] = field(default_factory=dict)
    detail: str = ""


@dataclass(frozen=True)
class ServerState:
    """The models of the server at one moment, or why they are not known."""

    models: tuple[ModelInfo, ...] = ()
    failure: Failure | None = None

    def ready(self, kind: str) -> list[ModelInfo]:
        return [model for model in self.models if model.kind == kind and model.state == AVAILABLE]

    def named(self, name: str) -> ModelInfo | None:
        return next((model for model in self.models if model.name == name), None)


@dataclass(frozen=True)
class ModelDetails:
    """What the status page shows of one model; `metadata` is the server's answer as it is."""

    versions: tuple[VersionStatus, ...] = ()
    metadata: dict | None = None
    failure: Failure | None = None


@dataclass(frozen=True)
class Timed(Generic[Result]):
    """An answer, the model and version it came from, and the seconds it took."""

    result: Result
    model: str
    version: int | None
    seconds: float


@dataclass(frozen=True)
class Story:
    """A text as far as it is written, and by whom. Why it ended is told with its last part;
    `first_seconds` is None where it came at once, and so are the numbers that nobody tells."""

    prompt: str
    model: str
    version: int | None
    text: str = ""
    seconds: float = 0.0
    first_seconds: float | None = None
    num_tokens: int | None = None
    num_first_tokens: int | None = None  # of them, those that came first
    num_prompt_tokens: int | None = None  # that were read
    num_truncated_tokens: int = 0  # before these, for which there was no room
    finish_reason: str | None = None


def new_client(url: str, timeout: float) -> Client:
    """The only constructor call; tests put a stub here."""
    return Client(url, timeout=timeout)


def url() -> str:
    return settings.server()


@st.cache_resource(ttl=REMEMBER_STATE, show_spinner=False)
def server_state() -> ServerState:
    """One look at the server. Never raises: a failure is part of the state."""
    try:
        client = _client(url(), LOOK_TIMEOUT)
        return ServerState(tuple(client.models() or client.models(settings.models())))
    except RequestTimedOut:  # its usual sentence is about the length of a text
        return ServerState(failure=Failure("error.slow", {"url": url()}))
    except Exception as error:
        return ServerState(failure=explain(error))


@st.cache_resource(ttl=REMEMBER_STATE, show_spinner=False)
def details(model: str) -> ModelDetails:
    """Versions and signatures. Never raises; a model that is not served has versions only."""
    try:
        client = _client(url(), LOOK_TIMEOUT)
        versions = tuple(client.status(model))
        is_served = any(version.state == AVAILABLE for version in versions)
        return ModelDetails(versions, client.metadata(model) if is_served else None)
    except Exception as error:
        return ModelDetails(failure=explain(error, model))


@st.cache_resource(ttl=REMEMBER_STATE, show_spinner=False)
def counts() -> Counts | Failure:
    """What the server has counted so far. Never raises: a failure is an answer, too."""
    try:
        return Counts.of(_client(url(), LOOK_TIMEOUT).metrics(), clock())
    except ValueError:  # another program's page
        return Failure("error.ServerFailed", {"url": url(), "model": ""})
    except RequestTimedOut:
        return Failure("error.slow", {"url": url()})
    except Exception as error:
        return explain(error)


def classify(model: ModelInfo, passages: list[str]) -> Timed[list[Classification]]:
    client, start = _client(url(), CLASSIFY_TIMEOUT), time.perf_counter()
    result = client.classify(model.name, passages)
    return Timed(result, model.name, model.version, time.perf_counter() - start)


def write(
    model: ModelInfo, prompt: str, options: Mapping[str, Any]
) -> Generator[Story, None, None]:
    """The text after every part of it that comes. Closing it has the server stop.

    A stock server has no streams, nor has a model of an older export: there it comes at once.
    """
    client, start = _client(url(), CLASSIFY_TIMEOUT), time.perf_counter()
    story = Story(prompt, model.name, model.version)
    try:
        parts = client.write(model.name, prompt, **options, timeout=GENERATE_TIMEOUT)
        with contextlib.closing(parts):
            for part in parts:
                seconds, is_first = time.perf_counter() - start, story.first_seconds is None
                story = replace(
                    story,
                    text=story.text + part.text,
                    seconds=seconds,
                    first_seconds=story.first_seconds or seconds,
                    num_tokens=part.num_tokens,
                    num_first_tokens=part.num_tokens if is_first else story.num_first_tokens,
                    num_prompt_tokens=part.num_prompt_tokens,
                    num_truncated_tokens=part.num_truncated_tokens,
                    finish_reason=part.finish_reason,
                )
                yield story
    except (InvalidRequest, ServerFailed):
        if story.text:
            raise
        found = client.generate(model.name, prompt, **options, timeout=GENERATE_TIMEOUT)
        yield replace(
            story,
            text=found.text,
            seconds=time.perf_counter() - start,
            num_tokens=found.num_tokens,
            finish_reason=found.finish_reason,
        )


def explain(error: Exception, model: str = "") -> Failure:
    """The sentence for an exception. One that is not the client's goes to the log in full."""
    for kind in _CLIENT_ERRORS:
        if isinstance(error, kind):
            detail = str(error) if isinstance(error, _TELLS_MORE) else ""
            return Failure(f"error.{kind.__name__}", {"url": url(), "model": model}, detail)
    logger.error("The pages failed.", exc_info=error)
    return Failure("error.unexpected")


@st.cache_resource(show_spinner=False)
def _client(address: str, timeout: float) -> Client:
    """Clients are shared by all sessions, so connections stay open between requests."""
    return new_client(address, timeout)
