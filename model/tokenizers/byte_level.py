"""Bytes, and byte-pair encoding over them: every text comes back as it was."""

from __future__ import annotations

import collections
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf

from model.config.tokenizers import (
    NUM_BYTE_TOKENS,
    UNCHANGED,
    ByteBPETokenizerConfig,
    BytesTokenizerConfig,
)
from model.tokenizers.merges import Pair, learn_merges
from model.tokenizers.normalization import (
    END,
    Normalizer,
    chunks,
    cut,
    read_vocabulary,
    valid_utf8,
    write_vocabulary,
)

_FIRST_BYTE = END + 1  # the id of byte 0
_AS_IT_IS = Normalizer(UNCHANGED)

# A word, a number or a run of marks, each with the one blank before it; what lies between them,
# more blanks and bytes that are not UTF-8, is a piece too. \s of RE2 is that of ASCII, and it
# takes an encoded surrogate for a character, which UTF-8 does not have.
_PIECE = r" ?[\p{L}\p{M}]+| ?\p{N}+| ?[^\s\p{Z}\p{L}\p{M}\p{N}\p{Cs}]+"
_BETWEEN = "\x00\x02"
_MAX_PIECE = 48  # bytes joined with one another: bounds the time that one long word can take
_MAX_PIECES = 300_000  # different ones that merges are learned from, the most frequent


def byte_ids(text: tf.Tensor) -> tf.RaggedTensor:
    """The bytes of each string, byte 0 as id 4: string (B,) -> ragged int32 (B, T)."""
    values = tf.cast(tf.io.decode_raw(tf.strings.reduce_join(text), tf.uint8), tf.int32)
    lengths = tf.cast(tf.strings.length(text, "BYTE"), tf.int64)
    return tf.RaggedTensor.from_row_lengths(values + _FIRST_BYTE, lengths, validate=False)


def split_pieces(text: tf.Tensor) -> tf.RaggedTensor:
    """What byte-pair encoding joins bytes inside of: string (B,) -> ragged string (B, P).

    In the manner of GPT-2 (Radford et al., 2019, sec. 2.2), without its rules for English
    contractions and with combining marks inside words. The pieces of a text joined are the text;
    some are empty.
    """
    # Not TensorFlow Text's regex_split, which loses what follows a byte 0 (2.21.1). So that the
    # mark between pieces is never a part of one, a byte 0 is followed by a 1 in the meantime.
    text = tf.strings.regex_replace(text, r"\x00", "\x00\x01")
    text = tf.strings.regex_replace(text, _PIECE, rf"{_BETWEEN}\0{_BETWEEN}")
    pieces = tf.strings.split(text, _BETWEEN)
    return tf.ragged.map_flat_values(tf.strings.regex_replace, pieces, r"\x00\x01", "\x00")


class _ByteLevel(tf.Module):
    """What tokens of bytes have in common: the way back."""

    def __init__(self, token_bytes: Sequence[bytes]):
        """`token_bytes` are those of each id, from that of byte 0 on."""
        super().__init__()
        self.vocabulary_size = _FIRST_BYTE + len(token_bytes)
        self.token_bytes = tf.constant([b""] * _FIRST_BYTE + list(token_bytes), tf.string)

    def join(self, tokens: tf.RaggedTensor) -> tf.Tensor:
        """Ragged int32 (B, T) -> the very bytes (B,), UTF-8 or not."""
        return tf.strings.reduce_join(
            tf.ragged.map_flat_values(lambda ids: tf.gather(self.token_bytes, ids), tokens), axis=1
        )

    def detokenize(self, tokens: tf.RaggedTensor) -> tf.Tensor:
        """Ragged int32 (B, T) -> valid UTF-8 strings (B,); bytes cut in half become U+FFFD."""
        return valid_utf8(self.join(tokens))


class BytesTokenizer(_ByteLevel):
    """Each byte is a token. Call: string (B,) -> ragged int32 (B, T), T at most `max_tokens`."""

    def __init__(self, max_tokens: int | None = None):
        super().__init__([bytes([byte]) for byte in range(256)])
        self.max_tokens = max_tokens

    @classmethod
    def train(cls, texts: Sequence[str], config: BytesTokenizerConfig) -> BytesTokenizer:
        """Nothing to learn."""
        return cls(config.max_tokens)

    def __call__(self, text: tf.Tensor) -> tf.RaggedTensor:
        return cut(byte_ids(text), self.max_tokens)

    def save(self, folder: Path) -> None:
        """Nothing to keep."""

    @classmethod
    def load(cls, folder: Path, config: BytesTokenizerConfig) -> BytesTokenizer:
        return cls(config.max_tokens)


class ByteBPETokenizer(_ByteLevel):
    """Byte-pair encoding over the bytes of `split_pieces` (Radford et al., 2019, sec. 2.2).

    In a piece the pair that was learned first is joined wherever it is, until no pair is left
    that was learned. A piece of more than 48 bytes is taken in parts of 48. Call: string (B,) ->
    ragged int32 (B, T), T at most `max_tokens`.
    """

    file_name = "merges.json"

    def __init__(
        self,
        merges: Sequence[Pair],
        max_tokens: int | None = None,
        normalize: Normalizer = _AS_IT_IS,
    ):
        """`merges` are pairs of ids in the order they were learned; the i-th makes id 260 + i."""
        self.merges = [(int(left), int(right)) for left, right in merges]
        token_bytes = [bytes([byte]) for byte in range(256)]
        for left, right in self.merges:
            token_bytes.append(token_bytes[left - _FIRST_BYTE] + token_bytes[right - _FIRST_BYTE])
        super().__init__(token_bytes)
        self.max_tokens, self.normalize = max_tokens, normalize
        keys = [left * self.vocabulary_size + right for left, right in self.merges]
        self.ranks = tf.lookup.StaticHashTable(
            tf.lookup.KeyValueTensorInitializer(
                tf.constant([*keys, -1], tf.int64),  # no pair has -1, but a table must have a key
                tf.range(len(keys) + 1, dtype=tf.int32),
            ),
            default_value=len(keys),
        )

    @classmethod
    def train(cls, texts: Sequence[str], config: ByteBPETokenizerConfig) -> ByteBPETokenizer:
        """Merges of the bytes that are most often neighbours in `texts`."""
        normalize = Normalizer.create(config)
        counts: collections.Counter[bytes] = collections.Counter()
        for chunk in chunks(texts):
            pieces = split_pieces(normalize(tf.constant(chunk, tf.string)))
            counts.update(pieces.flat_values.numpy())
        ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:_MAX_PIECES]
        words, seen = [], []
        for piece, count in ranked:
            for start in range(0, len(piece), _MAX_PIECE):
                words.append([byte + _FIRST_BYTE for byte in piece[start : start + _MAX_PIECE]])
                seen.append(count)
        merges = learn_merges(
            words,
            seen,
            first_id=NUM_BYTE_TOKENS,
            num_merges=config.vocabulary_size - NUM_BYTE_TOKENS,
            min_count=config.min_count,
        )
        return cls(merges, config.max_tokens, normalize)

    def __call__(self, text: tf.Tensor) -> tf.RaggedTensor:
        pieces = split_pieces(self.normalize(text))
        distinct, index = tf.unique(pieces.flat_values)
        tokens = tf.gather(self._joined(byte_ids(distinct)), index)  # (pieces, T)
        return cut(pieces.with_flat_values(tokens).merge_dims(1, 2), self.max_tokens)

    def _joined(self, tokens: tf.RaggedTensor) -> tf.RaggedTensor:
        """Each row of byte ids with all its merges done: one of every row in each step."""
        rows = tokens.value_rowids()
        order = tf.range(tf.size(rows, tf.int64))
        is_first = (order - tf.gather(tokens.row_starts(), rows)) % _MAX_PIECE == 0
        # Parts that are joined within, numbered from 0 without a gap.
        parts = tf.cumsum(tf.cast(is_first, tf.int32)) - 1
        never = len(self.merges)

        def is_unfinished(symbols, parts, order, ranks, *done):
            return tf.size(symbols) > 0

        def join_once(symbols, parts, order, ranks, done_symbols, done_order):
            best = tf.gather(tf.math.segment_min(ranks, parts), parts)
            # Parts without a pair to join are laid aside: most words are short and soon done.
            is_done = best == never
            done = tf.where(is_done)[:, 0]
            done_symbols = tf.concat([done_symbols, tf.gather(symbols, done)], 0)
            done_order = tf.concat([done_order, tf.gather(order, done)], 0)
            is_left = _every_second((ranks == best) & ~is_done)  # of two that become one
            is_right = tf.pad(is_left[:-1], [[1, 0]])
            kept = tf.where(~is_done & ~is_right)[:, 0]
            symbols = tf.gather(tf.where(is_left, ranks + NUM_BYTE_TOKENS, symbols), kept)
            parts, order = tf.gather(parts, kept), tf.gather(order, kept)
            return symbols, parts, order, self._ranks(symbols, parts), done_symbols, done_order

        symbols = tokens.flat_values
        *_, symbols, order = tf.while_loop(
            is_unfinished,
            join_once,
            (symbols, parts, order, self._ranks(symbols, parts), symbols[:0], order[:0]),
            shape_invariants=(tf.TensorShape([None]),) * 6,
        )
        back = tf.argsort(order)
        return tf.RaggedTensor.from_value_rowids(
            tf.gather(symbols, back),
            tf.gather(rows, tf.gather(order, back)),
            tokens.nrows(),
            validate=False,
        )

    def _ranks(self, symbols: tf.Tensor, parts: tf.Tensor) -> tf.Tensor:
        """When the pair that begins at each symbol was learned: int32 (L,) twice -> int32 (L,).

        The number of merges for one that was not, and for the end of a part.
        """
        wide = tf.cast(symbols, tf.int64)
        ranks = self.ranks.lookup(wide[:-1] * self.vocabulary_size + wide[1:])
        ranks = tf.where(parts[:-1] == parts[1:], ranks, len(self.merges))
        return tf.concat([ranks, tf.fill([tf.minimum(tf.size(symbols), 1)], len(self.merges))], 0)

    def save(self, folder: Path) -> None:
        write_vocabulary(folder / self.file_name, self.merges)
        self.normalize.save(folder)

    @classmethod
    def load(cls, folder: Path, config: ByteBPETokenizerConfig) -> ByteBPETokenizer:
        merges = read_vocabulary(folder / cls.file_name, _is_list_of_merges)
        return cls(merges, config.max_tokens, Normalizer.load(folder, config))


def _every_second(is_best: tf.Tensor) -> tf.Tensor:
    """The first, third, ... of each run of True: of "aaa" the first pair is joined, not both."""
    index = tf.range(tf.size(is_best))
    is_start = is_best & ~tf.pad(is_best[:-1], [[1, 0]])
    # How far from the start of the newest run; before the first run it does not matter.
    starts = tf.concat([[0], tf.boolean_mask(index, is_start)], 0)
    place = index - tf.gather(starts, tf.cumsum(tf.cast(is_start, tf.int32)))
    return is_best & (place % 2 == 0)


def _is_list_of_merges(vocabulary: Any) -> bool:
    """Whether each pair is of ids that there are before it."""
    return isinstance(vocabulary, list) and all(
        isinstance(pair, list)
        and len(pair) == 2
        and all(
            isinstance(part, int) and _FIRST_BYTE <= part < NUM_BYTE_TOKENS + i for part in pair
        )
        for i, pair in enumerate(vocabulary)
    )
