"""Words: whole by their vocabulary, and as hashed n-grams."""

from __future__ import annotations

import collections
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf

from model.config.tokenizers import MAX_COUNT, NgramTokenizerConfig, WordTokenizerConfig
from model.tokenizers.normalization import (
    CASE_FOLDED,
    UNKNOWN,
    Normalizer,
    chunks,
    is_list_of_words,
    read_vocabulary,
    write_vocabulary,
)

# Scripts written without blanks between words: each character is a token of its own.
_UNSPACED = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]"
_PUNCTUATION = r"[^\p{L}\p{M}\p{N}'\s]"


def split_words(text: tf.Tensor, normalize: Normalizer = CASE_FOLDED) -> tf.RaggedTensor:
    """Words, marks and single Chinese characters: string (B,) -> ragged string (B, T).

    Normalises first, and takes the typographic apostrophe for the plain one, so that "it’s" is
    one word however it was typed.
    """
    text = normalize.to_valid(text)
    text = tf.strings.regex_replace(text, "’", "'")
    text = tf.strings.regex_replace(text, f"{_UNSPACED}|{_PUNCTUATION}", r" \0 ")
    return tf.strings.split(text)


def count_words(texts: Sequence[str], normalize: Normalizer) -> collections.Counter[str]:
    """How often each word of `split_words` is in `texts`."""
    counts: collections.Counter[bytes] = collections.Counter()
    for chunk in chunks(texts):
        counts.update(split_words(tf.constant(chunk, tf.string), normalize).flat_values.numpy())
    return collections.Counter({word.decode(): count for word, count in counts.items()})


def most_frequent(counts: collections.Counter[str], config: Any) -> list[str]:
    """The most frequent, as many as `config` has room for; ties go by the alphabet.

    Raises ValueError if nothing was seen often enough.
    """
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    room = config.vocabulary_size - 2  # padding and unknown are no words
    words = [word for word, count in ranked[:room] if count >= config.min_count]
    if not words:
        raise ValueError(
            f"A vocabulary needs text to be trained on: nothing in it was seen "
            f"tokenizer.min_count={config.min_count} times. Set a smaller number or give more text."
        )
    return words


class WordTokenizer(tf.Module):
    """Words looked up in a vocabulary; see `split_words` for what a word is.

    Call: string (B,) -> ragged int32 (B, T), T at most `max_tokens`.
    """

    file_name = "vocabulary.json"

    def __init__(self, words: Sequence[str], max_tokens: int, normalize: Normalizer = CASE_FOLDED):
        """`words` in the order of their ids, which start at 2."""
        super().__init__()
        self.words, self.max_tokens, self.normalize = list(words), max_tokens, normalize
        self.vocabulary_size = len(self.words) + 2
        self.table = tf.lookup.StaticHashTable(
            tf.lookup.KeyValueTensorInitializer(
                tf.constant(self.words, tf.string),
                tf.range(2, self.vocabulary_size, dtype=tf.int32),
            ),
            default_value=UNKNOWN,
        )

    @classmethod
    def train(cls, texts: Sequence[str], config: WordTokenizerConfig) -> WordTokenizer:
        """The most frequent words of `texts`; ties go by the alphabet, so a run repeats."""
        normalize = Normalizer.create(config)
        words = most_frequent(count_words(texts, normalize), config)
        return cls(words, config.max_tokens, normalize)

    def __call__(self, text: tf.Tensor) -> tf.RaggedTensor:
        words = split_words(text, self.normalize)[:, : self.max_tokens]
        return tf.ragged.map_flat_values(self.table.lookup, words)

    def save(self, folder: Path) -> None:
        write_vocabulary(folder / self.file_name, self.words)
        self.normalize.save(folder)

    @classmethod
    def load(cls, folder: Path, config: WordTokenizerConfig) -> WordTokenizer:
        words = read_vocabulary(folder / cls.file_name, is_list_of_words)
        return cls(words, config.max_tokens, Normalizer.load(folder, config))


class NgramTokenizer(tf.Module):
    """The set of hashed n-grams of a text: presence, not counts (Wang & Manning, 2012).

    Word n-grams run over `split_words`; character n-grams run inside each word with `<` and `>`
    at its ends (Bojanowski et al., 2017, sec. 3.2). Call: string (B,) -> ragged int32 (B, T),
    distinct ids from 1 to `num_buckets`; with `has_counts` id + (count - 1) * (num_buckets + 1).
    """

    def __init__(self, config: NgramTokenizerConfig, normalize: Normalizer | None = None):
        super().__init__()
        self.config, self.normalize = config, normalize or Normalizer.create(config)
        self.vocabulary_size = config.num_buckets + 1

    @classmethod
    def train(cls, texts: Sequence[str], config: NgramTokenizerConfig) -> NgramTokenizer:
        """Nothing to learn: the hash is the vocabulary."""
        return cls(config)

    def __call__(self, text: tf.Tensor) -> tf.RaggedTensor:
        words = split_words(text, self.normalize)
        num_rows, row_of_word = words.nrows(), words.value_rowids()
        ngrams = tf.strings.ngrams(words, tuple(range(1, self.config.max_ngram + 1)), " ")
        values, rows = [ngrams.flat_values], [ngrams.value_rowids()]
        if self.config.max_character_ngram:
            marked = tf.strings.join(["<", words.flat_values, ">"])
            letters = tf.strings.unicode_split(marked, "UTF-8")
            # A Chinese word is one character: between its marks it repeats the word itself.
            widths = range(self.config.min_character_ngram, self.config.max_character_ngram + 1)
            pieces = tf.strings.ngrams(letters, tuple(widths), "")
            # A leading byte that no word has keeps pieces apart from words in the hash.
            values.append(tf.strings.join(["\x01", pieces.flat_values]))
            rows.append(tf.gather(row_of_word, pieces.value_rowids()))
        hashed = tf.strings.to_hash_bucket_fast(tf.concat(values, 0), self.config.num_buckets)
        ids, rows_of_ids = hashed + 1, tf.concat(rows, 0)
        return _distinct(
            ids, rows_of_ids, num_rows, self.vocabulary_size, has_counts=self.config.has_counts
        )

    def save(self, folder: Path) -> None:
        """Nothing to keep but a table of characters: the configuration says the rest."""
        self.normalize.save(folder)

    @classmethod
    def load(cls, folder: Path, config: NgramTokenizerConfig) -> NgramTokenizer:
        return cls(config, Normalizer.load(folder, config))


def _distinct(
    ids: tf.Tensor, rows: tf.Tensor, num_rows: tf.Tensor, num_ids: int, *, has_counts: bool
):
    """Each row's ids once, ascending: int64 (L,) with its row (L,) -> ragged int32 (B, T)."""
    all_keys = tf.sort(rows * num_ids + ids)
    is_first = tf.concat([tf.ones_like(all_keys[:1], tf.bool), all_keys[1:] != all_keys[:-1]], 0)
    keys = tf.boolean_mask(all_keys, is_first)
    values = keys % num_ids
    if has_counts:
        starts = tf.where(is_first)[:, 0]
        ends = tf.concat([starts[1:], tf.shape(all_keys, tf.int64)[:1]], 0)
        values += num_ids * (tf.minimum(ends - starts, MAX_COUNT) - 1)
    return tf.RaggedTensor.from_value_rowids(
        tf.cast(values, tf.int32), keys // num_ids, num_rows, validate=False
    )
