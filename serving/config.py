"""Settings of the server, checked when made. Plain Python, so that `--help` answers at once."""

from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ENGINES = ("auto", "binary", "docker", "embedded")

MAX_VERSION = 2**63 - 1


class ConfigError(ValueError):
    """A setting that cannot work; the text names it as the user types it and says what to do."""


@dataclass(frozen=True)
class VersionPolicy:
    """Which versions on disk to serve: the `latest` highest, or all, or those listed.

    `latest=0` means all; a non-empty `specific` wins over `latest`.
    """

    latest: int = 1
    specific: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.latest < 0:
            raise ConfigError(f"num_versions must be > 0. Received: {self.latest}")

    def choose(self, versions: Collection[int]) -> set[int]:
        if self.specific:
            return set(versions) & set(self.specific)
        return set(sorted(versions, reverse=True)[: self.latest or None])


@dataclass(frozen=True)
class ModelConfig:
    """One model: `base_path` holds a folder with an integer name per version."""

    name: str
    base_path: Path
    policy: VersionPolicy = field(default_factory=VersionPolicy)

    def __post_init__(self) -> None:
        if not self.name or "/" in self.name or ":" in self.name:
            raise ConfigError(
                f"A model's name must be a text without '/' and ':', or no URL could name it. "
                f"Received: {self.name!r}"
            )


def _flag(default: Any, mark: str, text: str) -> Any:
    """A flag of tensorflow_model_server under its own name: `--name_of_field=value`.

    `mark`: M works, A is accepted and acted on simply, I is accepted and ignored, X is refused.
    """
    return field(default=default, metadata={"mark": mark, "help": text})


def _option(default: Any, text: str) -> Any:
    """An option of ours, which the stock server does not know: `--name-of-field value`."""
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """Everything `python -m serving` can be told. Sizes are bytes, times seconds unless named.

    `model_config_file` or `models` say what to serve. Without either, every folder of `exports`
    that holds a version is a model, or only those in `only_models`, and folders that appear later
    are picked up.
    """

    # ---------------------------------------------------- flags of tensorflow_model_server
    port: int = _flag(8500, "M", "gRPC; 0 is off")
    grpc_socket_path: str = _flag("", "M", "also listen for gRPC on this unix socket")
    rest_api_port: int = _flag(8501, "M", "REST; 0 is off (of the stock server: 0)")
    rest_api_num_threads: int = _flag(0, "A", "threads that answer requests; 0: 4 for each CPU")
    rest_api_timeout_in_ms: int = _flag(30_000, "M", "time limit of one REST inference")
    rest_api_enable_cors_support: bool = _flag(False, "M", "CORS headers on answers below /v1/")
    model_config_file: Path | None = _flag(None, "M", "a text-format ModelServerConfig")
    model_config_file_poll_wait_seconds: int = _flag(0, "M", "re-read it so often; 0 is never")
    file_system_poll_wait_seconds: float = _flag(
        1.0, "M", "how often new versions are looked for; 0 is once, negative never"
    )
    max_num_load_retries: int = _flag(5, "M", "further tries after a failed load")
    load_retry_interval_seconds: float = 60.0
    num_load_threads: int = _flag(0, "A", "loads at once; 0: one by one")
    num_unload_threads: int = _flag(0, "A", "unloads at once; 0: one by one")
    allow_version_labels_for_unavailable_models: bool = _flag(
        False, "M", "a label not yet in use may point to a version that is not loaded yet"
    )
    saved_model_tags: str = _flag("serve", "M", "comma-separated tags of the meta graph")
    enable_model_warmup: bool = _flag(True, "M", "replay warm-up requests on load")
    num_request_iterations_for_warmup: int = _flag(0, "M", "replays of each; 0 is one")
    enable_batching: bool = _flag(False, "M", "batch across requests")
    batching_parameters_file: Path | None = _flag(None, "M", "a text-format BatchingParameters")
    enable_per_model_batching_parameters: bool = _flag(
        False, "A", "each version's own batching_params.pbtxt; without it no batching"
    )
    monitoring_config_file: Path | None = _flag(None, "M", "a text-format MonitoringConfig")
    grpc_channel_arguments: str = _flag("", "M", "key=value,key=value")
    grpc_max_threads: int = _flag(0, "A", "threads of gRPC; 0: 4 for each CPU")
    enable_grpc_healthcheck_service: bool = _flag(False, "A", "grpc.health.v1.Health")
    enable_serialization_as_tensor_content: bool = _flag(
        False, "M", "outputs of gRPC Predict in tensor_content"
    )
    enable_signature_method_name_check: bool = _flag(
        False, "M", "a signature's method_name must fit the call"
    )
    ssl_config_file: Path | None = _flag(None, "A", "a text-format SSLConfig; gRPC only")
    tensorflow_session_parallelism: int = _flag(0, "A", "both thread pools below")
    tensorflow_intra_op_parallelism: int = _flag(0, "A", "threads inside one op")
    tensorflow_inter_op_parallelism: int = _flag(0, "A", "ops at once")
    tensorflow_session_config_file: Path | None = _flag(None, "A", "a text-format ConfigProto")
    per_process_gpu_memory_fraction: float = _flag(0.0, "A", "share of GPU memory; 0: as needed")

    # ---------------------------------------------------- what to serve, by our own names
    models: tuple[ModelConfig, ...] = ()
    exports: Path = Path("exports")
    only_models: tuple[str, ...] = ()
    allow_foreign: bool = _option(False, "load models without a manifest of ours, too")
    engine: str = _option("auto", "what answers")
    backend: str = _option("", "HOST:PORT of the stock server's gRPC, for --engine remote")

    # ---------------------------------------------------- who may ask
    host: str = _option("127.0.0.1", "address")
    insecure: bool = _option(False, "listen beyond this machine without keys")
    api_keys_file: Path | None = _option(None, "a key a line, or STEPWISE_API_KEYS")
    admin_keys_file: Path | None = _option(None, "keys that may reload, or STEPWISE_ADMIN_KEYS")
    tls_certificate: Path | None = _option(None, "PEM chain for REST and gRPC")
    tls_key: Path | None = _option(None, "its private key")
    rate_limit: str = _option("", "for each key or address, as '100/minute'; empty is none")

    # ---------------------------------------------------- limits
    max_body_bytes: int = _option(32 * 2**20, "of a request body; more is a 413")
    max_inflated_bytes: int = _option(100 * 2**20, "of a gzip body once unpacked")
    max_body_chunks: int = _option(20_000, "pieces in which a body may come")
    max_json_depth: int = _option(64, "lists and objects within one another")
    max_rows: int = _option(10_000, "instances or examples in one request")
    max_characters: int = _option(1_000_000, "of one text")
    header_timeout_seconds: float = _option(10.0, "for all headers of a request to come")
    body_timeout_seconds: float = _option(30.0, "for all of a body to come")
    request_timeout_seconds: float = _option(60.0, "for an answer, queueing included; then 504")
    max_running_requests: int = _option(0, "computed at once; 0: 4 for each CPU, or a batch")
    max_waiting_requests: int = _option(256, "beyond those running; more are a 429")
    drain_seconds: float = _option(30.0, "for running requests after a stop signal")

    # ---------------------------------------------------- what is told
    log_format: str = _option("text", "text or json; neither holds a caller's texts")
    grpc_reflection: bool = _option(False, "let tools list the gRPC services")
    telemetry: bool = _option(False, "OpenTelemetry traces, set by its own OTEL_ variables")

    def __post_init__(self) -> None:
        for flag, port in (("--port", self.port), ("--rest_api_port", self.rest_api_port)):
            if not 0 <= port <= 65535:
                raise ConfigError(f"{flag} must be between 0 and 65535. Received: {port}")
        if self.port == self.rest_api_port:
            raise ConfigError(
                "--port (gRPC) and --rest_api_port must differ, and one of them must not be 0. "
                f"Received: {self.port} for both"
            )
        if self.engine not in ENGINES:
            raise ConfigError(
                f"--engine must be one of {', '.join(ENGINES)}. Received: {self.engine!r}"
            )
        for flag, value in (
            ("--drain-seconds", self.drain_seconds),
            ("--max_num_load_retries", self.max_num_load_retries),
            ("--load_retry_interval_micros", self.load_retry_interval_seconds),
        ):
            if value < 0:
                raise ConfigError(f"{flag} must be >= 0. Received: {value}")
        names = [model.name for model in self.models]
        for name in names:
            if names.count(name) > 1:
                raise ConfigError(f"Illegal to list model {name} multiple times in config list")


def version_folders(base_path: Path) -> dict[int, Path]:
    """Version number -> its folder: the direct children with a decimal number for a name.

    `00000123` is 123; of two names for one number the last in string order counts. Raises OSError
    when `base_path` cannot be read.
    """
    found: dict[int, Path] = {}
    for child in sorted(base_path.iterdir()):
        if child.name.isascii() and child.name.isdigit() and int(child.name) <= MAX_VERSION:
            found[int(child.name)] = child
    return found


def discover_models(exports: Path, only: Collection[str] = ()) -> tuple[ModelConfig, ...]:
    """The folders of `exports` that hold a version. No `exports` folder: no models."""
    if not exports.is_dir():
        return ()
    return tuple(
        ModelConfig(name=folder.name, base_path=folder)
        for folder in sorted(exports.iterdir())
        if folder.is_dir()
        and not folder.name.startswith(".")
        and ":" not in folder.name  # no URL could name it
        and (not only or folder.name in only)
        and _may_hold_version(folder)
    )


def _may_hold_version(folder: Path) -> bool:
    try:
        return any(path.is_dir() for path in version_folders(folder).values())
    except FileNotFoundError:
        return False  # gone since it was listed
    except OSError:
        return True  # unreadable: whoever loads it reports that, under the model's name


def current_models(config: ServerConfig) -> tuple[ModelConfig, ...]:
    """What to serve at this moment."""
    return config.models or discover_models(config.exports, config.only_models)


def read_model_config_file(path: Path) -> tuple[ModelConfig, ...]:
    """The models of a text-format ModelServerConfig file."""
    from google.protobuf import text_format
    from tensorflow_serving.config import model_server_config_pb2

    try:
        parsed = text_format.Parse(
            path.read_text(encoding="utf-8"), model_server_config_pb2.ModelServerConfig()
        )
    except OSError as error:
        raise ConfigError(f"--model_config_file cannot be read: {error}") from error
    except (text_format.ParseError, UnicodeDecodeError) as error:
        raise ConfigError(
            "Error parsing text-format tensorflow.serving.ModelServerConfig of "
            f"--model_config_file={path}: {error}"
        ) from error
    models = []
    for entry in parsed.model_config_list.config:
        if not Path(entry.base_path).is_absolute():
            raise ConfigError(
                f"Expected model {entry.name} to have an absolute path or URI; "
                f"got base_path()={entry.base_path}"
            )
        if entry.model_platform != "tensorflow":
            raise ConfigError(
                f"Model {entry.name} requests unsupported platform {entry.model_platform!r}; "
                'write model_platform: "tensorflow"'
            )
        if entry.version_labels:
            raise ConfigError(
                f"Model {entry.name}: version_labels are not supported by this server yet; "
                "remove them, or use --engine binary"
            )
        policy = VersionPolicy()
        chosen = entry.model_version_policy.WhichOneof("policy_choice")
        if chosen == "all":
            policy = VersionPolicy(latest=0)
        elif chosen == "latest":
            policy = VersionPolicy(latest=entry.model_version_policy.latest.num_versions or 1)
        elif chosen == "specific":
            policy = VersionPolicy(specific=tuple(entry.model_version_policy.specific.versions))
            if not policy.specific:
                raise ConfigError(f"Model {entry.name}: the specific policy must list versions")
        models.append(ModelConfig(entry.name, Path(entry.base_path), policy))
    return tuple(models)
