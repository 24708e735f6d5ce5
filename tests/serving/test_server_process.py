"""`python -m serving` as users run it: a process, its ports, its signals."""

import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
from pathlib import Path

import grpc
import httpx
import pytest
import trustme
from tensorflow_serving.apis import get_model_status_pb2, model_service_pb2_grpc
from toy_exports import wait_until

pytestmark = pytest.mark.slow


class Server:
    def __init__(self, exports, log, *arguments):
        from socket import socket

        with socket() as first, socket() as second:
            first.bind(("127.0.0.1", 0))
            second.bind(("127.0.0.1", 0))
            self.port, self.rest_port = first.getsockname()[1], second.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.rest_port}"
        self.log = log
        command = [sys.executable, "-m", "serving", "--engine=embedded", f"--exports={exports}"]
        command += ["--allow-foreign", "--allow-ops=WriteFile,MatchingFiles"]
        command += [f"--port={self.port}", f"--rest_api_port={self.rest_port}", *arguments]
        with log.open("w") as stderr:
            self.process = subprocess.Popen(
                command,
                stderr=stderr,
                cwd=Path(__file__).parents[2],
                env=os.environ | {"TZ": "UTC"},
            )

    def wait_until_ready(self):
        wait_until(lambda: self.process.poll() is not None or self.is_ready(), 60)
        assert self.process.poll() is None, self.log.read_text()

    def is_ready(self):
        try:
            return httpx.get(f"{self.url}/readyz", timeout=30).status_code == 200
        except httpx.TransportError:
            return False


@pytest.fixture
def start(exports, tmp_path):
    servers = []

    def start(*arguments):
        server = Server(exports, tmp_path / "log", *arguments)
        servers.append(server)
        return server

    yield start
    for server in servers:
        if server.process.poll() is None:
            server.process.kill()
        server.process.wait()


def ask_gate(server, folder, answers):
    """A request that stays in the graph until `folder/leave` is there."""
    row = {"entry": str(folder / "entry"), "leave": str(folder / "leave")}
    url = f"{server.url}/v1/models/gate:predict"

    def ask():
        try:
            answers.append(httpx.post(url, json={"instances": [row]}, timeout=60).json())
        except httpx.TransportError as error:
            answers.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    wait_until((folder / "entry").exists)
    return thread


def test_a_server_serves_says_so_and_drains(start, tmp_path):
    server = start()
    server.wait_until_ready()
    with httpx.Client(base_url=server.url) as http:
        response = http.post("/v1/models/half_plus_two:predict", json={"instances": [2.0]})
        assert response.json() == {"predictions": [3.0]}
        assert len(response.headers["x-request-id"]) == 32
        with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            stub = model_service_pb2_grpc.ModelServiceStub(channel)
            request = get_model_status_pb2.GetModelStatusRequest()
            request.model_spec.name = "mixed"
            assert stub.GetModelStatus(request, timeout=10).model_version_status[0].version == 3

            answers = []
            thread = ask_gate(server, tmp_path, answers)
            server.process.send_signal(signal.SIGTERM)
            wait_until(lambda: http.get("/readyz").json()["status"] == "draining")
            assert http.get("/readyz").status_code == 503
            assert http.get("/healthz").status_code == 200
            refused = http.post("/v1/models/half_plus_two:predict", json={"instances": [2.0]})
            assert refused.status_code == 503 and "shutting down" in refused.json()["error"]
            assert int(refused.headers["retry-after"]) >= 1
            with pytest.raises(grpc.RpcError) as caught:
                stub.GetModelStatus(request, timeout=10)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            (tmp_path / "leave").touch()
            thread.join()
    assert answers == [{"predictions": [True]}]
    assert server.process.wait(20) == 0
    log = server.log.read_text()
    assert "Engine: embedded (--engine embedded)" in log
    assert f"http://127.0.0.1:{server.rest_port}/v1/models" in log
    assert "Model classifier version 3 is available" in log
    unknown = [line for line in log.splitlines() if not re.match(r"\d\d:\d\d:\d\d \w+ ", line)]
    assert unknown == []  # TensorFlow's own chatter stays out


def test_a_request_longer_than_the_drain_is_cut_off(start, tmp_path):
    server = start("--drain-seconds=0.2")
    server.wait_until_ready()
    answers = []
    thread = ask_gate(server, tmp_path, answers)
    server.process.send_signal(signal.SIGINT)
    assert server.process.wait(30) == 0
    thread.join()
    assert answers == [{"error": "The server stopped before this request was finished."}]
    assert "did not finish in time: 1" in server.log.read_text()


def test_a_second_signal_ends_at_once(start, tmp_path):
    server = start("--drain-seconds=1000")
    server.wait_until_ready()
    answers = []
    thread = ask_gate(server, tmp_path, answers)
    server.process.send_signal(signal.SIGTERM)
    wait_until(lambda: "Stopping" in server.log.read_text())
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(20) == 128 + signal.SIGTERM
    thread.join()


def test_a_start_that_fails_says_so_in_the_stock_words(tmp_path, free_port):
    (tmp_path / "broken" / "7").mkdir(parents=True)
    command = [sys.executable, "-m", "serving", "--engine=embedded", "--what"]
    command += [f"--port={free_port}", "--rest_api_port=0", "--max_num_load_retries=0"]
    command += ["--model_name=mine", f"--model_base_path={tmp_path / 'broken'}", "--allow-foreign"]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=Path(__file__).parents[2], timeout=60
    )
    assert done.returncode == 255
    assert done.stdout.startswith("unknown argument: --what\n")
    assert re.search(
        r"^Failed to start server\. Error: UNKNOWN: 1 servable\(s\) did not become available: "
        r"\{\{\{name: mine version: 7\} due to error: .+\}, \}$",
        done.stdout,
        re.M | re.S,
    )


def test_ports_open_when_the_model_is_there(tmp_path, exports, free_port):
    base_path = tmp_path / "late"
    base_path.mkdir()
    log = tmp_path / "log"
    command = [sys.executable, "-m", "serving", "--engine=embedded", "--allow-foreign"]
    command += [f"--port={free_port}", "--rest_api_port=0", f"--model_base_path={base_path}"]
    with log.open("w") as stderr:
        process = subprocess.Popen(command, stderr=stderr, cwd=Path(__file__).parents[2])
    try:
        wait_until(lambda: "no version folder" in log.read_text(), 60)
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", free_port)) != 0
        shutil.copytree(exports / "half_plus_two" / "3", tmp_path / "unfinished")
        (tmp_path / "unfinished").rename(base_path / "3")
        wait_until(lambda: f"gRPC: 127.0.0.1:{free_port}" in log.read_text())
        with grpc.insecure_channel(f"127.0.0.1:{free_port}") as channel:
            stub = model_service_pb2_grpc.ModelServiceStub(channel)
            request = get_model_status_pb2.GetModelStatusRequest()
            request.model_spec.name = "default"
            (status,) = stub.GetModelStatus(request, timeout=10).model_version_status
        assert (status.version, status.state) == (3, status.AVAILABLE)
    finally:
        process.terminate()
        assert process.wait(30) == 0


def test_tls_keys_and_json_logs(start, tmp_path, monkeypatch):
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    key, certificate, ca = (tmp_path / name for name in ("key.pem", "certificate.pem", "ca.pem"))
    issued.private_key_pem.write_to_path(key)
    issued.cert_chain_pems[0].write_to_path(certificate)
    authority.cert_pem.write_to_path(ca)
    monkeypatch.setenv("STEPWISE_API_KEYS", "user-key-0123456789")
    server = start(f"--tls-certificate={certificate}", f"--tls-key={key}", "--log-format=json")
    url = server.url.replace("http:", "https:")
    with httpx.Client(base_url=url, verify=ssl.create_default_context(cafile=ca)) as http:

        def is_ready():
            try:
                return http.get("/readyz").status_code == 200
            except httpx.TransportError:
                return False

        wait_until(is_ready, 60)
        call = "/v1/models/half_plus_two:predict"
        assert http.post(call, json={"instances": [2.0]}).status_code == 401
        http.headers["x-api-key"] = "user-key-0123456789"
        assert http.post(call, json={"instances": [2.0]}).json() == {"predictions": [3.0]}
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(20) == 0
    lines = [json.loads(line) for line in server.log.read_text().splitlines()]
    requests = [line for line in lines if line["logger"] == "serving.access"]
    assert [line["status"] for line in requests if line["path"] == call] == [401, 200]
