"""Neighbours and analogies, on vectors whose answers are known and on the real ones."""

import numpy as np
import pytest

from training.vectors.analogies import (
    Question,
    accuracy_of,
    built_in_questions,
    nearest,
    read_questions,
)
from training.vectors.files import VectorsError, WordVectors, read_vectors

# Who (first number), of what sex (second), and what else.
TOY = {
    "king": [4, 1, 0],
    "queen": [4, -1, 0],
    "man": [1, 1, 0],
    "woman": [1, -1, 0],
    "river": [0, 0, 3],
    "stream": [0, 0.5, 9],
    "nothing": [0, 0, 0],
}


def toy():
    return WordVectors(list(TOY), np.array(list(TOY.values()), np.float32))


def test_the_nearest_words_come_with_their_cosines():
    near = nearest(toy(), "river", 2)
    assert list(near) == ["stream", "king"]
    assert near["stream"] == pytest.approx(9 / np.hypot(9, 0.5)) and near["king"] == 0
    assert list(nearest(toy(), "king", 1)) == ["queen"]  # whatever their lengths
    assert len(nearest(toy(), "king", 99)) == len(TOY) - 1
    with pytest.raises(ValueError, match="'prince' is none of the 7 words"):
        nearest(toy(), "prince", 1)


def test_analogies_are_solved_by_3cosadd_without_the_words_asked():
    matrix = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)
    vectors = WordVectors([f"w{i}" for i in range(30)], matrix)
    unit = matrix / np.linalg.norm(matrix, axis=1, keepdims=True)
    questions, right = [], 0
    for a, b, c in np.random.default_rng(1).integers(0, 30, (600, 3)):
        target = unit[b] - unit[a] + unit[c]
        order = np.argsort(-unit @ target)
        best = next(int(i) for i in order if i not in (a, b, c))
        answer = best if len(questions) % 3 else int(order[5])
        right += answer == best
        questions.append(Question("s", f"w{a}", f"w{b}", f"w{c}", f"w{answer}"))
    found = accuracy_of(vectors, questions)
    assert found["num_correct"] == right and 390 < right < 600
    assert found["num_covered"] == found["num_questions"] == 600


def test_coverage_is_told_by_section_and_capitals_are_forgiven():
    questions = [
        Question("family", "Man", "King", "Woman", "Queen"),
        Question("family", "man", "king", "woman", "stream"),
        Question("family", "boy", "prince", "girl", "princess"),
        Question("water", "river", "stream", "brook", "burn"),
    ]
    found = accuracy_of(toy(), questions)
    assert found == {
        "num_questions": 4,
        "num_covered": 2,
        "num_correct": 1,
        "by_section": {
            "family": {"num_questions": 3, "num_covered": 2, "num_correct": 1},
            "water": {"num_questions": 1, "num_covered": 0, "num_correct": 0},
        },
    }


def test_questions_of_a_file_have_its_sections(tmp_path):
    path = tmp_path / "questions.txt"
    path.write_text(
        ": capitals\nAthens Greece Oslo Norway\n\n: 家\n父 母 男 女\n", encoding="utf-8"
    )
    assert read_questions(path) == [
        Question("capitals", "Athens", "Greece", "Oslo", "Norway"),
        Question("家", "父", "母", "男", "女"),
    ]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b": s\na b c d\na b c\n", "line 3: expected four words.*Received: 'a b c'"),
        (b": s\n", "no question"),
        ("a b c é\n".encode("latin-1"), "not UTF-8"),
    ],
)
def test_other_files_are_refused(tmp_path, data, message):
    path = tmp_path / "questions.txt"
    path.write_bytes(data)
    with pytest.raises(VectorsError, match=message):
        read_questions(path)


def test_our_own_questions_are_of_four_words_each_and_none_is_asked_twice():
    questions = built_in_questions()
    assert all(len({q.a, q.b, q.c, q.answer}) == 4 for q in questions)
    assert len({(q.a, q.b, q.c, q.answer) for q in questions}) == len(questions) > 1000


# The real ones ------------------------------------------------------------------------------------


@pytest.mark.data
def test_real_glove_knows_its_neighbours_and_analogies(real_vectors):
    path = real_vectors / "glove.6B.50d.first2446.txt"
    vectors, _ = read_vectors(path)
    assert {"germany", "italy", "spain"} & nearest(vectors, "france", 5).keys()
    assert "daughter" in nearest(vectors, "son", 3) and "four" in nearest(vectors, "three", 2)
    found = accuracy_of(vectors, built_in_questions())
    assert found["num_covered"] > 300 and found["num_correct"] > 0.4 * found["num_covered"]


@pytest.mark.data
def test_real_chinese_characters_know_theirs(real_vectors):
    path = real_vectors / "zh_char_tencent.200d.txt.gz"
    vectors, _ = read_vectors(path)
    assert {"五", "三"} & nearest(vectors, "四", 3).keys()
    found = accuracy_of(vectors, built_in_questions())
    assert found["by_section"]["zh, 男女"]["num_correct"] > 10
