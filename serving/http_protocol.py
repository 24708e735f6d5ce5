"""uvicorn's HTTP protocol with the two limits that it lacks: on the time and size of headers."""

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEADER_BYTES = 64 * 1024

_SLOW = b"The headers did not come in time (--header-timeout-seconds)."
_LARGE = b"The headers are larger than 65,536 bytes."


def protocol_with(header_seconds: float) -> type[HttpToolsProtocol]:
    """The protocol whose callers have `header_seconds` from connecting, or from the first byte of a
    later request, to the end of its headers."""

    class Protocol(HttpToolsProtocol):
        _timer: asyncio.TimerHandle | None = None
        _header_bytes = 0

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._begin()

        def data_received(self, data: bytes) -> None:
            is_idle = self.cycle is None or self.cycle.response_complete
            if self._timer is None and is_idle:
                self._begin()
            if self._timer is not None:
                self._header_bytes += len(data)
            super().data_received(data)
            if self._timer is not None and self._header_bytes > MAX_HEADER_BYTES:
                self._refuse(b"431 Request Header Fields Too Large", _LARGE)

        def on_headers_complete(self) -> None:
            self._end()
            super().on_headers_complete()

        def connection_lost(self, exc: Exception | None) -> None:
            self._end()
            super().connection_lost(exc)

        def _begin(self) -> None:
            self._header_bytes = 0
            self._timer = self.loop.call_later(
                header_seconds, self._refuse, b"408 Request Timeout", _SLOW
            )

        def _end(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

        def _refuse(self, status: bytes, text: bytes) -> None:
            self._end()
            if self.transport.is_closing():
                return
            body = b'{\n    "error": "' + text + b'"\n}'
            head = b"HTTP/1.1 %b\r\ncontent-type: application/json\r\n" % status
            head += b"content-length: %d\r\nconnection: close\r\n\r\n" % len(body)
            self.transport.write(head + body)
            self.transport.close()

    return Protocol
