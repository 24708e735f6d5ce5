"""Optimising at prediction time: weights that move on what they are asked about, and come back.

* `DynamicEvaluation`: a language model learns from each chunk of a text after scoring it;
* `Tent`: a classifier makes its answers to a batch more certain by its normalisation layers;
* `TestTimeTraining`: a classifier first solves a self-supervised task on the text in hand;
* `NeighbourTraining`: a classifier first trains on the training texts nearest to the text in hand.

All of them move the model's own variables: while one is at work, no other thread may use the model.
No Keras optimizer is involved, as its slots would outlive a reset.

Axes: B batch, T tokens, K labels, V vocabulary. Token id 0 is padding, 1 an unknown token.
"""

from __future__ import annotations

import contextlib
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from model.config.checks import require
from model.tokenizers import UNKNOWN

SCALINGS = ("none", "rms")
OPTIMIZERS = ("sgd", "adam")

_TOKENS = tf.TensorSpec([None, None], tf.int32)
_NORMALIZATIONS = (
    keras.layers.LayerNormalization,
    keras.layers.GroupNormalization,
    keras.layers.RMSNormalization,
)


class Adaptation:
    """A model whose `variables` move while it predicts, and what is needed to bring them back.

    A context manager: the weights are the original ones again after the block, whatever ended it.
    `num_gradients` counts forward-backward passes since construction.
    """

    def __init__(self, model: keras.Model, variables: Sequence[Any], *, rate: float):
        require(0 <= rate < math.inf, "rate", "0 or more and finite", rate)
        self.model, self.variables, self.rate = model, list(variables), rate
        self.num_gradients = 0
        # All state of the model, moved by us or not: also the random states of dropout.
        self._original = [tf.convert_to_tensor(variable) for variable in model.variables]

    def reset(self) -> None:
        """The model as it was on construction, bit for bit, and nothing remembered."""
        for variable, original in zip(self.model.variables, self._original, strict=True):
            variable.assign(original)

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        self.reset()


# Language models ----------------------------------------------------------------------------------


class DynamicEvaluation(Adaptation):
    """Scores a text chunk by chunk in order, one gradient step after each (Mikolov et al., 2010).

    `scaling="none"`, with g the gradient of the chunk's mean loss and theta_0 the original weights
    (Krause et al., 2018, arXiv 1709.07432, section 5):

        theta += -rate * g + decay * (theta_0 - theta)

    `scaling="rms"` (their RMS rule), with m the running mean of g^2 and r = sqrt(m):

        theta += -rate * g / (r + epsilon) + min(decay * r / mean(r), 1) * (theta_0 - theta)

    They take m from the training data alone: here it begins with the chunks given to `collect`, if
    any, and takes in every chunk scored. Without `collect` the first step moves each weight by
    `rate`, whatever its gradient. The network runs without dropout.
    """

    def __init__(
        self,
        model: keras.Model,
        *,
        rate: float,
        decay: float = 0.0,
        scaling: str = "none",
        epsilon: float = 1e-5,
    ):
        require(0 <= decay <= 1, "decay", "from 0 to 1", decay)
        require(scaling in SCALINGS, "scaling", f"one of {', '.join(SCALINGS)}", scaling)
        require(0 < epsilon < math.inf, "epsilon", "above 0 and finite", epsilon)
        super().__init__(model, model.trainable_variables, rate=rate)
        self.decay, self.scaling, self.epsilon = decay, scaling, epsilon
        self._theta_0 = [tf.convert_to_tensor(variable) for variable in self.variables]
        zeros = [tf.zeros_like(value) for value in self._theta_0] if scaling == "rms" else []
        self._statistics = (tf.zeros([]), zeros)  # chunks seen, mean squares of their gradients
        self._collected = self._statistics  # what a reset goes back to
        rate_spec = tf.TensorSpec([], tf.float32)
        specs = tf.nest.map_structure(lambda t: tf.TensorSpec(t.shape, t.dtype), self._statistics)
        self._sums = tf.function(self._forward, input_signature=[_TOKENS, _TOKENS])
        self._step = tf.function(
            self._score_and_step, input_signature=[_TOKENS, _TOKENS, rate_spec, specs]
        )
        self._observe = tf.function(self._take_in, input_signature=[_TOKENS, _TOKENS, specs])

    def score(self, tokens, targets) -> dict[str, tf.Tensor]:
        """The sums of `sums`, taken before the step that this chunk causes."""
        rate = tf.constant(self.rate, tf.float32)
        sums, self._statistics = self._step(tokens, targets, rate, self._statistics)
        self.num_gradients += 1
        return sums

    def sums(self, tokens, targets) -> dict[str, tf.Tensor]:
        """float32 scalars "loss_sum" (nats), "num_targets", "num_correct"; nothing moves.

        `tokens`, `targets`: int32 (B, T), the next token of each; 0 among targets is padding.
        """
        return self._sums(tokens, targets)

    def collect(self, tokens, targets) -> None:
        """Takes a chunk of other text into the mean squares before reading; nothing moves."""
        require(self.scaling == "rms", "scaling", "rms to collect mean squares", self.scaling)
        self._collected = self._statistics = self._observe(tokens, targets, self._collected)
        self.num_gradients += 1

    def reset(self) -> None:
        super().reset()
        self._statistics = self._collected

    def _forward(self, tokens, targets):
        return token_sums(targets, self.model(tokens, training=False))

    def _gradients(self, tokens, targets):
        with tf.GradientTape() as tape:
            sums = self._forward(tokens, targets)
            loss = tf.math.divide_no_nan(sums["loss_sum"], sums["num_targets"])
        gradients = tape.gradient(loss, [variable.value for variable in self.variables])
        return sums, [
            tf.zeros_like(value) if gradient is None else tf.convert_to_tensor(gradient)
            for gradient, value in zip(gradients, self._theta_0, strict=True)
        ]

    def _take_in(self, tokens, targets, statistics):
        _, gradients = self._gradients(tokens, targets)
        return self._averaged(gradients, statistics)

    def _score_and_step(self, tokens, targets, rate, statistics):
        sums, gradients = self._gradients(tokens, targets)
        pulls = [self.decay] * len(gradients)
        if self.scaling == "rms":
            statistics = self._averaged(gradients, statistics)
            roots = [tf.sqrt(mean_square) for mean_square in statistics[1]]
            gradients = [g / (r + self.epsilon) for g, r in zip(gradients, roots, strict=True)]
            total = tf.add_n([tf.reduce_sum(root) for root in roots])
            mean = total / sum(root.shape.num_elements() for root in roots)
            # Beyond 1 the pull would overshoot theta_0.
            pulls = [tf.minimum(self.decay * tf.math.divide_no_nan(r, mean), 1.0) for r in roots]
        for variable, g, pull, theta_0 in zip(
            self.variables, gradients, pulls, self._theta_0, strict=True
        ):
            theta = variable.value
            theta.assign_add(pull * (theta_0 - theta) - rate * g)
        return sums, statistics

    @staticmethod
    def _averaged(gradients, statistics):
        count, mean_squares = statistics[0] + 1.0, statistics[1]
        return count, [
            m + (tf.square(g) - m) / count for m, g in zip(mean_squares, gradients, strict=True)
        ]


# Classifiers --------------------------------------------------------------------------------------


class GradientSteps(Adaptation, ABC):
    """A few steps on an objective before every answer.

    `episodic` brings the original weights back after every answer, so no answer depends on another;
    otherwise they move on until `reset`. The optimizer is "sgd" or "adam" (Kingma & Ba, 2015, alg.
    1); its moments begin at zero on construction and after every reset.
    """

    def __init__(
        self,
        model: keras.Model,
        variables: Sequence[Any],
        *,
        rate: float,
        steps: int = 1,
        episodic: bool = True,
        optimizer: str = "sgd",
    ):
        require(steps >= 0, "steps", "0 or more", steps)
        require(optimizer in OPTIMIZERS, "optimizer", f"one of {', '.join(OPTIMIZERS)}", optimizer)
        super().__init__(model, variables, rate=rate)
        self.steps, self.episodic, self.optimizer = steps, episodic, optimizer
        self._slots = self._fresh_slots()
        self._step = tf.function(self._compute_step, reduce_retracing=True)
        self._logits = tf.function(
            lambda tokens: model(tokens, training=False), input_signature=[_TOKENS]
        )

    @abstractmethod
    def objective(self, step, *inputs) -> tf.Tensor:
        """What a step lowers, a float32 scalar; `step` int32 counts within one answer, from 0."""

    @abstractmethod
    def predict(self, tokens) -> np.ndarray:
        """Logits float32 (B, K) of `tokens` int32 (B, T), from weights moved by `steps` steps."""

    def step(self, number: int, *inputs) -> float:
        """One step; returns the objective before it."""
        rate = tf.constant(self.rate, tf.float32)
        objective, self._slots = self._step(tf.constant(number), rate, self._slots, *inputs)
        self.num_gradients += 1
        return float(objective)

    def reset(self) -> None:
        super().reset()
        self._slots = self._fresh_slots()

    @contextlib.contextmanager
    def _answer(self) -> Iterator[None]:
        try:
            yield
        finally:
            if self.episodic:
                self.reset()

    def _fresh_slots(self) -> list[tf.Tensor]:
        """Of Adam: the number of steps, then first and second moments."""
        if self.optimizer == "sgd":
            return []
        zeros = [tf.zeros_like(variable.value) for variable in self.variables]
        return [tf.zeros([]), *zeros, *zeros]

    def _compute_step(self, number, rate, slots, *inputs):
        values = [variable.value for variable in self.variables]
        with tf.GradientTape() as tape:
            objective = self.objective(number, *inputs)
        gradients = tape.gradient(objective, values)
        update = _sgd if self.optimizer == "sgd" else _adam
        return objective, update(values, gradients, rate, slots)


def _sgd(values, gradients, rate, slots):
    for value, gradient in zip(values, gradients, strict=True):
        if isinstance(gradient, tf.IndexedSlices):  # a table of n-grams has millions of rows
            value.scatter_sub(tf.IndexedSlices(rate * gradient.values, gradient.indices))
        elif gradient is not None:  # the head of a classifier has no part in other tasks
            value.assign_sub(rate * gradient)
    return slots


def _adam(values, gradients, rate, slots, beta_1=0.9, beta_2=0.999, epsilon=1e-8):
    count, moments = slots[0] + 1.0, slots[1:]
    first, second = moments[: len(values)], moments[len(values) :]
    new_first, new_second = [], []
    for value, gradient, m, v in zip(values, gradients, first, second, strict=True):
        if gradient is not None:
            g = tf.convert_to_tensor(gradient)
            m = beta_1 * m + (1 - beta_1) * g
            v = beta_2 * v + (1 - beta_2) * tf.square(g)
            unbiased = m / (1 - beta_1**count)
            value.assign_sub(rate * unbiased / (tf.sqrt(v / (1 - beta_2**count)) + epsilon))
        new_first.append(m)
        new_second.append(v)
    return [count, *new_first, *new_second]


class Tent(GradientSteps):
    """Lowers the entropy of the predictions for a batch (Wang et al., 2021, section 3).

    Only the scales and offsets of normalisation layers move. As in the paper the weights move on
    from batch to batch unless `episodic`; other than there, the answers are those after the steps,
    so that a batch profits from its own. Raises ValueError for a network without such layers.
    """

    def __init__(
        self,
        model: keras.Model,
        *,
        rate: float,
        steps: int = 1,
        episodic: bool = False,
        optimizer: str = "sgd",
    ):
        variables = normalization_variables(model)
        if not variables:
            raise ValueError(
                f"tent moves the scales and offsets of normalisation layers, and "
                f"{type(model).__name__} has none. Use neighbours, which takes any classifier, or "
                "model=transformer_encoder."
            )
        super().__init__(
            model, variables, rate=rate, steps=steps, episodic=episodic, optimizer=optimizer
        )

    def objective(self, step, tokens):
        return tf.reduce_mean(entropy(self.model(tokens, training=False)))

    def predict(self, tokens) -> np.ndarray:
        with self._answer():
            for number in range(self.steps):
                self.step(number, tf.constant(tokens))
            return self._logits(tokens).numpy()


class TestTimeTraining(GradientSteps):
    """A few self-supervised steps on each text before its label is predicted (Sun et al., 2020).

    The task is the one that the network's `token_logits(tokens, training)` (B, T, V) is for. If a
    step's logits see later tokens, a share `mask_rate` of the tokens is hidden, in `num_copies`
    ways at once, and told from the rest (Devlin et al., 2019, without their random tokens); if not,
    every token is told from those before it. What is hidden depends on `seed`, the step and the
    text's length, never on other texts. All variables with a part in the task move; the head that
    gives the label has none. Raises ValueError for a network without `token_logits`.
    """

    __test__ = False  # pytest would take the name for a test's

    def __init__(
        self,
        model: keras.Model,
        *,
        rate: float,
        steps: int = 1,
        episodic: bool = True,
        optimizer: str = "sgd",
        mask_rate: float = 0.15,
        num_copies: int = 8,
        seed: int = 0,
    ):
        if not hasattr(model, "token_logits"):
            raise ValueError(
                f"ttt learns to predict the text's own tokens, and {type(model).__name__} cannot: "
                "it has no token_logits. Use neighbours, which takes any classifier, or a model "
                "that learned tokens first, such as model=transformer_encoder."
            )
        self.sees_ahead = sees_ahead(model)
        require(0 < mask_rate < 1, "mask_rate", "above 0 and below 1", mask_rate)
        require(num_copies > 0, "num_copies", "above 0", num_copies)
        require(0 <= seed < 2**31, "seed", "0 or more and below 2147483648", seed)
        self.mask_rate, self.num_copies, self.seed = mask_rate, num_copies, seed
        super().__init__(
            model,
            model.trainable_variables,
            rate=rate,
            steps=steps,
            episodic=episodic,
            optimizer=optimizer,
        )

    def objective(self, step, tokens):
        if not self.sees_ahead:
            logits = self.model.token_logits(tokens, training=False)[:, :-1]
            sums = token_sums(tokens[:, 1:], logits)
        else:
            tokens = tf.repeat(tokens, self.num_copies, axis=0)
            seed = tf.stack([self.seed, step])
            is_hidden = hidden_positions(tokens, self.mask_rate, seed)
            seen = tf.where(is_hidden, UNKNOWN, tokens)
            targets = tf.where(is_hidden, tokens, 0)
            sums = token_sums(targets, self.model.token_logits(seen, training=False))
        return tf.math.divide_no_nan(sums["loss_sum"], sums["num_targets"])

    def predict(self, tokens) -> np.ndarray:
        return np.concatenate([self._predict_alone(row) for row in rows_of(tokens)])

    def _predict_alone(self, row: np.ndarray) -> np.ndarray:
        tokens = tf.constant(row[None])
        with self._answer():
            for number in range(self.steps):
                self.step(number, tokens)
            return self._logits(tokens).numpy()


class NeighbourTraining(GradientSteps):
    """Trains on the nearest training texts before each answer (Hardt & Sun, 2024).

    arXiv 2305.18466. One step a neighbour, from the nearest to the farthest, `steps` times over;
    nearness is that of `NearestTexts`. The paper does this for language models: here a step lowers
    the cross-entropy of the neighbour's label. `rows`: token ids of every training text, int32 (T,)
    each; `labels` int (N,).
    """

    def __init__(
        self,
        model: keras.Model,
        rows: Sequence[np.ndarray],
        labels: np.ndarray,
        *,
        rate: float,
        steps: int = 1,
        num_neighbours: int = 8,
        episodic: bool = True,
        optimizer: str = "sgd",
    ):
        require(num_neighbours > 0, "num_neighbours", "above 0", num_neighbours)
        require(
            len(rows) == len(labels), "labels", f"one for each of {len(rows)} rows", len(labels)
        )
        super().__init__(
            model,
            model.trainable_variables,
            rate=rate,
            steps=steps,
            episodic=episodic,
            optimizer=optimizer,
        )
        self.rows, self.labels, self.num_neighbours = rows, labels, num_neighbours
        self.texts = NearestTexts(rows)

    def objective(self, step, tokens, label):
        logits = tf.cast(self.model(tokens, training=False), tf.float32)
        return tf.reduce_sum(tf.nn.sparse_softmax_cross_entropy_with_logits(label, logits))

    def predict(self, tokens) -> np.ndarray:
        return np.concatenate([self._predict_alone(row) for row in rows_of(tokens)])

    def _predict_alone(self, row: np.ndarray) -> np.ndarray:
        nearest = self.texts.nearest(row, self.num_neighbours)
        with self._answer():
            for number in range(self.steps):
                for index in nearest:
                    neighbour = padded([self.rows[index]])
                    label = np.array([self.labels[index]], np.int32)
                    self.step(number, tf.constant(neighbour), tf.constant(label))
            return self._logits(row[None]).numpy()


class NearestTexts:
    """Texts by the cosine of their TF-IDF vectors over token ids (Salton & Buckley, 1988).

    A token's weight is its count times ln((1 + N) / (1 + n)) + 1, with n of the N texts having it:
    the weights of scikit-learn. Kept as a list of texts for each token, so a question costs no more
    than the texts it shares tokens with. `rows`: token ids of every text, int (T,), 0 is padding.
    """

    def __init__(self, rows: Sequence[np.ndarray]):
        if not len(rows):
            raise ValueError("Nearest texts need at least one training text. Received: none")
        self.num_texts = len(rows)
        tokens = np.concatenate(rows).astype(np.int64)
        texts = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
        texts, tokens = texts[tokens != 0], tokens[tokens != 0]
        num_ids = int(tokens.max(initial=0)) + 1
        cells, counts = np.unique(tokens * len(rows) + texts, return_counts=True)  # by token
        tokens, self._texts = np.divmod(cells, len(rows))
        occurrence = np.bincount(tokens, minlength=num_ids)
        self._starts = np.concatenate([[0], np.cumsum(occurrence)])
        self._idf = np.log((1 + len(rows)) / (1 + occurrence)) + 1
        weights = counts * self._idf[tokens]
        norms = np.sqrt(np.bincount(self._texts, weights**2, minlength=len(rows)))
        self._weights = weights / norms[self._texts]

    def similarities(self, row: np.ndarray) -> np.ndarray:
        """Cosines float64 (N,), from 0 to 1; tokens that no text has count for nothing."""
        tokens, counts = np.unique(row[row != 0], return_counts=True)
        known = tokens < len(self._idf)
        known[known] = np.diff(self._starts)[tokens[known]] > 0
        tokens, counts = tokens[known], counts[known]
        weights = counts * self._idf[tokens]
        weights = weights / max(np.sqrt((weights**2).sum()), np.finfo(float).tiny)
        cosines = np.zeros(self.num_texts)
        for token, weight in zip(tokens, weights, strict=True):
            here = slice(self._starts[token], self._starts[token + 1])
            cosines[self._texts[here]] += weight * self._weights[here]
        return cosines

    def nearest(self, row: np.ndarray, count: int) -> np.ndarray:
        """Indices of up to `count` texts that share a token with `row`, the nearest first."""
        cosines = self.similarities(row)
        order = np.argsort(-cosines, kind="stable")[:count]
        return order[cosines[order] > 0]


# Pieces -------------------------------------------------------------------------------------------


def normalization_variables(model: keras.Model) -> list:
    """The trainable scales and offsets of the model's normalisation layers, at any depth."""
    return [
        variable
        for layer in model._flatten_layers()
        if isinstance(layer, _NORMALIZATIONS)
        for variable in layer.trainable_variables
    ]


def sees_ahead(model: keras.Model) -> bool:
    """Whether `token_logits` of a step change with the tokens after it."""
    pair = tf.constant([[UNKNOWN, UNKNOWN], [UNKNOWN, UNKNOWN + 1]])
    first = model.token_logits(pair, training=False)[:, 0]  # (2, V)
    return bool(tf.reduce_max(tf.abs(first[0] - first[1])) > 1e-6)


def entropy(logits):
    """Of each row's distribution, nats, float32 (B,)."""
    log_p = tf.nn.log_softmax(tf.cast(logits, tf.float32))
    return -tf.reduce_sum(tf.exp(log_p) * log_p, axis=-1)


def token_sums(targets, logits) -> dict[str, tf.Tensor]:
    """Cross-entropy of `targets` int32 (B, T), 0 is padding, under `logits` (B, T, V), as sums."""
    logits = tf.cast(logits, tf.float32)
    weight = tf.cast(targets != 0, tf.float32)
    nats = tf.nn.sparse_softmax_cross_entropy_with_logits(targets, logits)
    is_correct = tf.argmax(logits, axis=-1, output_type=targets.dtype) == targets
    return {
        "loss_sum": tf.reduce_sum(nats * weight),
        "num_targets": tf.reduce_sum(weight),
        "num_correct": tf.reduce_sum(tf.cast(is_correct, tf.float32) * weight),
    }


def hidden_positions(tokens, mask_rate: float, seed):
    """bool (B, T): each known token with probability `mask_rate`, and one of each row at least."""
    chance = tf.random.stateless_uniform(tf.shape(tokens), seed)
    may_hide = tokens > UNKNOWN  # to tell that a word is unknown teaches nothing
    chance = tf.where(may_hide, chance, 2.0)
    is_lowest = chance == tf.reduce_min(chance, axis=1, keepdims=True)
    return may_hide & ((chance < mask_rate) | is_lowest)


def padded(rows: Sequence[np.ndarray]) -> np.ndarray:
    """int32 (B, T) of rows (t,), T the longest and at least 1; 0 pads."""
    tokens = np.zeros((len(rows), max([1, *map(len, rows)])), np.int32)
    for line, row in zip(tokens, rows, strict=True):
        line[: len(row)] = row
    return tokens


def rows_of(tokens) -> Iterator[np.ndarray]:
    """Each row of int32 (B, T) without the padding at its end, of length 1 at least."""
    for row in np.asarray(tokens, np.int32):
        length = int(np.flatnonzero(row).max(initial=0)) + 1
        yield row[:length]
