"""Headers that come slowly, or without end: the connection is closed, others do not notice."""

import asyncio
import json

import pytest
import uvicorn
from uvicorn.server import ServerState

from serving.http_protocol import MAX_HEADER_BYTES, protocol_with

REQUEST = b"GET /a HTTP/1.1\r\nhost: x\r\n\r\n"


LARGE = 2**24  # bytes, more than the buffers between two sockets hold


async def app(scope, receive, send):
    is_large = scope["path"] == "/large"
    status, body = (200, b"x" * LARGE) if is_large else (204, b"")
    await send({"type": "http.response.start", "status": status, "headers": []})
    await send({"type": "http.response.body", "body": body})


def talk(conversation, header_seconds=0.15, send_seconds=0.15):
    """What `conversation(connect)` says; `connect()` gives reader and writer of a connection."""
    opened = []

    async def run():
        config = uvicorn.Config(
            app,
            http=protocol_with(header_seconds, send_seconds),
            lifespan="off",
            log_config=None,
        )
        config.load()
        state, loop = ServerState(), asyncio.get_running_loop()
        server = await loop.create_server(
            lambda: config.http_protocol_class(config, state, {}), "127.0.0.1", 0
        )
        port = server.sockets[0].getsockname()[1]

        async def connect():
            opened.append(await asyncio.open_connection("127.0.0.1", port))
            return opened[-1]

        async with server, asyncio.timeout(10):
            try:
                return await conversation(connect)
            finally:
                for _, writer in opened:
                    writer.close()
                await asyncio.sleep(0.01)  # for the server's side to see it

    return asyncio.run(run())


async def status(reader):
    head = await reader.readuntil(b"\r\n\r\n")
    return int(head.split()[1])


@pytest.mark.parametrize(
    ("first", "is_openais"),
    [
        (b"", False),
        (b"GET /a HTTP/1.1\r\nhost: ", False),
        (b"POST /v1/completions?a HTTP/1.1\r\nhost: ", True),
    ],
)
def test_headers_that_do_not_come_end_the_connection(first, is_openais):
    async def conversation(connect):
        reader, writer = await connect()
        writer.write(first)
        return await reader.read()

    answer = talk(conversation)
    assert answer.startswith(b"HTTP/1.1 408 Request Timeout\r\n")
    error = json.loads(answer.partition(b"\r\n\r\n")[2])["error"]
    message = error.pop("message") if is_openais else error
    assert message == "The headers did not come in time (--header-timeout-seconds)."
    if is_openais:
        assert error == {"type": "invalid_request_error", "param": None, "code": None}


def test_who_does_not_read_on_loses_the_connection_and_who_reads_slowly_does_not():
    request = REQUEST.replace(b"/a", b"/large").replace(
        b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n"
    )

    async def read(connect, pause):
        reader, writer = await connect()
        reader._transport.pause_reading()
        writer.write(request)
        await asyncio.sleep(pause)
        reader._transport.resume_reading()
        size = 0
        try:
            while part := await reader.read(2**20):
                size += len(part)
                await asyncio.sleep(pause / 20)
        except ConnectionResetError:
            pass
        return size

    async def conversation(connect):
        return await asyncio.gather(read(connect, 0.02), read(connect, 2.5))

    slow, stuck = talk(conversation, send_seconds=1.0)
    assert slow > LARGE and stuck < LARGE


def test_many_that_drip_do_not_hold_up_a_good_one():
    async def conversation(connect):
        slow = [await connect() for _ in range(100)]
        for _, writer in slow:
            writer.write(b"GET /a HTTP/1.1\r\nx: ")

        async def drip():
            while True:
                for _, writer in slow:
                    if not writer.is_closing():
                        writer.write(b"y")
                await asyncio.sleep(0.02)

        dripping = asyncio.ensure_future(drip())
        reader, writer = await connect()
        writer.write(REQUEST)
        good = await status(reader)
        found = [await status(reader) for reader, _ in slow]
        dripping.cancel()
        return good, set(found)

    assert talk(conversation) == (204, {408})


def test_a_kept_connection_may_idle_but_not_drip():
    async def conversation(connect):
        reader, writer = await connect()
        writer.write(REQUEST)
        first = await status(reader)
        await asyncio.sleep(0.3)  # twice the time for headers, without a byte
        writer.write(REQUEST)
        second = await status(reader)
        writer.write(b"GET ")
        return first, second, await status(reader)

    assert talk(conversation) == (204, 204, 408)


def test_headers_have_a_size():
    async def conversation(connect):
        reader, writer = await connect()
        writer.write(b"GET /a HTTP/1.1\r\nx: " + b"y" * (MAX_HEADER_BYTES + 1))
        refused = await status(reader)
        reader, writer = await connect()
        writer.write(b"GET /a HTTP/1.1\r\nx: " + b"y" * (MAX_HEADER_BYTES // 2) + b"\r\n\r\n")
        return refused, await status(reader)

    assert talk(conversation, header_seconds=5) == (431, 204)


@pytest.mark.parametrize("body", [b"", b"content-length: 2\r\n\r\n{}"])
def test_headers_that_come_at_once_have_a_size_too(body):
    """In one piece with what follows, as a loop that reads much at once hands them over."""

    async def conversation(connect):
        made = protocol_with(5, 5)(
            uvicorn.Config(app, lifespan="off", log_config=None), ServerState(), {}
        )
        sent = []

        class Transport(asyncio.Transport):
            def write(self, data):
                sent.append(data)

            def close(self):
                sent.append(None)

            def is_closing(self):
                return None in sent

        made.connection_made(Transport())
        head = b"POST /v1/embeddings HTTP/1.1\r\nx: " + b"y" * MAX_HEADER_BYTES + b"\r\n"
        made.data_received(head + (body or b"\r\n"))
        return sent

    answer, closed = talk(conversation)
    assert answer.startswith(b"HTTP/1.1 431 ") and closed is None
    error = json.loads(answer.partition(b"\r\n\r\n")[2])["error"]
    assert error["message"] == "The headers are larger than 65,536 bytes."


def test_the_rest_of_a_body_that_was_answered_unread_is_let_pass():
    async def conversation(connect):
        reader, writer = await connect()
        length = 3 * MAX_HEADER_BYTES
        writer.write(b"POST /a HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % length)
        first = await status(reader)  # the app answers without reading
        writer.write(b"x" * length)
        writer.write(REQUEST)
        return first, await status(reader)

    assert talk(conversation, header_seconds=5) == (204, 204)


def test_the_rest_of_a_body_that_does_not_come_ends_the_connection():
    async def conversation(connect):
        reader, writer = await connect()
        writer.write(b"POST /a HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\nx")
        return await status(reader), await reader.read()

    assert talk(conversation) == (204, b"")


def test_what_is_no_http_gets_an_answer_in_our_shape():
    async def conversation(connect):
        reader, writer = await connect()
        writer.write(b"\x16\x03\x01 hello\r\n\r\n")
        return await reader.read()

    head, _, body = talk(conversation, header_seconds=5).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert json.loads(body) == {"error": "This is no HTTP request."}
