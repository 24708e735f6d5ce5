"""Pictures of a run's plan and of what it confuses."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from training.schedules import tabulate

PICTURE_ENDINGS = (".png", ".svg")
_MAX_NAMED = 40  # labels; of more the picture shows the shades alone


def plot_schedules(expressions: Sequence[str], num_updates: int, path: str | Path) -> None:
    """Draws the value of every schedule at each update of a run: PNG or SVG by the ending.

    Raises ValueError for another ending, for no expression, and as `schedules.tabulate` does.
    """
    path = Path(path)
    if path.suffix.lower() not in PICTURE_ENDINGS:
        raise ValueError(f"A picture's name ends in .png or .svg. Received: {path.name!r}")
    if not expressions:
        raise ValueError("A plot needs at least one schedule, for example 'cosine(warmup=100)'.")
    tables = [tabulate(expression, num_updates) for expression in expressions]

    from matplotlib.figure import Figure  # without pyplot: no global state, no display

    figure = Figure(figsize=(8.0, 5.0), layout="constrained")  # inches
    axes = figure.subplots()
    for index, (expression, table) in enumerate(zip(expressions, tables, strict=True)):
        style = ("-", "--", ":")[index // 10 % 3]  # the colours repeat after ten
        axes.plot(table, style, label=expression)
    axes.set_xlabel("update")
    axes.set_ylabel("value")
    axes.set_xlim(0, num_updates)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2, fontsize="small", frameon=False)
    figure.savefig(path, dpi=110)


def draw_confusion_matrix(matrix: np.ndarray, names: Sequence[str], path: Path) -> None:
    """Rows are true labels, columns predicted ones; counts in the cells, shade by row share.

    Of more than 40 labels the shades alone, in the order of the labels.
    """
    import warnings

    from matplotlib import font_manager, rc_context
    from matplotlib.figure import Figure  # without pyplot: no global state, no display

    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    side = min(max(4.0, 0.55 * len(names) + 2.0), 20.0)  # inches
    # Label names may be Chinese: a font that has the characters is used if there is one.
    wanted = ["DejaVu Sans", "Noto Sans CJK SC", "PingFang SC", "Microsoft YaHei", "SimHei"]
    installed = font_manager.get_font_names()
    fonts = [font for font in wanted if font in installed]
    with rc_context({"font.family": fonts}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # an empty box is better than no picture
        figure = Figure(figsize=(side, side), layout="constrained")
        axes = figure.subplots()
        axes.imshow(share, cmap="Blues", vmin=0.0, vmax=1.0)
        if len(names) <= _MAX_NAMED:
            # A label such as "$$" is text, not mathematics.
            axes.set_xticks(range(len(names)), names, rotation=45, ha="right", parse_math=False)
            axes.set_yticks(range(len(names)), names, parse_math=False)
        axes.set_xlabel("predicted")
        axes.set_ylabel("true")
        for (row, column), count in np.ndenumerate(matrix if len(names) <= _MAX_NAMED else []):
            color = "white" if share[row, column] > 0.5 else "black"
            axes.text(column, row, str(count), ha="center", va="center", color=color, fontsize=8)
        figure.savefig(path, dpi=110)
