"""Small problems on which what an update rule ought to do is known.

`Quadratic` is the f of the golden numbers, 1/2 sum_i a_i (w_i - c_i)^2 in float64; `Words` is a
small classifier in float32 whose embedding has sparse gradients and whose batches hold padding.
"""

import keras
import numpy as np
import tensorflow as tf

from training.config import OptimizerConfig
from training.losses import TaskLoss, classification_loss
from training.stacking import stack
from training.strategies.build import build_rule
from training.strategies.compiled import compile_updates

START, CURVATURE = np.array([1.0, -2.0]), np.array([1.0, 10.0])


class Toy:
    """A rule on a problem; `run(n)` takes n updates and returns the weights after each."""

    def __init__(
        self,
        expression,
        *,
        rate=0.05,
        num_updates=100,
        seed=0,
        batch_size=None,
        xla=False,
        exchange=None,
        rate_factors=(),
        **settings,
    ):
        config = OptimizerConfig(
            peak_learning_rate=rate,
            **({"schedule": "constant", "clip_norm": None} | settings),
        )
        self.rule = build_rule(
            expression,
            self.task,
            self.weights,
            config,
            num_updates=num_updates,
            seed=seed,
            batch_size=batch_size,
            exchange=exchange,
            rate_factors=rate_factors,
        )
        self.take = compile_updates(self.rule, xla=xla)
        self.shapes = not xla  # XLA compiles for one shape: padding stays, with weight 0
        self.index = 0  # of the next micro-batch
        self.said: list[dict] = []

    def run(self, num_updates, per_call=1):
        """float arrays (n, ...): the flattened weights after every call."""
        path = []
        for _ in range(num_updates // per_call):
            count = per_call * self.rule.num_batches
            batches = [self.batch(i) for i in range(self.index, self.index + count)]
            self.index += count
            sums = self.take(stack(batches, shapes=self.shapes))
            self.said += [{k: float(v[i]) for k, v in sums.items()} for i in range(per_call)]
            path.append(self.flat())
        return np.array(path)

    def flat(self):
        return np.concatenate([weight.numpy().ravel() for weight in self.weights])

    def evaluated(self):
        """The weights that would be evaluated and exported."""
        values = self.rule.evaluation_weights()
        if values is None:
            return self.flat()
        return np.concatenate([np.ravel(value) for value in values])

    def state(self):
        """All that a checkpoint keeps, as arrays."""
        raw = [*self.weights, *self.rule.variables]
        return [np.array(tf.convert_to_tensor(v)) for v in raw], self.index

    def restore(self, state):
        arrays, self.index = state
        for variable, array in zip([*self.weights, *self.rule.variables], arrays, strict=True):
            variable.assign(array)


class Quadratic(Toy):
    """f(w) = 1/2 sum_i a_i (w_i - c_i)^2, the same in every batch; `centre` may differ by batch.

    A batch of n examples counts n targets, each with the loss f.
    """

    def __init__(
        self, expression, *, curvature=CURVATURE, centres=((0.0, 0.0),), examples=(1,), **settings
    ):
        self.curvature = tf.constant(curvature, tf.float64)
        self.centres, self.examples = np.array(centres, np.float64), examples
        self.weights = [keras.Variable(START.copy(), dtype="float64", name="w")]
        self.task = self.loss
        super().__init__(expression, **settings)

    def loss(self, batch):
        count = tf.reduce_sum(tf.ones_like(batch["centre"][:, 0]))
        difference = self.weights[0].value - batch["centre"]
        total = 0.5 * tf.reduce_sum(self.curvature * difference**2)
        return {"loss_sum": total, "num_targets": count, "num_correct": tf.zeros_like(count)}

    def batch(self, i):
        count = self.examples[i % len(self.examples)]
        return {"centre": np.repeat(self.centres[[i % len(self.centres)]], count, axis=0)}


class Words(Toy):
    """Mean of word vectors, a dense layer, dropout if asked for; rows of different lengths.

    The loss counts `factor` times.
    """

    vocabulary_size, num_labels, width = 12, 3, 4

    def __init__(self, expression, *, dropout=0.0, sizes=(3,), data_seed=0, factor=1.0, **settings):
        rng = np.random.default_rng(7)
        self.embedding = keras.Variable(
            rng.normal(size=(self.vocabulary_size, self.width)).astype("float32"), name="embedding"
        )
        self.kernel = keras.Variable(
            rng.normal(size=(self.width, self.num_labels)).astype("float32"), name="kernel"
        )
        self.bias = keras.Variable(np.zeros(self.num_labels, np.float32), name="bias")
        self.dropout = keras.layers.Dropout(dropout, seed=5)
        self.weights = [self.embedding, self.kernel, self.bias]
        self.sizes, self.data_seed, self.factor = sizes, data_seed, factor
        self.task = TaskLoss(self.logits, self.of_logits)
        super().__init__(expression, **settings)

    def logits(self, batch):
        is_word = tf.cast(batch["tokens"] != 0, tf.float32)[:, :, None]
        vectors = tf.gather(self.embedding.value, batch["tokens"]) * is_word
        mean = tf.math.divide_no_nan(tf.reduce_sum(vectors, 1), tf.reduce_sum(is_word, 1))
        return tf.matmul(self.dropout(mean, training=True), self.kernel.value) + self.bias.value

    def of_logits(self, batch, logits):
        sums = classification_loss(batch, logits)
        return sums | {"loss_sum": self.factor * sums["loss_sum"]}

    def batch(self, i):
        rng = np.random.default_rng([self.data_seed, i])
        count = self.sizes[i % len(self.sizes)]
        lengths = rng.integers(1, 7, count)
        tokens = np.zeros((count, lengths.max()), np.int32)
        for row, length in zip(tokens, lengths, strict=True):
            row[:length] = rng.integers(1, self.vocabulary_size, length)
        return {"tokens": tokens, "label": rng.integers(0, self.num_labels, count).astype(np.int32)}

    def state(self):
        arrays, index = super().state()
        seeds = [variable.numpy() for variable in self.dropout.variables]  # none without dropout
        return (arrays, seeds), index

    def restore(self, state):
        (arrays, seeds), index = state
        super().restore((arrays, index))
        for variable, seed in zip(self.dropout.variables, seeds, strict=True):
            variable.assign(seed)
