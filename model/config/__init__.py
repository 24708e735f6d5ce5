"""What a tokenizer or a network is made of: frozen, checked dataclasses, no TensorFlow.

Every class checks itself on construction, so a wrong number is refused before anything heavy is
imported. Names in a recipe, an override or a config.json are looked up in the tables below.
"""

from __future__ import annotations

from model.config.classifiers import (
    BagOfNgramsConfig,
    DPCNNConfig,
    GatedConvolutionConfig,
    HierarchicalConfig,
    PresetClassifierConfig,
    RecurrentConfig,
    TextCNNConfig,
    TransformerEncoderConfig,
    ULMFiTLSTMConfig,
)
from model.config.generators import (
    PresetGeneratorConfig,
    RecurrentLanguageModelConfig,
    TransformerDecoderConfig,
)
from model.config.tokenizers import (
    ByteBPETokenizerConfig,
    BytesTokenizerConfig,
    CharacterTokenizerConfig,
    NgramTokenizerConfig,
    PresetTokenizerConfig,
    SentencePieceTokenizerConfig,
    WordpieceTokenizerConfig,
    WordTokenizerConfig,
)
from model.config.word_vectors import CBOWConfig, GloVeConfig, SkipGramConfig

TokenizerConfig = (
    WordTokenizerConfig
    | NgramTokenizerConfig
    | SentencePieceTokenizerConfig
    | PresetTokenizerConfig
    | CharacterTokenizerConfig
    | WordpieceTokenizerConfig
    | ByteBPETokenizerConfig
    | BytesTokenizerConfig
)

ModelConfig = (
    BagOfNgramsConfig
    | TextCNNConfig
    | GatedConvolutionConfig
    | DPCNNConfig
    | RecurrentConfig
    | HierarchicalConfig
    | ULMFiTLSTMConfig
    | TransformerEncoderConfig
    | TransformerDecoderConfig
    | PresetClassifierConfig
    | PresetGeneratorConfig
    | SkipGramConfig
    | CBOWConfig
    | GloVeConfig
    | RecurrentLanguageModelConfig
)

TOKENIZER_CONFIGS: dict[str, type] = {
    "word": WordTokenizerConfig,
    "ngram": NgramTokenizerConfig,
    "sentencepiece": SentencePieceTokenizerConfig,
    "preset": PresetTokenizerConfig,
    "character": CharacterTokenizerConfig,
    "wordpiece": WordpieceTokenizerConfig,
    "byte_bpe": ByteBPETokenizerConfig,
    "bytes": BytesTokenizerConfig,
}
MODEL_CONFIGS: dict[str, type] = {
    "bag_of_ngrams": BagOfNgramsConfig,
    "text_cnn": TextCNNConfig,
    "gated_convolution": GatedConvolutionConfig,
    "dpcnn": DPCNNConfig,
    "recurrent": RecurrentConfig,
    "hierarchical": HierarchicalConfig,
    "ulmfit_lstm": ULMFiTLSTMConfig,
    "transformer_encoder": TransformerEncoderConfig,
    "transformer_decoder": TransformerDecoderConfig,
    "preset_classifier": PresetClassifierConfig,
    "preset_generator": PresetGeneratorConfig,
    "skip_gram": SkipGramConfig,
    "cbow": CBOWConfig,
    "glove": GloVeConfig,
    "recurrent_language_model": RecurrentLanguageModelConfig,
}
