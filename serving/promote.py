"""`python -m serving promote|rollback`: moves a label or the version served in a model config file.

Only the words in question are changed, so comments and layout of the file stay. What stood there
before is noted in the file itself, as a comment at its end, so that a promotion and the way back
are one atomic write. A server that polls the file follows.
"""

import argparse
import ast
import json
import os
import re
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from serving import model_configs
from serving.config import ConfigError, ModelConfig, version_folders
from serving.errors import ServingError

NOTE = "# promoted: "  # then JSON: model, label or null, from, to

_TOKEN = re.compile(
    r"""(?:\s|\#[^\n]*)+                                   # nothing
    | (?P<string>"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*')
    | (?P<mark>[{}<>\[\]:,;])
    | (?P<word>[^\s{}<>\[\]:,;"'\#]+)""",
    re.VERBOSE,
)


@dataclass
class Field:
    """A field in text format and where it stands: `name: value` or `name { children }`."""

    name: str
    start: int
    value_start: int = 0
    end: int = 0
    children: list["Field"] = field(default_factory=list)


def main(arguments: Sequence[str]) -> int:
    args = parser().parse_args(arguments)
    try:
        if args.command == "promote":
            print(promote(args.config, args.model, args.target, args.label))
        elif (args.target or "").isdecimal():
            print(promote(args.config, args.model, args.target, None))
        else:
            print(rollback(args.config, args.model, args.target))
    except (ConfigError, ServingError) as error:
        print(f"{args.command}: {error}", file=sys.stderr)
        return 1
    return 0


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m serving",
        description="Moves a label, or the version served, in a text-format ModelServerConfig.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (
        ("promote", "with --label: points that label to a version; without: serves it alone"),
        ("rollback", "takes the last promotion of a label, or of the model, back"),
    ):
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("model")
        command.add_argument("--config", type=Path, required=True, metavar="FILE")
        if name == "promote":
            command.add_argument(
                "target", metavar="VERSION|LABEL", help="a label stands for its version"
            )
            command.add_argument("--label", help="the label to point there")
        else:
            command.add_argument(
                "target",
                metavar="VERSION|LABEL",
                nargs="?",
                help="the label to take back; a version is served alone; nothing: the model itself",
            )
    return parser


def promote(path: Path, model: str, target: str, label: str | None) -> str:
    """Points `label` of `model` to `target`, a version or a label; without `label` serves it alone.

    Returns a sentence on what was done. Raises ConfigError or ServingError, and then nothing has
    changed: for a file that cannot be read or written, and for what could not be served.
    """
    file = _ConfigFile(path, model)
    version = file.version_of(target)
    file.check_folder(version)
    before: str | int | None
    noted: str | int | None  # before, as it stands in the file
    after: str | int
    if label is not None and not re.fullmatch(r"[^/:\"'\\\x00-\x1f]+", label):
        raise ConfigError(
            "--label is part of an address: not empty, no quotes, '/', ':' or '\\'. "
            f"Received: {label!r}"
        )
    if label is None:
        _check_alone(file.model, version)
        before, after = file.policy(), f"specific {{ versions: {version} }}"
        noted = file.policy_as_written()
        file.set_policy(f"model_version_policy {{ {after} }}")
    else:
        file.check_served(version)
        before = noted = file.model.labels.get(label)
        after = version
        file.set_label(label, version)
    if before != after:
        note = {"model": model, "label": label, "from": noted, "to": after}
        file.write(lambda text: f"{_with_newline(text)}{NOTE}{json.dumps(note)}\n")
    return _sentence(model, label, before, after)


def rollback(path: Path, model: str, label: str | None) -> str:
    """Takes the last promotion of a label, or without one of the model itself, back.

    Returns a sentence on what was done. Raises as `promote`, and when there is no promotion or
    something else was written there since.
    """
    file = _ConfigFile(path, model)
    what = f"label {label}" if label else "version policy"
    for line in reversed(file.text.splitlines()):
        note = _note(line)
        if note and (note["model"], note["label"]) == (model, label):
            break
    else:
        raise ConfigError(
            f"{path} notes no promotion of the {what} of model {model}; "
            f"{_instead(path, model, label)}"
        )
    now = file.model.labels.get(label) if label else file.policy()
    if now != note["to"]:
        raise ConfigError(
            f"The {what} of model {model} is {now} and no longer {note['to']}, as the last "
            f"promotion left it; {_instead(path, model, label)}"
        )
    if label is None:
        file.set_policy(note["from"])
        before: object = file.policy()
    else:
        if note["from"] is not None:
            file.check_folder(note["from"])
            file.check_served(note["from"])
        file.set_label(label, note["from"])
        before = note["from"]
    file.write(lambda text: _without_last(text, line))
    return _sentence(model, label, now, before)


def _instead(path: Path, model: str, label: str | None) -> str:
    return (
        f"say which version you want: python -m serving promote {model} VERSION"
        f"{f' --label {label}' if label else ''} --config {path}"
    )


def _note(line: str) -> dict[str, Any] | None:
    if not line.startswith(NOTE):
        return None
    try:
        note = json.loads(line.removeprefix(NOTE))
    except json.JSONDecodeError:
        return None
    is_whole = isinstance(note, dict) and {"model", "label", "from", "to"} <= note.keys()
    return note if is_whole else None


def _with_newline(text: str) -> str:
    return text if text.endswith("\n") else f"{text}\n"


def _without_last(text: str, line: str) -> str:
    before, _, after = text.rpartition(f"{line}\n") if f"{line}\n" in text else (text, "", "")
    return before + after


def _sentence(model: str, label: str | None, before: object, after: object) -> str:
    what = f"label {label}" if label else "version policy"
    if before == after:
        return f"{model}: {what} is {after} already"
    return f"{model}: {what} {_shown(before)} -> {_shown(after)}"


def _shown(value: object) -> str:
    return "(none)" if value is None else str(value)


def _check_alone(model: ModelConfig, version: int) -> None:
    for label, labelled in sorted(model.labels.items()):
        if labelled != version:
            raise ConfigError(
                f"Label {label} of model {model.name} points to version {labelled}, which would no "
                f"longer be served; move it first: promote {model.name} {version} --label {label}"
            )


class _ConfigFile:
    """A model config file and the one model of it that is being changed."""

    def __init__(self, path: Path, model: str) -> None:
        self._path = path.resolve()  # of a symbolic link the file, not the link, is replaced
        models = model_configs.read(path, "--config") or ()
        self._original = self._path.read_bytes()
        self.text = self._original.decode()  # with its own line ends
        self._expected = model_configs.parse(self.text)
        found = [entry for entry in models if entry.name == model]
        if not found:
            known = ", ".join(entry.name for entry in models) or "none"
            raise ConfigError(f"{path} has no model {model!r}; it has: {known}")
        (self.model,) = found
        (self._entry,) = (
            e for e in self._expected.model_config_list.config if e.name == self.model.name
        )

    def version_of(self, target: str) -> int:
        if target.isascii() and target.isdigit():
            return int(target)
        if target not in self.model.labels:
            known = ", ".join(sorted(self.model.labels)) or "none"
            raise ConfigError(
                f"{target!r} is neither a version nor a label of model {self.model.name}; its "
                f"labels: {known}"
            )
        return self.model.labels[target]

    def check_folder(self, version: int) -> None:
        """That the version is there; a base path that is on another machine is not looked into."""
        if self.model.base_path.is_dir() and version not in version_folders(self.model.base_path):
            raise ConfigError(
                f"{self.model.base_path} has no version {version} of model {self.model.name}"
            )

    def check_served(self, version: int) -> None:
        """That the version policy does not leave the version out."""
        policy = self.model.policy
        if policy.specific:
            served = set(policy.specific)
        elif self.model.base_path.is_dir():
            served = policy.choose(version_folders(self.model.base_path))
        else:
            return
        if version not in served:
            raise ConfigError(
                f"The version policy of model {self.model.name} serves "
                f"{', '.join(map(str, sorted(served))) or 'nothing'} and not {version}; a label "
                "needs a version that is served, so widen model_version_policy first, or take its "
                f"promotion back: rollback {self.model.name}"
            )

    def policy(self) -> str | None:
        """The version policy as it could be written between braces; None when there is none."""
        from google.protobuf import text_format

        if not self._entry.HasField("model_version_policy"):
            return None
        return text_format.MessageToString(
            self._entry.model_version_policy, as_one_line=True
        ).strip()

    def policy_as_written(self) -> str | None:
        """The field `model_version_policy { ... }` with all that stands in it, comments too."""
        fields = self._policy_fields()
        return self.text[fields[-1].start : fields[-1].end] if fields else None

    def set_policy(self, field: str | None) -> None:
        """Puts `field`, as `policy_as_written` gives it, in the place of the policy."""
        from google.protobuf import text_format

        self._entry.ClearField("model_version_policy")
        if field is not None:
            text_format.Merge(field, self._entry)
        self._put(self._policy_fields(), field)

    def _policy_fields(self) -> list[Field]:
        return [f for f in self._place().children if f.name == "model_version_policy"]

    def set_label(self, label: str, version: int | None) -> None:
        if version is None:
            self._entry.version_labels.pop(label, None)
        else:
            self._entry.version_labels[label] = version
        old = [
            f
            for f in self._place().children
            if f.name == "version_labels" and self._child_text(f, "key") == label
        ]
        entry = f"version_labels {{ key: {json.dumps(label)} value: {version} }}"
        self._put(old, None if version is None else entry)

    def _place(self) -> Field:
        """The `config { ... }` of the model."""
        for models in _fields(self.text):
            for entry in models.children:
                if self._child_text(entry, "name") == self.model.name:
                    return entry
        raise ConfigError(_UNUSUAL)

    def _child_text(self, parent: Field, name: str) -> str:
        for child in parent.children:
            if child.name == name:
                written = self.text[child.value_start : child.end]
                try:
                    return str(ast.literal_eval(f"({written})"))
                except (SyntaxError, ValueError):
                    return ""
        return ""

    def _put(self, old: list[Field], new: str | None) -> None:
        """Replaces the last field of `old`, removes the others, or adds what was not there."""
        place = self._place()
        kept = old[-1] if old and new is not None else None
        edits = [(f.start, f.end, new if f is kept and new is not None else "") for f in old]
        if not old and new is not None:
            after = place.children[-1].end
            line_start = self.text.rfind("\n", 0, place.children[-1].start) + 1
            indent = re.match(r"[ \t]*", self.text[line_start:])
            is_own_line = not self.text[line_start : place.children[-1].start].strip()
            space = f"\n{indent[0]}" if is_own_line and indent else " "
            edits = [(after, after, space + new)]
        for start, end, replacement in reversed(edits):
            if not replacement:  # its line goes as well, if nothing else is on it
                while start and self.text[start - 1] in " \t":
                    start -= 1
                if self.text[start - 1 : start] == "\n" and self.text[end : end + 1] == "\n":
                    end += 1
            self.text = self.text[:start] + replacement + self.text[end:]

    def write(self, finish: Any) -> None:
        """Replaces the file in one step, once the new text says what was meant and no more."""
        from google.protobuf import text_format

        text = finish(self.text)
        try:
            is_right = model_configs.parse(text) == self._expected
        except text_format.ParseError:
            is_right = False
        if not is_right:
            raise ConfigError(_UNUSUAL)
        try:
            if self._path.read_bytes() != self._original:
                raise ConfigError(f"{self._path} was changed by someone else just now; try again")
            _replace(self._path, text)
        except OSError as error:
            raise ConfigError(
                f"{self._path} cannot be written, it is as it was: {error}"
            ) from error


_UNUSUAL = (
    "This file is written in a way that cannot be changed word by word; write each model as "
    "config { ... } and each label as version_labels { key: ... value: ... }"
)


def _replace(path: Path, text: str) -> None:
    """A reader sees the old text or the new one, even when the machine stops in between."""
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="") as unfinished:
            unfinished.write(text)
            unfinished.flush()
            os.fsync(unfinished.fileno())
        Path(name).chmod(path.stat().st_mode & 0o7777)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    if os.name != "posix":  # elsewhere a folder cannot be opened
        return
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _fields(text: str) -> list[Field]:
    """The fields of a text that protobuf has parsed, with their places."""
    tokens = [match for match in _TOKEN.finditer(text) if match.lastgroup]
    position = 0

    def read_fields() -> list[Field]:
        nonlocal position
        found = []
        while position < len(tokens) and tokens[position][0] not in ("}", ">"):
            found.append(read_field())
            while position < len(tokens) and tokens[position][0] in (",", ";"):
                position += 1
        return found

    def read_field() -> Field:
        nonlocal position
        read = Field(tokens[position][0], tokens[position].start())
        position += 1
        if tokens[position][0] == ":":
            position += 1
        read.value_start = tokens[position].start()
        opening = tokens[position][0]
        if opening in ("{", "<"):
            position += 1
            read.children = read_fields()
        elif opening == "[":
            while tokens[position][0] != "]":
                position += 1
        else:
            while tokens[position].lastgroup == "string" and (
                position + 1 < len(tokens) and tokens[position + 1].lastgroup == "string"
            ):
                position += 1
        read.end = tokens[position].end()
        position += 1
        return read

    return read_fields()
