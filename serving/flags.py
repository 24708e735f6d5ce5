"""The command line, made from the fields of ServerConfig: what is there can be given, and no more.

Flags of tensorflow_model_server are written as it takes them, `--name=value`; our own options have
dashes in their names. Both may also be given as two words.
"""

import dataclasses
import math
import os
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from serving.config import ConfigError, ServerConfig, flag_of

USAGE = """\
usage: python -m serving [--flag=value ...]
       python -m serving promote|rollback --help
       python -m serving generate --help

Serves exported models over TensorFlow Serving's REST and gRPC API.

examples:
  python -m serving                                     every model in exports/
  python -m serving --exports=runs/exports --models=a,b
  python -m serving --model_name=sentiment --model_base_path=/srv/sentiment
  python -m serving --engine=docker                     in the tensorflow/serving image
"""

ALLOW_FOREIGN = "STEPWISE_ALLOW_FOREIGN"  # 1 stands for --allow-foreign
REMARKS = {"M": "", "A": "", "I": " (accepted and ignored)", "X": " (refused)"}


class UsageError(ConfigError):
    """A value that cannot be read."""


@dataclasses.dataclass(frozen=True)
class CommandLine:
    config: ServerConfig
    unknown: tuple[str, ...]  # arguments that name no flag
    ignored: tuple[str, ...]  # flags that were given and have no effect here


def parse(arguments: Sequence[str]) -> CommandLine:
    """Reads a command line.

    Raises UsageError for a value that cannot be read, ConfigError for settings that cannot work or
    contradict each other. An unknown argument is no error, as in tensorflow_model_server.
    """
    by_flag = {flag_of(setting): setting for setting in settings()}
    given: dict[str, Any] = {}
    unknown = []
    ignored = []
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        flag, has_value, text = argument.partition("=")
        setting = by_flag.get(flag)
        if setting is None:
            unknown.append(argument)
            continue
        if not has_value:
            if setting.type is bool:
                text = "true"
            elif rest and not rest[0].startswith("--"):
                text = rest.pop(0)
            else:
                raise UsageError(f"{flag} needs a value: {flag}={_type_name(setting)}")
        given[setting.name] = _read(setting, flag, text)
        if setting.metadata.get("mark") == "I" and flag not in ignored:
            ignored.append(flag)
    if os.environ.get(ALLOW_FOREIGN) == "1":
        given.setdefault("allow_foreign", True)
    _check_what_to_serve(given)
    return CommandLine(ServerConfig(**given), tuple(unknown), tuple(ignored))


def settings() -> tuple[dataclasses.Field[Any], ...]:
    """The fields that can be given, flags of tensorflow_model_server first."""
    found = [setting for setting in dataclasses.fields(ServerConfig) if flag_of(setting)]
    return tuple(sorted(found, key=lambda setting: "mark" not in setting.metadata))


def usage() -> str:
    lines = [USAGE]
    for title, is_stock in (
        ("flags of tensorflow_model_server:", True),
        ("options of this server alone:", False),
    ):
        lines.append(title)
        for setting in settings():
            if ("mark" in setting.metadata) is is_stock:
                help_text = setting.metadata["help"] + REMARKS[setting.metadata.get("mark", "M")]
                lines.append(f"  {flag_of(setting)}={shown_default(setting)}")
                lines += textwrap.indent(textwrap.fill(help_text, 82), " " * 8).splitlines()
        lines.append("")
    return "\n".join(lines)


def shown_default(setting: dataclasses.Field[Any]) -> str:
    """A default as it would be typed; empty when there is none."""
    return written(setting.default)


def written(value: Any) -> str:
    """A value as it is typed behind the `=`."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ",".join(value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _read(setting: dataclasses.Field[Any], flag: str, text: str) -> Any:
    wanted = setting.type
    if wanted is bool:
        if text in ("true", "false"):
            return text == "true"
    elif wanted is int:
        if re.fullmatch(r"[+-]?\d+", text, re.ASCII):
            return int(text)
    elif wanted is float:
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if math.isfinite(number):
            return number
    elif wanted is str:
        return text
    elif wanted == Path | None:
        return Path(text) if text else None
    elif wanted is Path and text:
        return Path(text)
    elif wanted == tuple[str, ...]:
        return tuple(word.strip() for word in text.split(",") if word.strip())
    raise UsageError(
        f"Couldn't interpret value {text!r} for flag {flag}; it takes {_type_name(setting)}"
    )


def _type_name(setting: dataclasses.Field[Any]) -> str:
    if setting.type is bool:
        return "true or false"
    if setting.type is int:
        return "a whole number"
    if setting.type is float:
        return "a number"
    return "A,B" if setting.type == tuple[str, ...] else "a text" if setting.type is str else "PATH"


def _check_what_to_serve(given: dict[str, Any]) -> None:
    stock = [name for name in ("model_base_path", "model_config_file") if given.get(name)]
    for name, option in (("exports", "--exports"), ("only_models", "--models")):
        if stock and name in given:
            raise ConfigError(f"{option} and --{stock[0]} cannot go together; give one of them")
    if "model_name" in given and not stock:
        raise ConfigError("--model_name needs --model_base_path beside it")
