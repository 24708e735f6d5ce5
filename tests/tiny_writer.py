"""A language model small enough to be made and exported in seconds."""

import numpy as np

from model.config import SentencePieceTokenizerConfig, TransformerDecoderConfig
from model.tokenizers import END
from training.config import RunConfig
from training.datasets.config import DatasetConfig
from training.datasets.examples import TextData
from training.language_model import LanguageModel

CONTEXT = 32  # tokens; a letter is one
TEXTS = ["abcdefghijklmnopqrstuvwxyz ,.", "猫在睡觉。"] * 3


def tiny_writer() -> LanguageModel:
    """Untrained, with weights so large that its taste in letters is firm."""
    config = RunConfig(
        name="writer",
        dataset=DatasetConfig(name="starter_stories"),
        tokenizer=SentencePieceTokenizerConfig(model_type="char", vocabulary_size=100),
        model=TransformerDecoderConfig(
            num_layers=2,
            width=16,
            num_heads=4,
            num_key_value_heads=2,
            inner_width=32,
            context_length=CONTEXT,
        ),
    )
    learner = LanguageModel.create(config, TextData(train=TEXTS, validation=TEXTS, test=TEXTS))
    rng = np.random.default_rng(0)
    for variable in learner.model.trainable_variables:
        variable.assign(variable.numpy() + rng.normal(scale=0.5, size=variable.shape))
    # A text that ends at once tests nothing: END gets a direction that is rarely taken.
    table = learner.model.embedding.embeddings.numpy()
    table[END] *= 0.1
    learner.model.embedding.embeddings.assign(table)
    return learner
