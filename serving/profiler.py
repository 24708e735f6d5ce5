"""TensorFlow's ProfilerService on the gRPC port: a trace of this process, for TensorBoard.

`tf.profiler.experimental.client.trace("grpc://HOST:8500", FOLDER, MILLISECONDS)` asks for one. The
trace goes to the caller in the answer: unlike the stock server, this one writes no file that a
caller names.
"""

import functools
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from tensorflow.python.profiler.internal import _pywrap_profiler
from tensorflow.tsl.profiler.protobuf import profiler_options_pb2

from serving.errors import Code, ServingError
from serving.grpc_calls import Begin, Call, parsed
from serving.keys import Keys

SERVICE = "tensorflow.ProfilerService"
NUM_THREADS = 4  # a trace holds one; TensorFlow takes one trace at a time
MOST_SECONDS = 600  # of a trace: it is kept in memory, and nobody else can have one meanwhile
STEP_SECONDS = 0.05  # how often a trace looks whether anybody still waits for it
TOOL = "xplane.pb"  # what the client calls the file that it writes

# The pip package has no such messages. Here are the fields that count, by their real numbers;
# messages within them are left as their bytes.
_FIELDS = {
    "ProfileRequest": {
        "duration_ms": (1, "UINT64"),
        "opts": (4, "BYTES"),
        "session_id": (6, "STRING"),
        "emit_xspace": (9, "BOOL"),
    },
    "ProfileToolData": {"name": (1, "STRING"), "data": (2, "BYTES")},
    "ProfileResponse": {
        "tool_data": (6, "BYTES"),
        "empty_trace": (7, "BOOL"),
        "xspace": (8, "BYTES"),
    },
    "TerminateRequest": {"session_id": (1, "STRING")},
}


class Profiler:
    """Answers Profile and Terminate, for those whose key may reload models."""

    def __init__(self, keys: Keys) -> None:
        self._keys = keys
        self._threads = ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="profiler")
        self._ends: dict[str, threading.Event] = {}  # of the traces under way, by session

    def begins(self) -> dict[str, Begin]:
        """For `grpc_calls.Reception`, by the methods' paths."""
        methods = {"Profile": self._profile, "Terminate": self._terminate}
        return {
            f"/{SERVICE}/{name}": functools.partial(self._begin, work)
            for name, work in methods.items()
        }

    def _begin(self, work: Callable[[Call], bytes], call: Call) -> None:
        self._keys.check(call.headers, admin=True)
        self._threads.submit(self._answer, work, call)

    def _answer(self, work: Callable[[Call], bytes], call: Call) -> None:
        try:
            call.reply(work(call), ())
        except Exception as error:
            call.fail(error)

    def _profile(self, call: Call) -> bytes:
        request = parsed(_classes()["ProfileRequest"], call.body)
        if request.duration_ms > MOST_SECONDS * 1000:
            raise ServingError(
                Code.INVALID_ARGUMENT,
                f"duration_ms is at most {MOST_SECONDS * 1000} here. "
                f"Received: {request.duration_ms}",
            )
        session, is_over = _pywrap_profiler.ProfilerSession(), threading.Event()
        session.start("", _levels(request.opts))  # ALREADY_EXISTS while another one runs
        self._ends[request.session_id] = is_over
        try:
            end = time.monotonic() + request.duration_ms / 1000
            while (left := end - time.monotonic()) > 0 and call.is_active:
                if is_over.wait(min(left, STEP_SECONDS)):
                    break
        finally:
            self._ends.pop(request.session_id, None)
            trace = session.stop()
        response = _message("ProfileResponse")
        response.empty_trace = not trace
        if request.emit_xspace:
            response.xspace = trace
        else:
            file = _message("ProfileToolData", name=TOOL, data=trace)
            response.tool_data = file.SerializeToString()
        return bytes(response.SerializeToString())

    def _terminate(self, call: Call) -> bytes:
        session_id = parsed(_classes()["TerminateRequest"], call.body).session_id
        if session_id not in self._ends:
            raise ServingError(Code.NOT_FOUND, f"No trace is under way for session {session_id!r}.")
        self._ends[session_id].set()
        return b""


def _levels(serialized: bytes) -> dict[str, int]:
    options = parsed(profiler_options_pb2.ProfileOptions, serialized)
    if not options.version:  # not set: its zeros are no choice
        return {}
    names = ("host_tracer_level", "python_tracer_level", "device_tracer_level")
    return {name: getattr(options, name) for name in names}


def _message(kind: str, /, **fields: Any) -> Any:
    return _classes()[kind](**fields)


@functools.cache
def _classes() -> dict[str, Any]:
    kinds = descriptor_pb2.FieldDescriptorProto
    pool = descriptor_pool.DescriptorPool()
    file = descriptor_pb2.FileDescriptorProto(
        name="stepwise/profiler.proto", package="tensorflow", syntax="proto3"
    )
    for name, fields in _FIELDS.items():
        message = file.message_type.add(name=name)
        for field, (number, kind) in fields.items():
            message.field.add(
                name=field,
                number=number,
                label=kinds.LABEL_OPTIONAL,
                type=kinds.Type.Value(f"TYPE_{kind}"),
            )
    pool.AddSerializedFile(file.SerializeToString())
    find = pool.FindMessageTypeByName
    return {name: message_factory.GetMessageClass(find(f"tensorflow.{name}")) for name in _FIELDS}
