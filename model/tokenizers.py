"""Text to ids and back, as graph ops: what trains is what serves.

There is one implementation of each tokenizer, made of ops that stock TensorFlow Serving has. The
training pipeline runs it once over the corpus, the export carries it inside the graph, so the two
can not differ. Id 0 is always padding.
"""

from __future__ import annotations

import collections
import io
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf
import tensorflow_text as tf_text

from model.config import (
    NgramTokenizerConfig,
    SentencePieceTokenizerConfig,
    TokenizerConfig,
    WordTokenizerConfig,
)
from model.preset_tokenizer import PresetTokenizer

PADDING, UNKNOWN = 0, 1
BEGIN, END = 2, 3  # of a text; SentencePiece only

# Scripts written without blanks between words: each character is a token of its own.
_UNSPACED = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]"
_PUNCTUATION = r"[^\p{L}\p{M}\p{N}'\s]"
_CHUNK = 1024  # texts a call when a corpus is encoded; bounds memory, costs nothing


def valid_utf8(text: tf.Tensor) -> tf.Tensor:
    """The same strings with U+FFFD in place of bytes that are not UTF-8."""
    return tf.strings.unicode_transcode(text, "UTF-8", "UTF-8", errors="replace")


def split_words(text: tf.Tensor) -> tf.RaggedTensor:
    """Words, marks and single Chinese characters: string (B,) -> ragged string (B, T).

    Normalises first: NFKC (full-width forms become half-width ones), case folding, and the
    typographic apostrophe as the plain one, so that "it’s" is one word however it was typed.
    """
    text = tf_text.case_fold_utf8(tf_text.normalize_utf8(valid_utf8(text), "NFKC"))
    text = tf.strings.regex_replace(text, "’", "'")
    text = tf.strings.regex_replace(text, f"({_UNSPACED}|{_PUNCTUATION})", r" \1 ")
    return tf.strings.split(text)


class WordTokenizer(tf.Module):
    """Words looked up in a vocabulary; see `split_words` for what a word is.

    Call: string (B,) -> ragged int32 (B, T), T at most `max_tokens`.
    """

    file_name = "vocabulary.json"

    def __init__(self, words: Sequence[str], max_tokens: int):
        """`words` in the order of their ids, which start at 2."""
        super().__init__()
        self.words, self.max_tokens = list(words), max_tokens
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
        counts: collections.Counter[bytes] = collections.Counter()
        for chunk in _chunks(texts):
            counts.update(split_words(tf.constant(chunk, tf.string)).flat_values.numpy())
        ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        kept = [word.decode() for word, count in ranked if count >= config.min_count]
        return cls(kept[: config.vocabulary_size - 2], config.max_tokens)

    def __call__(self, text: tf.Tensor) -> tf.RaggedTensor:
        words = split_words(text)[:, : self.max_tokens]
        return tf.ragged.map_flat_values(self.table.lookup, words)

    def save(self, folder: Path) -> None:
        (folder / self.file_name).write_text(
            json.dumps(self.words, ensure_ascii=False), encoding="utf-8"
        )

    @classmethod
    def load(cls, folder: Path, config: WordTokenizerConfig) -> WordTokenizer:
        words = json.loads((folder / cls.file_name).read_text(encoding="utf-8"))
        return cls(words, config.max_tokens)


class NgramTokenizer(tf.Module):
    """The set of hashed n-grams of a text: presence, not counts (Wang & Manning, 2012).

    Word n-grams run over `split_words`; character n-grams run inside each word with `<` and `>`
    at its ends (Bojanowski et al., 2017, sec. 3.2). Call: string (B,) -> ragged int32 (B, T),
    distinct ids from 1 to `num_buckets`.
    """

    def __init__(self, config: NgramTokenizerConfig):
        super().__init__()
        self.config = config
        self.vocabulary_size = config.num_buckets + 1

    @classmethod
    def train(cls, texts: Sequence[str], config: NgramTokenizerConfig) -> NgramTokenizer:
        """Nothing to learn: the hash is the vocabulary."""
        return cls(config)

    def __call__(self, text: tf.Tensor) -> tf.RaggedTensor:
        words = split_words(text)
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
        return _distinct(hashed + 1, tf.concat(rows, 0), num_rows, self.vocabulary_size)

    def save(self, folder: Path) -> None:
        """Nothing to keep: the configuration says it all."""

    @classmethod
    def load(cls, folder: Path, config: NgramTokenizerConfig) -> NgramTokenizer:
        return cls(config)


def _distinct(ids: tf.Tensor, rows: tf.Tensor, num_rows: tf.Tensor, num_ids: int):
    """Each row's ids once, ascending: int64 (L,) with its row (L,) -> ragged int32 (B, T)."""
    keys = tf.sort(rows * num_ids + ids)
    is_first = tf.concat([tf.ones_like(keys[:1], tf.bool), keys[1:] != keys[:-1]], 0)
    keys = tf.boolean_mask(keys, is_first)
    return tf.RaggedTensor.from_value_rowids(
        tf.cast(keys % num_ids, tf.int32), keys // num_ids, num_rows, validate=False
    )


class SentencePieceTokenizer(tf.Module):
    """SentencePiece over raw text: blanks and line breaks come back, CR LF as LF.

    (And U+2581, which SentencePiece writes for a blank, as a blank.)
    Call: string (B,) -> ragged int32 (B, T), without BEGIN and END. Characters outside the
    vocabulary fall back to their UTF-8 bytes (`char` models know only what they saw: the rest
    becomes one unknown each).
    """

    file_name = "sentencepiece.model"

    def __init__(self, model_proto: bytes):
        super().__init__()
        self.model_proto = model_proto
        # A kernel of TensorFlow's eager cache owns this resource (TensorFlow Text 2.21.1), so
        # nothing here may call `tf.random.set_seed`, which empties that cache.
        self.pieces = tf_text.SentencepieceTokenizer(model=model_proto, out_type=tf.int32)
        self.vocabulary_size = int(self.pieces.vocab_size().numpy())

    @classmethod
    def train(
        cls, texts: Sequence[str], config: SentencePieceTokenizerConfig
    ) -> SentencePieceTokenizer:
        # Only needed where a vocabulary is made.
        import sentencepiece
        from sentencepiece import sentencepiece_model_pb2

        if not any(text.strip() for text in texts):
            raise ValueError("A vocabulary needs text to be trained on. Received: empty texts only")
        is_char = config.model_type == "char"
        model = io.BytesIO()
        with tempfile.TemporaryDirectory() as folder:
            rules = Path(folder) / "normalization.tsv"
            rules.write_text("D A\tA\n")  # code points: the line ends of Windows become ours
            try:
                sentencepiece.SentencePieceTrainer.train(
                    sentence_iterator=iter(_lines(texts)),
                    model_writer=model,
                    model_type=config.model_type,
                    vocab_size=config.vocabulary_size,
                    hard_vocab_limit=False,  # a small corpus gives a smaller vocabulary
                    character_coverage=1.0 if is_char else _coverage(texts, config),
                    byte_fallback=not is_char,
                    normalization_rule_tsv=str(rules),
                    add_dummy_prefix=False,
                    remove_extra_whitespaces=False,
                    user_defined_symbols=["\n"],
                    pad_id=PADDING,
                    unk_id=UNKNOWN,
                    bos_id=BEGIN,
                    eos_id=END,
                    max_sentence_length=1_000_000,  # bytes
                    num_threads=1,  # the pieces of equal score depend on it
                    minloglevel=3,
                )
            except RuntimeError as error:
                raise ValueError(
                    "SentencePiece cannot make a vocabulary of tokenizer.vocabulary_size="
                    f"{config.vocabulary_size} from these texts; set another. It says: {error}"
                ) from error
        proto = sentencepiece_model_pb2.ModelProto.FromString(  # type: ignore[attr-defined]
            model.getvalue()
        )
        # The rules are compiled in: what is left is a temporary path, another one in every run.
        proto.normalizer_spec.ClearField("normalization_rule_tsv")
        return cls(proto.SerializeToString(deterministic=True))

    def __call__(self, text: tf.Tensor) -> tf.RaggedTensor:
        return self.pieces.tokenize(valid_utf8(text))

    def detokenize(self, tokens: tf.RaggedTensor) -> tf.Tensor:
        """Ragged int32 (B, T) -> valid UTF-8 strings (B,); bytes cut in half become U+FFFD."""
        return valid_utf8(self.pieces.detokenize(tokens))

    def save(self, folder: Path) -> None:
        (folder / self.file_name).write_bytes(self.model_proto)

    @classmethod
    def load(cls, folder: Path, config: SentencePieceTokenizerConfig) -> SentencePieceTokenizer:
        return cls((folder / cls.file_name).read_bytes())


TOKENIZERS: dict[str, Any] = {
    "word": WordTokenizer,
    "ngram": NgramTokenizer,
    "sentencepiece": SentencePieceTokenizer,
    "preset": PresetTokenizer,
}
Tokenizer = WordTokenizer | NgramTokenizer | SentencePieceTokenizer | PresetTokenizer


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
    for chunk in _chunks(texts):
        ragged = tokenize(tf.constant(chunk, tf.string))
        values, splits = ragged.flat_values.numpy(), ragged.row_splits.numpy()
        rows.extend(values[start:end] for start, end in zip(splits, splits[1:], strict=False))
    return rows


def _coverage(texts: Sequence[str], config: SentencePieceTokenizerConfig) -> float:
    """The share of characters that get pieces of their own, at most half of the vocabulary.

    The rest, rare ones, are written as bytes. Without the limit a corpus of more characters than
    the vocabulary has room for could not be trained on at all.
    """
    counts = collections.Counter(character for text in texts for character in text)
    kept = counts.most_common(config.vocabulary_size // 2)
    # A little less than their share: SentencePiece takes characters until it is reached.
    return min(0.9995, sum(count for _, count in kept) / max(counts.total(), 1) - 1e-6)


def _chunks(texts: Sequence[str]):
    for start in range(0, len(texts), _CHUNK):
        yield texts[start : start + _CHUNK]


def _lines(texts: Sequence[str]):
    """Lines with their break kept: the trainer reads a break only as a symbol of its own."""
    for text in texts:
        yield from text.splitlines(keepends=True)
