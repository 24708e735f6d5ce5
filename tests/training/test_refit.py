"""Trained once more on all labels: which texts, how long, and what is kept of the first run."""

from dataclasses import replace

import numpy as np
import pytest

from model.config import BagOfNgramsConfig, NgramTokenizerConfig
from training import auto
from training.config import OptimizerConfig, RunConfig, override
from training.datasets import DatasetConfig, DatasetError, load_dataset
from training.leakage import find_leakage
from training.recipes import recipe
from training.refit import refitted
from training.run import fit_run, load_run
from training.runs import RESULTS_FILE, read_json

CONFIG = RunConfig(
    name="small",
    dataset=DatasetConfig(name="starter_sentiment"),
    tokenizer=NgramTokenizerConfig(max_ngram=1, num_buckets=4096),
    model=BagOfNgramsConfig(naive_bayes_scale=0.0),  # starts from nothing
    optimizer=OptimizerConfig(peak_learning_rate=0.01),
    epochs=2,
)


FEW = DatasetConfig(name="starter_sentiment", max_examples=200)


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    runs = tmp_path_factory.mktemp("runs")
    folder, _ = fit_run(CONFIG, runs)
    again = refitted(CONFIG, folder)
    return folder, again, fit_run(again, runs)[0]


def test_it_takes_as_many_passes_as_were_best_and_keeps_the_last(both):
    folder, again, second = both
    data = load_dataset(CONFIG.dataset, "classification")
    first = read_json(folder / RESULTS_FILE)
    assert first["kept_step"] > 0
    more = (len(data.train) + len(data.validation)) / len(data.train)
    results = read_json(second / RESULTS_FILE)
    assert results["steps"] == results["kept_step"] == round(first["kept_step"] * more)
    assert again.name == "small_refit" and again.keep == "last"


def test_it_serves_the_temperature_of_the_first(both):
    folder, again, second = both
    assert load_run(second).temperature == load_run(folder).temperature == again.calibrate
    assert again.calibrate not in (True, 1.0)


def test_validation_texts_are_in_training_and_nothing_else_changes():
    plain = load_dataset(CONFIG.dataset, "classification")
    joined = load_dataset(replace(CONFIG.dataset, join_validation=True), "classification")
    assert joined.train.texts == [*plain.train.texts, *plain.validation.texts]
    np.testing.assert_array_equal(
        joined.train.labels, [*plain.train.labels, *plain.validation.labels]
    )
    assert joined.validation.texts == plain.validation.texts
    assert joined.test.texts == plain.test.texts
    assert "say nothing of new texts" in joined.notes[-1]
    found = find_leakage(joined, is_joined=True).lines()
    assert not any(line.startswith("validation") for line in found)


def test_it_is_refused_where_there_are_no_labels_or_several_stages(tmp_path):
    with pytest.raises(ValueError, match="--refit .*one stage"):
        refitted(recipe("stories"), tmp_path)
    with pytest.raises(ValueError, match="--refit .*one stage"):
        refitted(recipe("sentiment_masked"), tmp_path)
    with pytest.raises(DatasetError, match="labelled texts"):
        load_dataset(DatasetConfig(name="starter_stories", join_validation=True), "generation")


def test_a_temperature_can_be_given():
    assert override(CONFIG, ["calibrate=1.5"]).calibrate == 1.5
    assert override(CONFIG, ["calibrate=true"]).calibrate is True
    with pytest.raises(ValueError, match="calibrate"):
        override(CONFIG, ["calibrate=-1"])


def test_auto_trains_what_it_keeps_once_more(tmp_path, monkeypatch):
    small = replace(CONFIG, dataset=FEW, epochs=1)
    monkeypatch.setattr(auto, "_candidates", lambda dataset, data: {"small": small})
    folder, _ = auto.fit_auto(FEW, 2.0, tmp_path, refit=True)
    [(member, weight)] = read_json(folder / "ensemble.json").items()
    assert weight == 1.0
    assert member.startswith("members/small_refit-")
    assert auto.fit_auto(FEW, 2.0, tmp_path, refit=True)[0] == folder  # trains nothing twice
    assert auto._digest({"small": small}, 2.0, False) not in folder.name
