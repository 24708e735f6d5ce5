"""Recurrent classifiers. Axes: B batch, T steps, D features."""

import keras
import tensorflow as tf

from model.config import BidirectionalLSTMConfig


class BidirectionalLSTM(keras.Model):
    """Both directions of an LSTM (Hochreiter & Schmidhuber, 1997), maximum over time.

    Call: `tokens` int32 (B, T), 0 is padding -> logits float32 (B, num_labels). Padding is
    skipped by the recurrence and never the maximum; a text without any token pools to zeros.
    """

    def __init__(self, config: BidirectionalLSTMConfig, vocabulary_size: int, num_labels: int):
        super().__init__()
        self.embedding = keras.layers.Embedding(
            vocabulary_size, config.embedding_size, name="embedding"
        )
        self.lstm = keras.layers.Bidirectional(
            keras.layers.LSTM(config.units, return_sequences=True), name="lstm"
        )
        self.dropout = keras.layers.Dropout(config.dropout)
        self.head = keras.layers.Dense(num_labels, name="head")

    def call(self, tokens, training=False):
        # The recurrence needs at least one step: an empty text is one step of padding.
        tokens = tf.pad(tokens, [[0, 0], [0, tf.cast(tf.shape(tokens)[1] == 0, tf.int32)]])
        is_token = tokens != 0  # (B, T)
        x = self.dropout(self.embedding(tokens), training=training)
        x = self.lstm(x, mask=is_token, training=training)  # (B, T, 2 * units)
        lowest = tf.where(is_token[:, :, None], x, x.dtype.min)
        pooled = tf.reduce_max(lowest, axis=1)
        pooled = tf.where(tf.reduce_any(is_token, axis=1)[:, None], pooled, 0.0)
        return self.head(self.dropout(pooled, training=training))
