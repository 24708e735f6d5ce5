import math

import numpy as np
import pytest
import tensorflow as tf

from model.samplers import (
    Options,
    first_occurrence,
    penalized,
    probabilities,
    sample,
    uniforms,
    would_repeat,
)

PROBABILITIES = np.array([0.05, 0.4, 0.02, 0.2, 0.1, 0.15, 0.08])  # in no order
LOGITS = np.log(PROBABILITIES).astype("float32")


def inputs(B, logits, temperature, top_k, top_p, **more):
    """Tensors for B rows; settings are one value, or one for each row."""
    return (
        tf.constant(np.broadcast_to(logits, (B, np.shape(logits)[-1])), tf.float32),
        tf.constant(np.broadcast_to(temperature, B), tf.float32),
        tf.constant(np.broadcast_to(top_k, B), tf.int32),
        tf.constant(np.broadcast_to(top_p, B), tf.float32),
    ), {name: tf.constant(np.broadcast_to(value, B), tf.float32) for name, value in more.items()}


def draw(uniform, *, logits=LOGITS, temperature=1.0, top_k=0, top_p=1.0, **more):
    """Tokens (B,) for B random numbers."""
    uniform = np.asarray(uniform, np.float32)
    (logits, *settings), more = inputs(len(uniform), logits, temperature, top_k, top_p, **more)
    return sample(logits, tf.constant(uniform), *settings, **more).numpy()


def exact(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, typical_p=1.0):
    """The distribution that the settings ask for, token by token in plain Python."""
    weights = {i: p ** (1 / temperature) for i, p in enumerate(PROBABILITIES)}
    ranked = sorted(weights, key=weights.get, reverse=True)[: top_k or None]
    total = sum(weights[i] for i in ranked)
    kept = smallest_set(ranked, {i: weights[i] / total for i in ranked}, top_p)
    kept = [i for i in kept if weights[i] >= min_p * weights[ranked[0]]]
    share = {i: weights[i] / sum(weights[i] for i in kept) for i in kept}
    entropy = -sum(p * math.log(p) for p in share.values())
    typical = sorted(kept, key=lambda i: abs(-math.log(share[i]) - entropy))
    kept = smallest_set(typical, share, typical_p)
    total = sum(weights[i] for i in kept)
    return np.array([weights[i] / total if i in kept else 0.0 for i in range(len(weights))])


def smallest_set(ranked, share, enough):
    kept, reached = [], 0.0
    for i in ranked:
        if kept and reached >= enough:
            break
        kept.append(i)
        reached += share[i]
    return kept


GRID = (np.arange(2000) + 0.5) / 2000  # every part of [0, 1)


SETTINGS = [
    {},
    {"temperature": 0.5},
    {"temperature": 2.0},
    {"top_k": 3},
    {"top_p": 0.7},
    {"temperature": 1.5, "top_k": 4, "top_p": 0.8},
    {"temperature": 0.7, "top_k": 5, "top_p": 0.9},
    {"min_p": 0.3},
    {"typical_p": 0.4},
    {"typical_p": 0.8, "temperature": 2.0},
    {"temperature": 1.5, "top_k": 6, "top_p": 0.95, "min_p": 0.2, "typical_p": 0.7},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_frequencies_are_the_exact_probabilities(settings):
    count = 20_000
    uniform = uniforms(tf.constant([123]), count).numpy()[0]
    counts = np.bincount(draw(uniform, **settings), minlength=len(LOGITS))
    expected = exact(**settings) * count
    possible = expected > 0
    assert not counts[~possible].any()
    chi_square = np.sum((counts - expected)[possible] ** 2 / expected[possible])
    assert chi_square < 25, (counts, expected)  # 6 degrees of freedom: one fault in 3,000 at most


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_probabilities_are_exact_in_the_order_of_the_vocabulary(settings):
    defaults = {"temperature": 1.0, "top_k": 0, "top_p": 1.0}
    tensors, more = inputs(2, LOGITS, **defaults | settings)
    found = probabilities(*tensors, **more).numpy()
    np.testing.assert_allclose(found, [exact(**settings)] * 2, atol=1e-6)


def test_min_p_asks_for_a_share_of_the_likeliest():
    """0.40, 0.20, 0.15, 0.10, 0.08, 0.05, 0.02: what is at least 0.4 times `min_p` stays."""
    cases = {0.0: set(range(7)), 0.06: {0, 1, 3, 4, 5, 6}, 0.49: {1, 3}, 0.51: {1}, 7.0: {1}}
    for min_p, tokens in cases.items():
        assert set(draw(GRID, min_p=min_p)) == tokens, min_p
    assert set(draw(GRID, min_p=float("nan"))) == set(range(7))


def test_a_typical_token_may_be_another_than_the_likeliest():
    """The entropy is 1.64 nats, that of probability 0.19: 0.2 is nearest, 0.4 is rather far."""
    assert [set(draw(GRID, typical_p=p)) for p in (0.01, 0.3, 0.4)] == [{3}, {3, 5}, {3, 4, 5}]
    assert set(draw(GRID, typical_p=1.0)) == set(range(7))
    best = draw(GRID, typical_p=0.01, temperature=0.0)
    assert set(best) == {1}  # of one token that one is typical


def test_temperature_zero_and_top_k_one_take_the_likeliest():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(50, 9))
    uniform = rng.random(50)
    best = logits.argmax(axis=1)
    np.testing.assert_array_equal(draw(uniform, logits=logits, temperature=0.0), best)
    np.testing.assert_array_equal(
        draw(uniform, logits=logits, temperature=0.0, top_k=5, top_p=0.3), best
    )
    np.testing.assert_array_equal(draw(uniform, logits=logits, temperature=3.0, top_k=1), best)
    np.testing.assert_array_equal(draw(uniform, logits=logits, temperature=1e-6), best)
    assert (draw(uniform, logits=logits) != best).any()


@pytest.mark.parametrize(
    ("top_p", "tokens"),
    [
        (0.0, {1}),  # never none
        (1e-6, {1}),
        (0.39, {1}),
        (0.41, {1, 3}),
        (0.59, {1, 3}),
        (0.61, {1, 3, 5}),
        (0.92, {1, 3, 4, 5, 6}),
        (0.97, {0, 1, 3, 4, 5, 6}),
        (0.99, set(range(7))),
        (1.0, set(range(7))),
    ],
)
def test_top_p_keeps_the_smallest_set_that_reaches_it(top_p, tokens):
    """Ranked: 0.40, 0.20, 0.15, 0.10, 0.08, 0.05, 0.02."""
    assert set(draw(GRID, top_p=top_p)) == tokens


@pytest.mark.parametrize("top_k", [1, 2, 6, 7, 100])
def test_top_k_keeps_the_likeliest(top_k):
    ranked = np.argsort(-PROBABILITIES)
    assert set(draw(GRID, top_k=top_k)) == set(ranked[:top_k])


def test_top_p_counts_what_top_k_left():
    # Of the two likeliest, 0.4 / 0.6 reaches one half on its own; of all of them it does not.
    assert set(draw(GRID, top_k=2, top_p=0.5)) == {1}
    assert set(draw(GRID, top_p=0.5)) == {1, 3}


def test_one_number_decides_along_the_vocabulary():
    edges = np.cumsum(PROBABILITIES)
    for token, (start, end) in enumerate(zip([0, *edges], edges, strict=False)):
        assert set(draw([start + 1e-4, (start + end) / 2, end - 1e-4])) == {token}
    assert draw([0.0])[0] == 0
    # Each share holds its lower edge and not its upper one.
    assert draw([0.0, 0.25, 0.5, 0.75], logits=np.zeros(4)).tolist() == [0, 1, 2, 3]
    assert draw([1 - 2**-23])[0] == 6  # the largest number that Philox gives


def test_equally_likely_tokens_stay_or_go_together_and_a_greedy_row_takes_the_first():
    logits = np.array([0.0, 2.0, 1.0, 2.0, 1.0])
    assert set(draw(GRID, logits=logits, top_k=3)) == {1, 2, 3, 4}
    assert set(draw(GRID, logits=logits, top_p=0.3)) == {1, 3}
    for settings in ({"temperature": 0.0}, {"top_k": 1}):
        assert set(draw(GRID, logits=logits, **settings)) == {1}
        tensors, _ = inputs(1, logits, **{"temperature": 1.0, "top_k": 0, "top_p": 1.0} | settings)
        assert probabilities(*tensors).numpy().tolist() == [[0, 1, 0, 0, 0]]


LARGE = 3_000  # tokens: more than are sorted, in several blocks of the running sum


@pytest.mark.parametrize("compiled", [False, True], ids=["graph", "xla"])
@pytest.mark.parametrize("flat", [1.0, 0.05], ids=["peaked", "flat"])
def test_a_large_vocabulary_is_narrowed_as_if_it_were_sorted(flat, compiled):
    """Each row by its own settings, some of which keep more tokens than are sorted."""
    rng = np.random.default_rng(1)
    top_k = [0, 0, 0, 40, 64, 65, 700, 700, LARGE - 1, LARGE, 1, 900]
    top_p = [1.0, 0.5, 0.95, 1.0, 0.9, 0.8, 0.5, 1.0, 0.999, 1.0, 0.3, 0.0]
    B = len(top_k)
    logits = (flat * 3 * rng.normal(size=(B, LARGE))).astype(np.float32)
    tensors, _ = inputs(B, logits, np.linspace(0.5, 1.5, B), top_k, top_p)
    found = tf.function(probabilities, jit_compile=compiled)(*tensors).numpy()
    np.testing.assert_allclose(found.sum(axis=1), 1.0, atol=1e-5)
    for i, row in enumerate(logits):
        exact = np.exp((row - row.max()) / np.linspace(0.5, 1.5, B)[i], dtype=np.float64)
        ranked = np.argsort(-exact)[: top_k[i] or None]
        share = exact / exact[ranked].sum()
        enough = top_p[i] if top_p[i] < 1 else 2  # all of them, whatever rounding says
        expected = smallest_set(ranked.tolist(), share, enough)
        edge = abs(np.cumsum(share[ranked]) - top_p[i]).min()
        if edge < 1e-6 and top_p[i] < 1:
            continue  # float32 decides
        kept = set(np.flatnonzero(found[i]))
        assert kept == set(expected), (i, len(kept), len(expected))
        share = exact[expected] / exact[expected].sum()
        np.testing.assert_allclose(found[i][expected], share, rtol=1e-4)


def test_draws_of_a_large_vocabulary_follow_the_running_sum():
    rng = np.random.default_rng(2)
    logits = 3 * rng.normal(size=LARGE)
    logits[rng.random(LARGE) < 0.5] = tf.float32.min
    p = np.exp(logits - logits.max())
    uniform = np.concatenate([rng.random(500), [0.0, 1 - 2**-23]])
    found = draw(uniform, logits=logits)
    cumulative = np.cumsum(p / p.sum())
    np.testing.assert_allclose(cumulative[found], np.maximum(cumulative[found], uniform), atol=1e-5)
    np.testing.assert_array_less(cumulative[found] - (p / p.sum())[found], uniform + 1e-5)
    assert (p[found] > 0).all()


def test_a_token_of_no_probability_is_never_drawn():
    logits = LOGITS.copy()
    logits[[1, 4]] = tf.float32.min
    for temperature in (0.5, 1.0, 5.0):
        uniform = np.append(GRID, [0.0, 1 - 2**-23])
        assert set(draw(uniform, logits=logits, temperature=temperature)) == {0, 2, 3, 5, 6}


def test_each_row_goes_by_its_own_settings():
    rng = np.random.default_rng(3)
    B = 60
    logits, uniform = rng.normal(size=(B, 7)), rng.random(B)
    settings = {
        "temperature": rng.choice([0.0, 0.5, 1.0, 2.0], B),
        "top_k": rng.choice([0, 1, 3, 50], B),
        "top_p": rng.choice([0.2, 0.8, 1.0], B),
        "min_p": rng.choice([0.0, 0.1, 0.5], B),
        "typical_p": rng.choice([0.2, 0.9, 1.0], B),
    }
    together = draw(uniform, logits=logits, **settings)
    alone = [
        draw(
            uniform[i : i + 1],
            logits=logits[i],
            **{name: values[i] for name, values in settings.items()},
        )[0]
        for i in range(B)
    ]
    np.testing.assert_array_equal(together, alone)


# What was written ---------------------------------------------------------------------------------

V, STEPS = 6, 9
LOGITS_OF_ROWS = np.random.default_rng(5).normal(size=(3, V)).astype("float32")
PROMPTS, ANSWERS = [[1, 3], [5], [2, 2, 4, 1]], [[3, 3, 4], [], [2, 5]]


def on_the_right(rows):
    return tf.constant([[0] * (STEPS - len(row)) + row for row in rows], tf.int32)


@pytest.mark.parametrize(
    "penalties",
    [
        {"repetition_penalty": [1.5, 1.0, 0.8]},
        {"presence_penalty": [0.7, 3.0, -0.2]},
        {"frequency_penalty": [0.3, 1.0, -0.5]},
        {
            "repetition_penalty": [2.0, -1.0, 1.1],
            "presence_penalty": [0.0, 0.0, 1.0],
            "frequency_penalty": [0.5, 0.0, 0.0],
        },
    ],
    ids=lambda penalties: "+".join(penalties),
)
def test_penalties_are_the_formulas(penalties):
    expected = LOGITS_OF_ROWS.copy()
    for i, (prompt, answer) in enumerate(zip(PROMPTS, ANSWERS, strict=True)):
        own = {name: values[i] for name, values in penalties.items()}
        for token in {*prompt, *answer}:
            penalty = own.get("repetition_penalty", 1.0)
            penalty = penalty if penalty > 0 else 1.0
            expected[i, token] *= penalty if expected[i, token] < 0 else 1 / penalty
        for token in set(answer):
            expected[i, token] -= own.get("presence_penalty", 0.0)
            expected[i, token] -= answer.count(token) * own.get("frequency_penalty", 0.0)
    text = on_the_right([p + a for p, a in zip(PROMPTS, ANSWERS, strict=True)])
    options = Options(**{k: tf.constant(v, tf.float32) for k, v in penalties.items()})
    found = penalized(tf.constant(LOGITS_OF_ROWS), text, on_the_right(ANSWERS), options)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert np.abs(expected - LOGITS_OF_ROWS).max() > 0.1


def test_no_ngram_is_written_twice():
    """Every row against the plain search for each n-gram in the text; padding is none of it."""
    rng, vocabulary_size, num_forbidden = np.random.default_rng(0), 4, 0
    rows = [
        rng.integers(1, vocabulary_size, size=size).tolist() for size in [*range(STEPS + 1)] * 20
    ]
    ngram = rng.integers(0, 5, size=len(rows))
    text = on_the_right(rows)
    found = would_repeat(text, STEPS, tf.constant(ngram, tf.int32), vocabulary_size).numpy()
    longer = tf.pad(text, [[0, 0], [0, 2]])  # nothing is written behind the end yet
    again = would_repeat(longer, STEPS, tf.constant(ngram, tf.int32), vocabulary_size)
    np.testing.assert_array_equal(again, found)
    for row, n, forbidden in zip(rows, ngram, found, strict=True):
        ngrams = [row[i : i + n] for i in range(len(row) - n + 1)] if n else []
        last = row[len(row) - n + 1 :] if n > 1 else []
        expected = [len(last) == n - 1 and [*last, v] in ngrams for v in range(vocabulary_size)]
        assert forbidden.tolist() == expected, (row, n)
        num_forbidden += sum(expected)
    assert num_forbidden > 50
    far = would_repeat(text, STEPS, tf.fill(len(rows), 2**31 - 1), vocabulary_size)
    assert not np.any(far)


def test_the_first_occurrence_of_any_string_in_bytes():
    rng = np.random.default_rng(1)
    texts = ["".join(rng.choice(list("ab好"), size)) for size in rng.integers(0, 12, 60)]
    strings = [["".join(rng.choice(list("ab好"), n)) for n in (1, 2, 3, 0)] for _ in texts]
    strings[0] = [""] * 4
    expected = []
    for text, candidates in zip(texts, strings, strict=True):
        places = [text.encode().find(c.encode()) for c in candidates if c]
        expected.append(min((place for place in places if place >= 0), default=-1))
    found = first_occurrence(tf.constant(texts), tf.constant(strings))
    assert found.numpy().tolist() == expected
    assert -1 in expected and 0 in expected and max(expected) > 4
    assert first_occurrence(tf.constant(["ba"]), tf.constant([["ab"]])).numpy() == [-1]
    assert first_occurrence(tf.constant(["a"]), tf.zeros([1, 0], tf.string)).numpy() == [-1]


# Random numbers -----------------------------------------------------------------------------------


def test_a_row_of_numbers_follows_from_its_seed_alone():
    numbers = uniforms(tf.constant([7, -1, 7, 0, 2**31 - 1]), 6).numpy()
    np.testing.assert_array_equal(numbers[0], numbers[2])
    np.testing.assert_array_equal(uniforms(tf.constant([-1]), 6).numpy()[0], numbers[1])
    assert len({tuple(row) for row in numbers}) == 4
    assert uniforms(tf.constant([], tf.int32), 6).shape == (0, 6)


def test_the_numbers_are_those_that_earlier_exports_drew():
    """A seed in a bug report or a document gives the same text in the next version."""
    np.testing.assert_allclose(
        uniforms(tf.constant([42]), 3).numpy()[0], [0.28243315, 0.4984169, 0.7154585], rtol=1e-6
    )


def test_neighbouring_seeds_are_independent():
    graph = tf.function(lambda seed: uniforms(seed, 2))
    numbers = graph(tf.range(2000)).numpy()
    assert 0 <= numbers.min() and numbers.max() < 1
    for column in numbers.T:
        counts = np.histogram(column, bins=10, range=(0, 1))[0]
        assert np.sum((counts - 200) ** 2 / 200) < 30  # 9 degrees of freedom
    first, second = numbers.T
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.08
    assert abs(np.corrcoef(first[:-1], first[1:])[0, 1]) < 0.08
