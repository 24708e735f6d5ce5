"""`make demo` without make: one command up, one Ctrl-C down, nothing left behind."""

import shutil
import socket
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from brief_exports import BRIEF
from programs import free_ports, is_free, running

from training.runs import read_json

pytestmark = pytest.mark.slow


@dataclass
class Demo:
    """How to start it on what is trained already, and where it will answer."""

    folder: Path
    rest_port: int
    grpc_port: int
    ui_port: int

    @property
    def ports(self) -> tuple[int, int, int]:
        return self.rest_port, self.grpc_port, self.ui_port

    def command(self, recipe: str, *settings: str) -> list[object]:
        changes = [word for setting in settings for word in ("--set", setting)]
        return [
            *("demo.py", recipe, "--runs", self.folder / "runs"),
            *("--exports", self.folder / "exports", "--engine", "embedded"),
            *("--rest-port", self.rest_port, "--grpc-port", self.grpc_port),
            *("--ui-port", self.ui_port, *changes),
        ]


@pytest.fixture
def demo(trained_exports, tmp_path) -> Demo:
    for room in ("runs", "exports"):
        for folder in (trained_exports.parent / room).glob("topics*"):
            shutil.copytree(folder, tmp_path / room / folder.name)
    return Demo(tmp_path, *free_ports(3))


def test_it_serves_shows_and_stops_with_ctrl_c(demo):
    with running(*demo.command("topics", *BRIEF["topics"])) as program:
        program.wait_until(lambda: "Stepwise is up." in program.output)
        assert "trained already" in program.output
        assert f"http://127.0.0.1:{demo.ui_port}" in program.output
        server = f"http://127.0.0.1:{demo.rest_port}"
        assert f"{server}/v1/models/topics:predict" in program.output

        metrics = httpx.get(f"{server}/monitoring/prometheus/metrics")
        assert metrics.status_code == 200 and ":stepwise:serving:streams" in metrics.text

        answer = httpx.post(
            f"{server}/v1/models/topics:predict",
            json={"instances": ["The team won the final"]},
            timeout=60,
        )
        (prediction,) = answer.json()["predictions"]
        assert prediction["label"] in prediction["labels"]
        page = httpx.get(f"http://127.0.0.1:{demo.ui_port}/", timeout=60)
        assert page.status_code == 200 and "<!doctype html>" in page.text.lower()

        program.interrupt()
        assert program.end() == 0, program.output
    assert "Traceback" not in program.output
    assert [port for port in demo.ports if not is_free(port)] == []
    assert [path.name for path in (demo.folder / "exports" / "topics").iterdir()] == ["1"]


@pytest.mark.parametrize("taken", ["rest_port", "grpc_port", "ui_port"])
def test_a_taken_port_is_named_at_once(demo, taken):
    port = getattr(demo, taken)
    with socket.create_server(("127.0.0.1", port)):
        with running(*demo.command("topics")) as program:
            assert program.end() == 1
    (sentence,) = program.output.splitlines()  # none about training: it did not begin
    assert sentence.startswith(f"demo: port {port} cannot be used (")
    assert sentence.endswith(f"choose another with --{taken.replace('_', '-')}.")
    assert [port for port in demo.ports if not is_free(port)] == []


def test_a_part_that_ends_takes_the_others_with_it(demo):
    with running(*demo.command("topics", *BRIEF["topics"]), "--engine", "none") as program:
        assert program.end() == 1
    assert program.output.endswith("demo: the model server ended with code 255; see above.\n")
    assert "Traceback" not in program.output and "Stepwise is up." not in program.output


def test_ctrl_c_while_it_trains_saves(demo):
    settings = ["epochs=500", "patience=0", "evaluate_every=10", "tokenizer.num_buckets=4096"]
    with running(*demo.command("topics", *settings)) as program:
        program.wait_until(lambda: program.output.count("updates, val_loss") > 1)
        program.interrupt()
        assert program.end() == 130, program.output
    assert "Stopped at update " in program.output, program.output
    assert "The same command goes on." in program.output
    assert "Traceback" not in program.output and "Starting the server" not in program.output
    # Each stop was handed on once: twice would have ended it without saving.
    new = [run for run in (demo.folder / "runs").iterdir() if not (run / "results.json").exists()]
    assert [read_json(run / "config.json")["epochs"] for run in new] == [500.0]
    stopped = program.output.partition("Stopped at update ")[2].split(",")[0]
    assert (new[0] / "checkpoints" / "topics" / "last" / f"ckpt-{stopped}.npz").exists()


def test_what_training_refuses_ends_the_demo_with_its_code(demo):
    with running(*demo.command("topics", "epochs=none")) as program:
        assert program.end() == 1
    assert program.output.startswith("Error: epochs must be a number")
    assert len(program.output.splitlines()) == 1
