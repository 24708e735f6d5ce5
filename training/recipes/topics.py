"""What is it about: recipes for texts of several topics."""

from dataclasses import replace

from model.config import BagOfNgramsConfig, NgramTokenizerConfig
from training.config import OptimizerConfig, RunConfig
from training.datasets.config import DatasetConfig
from training.recipes.bag import weighted_bag


def topics() -> RunConfig:
    """News lines in English and Chinese (starter texts), six topics."""
    return RunConfig(
        name="topics",
        dataset=DatasetConfig(name="starter_topics"),
        tokenizer=NgramTokenizerConfig(max_ngram=2, max_character_ngram=5, num_buckets=2**19),
        model=BagOfNgramsConfig(),
        optimizer=OptimizerConfig(peak_learning_rate=0.01),
        epochs=10,
        patience=5,
    )


def tnews() -> RunConfig:
    """Chinese headlines in 15 classes (CLUE), 53,360 for training; tested on the labelled dev."""
    config = weighted_bag(
        "tnews", DatasetConfig(name="tnews"), "idf", max_ngram=3, rate=10.0, epochs=3
    )
    return replace(config, batch_size=64)


def ag_news_sample() -> RunConfig:
    """English news in four classes (AG News), the 4,999 training rows of the catalogue."""
    config = weighted_bag(
        "ag_news_sample",
        DatasetConfig(name="ag_news_sample"),
        "idf",
        max_ngram=2,
        logistic_regression=10.0,
        rate=1.5,
        epochs=1,
    )
    ngrams = NgramTokenizerConfig(
        max_ngram=2, max_character_ngram=5, num_buckets=2**20, has_counts=True
    )
    return replace(config, tokenizer=ngrams)


def thucnews() -> RunConfig:
    """Chinese headlines in ten classes, 45,000 for training."""
    return weighted_bag(
        "thucnews",
        DatasetConfig(name="thucnews"),
        "naive_bayes",
        max_ngram=3,
        logistic_regression=10.0,
        rate=1.5,
        epochs=1,
    )


def newsgroups() -> RunConfig:
    """Posts with headers in twenty groups (20 Newsgroups by date), 11,314 for training."""
    config = weighted_bag(
        "newsgroups",
        DatasetConfig(name="20newsgroups"),
        "idf",
        max_ngram=2,
        min_texts=2,
        logistic_regression=100.0,
        rate=1.5,
        epochs=1,
    )
    ngrams = NgramTokenizerConfig(max_ngram=2, num_buckets=2**20, has_counts=True)
    # Answers of one thread are in training and validation, which prefers what has them by heart;
    # the test posts are of later threads.
    return replace(config, tokenizer=ngrams, keep="last", patience=0)
