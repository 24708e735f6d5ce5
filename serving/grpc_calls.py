"""How a call of gRPC comes to a handler of ours, and how its answer goes.

grpcio's server gives each call a thread, which waits in it for the message and then for whatever
the handler waits for; three of five changes of thread in a call are for that, and each costs as
much as reading a small message. Here the thread that hears of calls asks for the message, and the
handler begins when it has come. It is told to do its work elsewhere, or to wait and hold nothing.
The headers, the answer and its status go out together.

This is the one module that uses more of grpcio than it promises to keep: `grpc._server`, and its
completion queue. So requirements-server.txt has the versions that it was tried with.
"""

import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import grpc
from grpc import _server
from grpc._cython import cygrpc

from serving.errors import INTERNAL_TEXT

log = logging.getLogger(__name__)

Metadata = Sequence[tuple[str, str]]

_NO_FLAGS = 0
_NEVER = 2.0**62  # seconds
_NO_MESSAGE = "The call ended without its message."


class Call:
    """One call with its message. It is to be ended once, by `reply` or `refuse`, in any thread."""

    def __init__(self, event: Any, state: Any) -> None:
        self.event, self.state = event, state  # grpcio's
        self.ended: Future[None] = Future()
        self.body = b""

    @property
    def metadata(self) -> Metadata:
        """What the caller sent."""
        return self.event.invocation_metadata or ()

    @property
    def peer(self) -> str:
        """The caller's address, as gRPC writes it: `ipv4:127.0.0.1:50000`."""
        return self.event.call.peer().decode(errors="replace")

    def seconds_left(self) -> float | None:
        """Until the caller's deadline; None without one."""
        deadline = self.event.call_details.deadline
        return None if deadline >= _NEVER else max(deadline - time.time(), 0.0)

    def reply(self, message: bytes, metadata: Metadata) -> None:
        self._end(
            cygrpc.StatusCode.ok, b"", metadata, cygrpc.SendMessageOperation(message, _NO_FLAGS)
        )

    def refuse(self, code: grpc.StatusCode, text: str, metadata: Metadata = ()) -> None:
        self._end(code.value[0], text.encode(errors="replace"), metadata)

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
        self.ended.set_result(None)


class Handler:
    """What `grpc.unary_unary_rpc_method_handler` takes, for calls that `Threads` brings.

    `begin(call)` is run in the thread that hears of all calls, so it has to be quick.
    """

    def __init__(self, begin: Callable[[Call], None]) -> None:
        self.begin = begin

    def __call__(self, *_: Any) -> Any:
        raise TypeError("A Handler needs a grpc.server whose threads are `Threads`")


class Threads(ThreadPoolExecutor):
    """The threads of a `grpc.server`. Calls of a `Handler` take none; all others one each."""

    def submit(self, work: Callable[..., Any], /, *args: Any, **kwargs: Any) -> "Future[Any]":
        # grpc._server._handle_unary_unary: a context's run, then _unary_response_in_pool and what
        # that takes.
        if len(args) > 3 and isinstance(args[3], Handler):
            _, event, state, handler = args[:4]
            call = Call(event, state)
            _receive(call, handler)
            return call.ended
        return super().submit(work, *args, **kwargs)


def _receive(call: Call, handler: Handler) -> None:
    """Asks for the message of a call that has come; grpcio holds the lock of its state."""
    state = call.state

    def begin(message_event: Any) -> Any:
        message = message_event.batch_operations[0].message()
        try:
            if message is None:  # it left, or closed its side at once
                call.refuse(grpc.StatusCode.UNIMPLEMENTED, _NO_MESSAGE)
            else:
                call.body = message
                handler.begin(call)
        except Exception:  # which would end the thread that hears of calls
            log.exception("A call failed")
            call.refuse(grpc.StatusCode.INTERNAL, INTERNAL_TEXT)
        with state.condition:
            return _server._possibly_finish_call(state, _server._RECEIVE_MESSAGE_TOKEN)

    call.event.call.start_server_batch((cygrpc.ReceiveMessageOperation(_NO_FLAGS),), begin)
    state.due.add(_server._RECEIVE_MESSAGE_TOKEN)
