"""A whole run on a file of a few lines: folder, results, stopping and going on, loading."""

import json
import os
import signal

import numpy as np
import pytest

from training import run as main_path
from training.config import RunConfig
from training.pipeline import ClassificationBatches
from training.run import fit_run, load_run
from training.runs import find_run, newest_export, read_config, read_json, run_folder, write_json


@pytest.fixture
def config(tmp_path):
    rng = np.random.default_rng(0)
    words = [["bad", "poor", "难看"], ["good", "great", "好看"]]
    lines = [
        # One in five is labelled wrong, so that the longer it trains the worse it gets.
        {"text": f"{rng.choice(words[i % 2])} film {i}", "label": (i + (rng.random() < 0.2)) % 2}
        for i in range(200)
    ]
    path = tmp_path / "reviews.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return RunConfig.from_dict(
        {
            "name": "reviews",
            "dataset": {"name": "file", "path": str(path)},
            "tokenizer": {"name": "ngram", "num_buckets": 1024},
            "model": {"name": "bag_of_ngrams"},
            "optimizer": {"peak_learning_rate": 0.1},
            "batch_size": 16,
            "epochs": 3,
        }
    )


def stop_before(monkeypatch, step):
    original = ClassificationBatches.at

    def at(self, asked):
        if asked == step:
            signal.raise_signal(signal.SIGINT)
        return original(self, asked)

    monkeypatch.setattr(ClassificationBatches, "at", at)


def test_a_stopped_run_goes_on_in_its_folder_and_ends_as_if_never_stopped(
    config, tmp_path, monkeypatch
):
    folder, outcome = fit_run(config, tmp_path / "whole")
    assert outcome.reason == "finished"
    whole = read_json(folder / "results.json")
    assert whole["ended"] == "finished"
    assert whole["best_step"] < whole["steps"]  # so best and last weights give other figures
    assert folder.name == f"reviews-{folder.name[-8:]}" == run_folder(tmp_path, config).name
    assert read_config(folder) == config

    with monkeypatch.context() as patch:
        stop_before(patch, 7)
        part, outcome = fit_run(config, tmp_path / "parts")
    assert outcome.reason == "interrupted" and outcome.step == 8
    assert not (part / "results.json").exists()
    again, outcome = fit_run(config, tmp_path / "parts")
    assert again == part and outcome.reason == "finished"
    parts = read_json(part / "results.json")
    for results in (whole, parts):
        results.pop("seconds")
    assert parts == whole
    lines = (part / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    steps = [json.loads(line)["step"] for line in lines]
    assert steps == sorted(steps)

    learner = load_run(folder)
    split = main_path.load_dataset(config.dataset, config.task).test
    assert learner.evaluate(split, tmp_path) == whole["test"]


# Folders ------------------------------------------------------------------------------------------


@pytest.fixture
def runs(tmp_path):
    """Four runs, the newest last; and a folder that is none."""
    names = ["film-aaaa0000", "film-bbbb1111", "film-noir-cccc2222", "news-dddd3333"]
    for age, name in enumerate(names):
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        write_json(folder / "config.json", {})
        os.utime(folder / "config.json", (1000 + age, 1000 + age))
    (tmp_path / "runs" / "film-eeee4444").mkdir()
    return tmp_path / "runs"


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ("film-aaaa0000", "film-aaaa0000"),
        ("film", "film-bbbb1111"),  # the newest of that name, and not film-noir
        ("film-noir", "film-noir-cccc2222"),
        ("film-n", "film-noir-cccc2222"),
        ("ne", "news-dddd3333"),
    ],
)
def test_a_run_is_found_by_what_it_is_called(runs, asked, found):
    assert find_run(runs, asked) == runs / found
    assert find_run(runs, str(runs / found)) == runs / found


@pytest.mark.parametrize("asked", ["film-eeee4444", "poems"])
def test_a_run_that_is_not_there_is_refused_with_those_that_are(runs, asked):
    with pytest.raises(FileNotFoundError, match=f"{asked}.*film-aaaa0000.*news-dddd3333"):
        find_run(runs, asked)
    with pytest.raises(FileNotFoundError, match="none yet"):
        find_run(runs / "nowhere", asked)


def test_the_newest_export_has_the_highest_number(tmp_path):
    assert newest_export(tmp_path, "film") is None
    for version in ("1", "9", "10", "11.part", "notes"):
        (tmp_path / "film" / version).mkdir(parents=True)
    assert newest_export(tmp_path, "film") == tmp_path / "film" / "10"


def test_a_file_that_is_not_json_is_named(tmp_path):
    (tmp_path / "config.json").write_text("{half")
    with pytest.raises(ValueError, match="config.json is not JSON"):
        read_config(tmp_path)


def test_a_json_file_is_replaced_as_a_whole(tmp_path):
    path = tmp_path / "results.json"
    write_json(path, {"label": "好"})
    with pytest.raises(TypeError):
        write_json(path, {"bad": object()})
    assert read_json(path) == {"label": "好"}
    assert "好" in path.read_text(encoding="utf-8")
