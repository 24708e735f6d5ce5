import dataclasses

import pytest

from model.config import (
    MODEL_CONFIGS,
    TOKENIZER_CONFIGS,
    BagOfNgramsConfig,
    ByteBPETokenizerConfig,
    BytesTokenizerConfig,
    CBOWConfig,
    CharacterTokenizerConfig,
    DPCNNConfig,
    GatedConvolutionConfig,
    GloVeConfig,
    HierarchicalConfig,
    NgramTokenizerConfig,
    PresetClassifierConfig,
    PresetGeneratorConfig,
    PresetTokenizerConfig,
    RecurrentConfig,
    RecurrentLanguageModelConfig,
    SentencePieceTokenizerConfig,
    SkipGramConfig,
    TextCNNConfig,
    TransformerDecoderConfig,
    TransformerEncoderConfig,
    ULMFiTLSTMConfig,
    WordpieceTokenizerConfig,
    WordTokenizerConfig,
)
from model.config.first_steps import (
    DenseClassifierConfig,
    LinearRegressionConfig,
    LSTMClassifierConfig,
    LSTMTaggerConfig,
    Seq2SeqTransformerConfig,
)

NAN = float("nan")
RATES = (-0.1, 1.0, 1.5, NAN)
TRANSFORMER = {
    "num_layers": (0, -1),
    "inner_width": (0,),
    "num_heads": (0, -2),
    "num_key_value_heads": (0, -1, 3, 8),
    "width": (0, -8, 30, 20),  # 4 heads and pairs of channels in each: multiples of 8
    "dropout": RATES,
    "dropout_kind": ("columns", "", None),
    "recompute": (),  # true or false
    "positions": ("absolute", "", None),
    "normalization": ("batch", None),
    "activation": ("relu", "", None),
    "bias": (),
    "qk_norm": (),
    "initialization": ("zeros", None),
    "zero_output_projections": (),
}
UNBRANCHED = ("columns", "layer", None)
DROPOUT = {"dropout": RATES, "dropout_kind": UNBRANCHED}
LSTM_STACK = {"embedding_size": (0,), "units": (0, -1), "num_layers": (0, -1), **DROPOUT}
CELL = {"cell": ("LSTM", "", None)}
POOLING = {"pooling": ("sum", "", None)}
CONVOLUTIONS = {"width": (0, -1), "kernel_size": (0, -1, 2), **DROPOUT}
ONE_LSTM = {"embedding_size": (0, -1), "units": (0,)}
NEGATIVE_SAMPLING = {
    "embedding_size": (0,),
    "window": (0, -1),
    "num_negatives": (0,),
    "noise_power": (-0.1, 1.1, NAN),
    "subsampling": (-1e-3, 2.0, NAN),
}
NORMALIZED = {"normalization": ("NFKC", "nfc", "", None), "simplify": ()}
VOCABULARY = {"vocabulary_size": (2, 0), "min_count": (0,), "max_tokens": (0, -1)} | NORMALIZED
# Every setting that can be wrong, with values that are.
WRONG = {
    WordTokenizerConfig: VOCABULARY,
    CharacterTokenizerConfig: VOCABULARY,
    WordpieceTokenizerConfig: VOCABULARY,
    ByteBPETokenizerConfig: VOCABULARY | {"vocabulary_size": (259, 0)},
    BytesTokenizerConfig: {"max_tokens": (0, -1)},
    NgramTokenizerConfig: NORMALIZED
    | {
        "max_ngram": (0,),
        "min_character_ngram": (0, -1),
        "max_character_ngram": (2, -1),
        "num_buckets": (1, 0, 2**31),
        "has_counts": (),
    },
    SentencePieceTokenizerConfig: NORMALIZED
    | {
        "vocabulary_size": (0, -5),
        "model_type": ("words", "", None),
        "max_tokens": (0, -1),
    },
    BagOfNgramsConfig: {
        "weighting": ("tfidf", "", None),
        "min_texts": (0, -1),
        "naive_bayes_scale": (-0.5, NAN),
        "logistic_regression": (-0.5, NAN),
        "smoothing": (0, -1.0, NAN),
        "scale": (0, -4.0, NAN),
        "ngram_dropout": RATES,
    },
    TextCNNConfig: {
        "embedding_size": (0,),
        "widths": ("", "3,,4", "3;4", "0", "-3", "3, four"),
        "filters": (0, -1),
        **DROPOUT,
    },
    GatedConvolutionConfig: CONVOLUTIONS | POOLING | {"num_layers": (0, -1)},
    DPCNNConfig: CONVOLUTIONS | {"embedding_size": (0,), "num_blocks": (0, -1)},
    RecurrentConfig: LSTM_STACK | CELL | POOLING | {"bidirectional": ()},  # true or false
    HierarchicalConfig: {
        "embedding_size": (0,),
        "sentence_tokens": (0, -1),
        "units": (0, -1),
        **DROPOUT,
    },
    ULMFiTLSTMConfig: LSTM_STACK,
    TransformerEncoderConfig: TRANSFORMER | {"token_head": (), "max_positions": (0, -1)},
    TransformerDecoderConfig: TRANSFORMER
    | {
        "context_length": (1, 0, -3),
        "tied_head": (),
        "value_embeddings": (),
        "logit_cap": (0.0, -5.0, NAN, float("inf")),
        "further_tokens": (-1,),
    },
    PresetTokenizerConfig: {"max_tokens": (0, -1), "preset": ()},
    PresetClassifierConfig: {},
    PresetGeneratorConfig: {"context_length": (1, 0)},
    SkipGramConfig: NEGATIVE_SAMPLING,
    CBOWConfig: NEGATIVE_SAMPLING,
    GloVeConfig: {
        "embedding_size": (0,),
        "window": (0,),
        "full_count": (0, -1.0, NAN),
        "weight_power": (-0.1, 1.5, NAN),
    },
    RecurrentLanguageModelConfig: LSTM_STACK | CELL | {"context_length": (1, 0, -3)},
    LinearRegressionConfig: {},
    DenseClassifierConfig: {"units": (0, -1)},
    LSTMTaggerConfig: ONE_LSTM,
    LSTMClassifierConfig: ONE_LSTM,
    Seq2SeqTransformerConfig: TRANSFORMER | {"max_positions": (0, -1)},
}
SECTIONS = dict.fromkeys(WRONG, "model") | dict.fromkeys(TOKENIZER_CONFIGS.values(), "tokenizer")


def test_every_configuration_of_the_tables_is_tried_here():
    assert {*TOKENIZER_CONFIGS.values(), *MODEL_CONFIGS.values()} <= set(WRONG)


@pytest.mark.parametrize("config", SECTIONS, ids=lambda config: config.__name__)
def test_every_setting_has_a_value_that_is_refused(config):
    """A new setting is either checked, or it says here that any value will do."""
    names = {field.name for field in dataclasses.fields(config)} - {"name"}
    assert names == set(WRONG[config])


@pytest.mark.parametrize(
    ("config", "setting", "value"),
    [
        pytest.param(config, setting, value, id=f"{config.__name__}-{setting}-{value}")
        for config, settings in WRONG.items()
        for setting, values in settings.items()
        for value in values
    ],
)
def test_a_wrong_value_is_refused_under_the_name_a_user_types(config, setting, value):
    with pytest.raises(ValueError) as refusal:
        config(**{setting: value})
    message = str(refusal.value)
    assert message.startswith(f"{SECTIONS[config]}.{setting} must be ")
    assert message.endswith(f"Received: {value!r}")


def test_values_at_the_edge_are_taken():
    WordTokenizerConfig(vocabulary_size=3, min_count=1, max_tokens=1)
    NgramTokenizerConfig(max_ngram=1, min_character_ngram=3, max_character_ngram=3, num_buckets=2)
    NgramTokenizerConfig(num_buckets=2**25 - 2, has_counts=True)
    with pytest.raises(ValueError, match="tokenizer.num_buckets must be below 33,554,432 with"):
        NgramTokenizerConfig(num_buckets=2**25, has_counts=True)
    ByteBPETokenizerConfig(vocabulary_size=260, max_tokens=None)
    BagOfNgramsConfig(naive_bayes_scale=0.0, ngram_dropout=0.0)
    TransformerDecoderConfig(width=8, num_heads=4, num_layers=1, dropout=0.0, context_length=2)


@pytest.mark.parametrize(
    ("positions", "multiple"),
    [("rotary", 6), ("learned", 3), ("alibi", 3), ("none", 3), ("sinusoidal", 6)],
)
def test_the_width_is_a_multiple_of_what_heads_and_positions_need(positions, multiple):
    TransformerDecoderConfig(num_heads=3, width=5 * multiple, positions=positions)
    with pytest.raises(ValueError, match=f"^model.width must be a multiple of {multiple} with"):
        TransformerDecoderConfig(num_heads=3, width=5 * multiple + 2, positions=positions)


def test_a_configuration_does_not_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        WordTokenizerConfig().max_tokens = 3
