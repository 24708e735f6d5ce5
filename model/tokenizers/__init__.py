"""Text to ids and back, as graph ops: what trains is what serves.

There is one implementation of each tokenizer, made of ops that stock TensorFlow Serving has. The
training pipeline runs it once over the corpus, the export carries it inside the graph, so the two
can not differ. Id 0 is always padding, id 1 unknown. Tokenizers that write have a `detokenize`,
and BEGIN and END. Bytes that are not UTF-8 are U+FFFD, except for those that read bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf

from model.config import TokenizerConfig
from model.tokenizers.byte_level import ByteBPETokenizer, BytesTokenizer
from model.tokenizers.characters import CharacterTokenizer
from model.tokenizers.normalization import BEGIN, END, PADDING, UNKNOWN, chunks, valid_utf8
from model.tokenizers.presets import PresetTokenizer
from model.tokenizers.sentencepiece import SentencePieceTokenizer
from model.tokenizers.wordpiece import WordpieceTokenizer
from model.tokenizers.words import NgramTokenizer, WordTokenizer, split_words

__all__ = [
    "BEGIN",
    "END",
    "PADDING",
    "TOKENIZERS",
    "UNKNOWN",
    "ByteBPETokenizer",
    "BytesTokenizer",
    "CharacterTokenizer",
    "NgramTokenizer",
    "PresetTokenizer",
    "ReversibleTokenizer",
    "SentencePieceTokenizer",
    "Tokenizer",
    "WordTokenizer",
    "WordpieceTokenizer",
    "encode",
    "load_tokenizer",
    "split_words",
    "train_tokenizer",
    "valid_utf8",
]

TOKENIZERS: dict[str, Any] = {
    "word": WordTokenizer,
    "ngram": NgramTokenizer,
    "sentencepiece": SentencePieceTokenizer,
    "character": CharacterTokenizer,
    "wordpiece": WordpieceTokenizer,
    "byte_bpe": ByteBPETokenizer,
    "bytes": BytesTokenizer,
    "preset": PresetTokenizer,
}
ReversibleTokenizer = SentencePieceTokenizer | ByteBPETokenizer | BytesTokenizer | PresetTokenizer
Tokenizer = (
    WordTokenizer | NgramTokenizer | CharacterTokenizer | WordpieceTokenizer | ReversibleTokenizer
)


def train_tokenizer(texts: Sequence[str], config: TokenizerConfig) -> Tokenizer:
    """Learns the vocabulary that `config` names from `texts`, the run's own training split."""
    return TOKENIZERS[config.name].train(texts, config)


def load_tokenizer(folder: Path, config: TokenizerConfig) -> Tokenizer:
    """Reads what `tokenizer.save(folder)` wrote."""
    return TOKENIZERS[config.name].load(folder, config)


def encode(tokenizer: Tokenizer, texts: Sequence[str]) -> list:
    """Token ids of every text, each an int32 array (T,): tokenised once, by the graph's own ops."""
    tokenize = tf.function(
        tokenizer, input_signature=[tf.TensorSpec([None], tf.string)], autograph=False
    )
    rows: list = []
    for chunk in chunks(texts):
        ragged = tokenize(tf.constant(chunk, tf.string))
        values, splits = ragged.flat_values.numpy(), ragged.row_splits.numpy()
        rows.extend(values[start:end] for start, end in zip(splits, splits[1:], strict=False))
    return rows
