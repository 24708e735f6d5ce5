"""Runs that train word vectors: what they learn, how they go on, what the commands do with them."""

import dataclasses
import json
import signal

import numpy as np
import pytest

from training.__main__ import main
from training.config import override
from training.datasets.catalogue import load_dataset
from training.datasets.config import DatasetConfig
from training.recipes import recipe
from training.run import begin_run, fit_run, load_run
from training.runs import read_json, run_folder
from training.vectors.corpus import WindowBatches
from training.vectors.files import read_vectors

NAMES = ["skip_gram", "cbow", "glove"]
TOPICS = ["cat dog mouse horse 猫 狗", "bread milk rice apple 饭 茶"]
SHORT = [
    "tokenizer.min_count=1",
    "model.embedding_size=8",
    "model.window=3",
    "batch_size=64",
    "optimizer.peak_learning_rate=0.05",
]
OWN = {  # a vocabulary of twelve words has none that is rare
    "skip_gram": ["model.subsampling=0"],
    "cbow": ["model.subsampling=0"],
    "glove": ["model.full_count=10"],
}
EPOCHS = {"skip_gram": 4, "cbow": 6, "glove": 40}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """Texts of one topic each: only what stands together tells words apart."""
    rng = np.random.default_rng(0)
    lines = [" ".join(rng.choice(TOPICS[i % 2].split(), 10)) for i in range(200)]
    path = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    rows = (json.dumps({"text": line}) for line in dict.fromkeys(lines))
    path.write_text("\n".join(rows), encoding="utf-8")
    return path


def config_of(name, path, *settings):
    dataset = DatasetConfig(name="file", path=str(path))
    changes = [*SHORT, *OWN[name], *settings]
    return override(dataclasses.replace(recipe(name), dataset=dataset), changes)


def whole(name, path):
    return config_of(name, path, f"epochs={EPOCHS[name]}", "updates_per_call=10")


@pytest.fixture(scope="module")
def fitted(path, tmp_path_factory):
    """The folder of every recipe's run, each fitted once."""
    runs = tmp_path_factory.mktemp("runs")
    return {name: fit_run(whole(name, path), runs)[0] for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_words_of_a_topic_are_closer_than_those_of_two(fitted, name):
    vectors, faults = read_vectors(fitted[name] / "vectors.txt")
    assert not faults.count
    matrix = vectors.matrix / np.linalg.norm(vectors.matrix, axis=1, keepdims=True)
    topic = np.array([word in TOPICS[0].split() for word in vectors.words])
    assert topic.sum() == 6 and len(topic) == 12
    cosine = matrix @ matrix.T
    together = topic[:, None] == topic[None, :]
    within = cosine[together & ~np.eye(12, dtype=bool)]
    assert within.mean() > cosine[~together].mean() + 0.5
    nearest = np.where(np.eye(12, dtype=bool), -2, cosine).argmax(axis=1)
    assert (topic[nearest] == topic).mean() > 0.9


@pytest.mark.parametrize("name", NAMES)
def test_a_run_tells_what_it_found(fitted, name):
    results = read_json(fitted[name] / "results.json")
    test, validation = results["test"], results["validation"]
    lines = (fitted[name] / "metrics.jsonl").read_text().splitlines()
    untrained = json.loads(lines[0])["validation_loss"]
    assert 0 < validation["loss"] < untrained and 0 < test["loss"] < untrained
    assert name == "glove" or validation["accuracy"] > 0.3
    assert test["num_words"] == 12 and test["analogies"]["num_questions"] > 1000
    assert all(len(near) == 5 for near in test["neighbours"].values())


@pytest.mark.parametrize("name", NAMES)
def test_a_run_loaded_has_the_vectors_of_its_file_to_the_bit(fitted, name):
    learner = load_run(fitted[name])
    vectors, _ = read_vectors(fitted[name] / "vectors.txt")
    assert vectors.words == learner.tokenizer.words
    assert vectors.matrix.tobytes() == learner.vectors().matrix.tobytes()
    assert learner.counts.sum() > 1000 and not learner.counts[:2].any()
    # The same windows and the same noise every time.
    validation = load_dataset(learner.config.dataset, learner.config.task).validation
    assert learner.figures_of(validation) == read_json(fitted[name] / "results.json")["validation"]


def test_a_stopped_run_ends_as_if_never_stopped(fitted, path, tmp_path, monkeypatch):
    original, config = WindowBatches.at, whole("skip_gram", path)

    def at(self, asked):
        if asked == 30:
            signal.raise_signal(signal.SIGINT)
        return original(self, asked)

    with monkeypatch.context() as patch:
        patch.setattr(WindowBatches, "at", at)
        folder, outcome = fit_run(config, tmp_path)
    assert outcome.reason == "interrupted" and not (folder / "vectors.txt").exists()
    folder, outcome = fit_run(config, tmp_path)
    assert outcome.reason == "finished"
    never_stopped = (fitted["skip_gram"] / "vectors.txt").read_bytes()
    assert (folder / "vectors.txt").read_bytes() == never_stopped


def test_a_classifier_starts_from_vectors_trained_here(fitted, path, tmp_path):
    rows = [{"text": text, "label": i % 2} for i, text in enumerate(TOPICS * 20)]
    data = tmp_path / "labelled.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    config = override(
        dataclasses.replace(
            recipe("sentiment_lstm"), dataset=DatasetConfig(name="file", path=str(data))
        ),
        [f"vectors={fitted['cbow']}/vectors.txt", "model.embedding_size=8", "model.units=4"]
        + ["tokenizer.min_count=1"],
    )
    learner = begin_run(config, tmp_path / "run", load_dataset(config.dataset, config.task))
    vectors, _ = read_vectors(fitted["cbow"] / "vectors.txt")
    matrix = learner.model.embedding.embeddings.numpy()
    for word in TOPICS[0].split():
        row = matrix[learner.tokenizer.words.index(word) + 2]
        np.testing.assert_array_equal(row, vectors.matrix[vectors.words.index(word)])


# Commands -----------------------------------------------------------------------------------------


def test_evaluate_answers_the_questions_of_a_file(fitted, tmp_path, capsys):
    questions = tmp_path / "questions.txt"
    questions.write_text(": animals\nCat dog 猫 狗\nking queen man woman\n", encoding="utf-8")
    assert main(["evaluate", str(fitted["skip_gram"]), "--data", str(questions)]) == 0
    out = capsys.readouterr().out
    assert "% right   1 of 2 answerable" in out
    assert ["animals", "2", "1"] in [line.split()[:3] for line in out.splitlines()]
    assert "nearest, by cosine" in out
    report = read_json(fitted["skip_gram"] / "evaluation.json")["report"]
    assert report["analogies"]["by_section"]["animals"]["num_covered"] == 1


def test_predict_tells_the_nearest_words(fitted, capsys):
    run = str(fitted["skip_gram"])
    assert main(["predict", run, "cat", "茶"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("\t")[0] for line in lines] == ["cat", "茶"]
    assert lines[0].split("\t")[1].split()[0] in TOPICS[0]
    assert main(["predict", run, "cat", "--format", "jsonl"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert len(json.loads(line)["neighbours"]) == 10
    assert main(["predict", run, "king"]) == 1
    assert "'king' is none of the 12 words" in capsys.readouterr().err
    assert main(["predict", run, "cat", "--format", "csv"]) == 1
    assert main(["predict", run, "cat", "--top-k", "3"]) == 1


def test_what_is_not_for_word_vectors_is_refused(fitted, tmp_path, capsys):
    run = str(fitted["skip_gram"])
    for arguments, told in [
        (["export", run], "skip_gram trains word vectors, which are not served"),
        (["all", "glove", "--runs", str(tmp_path)], "glove trains word vectors"),
        (["evaluate", run, "--adapt", "dynamic"], "--adapt is for texts"),
        (["fit", "cbow", "--set", "label_smoothing=0.1"], "label_smoothing does nothing here"),
        (["fit", "cbow", "--set", "max_tokens=9"], "max_tokens does nothing here"),
        (["fit", "cbow", "--set", "strategy=dp_sgd(adam)"], "one without dp_sgd for model=cbow"),
        (["fit", "cbow", "--set", "objective=language_model"], "objective must be one of superv"),
        (["fit", "cbow", "--set", "vectors=x"], "vectors must be none"),
    ]:
        assert main(arguments) == 1
        assert told in capsys.readouterr().err, arguments
    assert not list(tmp_path.iterdir())


OTHER_WAYS = [
    ("skip_gram", ["xla=true", "max_updates=3"]),
    ("cbow", ["batch_size=full", "epochs=3"]),
    ("glove", ["strategy=lookahead(accumulate(adam, 2), k=2)", "max_updates=4"]),
]


@pytest.mark.parametrize(("name", "settings"), OTHER_WAYS)
def test_other_ways_to_update_work_too(path, tmp_path, name, settings):
    config = config_of(name, path, *settings)
    folder, outcome = fit_run(config, tmp_path)
    assert outcome.reason == "finished" and folder == run_folder(tmp_path, config)
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    losses = [line["validation_loss"] for line in lines if "validation_loss" in line]
    assert losses[-1] < losses[0]
