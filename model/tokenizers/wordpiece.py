"""WordPiece: words in the longest pieces that the vocabulary has."""

from __future__ import annotations

import collections
from collections.abc import Sequence
from pathlib import Path

import tensorflow as tf
import tensorflow_text as tf_text

from model.config.tokenizers import WordpieceTokenizerConfig
from model.tokenizers.merges import learn_merges
from model.tokenizers.normalization import (
    CASE_FOLDED,
    Normalizer,
    cut,
    is_list_of_words,
    read_vocabulary,
    write_vocabulary,
)
from model.tokenizers.words import count_words, most_frequent, split_words

# Brackets are words of their own, so no piece is spelled like these two.
_SPECIAL = ["[PAD]", "[UNK]"]
_INSIDE = "##"  # before a piece that does not begin its word
_MAX_BYTES = 100  # of a word; a longer one is unknown, as in BERT


class WordpieceTokenizer(tf.Module):
    """The words of `split_words`, each cut into pieces from its left, longest first.

    (Schuster & Nakajima, 2012; Devlin et al., 2019.) A word that cannot be spelled with the
    vocabulary, or of more than 100 bytes, is one unknown. Call: string (B,) -> ragged int32 (B, T),
    T at most `max_tokens`.
    """

    file_name = "vocabulary.json"

    def __init__(self, pieces: Sequence[str], max_tokens: int, normalize: Normalizer = CASE_FOLDED):
        """`pieces` in the order of their ids, which start at 2; ## begins one inside a word."""
        super().__init__()
        self.pieces, self.max_tokens, self.normalize = list(pieces), max_tokens, normalize
        self.vocabulary_size = len(self.pieces) + 2
        self.splitter = tf_text.FastWordpieceTokenizer(
            [*_SPECIAL, *self.pieces],
            suffix_indicator=_INSIDE,
            max_bytes_per_word=_MAX_BYTES,
            token_out_type=tf.int32,
            unknown_token=_SPECIAL[1],
            no_pretokenization=True,
        )

    @classmethod
    def train(cls, texts: Sequence[str], config: WordpieceTokenizerConfig) -> WordpieceTokenizer:
        """The characters of `texts`, then the pieces that joining frequent neighbours gives.

        Pieces are chosen by frequency, as in byte-pair encoding, not by likelihood (Schuster &
        Nakajima, 2012, sec. 3): faster, and the vocabulary has the size that was asked for.
        """
        normalize = Normalizer.create(config)
        counts = count_words(texts, normalize)
        spelled = {
            word: [word[0], *(_INSIDE + character for character in word[1:])] for word in counts
        }
        seen: collections.Counter[str] = collections.Counter()
        for word, characters in spelled.items():
            for character in characters:
                seen[character] += counts[word]
        pieces = most_frequent(seen, config)
        ids = {piece: i for i, piece in enumerate(pieces)}
        words = sorted(word for word in counts if all(c in ids for c in spelled[word]))
        merges = learn_merges(
            [[ids[character] for character in spelled[word]] for word in words],
            [counts[word] for word in words],
            first_id=len(pieces),
            num_merges=config.vocabulary_size - 2 - len(pieces),
            min_count=config.min_count,
        )
        for left, right in merges:
            pieces.append(pieces[left] + pieces[right].removeprefix(_INSIDE))
        # Two ways to join may spell one piece.
        return cls(list(dict.fromkeys(pieces)), config.max_tokens, normalize)

    def __call__(self, text: tf.Tensor) -> tf.RaggedTensor:
        words = split_words(text, self.normalize)
        return cut(self.splitter.tokenize(words).merge_dims(1, 2), self.max_tokens)

    def save(self, folder: Path) -> None:
        write_vocabulary(folder / self.file_name, self.pieces)
        self.normalize.save(folder)

    @classmethod
    def load(cls, folder: Path, config: WordpieceTokenizerConfig) -> WordpieceTokenizer:
        pieces = read_vocabulary(folder / cls.file_name, is_list_of_words)
        return cls(pieces, config.max_tokens, Normalizer.load(folder, config))
