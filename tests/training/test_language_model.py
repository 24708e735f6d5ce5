import json
import math

import numpy as np
import pytest
import tensorflow as tf

from model.config import SentencePieceTokenizerConfig, TransformerDecoderConfig
from model.generation import generate
from model.tokenizers import BEGIN, END
from training.config import RunConfig
from training.datasets.config import DatasetConfig
from training.datasets.examples import TextData
from training.language_model import LanguageModel
from training.objectives import Generation, build_objective

CONTEXT = 8
DATA = TextData(
    train=["the cat sat on the mat\n", "a dog ran home", "猫在睡觉"] * 4,
    validation=["the cat ran", "猫 sat"],
    test=["a cat sat on the dog", "on the mat", "猫在猫在猫在猫在"],
)
CONFIG = RunConfig(
    name="letters",
    dataset=DatasetConfig(name="starter_stories"),
    tokenizer=SentencePieceTokenizerConfig(model_type="char", vocabulary_size=100),
    model=TransformerDecoderConfig(
        num_layers=1, width=8, num_heads=2, inner_width=8, context_length=CONTEXT
    ),
    batch_size=2,
)


@pytest.fixture(scope="module")
def learner():
    return LanguageModel.create(CONFIG, DATA)


@pytest.fixture(scope="module")
def objective(learner):
    return build_objective(CONFIG, learner, DATA, seed=0)


@pytest.fixture
def uniform(learner):
    """All logits zero: every token has the probability 1 / V."""
    table = learner.model.embedding.embeddings
    before = table.numpy()
    table.assign(np.zeros_like(before))
    yield learner
    table.assign(before)


def expected_targets(documents):
    """A token a character and an END for each document; its BEGIN is no target."""
    return sum(len(text) + 1 for text in documents)


def test_a_uniform_model_has_the_perplexity_of_its_vocabulary(uniform, tmp_path):
    """Windows are cut and padded on the way, and none of it shows."""
    V = uniform.tokenizer.vocabulary_size
    results = uniform.evaluate(DATA.test, tmp_path)
    assert results["perplexity"] == pytest.approx(V, rel=1e-5)
    assert results["loss"] == pytest.approx(math.log(V), rel=1e-6)
    bits = expected_targets(DATA.test) * math.log2(V) / sum(map(len, DATA.test))
    assert results["bits_per_character"] == pytest.approx(bits, rel=1e-6)
    assert results["num_documents"] == 3
    assert json.loads(json.dumps(results)) == results


def test_the_loss_is_that_of_every_window_read_on_its_own(learner, objective):
    """The plain sum over windows of the context's length, one at a time and without padding."""
    documents = DATA.validation
    rows = learner.tokenizer(tf.constant(documents)).to_list()
    documents_of_tokens = [[BEGIN, *row, END] for row in rows]
    windows = [
        tokens[start : start + CONTEXT + 1]
        for tokens in documents_of_tokens
        for start in range(0, len(tokens) - 1, CONTEXT)
    ]
    loss = correct = 0.0
    for window in windows:
        logits = learner.model(tf.constant([window[:-1]]))[0].numpy().astype("float64")
        log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        loss -= sum(log_p[i, token] for i, token in enumerate(window[1:]))
        correct += sum(log_p[i].argmax() == token for i, token in enumerate(window[1:]))
    figures = objective.validate()
    assert figures == learner.figures_of(documents)
    count = sum(len(tokens) - 1 for tokens in documents_of_tokens)
    assert figures["loss"] == pytest.approx(loss / count, rel=1e-5)
    assert figures["accuracy"] == pytest.approx(correct / count)
    characters = sum(map(len, documents))
    assert figures["bits_per_character"] == pytest.approx(loss / math.log(2) / characters, rel=1e-5)


def test_training_rows_are_cut_from_the_training_texts(learner, objective):
    rows = learner.tokenizer(tf.constant(DATA.train)).to_list()
    texts = [" ".join(map(str, [BEGIN, *row, END])) for row in rows]
    batches = objective.batches(batch_size=2, seed=0)
    assert batches.num_batches > 5
    for step in range(batches.num_batches):
        batch = batches.at(step)
        assert batch["tokens"].shape[0] == 2 and batch["tokens"].shape[1] <= CONTEXT
        for targets in batch["targets"]:
            piece = " ".join(str(target) for target in targets if target)
            assert any(piece in text for text in texts)


def test_less_loss_is_a_better_score(objective):
    assert isinstance(objective, Generation) and objective.unit == "tokens"
    assert objective.score({"loss": 2.0, "accuracy": 0.1}) > objective.score(
        {"loss": 3.0, "accuracy": 0.9}
    )


def test_an_empty_split_has_no_figures_and_no_fault(learner, tmp_path):
    results = learner.evaluate([], tmp_path)
    assert (results["loss"], results["num_documents"], results["samples"]) == (0.0, 0, [])


def test_samples_begin_as_the_documents_do_and_repeat(learner, tmp_path):
    samples = learner.evaluate(DATA.test, tmp_path)["samples"]
    assert [sample["prompt"] for sample in samples] == [
        "a cat sat on",
        "on the mat",
        "猫在猫在猫在",
    ]
    assert samples == learner.evaluate(DATA.test, tmp_path)["samples"]


def test_a_text_is_continued_as_the_settings_say(learner):
    def continued(**settings):
        return learner.continue_text("cat", **({"temperature": 3.0, "top_p": 1.0} | settings))

    assert continued(max_tokens=0) == ""
    assert len(continued(max_tokens=2)) <= 2
    assert continued(seed=1) == continued(seed=1)
    assert len({continued(seed=seed) for seed in range(8)}) > 4
    greedy = continued(temperature=0.0, seed=1)
    assert greedy == continued(temperature=0.0, seed=2) == continued(top_k=1, seed=3)


def test_continuing_is_generating(learner):
    settings = {"max_tokens": 4, "temperature": 2.0, "top_k": 9, "top_p": 0.9, "seed": 5}
    inputs = [
        tf.constant([value], tf.float32 if isinstance(value, float) else None)
        for value in ("on ", *settings.values())
    ]
    expected = generate(learner.model, learner.tokenizer, *inputs)["text"].numpy()[0].decode()
    assert learner.continue_text("on ", **settings) == expected


def test_a_saved_vocabulary_makes_the_same_model(learner, tmp_path):
    learner.tokenizer.save(tmp_path)
    again = LanguageModel.load(CONFIG, tmp_path)
    for a, b in zip(learner.model.variables, again.model.variables, strict=True):
        np.testing.assert_array_equal(a, b)
    assert again.continue_text("the ") == learner.continue_text("the ")
