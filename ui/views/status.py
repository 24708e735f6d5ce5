"""The page Server status: every model with its versions, signatures and commands to copy."""

import json
import shlex
from html import escape
from urllib.parse import quote

import streamlit as st

from serving.client import ModelInfo, VersionStatus
from ui import backend, literal
from ui.language import say, state_in_words
from ui.sidebar import LOOK_EVERY
from ui.texts import EXAMPLES

TONES = {"AVAILABLE": "good", "START": "wait", "LOADING": "wait", "UNLOADING": "wait"}
WITHOUT_PAGE = ("multi_label", "regressor")
DEFAULT_SIGNATURE = "serving_default"

# What a command asks for when the input's name says what it is; else its type decides.
EXAMPLE_VALUES = {
    "text": EXAMPLES["sentiment"]["en"][0],
    "prompt": EXAMPLES["generate"]["en"][0],
    "max_tokens": 60,
    "temperature": 0.8,
    "top_k": 0,
    "top_p": 0.95,
    "seed": 1,
}


def page() -> None:
    st.title(say("nav.status"))
    literal.caption(say("status.intro"))
    _models()


@st.fragment(run_every=LOOK_EVERY)
def _models() -> None:
    literal.caption(say("status.address"))
    st.code(backend.url(), language=None)
    state = backend.server_state()
    if state.failure:
        literal.failure(state.failure)
        return
    if not state.models:
        literal.notice("warning", say("server.no_models"))
    for model in state.models:
        with st.container(border=True):
            _model(model, backend.details(model.name))


def _model(model: ModelInfo, details: backend.ModelDetails) -> None:
    # The list says END for a failed load too; the newest version's error tells them apart.
    failed = model.state == "END" and bool(details.versions) and _has_failed(details.versions[0])
    state = say("state.failed") if failed else state_in_words(model.state)
    kind = say(f"kind.{model.kind}") if model.kind else ""
    st.html(
        f'<div class="sw-model">{escape(model.name)}'
        f'<span class="sw-badge sw-{TONES.get(model.state, "bad")}">{escape(state)}</span>'
        f'<span class="sw-caption">{escape(kind)}</span></div>'
    )
    if model.kind in WITHOUT_PAGE:
        literal.caption(say("status.no_page"))
    if details.failure:
        literal.failure(details.failure)
    elif failed:
        literal.notice("error", say("status.failed"))
    signatures = _signatures(details.metadata)
    versions, inputs, commands = st.tabs(
        [say("status.versions"), say("status.signatures"), say("status.curl")]
    )
    with versions:
        headers = [say("status.version"), say("status.state"), say("status.error")]
        literal.table(headers, [_version(version) for version in details.versions])
    with inputs:
        names = ("signature", "direction", "name", "type", "shape")
        literal.table([say(f"status.{name}") for name in names], _tensors(signatures))
    with commands:
        for what, command in _commands(model.name, signatures):
            literal.caption(what)
            st.code(command, language="bash", wrap_lines=True)


def _has_failed(version: VersionStatus) -> bool:
    return version.state == "END" and version.error_code not in ("OK", "")


def _version(version: VersionStatus) -> tuple[str, str, str]:
    if _has_failed(version):
        error = f"{version.error_code}: {version.error_message}"
        return str(version.version), say("state.failed"), error
    return str(version.version), state_in_words(version.state), say("status.no_error")


def _signatures(metadata: dict | None) -> dict[str, dict]:
    """The signatures in an answer of TensorFlow Serving, which nests them twice; {} when absent."""
    found: object = metadata
    for key in ("metadata", "signature_def", "signature_def"):
        found = found.get(key) if isinstance(found, dict) else None
    if not isinstance(found, dict):
        return {}
    # TensorFlow adds one of its own that only marks where initialisation happens.
    return {name: value for name, value in found.items() if name != "__saved_model_init_op"}


def _tensors(signatures: dict[str, dict]) -> list[tuple[str, str, str, str, str]]:
    """One row per input and output of every signature."""
    return [
        (name, say(f"status.{direction}"), tensor, _type(info), _shape(info))
        for name, signature in signatures.items()
        for direction in ("input", "output")
        for tensor, info in signature.get(f"{direction}s", {}).items()
    ]


def _type(info: dict) -> str:
    return str(info.get("dtype", "?")).removeprefix("DT_").lower()


def _shape(info: dict) -> str:
    """ "(?, 4)": a question mark is a dimension that may be of any size."""
    shape = info.get("tensor_shape", {})
    if shape.get("unknown_rank"):
        return "?"
    sizes = [str(dimension.get("size", "?")) for dimension in shape.get("dim", [])]
    inner = ", ".join("?" if size == "-1" else size for size in sizes)
    return f"({inner},)" if len(sizes) == 1 else f"({inner})"


def _commands(name: str, signatures: dict[str, dict]) -> list[tuple[str, str]]:
    """What each command asks for, and the command."""
    address = f"{backend.url()}/v1/models/{quote(name, safe='')}"
    commands = [
        (say("status.curl.state"), f"curl {shlex.quote(address)}"),
        (say("status.curl.metadata"), f"curl {shlex.quote(address + '/metadata')}"),
    ]
    if DEFAULT_SIGNATURE in signatures:
        inputs = signatures[DEFAULT_SIGNATURE].get("inputs", {})
        instance = {tensor: _example_value(tensor, inputs[tensor]) for tensor in sorted(inputs)}
        body = json.dumps({"instances": [instance]}, ensure_ascii=False)
        predict = f"curl {shlex.quote(address + ':predict')} -d {shlex.quote(body)}"
        commands.append((say("status.curl.predict"), predict))
    return commands


def _example_value(name: str, info: dict) -> object:
    if name in EXAMPLE_VALUES:
        return EXAMPLE_VALUES[name]
    return "text" if _type(info) == "string" else 1
