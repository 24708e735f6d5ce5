"""The table of data sets and the one door to them."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from model.config.word_vectors import WORD_VECTORS
from training.datasets import public, starter
from training.datasets.config import (
    CLASS,
    LABELS,
    NUMBER,
    TARGETS,
    USER_FILE,
    DatasetConfig,
    DatasetError,
)
from training.datasets.corpus import CorpusData, fingerprint_of, is_streamed, load_corpus
from training.datasets.download import sha256_of
from training.datasets.examples import ClassificationData, LabelledTexts, TextData, pick_by_hash
from training.datasets.sources import digests
from training.datasets.user_file import load_classification_file, load_text_file

Task = Literal["classification", "generation"]
CLASSIFICATION: Task = "classification"
GENERATION: Task = "generation"
TEXTS = WORD_VECTORS  # as a task: what is learned from texts alone takes them from any data set


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A line of `DATASETS`."""

    name: str
    task: Task
    languages: tuple[str, ...]  # "en", "zh"
    description: str  # one line
    load: Callable[[DatasetConfig], ClassificationData | TextData]
    source: str | None = None  # a key of sources.json; None: the texts come with Stepwise
    files: tuple[str, ...] = ()  # of starter/, for those that come with Stepwise


_TABLE = (
    Dataset(
        name="starter_sentiment",
        task=CLASSIFICATION,
        languages=("en", "zh"),
        description="5,440 opinions, negative or positive; comes with Stepwise",
        load=starter.load_sentiment,
        files=starter.SENTIMENT_FILES,
    ),
    Dataset(
        name="starter_topics",
        task=CLASSIFICATION,
        languages=("en", "zh"),
        description="1,980 news lines in six classes; comes with Stepwise",
        load=starter.load_topics,
        files=starter.TOPIC_FILES,
    ),
    Dataset(
        name="starter_stories",
        task=GENERATION,
        languages=("en", "zh"),
        description="1,249 very short stories; comes with Stepwise",
        load=starter.load_stories,
        files=starter.STORY_FILES,
    ),
    Dataset(
        name="sst2",
        task=CLASSIFICATION,
        languages=("en",),
        description="Stanford Sentiment Treebank, 9,613 sentences, negative or positive",
        load=public.load_sst2,
        source="sst2",
    ),
    Dataset(
        name="sst5",
        task=CLASSIFICATION,
        languages=("en",),
        description="Stanford Sentiment Treebank, 11,855 sentences in five grades",
        load=public.load_sst5,
        source="sst5",
    ),
    Dataset(
        name="imdb",
        task=CLASSIFICATION,
        languages=("en",),
        description="Large Movie Review Dataset, 50,000 reviews, negative or positive",
        load=public.load_imdb,
        source="imdb",
    ),
    Dataset(
        name="ag_news_sample",
        task=CLASSIFICATION,
        languages=("en",),
        description="AG News, 4,999 training rows and the official 7,600 test rows, four topics",
        load=public.load_ag_news_sample,
        source="ag_news",
    ),
    Dataset(
        name="20newsgroups",
        task=CLASSIFICATION,
        languages=("en",),
        description="20 Newsgroups by date, 18,846 posts with headers",
        load=public.load_20newsgroups,
        source="20newsgroups",
    ),
    Dataset(
        name="sms_spam",
        task=CLASSIFICATION,
        languages=("en",),
        description="SMS Spam Collection, 5,574 messages, ham or spam",
        load=public.load_sms_spam,
        source="sms_spam",
    ),
    Dataset(
        name="chnsenticorp",
        task=CLASSIFICATION,
        languages=("zh",),
        description="ChnSentiCorp, 12,000 reviews of hotels, notebooks and books",
        load=public.load_chnsenticorp,
        source="chnsenticorp",
    ),
    Dataset(
        name="waimai_10k",
        task=CLASSIFICATION,
        languages=("zh",),
        description="11,987 reviews of food deliveries, negative or positive",
        load=public.load_waimai_10k,
        source="waimai_10k",
    ),
    Dataset(
        name="online_shopping_10_cats",
        task=CLASSIFICATION,
        languages=("zh",),
        description="62,773 reviews of ten kinds of goods, negative or positive",
        load=public.load_online_shopping_10_cats,
        source="online_shopping_10_cats",
    ),
    Dataset(
        name="weibo2018",
        task=CLASSIFICATION,
        languages=("zh",),
        description="10,500 Weibo posts, negative or positive",
        load=public.load_weibo2018,
        source="weibo2018",
    ),
    Dataset(
        name="tnews",
        task=CLASSIFICATION,
        languages=("zh",),
        description="TNEWS of CLUE, 63,360 headlines in 15 classes",
        load=public.load_tnews,
        source="tnews",
    ),
    Dataset(
        name="thucnews",
        task=CLASSIFICATION,
        languages=("zh",),
        description="THUCNews, 65,000 headlines in 10 classes",
        load=public.load_thucnews,
        source="thucnews",
    ),
    Dataset(
        name="tinyshakespeare",
        task=GENERATION,
        languages=("en",),
        description="Tiny Shakespeare, 1.1 million characters",
        load=public.load_tinyshakespeare,
        source="tinyshakespeare",
    ),
    Dataset(
        name="tang_poems",
        task=GENERATION,
        languages=("zh",),
        description="Poems of the Tang, Traditional Chinese, title first",
        load=public.load_tang_poems,
        source="chinese_poetry",
    ),
)

DATASETS: dict[str, Dataset] = {dataset.name: dataset for dataset in _TABLE}


def load_dataset(
    config: DatasetConfig, task: str, target: str = CLASS
) -> ClassificationData | TextData:
    """Reads, and if need be fetches, the data set a config names.

    `task` "classification" gives `ClassificationData` with the labels that `target` (a key of
    `TARGETS`) asks for, "generation" `TextData`, `TEXTS` either. Raises `DatasetError` for an
    unknown name, a set made for the other task or without such labels, or files that cannot be
    read.
    """
    # Only a generator reads what stays on disk; `max_examples` and other tasks want lists.
    streams = task == GENERATION and config.name == USER_FILE and is_streamed(config)
    if config.streaming is True and task != GENERATION:
        raise DatasetError(
            "dataset.streaming=true is for texts that a language model learns to write; those of "
            f"other tasks are read into memory: leave it out. Received: {config.path}"
        )
    if task == TEXTS:
        task = DATASETS[config.name].task if config.name in DATASETS else GENERATION
    if task not in (CLASSIFICATION, GENERATION):
        raise DatasetError(f'task must be "classification" or "generation". Received: {task!r}')
    if target not in TARGETS:
        raise DatasetError(f"target must be one of {', '.join(TARGETS)}. Received: {target!r}")
    if config.name == USER_FILE:
        if task == GENERATION:
            texts = load_corpus(config) if streams else load_text_file(config)
            return _cut(texts, config.max_examples)
        return _joined(load_classification_file(config, target), config)
    dataset = _dataset(config.name)
    if dataset.task != task:
        others = ", ".join(name for name, other in DATASETS.items() if other.task == task)
        raise DatasetError(
            f"dataset.name={config.name!r} is made for {dataset.task}, and this run is a {task}. "
            f'For {task}: {others}, or "file".'
        )
    return _joined(_with_target(dataset.load(config), target, config.name), config)


def fingerprint(config: DatasetConfig) -> str:
    """A sha256 that changes when the texts behind `config` change. Reads files, parses nothing.

    Your own files: their content. A public set: the pinned sha256 of its files, or the real one of
    a file under STEPWISE_DATA that differs. Settings of `config` are not part of it.
    """
    if config.name == USER_FILE:
        paths = (config.path, config.validation_path, config.test_path)
        parts = [_sha256_of_user_file(path) if path else "" for path in paths]
    else:
        dataset = _dataset(config.name)
        if dataset.source is None:
            parts = [sha256_of(starter.FOLDER / file) for file in dataset.files]
        else:
            parts = digests(dataset.source)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _dataset(name: str) -> Dataset:
    if name not in DATASETS:
        raise DatasetError(
            f"No data set is named {name!r}. Known: {', '.join(DATASETS)}, "
            'or "file" for your own with dataset.path.'
        )
    return DATASETS[name]


def _with_target(
    data: ClassificationData | TextData, target: str, name: str
) -> ClassificationData | TextData:
    """The data of a set with one label a text, as `target` wants them."""
    if isinstance(data, TextData) or target not in (LABELS, NUMBER):
        return data
    if target == NUMBER:
        raise DatasetError(
            f"dataset.name={name!r} has labels, not numbers: target=number is for your own file."
        )

    def each_by_itself(split: LabelledTexts) -> LabelledTexts:
        is_label = split.labels[:, None] == range(len(data.label_names))
        return LabelledTexts(split.texts, is_label)

    return replace(
        data,
        train=each_by_itself(data.train),
        validation=each_by_itself(data.validation),
        test=each_by_itself(data.test),
    )


def _joined(
    data: ClassificationData | TextData, config: DatasetConfig
) -> ClassificationData | TextData:
    """`data`, cut to `max_examples`, with the validation split in training if that is asked for."""
    data = _cut(data, config.max_examples)
    if not config.join_validation:
        return data
    if isinstance(data, TextData):
        raise DatasetError("dataset.join_validation=true is for labelled texts; leave it out.")
    note = (
        f"The {len(data.validation):,} validation texts are trained on (join_validation): figures "
        "on them say nothing of new texts."
    )
    train = LabelledTexts(
        [*data.train.texts, *data.validation.texts],
        np.concatenate([data.train.labels, data.validation.labels]),
    )
    return replace(data, train=train, notes=(*data.notes, note))


def _cut(
    data: ClassificationData | TextData, max_examples: int | None
) -> ClassificationData | TextData:
    """`data` with at most `max_examples` training examples, picked by hash and not by position."""
    if max_examples is None or isinstance(data, CorpusData) or len(data.train) <= max_examples:
        return data
    note = f"Training cut to {max_examples:,} of {len(data.train):,} examples (max_examples)."
    if isinstance(data, TextData):
        train = [data.train[i] for i in pick_by_hash(data.train, max_examples)]
        return replace(data, train=train, notes=(*data.notes, note))
    chosen = data.train.take(pick_by_hash(data.train.texts, max_examples))
    labels = chosen.labels
    present = np.flatnonzero(labels.any(axis=0)) if labels.ndim == 2 else labels
    missing = set(range(len(data.label_names))) - set(present.tolist())
    if missing:
        names = ", ".join(data.label_names[i] for i in sorted(missing))
        note += f" No example is left of: {names}."
    return replace(data, train=chosen, notes=(*data.notes, note))


def _sha256_of_user_file(path: str) -> str:
    try:
        return fingerprint_of(path)
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror}.") from error
