import dataclasses
import json

import numpy as np
import pytest

from model.config import (
    TOKENIZER_CONFIGS,
    BagOfNgramsConfig,
    NgramTokenizerConfig,
    RecurrentConfig,
    WordTokenizerConfig,
)
from model.tokenizers import NgramTokenizer, WordTokenizer
from training.classification import Classifier
from training.config import RunConfig
from training.datasets.config import DatasetConfig
from training.datasets.examples import LabelledTexts, classification_data
from training.objectives import Classification, build_objective
from training.recipes import recipe

CONFIG = RunConfig(
    name="reviews",
    dataset=DatasetConfig(name="starter_sentiment"),
    tokenizer=WordTokenizerConfig(min_count=1),
    model=BagOfNgramsConfig(),
    batch_size=2,
)


def labelled(*pairs):
    return LabelledTexts([text for text, _ in pairs], np.array([i for _, i in pairs], np.int32))


@pytest.fixture(scope="module")
def classifier():
    """Gives the label that a text names three quarters; one word, so one n-gram, a text."""
    classifier = Classifier(CONFIG, WordTokenizer(["a", "b", "c"], 8), ("差", "accuracy", "c"))
    table = np.zeros((5, 3), np.float32)
    # Ids of words start at 2. Softmax of (ln 6, 0, 0) is (6, 1, 1) / 8; the network's scale is 4.
    table[2:] = np.eye(3) * np.log(6) / CONFIG.model.scale
    classifier.model.weight.embeddings.assign(table)
    return classifier


def test_figures_of_a_case_worked_out_by_hand(classifier, tmp_path):
    """The labels bear awkward names: one that reports use themselves, one that is Chinese."""
    split = labelled(("a", 0), ("b", 0), ("b", 1), ("b", 1), ("a", 2))
    results = classifier.evaluate(split, tmp_path)
    assert results["confusion_matrix"] == [[1, 1, 0], [0, 2, 0], [1, 0, 0]]  # rows: true
    assert results["accuracy"] == pytest.approx(3 / 5)
    assert results["loss"] == pytest.approx(-(3 * np.log(6 / 8) + 2 * np.log(1 / 8)) / 5)
    figures = {
        name: [row["precision"], row["recall"], row["f1"], row["num_examples"]]
        for name, row in results["by_label"].items()
    }
    assert figures["差"] == pytest.approx([1 / 2, 1 / 2, 1 / 2, 2])
    assert figures["accuracy"] == pytest.approx([2 / 3, 1, 4 / 5, 2])
    assert figures["c"] == pytest.approx([0, 0, 0, 1])
    assert results["macro_f1"] == pytest.approx((1 / 2 + 4 / 5 + 0) / 3)
    assert results["num_examples"] == 5
    assert json.loads(json.dumps(results)) == results  # goes into a file as it is
    assert (tmp_path / "confusion_matrix.png").read_bytes().startswith(b"\x89PNG")


def test_a_label_nobody_has_or_predicts_is_in_the_table_all_the_same(classifier, tmp_path):
    results = classifier.evaluate(labelled(("a", 0), ("b", 1)), tmp_path)
    assert results["accuracy"] == 1.0
    assert results["macro_f1"] == 1.0  # of the labels that occur
    assert [row[2] for row in results["confusion_matrix"]] == [0, 0, 0]


def test_probabilities_stand_in_the_order_of_the_texts(classifier):
    """They are computed in batches of like length."""
    texts = ["b a c b a c b", "a", "", "c c", "b"] * 60 + ["unknown"]
    found = classifier.probabilities(texts)
    assert found.shape == (301, 3)
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(found[1], [6 / 8, 1 / 8, 1 / 8], atol=1e-5)
    np.testing.assert_allclose(found[[2, -1]], np.full((2, 3), 1 / 3), atol=1e-5)
    np.testing.assert_allclose(found[3::5], np.broadcast_to(found[3], (60, 3)), atol=1e-6)
    assert found[4].argmax() == 1 and found[3].argmax() == 2
    logits = classifier.logits(texts)
    np.testing.assert_allclose(logits[1], [np.log(6), 0, 0], atol=1e-5)
    np.testing.assert_allclose(
        found, np.exp(logits) / np.exp(logits).sum(1, keepdims=True), atol=1e-6
    )
    for i in (0, 3, 300):
        np.testing.assert_allclose(classifier.probabilities(texts[i : i + 1])[0], found[i], 1e-4)


DATA = classification_data(
    ("bad", "good"),
    labelled(("bad film", 0), ("good film", 1), ("awful", 0), ("great 好看", 1), ("bad 难看", 0)),
    labelled(("bad", 0), ("great", 1), ("难看", 1)),
    labelled(("awful film", 0)),
)


def ngram_config(**changes):
    values = CONFIG.to_dict() | {"tokenizer": {"name": "ngram", "num_buckets": 512}} | changes
    return RunConfig.from_dict(values)


def test_preparing_looks_at_the_training_split_alone(tmp_path):
    learner = Classifier.create(ngram_config(), DATA)
    assert isinstance(learner.config.tokenizer, NgramTokenizerConfig)
    objective = build_objective(learner.config, learner, DATA, seed=0)
    assert isinstance(objective, Classification) and objective.unit == "examples"
    objective.adapt()
    assert objective.batches(batch_size=2, seed=0).num_batches == 2  # five texts
    # Naive Bayes has begun already: all training texts right, and two of three held out.
    assert learner.probabilities(DATA.train.texts).argmax(1).tolist() == [0, 1, 0, 1, 0]
    metrics = objective.validate()
    assert metrics["accuracy"] == pytest.approx(2 / 3)
    evaluated = learner.evaluate(DATA.validation, tmp_path)
    assert metrics == {name: evaluated[name] for name in metrics}
    assert learner.figures_of(DATA.validation) == metrics
    assert objective.score({"accuracy": 0.5, "loss": 9.0}) == 0.5


@pytest.mark.parametrize("name", ["byte_bpe", "sentencepiece"])
def test_pieces_of_words_are_classified_up_to_their_longest(name):
    size = 300 if name == "sentencepiece" else 270
    learner = Classifier.create(
        dataclasses.replace(
            CONFIG,
            tokenizer=TOKENIZER_CONFIGS[name](vocabulary_size=size, max_tokens=6),
            model=RecurrentConfig(embedding_size=4, units=4),
        ),
        DATA,
    )
    whole, begun, other, bad = learner.probabilities(
        ["zz zz zz zz", "zz zz z", "yy zz zz", b"z\xff"]
    )
    assert whole.tolist() == begun.tolist() != other.tolist()
    assert np.isfinite(bad).all()


def test_the_vocabulary_knows_no_word_of_the_other_splits():
    learner = Classifier.create(CONFIG, DATA)
    known = set("bad film good awful great 好 看 难".split())
    assert set(learner.tokenizer.words) == known
    # ... but those of texts that an earlier stage learns from.
    learner = Classifier.create(CONFIG, DATA, ["a story", "good"])
    assert set(learner.tokenizer.words) == known | {"a", "story"}


def test_a_saved_vocabulary_makes_the_same_classifier(tmp_path):
    values = CONFIG.to_dict() | {"seed": 3}
    values["model"] = {"name": "recurrent", "embedding_size": 4, "units": 3}
    config = RunConfig.from_dict(values)
    assert isinstance(config.model, RecurrentConfig)
    first = Classifier.create(config, DATA)
    first.tokenizer.save(tmp_path)
    again = Classifier.load(config, tmp_path, DATA.label_names)
    texts = ["good film", "", "难看"]
    np.testing.assert_array_equal(first.probabilities(texts), again.probabilities(texts))


def test_a_picture_of_labels_that_look_like_mathematics_or_are_many(tmp_path):
    from matplotlib import image

    from training.plots import draw_confusion_matrix

    draw_confusion_matrix(np.eye(3, dtype=int), ["$$", "$\\frac$", "^_{"], tmp_path / "few.png")
    many = np.eye(120, dtype=int)
    draw_confusion_matrix(many, [str(i) for i in range(120)], tmp_path / "many.png")
    assert max(image.imread(tmp_path / "many.png").shape) < 3000


def test_weights_that_no_memory_holds_are_refused():
    config = recipe("sentiment")
    labels = [str(i) for i in range(1000)]
    with pytest.raises(ValueError, match="1000 labels times tokenizer.num_buckets=1048576.*64000"):
        Classifier(config, NgramTokenizer(config.tokenizer), labels)
