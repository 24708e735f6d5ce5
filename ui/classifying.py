"""The page of a text classifier: Sentiment and Topics differ in words and preferred model only."""

import streamlit as st

from serving.client import Classification, ModelInfo
from ui import backend, charts, literal, parts
from ui.language import say

MAX_LINES = 100


def classifier_page(page: str, preferred: str) -> None:
    """`page` is "sentiment" or "topics": the prefix of its texts, examples and session keys."""
    st.title(say(f"nav.{page}"))
    literal.caption(say(f"{page}.intro"))
    model = parts.choose_model(page, backend.CLASSIFIER, preferred)
    with st.form(f"{page}.form", border=False):
        entered = st.text_area(
            say("classify.text"),
            key=f"{page}.text",
            placeholder=say(f"{page}.placeholder"),
            label_visibility="collapsed",
            height=130,
            persist_state="session",
        )
        with st.container(horizontal=True, vertical_alignment="center", gap="medium"):
            submitted = st.form_submit_button(
                say("classify.run"), type="primary", key=f"{page}.submit", help=say("shortcut")
            )
            by_line = st.toggle(
                say("classify.lines"),
                key=f"{page}.by_line",
                help=say("classify.lines.help", limit=MAX_LINES),
                persist_state="session",
            )
    # Above the examples, which keep their place: the answer belongs to the text area.
    place = st.container()
    parts.examples(page, page)
    with place:
        if (submitted or parts.example_clicked(page)) and model:
            with st.spinner(say("classify.running")):
                st.session_state[f"{page}.answer"] = _ask(model, entered, by_line)
        _show(st.session_state.get(f"{page}.answer"))


def _ask(
    model: ModelInfo, entered: str, by_line: bool
) -> tuple[list[str], backend.Timed[list[Classification]]] | backend.Failure:
    """The texts with their answer, or what went wrong."""
    passages = entered.splitlines() if by_line else [entered]
    passages = [passage.strip() for passage in passages if passage.strip()]
    if not passages:
        return backend.Failure("error.empty_text")
    if len(passages) > MAX_LINES:
        values = {"n": str(len(passages)), "limit": str(MAX_LINES)}
        return backend.Failure("error.too_many_lines", values)
    try:
        return passages, backend.classify(model, passages)
    except Exception as error:  # every failure is a sentence; the unexpected ones are logged
        return backend.explain(error, model.name)


def _show(
    outcome: tuple[list[str], backend.Timed[list[Classification]]] | backend.Failure | None,
) -> None:
    if outcome is None:
        return
    if isinstance(outcome, backend.Failure):
        literal.failure(outcome)
        return
    passages, answer = outcome
    with st.container(border=True):
        if len(passages) == 1:
            _show_one(answer.result[0])
        else:
            _show_many(passages, answer.result)
        parts.footer(answer)


def _show_one(found: Classification) -> None:
    more = say("classify.more", n=len(found.scores) - charts.NUM_SHOWN)
    best = found.scores.get(found.label, float("nan"))
    st.html(charts.verdict(found.label, best) + charts.bars(found.scores, more))


def _show_many(passages: list[str], found: list[Classification]) -> None:
    headers = [say("classify.text"), say("classify.verdict"), say("classify.probability")]
    rows = [
        (passage, one.label, charts.percent(one.scores.get(one.label, float("nan"))))
        for passage, one in zip(passages, found, strict=True)
    ]
    literal.caption(say("classify.texts", n=len(passages)))
    literal.table(headers, rows)
