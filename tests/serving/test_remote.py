"""The front door over another server answers as that server does."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import trustme
from starlette.testclient import TestClient
from toy_exports import example

from serving import inference
from serving.config import ConfigError, ModelConfig, ServerConfig
from serving.errors import Code, ServingError
from serving.grpc_server import GrpcServer
from serving.launcher import launch
from serving.remote import RemoteRepository
from serving.repository import State
from serving.rest import create_app
from serving.service import Service

CONFIG = ServerConfig(only_models=("half_plus_two", "mixed"), engine="remote")


@pytest.fixture(scope="module")
def remote(stubs):
    remote = RemoteRepository(replace(CONFIG, backend=stubs.address))
    yield remote
    assert remote.stop()


@pytest.fixture(scope="module")
def front_door(remote):
    with TestClient(create_app(Service(remote))) as client:
        yield client


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("half_plus_two:predict", {"instances": [1.0, 2.0]}),
        ("half_plus_two/versions/3:predict", {"inputs": [[1.0]]}),
        ("half_plus_two/versions/9:predict", {"instances": [1.0]}),
        ("half_plus_two/labels/none:predict", {"instances": [1.0]}),
        ("half_plus_two:predict", {"instances": ["a"]}),
        ("half_plus_two:predict", {"instances": [1.0], "signature_name": "other"}),
        ("unknown:predict", {"instances": [1.0]}),
        (
            "mixed:predict",
            {"inputs": {"words": ["a", "é"], "counts": [[1, 2], [3, 4]], "is_loud": [True, False]}},
        ),
        ("mixed:predict", {"inputs": [1.0, 2.0], "signature_name": "scalar"}),
        ("mixed:predict", {"inputs": [1.0, 2.0, 3.0], "signature_name": "needs_vector"}),
        ("types:predict", {"inputs": [1, -2], "signature_name": "int64"}),
        ("types:predict", {"inputs": "text", "signature_name": "string"}),
    ],
)
def test_rest_answers_are_those_of_the_backend(front_door, rest, path, body):
    over, direct = (client.post(f"/v1/models/{path}", json=body) for client in (front_door, rest))
    assert over.status_code == direct.status_code
    assert json.loads(over.content) == json.loads(direct.content)


@pytest.mark.parametrize("path", ["mixed", "mixed/versions/3", "mixed/versions/9", "unknown"])
@pytest.mark.parametrize("suffix", ["", "/metadata"])
def test_status_and_metadata_are_those_of_the_backend(front_door, rest, path, suffix):
    over, direct = (client.get(f"/v1/models/{path}{suffix}") for client in (front_door, rest))
    assert over.status_code == direct.status_code
    assert json.loads(over.content) == json.loads(direct.content)


def test_the_list_of_models_has_the_backends_versions(front_door, remote):
    models = front_door.get("/v1/models").json()["models"]
    assert [model["name"] for model in models] == remote.names()
    assert models[0]["versions"] == [{"version": "3", "state": "AVAILABLE"}]
    assert models[0]["labels"] == {}


def test_examples_are_classified_and_regressed_through_predict(remote):
    with remote.acquire("examples") as servable:
        result = inference.classify(servable, "classify_x_to_y", [example(x=4.0)])
        assert [c.score for c in result.classifications[0].classes] == [4.0]
        result = inference.regress(servable, "regress_x_to_y", [example(x=8.0)])
        assert [r.value for r in result.regressions] == [6.0]


def test_the_deadline_goes_along(remote):
    with remote.acquire("half_plus_two") as servable:
        with pytest.raises(ServingError) as caught:
            servable.run("", {"x": np.float32([1])}, timeout=-1.0)
        assert caught.value.code is Code.DEADLINE_EXCEEDED


def test_readiness_is_the_backends(remote, stubs):
    is_ready, models = remote.readiness()
    assert is_ready
    assert [(m.name, m.version, m.state) for m in models] == [
        ("half_plus_two", 3, State.AVAILABLE),
        ("mixed", 3, State.AVAILABLE),
    ]
    other = RemoteRepository(replace(CONFIG, only_models=("unknown",), backend=stubs.address))
    assert not other.readiness()[0]
    other.stop()


def test_signatures_are_forgotten_when_another_version_answers(remote, monkeypatch):
    target = ("half_plus_two", None, None)
    with remote.acquire("half_plus_two") as servable:
        servable.version = 2  # as after a swap: the cache says 2 and the backend answers with 3
        assert target in remote._known
        servable.run("", {"x": np.float32([1])})
        assert servable.version == 3
        assert target not in remote._known


def test_a_reload_is_passed_on_and_its_refusal_comes_back(remote, tmp_path):
    twice = [ModelConfig("a", tmp_path), ModelConfig("a", tmp_path)]
    with pytest.raises(ServingError) as caught:
        remote.reload(twice)
    assert caught.value.code is Code.INVALID_ARGUMENT
    assert caught.value.message == "Illegal to list model a multiple times in config list"
    assert remote.names() == ["half_plus_two", "mixed"]


def test_a_backend_that_does_not_answer_is_unavailable(free_port):
    gone = RemoteRepository(replace(CONFIG, backend=f"127.0.0.1:{free_port}"))
    assert not gone.readiness()[0]
    with pytest.raises(ServingError) as caught, gone.acquire("mixed"):
        pass
    assert caught.value.code is Code.UNAVAILABLE
    gone.stop()


def test_tls_and_a_key_for_a_backend_that_asks_for_them(
    repository, tmp_path, free_port, monkeypatch
):
    authority = trustme.CA()
    server, client = authority.issue_cert("localhost"), authority.issue_cert("client")
    texts = {
        "server_key": server.private_key_pem,
        "server_cert": server.cert_chain_pems[0],
        "custom_ca": authority.cert_pem,
    }
    ssl_config = tmp_path / "ssl.config"
    lines = [f"{name}: {json.dumps(pem.bytes().decode())}" for name, pem in texts.items()]
    ssl_config.write_text("\n".join([*lines, "client_verify: true"]))
    ca, certificate, key, api_key = (
        tmp_path / name for name in ("ca", "certificate", "key", "api")
    )
    authority.cert_pem.write_to_path(ca)
    client.cert_chain_pems[0].write_to_path(certificate)
    client.private_key_pem.write_to_path(key)
    api_key.write_text("backend-key-0123456789\n")
    config = replace(
        CONFIG,
        backend=f"localhost:{free_port}",
        backend_ca=ca,
        backend_certificate=certificate,
        backend_certificate_key=key,
        backend_api_key_file=api_key,
    )
    monkeypatch.setenv("STEPWISE_API_KEYS", "backend-key-0123456789")
    backend = GrpcServer(
        Service(repository), ServerConfig(port=free_port, ssl_config_file=ssl_config)
    )
    backend.start("localhost")

    def asked(**changes):
        remote = RemoteRepository(replace(config, **changes))
        try:
            with remote.acquire("half_plus_two") as servable:
                return servable.run("", {"x": np.float32([1])})["y"].tolist()
        except ServingError as error:
            return error.code
        finally:
            remote.stop()

    assert asked() == [2.5]
    assert asked(backend_api_key_file=None) is Code.UNAUTHENTICATED
    monkeypatch.setenv("STEPWISE_BACKEND_API_KEY", "backend-key-0123456789")
    assert asked(backend_api_key_file=None) == [2.5]
    assert asked(backend_certificate=None, backend_certificate_key=None) is Code.UNAVAILABLE
    assert asked(backend_ca=None) is Code.UNAVAILABLE
    with pytest.raises(ConfigError, match="--backend-ca .* cannot be read"):
        RemoteRepository(replace(config, backend_ca=tmp_path / "none"))
    backend.stop(0)


AT = {"backend": "h:1"}


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"backend": "nowhere"}, "HOST:PORT"),
        ({"backend": "h:1", "only_models": ()}, "--models A,B"),
        ({"backend": "h:1", "engine": "embedded"}, "--backend is for --engine remote"),
        ({"backend_ca": Path("a"), "engine": "embedded"}, "--backend-ca is for --engine remote"),
        ({"backend": "h:1", "backend_certificate": Path("a")}, "go together"),
        (
            {"backend_certificate": Path("a"), "backend_certificate_key": Path("b"), **AT},
            "needs --backend-ca",
        ),
    ],
)
def test_what_cannot_work_is_refused_at_the_start(tmp_path, changes, text):
    with pytest.raises(ConfigError, match=text):
        launch(replace(CONFIG, exports=tmp_path, **changes))
