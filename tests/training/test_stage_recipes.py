"""What the recipes of several stages promise, and how pre-training starts."""

import re

import numpy as np
import pytest

from training.classification import Classifier
from training.config import LANGUAGE_MODEL, RunConfig, StageConfig
from training.datasets.examples import ClassificationData, LabelledTexts
from training.objectives import build_objective
from training.recipes import recipe

LAYERS = ["head", "stack/lstm_1/lstm_cell", "stack/lstm_0/lstm_cell", "stack/embedding"]
PATHS = [f"ulmfit_lstm/{layer}/kernel" for layer in LAYERS]  # from the top down
ULMFIT = ["sentiment_ulmfit", "sst2_ulmfit", "chnsenticorp_ulmfit"]


@pytest.mark.parametrize("name", ULMFIT)
def test_layers_are_unfrozen_one_by_one_from_the_top(name):
    judging = [stage for stage in recipe(name).stages if stage.objective != LANGUAGE_MODEL]
    moved = [[path for path in PATHS if re.search(stage.trainable, path)] for stage in judging]
    assert moved == [PATHS[:1], PATHS[:2], PATHS[:3], PATHS]
    assert [stage.epochs for stage in judging[:3]] == [1, 1, 1]


@pytest.mark.parametrize("name", ULMFIT)
def test_each_layer_learns_so_much_slower_than_the_one_above_it(name):
    for stage in recipe(name).stages:
        if stage.objective != LANGUAGE_MODEL:
            factors = [
                np.prod([factor for pattern, factor in stage.factors() if re.search(pattern, path)])
                for path in PATHS
            ]
            np.testing.assert_allclose(factors, 2.6 ** -np.arange(4.0), rtol=2e-3)


@pytest.mark.parametrize("name", ULMFIT)
def test_reading_sees_other_texts_than_judging_when_labels_are_few(name):
    """`dataset.max_examples` of the run cuts the labels alone."""
    reading = [stage for stage in recipe(name).stages if stage.objective == LANGUAGE_MODEL]
    assert reading and all(stage.dataset is not None for stage in reading)
    judging = [stage for stage in recipe(name).earlier if stage not in reading]
    assert all(stage.dataset is None for stage in judging)


def test_pre_training_starts_at_the_frequencies_of_the_tokens():
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(["a", "a", "a", "b", "c"], 20)) for _ in range(200)]
    split = LabelledTexts(texts, np.zeros(200, np.int32))
    data = ClassificationData(("no", "yes"), split, split, split)
    config = RunConfig.from_dict(
        {
            "name": "few_words",
            "dataset": {"name": "starter_sentiment"},
            "tokenizer": {"name": "word"},
            "model": {"name": "ulmfit_lstm", "embedding_size": 4, "units": 4},
        }
    )
    learner = Classifier.create(config, data)
    stage = StageConfig(name="read", objective=LANGUAGE_MODEL)
    objective = build_objective(stage, learner, data, seed=0)
    before = objective.validate()["loss"]
    objective.adapt()
    words = " ".join(texts).split()
    shares = np.array([words.count(word) for word in "abc"]) / len(words)
    entropy = -np.sum(shares * np.log(shares))
    assert before > entropy + 0.3
    assert objective.validate()["loss"] == pytest.approx(entropy, abs=0.01)
