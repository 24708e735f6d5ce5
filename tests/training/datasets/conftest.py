"""A small web server with faults on order, an empty cache, and the real data where there is one."""

import os
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest


@dataclass
class FileServer:
    """Serves `files` by path; the lists are faults, used up one per request."""

    address: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    statuses: list[int] = field(default_factory=list)  # answered instead of the file
    cut_after: list[int] = field(default_factory=list)  # bytes sent before the connection closes
    ignores_range: bool = False
    says_length: bool = True
    requests: list[tuple[str, str | None]] = field(default_factory=list)  # path, Range


@pytest.fixture
def server() -> Iterator[FileServer]:
    state = FileServer()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            wanted = self.headers.get("Range")
            state.requests.append((self.path, wanted))
            if state.statuses:
                self.send_error(state.statuses.pop(0))
                return
            if self.path not in state.files:
                self.send_error(404)
                return
            body = state.files[self.path]
            start = 0
            if wanted and not state.ignores_range:
                start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1])
                if start >= len(body):
                    self.send_response(416)
                    self.send_header("Content-Range", f"bytes */{len(body)}")
                    self.end_headers()
                    return
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
            else:
                self.send_response(200)
            if state.says_length:
                self.send_header("Content-Length", str(len(body) - start))
            self.end_headers()
            end = start + state.cut_after.pop(0) if state.cut_after else len(body)
            self.wfile.write(body[start:end])

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        state.address = f"http://127.0.0.1:{httpd.server_address[1]}"
        thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield state
        httpd.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def _no_proxy_and_no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("training.datasets.download.time.sleep", lambda seconds: None)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache and no data folder; returns where downloads go."""
    monkeypatch.setenv("STEPWISE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("STEPWISE_DATA", raising=False)
    return tmp_path / "cache" / "data"


@pytest.fixture
def data_folder() -> Path:
    """The real data sets; skips where there are none."""
    folder = os.environ.get("STEPWISE_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("STEPWISE_DATA does not name a folder with the public data sets")
    return Path(folder)
