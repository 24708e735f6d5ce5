"""Text of models, servers and users on the page, letter by letter.

Streamlit reads most strings as Markdown, where `**`, `$`, `:smile:` and `<` mean something. Here
everything is escaped first and then set into HTML of our own, styled by `style.css`.
"""

from collections.abc import Iterable, Sequence
from html import escape

import streamlit as st

from ui import backend
from ui.language import say

LONGEST_PROMPT = 400  # characters of it that are shown beside what was written


def notice(kind: str, sentence: str, detail: str = "") -> None:
    """A box with a sentence. `kind`: "error", "warning" or "info"."""
    more = ""
    if detail:
        label = escape(say("error.detail"))
        more = f'<details><summary>{label}</summary><div class="sw-detail">{escape(detail)}</div>'
        more += "</details>"
    role = "alert" if kind == "error" else "status"
    st.html(f'<div class="sw-notice sw-{kind}" role="{role}">{escape(sentence)}{more}</div>')


def failure(problem: backend.Failure) -> None:
    notice("error", say(problem.key, **problem.values), problem.detail)


def caption(sentence: str) -> None:
    st.html(f'<div class="sw-caption">{escape(sentence)}</div>')


def story(prompt: str, continuation: str) -> None:
    """The prompt and what the model added, told apart by colour; line breaks and spaces kept.

    Of a long prompt the end is shown: what is added shall be seen, and travels with each redraw.
    """
    shown = prompt if len(prompt) <= LONGEST_PROMPT else f"…{prompt[-LONGEST_PROMPT:]}"
    st.html(
        f'<div class="sw-story"><span class="sw-prompt">{escape(shown)}</span>'
        f'<span class="sw-continuation">{escape(continuation)}</span></div>'
    )


def table(headers: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A plain table; long cells wrap."""
    head = "".join(f"<th>{escape(header)}</th>" for header in headers)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows
    )
    st.html(
        f'<div class="sw-scroll"><table class="sw-table"><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )
