"""The texts that come with Stepwise, English and Chinese together. No network, no setting."""

import json
from pathlib import Path

import numpy as np

from training.datasets.config import DatasetConfig
from training.datasets.examples import (
    TEST,
    TRAIN,
    VALIDATION,
    ClassificationData,
    LabelledTexts,
    TextData,
    classification_data,
    split_by_hash,
    text_data,
)

FOLDER = Path(__file__).parent / "starter"
SENTIMENT_FILES = ("sentiment_en.jsonl", "sentiment_zh.jsonl")
TOPIC_FILES = ("topics_en.jsonl", "topics_zh.jsonl")
STORY_FILES = ("stories_en.jsonl", "stories_zh.jsonl")

SENTIMENTS = ("negative", "positive")
TOPICS = ("business", "entertainment", "health", "sports", "technology", "world")


def load_sentiment(config: DatasetConfig) -> ClassificationData:
    """Opinions on twelve kinds of things; hash split."""
    return _classification(SENTIMENT_FILES, SENTIMENTS)


def load_topics(config: DatasetConfig) -> ClassificationData:
    """Invented news lines in six classes; hash split."""
    return _classification(TOPIC_FILES, TOPICS)


def load_stories(config: DatasetConfig) -> TextData:
    """Stories of a hundred words; the document is the story's text without title; hash split."""
    stories = [row["text"] for row in _rows(STORY_FILES)]
    sides = split_by_hash(stories)
    train, validation, test = (
        [stories[i] for i in sides[side]] for side in (TRAIN, VALIDATION, TEST)
    )
    return text_data(train, validation, test, [_count_note(STORY_FILES, len(stories))])


def _classification(names: tuple[str, ...], labels: tuple[str, ...]) -> ClassificationData:
    rows = _rows(names)
    index = {label: i for i, label in enumerate(labels)}
    texts = [row["text"] for row in rows]
    everything = LabelledTexts(texts, np.array([index[row["label"]] for row in rows], np.int32))
    sides = split_by_hash(texts)
    return classification_data(
        labels,
        everything.take(sides[TRAIN]),
        everything.take(sides[VALIDATION]),
        everything.take(sides[TEST]),
        [_count_note(names, len(rows))],
    )


def _rows(names: tuple[str, ...]) -> list[dict[str, str]]:
    return [
        json.loads(line) for name in names for line in (FOLDER / name).read_bytes().splitlines()
    ]


def _count_note(names: tuple[str, ...], count: int) -> str:
    return f"{' and '.join(names)}: {count:,} texts, split by a hash of the text."
