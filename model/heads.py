"""Output heads. Axes: B batch, T steps, D width, V vocabulary."""

import keras
import tensorflow as tf


def tied_logits(x: tf.Tensor, embedding: keras.layers.Embedding) -> tf.Tensor:
    """Logits float32 (..., V) of hidden states `x` (..., D): the head is the embedding, transposed.

    Press & Wolf (2017). The product is computed in the type of `x`, the sum handed on in float32.
    """
    weights = tf.cast(embedding.embeddings, x.dtype)  # (V, D)
    flat = tf.matmul(tf.reshape(x, [-1, weights.shape[1]]), weights, transpose_b=True)
    shape = tf.concat([tf.shape(x)[:-1], [weights.shape[0]]], axis=0)
    return tf.cast(tf.reshape(flat, shape), tf.float32)
