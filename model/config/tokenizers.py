"""What a tokenizer is made of. Lengths are tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from model.config.checks import check_positive, require

NFKC_CASE_FOLDED, NFKC, UNCHANGED = "nfkc_cf", "nfkc", "none"
NORMALIZATIONS = (NFKC_CASE_FOLDED, NFKC, UNCHANGED)
NUM_BYTE_TOKENS = 260  # padding, unknown, begin, end and the 256 bytes

# For networks: what gives tokens in their order, and what can also be turned back into text.
REVERSIBLE = ("sentencepiece", "byte_bpe", "bytes")
SEQUENCES = ("word", "character", "wordpiece", *REVERSIBLE)


def _check_normalization(config: Any) -> None:
    require(
        config.normalization in NORMALIZATIONS,
        "tokenizer.normalization",
        f"one of {', '.join(NORMALIZATIONS)}",
        config.normalization,
    )


def _check_max_tokens(config: Any) -> None:
    require(
        config.max_tokens is None or config.max_tokens > 0,
        "tokenizer.max_tokens",
        "a whole number above 0, or none",
        config.max_tokens,
    )


@dataclass(frozen=True, kw_only=True)
class WordTokenizerConfig:
    """Words of spaced scripts, single characters of unspaced ones such as Chinese."""

    vocabulary_size: int = 20_000  # padding and unknown included
    min_count: int = 2  # a word seen less often in the training split is unknown
    max_tokens: int = 256  # of a text; what is longer is cut
    normalization: str = "nfkc_cf"  # or nfkc: case is kept; none: nothing is changed
    simplify: bool = False  # Traditional Chinese characters become Simplified ones
    name: str = "word"

    def __post_init__(self) -> None:
        require(
            self.vocabulary_size > 2, "tokenizer.vocabulary_size", "above 2", self.vocabulary_size
        )
        check_positive("tokenizer.min_count", self.min_count)
        check_positive("tokenizer.max_tokens", self.max_tokens)
        _check_normalization(self)


MAX_COUNT = 64  # of an n-gram in a text; what is more counts as so many


@dataclass(frozen=True, kw_only=True)
class NgramTokenizerConfig:
    """The set of word n-grams, and of character n-grams inside words, hashed into buckets."""

    max_ngram: int = 2  # words (characters in Chinese) in the longest n-gram
    min_character_ngram: int = 3  # characters, the word's two ends included
    max_character_ngram: int = 0  # 0 leaves character n-grams out
    num_buckets: int = 2**18
    has_counts: bool = False  # an id says too how often its n-gram occurs in the text
    normalization: str = "nfkc_cf"  # or nfkc: case is kept; none: nothing is changed
    simplify: bool = False  # Traditional Chinese characters become Simplified ones
    name: str = "ngram"

    def __post_init__(self) -> None:
        check_positive("tokenizer.max_ngram", self.max_ngram)
        check_positive("tokenizer.min_character_ngram", self.min_character_ngram)
        require(
            self.max_character_ngram == 0 or self.max_character_ngram >= self.min_character_ngram,
            "tokenizer.max_character_ngram",
            "0 or at least tokenizer.min_character_ngram",
            self.max_character_ngram,
        )
        _check_normalization(self)
        require(1 < self.num_buckets < 2**31, "tokenizer.num_buckets", "above 1", self.num_buckets)
        require(
            not self.has_counts or (self.num_buckets + 1) * MAX_COUNT < 2**31,
            "tokenizer.num_buckets",
            f"below {2**31 // MAX_COUNT:,} with tokenizer.has_counts",
            self.num_buckets,
        )


@dataclass(frozen=True, kw_only=True)
class SentencePieceTokenizerConfig:
    """SentencePiece (Kudo & Richardson, 2018), reversible: every text comes back as it was."""

    vocabulary_size: int = 4_000
    model_type: str = "unigram"  # unigram, bpe or char (one token a character)
    max_tokens: int | None = 512  # of a text to classify; what is longer is cut
    normalization: str = "none"  # or nfkc, nfkc_cf: what comes back is the normalised text
    simplify: bool = False  # Traditional Chinese characters become Simplified ones
    name: str = "sentencepiece"

    def __post_init__(self) -> None:
        check_positive("tokenizer.vocabulary_size", self.vocabulary_size)
        types = ("unigram", "bpe", "char")
        require(
            self.model_type in types,
            "tokenizer.model_type",
            f"one of {', '.join(types)}",
            self.model_type,
        )
        _check_max_tokens(self)
        _check_normalization(self)


@dataclass(frozen=True, kw_only=True)
class CharacterTokenizerConfig:
    """Single characters (code points), blanks included."""

    vocabulary_size: int = 8_000  # padding and unknown included
    min_count: int = 2  # a character seen less often in the training split is unknown
    max_tokens: int = 512  # of a text; what is longer is cut
    normalization: str = "nfkc_cf"  # or nfkc: case is kept; none: nothing is changed
    simplify: bool = False  # Traditional Chinese characters become Simplified ones
    name: str = "character"

    def __post_init__(self) -> None:
        require(
            self.vocabulary_size > 2, "tokenizer.vocabulary_size", "above 2", self.vocabulary_size
        )
        check_positive("tokenizer.min_count", self.min_count)
        check_positive("tokenizer.max_tokens", self.max_tokens)
        _check_normalization(self)


@dataclass(frozen=True, kw_only=True)
class WordpieceTokenizerConfig:
    """WordPiece (Schuster & Nakajima, 2012): words in their longest known pieces."""

    vocabulary_size: int = 8_000  # padding and unknown included
    min_count: int = 2  # characters, and neighbours to join, that are seen less often are not
    max_tokens: int = 256  # of a text; what is longer is cut
    normalization: str = "nfkc_cf"  # or nfkc: case is kept; none: nothing is changed
    simplify: bool = False  # Traditional Chinese characters become Simplified ones
    name: str = "wordpiece"

    def __post_init__(self) -> None:
        require(
            self.vocabulary_size > 2, "tokenizer.vocabulary_size", "above 2", self.vocabulary_size
        )
        check_positive("tokenizer.min_count", self.min_count)
        check_positive("tokenizer.max_tokens", self.max_tokens)
        _check_normalization(self)


@dataclass(frozen=True, kw_only=True)
class ByteBPETokenizerConfig:
    """Byte-pair encoding over bytes (Radford et al., 2019), reversible for any bytes at all."""

    vocabulary_size: int = 4_000  # the 256 bytes and 4 special tokens included
    min_count: int = 2  # neighbours seen less often in the training split are not joined
    max_tokens: int | None = 512  # of a text to classify; what is longer is cut
    normalization: str = "none"  # or nfkc, nfkc_cf: what comes back is the normalised text
    simplify: bool = False  # Traditional Chinese characters become Simplified ones
    name: str = "byte_bpe"

    def __post_init__(self) -> None:
        require(
            self.vocabulary_size >= NUM_BYTE_TOKENS,
            "tokenizer.vocabulary_size",
            f"at least {NUM_BYTE_TOKENS}: the bytes and 4 special tokens",
            self.vocabulary_size,
        )
        check_positive("tokenizer.min_count", self.min_count)
        _check_max_tokens(self)
        _check_normalization(self)


@dataclass(frozen=True, kw_only=True)
class BytesTokenizerConfig:
    """The bytes of the UTF-8 text as they are, reversible, with nothing to learn."""

    max_tokens: int | None = 1_024  # of a text to classify; what is longer is cut
    name: str = "bytes"

    def __post_init__(self) -> None:
        _check_max_tokens(self)


@dataclass(frozen=True, kw_only=True)
class PresetTokenizerConfig:
    """That of a KerasHub preset, for model=preset_classifier or preset_generator."""

    preset: str = ""  # a folder that save_to_preset wrote, or the name of a preset
    max_tokens: int | None = None  # of a text, begin and end not counted; none cuts nothing
    name: str = "preset"

    def __post_init__(self) -> None:
        if self.max_tokens is not None:
            check_positive("tokenizer.max_tokens", self.max_tokens)
