"""How a call of gRPC comes to a handler of ours, and how its answer goes.

grpcio's server gives each call a thread, which waits in it for the message and then for whatever
the handler waits for. Here the thread that hears of calls asks for the message, and the handler
begins when it has come: it does its work elsewhere, or waits and holds nothing. The headers, the
answer and its status go out together.

This is the one module that uses more of grpcio than it promises to keep: `grpc._server`, and its
completion queue. So requirements-server.txt has the versions that it was tried with.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from grpc import _server
from grpc._cython import cygrpc

from serving import metrics
from serving.errors import INTERNAL_TEXT, Code, ServingError, as_serving_error, invalid_argument

log = logging.getLogger(__name__)

Metadata = Sequence[tuple[str, str]]

MESSAGE_SECONDS = 1.0

_NO_FLAGS = 0
_NEVER = 2.0**62  # seconds
_NO_MESSAGE = "The call ended without its message."
_TOO_MANY = f"No message came in {MESSAGE_SECONDS:g} s, and many calls wait for theirs."
_MAX_TEXT = 1024  # bytes of an error's

_DONE: "Future[None]" = Future()  # what grpcio counts is done; `Service` counts who is there
_DONE.set_result(None)


class Call:
    """One call with its message. It is to be ended once, by `reply` or `refuse`, in any thread."""

    def __init__(self, event: Any, state: Any) -> None:
        self.event, self.state = event, state  # grpcio's
        self.body = b""

    @property
    def headers(self) -> dict[str, str]:
        """What the caller sent as metadata."""
        return headers_of(self.event.invocation_metadata)

    @property
    def peer(self) -> str:
        """The caller's address, as gRPC writes it: `ipv4:127.0.0.1:50000`."""
        return self.event.call.peer().decode(errors="replace")

    @property
    def is_active(self) -> bool:
        """Whether somebody still waits for an answer."""
        return self.state.client is not _server._CANCELLED and not self.state.statused

    def seconds_left(self) -> float | None:
        """Until the caller's deadline; None without one."""
        deadline = self.event.call_details.deadline
        return None if deadline >= _NEVER else max(deadline - time.time(), 0.0)

    def reply(self, message: bytes, metadata: Metadata) -> None:
        self._end(
            cygrpc.StatusCode.ok, b"", metadata, cygrpc.SendMessageOperation(message, _NO_FLAGS)
        )

    def refuse(self, code: grpc.StatusCode, text: str, metadata: Metadata = ()) -> None:
        raw = text.encode(errors="replace")
        if len(raw) > _MAX_TEXT:
            raw = raw[:_MAX_TEXT].decode(errors="ignore").encode() + b"...TRUNCATED"
        self._end(code.value[0], raw, metadata)

    def fail(self, error: Exception, metadata: Metadata = ()) -> Code:
        """Refuses it with the status of an exception, which is told, and logged if unexpected."""
        known = as_serving_error(error)
        if known is None:
            method = self.event.call_details.method.decode(errors="replace")
            log.error("%s failed", method, exc_info=error)
            known = ServingError(Code.INTERNAL, INTERNAL_TEXT)
        self.refuse(grpc.StatusCode[known.code.name], known.message, metadata)
        return known.code

    def _end(self, code: int, text: bytes, metadata: Metadata, *message: Any) -> None:
        state, token = self.state, _server._SEND_STATUS_FROM_SERVER_TOKEN
        operations = (
            cygrpc.SendInitialMetadataOperation(tuple(metadata), _NO_FLAGS),
            *message,
            cygrpc.SendStatusFromServerOperation((), code, text, _NO_FLAGS),
        )
        with state.condition:
            if state.statused:
                return
            state.statused = True
            if state.client is not _server._CANCELLED:
                sent = _server._send_status_from_server(state, token)
                self.event.call.start_server_batch(operations, sent)
                state.due.add(token)


def parsed(kind: Any, body: bytes) -> Any:
    """The message of class `kind` in `body`. INVALID_ARGUMENT when there is none."""
    try:
        return kind.FromString(body)
    except DecodeError as error:
        raise invalid_argument(
            f"The request cannot be read as a {kind.DESCRIPTOR.full_name}."
        ) from error


def headers_of(metadata: Any) -> dict[str, str]:
    """gRPC's metadata as text by name."""
    return {
        key: value if isinstance(value, str) else value.decode("latin-1")
        for key, value in metadata or ()
    }


Begin = Callable[[Call], None]
"""What is to be done with a call: in the thread that hears of all calls, so it has to be quick."""


class Reception(ThreadPoolExecutor):
    """The threads of a `grpc.server`, for calls of others. Those of `handlers` take none.

    When more than `most_awaited` calls are there without their message, which usually comes right
    behind a call, each that comes ends those that have waited for more than MESSAGE_SECONDS.
    """

    def __init__(
        self,
        max_workers: int,
        *,
        most_awaited: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(max_workers, thread_name_prefix="grpc-others")
        self._most_awaited, self._clock = most_awaited, clock
        # Since when, in that order; of the thread that hears of calls alone.
        self._awaited: dict[Call, float] = {}

    def handlers(self, begins: Mapping[str, Begin]) -> grpc.GenericRpcHandler:
        """For a `grpc.server` of this reception; by a method's path, such as `/Service/Method`."""
        return _Handlers(begins)

    def submit(self, work: Callable[..., Any], /, *args: Any, **kwargs: Any) -> "Future[Any]":
        # grpc._server._handle_unary_unary: a context's run, then _unary_response_in_pool and what
        # that takes.
        if len(args) > 3 and isinstance(args[3], _Behavior):
            _, event, state, behavior = args[:4]
            self._receive(Call(event, state), behavior.begin)
            return _DONE
        return super().submit(work, *args, **kwargs)

    def _receive(self, call: Call, begin: Begin) -> None:
        """Asks for the message of a call that has come; grpcio holds the lock of its state."""

        def received(event: Any) -> Any:
            self._awaited.pop(call, None)
            message = event.batch_operations[0].message()
            try:
                if message is None:  # it left, closed its side at once, or was refused
                    call.refuse(grpc.StatusCode.UNIMPLEMENTED, _NO_MESSAGE)
                else:
                    call.body = message
                    begin(call)
            except Exception as error:  # which would end the thread that hears of calls
                call.fail(error)
            with call.state.condition:
                return _server._possibly_finish_call(call.state, _server._RECEIVE_MESSAGE_TOKEN)

        call.event.call.start_server_batch((cygrpc.ReceiveMessageOperation(_NO_FLAGS),), received)
        call.state.due.add(_server._RECEIVE_MESSAGE_TOKEN)
        self._awaited[call] = now = self._clock()
        while len(self._awaited) > self._most_awaited:
            oldest, since = next(iter(self._awaited.items()))
            if now - since <= MESSAGE_SECONDS:
                break
            del self._awaited[oldest]
            metrics.count_shed("queue")
            oldest.refuse(grpc.StatusCode.RESOURCE_EXHAUSTED, _TOO_MANY)


class _Behavior:
    """Stands where grpcio has the function that answers, for `Reception.submit` to find."""

    def __init__(self, begin: Begin) -> None:
        self.begin = begin

    def __call__(self, *_: Any) -> Any:
        raise TypeError("These handlers need a grpc.server with the Reception that they are of")


class _Handlers(grpc.GenericRpcHandler):
    def __init__(self, begins: Mapping[str, Begin]) -> None:
        self._methods = {
            path: grpc.unary_unary_rpc_method_handler(_Behavior(begin))
            for path, begin in begins.items()
        }

    def service(self, handler_call_details: Any) -> Any:
        return self._methods.get(handler_call_details.method)
