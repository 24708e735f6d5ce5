"""Each target along the whole road: a user's file, training, evaluation, an export and its answers.

The training is brief; what is asked is that every station agrees with the others.
"""

import json
import shutil

import numpy as np
import pytest
import tensorflow as tf

from training.__main__ import main
from training.adaptation import adapted_table
from training.budget import time_stages
from training.classification import Classifier
from training.datasets.examples import LabelledTexts
from training.run import begin_run, load_run
from training.runs import CALIBRATION_FILE, RESULTS_FILE, SCALE_FILE, read_config, read_json

WORDS = "alpha beta gamma delta epsilon zeta".split()
BRIEF = ["tokenizer.num_buckets=1024", "tokenizer.max_character_ngram=0", "tokenizer.max_ngram=1"]
# With parts of every kind around the optimizer, which see the targets' batches in stacks.
SETTINGS = {
    "labels": ["strategy=lookahead(accumulate(adamw, 2), k=5)", "updates_per_call=4"],
    "grade": [
        "dataset.label_order=low|middle|high",
        "class_weights=balanced",
        "strategy=r_drop(adamw)",
    ],
    # Dropout makes a sum of weights shrink towards the mean.
    "number": ["optimizer.peak_learning_rate=0.03", "model.ngram_dropout=0", "strategy=sam(adamw)"],
}
TEXTS = ["alpha beta", "zeta epsilon 今天", ""]


def cell(target, words):
    places = [WORDS.index(word) for word in words]
    if target == "labels":
        return "|".join(word for word in words if word in WORDS[:3]) or "|"
    if target == "number":
        return 100 + 10 * sum(places)
    return ("low", "middle", "high")[min(sum(places) // 4, 2)]


@pytest.fixture(scope="module", params=SETTINGS)
def road(request, tmp_path_factory):
    """(target, folder, run) of a fitted and exported run."""
    target, folder = request.param, tmp_path_factory.mktemp(request.param)
    rng = np.random.default_rng(0)
    rows = ["text,label"]
    for number in range(1500):
        words = rng.choice(WORDS, 2, replace=False).tolist()
        rows.append(f"{' '.join(words)} n{number},{cell(target, words)}")
    (folder / "data.csv").write_text("\n".join(rows))
    settings = [f"target={target}", "epochs=4", *BRIEF, *SETTINGS[target]]
    arguments = ["fit", "sentiment", "--name", "judge", "--data", str(folder / "data.csv")]
    arguments += [word for setting in settings for word in ("--set", setting)]
    assert main([*places(folder), *arguments]) == 0
    assert main([*places(folder), "export", "judge"]) == 0
    (run,) = (folder / "runs").iterdir()
    return target, folder, run


def places(folder):
    return ["--runs", str(folder / "runs"), "--exports", str(folder / "exports")]


def test_it_learns(road):
    target, _, run = road
    test = read_json(run / RESULTS_FILE)["test"]
    figure = {"labels": "micro_f1", "grade": "quadratic_kappa", "number": "r2"}[target]
    assert test[figure] > 0.8
    # What is logged while training is called by its name, and numbers have no accuracy.
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    trained = next(line for line in lines if "update_seconds" in line)
    found = {"accuracy", "exact_match"} & trained.keys()
    assert found == {"labels": {"exact_match"}, "grade": {"accuracy"}, "number": set()}[target]


def test_a_loaded_run_answers_as_the_export_does(road):
    """By a session, as the server reads it; label and scores of the golden texts among them."""
    target, folder, run = road
    learner, version = load_run(run), folder / "exports" / "judge" / "1"
    manifest = read_json(version / "manifest.json")
    kinds = {"labels": "multi_label", "grade": "classifier", "number": "regressor"}
    assert manifest["kind"] == kinds[target]
    answer = learner.answer(TEXTS)
    with tf.compat.v1.Session(graph=tf.Graph()) as session:
        graph = tf.compat.v1.saved_model.loader.load(session, ["serve"], str(version))
        signature = graph.signature_def["serving_default"]
        outputs = {alias: tensor.name for alias, tensor in signature.outputs.items()}
        served = session.run(outputs, {signature.inputs["text"].name: TEXTS})
    assert served.keys() == answer.keys()
    for alias, values in served.items():
        assert values.dtype == answer[alias].dtype and len(values) == len(TEXTS)
        if values.dtype == np.float32:
            np.testing.assert_allclose(values, answer[alias], rtol=1e-5, atol=1e-6)
        else:
            np.testing.assert_array_equal(values, answer[alias])
    golden = manifest["golden"][0]["outputs"]
    assert golden.keys() == served.keys() and all(len(v) == 5 for v in golden.values())


def test_the_client_knows_what_it_is(road):
    from serving.client import _kind_of

    target, folder, _ = road
    manifest = read_json(folder / "exports" / "judge" / "1" / "manifest.json")
    signature = manifest["signatures"]["serving_default"]
    found = {"metadata": {"signature_def": {"signature_def": {"serving_default": signature}}}}
    assert _kind_of(found) == manifest["kind"]


def test_predicting_writes_what_is_meant(road, capsys):
    target, folder, run = road
    for form in ("lines", "csv", "jsonl"):
        assert main([*places(folder), "predict", "judge", "alpha beta", "--format", form]) == 0
        written = capsys.readouterr().out
        if form == "lines":
            line = written.splitlines()[0]
    answer, wanted = json.loads(written), load_run(run).answer(["alpha beta"])
    if target == "number":
        assert answer["value"] == wanted["value"][0] and 90 < answer["value"] < 130
        assert line == f"{answer['value']:.6g}\talpha beta"
    elif target == "labels":
        assert answer["labels"] == ["alpha", "beta"] and line == "alpha, beta\talpha beta"
        assert list(answer["scores"]) == ["alpha", "beta", "gamma"]
        assert min(answer["scores"][name] for name in answer["labels"]) >= 0.5
    else:
        assert answer["label"] == "low" and line.startswith("low\t0.")
        assert sum(answer["scores"].values()) == pytest.approx(1, abs=1e-6)


def test_evaluating_a_file_says_the_figures(road, capsys):
    target, folder, run = road
    data = ["--data", str(folder / "data.csv")]
    assert main([*places(folder), "evaluate", "judge", *data]) == 0
    said = capsys.readouterr().out
    words = {
        "labels": ["micro F1", "macro F1", "exact match", "gamma"],
        "grade": ["accuracy", "mean absolute error", "quadratic kappa", "ECE", "at temperature"],
        "number": ["RMSE", "R2", "mean absolute error", "Pearson", "Spearman"],
    }[target]
    assert all(word in said for word in words)
    assert (run / "reliability.png").is_file() == (target == "grade")


def test_a_run_begun_again_from_its_folder_is_the_same(road, tmp_path):
    """Before any checkpoint: what the data decided besides the vocabulary is in the folder too."""
    target, folder, run = road
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in run.iterdir():
        if path.is_file() and path.name not in (CALIBRATION_FILE, RESULTS_FILE):
            shutil.copy(path, copy)
    learner = begin_run(read_config(copy), copy, None)
    fresh = Classifier(
        learner.config,
        learner.tokenizer,
        learner.label_names,
        read_json(run / SCALE_FILE) if target == "number" else None,
    )
    assert type(learner.target) is type(fresh.target)
    for alias, values in learner.answer(TEXTS).items():
        np.testing.assert_array_equal(values, fresh.answer(TEXTS)[alias])
    if target == "number":
        mean, deviation = read_json(run / SCALE_FILE)
        np.testing.assert_allclose(learner.answer([""])["value"], mean)
        assert 145 < mean < 155 and 20 < deviation < 35


def test_scores_are_those_of_the_temperature_and_figures_are_not(road):
    target, _, run = road
    if target != "grade":
        assert not (run / CALIBRATION_FILE).exists()
        return
    learner, results = load_run(run), read_json(run / RESULTS_FILE)
    temperature = read_json(run / CALIBRATION_FILE)["temperature"]
    assert learner.temperature == temperature != 1.0
    logits = learner.logits(TEXTS)
    expected = tf.nn.softmax(logits / temperature)
    np.testing.assert_allclose(learner.probabilities(TEXTS), expected, atol=1e-6)
    calibration = results["test"]["calibration"]
    assert calibration["temperature"] == temperature
    assert calibration["before"]["loss"] == pytest.approx(results["test"]["loss"], rel=1e-5)
    assert calibration["after"]["loss"] < calibration["before"]["loss"]


def test_a_budget_is_timed_on_the_labels_of_the_target(road, tmp_path):
    _, folder, run = road
    _, timings = time_stages(read_config(run), tmp_path)
    assert len(timings) == 1


def test_adapting_at_prediction_time_is_for_one_label_a_text(road):
    """Neighbours teach in the order of the grades, which by alphabet is another one."""
    target, folder, run = road
    if target == "grade":
        split = LabelledTexts(["alpha beta", "zeta epsilon"], np.array([0, 2], np.int32))
        adapted_table(load_run(run), split, run, ["neighbours:rate=0.05,num_neighbours=4"])
        static, adapted = read_json(run / "adaptation.json")["rows"]
        assert adapted["loss"] < static["loss"]
        return
    with pytest.raises(ValueError, match=f"target=class or grade.*target={target}"):
        adapted_table(load_run(run), None, run, ["tent"])
