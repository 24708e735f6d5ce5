"""What `fit auto` tries on texts that it knows nothing of."""

from dataclasses import replace

from model.config import (
    GatedConvolutionConfig,
    NgramTokenizerConfig,
    TransformerEncoderConfig,
    WordTokenizerConfig,
)
from training.config import OptimizerConfig, RunConfig
from training.datasets.config import DatasetConfig
from training.recipes.bag import weighted_bag

AUTO = "auto"
MAX_WEIGHTS = 2**24  # of a bag: its buckets times the labels


def candidates(
    dataset: DatasetConfig, *, num_labels: int, num_texts: int, is_spaced: bool, num_tokens: int
) -> dict[str, RunConfig]:
    """Recipes by name, the cheap ones first; the first is TF-IDF with logistic regression.

    `is_spaced`: most words have blanks between them, so that characters inside words say more.
    `num_tokens`: of a text, what a network reads. Plain SGD on texts of length 1, which leaves rare
    n-grams small, takes the place of an L2 penalty.
    """
    epochs = min(max(round(60_000 / num_texts), 5), 30)  # few texts need many passes
    buckets = min(2**20, 2 ** (MAX_WEIGHTS // num_labels).bit_length() // 2)
    if is_spaced:
        ngrams = NgramTokenizerConfig(max_ngram=2, max_character_ngram=5, num_buckets=buckets)
    else:
        ngrams = NgramTokenizerConfig(max_ngram=3, num_buckets=buckets)
    words = WordTokenizerConfig(max_tokens=num_tokens)

    def bag(weighting: str, rate: float) -> RunConfig:
        config = weighted_bag(weighting, dataset, weighting, max_ngram=1, rate=rate, epochs=epochs)
        return replace(config, tokenizer=ngrams)

    return {
        "idf": bag("idf", 5.0 if num_labels == 2 else 20.0),
        "naive_bayes": bag("naive_bayes", 3.0 if num_labels == 2 else 10.0),
        "convolution": RunConfig(
            name="convolution",
            dataset=dataset,
            tokenizer=words,
            model=GatedConvolutionConfig(dropout=0.4),
            optimizer=OptimizerConfig(peak_learning_rate=1e-3, embedding_rate_factor=3.0),
            epochs=epochs,
        ),
        "transformer": RunConfig(
            name="transformer",
            dataset=dataset,
            tokenizer=words,
            model=TransformerEncoderConfig(),
            optimizer=OptimizerConfig(
                peak_learning_rate=1e-3,
                schedule="cosine(warmup=100)",
                weight_decay=0.01,
                embedding_rate_factor=3.0,
            ),
            epochs=epochs,
        ),
    }
