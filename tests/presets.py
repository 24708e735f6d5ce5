"""Tiny KerasHub presets with random weights, saved to disk as the big ones are."""

from pathlib import Path

import numpy as np

WORDS = "the film was good bad and a very not dull warm funny ##s ##ly 好 看 电 影".split()


def save_bert(folder: Path) -> Path:
    """An encoder with [CLS] and [SEP], which KerasHub has a classifier for."""
    import keras_nlp

    tokenizer = keras_nlp.models.BertTokenizer(
        vocabulary=["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS], lowercase=True
    )
    backbone = keras_nlp.models.BertBackbone(
        vocabulary_size=tokenizer.vocabulary_size(),
        num_layers=2,
        num_heads=2,
        hidden_dim=16,
        intermediate_dim=32,
        max_sequence_length=24,
    )
    return _saved(folder, tokenizer, backbone)


def save_gpt2(folder: Path) -> Path:
    """A decoder whose end of text is its begin and its padding too; KerasHub has no classifier."""
    import keras_nlp

    # The characters that GPT-2 writes for the 256 bytes, and three merges.
    letters = [chr(c) for c in (*range(33, 127), *range(161, 173), *range(174, 324))]
    vocabulary = {"<|endoftext|>": 0} | {letter: i for i, letter in enumerate(letters, start=1)}
    for merged in ("th", "the", "Ġthe"):
        vocabulary[merged] = len(vocabulary)
    tokenizer = keras_nlp.models.GPT2Tokenizer(
        vocabulary=vocabulary, merges=["t h", "th e", "Ġ the"]
    )
    backbone = keras_nlp.models.GPT2Backbone(
        vocabulary_size=len(vocabulary),
        num_layers=2,
        num_heads=2,
        hidden_dim=16,
        intermediate_dim=32,
        max_sequence_length=32,
    )
    return _saved(folder, tokenizer, backbone)


def _saved(folder: Path, tokenizer, backbone) -> Path:
    rng = np.random.default_rng(7)
    for variable in backbone.trainable_variables:  # large enough that texts differ
        variable.assign(rng.normal(0, 0.4, variable.shape) + (variable.name == "gamma"))
    tokenizer.save_to_preset(str(folder))
    backbone.save_to_preset(str(folder))
    return folder
