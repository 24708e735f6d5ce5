"""The table of networks: adding one is a file, its config in `model/config.py` and a line here."""

from __future__ import annotations

import random
from collections.abc import Callable

import keras

from model.bag_of_ngrams import BagOfNgrams
from model.config import ModelConfig
from model.recurrent import BidirectionalLSTM
from model.transformer import TransformerDecoder, TransformerEncoder

# Each is called with (config, vocabulary_size, num_labels) and maps tokens (B, T) to (B, K).
CLASSIFIERS: dict[str, Callable[..., keras.Model]] = {
    "bag_of_ngrams": BagOfNgrams,
    "bidirectional_lstm": BidirectionalLSTM,
    "transformer_encoder": TransformerEncoder,
}
# Each is called with (config, vocabulary_size) and can prefill and decode.
GENERATORS: dict[str, Callable[..., keras.Model]] = {
    "transformer_decoder": TransformerDecoder,
}


def build_model(
    config: ModelConfig, vocabulary_size: int, num_labels: int | None = None, *, seed: int
) -> keras.Model:
    """The network `config` names, its variables made; `seed` fixes weights and dropout."""
    # Keras draws the seeds of initial values and dropout from Python's generator. Its own
    # set_random_seed would also reset TensorFlow's, and with it every SentencePiece resource.
    state = random.getstate()
    random.seed(seed)
    try:
        if config.name in CLASSIFIERS:
            model = CLASSIFIERS[config.name](config, vocabulary_size, num_labels)
        else:
            model = GENERATORS[config.name](config, vocabulary_size)
        model(keras.ops.ones((1, 2), "int32"))
    finally:
        random.setstate(state)
    return model
