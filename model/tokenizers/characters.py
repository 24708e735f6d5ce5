"""Characters looked up in a vocabulary."""

from __future__ import annotations

import collections
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf

from model.config.tokenizers import CharacterTokenizerConfig
from model.tokenizers.normalization import (
    CASE_FOLDED,
    UNKNOWN,
    Normalizer,
    cut,
    is_list_of_words,
    normalized,
    read_vocabulary,
    write_vocabulary,
)
from model.tokenizers.words import most_frequent


class CharacterTokenizer(tf.Module):
    """Each code point of the normalised text, blanks and line ends included, is a token.

    Call: string (B,) -> ragged int32 (B, T), T at most `max_tokens`.
    """

    file_name = "vocabulary.json"

    def __init__(
        self, characters: Sequence[str], max_tokens: int, normalize: Normalizer = CASE_FOLDED
    ):
        """`characters` in the order of their ids, which start at 2."""
        super().__init__()
        self.characters, self.max_tokens = list(characters), max_tokens
        self.normalize, self.vocabulary_size = normalize, len(self.characters) + 2
        self.table = tf.lookup.StaticHashTable(
            tf.lookup.KeyValueTensorInitializer(
                tf.constant([ord(character) for character in self.characters], tf.int32),
                tf.range(2, self.vocabulary_size, dtype=tf.int32),
            ),
            default_value=UNKNOWN,
        )

    @classmethod
    def train(cls, texts: Sequence[str], config: CharacterTokenizerConfig) -> CharacterTokenizer:
        """The most frequent characters of `texts`; ties go by their code points."""
        normalize = Normalizer.create(config)
        counts: collections.Counter[str] = collections.Counter()
        for text in normalized(normalize, texts):
            counts.update(text)
        return cls(most_frequent(counts, config), config.max_tokens, normalize)

    def __call__(self, text: tf.Tensor) -> tf.RaggedTensor:
        characters = tf.strings.unicode_decode(self.normalize.to_valid(text), "UTF-8")
        return tf.ragged.map_flat_values(self.table.lookup, cut(characters, self.max_tokens))

    def save(self, folder: Path) -> None:
        write_vocabulary(folder / self.file_name, self.characters)
        self.normalize.save(folder)

    @classmethod
    def load(cls, folder: Path, config: CharacterTokenizerConfig) -> CharacterTokenizer:
        characters = read_vocabulary(folder / cls.file_name, _is_list_of_characters)
        return cls(characters, config.max_tokens, Normalizer.load(folder, config))


def _is_list_of_characters(vocabulary: Any) -> bool:
    return is_list_of_words(vocabulary) and all(len(character) == 1 for character in vocabulary)
