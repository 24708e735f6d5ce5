"""The cases against the embedded server, the remote engine over it, and a stock server if any."""

import contextlib
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.conformance import models
from tests.conformance.cases import GRPC, REST
from tests.conformance.run import differences

STOCK = shutil.which("tensorflow_model_server")
LABELS = "--allow_version_labels_for_unavailable_models"


def free_ports() -> tuple[int, int]:
    with socket.socket() as one, socket.socket() as two:
        one.bind(("127.0.0.1", 0))
        two.bind(("127.0.0.1", 0))
        return one.getsockname()[1], two.getsockname()[1]


@contextlib.contextmanager
def serving(*command: str) -> Iterator[tuple[str, str]]:
    """REST URL and gRPC address of a server in a process of its own, once it is ready."""
    grpc_port, rest_port = free_ports()
    ports = [f"--port={grpc_port}", f"--rest_api_port={rest_port}"]
    with subprocess.Popen([*command, *ports]) as process:
        try:
            url = f"http://127.0.0.1:{rest_port}"
            deadline = time.monotonic() + 60
            while True:
                with contextlib.suppress(httpx.TransportError):
                    if httpx.get(f"{url}/v1/models/types", trust_env=False).status_code == 200:
                        break
                assert process.poll() is None, "the server has ended"
                assert time.monotonic() < deadline, "the server is not ready within 60 s"
                time.sleep(0.05)
            yield url, f"127.0.0.1:{grpc_port}"
        finally:
            process.terminate()


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.write(tmp_path_factory.mktemp("conformance"))


@pytest.fixture(scope="module")
def embedded(config: Path) -> Iterator[tuple[str, str]]:
    ours = [sys.executable, "-m", "serving", "--engine=embedded", "--allow-foreign"]
    with serving(*ours, f"--model_config_file={config}", LABELS) as addresses:
        yield addresses


def test_there_are_enough_cases():
    assert len(REST) + len(GRPC) >= 150


def test_the_embedded_server_conforms(embedded):
    assert differences(*embedded) == []


def test_the_remote_engine_conforms_over_the_embedded_one(embedded):
    names = "--models=half_plus_two,examples,mixed,types"
    ours = [sys.executable, "-m", "serving", "--engine=remote", f"--backend={embedded[1]}"]
    with serving(*ours, names) as addresses:
        assert differences(*addresses) == []


def test_another_server_is_told_apart(embedded, monkeypatch):
    rest = [("GET", "/v1/models/nobody", None, 404, "Another text")]
    grpc = [("GetModelStatus", {"name": "half_plus_two"}, "OK", {"states": [[3, 30]]})]
    monkeypatch.setattr("tests.conformance.run.REST", rest)
    monkeypatch.setattr("tests.conformance.run.GRPC", grpc)
    assert len(differences(*embedded)) == 2


@pytest.mark.skipif(STOCK is None, reason="no tensorflow_model_server on the PATH")
def test_the_stock_server_conforms(config):
    assert STOCK is not None
    with serving(STOCK, f"--model_config_file={config}", LABELS) as addresses:
        assert differences(*addresses) == []
