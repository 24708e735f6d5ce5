"""Probabilities as horizontal bars and what was counted as upright ones: HTML, so labels stay text
and can wrap."""

import math
from collections.abc import Iterable, Sequence
from html import escape

NUM_SHOWN = 10  # the remaining labels are folded away


def percent(probability: float) -> str:
    """
    >>> percent(0.97345), percent(0.0002), percent(0.0), percent(0.99996)
    ('97.3%', '<0.1%', '0.0%', '>99.9%')
    """
    if not math.isfinite(probability):
        return "–"
    if 0 < probability < 0.0005:
        return "<0.1%"
    if 0.9995 <= probability < 1:
        return ">99.9%"
    return f"{100 * probability:.1f}%"


def ranked(scores: dict[str, float]) -> list[tuple[str, float]]:
    """Labels and probabilities, highest first; what is not a number comes last."""
    return sorted(
        scores.items(), key=lambda item: item[1] if math.isfinite(item[1]) else -1, reverse=True
    )


def bars(scores: dict[str, float], more: str) -> str:
    """HTML of one bar per label. `more` is the line under which all but the first ten hide."""
    rows = [_bar(label, probability) for label, probability in ranked(scores)]
    first, rest = rows[:NUM_SHOWN], rows[NUM_SHOWN:]
    html = f'<div class="sw-bars" role="list">{"".join(first)}</div>'
    if rest:
        html += f'<details class="sw-more"><summary>{escape(more)}</summary>'
        html += f'<div class="sw-bars" role="list">{"".join(rest)}</div></details>'
    return html


def _bar(label: str, probability: float) -> str:
    width = 100 * probability if math.isfinite(probability) else 0
    return (
        f'<div class="sw-bar" role="listitem"><span class="sw-label">{escape(label)}</span>'
        f'<span class="sw-track"><span class="sw-fill" style="width:{width:.2f}%"></span></span>'
        f'<span class="sw-number">{escape(percent(probability))}</span></div>'
    )


def verdict(label: str, probability: float) -> str:
    """HTML of the answer itself: the label, large, and its probability."""
    return (
        f'<div class="sw-verdict"><span class="sw-verdict-label">{escape(label)}</span>'
        f'<span class="sw-verdict-number">{escape(percent(probability))}</span></div>'
    )


def tiles(found: Iterable[tuple[str, str, str]]) -> str:
    """HTML of figures side by side, each with its name above and a note below."""
    return (
        '<div class="sw-tiles">'
        + "".join(
            f'<div class="sw-tile"><div class="sw-caption">{escape(name)}</div>'
            f'<div class="sw-figure">{escape(value)}</div>'
            f'<div class="sw-caption">{escape(note)}</div></div>'
            for name, value, note in found
        )
        + "</div>"
    )


def strip(name: str, columns: Sequence[Sequence[float]], length: int, top: float) -> str:
    """HTML of the newest `length` columns, of parts one upon the other; one of `top` is full.

    Where there are fewer, the left is empty.
    """
    shown = [*[()] * (length - len(columns)), *columns[-length:]]
    filled = "".join(f'<span class="sw-column">{_parts(parts, top)}</span>' for parts in shown)
    return f'<div class="sw-strip" role="img" aria-label="{escape(name)}">{filled}</div>'


def _parts(parts: Sequence[float], top: float) -> str:
    heights = [min(100.0, 100 * part / top) if top else 0.0 for part in parts]
    return "".join(f'<span style="height:{height:.1f}%"></span>' for height in heights)
