"""The cases against the embedded server, the remote engine over it, and a stock server if any."""

import contextlib
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
import uvicorn

from serving import flags, metrics, model_configs, servable
from serving.config import ServerConfig
from serving.door import Door
from serving.grpc_server import GrpcServer
from serving.http_protocol import protocol_with
from serving.remote import RemoteRepository
from serving.repository import Repository
from serving.rest import create_app
from serving.service import Service
from tests.conformance import models
from tests.conformance.__main__ import main
from tests.conformance.case import ERRORS
from tests.conformance.run import GRPC, REST, ask, table

STOCK = shutil.which("tensorflow_model_server")
SWITCHES = ("cors", "metrics")


def free_ports() -> tuple[int, int]:
    with socket.socket() as one, socket.socket() as two:
        one.bind(("127.0.0.1", 0))
        two.bind(("127.0.0.1", 0))
        return one.getsockname()[1], two.getsockname()[1]


@contextlib.contextmanager
def process(*command: str) -> Iterator[tuple[str, str]]:
    """REST URL and gRPC address of a server in a process of its own, once it is ready."""
    grpc_port, rest_port = free_ports()
    ports = [f"--port={grpc_port}", f"--rest_api_port={rest_port}"]
    with subprocess.Popen([*command, *ports]) as running:
        try:
            url = f"http://127.0.0.1:{rest_port}"
            deadline = time.monotonic() + 60
            while True:
                with contextlib.suppress(httpx.TransportError):
                    if httpx.get(f"{url}/v1/models/types", trust_env=False).status_code == 200:
                        break
                assert running.poll() is None, "the server has ended"
                assert time.monotonic() < deadline, "the server is not ready within 60 s"
                time.sleep(0.05)
            yield url, f"127.0.0.1:{grpc_port}"
        finally:
            running.terminate()


@contextlib.contextmanager
def in_this_process(config: ServerConfig) -> Iterator[tuple[str, str]]:
    """The same layers as `serving.server` puts together, without a process and its start."""
    grpc_port, rest_port = free_ports()
    config = replace(config, port=grpc_port)
    repository = (
        RemoteRepository(config)
        if config.engine == "remote"
        else Repository(config, servable.loader(config))
    )
    repository.start()
    repository.wait_until_available()
    service = Service(repository)
    grpc_server = GrpcServer(service, config)
    grpc_server.start("127.0.0.1")
    app = create_app(service, metrics.page_path(config.monitoring_config_file), config)
    http_server = uvicorn.Server(
        uvicorn.Config(
            Door(app, service, config),
            port=rest_port,
            http=protocol_with(config.header_timeout_seconds, config.send_timeout_seconds),
            lifespan="off",
            log_config=None,
        )
    )
    thread = threading.Thread(target=http_server.run)
    thread.start()
    try:
        deadline = time.monotonic() + 30
        while not http_server.started:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        yield f"http://127.0.0.1:{rest_port}", f"127.0.0.1:{grpc_port}"
    finally:
        http_server.should_exit = True
        thread.join()
        grpc_server.stop(0)
        service.close()
        assert repository.stop(10)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("conformance").resolve()
    models.write(folder)
    return folder


@pytest.fixture(scope="module")
def embedded(folder: Path) -> Iterator[tuple[str, str]]:
    ours = [sys.executable, "-m", "serving", "--engine=embedded", "--allow-foreign"]
    with process(*ours, *models.flags(folder, *SWITCHES)) as addresses:
        yield addresses


def check(addresses: tuple[str, str], folder: Path, *features: str) -> None:
    found = [answer for address in addresses for answer in ask(address, features, str(folder))]
    assert len(found) >= 300
    assert all(answer.is_as_expected for answer in found), table(found)


def test_every_error_of_the_table_has_a_case_with_its_exact_text():
    # The last part of a graph's own error is the graph's.
    exact = {
        row
        for case in REST + GRPC
        for row in case.rows
        if isinstance(case.answer, str) or case.answer.pattern.endswith(("$", r"\}\}"))
    }
    assert exact == set(ERRORS)


def test_the_document_tells_how_many_there_are():
    text = (Path(__file__).parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")
    assert f"\n{len(REST) + len(GRPC)} requests, REST and gRPC" in text
    words = " ".join(text.split())
    for row in ERRORS:
        assert f" {row} {sum(row in case.rows for case in REST + GRPC)}" in words, row


def test_the_embedded_server_conforms(embedded, folder):
    check(embedded, folder, *SWITCHES)


def test_the_remote_engine_conforms_over_the_embedded_one(embedded, folder):
    config = ServerConfig(engine="remote", backend=embedded[1], only_models=models.MODELS)
    config = replace(config, enable_signature_method_name_check=True)
    with in_this_process(config) as addresses:
        check(addresses, folder, "method_check")


def test_the_embedded_server_conforms_when_it_batches(folder):
    given = ["--allow-foreign", *models.flags(folder, "batching", "method_check")]
    config = flags.parse(given).config
    config = replace(config, models=model_configs.current_models(config))
    with in_this_process(config) as addresses:
        check(addresses, folder, "batching", "method_check")


def test_another_server_is_told_apart(embedded, monkeypatch, capsys):
    """What it was not started with is seen to be missing."""
    monkeypatch.setattr(sys, "argv", ["conformance", *embedded, "--with=cors,batching"])
    assert main() == 1
    found = capsys.readouterr().out.strip()
    assert "expected 400 Task size 9 is larger than maximum input batch size 8" in found
    assert "GET /monitoring/prometheus/metrics\n    expected 404" in found
    lines = found.splitlines()
    assert len([line for line in lines if line.startswith("    received ")]) >= 6
    assert not lines[-1].endswith(", 0 differences")


@pytest.mark.skipif(STOCK is None, reason="no tensorflow_model_server on the PATH")
def test_the_stock_server_conforms(folder):
    assert STOCK is not None
    with process(STOCK, *models.flags(folder, *SWITCHES)) as addresses:
        check(addresses, folder, *SWITCHES)
