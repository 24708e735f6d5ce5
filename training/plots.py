"""Pictures of a run's plan."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from training.schedules import tabulate

PICTURE_ENDINGS = (".png", ".svg")


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
