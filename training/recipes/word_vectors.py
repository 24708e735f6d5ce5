"""Which words are alike: recipes that train word vectors, on the texts of any data set."""

from model.config import CBOWConfig, GloVeConfig, SkipGramConfig, WordTokenizerConfig
from training.config import OptimizerConfig, RunConfig
from training.datasets.config import DatasetConfig

_LONGEST = 2**30  # words of a text: none is cut


def skip_gram() -> RunConfig:
    """Word vectors by skip-gram with negative sampling, of the starter stories or any data set."""
    return RunConfig(
        name="skip_gram",
        dataset=DatasetConfig(name="starter_stories"),
        tokenizer=WordTokenizerConfig(min_count=5, max_tokens=_LONGEST),
        model=SkipGramConfig(),
        strategy="adam",
        optimizer=OptimizerConfig(peak_learning_rate=5e-3, schedule="linear", clip_norm=None),
        batch_size=256,
        epochs=10,
        patience=0,
        keep="last",
    )


def cbow() -> RunConfig:
    """Word vectors by CBOW with negative sampling, of the starter stories or any data set."""
    return RunConfig(
        name="cbow",
        dataset=DatasetConfig(name="starter_stories"),
        tokenizer=WordTokenizerConfig(min_count=5, max_tokens=_LONGEST),
        model=CBOWConfig(),
        strategy="adam",
        optimizer=OptimizerConfig(peak_learning_rate=5e-3, schedule="linear", clip_norm=None),
        batch_size=256,
        epochs=10,
        patience=0,
        keep="last",
    )


def glove() -> RunConfig:
    """Word vectors by GloVe, of the starter stories or any data set."""
    return RunConfig(
        name="glove",
        dataset=DatasetConfig(name="starter_stories"),
        tokenizer=WordTokenizerConfig(min_count=5, max_tokens=_LONGEST),
        model=GloVeConfig(),
        strategy="adam",
        optimizer=OptimizerConfig(peak_learning_rate=5e-3, schedule="linear", clip_norm=None),
        batch_size=1024,
        epochs=6,
        patience=0,
        keep="last",
    )
