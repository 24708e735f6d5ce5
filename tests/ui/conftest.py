"""Pages run in-process against a stub of the client; nothing here opens a socket."""

from collections.abc import Callable, Iterator

import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest
from ui_stub import APP, StubClient, go_to

from ui import backend, settings


@pytest.fixture
def client(monkeypatch) -> Iterator[StubClient]:
    stub = StubClient()
    monkeypatch.setattr(backend, "new_client", lambda url, timeout: stub)
    for name in (settings.SERVER, settings.MODELS, settings.LANGUAGE):
        monkeypatch.delenv(name, raising=False)
    st.cache_resource.clear()
    yield stub
    st.cache_resource.clear()


@pytest.fixture
def open_page(client) -> Callable[..., AppTest]:
    """open_page("topics", "zh") -> the page after its first run; "" is Sentiment, the first one."""

    def run(page: str = "", language: str = "en") -> AppTest:
        at = AppTest.from_file(APP, default_timeout=20)
        at.query_params["language"] = language
        return go_to(at, page)

    return run
