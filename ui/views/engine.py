"""The page Engine: how texts are written at the moment, out of the server's metrics."""

import streamlit as st

from ui import backend, charts, counts, literal
from ui.counts import Counts, History
from ui.language import duration, say

LOOK_EVERY = 2.0  # seconds
LENGTH = 90  # looks, three minutes of them
PATIENCE = 5 * LOOK_EVERY
MEASURES = (counts.FIRST_TOKEN, counts.NEXT_TOKEN, counts.WAIT_FOR_READING)


def page() -> None:
    st.title(say("nav.engine"))
    literal.caption(say("engine.intro"))
    _figures()


@st.fragment(run_every=LOOK_EVERY)
def _figures() -> None:
    found = backend.counts()
    if isinstance(found, backend.Failure):
        literal.failure(found)
        return
    if not found.is_ours:
        literal.notice("info", say("engine.stock", url=backend.url()))
        return
    history = st.session_state.setdefault("engine.history", History(LENGTH, PATIENCE))
    history.add(found)
    has_engine = found.total(counts.SLOTS) > 0
    if not has_engine:
        literal.notice("info", say("engine.by_signatures"))
    st.html(charts.tiles(_tiles(found, history, has_engine)))
    _strips(history, has_engine)
    _times(found, history)


def _tiles(found: Counts, history: History, has_engine: bool) -> list[tuple[str, str, str]]:
    rates = history.rates[-1] if history.rates else None
    speed = _tile("tokens", f"{rates.tokens:,.0f}" if rates else "–")
    if not has_engine:
        return [_tile("streams", f"{found.total(counts.STREAMS):,.0f}"), speed]
    rows, used = (rates.rows, rates.used) if rates else (None, None)
    return [
        _tile(
            "slots",
            f"{found.num_taken:,.0f}",
            n=f"{found.total(counts.SLOTS):,.0f}",
        ),
        _tile("waiting", f"{found.total(counts.WAITING):,.0f}"),
        speed,
        _tile(
            "rows",
            "–" if rows is None else f"{rows:.1f}",
            percent="–" if used is None else charts.percent(used),
        ),
        _tile("cache", _megabytes(found.total(counts.CACHE_BYTES))),
        _tile(
            "prefix",
            _megabytes(found.total(counts.PREFIX_BYTES)),
            n=f"{found.total(counts.CACHED_TOKENS):,.0f}",
            total=f"{found.total(counts.PROMPT_TOKENS):,.0f}",
        ),
    ]


def _tile(name: str, value: str, **values: str) -> tuple[str, str, str]:
    return say(f"engine.{name}"), value, say(f"engine.{name}.note", **values)


def _megabytes(number: float) -> str:
    return say("megabytes", n=f"{number / 1e6:,.1f}")


def _strips(history: History, has_engine: bool) -> None:
    speeds = [(rates.tokens,) for rates in history.rates]
    top = max((speed for (speed,) in speeds), default=0.0)
    caption = say("engine.strip.tokens", n=f"{top:,.0f}")
    literal.caption(caption)
    st.html(charts.strip(caption, speeds, LENGTH, top))
    if not has_engine:
        return
    texts = [(look.num_taken, look.total(counts.WAITING)) for look in history.looks]
    top = max((sum(parts) for parts in texts), default=0.0)
    caption = say("engine.strip.texts", n=f"{top:,.0f}")
    literal.caption(caption)
    st.html(charts.strip(caption, texts, LENGTH, top))


def _times(found: Counts, history: History) -> None:
    """Of each model, since the page was opened and since the server was started."""
    rows = [
        (
            model,
            say(f"engine.{measure}"),
            _quantiles(found, measure, model, history.first),
            _quantiles(found, measure, model, None),
        )
        for model in found.models
        for measure in MEASURES
        if found.quantile(measure, model, 0.5) is not None  # without an engine nobody waits for one
    ]
    if not rows:
        literal.caption(say("engine.no_text"))
        return
    headers = ("model", "engine.measure", "engine.since_opened", "engine.since_started")
    literal.table([say(header) for header in headers], rows)
    literal.caption(say("engine.about"))


def _quantiles(found: Counts, measure: str, model: str, since: Counts | None) -> str:
    half = found.quantile(measure, model, 0.5, since)
    most = found.quantile(measure, model, 0.95, since)
    if half is None or most is None:
        return "–"
    return say("engine.quantiles", half=_time(half), most=_time(most))


def _time(microseconds: float) -> str:
    if microseconds < 100:
        return say("milliseconds", n="<0.1")
    if microseconds < 10_000:
        return say("milliseconds", n=f"{microseconds / 1000:.1f}")
    return duration(microseconds / 1e6)
