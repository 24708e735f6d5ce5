"""Classifiers against their papers' equations in plain NumPy: a batch, and each row by itself."""

import network_papers as papers
import numpy as np
import pytest
import tensorflow as tf

from model.catalogue import build_model
from model.config import (
    DPCNNConfig,
    GatedConvolutionConfig,
    HierarchicalConfig,
    RecurrentConfig,
    TextCNNConfig,
)
from model.config.checks import CELLS, POOLINGS
from model.dpcnn import halve

# Shorter than a filter and longer; halved, they have 9, 5, 3, 2, 1 and 8, 4, 2, 1 and 1 steps.
ROWS = [[3, 7, 9, 4, 12, 2, 4, 6, 8], [5, 2, 11, 6, 1, 13, 8, 2], [1], [14, 10]]
BATCH = np.array([row + [0] * (11 - len(row)) for row in ROWS], np.int32)


def built(config):
    """With weights that are nowhere near their start."""
    model, rng = build_model(config, 15, 3, seed=0), np.random.default_rng(1)
    for variable in model.trainable_variables:
        variable.assign(rng.normal(scale=0.5, size=variable.shape))
    return model


def arrays_of(layer):
    return [weight.numpy().astype(float) for weight in layer.trainable_weights]


def check(model, pooled_of):
    """`pooled_of`: a row's embeddings (T, D) -> what the head reads."""
    table, head = model.embedding.embeddings.numpy().astype(float), arrays_of(model.head)
    expected = [pooled_of(table[row]) @ head[0] + head[1] for row in ROWS]
    np.testing.assert_allclose(model(BATCH), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("widths", ["3,4,5", " 2", "1, 20"])
def test_text_cnn(widths):
    model = built(TextCNNConfig(embedding_size=4, filters=3, widths=widths))
    filters = [arrays_of(layer) for layer in model.convolutions]
    assert [len(kernel) for kernel, _ in filters] == [int(w) for w in widths.split(",")]

    def pooled(x):
        heard = [np.maximum(papers.convolution(x, *f), 0).max(axis=0) for f in filters]
        return np.concatenate(heard)

    check(model, pooled)


def test_gated_convolution():
    model = built(GatedConvolutionConfig(width=4, num_layers=3, kernel_size=5))
    layers = [arrays_of(layer) for layer in model.convolutions]

    def pooled(x):
        for W, b in layers:
            content = papers.convolution(x, W[:, :, :4], b[:4])
            x = x + content * papers.sigmoid(papers.convolution(x, W[:, :, 4:], b[4:]))
        return x.max(axis=0)

    check(model, pooled)


@pytest.mark.parametrize("num_blocks", [1, 2, 5])
def test_dpcnn(num_blocks):
    model = built(DPCNNConfig(embedding_size=4, width=3, num_blocks=num_blocks))
    region, blocks = (
        arrays_of(model.region),
        [[arrays_of(layer) for layer in block] for block in model.blocks],
    )

    def pooled(x):
        x = papers.convolution(x, *region)
        for i, (first, second) in enumerate(blocks):
            x = papers.halved(x) if i else x
            y = papers.convolution(np.maximum(x, 0), *first)
            x = x + papers.convolution(np.maximum(y, 0), *second)
        return x.max(axis=0)

    check(model, pooled)


@pytest.mark.parametrize("extra", [0, 1, 2, 5])
@pytest.mark.parametrize("length", [1, 2, 3, 4, 7])
def test_halving_does_not_depend_on_padding(length, extra):
    x = np.random.default_rng(0).normal(size=(1, length + extra, 2)).astype(np.float32) - 5
    is_token = np.arange(length + extra)[None] < length
    half, left = halve(tf.constant(x), tf.constant(is_token))
    assert left.numpy().sum() == -(-length // 2)
    np.testing.assert_array_equal(half.numpy()[left], papers.halved(x[0, :length]))


@pytest.mark.parametrize(
    ("cell", "pooling", "bidirectional", "num_layers"),
    [
        *((cell, "last", True, 1) for cell in CELLS),
        *(("gru", pooling, False, 2) for pooling in POOLINGS),
        *(("rnn", pooling, True, 2) for pooling in POOLINGS),
        ("peephole_lstm", "max", False, 1),
    ],
)
def test_recurrent(cell, pooling, bidirectional, num_layers):
    config = RecurrentConfig(
        embedding_size=4,
        units=3,
        cell=cell,
        pooling=pooling,
        bidirectional=bidirectional,
        num_layers=num_layers,
    )
    model = built(config)

    def pooled(x):
        for layer in model.recurrences:
            if bidirectional:
                directions = (layer.forward_layer, layer.backward_layer)
                x, end = papers.read_both_ways(cell, x, *map(arrays_of, directions))
            else:
                x = np.array(papers.read(cell, x, arrays_of(layer))[0])
                end = x[-1]
        if pooling == "attention":
            return papers.attention_pooling(x, *attention_weights(model.pool))
        return {"max": x.max(axis=0), "mean": x.mean(axis=0), "last": end}[pooling]

    check(model, pooled)


@pytest.mark.parametrize("sentence_tokens", [3, 8, 30])
def test_hierarchical(sentence_tokens):
    config = HierarchicalConfig(embedding_size=4, units=3, sentence_tokens=sentence_tokens)
    model = built(config)

    def read(layer, attention, x):
        both = (layer.forward_layer, layer.backward_layer)
        x, _ = papers.read_both_ways("gru", x, *map(arrays_of, both))
        return papers.attention_pooling(x, *attention_weights(attention))

    def pooled(x):
        sentences = [
            read(model.words, model.word_attention, x[start : start + sentence_tokens])
            for start in range(0, len(x), sentence_tokens)
        ]
        return read(model.sentences, model.sentence_attention, np.array(sentences))

    check(model, pooled)


def attention_weights(layer):
    weights = (layer.project.kernel, layer.project.bias, layer.query)
    return [weight.numpy().astype(float) for weight in weights]
