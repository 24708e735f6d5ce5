"""Which learning rates a model can learn with: the range test (Smith, 2017, sec. 3.3).

The rate grows from far too small to far too large in one short run. While it is too small the
loss stands still, then it falls, and when the rate is too large it rises and breaks.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from training.report import COLOURS, INK, draw_axes, save_figure

SMOOTHING = 0.9  # of the exponential mean of losses
MIN_UPDATES = 20


@dataclass(frozen=True, kw_only=True)
class RangeTest:
    """Losses update by update as far as the test went; `rates[i]` made the update after loss i."""

    rates: list[float]
    losses: list[float]
    smoothed: list[float]
    steepest: float | None  # the rate at which the loss falls fastest: what we suggest
    tenth_of_minimum: float | None  # a tenth of the rate at which the loss is lowest
    ended: str  # why it went no further


def find_rate(
    step: Callable[[float], float],
    *,
    low: float = 1e-6,
    high: float = 1.0,
    num_updates: int = 200,
    stop_at: float = 4.0,
) -> RangeTest:
    """Takes updates with rates from `low` to `high`, in equal ratios, and reads off two rates.

    `step(rate)` makes one update and returns the loss before it. Losses are smoothed by an
    exponential mean with its bias corrected (Kingma & Ba, 2015, sec. 3). The test ends when the
    smoothed loss is above `stop_at` times its lowest (from the tenth on, when the mean has
    settled), or not finite any more. Suggested are the
    rate of steepest descent against the logarithm of the rate, up to the lowest loss, and a tenth
    of the rate of the lowest loss; both None when the loss never fell. It moves the weights:
    whoever calls puts them back.
    """
    if not 0 < low < high < math.inf:
        raise ValueError(
            f"Expected rates with 0 < low < high, both finite. Received: {low=}, {high=}"
        )
    if num_updates < MIN_UPDATES:
        raise ValueError(f"num_updates must be at least {MIN_UPDATES}. Received: {num_updates}")
    if stop_at <= 1:
        raise ValueError(f"stop_at must be above 1. Received: {stop_at}")
    rates, losses, smoothed = [], [], []
    mean, lowest, ended = 0.0, math.inf, "all rates were tried"
    for number, rate in enumerate(np.geomspace(low, high, num_updates).tolist(), 1):
        loss = float(step(rate))
        if not math.isfinite(loss):
            ended = f"the loss was {loss} before the update at rate {rate:.3g}"
            break
        mean = SMOOTHING * mean + (1 - SMOOTHING) * loss
        rates.append(rate)
        losses.append(loss)
        smoothed.append(mean / (1 - SMOOTHING**number))
        if number >= MIN_UPDATES // 2:  # before, one odd batch would decide
            lowest = min(lowest, smoothed[-1])
        # The distance from the lowest, for losses that may be below 0 as well.
        if smoothed[-1] - lowest > (stop_at - 1) * abs(lowest):
            ended = f"the loss rose above {stop_at:g} times its lowest at rate {rate:.3g}"
            break
    steepest, tenth = _suggestions(np.asarray(rates), np.asarray(smoothed))
    return RangeTest(
        rates=rates,
        losses=losses,
        smoothed=smoothed,
        steepest=steepest,
        tenth_of_minimum=tenth,
        ended=ended,
    )


def _suggestions(rates: np.ndarray, smoothed: np.ndarray) -> tuple[float | None, float | None]:
    if len(smoothed) < 3:
        return None, None
    lowest = int(smoothed.argmin())
    if lowest < 2 or smoothed[0] - smoothed[lowest] <= 1e-6 * abs(smoothed[0]):
        return None, None  # it only rose, or moved by no more than rounding
    # Over ten updates: the slope between two neighbours would be that of their noise.
    logarithms = np.log(rates[: lowest + 1])
    width = min(10, lowest)
    slopes = (smoothed[width : lowest + 1] - smoothed[: lowest + 1 - width]) / (
        logarithms[width:] - logarithms[:-width]
    )
    best = int(slopes.argmin())
    if slopes[best] >= 0:
        return None, None
    middle = (logarithms[best] + logarithms[best + width]) / 2
    return float(np.exp(middle)), float(rates[lowest] / 10)


def advice(test: RangeTest) -> str:
    """The outcome in two sentences, with the setting to type."""
    if test.steepest is None or test.tenth_of_minimum is None:
        return (
            f"No rate lowered the loss ({test.ended}). Try others with --low and --high, "
            "or more --updates."
        )
    return (
        f"The loss falls fastest at {test.steepest:.2g}; a tenth of the rate of its lowest is "
        f"{test.tenth_of_minimum:.2g}. Try --set "
        f"optimizer.peak_learning_rate={test.steepest:.2g} ({test.ended})."
    )


def rate_figure(test: RangeTest) -> Figure:
    """Loss against learning rate, single and smoothed, with the suggestions marked."""
    figure = Figure(figsize=(7.5, 4.2), layout="constrained")
    axes = draw_axes(figure)
    axes.plot(test.rates, test.losses, color=INK, alpha=0.3, linewidth=0.8, label="each batch")
    axes.plot(test.rates, test.smoothed, color=COLOURS[1], linewidth=1.8, label="smoothed")
    if test.steepest is not None and test.tenth_of_minimum is not None:
        for rate, words, dash, colour in (
            (test.steepest, f"falls fastest: {test.steepest:.2g}", "-", COLOURS[2]),
            (test.tenth_of_minimum, f"lowest / 10: {test.tenth_of_minimum:.2g}", "--", COLOURS[3]),
        ):
            axes.axvline(rate, color=colour, linestyle=dash, linewidth=1.4, label=words)
    axes.set_xscale("log")
    if test.smoothed:
        # The last, broken losses would press the rest flat.
        top, bottom = max(test.smoothed[0], np.percentile(test.losses, 95)), min(test.smoothed)
        margin = 0.15 * (top - bottom) or 1.0
        axes.set_ylim(bottom - margin, top + margin)
    axes.set_xlabel("learning rate (logarithmic)")
    axes.set_ylabel("training loss")
    axes.legend(frameon=False, labelcolor=INK, fontsize=9)
    return figure


def write_rate_figure(test: RangeTest, folder: Path) -> None:
    """learning_rates.png and learning_rates.svg in `folder`."""
    save_figure(rate_figure(test), folder / "learning_rates")
