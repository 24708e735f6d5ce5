"""Filters over words, each heard where it is loudest. Axes: B batch, T steps, D, F features."""

import keras
import tensorflow as tf

from model import pooling
from model.cells import at_least_one_step
from model.config import TextCNNConfig
from model.dropout import Dropout


class TextCNN(keras.Model):
    """Convolutions of several widths, maximum over time, one linear layer (Kim, 2014).

    Call: `tokens` int32 (B, T), 0 is padding -> logits float32 (B, num_labels). Each filter has
    one window for each token, centred on it, with zeros beyond the text's ends, where the paper
    has windows inside the text alone: so a text may be shorter than a filter, and how far a row is
    padded changes nothing. A text without any token pools to zeros.
    """

    def __init__(self, config: TextCNNConfig, vocabulary_size: int, num_labels: int):
        super().__init__(name=config.name)
        self.embedding = keras.layers.Embedding(
            vocabulary_size, config.embedding_size, name="embedding"
        )
        self.convolutions = [
            keras.layers.Conv1D(config.filters, size, padding="same", name=f"width_{size}")
            for size in config.sizes()
        ]
        self.dropout = Dropout(config.dropout, config.dropout_kind, name="dropout")
        self.head = keras.layers.Dense(num_labels, name="head", dtype="float32")

    def call(self, tokens, training=False):
        tokens = at_least_one_step(tokens)
        is_token = tokens != 0  # (B, T)
        x = self.dropout(self.embedding(tokens), training=training)
        x = x * tf.cast(is_token, x.dtype)[:, :, None]  # (B, T, D)
        loudest = [pooling.maximum(layer(x), is_token) for layer in self.convolutions]  # (B, F)
        # The maximum of the rectified is the rectified maximum, and that is less work.
        pooled = tf.nn.relu(tf.concat(loudest, axis=1))
        return self.head(self.dropout(pooled, training=training))
