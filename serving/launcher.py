"""Chooses what serves: tensorflow_model_server, its Docker image, or the embedded server."""

import logging
import shlex
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from serving.config import (
    ConfigError,
    ModelConfig,
    ServerConfig,
    current_models,
    discover_models,
    read_model_config_file,
    version_folders,
)
from serving.sockets import listen, url_host

log = logging.getLogger(__name__)

BINARY = "tensorflow_model_server"
IMAGE = "tensorflow/serving:2.20.0"
CONFIG_POLL_SECONDS = 1  # how often new folders of --exports are looked for


def launch(config: ServerConfig) -> int:
    """Serves with the engine of `config` until it ends; returns its exit code.

    Raises ConfigError when the engine, a port or the models are not there.
    """
    engine, reason = choose_engine(config.engine)
    log.info("Engine: %s (%s)", engine, reason)
    if config.model_config_file and engine != "binary":
        config = replace(config, models=read_model_config_file(config.model_config_file))
    if not (config.model_config_file and engine == "binary"):
        check_models(config)
    for flag, port in (("--port", config.port), ("--rest_api_port", config.rest_api_port)):
        if port:
            listen(config.host, port, flag).close()  # ask before anything slow begins

    if engine == "embedded":
        from serving.server import serve

        return serve(config)
    with tempfile.TemporaryDirectory(prefix="serving-") as folder:
        file = Path(folder) / "models.config"
        if engine == "binary":
            return _run_binary(config, file)
        return _run_docker(config, file)


def choose_engine(engine: str) -> tuple[str, str]:
    """The engine to use and why."""
    if engine == "auto":
        path = shutil.which(BINARY)
        if path:
            return "binary", f"found {path}"
        return "embedded", f"no {BINARY} on the PATH"
    if engine == "binary" and not shutil.which(BINARY):
        raise ConfigError(
            f"--engine binary needs {BINARY} on the PATH and it is not there; install it, "
            "or use --engine embedded"
        )
    if engine == "docker":
        _check_docker()
    return engine, f"--engine {engine}"


def _check_docker() -> None:
    if not shutil.which("docker"):
        raise ConfigError(
            "--engine docker needs the docker command on the PATH and it is not there; "
            "install Docker, or use --engine embedded"
        )
    info = subprocess.run(["docker", "info"], capture_output=True, text=True, check=False)
    if info.returncode:
        detail = (info.stderr or info.stdout).strip().splitlines()[-1:] or ["no reason given"]
        raise ConfigError(
            f"The docker command is there but its engine does not answer ({detail[0]}); "
            "start Docker, or use --engine embedded"
        )


def check_models(config: ServerConfig) -> None:
    """Raises ConfigError unless there is something to serve, under every name asked for."""
    found = current_models(config)
    if not config.models:
        known = [model.name for model in discover_models(config.exports)]
        for name in config.only_models:
            if name not in known:
                raise ConfigError(
                    f"--models: {config.exports.resolve()} holds no model named {name!r}; "
                    f"it holds: {', '.join(known) or 'none'}"
                )
    if not any(_has_version(model) for model in found):
        looked_in = [str(m.base_path.resolve()) for m in found] or [str(config.exports.resolve())]
        raise ConfigError(
            f"Nothing to serve: no folder with a version number in {', '.join(looked_in)}; make "
            "an export with `python -m training`, or point --exports or --model_base_path at one"
        )


def _has_version(model: ModelConfig) -> bool:
    try:
        return bool(version_folders(model.base_path))
    except OSError:
        return False


def _run_binary(config: ServerConfig, file: Path) -> int:
    if config.host not in ("0.0.0.0", "::"):
        log.warning("%s listens on all interfaces; it cannot be held to --host", BINARY)
    ports = [f"--port={config.port}", f"--rest_api_port={config.rest_api_port}"]
    if config.model_config_file:
        path = str(config.model_config_file.resolve())
        return run_child([BINARY, *ports, *_model_flags(config, path)])
    write = _config_writer(config, file, lambda model: str(model.base_path.resolve()))
    return run_child([BINARY, *ports, *_model_flags(config, str(file))], write)


def _run_docker(config: ServerConfig, file: Path) -> int:
    # --init and the bare binary: the image's own entry point is a shell, which as process 1 would
    # keep a stop signal from the server.
    command = ["docker", "run", "--rm", "--init", "--entrypoint", BINARY]
    for port, inside in ((config.port, 8500), (config.rest_api_port, 8501)):
        if port:
            command += ["--publish", f"{url_host(config.host)}:{port}:{inside}"]
    if config.models:
        mounts = {model.base_path: f"/models/{model.name}" for model in config.models}
    else:
        mounts = {config.exports: "/models"}
    for source, target in {**mounts, file.parent: "/config"}.items():
        command += ["--mount", f"type=bind,source={source.resolve()},target={target},readonly"]
    command += [IMAGE, "--port=8500", "--rest_api_port=8501"]
    command += _model_flags(config, f"/config/{file.name}")
    return run_child(command, _config_writer(config, file, lambda model: f"/models/{model.name}"))


def _model_flags(config: ServerConfig, model_config_file: str) -> list[str]:
    wait = config.file_system_poll_wait_seconds
    whole_wait = max(1, round(wait)) if wait > 0 else int(wait)
    flags = [
        f"--model_config_file={model_config_file}",
        f"--file_system_poll_wait_seconds={whole_wait}",
        f"--max_num_load_retries={config.max_num_load_retries}",
        f"--load_retry_interval_micros={round(config.load_retry_interval_seconds * 1e6)}",
    ]
    if not config.models and not config.model_config_file:
        flags.append(f"--model_config_file_poll_wait_seconds={CONFIG_POLL_SECONDS}")
    return flags


def _config_writer(
    config: ServerConfig, file: Path, base_path: Callable[[ModelConfig], str]
) -> Callable[[], None]:
    """Writes the ModelServerConfig of what there is to serve, when that has changed."""
    from google.protobuf import text_format
    from tensorflow_serving.config import model_server_config_pb2

    def write() -> None:
        message = model_server_config_pb2.ModelServerConfig()
        for model in current_models(config):
            entry = message.model_config_list.config.add(
                name=model.name, base_path=base_path(model), model_platform="tensorflow"
            )
            if model.policy.specific:
                entry.model_version_policy.specific.versions.extend(model.policy.specific)
            elif model.policy.latest:
                entry.model_version_policy.latest.num_versions = model.policy.latest
            else:
                entry.model_version_policy.all.SetInParent()
        text = text_format.MessageToString(message)
        if not file.exists() or file.read_text() != text:
            unfinished = file.with_suffix(".new")
            unfinished.write_text(text)
            unfinished.replace(file)  # the server polls it: never half a file

    return write


def run_child(command: list[str], on_poll: Callable[[], None] = lambda: None) -> int:
    """Runs `command`, hands it our stop signals, and returns its exit code (128 + N for signal N).

    `on_poll` is called before the start and then every CONFIG_POLL_SECONDS.
    """
    child: subprocess.Popen[bytes] | None = None
    early: list[int] = []

    def forward(signum: int, frame: object) -> None:
        if child is None:
            early.append(signum)
        else:
            child.send_signal(signum)

    on_poll()
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, forward)
    log.info("Running: %s", shlex.join(command))
    # A session of its own: Ctrl-C reaches it through us, once.
    child = subprocess.Popen(command, start_new_session=True)
    for number in early:
        child.send_signal(number)
    while True:
        try:
            code = child.wait(timeout=CONFIG_POLL_SECONDS)
        except subprocess.TimeoutExpired:
            on_poll()
        else:
            return 128 - code if code < 0 else code
