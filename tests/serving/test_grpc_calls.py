"""How a call of gRPC comes to a handler: only with its message, and never lost."""

import contextlib
import queue
import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from toy_exports import wait_until

from serving.errors import INTERNAL_TEXT
from serving.grpc_calls import Threads

METHOD = "/test.Service/Method"


@contextlib.contextmanager
def channel_to(begin, threads=None, **options):
    """A channel to a server with one thread whose calls go to `begin`."""
    threads = threads or Threads(1)
    server = grpc.server(threads, **options)
    server.add_generic_rpc_handlers([threads.handlers({METHOD: begin})])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield channel
    finally:
        has_ended = server.stop(5).wait(10)
    assert has_ended


def backwards(call):
    call.reply(
        call.body[::-1],
        [("which", "headers"), *(pair for pair in call.metadata if pair[0] == "name")],
    )


def test_an_answer_and_its_headers():
    with channel_to(backwards) as channel:
        call = channel.unary_unary(METHOD)
        answer, known = call.with_call(b"abc", timeout=10, metadata=[("name", "value")])
        assert answer == b"cba" and known.code() is grpc.StatusCode.OK
        headers = dict(known.initial_metadata())
        assert headers["which"] == "headers" and headers["name"] == "value"
        assert call(b"", timeout=10) == b""
        large = bytes(range(256)) * 4000
        assert call(large, timeout=10) == large[::-1]


def test_many_calls_wait_at_once_and_are_answered_in_any_order_from_any_thread():
    calls = queue.SimpleQueue()
    with channel_to(calls.put) as channel:
        answers = [channel.unary_unary(METHOD).future(b"%d" % i, timeout=20) for i in range(50)]
        held = [calls.get(timeout=10) for _ in answers]
        for call in reversed(held):
            threading.Thread(target=call.reply, args=(call.body * 2, ())).start()
        assert [answer.result() for answer in answers] == [b"%d" % i * 2 for i in range(50)]


def test_a_refusal_has_code_text_and_headers():
    def begin(call):
        call.refuse(grpc.StatusCode.NOT_FOUND, "nichts «da» \udcff", [("which", "headers")])
        call.reply(b"too late", ())  # a call ends once

    with channel_to(begin) as channel, pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(METHOD)(b"abc", timeout=10)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert caught.value.details() == "nichts «da» ?"
    assert dict(caught.value.initial_metadata())["which"] == "headers"


def test_a_handler_that_fails_fails_its_call_alone(caplog):
    def begin(call):
        if call.body == b"bad":
            raise ValueError("of the handler")
        backwards(call)

    with channel_to(begin) as channel:
        call = channel.unary_unary(METHOD)
        with pytest.raises(grpc.RpcError) as caught:
            call(b"bad", timeout=10)
        assert caught.value.code() is grpc.StatusCode.INTERNAL
        assert caught.value.details() == INTERNAL_TEXT
        assert "of the handler" in caplog.text
        assert call(b"abc", timeout=10) == b"cba"


def test_a_call_without_its_message_holds_nobody_up():
    message = threading.Event()

    def late(*messages):
        message.wait(20)
        yield from messages

    with channel_to(backwards) as channel:
        as_stream = channel.stream_unary(METHOD)
        slow, empty = as_stream.future(late(b"abc"), timeout=20), as_stream.future(late())
        assert channel.unary_unary(METHOD)(b"12", timeout=10) == b"21"
        message.set()
        assert slow.result() == b"cba"
        assert empty.code() is grpc.StatusCode.UNIMPLEMENTED
        assert "without its message" in empty.details()


def test_a_caller_that_leaves_leaves_room():
    calls = queue.SimpleQueue()
    with channel_to(calls.put, maximum_concurrent_rpcs=2) as channel:
        call = channel.unary_unary(METHOD)
        for _ in range(5):
            leaver = call.future(b"abc", timeout=20)
            held = calls.get(timeout=10)
            leaver.cancel()
            held.reply(b"for nobody", ())
        first, second = call.future(b"1", timeout=20), call.future(b"2", timeout=20)
        held = [calls.get(timeout=10) for _ in range(2)]
        with pytest.raises(grpc.RpcError) as caught:
            call(b"3", timeout=10)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        for one in held:
            one.reply(one.body, ())
        assert (first.result(), second.result()) == (b"1", b"2")


def test_the_deadline_and_the_address_of_a_caller():
    seen = []

    def begin(call):
        seen.append((call.seconds_left(), call.peer))
        call.reply(b"", ())

    with channel_to(begin) as channel:
        channel.unary_unary(METHOD)(b"")
        channel.unary_unary(METHOD)(b"", timeout=50)
    (without, peer), (within, _) = seen
    assert without is None and 40 < within < 51
    assert peer.startswith("ipv4:127.0.0.1:")


def test_other_calls_have_the_threads():
    def in_thread(body, context):
        return threading.current_thread().name.encode()

    server = grpc.server(Threads(1))
    handlers = {"Method": grpc.unary_unary_rpc_method_handler(in_thread)}
    server.add_generic_rpc_handlers(
        [grpc.method_handlers_generic_handler("test.Service", handlers)]
    )
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        assert channel.unary_unary(METHOD)(b"", timeout=10).startswith(b"grpc")
    server.stop(0).wait()


def test_handlers_need_their_threads():
    server = grpc.server(ThreadPoolExecutor(1))
    server.add_generic_rpc_handlers([Threads(1).handlers({METHOD: backwards})])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel, pytest.raises(grpc.RpcError) as e:
        channel.unary_unary(METHOD)(b"", timeout=10)
    assert "with the threads that they are of" in e.value.details()
    server.stop(0).wait()


def test_who_keeps_a_message_back_leaves_room_when_many_do():
    now, may_end = [0.0], threading.Event()

    def never():
        may_end.wait(20)
        yield b"too late"

    threads = Threads(1, message_seconds=10.0, most_awaited=2, clock=lambda: now[0])
    with channel_to(backwards, threads, maximum_concurrent_rpcs=4) as channel:
        slow = [channel.stream_unary(METHOD).future(never(), timeout=20) for _ in range(4)]
        wait_until(lambda: len(threads._awaited) == 4)
        call = channel.unary_unary(METHOD)
        now[0] = 10.0
        with pytest.raises(grpc.RpcError) as caught:
            call(b"abc", timeout=10)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        now[0] = 10.1
        with pytest.raises(grpc.RpcError):  # one too many itself, it makes room for those to come
            call(b"abc", timeout=10)
        assert call(b"abc", timeout=10) == b"cba"
        wait_until(lambda: sum(one.done() for one in slow) == 2)
        late = next(one for one in slow if one.done())
        assert late.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert "did not come in 10 s" in late.details()
        may_end.set()
        assert sorted(one.result() for one in slow if one.exception() is None) == [b"etal oot"] * 2
