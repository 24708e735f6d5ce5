"""What a comparison shows: a table, pictures, and one HTML file that needs nothing else.

Made from plain records (`training/compare.py` says what is in one), so a report can be drawn
again without training.
"""

from __future__ import annotations

import dataclasses
import html
import io
import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import SubplotSpec
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from training.runs import write_json
from training.statistics import (
    BETTER,
    NO_DIFFERENCE,
    NUM_RESAMPLES,
    REFERENCE,
    WORSE,
    Difference,
    Interval,
    Result,
    compare_scores,
)

Record = dict[str, Any]

DIVERGED = "diverged"
AXES = {
    "updates": "parameter updates",
    "gradient_evaluations": "gradient evaluations (micro-batches forward and back)",
    "seconds": "seconds of training, evaluation not counted",
}
# The first entry is drawn in the colour of the text, so it stands out on either background. The
# others are Okabe & Ito's (2008), told apart by the colour-blind, darkened for white paper.
INK = "#1f2328"
COLOURS = (INK, "#0072b2", "#d55e00", "#009e73", "#c2659b", "#c77700", "#3d9bd8")
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (5, 1.5, 1.2, 1.5)))
LOG_FROM = 20.0  # ratio of the largest to the smallest loss shown
NONE = "–"
BOOTSTRAPPED = ("95 % over seeds", "95 % (bootstrap)")


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Records in the order their entries were typed, and the words that go with them."""

    title: str
    labels: Sequence[str]  # as typed; the first one is compared with
    records: Sequence[Record]
    num_expected: int  # runs, when all are done
    budget: str = ""  # "60 seconds of training each", in words
    keep: str = "best"  # which weights each run is scored by: best (on validation) or last
    loss_unit: str = ""  # nats, of cross-entropy
    facts: Sequence[str] = ()  # sentences about how it was made
    settings: Mapping[str, str] = field(default_factory=dict)

    def of(self, label: str) -> list[Record]:
        return [record for record in self.records if record["label"] == label]


def write_report(comparison: Comparison, folder: Path) -> list[Result]:
    """Writes results.json, report.md, report.html and the pictures (PNG and SVG) to `folder`."""
    results = results_of(comparison)
    figures = figures_of(comparison, results)
    for name, figure in figures.items():
        save_figure(figure, folder / name)
    (folder / "report.md").write_text(markdown(comparison, results, figures), encoding="utf-8")
    (folder / "report.html").write_text(page(comparison, results, figures), encoding="utf-8")
    summary = {
        "title": comparison.title,
        "score": score_name(comparison.records),
        "budget": comparison.budget,
        "is_complete": len(comparison.records) == comparison.num_expected,
        "results": [
            dataclasses.asdict(result)
            | {
                "test": mean_test_figure(comparison.of(result.label)),
                "costs": costs(comparison.of(result.label)),
            }
            for result in results
        ],
        "facts": [*comparison.facts, *notes(comparison, results)],
    }
    write_json(folder / "results.json", summary)
    return results


def results_of(comparison: Comparison) -> list[Result]:
    scores = {
        label: {record["seed"]: _score(record) for record in comparison.of(label)}
        for label in comparison.labels
    }
    return compare_scores(scores, higher_is_better=_higher_is_better(comparison.records))


def score_name(records: Sequence[Record]) -> str:
    # A run that broke off at once has none.
    names = (record["score_name"] for record in records if "score_name" in record)
    return next(names, "score").replace("_", " ")


def mean_test_figure(records: Sequence[Record]) -> float | None:
    """The mean over the runs that ended well of what is compared, on the test split."""
    found = [figure for record in records if (figure := _test_figure(record)) is not None]
    return float(np.mean(found)) if found else None


def costs(records: Sequence[Record]) -> dict[str, float | None]:
    """Means over the runs that ended well, None without any."""
    finished = [record for record in records if _score(record) is not None]
    return {
        axis: float(np.mean([record[axis] for record in finished])) if finished else None
        for axis in AXES
    }


# Tables


def table(comparison: Comparison, results: Sequence[Result]) -> list[list[str]]:
    """Rows of text, the header first."""
    header = [
        "strategy",
        "verdict",
        score_name(comparison.records),
        "95 % over seeds",
        _test_name(comparison.records),
        f"difference to {results[0].label}",
        "95 % (Student's t)",
        "95 % (bootstrap)",
        "p (Holm)",
        "updates",
        "gradient evaluations",
        "seconds",
    ]
    rows = []
    for result in results:
        records = comparison.of(result.label)
        cost = costs(records)
        difference = result.difference
        rows.append(
            [
                result.label,
                result.verdict,
                _number(result.mean),
                _interval(result.interval),
                _number(mean_test_figure(records)),
                _number(difference.mean if difference else None, sign=True),
                _interval(difference.student if difference else None, sign=True),
                _interval(difference.bootstrap if difference else None, sign=True),
                _p_value(difference),
                _whole(cost["updates"]),
                _whole(cost["gradient_evaluations"]),
                _seconds(cost["seconds"]),
            ]
        )
    return [header, *rows]


def brief_table(comparison: Comparison, results: Sequence[Result]) -> str:
    """For a terminal: the table without its bootstrap intervals."""
    rows = table(comparison, results)
    shown = [i for i, name in enumerate(rows[0]) if name not in BOOTSTRAPPED]
    return text_table([[row[i] for i in shown] for row in rows])


def text_table(rows: Sequence[Sequence[str]]) -> str:
    """The first column to the left, the others to the right, a line below the header."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if index == 0 else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return "\n".join([lines[0], "-" * (sum(widths) + 2 * len(widths) - 2), *lines[1:]])


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(_markdown(cell) for cell in cells) + " |"

    return "\n".join([line(rows[0]), "|---" + "|---:" * (len(rows[0]) - 1) + "|"]) + "".join(
        "\n" + line(row) for row in rows[1:]
    )


def notes(comparison: Comparison, results: Sequence[Result]) -> list[str]:
    """How to read the table, in sentences; what went wrong in which run."""
    score = score_name(comparison.records)
    direction = "higher" if _higher_is_better(comparison.records) else "lower"
    tested = [r.difference for r in results if r.difference and r.difference.p_value is not None]
    num_seeds = max((len(r.scores) for r in results), default=0)
    sentences = [
        f"Score: {score}, {direction} is better; a mean over the seeds, and so are the costs.",
        _about_weights(comparison),
    ]
    if tested:
        number = "1 comparison" if len(tested) == 1 else f"{len(tested)} comparisons"
        sentences.append(
            f"Verdict: a paired t-test over seeds against {results[0].label}, whose runs start "
            "from the same weights and read the same data; p-values are corrected for "
            f"{number} (Holm). Better and worse mean p below 0.05. No difference means that none "
            "was shown; the interval says how large one may still be."
        )
    undecided = [r.label for r in results if _is_undecided(r)]
    if undecided:
        sentences.append(
            f"{_listed(undecided)}: no difference although the interval excludes 0. Of one "
            "comparison that would be a verdict, of several it is not enough. More seeds decide."
        )
    sentences.append(
        f"95 % over seeds and bootstrap: percentiles of {NUM_RESAMPLES:,} resamples of the seeds' "
        f"values, here {num_seeds}."
        + (
            " With so few it is too narrow (three values: it holds the true mean in about 3 of 4 "
            "cases), so the verdict follows Student's t."
            if num_seeds < 10
            else ""
        )
    )
    missing = comparison.num_expected - len(comparison.records)
    if missing:
        sentences.append(
            f"Incomplete: {missing} of {comparison.num_expected} runs are not done. The same "
            "command goes on."
        )
    for record in comparison.records:
        if _score(record) is None:
            what = record.get("message") or "its loss is not finite"
            sentences.append(f"{record['label']}, seed {record['seed']}, diverged: {what}")
    return sentences


def _about_weights(comparison: Comparison) -> str:
    test = f"The column {_test_name(comparison.records)} is of the same weights"
    if comparison.keep == "last":
        return f"Scores are figures on the validation split of each run's last weights. {test}."
    counts = [len(record["curve"]) for record in comparison.records if _score(record) is not None]
    fewest, most = min(counts, default=0), max(counts, default=0)
    number = f"{fewest} to {most}" if fewest < most else str(most or "its")
    return (
        "Scores are figures on the validation split of the weights that each run kept: the best of "
        f"{number} evaluations on that very split, the one before the first update included, so "
        f"they flatter. {test}, and nothing was chosen by it."
    )


def markdown(
    comparison: Comparison, results: Sequence[Result], figures: Mapping[str, Figure]
) -> str:
    facts = [*comparison.facts, *notes(comparison, results)]
    parts = [f"# {_markdown(comparison.title)}"]
    if comparison.budget:
        parts.append(_markdown(comparison.budget))
    parts.append(markdown_table(table(comparison, results)))
    parts.append("\n".join(f"- {_markdown(fact)}" for fact in facts))
    parts += [f"![{FIGURES[name]}]({name}.png)" for name in figures]
    return "\n\n".join(parts) + "\n"


# Pictures

FIGURES = {
    "differences": "Difference to the first entry, seed by seed",
    "loss_by_updates": "Validation loss against parameter updates",
    "loss_by_gradient_evaluations": "Validation loss against gradient evaluations",
    "loss_by_seconds": "Validation loss against seconds of training",
}


def figures_of(comparison: Comparison, results: Sequence[Result]) -> dict[str, Figure]:
    """By file name, those that there is something to draw for."""
    figures = {}
    if any(result.difference for result in results):
        figures["differences"] = difference_figure(comparison, results)
    if any(_points(record, "updates") for record in comparison.records):
        for axis in AXES:
            figures[f"loss_by_{axis}"] = loss_figure(comparison, axis)
    return figures


def loss_figure(comparison: Comparison, axis: str) -> Figure:
    """Validation loss against `axis`: mean over seeds, and a band from the lowest to the highest.

    A run that diverged is a thin line of its own; a cross shows where it ends or leaves the
    picture, whose range is that of the runs that ended well.
    """
    names = {label: _curve_name(label, comparison.of(label)) for label in comparison.labels}
    figure, axes = _figure(names.values())
    _set_loss_range(axes, comparison, axis)
    ends = {}
    for index, label in enumerate(comparison.labels):
        style = _style(index)
        records = [(_score(r) is not None, _points(r, axis)) for r in comparison.of(label)]
        for points in (points for is_good, points in records if points and not is_good):
            ends[label] = _draw_diverged(axes, points, style)
        finished = [points for is_good, points in records if points and is_good]
        if finished:
            x, mean, low, high = mean_curve(finished)
            axes.plot(x, mean, linewidth=1.8, **style)
            axes.fill_between(x, low, high, color=style["color"], alpha=0.16, linewidth=0)
            ends[label] = (x[-1], mean[-1])
    seeds = {record["seed"] for record in comparison.records}
    what = f"mean and range over {len(seeds)} seeds" if len(seeds) > 1 else "one seed"
    unit = f" in {comparison.loss_unit}" if comparison.loss_unit else ""
    axes.set_ylabel(f"validation loss{unit} ({what})")
    axes.set_xlabel(AXES[axis])
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.10g}"))
    styles = [_style(index) for index in range(len(comparison.labels))]
    _label_ends(
        figure,
        axes,
        [
            (*ends[label], names[label], style)
            for label, style in zip(comparison.labels, styles, strict=True)
            if label in ends
        ],
    )
    return figure


def _curve_name(label: str, records: Sequence[Record]) -> str:
    num_diverged = sum(_score(record) is None for record in records)
    if not num_diverged:
        return label
    return f"{label} ({num_diverged} of {len(records)} diverged)"


def _set_loss_range(axes: Axes, comparison: Comparison, axis: str) -> None:
    good = [r for r in comparison.records if _score(r) is not None and _points(r, axis)]
    losses = [y for r in good or comparison.records for _, y in _points(r, axis)]
    low, high = min(losses), max(losses)
    if low > 0 and high / low > LOG_FROM:
        axes.set_yscale("log")
        axes.set_ylim(low / 1.15, high * 1.15)
    else:
        margin = 0.06 * (high - low) or 0.06 * abs(high) or 1.0
        axes.set_ylim(low - margin, high + margin)


def _draw_diverged(
    axes: Axes, points: Sequence[tuple[float, float]], style: dict[str, Any]
) -> tuple[float, float]:
    """Draws the run as far as it is in the picture, and returns where that is."""
    x, y = np.transpose(points)
    top = axes.get_ylim()[1]
    outside = np.flatnonzero(y > top)
    end = (x[-1], y[-1])
    if outside.size:
        first = outside[0]
        at = np.interp(top, y[first - 1 : first + 1], x[first - 1 : first + 1]) if first else x[0]
        end = (float(at), top)
    axes.plot(x, y, linewidth=0.9, **style)
    axes.plot(*end, "X", color=style["color"], markersize=8, clip_on=False, zorder=5)
    return end


def difference_figure(comparison: Comparison, results: Sequence[Result]) -> Figure:
    """Each entry's difference to the first: seeds, mean, and the 95 % interval by Student's t."""
    compared = [(i, r, r.difference) for i, r in enumerate(results) if r.difference]
    names = [f"{result.label}: {result.verdict}" for _, result, _ in compared]
    figure, axes = _figure(height=1.1 + 0.42 * len(compared))
    axes.axvline(0, color=INK, linewidth=1)
    for row, (index, _, difference) in enumerate(compared):
        colour = _style(index)["color"]
        if difference.student:
            ends = [difference.student.low, difference.student.high]
            axes.plot(ends, [row, row], color=colour, linewidth=2, solid_capstyle="butt")
        seeds = list(difference.by_seed.values())
        axes.plot(seeds, [row] * len(seeds), "o", markersize=4.5, color=colour, alpha=0.55)
        axes.plot([difference.mean], [row], "D", markersize=7, color=colour)
    axes.set_yticks(range(len(compared)))
    axes.set_yticklabels(names, parse_math=False)
    axes.set_ylim(len(compared) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    side = "right" if _higher_is_better(comparison.records) else "left"
    axes.set_xlabel(
        f"{score_name(comparison.records)} minus that of {results[0].label} ({side} is better)\n"
        "diamond: mean, dots: seeds, line: 95 % by Student's t",
        parse_math=False,
    )
    left = 0.35 + 0.083 * max(map(len, names))  # inches
    figure.set_figwidth(left + 5.2)
    figure.subplots_adjust(
        left=left / (left + 5.2),
        right=1 - 0.15 / (left + 5.2),
        top=0.97,
        bottom=0.72 / figure.get_figheight(),
    )
    return figure


def mean_curve(
    runs: Sequence[Sequence[tuple[float, float]]],
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """x, and mean, lowest and highest y over `runs` there, as far as the shortest run goes.

    Points between those measured are interpolated linearly: runs are seldom measured at the same
    second.
    """
    xs = [np.asarray([x for x, _ in run]) for run in runs]
    ys = [np.asarray([y for _, y in run]) for run in runs]
    first, last = max(x[0] for x in xs), min(x[-1] for x in xs)
    grid = np.unique(np.concatenate([*xs, [first, last]]))
    grid = grid[(grid >= first) & (grid <= last)]
    values = np.stack([np.interp(grid, x, y) for x, y in zip(xs, ys, strict=True)])
    return grid, values.mean(axis=0), values.min(axis=0), values.max(axis=0)


def save_figure(figure: Figure, path: Path) -> None:
    """Writes `path`.png and `path`.svg; the same figure gives the same bytes."""
    figure.savefig(path.with_name(path.name + ".png"), dpi=150, facecolor="white")
    path.with_name(path.name + ".svg").write_text(_svg(figure, path.name), encoding="utf-8")


def inline_svg(figure: Figure, name: str, description: str) -> str:
    """An <svg> element that takes the colour of the text around it and needs no other file."""
    text = _svg(figure, name, transparent=True)
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.S)
    text = text.replace(INK, "currentColor")
    return text.replace(
        "<svg ", f'<svg role="img" aria-label="{html.escape(description, quote=True)}" ', 1
    )


def _svg(figure: Figure, name: str, **options: Any) -> str:
    # Names inside are salted by the figure's: several of them stand in one HTML file.
    with matplotlib.rc_context({"svg.hashsalt": name, "svg.fonttype": "none"}):
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None}, **options)
    return buffer.getvalue()


def _figure(names: Collection[str] = (), height: float = 4.4) -> tuple[Figure, Axes]:
    """With room on the right for `names`, which are set in 9 points."""
    longest, num_names = max(map(len, names), default=0), len(names)
    width = 5.9 + 0.45 + 0.078 * longest  # inches
    figure = Figure(figsize=(width, max(height, 0.22 * num_names + 1)))
    figure.subplots_adjust(left=0.75 / width, right=5.9 / width, top=0.95, bottom=0.13)
    return figure, draw_axes(figure)


def draw_axes(figure: Figure, place: SubplotSpec | None = None) -> Axes:
    """Axes in the manner of all our pictures: no frame, a faint grid, ink that can be replaced."""
    axes = figure.add_subplot(place) if place else figure.add_subplot()
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("bottom", "left"):
        axes.spines[side].set_color(INK)
    axes.tick_params(colors=INK, which="both")
    axes.xaxis.label.set_color(INK)
    axes.yaxis.label.set_color(INK)
    axes.grid(color=INK, alpha=0.12, linewidth=0.6)
    axes.set_axisbelow(True)
    return axes


def _style(index: int) -> dict[str, Any]:
    return {
        "color": COLOURS[index % len(COLOURS)],
        "linestyle": DASHES[index // len(COLOURS) % len(DASHES)],
    }


def _label_ends(
    figure: Figure, axes: Axes, ends: Sequence[tuple[float, float, str, dict[str, Any]]]
) -> None:
    """Each line's name beside its end, moved apart where lines end close together."""
    axes.autoscale_view()
    to_axes = axes.transData + axes.transAxes.inverted()
    places = np.clip([to_axes.transform((x, y)) for x, y, _, _ in ends], 0, 1)
    height = figure.get_figheight() * axes.get_position().height  # inches
    heights = spread([y for _, y in places], gap=0.19 / height)
    for (x, y), place, (_, _, text, style) in zip(places, heights, ends, strict=True):
        axes.plot(
            [x, 1.0, 1.05],
            [y, y, place],
            transform=axes.transAxes,
            clip_on=False,
            linewidth=0.9,
            linestyle=":",
            color=style["color"],
        )
        axes.text(
            1.06,
            place,
            text,
            transform=axes.transAxes,
            va="center",
            fontsize=9,
            color=INK,
            parse_math=False,
        )


def spread(positions: Sequence[float], gap: float) -> list[float]:
    """`positions` in 0..1 moved until neighbours are `gap` apart, their order kept.

    >>> [round(p, 2) for p in spread([0.5, 0.52, 0.99, 1.0], gap=0.1)]
    [0.5, 0.6, 0.9, 1.0]
    """
    order = sorted(range(len(positions)), key=positions.__getitem__)
    placed = [float(positions[i]) for i in order]
    for i in range(1, len(placed)):
        placed[i] = max(placed[i], placed[i - 1] + gap)
    limit = 1.0
    for i in reversed(range(len(placed))):
        placed[i] = min(placed[i], limit)
        limit = placed[i] - gap
    back = [0.0] * len(placed)
    for i, position in zip(order, placed, strict=True):
        back[i] = position
    return back


# The page

_CSS = """
:root { color-scheme: light dark; --ink: #1f2328; --paper: #ffffff; --line: #d0d7de;
  --soft: #59636e; --better: #00654a; --worse: #a83f00; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --paper: #14181d; --line: #3d444d;
  --soft: #9aa4af; --better: #3fc79a; --worse: #ff9c66; } }
body { margin: 2rem auto; max-width: 80rem; padding: 0 1rem; color: var(--ink);
  background: var(--paper); font: 1rem/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; line-height: 1.25; margin-bottom: .25rem; }
h2 { font-size: 1.15rem; margin-top: 2.5rem; }
.soft, figcaption { color: var(--soft); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .8125rem; font-variant-numeric: tabular-nums; }
th, td { padding: .4rem .45rem; text-align: right; border-bottom: 1px solid var(--line);
  white-space: nowrap; }
thead th { white-space: normal; vertical-align: bottom; }
th:first-child, td:first-child, .left { text-align: left; }
.better { color: var(--better); font-weight: 600; }
.worse, .diverged { color: var(--worse); font-weight: 600; }
.pictures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 32rem), 1fr));
  gap: 1.5rem; }
figure { margin: 0; }
figure svg { width: 100%; height: auto; display: block; }
li { margin: .3rem 0; max-width: 48rem; overflow-wrap: anywhere; }
"""


def page(comparison: Comparison, results: Sequence[Result], figures: Mapping[str, Figure]) -> str:
    """The whole report as one HTML file: no script, no font, no picture from elsewhere."""
    rows = table(comparison, results)
    facts = [*comparison.facts, *notes(comparison, results)]
    pictures = "\n".join(
        f"<figure>{inline_svg(figure, name, FIGURES[name])}"
        f"<figcaption>{html.escape(FIGURES[name])}</figcaption></figure>"
        for name, figure in figures.items()
    )
    title = html.escape(comparison.title)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{_CSS}</style>
</head>
<body>
<h1>{title}</h1>
<p class="soft">{html.escape(comparison.budget)}</p>
<p>{html.escape(in_words(results))}</p>
<div class="scroll">
{_html_table(rows)}
</div>
<h2>How to read it</h2>
<ul>
{"".join(f"<li>{html.escape(fact)}</li>" for fact in facts)}
</ul>
<h2>Pictures</h2>
<div class="pictures">
{pictures}
</div>
<h2>Runs</h2>
<details><summary>Every run</summary><div class="scroll">
{_html_table(run_rows(comparison))}
</div></details>
<details><summary>Settings</summary><div class="scroll">
{_html_table([["setting", "value"], *map(list, comparison.settings.items())])}
</div></details>
</body>
</html>
"""


def in_words(results: Sequence[Result]) -> str:
    """The verdicts as a sentence or two."""
    first = results[0].label
    groups: dict[str, list[str]] = {}
    for result in results[1:]:
        groups.setdefault(result.verdict, []).append(result.label)
    sentences = []
    for verdict, labels in groups.items():
        names = _listed(labels)
        sentences.append(
            {
                BETTER: f"Better than {first}: {names}.",
                WORSE: f"Worse than {first}: {names}.",
                NO_DIFFERENCE: f"No difference to {first} shown: {names}.",
            }.get(verdict, f"{names}: {verdict}.")
        )
    if results[0].verdict != REFERENCE:
        sentences.insert(0, f"{first}: {results[0].verdict}.")
    return " ".join(sentences) or f"Only {first} was run."


def run_rows(comparison: Comparison) -> list[list[str]]:
    """One row for every run, the header first."""
    records = comparison.records
    header = ["strategy", "seed", "ended", score_name(records), _test_name(records), *AXES]
    return [[name.replace("_", " ") for name in header]] + [
        [
            record["label"],
            str(record["seed"]),
            record["ended"],
            _number(_score(record)),
            _number(_test_figure(record)),
            _whole(record["updates"]),
            _whole(record["gradient_evaluations"]),
            _seconds(record["seconds"]),
        ]
        for label in comparison.labels
        for record in comparison.of(label)
    ]


def _html_table(rows: Sequence[Sequence[str]]) -> str:
    def classes(index: int, text: str) -> str:
        if rows[0][index] != "verdict":
            return ""
        # The verdict's first word is a class of the style sheet: better, worse, diverged.
        return f' class="left {html.escape(text.split(" ")[0])}"'

    def cells(row: Sequence[str]) -> str:
        return "".join(
            f"<td{classes(i, text)}>{html.escape(text)}</td>" for i, text in enumerate(row)
        )

    head = "".join(
        f'<th scope="col"{classes(i, "")}>{html.escape(text)}</th>'
        for i, text in enumerate(rows[0])
    )
    body = "\n".join(f"<tr>{cells(row)}</tr>" for row in rows[1:])
    return f"<table><thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table>"


# Numbers and records


def _score(record: Record) -> float | None:
    """None for a run that diverged."""
    score = record.get("score")
    if record["ended"] == DIVERGED or score is None or not math.isfinite(score):
        return None
    return float(score)


def _test_name(records: Sequence[Record]) -> str:
    return score_name(records).replace("validation", "test")


def _test_figure(record: Record) -> float | None:
    """On the test split, what the score is on validation; None for a run that diverged."""
    if _score(record) is None:
        return None
    value = record.get("test", {}).get(record["score_name"].removeprefix("validation_"))
    return None if value is None or not math.isfinite(value) else float(value)


def _higher_is_better(records: Sequence[Record]) -> bool:
    return next((r["higher_is_better"] for r in records if "higher_is_better" in r), True)


def _points(record: Record, axis: str) -> list[tuple[float, float]]:
    """(axis, validation loss) where it was measured and finite."""
    return [
        (float(point[axis]), float(loss))
        for point in record["curve"]
        if (loss := point.get("validation_loss")) is not None and math.isfinite(loss)
    ]


def _is_undecided(result: Result) -> bool:
    interval = result.difference.student if result.difference else None
    excludes_0 = interval is not None and (interval.low > 0 or interval.high < 0)
    return result.verdict == NO_DIFFERENCE and excludes_0


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _number(value: float | None, *, sign: bool = False) -> str:
    if value is None:
        return NONE
    return f"{value:{'+' if sign else ''}.4f}".replace("-", "−")


def _whole(value: float | None) -> str:
    return NONE if value is None else f"{value:,.0f}"


def _seconds(value: float | None) -> str:
    return NONE if value is None else f"{value:,.1f}"


def _interval(interval: Interval | None, *, sign: bool = False) -> str:
    if interval is None:
        return NONE
    return f"{_number(interval.low, sign=sign)} to {_number(interval.high, sign=sign)}"


def _p_value(difference: Difference | None) -> str:
    if difference is None or difference.holm_p_value is None:
        return NONE
    return "<0.001" if difference.holm_p_value < 0.001 else f"{difference.holm_p_value:.3f}"


def _markdown(text: str) -> str:
    """`text` with what Markdown or HTML would take for a sign of its own made plain."""
    escaped = html.escape(text.replace("\n", " "), quote=False)
    return re.sub(r"([\\`*_\[\]|#$~])", r"\\\1", escaped)
