"""uvicorn's HTTP protocol with the limits that it lacks: on the time and the size of headers, on
the time in which the rest of a body may come that was answered before it was read, and on the time
in which a caller must read on."""

import asyncio
import json
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from serving import openai

MAX_HEADER_BYTES = 64 * 1024

_SLOW = (408, "Request Timeout", "The headers did not come in time (--header-timeout-seconds).")
_LARGE = (431, "Request Header Fields Too Large", "The headers are larger than 65,536 bytes.")
_INVALID = (400, "Bad Request", "This is no HTTP request.")


def protocol_with(header_seconds: float, send_seconds: float) -> type[HttpToolsProtocol]:
    """The protocol whose callers have `header_seconds` from connecting, or from the first byte of a
    later request, to the end of its headers; and who lose the connection when for `send_seconds`
    more waits to be sent than the transport holds back."""

    class Protocol(HttpToolsProtocol):
        _timer: asyncio.TimerHandle | None = None
        _sending: asyncio.TimerHandle | None = None
        _header_bytes = 0
        _is_in_body = False
        url = b""  # of the request that comes, as far as it has

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._begin()

        def data_received(self, data: bytes) -> None:
            if not self._is_in_body:
                if self._timer is None:
                    self._begin()
                self._header_bytes += len(data)
            super().data_received(data)
            is_within_headers = self._timer is not None and not self._is_in_body
            if is_within_headers and self._header_bytes > MAX_HEADER_BYTES:
                self._refuse(*_LARGE)

        def on_headers_complete(self) -> None:
            self._end()
            if sum(len(name) + len(value) for name, value in self.headers) > MAX_HEADER_BYTES:
                self._refuse(*_LARGE)  # all of them came at once
                raise ValueError("The headers are too large")  # the parser reads no further
            self._is_in_body = True
            super().on_headers_complete()

        def on_message_complete(self) -> None:
            self._end()
            self._is_in_body = False
            super().on_message_complete()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            # A caller that still sends would not see an answer to a connection closed at once; one
            # that sends for long does not hold it.
            if self._is_in_body and self._timer is None and not self.transport.is_closing():
                self._timer = self.loop.call_later(header_seconds, self.transport.close)

        def send_400_response(self, msg: str) -> None:
            self._refuse(*_INVALID)

        def pause_writing(self) -> None:
            super().pause_writing()
            # Closing would wait for what is not read.
            self._sending = self.loop.call_later(send_seconds, self.transport.abort)

        def resume_writing(self) -> None:
            self._end_sending()
            super().resume_writing()

        def connection_lost(self, exc: Exception | None) -> None:
            self._end()
            self._end_sending()
            super().connection_lost(exc)

        def _begin(self) -> None:
            self._header_bytes = 0
            self._timer = self.loop.call_later(header_seconds, self._refuse, *_SLOW)

        def _end(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

        def _end_sending(self) -> None:
            if self._sending is not None:
                self._sending.cancel()
                self._sending = None

        def _refuse(self, status: int, reason: str, text: str) -> None:
            self._end()
            if self.transport.is_closing():
                return
            if openai.is_openais(self.url.decode("latin-1").partition("?")[0]):
                body = openai.error_body(status, text)
            else:
                body = json.dumps({"error": text}, indent=4).encode()
            head = f"HTTP/1.1 {status} {reason}\r\ncontent-type: application/json\r\n"
            head += f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
            self.transport.write(head.encode() + body)
            self.transport.close()

    return Protocol
