"""The page Generate: a beginning, the settings of sampling, and what the model writes."""

from typing import Any

import streamlit as st

from serving.client import Generation, ModelInfo
from ui import backend, literal, parts
from ui.language import say
from ui.texts import TEXTS

PAGE = "generate"
PREFERRED = "stories"
LARGEST_SEED = 2**31 - 1  # the signature's seed is an int32

# The settings before anyone touches them; the keys are the arguments of `generate`.
DEFAULTS = {"max_tokens": 120, "temperature": 0.8, "top_k": 0, "top_p": 0.95, "seed": 1}


def page() -> None:
    st.title(say("nav.generate"))
    literal.caption(say("generate.intro"))
    model = parts.choose_model(PAGE, backend.GENERATOR, PREFERRED)
    writing, settings = st.columns([1.9, 1], gap="medium")
    with settings.container(border=True):
        options = _settings()
    with writing:
        # The settings stay outside the form: an example must run with what they show now.
        with st.form("generate.form", border=False):
            prompt = st.text_area(
                say("generate.prompt"),
                key="generate.text",
                placeholder=say("generate.placeholder"),
                label_visibility="collapsed",
                height=110,
                persist_state="session",
            )
            submitted = st.form_submit_button(
                say("generate.run"), type="primary", key="generate.submit", help=say("shortcut")
            )
        place = st.container()
        parts.examples(PAGE, PAGE)
    with place:
        if (submitted or parts.example_clicked(PAGE)) and model:
            with st.spinner(say("generate.running")):
                st.session_state["generate.answer"] = _ask(model, prompt, options)
        _show(st.session_state.get("generate.answer"))


def _settings() -> dict[str, float]:
    for name, value in DEFAULTS.items():
        st.session_state.setdefault(f"generate.{name}", value)

    def words(name: str) -> dict[str, Any]:
        return {
            "label": say(f"generate.{name}"),
            "help": say(f"generate.{name}.help"),
            "key": f"generate.{name}",
            "persist_state": "session",
        }

    return {
        "max_tokens": st.slider(min_value=1, max_value=400, **words("max_tokens")),
        "temperature": st.slider(min_value=0.0, max_value=2.0, step=0.05, **words("temperature")),
        "top_k": st.slider(min_value=0, max_value=200, **words("top_k")),
        "top_p": st.slider(min_value=0.05, max_value=1.0, step=0.05, **words("top_p")),
        "seed": st.number_input(min_value=0, max_value=LARGEST_SEED, step=1, **words("seed")),
    }


def _ask(
    model: ModelInfo, prompt: str, options: dict[str, float]
) -> tuple[str, backend.Timed[Generation]] | backend.Failure:
    """The prompt with its continuation, or what went wrong."""
    if not prompt.strip():
        return backend.Failure("error.empty_prompt")
    try:
        return prompt, backend.generate(model, prompt, options)
    except Exception as error:  # every failure is a sentence; the unexpected ones are logged
        return backend.explain(error, model.name)


def _show(outcome: tuple[str, backend.Timed[Generation]] | backend.Failure | None) -> None:
    if outcome is None:
        return
    if isinstance(outcome, backend.Failure):
        literal.failure(outcome)
        return
    prompt, answer = outcome
    with st.container(border=True, gap="xsmall"):
        literal.story(prompt, answer.result.text)
        if not answer.result.text:
            literal.notice("info", say("generate.empty"))
        literal.caption(_ending(answer.result))
        parts.footer(answer)


def _ending(written: Generation) -> str:
    """How much was written and why it ended, in words."""
    is_one = written.num_tokens == 1
    count = say("generate.one_token" if is_one else "generate.tokens", n=written.num_tokens)
    key, reason = f"finish.{written.finish_reason}", written.finish_reason
    why = say(key) if key in TEXTS else say("finish.unknown", reason=reason)
    return f"{count} · {why}"
