"""A linear classifier over the set of n-grams. Axes: B batch, T n-grams, K labels, V buckets."""

from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from model.config import BagOfNgramsConfig
from model.dropout import Dropout


class BagOfNgrams(keras.Model):
    """Adds up one weight for each n-gram and label, over the square root of how many there are.

    logits = scale / sqrt(n) * sum_i W[ngram_i] + b. `adapt` starts W from the log-count ratios of
    naive Bayes (Wang & Manning, 2012, eq. 2, for each label against the mean of all), training
    goes on from there: with few examples it begins where naive Bayes ends.

    Call: `tokens` int32 (B, T), distinct ids of a row's n-grams, 0 is padding -> logits float32
    (B, K). `ngram_dropout` leaves out whole n-grams in training.
    """

    def __init__(self, config: BagOfNgramsConfig, vocabulary_size: int, num_labels: int):
        # Sums of weights gain nothing from half precision: float32 under any policy.
        super().__init__(name=config.name, dtype="float32")
        self.config, self.vocabulary_size, self.num_labels = config, vocabulary_size, num_labels
        self.weight = keras.layers.Embedding(
            vocabulary_size,
            num_labels,
            embeddings_initializer="zeros",
            dtype="float32",
            name="embedding",
        )
        self.bias = self.add_weight(shape=(num_labels,), initializer="zeros", name="bias")
        self.dropout = Dropout(config.ngram_dropout, dtype="float32", name="dropout")

    def call(self, tokens, training=False):
        is_ngram = tf.cast(tokens != 0, tf.float32)  # (B, T)
        norm = tf.sqrt(tf.maximum(tf.reduce_sum(is_ngram, axis=1, keepdims=True), 1.0))
        kept = self.dropout(is_ngram, training=training) / norm * self.config.scale
        return tf.einsum("bt,btk->bk", kept, self.weight(tokens)) + self.bias

    def adapt(self, rows: Sequence[np.ndarray], labels: np.ndarray) -> None:
        """Sets the weights to log-count ratios. `rows`: each text's ids (T,); `labels` int (B,).

        Of `labels` bool (B, K) each is set against the texts without it, as if it were alone.
        """
        if labels.ndim == 2:
            self._adapt_each(rows, labels)
            return
        num_examples = np.bincount(labels, minlength=self.num_labels)
        prior = np.log((num_examples + 1) / (len(labels) + self.num_labels))
        self.bias.assign(prior - prior.mean())
        if self.config.naive_bayes_scale:
            ratio = self._log_count_ratios(rows, labels, self.num_labels)
            self.weight.embeddings.assign(self.config.naive_bayes_scale * ratio)

    def _adapt_each(self, rows: Sequence[np.ndarray], is_label: np.ndarray) -> None:
        num_with = is_label.sum(axis=0)
        self.bias.assign(np.log((num_with + 1) / (len(is_label) - num_with + 1)))
        if self.config.naive_bayes_scale:
            ratios = [self._log_count_ratios(rows, has.astype(int), 2) for has in is_label.T]
            weights = np.stack([ratio[:, 1] - ratio[:, 0] for ratio in ratios], axis=1)  # (V, K)
            self.weight.embeddings.assign(self.config.naive_bayes_scale * weights)

    def adapt_to_grades(
        self, rows: Sequence[np.ndarray], labels: np.ndarray, num_labels: int
    ) -> None:
        """Sets the weights of a single output to what of the ratios grows evenly with the label.

        That is the least-squares slope of each n-gram's ratios over the labels in their order; of
        two labels it is all of their ratio.
        """
        if self.config.naive_bayes_scale:
            ratio = self._log_count_ratios(rows, labels, num_labels)
            step = np.arange(num_labels) - (num_labels - 1) / 2
            slope = ratio @ step / (step @ step)
            self.weight.embeddings.assign(self.config.naive_bayes_scale * slope[:, None])

    def _log_count_ratios(
        self, rows: Sequence[np.ndarray], labels: np.ndarray, num_labels: int
    ) -> np.ndarray:
        """float (V, K): each label's log-count against the mean of all labels."""
        lengths = [len(row) for row in rows]
        cells = np.concatenate(rows) * num_labels + np.repeat(labels, lengths)
        size = self.vocabulary_size * num_labels
        counts = np.bincount(cells, minlength=size).reshape(-1, num_labels)  # (V, K)
        seen = counts.sum(axis=1, keepdims=True) > 0
        # Unseen buckets take no part: their mass would only shift all labels alike.
        smoothed = (counts + self.config.smoothing) * seen
        total = np.maximum(smoothed.sum(axis=0), self.config.smoothing)  # of no n-gram at all
        log = np.log(np.where(seen, smoothed, 1.0)) - np.log(total)
        return np.where(seen, log - log.mean(axis=1, keepdims=True), 0.0)
