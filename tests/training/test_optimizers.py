import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.training.strategies.papers import EPSILON, PAPERS
from training.config import OptimizerConfig
from training.optimizers import OPTIMIZERS, build_optimizer, rules_by_variable
from training.optimizers.muon import matrices_of, newton_schulz
from training.strategies import catalogue
from training.strategies.catalogue import SCHEDULE_FREE, resolve

ROOT = Path(__file__).resolve().parents[2]
LR = 0.05
LAZY = ("adam", "adamw", "lion", "muon")  # rows of an embedding stand still while out of use


def optimizer_for(variables, name, *, updates=100, **settings):
    config = OptimizerConfig(**({"peak_learning_rate": LR, "schedule": "constant"} | settings))
    return build_optimizer(resolve(name)[-1], config, variables, updates)


def variable(value, name="kernel", dtype="float32"):
    return keras.Variable(np.array(value, dtype), name=name, dtype=dtype)


def random_gradients(shape, count, seed=0):
    return np.random.default_rng(seed).normal(size=(count, *shape)).astype("float32")


def rows_of(g, rows):
    rows = np.array(rows, np.int32)
    return tf.IndexedSlices(tf.constant(g[rows]), tf.constant(rows), tf.constant(g.shape))


def test_the_table_is_that_of_the_catalogue():
    assert list(OPTIMIZERS) == list(catalogue.OPTIMIZERS) == list(PAPERS)


@pytest.mark.parametrize("name", OPTIMIZERS)
class TestEveryOptimizer:
    @pytest.mark.parametrize("decay", [0.0, 0.2])
    @pytest.mark.parametrize("shape", [(3, 5), (5, 3), (4,)])
    def test_it_follows_its_formula(self, name, shape, decay):
        start, *gradients = np.random.default_rng(1).normal(size=(9, *shape))
        w = variable(start, dtype="float64")
        optimizer = optimizer_for([w], name, weight_decay=decay)
        expected = PAPERS[name](start, gradients, LR, decay)
        for g, after in zip(gradients, expected, strict=True):
            optimizer.apply([tf.constant(g)], [w])
            np.testing.assert_allclose(w.numpy(), after, rtol=1e-11, atol=1e-12)

    def test_it_finds_the_bottom_of_a_narrow_valley(self, name):
        w, curvature = variable([1.0, -2.0]), np.array([1.0, 10.0], np.float32)
        # Signs want small steps, and a rate relative to the weights, or of Muon's AdamW, is higher.
        rate = {"lion": 0.02, "adafactor": 0.2, "muon": LR / 0.15}.get(name, LR)
        updates = 600 if name == "lion" else 150
        schedule = "constant" if name in SCHEDULE_FREE else "cosine"
        optimizer = optimizer_for(
            [w], name, updates=updates, schedule=schedule, peak_learning_rate=rate
        )
        for _ in range(updates):
            optimizer.apply([tf.constant(curvature * w.numpy())], [w])
        end = optimizer.evaluation_weights()[0] if name in SCHEDULE_FREE else w
        assert 0.5 * np.sum(curvature * end.numpy() ** 2) < 0.01 * 20.5

    def test_every_variable_has_its_own_rate_and_decays_at_it(self, name):
        """The factor of a variable acts as the same factor on the rate of the run."""
        config = OptimizerConfig(peak_learning_rate=LR, schedule="constant", weight_decay=0.2)
        slow, fast = variable(np.eye(2), "fast_kernel"), variable(np.eye(2), "fast_kernel")
        link = resolve(name)[-1]
        by_factor = build_optimizer(link, config, [fast], 9, [("^fast", 3.0), ("kernel", 0.5)])
        by_rate = optimizer_for([slow], name, weight_decay=0.2, peak_learning_rate=1.5 * LR)
        for g in random_gradients((2, 2), 3):
            by_factor.apply([tf.constant(g)], [fast])
            by_rate.apply([tf.constant(g)], [slow])
        np.testing.assert_allclose(fast.numpy(), slow.numpy(), rtol=1e-5)
        still = variable(np.eye(2), "fast_kernel")
        build_optimizer(link, config, [still], 9, [("fast", 0.0)]).apply([g], [still])
        np.testing.assert_array_equal(still.numpy(), np.eye(2))

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
        for path in ("kernel", "embedding"):
            dense, sparse = variable(np.ones((4, 3)), path), variable(np.ones((4, 3)), path)
            by_dense, by_sparse = optimizer_for([dense], name), optimizer_for([sparse], name)
            for t, g in enumerate(gradients):
                by_dense.apply([tf.constant(g)], [dense])
                order = np.random.default_rng(t).permutation(4)
                by_sparse.apply([rows_of(g, order)], [sparse])
                np.testing.assert_allclose(sparse.numpy(), dense.numpy(), rtol=1e-5, atol=1e-6)

    def test_rows_out_of_use_stand_still_or_move_as_in_a_dense_gradient(self, name):
        gradients = random_gradients((4, 3), 5)
        uses = [[0, 1, 2, 3], [2], [0, 2], [3, 0], [2, 1]]
        dense, sparse = (variable(np.ones((4, 3)), "embedding") for _ in range(2))
        by_dense, by_sparse = optimizer_for([dense], name), optimizer_for([sparse], name)
        for g, rows in zip(gradients, uses, strict=True):
            before = sparse.numpy()
            used = np.isin(np.arange(4), rows)
            by_dense.apply([tf.constant(g * used[:, None])], [dense])
            by_sparse.apply([rows_of(g, rows)], [sparse])
            if name in LAZY:
                np.testing.assert_array_equal(sparse.numpy()[~used], before[~used])
                assert np.all(sparse.numpy()[used] != before[used])
            else:
                np.testing.assert_allclose(sparse.numpy(), dense.numpy(), rtol=1e-6)
        if name in LAZY:  # dense, they move on by old momentum
            assert np.abs(sparse.numpy() - dense.numpy()).max() > 1e-3

    def test_the_rate_is_that_of_the_schedule(self, name):
        """The first update of a warm-up is made at rate 0, the second is not."""
        w = variable([1.0])
        optimizer = optimizer_for([w], name, schedule="constant(warmup=2)")
        optimizer.apply([tf.constant([1.0])], [w])
        assert w.numpy() == [1.0]
        optimizer.apply([tf.constant([1.0])], [w])
        assert 0.9 < w.numpy()[0] < 0.999

    def test_a_gradient_of_zeros_moves_nothing(self, name):
        """Not even to NaN; half of the rows and columns of the second are zero."""
        w = variable(np.ones((4, 4)))
        optimizer = optimizer_for([w], name)
        optimizer.apply([tf.zeros((4, 4))], [w])
        np.testing.assert_array_equal(w.numpy(), np.ones((4, 4)))
        optimizer.apply([tf.constant(np.diag([1e-3, 1e-3, 0, 0]), tf.float32)], [w])
        moved = w.numpy() != 1
        assert np.isfinite(w.numpy()).all() and moved[0, 0] and not moved[2:].any()

    def test_it_says_what_moves_which_variable(self, name):
        weights = [variable(np.ones(shape), name) for name, shape in PATHS.items()]
        rules = rules_by_variable(optimizer_for(weights, name))
        expected = MUON if name == "muon" else dict.fromkeys(PATHS, name)
        assert rules == expected


# Several devices ----------------------------------------------------------------------------------

TWO_REPLICAS = """
import keras, numpy as np, tensorflow as tf
(cpu,) = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
from contextlib import nullcontext
from training.config import OptimizerConfig
from training.losses import TaskLoss, classification_loss
from training.optimizers import OPTIMIZERS
from training.stacking import stack
from training.strategies.build import build_rule
from training.strategies.compiled import compile_updates
from training.strategies.replicas import Replicas

CONFIG = OptimizerConfig(
    peak_learning_rate=0.05, schedule="constant", clip_norm=0.3, weight_decay=0.1
)

def train(name, strategy):
    rng = np.random.default_rng(0)
    with strategy.scope() if strategy else nullcontext():
        table = keras.Variable(rng.normal(size=(10, 4)).astype("float32"), name="embedding")
        kernel = keras.Variable(rng.normal(size=(4, 3)).astype("float32"), name="kernel")
        def logits(batch):
            return tf.reduce_mean(tf.gather(table.value, batch["tokens"]), 1) @ kernel.value
        task = TaskLoss(logits, classification_loss)
        replicas = Replicas(strategy)
        rule = build_rule(name, task, [table, kernel], CONFIG, num_updates=9, replicas=replicas)
        take = compile_updates(rule)
    for _ in range(3):
        tokens = rng.integers(0, 10, (5, 6)).astype("int32")
        batch = {"tokens": tokens, "label": rng.integers(0, 3, 5).astype("int32")}
        take(replicas.share(stack([batch])))
    values = rule.evaluation_weights() or []
    return np.concatenate([np.ravel(v.numpy()) for v in [table, kernel, *values]])

two = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
for name in OPTIMIZERS:
    print(name, np.abs(train(name, None) - train(name, two)).max())
"""


@pytest.mark.slow
def test_two_replicas_take_the_steps_of_one_device():
    """Clipping and decay included; Keras would add up the gradients a second time."""
    done = subprocess.run(
        [sys.executable, "-c", TWO_REPLICAS], capture_output=True, text=True, cwd=ROOT
    )
    apart = dict(line.split() for line in done.stdout.splitlines())
    assert list(apart) == list(OPTIMIZERS), done.stderr
    assert max(map(float, apart.values())) < 1e-6, apart


# Muon ---------------------------------------------------------------------------------------------

PATHS = {
    "embedding": (5, 4),
    "qkv": (4, 12),
    "kernel": (4, 6),
    "head": (4, 3),
    "bias": (4,),
    "column": (4, 1),
}
MUON = {
    "embedding": "adamw",
    "qkv": "muon (4x12)",  # not a kernel of that layer, only called so
    "kernel": "muon (4x6)",
    "head": "adamw",
    "bias": "adamw",
    "column": "adamw",
}


@pytest.mark.parametrize(
    ("path", "shape", "expected"),
    [
        ("block/attention/qkv/kernel", (8, 24), (3, 8, 8)),
        ("block/cross_attention/key_value/kernel", (8, 16), (2, 8, 8)),
        ("block/attention/output_projection/kernel", (8, 8), (1, 8, 8)),
        ("multi_head_attention/query/kernel", (8, 2, 4), (1, 8, 8)),
        ("cached_multi_head_attention/value/kernel", (8, 2, 3), (1, 8, 6)),
        ("multi_head_attention/attention_output/kernel", (2, 3, 8), (1, 6, 8)),
        ("lstm/lstm_cell/recurrent_kernel", (8, 32), (4, 8, 8)),
        ("gru/gru_cell_1/kernel", (5, 24), (3, 5, 8)),
        ("expand/kernel", (8, 32), (1, 8, 32)),
        ("block_0/gate_expand/kernel", (8, 32), (2, 8, 16)),
        ("multi_head_attention/query/bias", (2, 4), (1, 2, 4)),
        ("head/kernel", (8, 3), None),
        ("token_embedding/embeddings", (30, 8), None),
        ("conv1d/kernel", (3, 8, 8), None),
        ("norm/gamma", (8,), None),
    ],
)
def test_kernels_are_seen_as_matrices(path, shape, expected):
    view = matrices_of(path, shape)
    assert (view and (view.count, view.rows, view.columns)) == expected
    if view:
        kernel = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
        matrices = view.of(tf.constant(kernel))
        assert matrices.shape == expected
        np.testing.assert_array_equal(view.to_kernel(matrices), kernel)
        if view.count > 1:  # side by side in the columns
            np.testing.assert_array_equal(matrices[1], kernel[:, view.columns : 2 * view.columns])


@pytest.mark.parametrize("shape", [(6, 6), (4, 9), (9, 4), (3, 5, 7), (3, 7, 5)])
def test_newton_schulz_keeps_the_directions_and_levels_the_singular_values(shape):
    matrices = np.random.default_rng(3).normal(size=shape) + 2 * np.eye(*shape[-2:])
    U, _, V = np.linalg.svd(matrices, full_matrices=False)
    level = newton_schulz(tf.constant(matrices)).numpy()
    inside = np.swapaxes(U, -1, -2) @ level @ np.swapaxes(V, -1, -2)  # diagonal
    values = np.diagonal(inside, axis1=-2, axis2=-1)
    assert 0.68 < values.min() and values.max() < 1.21
    np.testing.assert_allclose(inside - values[..., None] * np.eye(values.shape[-1]), 0, atol=1e-12)
    in_float32 = newton_schulz(tf.constant(matrices, tf.float32))
    np.testing.assert_allclose(in_float32, level, atol=1e-5)


def test_attention_of_keras_gets_muon_as_ours_does():
    """The same three maps, kept apart by Keras and fused by us, move by the same amounts."""
    layer = keras.layers.MultiHeadAttention(num_heads=2, key_dim=3, use_bias=False)
    layer.build((None, 4, 6), (None, 4, 6))
    apart = layer.trainable_variables
    rules = rules_by_variable(optimizer_for(apart, "muon"))
    assert len(rules) == 4 and set(rules.values()) == {"muon (6x6)"}

    fused = keras.layers.Dense(18, use_bias=False, name="qkv")
    fused.build((None, 6))
    maps = [v for v in apart if "output" not in v.path]
    fused.kernel.assign(np.concatenate([v.numpy().reshape(6, 6) for v in maps], axis=1))
    by_parts, at_once = optimizer_for(maps, "muon"), optimizer_for([fused.kernel], "muon")
    for g in random_gradients((3, 6, 6), 3):
        by_parts.apply([tf.constant(part.reshape(6, 2, 3)) for part in g], maps)
        at_once.apply([tf.constant(np.concatenate(list(g), axis=1))], [fused.kernel])
    expected = np.concatenate([v.numpy().reshape(6, 6) for v in maps], axis=1)
    np.testing.assert_allclose(fused.kernel.numpy(), expected, rtol=1e-4, atol=1e-5)


def test_muon_keeps_second_moments_only_for_what_adamw_moves():
    weights = [variable(np.ones(shape), name) for name, shape in PATHS.items()]
    slots = [slot.path.split("/")[-1] for slot in optimizer_for(weights, "muon").variables[1:-1]]
    velocities = [slot.removesuffix("_velocity") for slot in slots if slot.endswith("_velocity")]
    assert velocities == [name for name, rule in MUON.items() if rule == "adamw"]


# Schedule-Free ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCHEDULE_FREE)
def test_what_is_evaluated_is_kept_and_not_worked_out(name):
    """After 300 updates x is still the weighted mean of all z to the last bits of float32."""
    w = variable([1.0, -2.0])
    optimizer = optimizer_for([w], name, schedule="constant(warmup=10)", updates=300)
    z = {slot.path.split("_")[-1]: slot for slot in optimizer.variables[:-1]}["z"]
    np.testing.assert_array_equal(optimizer.evaluation_weights()[0], [1.0, -2.0])
    total, weight_sum = np.zeros(2), 0.0
    for t in range(300):
        optimizer.apply([tf.constant([1.0, 10.0]) * w.value], [w])
        weight = min(t / 10, 1.0) ** 2
        total, weight_sum = total + weight * z.numpy(), weight_sum + weight
    np.testing.assert_allclose(optimizer.evaluation_weights()[0], total / weight_sum, atol=2e-7)


# Adam ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_sparse", [False, True])
def test_the_first_step_of_adam_is_the_rate_times_the_sign(is_sparse):
    g = np.array([[3.0, -0.02], [1e-3, -40.0]], np.float32)
    w = variable(np.zeros((2, 2)))
    gradient = rows_of(g, [0, 1]) if is_sparse else tf.constant(g)
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
        optimizer.apply([rows_of(g, rows)], [table])
        for row in rows:
            m[row] = 0.9 * m[row] + 0.1 * g[row]
            v[row] = 0.999 * v[row] + 0.001 * g[row] ** 2
            m_hat, v_hat = m[row] / (1 - 0.9**t), v[row] / (1 - 0.999**t)
            w[row] -= LR * m_hat / (np.sqrt(v_hat) + EPSILON)
        np.testing.assert_allclose(table.numpy(), w, rtol=1e-4)
    np.testing.assert_array_equal(table.numpy()[3], [1.0, 1.0])
    slots = {slot.path.split("/")[-1]: slot.numpy() for slot in optimizer.variables[:-1]}
    np.testing.assert_allclose(slots["embedding_momentum"], m, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(slots["embedding_velocity"], v, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("name", ["sgd", "momentum", "nesterov", "adam"])
def test_dense_steps_in_float32_are_those_of_keras(name):
    keras_own = {
        "sgd": keras.optimizers.SGD(LR),
        "momentum": keras.optimizers.SGD(LR, 0.9),
        "nesterov": keras.optimizers.SGD(LR, 0.9, nesterov=True),
        "adam": keras.optimizers.Adam(LR),
    }[name]
    ours, theirs = variable(np.ones((3, 4))), variable(np.ones((3, 4)))
    optimizer = optimizer_for([ours], name)
    for g in random_gradients((3, 4), 5):
        optimizer.apply([tf.constant(g)], [ours])
        keras_own.apply([tf.constant(g)], [theirs])
        np.testing.assert_array_equal(ours.numpy(), theirs.numpy())


# Weight decay -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name != "lamb"])
def test_weight_decay_is_for_matrices_alone(name):
    layer = keras.layers.LayerNormalization()
    embedding, dense = keras.layers.Embedding(3, 2), keras.layers.Dense(2)
    for part in (layer, embedding, dense):
        part.build((None, 2))
    variables = [*layer.variables, *embedding.variables, *dense.variables]
    assert len(variables) == 5
    for v in variables:
        v.assign(np.ones(v.shape))
    optimizer = optimizer_for(variables, name, weight_decay=0.5)
    optimizer.apply([tf.zeros(v.shape) for v in variables], variables)
    for v in variables:
        expected = 1 - LR * 0.5 if v is dense.kernel else 1.0
        np.testing.assert_allclose(v.numpy(), expected, rtol=1e-6, err_msg=v.path)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_weight_decay_may_follow_a_schedule(name):
    """It rises from 0 at the first update to 0.4 after the second."""
    moved, plain = variable(np.eye(2)), variable(np.eye(2))
    optimizers = [
        optimizer_for([moved], name, updates=2, weight_decay="linear(0, 0.4)"),
        optimizer_for([plain], name, updates=2),
    ]
    for step, g in enumerate(random_gradients((2, 2), 2)):
        for optimizer, w in zip(optimizers, (moved, plain), strict=True):
            optimizer.apply([tf.constant(g)], [w])
        difference = np.abs(moved.numpy() - plain.numpy()).max()
        assert difference == 0 if step == 0 else difference > 1e-3


def test_adamw_is_the_customary_name_of_adam_with_decay():
    ends = {}
    for name, decay in (("adam", 0.0), ("adamw", 0.0), ("adam", 0.1), ("adamw", 0.1)):
        w = variable([[1.0, -2.0]])
        optimizer = optimizer_for([w], name, weight_decay=decay)
        for g in random_gradients((1, 2), 5):
            optimizer.apply([tf.constant(g)], [w])
        ends[name, decay] = w.numpy()
    for decay in (0.0, 0.1):
        np.testing.assert_array_equal(ends["adam", decay], ends["adamw", decay])
    assert np.abs(ends["adamw", 0.1] - ends["adam", 0.0]).min() > 1e-3
