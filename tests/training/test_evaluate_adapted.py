import doctest
import json
import logging
import math

import numpy as np
import pytest

from model.config import (
    BagOfNgramsConfig,
    SentencePieceTokenizerConfig,
    TransformerDecoderConfig,
    TransformerEncoderConfig,
    WordTokenizerConfig,
)
from training import adaptation
from training.adaptation import (
    METHODS,
    adapted_figures,
    adapted_table,
    choose_rate,
    evaluate_adapted,
    parse_adaptation,
    static_figures,
    windows,
)
from training.classification import Classifier
from training.config import CLASSIFICATION, GENERATION, RunConfig
from training.datasets.config import DatasetConfig
from training.datasets.examples import LabelledTexts, TextData, classification_data
from training.language_model import LanguageModel
from training.pipeline import language_model_windows

DOCUMENTS = TextData(
    train=["the cat sat on the mat\n", "a dog ran home", "猫在睡觉"] * 4,
    validation=["the cat ran to the mat " * 4, "猫 sat"],
    test=["a cat sat on the dog " * 6, "on the mat", "猫在猫在猫在猫在"],
)
WORDS = {0: "good fine great", 1: "bad poor weak"}


def labelled(count, seed):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, count).astype(np.int32)
    texts = [
        " ".join(rng.choice(WORDS[label].split() + ["film", "plot"], 4))
        for label in labels.tolist()
    ]
    return LabelledTexts(texts, labels)


REVIEWS = classification_data(("good", "bad"), labelled(40, 0), labelled(12, 1), labelled(15, 2))


def run_config(model, tokenizer, dataset):
    return RunConfig(
        name="toy", dataset=DatasetConfig(name=dataset), tokenizer=tokenizer, model=model
    )


@pytest.fixture(scope="module")
def reader():
    config = run_config(
        TransformerDecoderConfig(
            num_layers=1, width=8, num_heads=2, inner_width=8, context_length=8
        ),
        SentencePieceTokenizerConfig(model_type="char", vocabulary_size=100),
        "starter_stories",
    )
    return LanguageModel.create(config, DOCUMENTS)


def classifier_of(model):
    config = run_config(model, WordTokenizerConfig(min_count=1), "starter_sentiment")
    return Classifier.create(config, REVIEWS)


@pytest.fixture(scope="module")
def bag():
    """At rest: every label has the same probability."""
    return classifier_of(BagOfNgramsConfig(naive_bayes_scale=0.0))


@pytest.fixture(scope="module")
def encoder():
    return classifier_of(
        TransformerEncoderConfig(num_layers=1, width=8, num_heads=2, inner_width=8)
    )


@pytest.fixture
def data_at_hand(monkeypatch):
    """The toy data as those of the run; lists how often they were read."""
    reads = []

    def load(config, task, target):
        reads.append(config.name)
        return DOCUMENTS if task == GENERATION else REVIEWS

    monkeypatch.setattr(adaptation, "load_dataset", load)
    return reads


def figures_only(figures):
    return {name: value for name, value in figures.items() if name != "seconds"}


def state(learner):
    return [variable.numpy() for variable in learner.model.variables]


def assert_same_state(learner, before):
    for value, variable in zip(before, learner.model.variables, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value)


def test_windows_are_those_of_the_static_evaluation_in_reading_order(reader):
    pairs = windows(reader, DOCUMENTS.test)
    documents = reader.encoded(DOCUMENTS.test)
    read = np.concatenate([targets[0] for _, targets in pairs])
    np.testing.assert_array_equal(read, np.concatenate([document[1:] for document in documents]))

    static = language_model_windows(documents, num_tokens=8, batch_size=3)
    assert sorted(targets[0].tolist() for _, targets in pairs) == sorted(
        row[row != 0].tolist() for batch in static for row in batch["targets"]
    )
    for tokens, targets in pairs:
        np.testing.assert_array_equal(tokens[0, 1:], targets[0, :-1])


def test_static_figures_of_a_reader_are_those_of_evaluate(reader, tmp_path):
    report = reader.evaluate(DOCUMENTS.test, tmp_path)
    figures = static_figures(reader, DOCUMENTS.test)
    for name in ("loss", "perplexity", "bits_per_character"):
        assert figures[name] == pytest.approx(report[name], rel=1e-5)
    assert figures["gradients"] == 0


def test_static_figures_of_a_classifier_are_those_of_evaluate(encoder, tmp_path):
    report = encoder.evaluate(REVIEWS.test, tmp_path)
    figures = static_figures(encoder, REVIEWS.test)
    assert figures["loss"] == pytest.approx(report["loss"], rel=1e-5)
    assert figures["accuracy"] == report["accuracy"]
    assert 0 < figures["entropy"] <= math.log(2) + 1e-6


@pytest.mark.parametrize(
    "numbers", [{"rate": 0.3, "decay": 0.01}, {"rate": 1e-3, "scaling": "rms"}], ids=str
)
def test_a_reader_gains_and_is_left_as_it_was(reader, numbers):
    before = state(reader)
    both = evaluate_adapted(reader, DOCUMENTS.test, "dynamic", numbers, DOCUMENTS)
    assert both["adapted"]["loss"] < both["static"]["loss"]
    assert both["adapted"]["gradients"] == len(windows(reader, DOCUMENTS.test))
    assert_same_state(reader, before)
    # Nothing of one reading is remembered in the next.
    again = adapted_figures(reader, DOCUMENTS.test, "dynamic", numbers, DOCUMENTS)
    assert figures_only(again) == figures_only(both["adapted"])


def test_neighbours_teach_a_classifier_that_knows_nothing(bag):
    before = state(bag)
    numbers = {"rate": 0.1, "num_neighbours": 4}
    both = evaluate_adapted(bag, REVIEWS.test, "neighbours", numbers, REVIEWS)
    assert both["static"]["loss"] == pytest.approx(math.log(2), abs=0.05)
    assert both["adapted"]["loss"] < both["static"]["loss"] - 0.1
    assert both["adapted"]["accuracy"] > 0.8
    assert both["adapted"]["gradients"] == 4 * len(REVIEWS.test)
    assert_same_state(bag, before)


def test_tent_lowers_the_entropy_batch_by_batch(encoder):
    before = state(encoder)
    numbers = {"rate": 0.01, "steps": 3, "batch_size": 4}
    both = evaluate_adapted(encoder, REVIEWS.test, "tent", numbers, REVIEWS)
    assert both["adapted"]["entropy"] < both["static"]["entropy"]
    assert both["adapted"]["gradients"] == 3 * math.ceil(len(REVIEWS.test) / 4)
    assert_same_state(encoder, before)


def test_test_time_training_learns_from_each_text_alone():
    learner = classifier_of(
        TransformerEncoderConfig(num_layers=1, width=8, num_heads=2, inner_width=8, token_head=True)
    )
    before = state(learner)
    both = evaluate_adapted(learner, REVIEWS.test, "ttt", {"rate": 0.1, "steps": 2}, REVIEWS)
    assert both["adapted"]["loss"] != both["static"]["loss"]
    assert both["adapted"]["gradients"] == 2 * len(REVIEWS.test)
    assert_same_state(learner, before)


def test_methods_refuse_networks_they_cannot_work_on(bag):
    for method in ("tent", "ttt"):
        with pytest.raises(ValueError, match="BagOfNgrams .* Use neighbours"):
            adapted_figures(bag, REVIEWS.test, method, {"rate": 0.1})


def test_the_rate_is_the_best_one_on_validation_and_said_to_be(reader, caplog):
    caplog.set_level(logging.INFO, "training")
    rates = [1e-6, 0.3, 1e30]  # too small to matter, good, and one that runs away
    assert choose_rate(reader, DOCUMENTS, "dynamic", {}, rates) == 0.3
    assert "dynamic: rate 0.3 chosen by validation loss" in caplog.text
    assert "1e+30" not in caplog.text
    assert "No rate is better" not in caplog.text


def test_a_choice_without_a_gain_is_said_to_be_one(reader, caplog):
    caplog.set_level(logging.INFO, "training")
    assert choose_rate(reader, DOCUMENTS, "dynamic", {}, [0.0]) == 0.0
    assert "No rate is better than static there." in caplog.text


def test_rates_that_all_run_away_are_an_error(reader):
    before = state(reader)
    with pytest.raises(FloatingPointError, match="none of the rates 1e.30"):
        choose_rate(reader, DOCUMENTS, "dynamic", {}, [1e30])
    with pytest.raises(FloatingPointError, match="Give a rate below 1e.30"):
        adapted_figures(reader, DOCUMENTS.test, "dynamic", {"rate": 1e30})
    assert_same_state(reader, before)


def test_the_choice_never_sees_the_texts_that_are_measured(
    reader, data_at_hand, monkeypatch, tmp_path
):
    seen = []
    chosen = adaptation.choose_rate

    def choose(learner, data, method, numbers):
        seen.append(data)
        return chosen(learner, data, method, numbers, rates=[0.1])

    monkeypatch.setattr(adaptation, "choose_rate", choose)
    other = ["zzz zzz zzz zzz"]
    rows = adapted_table(reader, other, tmp_path, ["dynamic"])
    assert seen == [DOCUMENTS] and rows[2][0] == "dynamic:rate=0.1"


def test_a_table_has_the_static_row_first_and_goes_to_a_file(reader, data_at_hand, tmp_path):
    specs = ["dynamic:rate=0", "dynamic:rate=0.3,decay=0.01"]
    header, static, at_rest, moved = adapted_table(reader, DOCUMENTS.test, tmp_path, specs)
    assert header == ["method", "loss", "perplexity", "bits_per_character", "seconds", "gradients"]
    assert [row[0] for row in (static, at_rest, moved)] == [
        "static",
        "dynamic:rate=0",
        "dynamic:rate=0.3,decay=0.01",
    ]
    assert at_rest[1:4] == static[1:4] and float(moved[1]) < float(static[1])
    assert data_at_hand == []  # with a rate, nothing but the text is needed
    results = json.loads((tmp_path / adaptation.RESULTS_FILE).read_text())["rows"]
    assert [row["method"] for row in results] == ["static", *specs]
    assert f"{results[2]['loss']:.4f}" == moved[1]


def test_a_table_of_a_classifier_chooses_rates_on_its_own_data(bag, data_at_hand, tmp_path):
    header, static, adapted = adapted_table(
        bag, REVIEWS.test, tmp_path, ["neighbours:num_neighbours=2"]
    )
    assert header == ["method", "loss", "accuracy", "entropy", "seconds", "gradients"]
    assert adapted[0].startswith("neighbours:num_neighbours=2,rate=")
    assert float(adapted[1]) < float(static[1])
    assert data_at_hand == ["starter_sentiment"]  # read once


def test_a_wrong_specification_is_refused_before_anything_runs(bag, tmp_path):
    with pytest.raises(ValueError, match="rate"):
        adapted_table(bag, REVIEWS.test, tmp_path, ["neighbours", "neighbours:rate=fast"])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "spec, task, expected",
    [
        ("dynamic", GENERATION, ("dynamic", {})),
        (
            "dynamic:rate=0.05, decay=1e-2,scaling=rms",
            GENERATION,
            ("dynamic", {"rate": 0.05, "decay": 0.01, "scaling": "rms"}),
        ),
        ("tent:steps=2,episodic=No", CLASSIFICATION, ("tent", {"steps": 2, "episodic": False})),
    ],
)
def test_specifications_are_read(spec, task, expected):
    assert parse_adaptation(spec, task) == expected


def test_the_example_of_a_specification_gives_what_it_shows():
    results = doctest.testmod(adaptation)
    assert results.attempted > 0 and results.failed == 0


@pytest.mark.parametrize(
    "spec, task, message",
    [
        ("dynamics", GENERATION, "takes one of dynamic, tent, ttt, neighbours. Received: 'dyn"),
        ("tent", GENERATION, "tent is for classifiers. For this run: dynamic."),
        ("dynamic", CLASSIFICATION, "for language models. For this run: tent, ttt, neighbours."),
        ("dynamic:speed=1", GENERATION, r"takes rate=\.\.\., decay.*Received: 'speed=1'"),
        ("dynamic:0.1", GENERATION, "Received: '0.1'"),
        ("dynamic:rate=fast", GENERATION, "dynamic:rate must be a number. Received: 'fast'"),
        ("tent:steps=1.5", CLASSIFICATION, "tent:steps must be a whole number. Received: '1.5'"),
        ("tent:episodic=maybe", CLASSIFICATION, "tent:episodic must be yes or no"),
    ],
)
def test_specifications_that_cannot_be_are_refused(spec, task, message):
    with pytest.raises(ValueError, match=message):
        parse_adaptation(spec, task)


def test_every_number_of_a_method_is_one_that_it_takes(reader, bag, encoder, monkeypatch):
    """Each of them alone, at a value that any method accepts."""
    monkeypatch.setattr(encoder.model, "token_logits", lambda t, training: t, raising=False)
    monkeypatch.setattr("model.adaptation.sees_ahead", lambda model: True)
    values = {float: 0.5, int: 1, bool: True}
    words = {"optimizer": "adam", "scaling": "none"}
    learners = {"dynamic": reader, "neighbours": bag, "tent": encoder, "ttt": encoder}
    for name, method in METHODS.items():
        for number, kind in method.numbers.items():
            numbers = {"rate": 0.1, number: words[number] if kind is str else values[kind]}
            adaptation.build_adaptation(learners[name], name, numbers, REVIEWS)
