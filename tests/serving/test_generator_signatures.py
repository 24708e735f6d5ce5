"""What a served language model answers token by token, against whole texts and the network."""

import numpy as np
import pytest

from model import signatures as s
from serving import servable
from tests.tiny_writer import CONTEXT

DEFAULTS = {
    s.MAX_TOKENS: np.int32(12),
    s.TEMPERATURE: np.float32(0),
    s.TOP_K: np.int32(0),
    s.TOP_P: np.float32(1),
    s.SEED: np.int32(0),
}
MORE = {
    s.MIN_P: np.float32(0),
    s.REPETITION_PENALTY: np.float32(1),
    s.PRESENCE_PENALTY: np.float32(0),
    s.FREQUENCY_PENALTY: np.float32(0),
}
PROMPTS = ["abc", "", "q", "猫 the quick", "zz"]
SAMPLED = {
    s.TEMPERATURE: [1.0, 0.0, 2.0, 0.8, 1.5],
    s.TOP_K: [0, 0, 3, 0, 5],
    s.TOP_P: [1.0, 1.0, 0.9, 0.8, 1.0],
    s.SEED: [3, 1, 4, 1, 5],
}


@pytest.fixture(scope="module")
def served(writer_exports):
    served = servable.load("writer", 1, writer_exports / "writer" / "1")
    yield served
    served.close()


def rows(values, count, like):
    return np.broadcast_to(np.asarray(values, like.dtype), count)


def strings(texts):
    return np.array([text.encode() for text in texts], object)


def whole(served, prompts, **settings):
    inputs = {
        name: rows(settings.get(name, default), len(prompts), default)
        for name, default in DEFAULTS.items()
    }
    answer = served.run(s.SERVING_DEFAULT, inputs | {s.PROMPT: strings(prompts)})
    names = (s.TEXT, s.NUM_TOKENS, s.FINISH_REASON)
    return list(zip(*(answer[name].tolist() for name in names), strict=True))


def follow(served, prefix, num_prompt, num_tokens, **settings):
    count = len(prefix)
    inputs = {
        name: rows(settings.get(name, default), count, default)
        for name, default in (DEFAULTS | MORE).items()
    }
    counts = {s.TOKENS: prefix, s.NUM_PROMPT: num_prompt, s.NUM_TOKENS: num_tokens}
    inputs |= {name: np.asarray(value, np.int32) for name, value in counts.items()}
    return served.run(s.NEXT_TOKENS, inputs)


def in_pieces(served, prompts, size, max_tokens=12, **settings):
    """The texts by `next_tokens`, `size` tokens at a time, as a front door asks for them."""
    start = served.run(s.TOKENIZE, {s.TEXT: strings(prompts)})
    prefix, num_prompt = start[s.TOKENS].copy(), start[s.NUM_TOKENS]
    num_tokens, reasons, logprobs = num_prompt.copy(), [b""] * len(prompts), [[] for _ in prompts]
    while True:
        left = max_tokens - (num_tokens - num_prompt)
        wanted = np.where([bool(reason) for reason in reasons], 0, np.minimum(left, size))
        if not wanted.any():
            break
        settings |= {s.MAX_TOKENS: wanted}
        answer = follow(served, prefix, num_prompt, num_tokens, **settings)
        for i, count in enumerate(answer[s.NUM_TOKENS]):
            prefix[i, num_tokens[i] : num_tokens[i] + count] = answer[s.TOKENS][i, :count]
            logprobs[i] += answer[s.LOGPROBS][i, :count].tolist()
            reasons[i] = reasons[i] or answer[s.FINISH_REASON][i]
            assert not answer[s.TOKENS][i, count:].any()
        num_tokens = num_tokens + answer[s.NUM_TOKENS]
    written = num_tokens - num_prompt
    tokens = np.zeros_like(prefix)
    for i, count in enumerate(written):
        tokens[i, :count] = prefix[i, num_prompt[i] : num_tokens[i]]
    texts = served.run(s.DETOKENIZE, {s.TOKENS: tokens, s.NUM_TOKENS: written})[s.TEXT]
    reasons = [reason or b"length" for reason in reasons]  # of what the caller wanted
    return list(zip(texts.tolist(), written.tolist(), reasons, strict=True)), logprobs


@pytest.mark.parametrize("settings", [{}, SAMPLED], ids=["greedy", "sampled"])
def test_a_text_in_pieces_is_the_text_at_once(served, settings):
    expected = whole(served, PROMPTS, **settings)
    assert sum(count for _, count, _ in expected) > 30
    for size in (1, 5, 12):
        assert in_pieces(served, PROMPTS, size, **settings)[0] == expected, size


def test_rows_of_different_length_are_what_each_is_alone(served):
    together, _ = in_pieces(served, PROMPTS, 4, **SAMPLED)
    for i, prompt in enumerate(PROMPTS):
        own = {name: values[i] for name, values in SAMPLED.items()}
        assert in_pieces(served, [prompt], 4, **own)[0] == [together[i]], prompt


def test_a_full_context_and_an_end_are_told_and_more_to_come_is_not(served):
    prompts = ["ab" * (CONTEXT // 2 - 2), "a", "a" * (CONTEXT + 5)]
    start = served.run(s.TOKENIZE, {s.TEXT: strings(prompts)})
    assert start[s.NUM_TOKENS].tolist() == [CONTEXT - 4, 1, CONTEXT + 5]
    assert start[s.TOKENS].shape == (3, CONTEXT) and start[s.TOKENS][2].all()
    count = start[s.NUM_TOKENS]
    answer = follow(served, start[s.TOKENS], count, count, **{s.MAX_TOKENS: [9, 2, 9]})
    assert answer[s.NUM_TOKENS].tolist() == [3, 2, 0]
    assert answer[s.FINISH_REASON].tolist() == [b"length", b"", b"length"]
    assert answer[s.TOKENS].shape == (3, 9)  # as wide as was asked for
    longest = in_pieces(served, PROMPTS[:1] * 20, 8, **{s.TEMPERATURE: 2.0, s.SEED: range(20)})[0]
    assert b"stop" in {reason for _, _, reason in longest}


def test_numbers_out_of_range_fail_nobody_beside_them(served):
    start = served.run(s.TOKENIZE, {s.TEXT: strings(["abc", "abc"])})
    good = follow(served, start[s.TOKENS], start[s.NUM_TOKENS], start[s.NUM_TOKENS])
    tokens = start[s.TOKENS].copy()
    tokens[1] = [-7, 2**31 - 1] * (CONTEXT // 2)
    bad = {
        s.MAX_TOKENS: [12, -3],
        s.TEMPERATURE: [0.0, np.nan],
        s.TOP_K: [0, -1],
        s.TOP_P: [1.0, np.nan],
        s.MIN_P: [0.0, np.nan],
        s.REPETITION_PENALTY: [1.0, -2.0],
    }
    count = start[s.NUM_TOKENS]
    answer = follow(served, tokens, count * [1, -1], [count[0], 10**6], **bad)
    assert answer[s.TOKENS][0].tolist() == good[s.TOKENS][0].tolist()
    assert answer[s.NUM_TOKENS].tolist() == [12, 0]


def test_log_probabilities_are_the_networks_own(served, tiny_writer):
    """Of each written token, whatever narrowed it; the likeliest five best first."""
    settings = {s.TEMPERATURE: 2.0, s.TOP_K: 20, s.SEED: [5, 6]}
    start = served.run(s.TOKENIZE, {s.TEXT: strings(["abc", "猫"])})
    count = start[s.NUM_TOKENS]
    answer = follow(served, start[s.TOKENS], count, count, **settings | {s.MAX_TOKENS: 6})
    for i, n in enumerate(count):
        written = answer[s.TOKENS][i, : answer[s.NUM_TOKENS][i]]
        text = np.array([[2, *start[s.TOKENS][i, :n], *written]], np.int32)
        logits = tiny_writer.model(text).numpy()[0, n : n + len(written)].astype(np.float64)
        expected = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
        own = expected[np.arange(len(written)), written]
        np.testing.assert_allclose(answer[s.LOGPROBS][i, : len(written)], own, atol=1e-4)
        best = np.sort(expected, axis=-1)[:, : -s.NUM_TOP - 1 : -1]
        found = answer[s.TOP_LOGPROBS][i, : len(written)]
        np.testing.assert_allclose(found, best, atol=1e-4)
        tokens = answer[s.TOP_TOKENS][i, : len(written)]
        np.testing.assert_allclose(np.take_along_axis(expected, tokens, 1), best, atol=1e-4)
    in_pieces_too = in_pieces(served, ["abc", "猫"], 2, max_tokens=6, **settings)[1]
    for i, row in enumerate(in_pieces_too):
        np.testing.assert_allclose(row, answer[s.LOGPROBS][i, : len(row)], atol=1e-4)


def test_penalties_count_the_prompt_and_what_was_written_before(served, tiny_writer):
    """In pieces as `generate` with the same options at once."""
    import tensorflow as tf

    from model.generation import generate
    from model.samplers import Options

    penalties = {
        s.REPETITION_PENALTY: [1.3, 1.0, 1.0],
        s.PRESENCE_PENALTY: [0.0, 2.0, 0.5],
        s.FREQUENCY_PENALTY: [0.0, 0.0, 0.7],
        s.MIN_P: [0.0, 0.1, 0.0],
    }
    prompts, seed = ["abcabc", "", "zz"], [1, 2, 3]
    options = Options(**{name: tf.constant(values) for name, values in penalties.items()})
    learner = tiny_writer
    answer = generate(
        learner.model,
        learner.tokenizer,
        tf.constant(prompts),
        tf.fill([3], 12),
        tf.constant([0.0, 1.0, 1.0]),
        tf.fill([3], 0),
        tf.fill([3], 1.0),
        tf.constant(seed),
        options,
    )
    settings = penalties | {s.TEMPERATURE: [0.0, 1.0, 1.0], s.SEED: seed}
    found, _ = in_pieces(served, prompts, 5, **settings)
    assert [text for text, *_ in found] == answer[s.TEXT].numpy().tolist()
    assert found != whole(served, prompts, **{s.TEMPERATURE: [0.0, 1.0, 1.0], s.SEED: seed})
