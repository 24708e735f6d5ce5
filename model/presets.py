"""Networks of KerasHub presets.

Axes: B batch, T tokens, S slots, D width, K labels, V vocabulary.
"""

import keras
import tensorflow as tf

from model.config import PresetClassifierConfig, PresetGeneratorConfig
from model.tokenizers import BEGIN, END, PADDING
from model.tokenizers.presets import NoTask, Preset

_NEVER = -1e9  # the logit of an id that no text has; finite, so that a mean over all stays so


class PresetClassifier(keras.Model):
    """KerasHub's classifier of the preset's family; a mean over tokens where it has none.

    Call: `tokens` int32 (B, T) in our ids, 0 is padding -> logits float32 (B, K). Begin and end are
    put around each text, as in pre-training; what its positions do not reach is cut.
    """

    def __init__(self, config: PresetClassifierConfig, preset: Preset, num_labels: int):
        super().__init__(name=config.name)
        self.config, self.preset = config, preset
        try:
            self.network = preset.task(
                "TextClassifier", num_classes=num_labels, activation=None, preprocessor=None
            )
            self.head = None
        except NoTask:
            self.network = preset.task("Backbone")
            self.head = keras.layers.Dense(num_labels, name="head", dtype="float32")
        _check_inputs(self.network, preset)

    def call(self, tokens, training=False):
        longest = self.preset.longest
        if longest is not None:
            tokens = tokens[:, : longest - self.preset.has_begin - self.preset.has_end]
        tokens = _framed(tokens, self.preset)
        x = self.network(_inputs(tokens, self.network, self.preset), training=training)
        if self.head is None:
            return tf.cast(x, tf.float32)
        weight = tf.cast(tokens != PADDING, tf.float32)[:, :, None]
        mean = tf.reduce_sum(tf.cast(x, tf.float32) * weight, axis=1)  # (B, D)
        return self.head(tf.math.divide_no_nan(mean, tf.reduce_sum(weight, axis=1)))


class PresetGenerator(keras.Model):
    """A decoder of KerasHub; as `TransformerDecoder`, but it reads the whole text for each token.

    (`call_with_cache` writes all rows at one position, and ours stand at different ones.) The cache
    of `prefill` and `decode` is the text so far, int32 (B, S).
    """

    def __init__(self, config: PresetGeneratorConfig, preset: Preset):
        super().__init__(name=config.name)
        longest = preset.longest
        if longest is not None and config.context_length > longest:
            raise ValueError(
                f"model.context_length must be at most {longest} for this preset. "
                f"Received: {config.context_length}"
            )
        self.config, self.preset = config, preset
        self.vocabulary_size = len(preset.order)
        self.network = preset.task("CausalLM", preprocessor=None)
        _check_inputs(self.network, preset)

    def call(self, tokens, training=False):
        theirs = self.network(_inputs(tokens, self.network, self.preset), training=training)
        logits = tf.gather(tf.cast(theirs, tf.float32), self.preset.order, axis=-1)
        return tf.where(self.preset.is_written, logits, _NEVER)  # (B, T, V)

    def prefill(self, tokens, lengths, num_slots):
        """`tokens` int32 (B, T) padded on the right, `lengths` int32 (B,) >= 1, T <= num_slots."""
        logits = tf.gather(self(tokens), lengths - 1, axis=1, batch_dims=1)
        return logits, tf.pad(tokens, [[0, 0], [0, num_slots - tf.shape(tokens)[1]]])

    def decode(self, token, position, text):
        where = tf.stack([tf.range(tf.shape(token)[0]), position], axis=1)
        text = tf.tensor_scatter_nd_update(text, where, token)
        # What stands behind a row's position is padding, or was never read: causal all the same.
        return tf.gather(self(text), position, axis=1, batch_dims=1), text


def _check_inputs(network: keras.Model, preset: Preset) -> None:
    unknown = set(network.input) - {"token_ids", "padding_mask", "segment_ids"}
    if unknown:
        raise ValueError(
            "tokenizer.preset must be an encoder or a decoder, which reads one text. "
            f"Received: {preset.source}, which also reads {', '.join(sorted(unknown))}"
        )


def _framed(tokens, preset: Preset):
    """Begin in front of and end behind each text, as far as the preset has them."""
    lengths = tf.reduce_sum(tf.cast(tokens != PADDING, tf.int32), axis=1)  # (B,)
    if preset.has_end:
        tokens = tf.pad(tokens, [[0, 0], [0, 1]])
        is_end = tf.range(tf.shape(tokens)[1])[None, :] == lengths[:, None]
        tokens = tf.where(is_end, END, tokens)
    if preset.has_begin:
        tokens = tf.pad(tokens, [[0, 0], [1, 0]], constant_values=BEGIN)
    return tokens


def _inputs(tokens, network: keras.Model, preset: Preset) -> dict[str, tf.Tensor]:
    inputs = {
        "token_ids": tf.gather(preset.order, tokens),
        "padding_mask": tf.cast(tokens != PADDING, tf.int32),
        "segment_ids": tf.zeros_like(tokens),
    }
    return {name: inputs[name] for name in network.input}
