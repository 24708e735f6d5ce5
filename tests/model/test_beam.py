import itertools

import numpy as np
import pytest
import tensorflow as tf
from ways_to_write import CONTEXT, Bigrams, letters_tokenizer, rows_of

from model.beam import beam_search
from model.catalogue import build_model
from model.config import RecurrentLanguageModelConfig, TransformerDecoderConfig
from model.generation import generate

ALPHAS = [0.0, 0.6, 2.5]


@pytest.fixture(scope="module")
def tokenizer():
    return letters_tokenizer()


def bigrams(tokenizer, seed):
    rows = np.random.default_rng(seed).dirichlet(np.full(4, 0.7), size=4)
    return Bigrams(tokenizer, "abc", rows)


def searcher(model, tokenizer, num_beams):
    specs = [tf.TensorSpec([None], dtype) for dtype in (tf.string, tf.int32, tf.float32)]
    graph = tf.function(
        lambda *inputs: beam_search(model, tokenizer, *inputs, num_beams), input_signature=specs
    )

    def run(prompts, max_tokens, alphas):
        B = len(prompts)
        return rows_of(
            graph(
                tf.constant(prompts, tf.string),
                tf.constant(np.broadcast_to(max_tokens, B), tf.int32),
                tf.constant(np.broadcast_to(alphas, B), tf.float32),
            )
        )

    return run


def scored(model, text, ends, alpha):
    size = len(text) + ends
    return model.log_probability(text, ends) * (6 / (5 + size)) ** alpha


def by_hand(model, max_tokens, alpha, num_beams):
    """Beam search over strings, in plain Python."""
    beams, ended = [""], []
    for _ in range(max_tokens):
        ways = [(b + c, False) for b in beams for c in model.letters] + [(b, True) for b in beams]
        ways.sort(key=lambda way: -model.log_probability(*way))
        ended += [text for text, ends in ways[:num_beams] if ends]
        beams = [text for text, ends in ways if not ends][:num_beams]
    candidates = [(text, True) for text in ended] + [(text, False) for text in beams]
    text, ends = max(candidates, key=lambda way: scored(model, *way, alpha))
    return text, len(text), "stop" if ends else "length"


@pytest.mark.parametrize("num_beams", [2, 3])
def test_beams_are_those_of_plain_python(tokenizer, num_beams):
    found = set()
    for seed in (0, 2):
        model = bigrams(tokenizer, seed)
        sizes = [(m, a) for m in (0, 1, 4, 9) for a in ALPHAS]
        run = searcher(model, tokenizer, num_beams)
        answers = run([""] * len(sizes), *zip(*sizes, strict=True))
        for (max_tokens, alpha), answer in zip(sizes, answers, strict=True):
            assert answer == by_hand(model, max_tokens, alpha, num_beams), (seed, max_tokens, alpha)
        found |= set(answers)
    assert len({reason for *_, reason in found}) == 2 and len(found) > 4


def test_with_beams_for_all_texts_the_best_of_all_is_found(tokenizer):
    model = bigrams(tokenizer, 5)
    texts = ["".join(t) for n in range(5) for t in itertools.product("abc", repeat=n)]
    ways = [(t, True) for t in texts if len(t) < 4] + [(t, False) for t in texts if len(t) == 4]
    answers = searcher(model, tokenizer, 110)([""] * 3, 4, ALPHAS)
    best = [max(ways, key=lambda way: scored(model, *way, alpha)) for alpha in ALPHAS]
    assert [(text, reason == "stop") for text, _, reason in answers] == best
    assert len(set(best)) > 1


@pytest.mark.parametrize(
    "config",
    [
        TransformerDecoderConfig(
            num_layers=1, width=16, num_heads=2, inner_width=16, context_length=CONTEXT
        ),
        RecurrentLanguageModelConfig(embedding_size=16, units=12, context_length=CONTEXT),
    ],
    ids=lambda config: config.name,
)
def test_a_network_with_a_memory_moves_it_along_with_the_beams(tokenizer, config):
    """One beam is greedy writing, four find likelier texts here, and rows are as if alone."""
    model, rng = build_model(config, tokenizer.vocabulary_size, seed=0), np.random.default_rng(3)
    for variable in model.trainable_variables:
        variable.assign(variable.numpy() + rng.normal(scale=0.5, size=variable.shape))
    prompts, max_tokens = ["abc", "", "hello w", "q"], [6, 5, 3, 6]
    greedy = rows_of(
        generate(
            model,
            tokenizer,
            tf.constant(prompts),
            tf.constant(max_tokens),
            tf.zeros(4),
            tf.zeros(4, tf.int32),
            tf.ones(4),
            tf.zeros(4, tf.int32),
        )
    )
    assert searcher(model, tokenizer, 1)(prompts, max_tokens, 0.0) == greedy
    run = searcher(model, tokenizer, 4)
    together = run(prompts, max_tokens, 0.0)
    for i, prompt in enumerate(prompts):
        assert run([prompt], max_tokens[i], 0.0) == [together[i]]
    read = tf.function(model, input_signature=[tf.TensorSpec([None, None], tf.int32)])

    def log_probability(prompt, text, reason):
        start, tokens = (
            [2, *tokenizer(tf.constant([t])).to_list()[0]] for t in (prompt, prompt + text)
        )
        tokens += [3] * (reason == "stop")
        logits = read(tf.constant([tokens]))[0].numpy()
        logits[:, :3] = -np.inf
        log_p = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
        return sum(log_p[i - 1, tokens[i]] for i in range(len(start), len(tokens)))

    gains = [
        log_probability(prompt, more[0], more[2]) - log_probability(prompt, one[0], one[2])
        for prompt, more, one in zip(prompts, together, greedy, strict=True)
    ]
    assert min(gains) > -1e-4 and max(gains) > 0.1


def test_a_search_without_beams_is_refused(tokenizer):
    with pytest.raises(ValueError, match="num_beams must be at least 1. Received: 0"):
        searcher(bigrams(tokenizer, 0), tokenizer, 0)([""], 1, 0.0)
    assert searcher(bigrams(tokenizer, 0), tokenizer, 2)([], 1, 0.0) == []
