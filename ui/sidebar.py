"""The server's state in the sidebar: always there, and it looks again by itself."""

from html import escape

import streamlit as st

from serving.client import ModelInfo
from ui import backend, parts
from ui.language import say, state_in_words

LOOK_EVERY = 5.0  # seconds


def server_panel() -> None:
    """Draws the panel; a page that depends on what has changed meanwhile runs once more."""
    state = backend.server_state()
    if st.session_state.get("seen") != state:
        parts.forget_failures()  # they may be about a server that is back
        st.session_state["seen"] = state
    _panel()


@st.fragment(run_every=LOOK_EVERY)
def _panel() -> None:
    state = backend.server_state()
    st.html(_html(state))
    if state != st.session_state["seen"]:
        st.rerun()  # the page itself: models came or went, or the server did


def _html(state: backend.ServerState) -> str:
    if state.failure:
        is_gone = state.failure.key in ("error.ServerUnreachable", "error.slow")
        head = _head("bad", say("server.stopped" if is_gone else "server.trouble"))
        body = f"<p>{escape(say(state.failure.key, **state.failure.values))}</p>"
    else:
        head = _head("good", say("server.running"))
        body = f"<ul>{''.join(_line(model) for model in state.models)}</ul>"
        if not state.models:
            body = f"<p>{escape(say('server.no_models'))}</p>"
    heading = f'<div class="sw-heading">{escape(say("server"))}</div>'
    return f'<div class="sw-server" role="status">{heading}{head}{body}</div>'


def _head(tone: str, word: str) -> str:
    return f'<div class="sw-{tone}"><span class="sw-dot"></span>{escape(word)}</div>'


def _line(model: ModelInfo) -> str:
    if model.state == backend.AVAILABLE:
        note = say("version.short", version=model.version)
    else:
        note = state_in_words(model.state)
    return f'<li>{escape(model.name)}<span class="sw-quiet">{escape(note)}</span></li>'
