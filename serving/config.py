"""Settings of the server, checked when made. Plain Python, so that `--help` answers at once."""

from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

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


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """Everything `python -m serving` can be told.

    `model_config_file` or `models` say what to serve. Without either, every folder of `exports`
    that holds a version is a model, or only those in `only_models`, and folders that appear later
    are picked up.
    """

    host: str = "127.0.0.1"
    port: int = 8500  # gRPC; 0 switches it off
    rest_api_port: int = 8501  # 0 switches it off
    model_config_file: Path | None = None
    models: tuple[ModelConfig, ...] = ()
    exports: Path = Path("exports")
    only_models: tuple[str, ...] = ()
    file_system_poll_wait_seconds: float = 1.0  # 0 looks once, negative never
    max_num_load_retries: int = 5  # tries after the first failed load
    load_retry_interval_seconds: float = 60.0
    drain_seconds: float = 30.0  # how long running requests may take after a stop signal
    engine: str = "auto"

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
