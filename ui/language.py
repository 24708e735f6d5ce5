"""Which language the pages speak: chosen in the sidebar, kept in the session and the address."""

from typing import Any

import streamlit as st

from ui import settings, texts

KEY = "language"  # of the widget, and so of the query parameter


def chosen() -> str:
    """ "en" or "zh"."""
    return st.session_state.get(KEY) or _default()


def other() -> str:
    return "zh" if chosen() == "en" else "en"


def say(key: str, **values: Any) -> str:
    """An entry of the table of texts in the chosen language."""
    return texts.text(key, chosen(), **values)


def duration(seconds: float) -> str:
    """In milliseconds below one second, else in seconds with two decimals."""
    if seconds < 1:
        return say("milliseconds", n=max(1, round(1000 * seconds)))
    return say("seconds", n=f"{seconds:.2f}")


def state_in_words(state: str) -> str:
    """A version's state; one that TensorFlow Serving does not have is shown as it came."""
    key = f"state.{state}"
    return say(key) if key in texts.TEXTS else state


def selector() -> None:
    """The control in the sidebar. The choice also stands in the address, to be kept or shared."""
    if KEY not in st.session_state:
        asked = st.query_params.get(KEY)
        st.session_state[KEY] = asked if asked in settings.LANGUAGES else _default()
    st.segmented_control(
        say("language"),
        settings.LANGUAGES,
        format_func=texts.NAMES_OF_LANGUAGES.__getitem__,
        key=KEY,
        required=True,
        label_visibility="collapsed",
        width="stretch",
    )
    if st.query_params.get(KEY) != chosen():  # Streamlit drops the query when the page changes
        st.query_params[KEY] = chosen()


def _default() -> str:
    return settings.language() or (
        "zh" if (st.context.locale or "").lower().startswith("zh") else "en"
    )
