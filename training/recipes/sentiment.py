"""Is it praise or blame: recipes for two-class texts."""

from dataclasses import replace

from model.config import (
    BagOfNgramsConfig,
    GatedConvolutionConfig,
    NgramTokenizerConfig,
    RecurrentConfig,
    TextCNNConfig,
    TransformerEncoderConfig,
    WordTokenizerConfig,
)
from training.config import OptimizerConfig, RunConfig
from training.datasets.config import DatasetConfig
from training.recipes.bag import weighted_bag


def sentiment() -> RunConfig:
    """Reviews in English and Chinese (starter texts), n-grams started from naive Bayes."""
    return RunConfig(
        name="sentiment",
        dataset=DatasetConfig(name="starter_sentiment"),
        tokenizer=NgramTokenizerConfig(max_ngram=3, max_character_ngram=5, num_buckets=2**20),
        model=BagOfNgramsConfig(),
        optimizer=OptimizerConfig(peak_learning_rate=0.003),
        epochs=8,
    )


def sentiment_lstm() -> RunConfig:
    """The same reviews read word by word in both directions."""
    return RunConfig(
        name="sentiment_lstm",
        dataset=DatasetConfig(name="starter_sentiment"),
        tokenizer=WordTokenizerConfig(max_tokens=64),
        model=RecurrentConfig(),
        optimizer=OptimizerConfig(peak_learning_rate=1e-3, embedding_rate_factor=3.0),
        epochs=8,
    )


def sentiment_gru() -> RunConfig:
    """The same reviews read by GRUs, in both directions, pooled by attention."""
    return RunConfig(
        name="sentiment_gru",
        dataset=DatasetConfig(name="starter_sentiment"),
        tokenizer=WordTokenizerConfig(max_tokens=64),
        model=RecurrentConfig(cell="gru", pooling="attention"),
        optimizer=OptimizerConfig(peak_learning_rate=1e-3, embedding_rate_factor=3.0),
        epochs=8,
    )


def sentiment_text_cnn() -> RunConfig:
    """The same reviews seen one, two and three words at a time."""
    return RunConfig(
        name="sentiment_text_cnn",
        dataset=DatasetConfig(name="starter_sentiment"),
        tokenizer=WordTokenizerConfig(max_tokens=64),
        model=TextCNNConfig(widths="1, 2, 3"),
        optimizer=OptimizerConfig(peak_learning_rate=2e-3, embedding_rate_factor=5.0),
        epochs=8,
    )


def sentiment_gated_convolution() -> RunConfig:
    """The same reviews through two layers of gated convolutions."""
    return RunConfig(
        name="sentiment_gated_convolution",
        dataset=DatasetConfig(name="starter_sentiment"),
        tokenizer=WordTokenizerConfig(max_tokens=64),
        model=GatedConvolutionConfig(),
        optimizer=OptimizerConfig(peak_learning_rate=1e-3, embedding_rate_factor=3.0),
        epochs=8,
    )


def sentiment_transformer() -> RunConfig:
    """The same reviews, every word attending to every other."""
    return RunConfig(
        name="sentiment_transformer",
        dataset=DatasetConfig(name="starter_sentiment"),
        tokenizer=WordTokenizerConfig(max_tokens=64),
        model=TransformerEncoderConfig(),
        optimizer=OptimizerConfig(
            peak_learning_rate=1e-3,
            schedule="cosine(warmup=100)",
            weight_decay=0.01,
            embedding_rate_factor=3.0,
        ),
        epochs=10,
    )


def sst2() -> RunConfig:
    """Sentences from film reviews (Socher et al., 2013), 6,920 for training."""
    return RunConfig(
        name="sst2",
        dataset=DatasetConfig(name="sst2"),
        tokenizer=NgramTokenizerConfig(max_ngram=3, max_character_ngram=5, num_buckets=2**19),
        model=BagOfNgramsConfig(smoothing=3.0),
        optimizer=OptimizerConfig(peak_learning_rate=0.003),
        epochs=5,
    )


def sst5() -> RunConfig:
    """Sentences from film reviews in five grades, 8,544 for training, by proportional odds."""
    return RunConfig(
        name="sst5",
        dataset=DatasetConfig(name="sst5"),
        tokenizer=NgramTokenizerConfig(max_ngram=3, max_character_ngram=5, num_buckets=2**19),
        model=BagOfNgramsConfig(smoothing=3.0),
        target="grade",
        optimizer=OptimizerConfig(peak_learning_rate=0.003),
        epochs=5,
    )


def imdb() -> RunConfig:
    """Whole film reviews (Maas et al., 2011), 20,000 for training."""
    config = weighted_bag(
        "imdb",
        DatasetConfig(name="imdb"),
        "naive_bayes",
        max_ngram=3,
        min_texts=2,
        rate=10.0,
        epochs=3,
    )
    ngrams = NgramTokenizerConfig(max_ngram=3, num_buckets=2**22)
    # Validation has reviews of the films of training, the test has not: by accuracy it would prefer
    # higher rates that know names by heart. The loss tells, and the last weights have the least.
    return replace(config, tokenizer=ngrams, batch_size=64, keep="last", patience=0)


def chnsenticorp() -> RunConfig:
    """Chinese reviews of hotels, notebooks and books, 9,600 for training."""
    return RunConfig(
        name="chnsenticorp",
        dataset=DatasetConfig(name="chnsenticorp"),
        tokenizer=NgramTokenizerConfig(max_ngram=4, num_buckets=2**21),
        model=BagOfNgramsConfig(naive_bayes_scale=0.0),
        optimizer=OptimizerConfig(peak_learning_rate=0.01),
        epochs=5,
    )


def weibo2018() -> RunConfig:
    """Chinese posts, 10,000 for training."""
    return weighted_bag(
        "weibo2018", DatasetConfig(name="weibo2018"), "naive_bayes", max_ngram=3, rate=3.0, epochs=3
    )


def waimai_10k() -> RunConfig:
    """Chinese reviews of food deliveries, 9,600 for training."""
    return weighted_bag(
        "waimai_10k", DatasetConfig(name="waimai_10k"), "idf", max_ngram=3, rate=1.0, epochs=5
    )


def online_shopping() -> RunConfig:
    """Chinese reviews of ten kinds of goods, 50,000 for training."""
    return weighted_bag(
        "online_shopping",
        DatasetConfig(name="online_shopping_10_cats"),
        "naive_bayes",
        max_ngram=3,
        rate=3.0,
        epochs=5,
    )
