"""`promote` and `rollback`: the words in question change, in one step, and nothing else does."""

import os

import pytest
from test_model_repository import FakeLoader, label_answers
from toy_exports import wait_until

from serving import model_configs
from serving.__main__ import main
from serving.config import ServerConfig
from serving.repository import Repository

TEXT = """\
# Kept by the platform team.
model_config_list {{
  config {{
    name: "sentiment"  # not "topics"
    base_path: "{folder}/sentiment", model_platform: "tensorflow"
    model_version_policy {{ latest {{ num_versions: 2 }} }}
    version_labels {{ key: "stable" value: 6 }}  # what users get
    version_labels <
      key: 'canary';
      value: 7;
    >
  }}
  config: {{ name: 'top' 'ics' base_path: "{folder}/topics" model_type: TENSORFLOW }}
}}
"""


@pytest.fixture
def file(tmp_path):
    for name in ("sentiment/5", "sentiment/6", "sentiment/7", "topics/1", "topics/2"):
        (tmp_path / name).mkdir(parents=True)
    file = tmp_path / "models.config"
    file.write_text(TEXT.format(folder=tmp_path))
    return file


def models(file):
    return {model.name: model for model in model_configs.read(file)}


def run(file, *arguments):
    return main([*arguments, f"--config={file}"])


@pytest.mark.parametrize("label", ["", 'a"b', "a/b", "a:b", "a\nb"])
def test_a_label_that_no_address_can_name_is_refused(file, capsys, label):
    before = file.read_bytes()
    assert run(file, "promote", "sentiment", "7", f"--label={label}") != 0
    assert "--label is part of an address" in capsys.readouterr().err
    assert file.read_bytes() == before


def test_a_label_moves_and_goes_back_and_nothing_else_changes(file, capsys):
    before = file.read_text()
    assert run(file, "promote", "sentiment", "7", "--label=stable") == 0
    assert capsys.readouterr().out == "sentiment: label stable 6 -> 7\n"
    assert models(file)["sentiment"].labels == {"stable": 7, "canary": 7}
    changed = file.read_text().splitlines()
    assert len(changed) == len(before.splitlines()) + 1 and changed[-1].startswith("# promoted: ")
    different = [old for old, new in zip(before.splitlines(), changed, strict=False) if old != new]
    assert different == ['    version_labels { key: "stable" value: 6 }  # what users get']
    assert run(file, "rollback", "sentiment", "stable") == 0
    assert file.read_text() == before


def test_a_label_stands_for_its_version_and_a_new_label_is_added_and_taken_away(file):
    before = file.read_text()
    assert run(file, "promote", "sentiment", "canary", "--label=next week") == 0
    assert models(file)["sentiment"].labels == {"stable": 6, "canary": 7, "next week": 7}
    assert run(file, "promote", "sentiment", "6", "--label", "canary") == 0
    assert models(file)["sentiment"].labels == {"stable": 6, "canary": 6, "next week": 7}
    assert run(file, "promote", "topics", "2", "--label", "stable") == 0
    assert models(file)["topics"].labels == {"stable": 2}
    for model, label in (("sentiment", "next week"), ("topics", "stable"), ("sentiment", "canary")):
        assert run(file, "rollback", model, label) == 0
    assert models(file) == {
        model.name: model for model in model_configs.from_proto(model_configs.parse(before))
    }
    assert "# promoted" not in file.read_text()


def test_a_file_that_is_not_there_is_told_by_the_option_that_named_it(tmp_path, capsys):
    assert run(tmp_path / "none.config", "promote", "sentiment", "7") == 1
    assert "--config cannot be read" in capsys.readouterr().err


def test_line_ends_stay_as_they_are(file):
    before = file.read_bytes().replace(b"\n", b"\r\n").rstrip()
    file.write_bytes(before)
    assert run(file, "promote", "sentiment", "7", "--label=stable") == 0
    moved = before.replace(b'"stable" value: 6', b'"stable" value: 7')
    assert file.read_bytes().startswith(moved)
    assert run(file, "rollback", "sentiment", "stable") == 0
    assert file.read_bytes() == before + b"\n"


def test_promotions_are_taken_back_one_by_one(file):
    for version in ("7", "6", "7"):
        assert run(file, "promote", "sentiment", version, "--label=stable") == 0
    seen = []
    while run(file, "rollback", "sentiment", "stable") == 0:
        seen.append(models(file)["sentiment"].labels["stable"])
    assert seen == [6, 7, 6]


def test_a_model_is_pinned_to_a_version_and_let_go(file, capsys):
    before = file.read_text()
    assert run(file, "promote", "topics", "1") == 0
    assert models(file)["topics"].policy.specific == (1,)
    assert run(file, "rollback", "topics", "2") == 0  # a version: served alone, too
    assert models(file)["topics"].policy.specific == (2,)
    assert run(file, "rollback", "topics") == 0
    assert models(file)["topics"].policy.specific == (1,)
    assert run(file, "rollback", "topics") == 0
    assert file.read_text() == before
    capsys.readouterr()
    assert run(file, "promote", "sentiment", "7") == 1
    assert "Label stable of model sentiment points to version 6" in capsys.readouterr().err
    run(file, "promote", "sentiment", "7", "--label=stable")
    assert run(file, "promote", "sentiment", "7") == 0
    assert models(file)["sentiment"].policy.specific == (7,)


def test_a_policy_comes_back_as_it_was_written(file):
    policy = "model_version_policy {\n      all {}  # all of them\n    }"
    text = file.read_text().replace("model_version_policy { latest { num_versions: 2 } }", policy)
    file.write_text(text.replace('version_labels { key: "stable" value: 6 }', ""))
    before = file.read_text()
    assert run(file, "promote", "sentiment", "7") == 0
    assert models(file)["sentiment"].policy.specific == (7,)
    assert "all of them" not in file.read_text().partition("# promoted")[0]
    assert run(file, "rollback", "sentiment") == 0
    assert file.read_text() == before


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["promote", "other", "1"], "has no model 'other'; it has: sentiment, topics"),
        (["promote", "sentiment", "8", "--label=stable"], "has no version 8 of model sentiment"),
        (["promote", "sentiment", "5", "--label=stable"], "promotion back: rollback sentiment"),
        (["promote", "sentiment", "5", "--label=stable"], "serves 6, 7 and not 5"),
        (["promote", "sentiment", "beta"], "neither a version nor a label"),
        (
            ["rollback", "sentiment", "stable"],
            "python -m serving promote sentiment VERSION --label",
        ),
        (["rollback", "topics"], "notes no promotion of the version policy"),
    ],
)
def test_what_could_not_be_served_is_refused_and_the_file_stays(file, arguments, text, capsys):
    before = file.read_text()
    assert run(file, *arguments) == 1
    assert text in capsys.readouterr().err and file.read_text() == before


def test_a_label_moved_by_hand_since_is_not_taken_back(file, capsys):
    run(file, "promote", "sentiment", "7", "--label=stable")
    file.write_text(file.read_text().replace('"stable" value: 7', '"stable" value: 6'))
    assert run(file, "rollback", "sentiment", "stable") == 1
    assert "is 6 and no longer 7" in capsys.readouterr().err


def test_writings_that_cannot_be_changed_word_by_word_are_refused(file, capsys):
    listed = "version_labels: [{ key: 'stable' value: 6 }]"
    text = file.read_text()
    file.write_text(text.replace('version_labels { key: "stable" value: 6 }', listed))
    before = file.read_text()
    assert run(file, "promote", "sentiment", "7", "--label=stable") == 0  # a later entry wins
    assert models(file)["sentiment"].labels["stable"] == 7
    file.write_text(before)
    assert run(file, "rollback", "sentiment", "stable") == 1
    listed_models = before.replace("config {", "config: [{").replace(
        "  }\n  config:", "  }]\n  config:"
    )
    file.write_text(listed_models)
    assert models(file).keys() == {"sentiment", "topics"}
    assert run(file, "promote", "sentiment", "7", "--label=stable") == 1
    assert "write each model as config { ... }" in capsys.readouterr().err
    assert file.read_text() == listed_models


def test_the_file_is_replaced_not_rewritten(file, tmp_path, monkeypatch, capsys):
    file.chmod(0o640)
    link = tmp_path / "link.config"
    link.symlink_to(file)
    with file.open() as reader:  # whoever has it open reads the old text to its end
        assert run(link, "promote", "sentiment", "7", "--label=stable") == 0
        assert reader.read() == TEXT.format(folder=tmp_path)
    assert link.is_symlink() and file.stat().st_mode & 0o777 == 0o640
    before = file.read_text()

    def disk_full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", disk_full)
    assert run(file, "rollback", "sentiment", "stable") == 1
    assert "No space left on device" in capsys.readouterr().err
    assert file.read_text() == before
    assert sorted(tmp_path.glob(".*")) == []


def test_a_server_that_polls_the_file_follows(file):
    config = ServerConfig(
        model_config_file=file,
        models=tuple(models(file).values()),
        model_config_file_poll_wait_seconds=1,
        allow_version_labels_for_unavailable_models=True,
    )
    repository = Repository(config, FakeLoader())
    repository.start()
    try:
        repository.wait_until_available()
        wait_until(
            lambda: (
                len(repository.statuses("sentiment")) == 2
                and all(
                    state.name == "AVAILABLE" for _, state, _ in repository.statuses("sentiment")
                )
            )
        )
        assert label_answers(repository, "stable", "sentiment") == 6
        assert run(file, "promote", "sentiment", "7", "--label=stable") == 0
        wait_until(lambda: label_answers(repository, "stable", "sentiment") == 7)
        assert run(file, "rollback", "sentiment", "stable") == 0
        wait_until(lambda: label_answers(repository, "stable", "sentiment") == 6)
    finally:
        assert repository.stop(10)
