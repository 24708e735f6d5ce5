"""The command line: every flag of tensorflow_model_server, in its manner, and our own options."""

import logging
import math
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from serving import flags, launcher, model_configs, servable
from serving.__main__ import main
from serving.config import ConfigError, ServerConfig, flag_of
from serving.grpc_server import GrpcServer
from serving.repository import Repository
from serving.rest import create_app
from serving.service import Service, num_threads

STOCK = [setting for setting in flags.settings() if "mark" in setting.metadata]
OWN = [setting for setting in flags.settings() if "mark" not in setting.metadata]


def parse(*arguments):
    return flags.parse(arguments).config


def test_all_48_flags_of_the_stock_server_are_there():
    assert len(STOCK) == 48
    assert {setting.metadata["mark"] for setting in STOCK} == set("MAIX")


def test_stock_flags_have_underscores_and_our_own_have_dashes():
    assert all("-" not in flag_of(setting)[2:] for setting in STOCK)
    assert all("_" not in flag_of(setting) for setting in OWN)


@pytest.mark.parametrize("setting", flags.settings(), ids=flag_of)
def test_every_flag_takes_its_own_default_and_help_shows_it(setting):
    default = flags.shown_default(setting)
    config = parse(f"{flag_of(setting)}={default}") if setting.name != "model_name" else parse()
    assert config == ServerConfig()
    assert f"  {flag_of(setting)}={default}\n" in flags.usage()


def test_all_lines_of_a_help_text_stand_below_its_flag():
    _, _, after = flags.usage().partition("flags of tensorflow_model_server:")
    below = [line for line in after.splitlines() if line and not line.endswith(":")]
    assert all(line.startswith(("  --", " " * 8)) and len(line) <= 90 for line in below)


def test_values_of_every_type_in_one_word_or_two():
    config = parse(
        *("--port=1234", "--rest_api_port", "1235", "--file_system_poll_wait_seconds", "-1"),
        *("--enable_batching", "--batching_parameters_file", "b", "--enable_model_warmup=false"),
        *("--models", "a, b", "--drain-seconds=0.5", "--grpc_channel_arguments=a=1,b=2"),
    )
    assert (config.port, config.rest_api_port, config.only_models) == (1234, 1235, ("a", "b"))
    assert config.file_system_poll_wait_seconds == -1 and config.drain_seconds == 0.5
    assert config.enable_batching and not config.enable_model_warmup
    assert config.batching_parameters_file == Path("b")
    assert config.grpc_channel_arguments == "a=1,b=2"


@pytest.mark.parametrize(
    "argument",
    [
        *("--port=", "--port=x", "--port=1.0", "--port", "--enable_batching=1"),
        *("--enable_batching=yes", "--enable_batching=", "--per_process_gpu_memory_fraction=nan"),
        *("--drain-seconds=soon", "--insecure=True", "--exports="),
    ],
)
def test_a_value_that_cannot_be_read_prints_the_usage(argument, capsys):
    assert main([argument]) == 255
    output, error = capsys.readouterr()
    assert output == flags.usage() and argument.partition("=")[0] in error


def test_an_unknown_argument_is_told_and_the_start_goes_on(capsys, monkeypatch):
    started = []
    monkeypatch.setattr("serving.__main__.launch", lambda config: started.append(config) or 0)
    assert main(["--noenable_batching", "--port=1234", "serve"]) == 0
    assert started == [ServerConfig(port=1234)]
    output = capsys.readouterr().out
    assert output.startswith("unknown argument: --noenable_batching\nunknown argument: serve\n")
    assert output.endswith(flags.usage())


def test_ignored_flags_are_told_in_one_line(caplog, monkeypatch):
    monkeypatch.setattr("serving.__main__.launch", lambda config: 0)
    ignored = [flag_of(setting) for setting in STOCK if setting.metadata["mark"] == "I"]
    values = ["true" if s.type is bool else "x" for s in STOCK if s.metadata["mark"] == "I"]
    with caplog.at_level(logging.INFO, "serving"):
        assert main([f"{f}={v}" for f, v in zip(ignored, values, strict=True)]) == 0
    (line,) = caplog.messages
    assert line.endswith(", ".join(ignored)) and len(ignored) == 8


@pytest.mark.parametrize("setting", [s for s in STOCK if s.metadata["mark"] == "X"], ids=flag_of)
def test_refused_flags_say_why(setting):
    value = {bool: "true", int: "7"}.get(setting.type, "file")
    with pytest.raises(ConfigError, match=f"{flag_of(setting)}: this server .*; .+"):
        parse(f"{flag_of(setting)}={value}")


def test_version(capsys):
    assert main(["--version"]) == 0
    assert re.fullmatch(
        r"TensorFlow ModelServer: 2\.20\.0\S*\nTensorFlow Library: 2\.\d+\.\d+\n",
        capsys.readouterr().out,
    )


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--port", "70000"], "--port must be between 0 and 65535. Received: 70000"),
        (["--max-rows", "-1"], "--max-rows must be >= 0. Received: -1"),
        (["--model_name", "a"], "--model_base_path"),
        (["--model_base_path", "x", "--exports", "y"], "cannot go together"),
        (["--models", "a", "--model_config_file", "x"], "cannot go together"),
        (["--engine", "none"], "--engine must be one of"),
        (
            ["--batching_parameters_file=x"],
            "server_options.batching_parameters_file is set without setting "
            "server_options.enable_batching to true.",
        ),
        (
            [f"--tensorflow_{pool}_parallelism=2" for pool in ("session", "intra_op", "inter_op")],
            "You cannot configure all.",
        ),
        (["--port=0"], "server_options.grpc_port or server_options.grpc_socket_path"),
        (["--model_config_file=/no/such/file"], "--model_config_file cannot be read"),
        (["--model_base_path=gs://bucket/model"], "local folders only"),
    ],
)
def test_settings_that_cannot_work(arguments, text, capsys, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert main(arguments) == 255
    output = capsys.readouterr().out
    assert output.startswith("Failed to start server. Error: INVALID_ARGUMENT: ") and text in output


def test_two_of_three_thread_pools_may_be_set():
    assert parse("--tensorflow_intra_op_parallelism=1", "--tensorflow_inter_op_parallelism=1")
    with pytest.raises(ConfigError, match="separately"):
        ServerConfig(
            tensorflow_session_parallelism=1,
            tensorflow_intra_op_parallelism=1,
            tensorflow_inter_op_parallelism=1,
        )


def test_a_broken_config_file_fails_with_the_stock_texts(tmp_path, capsys, caplog, monkeypatch):
    monkeypatch.setenv("PATH", "")
    file = tmp_path / "models.config"
    file.write_text("model_config_list { config { nam: 'a' } }")
    assert main([f"--model_config_file={file}"]) == 255
    assert f"Error: INVALID_ARGUMENT: Invalid protobuf file: '{file}'" in capsys.readouterr().out
    assert "Error parsing text-format tensorflow.serving.ModelServerConfig" in caplog.text


def test_one_port_for_both_leaves_rest_out(caplog):
    config = launcher._with_ports_apart(ServerConfig(port=9000, rest_api_port=9000))
    assert (config.port, config.rest_api_port) == (9000, 0)
    assert "Skipped exporting HTTP/REST API" in caplog.text


# ---------------------------------------------------- what the flags do that no other file tests


def num_grpc_threads(config):
    return GrpcServer(Service(Repository(config, None)), config)._threads._max_workers


def inter_op_threads(config):
    return servable._session_config(config).inter_op_parallelism_threads


def retry_seconds(config):
    return config.load_retry_interval_seconds


def served_names(config):
    return [model.name for model in model_configs.current_models(config)]


def versions_seen(config):
    """After a look at the folders, a new version and another look."""
    folder = config.exports / "a"
    (folder / "1").mkdir(parents=True)
    repository = Repository(config, None)
    repository._scan()
    (folder / "2").mkdir()
    repository._scan()
    return [number for name in repository.names() for number, *_ in repository.statuses(name)]


def names_after_a_change(config):
    """After a change of the file of models and another look at it, if one is planned."""
    repository = Repository(replace(config, models=model_configs.current_models(config)), None)
    repository.start()
    config.model_config_file.write_text(MODELS.replace('"c"', '"d"'))
    repository.stop(10)
    if repository._next_look_at_config < math.inf:
        repository._next_look_at_config = 0.0
    repository._look_at_config_file()
    return repository.names()


MODELS = 'model_config_list { config { name: "c" base_path: "/c" model_platform: "tensorflow" } }'
FOUR_PER_CPU = 4 * (os.cpu_count() or 1)
EFFECTS = [
    ("--rest_api_num_threads=7", num_threads, 7),
    ("--rest_api_num_threads=0", num_threads, FOUR_PER_CPU),
    ("--grpc_max_threads=3", num_grpc_threads, 3),
    ("--grpc_max_threads=0", num_grpc_threads, FOUR_PER_CPU),
    ("--tensorflow_inter_op_parallelism=3", inter_op_threads, 3),
    ("--load_retry_interval_micros=2500000", retry_seconds, 2.5),
    ("--load_retry_interval_micros=-1", retry_seconds, 0),
    ("--file_system_poll_wait_seconds=1e-9 --exports={folder}", versions_seen, [2, 1]),
    ("--file_system_poll_wait_seconds=0 --exports={folder}", versions_seen, [1]),
    ("--file_system_poll_wait_seconds=-1 --exports={folder}", versions_seen, []),
    ("--model_base_path=/b", served_names, ["default"]),
    ("--model_base_path=/b --model_name=m", served_names, ["m"]),
    ("--model_base_path=/b --model_name=m --model_config_file={file}", served_names, ["c"]),
    (
        "--model_config_file={file} --model_config_file_poll_wait_seconds=0",
        names_after_a_change,
        ["c"],
    ),
    (
        "--model_config_file={file} --model_config_file_poll_wait_seconds=1",
        names_after_a_change,
        ["d"],
    ),
]


@pytest.mark.parametrize(("arguments", "effect", "expected"), EFFECTS)
def test_what_a_flag_does(tmp_path, arguments, effect, expected):
    file = tmp_path / "models.config"
    file.write_text(MODELS)
    given = arguments.format(folder=tmp_path / "exports", file=file).split()
    assert effect(parse(*given)) == expected


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ([], "No regression outputs found in SignatureDef: "),
        (
            ["--enable_signature_method_name_check"],
            "Expected regression signature method_name to be tensorflow/serving/regress. "
            "Was: tensorflow/serving/classify",
        ),
    ],
)
def test_the_method_of_a_signature_is_looked_at_when_asked_for(repository, given, text):
    body = {"signature_name": "classify_x_to_y", "examples": [{"x": 1.0}]}
    with TestClient(create_app(Service(repository), None, parse(*given))) as client:
        error = client.post("/v1/models/examples:regress", json=body).json()["error"]
    assert error.startswith(text)


ROOT = Path(__file__).parents[2]


def rows_of_the_table(num_columns):
    section = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8").split("\n## Flags\n")[1]
    for line in section.split("\n## ")[0].splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == num_columns and cells[0].startswith("`"):
            yield [cell.strip("`") for cell in cells]


def test_the_documents_table_of_stock_flags_is_the_code():
    rows = list(rows_of_the_table(5))
    assert [row[:4] for row in rows] == [
        [s.name, flags.shown_default(s), s.metadata["mark"], s.metadata["help"]] for s in STOCK
    ]
    for name, _, mark, _, file in rows:
        if file != "test_flags.py" or mark in "MA":  # those ignored and refused are from the code
            assert name in (ROOT / "tests" / "serving" / file).read_text(encoding="utf-8"), name


def test_the_documents_table_of_our_options_is_the_code():
    assert list(rows_of_the_table(3)) == [
        [flag_of(s), flags.shown_default(s), s.metadata["help"]] for s in OWN
    ]
