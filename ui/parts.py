"""What the pages for trying a model have in common: choosing the model, examples, the footer."""

import streamlit as st

from serving.client import ModelInfo
from ui import backend, literal, texts
from ui.language import chosen, duration, other, say, state_in_words


def choose_model(page: str, kind: str, preferred: str) -> ModelInfo | None:
    """The model to ask; None, after a sentence about it, when there is none of this kind.

    A menu appears when there are several. `preferred` is taken first when the server has it.
    """
    state = backend.server_state()
    if state.failure:
        literal.failure(state.failure)
        return None
    ready = {model.name: model for model in state.ready(kind)}
    if preferred not in ready:
        _say_what_is_missing(kind, preferred, state.named(preferred), bool(ready))
    if not ready:
        return None
    if len(ready) == 1:
        return next(iter(ready.values()))
    key = f"{page}.model"
    if st.session_state.get(key) not in ready:  # first visit, or the chosen one has gone
        st.session_state[key] = preferred if preferred in ready else next(iter(ready))
    name = st.selectbox(
        say("model"),
        list(ready),
        key=key,
        help=say("model.help"),
        width=320,
        persist_state="session",
    )
    return ready[name]


def _say_what_is_missing(
    kind: str, preferred: str, found: ModelInfo | None, has_others: bool
) -> None:
    if found and found.state != backend.AVAILABLE:
        sentence = say("missing.not_served", model=preferred, state=state_in_words(found.state))
    elif has_others:
        sentence = say("missing.other", model=preferred)
    else:
        sentence = say("missing.none", model=preferred, kind=say(f"kind.{kind}"))
    literal.notice("warning", sentence)


def examples(page: str, name: str) -> None:
    """Buttons that put an example into the text area of `page` and run it, on one click."""
    literal.caption(say("examples"))
    with st.container(key="examples"):
        for language, column in zip((chosen(), other()), st.columns(2), strict=True):
            buttons = column.container(gap=None)
            for number, example in enumerate(texts.EXAMPLES[name][language]):
                buttons.button(
                    example,
                    key=f"{page}.example.{language}.{number}",
                    on_click=_use_example,
                    args=(page, example),
                    type="tertiary",
                    icon=":material/north_west:",
                )


def _use_example(page: str, example: str) -> None:
    st.session_state[f"{page}.text"] = example
    st.session_state[f"{page}.run"] = True


def example_clicked(page: str) -> bool:
    """True once after a click on an example."""
    return st.session_state.pop(f"{page}.run", False)


def forget_failures() -> None:
    """Removes sentences about failed requests from all pages; answers stay."""
    for key, value in st.session_state.to_dict().items():
        if isinstance(value, backend.Failure):
            del st.session_state[key]


def footer(answer: backend.Timed | backend.Story) -> None:
    """Which model answered, and how fast."""
    time, version = duration(answer.seconds), answer.version
    literal.caption(say("answered", model=answer.model, version=version, time=time))
