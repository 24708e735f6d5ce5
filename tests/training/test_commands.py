"""`python -m training` as users type it: what it prints, writes and answers, and how it ends."""

import csv
import dataclasses
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from model.config import MODEL_CONFIGS, TOKENIZER_CONFIGS
from training import commands
from training.__main__ import main
from training.config import OBJECTIVES, StageConfig, override
from training.datasets import DATASETS
from training.recipes import RECIPES, recipe
from training.runs import read_json
from training.schedules import SCHEDULES
from training.strategies.catalogue import OPTIMIZERS, STRATEGIES

ROOT = Path(__file__).resolve().parents[2]

GOOD = ["I loved it", "a joy from start to end", "warm, clever and well made", "works like a charm"]
BAD = ["I hated it", "a bore from start to end", "cold, stupid and badly made", "broke in an hour"]
REVIEWS = [
    (f"{text}, number {i}", label)
    for label, texts in (("good", GOOD), ("bad", BAD))
    for text in texts
    for i in range(10)
]
QUICK = ["--set", "epochs=2", "--set", "tokenizer.num_buckets=4096"]
TALES = [
    f"Once there was a {who} in house number {i}. It was {what}."
    for who, what in (("fox", "red"), ("cat", "old"), ("owl", "wise"))
    for i in range(15)
]
QUICK_STORIES = [
    *("--set", "epochs=1", "--set", "batch_size=4"),
    *("--set", "tokenizer.model_type=char", "--set", "tokenizer.vocabulary_size=50"),
    *("--set", "model.num_layers=1", "--set", "model.width=16", "--set", "model.num_heads=2"),
    *("--set", "model.inner_width=16", "--set", "model.context_length=48"),
]


class Training:
    """Calls the command line in this process, with runs and exports in one folder."""

    def __init__(self, folder: Path):
        self.folder, self.runs, self.exports = folder, folder / "runs", folder / "exports"

    def __call__(self, *words: object) -> int:
        return main(["--runs", str(self.runs), "--exports", str(self.exports), *map(str, words)])

    def run(self, name: str) -> Path:
        (folder,) = self.runs.glob(f"{name}-*")
        return folder


@pytest.fixture
def training(tmp_path) -> Training:
    return Training(tmp_path)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Training:
    """With the run "reviews" of a user's CSV. Tests add to the folder but change nothing in it."""
    training = Training(tmp_path_factory.mktemp("training"))
    path = write_csv(training.folder / "reviews.csv", REVIEWS)
    assert training("fit", "sentiment", "--data", path, "--name", "reviews", *QUICK) == 0
    return training


@pytest.fixture(scope="module")
def storyteller(tmp_path_factory) -> Training:
    """With the run "tales" of a user's plain text."""
    training = Training(tmp_path_factory.mktemp("storyteller"))
    path = training.folder / "tales.txt"
    path.write_text("\n\n".join(TALES))
    assert training("fit", "stories", "--data", path, "--name", "tales", *QUICK_STORIES) == 0
    return training


def write_csv(path: Path, rows, *, delimiter=",", encoding="utf-8") -> Path:
    with path.open("w", newline="", encoding=encoding) as file:
        csv.writer(file, delimiter=delimiter).writerows([("text", "label"), *rows])
    return path


def write_jsonl(path: Path, rows) -> Path:
    lines = [json.dumps({"text": text, "label": label}) for text, label in rows]
    path.write_text("\n".join(lines) + "\n")
    return path


def write_parquet(path: Path, rows) -> Path:
    texts, labels = zip(*rows, strict=True)
    pyarrow.parquet.write_table(pyarrow.table({"text": texts, "label": labels}), path)
    return path


def figures(run: Path) -> dict:
    """The results of a run without its seconds."""
    results = read_json(run / "results.json")
    stages = [stage | {"seconds": 0} for stage in results["stages"]]
    return results | {"seconds": 0, "stages": stages}


def error_line(capsys) -> str:
    """The single line of an error; fails when there is more, or a traceback."""
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    lines = captured.err.splitlines()
    (error,) = [line for line in lines if line.startswith("Error: ")]
    assert lines[-1] == error
    return error


def in_a_process(code: str, *arguments: object) -> str:
    """Runs `code` with `arguments` in a fresh interpreter; returns what it prints at the end."""
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# Answers at once

# What the command line must not wait for unless it computes something.
HEAVY = ("tensorflow", "keras", "sklearn", "streamlit", "pandas", "pyarrow", "matplotlib")


@pytest.mark.slow
def test_help_and_mistakes_answer_without_heavy_imports():
    code = """
import contextlib, io, sys
from training.__main__ import main
for command in ([], ["fit"], ["all"], ["evaluate"], ["predict"], ["export"], ["list"]):
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        try:
            main([*command, "--help"])
        except SystemExit as exit:
            assert exit.code == 0, command
    assert printed.getvalue().startswith("usage: python -m training"), command
with contextlib.redirect_stdout(io.StringIO()):
    assert main(["list"]) == 0
assert main(["fit", "sentimant"]) == 1
assert main(["fit", "sentiment", "--set", "epoch=1"]) == 1
print(*sys.modules)
"""
    loaded = {name.split(".")[0] for name in in_a_process(code).split()}
    assert loaded & set(HEAVY) == set()


def test_list_names_everything_there_is_with_a_line_each(training, capsys):
    assert training("list") == 0
    described = {}
    for line in capsys.readouterr().out.splitlines():
        if line.startswith("  "):
            name, text = line.split(maxsplit=1)
            described.setdefault(name, []).append(text)
    tables = (RECIPES, MODEL_CONFIGS, TOKENIZER_CONFIGS, DATASETS)
    for table in (*tables, OPTIMIZERS, STRATEGIES, SCHEDULES, OBJECTIVES):
        assert table.keys() <= described.keys()
    # The three ways of taking one step are settings of the batch size.
    assert {"full", "32", "1"} <= described.keys()
    assert all(len(text) > 10 for texts in described.values() for text in texts)


@pytest.mark.slow
def test_a_reader_that_goes_away_is_no_failure():
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "training", "list"],
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")


# Mistakes


@pytest.mark.parametrize(
    "words, fragments",
    [
        (["fit", "sentimant"], ["'sentimant'", *RECIPES]),
        (["all", "topics", "sentimant"], ["'sentimant'", *RECIPES]),
        (["fit"], ["recipe", "--config", *RECIPES]),
        (["fit", "topics", "--config", "config.json"], ["recipe", "--config"]),
        (["fit", "--config", "missing/config.json"], ["missing/config.json"]),
        (["fit", "topics", "--set", "epoch=1"], ["epoch.", "Did you mean epochs?", "batch_size"]),
        (
            ["fit", "topics", "--set", "optimizer.peak_rate=1"],
            ["Did you mean optimizer.peak_learning_rate?", "optimizer.clip_norm"],
        ),
        (["fit", "topics", "--set", "model=lstm"], ["'lstm'", *MODEL_CONFIGS]),
        (["fit", "topics", "--set", "strategy=adagrad"], ["'adagrad'", *OPTIMIZERS, *STRATEGIES]),
        (
            ["fit", "topics", "--set", "strategy=sam(ema(adamw))"],
            ["strategy=sam(ema(adamw))", "ema(sam(...))"],
        ),
        (["fit", "topics", "--set", "optimizer.schedule=cosin"], ["cosine", *SCHEDULES]),
        (["fit", "topics", "--set", "earlier.before.epochs=1"], ["'before'", "none"]),
        (["fit", "topics", "--set", "objective=masked_language_model"], ["objective must be"]),
        (["fit", "topics", "--set", "dataset.name=mine"], ["'mine'", *DATASETS]),
        (["fit", "topics", "--set", "epochs=many"], ["epochs must be a number", "'many'"]),
        (["fit", "topics", "--set", "epochs=-1"], ["epochs must be above 0", "-1"]),
        (["fit", "topics", "--set", "epochs"], ["name=value", "'epochs'"]),
        (["fit", "topics", "--name", "a/b"], ["name", "'a/b'"]),
        (["fit", "topics", "--text-column", "line"], ["--text-column needs --data FILE"]),
        (["all", "topics", "--label-column", "kind"], ["--label-column needs --data FILE"]),
        (["fit", "topics", "--data", "missing.csv"], ["missing.csv cannot be read"]),
        (["evaluate", "nothing"], ["'nothing'", "python -m training fit"]),
        (["export", "nothing"], ["'nothing'", "python -m training fit"]),
        (["predict", "nothing", "text"], ["'nothing'", "python -m training fit"]),
    ],
)
def test_a_mistake_is_one_sentence_and_code_1(training, capsys, words, fragments):
    assert training(*words) == 1
    error = error_line(capsys)
    assert [fragment for fragment in fragments if fragment not in error] == []
    assert not list(training.folder.rglob("*"))  # nothing was begun


@pytest.mark.parametrize(
    "words",
    [
        ["train"],
        ["fit", "topics", "--epochs", "1"],
        ["evaluate"],
        ["predict", "reviews", "--format", "xml"],
        ["predict", "reviews", "--max-tokens", "many"],
        ["predict", "reviews", "text", "--verbose"],
        ["export", "reviews", "topics"],
    ],
)
def test_words_that_do_not_parse_end_with_code_2(training, capsys, words):
    with pytest.raises(SystemExit) as exit:
        training(*words)
    assert exit.value.code == 2
    assert "usage: python -m training" in capsys.readouterr().err


def test_a_disk_that_refuses_is_one_sentence(training, capsys):
    training.runs.write_text("a file where the folder of runs should be")
    assert training("fit", "topics") == 1
    assert str(training.runs) in error_line(capsys)


def test_interruption_ends_with_code_130(training, capsys, monkeypatch):
    monkeypatch.setitem(commands.COMMANDS, "list", lambda options: signal.raise_signal(2))
    assert training("list") == 130
    assert "Traceback" not in capsys.readouterr().err


def test_a_loss_that_is_not_finite_is_one_sentence(training, capsys):
    path = write_csv(training.folder / "reviews.csv", REVIEWS)
    huge = ["--set", "optimizer.peak_learning_rate=1e38", "--set", "optimizer.clip_norm=none"]
    assert training("fit", "sentiment", "--data", path, *QUICK, *huge) == 1
    error = error_line(capsys)
    assert "not finite" in error and "optimizer.peak_learning_rate" in error
    assert not (training.run("sentiment") / "results.json").exists()


# A user's own file


@pytest.mark.parametrize(
    "write, name",
    [
        (write_csv, "reviews.csv"),
        (lambda path, rows: write_csv(path, rows, delimiter="\t"), "reviews.tsv"),
        (write_jsonl, "reviews.jsonl"),
        (write_parquet, "reviews.parquet"),
    ],
)
def test_a_file_of_any_format_gives_the_same_run(training, trained, capsys, write, name):
    path = write(training.folder / name, REVIEWS)
    assert training("fit", "sentiment", "--data", path, "--name", "reviews", *QUICK) == 0
    printed = capsys.readouterr().out
    folder = training.run("reviews")
    assert "accuracy" in printed and f"python -m training export {folder}" in printed
    results, expected = (figures(run) for run in (folder, trained.run("reviews")))
    assert results == expected
    assert read_json(folder / "labels.json") == ["bad", "good"]


def test_bad_rows_are_named_by_their_line_and_the_good_ones_trained_on(training, capsys, caplog):
    lines = ["text;label", *(f"{text};{label}" for text, label in REVIEWS)]
    lines[4] = "a field; too many; good"
    lines[9] = ";good"
    lines[12] = "no label;"
    path = training.folder / "reviews.csv"
    path.write_text("\n".join(lines))
    assert training("fit", "sentiment", "--data", path, *QUICK) == 0
    notes = capsys.readouterr().err + caplog.text
    assert "3 of 80 rows" in notes
    assert "line 5: expected 2 fields, found 3" in notes
    assert "line 10: empty text" in notes
    assert "line 13: no label" in notes


def test_chinese_in_gb18030_with_columns_of_its_own(training, capsys, caplog):
    rows = [
        (f"{text}，第{i}次", label)
        for text, label in (("味道很好，下次还来", "好评"), ("又贵又难吃，再也不来了", "差评"))
        for i in range(30)
    ]
    path = training.folder / "点评.csv"
    lines = ["编号,留言,看法", *(f"{i},{text},{label}" for i, (text, label) in enumerate(rows))]
    path.write_text("\n".join(lines), encoding="gb18030")
    columns = ["--text-column", "留言", "--label-column", "看法"]
    assert training("fit", "sentiment", "--data", path, *columns, "--name", "点评", *QUICK) == 0
    assert "GB18030" in capsys.readouterr().err + caplog.text
    assert read_json(training.run("点评") / "labels.json") == ["好评", "差评"]

    assert training("predict", "点评", "--format", "jsonl", "这家味道很好") == 0
    assert json.loads(capsys.readouterr().out)["label"] == "好评"

    assert training("fit", "sentiment", "--data", path) == 1
    error = error_line(capsys)
    assert "--text-column" in error and "'留言'" in error


def test_files_for_validation_and_test_are_used_as_such(training, capsys):
    train = write_csv(training.folder / "train.csv", REVIEWS)
    check = write_csv(training.folder / "check.csv", REVIEWS[::8])
    final = write_csv(training.folder / "final.csv", [("I loved it", "bad"), *REVIEWS[::2]])
    files = ["--data", train, "--validation-data", check, "--test-data", final]
    assert training("fit", "sentiment", *files, *QUICK) == 0
    test = read_json(training.run("sentiment") / "results.json")["test"]
    assert test["num_examples"] == 41
    assert test["accuracy"] == pytest.approx(40 / 41)


def test_plain_text_is_for_generation_only(training, capsys):
    path = training.folder / "tales.txt"
    path.write_text("\n\n".join(TALES))
    assert training("fit", "sentiment", "--data", path) == 1
    assert "plain text and has no labels" in error_line(capsys)


@pytest.mark.slow
def test_a_stage_before_is_set_by_its_name_from_the_command_line(training, capsys):
    """A configuration of two stages, written, read back with --config and changed."""
    path = write_csv(training.folder / "reviews.csv", REVIEWS)
    settings = [
        *("model=ulmfit_lstm", "model.embedding_size=8", "model.units=8", "model.num_layers=1"),
        *("max_updates=4", "evaluate_every=4", "batch_size=8", "tokenizer.max_tokens=12"),
    ]
    words = [word for setting in settings for word in ("--set", setting)]
    config = override(recipe("sentiment_lstm"), settings)
    before = StageConfig(name="before", objective="language_model", max_updates=3)
    config = dataclasses.replace(config, earlier=(before,))
    file = training.folder / "two_stages.json"
    file.write_text(json.dumps(config.to_dict()))
    more = ["--set", "earlier.before.max_updates=2", "--set", "earlier.before.strategy=sgd"]
    command = ["fit", "--config", file, "--data", path, "--name", "two", *words, *more]
    assert training(*command) == 0
    results = read_json(training.run("two") / "results.json")
    assert [(stage["stage"], stage["steps"]) for stage in results["stages"]] == [
        ("before", 2),
        ("two", 4),
    ]
    printed = capsys.readouterr().out
    assert results["steps"] == 6 and "two: 6 updates in" in printed
    assert f"kept: update {results['kept_step']} of stage two" in printed
    assert training("predict", "two", "I loved it") == 0


# Runs are found again


def test_the_same_settings_are_the_same_run(trained, capsys):
    data = ["--data", trained.folder / "reviews.csv", "--name", "reviews"]
    assert trained("fit", "sentiment", *data, *QUICK) == 0
    first = capsys.readouterr()
    assert "trained already" in first.err

    assert trained("fit", "--config", trained.run("reviews") / "config.json") == 0
    again = capsys.readouterr()
    assert "trained already" in again.err
    assert again.out == first.out


@pytest.mark.parametrize(("of_keep", "told"), [({"kept_step": 8}, 8), ({}, 3)])
def test_the_update_whose_weights_are_kept_is_told(capsys, of_keep, told):
    """Of keep=last another one than the best; runs of earlier versions have the best alone."""
    test = {"loss": 0.5, "accuracy": 0.9, "macro_f1": 0.9}
    results = {"steps": 20, "seconds": 1.5, "ended": "finished", "best_step": 3, "test": test}
    commands._print_results(recipe("sentiment_masked"), results | of_keep)
    expected = f"20 updates in 1.5 s (finished); kept: update {told} of stage sentiment_masked."
    assert expected in capsys.readouterr().out


def test_restart_discards_what_was_learned(training, capsys):
    path = write_csv(training.folder / "reviews.csv", REVIEWS)
    command = ["fit", "sentiment", "--data", path, *QUICK]
    assert training(*command) == 0
    leftover = training.run("sentiment") / "leftover"
    leftover.touch()
    assert training(*command, "--restart") == 0
    assert not leftover.exists()
    assert "trained already" not in capsys.readouterr().err


def test_a_run_is_named_by_path_folder_name_or_beginning(trained, capsys):
    folder = trained.run("reviews")
    printed = set()
    for name in (folder, folder.name, "reviews", "rev"):
        assert trained("predict", name, "I loved it") == 0
        printed.add(capsys.readouterr().out)
    assert len(printed) == 1

    assert trained("predict", "revue", "I loved it") == 1
    error = error_line(capsys)
    assert "'revue'" in error and folder.name in error


# evaluate


def test_evaluate_measures_the_test_split_again(trained, capsys):
    folder = trained.run("reviews")
    for name in ("evaluation.json", "confusion_matrix.png"):
        (folder / name).unlink(missing_ok=True)
    assert trained("evaluate", "reviews") == 0
    printed = capsys.readouterr().out
    test = read_json(folder / "results.json")["test"]
    assert f"accuracy {test['accuracy']:.2%}" in printed
    assert f"macro F1 {test['macro_f1']:.4f}" in printed
    assert read_json(folder / "evaluation.json") == {"data": "test", "report": test}
    assert_png(folder / "confusion_matrix.png")


def test_evaluate_measures_a_file(trained, capsys, tmp_path):
    rows = [(f"I loved it, take {i}", "good") for i in range(6)] + [("I loved it too", "bad")]
    rows += [("I hated it", "bad"), ("nothing to say", "")]
    assert trained("evaluate", "reviews", "--data", write_csv(tmp_path / "own.csv", rows)) == 0
    captured = capsys.readouterr()
    assert "line 10: no label" in captured.err
    # Of "good" all 6 are found and 1 too many, of "bad" 1 of 2: F1 is 12/13 and 2/3.
    assert "accuracy 87.50%   macro F1 0.7949" in captured.out
    table = [line.split() for line in captured.out.splitlines()]
    assert ["label", "precision", "recall", "f1", "examples"] in table
    assert ["bad", "1.0000", "0.5000", "0.6667", "2"] in table
    assert ["good", "0.8571", "1.0000", "0.9231", "6"] in table
    written = read_json(trained.run("reviews") / "evaluation.json")
    assert written["data"] == str(tmp_path / "own.csv")
    assert written["report"]["confusion_matrix"] == [[1, 1], [0, 6]]


def test_evaluate_refuses_labels_it_never_saw(trained, capsys, tmp_path):
    path = write_csv(tmp_path / "own.csv", [("so so", "mixed"), ("I loved it", "good")])
    assert trained("evaluate", "reviews", "--data", path) == 1
    error = error_line(capsys)
    assert "'mixed'" in error and "'good'" in error


@pytest.mark.parametrize(
    "words", [["evaluate", "reviews", "--label-column", "kind"], ["predict", "reviews", "a", "b"]]
)
def test_a_column_without_a_file_is_not_ignored(trained, capsys, words):
    assert trained(*words, "--text-column", "line") == 1
    assert "--text-column" in error_line(capsys)


@pytest.mark.slow
def test_evaluate_of_a_language_model(storyteller, capsys, tmp_path):
    folder = storyteller.run("tales")
    assert storyteller("evaluate", "tales") == 0
    printed = capsys.readouterr().out
    test = read_json(folder / "results.json")["test"]
    assert f"{test['bits_per_character']:.3f} bits/character" in printed
    assert f"perplexity {test['perplexity']:.1f}" in printed
    assert len(test["samples"]) == 4
    for sample in test["samples"]:
        assert f"[{sample['prompt']}]{sample['text']}" in printed
    assert read_json(folder / "evaluation.json") == {"data": "test", "report": test}
    assert not (folder / "confusion_matrix.png").exists()

    other = tmp_path / "other.txt"
    other.write_text("Once there was a fox.\nHe slept.\n\nOnce there was a hen.\n")
    assert storyteller("evaluate", "tales", "--data", other) == 0
    report = read_json(folder / "evaluation.json")["report"]
    # As in training, blank lines part the documents.
    assert report["num_documents"] == 2 and report["loss"] != test["loss"]


def assert_png(path: Path) -> None:
    from matplotlib import image

    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    pixels = image.imread(path)
    assert min(pixels.shape[:2]) > 200 and pixels.std() > 0.01


# predict

TEXTS = ["I loved it", 'I hated it,\nevery "minute"', "", "味道很好"]


def test_formats_of_predict_say_the_same(trained, capsys):
    printed = {}
    for choice in ("lines", "csv", "jsonl"):
        assert trained("predict", "reviews", "--format", choice, *TEXTS) == 0
        printed[choice] = capsys.readouterr().out

    answers = [json.loads(line) for line in printed["jsonl"].splitlines()]
    assert [answer["text"] for answer in answers] == TEXTS
    assert [answer["label"] for answer in answers[:2]] == ["good", "bad"]
    for answer in answers:
        assert sum(answer["scores"].values()) == pytest.approx(1.0)
        assert answer["label"] == max(answer["scores"], key=answer["scores"].get)

    rows = list(csv.DictReader(io.StringIO(printed["csv"])))
    assert [(row["text"], row["label"]) for row in rows] == [
        (answer["text"], answer["label"]) for answer in answers
    ]
    for row, answer in zip(rows, answers, strict=True):
        scores = {label: float(row[f"score_{label}"]) for label in answer["scores"]}
        assert scores == pytest.approx(answer["scores"], abs=1e-6)

    lines = [line.split("\t") for line in printed["lines"].splitlines()]
    assert lines == [
        [answer["label"], f"{answer['scores'][answer['label']]:.4f}", " ".join(text.split())]
        for answer, text in zip(answers, TEXTS, strict=True)
    ]


def test_texts_come_as_words_from_a_file_or_from_standard_input(
    trained, capsys, monkeypatch, tmp_path
):
    texts = ["I loved it", "I hated it"]
    assert trained("predict", "reviews", *texts) == 0
    expected = capsys.readouterr().out

    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(texts) + "\n"))
    assert trained("predict", "reviews") == 0
    assert capsys.readouterr().out == expected

    plain = tmp_path / "texts.txt"
    plain.write_text("\n".join(texts))
    table = tmp_path / "texts.csv"
    table.write_text("id,remark\n" + "".join(f"{i},{text}\n" for i, text in enumerate(texts)))
    for words in (["--file", plain], ["--file", table, "--text-column", "remark"]):
        assert trained("predict", "reviews", *words) == 0
        captured = capsys.readouterr()
        assert captured.out == expected
        assert "2 rows" in captured.err


def test_texts_may_stand_after_options(trained, capsys):
    assert trained("predict", "reviews", "I loved it") == 0
    expected = capsys.readouterr().out
    assert trained("predict", "reviews", "--format", "lines", "I loved it") == 0
    assert capsys.readouterr().out == expected


def test_predict_wants_texts_from_one_place(trained, capsys, monkeypatch, tmp_path):
    assert trained("predict", "reviews", "text", "--file", tmp_path / "texts.txt") == 1
    assert "not both" in error_line(capsys)
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    assert trained("predict", "reviews") == 1
    assert "standard input" in error_line(capsys)


@pytest.mark.slow
def test_the_same_seed_writes_the_same_text(storyteller, capsys):
    def write(*words):
        assert storyteller("predict", "tales", "Once", "--max-tokens", "30", *words) == 0
        return capsys.readouterr().out

    free = ["--temperature", "1", "--top-p", "1"]
    first = write(*free, "--seed", "1", "--format", "jsonl")
    assert write(*free, "--seed", "1", "--format", "jsonl") == first
    second = write(*free, "--seed", "2")
    answer = json.loads(first)
    assert answer["prompt"] == "Once" and answer["text"]
    assert second.startswith("Once") and second != "Once" + answer["text"] + "\n\n"

    # Greedy needs no luck: the seed changes nothing, nor does choosing among one.
    greedy = write("--temperature", "0", "--seed", "5", "--format", "csv")
    (row,) = csv.DictReader(io.StringIO(greedy))
    assert write("--top-k", "1") == row["prompt"] + row["text"] + "\n\n" != second


# export and all


def test_every_export_is_the_next_version(trained, capsys):
    for number in ("1", "2"):
        assert trained("export", "reviews") == 0
        path = trained.exports / "reviews" / number
        printed = capsys.readouterr().out
        assert str(path) in printed and f"--exports {trained.exports}" in printed
        manifest = read_json(path / "manifest.json")
        assert manifest["version"] == int(number)
        assert manifest["run"] == trained.run("reviews").name
        assert manifest["labels"] == ["bad", "good"]
        assert manifest["config"]["dataset"]["path"] == "reviews.csv"  # its folder is nobody's


@pytest.mark.slow
def test_all_makes_what_is_missing_and_nothing_twice(training, capsys):
    path = write_csv(training.folder / "reviews.csv", REVIEWS)
    command = ["all", "sentiment", "--data", path, *QUICK]
    assert training(*command) == 0
    export = training.exports / "sentiment" / "1"
    first = capsys.readouterr().out
    assert "accuracy" in first and str(export) in first

    code = """
import sys
from training.__main__ import main
assert main(sys.argv[1:]) == 0
assert "tensorflow" not in sys.modules and "keras" not in sys.modules
"""
    places = ["--runs", training.runs, "--exports", training.exports]
    assert in_a_process(code, *places, *command) == first

    # Another seed is another run, and the first one's export is then no longer the newest.
    assert training(*command, "--set", "seed=1") == 0
    assert training(*command) == 0
    runs = [read_json(training.exports / "sentiment" / n / "manifest.json")["run"] for n in "123"]
    assert runs[0] == runs[2] != runs[1]

    shutil.rmtree(training.exports)
    capsys.readouterr()
    assert training(*command) == 0
    captured = capsys.readouterr()
    assert "trained already" in captured.err and export.is_dir()


def test_all_trains_several_recipes_by_their_names(training, capsys):
    path = write_csv(training.folder / "reviews.csv", REVIEWS)
    assert training("all", "sentiment", "topics", "--data", path, *QUICK) == 0
    table = capsys.readouterr().out.splitlines()
    rows = [line.split()[0] for line in table if "accuracy" in line]
    assert rows == ["sentiment", "topics"]
    assert (training.exports / "topics" / "1").is_dir()


@pytest.mark.slow
def test_settings_of_the_other_kind_of_model_are_refused(trained_folder, capsys):
    from training.__main__ import main

    places = ["--runs", str(trained_folder / "runs")]
    assert main([*places, "predict", "topics", "x", "--temperature", "0.5", "--seed", "1"]) == 1
    assert "--temperature, --seed: topics-" in capsys.readouterr().err
    fit = ["fit", "stories", "--data", "stories.csv", "--label-column", "stars"]
    assert main([*places, *fit]) == 1
    assert "--label-column: stories learns from texts alone" in capsys.readouterr().err


def test_places_may_stand_before_or_after_the_command():
    from training.__main__ import parse

    before = parse(["--runs", "a", "--exports", "b", "export", "x"])
    after = parse(["export", "x", "--runs", "a", "--exports", "b"])
    assert before == after and str(after.exports) == "b"
    assert str(parse(["export", "x"]).runs) == "runs"
