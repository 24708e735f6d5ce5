"""The report of a comparison: figures that are right, files that stand alone, nothing unescaped."""

import html.parser
import json
import re
import xml.etree.ElementTree as ElementTree

import matplotlib.image
import numpy as np
import pytest
from comparison_records import record, records

from training.report import (
    Comparison,
    costs,
    figures_of,
    in_words,
    markdown_table,
    mean_curve,
    notes,
    results_of,
    spread,
    table,
    text_table,
    write_report,
)

FLOORS = {"adamw": 0.40, "lookahead:5": 0.40, "sam": 0.36, "sgd": None}
PICTURES = ["differences", "loss_by_updates", "loss_by_gradient_evaluations", "loss_by_seconds"]


def comparison(made=None, **changes):
    made = records(FLOORS) if made is None else made
    labels = list(dict.fromkeys(record["label"] for record in made))
    settings = {"title": "sentiment", "labels": labels, "records": made, "num_expected": len(made)}
    return Comparison(**(settings | changes))


class Page(html.parser.HTMLParser):
    """Elements, attributes and text of a page; raises where a tag is closed that is not open."""

    VOID = {"meta", "br"}

    def __init__(self, text):
        super().__init__()
        self.open, self.attributes, self.texts, self.tags = [], [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def test_the_table_holds_scores_verdicts_and_all_three_costs():
    made = comparison()
    rows = table(made, results_of(made))
    by_label = {row[0]: dict(zip(rows[0], row, strict=True)) for row in rows[1:]}
    assert list(by_label) == list(FLOORS)
    sam = by_label["sam"]
    assert sam["verdict"] == "better"
    assert sam["difference to adamw"].startswith("+0.0")
    assert (sam["updates"], sam["gradient evaluations"], sam["seconds"]) == (
        "1,000",
        "2,000",
        "60.0",
    )
    assert by_label["lookahead:5"]["verdict"] == "no difference"
    assert by_label["adamw"]["verdict"] == "reference"
    assert by_label["sgd"]["verdict"] == "diverged (3 of 3)"
    assert by_label["sgd"]["seconds"] == "–"  # a run that broke off has no cost to compare
    assert by_label["sgd"]["test accuracy"] == "–"
    expected = np.mean([record["test"]["accuracy"] for record in made.of("sam")])
    assert sam["test accuracy"] == f"{expected:.4f}" != sam["validation accuracy"]


def test_a_lower_loss_is_better():
    made = comparison(records({"adamw": 0.40, "sam": 0.36}, higher_is_better=False))
    results = results_of(made)
    assert results[1].verdict == "better"
    assert results[1].difference.mean < 0
    assert "lower is better" in notes(made, results)[0]
    expected = np.mean([record["test"]["loss"] for record in made.of("sam")])
    header, _, sam = table(made, results)
    assert sam[header.index("test loss")] == f"{expected:.4f}"


def test_notes_say_of_which_weights_the_scores_are():
    made = [record("adamw", 0), record("sam", 0, updates=500), record("sgd", 0, ended="diverged")]
    shown = comparison(made)
    (said,) = [note for note in notes(shown, results_of(shown)) if note.startswith("Scores are")]
    assert "the best of 6 to 11 evaluations on that very split" in said
    assert "column test accuracy" in said
    shown = comparison(made[:1])
    assert "the best of 11 evaluations" in notes(shown, results_of(shown))[1]
    shown = comparison([made[0] | {"curve": []}])
    assert "the best of its evaluations" in notes(shown, results_of(shown))[1]
    shown = comparison(made, keep="last")
    said = notes(shown, results_of(shown))[1]
    assert "of each run's last weights" in said and "best" not in said


def test_costs_are_means_over_the_runs_that_ended_well():
    made = [record("sgd", 0), record("sgd", 1, updates=500, ended="diverged")]
    assert costs(made)["updates"] == 1000


def test_tables_as_text_and_as_markdown():
    rows = [["strategy", "score"], ["a|b", "0.5"], ["longer name", "12.25"]]
    assert text_table(rows).splitlines() == [
        "strategy     score",
        "------------------",
        "a|b            0.5",
        "longer name  12.25",
    ]
    assert markdown_table(rows).splitlines()[:3] == [
        "| strategy | score |",
        "|---|---:|",
        "| a\\|b | 0.5 |",
    ]


def test_verdicts_in_words():
    made = comparison()
    assert in_words(results_of(made)) == (
        "No difference to adamw shown: lookahead:5. Better than adamw: sam. sgd: diverged (3 of 3)."
    )


def test_notes_tell_what_is_missing_and_what_diverged():
    made = comparison(num_expected=20)
    text = " ".join(notes(made, results_of(made)))
    assert "8 of 20 runs are not done" in text
    assert "sgd, seed 1, diverged: The loss is not finite any more." in text
    assert "2 comparisons (Holm)" in text


def test_notes_point_at_intervals_that_holm_overrules():
    scores = {"a": [0.5, 0.6, 0.7], "b": [0.51, 0.616, 0.722], "c": [0.4, 0.9, 0.1], "d": [0.5] * 3}
    made = [
        record(label, seed) | {"score": score}
        for label, values in scores.items()
        for seed, score in enumerate(values)
    ]
    results = results_of(comparison(made))
    assert results[1].difference.p_value < 0.05 < results[1].difference.holm_p_value
    assert any(
        note.startswith("b: no difference although") for note in notes(comparison(made), results)
    )


def test_a_mean_curve_interpolates_and_ends_with_the_shortest_run():
    x, mean, low, high = mean_curve([[(0, 1.0), (2, 3.0)], [(0, 3.0), (1, 5.0), (3, 5.0)]])
    np.testing.assert_allclose(x, [0, 1, 2])
    np.testing.assert_allclose(mean, [2, 3.5, 4])
    np.testing.assert_allclose(low, [1, 2, 3])
    np.testing.assert_allclose(high, [3, 5, 5])


def test_labels_are_spread_in_order():
    placed = spread([0.5, 0.2, 0.51, 0.52], gap=0.1)
    assert placed == pytest.approx([0.5, 0.2, 0.6, 0.7])
    crowded = spread([0.99] * 4, gap=0.2)
    assert sorted(crowded) == pytest.approx([0.4, 0.6, 0.8, 1.0])


def test_loss_figures_show_each_mean_and_where_a_run_leaves():
    made = comparison()
    axes = figures_of(made, results_of(made))["loss_by_updates"].axes[0]
    names = [text.get_text() for text in axes.texts]
    assert names == ["adamw", "lookahead:5", "sam", "sgd (3 of 3 diverged)"]
    means = [line for line in axes.lines if line.get_linewidth() == 1.8]
    expected = np.mean([r["curve"][-1]["validation_loss"] for r in made.of("sam")])
    assert means[2].get_ydata()[-1] == pytest.approx(expected)
    crosses = [line for line in axes.lines if line.get_marker() == "X"]
    assert len(crosses) == 3
    top = axes.get_ylim()[1]
    assert top < 0.8  # the diverged losses do not squeeze the others
    for cross in crosses:
        assert cross.get_ydata()[0] == pytest.approx(top)
        assert 300 < cross.get_xdata()[0] < 500


def test_losses_of_several_magnitudes_get_a_logarithmic_axis():
    made = comparison(records({"adamw": 0.02, "sam": 0.03}))
    figures = figures_of(made, results_of(made))
    assert figures["loss_by_updates"].axes[0].get_yscale() == "log"


def test_the_difference_figure_draws_the_interval_of_the_verdict():
    made = comparison()
    results = results_of(made)
    axes = figures_of(made, results)["differences"].axes[0]
    assert [t.get_text() for t in axes.get_yticklabels()] == [
        "lookahead:5: no difference",
        "sam: better",
    ]
    intervals = [line.get_xdata() for line in axes.lines if line.get_solid_capstyle() == "butt"]
    student = results[2].difference.student
    assert any(list(ends) == [student.low, student.high] for ends in intervals)


def test_all_files_are_written_and_readable(tmp_path):
    write_report(comparison(budget="1,000 updates each"), tmp_path)
    for name in PICTURES:
        picture = matplotlib.image.imread(tmp_path / f"{name}.png")
        assert picture.std() > 0.01
        svg = ElementTree.parse(tmp_path / f"{name}.svg").getroot()
        assert svg.tag.endswith("svg")
    results = json.loads((tmp_path / "results.json").read_text())
    assert [r["verdict"] for r in results["results"]][2] == "better"
    assert results["results"][2]["costs"]["gradient_evaluations"] == 2000
    assert results["results"][2]["test"] == pytest.approx(0.54, abs=0.01)
    assert results["results"][3]["test"] is None
    assert results["is_complete"]
    markdown = (tmp_path / "report.md").read_text()
    for link in re.findall(r"\]\((.*?)\)", markdown):
        assert (tmp_path / link).is_file()


def test_the_same_records_give_the_same_files(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_report(comparison(), tmp_path / name)
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes(), file.name


def test_the_page_stands_alone(tmp_path):
    write_report(comparison(), tmp_path)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert page.tags.count("svg") == len(PICTURES)
    assert not {"script", "link", "img", "iframe", "object"} & set(page.tags)
    for name, value in page.attributes:
        if name in ("src", "href", "xlink:href"):
            assert value.startswith("#"), (name, value)
        assert not name.startswith("on")
    assert "@import" not in text
    assert all(target.startswith("#") for target in re.findall(r"url\(['\"]?(.)", text))
    assert "prefers-color-scheme: dark" in text
    ids = [value for name, value in page.attributes if name == "id" and not value.endswith("_1")]
    clips = [value for value in ids if re.fullmatch(r"[mp][0-9a-f]{10}", value)]
    assert clips
    assert len(clips) == len(set(clips))  # of several pictures in one file, none means another's


def test_whatever_a_user_types_is_shown_and_not_run(tmp_path):
    evil = "<script>alert('$x^$')</script>&amp;"
    made = [
        record(label, seed) | {"message": evil, "ended": "diverged" if seed else "finished"}
        for label in ("adamw", evil)
        for seed in range(2)
    ]
    settings = {evil: evil, "recipe": "a<b"}
    write_report(
        comparison(made, title=evil, budget=evil, facts=[evil], settings=settings), tmp_path
    )
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "script" not in page.tags
    assert page.texts.count(evil) >= 6
    assert "<script" not in (tmp_path / "report.md").read_text(encoding="utf-8")


def test_one_run_without_a_curve_is_a_report_too(tmp_path):
    made = comparison([record("adamw", 0) | {"curve": []}], num_expected=2)
    results = write_report(made, tmp_path)
    assert in_words(results) == "Only adamw was run."
    assert not list(tmp_path.glob("*.png"))
    assert not json.loads((tmp_path / "results.json").read_text())["is_complete"]


def test_runs_that_broke_off_at_once_know_no_score(tmp_path):
    bare = {
        "label": "sgd",
        "seed": 0,
        "ended": "diverged",
        "updates": 0,
        "gradient_evaluations": 0,
        "seconds": 0.0,
        "score": None,
        "curve": [],
        "message": "Not finite at update 1.",
    }
    made = comparison([bare, record("adamw", 0, higher_is_better=False)])
    results = write_report(made, tmp_path)
    assert results[0].verdict == "diverged (1 of 1)"
    assert results[1].verdict == "no verdict: the first entry diverged"
    assert "lower is better" in (tmp_path / "report.md").read_text()
    write_report(comparison([bare]), tmp_path)
    assert "Not finite at update 1." in (tmp_path / "report.md").read_text()


def test_when_every_run_diverged_the_losses_are_drawn_all_the_same(tmp_path):
    write_report(comparison(records({"sgd": None, "adamw": None})), tmp_path)
    assert (tmp_path / "loss_by_updates.png").is_file()
    assert "diverged (3 of 3)" in (tmp_path / "report.md").read_text()
