"""Problems of two parameters, on which the path of a strategy can be seen.

A surface's function is written in arithmetic alone, so the same one is differentiated on a
TensorFlow variable and drawn on a grid of numpy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import keras
import numpy as np
import tensorflow as tf
from matplotlib.figure import Figure

from training.config import OptimizerConfig
from training.report import (
    COLOURS,
    DASHES,
    INK,
    NONE,
    draw_axes,
    markdown_table,
    save_figure,
    text_table,
)
from training.runs import write_json
from training.stacking import stack
from training.strategies.build import build_rule
from training.strategies.catalogue import resolve
from training.strategies.compiled import compile_updates

# Rules whose step grows with the gradient; all others need a rate of another size.
GRADIENT_RULES = ("sgd", "momentum", "nesterov", "schedule_free_sgd")

FAR = 1e6  # no surface has anything to show out there


@dataclass(frozen=True, kw_only=True)
class Surface:
    """f(w) with w = (w1, w2): where strategies start, where they should arrive."""

    name: str
    description: str
    function: Callable[[Any, Any], Any]  # (w1, w2), any arrays or tensors of one shape
    start: tuple[float, float]
    minimum: tuple[float, float]
    limits: tuple[tuple[float, float], tuple[float, float]]  # shown, of w1 and of w2
    rate: float  # of gradient descent: stable from the start on
    adaptive_rate: float  # of Adam and its like, about the length of a step
    updates: int = 100  # that show what there is to see

    def loss(self, w: Any) -> Any:
        """f of a tensor, variable or array with leading axis 2; () for w of shape (2,)."""
        return self.function(w[0], w[1])

    def rate_for(self, optimizer: str) -> float:
        return self.rate if optimizer in GRADIENT_RULES else self.adaptive_rate


def _bowl(w1: Any, w2: Any) -> Any:
    return 0.5 * (w1 * w1 + w2 * w2)


def _ravine(w1: Any, w2: Any) -> Any:
    return 0.5 * (w1 * w1 + 50.0 * w2 * w2)


def _rosenbrock(w1: Any, w2: Any) -> Any:
    across, along = w2 - w1 * w1, 1.0 - w1
    return along * along + 100.0 * across * across


def line_data() -> tuple[np.ndarray, np.ndarray]:
    """y = 2 x + 1 and noise, of which 24 points are kept."""
    random = np.random.default_rng(0)
    x = random.uniform(-1.0, 2.0, 24)
    return x, 2.0 * x + 1.0 + 0.3 * random.normal(size=24)


def _linear_regression() -> Surface:
    x, y = line_data()
    # The mean square error is a quadratic in slope and intercept: its coefficients are moments.
    xx, xy, yy, mx, my = (float(v.mean()) for v in (x * x, x * y, y * y, x, y))

    def mean_square_error(slope: Any, intercept: Any) -> Any:
        squares = xx * slope * slope + intercept * intercept + yy
        return squares + 2.0 * (mx * slope * intercept - xy * slope - my * intercept)

    slope = (xy - mx * my) / (xx - mx * mx)
    return Surface(
        name="linear_regression",
        description="mean square error of slope w1 and intercept w2 on 24 points",
        function=mean_square_error,
        start=(-0.5, 3.5),
        minimum=(slope, my - slope * mx),
        limits=((-1.0, 4.0), (-1.0, 4.0)),
        rate=0.1,
        adaptive_rate=0.1,
    )


_ALL = (
    Surface(
        name="bowl",
        description="1/2 (w1^2 + w2^2), the same in all directions",
        function=_bowl,
        start=(2.0, 1.2),
        minimum=(0.0, 0.0),
        limits=((-2.4, 2.4), (-1.8, 1.8)),
        rate=0.1,
        adaptive_rate=0.1,
    ),
    Surface(
        name="ravine",
        description="1/2 (w1^2 + 50 w2^2), steep across and flat along",
        function=_ravine,
        start=(2.0, 0.3),
        minimum=(0.0, 0.0),
        limits=((-1.0, 2.4), (-0.45, 0.45)),
        rate=0.03,  # stable below 2 / 50
        adaptive_rate=0.05,
    ),
    Surface(
        name="rosenbrock",
        description="(1 - w1)^2 + 100 (w2 - w1^2)^2, a bent valley (Rosenbrock, 1960)",
        function=_rosenbrock,
        start=(-1.2, 1.0),
        minimum=(1.0, 1.0),
        limits=((-1.7, 1.7), (-0.6, 2.2)),
        rate=1e-3,
        adaptive_rate=0.05,
        updates=500,
    ),
    _linear_regression(),
)
SURFACES: dict[str, Surface] = {surface.name: surface for surface in _ALL}


def surface(name: str) -> Surface:
    """Raises ValueError listing the known ones."""
    if name not in SURFACES:
        raise ValueError(f"--surface must be one of {', '.join(SURFACES)}. Received: {name!r}")
    return SURFACES[name]


class Walker(Protocol):
    """A strategy on a surface: `update` takes one parameter update, `weights` are w now, (2,)."""

    def update(self) -> Any: ...

    def weights(self) -> Any: ...


def path(make_walker: Callable[[Surface], Walker], on: Surface, updates: int) -> np.ndarray:
    """w before the first update and after each, float64 (updates + 1, 2).

    A strategy that leaves for beyond `FAR` has diverged: its path ends before, so it is shorter.
    """
    walker = make_walker(on)
    places = [np.asarray(walker.weights(), np.float64)]
    for _ in range(updates):
        walker.update()
        place = np.asarray(walker.weights(), np.float64)
        if not (np.abs(place) < FAR).all():  # nor where it is not a number
            break
        places.append(place)
    return np.stack(places)


class RuleWalker:
    """An update rule on a surface, in float64, at a constant rate and without clipping.

    The rate is the surface's unless given. The weights are those that would be evaluated and
    exported: the slow ones of Lookahead, the average of EMA. Every micro-batch is the whole
    surface.
    """

    def __init__(self, expression: str, on: Surface, updates: int, rate: float | None = None):
        self.w = keras.Variable(np.asarray(on.start), dtype="float64", name="w")
        one = tf.ones([], tf.float64)

        def loss(batch: dict) -> dict:
            return {
                "loss_sum": on.loss(self.w.value),
                "num_targets": one,
                "num_correct": tf.zeros_like(one),
            }

        self.rule = build_rule(
            expression,
            loss,
            [self.w],
            OptimizerConfig(
                peak_learning_rate=rate or on.rate_for(resolve(expression)[-1].name),
                schedule="constant",
                clip_norm=None,
            ),
            num_updates=updates,
        )
        self.take_updates = compile_updates(self.rule)
        self.batches = stack([{"row": np.zeros((1, 1))}] * self.rule.num_batches)

    def update(self) -> None:
        self.take_updates(self.batches)

    def weights(self) -> np.ndarray:
        evaluated = self.rule.evaluation_weights()
        return self.w.numpy() if evaluated is None else np.asarray(evaluated[0])


def write_surface_report(
    on: Surface, paths: Mapping[str, np.ndarray], updates: int, folder: Path
) -> str:
    """Writes surface.png, surface.svg, report.md and paths.json; returns the table as text."""
    folder.mkdir(parents=True, exist_ok=True)
    save_figure(surface_figure(on, paths), folder / "surface")
    rows = surface_table(on, paths, updates)
    text = f"# {on.name}: {on.description}\n\n{markdown_table(rows)}\n\n![Paths](surface.png)\n"
    (folder / "report.md").write_text(text, encoding="utf-8")
    write_json(
        folder / "paths.json",
        {"surface": on.name, "paths": {label: walked.tolist() for label, walked in paths.items()}},
    )
    return text_table(rows)


def surface_table(on: Surface, paths: Mapping[str, np.ndarray], updates: int) -> list[list[str]]:
    """Where each strategy got to, the header first."""
    rows = [["strategy", "updates", "loss", "distance to the minimum", "updates to 1 %"]]
    for label, walked in paths.items():
        losses = np.asarray(on.loss(walked.T))
        distance = math.dist(walked[-1], on.minimum)
        if len(walked) <= updates:
            rows.append([label, f"{len(walked):,}", "diverged", NONE, NONE])
            continue
        lowest = float(on.loss(np.asarray(on.minimum)))
        near = np.flatnonzero(losses - lowest <= 0.01 * (losses[0] - lowest))
        first = f"{near[0]:,}" if near.size else NONE
        rows.append([label, f"{updates:,}", f"{losses[-1]:.4g}", f"{distance:.4g}", first])
    return rows


def surface_figure(on: Surface, paths: Mapping[str, np.ndarray]) -> Figure:
    """The paths (n, 2) by label on the contours of the loss, and the loss against updates."""
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    grid = figure.add_gridspec(1, 2, width_ratios=(3, 2))
    axes = draw_axes(figure, grid[0])
    _draw_contours(axes, on)
    beside = draw_axes(figure, grid[1])
    lowest = float(on.loss(np.asarray(on.minimum)))
    handles = []
    for index, (label, walked) in enumerate(paths.items()):
        colour = COLOURS[index % len(COLOURS)]
        dash = DASHES[index // len(COLOURS) % len(DASHES)]
        style = {"color": colour, "linestyle": dash, "linewidth": 1.4}
        axes.plot(*walked.T, **style, marker="o", markersize=2.5, alpha=0.9)
        excess = np.maximum(np.asarray(on.loss(walked.T)) - lowest, 1e-16)
        handles += beside.plot(excess, **style, label=label)
    axes.plot(*on.start, "s", color=INK, markersize=7, markerfacecolor="white", zorder=5)
    axes.annotate("start", on.start, (6, 6), textcoords="offset points", color=INK, fontsize=9)
    axes.plot(*on.minimum, "*", color=INK, markersize=13, markerfacecolor="white", zorder=5)
    axes.set_xlim(*on.limits[0])
    axes.set_ylim(*on.limits[1])
    axes.set_xlabel("w1 (star: the minimum)")
    axes.set_ylabel("w2")
    beside.set_yscale("log")
    start = float(on.loss(np.asarray(on.start))) - lowest
    beside.set_ylim(max(beside.get_ylim()[0], start * 1e-10), start * 10)
    beside.set_xlim(left=0)
    beside.set_xlabel("parameter updates")
    beside.set_ylabel("loss above that of the minimum")
    legend = beside.legend(handles=handles, frameon=False, labelcolor=INK, fontsize=9)
    for text in legend.get_texts():
        text.set_parse_math(False)
    return figure


def _draw_contours(axes: Any, on: Surface) -> None:
    w1, w2 = np.meshgrid(*(np.linspace(low, high, 200) for low, high in on.limits))
    lowest = float(on.loss(np.asarray(on.minimum)))
    excess = on.loss(np.stack([w1, w2])) - lowest
    levels = np.geomspace(excess.max() * 1e-4, excess.max(), 15)
    axes.contour(
        w1,
        w2,
        np.maximum(excess, levels[0] / 10),
        levels=levels,
        colors=INK,
        linewidths=0.6,
        alpha=0.35,
    )
