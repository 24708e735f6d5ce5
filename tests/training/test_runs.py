"""A run has one folder: the same settings and texts find it again, others never do."""

import dataclasses
import json
import os

import pytest

from training.config import override
from training.datasets.config import DatasetConfig
from training.recipes import RECIPES, recipe
from training.runs import (
    CONFIG_FILE,
    RESULTS_FILE,
    find_run,
    newest_export,
    read_config,
    read_json,
    run_folder,
    write_json,
)


def begin(runs, config, *, at=None):
    """The folder of a run as training leaves it at the beginning; `at` is its age in seconds."""
    folder = run_folder(runs, config)
    folder.mkdir(parents=True)
    write_json(folder / CONFIG_FILE, config.to_dict())
    if at is not None:
        os.utime(folder / CONFIG_FILE, (at, at))
    return folder


# Its name


@pytest.mark.parametrize("name", RECIPES)
def test_what_is_written_names_the_folder_it_lies_in(tmp_path, name):
    config = recipe(name)
    folder = begin(tmp_path, config)
    assert folder.name.rpartition("-")[0] == config.name
    for place in (folder, folder / CONFIG_FILE):
        assert read_config(place) == config
        assert run_folder(tmp_path, read_config(place)) == folder


def test_a_teacher_that_learned_otherwise_makes_another_folder(tmp_path, monkeypatch):
    student = recipe("sentiment_distilled")
    before = run_folder(tmp_path, student)
    other = override(recipe(student.teacher), ["seed=7"])
    monkeypatch.setitem(RECIPES, student.teacher, lambda: other)
    assert run_folder(tmp_path, student) != before


def test_every_setting_makes_another_folder(tmp_path):
    topics = recipe("topics")
    changes = [
        [],
        ["seed=7"],
        ["epochs=3.5"],
        ["optimizer.clip_norm=none"],
        ["tokenizer.max_ngram=1"],
        ["model.ngram_dropout=0.1"],
        ["dataset.max_examples=100"],
        ["tokenizer=word", "model=recurrent"],
    ]
    folders = {run_folder(tmp_path, override(topics, change)) for change in changes}
    folders.add(run_folder(tmp_path, dataclasses.replace(topics, name="other")))
    assert len(folders) == len(changes) + 1


def test_the_same_setting_written_differently_is_the_same_folder(tmp_path):
    topics = recipe("topics")
    folders = {
        run_folder(tmp_path, override(topics, changes))
        for changes in (["epochs=6"], ["epochs=6.0"], ["epochs=2", "epochs=6"])
    }
    folders.add(run_folder(tmp_path, dataclasses.replace(topics, epochs=6)))
    assert len(folders) == 1


def test_other_texts_in_the_file_are_another_folder(tmp_path):
    path = tmp_path / "texts.csv"
    dataset = DatasetConfig(name="file", path=str(path))
    config = dataclasses.replace(recipe("topics"), dataset=dataset)
    path.write_text("text,label\na,b\n")
    first = run_folder(tmp_path, config)
    path.write_text("text,label\na,c\n")
    second = run_folder(tmp_path, config)
    path.write_text("text,label\na,b\n")
    assert run_folder(tmp_path, config) == first != second
    path.unlink()
    with pytest.raises(ValueError, match="texts.csv cannot be read"):
        run_folder(tmp_path, config)


# Found again


def test_find_run_takes_a_path_a_folder_name_or_a_beginning(tmp_path, monkeypatch):
    runs = tmp_path / "runs"
    folder = begin(runs, recipe("topics"))
    begin(runs, recipe("stories"))
    for name in (str(folder), folder.name, "topics", "topics-", "top"):
        assert find_run(runs, name) == folder
    monkeypatch.chdir(tmp_path)
    assert find_run(runs, f"runs/{folder.name}/").resolve() == folder


def test_a_whole_name_beats_a_longer_one_that_begins_so(tmp_path):
    folder = begin(tmp_path, recipe("sentiment"), at=1_000)
    begin(tmp_path, recipe("sentiment_lstm"), at=2_000)
    assert find_run(tmp_path, "sentiment") == folder


def test_of_several_the_newest_is_found(tmp_path):
    begin(tmp_path, recipe("topics"), at=2_000)
    newest = begin(tmp_path, override(recipe("topics"), ["seed=1"]), at=3_000)
    begin(tmp_path, override(recipe("topics"), ["seed=2"]), at=1_000)
    assert find_run(tmp_path, "topics") == newest


def test_an_unknown_name_lists_the_runs_there_are(tmp_path):
    with pytest.raises(FileNotFoundError, match="none yet"):
        find_run(tmp_path, "topics")
    folder = begin(tmp_path, recipe("topics"))
    (tmp_path / "stories-12345678").mkdir()  # begun, but killed before it was a run
    for name in ("stories", "opics", "topics-x"):
        with pytest.raises(FileNotFoundError) as caught:
            find_run(tmp_path, name)
        assert repr(name) in str(caught.value) and folder.name in str(caught.value)
        assert "stories-12345678" not in str(caught.value)


def test_a_config_that_is_damaged_says_which_and_where(tmp_path):
    path = tmp_path / CONFIG_FILE
    path.write_text('{"name": "mine",')
    with pytest.raises(ValueError, match="config.json is not JSON: .* line 1"):
        read_config(path)
    path.write_text(json.dumps(recipe("topics").to_dict() | {"colour": "red"}))
    with pytest.raises(ValueError, match="colour"):
        read_config(path)


# Exports and files


def test_a_finished_run_is_found_before_one_that_was_begun_later(tmp_path):
    finished = begin(tmp_path, recipe("topics"), at=1_000)
    write_json(finished / RESULTS_FILE, {})
    begin(tmp_path, override(recipe("topics"), ["seed=1"]), at=3_000)
    assert find_run(tmp_path, "topics") == finished


def test_the_newest_export_has_the_highest_number(tmp_path):
    assert newest_export(tmp_path, "topics") is None
    for name in ("9", "0010", "2", ".11.part", "12.bak", "notes"):
        (tmp_path / "topics" / name).mkdir(parents=True)
    assert newest_export(tmp_path, "topics") == tmp_path / "topics" / "0010"


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "results.json"
    write_json(path, {"text": "好", "number": 1.5})
    with pytest.raises(TypeError):
        write_json(path, {"text": object()})
    assert read_json(path) == {"text": "好", "number": 1.5}
    assert "好" in path.read_text(encoding="utf-8")
    assert list(tmp_path.iterdir()) == [path]
