"""What many proofs measure, and the toys that several files of proofs share."""

import numpy as np
import tensorflow as tf

from tests.training.strategies.toys import Words
from training.stacking import stack


def apart(a, b):
    """The largest difference of two arrays."""
    return float(np.max(np.abs(np.asarray(a) - np.asarray(b))))


def end(problem, expression, count=3, **settings):
    """The weights after `count` updates."""
    return problem(expression, **settings).run(count)[-1]


def all_of(toy):
    """Everything that a checkpoint keeps, in one array."""
    arrays, _ = toy.state()
    arrays = [*arrays[0], arrays[1]] if isinstance(arrays, tuple) else arrays
    return np.concatenate([np.asarray(array, np.float64).ravel() for array in arrays])


def resumed(problem, expression, count=4, **settings):
    """How far from the uninterrupted run one ends that is stopped once, at worst."""
    whole, states = problem(expression, **settings), []
    for _ in range(count):
        states.append(whole.state())
        whole.run(1)
    worst = 0.0
    for done, state in enumerate(states[1:], start=1):
        other = problem(expression, **settings)
        other.restore(state)
        other.run(count - done)
        worst = max(worst, apart(all_of(whole), all_of(other)))
    return worst


def stepped(size, mask, *, combine):
    """Words after one step of SGD at rate 1 with the gradient taken after a step uphill.

    That step is `size` long, over the weights where `mask` is 1; `combine` adds the gradient at the
    start. All by plain SGD.
    """
    here, there = Words("sgd", rate=1.0), Words("sgd", rate=1.0)
    start = here.flat()
    gradient = start - here.run(1)[-1]
    masked = gradient * mask
    moved = start + size * masked / np.linalg.norm(masked)
    place = 0
    for weight in there.weights:
        count = int(np.prod(weight.shape))
        weight.assign(moved[place : place + count].reshape(weight.shape))
        place += count
    moved = there.flat()
    total = moved - there.run(1)[-1] + (gradient if combine else 0)
    return start - total


def moved_by_gradient(toy):
    """How far the weights are from where they were, after a gradient and no update."""
    before = toy.flat()
    batches = [toy.batch(i) for i in range(toy.rule.num_batches)]
    gradient = tf.function(lambda b: toy.rule.gradient(b)[1]["loss_sum"])
    gradient(stack(batches))
    return apart(before, toy.flat())


def joined(batches):
    """Several batches as one, padded to the longest row."""
    longest = max(batch["tokens"].shape[1] for batch in batches)

    def padded(x):
        return np.pad(x, [(0, 0), (0, longest - x.shape[1])]) if x.ndim > 1 else x

    return {name: np.concatenate([padded(b[name]) for b in batches]) for name in batches[0]}


class Joined(Words):
    """Every batch is `parts` batches of `Words` in one."""

    parts = 4

    def batch(self, i):
        return joined([super(Joined, self).batch(self.parts * i + j) for j in range(self.parts)])


class JoinedMany(Joined):
    parts = 32


class DenseWords(Words):
    """The same network with a dense gradient for its embedding."""

    def logits(self, batch):
        is_word = tf.cast(batch["tokens"] != 0, tf.float32)[:, :, None]
        vectors = tf.one_hot(batch["tokens"], self.vocabulary_size) @ self.embedding.value
        mean = tf.math.divide_no_nan(tf.reduce_sum(vectors * is_word, 1), tf.reduce_sum(is_word, 1))
        return tf.matmul(mean, self.kernel.value) + self.bias.value


UNEQUAL = {"sizes": (2, 5, 1, 3)}
REAL = {"weight_decay": 0.1, "clip_norm": 0.3, "schedule": "cosine", "num_updates": 8}
