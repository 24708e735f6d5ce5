import numpy as np
import pytest

from training.datasets.examples import (
    LabelledTexts,
    TextData,
    classification_data,
    describe_conflicts,
    describe_repeats,
    pick_by_hash,
    split_by_hash,
    split_of,
    text_hash,
    unseen_test_indices,
)


def labelled(*pairs):
    return LabelledTexts([text for text, _ in pairs], np.array([i for _, i in pairs], np.int32))


def test_the_split_is_the_md5_of_the_utf8_text_modulo_ten():
    # md5("a") = 0cc175b9c0f1b6a831c399e269772661, whose last decimal digit is 5.
    assert text_hash("a") == 0x0CC175B9C0F1B6A831C399E269772661
    # A change of the rule would move texts between train and test of every earlier run.
    sides = {text: split_of(text) for text in ("好吃", "难吃", "good", "bad", "0", "3", "12")}
    assert sides == {text: expected(text) for text in sides}
    assert len(set(sides.values())) > 1


def expected(text):
    import hashlib

    rest = int(hashlib.md5(text.encode()).hexdigest(), 16) % 10
    return "test" if rest == 0 else "validation" if rest == 1 else "train"


def test_a_text_stays_on_its_side_whatever_stands_around_it():
    texts = [f"text {i}" for i in range(500)]
    sides = split_by_hash(texts)
    assert sorted(sum(sides.values(), [])) == list(range(500))
    assert 30 < len(sides["test"]) < 75 and 30 < len(sides["validation"]) < 75
    more = ["new"] * 7 + texts[::-1]
    again = split_by_hash(more)
    for side in sides:
        assert {texts[i] for i in sides[side]} == {more[i] for i in again[side]} - {"new"}


def test_a_part_that_exists_officially_leaves_its_texts_in_train():
    texts = [f"text {i}" for i in range(200)]
    both, only_validation = split_by_hash(texts), split_by_hash(texts, held_out=("validation",))
    assert only_validation["test"] == []
    assert only_validation["validation"] == both["validation"]
    assert only_validation["train"] == sorted(both["train"] + both["test"])


def test_a_sample_is_repeatable_ordered_and_not_the_head_of_the_file():
    texts = [f"text {i}" for i in range(100)]
    sample = pick_by_hash(texts, 10)
    assert sample == sorted(sample) and len(set(sample)) == 10
    assert sample != list(range(10))
    assert {texts[i] for i in sample} == {texts[::-1][i] for i in pick_by_hash(texts[::-1], 10)}


def test_repeats_are_counted_where_they_occur():
    sentence = describe_repeats(["a", "a", "b"], ["b", "c"], ["a", "a", "d"])
    assert "1 of 3 training texts" in sentence
    assert "1 of 2 validation texts" in sentence
    assert "2 of 3 test texts" in sentence


def test_texts_with_two_labels_are_counted_across_parts():
    notes = describe_conflicts(labelled(("a", 0), ("b", 1)), labelled(("a", 1), ("b", 1)))
    assert notes == ("Texts that occur with more than one label: 1.",)
    assert describe_conflicts(labelled(("a", 0)), labelled(("b", 1))) == ()


def test_unseen_test_indices_leave_out_exactly_what_train_holds():
    data = classification_data(
        ("no", "yes"),
        labelled(("a", 0), ("b", 1)),
        labelled(("c", 0)),
        labelled(("c", 0), ("a", 0), ("d", 1), ("a", 1)),
    )
    assert unseen_test_indices(data).tolist() == [0, 2]
    assert unseen_test_indices(TextData(["x"], [], ["x", "y"])).tolist() == [1]


@pytest.mark.parametrize("labels", [np.array([0, 1]), np.zeros((1,), np.int32)])
def test_labels_of_another_type_or_length_are_refused(labels):
    with pytest.raises(ValueError, match="int32"):
        LabelledTexts(["a", "b"], labels)
