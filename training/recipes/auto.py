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
_LONG = 128  # tokens
MAX_WEIGHTS = 2**24  # of a bag: its buckets times the labels
BATCH_SIZE = 32
CHARACTERS = 5  # of a word, in an n-gram
# What the rates of a bag's updates on one text add up to, halved by the schedule. How far plain SGD
# gets from zero is what an L2 penalty is elsewhere; twice as much learns short texts by heart.
STRENGTH = 0.45
# C of logistic regression, by validation: texts of many n-grams have less of each.
C, C_OF_LONG = 10.0, 30.0


def candidates(
    dataset: DatasetConfig, *, num_labels: int, num_texts: int, is_spaced: bool, num_tokens: int
) -> dict[str, RunConfig]:
    """Recipes by name, the cheap ones first; the first is TF-IDF with logistic regression.

    `is_spaced`: most words have blanks between them, so that characters inside words say more.
    `num_tokens`: of a text, what a network reads. In the two bags after the first, plain SGD on
    texts of length 1, which leaves rare n-grams small, takes the place of an L2 penalty.
    """
    epochs = min(max(round(60_000 / num_texts), 5), 30)  # few texts need many passes
    few_epochs = max(epochs // 2, 4)  # of networks, which know them by heart sooner
    buckets = min(2**20, 2 ** (MAX_WEIGHTS // num_labels).bit_length() // 2)
    # Most n-grams of long texts occur once, weigh most by idf and tell nothing; and of so many each
    # needs a higher rate. What characters inside words add, or spoil, is seen once, at the optimum.
    is_long = num_tokens > _LONG
    ngrams = NgramTokenizerConfig(
        max_ngram=2 if is_spaced else 3,
        max_character_ngram=CHARACTERS if is_spaced and not is_long else 0,
        num_buckets=buckets,
        has_counts=True,
    )
    strength = (1.4 if num_labels == 2 else 7.0) if is_long else STRENGTH
    rate = strength * BATCH_SIZE / epochs
    words = WordTokenizerConfig(max_tokens=num_tokens)

    def bag(name: str, weighting: str, max_ngram: int, **settings: float) -> RunConfig:
        config = weighted_bag(
            name,
            dataset,
            weighting,
            max_ngram=max_ngram,
            min_texts=2 if is_long else 1,
            **{"rate": rate, "epochs": epochs} | settings,
        )
        tokenizer = replace(ngrams, max_ngram=max_ngram)
        return replace(config, tokenizer=tokenizer, batch_size=BATCH_SIZE)

    optimum = bag(
        "logistic_regression",
        "idf",
        ngrams.max_ngram,
        logistic_regression=C_OF_LONG if is_long else C,
        rate=STRENGTH * BATCH_SIZE / 10,
        epochs=1,
    )
    with_characters = replace(
        optimum,
        name="logistic_regression_of_characters",
        tokenizer=replace(ngrams, max_character_ngram=CHARACTERS),
    )
    return {
        "logistic_regression": optimum,
        "idf": bag("idf", "idf", ngrams.max_ngram),
        "naive_bayes": bag("naive_bayes", "naive_bayes", 3, rate=rate / 3 if is_long else rate),
        **({with_characters.name: with_characters} if is_spaced and is_long else {}),
        "convolution": RunConfig(
            name="convolution",
            dataset=dataset,
            tokenizer=words,
            model=GatedConvolutionConfig(dropout=0.4),
            optimizer=OptimizerConfig(peak_learning_rate=1e-3, embedding_rate_factor=3.0),
            epochs=few_epochs,
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
            epochs=few_epochs,
        ),
    }
