"""A server under bad callers, too many callers and changes; `make test-reliability`: the long form.

The short form checks what does not depend on how busy the machine is.
"""

import asyncio
import os
import shutil
import subprocess
import sys
from pathlib import Path

import checks
import grpc
import load
import mutants
import pytest

sys.path.append(str(Path(__file__).parents[1] / "serving"))

import toy_exports
import toy_writer
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    model_management_pb2,
    predict_pb2,
    regression_pb2,
)

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("reliability")]

IS_LONG = os.environ.get("RELIABILITY") == "long"
LIMIT, INFLATED = 2**20, 2**23  # bytes, of the server under test
DEADLINE = 1.0  # seconds for headers and bodies; fragments among the wrong requests wait so long
LONG_DEADLINE = 10.0 if IS_LONG else DEADLINE  # of the server of the slow callers


DEADLINES = ("header-timeout-seconds", "body-timeout-seconds", "send-timeout-seconds")


class Server:
    def __init__(self, exports: Path, log: Path, **more: object) -> None:
        import socket

        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            second.bind(("127.0.0.1", 0))
            self.grpc_port, self.port = first.getsockname()[1], second.getsockname()[1]
        self.exports, self.log = exports, log
        monitoring = log.with_name("monitoring.config")
        monitoring.write_text("prometheus_config { enable: true }")
        options = {
            "engine": "embedded",
            "exports": exports,
            "allow-foreign": "true",
            "allow-ops": "WriteFile,MatchingFiles",  # of the model that waits for a file
            "port": self.grpc_port,
            "rest_api_port": self.port,
            "file_system_poll_wait_seconds": 0.1,
            "monitoring_config_file": monitoring,
            "max-body-bytes": LIMIT,
            "max-inflated-bytes": INFLATED,
            **dict.fromkeys(DEADLINES, DEADLINE),
            "max-running-requests": 20,
            "max-waiting-requests": 10,
            **more,
        }
        command = [sys.executable, "-m", "serving"]
        command += [f"--{name}={value}" for name, value in options.items()]
        with log.open("w") as stderr:
            self.process = subprocess.Popen(command, stderr=stderr, cwd=Path(__file__).parents[2])

    def memory(self) -> int:
        """The most bytes that it has ever had in memory."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        (line,) = [line for line in status.splitlines() if line.startswith("VmHWM")]
        return 1024 * int(line.split()[1])


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reliability")
    for name in ("half_plus_two", "mixed", "types", "gate", "examples", "busy"):
        toy_exports.MODELS[name](folder / "exports" / name / "3")
    toy_writer.writer_model(folder / "exports" / "writer" / "3")
    server = Server(folder / "exports", folder / "log")
    yield server
    if server.process.poll() is None:
        server.process.kill()
    server.process.wait()


@pytest.fixture(scope="module")
def patient(server):
    """A server with the deadlines that it has unless told otherwise, where there is time for it."""
    if not IS_LONG:
        yield server
        return
    other = Server(
        server.exports, server.log.with_name("log-2"), **dict.fromkeys(DEADLINES, LONG_DEADLINE)
    )
    yield other
    other.process.kill()
    other.process.wait()


def check(server, what):
    """Runs a check of a server that is ready, and shows its figures."""

    async def is_ready():
        assert server.process.poll() is None, server.log.read_text()
        return (await load.exchange(server.port, load.http("/readyz"), 30.0)).status == 200

    async def run():
        assert await load.until(is_ready, 60.0), server.log.read_text()
        return await what

    for figure in asyncio.run(run()) or ():
        print(figure)
    assert "Traceback" not in server.log.read_text()


@pytest.mark.parametrize(("run", "mutant"), mutants.MUTANTS, ids=lambda part: part.__name__)
def test_a_check_fails_on_a_mutant_alone(run, mutant):
    async def on(server):
        async with server.at_port() as port:
            await run(server, port)

    async def both():
        await on(mutants.Stops())
        with pytest.raises(checks.Broken):
            await on(mutant())

    asyncio.run(both())


@pytest.mark.parametrize("status", ["INTERNAL", "UNKNOWN", "UNAVAILABLE", "DEADLINE_EXCEEDED"])
def test_the_check_of_protobufs_fails_on_a_mutant_alone(status):
    answers = iter(["OK", "INVALID_ARGUMENT", "NOT_FOUND", status])
    good = {"Predict": b"abc"}

    def call(method, body):
        assert method == "Predict" and body != good[method]
        return next(answers)

    checks.wrong_protobuf(call, good, number=3)
    with pytest.raises(checks.Broken, match=status):
        checks.wrong_protobuf(call, good, number=1)


def test_wrong_json(server):
    check(server, checks.wrong_json(server.port, number=300))


def test_wrong_http(server):
    check(server, checks.wrong_http(server.port, number=20_000 if IS_LONG else 300, at_once=200))


def test_wrong_protobuf(server):
    requests = {
        "PredictionService/Predict": predict_pb2.PredictRequest(),
        "PredictionService/Regress": regression_pb2.RegressionRequest(),
        "PredictionService/GetModelMetadata": get_model_metadata_pb2.GetModelMetadataRequest(),
        "ModelService/HandleReloadConfigRequest": model_management_pb2.ReloadConfigRequest(),
    }
    for name, request in requests.items():
        if name.startswith("Prediction"):
            request.model_spec.name = "examples" if "Regress" in name else "half_plus_two"
    tensor = requests["PredictionService/Predict"].inputs["x"]
    tensor.dtype, tensor.float_val[:] = 1, [1.0, 2.0]
    tensor.tensor_shape.dim.add(size=2)
    regress = requests["PredictionService/Regress"]
    regress.model_spec.signature_name = "regress_x_to_y"
    regress.input.example_list.examples.add().features.feature["x"].float_list.value.append(2.0)
    requests["PredictionService/GetModelMetadata"].metadata_field.append("signature_def")
    del requests["ModelService/HandleReloadConfigRequest"]  # a good one would take the models away
    bodies = {name: request.SerializeToString() for name, request in requests.items()}

    async def run():
        with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:

            def call(method, body):
                try:
                    channel.unary_unary(f"/tensorflow.serving.{method}")(body, timeout=5)
                except grpc.RpcError as error:
                    return error.code().name
                return "OK"

            for name, body in bodies.items():
                assert call(name, body) == "OK"
            number = 20_000 if IS_LONG else 500
            await asyncio.to_thread(checks.wrong_protobuf, call, bodies, number=number)

    check(server, run())


def test_body_limits(server):
    check(server, checks.body_limits(server.port, limit=LIMIT))


def test_gzip_bomb(server):
    inflated = 2**30 if IS_LONG else 2**27
    bomb = checks.gzip_bomb(
        server.port, inflated=inflated, memory=server.memory, growth=8 * INFLATED
    )
    check(server, bomb)


def test_slow_clients(patient):
    number = 600 if IS_LONG else 60
    slow = checks.slow_clients(patient.port, number=number, seconds=LONG_DEADLINE + 1.0)
    check(patient, slow)


def test_slow_readers(patient):
    # More than the buffers between two sockets hold.
    body = b'{"signature_name": "wide", "instances": [1]}'
    request = load.http("/v1/models/busy:predict", body)
    number = 10 if IS_LONG else 2  # fewer than what may run, or good callers would be refused
    slow = checks.slow_readers(patient.port, request, number=number, seconds=LONG_DEADLINE + 2.0)
    check(patient, slow)


def test_steady(server):
    steady = checks.steady(
        server.port,
        load.predict("busy", [1.0]),
        seconds=60.0 if IS_LONG else 1.0,
        is_strict=IS_LONG,
    )
    check(server, steady)


@pytest.mark.skipif(not IS_LONG, reason="make test has tests/serving/test_batching.py for it")
def test_batched_equals_alone(server, tmp_path):
    batched = Server(server.exports, tmp_path / "log", enable_batching="true")
    requests = [load.predict("busy", [0.37 * i] * (1 + i % 3)) for i in range(20)]
    try:
        check(batched, checks.same_beside_others(batched.port, requests, at_once=1))
    finally:
        batched.process.kill()
        batched.process.wait()


def test_overload(server):
    flood = checks.overload(
        server.port,
        load.predict("busy", [1.0]),
        seconds=10.0 if IS_LONG else 0.5,
        memory=server.memory,
        is_strict=IS_LONG,
    )
    check(server, flood)


def test_hot_swaps(server, tmp_path):
    model = server.exports / "half_plus_two"

    async def install(version):
        folder = tmp_path / str(version)
        await asyncio.to_thread(shutil.copytree, model / "3", folder)
        folder.rename(model / str(version))

    # The newest one alone is served, so the third is let go, and copied from all the same.
    versions = range(4, 24 if IS_LONG else 6)
    swaps = checks.hot_swaps(
        server.port, checks.GOOD, model="half_plus_two", versions=versions, install=install
    )
    check(server, swaps)


def test_bad_versions(server, tmp_path):
    """One whose graph is cut off, one whose weights are, and one that is still being copied."""
    model = server.exports / "busy"

    def put(number, name, keep):
        def make():
            folder = tmp_path / str(number)
            shutil.copytree(model / "3", folder)
            file = folder / name
            file.write_bytes(file.read_bytes()[: int(keep * file.stat().st_size)])
            folder.rename(model / str(number))
            return number

        return lambda: asyncio.to_thread(make)

    bad = checks.bad_versions(
        server.port,
        load.predict("busy", [1.0]),
        model="busy",
        good=3,
        install=[
            put(4, "saved_model.pb", 0.5),
            put(5, "variables/variables.data-00000-of-00001", 0.5),
            put(6, "variables/variables.index", 0.0),
        ],
    )
    check(server, bad)


def test_stop_in_flight(tmp_path):
    toy_exports.gate_model(tmp_path / "exports" / "gate" / "3")
    toy_writer.writer_model(tmp_path / "exports" / "writer" / "3")
    # Each text of the streams counts as a request that runs or waits.
    server = Server(tmp_path / "exports", tmp_path / "log", **{"max-waiting-requests": 400})
    try:
        check(server, checks.stop_in_flight(server.port, server.process, tmp_path, number=20))
    finally:
        if server.process.poll() is None:
            server.process.kill()
        server.process.wait()
