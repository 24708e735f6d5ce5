import contextlib
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from openai_server import Slow, repository_of, serving
from starlette.testclient import TestClient
from tensorflow_serving.apis import model_service_pb2_grpc, prediction_service_pb2_grpc
from toy_exports import MODELS, classifier_model, generator_model, wait_until
from toy_writer import writer_model

from serving import servable
from serving.config import ServerConfig
from serving.grpc_server import GrpcServer
from serving.repository import Repository
from serving.rest import create_app
from serving.service import Service


@pytest.fixture(scope="session")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of exports with every toy model as version 3. Read only: copy before changing."""
    folder = tmp_path_factory.mktemp("exports")
    for name, save in MODELS.items():
        save(folder / name / "3")
    return folder


@pytest.fixture(scope="session")
def repository(exports: Path) -> Iterator[Repository]:
    repository = Repository(ServerConfig(exports=exports), servable.load)
    repository.start()
    wait_until(lambda: repository.readiness()[0])
    yield repository
    assert repository.stop(10)


@pytest.fixture(scope="session")
def rest(repository: Repository) -> Iterator[TestClient]:
    """The REST app over the toy models, in this process."""
    with TestClient(create_app(Service(repository))) as client:
        yield client


class Stubs:
    def __init__(self, port: int) -> None:
        self.address = f"127.0.0.1:{port}"
        options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
        self.channel = grpc.insecure_channel(self.address, options)
        self.prediction = prediction_service_pb2_grpc.PredictionServiceStub(self.channel)
        self.model = model_service_pb2_grpc.ModelServiceStub(self.channel)


@contextlib.contextmanager
def _serve_grpc(service: Service, config: ServerConfig | None = None) -> Iterator[Stubs]:
    server = GrpcServer(service, config or ServerConfig(port=0))
    port = server.server.add_insecure_port("127.0.0.1:0")
    server.server.start()
    stubs = Stubs(port)
    yield stubs
    stubs.channel.close()
    server.stop(0)


@pytest.fixture(scope="session")
def serve_grpc() -> Callable[..., contextlib.AbstractContextManager[Stubs]]:
    """gRPC stubs of a server over a service, with settings or without, in this process."""
    return _serve_grpc


@pytest.fixture(scope="session")
def stubs(repository: Repository) -> Iterator[Stubs]:
    """gRPC stubs of a server over the toy models, in this process."""
    with _serve_grpc(Service(repository)) as stubs:
        yield stubs


@pytest.fixture
def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="session")
def writers(tmp_path_factory):
    """Toy models that write, and two that do not."""
    folder = tmp_path_factory.mktemp("openai")
    writer_model(folder / "writer" / "4")
    writer_model(folder / "whole" / "1", is_concatenation=False)
    classifier_model(folder / "classifier" / "1")
    generator_model(folder / "older" / "1")
    with repository_of(folder) as repository:
        yield repository


@pytest.fixture(scope="module")
def embedded(writers):
    with serving(writers, ServerConfig()) as running:
        yield running


@pytest.fixture
def slow(writers):
    """The engine's place taken by a `Slow`."""
    with writers.acquire("writer") as servable:
        servable.writer = Slow()
        yield servable.writer
        servable.writer = None
