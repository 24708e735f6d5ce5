import numpy as np
import pytest
import tensorflow as tf

from model.samplers import sample, uniforms

PROBABILITIES = np.array([0.05, 0.4, 0.02, 0.2, 0.1, 0.15, 0.08])  # in no order
LOGITS = np.log(PROBABILITIES).astype("float32")


def draw(uniform, *, logits=LOGITS, temperature=1.0, top_k=0, top_p=1.0):
    """Tokens (B,) for B random numbers; settings are one value, or one for each row."""
    uniform = np.asarray(uniform, np.float32)
    B = len(uniform)
    return sample(
        tf.constant(np.broadcast_to(logits, (B, np.shape(logits)[-1])), tf.float32),
        tf.constant(uniform),
        tf.constant(np.broadcast_to(temperature, B), tf.float32),
        tf.constant(np.broadcast_to(top_k, B), tf.int32),
        tf.constant(np.broadcast_to(top_p, B), tf.float32),
    ).numpy()


def exact(temperature=1.0, top_k=0, top_p=1.0):
    """The distribution that the settings ask for, token by token in plain Python."""
    weights = {i: p ** (1 / temperature) for i, p in enumerate(PROBABILITIES)}
    ranked = sorted(weights, key=weights.get, reverse=True)[: top_k or None]
    total = sum(weights[i] for i in ranked)
    kept, reached = [], 0.0
    for i in ranked:
        if kept and reached >= top_p:
            break
        kept.append(i)
        reached += weights[i] / total
    share = sum(weights[i] for i in kept)
    return np.array([weights[i] / share if i in kept else 0.0 for i in range(len(weights))])


GRID = (np.arange(2000) + 0.5) / 2000  # every part of [0, 1)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"temperature": 0.5},
        {"temperature": 2.0},
        {"top_k": 3},
        {"top_p": 0.7},
        {"temperature": 1.5, "top_k": 4, "top_p": 0.8},
        {"temperature": 0.7, "top_k": 5, "top_p": 0.9},
    ],
    ids=str,
)
def test_frequencies_are_the_exact_probabilities(settings):
    count = 20_000
    uniform = uniforms(tf.constant([123]), count).numpy()[0]
    counts = np.bincount(draw(uniform, **settings), minlength=len(LOGITS))
    expected = exact(**settings) * count
    possible = expected > 0
    assert not counts[~possible].any()
    chi_square = np.sum((counts - expected)[possible] ** 2 / expected[possible])
    assert chi_square < 25, (counts, expected)  # 6 degrees of freedom: one fault in 3,000 at most


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


def test_one_number_decides_along_the_ranked_distribution():
    edges = np.cumsum([0.4, 0.2, 0.15, 0.1, 0.08, 0.05, 0.02])
    for token, start, end in zip([1, 3, 5, 4, 6, 0, 2], [0, *edges], edges, strict=False):
        assert set(draw([start + 1e-4, (start + end) / 2, end - 1e-4])) == {token}
    assert draw([0.0])[0] == 1
    # Each share holds its lower edge and not its upper one.
    assert draw([0.0, 0.25, 0.5, 0.75], logits=np.zeros(4)).tolist() == [0, 1, 2, 3]
    assert draw([1 - 2**-23])[0] == 2  # the largest number that Philox gives


def test_a_token_of_no_probability_is_never_drawn():
    logits = LOGITS.copy()
    logits[[1, 4]] = tf.float32.min
    for temperature in (0.3, 1.0, 5.0):
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
