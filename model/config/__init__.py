"""What a tokenizer or a network is made of: frozen, checked dataclasses, no TensorFlow.

Every class checks itself on construction, so a wrong number is refused before anything heavy is
imported. A class that stands in one of the two unions can be named in a recipe.
"""

from __future__ import annotations

from typing import get_args

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
    | RecurrentLanguageModelConfig
    | PresetClassifierConfig
    | PresetGeneratorConfig
    | SkipGramConfig
    | CBOWConfig
    | GloVeConfig
)

# By the name that a recipe, an override or a config.json gives.
TOKENIZER_CONFIGS: dict[str, type] = {kind.name: kind for kind in get_args(TokenizerConfig)}
MODEL_CONFIGS: dict[str, type] = {kind.name: kind for kind in get_args(ModelConfig)}
