"""Settings of the server, checked when made. Plain Python, so that `--help` answers at once."""

import re
from collections.abc import Collection, Mapping
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any

ENGINES = ("auto", "binary", "docker", "embedded", "remote")

HEALTH_PAGES = ("/healthz", "/readyz")  # need no key, and answer under any load
MAX_VERSION = 2**63 - 1
VERSION_NAME = re.compile(r"-?[0-9]{1,100}")  # of a folder


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
    """One model: `base_path` holds a folder with an integer name per version.

    Any name will do: in a URL its '/' and ':' are percent-encoded.
    """

    name: str
    base_path: Path
    policy: VersionPolicy = field(default_factory=VersionPolicy)
    labels: Mapping[str, int] = field(default_factory=dict)  # label -> version
    platform: str = "tensorflow"


def _flag(default: Any, mark: str, text: str, *, refusal: str = "", signed: bool = False) -> Any:
    """A flag of tensorflow_model_server under its own name: `--name_of_field=value`.

    `mark`: M works, A is accepted and acted on simply, I is accepted and ignored, X is refused
    with `refusal` for any value but the default.
    """
    metadata = {"mark": mark, "help": text, "refusal": refusal, "signed": signed}
    return field(default=default, metadata=metadata)


def _option(default: Any, text: str, *, name: str = "") -> Any:
    """An option of ours, which the stock server does not know: `--name-of-field=value`."""
    return field(default=default, metadata={"name": name, "help": text})


NO_TFLITE = "this server runs TensorFlow graphs only; convert nothing and serve the SavedModel"


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """Everything `python -m serving` can be told. Sizes are bytes, times seconds unless named.

    `model_config_file`, `model_base_path` or `models` say what to serve. Without any of them, every
    folder of `exports` that holds a version is a model, or only those in `only_models`, and folders
    that appear later are picked up. `serving/flags.py` makes the command line from these fields.
    """

    # ---------------------------------------------------- flags of tensorflow_model_server
    port: int = _flag(8500, "M", "gRPC; 0 is off and needs grpc_socket_path")
    grpc_socket_path: str = _flag("", "M", "also listen for gRPC on this unix socket")
    rest_api_port: int = _flag(8501, "M", "REST; 0 is off (of the stock server: 0)")
    rest_api_num_threads: int = _flag(0, "A", "threads that answer requests; 0: 4 for each CPU")
    rest_api_timeout_in_ms: int = _flag(30_000, "M", "time limit of one REST inference")
    rest_api_enable_cors_support: bool = _flag(False, "M", "CORS headers on answers below /v1/")
    model_name: str = _flag("default", "M", "name of the model of model_base_path")
    model_base_path: Path | None = _flag(None, "M", "folder of one model, with version folders")
    model_config_file: Path | None = _flag(
        None, "M", "a text-format ModelServerConfig; the two flags above are then ignored"
    )
    model_config_file_poll_wait_seconds: int = _flag(
        0, "M", "re-read it so often; 0 is never", signed=True
    )
    file_system_poll_wait_seconds: float = _flag(
        1.0, "M", "how often new versions are looked for; 0 is once, negative never", signed=True
    )
    max_num_load_retries: int = _flag(5, "M", "further tries after a failed load")
    load_retry_interval_micros: int = _flag(
        60_000_000, "M", "pause between those tries; negative is none", signed=True
    )
    num_load_threads: int = _flag(
        0, "A", "loads at once; 0: one by one, at the start 4 for each CPU"
    )
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
    tensorflow_intra_op_parallelism: int = _flag(
        0, "A", "threads inside one op; 0: all, or 1 for small models"
    )
    tensorflow_inter_op_parallelism: int = _flag(0, "A", "ops at once")
    tensorflow_session_config_file: Path | None = _flag(None, "A", "a text-format ConfigProto")
    per_process_gpu_memory_fraction: float = _flag(0.0, "A", "share of GPU memory; 0: as needed")
    version: bool = _flag(False, "M", "print two lines of versions and exit")
    flush_filesystem_caches: bool = _flag(True, "I", "drop the page cache after loading")
    remove_unused_fields_from_bundle_metagraph: bool = _flag(True, "I", "save memory")
    enable_profiler: bool = _flag(
        True, "A", "traces by gRPC ProfilerService; an admin's, with keys"
    )
    prefer_tflite_model: bool = _flag(False, "X", "serve model.tflite", refusal=NO_TFLITE)
    num_tflite_pools: int = _flag(0, "X", "pools of TFLite interpreters", refusal=NO_TFLITE)
    num_tflite_interpreters_per_pool: int = _flag(
        1, "X", "TFLite interpreters in each", refusal=NO_TFLITE
    )
    xla_cpu_compilation_enabled: bool = _flag(False, "I", "allow XLA on the CPU: always allowed")
    xla_gpu_compilation_enabled: bool = _flag(False, "I", "allow XLA on the GPU: always allowed")
    mixed_precision: str = _flag("", "I", "special builds: rewrite the graph to this type")
    skip_initialize_tpu: bool = _flag(False, "I", "special builds: leave TPUs alone")
    use_alts_credentials: bool = _flag(False, "I", "special builds: ALTS on gRPC")
    thread_pool_factory_config_file: Path | None = _flag(
        None, "I", "special builds: thread pools by configuration"
    )
    platform_config_file: Path | None = _flag(
        None,
        "X",
        "a PlatformConfigMap in place of the built-in platform",
        refusal="this server has one platform, TensorFlow; give what the file sets as flags: "
        "--enable_batching, --saved_model_tags, --tensorflow_session_config_file",
    )

    # ---------------------------------------------------- what to serve, by our own names
    models: tuple[ModelConfig, ...] = ()
    exports: Path = _option(
        Path("exports"), "each folder in it that holds a version is a model; later ones, too"
    )
    only_models: tuple[str, ...] = _option((), "of --exports, only these: A,B", name="models")
    allow_foreign: bool = _option(
        False, "load models without a manifest of ours, too; or STEPWISE_ALLOW_FOREIGN=1"
    )
    allow_ops: tuple[str, ...] = _option((), "ops that the gate refuses and you trust: A,B")
    engine: str = _option("auto", "what answers")
    backend: str = _option("", "HOST:PORT of the stock server's gRPC, for --engine remote")
    backend_ca: Path | None = _option(
        None, "PEM roots that the backend's certificate is checked by; with it the channel is TLS"
    )
    backend_certificate: Path | None = _option(
        None, "PEM chain of ours, for a backend that verifies its clients"
    )
    backend_certificate_key: Path | None = _option(None, "its private key")
    backend_api_key_file: Path | None = _option(
        None, "holds the key that the backend asks for, or STEPWISE_BACKEND_API_KEY"
    )

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
    max_characters: int = _option(1_000_000, "of one text; texts or tokens of one list")
    header_timeout_seconds: float = _option(10.0, "for all headers of a request to come")
    send_timeout_seconds: float = _option(30.0, "in which a caller must read on what is sent")
    body_timeout_seconds: float = _option(
        10.0, "for a body to come, and what 32 KiB a second add to it"
    )
    request_timeout_seconds: float = _option(
        60.0, "for an answer, queueing included; then 504; 0: no limit"
    )
    max_running_requests: int = _option(0, "computed at once; 0: 4 for each CPU, or a batch")
    max_waiting_requests: int = _option(256, "beyond those running; more are a 429")
    max_answers: int = _option(128, "in one request: prompts times n, or times best_of")
    max_answer_tokens: int = _option(4096, "that max_tokens may ask for; the context is less")
    max_streams: int = _option(256, "answers being written at once, requests; more are a 429")
    stream_timeout_seconds: float = _option(600.0, "for a stream to end; then an error ends it")
    generation_slots: int = _option(
        16, "texts that one language model writes at once; 0: no engine, by its signatures alone"
    )
    wait_for_engine: bool = _option(
        False, "serve a language model only once its engine is compiled, not by its signatures"
    )
    generation_steps: int = _option(8, "tokens at most in one call of the engine")
    generation_chunk_tokens: int = _option(64, "of prompts that the engine reads in one step")
    prefix_cache_bytes: int = _option(
        64 * 2**20, "for beginnings of prompts, of each language model; 0 keeps none"
    )
    xla_cache: Path | None = _option(
        None, "folder for what is compiled, so that the next start is quick; of this machine alone"
    )
    drain_seconds: float = _option(30.0, "for running requests after a stop signal")

    # ---------------------------------------------------- what is told
    log_format: str = _option("text", "text or json; neither holds a caller's texts")
    grpc_reflection: bool = _option(False, "let tools list the gRPC services")
    telemetry: bool = _option(False, "OpenTelemetry traces, set by its own OTEL_ variables")

    def __post_init__(self) -> None:
        for setting in fields(self):
            value = getattr(self, setting.name)
            flag = flag_of(setting)
            if setting.type in (int, float) and not setting.metadata.get("signed") and value < 0:
                raise ConfigError(f"{flag} must be >= 0. Received: {value}")
            if setting.metadata.get("mark") == "X" and value != setting.default:
                raise ConfigError(f"{flag}: {setting.metadata['refusal']}")
        for flag, port in (("--port", self.port), ("--rest_api_port", self.rest_api_port)):
            if port > 65535:
                raise ConfigError(f"{flag} must be between 0 and 65535. Received: {port}")
        if self.engine not in ENGINES:
            raise ConfigError(
                f"--engine must be one of {', '.join(ENGINES)}. Received: {self.engine!r}"
            )
        for flag, value in (
            ("--generation-steps", self.generation_steps),
            ("--generation-chunk-tokens", self.generation_chunk_tokens),
        ):
            if value < 1:
                raise ConfigError(f"{flag} must be >= 1. Received: {value}")
        if self.batching_parameters_file and not self.enable_batching:
            raise ConfigError(
                "server_options.batching_parameters_file is set without setting "
                "server_options.enable_batching to true."
            )
        if (
            self.tensorflow_session_parallelism
            and self.tensorflow_intra_op_parallelism
            and self.tensorflow_inter_op_parallelism
        ):
            raise ConfigError(
                "Either configure server_options.tensorflow_session_parallelism or "
                "(server_options.tensorflow_intra_op_parallelism, "
                "server_options.tensorflow_inter_op_parallelism) separately. "
                "You cannot configure all."
            )

    @property
    def load_retry_interval_seconds(self) -> float:
        return max(0, self.load_retry_interval_micros) / 1e6

    @property
    def is_discovering(self) -> bool:
        """Whether the models are the folders of `exports`, rather than named one by one."""
        return not (self.models or self.model_config_file or self.model_base_path)


def flag_of(setting: Field[Any]) -> str:
    """How a field is written on the command line; empty when it cannot be."""
    if "mark" in setting.metadata:
        return f"--{setting.name}"
    if "help" in setting.metadata:
        return f"--{setting.metadata['name'] or setting.name.replace('_', '-')}"
    return ""


def version_folders(base_path: Path) -> dict[int, Path]:
    """Version number -> its folder: the direct children with a decimal number for a name.

    `00000123` is 123; of two names for one number the last in string order counts. Raises OSError
    when `base_path` cannot be read.
    """
    return dict(numbered_children(base_path))


def numbered_children(base_path: Path) -> list[tuple[int, Path]]:
    """As `version_folders`, with every name that a number has."""
    return [
        (int(child.name), child)
        for child in sorted(base_path.iterdir())
        if VERSION_NAME.fullmatch(child.name) and abs(int(child.name)) <= MAX_VERSION
    ]


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
