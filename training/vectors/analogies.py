"""What word vectors know: neighbours by cosine, and analogies by 3CosAdd.

Axes: V words, D numbers of a vector, Q questions.
"""

from __future__ import annotations

import collections
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from training.vectors.files import VectorsError, WordVectors

_AT_ONCE = 512  # questions: bounds memory
# Pairs that stand to each other as one another do: each two pairs of a line make two questions.
PAIRS = {
    "en, she and he": "he she, him her, his her, man woman, men women, boy girl, father mother, "
    "son daughter, brother sister, husband wife, king queen, prince princess, lord lady",
    "en, one and more": "day days, year years, man men, woman women, child children, eye eyes, "
    "friend friends, hand hands, word words, thing things, tree trees, bird birds, girl girls",
    "en, now and then": "is was, are were, do did, go went, say said, see saw, come came, "
    "make made, know knew, take took, give gave, find found, think thought, run ran",
    "en, opposites": "good bad, big small, old new, hot cold, day night, up down, in out, "
    "love hate, life death, first last, more less, best worst",
    "zh, 男女": "他 她, 男 女, 父 母, 爸 妈, 哥 姐, 弟 妹, 爷 奶, 公 婆, 王 后",
    "zh, 反义": "大 小, 多 少, 高 低, 长 短, 好 坏, 上 下, 前 后, 左 右, 来 去, 冷 热, 黑 白, "
    "快 慢, 早 晚, 新 旧, 天 地, 东 西, 南 北, 古 今",
    "zh, 数": "一 二, 二 三, 三 四, 四 五, 五 六, 六 七, 七 八, 八 九, 九 十",
}


@dataclass(frozen=True)
class Question:
    """`a` is to `b` as `c` is to `answer`."""

    section: str
    a: str
    b: str
    c: str
    answer: str


def built_in_questions() -> list[Question]:
    """All that `PAIRS` makes, for corpora of English and of single Chinese characters."""
    return [
        Question(section, *first, *second)
        for section, line in PAIRS.items()
        for first, second in itertools.permutations((p.split() for p in line.split(", ")), 2)
        if len({*first, *second}) == 4
    ]


def read_questions(path: str | Path) -> list[Question]:
    """Those of a file as Google's questions-words.txt: ": section", and lines of four words.

    Raises VectorsError naming the first line that is neither.
    """
    section, questions = "", []
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise VectorsError(f"{path} is not UTF-8: {error.reason} at byte {error.start}.") from error
    for number, line in enumerate(lines, 1):
        words = line.split()
        if line.startswith(":"):
            section = line[1:].strip()
        elif len(words) == 4:
            questions.append(Question(section, *words))
        elif words:
            raise VectorsError(
                f"{path}, line {number}: expected four words, or a section as ': name'. "
                f"Received: {line[:60]!r}"
            )
    if not questions:
        raise VectorsError(f"{path} has no question: expected lines of four words.")
    return questions


def nearest(vectors: WordVectors, word: str, count: int) -> dict[str, float]:
    """The `count` other words with the highest cosine to `word`, and those, highest first.

    Raises ValueError for a word without a vector.
    """
    if word not in vectors.words:
        raise ValueError(f"{word!r} is none of the {len(vectors.words):,} words of the vocabulary.")
    place, directions = vectors.words.index(word), _directions(vectors.matrix)
    cosine = directions @ directions[place]
    cosine[place] = -np.inf
    order = np.argsort(-cosine, kind="stable")[: min(count, len(cosine) - 1)]
    return {vectors.words[i]: float(cosine[i]) for i in order}


def accuracy_of(vectors: WordVectors, questions: Sequence[Question]) -> dict:
    """How many questions are answered rightly, in all and by section.

    The answer is the word closest by cosine to b - a + c, vectors of length 1, other than the three
    (3CosAdd; Mikolov et al., 2013c; Levy & Goldberg, 2014). A question counts as covered if
    the vocabulary has all four words, in the given or in lower case. Gives "num_questions",
    "num_covered", "num_correct", and by section these three.
    """
    ids = {word: i for i, word in enumerate(vectors.words)}
    directions = _directions(vectors.matrix)
    table: dict[str, dict[str, int]] = collections.defaultdict(
        lambda: {"num_questions": 0, "num_covered": 0, "num_correct": 0}
    )
    covered: list[tuple[str, list[int]]] = []
    for question in questions:
        table[question.section]["num_questions"] += 1
        words = (question.a, question.b, question.c, question.answer)
        places = [ids.get(word, ids.get(word.casefold())) for word in words]
        known = [place for place in places if place is not None]
        if len(known) == len(words):
            covered.append((question.section, known))
    for start in range(0, len(covered), _AT_ONCE):
        piece = covered[start : start + _AT_ONCE]
        a, b, c, answer = np.array([places for _, places in piece]).T  # (Q,) each
        score = (directions[b] - directions[a] + directions[c]) @ directions.T  # (Q, V)
        for asked in (a, b, c):
            score[np.arange(len(piece)), asked] = -np.inf
        for (section, _), is_right in zip(piece, score.argmax(axis=1) == answer, strict=True):
            table[section]["num_covered"] += 1
            table[section]["num_correct"] += int(is_right)
    return _totals(table.values()) | {"by_section": dict(table)}


def _totals(rows: Iterable[dict[str, int]]) -> dict[str, int]:
    rows = list(rows)
    names = ("num_questions", "num_covered", "num_correct")
    return {name: sum(row[name] for row in rows) for name in names}


def _directions(matrix: np.ndarray) -> np.ndarray:
    """Rows of length 1, (V, D); a row of zeros stays."""
    return matrix / np.maximum(np.linalg.norm(matrix, axis=1, keepdims=True), 1e-12)
