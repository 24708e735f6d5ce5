"""`compare`, `search` and `find-rate` as a user types them, on a file of a few lines."""

import dataclasses
import json

import numpy as np
import pytest

from training.__main__ import main
from training.config import RunConfig, StageConfig
from training.options import INTERRUPTED
from training.recipes import RECIPES


@pytest.fixture
def reviews(tmp_path, monkeypatch):
    """A recipe of 60 short reviews; the working folder is a new one."""
    rng = np.random.default_rng(0)
    words = [["bad", "poor", "难看"], ["good", "great", "好看"]]
    lines = [{"text": f"{rng.choice(words[i % 2])} film {i}", "label": i % 2} for i in range(60)]
    path = tmp_path / "reviews.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    config = RunConfig.from_dict(
        {
            "name": "reviews",
            "dataset": {"name": "file", "path": str(path)},
            "tokenizer": {"name": "ngram", "num_buckets": 256},
            "model": {"name": "bag_of_ngrams"},
            "optimizer": {"peak_learning_rate": 0.05},
            "batch_size": 8,
            "epochs": 2,
        }
    )
    monkeypatch.setitem(RECIPES, "reviews", lambda: config)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_compare_reports_and_reuses(reviews, capsys):
    words = ["compare", "reviews", "--strategies", "adamw,lookahead:2", "--seeds", "2"]
    words += ["--budget", "6updates", "--set", "batch_size=4", "--output", "compared"]
    assert main(words) == 0
    first = capsys.readouterr().out
    assert "lookahead:2" in first
    assert "compared/report.html" in first
    records = sorted((reviews / "compared" / "records").iterdir())
    assert len(records) == 4
    assert {json.loads(r.read_text())["updates"] for r in records} == {6}
    times = [record.stat().st_mtime_ns for record in records]
    assert main(words) == 0
    assert capsys.readouterr().out == first
    assert [record.stat().st_mtime_ns for record in records] == times


def test_compare_on_a_surface_draws_the_paths(reviews, capsys):
    words = ["compare", "--surface", "bowl", "--strategies", "sgd,lookahead:5", "--updates", "5"]
    assert main(words) == 0
    assert "distance to the minimum" in capsys.readouterr().out
    paths = json.loads((reviews / "comparisons" / "bowl" / "paths.json").read_text())["paths"]
    np.testing.assert_allclose(paths["sgd"][5], np.array([2.0, 1.2]) * 0.9**5, rtol=1e-6)
    np.testing.assert_allclose(paths["lookahead:5"][5], np.array([2.0, 1.2]) * (1 + 0.9**5) / 2)


def test_a_strategy_on_a_surface_may_have_a_rate_of_its_own(reviews, capsys):
    words = ["compare", "--surface", "ravine", "--strategies", "sgd,sgd@0.01,lookahead:5+sgd@0.01"]
    assert main([*words, "--updates", "5"]) == 0
    rows = capsys.readouterr().out.splitlines()[2:5]
    assert [row.split()[0] for row in rows] == words[-1].split(",")
    paths = json.loads((reviews / "comparisons" / "ravine" / "paths.json").read_text())["paths"]
    start, curvature = np.array([2.0, 0.3]), np.array([1.0, 50.0])
    for label, rate in (("sgd", 0.03), ("sgd@0.01", 0.01)):
        expected = start * (1 - rate * curvature) ** 5
        np.testing.assert_allclose(paths[label][5], expected, rtol=1e-5)
    slow = (start + paths["sgd@0.01"][5]) / 2
    np.testing.assert_allclose(paths["lookahead:5+sgd@0.01"][5], slow, rtol=1e-5)


def test_search_tells_a_command_that_can_be_typed(reviews, capsys):
    words = ["search", "reviews", "--trials", "2", "--output", "searched"]
    words += ["--space", "optimizer.peak_learning_rate=0.01..0.1:log,strategy=adamw|sam(adamw)"]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "python -m training fit reviews --set optimizer.peak_learning_rate=0.0" in printed
    trials = json.loads((reviews / "searched" / "search.json").read_text())["trials"]
    assert [t["ended"] for t in trials] == ["finished", "finished"]
    updates = [e["updates"] for e in trials[0]["evaluations"]]
    assert updates == sorted(set(updates))  # each evaluation at its own update
    assert 0 not in updates


def test_find_rate_draws_and_advises(reviews, capsys):
    words = ["find-rate", "reviews", "--updates", "40", "--low", "1e-4", "--high", "10"]
    words += ["--set", "model.naive_bayes_scale=0", "--set", "batch_size=16"]
    assert main(words) == 0
    assert "optimizer.peak_learning_rate" in capsys.readouterr().out
    assert (reviews / "rates" / "reviews" / "learning_rates.svg").is_file()


def test_find_rate_says_what_it_did_not_train_first(reviews, capsys, monkeypatch):
    words = ["find-rate", "reviews", "--updates", "20", "--low", "1e-4", "--high", "10"]
    assert main(words) == 0
    assert "initial weights" not in capsys.readouterr().out
    config = RECIPES["reviews"]()
    staged = dataclasses.replace(config, earlier=(StageConfig(name="warm"), StageConfig(name="up")))
    monkeypatch.setitem(RECIPES, "reviews", lambda: staged)
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "This was stage reviews from the initial weights: warm, up, which" in printed


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("compare reviews --strategies adamw,nothing:3", "--strategies: unknown part 'nothing'"),
        ("compare reviews --strategies adamw --budget 60", "--budget takes seconds"),
        ("compare --strategies adamw", "a recipe or --surface NAME"),
        ("compare --surface bowl --strategies sgd@fast", "NAME@RATE with a rate above 0"),
        ("compare reviews --strategies sgd --set epochs=3", "epochs does nothing here: --budget"),
        ("compare reviews --strategies sgd --set seed=1", "seed does nothing here: --seeds"),
        ("find-rate reviews --set max_updates=9", "max_updates does nothing here: --updates"),
        ("find-rate reviews --set optimizer.schedule=linear", "the rate goes from --low"),
        ("compare --surface hill --strategies sgd", "--surface must be one of bowl"),
        ("search reviews --space batch_size", "--space takes name=low..high"),
        ("find-rate reviews --low 2", "0 < low < high"),
    ],
)
def test_mistakes_are_told_by_the_option(reviews, capsys, words, message):
    assert main(words.split()) == 1
    assert message in capsys.readouterr().err


def test_an_interrupted_comparison_says_so(reviews, capsys, monkeypatch):
    from training import trials

    monkeypatch.setattr(trials, "train", lambda *_: {"ended": "interrupted"})
    words = ["compare", "reviews", "--strategies", "adamw", "--budget", "2updates"]
    assert main(words) == INTERRUPTED
    assert "run the same command again" in capsys.readouterr().out
