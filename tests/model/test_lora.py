import keras
import numpy as np
import pytest
import tensorflow as tf

from model.catalogue import build_model
from model.config import TransformerDecoderConfig, ULMFiTLSTMConfig
from model.lora import add_lora, lora_delta, merge_lora

TOKENS = np.array([[2, 5, 9, 3], [7, 7, 1, 8]], np.int32)


def decoder(seed=0):
    config = TransformerDecoderConfig(num_layers=2, width=16, num_heads=2, inner_width=24)
    return build_model(config, 30, seed=seed)


def adapted(pattern="qkv|embedding", rank=2, alpha=6.0, seed=1, trained=False):
    model = decoder()
    layers = add_lora(model, pattern, rank, alpha, seed)
    if trained:
        rng = np.random.default_rng(2)
        for variable in model.trainable_variables:
            if "_b" in variable.name and "lora" in variable.name:
                variable.assign(rng.normal(scale=0.2, size=variable.shape))
    return model, layers


def test_the_output_is_unchanged_at_first():
    model, layers = adapted()
    assert [layer.name for layer in layers] == ["embedding", "qkv", "qkv"]
    np.testing.assert_array_equal(model(TOKENS), decoder()(TOKENS))


def test_the_matrices_stand_still_and_the_adapters_move():
    plain, (model, layers) = decoder(), adapted()
    before = [variable.path for variable in plain.trainable_variables]
    frozen = {"embeddings": 1, "kernel": 2}
    now = model.trainable_variables
    new = [variable for variable in now if "lora" in variable.name]
    assert len(new) == 2 * len(layers)
    assert len(now) == len(before) - sum(frozen.values()) + len(new)
    assert not {v.path for v in now} & {p for p in before if "qkv" in p or p.endswith("embeddings")}
    assert {variable.dtype for variable in new} == {"float32"}

    values = [variable.value for variable in now]
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.sin(model(TOKENS) * 30))
    gradients = tape.gradient(loss, values)
    for variable, gradient in zip(now, gradients, strict=True):
        moves = np.any(tf.convert_to_tensor(gradient))
        # B is zero, so nothing reaches A in the first step.
        assert moves != variable.name.endswith("_a"), variable.path
    optimizer = keras.optimizers.SGD(0.1)
    optimizer.build(now)
    optimizer.apply([tf.convert_to_tensor(g) for g in gradients], now)
    table = next(v for v in model.non_trainable_variables if v.name == "embeddings")
    np.testing.assert_array_equal(table, plain.embedding.embeddings)
    assert np.abs(model(TOKENS).numpy() - plain(TOKENS).numpy()).max() > 1e-4


def test_the_adapter_is_the_product_of_the_paper():
    _, layers = adapted(rank=2, alpha=6.0, trained=True)
    for layer in layers:
        values = {variable.name: variable.numpy() for variable in layer.variables}
        (a,) = (value for name, value in values.items() if name.endswith("_a"))
        (b,) = (value for name, value in values.items() if name.endswith("_b"))
        (matrix,) = (values[name] for name in ("kernel", "embeddings") if name in values)
        assert (a.shape, b.shape) == ((matrix.shape[0], 2), (2, matrix.shape[1]))
        np.testing.assert_allclose(lora_delta(layer), 3.0 * a @ b, atol=1e-6)
        effective = layer.kernel if "kernel" in values else layer.embeddings
        np.testing.assert_allclose(effective, matrix + 3.0 * a @ b, atol=1e-6)


def test_merged_equals_unmerged_and_starts_anew():
    model, layers = adapted(trained=True)
    before = model(TOKENS).numpy()
    assert np.abs(before - decoder()(TOKENS).numpy()).max() > 1e-2
    merge_lora(layers)
    np.testing.assert_allclose(model(TOKENS), before, atol=1e-5)
    assert not any(np.any(lora_delta(layer)) for layer in layers)
    merge_lora(layers)  # nothing is left to add
    np.testing.assert_allclose(model(TOKENS), before, atol=1e-5)


def test_the_seed_decides_the_adapters_and_each_has_its_own():
    def starts(seed):
        model, _ = adapted(seed=seed)
        return [v.numpy() for v in model.trainable_variables if v.name.endswith("_a")]

    first, again, other = starts(1), starts(1), starts(2)
    for a, b, c in zip(first, again, other, strict=True):
        np.testing.assert_array_equal(a, b)
        assert (a != c).any()
    assert (first[1] != first[2]).any()  # two layers of one shape


def test_what_cannot_be_adapted_is_refused():
    model = decoder()
    with pytest.raises(ValueError, match="pattern must match.*block_0/attention/qkv.*'nothing'"):
        add_lora(model, "nothing", 2, 1.0, 0)
    with pytest.raises(ValueError, match="rank must be above 0. Received: 0"):
        add_lora(model, "qkv", 0, 1.0, 0)
    with pytest.raises(ValueError, match="alpha must be above 0. Received: -1.0"):
        add_lora(model, "qkv", 2, -1.0, 0)
    lstm = build_model(ULMFiTLSTMConfig(embedding_size=4, units=4), 20, 2, seed=0)
    with pytest.raises(ValueError, match="pattern must match"):
        add_lora(lstm, "lstm_0", 2, 1.0, 0)
    with pytest.raises(ValueError, match="one with an adapter"):
        merge_lora([model.embedding])
    add_lora(model, "qkv", 2, 1.0, 0)
    with pytest.raises(ValueError, match="already"):
        add_lora(model, "qkv", 2, 1.0, 0)
