"""Repeats by hand: which bug would count one more or one less?"""

import numpy as np
import pytest

from training.__main__ import main
from training.datasets.examples import LabelledTexts, TextData, classification_data
from training.leakage import ALIKE, NEARLY, SAME, examples, find_leakage, normalised

LONG = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen"


def labelled(*pairs):
    return LabelledTexts([t for t, _ in pairs], np.array([label for _, label in pairs], np.int32))


def data(train, validation=(("v", 0),), test=(("t", 0),)):
    return classification_data(
        ("no", "yes"), labelled(*train), labelled(*validation), labelled(*test)
    )


def found_in(leakage):
    return {(f.split, f.other, f.degree): f.pairs for f in leakage.findings}


def test_each_text_is_counted_once_by_the_strictest_degree_and_points_at_the_first():
    found = find_leakage(
        data(
            train=[("A film.", 0), ("b", 0), ("A film.", 0), ("a FILM!", 0)],
            validation=[("c", 1), ("ａ film", 1), ("b", 0)],
            test=[("c", 1), ("B?", 0), ("d", 0)],
        )
    )
    assert found_in(found) == {
        ("train", "train", SAME): ((2, 0),),
        ("train", "train", ALIKE): ((3, 0),),
        ("validation", "train", SAME): ((2, 1),),
        ("validation", "train", ALIKE): ((1, 0),),
        ("test", "train", ALIKE): ((1, 1),),
        ("test", "validation", SAME): ((0, 0),),
        ("test", "validation", ALIKE): ((1, 2),),
    }
    # "a film" is 0 in training and 1 on validation; all its places are told.
    (conflict,) = found.conflicts
    assert conflict == (("train", 0), ("train", 2), ("train", 3), ("validation", 1))
    lines = list(found.lines())
    assert "train: 1 of 4 texts are earlier in it, the same text." in lines
    assert any(line.startswith("Contradictions: 1 text") for line in lines)


# Fifteen words are eight runs of eight. A text of all of them and one word more shares 8 of 9,
# of three words more 8 of 11; a word changed in the middle spoils every run.
@pytest.mark.parametrize(
    ("text", "is_near"),
    [
        (LONG + " more", True),
        (LONG + " and three more", False),
        (LONG.replace("eight", "acht"), False),
        ("ONE, two - three four; five six seven eight nine!", True),  # a part of it
        ("one two three four five six seven", False),  # too short for a run
    ],
)
def test_near_repeats_share_four_fifths_of_their_runs(text, is_near):
    found = find_leakage(data(train=[("x y z", 0), (LONG, 0)], test=[("other", 0), (text, 0)]))
    expected = {("test", "train", NEARLY): ((1, 1),)} if is_near else {}
    assert found_in(found) == expected


def test_within_training_the_later_of_two_near_repeats_is_told_and_chinese_goes_by_characters():
    chinese = "这家饭店的菜很好吃而且服务也不错"
    found = find_leakage(TextData([chinese, "别的", chinese[2:], LONG], [LONG + " x"], ["q"]))
    assert found_in(found) == {
        ("train", "train", NEARLY): ((2, 0),),
        ("validation", "train", NEARLY): ((0, 3),),
    }


def test_a_run_that_a_text_repeats_counts_once():
    laugh = " ".join(["ha"] * 60)
    # One run that training has, seven across the border and one of its own: 1 of 9, not 53 of 61.
    test = laugh + " " + " ".join(LONG.split()[:8])
    assert find_leakage(data(train=[(laugh, 0)], test=[(test, 0)])).findings == ()


def test_runs_never_cross_from_one_text_into_the_next():
    words = LONG.split()
    train = [(" ".join(words[:8]), 0), (" ".join(words[8:]), 0)]
    found = find_leakage(data(train=train, test=[(LONG, 0)]))  # 1 of its 8 runs is there
    assert found.findings == ()


def test_nothing_is_said_in_words():
    found = find_leakage(data(train=[("a", 0), ("", 0)]))
    assert list(found.lines()) == ["No repeats, no leakage, no contradictions."]
    assert find_leakage(TextData([], [], [])).findings == ()


def test_texts_of_marks_alone_stay_apart():
    assert normalised(":-)") != normalised(":-(")
    assert find_leakage(data(train=[(":-)", 0), (":-(", 1)])).conflicts == ()


def test_too_much_text_is_told(monkeypatch):
    monkeypatch.setattr("training.leakage.MAX_CHARACTERS", 10)
    found = find_leakage(data(train=[(LONG, 0)], test=[(LONG + " x", 0), (LONG, 0)]))
    assert set(found_in(found)) == {("test", "train", SAME)}
    assert any("not looked for" in line for line in found.lines())


def test_examples_show_both_texts_and_the_labels_of_a_contradiction():
    both = data(train=[("A film.", 0)], test=[("a film", 1)])
    lines = list(examples(both, find_leakage(both), 3))
    assert lines == [
        "\ntest: 1 of 1 texts are in train, the same but for case, marks and blanks",
        "  test 0: a film",
        "    train 0: A film.",
        "\nContradictions",
        "  A film.",
        "    train 0: no",
        "    test 0: yes",
    ]
    assert list(examples(both, find_leakage(both), 0)) == [lines[0], lines[3]]


def test_the_command_looks_into_a_file_of_the_users(tmp_path, capsys):
    def write(name, *rows):
        path = tmp_path / name
        path.write_text("text,label\n" + "".join(f"{t},{label}\n" for t, label in rows))
        return str(path)

    more = [(f"text {i}", "yes") for i in range(9)]
    train = write("train.csv", ("good", "yes"), ("bad", "no"), ("Good!", "no"), *more)
    rest = write("rest.csv", ("bad", "no"), ("fine", "yes"))
    arguments = ["check", "--data", train, "--validation-data", rest, "--test-data", rest]
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert "test: 1 of 2 texts are in train, the same text." in said
    assert "train 2: Good!" in said and "train 0: good" in said
    assert main(["check"]) == 1
    assert "check takes the name of a data set" in capsys.readouterr().err
