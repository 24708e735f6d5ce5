"""Convolutions that let through what a second one allows. Axes: B batch, T steps, D width."""

import keras
import tensorflow as tf

from model import pooling
from model.cells import at_least_one_step
from model.config import GatedConvolutionConfig
from model.dropout import Dropout


class GatedConvolution(keras.Model):
    """Residual gated linear units over windows of words (Dauphin et al., 2017, eq. 1).

        x <- x + (x * W + b) . sigmoid(x * V + c)        with * over `kernel_size` tokens

    Call: `tokens` int32 (B, T), 0 is padding -> logits float32 (B, num_labels). Windows are
    centred on their token, as a text to be judged has no future to hide, and zero beyond its ends;
    one convolution computes both halves. The paper's weight normalisation is left out. A text
    without any token pools to zeros.
    """

    def __init__(self, config: GatedConvolutionConfig, vocabulary_size: int, num_labels: int):
        super().__init__(name=config.name)
        self.embedding = keras.layers.Embedding(vocabulary_size, config.width, name="embedding")
        self.convolutions = [
            keras.layers.Conv1D(
                2 * config.width, config.kernel_size, padding="same", name=f"convolution_{i}"
            )
            for i in range(config.num_layers)
        ]
        self.dropout = Dropout(config.dropout, config.dropout_kind, name="dropout")
        self.pool = pooling.pooling(config.pooling)
        self.head = keras.layers.Dense(num_labels, name="head", dtype="float32")

    def call(self, tokens, training=False):
        tokens = at_least_one_step(tokens)
        is_token = tokens != 0  # (B, T)
        x = self.dropout(self.embedding(tokens), training=training)
        weight = tf.cast(is_token, x.dtype)[:, :, None]
        for convolution in self.convolutions:
            content, gate = tf.split(convolution(x * weight), 2, axis=-1)  # (B, T, D) each
            x = x + content * tf.sigmoid(gate)
        return self.head(self.dropout(self.pool(x, is_token), training=training))
