"""The table of networks: adding one is a file, its config in `model/config/` and a line here."""

from __future__ import annotations

import random
from collections.abc import Callable

import keras

from model.bag_of_ngrams import BagOfNgrams
from model.config import ModelConfig
from model.config.checks import PRECISIONS
from model.dpcnn import DPCNN
from model.gated_convolution import GatedConvolution
from model.heads import Graded
from model.hierarchical import Hierarchical
from model.presets import PresetClassifier, PresetGenerator
from model.products import policy_of
from model.recurrent import Recurrent, RecurrentLanguageModel, ULMFiTLSTM
from model.text_cnn import TextCNN
from model.tokenizers.presets import Preset
from model.transformer import TransformerDecoder, TransformerEncoder
from model.word_vectors import GloVe, Word2Vec

# Each is called with (config, vocabulary_size, num_labels) and maps tokens (B, T) to (B, K).
CLASSIFIERS: dict[str, Callable[..., keras.Model]] = {
    "bag_of_ngrams": BagOfNgrams,
    "text_cnn": TextCNN,
    "gated_convolution": GatedConvolution,
    "dpcnn": DPCNN,
    "recurrent": Recurrent,
    "hierarchical": Hierarchical,
    "ulmfit_lstm": ULMFiTLSTM,
    "transformer_encoder": TransformerEncoder,
}
# Each is called with (config, vocabulary_size) and can prefill and decode.
GENERATORS: dict[str, Callable[..., keras.Model]] = {
    "transformer_decoder": TransformerDecoder,
    "recurrent_language_model": RecurrentLanguageModel,
}
# Those whose make comes with the tokenizer: called with (config, preset) and, to classify, the
# number of labels.
PRESETS: dict[str, Callable[..., keras.Model]] = {
    "preset_classifier": PresetClassifier,
    "preset_generator": PresetGenerator,
}
# Each is called with (config, vocabulary_size), scores batches and has word_vectors (V, D).
WORD_VECTOR_MODELS: dict[str, Callable[..., keras.Model]] = {
    "skip_gram": Word2Vec,
    "cbow": Word2Vec,
    "glove": GloVe,
}


def build_model(
    config: ModelConfig,
    vocabulary_size: int,
    num_labels: int | None = None,
    *,
    seed: int,
    precision: str = "float32",
    preset: Preset | None = None,
    is_graded: bool = False,
) -> keras.Model:
    """The network `config` names, its variables made; `seed` fixes weights and dropout.

    `preset` is that of the tokenizer, for the networks that come from one. With `is_graded` the
    labels of a classifier are ordered: the network gives one score, and `heads.Graded` stands
    around it.
    """

    def network(num_outputs: int | None):
        if config.name in PRESETS:
            labels = () if num_outputs is None else (num_outputs,)
            return PRESETS[config.name](config, preset, *labels)
        if config.name in CLASSIFIERS:
            return CLASSIFIERS[config.name](config, vocabulary_size, num_outputs)
        return (GENERATORS | WORD_VECTOR_MODELS)[config.name](config, vocabulary_size)

    def make():
        return Graded(network(1), num_labels) if is_graded else network(num_labels)

    return construct(make, keras.ops.ones((1, 2), "int32"), seed=seed, precision=precision)


def construct(
    make: Callable[[], keras.Model], *inputs, seed: int, precision: str = "float32"
) -> keras.Model:
    """What `make` returns, called once on `inputs` so that its variables are made.

    `seed` fixes weights and dropout. `precision` is the type of products and activations;
    variables and logits are float32 in each (Micikevicius et al., 2018, sec. 3.1).
    """
    if precision not in PRECISIONS:
        known = ", ".join(PRECISIONS)
        raise ValueError(f"precision must be one of {known}. Received: {precision!r}")
    # Keras draws the seeds of initial values and dropout from Python's generator. Its own
    # set_random_seed would also reset TensorFlow's, and with it every SentencePiece resource.
    state, policy = random.getstate(), keras.config.dtype_policy()
    random.seed(seed)
    keras.config.set_dtype_policy(policy_of(precision))
    try:
        model = make()
        model(*inputs)
    finally:
        keras.config.set_dtype_policy(policy)
        random.setstate(state)
    return model
