"""Models whose word vectors are the aim. Axes: B batch, I inputs, O outputs, K negatives, D, V.

Token id 0 is padding; id 1, a word out of the vocabulary, is never learned.
"""

from __future__ import annotations

import keras
import tensorflow as tf

from model.config import CBOWConfig, GloVeConfig, SkipGramConfig

Batch = dict[str, tf.Tensor]


class Word2Vec(keras.Model):
    """Two vectors for each word: one as an input, and one as what inputs tell.

    Skip-gram and CBOW differ in what their batches call inputs and outputs: one word and its
    window, or a window and its word. Several inputs act by their mean (Mikolov et al., 2013, sec.
    3.1), whose gradient reaches each of them by its share; word2vec.c forgets the share (Irsoy et
    al., 2021). Both tables start as there: small even numbers, and zeros.

    Call: tokens int32 of any shape -> their input vectors, with an axis D behind.
    """

    def __init__(self, config: SkipGramConfig | CBOWConfig, vocabulary_size: int):
        super().__init__(name=config.name)
        self.config = config
        size = config.embedding_size
        self.embedding = keras.layers.Embedding(
            vocabulary_size, size, embeddings_initializer=_small(size), name="embedding"
        )
        self.output_embedding = keras.layers.Embedding(
            vocabulary_size, size, embeddings_initializer="zeros", name="output_embedding"
        )
        self.output_embedding.build()

    def call(self, tokens, training=False):
        return self.embedding(tokens)

    def scores(self, batch: Batch) -> tuple[tf.Tensor, tf.Tensor]:
        """Of "outputs" and of "negatives": float32 (B, O) and (B, K); of padding they mean nothing.

        All of the batch is int32, "inputs" (B, I) as well.
        """
        is_input = tf.cast(batch["inputs"] != 0, self.compute_dtype)[:, :, None]
        total = tf.reduce_sum(self.embedding(batch["inputs"]) * is_input, axis=1)
        hidden = tf.math.divide_no_nan(total, tf.reduce_sum(is_input, axis=1))  # (B, D)
        outputs, negatives = (
            tf.einsum("bd,bnd->bn", hidden, self.output_embedding(batch[name]))
            for name in ("outputs", "negatives")
        )
        return tf.cast(outputs, tf.float32), tf.cast(negatives, tf.float32)

    def word_vectors(self) -> tf.Tensor:
        """float32 (V, D): those as an input."""
        return tf.convert_to_tensor(self.embedding.embeddings)


class GloVe(keras.Model):
    """Two vectors and two biases for each word, whose products fit logarithms of counts.

    Call: tokens int32 of any shape -> their first vectors, with an axis D behind.
    """

    def __init__(self, config: GloVeConfig, vocabulary_size: int):
        super().__init__(name=config.name)
        self.config = config
        sizes = {
            "embedding": config.embedding_size,
            "output_embedding": config.embedding_size,
            "bias": 1,
            "output_bias": 1,
        }
        for name, size in sizes.items():
            start = "zeros" if size == 1 else _small(size)
            layer = keras.layers.Embedding(
                vocabulary_size, size, embeddings_initializer=start, name=name
            )
            layer.build()
            setattr(self, name, layer)

    def call(self, tokens, training=False):
        return self.embedding(tokens)

    def scores(self, batch: Batch) -> tf.Tensor:
        """w_i w~_j + b_i + b~_j (eq. 7) of int32 "inputs" and "outputs" (B, 1): float32 (B,)."""
        i, j = batch["inputs"][:, 0], batch["outputs"][:, 0]
        product = tf.einsum("bd,bd->b", self.embedding(i), self.output_embedding(j))
        return tf.cast(product + self.bias(i)[:, 0] + self.output_bias(j)[:, 0], tf.float32)

    def word_vectors(self) -> tf.Tensor:
        """float32 (V, D): the sum of both (Pennington et al., 2014, sec. 4.2)."""
        return self.embedding.embeddings + self.output_embedding.embeddings


def _small(size: int) -> keras.initializers.Initializer:
    return keras.initializers.RandomUniform(-0.5 / size, 0.5 / size)
