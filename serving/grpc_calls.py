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
import math
import time
from collections.abc import Callable, Mapping, Sequence
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


Begin = Callable[[Call], None]
"""What is to be done with a call: in the thread that hears of all calls, so it has to be quick."""


class Threads(ThreadPoolExecutor):
    """The threads of a `grpc.server`. Calls of `handlers` take none; all others one each.

    When more than `most_awaited` calls are there without their message, those are refused that have
    been so for more than `message_seconds`: calls are counted, and others would find no room.
    """

    def __init__(
        self,
        max_workers: int,
        *,
        message_seconds: float = math.inf,
        most_awaited: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(max_workers, thread_name_prefix="grpc")
        self._message_seconds, self._most_awaited = message_seconds, most_awaited
        self._clock = clock
        # Since when, in that order; of the thread that hears of calls alone.
        self._awaited: dict[Call, float] = {}

    def handlers(self, begins: Mapping[str, Begin]) -> grpc.GenericRpcHandler:
        """For a `grpc.server` with these threads; by a method's path, such as `/Service/Method`."""
        return _Handlers(self, begins)

    def refuse_late(self) -> None:
        while len(self._awaited) > self._most_awaited:
            call, since = next(iter(self._awaited.items()))
            if self._clock() - since <= self._message_seconds:
                return
            del self._awaited[call]
            call.refuse(
                grpc.StatusCode.DEADLINE_EXCEEDED,
                f"The message did not come in {self._message_seconds:g} s, and many calls wait.",
            )

    def submit(self, work: Callable[..., Any], /, *args: Any, **kwargs: Any) -> "Future[Any]":
        # grpc._server._handle_unary_unary: a context's run, then _unary_response_in_pool and what
        # that takes.
        if len(args) > 3 and isinstance(args[3], _Behavior):
            _, event, state, behavior = args[:4]
            call = Call(event, state)
            self._receive(call, behavior.begin)
            return call.ended
        return super().submit(work, *args, **kwargs)

    def _receive(self, call: Call, begin: Begin) -> None:
        """Asks for the message of a call that has come; grpcio holds the lock of its state."""

        def received(event: Any) -> Any:
            self._awaited.pop(call, None)
            message = event.batch_operations[0].message()
            try:
                if message is None:  # it left, closed its side at once, or was late
                    call.refuse(grpc.StatusCode.UNIMPLEMENTED, _NO_MESSAGE)
                else:
                    call.body = message
                    begin(call)
            except Exception:  # which would end the thread that hears of calls
                log.exception("A call failed")
                call.refuse(grpc.StatusCode.INTERNAL, INTERNAL_TEXT)
            with call.state.condition:
                return _server._possibly_finish_call(call.state, _server._RECEIVE_MESSAGE_TOKEN)

        call.event.call.start_server_batch((cygrpc.ReceiveMessageOperation(_NO_FLAGS),), received)
        call.state.due.add(_server._RECEIVE_MESSAGE_TOKEN)
        self._awaited[call] = self._clock()


class _Behavior:
    """Stands where grpcio has the function that answers, for `Threads.submit` to find."""

    def __init__(self, begin: Begin) -> None:
        self.begin = begin

    def __call__(self, *_: Any) -> Any:
        raise TypeError("These handlers need a grpc.server with the threads that they are of")


class _Handlers(grpc.GenericRpcHandler):
    def __init__(self, threads: Threads, begins: Mapping[str, Begin]) -> None:
        self._threads = threads
        self._methods = {
            path: grpc.unary_unary_rpc_method_handler(_Behavior(begin))
            for path, begin in begins.items()
        }

    def service(self, handler_call_details: Any) -> Any:
        # Here since grpcio asks before it counts who is there; a call that is one too many comes
        # no further.
        self._threads.refuse_late()
        return self._methods.get(handler_call_details.method)
