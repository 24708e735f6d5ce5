import keras
import numpy as np
import pytest
import tensorflow as tf

from model.catalogue import construct
from model.config.first_steps import Seq2SeqTransformerConfig
from model.seq2seq import Seq2SeqTransformer
from model.tokenizers import BEGIN, END

VOCABULARY = 20
SOURCE = np.array([[5, 9, 3, 7], [8, 4, 0, 0], [6, 0, 0, 0]], np.int32)
TARGET = np.array([[2, 6, 11, 4, 9], [2, 7, 5, 0, 0], [2, 0, 0, 0, 0]], np.int32)
CONFIG = Seq2SeqTransformerConfig(num_layers=2, width=16, num_heads=2, inner_width=24, dropout=0.2)


def build(seed=0, precision="float32"):
    make = lambda: Seq2SeqTransformer(CONFIG, VOCABULARY)  # noqa: E731
    return construct(make, SOURCE, TARGET, seed=seed, precision=precision)


def with_random_weights(model):
    """Large enough that an untrained network has something to say."""
    rng = np.random.default_rng(2)
    for variable in model.trainable_variables:
        scale = 0.3 if "embedding" in variable.path else 0.5
        variable.assign(variable.numpy() + rng.normal(scale=scale, size=variable.shape))
    return model


@pytest.fixture(scope="module")
def model():
    return with_random_weights(build())


@pytest.mark.parametrize("position", [1, 3])
def test_a_target_sees_its_past_and_itself_alone(model, position):
    changed = TARGET.copy()
    changed[0, position] = 13
    difference = np.abs(model(SOURCE, changed).numpy() - model(SOURCE, TARGET).numpy()).max(-1)
    assert (difference[0, :position] < 1e-6).all()
    assert (difference[0, position:] > 1e-4).all()
    assert (difference[1:] < 1e-6).all()


@pytest.mark.parametrize("position", [0, 3])
def test_every_target_step_sees_the_whole_source(model, position):
    changed = SOURCE.copy()
    changed[0, position] = 13
    difference = np.abs(model(changed, TARGET).numpy() - model(SOURCE, TARGET).numpy()).max(-1)
    assert (difference[0] > 1e-4).all()
    assert (difference[1:] < 1e-6).all()


def test_the_order_of_the_source_matters(model):
    swapped = SOURCE[:, [1, 0, 2, 3]]
    assert np.abs(model(swapped, TARGET)[0] - model(SOURCE, TARGET)[0]).max() > 1e-3


def test_padding_changes_nothing_on_either_side(model):
    logits = model(SOURCE, TARGET).numpy()
    longer = model(np.pad(SOURCE, [(0, 0), (0, 3)]), np.pad(TARGET, [(0, 0), (0, 2)])).numpy()
    alone = model(SOURCE[1:2, :2], TARGET[1:2, :3]).numpy()
    np.testing.assert_allclose(longer[:, :5][TARGET != 0], logits[TARGET != 0], atol=1e-5)
    np.testing.assert_allclose(alone[0], logits[1, :3], atol=1e-5)
    empty = model(np.zeros((1, 3), np.int32), TARGET[:1])
    assert np.isfinite(empty).all()


def test_a_hole_of_padding_in_the_target_is_not_looked_at(model):
    """Two texts with a hole: what stands there would change all later steps."""
    hole = np.array([[2, 6, 0, 4, 9]], np.int32)
    table = model.embedding.embeddings.numpy()
    before = model(SOURCE[:1], hole).numpy()[0]
    changed = table.copy()
    changed[0] += 1.0
    model.embedding.embeddings.assign(changed)
    after = model(SOURCE[:1], hole).numpy()[0]
    model.embedding.embeddings.assign(table)
    # Id 0's own logit is of that row too.
    np.testing.assert_allclose(before[[0, 1, 3, 4], 1:], after[[0, 1, 3, 4], 1:], atol=1e-5)


def test_a_gradient_reaches_every_variable(model):
    values = [variable.value for variable in model.trainable_variables]
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(tf.sin(3 * model(SOURCE, TARGET)))
    for variable, g in zip(model.trainable_variables, tape.gradient(total, values), strict=True):
        assert np.any(tf.convert_to_tensor(g)), variable.path
    paths = [variable.path for variable in model.trainable_variables]
    assert len(set(paths)) == len(paths)


def test_the_seed_decides_weights_and_dropout():
    first, again, other = (with_random_weights(build(seed)) for seed in (1, 1, 2))
    runs = [m(SOURCE, TARGET, training=True).numpy() for m in (first, again, other, first)]
    np.testing.assert_array_equal(runs[0], runs[1])
    assert (runs[0] != runs[2]).any() and (runs[0] != runs[3]).any()


@pytest.mark.parametrize(
    ("precision", "bound"), [("mixed_bfloat16", 0.06), ("mixed_float16", 0.01)]
)
def test_half_precision_is_close_and_answers_in_float32(model, precision, bound):
    half = with_random_weights(build(precision=precision))
    logits, expected = half(SOURCE, TARGET), model(SOURCE, TARGET).numpy()
    assert logits.dtype == tf.float32
    difference = np.abs(logits - expected)[TARGET != 0].max()
    assert 0 < difference < bound * np.abs(expected).max()
    assert half.decode(SOURCE, 3).shape == (3, 3)


def greedy_by_hand(model, source, max_tokens):
    """From the plain call on all tokens so far: no cache, no batch."""
    target = [BEGIN]
    for _ in range(max_tokens):
        token = int(np.argmax(model(source[None], np.array([target], np.int32))[0, -1]))
        if token == END:
            break
        target.append(token)
    return target[1:] + [0] * (max_tokens + 1 - len(target))


def test_decoding_is_what_the_plain_model_would_say(model):
    expected = [greedy_by_hand(model, row, 6) for row in SOURCE]
    np.testing.assert_array_equal(model.decode(SOURCE, 6), expected)
    assert len({tuple(row) for row in expected}) == 3
    graph = tf.function(lambda source: model.decode(source, 6))
    np.testing.assert_array_equal(graph(SOURCE), expected)
    np.testing.assert_array_equal(model.decode(SOURCE, 2), np.array(expected)[:, :2])
    assert model.decode(SOURCE, 0).shape == (3, 0)


def test_it_learns_to_turn_texts_round_by_heart_and_to_stop():
    model, rng = build(), np.random.default_rng(0)
    source = np.zeros((6, 5), np.int32)
    decoder_in, targets = np.zeros((6, 6), np.int32), np.zeros((6, 6), np.int32)
    reversed_texts = np.zeros((6, 6), np.int32)
    for row in range(6):
        text = rng.permutation(np.arange(4, VOCABULARY))[: 2 + row % 4]
        n = len(text)
        source[row, :n], reversed_texts[row, :n] = text, text[::-1]
        decoder_in[row, : n + 1] = [BEGIN, *text[::-1]]
        targets[row, : n + 1] = [*text[::-1], END]
    optimizer = keras.optimizers.Adam(0.01)
    optimizer.build(model.trainable_variables)
    values = [variable.value for variable in model.trainable_variables]
    weight = tf.cast(targets != 0, tf.float32)

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            logits = model(source, decoder_in, training=True)
            nats = tf.nn.sparse_softmax_cross_entropy_with_logits(targets, logits)
            loss = tf.reduce_sum(nats * weight) / tf.reduce_sum(weight)
        gradients = tape.gradient(loss, values)
        optimizer.apply([tf.convert_to_tensor(g) for g in gradients], model.trainable_variables)
        return loss

    losses = [float(step()) for _ in range(120)]
    assert losses[0] > 2 and losses[-1] < 0.3, losses[::20]
    np.testing.assert_array_equal(model.decode(source, 6), reversed_texts)
