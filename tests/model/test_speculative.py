import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf
from ways_to_write import CONTEXT, Bigrams, letters_tokenizer, rows_of

from model.catalogue import build_model
from model.config import RecurrentLanguageModelConfig, TransformerDecoderConfig
from model.generation import generate
from model.speculative import speculate

NAMES = ("prompt", "max_tokens", "temperature", "top_k", "top_p", "seed")
DTYPES = (tf.string, tf.int32, tf.float32, tf.int32, tf.float32, tf.int32)
DEFAULTS = {"max_tokens": 8, "temperature": 0.0, "top_k": 0, "top_p": 1.0, "seed": 0}


@pytest.fixture(scope="module")
def tokenizer():
    return letters_tokenizer()


def tensors(prompts, **settings):
    settings = DEFAULTS | settings | {"prompt": prompts}
    return [
        tf.constant(np.broadcast_to(settings[name], len(prompts)).tolist(), dtype)
        for name, dtype in zip(NAMES, DTYPES, strict=True)
    ]


def caller(function):
    graph = tf.function(function, input_signature=[tf.TensorSpec([None], d) for d in DTYPES])
    return lambda prompts, **settings: rows_of(graph(*tensors(prompts, **settings)))


def transformer(tokenizer, seed, **options):
    sizes = {"num_layers": 1, "width": 16, "num_heads": 2, "inner_width": 16, "tied_head": False}
    config = TransformerDecoderConfig(**sizes | {"context_length": CONTEXT} | options)
    model, rng = build_model(config, tokenizer.vocabulary_size, seed=0), np.random.default_rng(seed)
    for variable in model.trainable_variables:
        variable.assign(variable.numpy() + rng.normal(scale=0.5, size=variable.shape))
    return model


PROMPTS = ["abc", "", "q", "the quick brown", "abcdefghijklmnopqrstuvwxyz", "zz", "hello w"]
MAX_TOKENS = [8, 15, 100, 5, 4, 0, 12]


@pytest.fixture(scope="module")
def networks(tokenizer):
    """The draft is the network with a little noise, so that it is often right and often wrong."""
    model, draft = (transformer(tokenizer, 5, num_key_value_heads=1) for _ in range(2))
    rng = np.random.default_rng(1)
    for variable in draft.trainable_variables:
        variable.assign(variable.numpy() + rng.normal(scale=0.05, size=variable.shape))
    return model, draft


@pytest.fixture(scope="module")
def run(networks, tokenizer):
    return caller(lambda *inputs: speculate(*networks, tokenizer, *inputs, num_guesses=3))


def test_greedy_text_is_that_of_the_network_alone(networks, run, tokenizer):
    model, draft = networks
    alone = caller(lambda *inputs: generate(model, tokenizer, *inputs))
    expected = alone(PROMPTS, max_tokens=MAX_TOKENS)
    assert {reason for *_, reason in expected} == {"length", "stop"}
    assert run(PROMPTS, max_tokens=MAX_TOKENS) == expected
    stranger = transformer(tokenizer, 9)
    beside = caller(lambda *inputs: speculate(model, stranger, tokenizer, *inputs, num_guesses=1))
    assert beside(PROMPTS, max_tokens=MAX_TOKENS) == expected
    text = tf.constant([[2, *tokenizer(tf.constant([PROMPTS[3]])).to_list()[0]]])
    theirs = [np.argmax(network(text)[0, :, 3:], axis=-1) for network in (model, draft, stranger)]
    assert 0.3 < np.mean(theirs[0] == theirs[1]) < 1
    assert np.mean(theirs[0] == theirs[2]) < 0.3


def test_a_row_writes_the_same_alone_and_in_any_company(run):
    settings = {
        "max_tokens": MAX_TOKENS,
        "temperature": [1.0, 0.0, 2.0, 0.8, 1.0, 1.0, 1.5],
        "top_k": [0, 0, 3, 0, 5, 0, 2],
        "top_p": [1.0, 1.0, 0.9, 0.8, 1.0, 0.5, 1.0],
        "seed": [1, 2, 3, 4, 5, 6, 7],
    }
    together = run(PROMPTS, **settings)
    for i, prompt in enumerate(PROMPTS):
        own = {name: values[i] for name, values in settings.items()}
        assert run([prompt], **own) == [together[i]], prompt
    other = run(PROMPTS, **settings | {"seed": list(range(20, 27))})
    assert other[1] == together[1] and other[0] != together[0]
    assert run([]) == []


# Tables -------------------------------------------------------------------------------------------


def tables(tokenizer):
    """A network of three letters and a draft that thinks otherwise, but not always."""
    rng = np.random.default_rng(4)
    model, draft = (rng.dirichlet(np.ones(4), size=4) for _ in range(2))
    draft[1] = model[1]
    return Bigrams(tokenizer, "abc", model), Bigrams(tokenizer, "abc", draft)


def exact(rows, temperature, top_k):
    """What each row is drawn from: its `top_k` likeliest, at a temperature."""
    weights = rows ** (1 / temperature)
    least = np.sort(weights, axis=1)[:, -top_k or None][:, None] if top_k else 0.0
    weights = np.where(weights >= least, weights, 0.0)
    return weights / weights.sum(axis=1, keepdims=True)


@pytest.mark.parametrize(("temperature", "top_k"), [(1.0, 0), (0.7, 3)])
def test_texts_are_as_frequent_as_the_network_makes_them(tokenizer, temperature, top_k):
    """Whole texts of up to three letters: what a guess that was kept or not leads to included."""
    model, draft = tables(tokenizer)
    run = caller(lambda *inputs: speculate(model, draft, tokenizer, *inputs, num_guesses=2))
    count, length = 4000, 3
    settings = {"temperature": temperature, "top_k": top_k, "max_tokens": length}
    found = [text for text, *_ in run([""] * count, seed=list(range(count)), **settings)]
    p = exact(model.rows, temperature, top_k)
    expected = {}
    for size in range(length + 1):
        for letters in itertools.product(range(3), repeat=size):
            places = [-1, *letters] + [3] * (size < length)
            share = np.prod([p[a][b] for a, b in zip(places, places[1:], strict=False)])
            expected["".join("abc"[i] for i in letters)] = count * share
    assert sum(expected.values()) == pytest.approx(count)
    assert all(expected[text] > 0 for text in set(found))
    often = {text: n for text, n in expected.items() if n > 5}
    differences = [(found.count(text) - n) ** 2 / n for text, n in often.items()]
    # Mean and deviation of chi-square; a draft that is not corrected is off by hundreds.
    assert sum(differences) < len(often) + 5 * np.sqrt(2 * len(often))


@pytest.mark.parametrize("kind", ["table", "transformer"])
def test_guesses_that_are_right_save_calls_of_the_network(tokenizer, kind):
    """The draft is the network itself: of 5 tokens a call, 4 are guessed and one is its own."""
    rows = np.full((4, 4), 0.01)
    rows[[0, 1, 2, 3], [1, 2, 0, 0]] = 0.97  # abcabc...
    draft = Bigrams(tokenizer, "abc", rows)
    if kind == "transformer":  # whose guesses are right if its cache has every token
        draft = transformer(tokenizer, 2)
    calls = []

    def counted(tokens, position, cache):
        calls.append(int(tf.shape(tokens)[1]))
        return draft.read(tokens, position, cache)

    names = ("vocabulary_size", "config", "prefill", "logits")
    model = SimpleNamespace(read=counted, **{name: getattr(draft, name) for name in names})
    settings = {"max_tokens": 14, "temperature": 1.0, "seed": list(range(30))}
    answer = rows_of(speculate(model, draft, tokenizer, *tensors(["a"] * 30, **settings)))
    longest = max(n + (reason == "stop") for _, n, reason in answer)
    assert longest > 10 and calls == [5] * math.ceil(longest / 5)


def test_networks_that_do_not_fit_are_refused(networks, tokenizer):
    model, _ = networks
    config = RecurrentLanguageModelConfig(embedding_size=8, units=8, context_length=CONTEXT)
    recurrent = build_model(config, tokenizer.vocabulary_size, seed=0)
    short = transformer(tokenizer, 0, context_length=8)
    other = build_model(model.config, tokenizer.vocabulary_size + 1, seed=0)
    for pair, message in (
        ((recurrent, model), "speculative decoding needs .* Received: recurrent_language_model"),
        ((model, recurrent), "speculative decoding needs .* Received: recurrent_language_model"),
        ((model, other), r"the vocabulary of the model .* 31 tokens. Received: 32"),
        ((model, short), "context_length must be at least the model's, 16. Received: 8"),
    ):
        with pytest.raises(ValueError, match=message):
            speculate(*pair, tokenizer, *tensors(["a"]))
    with pytest.raises(ValueError, match="num_guesses must be at least 1. Received: 0"):
        speculate(model, model, tokenizer, *tensors(["a"]), num_guesses=0)
