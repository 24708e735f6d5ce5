"""What a tokenizer is made of. Lengths are tokens."""

from __future__ import annotations

from dataclasses import dataclass

from model.config.checks import check_positive, require


@dataclass(frozen=True, kw_only=True)
class WordTokenizerConfig:
    """Words of spaced scripts, single characters of unspaced ones such as Chinese."""

    vocabulary_size: int = 20_000  # padding and unknown included
    min_count: int = 2  # a word seen less often in the training split is unknown
    max_tokens: int = 256  # of a text; what is longer is cut
    name: str = "word"

    def __post_init__(self) -> None:
        require(
            self.vocabulary_size > 2, "tokenizer.vocabulary_size", "above 2", self.vocabulary_size
        )
        check_positive("tokenizer.min_count", self.min_count)
        check_positive("tokenizer.max_tokens", self.max_tokens)


@dataclass(frozen=True, kw_only=True)
class NgramTokenizerConfig:
    """The set of word n-grams, and of character n-grams inside words, hashed into buckets."""

    max_ngram: int = 2  # words (characters in Chinese) in the longest n-gram
    min_character_ngram: int = 3  # characters, the word's two ends included
    max_character_ngram: int = 0  # 0 leaves character n-grams out
    num_buckets: int = 2**18
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
        require(1 < self.num_buckets < 2**31, "tokenizer.num_buckets", "above 1", self.num_buckets)


@dataclass(frozen=True, kw_only=True)
class SentencePieceTokenizerConfig:
    """SentencePiece (Kudo & Richardson, 2018), reversible: every text comes back as it was."""

    vocabulary_size: int = 4_000
    model_type: str = "unigram"  # unigram, bpe or char (one token a character)
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


@dataclass(frozen=True, kw_only=True)
class PresetTokenizerConfig:
    """That of a KerasHub preset, for model=preset_classifier or preset_generator."""

    preset: str = ""  # a folder that save_to_preset wrote, or the name of a preset
    max_tokens: int | None = None  # of a text, begin and end not counted; none cuts nothing
    name: str = "preset"

    def __post_init__(self) -> None:
        if self.max_tokens is not None:
            check_positive("tokenizer.max_tokens", self.max_tokens)
