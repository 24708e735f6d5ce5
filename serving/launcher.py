"""Chooses what serves: tensorflow_model_server, its Docker image, or the embedded server."""

import ipaddress
import logging
import shlex
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path

from serving import flags, model_configs
from serving.config import (
    ConfigError,
    ModelConfig,
    ServerConfig,
    discover_models,
    flag_of,
    version_folders,
)
from serving.errors import ServingError
from serving.keys import API_KEYS, Keys
from serving.sockets import listen, url_host

log = logging.getLogger(__name__)

BINARY = "tensorflow_model_server"
PROTOCOL_VERSION = "2.20.0"  # of the TensorFlow Serving that the embedded server is alike
IMAGE = f"tensorflow/serving:{PROTOCOL_VERSION}"
CONFIG_POLL_SECONDS = 1  # how often new folders of --exports are looked for


# Options of ours that say what and where, or that a stock server needs nothing of.
NEUTRAL_OPTIONS = ("exports", "only_models", "engine", "host", "allow_foreign", "insecure")


def launch(config: ServerConfig) -> int:
    """Serves with the engine of `config` until it ends; returns its exit code.

    Raises ConfigError or ServingError when the engine, a port or the models are not there.
    """
    own = _own_options(config)
    engine, reason = choose_engine(config.engine, own)
    log.info("Engine: %s (%s)", engine, reason)
    for_backend = [flag for flag in own if flag.startswith("--backend")]
    if for_backend and engine != "remote":
        raise ConfigError(
            f"{', '.join(for_backend)} is for --engine remote; add that, or leave it out"
        )
    if engine in ("binary", "docker") and own:
        raise ConfigError(
            f"{', '.join(own)} would have no effect: {BINARY} knows nothing like it; leave it out, "
            "or use --engine embedded"
        )
    config = _with_ports_apart(config)
    check_exposure(config, engine)
    if engine == "remote":
        _check_backend(config)
    elif config.is_discovering:
        check_exports(config)
    elif engine == "embedded":
        config = replace(config, models=model_configs.current_models(config))
    for flag, port in (("--port", config.port), ("--rest_api_port", config.rest_api_port)):
        if port:
            listen(config.host, port, flag).close()  # ask before anything slow begins

    if engine in ("embedded", "remote"):
        from serving.server import serve

        return serve(config)
    with tempfile.TemporaryDirectory(prefix="serving-") as folder:
        file = Path(folder) / "models.config"
        if engine == "binary":
            return _run_binary(config, file)
        return _run_docker(config, file)


def check_exposure(config: ServerConfig, engine: str) -> None:
    """Raises ConfigError where the server would answer anybody beyond this machine.

    tensorflow_model_server itself knows neither keys nor an address to listen at.
    """
    if bool(config.tls_certificate) != bool(config.tls_key):
        raise ConfigError("--tls-certificate and --tls-key go together; give both")
    if engine == "binary" or config.insecure or _is_loopback(config.host):
        return
    if engine in ("embedded", "remote") and Keys.from_config(config).are_asked_for:
        return
    raise ConfigError(
        f"--host={config.host} lets other machines in, and no key is asked of them; give keys by "
        f"--api-keys-file or {API_KEYS}, or say --insecure if something else keeps strangers out"
    )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _check_backend(config: ServerConfig) -> None:
    host, _, port = config.backend.rpartition(":")
    if not host or not port.isdigit():
        raise ConfigError(
            "--engine remote needs --backend HOST:PORT, the gRPC of a running server. "
            f"Received: {config.backend!r}"
        )
    if bool(config.backend_certificate) != bool(config.backend_certificate_key):
        raise ConfigError("--backend-certificate and --backend-certificate-key go together")
    if config.backend_certificate and not config.backend_ca:
        raise ConfigError("--backend-certificate needs --backend-ca, or nothing is encrypted")
    if not (config.only_models or model_configs.current_models(config)):
        raise ConfigError(
            "--engine remote needs the names of the backend's models: give --models A,B, "
            "--model_config_file or --exports"
        )


def _own_options(config: ServerConfig) -> list[str]:
    """The options given that tensorflow_model_server has nothing like."""
    return [
        flag_of(setting)
        for setting in flags.settings()
        if "mark" not in setting.metadata
        and setting.name not in NEUTRAL_OPTIONS
        and getattr(config, setting.name) != setting.default
    ]


def _with_ports_apart(config: ServerConfig) -> ServerConfig:
    if not config.port and not config.grpc_socket_path:
        raise ConfigError(
            "At least one of server_options.grpc_port or server_options.grpc_socket_path must be "
            "set: give --port or --grpc_socket_path"
        )
    if config.port and config.port == config.rest_api_port:
        log.error(
            "--rest_api_port cannot be the same as --port. Please use a different port for "
            "HTTP/REST API. Skipped exporting HTTP/REST API."
        )
        return replace(config, rest_api_port=0)
    return config


def choose_engine(engine: str, own_options: Sequence[str] = ()) -> tuple[str, str]:
    """The engine to use and why; `own_options` are those given that only the embedded one has."""
    if engine == "auto":
        path = shutil.which(BINARY)
        if path and own_options:
            return "embedded", f"found {path}, which has no {own_options[0]}"
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


def check_exports(config: ServerConfig) -> None:
    """Raises ConfigError unless `exports` holds something to serve, under every name asked for."""
    known = [model.name for model in discover_models(config.exports)]
    for name in config.only_models:
        if name not in known:
            raise ConfigError(
                f"--models: {config.exports.resolve()} holds no model named {name!r}; "
                f"it holds: {', '.join(known) or 'none'}"
            )
    if not any(map(_has_version, model_configs.current_models(config))):
        raise ConfigError(
            f"Nothing to serve: no folder with a version number in {config.exports.resolve()}; "
            "make an export with `python -m training`, or point --exports or --model_base_path at "
            "one"
        )


def _has_version(model: ModelConfig) -> bool:
    try:
        return bool(version_folders(model.base_path))
    except OSError:
        return False


def _run_binary(config: ServerConfig, file: Path) -> int:
    if config.host not in ("0.0.0.0", "::"):
        log.warning("%s listens on all interfaces; it cannot be held to --host", BINARY)
    command = [BINARY, f"--port={config.port}", f"--rest_api_port={config.rest_api_port}"]
    given = _stock_flags(config)
    if not config.is_discovering:
        return run_child([*command, *given])
    write = _config_writer(config, file, lambda model: str(model.base_path.resolve()))
    return run_child([*command, *given, *_generated(file.as_posix())], write)


def _run_docker(config: ServerConfig, file: Path) -> int:
    # --init and the bare binary: the image's own entry point is a shell, which as process 1 would
    # keep a stop signal from the server.
    command = ["docker", "run", "--rm", "--init", "--entrypoint", BINARY]
    for port, inside in ((config.port, 8500), (config.rest_api_port, 8501)):
        if port:
            command += ["--publish", f"{url_host(config.host)}:{port}:{inside}"]
    if config.is_discovering:
        mounts = {"/models": config.exports}
    else:
        models = model_configs.current_models(config)
        mounts = {f"/models/{model.name}": model.base_path for model in models}
        if config.model_config_file_poll_wait_seconds <= 0:
            config = replace(config, models=models)  # the file is not read again
    mounts["/config"] = file.parent
    given = []
    for flag in _stock_flags(config, without=("model_name", "model_base_path")):
        name, _, value = flag.removeprefix("--").partition("=")
        if name in PATH_FLAGS:  # as the server inside sees it
            mounts[f"/flags/{name}"] = Path(value).resolve().parent
            flag = f"--{name}=/flags/{name}/{Path(value).name}"
        if name != "model_config_file":
            given.append(flag)
    for target, source in mounts.items():
        mount = f"type=bind,source={source.resolve()},target={target}"
        is_written = target == "/flags/grpc_socket_path"
        command += ["--mount", mount if is_written else f"{mount},readonly"]
    command += [IMAGE, f"--port={8500 if config.port else 0}"]
    command += [f"--rest_api_port={8501 if config.rest_api_port else 0}", *given]
    command += _generated(f"/config/{file.name}")
    return run_child(command, _config_writer(config, file, lambda model: f"/models/{model.name}"))


PATH_FLAGS = [
    setting.name
    for setting in flags.settings()
    if "mark" in setting.metadata and setting.type == Path | None
] + ["grpc_socket_path"]


def _stock_flags(config: ServerConfig, without: Collection[str] = ()) -> list[str]:
    """The flags given, as the stock server takes them; the ports are the engine's matter."""
    left_out = ("port", "rest_api_port", *without)
    given = []
    for setting in flags.settings():
        value = getattr(config, setting.name)
        if "mark" not in setting.metadata or setting.name in left_out:
            continue
        if value != setting.default:
            if setting.name == "file_system_poll_wait_seconds":  # whole seconds there
                value = max(1, round(value)) if value > 0 else int(value)
            elif setting.name == "model_base_path":  # absolute there
                value = value.resolve()
            given.append(f"{flag_of(setting)}={flags.written(value)}")
    return given


def _generated(file: str) -> list[str]:
    """The flags that make a server follow a file of `_config_writer`."""
    return [
        f"--model_config_file={file}",
        f"--model_config_file_poll_wait_seconds={CONFIG_POLL_SECONDS}",
    ]


def _config_writer(
    config: ServerConfig, file: Path, base_path: Callable[[ModelConfig], str]
) -> Callable[[], None]:
    """Writes the ModelServerConfig of what there is to serve, when that has changed."""
    from google.protobuf import text_format

    def write() -> None:
        try:
            models = model_configs.current_models(config)
        except (ConfigError, ServingError) as error:
            if not file.exists():
                raise
            log.error("What was served stays in force: %s", error)
            return
        message = model_configs.to_proto(
            replace(model, base_path=Path(base_path(model))) for model in models
        )
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
