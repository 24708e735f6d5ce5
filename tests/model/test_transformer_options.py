"""Transformers with other options than the default through what every network must hold."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from transformer_papers import DECODERS, ENCODERS, LABELS, ROWS, VOCABULARY, padded

from model.attention import SelfAttention
from model.catalogue import build_model, construct
from model.config import TransformerDecoderConfig, TransformerEncoderConfig
from model.config.first_steps import Seq2SeqTransformerConfig
from model.seq2seq import Seq2SeqTransformer

SIZES = {"num_layers": 2, "width": 12, "num_heads": 2, "inner_width": 12, "dropout": 0.0}
OPTIONS = [name for name in DECODERS if name != "default"]


def decoder(name, precision="float32", **options):
    config = TransformerDecoderConfig(**SIZES | DECODERS[name] | options, context_length=16)
    return build_model(config, VOCABULARY, seed=0, precision=precision)


def encoder(name, precision="float32", **options):
    config = TransformerEncoderConfig(**SIZES | ENCODERS[name] | options)
    return build_model(config, VOCABULARY, LABELS, seed=0, precision=precision)


def seq2seq(positions):
    config = Seq2SeqTransformerConfig(**SIZES, positions=positions, max_positions=4)
    make = lambda: Seq2SeqTransformer(config, VOCABULARY)  # noqa: E731
    return construct(make, padded(ROWS), padded(ROWS), seed=0)


def with_random_weights(model, scale=0.3):
    rng = np.random.default_rng(1)
    for variable in model.trainable_variables:
        variable.assign(variable.numpy() + rng.normal(scale=scale, size=variable.shape))
    return model


# Defaults -----------------------------------------------------------------------------------------


def test_the_default_networks_have_the_variables_and_the_start_that_runs_were_made_with():
    """Checkpoints name variables by their paths; seeds are drawn in the order of the layers."""
    block = [
        *("attention_norm/gamma", "attention_norm/beta"),
        *("attention/qkv/kernel", "attention/output_projection/kernel"),
        *("inner_norm/gamma", "inner_norm/beta"),
        *("expand/kernel", "expand/bias", "contract/kernel", "contract/bias"),
    ]
    inside = [f"block_{i}/{path}" for i in range(2) for path in block]
    outside = ["embedding/embeddings", *inside, "final_norm/gamma", "final_norm/beta"]
    sizes = {"num_layers": 2, "width": 16, "num_heads": 2, "inner_width": 24}
    for model, expected in (
        (build_model(TransformerDecoderConfig(**sizes), 20, seed=5), outside),
        (
            build_model(TransformerEncoderConfig(**sizes), 20, 3, seed=5),
            [*outside, "head/kernel", "head/bias"],
        ),
    ):
        paths = [v.path.removeprefix(f"{model.name}/") for v in model.trainable_variables]
        assert paths == expected
        first = {v.path.removeprefix(f"{model.name}/"): v.numpy() for v in model.variables}
        for path, value in START[model.name].items():
            assert first[path].flat[0] == pytest.approx(value, rel=1e-5), path


START = {  # of the first entry, at seed 5
    "transformer_decoder": {
        "embedding/embeddings": -0.0150106875,
        "block_0/attention/qkv/kernel": 0.26426032,
        "block_1/contract/kernel": 0.15859067,
    },
    "transformer_encoder": {
        "embedding/embeddings": 0.024113145,
        "block_0/attention/qkv/kernel": 0.26426032,
        "block_1/contract/kernel": 0.15859067,
        "head/kernel": 0.43154007,
    },
}


# nanoGPT ------------------------------------------------------------------------------------------


def test_the_documented_network_of_nanogpt_is_there_to_the_last_weight():
    """Its train_shakespeare_char on a CPU: 4 layers, 4 heads, 128 wide, context 64, no bias."""
    config = TransformerDecoderConfig(
        num_layers=4,
        width=128,
        num_heads=4,
        inner_width=512,
        dropout=0.0,
        context_length=64,
        positions="learned",
        bias=False,
        initialization="gpt2",
    )
    weights = {v.path: v.numpy() for v in build_model(config, 65, seed=0).trainable_variables}
    blocks = 4 * (12 * 128**2 + 2 * 128)  # attention 4 D^2, inner network 8 D^2, two gains
    assert sum(w.size for w in weights.values()) == blocks + (65 + 64 + 1) * 128
    for path, w in weights.items():
        if path.endswith("gamma"):
            np.testing.assert_array_equal(w, 1)
            continue
        ends_a_branch = path.endswith(("output_projection/kernel", "contract/kernel"))
        expected = 0.02 / np.sqrt(2 * 4) if ends_a_branch else 0.02
        assert w.std() == pytest.approx(expected, rel=0.05), path
        assert abs(w.mean()) < 4 * expected / np.sqrt(w.size), path
    starts = [w.flat[0] for path, w in weights.items() if not path.endswith("gamma")]
    assert len(set(starts)) == len(starts)  # each from a seed of its own


# What every generator holds -----------------------------------------------------------------------


@pytest.mark.parametrize("name", DECODERS)
def test_prefill_and_decode_equal_the_whole(name):
    """Rows of different lengths, one cache slot more than is used, and nothing of the future."""
    model, new = with_random_weights(decoder(name)), [6, 9, 1]
    rows = [row + new for row in ROWS]
    lengths, each = np.array([len(row) for row in ROWS], np.int32), np.arange(len(ROWS))
    whole = model(padded(rows)).numpy()
    close = {"atol": 1e-5, "rtol": 1e-5}
    logits, cache = model.prefill(padded(ROWS), lengths, 10)
    np.testing.assert_allclose(logits, whole[each, lengths - 1], **close)
    for step, token in enumerate(new):
        position = lengths + step
        logits, cache = model.decode(np.full(3, token, np.int32), tf.constant(position), cache)
        np.testing.assert_allclose(logits, whole[each, position], **close)
    other = padded(rows)
    other[0, 4:] = 1
    np.testing.assert_allclose(model(other)[0, :4], whole[0, :4], **close)
    assert (np.abs(model(other).numpy() - whole).max(-1)[0, 4:] > 1e-3).all()


@pytest.mark.parametrize("name", DECODERS)
def test_several_tokens_are_read_at_once_and_written_over(name):
    """As speculative decoding does: rows at different places, a wrong guess covered later."""
    model, new = with_random_weights(decoder(name)), np.array([[6, 9, 1], [4, 4, 2], [1, 7, 5]])
    rows = [[*row, *more] for row, more in zip(ROWS, new, strict=True)]
    lengths = np.array([len(row) for row in ROWS], np.int32)
    place = lengths[:, None] + np.arange(3, dtype=np.int32)[None]  # (B, 3)
    whole = tf.gather(model(padded(rows)), place, axis=1, batch_dims=1)
    _, cache = model.prefill(padded(ROWS), lengths, 10)
    _, cache = model.read(tf.fill([3, 3], 8), tf.constant(place), cache)
    x, _ = model.read(tf.constant(new, tf.int32), tf.constant(place), cache)
    np.testing.assert_allclose(model.logits(x), whole, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", DECODERS)
def test_rows_of_other_lengths_write_the_same_as_alone(name):
    model = with_random_weights(decoder(name))

    def greedy(rows):
        lengths = np.array([len(row) for row in rows], np.int32)
        logits, cache = model.prefill(padded(rows), lengths, lengths.max() + 6)
        written = []
        for step in range(6):
            written.append(tf.argmax(logits, axis=-1, output_type=tf.int32))
            logits, cache = model.decode(written[-1], tf.constant(lengths + step), cache)
        return np.stack(written, axis=1).tolist()

    assert greedy(ROWS) == [greedy([row])[0] for row in ROWS]


def test_grouped_heads_make_the_cache_smaller():
    model = decoder("grouped-alibi-values", precision="mixed_bfloat16")
    _, cache = model.prefill(padded(ROWS), np.array([6, 1, 3]), 10)
    assert {(t.shape, t.dtype) for pair in cache for t in pair} == {((3, 2, 10, 2), tf.bfloat16)}
    assert len(cache) == 2


def test_zero_output_projections_leave_every_block_the_identity():
    for start in ("default", "gpt2"):
        options = {"initialization": start, "num_layers": 3}
        model = decoder("default", **options, zero_output_projections=True)
        tokens = padded(ROWS)
        np.testing.assert_array_equal(model(tokens), model.logits(model.embedding(tokens)))
        plain = decoder("default", **options)
        for ours, theirs in zip(model.trainable_variables, plain.trainable_variables, strict=True):
            is_last = ours.path.endswith(("output_projection/kernel", "contract/kernel"))
            assert np.any(ours) != is_last or ours.path.endswith(("bias", "beta")), ours.path
            assert np.any(theirs) == np.any(ours) or is_last


@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
def test_positions_and_softmax_are_float32_in_half_precision(precision):
    """In bfloat16 the positions 256 and 257 are one, in float16 2048 and 2049."""
    seen = []
    layer = attention_of(precision)

    def watched(x, *more, **settings):
        seen.append(x.dtype)
        return softmax(x, *more, **settings)

    softmax = tf.nn.softmax
    x = tf.cast(np.random.default_rng(0).normal(size=(1, 2, 8)), layer.compute_dtype)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tf.nn, "softmax", watched)
        outputs = [
            layer(x, tf.constant([[start, start + 1]]), np.ones((2, 2), bool)).numpy()
            for start in (0, 2048)
        ]
    assert set(seen) == {tf.float32}
    turned = layer(x, tf.constant([[5, 5]]), np.ones((2, 2), bool)).numpy()
    scale = np.abs(outputs[0]).max()
    # Distances are kept far away: the same as at the beginning, not as of one position.
    assert np.abs(outputs[1] - outputs[0]).max() < 0.05 * scale
    assert np.abs(turned - outputs[0]).max() > 0.1 * scale


def attention_of(precision):
    config = TransformerDecoderConfig(**SIZES | {"width": 8})

    def make():
        layer = SelfAttention(config, name="attention")
        layer.build((None, None, 8))
        layer.qkv.kernel.assign(np.random.default_rng(2).normal(size=(8, 24)))
        return layer

    keras.config.set_dtype_policy(precision)
    try:
        return make()
    finally:
        keras.config.set_dtype_policy("float32")


@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder_sees_no_padding(name):
    model = with_random_weights(encoder(name))
    batch = model(padded(ROWS)).numpy()
    np.testing.assert_allclose(model(np.pad(padded(ROWS), [(0, 0), (0, 5)])), batch, atol=1e-5)
    np.testing.assert_allclose([model(padded([r])).numpy()[0] for r in ROWS], batch, atol=1e-5)
    empty = [model(np.zeros((1, T), np.int32)).numpy()[0] for T in (0, 1, 4)]
    np.testing.assert_allclose(empty, [model.head.bias.numpy()] * 3, atol=1e-6)


@pytest.mark.parametrize(
    ("build", "name"),
    [
        *((decoder, n) for n in ("nanogpt", "free", "alibi-swiglu")),
        *((encoder, n) for n in ("alibi-rms", "sinusoidal-relu")),
    ],
)
def test_half_precision_is_close_and_its_variables_and_logits_float32(build, name):
    half, full = (
        with_random_weights(build(name, precision=p)) for p in ("mixed_bfloat16", "float32")
    )
    logits, expected = half(padded(ROWS)), full(padded(ROWS)).numpy()
    assert logits.dtype == tf.float32
    assert {v.dtype for v in half.trainable_variables} == {"float32"}
    is_token = padded(ROWS) != 0 if build is decoder else slice(None)
    difference = np.abs(logits.numpy() - expected)[is_token].max()
    assert 0 < difference < 0.1 * np.abs(expected).max()


@pytest.mark.parametrize(
    ("build", "name"),
    [(decoder, "nanogpt"), (decoder, "free"), (encoder, "learned-swiglu")],
)
def test_it_learns_a_batch_by_heart(build, name):
    model, rng = build(name, num_layers=1), np.random.default_rng(0)
    tokens = rng.integers(1, VOCABULARY, size=(6, 5)).astype(np.int32)
    targets = np.roll(tokens, -1, axis=1) if build is decoder else np.arange(6) % LABELS
    if build is decoder:
        tokens[:, 0] = targets[:, -1] = np.arange(1, 7)  # what tells the rows apart
    optimizer = keras.optimizers.Adam(0.03)
    optimizer.build(model.trainable_variables)
    values = [variable.value for variable in model.trainable_variables]

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            logits = model(tokens, training=True)
            nats = tf.nn.sparse_softmax_cross_entropy_with_logits(targets, logits)
            loss = tf.reduce_mean(nats)
        gradients = [tf.convert_to_tensor(g) for g in tape.gradient(loss, values)]
        optimizer.apply(gradients, model.trainable_variables)
        return loss

    losses = [float(step()) for _ in range(60)]
    assert losses[0] > 0.8 and losses[-1] < 0.3, losses[::10]


def test_recomputing_gives_value_embeddings_their_gradient():
    tokens, found = padded(ROWS), []
    for recompute in (False, True):
        model = with_random_weights(decoder("free", recompute=recompute))
        values = [v.value for v in model.trainable_variables]
        with tf.GradientTape() as tape:
            total = tf.reduce_sum(tf.sin(model(tokens, training=True)))
        found.append([tf.convert_to_tensor(g).numpy() for g in tape.gradient(total, values)])
    for variable, kept, again in zip(model.trainable_variables, *found, strict=True):
        assert np.any(kept), variable.path
        np.testing.assert_allclose(again, kept, atol=1e-5, rtol=1e-4, err_msg=variable.path)


# Seq2seq ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("positions", ["learned", "sinusoidal", "alibi"])
def test_seq2seq_decodes_what_its_plain_call_would_say(positions):
    model, source = with_random_weights(seq2seq(positions), scale=0.5), padded(ROWS)
    written = model.decode(source, 5).numpy()
    target = np.concatenate([np.full((3, 1), 2), written], axis=1).astype(np.int32)
    likeliest = np.argmax(model(source, target), axis=-1)[:, :5]
    assert written[:, 0].all() or (likeliest[:, 0][written[:, 0] == 0] == 3).all()
    is_written = written != 0
    np.testing.assert_array_equal(likeliest[is_written], written[is_written])
    assert is_written.sum() > 5
    turned = model(source[:1, ::-1].copy(), target[:1]).numpy()
    told = np.abs(turned - model(source[:1], target[:1])).max() > 1e-3
    assert told == (positions not in ("none", "alibi"))  # which hears no direction


# Exports ------------------------------------------------------------------------------------------


def test_an_export_reads_and_writes_as_the_networks_do(tmp_path):
    """One archive with all of them: TensorFlow's own operations, variables within."""
    archive, expected = keras.export.ExportArchive(), {}
    tokens, rows = padded(ROWS), np.array([len(row) for row in ROWS], np.int32)
    steps = tf.TensorSpec([None, None], tf.int32, name="tokens")
    lengths = tf.TensorSpec([None], tf.int32, name="lengths")

    def writes(model):
        def written(tokens, lengths):
            first, cache = model.prefill(tokens, lengths, tf.shape(tokens)[1] + 1)
            token = tf.argmax(first, axis=-1, output_type=tf.int32)
            return model.decode(token, lengths, cache)[0]

        return written

    for name in OPTIONS:
        model = with_random_weights(decoder(name, num_layers=1))
        archive.track(model)
        archive.add_endpoint(f"decoder-{name}", writes(model), [steps, lengths])
        expected[f"decoder-{name}"] = writes(model)(tokens, rows).numpy()
    model = with_random_weights(encoder("learned-swiglu", num_layers=1))
    archive.track(model)
    archive.add_endpoint("encoder", model.call, [steps])
    expected["encoder"] = model(tokens).numpy()
    archive.write_out(str(tmp_path / "export"), verbose=False)
    loaded = tf.saved_model.load(tmp_path / "export")
    for name, logits in expected.items():
        inputs = {"tokens": tf.constant(tokens)}
        if name.startswith("decoder"):
            inputs["lengths"] = tf.constant(rows)
        (found,) = loaded.signatures[name](**inputs).values()
        np.testing.assert_allclose(found, logits, atol=1e-4, err_msg=name)
