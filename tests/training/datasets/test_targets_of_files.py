"""Several labels, ordered labels and numbers in the user's own file."""

import json

import numpy as np
import pytest

from training.datasets import load_dataset, read_labelled
from training.datasets.config import DatasetConfig, DatasetError
from training.datasets.examples import LabelledTexts


def load(path, target, **settings):
    config = DatasetConfig(name="file", path=str(path), **settings)
    return load_dataset(config, "classification", target)


def whole(data):
    """{text: label} of all splits."""
    return {
        text: label.tolist()
        for split in (data.train, data.validation, data.test)
        for text, label in zip(split.texts, split.labels, strict=True)
    }


@pytest.fixture
def write(tmp_path):
    def write(lines, name="data.csv"):
        path = tmp_path / name
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path

    return write


CELLS = ["a|b", "b", "a| c |", "|", "c|b"]


def test_several_labels_are_read_by_their_separator(write):
    path = write(["text,label", *(f"text {i},{CELLS[i % 5]}" for i in range(20))])
    data = load(path, "labels")
    assert data.label_names == ("a", "b", "c")
    found = whole(data)
    assert [found[f"text {i}"] for i in range(5)] == [
        [True, True, False],
        [False, True, False],
        [True, False, True],
        [False, False, False],
        [False, True, True],
    ]
    # Another separator makes other labels of the same cells.
    other = write(
        ["text,label", *(f"text {i},{CELLS[i % 5]}".replace("|", ";") for i in range(20))]
    )
    assert whole(load(other, "labels", label_separator=";")) == found


def test_a_list_is_several_labels(write):
    lists = [["a", "b"], ["b"], [], [2, "a"], "b|a"]
    lines = [json.dumps({"text": f"text {i}", "label": lists[i % 5]}) for i in range(20)]
    data = load(write(lines, "data.jsonl"), "labels")
    assert data.label_names == ("2", "a", "b")
    found = whole(data)
    assert [found[f"text {i}"] for i in (2, 3, 4)] == [
        [False, False, False],
        [True, True, False],
        [False, True, True],
    ]


def test_labels_of_which_a_text_has_several_are_in_every_part(write):
    """The rare one too, which is dealt out."""
    cells = ["a|b", "a", "b", "rare|a"]
    rows = [f"text {i},{cells[3] if i % 40 == 0 else cells[i % 3]}" for i in range(200)]
    data = load(write(["text,label", *rows]), "labels")
    for split in (data.train, data.validation, data.test):
        assert split.labels.any(axis=0).all()


def test_an_empty_cell_is_a_label_forgotten_and_a_lone_separator_none_of_them(write):
    data = load(write(["text,label", *(f"text {i},a|b" for i in range(30)), "x,", "y,|"]), "labels")
    splits = (data.train, data.validation, data.test)
    assert [s.labels[s.texts.index("y")].any() for s in splits if "y" in s.texts] == [False]
    assert not any("x" in split.texts for split in splits)
    assert "line 32: no label; a text that has none says so by the separator alone" in str(
        data.notes
    )


def test_a_label_that_training_does_not_know_is_refused(write):
    path = write(["text,label", "one,a|z", "two,b"])
    with pytest.raises(DatasetError, match="labels that training does not know: 'z'. Known: 'a'"):
        read_labelled(path, None, None, ["a", "b"], target="labels")
    with pytest.raises(DatasetError, match="no label in any row"):
        load(write(["text,label", "one,|", "two,|"]), "labels")


def test_grades_that_are_numbers_have_the_order_of_numbers(write):
    path = write(["text,stars", *(f"text {i},{(10, 2, 4.5)[i % 3]}" for i in range(30))])
    assert load(path, "grade").label_names == ("2", "4.5", "10")
    assert load(path, "class").label_names == ("10", "2", "4.5")  # as ever


def test_grades_that_are_words_need_an_order(write):
    path = write(["text,label", *(f"text {i},{('bad', 'ok', 'good')[i % 3]}" for i in range(30))])
    with pytest.raises(DatasetError, match=r"dataset.label_order=bad\|good\|ok' has them by alpha"):
        load(path, "grade")
    data = load(path, "grade", label_order="bad | ok|good|superb")  # one that nobody has is fine
    assert data.label_names == ("bad", "ok", "good", "superb")
    assert whole(data)["text 2"] == 2
    for order in ("bad|good", "bad|ok|ok|good"):
        with pytest.raises(DatasetError, match="label_order must name each label of .* once"):
            load(path, "grade", label_order=order)


def test_numbers_are_read_and_what_is_none_is_named_by_its_line(write):
    cells = {2: "many", 4: "", 5: "inf", 6: "-1.5e2"}
    path = write(["text,score", *(f"text {i},{cells.get(i, i / 2)}" for i in range(30))])
    data = load(path, "number")
    assert data.label_names == () and data.train.labels.dtype == np.float32
    found = whole(data)
    assert len(found) == 27 and found["text 6"] == -150 and found["text 9"] == 4.5
    (note,) = [note for note in data.notes if "cannot be used" in note]
    assert "3 of 30 rows" in note
    assert "line 4: 'many' is not a number" in note and "line 7: 'inf' is not a number" in note
    assert "line 6: no label" in note
    with pytest.raises(DatasetError, match="one number only: 3"):
        load(write(["text,score", "one,3", "two,3.0"]), "number")


def test_sets_with_one_label_a_text_serve_other_targets_where_they_can():
    def starter(target, **settings):
        config = DatasetConfig(name="starter_topics", **settings)
        return load_dataset(config, "classification", target)

    one, several = starter("class"), starter("labels")
    assert several.train.labels.dtype == bool
    np.testing.assert_array_equal(several.train.labels.argmax(axis=1), one.train.labels)
    assert (several.test.labels.sum(axis=1) == 1).all()
    with pytest.raises(DatasetError, match="'starter_topics' has labels, not numbers"):
        starter("number")
    note = starter("labels", max_examples=3).notes[-1]
    assert note.startswith("Training cut to 3") and "No example is left of" in note
    with pytest.raises(DatasetError, match="target must be one of class, labels"):
        starter("score")


def test_labels_have_one_of_three_forms():
    for labels in (np.zeros((2, 3), np.int32), np.zeros(2, bool), np.zeros(3, np.float32)):
        with pytest.raises(ValueError, match=r"int32 or float32 \(2,\), or bool \(2, K\)"):
            LabelledTexts(["a", "b"], labels)
    with pytest.raises(DatasetError, match="dataset.label_separator must be a character"):
        DatasetConfig(name="file", path="a.csv", label_separator=" ")
