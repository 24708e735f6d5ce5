from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf

from model.catalogue import build_model
from model.config import (
    RecurrentLanguageModelConfig,
    SentencePieceTokenizerConfig,
    TransformerDecoderConfig,
)
from model.generation import generate
from model.signatures import FINISH_REASON, GENERATOR_OUTPUTS, NUM_TOKENS, TEXT
from model.tokenizers import BEGIN, END, PADDING, UNKNOWN, train_tokenizer

CONTEXT = 16
LETTERS = "abcdefghijklmnopqrstuvwxyz"


@pytest.fixture(scope="module")
def tokenizer():
    """One token a letter, so a text of n letters is n tokens."""
    config = SentencePieceTokenizerConfig(model_type="char", vocabulary_size=100)
    return train_tokenizer([LETTERS] * 3, config)


@pytest.fixture(scope="module")
def model(tokenizer):
    """Untrained, with weights so large that its taste in letters is firm."""
    config = TransformerDecoderConfig(
        num_layers=2, width=16, num_heads=2, inner_width=32, context_length=CONTEXT
    )
    model = build_model(config, tokenizer.vocabulary_size, seed=0)
    rng = np.random.default_rng(0)
    for variable in model.trainable_variables:
        variable.assign(variable.numpy() + rng.normal(scale=0.5, size=variable.shape))
    # A text that ends at once tests nothing: END gets a direction that is rarely taken.
    table = model.embedding.embeddings.numpy()
    table[END] *= 0.1
    model.embedding.embeddings.assign(table)
    return model


INPUTS = {
    "prompt": ("", tf.string),
    "max_tokens": (8, tf.int32),
    "temperature": (0.0, tf.float32),
    "top_k": (0, tf.int32),
    "top_p": (1.0, tf.float32),
    "seed": (0, tf.int32),
}


def graph_of(model, tokenizer):
    signature = [tf.TensorSpec([None], dtype, name) for name, (_, dtype) in INPUTS.items()]
    return tf.function(
        lambda *inputs: generate(model, tokenizer, *inputs), input_signature=signature
    )


@pytest.fixture(scope="module")
def run(model, tokenizer):
    """run(prompts, **settings): a list of (text, num_tokens, reason), one for each prompt."""
    return caller(graph_of(model, tokenizer))


def caller(graph):
    def run(prompts, **settings):
        inputs = []
        for name, (default, dtype) in INPUTS.items():
            value = prompts if name == "prompt" else settings.get(name, default)
            inputs.append(tf.constant(np.broadcast_to(value, len(prompts)).tolist(), dtype))
        answer = graph(*inputs)
        assert tuple(answer) == GENERATOR_OUTPUTS
        columns = [answer[name].numpy().tolist() for name in (TEXT, NUM_TOKENS, FINISH_REASON)]
        return [(t.decode(), n, reason.decode()) for t, n, reason in zip(*columns, strict=True)]

    return run


@pytest.fixture(scope="module")
def logits_of(model):
    return tf.function(model, input_signature=[tf.TensorSpec([None, None], tf.int32)])


def greedy_by_hand(logits_of, tokenizer, prompt, max_tokens):
    """The same text from the plain call on all tokens so far: no cache, no batch, no graph."""
    room = min(max_tokens, CONTEXT // 2)
    tokens = [BEGIN, *tokenizer(tf.constant([prompt])).to_list()[0]][-(CONTEXT - room) :]
    written = []
    while len(written) < max_tokens and len(tokens) < CONTEXT:
        logits = logits_of(tf.constant([tokens]))[0, -1].numpy()
        logits[[PADDING, UNKNOWN, BEGIN]] = -np.inf
        token = int(logits.argmax())
        if token == END:
            return written, "stop"
        written.append(token)
        tokens.append(token)
    return written, "length"


def text_of(tokenizer, tokens):
    return tokenizer.detokenize(tf.ragged.constant([tokens], tf.int32)).numpy()[0].decode()


PROMPTS = ["abc", "", "q", "the quick brown", "abcdefghijklmnopqrstuvwxyz", "zz", "hello w"]
MIXED = {
    "max_tokens": [8, 3, 100, 5, 4, 0, 12],
    "temperature": [1.0, 0.0, 2.0, 0.8, 1.0, 1.0, 1.5],
    "top_k": [0, 0, 3, 0, 5, 0, 2],
    "top_p": [1.0, 1.0, 0.9, 0.8, 1.0, 0.5, 1.0],
    "seed": [1, 2, 3, 4, 5, 6, 7],
}


@pytest.mark.parametrize("max_tokens", [6, 50])
def test_greedy_text_is_what_the_plain_model_would_say(run, logits_of, tokenizer, max_tokens):
    for prompt, (text, num_tokens, reason) in zip(
        PROMPTS, run(PROMPTS, max_tokens=max_tokens), strict=True
    ):
        tokens, expected_reason = greedy_by_hand(logits_of, tokenizer, prompt, max_tokens)
        assert (text, num_tokens) == (text_of(tokenizer, tokens), len(tokens)), prompt
        assert reason == expected_reason


def test_a_row_writes_the_same_alone_and_in_any_company(run):
    together = run(PROMPTS, **MIXED)
    assert len({text for text, *_ in together}) > 4
    for i, prompt in enumerate(PROMPTS):
        own = {name: values[i] for name, values in MIXED.items()}
        assert run([prompt], **own) == [together[i]], prompt
    backwards = {name: values[::-1] for name, values in MIXED.items()}
    assert run(PROMPTS[::-1], **backwards)[::-1] == together


def test_the_seed_decides_the_text(run):
    settings = {"temperature": 1.5, "max_tokens": 10}
    texts = run(["abc"] * 4, seed=[1, 2, 1, 3], **settings)
    assert texts[0] == texts[2] == run(["abc"], seed=1, **settings)[0]
    assert len({text for text, *_ in texts}) == 3
    greedy = run(["abc"] * 2, seed=[1, 2])
    assert greedy[0] == greedy[1]


def test_a_shorter_answer_is_the_beginning_of_a_longer_one(run):
    """The same seed, so the settings for length move no random number."""
    long, _, _ = run(["ab"], temperature=1.5, seed=3, max_tokens=10)[0]
    short, num_tokens, reason = run(["ab"], temperature=1.5, seed=3, max_tokens=4)[0]
    assert len(long) > 4 and long.startswith(short)
    assert (num_tokens, reason) == (4, "length")


@pytest.mark.parametrize("max_tokens", [0, -1, -(2**31)])
def test_nothing_is_written_when_nothing_is_asked_for(run, max_tokens):
    assert run(["abc", ""], max_tokens=max_tokens) == [("", 0, "length")] * 2


def test_the_context_bounds_prompt_and_answer_together(run):
    prompts = [LETTERS[:n] for n in (0, 5, 14, 15, 26)]
    counts = [n for _, n, _ in run(prompts, max_tokens=2**31 - 1, temperature=2.0, top_p=0.9)]
    # BEGIN takes one place; of a prompt too long half of the context is read.
    assert all(count <= most for count, most in zip(counts, [15, 10, 8, 8, 8], strict=True))
    assert max(counts[:2]) > 8 and max(counts[2:]) > 1


def test_a_prompt_that_is_too_long_is_read_from_its_end(run):
    """As much of it as leaves the answer its room: `max_tokens`, at most half of the context."""
    for max_tokens, room in ((3, 3), (50, CONTEXT // 2)):
        last = LETTERS[-(CONTEXT - room) :]
        settings = {"temperature": 2.0, "seed": 9, "max_tokens": max_tokens}
        whole, kept, other = run([LETTERS, last, "a" * 11 + LETTERS[:15]], **settings)
        assert whole == kept and 1 <= whole[1] <= room
        assert run(["zzzz" + last], **settings)[0] == kept
        assert other != whole


@pytest.mark.parametrize("name", [name for name in INPUTS if name != "prompt"])
def test_inputs_of_another_size_than_the_prompts_are_refused(model, tokenizer, name):
    inputs = {alias: tf.constant([value] * 2, dtype) for alias, (value, dtype) in INPUTS.items()}
    inputs[name] = inputs[name][:1]
    with pytest.raises(tf.errors.InvalidArgumentError, match=f"{name} must have one value"):
        graph_of(model, tokenizer)(*inputs.values())


def test_an_empty_batch_gives_empty_answers(run):
    assert run([]) == []


# A state in place of a cache ----------------------------------------------------------------------


def test_a_recurrent_network_writes_what_its_plain_call_would_say(tokenizer, tmp_path):
    """In the process, and from an export that knows only TensorFlow's ops."""
    config = RecurrentLanguageModelConfig(embedding_size=16, units=12, context_length=CONTEXT)
    model = build_model(config, tokenizer.vocabulary_size, seed=0)
    rng = np.random.default_rng(0)
    for variable in model.trainable_variables:
        variable.assign(variable.numpy() + rng.normal(scale=0.8, size=variable.shape))
    logits_of = tf.function(model, input_signature=[tf.TensorSpec([None, None], tf.int32)])
    answers = caller(graph_of(model, tokenizer))(PROMPTS, max_tokens=6)
    assert len({text for text, *_ in answers}) > 2
    for prompt, (text, num_tokens, reason) in zip(PROMPTS, answers, strict=True):
        tokens, expected_reason = greedy_by_hand(logits_of, tokenizer, prompt, 6)
        assert (text, num_tokens) == (text_of(tokenizer, tokens), len(tokens)), prompt
        assert reason == expected_reason

    archive = keras.export.ExportArchive()
    archive.track(model)
    archive.track(tokenizer)
    signature = [tf.TensorSpec([None], dtype, name) for name, (_, dtype) in INPUTS.items()]
    archive.add_endpoint("write", lambda *x: generate(model, tokenizer, *x), signature)
    archive.write_out(str(tmp_path / "export"), verbose=False)
    loaded = tf.saved_model.load(tmp_path / "export")

    def exported(*inputs):
        answer = loaded.write(*inputs)  # sorted by name
        return {name: answer[name] for name in GENERATOR_OUTPUTS}

    assert caller(exported)(PROMPTS, max_tokens=6) == answers


# Scripted: a stand-in for the network whose next token follows from the last one only -----------


def scripted(next_token, vocabulary_size):
    """Writes `next_token[t]` after t; whatever stands before it would never be written."""
    table = np.full((vocabulary_size, vocabulary_size), -5.0, np.float32)
    for token, following in next_token.items():
        table[token, following] = 5.0
    table[:, [PADDING, UNKNOWN, BEGIN]] = 50.0  # and the specials tempt everywhere
    table = tf.constant(table)

    def prefill(tokens, lengths, num_slots):
        return tf.gather(table, tf.gather(tokens, lengths - 1, axis=1, batch_dims=1)), lengths

    def decode(token, position, cache):
        return tf.gather(table, token), cache

    config = SimpleNamespace(context_length=CONTEXT)
    return SimpleNamespace(config=config, prefill=prefill, decode=decode)


@pytest.fixture(scope="module")
def script(tokenizer):
    """a -> b -> c -> end; x -> y -> x -> ...; the empty text -> end."""
    a, b, c, x, y = tokenizer(tf.constant(["abcxy"])).to_list()[0]
    following = {BEGIN: END, a: b, b: c, c: END, x: y, y: x, END: x}
    return caller(graph_of(scripted(following, tokenizer.vocabulary_size), tokenizer))


@pytest.mark.parametrize("temperature", [0.0, 1e-3])
def test_the_end_of_text_stops_a_row_and_is_neither_counted_nor_shown(script, temperature):
    assert script(["a", "x", "", "b"], max_tokens=5, temperature=temperature) == [
        ("bc", 2, "stop"),
        ("yxyxy", 5, "length"),
        ("", 0, "stop"),
        ("c", 1, "stop"),
    ]


def test_the_last_token_allowed_is_no_stop(script):
    """The text would end next, but the limit comes first."""
    assert script(["a", "a"], max_tokens=[2, 3]) == [("bc", 2, "length"), ("bc", 2, "stop")]


def test_padding_unknown_and_begin_are_never_written(script):
    texts = script(["x"] * 20, max_tokens=14, temperature=5.0, seed=list(range(20)))
    assert all(n == len(text) and "⁇" not in text for text, n, _ in texts)
    assert len({text for text, *_ in texts}) > 15  # hot enough to draw anything
