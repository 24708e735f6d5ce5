"""Weights in fewer bytes: the matrices within half a step, the texts and scores nearly the same."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from model import signatures as s
from model.catalogue import build_model
from model.config import RecurrentLanguageModelConfig
from model.stored import Stored, held, store
from serving import servable
from tests.tiny_writer import tiny_writer as make_writer

TEXTS = ["the quick brown fox", "abc", "猫在睡觉。"]


@pytest.mark.parametrize("kind", ["bfloat16", "int8"])
def test_a_stored_matrix_is_the_nearest_and_gives_its_product(kind):
    rng = np.random.default_rng(0)
    matrix = (rng.normal(size=(7, 12)) * rng.uniform(0.01, 3, size=(7, 1))).astype(np.float32)
    matrix[3] = 0.0
    stored = Stored(matrix, kind)
    kept = stored.take(tf.range(7)).numpy()
    largest = np.abs(matrix).max(axis=1, keepdims=True)
    # Half a step: of an output's 127 on either side, or of the 8 bits of a bfloat16.
    half = largest / 254 if kind == "int8" else np.abs(matrix) / 256
    assert (np.abs(kept - matrix) <= half * 1.001).all() and (kept != matrix).any()
    x = tf.constant(rng.normal(size=(5, 12)), tf.float32)
    np.testing.assert_allclose(stored.product(x), x @ kept.T, rtol=1e-5, atol=1e-5)
    with stored.held():
        np.testing.assert_allclose(stored.product(x), x @ kept.T, rtol=1e-5, atol=1e-5)
    one_row = tf.function(lambda x: stored.product(x), jit_compile=True)
    np.testing.assert_allclose(one_row(x[:1]), x[:1] @ kept.T, rtol=1e-5, atol=1e-5)
    assert stored.rows.dtype == kind


def test_a_compiled_loop_over_one_row_reads_int8_in_each_step():
    """Unpacked in front of the loop, each step would read four times as much."""
    stored = Stored(np.random.default_rng(0).normal(size=(48, 48)).astype(np.float32), "int8")

    def loop(x):
        return tf.while_loop(lambda i, x: i < 9, lambda i, x: (i + 1, stored.product(x)), (0, x))[1]

    compiled = tf.function(loop, jit_compile=True, autograph=False)
    program = compiled.experimental_get_compiler_ir(tf.ones([1, 48]))(
        stage="optimized_hlo", device_name="/device:CPU:0"
    )
    (entry,) = (part for part in program.split("\n\n") if part.startswith("ENTRY"))
    assert "s8[48,48]" in entry and "f32[48,48]" not in entry


def test_a_held_head_gives_the_logits_of_the_embedding(tiny_writer):
    model, x = (
        tiny_writer.model,
        tf.random.stateless_normal([3, tiny_writer.model.config.width], [1, 2]),
    )
    logits = model.logits(x)
    with held(model, with_head=True):
        assert model.embedding.head.shape == model.embedding.embeddings.shape[::-1]
        np.testing.assert_allclose(model.logits(x), logits, rtol=1e-5, atol=1e-5)
    assert model.embedding.head is None
    np.testing.assert_allclose(model.logits(x[:, None])[:, 0], logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["bfloat16", "int8"])
def test_scores_stay_near_and_no_matrix_is_left_in_float32(kind, tiny_writer):
    learner = make_writer()
    learner.store_weights(kind)
    scores = [
        one.endpoints[s.SCORE](tf.constant(TEXTS))[s.LOGPROBS].numpy()
        for one in (tiny_writer, learner)
    ]
    apart = np.abs(scores[0] - scores[1])
    # Untrained, with weights of 0.5: the scores themselves are about -6.
    assert 0 < apart.max() < 0.6 and apart[scores[0] != 0].mean() < 0.1
    assert all(len(variable.shape) < 2 for variable in learner.model.variables)
    assert learner.sizes[s.NUM_PARAMETERS] == tiny_writer.sizes[s.NUM_PARAMETERS]


def test_a_session_restores_int8_in_fewer_bytes_and_answers_nearly_the_same(tiny_writer, tmp_path):
    """One signature is enough: an export asks for its own golden answers of all of them."""
    rounded = make_writer()
    rounded.store_weights("int8")
    assert rounded.sizes[s.WEIGHTS] == "int8"
    texts = np.array([text.encode() for text in TEXTS], object)
    sizes, found = [], []
    for i, learner in enumerate((tiny_writer, rounded)):
        embed, folder = learner.endpoints[s.EMBED], tmp_path / str(i)
        archive = keras.export.ExportArchive()
        archive.track(learner.tokenizer)
        archive.add_endpoint(s.SERVING_DEFAULT, embed, embed.input_signature)
        archive.write_out(str(folder), verbose=False)
        sizes.append((folder / "variables" / "variables.data-00000-of-00001").stat().st_size)
        served = servable.load("writer", 1, folder)
        found.append(served.run(s.SERVING_DEFAULT, {s.TEXT: texts})[s.EMBEDDING])
        served.close()
    assert sizes[1] < 0.5 * sizes[0]
    cosines = (found[0] * found[1]).sum(axis=1)
    assert (cosines > 0.98).all() and (cosines < 1 - 1e-7).any()


def test_what_cannot_be_stored_is_said():
    config = RecurrentLanguageModelConfig(embedding_size=4, units=4, num_layers=1)
    recurrent = build_model(config, 10, seed=0)
    with pytest.raises(ValueError, match="for transformer_decoder; export .* weights=float32"):
        store(recurrent, "int8")
    with pytest.raises(ValueError, match="weights must be one of bfloat16, int8"):
        store(recurrent, "int4")
    with held(recurrent):
        pass  # nothing is stored
