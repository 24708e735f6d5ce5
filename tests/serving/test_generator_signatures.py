"""What a served language model answers token by token, against whole texts and the network."""

import json

import numpy as np
import pytest

from model import signatures as s
from model.tokenizers import BEGIN, END
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
        text = [*start[s.TOKENS][i, :n], *written]
        expected = own_log_probabilities(tiny_writer, text)[n:]
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


def own_log_probabilities(learner, tokens):
    """Of what follows the begin and each token but the last, by the plain call: float64 (T, V)."""
    text = np.array([[BEGIN, *tokens[:-1]]], np.int32)
    logits = learner.model(text).numpy()[0].astype(np.float64)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def test_a_score_is_the_networks_own(served, tiny_writer):
    texts = ["abc", "", "猫 the quick brown fox", "jumps over" * 10]
    answer = served.run(s.SCORE, {s.TEXT: strings(texts)})
    start = served.run(s.TOKENIZE, {s.TEXT: strings(texts)})
    for name in (s.TOKENS, s.NUM_TOKENS):
        np.testing.assert_array_equal(answer[name], start[name])
    assert answer[s.LOGPROBS].shape == (4, CONTEXT)
    assert answer[s.TOP_TOKENS].shape == answer[s.TOP_LOGPROBS].shape == (4, CONTEXT, s.NUM_TOP)
    for i, count in enumerate(np.minimum(answer[s.NUM_TOKENS], CONTEXT)):
        assert not any(answer[name][i, count:].any() for name in (s.LOGPROBS, s.TOP_LOGPROBS))
        if not count:
            continue
        tokens = answer[s.TOKENS][i, :count]
        expected = own_log_probabilities(tiny_writer, tokens)
        found = answer[s.LOGPROBS][i, :count]
        np.testing.assert_allclose(found, expected[np.arange(count), tokens], atol=1e-4)
        best = np.sort(expected, axis=-1)[:, : -s.NUM_TOP - 1 : -1]
        np.testing.assert_allclose(answer[s.TOP_LOGPROBS][i, :count], best, atol=1e-4)


def test_many_tokens_are_scored_piece_by_piece(served):
    """More rows than are scored at once, each as it is alone."""
    texts = [f"{'abcdefghij'[i % 10] * 3} fox {'klmnopqrst'[i // 10]}" for i in range(90)]
    together = served.run(s.SCORE, {s.TEXT: strings(texts)})[s.LOGPROBS]
    for i in (0, 31, 89):
        alone = served.run(s.SCORE, {s.TEXT: strings(texts[i : i + 1])})[s.LOGPROBS]
        np.testing.assert_allclose(together[i], alone[0], atol=1e-4)


def test_an_embedding_is_the_mean_state_of_length_one(served, tiny_writer):
    texts = ["abc", "", "the quick brown fox 猫", "jumps over" * 10]
    found = served.run(s.EMBED, {s.TEXT: strings(texts)})[s.EMBEDDING]
    start = served.run(s.TOKENIZE, {s.TEXT: strings(texts)})
    model = tiny_writer.model
    for row, tokens, count in zip(found, start[s.TOKENS], start[s.NUM_TOKENS], strict=True):
        read = np.array([[BEGIN, *tokens[max(min(count, CONTEXT) - CONTEXT + 1, 0) :][:count]]])
        states = model.embeddings_of(model.states(read[:, :CONTEXT])).numpy()[0]
        mean = states.mean(axis=0)
        np.testing.assert_allclose(row, mean / np.linalg.norm(mean), atol=1e-5)
    assert np.abs(found[0] - found[2]).max() > 0.01


def greedy_by_cache(call, tokens, num_tokens, steps):
    """Tokens (steps, B), by `call(name, inputs)` of PREFILL and then of DECODE, one at a time."""
    lengths = num_tokens + 1
    read = np.pad(tokens[:, : lengths.max() - 1], [[0, 0], [1, 0]], constant_values=BEGIN)
    answer = call(s.PREFILL, {s.TOKENS: read, s.NUM_TOKENS: lengths})
    caches = {name: np.asarray(x) for name, x in answer.items() if name != s.LOGITS}
    room = [[0, 0], [0, 0], [0, steps], [0, 0]]
    caches = {name: np.pad(x, room) for name, x in caches.items()}
    written = []
    for step in range(steps):
        logits = np.array(answer[s.LOGITS])
        logits[:, :END] = -np.inf
        written.append(logits.argmax(axis=-1).astype(np.int32))
        one = {s.TOKENS: written[-1][:, None], s.NUM_TOKENS: np.ones_like(lengths)}
        answer = call(s.DECODE, one | {s.POSITION: lengths + step} | caches)
        caches = {name: answer[name] for name in caches}
    return np.array(written)


def texts_of(served, written):
    """Of tokens (steps, B), each text up to its end."""
    tokens = np.zeros([written.shape[1], CONTEXT], np.int32)
    tokens[:, : len(written)] = written.T
    ends = [list(row).index(END) if END in row else len(row) for row in written.T]
    counts = np.array(ends, np.int32)
    return served.run(s.DETOKENIZE, {s.TOKENS: tokens, s.NUM_TOKENS: counts})[s.TEXT].tolist()


def test_cache_in_hand_writes_the_whole_text_portable_and_compiled(served, writer_exports):
    import tensorflow as tf

    prompts, steps = ["abc", "", "the quick", "zz"], 10
    expected = [text for text, *_ in whole(served, prompts, **{s.MAX_TOKENS: steps})]
    start = served.run(s.TOKENIZE, {s.TEXT: strings(prompts)})
    portable = greedy_by_cache(served.run, start[s.TOKENS], start[s.NUM_TOKENS], steps)
    assert texts_of(served, portable) == expected
    loaded = tf.saved_model.load(str(writer_exports / "writer" / "1"))
    functions = {
        name: tf.function(loaded.signatures[name], jit_compile=True)
        for name in (s.PREFILL, s.DECODE)
    }

    def compiled(name, inputs):
        return functions[name](**{alias: tf.constant(x) for alias, x in inputs.items()})

    found = greedy_by_cache(compiled, start[s.TOKENS], start[s.NUM_TOKENS], steps)
    assert texts_of(served, found) == expected
    assert len(set(expected)) == len(prompts)


def test_a_prompt_may_be_read_in_parts_of_any_length(served):
    """By `decode` into an empty cache, beside rows that read another number of tokens."""
    start = served.run(s.TOKENIZE, {s.TEXT: strings(["the quick brown", "abcdef"])})
    read = np.pad(start[s.TOKENS][:, :-1], [[0, 0], [1, 0]], constant_values=BEGIN)
    lengths = start[s.NUM_TOKENS] + 1
    at_once = served.run(s.PREFILL, {s.TOKENS: read[:, : lengths.max()], s.NUM_TOKENS: lengths})
    # As many slots as the longest row has tokens: padding must not write over the last.
    caches = {name: np.zeros_like(x) for name, x in at_once.items() if name != s.LOGITS}
    position, logits = np.zeros(2, np.int32), np.zeros_like(at_once[s.LOGITS])
    for parts in ([5, 1], [4, 3], [7, 3]):
        tokens = np.zeros([2, 8], np.int32)
        for i, count in enumerate(parts):
            tokens[i, :count] = read[i, position[i] : position[i] + count]
        inputs = {s.TOKENS: tokens, s.NUM_TOKENS: np.array(parts, np.int32), s.POSITION: position}
        answer = served.run(s.DECODE, inputs | caches)
        caches = {name: answer[name] for name in caches}
        position, logits = position + np.array(parts, np.int32), answer[s.LOGITS]
    assert position.tolist() == lengths.tolist() == [16, 7]
    np.testing.assert_allclose(logits, at_once[s.LOGITS], atol=1e-4)
    for name, cache in caches.items():
        for i, count in enumerate(lengths):
            own = at_once[name][i, :, :count]
            np.testing.assert_allclose(cache[i, :, :count], own, atol=1e-4)


def test_the_manifest_says_what_is_there(writer_exports, tiny_writer):
    manifest = json.loads((writer_exports / "writer" / "1" / s.MANIFEST_FILE).read_text())
    assert manifest[s.CONTEXT_LENGTH] == CONTEXT
    assert manifest[s.VOCABULARY_SIZE] == tiny_writer.tokenizer.vocabulary_size
    assert manifest[s.NUM_PARAMETERS] == tiny_writer.model.count_params()
    assert manifest[s.WEIGHTS] == s.WEIGHTS_FLOAT32
    found = manifest["signatures"]
    assert set(found[s.NEXT_TOKENS]["inputs"]) == set(s.NEXT_TOKENS_INPUTS)
    assert set(found[s.NEXT_TOKENS]["outputs"]) == set(s.NEXT_TOKENS_OUTPUTS)
    scores = {s.TOKENS, s.NUM_TOKENS, s.LOGPROBS, s.TOP_TOKENS, s.TOP_LOGPROBS}
    assert set(found[s.SCORE]["outputs"]) == scores
    caches = {"key_0", "value_0", "key_1", "value_1"}
    assert set(found[s.PREFILL]["outputs"]) == {s.LOGITS} | caches
    inputs = {s.TOKENS, s.NUM_TOKENS, s.POSITION}
    assert set(found[s.DECODE]["inputs"]) == inputs | caches
    without_cache = set(found) - {s.PREFILL, s.DECODE}
    assert {golden["signature_name"] for golden in manifest["golden"]} == without_cache
