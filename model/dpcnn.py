"""A deep pyramid of convolutions. Axes: B batch, T steps, D features."""

import keras
import tensorflow as tf

from model import pooling
from model.cells import at_least_one_step
from model.config import DPCNNConfig
from model.dropout import Dropout


class DPCNN(keras.Model):
    """Blocks of two convolutions with a shortcut, the steps halved between blocks.

    Johnson & Zhang (2017), fig. 1a: a linear region embedding; in each block twice a rectifier
    and a convolution, added to the block's input; a maximum over three steps at every second one
    in front of each block but the first; the maximum over time. Their unsupervised embeddings are
    left out.

    Call: `tokens` int32 (B, T), 0 is padding -> logits float32 (B, num_labels). The number of
    blocks is the configuration's, not the batch's: a row of t tokens has t, then t / 2 rounded up,
    ..., at last 1 step however far it is padded, and padding is zero in front of every convolution.
    A text without any token pools to zeros.
    """

    def __init__(self, config: DPCNNConfig, vocabulary_size: int, num_labels: int):
        super().__init__(name=config.name)
        self.embedding = keras.layers.Embedding(
            vocabulary_size, config.embedding_size, name="embedding"
        )

        def convolution(name):
            return keras.layers.Conv1D(config.width, config.kernel_size, padding="same", name=name)

        self.region = convolution("region")
        self.blocks = [
            [convolution(f"block_{i}_{j}") for j in range(2)] for i in range(config.num_blocks)
        ]
        self.dropout = Dropout(config.dropout, config.dropout_kind, name="dropout")
        self.head = keras.layers.Dense(num_labels, name="head", dtype="float32")

    def call(self, tokens, training=False):
        tokens = at_least_one_step(tokens)
        is_token = tokens != 0  # (B, T)
        x = self.dropout(self.embedding(tokens), training=training)
        x = self.region(_without_padding(x, is_token))  # (B, T, D)
        for i, convolutions in enumerate(self.blocks):
            if i:
                x, is_token = halve(x, is_token)
            y = x
            for convolution in convolutions:
                y = convolution(_without_padding(tf.nn.relu(y), is_token))
            x = x + y
        pooled = pooling.maximum(x, is_token)
        return self.head(self.dropout(pooled, training=training))


def halve(x, is_token):
    """The maximum of steps 2i, 2i + 1, 2i + 2, those with a token: (B, T, D) -> (B, T / 2, D).

    Rounded up, and counted from the beginning: the windows of TensorFlow's "SAME" pooling would
    lie elsewhere when the number of steps, padding included, is odd. What is left of `is_token`
    bool (B, T) comes back beside it; the steps without a token mean nothing.
    """
    lowest = x.dtype.min
    x = tf.where(is_token[:, :, None], x, lowest)
    x = tf.pad(x, [[0, 0], [0, 2], [0, 0]], constant_values=lowest)
    x = tf.maximum(tf.maximum(x[:, :-2:2], x[:, 1:-1:2]), x[:, 2::2])
    return x, is_token[:, ::2]


def _without_padding(x, is_token):
    return tf.where(is_token[:, :, None], x, tf.zeros_like(x))
