import keras
import numpy as np
import pytest
import tensorflow as tf

from training.config import OptimizerConfig
from training.optimizers import OPTIMIZERS, build_optimizer

LR, EPSILON = 0.05, 1e-7


def optimizer_for(variables, name, *, steps=100, **settings):
    config = OptimizerConfig(
        name=name, **({"peak_learning_rate": LR, "schedule": "constant"} | settings)
    )
    return build_optimizer(config, variables, steps)


def variable(value, name="kernel"):
    return keras.Variable(np.array(value, np.float32), name=name)


def random_gradients(shape, count, seed=0):
    return np.random.default_rng(seed).normal(size=(count, *shape)).astype("float32")


# What each rule does to one weight, in NumPy: gradients g_1, g_2, ... -> the weight after each.


def sgd(w, gradients):
    for g in gradients:
        w = w - LR * g
        yield w


def momentum(w, gradients):
    """Polyak (1964)."""
    v = 0.0
    for g in gradients:
        v = 0.9 * v - LR * g
        w = w + v
        yield w


def rmsprop(w, gradients):
    """Hinton (2012), lecture 6e; epsilon under the root, as in Keras."""
    square = 0.0
    for g in gradients:
        square = 0.9 * square + 0.1 * g**2
        w = w - LR * g / np.sqrt(square + EPSILON)
        yield w


def adam(w, gradients, decay=0.0):
    """Kingma & Ba (2015), the order of operations at the end of sec. 2."""
    m = v = 0.0
    for t, g in enumerate(gradients, start=1):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        rate = LR * np.sqrt(1 - 0.999**t) / (1 - 0.9**t)
        w = w * (1 - LR * decay) - rate * m / (np.sqrt(v) + EPSILON)
        yield w


def adamw(w, gradients):
    """Loshchilov & Hutter (2019), alg. 2."""
    return adam(w, gradients, decay=0.2)


RULES = {"sgd": sgd, "momentum": momentum, "rmsprop": rmsprop, "adam": adam, "adamw": adamw}
SETTINGS = {"adamw": {"weight_decay": 0.2}}


@pytest.mark.parametrize("name", OPTIMIZERS)
class TestEveryOptimizer:
    def test_it_follows_its_formula(self, name):
        start = np.array([[1.0, -2.0], [0.3, 5.0]])
        gradients = random_gradients((2, 2), 8)
        w = variable(start)
        optimizer = optimizer_for([w], name, **SETTINGS.get(name, {}))
        for g, expected in zip(gradients, RULES[name](start, gradients), strict=True):
            optimizer.apply([tf.constant(g)], [w])
            np.testing.assert_allclose(w.numpy(), expected, rtol=2e-5, atol=1e-6)

    def test_it_finds_the_bottom_of_a_narrow_valley(self, name):
        w, curvature = variable([1.0, -2.0]), np.array([1.0, 10.0], np.float32)
        optimizer = optimizer_for([w], name, steps=150, schedule="cosine")
        for _ in range(150):
            optimizer.apply([tf.constant(curvature * w.numpy())], [w])
        assert 0.5 * np.sum(curvature * w.numpy() ** 2) < 0.01 * 20.5

    def test_embeddings_learn_at_their_own_rate(self, name):
        table, kernel = variable([[1.0, 2.0]], "embedding"), variable([[1.0, 2.0]])
        optimizer = optimizer_for([table, kernel], name, embedding_rate_factor=3.0)
        g = tf.constant([[0.5, -2.0]])
        before = table.numpy()
        optimizer.apply([g, g], [table, kernel])
        np.testing.assert_allclose(table - before, 3 * (kernel - before), rtol=1e-4)
        assert np.abs(kernel - before).min() > 1e-3

    def test_rows_of_a_sparse_gradient_move_as_in_a_dense_one(self, name):
        """Every row is used in every step, in another order each time."""
        gradients = random_gradients((4, 3), 5)
        dense, sparse = variable(np.ones((4, 3))), variable(np.ones((4, 3)))
        by_dense, by_sparse = optimizer_for([dense], name), optimizer_for([sparse], name)
        for t, g in enumerate(gradients):
            rows = np.random.default_rng(t).permutation(4).astype(np.int32)
            by_dense.apply([tf.constant(g)], [dense])
            slices = tf.IndexedSlices(tf.constant(g[rows]), tf.constant(rows), tf.constant([4, 3]))
            by_sparse.apply([slices], [sparse])
            np.testing.assert_allclose(sparse.numpy(), dense.numpy(), rtol=1e-5, atol=1e-6)

    def test_the_rate_is_that_of_the_schedule(self, name):
        """The first update of a warm-up is made at rate 0, the second is not."""
        w = variable([1.0])
        optimizer = optimizer_for([w], name, warmup_steps=2)
        optimizer.apply([tf.constant([1.0])], [w])
        assert w.numpy() == [1.0]
        optimizer.apply([tf.constant([1.0])], [w])
        assert w.numpy()[0] < 0.99


# Adam ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_sparse", [False, True])
def test_the_first_step_of_adam_is_the_rate_times_the_sign(is_sparse):
    g = np.array([[3.0, -0.02], [1e-3, -40.0]], np.float32)
    w = variable(np.zeros((2, 2)))
    gradient = tf.constant(g)
    if is_sparse:
        gradient = tf.IndexedSlices(gradient, tf.constant([0, 1]), tf.constant([2, 2]))
    optimizer_for([w], "adam").apply([gradient], [w])
    np.testing.assert_allclose(w.numpy(), -LR * np.sign(g), rtol=1e-2)


def test_rows_out_of_use_stand_still_with_their_moments():
    """Dense Adam would move them on by old momentum; bias correction counts all updates."""
    uses = [[0, 2], [0], [2, 0], [1], [0, 1]]
    gradients = random_gradients((4, 2), len(uses))
    table = variable(np.ones((4, 2)), "embedding")
    optimizer = optimizer_for([table], "adam")
    w, m, v = np.ones((4, 2)), np.zeros((4, 2)), np.zeros((4, 2))
    for t, (rows, g) in enumerate(zip(uses, gradients, strict=True), start=1):
        optimizer.apply(
            [tf.IndexedSlices(tf.constant(g[rows]), tf.constant(rows), tf.constant([4, 2]))],
            [table],
        )
        for row in rows:
            m[row] = 0.9 * m[row] + 0.1 * g[row]
            v[row] = 0.999 * v[row] + 0.001 * g[row] ** 2
            m_hat, v_hat = m[row] / (1 - 0.9**t), v[row] / (1 - 0.999**t)
            w[row] -= LR * m_hat / (np.sqrt(v_hat) + EPSILON)
        np.testing.assert_allclose(table.numpy(), w, rtol=1e-4)
    np.testing.assert_array_equal(table.numpy()[3], [1.0, 1.0])
    slots = {slot.path.split("/")[-1]: slot.numpy() for slot in optimizer.variables}
    np.testing.assert_allclose(slots["embedding_momentum"], m, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(slots["embedding_velocity"], v, rtol=1e-4, atol=1e-9)


# Weight decay -------------------------------------------------------------------------------------


def test_weight_decay_is_for_matrices_alone():
    layer = keras.layers.LayerNormalization()
    embedding, dense = keras.layers.Embedding(3, 2), keras.layers.Dense(2)
    for part in (layer, embedding, dense):
        part.build((None, 2))
    variables = [*layer.variables, *embedding.variables, *dense.variables]
    assert len(variables) == 5
    for v in variables:
        v.assign(np.ones(v.shape))
    optimizer = optimizer_for(variables, "adamw", weight_decay=0.5)
    optimizer.apply([tf.zeros(v.shape) for v in variables], variables)
    for v in variables:
        expected = 1 - LR * 0.5 if v is dense.kernel else 1.0
        np.testing.assert_allclose(v.numpy(), expected, rtol=1e-6, err_msg=v.path)


def test_adamw_without_decay_is_adam_and_with_decay_it_is_not():
    ends = {}
    for name, decay in (("adam", 0.0), ("adamw", 0.0), ("adamw", 0.1)):
        w = variable([[1.0, -2.0]])
        optimizer = optimizer_for([w], name, weight_decay=decay)
        for g in random_gradients((1, 2), 5):
            optimizer.apply([tf.constant(g)], [w])
        ends[name, decay] = w.numpy()
    np.testing.assert_array_equal(ends["adam", 0.0], ends["adamw", 0.0])
    assert np.abs(ends["adamw", 0.1] - ends["adam", 0.0]).min() > 1e-3
