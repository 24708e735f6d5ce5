"""Which models to serve: a text-format ModelServerConfig, one flag, or the folders of --exports."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from serving.config import (
    ConfigError,
    ModelConfig,
    ServerConfig,
    VersionPolicy,
    discover_models,
)
from serving.errors import Code, ServingError, invalid_argument

PLATFORM = "tensorflow"


def current_models(config: ServerConfig) -> tuple[ModelConfig, ...]:
    """What to serve at this moment. Raises ConfigError or ServingError for what cannot be read."""
    if config.models:
        return config.models
    if config.model_config_file:
        return read(config.model_config_file) or ()
    if config.model_base_path:
        return (ModelConfig(config.model_name, _local(config.model_name, config.model_base_path)),)
    return discover_models(config.exports, config.only_models)


def read(path: Path, option: str = "--model_config_file") -> tuple[ModelConfig, ...] | None:
    """The models of a text-format ModelServerConfig file; None when it holds no list of models.

    `option` is what the file was given by.

    Raises ConfigError when it cannot be read or parsed, ServingError when it may not be served.
    """
    from google.protobuf import text_format

    try:
        return from_proto(parse(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise ConfigError(f"{option} cannot be read: {error}") from error
    except (text_format.ParseError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"Invalid protobuf file: '{path}': Error parsing text-format "
            f"tensorflow.serving.ModelServerConfig: {error}"
        ) from error


def parse(text: str) -> Any:
    """A ModelServerConfig. Raises text_format.ParseError."""
    from google.protobuf import text_format
    from tensorflow_serving.config import model_server_config_pb2

    return text_format.Parse(text, model_server_config_pb2.ModelServerConfig())


def from_proto(message: Any) -> tuple[ModelConfig, ...] | None:
    """The models of a ModelServerConfig; None when it holds no list of models.

    Raises ServingError with TensorFlow Serving's text for a list that may not be served.
    """
    if message.WhichOneof("config") == "custom_model_config":
        raise invalid_argument("custom_model_config is not supported; write a model_config_list")
    if message.WhichOneof("config") is None:
        return None
    entries = message.model_config_list.config
    _check_names([entry.name for entry in entries])
    for entry in entries:
        if not entry.base_path.startswith("/") and "://" not in entry.base_path:
            raise invalid_argument(
                f"Expected model {entry.name} to have an absolute path or URI; "
                f"got base_path()={entry.base_path}"
            )
    return tuple(
        ModelConfig(
            entry.name,
            _local(entry.name, entry.base_path.removeprefix("file://")),
            _policy(entry),
            dict(entry.version_labels),
            _platform(entry),
        )
        for entry in entries
    )


def to_proto(models: Iterable[ModelConfig]) -> Any:
    """The ModelServerConfig that says the same."""
    from tensorflow_serving.config import model_server_config_pb2

    message = model_server_config_pb2.ModelServerConfig()
    message.model_config_list.SetInParent()
    for model in models:
        entry = message.model_config_list.config.add(
            name=model.name, base_path=str(model.base_path), model_platform=model.platform
        )
        entry.version_labels.update(model.labels)
        if model.policy.specific:
            entry.model_version_policy.specific.versions.extend(model.policy.specific)
        elif model.policy.latest:
            entry.model_version_policy.latest.num_versions = model.policy.latest
        else:
            entry.model_version_policy.all.SetInParent()
    return message


def check_transition(old: Iterable[ModelConfig], new: Sequence[ModelConfig]) -> None:
    """Raises ServingError unless a server with the models of `old` may go on with those of `new`.

    At the start `old` is empty.
    """
    _check_names([model.name for model in new])
    before = {model.name: model.platform for model in old}
    for model in new:
        was = before.get(model.name, model.platform)
        if was != model.platform:
            raise invalid_argument(
                f"Illegal to change a model's platform. For model {model.name} platform was "
                f"{was} and new platform requested is {model.platform}"
            )
        if model.platform != PLATFORM:
            raise invalid_argument(
                f"Model {model.name} requests unsupported platform {model.platform}"
            )


NO_LIST = ServingError(
    Code.FAILED_PRECONDITION,
    "Cannot transition to requested config. It is only legal to transition from one "
    "ModelConfigList to another.",
)


def _check_names(names: Sequence[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise invalid_argument(f"Illegal to list model {name} multiple times in config list")


def _platform(entry: Any) -> str:
    """Of a deprecated `model_type`, too."""
    if entry.model_type:
        if entry.model_platform:
            raise invalid_argument(
                "Illegal setting both ModelServerConfig::model_type (deprecated) and "
                "ModelServerConfig::model_platform."
            )
        if (
            entry.model_type
            != type(entry)
            .DESCRIPTOR.fields_by_name["model_type"]
            .enum_type.values_by_name["TENSORFLOW"]
            .number
        ):
            raise invalid_argument(
                f"ModelServerConfig::model_type choice {entry.model_type} not supported."
            )
        return PLATFORM
    if not entry.model_platform:
        raise invalid_argument(
            "Illegal setting neither ModelServerConfig::model_type (deprecated) nor "
            "ModelServerConfig::model_platform."
        )
    return str(entry.model_platform)


def _policy(entry: Any) -> VersionPolicy:
    chosen = entry.model_version_policy.WhichOneof("policy_choice")
    if chosen == "all":
        return VersionPolicy(latest=0)
    if chosen == "specific":
        versions = tuple(entry.model_version_policy.specific.versions)
        if not versions:
            raise invalid_argument(f"Model {entry.name}: the specific policy must list versions")
        return VersionPolicy(specific=versions)
    return VersionPolicy(latest=entry.model_version_policy.latest.num_versions or 1)


def _local(name: str, base_path: str | Path) -> Path:
    if re.match(r"\w+:/", str(base_path)):
        raise invalid_argument(
            f"Model {name}: base_path {base_path} is not on a file system of this machine; this "
            "server reads local folders only, so copy or mount it"
        )
    return Path(base_path)
