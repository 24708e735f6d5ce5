"""From the exported folder to a caller: what was trained is what the two front ends answer."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import httpx
import pytest
from programs import Program, free_ports, running
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from model import signatures
from serving.client import Client
from training.__main__ import main
from training.runs import newest_export, read_json

pytestmark = pytest.mark.slow

MODELS = ("sentiment", "topics", "stories")
ROOT = Path(__file__).resolve().parents[2]
PROMPT = "Once there was a little fox"


@dataclass
class Server:
    program: Program
    exports: Path
    rest: httpx.Client
    grpc: prediction_service_pb2_grpc.PredictionServiceStub
    grpc_port: int

    def predict(self, name: str, body: dict) -> dict:
        answer = self.rest.post(f"/v1/models/{name}:predict", json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def golden(self, name: str) -> tuple[dict, dict]:
        """Inputs and outputs by column, as the model answered before it was exported."""
        manifest = read_json(newest_export(self.exports, name) / signatures.MANIFEST_FILE)
        (golden,) = [
            one for one in manifest["golden"] if one["signature_name"] == signatures.SERVING_DEFAULT
        ]
        return golden["inputs"], golden["outputs"]


@pytest.fixture(scope="module")
def server(trained_exports, tmp_path_factory) -> Iterator[Server]:
    exports = tmp_path_factory.mktemp("road") / "exports"
    shutil.copytree(trained_exports, exports)
    rest_port, grpc_port = free_ports(2)
    options = ["--exports", exports, "--rest_api_port", rest_port, "--port", grpc_port]
    options += ["--grpc-reflection", "--generation-slots", 0]  # whose compiling takes a while
    with (
        running("-m", "serving", "--engine", "embedded", *options) as program,
        httpx.Client(base_url=f"http://127.0.0.1:{rest_port}", timeout=60) as rest,
        grpc.insecure_channel(f"127.0.0.1:{grpc_port}") as channel,
    ):

        def is_ready() -> bool:
            try:
                return rest.get("/readyz").status_code == 200
            except httpx.TransportError:
                return False

        program.wait_until(is_ready)
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        yield Server(program, exports, rest, stub, grpc_port)
        program.process.terminate()
        assert program.end() == 0, program.output
        assert "Traceback" not in program.output


@pytest.mark.parametrize("readme", ["README.md", "README.zh.md"])
def test_the_calls_in_the_readme_work_as_they_stand(server, readme):
    """Each curl line and the gRPC program, with nothing changed but the ports."""
    text = (ROOT / readme).read_text(encoding="utf-8")
    ports = {"8501": str(server.rest.base_url.port), "8500": str(server.grpc_port)}
    lines = re.findall(r"^curl .*$", text, re.M)
    assert {name for line in lines for name in MODELS if f"/{name}:predict" in line} == set(MODELS)
    for line in lines:
        *_, url, flag, body = shlex.split(line)
        assert flag == "-d" and url.startswith("http://127.0.0.1:8501/v1/models/")
        answer = server.rest.post(url.partition(":8501")[2], content=body)
        assert answer.status_code == 200, answer.text
        assert len(answer.json()["predictions"]) == len(json.loads(body)["instances"])
    for block in re.findall(r"^```python\n(.*?)^```", text, re.M | re.S):
        for port, own in ports.items():
            block = block.replace(f"127.0.0.1:{port}", f"127.0.0.1:{own}")
        done = subprocess.run([sys.executable, "-c", block], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        version, label, scores = done.stdout.split(maxsplit=2)
        assert (version, label in ("negative", "positive")) == ("1", True)
        assert sum(json.loads(scores)) == pytest.approx(1.0)


def test_the_programs_in_the_guide_of_the_server_run(server, capsys):
    """Those of the session (its curl lines are typed by hand) and of the clients."""
    text = (ROOT / "docs/serving.md").read_text(encoding="utf-8")
    ports = {"8501": str(server.rest.base_url.port), "8500": str(server.grpc_port)}
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)
    for block in blocks:
        for port, own in ports.items():
            block = block.replace(f"127.0.0.1:{port}", f"127.0.0.1:{own}")
        exec(compile(block, "docs/serving.md", "exec"), {})
    said = capsys.readouterr().out
    assert "StatusCode.NOT_FOUND Servable not found for request: Latest(sentimental)" in said
    assert "tensorflow.serving.PredictionService" in said and "state: AVAILABLE" in said
    assert "['sentiment', 'stories', 'topics']" in said
    assert "BadRequestError n must be a whole number from 1 to 128" in said
    assert len(blocks) == 4


@pytest.mark.parametrize("name", MODELS)
def test_rest_answers_as_the_model_did(server, name):
    inputs, outputs = server.golden(name)
    assert_equal(server.predict(name, {"inputs": inputs})["outputs"], outputs)
    rows = server.predict(name, {"instances": rows_of(inputs)})["predictions"]
    assert_equal(rows, rows_of(outputs))
    one_by_one = [
        server.predict(name, {"instances": [row]})["predictions"][0] for row in rows_of(inputs)
    ]
    assert_equal(one_by_one, rows_of(outputs))


@pytest.mark.parametrize("name", MODELS)
def test_grpc_answers_as_the_model_did(server, name):
    import tensorflow as tf

    inputs, outputs = server.golden(name)
    request = predict_pb2.PredictRequest()
    request.model_spec.name = name
    for alias, column in inputs.items():
        request.inputs[alias].CopyFrom(tf.make_tensor_proto(column))
    answer = server.grpc.Predict(request, timeout=60)
    version = int(newest_export(server.exports, name).name)
    assert (answer.model_spec.name, answer.model_spec.version.value) == (name, version)
    assert_equal({alias: values(tensor) for alias, tensor in answer.outputs.items()}, outputs)


def test_the_seed_decides_the_text_alone_and_in_a_batch(server):
    def row(seed):
        settings = {"max_tokens": 20, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "seed": seed}
        return {"prompt": PROMPT} | settings

    def write(*seeds):
        answer = server.predict("stories", {"instances": [row(seed) for seed in seeds]})
        return [prediction["text"] for prediction in answer["predictions"]]

    (first,), (second,) = write(1), write(2)
    assert first != second
    assert write(1) == [first]
    assert write(2, 1, 3, 1)[:2] == [second, first]
    assert write(1, 1) == [first, first]


def test_the_client_answers_as_the_server_does(server):
    with Client(str(server.rest.base_url).rstrip("/")) as client:
        assert {(m.name, m.kind) for m in client.models()} == {
            ("sentiment", "classifier"),
            ("topics", "classifier"),
            ("stories", "generator"),
        }
        inputs, outputs = server.golden("sentiment")
        found = client.classify("sentiment", inputs["text"])
        assert [one.label for one in found] == outputs["label"]
        scores = [[one.scores[label] for label in outputs["labels"][0]] for one in found]
        assert_equal(scores, outputs["scores"])

        inputs, outputs = server.golden("stories")
        for row, expected in zip(rows_of(inputs), rows_of(outputs), strict=True):
            story = client.generate("stories", **row)
            assert (story.text, story.num_tokens, story.finish_reason) == (
                expected["text"],
                expected["num_tokens"],
                expected["finish_reason"],
            )


def test_a_new_version_takes_over_without_a_gap(server, trained_exports):
    runs = trained_exports.parent / "runs"
    inputs, outputs = server.golden("topics")
    assert main(["--runs", str(runs), "--exports", str(server.exports), "export", "topics"]) == 0
    assert newest_export(server.exports, "topics").name == "2"

    def is_served() -> bool:
        assert_equal(server.predict("topics", {"inputs": inputs})["outputs"], outputs)
        answer = server.rest.get("/v1/models/topics/versions/2")
        states = [entry["state"] for entry in answer.json().get("model_version_status", ())]
        return states == ["AVAILABLE"]

    server.program.wait_until(is_served)
    spec = server.rest.get("/v1/models/topics/metadata").json()["model_spec"]
    assert spec["version"] == "2"
    assert_equal(server.predict("topics", {"inputs": inputs})["outputs"], outputs)


def rows_of(columns: dict) -> list[dict]:
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def values(tensor) -> list:
    """A tensor of an answer as plain Python values."""
    import tensorflow as tf

    array = tf.make_ndarray(tensor)
    if array.dtype != object:
        return array.tolist()
    return [[text.decode() for text in row] if array.ndim > 1 else row.decode() for row in array]


def assert_equal(received, expected) -> None:
    """Texts and whole numbers exactly, other numbers within 1e-5, whatever they are nested in."""
    if isinstance(expected, dict):
        assert received.keys() == expected.keys()
        for name in expected:
            assert_equal(received[name], expected[name])
    elif isinstance(expected, list):
        for one, other in zip(received, expected, strict=True):
            assert_equal(one, other)
    elif isinstance(expected, float):
        assert received == pytest.approx(expected, rel=0, abs=1e-5)
    else:
        assert received == expected
