"""A whole run on a file of a few lines: folder, results, stopping and going on, loading."""

import json
import signal

import numpy as np
import pytest

from training import run as main_path
from training.config import RunConfig, override
from training.pipeline import ClassificationBatches
from training.run import fit_run, load_run
from training.runs import read_config, read_json, run_folder


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


def without_seconds(results):
    stages = [{k: v for k, v in stage.items() if k != "seconds"} for stage in results["stages"]]
    return results | {"stages": stages, "seconds": None}


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
    assert without_seconds(parts) == without_seconds(whole)
    lines = (part / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    steps = [json.loads(line)["step"] for line in lines]
    assert steps == sorted(steps)

    learner = load_run(folder)
    assert (folder / "checkpoints" / "reviews" / "best").is_dir()
    split = main_path.load_dataset(config.dataset, config.task).test
    assert learner.evaluate(split, tmp_path) == whole["test"]


def test_what_a_run_tells_of_itself(config, tmp_path):
    config = override(config, ["strategy=sam(accumulate(adamw, 2))", "max_updates=60"])
    folder, outcome = fit_run(config, tmp_path)
    results = read_json(folder / "results.json")
    (stage,) = results["stages"]
    assert stage == read_json(folder / "stages.json")[0]
    assert stage["stage"] == config.name and stage["ended"] == results["ended"] == outcome.reason
    assert stage["steps"] == results["steps"] == outcome.step
    assert stage["best_step"] == results["best_step"] == outcome.best_step
    assert stage["kept_step"] == results["kept_step"] == outcome.best_step  # keep=best
    # Sam runs each of two batches twice.
    assert stage["gradient_evaluations"] == results["gradient_evaluations"] == 4 * outcome.step
    assert results["seconds"] == stage["seconds"] > 0

    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert {line["stage"] for line in lines} == {config.name}
    training = [line for line in lines if "loss" in line]
    assert training and len(training) < len(lines)
    for line in training:
        assert line["gradient_evaluations"] == 4 * line["step"]
        assert 0 < line["update_to_weight"] < 1 and line["grad_norm"] > 0
    for line in lines:
        assert ("validation_loss" in line) != ("loss" in line)


def test_how_it_saves_and_groups_its_updates_changes_nothing_that_is_learned(config, tmp_path):
    outcomes = []
    for changes in ([], ["save_every=0"], ["keep_checkpoints=3"], ["updates_per_call=4"]):
        folder, _ = fit_run(override(config, changes), tmp_path / str(len(outcomes)))
        outcomes.append(without_seconds(read_json(folder / "results.json")))
        files = list((folder / "checkpoints" / config.name / "last").glob("ckpt-*.npz"))
        assert len(files) == (4 if changes == ["keep_checkpoints=3"] else 2)
    assert outcomes[1:] == outcomes[:1] * 3
