"""Output heads. Axes: B batch, T steps, D width, V vocabulary, K labels."""

from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from model.products import product, product_type, unflattened


def tied_logits(x: tf.Tensor, embedding: keras.layers.Embedding) -> tf.Tensor:
    """Logits float32 (..., V) of hidden states `x` (..., D): the head is the embedding, transposed.

    Press & Wolf (2017). The product is computed in the type of `x`, the sum handed on in float32.
    """
    rows = tf.reshape(x, [-1, embedding.output_dim])
    stored, head = (getattr(embedding, name, None) for name in ("stored", "head"))
    if stored is not None:
        flat = stored.product(rows)
    elif head is not None:
        flat = product(rows, tf.cast(head, x.dtype), product_type(embedding))
    else:
        weights, factors = tf.cast(embedding.embeddings, x.dtype), product_type(embedding)  # (V, D)
        if x.shape.rank == 2:
            # One token of each row: turned round, TensorFlow multiplies a few rows by a matrix
            # with outputs first 3 to 16 times as fast.
            flat = tf.transpose(product(weights, rows, factors, transpose_b=True))
        else:
            flat = product(rows, weights, factors, transpose_b=True)
    return tf.cast(unflattened(flat, x, embedding.input_dim), tf.float32)


class Graded(keras.Model):
    """A network with one output as one over K ordered labels, by proportional odds.

    P(y <= k) = sigmoid(threshold_k - score), thresholds rising (McCullagh, 1980, sec. 2). What
    comes out are the logarithms of P(y = k), so whatever takes the logits of a classifier takes
    them too: their softmax is P, their cross-entropy the likelihood. The order of the thresholds
    cannot break: `cut_bias` holds the first one and, of each further one, r with
    threshold_k - threshold_(k-1) = softplus(r).

    Call: `tokens` int32 (B, T) -> float32 (B, K). `network` maps tokens to (B, 1). What it can do
    besides, `token_logits` and its start from the data, is handed on.
    """

    def __init__(self, network: keras.Model, num_labels: int):
        super().__init__(name="graded", dtype="float32")
        self.network, self.num_labels = network, num_labels
        even = cut_bias_of(np.arange(1, num_labels) / num_labels)
        self.cut_bias = self.add_weight(
            shape=(num_labels - 1,),
            initializer=lambda shape, dtype=None: tf.constant(even, tf.float32),
            # "bias" as it never decays, "head" as stages that train the head mean it too.
            name="head_cut_bias",
        )
        if hasattr(network, "token_logits"):
            self.token_logits = network.token_logits

    @property
    def token_bias(self):
        return self.network.token_bias

    def call(self, tokens, training=False):
        score = tf.cast(self.network(tokens, training=training), tf.float32)  # (B, 1)
        return grade_log_probabilities(score, tf.convert_to_tensor(self.cut_bias))

    def adapt(self, rows: Sequence[np.ndarray], labels: np.ndarray) -> None:
        """Puts the thresholds where a score of 0 means how frequent each label is."""
        counts = np.bincount(labels, minlength=self.num_labels) + 1.0
        self.cut_bias.assign(cut_bias_of(np.cumsum(counts)[:-1] / counts.sum()))
        if hasattr(self.network, "adapt_to_grades"):
            self.network.adapt_to_grades(rows, labels, self.num_labels)


def grade_log_probabilities(score: tf.Tensor, cut_bias: tf.Tensor) -> tf.Tensor:
    """log P(y = k), float32 (B, K), of `score` (B, 1) and `cut_bias` (K - 1,) as in `Graded`.

    With a the threshold below and b = a + softplus(r) the one above,
    sigmoid(b - s) - sigmoid(a - s) = sigmoid(b - s) sigmoid(s - a) sigmoid(r): no difference of
    nearly equal numbers, and a gradient at any distance from the thresholds.
    """
    first, rest = cut_bias[:1], cut_bias[1:]
    thresholds = tf.concat([first, first + tf.cumsum(tf.nn.softplus(rest))], axis=0)  # (K - 1,)
    below = tf.math.log_sigmoid(thresholds - score)  # (B, K - 1)
    above = tf.math.log_sigmoid(score - thresholds)
    between = below[:, 1:] + above[:, :-1] + tf.math.log_sigmoid(rest)
    return tf.concat([below[:, :1], between, above[:, -1:]], axis=1)


def cut_bias_of(cumulative: np.ndarray) -> np.ndarray:
    """The `cut_bias` of `Graded` (K - 1,) that gives P(y <= k) = `cumulative` at a score of 0."""
    thresholds = np.log(cumulative) - np.log1p(-cumulative)
    return np.concatenate([thresholds[:1], np.log(np.expm1(np.diff(thresholds)))])
