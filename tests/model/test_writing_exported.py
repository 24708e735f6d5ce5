"""Every way to write from a SavedModel equals itself in the process, with TensorFlow's own ops."""

import keras
import numpy as np
import tensorflow as tf
from ways_to_write import Bigrams, letters_tokenizer, rows_of

from model.beam import beam_search
from model.catalogue import build_model
from model.config import TransformerDecoderConfig
from model.contrastive import contrastive_search
from model.generation import generate
from model.samplers import Options
from model.speculative import speculate

SIZES = {"num_layers": 1, "width": 8, "num_heads": 2, "inner_width": 8, "context_length": 16}


def test_all_ways_to_write_work_in_an_export(tmp_path):
    tokenizer = letters_tokenizer()
    rng = np.random.default_rng(0)
    table, draft = (Bigrams(tokenizer, "abc", rng.dirichlet(np.ones(4), size=4)) for _ in range(2))
    network = build_model(TransformerDecoderConfig(**SIZES), tokenizer.vocabulary_size, seed=0)
    plain = {
        "prompt": tf.constant(["abc", "", "b"]),
        "max_tokens": tf.constant([9, 9, 9]),
        "temperature": tf.constant([1.0, 0.7, 0.0]),
        "top_k": tf.constant([0, 2, 0]),
        "top_p": tf.constant([1.0, 0.9, 1.0]),
        "seed": tf.constant([1, 2, 3]),
    }
    options = {
        "min_p": tf.constant([0.0, 0.1, 0.2]),
        "typical_p": tf.constant([0.9, 1.0, 1.0]),
        "repetition_penalty": tf.constant([1.0, 1.2, 1.0]),
        "presence_penalty": tf.constant([0.5, 0.0, 0.0]),
        "frequency_penalty": tf.constant([0.0, 0.5, 0.0]),
        "no_repeat_ngram": tf.constant([0, 3, 2]),
        "stop": tf.constant([["ab", "c"], ["", ""], ["ba", ""]]),
        "choices": tf.constant([["", ""], ["cab", "ba"], ["", ""]]),
    }
    short = {name: plain[name] for name in ("prompt", "max_tokens")}
    number = {"number": tf.constant([0.0, 0.5, 1.0])}
    ways = {
        "options": (
            lambda *x: generate(table, tokenizer, *x[:6], Options(*x[6:])),
            plain | options,
        ),
        "beam": (lambda *x: beam_search(table, tokenizer, *x, 3), short | number),
        "speculative": (lambda *x: speculate(table, draft, tokenizer, *x, num_guesses=2), plain),
        "contrastive": (lambda *x: contrastive_search(network, tokenizer, *x, 2), short | number),
    }
    archive, expected = keras.export.ExportArchive(), {}
    archive.track(network)
    archive.track(tokenizer)
    for name, (write, inputs) in ways.items():
        signature = [
            tf.TensorSpec([None] * len(value.shape), value.dtype, alias)
            for alias, value in inputs.items()
        ]
        graph = tf.function(write, input_signature=signature)
        expected[name] = rows_of(graph(*inputs.values()))
        archive.add_endpoint(name, graph)
    archive.write_out(str(tmp_path / "export"), verbose=False)
    loaded = tf.saved_model.load(tmp_path / "export")
    for name, (_, inputs) in ways.items():
        assert rows_of(loaded.signatures[name](**inputs)) == expected[name], name
        assert any(text for text, *_ in expected[name]), name
