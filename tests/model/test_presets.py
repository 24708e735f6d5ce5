"""Presets of KerasHub answer through our networks as they do in KerasHub itself."""

import keras_nlp
import numpy as np
import pytest
import tensorflow as tf

from model.catalogue import build_model
from model.config import PresetClassifierConfig, PresetGeneratorConfig, PresetTokenizerConfig
from model.lora import add_lora, merge_lora
from model.tokenizers import BEGIN, END, PADDING, UNKNOWN, encode, load_tokenizer, train_tokenizer
from tests.presets import save_bert, save_gpt2

TEXTS = ["The film was good.", "看电影 and films, very warmly", "", "xyz", b"\xff dull \xe5\xa5"]


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return save_bert(tmp_path_factory.mktemp("presets") / "bert")


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    return save_gpt2(tmp_path_factory.mktemp("presets") / "gpt2")


def tokenizer_of(folder, max_tokens=20):
    return train_tokenizer([], PresetTokenizerConfig(preset=str(folder), max_tokens=max_tokens))


def network(folder, tokenizer, config=None, labels=3):
    labels = None if isinstance(config, PresetGeneratorConfig) else labels
    config = config or PresetClassifierConfig()
    return build_model(config, tokenizer.vocabulary_size, labels, seed=0, preset=tokenizer.preset)


def test_a_classifier_answers_as_that_of_keras_hub(bert):
    ours = tokenizer_of(bert)
    model = network(bert, ours)
    theirs = keras_nlp.models.TextClassifier.from_preset(str(bert), num_classes=3)
    theirs.preprocessor.sequence_length = 22
    theirs.set_weights(model.network.get_weights())
    read = keras_nlp.models.TextClassifierPreprocessor.from_preset(str(bert), sequence_length=22)
    valid = [t if isinstance(t, str) else t.decode(errors="replace") for t in TEXTS]
    expected = theirs(read(tf.constant(valid)))
    observed = model(ours(tf.constant(TEXTS)).to_tensor())
    np.testing.assert_allclose(observed, expected, atol=1e-6)
    assert np.ptp(observed, axis=0).min() > 0.01  # or everything would agree


def test_the_weights_are_those_of_the_preset(bert):
    model = network(bert, tokenizer_of(bert))
    theirs = keras_nlp.models.Backbone.from_preset(str(bert))
    for mine, saved in zip(model.network.backbone.get_weights(), theirs.get_weights(), strict=True):
        np.testing.assert_array_equal(mine, saved)


def test_a_family_without_a_classifier_gets_a_head(gpt2):
    tokenizer = tokenizer_of(gpt2)
    model = network(gpt2, tokenizer)
    tokens = tokenizer(tf.constant(["the theme"])).to_tensor()
    backbone = keras_nlp.models.Backbone.from_preset(str(gpt2))
    # Ours puts the end of text around a text, as in pre-training.
    ids = [0, *keras_nlp.models.Tokenizer.from_preset(str(gpt2))("the theme"), 0]
    hidden = backbone({"token_ids": np.array([ids]), "padding_mask": np.ones((1, len(ids)))})
    expected = np.mean(hidden, axis=1) @ model.head.kernel + model.head.bias
    np.testing.assert_allclose(model(tokens), expected, atol=1e-6)


@pytest.mark.parametrize("preset", ["bert", "gpt2"])
def test_padding_changes_nothing(preset, request):
    folder = request.getfixturevalue(preset)
    tokenizer = tokenizer_of(folder)
    model = network(folder, tokenizer)
    tokens = tokenizer(tf.constant(["the film", "good"])).to_tensor(PADDING)
    wider = tf.pad(tokens, [[0, 0], [0, 3]])
    np.testing.assert_allclose(model(tokens), model(wider), atol=1e-6)


def test_a_generator_gives_the_logits_of_keras_hub_in_our_order(gpt2):
    tokenizer = tokenizer_of(gpt2)
    model = network(gpt2, tokenizer, PresetGeneratorConfig(context_length=16))
    tokens = tokenizer(tf.constant(["the thin theme"])).to_tensor()
    theirs = keras_nlp.models.CausalLM.from_preset(str(gpt2), preprocessor=None)
    ids = keras_nlp.models.Tokenizer.from_preset(str(gpt2))("the thin theme")
    expected = theirs({"token_ids": ids[None], "padding_mask": np.ones((1, len(ids)))})[0]
    observed = model(tokens)[0]
    np.testing.assert_allclose(
        tf.gather(observed, tokenizer.preset.ours, axis=1), expected, atol=1e-6
    )
    assert (
        np.max(observed.numpy()[:, [PADDING, UNKNOWN, BEGIN]]) <= -1e9
    )  # no second way to say the end
    np.testing.assert_allclose(observed[:, END], np.asarray(expected)[:, 0], atol=1e-6)


def test_decoding_goes_on_where_prefill_ended(gpt2):
    tokenizer = tokenizer_of(gpt2)
    model = network(gpt2, tokenizer, PresetGeneratorConfig(context_length=16))
    tokens = np.array([[7, 9, 11, 5, 8], [4, 6, 12, 20, 21]], np.int32)
    lengths = np.array([2, 4], np.int32)
    prompt = np.where(np.arange(4) < lengths[:, None], tokens[:, :4], PADDING)
    logits, cache = model.prefill(prompt, lengths, 6)
    whole = model(tokens).numpy()
    np.testing.assert_allclose(logits, whole[[0, 1], lengths - 1], atol=1e-6)
    logits, _ = model.decode(tokens[[0, 1], lengths], lengths, cache)
    np.testing.assert_allclose(logits, whole[[0, 1], lengths], atol=1e-6)


@pytest.mark.parametrize("preset", ["bert", "gpt2"])
def test_lora_moves_every_adapted_matrix_and_merges(preset, request):
    folder = request.getfixturevalue(preset)
    tokenizer = tokenizer_of(folder)
    model = network(folder, tokenizer)
    tokens = tokenizer(tf.constant(["the film was good", "dull"])).to_tensor()
    before = model(tokens)
    layers = add_lora(model, "query/kernel|value/kernel", rank=2, alpha=4.0, seed=0)
    assert len(layers) == 4
    np.testing.assert_allclose(model(tokens), before, atol=1e-6)
    for layer in layers:
        layer.lora_kernel_b.assign(tf.ones_like(layer.lora_kernel_b))
    adapted = model(tokens)
    assert np.max(np.abs(adapted - before)) > 1e-3
    merge_lora(layers)
    np.testing.assert_allclose(model(tokens), adapted, atol=1e-5)


def test_text_comes_back(gpt2):
    tokenizer = tokenizer_of(gpt2)
    texts = ["the theme, then", "émigré 好 😀\n", ""]
    back = tokenizer.detokenize(tokenizer(tf.constant(texts)))
    assert [text.decode() for text in back.numpy()] == texts


def test_a_run_keeps_all_but_the_weights(bert, tmp_path):
    tokenizer = tokenizer_of(bert)
    tokenizer.save(tmp_path)
    assert not list(tmp_path.rglob("*.weights.*"))
    again = load_tokenizer(tmp_path, PresetTokenizerConfig(preset="moved away", max_tokens=20))
    assert not again.preset.has_weights
    for one, other in zip(encode(tokenizer, TEXTS), encode(again, TEXTS), strict=True):
        np.testing.assert_array_equal(one, other)
    shapes = [v.shape for v in network(bert, tokenizer).variables]
    assert [v.shape for v in network(tmp_path, again).variables] == shapes


def test_texts_are_cut(bert):
    assert [len(row) for row in encode(tokenizer_of(bert, 3), ["a very very good film"])] == [3]
    whole = tokenizer_of(bert, None)
    (row,) = encode(whole, ["a very very good film " * 9])
    assert len(row) == 45
    model = network(bert, whole)
    np.testing.assert_allclose(model(row[None]), model(row[None, :22]), atol=1e-6)
    assert np.max(np.abs(model(row[None]) - model(row[None, :21]))) > 1e-4


def test_what_is_no_preset_is_refused(tmp_path, bert, gpt2):
    with pytest.raises(ValueError, match="tokenizer.preset must be a folder that save_to_preset"):
        tokenizer_of(tmp_path)
    with pytest.raises(ValueError, match="model.context_length must be at most 32"):
        network(gpt2, tokenizer_of(gpt2), PresetGeneratorConfig(context_length=33))
    with pytest.raises(ValueError, match="is no CausalLM"):
        network(bert, tokenizer_of(bert), PresetGeneratorConfig(context_length=16))


def test_a_text_is_written_in_pieces_though_nobody_tells_its_bytes(gpt2):
    """As `serving/next_tokens.py` does where an export has no bytes of tokens."""
    from model import endpoints, signatures
    from serving.writing import Assembler, Request, differences

    tokenizer = tokenizer_of(gpt2, max_tokens=None)
    text = "the films 电影 🦊 end"
    (tokens,) = tokenizer(tf.constant([text])).to_list()
    rows = tf.constant([tokens] * len(tokens), tf.int32)
    told = endpoints.detokenize(tokenizer, rows, tf.range(1, len(tokens) + 1))
    assert signatures.TEXT_BYTES not in told
    texts = [whole.decode() for whole in told[signatures.TEXT].numpy()]
    assert texts[-1] == text and len(tokens) > 20
    for size in (1, 3, len(tokens)):
        assembler = Assembler(Request(prompt="", max_tokens=99), num_prompt_tokens=0)
        written = ""
        for start in range(0, len(tokens), size):
            some = slice(start, start + size)
            is_end = start + size >= len(tokens)
            spelled = differences(written, texts[some], is_end=is_end)
            reason = "stop" if is_end else None
            written += assembler.add(tokens[some], spelled, finish_reason=reason).text
            assert written == text[: len(written)]
        assert written == text
