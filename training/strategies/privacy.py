"""Differentially private training, and what it promises."""

from __future__ import annotations

import tensorflow as tf

from training.strategies.gradients import clip, scale
from training.strategies.noise import PRIVACY, gaussian
from training.strategies.replicas import assign
from training.strategies.rules import SUMS, Around, UpdateRule, only


class DifferentiallyPrivate(Around):
    """(sum_i g_i min(1, C / |g_i|) + N(0, (noise C)^2)) / B (Abadi et al., 2016, alg. 1).

    g_i is the gradient of the mean loss of row i, over all weights together. The noise is drawn
    once an update, for every entry of every weight: a sparse gradient becomes dense, as which rows
    it names would tell who was there. B is `batch_size`, the expected number of rows: the
    number drawn is itself private. The run's own optimizer.clip_norm is set aside: a second clip
    would be of the noise, not of any example.

    The promise (`epsilon`) is about one row more or less, drawn by Poisson sampling, and about the
    weights. It holds for whoever does not know the seed, which reproduces the noise; and it does
    not cover the log, whose losses are exact, or the vocabulary of a word or SentencePiece
    tokenizer, which is made of the training texts. (A start from naive Bayes is left out of a
    private run, `training/stages.py`; other stages and teachers are refused, `training/config.py`.)
    """

    def __init__(
        self,
        inner: UpdateRule,
        clip: float,
        noise: float,
        *,
        batch_size: int | None,
        seed: int,
    ):
        super().__init__(inner)
        if batch_size is None:
            raise ValueError(
                "strategy: dp_sgd divides by the expected number of rows of a batch. Set "
                "batch_size to a number. Received: None"
            )
        self.limit, self.noise, self.batch_size, self.seed = clip, noise, batch_size, seed
        self.count = self.new_variable("dp_sgd_count", 0, tf.int64)  # updates, and noises drawn
        self.optimizer_rule.clip_norm = None

    def update(self, batches):
        gradients, sums = self.replicas.sum(*self.gradient(batches))
        noise = gaussian(gradients, purpose=PRIVACY, seed=self.seed, step=self.count)
        assign([self.count], [self.count + 1])
        deviation = self.noise * self.limit
        noisy = [g + deviation * n for g, n in zip(gradients, noise, strict=True)]
        return sums | self.apply(scale(noisy, 1.0 / self.batch_size))

    def gradient(self, batches):
        """The sum over the rows of what each contributes, dense and without noise."""
        batch = only(batches)
        num_rows = tf.shape(next(iter(batch.values())))[0]

        def add_row(i, totals, sums):
            row = {name: tf.gather(value, [i])[None] for name, value in batch.items()}
            contribution, more = self._contribution(row)
            return (
                i + 1,
                [_add(t, g) for t, g in zip(totals, contribution, strict=True)],
                [s + tf.cast(more[name], tf.float32) for s, name in zip(sums, SUMS, strict=True)],
            )

        nothing = [tf.zeros(weight.shape, weight.dtype) for weight in self.weights]
        _, totals, sums = tf.while_loop(
            lambda i, *_: i < num_rows,
            add_row,
            (0, nothing, [tf.zeros([]) for _ in SUMS]),
            parallel_iterations=1,
        )
        return totals, dict(zip(SUMS, sums, strict=True))

    def _contribution(self, row):
        """Of one row, a stack of one batch of one: its gradient with a norm of at most C."""
        gradients, sums = self.inner.gradient(row)
        mean = scale(gradients, tf.math.divide_no_nan(1.0, sums["num_targets"]))
        return clip(mean, self.limit)[0], sums


def epsilon(noise: float, sampling_rate: float, num_updates: int, delta: float) -> float:
    """The epsilon of (epsilon, delta)-differential privacy after `num_updates` updates of dp_sgd.

    For data sets that differ by one example more or less, each example being in a batch with
    probability `sampling_rate`; `noise` is a multiple of the clip norm, 0 gives infinity. Composed
    as Renyi divergences (Mironov, 2017; Mironov, Talwar & Zhang, 2019) by `dp_accounting`.

    >>> round(epsilon(noise=4.0, sampling_rate=0.01, num_updates=10_000, delta=1e-5), 2)
    1.04
    """
    for name, value, is_valid, expected in (
        ("noise", noise, noise >= 0, "0 or more"),
        ("sampling_rate", sampling_rate, 0 < sampling_rate <= 1, "above 0 and at most 1"),
        ("num_updates", num_updates, num_updates >= 0, "0 or more"),
        ("delta", delta, 0 < delta < 1, "above 0 and below 1"),
    ):
        if not is_valid:
            raise ValueError(f"{name} must be {expected}. Received: {value!r}")
    if noise == 0:
        return float("inf") if num_updates else 0.0
    import dp_accounting  # slow to import, and of use to private runs alone
    from dp_accounting import rdp

    accountant = rdp.RdpAccountant()
    one = dp_accounting.PoissonSampledDpEvent(
        sampling_rate, dp_accounting.GaussianDpEvent(float(noise))
    )
    accountant.compose(one, num_updates)
    return float(accountant.get_epsilon(delta))


def _add(total: tf.Tensor, gradient) -> tf.Tensor:
    if isinstance(gradient, tf.IndexedSlices):
        return tf.tensor_scatter_nd_add(total, gradient.indices[:, None], gradient.values)
    return total + gradient
