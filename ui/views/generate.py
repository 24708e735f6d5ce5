"""The page Generate: a beginning, the settings of sampling, and what the model writes."""

import contextlib
import time
from dataclasses import replace
from typing import Any

import streamlit as st

from serving.client import ModelInfo
from ui import backend, literal, parts
from ui.language import duration, say
from ui.texts import TEXTS

PAGE = "generate"
PREFERRED = "stories"
REDRAW_SECONDS = 0.05  # a browser draws no faster than one reads
BROKEN = "broken"  # the finish reason of a text that an error ended
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
            with st.container(horizontal=True, gap="small"):
                submitted = st.form_submit_button(
                    say("generate.run"), type="primary", key="generate.submit", help=say("shortcut")
                )
                stop = st.empty()  # here it stays in its place while the text grows
        box = st.empty()  # for a text that is written and for one that is there, never both
        parts.examples(PAGE, PAGE)
    if (submitted or parts.example_clicked(PAGE)) and model:
        _write(box, stop, model, prompt, options)
    _show(box, st.session_state.get("generate.answer"))


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


def _write(box: Any, stop: Any, model: ModelInfo, prompt: str, options: dict[str, float]) -> None:
    """Shows the text in `box` as it comes, and keeps it. The button in `stop` ends this run of the
    script, as every click does, and what is there by then stays."""
    st.session_state.pop("generate.failure", None)
    if not prompt.strip():
        st.session_state["generate.answer"] = backend.Failure("error.empty_prompt")
        return
    drawn, story = 0.0, None
    with stop:
        st.form_submit_button(
            say("generate.stop"), key="generate.stop", icon=":material/stop_circle:"
        )
    try:
        with box.container(border=True, gap="xsmall"):
            # In the places of `_show`: the browser takes one for the other, element by element.
            text = st.empty()
            literal.caption(say("generate.running"))
            st.empty()  # in place of the footer of the text before
            with contextlib.closing(backend.write(model, prompt, options)) as stories:
                for story in stories:
                    st.session_state["generate.answer"] = story
                    if time.monotonic() - drawn >= REDRAW_SECONDS:
                        drawn = time.monotonic()
                        with text:
                            literal.story(story.prompt, story.text)
    except Exception as error:  # every failure is a sentence; the unexpected ones are logged
        failure = backend.explain(error, model.name)
        if story and story.text:  # which stays, with the sentence below it
            st.session_state["generate.answer"] = replace(story, finish_reason=BROKEN)
            st.session_state["generate.failure"] = failure
        else:
            st.session_state["generate.answer"] = failure
    stop.empty()


def _show(box: Any, outcome: backend.Story | backend.Failure | None) -> None:
    if outcome is None:
        return
    if isinstance(outcome, backend.Failure):
        with box.container():
            literal.failure(outcome)
        return
    with box.container(border=True, gap="xsmall"):
        literal.story(outcome.prompt, outcome.text)
        literal.caption(_ending(outcome))
        parts.footer(outcome)
        if outcome.num_truncated_tokens and outcome.num_prompt_tokens is not None:
            num_read = outcome.num_prompt_tokens
            total = num_read + outcome.num_truncated_tokens
            literal.notice("info", say("generate.cut", n=f"{num_read:,}", total=f"{total:,}"))
        if not outcome.text and outcome.finish_reason:
            literal.notice("info", say("generate.empty"))
        if failure := st.session_state.get("generate.failure"):
            literal.failure(failure)


def _ending(story: backend.Story) -> str:
    """How much was written, how fast, and why it ended, in words."""
    told = []
    if story.num_tokens is not None:
        is_one = story.num_tokens == 1
        told.append(say("generate.one_token" if is_one else "generate.tokens", n=story.num_tokens))
    if story.first_seconds is not None:
        further = story.seconds - story.first_seconds
        num_further = (story.num_tokens or 0) - (story.num_first_tokens or 1)
        if num_further > 0 and further > 0:
            told.append(say("generate.rate", n=round(num_further / further)))
        told.append(say("generate.first", time=duration(story.first_seconds)))
    if story.finish_reason is None:
        told.append(say("finish.interrupted"))
    else:
        key = f"finish.{story.finish_reason}"
        why = say(key) if key in TEXTS else say("finish.unknown", reason=story.finish_reason)
        told.append(why)
    return " · ".join(told)
