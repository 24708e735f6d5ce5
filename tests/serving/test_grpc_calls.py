"""How a call of gRPC comes to a handler: only with its message, and never lost."""

import contextlib
import queue
import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from toy_exports import wait_until

from serving.errors import INTERNAL_TEXT
from serving.grpc_calls import Reception

METHOD = "/test.Service/Method"


@contextlib.contextmanager
def channel_to(begin, **options):
    """A channel to a server with one thread whose calls go to `begin`."""
    reception = Reception(1, **{"most_awaited": 8} | options)
    server = grpc.server(reception)
    server.add_generic_rpc_handlers([reception.handlers({METHOD: begin})])
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
        [("which", "headers"), ("name", call.headers.get("name", ""))],
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


def test_who_has_left_is_not_answered():
    calls = queue.SimpleQueue()
    with channel_to(calls.put) as channel:
        call = channel.unary_unary(METHOD)
        leaver = call.future(b"abc", timeout=20)
        held = calls.get(timeout=10)
        assert held.is_active
        leaver.cancel()
        wait_until(lambda: not held.is_active)
        held.reply(b"for nobody", ())
        stays = call.future(b"1", timeout=20)
        held = calls.get(timeout=10)
        held.reply(held.body, ())
        assert stays.result() == b"1"


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

    server = grpc.server(Reception(1, most_awaited=1))
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
    server.add_generic_rpc_handlers([Reception(1, most_awaited=1).handlers({METHOD: backwards})])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel, pytest.raises(grpc.RpcError) as e:
        channel.unary_unary(METHOD)(b"", timeout=10)
    assert "with the Reception that they are of" in e.value.details()
    server.stop(0).wait()


def test_who_keeps_a_message_back_makes_room_when_many_do():
    may_end, now = threading.Event(), [0.0]

    def late():
        may_end.wait(20)
        yield b"abc"

    with channel_to(backwards, most_awaited=2, clock=lambda: now[0]) as channel:
        call, as_stream = channel.unary_unary(METHOD), channel.stream_unary(METHOD)
        assert call(b"12", timeout=10) == b"21"
        slow = [as_stream.future(late(), timeout=20) for _ in range(4)]
        assert call(b"12", timeout=10) == b"21"  # so the calls before it have come
        assert not any(one.done() for one in slow)
        now[0] = 1.1
        assert call(b"12", timeout=10) == b"21"
        wait_until(lambda: sum(one.done() for one in slow) >= 3)
        may_end.set()
        codes = [one.code() for one in slow]
        assert codes.count(grpc.StatusCode.RESOURCE_EXHAUSTED) == 3
        assert codes.count(grpc.StatusCode.OK) == 1
        refused = next(one for one in slow if one.code() is not grpc.StatusCode.OK)
        assert "No message came in 1 s" in refused.details()
