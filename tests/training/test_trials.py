"""Records of real runs on a file of a few lines, and a whole comparison of them."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from training.compare import Cost, compare_recipe
from training.config import RunConfig
from training.loop import Outcome
from training.recipes import RECIPES
from training.report import write_report
from training.trials import calibrate, curve, range_test, train


@pytest.fixture
def config(tmp_path):
    rng = np.random.default_rng(0)
    words = [["bad", "poor", "难看"], ["good", "great", "好看"]]
    lines = [{"text": f"{rng.choice(words[i % 2])} film {i}", "label": i % 2} for i in range(80)]
    path = tmp_path / "reviews.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return RunConfig.from_dict(
        {
            "name": "reviews",
            "dataset": {"name": "file", "path": str(path)},
            "tokenizer": {"name": "ngram", "num_buckets": 256},
            "model": {"name": "bag_of_ngrams"},
            "optimizer": {"peak_learning_rate": 0.1},
            "batch_size": 8,
            "patience": 1,
        }
    )


def test_a_record_tells_what_the_run_told(config, tmp_path):
    record = train(config, seed=1, updates=40, folder=tmp_path / "runs")
    assert (record["ended"], record["updates"], record["gradient_evaluations"]) == (
        "finished",
        40,
        40,
    )
    updates = [point["updates"] for point in record["curve"]]
    assert updates == list(range(0, 41, 2))  # patience does not end it
    assert record["score"] == max(p["validation_accuracy"] for p in record["curve"])
    seconds = [point["seconds"] for point in record["curve"]]
    assert seconds[0] == 0
    assert seconds == sorted(seconds)
    assert record["seconds"] == seconds[-1] > 0
    assert record["test"]["accuracy"] > 0.5


def test_equal_seeds_start_from_equal_weights_whatever_the_strategy(config, tmp_path):
    def initial(strategy, seed):
        changed = dataclasses.replace(config, strategy=strategy)
        folder = tmp_path / f"{strategy}{seed}"
        return train(changed, seed=seed, updates=2, folder=folder)["initial_weights"]

    first = initial("adamw", 0)
    assert len(first) == 16
    assert first == initial("sam(sgd)", 0)
    assert first != initial("adamw", 1)


def test_an_update_is_timed_after_compilation(config):
    cost = calibrate(dataclasses.replace(config, strategy="sam(accumulate(adamw, 2))"))
    assert cost.gradient_evaluations == 4
    assert cost.seconds > 0


def test_a_curve_counts_the_time_of_updates_alone(tmp_path):
    lines = [
        {"step": 7, "stage": "earlier", "update_seconds": 99.0, "loss": 9.0},
        {"step": 10, "stage": "last", "seconds": 5.0, "validation_loss": 0.7},
        {"step": 12, "stage": "last", "update_seconds": 3.0, "loss": 0.6},
        {"step": 12, "stage": "last", "seconds": 18.0, "validation_loss": 0.5},
        {"step": 13, "stage": "last", "update_seconds": 1.0, "loss": 0.4},
        {"step": 14, "stage": "last", "update_seconds": 1.0, "loss": 0.3},
        {"step": 14, "stage": "last", "seconds": 30.0, "validation_loss": 0.2},
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "metrics.jsonl").write_text(text)
    points = curve(tmp_path, "last", {"steps": 4, "gradient_evaluations": 8})
    assert points == [
        {"updates": 0, "gradient_evaluations": 0, "seconds": 0.0, "validation_loss": 0.7},
        {
            "updates": 2,
            "gradient_evaluations": 4,
            "seconds": 3.0,
            "loss": 0.6,
            "validation_loss": 0.5,
        },
        {
            "updates": 4,
            "gradient_evaluations": 8,
            "seconds": 5.0,
            "loss": 0.3,
            "validation_loss": 0.2,
        },
    ]


def test_a_range_test_of_a_student_asks_its_teacher(config, tmp_path, monkeypatch):
    tutor = dataclasses.replace(config, name="tutor", max_updates=2)
    monkeypatch.setitem(RECIPES, "tutor", lambda: tutor)
    student = dataclasses.replace(config, objective="distillation", teacher="tutor")
    found = range_test(student, tmp_path, low=1e-4, high=1e-3, num_updates=20)
    assert len(found.losses) == 20
    assert list(tmp_path.glob("tutor-*/results.json"))


def test_an_interrupted_run_is_no_record(config, tmp_path, monkeypatch):
    from training import trials

    stopped = Outcome("interrupted", 3, 0, 1.0)
    monkeypatch.setattr(trials, "fit_run", lambda *a, **k: (tmp_path, stopped))
    assert train(config, seed=0, updates=9, folder=tmp_path) == {"ended": "interrupted"}
    with pytest.raises(KeyboardInterrupt):
        calibrate(config)


def test_a_comparison_of_real_runs(config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = {
        "data": "f00d",
        "strategies": "adamw,sam",
        "budget": "16evaluations",
        "num_seeds": 2,
        "output": Path("compared"),
        "train": train,
    }
    cost = {"adamw": Cost(0.0, 1), "sam": Cost(0.0, 2)}
    comparison, folder, is_interrupted = compare_recipe(
        "reviews", config, calibrate=lambda c: cost[c.strategy.partition("(")[0]], **settings
    )
    assert not is_interrupted
    assert [r["updates"] for r in comparison.records] == [16, 8, 8, 16]
    assert {r["gradient_evaluations"] for r in comparison.records} == {16}
    assert comparison.facts[0].startswith("All strategies began from the same weights")
    write_report(comparison, folder)
    assert (folder / "loss_by_seconds.png").is_file()
    assert not list(folder.glob("runs/*/*/checkpoints"))
