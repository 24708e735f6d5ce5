"""A linear classifier over the set of n-grams. Axes: B batch, T n-grams, K labels, V buckets."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from model.config import BagOfNgramsConfig
from model.config.checks import require
from model.dropout import Dropout


class BagOfNgrams(keras.Model):
    """Adds up one weight for each n-gram and label; a text counts as a vector of length 1.

    logits = scale * sum_i u_i W[ngram_i] / ||u|| + b. `weighting` says what u is: 1 for every
    n-gram; `idf`, ln((1 + N) / (1 + n)) + 1 for one that n of N training texts have (as
    scikit-learn's TfidfVectorizer); or `naive_bayes`, its largest log-count ratio (Wang & Manning,
    2012, sec. 2.3, of any number of labels). By the last two, n-grams that fewer than `min_texts`
    training texts have count nothing. Where the tokenizer counts, u is times 1 + ln(c) for an
    n-gram that the text has c times (scikit-learn's sublinear_tf).

    `adapt` finds u and starts W from the log-count ratios (their eq. 2, for each label against the
    mean of all); training goes on from there: with few examples it begins where naive Bayes ends.
    With a `logistic_regression` C above 0 it begins at the one optimum of that convex problem, the
    least C * (sum of the texts' cross-entropies) + |scale W|^2 / 2, as scikit-learn's
    LogisticRegression finds it by SAGA (Defazio et al., 2014); of two labels W is then -w/2 and w/2
    for its one w. A label that no text has keeps its log-count ratio.

    Call: `tokens` int32 (B, T), distinct ids of a row's n-grams, each plus V (c - 1), 0 is padding
    -> logits float32 (B, K). `ngram_dropout` leaves out whole n-grams in training.
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
        self.ngram_weight: Any = None
        if config.weighting != "none":
            self.ngram_weight = self.add_weight(
                shape=(vocabulary_size,), initializer="ones", trainable=False, name="ngram_weight"
            )
        self.dropout = Dropout(config.ngram_dropout, dtype="float32", name="dropout")

    def call(self, tokens, training=False):
        counts = tf.cast(tokens // self.vocabulary_size + 1, tf.float32)
        value = tf.where(tokens != 0, 1.0 + tf.math.log(counts), 0.0)  # (B, T)
        tokens %= self.vocabulary_size
        if self.ngram_weight is not None:
            value *= tf.gather(self.ngram_weight, tokens)
        length = tf.sqrt(tf.reduce_sum(value**2, axis=1, keepdims=True))
        # Of a text without n-grams, or with none that counts, nothing is left but the bias.
        length = tf.where(length > 0, length, 1.0)
        kept = self.dropout(value, training=training) / length * self.config.scale
        return tf.einsum("bt,btk->bk", kept, self.weight(tokens)) + self.bias

    def adapt(self, rows: Sequence[np.ndarray], labels: np.ndarray) -> None:
        """Sets u, and W to log-count ratios. `rows`: each text's ids (T,); `labels` int (B,).

        Of `labels` bool (B, K) each is set against the texts without it, as if it were alone.
        """
        if labels.ndim == 2:
            self._adapt_each(rows, labels)
            return
        num_examples = np.bincount(labels, minlength=self.num_labels)
        prior = np.log((num_examples + 1) / (len(labels) + self.num_labels))
        self.bias.assign(prior - prior.mean())
        if self._looks_at_ngrams:
            ratio = self._log_count_ratios(rows, labels, self.num_labels)
            self._start(rows, ratio, ratio)
        if self.config.logistic_regression and (num_examples > 0).sum() > 1:
            w, b = self._optimum(self._vectors(rows), labels)
            if w.shape[1] == 1:
                w, b = w * [-0.5, 0.5], b * [-0.5, 0.5]
            self._assign_labels(np.flatnonzero(num_examples), w, b)

    def _adapt_each(self, rows: Sequence[np.ndarray], is_label: np.ndarray) -> None:
        num_with = is_label.sum(axis=0)
        self.bias.assign(np.log((num_with + 1) / (len(is_label) - num_with + 1)))
        if self._looks_at_ngrams:
            ratios = [self._log_count_ratios(rows, has.astype(int), 2) for has in is_label.T]
            ratio = np.stack([ratio[:, 1] - ratio[:, 0] for ratio in ratios], axis=1)  # (V, K)
            self._start(rows, ratio, ratio)
        if self.config.logistic_regression:
            vectors = self._vectors(rows)
            told = np.flatnonzero((num_with > 0) & (num_with < len(is_label)))
            if len(told):
                found = [self._optimum(vectors, is_label[:, k]) for k in told]
                weights, bias = (np.concatenate(part, axis=-1) for part in zip(*found, strict=True))
                self._assign_labels(told, weights, bias)

    def adapt_to_grades(
        self, rows: Sequence[np.ndarray], labels: np.ndarray, num_labels: int
    ) -> None:
        """Sets u, and the weights of one output to what of the ratios grows evenly with the label.

        That is the least-squares slope of each n-gram's ratios over the labels in their order; of
        two labels it is all of their ratio.
        """
        require(
            not self.config.logistic_regression,
            "model.logistic_regression",
            "0 with target=grade, which has another optimum",
            self.config.logistic_regression,
        )
        if self._looks_at_ngrams:
            ratio = self._log_count_ratios(rows, labels, num_labels)
            step = np.arange(num_labels) - (num_labels - 1) / 2
            self._start(rows, ratio, (ratio @ step / (step @ step))[:, None])

    @property
    def _looks_at_ngrams(self) -> bool:
        return self.config.naive_bayes_scale > 0 or self.ngram_weight is not None

    def _start(self, rows: Sequence[np.ndarray], ratio: np.ndarray, weights: np.ndarray) -> None:
        """Sets W to `weights` (V, K), scaled, and u by `ratio` (V, labels) or by who has what."""
        self.weight.embeddings.assign(self.config.naive_bayes_scale * weights)
        if self.ngram_weight is None:
            return
        num_texts = np.bincount(self._ngrams(rows), minlength=self.vocabulary_size)
        if self.config.weighting == "idf":
            weight = np.log((1 + len(rows)) / (1 + num_texts)) + 1
        else:
            weight = np.abs(ratio).max(axis=1)
        self.ngram_weight.assign(weight * (num_texts >= self.config.min_texts))

    def _vectors(self, rows: Sequence[np.ndarray]):
        """What `call` multiplies with `scale` W: sparse float32 (B, V), rows of length 1 or 0."""
        from scipy import sparse  # here, as few networks need these two
        from sklearn.preprocessing import normalize

        tokens = np.concatenate([*rows, np.zeros(0, np.int32)])
        tokens = tokens[tokens != 0]
        ngrams = tokens % self.vocabulary_size
        value = (1.0 + np.log(tokens // self.vocabulary_size + 1)).astype(np.float32)
        if self.ngram_weight is not None:
            value *= self.ngram_weight.numpy()[ngrams]
        starts = np.cumsum([0, *(np.count_nonzero(row) for row in rows)])
        shape = (len(rows), self.vocabulary_size)
        return normalize(sparse.csr_matrix((value, ngrams, starts), shape))

    def _optimum(self, vectors, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """W (V, K) and b (K,) for vectors (B, V) and int (B,); of two labels one column."""
        from sklearn.linear_model import LogisticRegression

        _, counted = vectors.nonzero()
        columns = np.unique(counted)
        solver = LogisticRegression(
            C=self.config.logistic_regression,
            solver="saga",
            tol=1e-3,
            max_iter=300,
            random_state=0,
        )
        solver.fit(vectors[:, columns], labels)
        weights = np.zeros((self.vocabulary_size, len(solver.coef_)), np.float32)
        weights[columns] = solver.coef_.T / self.config.scale
        return weights, solver.intercept_

    def _assign_labels(self, labels, weights: np.ndarray, bias: np.ndarray) -> None:
        """Sets the columns `labels` of W, and their b."""
        all_weights, all_bias = self.weight.embeddings.numpy(), self.bias.numpy()
        all_weights[:, labels], all_bias[labels] = weights, bias
        self.weight.embeddings.assign(all_weights)
        self.bias.assign(all_bias)

    def _ngrams(self, rows: Sequence[np.ndarray]) -> np.ndarray:
        """The ids of all rows without their counts: whether a text has an n-gram is what counts."""
        return np.concatenate(rows) % self.vocabulary_size

    def _log_count_ratios(
        self, rows: Sequence[np.ndarray], labels: np.ndarray, num_labels: int
    ) -> np.ndarray:
        """float (V, K): each label's log-count against the mean of all labels."""
        lengths = [len(row) for row in rows]
        cells = self._ngrams(rows) * num_labels + np.repeat(labels, lengths)
        size = self.vocabulary_size * num_labels
        counts = np.bincount(cells, minlength=size).reshape(-1, num_labels)  # (V, K)
        seen = counts.sum(axis=1, keepdims=True) > 0
        # Unseen buckets take no part: their mass would only shift all labels alike.
        smoothed = (counts + self.config.smoothing) * seen
        total = np.maximum(smoothed.sum(axis=0), self.config.smoothing)  # of no n-gram at all
        log = np.log(np.where(seen, smoothed, 1.0)) - np.log(total)
        return np.where(seen, log - log.mean(axis=1, keepdims=True), 0.0)
