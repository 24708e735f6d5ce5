"""What the Transformers offer besides their plain call: a token head, and recomputation."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from model.catalogue import build_model, construct
from model.config import TransformerDecoderConfig, TransformerEncoderConfig
from model.config.first_steps import Seq2SeqTransformerConfig
from model.dropout import dropout_rates
from model.seq2seq import Seq2SeqTransformer

SIZES = {"num_layers": 2, "width": 16, "num_heads": 2, "inner_width": 24}
TOKENS = np.array([[3, 7, 9, 4, 12], [5, 2, 0, 0, 0], [1, 6, 7, 8, 0]], np.int32)


def with_random_weights(model):
    rng = np.random.default_rng(1)
    for variable in model.trainable_variables:
        variable.assign(variable.numpy() + rng.normal(scale=0.2, size=variable.shape))
    return model


# Token head ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def encoder():
    config = TransformerEncoderConfig(**SIZES, token_head=True)
    return with_random_weights(build_model(config, 20, 3, seed=0))


def test_a_token_head_adds_a_bias_and_changes_no_classification():
    plain = build_model(TransformerEncoderConfig(**SIZES), 20, 3, seed=0)
    both = build_model(TransformerEncoderConfig(**SIZES, token_head=True), 20, 3, seed=0)
    new = {v.path for v in both.variables} ^ {v.path for v in plain.variables}
    assert {path for path in new if "seed_generator" not in path} == {
        "transformer_encoder/token_bias"
    }
    assert len(both.variables) == len(plain.variables) + 1
    np.testing.assert_array_equal(both(TOKENS), plain(TOKENS))
    with pytest.raises(ValueError, match="token_logits needs model.token_head=true"):
        plain.token_logits(TOKENS)


def test_token_logits_look_both_ways_past_padding_and_end_in_the_embedding(encoder):
    logits = encoder.token_logits(TOKENS).numpy()
    assert (logits.shape, logits.dtype) == ((3, 5, 20), np.float32)
    changed = TOKENS.copy()
    changed[0, 2] = 11
    assert (np.abs(encoder.token_logits(changed).numpy() - logits).max(-1)[0] > 1e-3).all()
    longer = np.pad(TOKENS, [(0, 0), (0, 3)])
    np.testing.assert_allclose(encoder.token_logits(longer)[:, :5], logits, atol=1e-5)
    bias = encoder.token_bias.numpy()
    encoder.token_bias.assign(bias + 1.5)
    np.testing.assert_allclose(encoder.token_logits(TOKENS), logits + 1.5, atol=1e-5)
    encoder.token_bias.assign(bias)


def test_masked_tokens_are_learnt_from_their_neighbours_by_the_classifiers_own_weights():
    config = TransformerEncoderConfig(**SIZES, dropout=0.0, token_head=True)
    model = build_model(config, 20, 3, seed=0)
    texts = np.array([[4, 5, 6, 7], [8, 9, 10, 11], [12, 13, 14, 15], [16, 17, 18, 19]], np.int32)
    hidden = texts.copy()
    hidden[:, 2] = 1  # UNKNOWN
    start = model.embedding.embeddings.numpy()
    variables = [v for v in model.trainable_variables if "head/" not in v.path]
    optimizer = keras.optimizers.Adam(0.02)
    optimizer.build(variables)

    @tf.function
    def step():
        values = [variable.value for variable in variables]
        with tf.GradientTape() as tape:
            logits = model.token_logits(hidden, training=True)[:, 2]
            nats = tf.nn.sparse_softmax_cross_entropy_with_logits(texts[:, 2], logits)
            loss = tf.reduce_mean(nats)
        gradients = tape.gradient(loss, values)
        optimizer.apply([tf.convert_to_tensor(g) for g in gradients], variables)
        return loss

    losses = [float(step()) for _ in range(60)]
    assert losses[0] > 2 and losses[-1] < 0.1, losses[::10]
    assert np.abs(model.embedding.embeddings.numpy() - start).max() > 0.01


# Recomputation ------------------------------------------------------------------------------------

RECOMPUTED = {
    "encoder": lambda **options: build_model(
        TransformerEncoderConfig(**SIZES, dropout=0.3, **options), 20, 3, seed=0
    ),
    "decoder": lambda **options: build_model(
        TransformerDecoderConfig(**SIZES, dropout=0.3, **options), 20, seed=0
    ),
    "seq2seq": lambda **options: construct(
        lambda: Seq2SeqTransformer(
            Seq2SeqTransformerConfig(**SIZES, dropout=0.3, **options), vocabulary_size=20
        ),
        TOKENS,
        TOKENS,
        seed=0,
    ),
}


def logits_and_gradients(model, in_graph):
    inputs = [TOKENS] * (2 if model.name == "seq2seq_transformer" else 1)

    def run():
        values = [variable.value for variable in model.trainable_variables]
        with tf.GradientTape() as tape:
            logits = model(*inputs, training=True)
            total = tf.reduce_sum(tf.sin(logits))
        gradients = tape.gradient(total, values)
        return [logits, *map(tf.convert_to_tensor, gradients)]

    return [value.numpy() for value in (tf.function(run) if in_graph else run)()]


@pytest.mark.parametrize("kind", ["elementwise", "layer"])
@pytest.mark.parametrize("in_graph", [False, True], ids=["eager", "graph"])
@pytest.mark.parametrize("name", RECOMPUTED)
def test_recomputed_gradients_are_those_kept(name, in_graph, kind):
    kept, again = (
        with_random_weights(RECOMPUTED[name](recompute=recompute, dropout_kind=kind))
        for recompute in (False, True)
    )
    for _ in range(2):  # the second with other masks
        expected = logits_and_gradients(kept, in_graph)
        found = logits_and_gradients(again, in_graph)
        # The same masks: one unit dropped otherwise would be far off.
        for a, b in zip(expected, found, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5 * max(1, np.abs(b).max()), rtol=1e-5)
            assert np.any(b)
    for a, b in zip(kept.variables, again.variables, strict=True):
        np.testing.assert_array_equal(a, b)  # as many seeds were drawn


def test_recomputing_counts_twice_what_is_kept_once():
    """The forward pass of a block really runs again for the gradient."""
    counts = {}
    for recompute in (False, True):
        model, calls = RECOMPUTED["decoder"](recompute=recompute), []
        for block in model.blocks:
            attend = block.attention.call

            def counted(*inputs, attend=attend, calls=calls):
                calls.append(1)
                return attend(*inputs)

            block.attention.call = counted
        logits_and_gradients(model, in_graph=False)
        counts[recompute] = len(calls)
        calls.clear()
        model(TOKENS)
        assert len(calls) == 2  # prediction never pays
    assert counts == {False: 2, True: 4}


def test_recomputing_works_inside_a_loop_of_the_graph():
    """As an accumulated update runs it: a while loop over micro-batches, one set of variables."""
    sums = {}
    for recompute in (False, True):
        model = with_random_weights(RECOMPUTED["decoder"](recompute=recompute))
        values = [variable.value for variable in model.trainable_variables]

        def gradient(i, values=values, model=model):
            with tf.GradientTape() as tape:
                total = tf.reduce_sum(tf.sin(model(TOKENS + i, training=True)))
            return [tf.convert_to_tensor(g) for g in tape.gradient(total, values)]

        @tf.function
        def accumulated(values=values, gradient=gradient):
            total = [tf.zeros(value.shape) for value in values]
            for i in tf.range(3):
                total = [a + b for a, b in zip(total, gradient(i), strict=True)]
            return total

        sums[recompute] = [value.numpy() for value in accumulated()]
    for a, b in zip(sums[False], sums[True], strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
def test_recomputing_keeps_its_types_in_half_precision(precision):
    config = TransformerDecoderConfig(**SIZES, dropout=0.3, recompute=True)
    model = with_random_weights(build_model(config, 20, seed=0, precision=precision))
    kept = with_random_weights(
        build_model(TransformerDecoderConfig(**SIZES, dropout=0.3), 20, seed=0, precision=precision)
    )
    for a, b in zip(
        logits_and_gradients(kept, True), logits_and_gradients(model, True), strict=True
    ):
        scale = np.abs(a).max()
        np.testing.assert_allclose(a, b, atol=0.03 * scale)


# Dropout kinds ------------------------------------------------------------------------------------


def test_stochastic_depth_leaves_out_branches_and_nothing_else():
    """With every branch left out the decoder is its embedding, normalised and read back."""
    config = TransformerDecoderConfig(**SIZES, dropout=0.5, dropout_kind="layer")
    model = with_random_weights(build_model(config, 20, seed=0))
    *branches, outside = dropout_rates(model)
    outside.assign(0.0)
    for rate in branches:
        rate.assign(np.nextafter(np.float32(1), np.float32(0)))
    expected = model.logits(model.embedding(TOKENS))
    np.testing.assert_allclose(model(TOKENS, training=True), expected, atol=1e-5)
    assert np.abs(expected - model(TOKENS)).max() > 0.1
