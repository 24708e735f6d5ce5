"""What a tokenizer or a network is made of: frozen, checked dataclasses, no TensorFlow.

Lengths are tokens, sizes are units of a layer, rates are fractions. Every class checks itself on
construction, so a wrong number is refused before anything heavy is imported.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from model import signatures


def require(holds: bool, setting: str, expected: str, received: object) -> None:
    """Raises ValueError naming the setting as the user types it, unless `holds`."""
    if not holds:
        raise ValueError(f"{setting} must be {expected}. Received: {received!r}")


def _rate(setting: str, value: float) -> None:
    require(0 <= value < 1, setting, "at least 0 and below 1", value)


PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")  # of products and activations
DROPOUT_KINDS = ("elementwise", "locked", "token", "layer")


def _dropout(rate: float, kind: str, kinds: tuple[str, ...] = DROPOUT_KINDS) -> None:
    _rate("model.dropout", rate)
    require(kind in kinds, "model.dropout_kind", f"one of {', '.join(kinds)}", kind)


def _positive(setting: str, value: int) -> None:
    require(value > 0, setting, "a whole number above 0", value)


# Tokenizers ---------------------------------------------------------------------------------------


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
        _positive("tokenizer.min_count", self.min_count)
        _positive("tokenizer.max_tokens", self.max_tokens)


@dataclass(frozen=True, kw_only=True)
class NgramTokenizerConfig:
    """The set of word n-grams, and of character n-grams inside words, hashed into buckets."""

    max_ngram: int = 2  # words (characters in Chinese) in the longest n-gram
    min_character_ngram: int = 3  # characters, the word's two ends included
    max_character_ngram: int = 0  # 0 leaves character n-grams out
    num_buckets: int = 2**18
    name: str = "ngram"

    def __post_init__(self) -> None:
        _positive("tokenizer.max_ngram", self.max_ngram)
        _positive("tokenizer.min_character_ngram", self.min_character_ngram)
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
        _positive("tokenizer.vocabulary_size", self.vocabulary_size)
        types = ("unigram", "bpe", "char")
        require(
            self.model_type in types,
            "tokenizer.model_type",
            f"one of {', '.join(types)}",
            self.model_type,
        )


TokenizerConfig = WordTokenizerConfig | NgramTokenizerConfig | SentencePieceTokenizerConfig

# Networks -----------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class BagOfNgramsConfig:
    """Linear in the set of n-grams, started from naive-Bayes weights (Wang & Manning, 2012)."""

    kind: ClassVar[str] = signatures.CLASSIFIER
    tokenizers: ClassVar[tuple[str, ...]] = ("ngram", "word")  # that it reads
    naive_bayes_scale: float = 0.3  # 1 starts as naive Bayes, 0 from nothing, between: milder
    smoothing: float = 0.3  # added to every count before the logarithm
    scale: float = 4.0  # of the normalised sum, so that logits can grow with small weights
    ngram_dropout: float = 0.5
    name: str = "bag_of_ngrams"

    def __post_init__(self) -> None:
        require(
            self.naive_bayes_scale >= 0,
            "model.naive_bayes_scale",
            "at least 0",
            self.naive_bayes_scale,
        )
        require(self.smoothing > 0, "model.smoothing", "above 0", self.smoothing)
        require(self.scale > 0, "model.scale", "above 0", self.scale)
        _rate("model.ngram_dropout", self.ngram_dropout)


@dataclass(frozen=True, kw_only=True)
class BidirectionalLSTMConfig:
    """Embedding, one bidirectional LSTM, maximum over time."""

    kind: ClassVar[str] = signatures.CLASSIFIER
    tokenizers: ClassVar[tuple[str, ...]] = ("word",)  # that it reads
    embedding_size: int = 128
    units: int = 96  # in each direction
    dropout: float = 0.4
    dropout_kind: str = "elementwise"  # or locked: a feature at all steps; token: a whole step
    name: str = "bidirectional_lstm"

    def __post_init__(self) -> None:
        _positive("model.embedding_size", self.embedding_size)
        _positive("model.units", self.units)
        _dropout(self.dropout, self.dropout_kind, _UNBRANCHED)


@dataclass(frozen=True, kw_only=True)
class ULMFiTLSTMConfig:
    """Left-to-right LSTMs that can learn as a language model first (Howard & Ruder, 2018)."""

    kind: ClassVar[str] = signatures.CLASSIFIER
    tokenizers: ClassVar[tuple[str, ...]] = ("word",)  # that it reads
    embedding_size: int = 128  # and the units of the last layer, whose head is the embedding
    units: int = 192  # of the layers before the last
    num_layers: int = 2
    dropout: float = 0.4
    dropout_kind: str = "locked"
    name: str = "ulmfit_lstm"

    def __post_init__(self) -> None:
        _check_lstm_stack(self)


@dataclass(frozen=True, kw_only=True)
class TransformerEncoderConfig:
    """Pre-norm Transformer encoder with rotary positions, mean over time."""

    kind: ClassVar[str] = signatures.CLASSIFIER
    tokenizers: ClassVar[tuple[str, ...]] = ("word",)  # that it reads
    num_layers: int = 2
    width: int = 128
    num_heads: int = 4
    inner_width: int = 256
    dropout: float = 0.3
    dropout_kind: str = "elementwise"  # or locked, token, or layer: whole residual branches
    recompute: bool = False  # activations again in the backward pass: less memory, more time
    token_head: bool = False  # also predicts hidden tokens, for pre-training
    name: str = "transformer_encoder"

    def __post_init__(self) -> None:
        _check_transformer(self)


@dataclass(frozen=True, kw_only=True)
class TransformerDecoderConfig:
    """Decoder-only pre-norm Transformer with rotary positions and a tied output head."""

    kind: ClassVar[str] = signatures.GENERATOR
    tokenizers: ClassVar[tuple[str, ...]] = ("sentencepiece",)  # that it reads
    num_layers: int = 4
    width: int = 128
    num_heads: int = 4
    inner_width: int = 512
    dropout: float = 0.1
    dropout_kind: str = "elementwise"  # or locked, token, or layer: whole residual branches
    recompute: bool = False  # activations again in the backward pass: less memory, more time
    context_length: int = 256  # tokens, prompt and answer together
    name: str = "transformer_decoder"

    def __post_init__(self) -> None:
        _check_transformer(self)
        require(self.context_length > 1, "model.context_length", "above 1", self.context_length)


@dataclass(frozen=True, kw_only=True)
class LSTMLanguageModelConfig:
    """Left-to-right LSTMs with a tied output head; its state can be carried from text to text."""

    kind: ClassVar[str] = signatures.GENERATOR
    tokenizers: ClassVar[tuple[str, ...]] = ("sentencepiece",)  # that it reads
    embedding_size: int = 128  # and the units of the last layer, whose head is the embedding
    units: int = 256  # of the layers before the last
    num_layers: int = 2
    dropout: float = 0.2
    dropout_kind: str = "locked"
    context_length: int = 256  # tokens, prompt and answer together
    name: str = "lstm_language_model"

    def __post_init__(self) -> None:
        _check_lstm_stack(self)
        require(self.context_length > 1, "model.context_length", "above 1", self.context_length)


# First steps: networks of the learners' programs, which no recipe names ---------------------------


@dataclass(frozen=True, kw_only=True)
class LinearRegressionConfig:
    """One weight and one bias."""

    name: str = "linear_regression"


@dataclass(frozen=True, kw_only=True)
class DenseClassifierConfig:
    """One hidden layer of rectified units over a vector of features."""

    units: int = 32
    name: str = "dense_classifier"

    def __post_init__(self) -> None:
        _positive("model.units", self.units)


@dataclass(frozen=True, kw_only=True)
class LSTMTaggerConfig:
    """Embedding and one LSTM, a label for every token."""

    embedding_size: int = 32
    units: int = 32
    name: str = "lstm_tagger"

    def __post_init__(self) -> None:
        _positive("model.embedding_size", self.embedding_size)
        _positive("model.units", self.units)


@dataclass(frozen=True, kw_only=True)
class LSTMClassifierConfig:
    """Embedding and one LSTM, a label from its last state."""

    embedding_size: int = 32
    units: int = 32
    name: str = "lstm_classifier"

    def __post_init__(self) -> None:
        _positive("model.embedding_size", self.embedding_size)
        _positive("model.units", self.units)


@dataclass(frozen=True, kw_only=True)
class Seq2SeqTransformerConfig:
    """Pre-norm encoder-decoder Transformer with one vocabulary for both texts."""

    num_layers: int = 2  # of the encoder, and of the decoder
    width: int = 64
    num_heads: int = 4
    inner_width: int = 128
    dropout: float = 0.1
    dropout_kind: str = "elementwise"  # or locked, token, or layer: whole residual branches
    recompute: bool = False  # activations again in the backward pass: less memory, more time
    name: str = "seq2seq_transformer"

    def __post_init__(self) -> None:
        _check_transformer(self)


_UNBRANCHED = tuple(kind for kind in DROPOUT_KINDS if kind != "layer")  # no branch to leave out


def _check_lstm_stack(config: ULMFiTLSTMConfig | LSTMLanguageModelConfig) -> None:
    _positive("model.embedding_size", config.embedding_size)
    _positive("model.units", config.units)
    _positive("model.num_layers", config.num_layers)
    _dropout(config.dropout, config.dropout_kind, _UNBRANCHED)


def _check_transformer(
    config: TransformerEncoderConfig | TransformerDecoderConfig | Seq2SeqTransformerConfig,
) -> None:
    _positive("model.num_layers", config.num_layers)
    _positive("model.inner_width", config.inner_width)
    _positive("model.num_heads", config.num_heads)
    require(
        config.width > 0 and config.width % (2 * config.num_heads) == 0,
        "model.width",
        f"a multiple of 2 x model.num_heads ({2 * config.num_heads}), as rotary positions turn "
        "pairs",
        config.width,
    )
    _dropout(config.dropout, config.dropout_kind)


ModelConfig = (
    BagOfNgramsConfig
    | BidirectionalLSTMConfig
    | ULMFiTLSTMConfig
    | TransformerEncoderConfig
    | TransformerDecoderConfig
    | LSTMLanguageModelConfig
)

# The tables that names in a recipe, an override or a config.json are looked up in.
TOKENIZER_CONFIGS: dict[str, type] = {
    "word": WordTokenizerConfig,
    "ngram": NgramTokenizerConfig,
    "sentencepiece": SentencePieceTokenizerConfig,
}
MODEL_CONFIGS: dict[str, type] = {
    "bag_of_ngrams": BagOfNgramsConfig,
    "bidirectional_lstm": BidirectionalLSTMConfig,
    "ulmfit_lstm": ULMFiTLSTMConfig,
    "transformer_encoder": TransformerEncoderConfig,
    "transformer_decoder": TransformerDecoderConfig,
    "lstm_language_model": LSTMLanguageModelConfig,
}
