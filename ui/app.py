"""The script that Streamlit runs for every browser and every change: frame, navigation, page."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
# Streamlit puts this folder first on the path; the packages `ui` and `serving` lie one above.
if str(HERE.parent) not in sys.path:
    sys.path.insert(0, str(HERE.parent))

import streamlit as st  # noqa: E402

from ui import backend, language, literal, sidebar  # noqa: E402
from ui.language import say  # noqa: E402
from ui.views import engine, generate, sentiment, status, topics  # noqa: E402

PAGES = {
    "sentiment": (sentiment.page, ":material/sentiment_satisfied:"),
    "topics": (topics.page, ":material/category:"),
    "generate": (generate.page, ":material/edit_note:"),
    "engine": (engine.page, ":material/speed:"),
    "status": (status.page, ":material/dns:"),
}


def main() -> None:
    st.set_page_config(page_title="Stepwise", page_icon=str(HERE / "icon.svg"), layout="centered")
    st.logo(str(HERE / "logo.svg"), size="large")
    st.html(HERE / "style.css")
    with st.sidebar:
        language.selector()
    page = st.navigation(
        [
            st.Page(
                function,
                title=say(f"nav.{name}"),
                icon=icon,
                url_path=name,
                default=name == "sentiment",
            )
            for name, (function, icon) in PAGES.items()
        ]
    )
    with st.sidebar:
        sidebar.server_panel()
    try:
        page.run()
    except Exception as error:  # a bug of ours: the log has it in full, the user a sentence
        literal.failure(backend.explain(error))


main()
