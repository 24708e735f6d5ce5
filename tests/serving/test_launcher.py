"""The command line: settings, engines (with stand-ins for the real programs), plain refusals."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from toy_exports import wait_until

from serving import model_configs
from serving.__main__ import main
from serving.config import ConfigError, VersionPolicy
from serving.errors import ServingError
from serving.launcher import choose_engine
from serving.sockets import listen

# Notes its arguments and the config it was given, then waits for a signal or ends with $EXIT_CODE.
FAKE_PROGRAM = """\
#!{python}
import json, os, pathlib, signal, sys, time
here = pathlib.Path(__file__).parent
if sys.argv[1:] == ["info"]:
    print("Cannot connect to the engine", file=sys.stderr)
    sys.exit(int(os.environ.get("INFO_CODE", "0")))
def note(name, content):
    (here / (name + ".new")).write_text(content)
    (here / (name + ".new")).rename(here / name)
def on_signal(signum, frame):
    note("signal", str(signum))
    sys.exit(5)
signal.signal(signal.SIGTERM, on_signal)
signal.signal(signal.SIGINT, on_signal)
for argument in sys.argv:
    if argument.startswith("--model_config_file="):
        config = pathlib.Path(argument.partition("=")[2])
        if config.exists():
            note("config", config.read_text())
            note("config_path", str(config))
note("arguments", json.dumps(sys.argv[1:]))
if "EXIT_CODE" in os.environ:
    sys.exit(int(os.environ["EXIT_CODE"]))
time.sleep(60)
"""


@pytest.fixture
def program(tmp_path, monkeypatch):
    """Puts a stand-in of the given name on the PATH, and nothing else."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))

    def put(name):
        file = folder / name
        file.write_text(FAKE_PROGRAM.format(python=sys.executable))
        file.chmod(0o755)
        return folder

    return put


@pytest.fixture
def models(tmp_path):
    """A folder of exports: two models by the look of it, and things that are none."""
    for path in ("exports/a/1", "exports/b/12", "exports/notes", "exports/.hidden/1"):
        (tmp_path / path).mkdir(parents=True)
    (tmp_path / "exports" / "README").touch()
    return tmp_path / "exports"


def two_free_ports():
    with socket.socket() as first, socket.socket() as second:
        first.bind(("127.0.0.1", 0))
        second.bind(("127.0.0.1", 0))
        return first.getsockname()[1], second.getsockname()[1]


def start(*arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "serving", *map(str, arguments)],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )


def config_of(folder):
    parsed = model_configs.parse((folder / "config").read_text())
    return {c.name: c.base_path for c in parsed.model_config_list.config}


def test_help_answers_without_heavy_imports():
    code = (
        "import sys\n"
        "from serving.__main__ import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit as done:\n    assert done.code == 0\n"
        "heavy = {'tensorflow', 'numpy', 'grpc', 'starlette', 'uvicorn', 'google.protobuf'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "--model_base_path" in done.stdout
    assert done.stderr.strip() == "[]"


def test_nothing_to_serve_says_where_it_looked(tmp_path, capsys, program):
    assert main(["--exports", str(tmp_path / "empty")]) == 255
    output = capsys.readouterr().out
    assert output.startswith("Failed to start server. Error: INVALID_ARGUMENT: Nothing to serve")
    assert str(tmp_path / "empty") in output and "python -m training" in output


def test_an_unknown_model_of_exports_lists_the_known(models, capsys, program):
    assert main(["--exports", str(models), "--models", "a,c"]) == 255
    assert "no model named 'c'; it holds: a, b" in capsys.readouterr().out


@pytest.mark.parametrize("flag", ["--port", "--rest_api_port"])
def test_a_taken_port_is_named_with_its_flag(flag, models, capsys, program):
    other = "--port" if flag == "--rest_api_port" else "--rest_api_port"
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        taken = holder.getsockname()[1]
        socket_path = f"--grpc_socket_path={models / 'socket'}"
        arguments = ["--exports", str(models), f"{flag}={taken}", f"{other}=0", socket_path]
        assert main(arguments) == 255
    error = capsys.readouterr().out
    assert f"port {taken} ({flag})" in error and f"{flag}=<number>" in error


def test_auto_says_why(program):
    assert choose_engine("auto") == ("embedded", "no tensorflow_model_server on the PATH")
    folder = program("tensorflow_model_server")
    engine, reason = choose_engine("auto")
    assert engine == "binary" and str(folder) in reason


def test_missing_programs_are_plain_refusals(program, monkeypatch):
    with pytest.raises(ConfigError, match="tensorflow_model_server.*--engine embedded"):
        choose_engine("binary")
    with pytest.raises(ConfigError, match="docker command"):
        choose_engine("docker")
    program("docker")
    monkeypatch.setenv("INFO_CODE", "1")
    with pytest.raises(ConfigError, match="Cannot connect to the engine.*start Docker"):
        choose_engine("docker")


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_the_binary_gets_config_ports_and_signals_and_gives_its_exit_code(program, models, signum):
    folder = program("tensorflow_model_server")
    port, rest_port = two_free_ports()
    server = start("--exports", models, "--port", port, "--rest_api_port", rest_port)
    wait_until((folder / "arguments").exists)
    arguments = json.loads((folder / "arguments").read_text())
    assert {f"--port={port}", f"--rest_api_port={rest_port}"} <= set(arguments)
    assert "--model_config_file_poll_wait_seconds=1" in arguments
    assert config_of(folder) == {"a": str(models / "a"), "b": str(models / "b")}

    (models / "late" / "1").mkdir(parents=True)
    config = Path((folder / "config_path").read_text())
    wait_until(lambda: "late" in config.read_text())  # the real server polls this file
    server.send_signal(signum)
    _, output = server.communicate(timeout=20)
    assert server.returncode == 5
    assert (folder / "signal").read_text() == str(int(signum))
    assert "Engine: binary" in output and "all interfaces" in output
    assert not config.exists()


def test_the_binarys_own_exit_code_is_ours(program, models, monkeypatch):
    program("tensorflow_model_server")
    monkeypatch.setenv("EXIT_CODE", "255")
    port, rest_port = two_free_ports()
    server = start("--exports", models, f"--port={port}", f"--rest_api_port={rest_port}")
    server.communicate(timeout=20)
    assert server.returncode == 255


def test_the_binary_reads_the_users_own_config_file(program, models, tmp_path, monkeypatch):
    folder = program("tensorflow_model_server")
    monkeypatch.setenv("EXIT_CODE", "0")
    file = tmp_path / "own.config"
    file.write_text("model_config_list { config { name: 'x' version_labels { key: 'a' } } }")
    port, rest_port = two_free_ports()
    server = start("--model_config_file", file, "--port", port, "--rest_api_port", rest_port)
    server.communicate(timeout=20)
    assert f"--model_config_file={file}" in json.loads((folder / "arguments").read_text())


def test_docker_mounts_read_only_and_publishes_here_only(program, models, monkeypatch):
    folder = program("docker")
    monkeypatch.setenv("EXIT_CODE", "0")
    port, rest_port = two_free_ports()
    server = start(
        *("--engine", "docker", "--exports", models),
        *("--port", port, "--rest_api_port", rest_port),
    )
    server.communicate(timeout=20)
    assert server.returncode == 0
    arguments = json.loads((folder / "arguments").read_text())
    assert arguments[0] == "run"
    image = arguments.index("tensorflow/serving:2.20.0")
    options, flags = arguments[:image], arguments[image + 1 :]
    assert f"127.0.0.1:{port}:8500" in options and f"127.0.0.1:{rest_port}:8501" in options
    assert f"type=bind,source={models},target=/models,readonly" in options
    assert "--model_config_file=/config/models.config" in flags
    assert {"--port=8500", "--rest_api_port=8501"} <= set(flags)


def test_docker_mounts_a_single_model_under_its_name(program, models, monkeypatch):
    folder = program("docker")
    monkeypatch.setenv("EXIT_CODE", "0")
    port, rest_port = two_free_ports()
    server = start(
        *("--engine", "docker", "--model_name", "mine", "--model_base_path", models / "a"),
        *("--port", port, "--rest_api_port", rest_port),
    )
    server.communicate(timeout=20)
    arguments = json.loads((folder / "arguments").read_text())
    assert f"type=bind,source={models / 'a'},target=/models/mine,readonly" in arguments


def test_flags_are_handed_to_the_binary_as_given(program, models, tmp_path, monkeypatch):
    folder = program("tensorflow_model_server")
    monkeypatch.setenv("EXIT_CODE", "0")
    port, rest_port = two_free_ports()
    given = [
        "--enable_batching=true",
        f"--batching_parameters_file={tmp_path / 'batching'}",
        "--grpc_channel_arguments=a=1,b=c",
        "--enable_profiler=false",
        "--load_retry_interval_micros=7",
        "--model_name=mine",
        f"--model_base_path={models / 'a'}",
    ]
    server = start(*given, f"--port={port}", f"--rest_api_port={rest_port}")
    server.communicate(timeout=20)
    arguments = json.loads((folder / "arguments").read_text())
    assert sorted(arguments) == sorted([*given, f"--port={port}", f"--rest_api_port={rest_port}"])


def test_docker_mounts_the_files_that_flags_name(program, models, tmp_path, monkeypatch):
    folder = program("docker")
    monkeypatch.setenv("EXIT_CODE", "0")
    monitoring = tmp_path / "settings" / "monitoring.config"
    monitoring.parent.mkdir()
    port, rest_port = two_free_ports()
    server = start(
        *("--engine=docker", f"--exports={models}", f"--monitoring_config_file={monitoring}"),
        *(f"--port={port}", f"--rest_api_port={rest_port}"),
    )
    server.communicate(timeout=20)
    arguments = json.loads((folder / "arguments").read_text())
    target = "/flags/monitoring_config_file"
    assert f"type=bind,source={monitoring.parent},target={target},readonly" in arguments
    assert f"--monitoring_config_file={target}/monitoring.config" in arguments


def test_what_a_stock_server_cannot_do_is_not_dropped_in_silence(program, models, capsys):
    program("tensorflow_model_server")
    arguments = [f"--exports={models}", "--rate-limit=1/minute"]
    assert main([*arguments, "--engine=binary"]) == 255
    assert "--rate-limit would have no effect" in capsys.readouterr().out
    engine, reason = choose_engine("auto", ["--rate-limit"])
    assert engine == "embedded" and "has no --rate-limit" in reason


CONFIG = """
model_config_list {
  config { name: "a", base_path: "/m/a", model_platform: "tensorflow" },
  config {
    name: "b" base_path: "/m/b" model_platform: "tensorflow"
    model_version_policy { specific { versions: 3 versions: 5 } }
    version_labels { key: "stable" value: 3 }
  }
  config {
    name: "c" base_path: "file:///m/c" model_type: TENSORFLOW model_version_policy { all {} }
  }
}
"""


def test_model_config_file(tmp_path):
    file = tmp_path / "models.config"
    file.write_text(CONFIG)
    a, b, c = models = model_configs.read(file)
    assert (a.name, a.base_path, a.policy) == ("a", Path("/m/a"), VersionPolicy(latest=1))
    assert b.policy.choose([3, 4, 5]) == {3, 5} and b.labels == {"stable": 3}
    assert c.policy.choose([3, 4]) == {3, 4} and c.base_path == Path("/m/c")
    assert model_configs.from_proto(model_configs.to_proto(models)) == models


def test_an_empty_model_config_file_lists_nothing(tmp_path):
    file = tmp_path / "models.config"
    file.write_text("# nothing yet")
    assert model_configs.read(file) is None
    file.write_text("model_config_list {}")
    assert model_configs.read(file) == ()


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ("name: 'a' base_path: 'rel'", "absolute path or URI; got base_path()=rel"),
        ("name: 'a' base_path: ''", "Expected model a to have an absolute path or URI"),
        ("name: 'a' base_path: 's3://b/a' model_platform: 'tensorflow'", "copy or mount it"),
        ("name: 'a' base_path: '/x'", "Illegal setting neither"),
        ("name: 'a' base_path: '/x' model_type: OTHER", "model_type choice 2 not supported"),
        (
            "name: 'a' base_path: '/x' model_type: TENSORFLOW model_platform: 'tensorflow'",
            "Illegal setting both",
        ),
        (
            "name: 'a' base_path: '/x' } config { name: 'a' base_path: '/y'",
            "Illegal to list model a multiple times in config list",
        ),
    ],
)
def test_model_lists_that_are_refused(entry, expected):
    with pytest.raises(ServingError) as caught:
        model_configs.from_proto(
            model_configs.parse(f"model_config_list {{ config {{ {entry} }} }}")
        )
    assert caught.value.code.name == "INVALID_ARGUMENT" and expected in caught.value.message


def test_listening_sockets_name_their_protocol():
    """Or asyncio leaves Nagle's algorithm on, and each answer waits 40 ms on a kept connection."""
    with listen("127.0.0.1", 0, "--rest_api_port") as listener:
        assert listener.proto == socket.IPPROTO_TCP
