"""Running words to windows, noise and co-occurrences."""

import numpy as np
import pytest

from model.config import CBOWConfig, SkipGramConfig
from training.vectors.corpus import (
    CellBatches,
    Stream,
    WindowBatches,
    co_occurrences,
    kept_share,
    noise,
)

ROWS = [np.array(row, np.int32) for row in ([5, 1, 2, 3], [], [4], [1], [2, 2, 0, 7])]
V = 8


def counts_of(stream, size=V):
    return np.bincount(stream.words, minlength=size)


def random_stream(n=400, size=V, documents=7, seed=0):
    rng = np.random.default_rng(seed)
    words = rng.choice(np.arange(2, size), n, p=np.arange(size - 2, 0, -1) / sum(range(size - 1)))
    return Stream(words.astype(np.int32), np.sort(rng.integers(0, documents, n)).astype(np.int32))


def windows(stream, config=None, **settings):
    config = config or SkipGramConfig(window=3, num_negatives=4, subsampling=0.0)
    settings = {"batch_size": 16, "seed": 3} | settings
    return WindowBatches(stream, counts_of(stream), config, **settings)


def test_words_out_of_the_vocabulary_and_padding_are_left_out():
    stream = Stream.of(ROWS)
    assert stream.words.tolist() == [5, 2, 3, 4, 2, 2, 7]
    assert stream.document.tolist() == [0, 0, 0, 2, 4, 4, 4]
    assert not len(Stream.of([]).words)


# Windows ------------------------------------------------------------------------------------------


def test_a_window_is_what_stands_around_a_word_in_its_document():
    stream = random_stream()
    examples = windows(stream).examples(np.random.default_rng(0))
    assert examples.dtype == np.int32 and examples[:, 0].tolist() == stream.words.tolist()
    reaches = []
    for i, (_, *window) in enumerate(examples.tolist()):
        for sign, side in ((-1, window[:3]), (1, window[3:])):
            full = []
            for d in (1, 2, 3):
                j = i + sign * d
                inside = 0 <= j < len(stream.words) and stream.document[j] == stream.document[i]
                full.append(int(stream.words[j]) if inside else 0)
            reach = sum(word != 0 for word in side)
            assert side == full[:reach] + [0] * (3 - reach)
            if all(full):
                reaches.append(reach)
    # Every reach is as likely as the others.
    np.testing.assert_allclose(np.bincount(reaches)[1:] / len(reaches), [1 / 3] * 3, atol=0.05)


def test_both_sides_of_a_window_reach_as_far():
    stream = Stream(np.arange(2, 102, dtype=np.int32), np.zeros(100, np.int32))
    batches = WindowBatches(
        stream,
        counts_of(stream, 102),
        CBOWConfig(window=4, subsampling=0.0),
        batch_size=8,
        seed=0,
    )
    window = batches.examples(np.random.default_rng(0))[4:-4, 1:]
    left, right = ((side != 0).sum(axis=1) for side in (window[:, :4], window[:, 4:]))
    assert left.tolist() == right.tolist() and len(set(left)) == 4


def test_skip_gram_and_cbow_read_the_same_window_from_its_two_ends():
    stream, settings = random_stream(), {"window": 3, "num_negatives": 4, "subsampling": 0.0}
    a = windows(stream, SkipGramConfig(**settings)).at(2)
    b = windows(stream, CBOWConfig(**settings)).at(2)
    assert {name: x.shape for name, x in a.items()} == {
        "inputs": (16, 1),
        "outputs": (16, 6),
        "negatives": (16, 4),
    }
    assert all(x.dtype == np.int32 for batch in (a, b) for x in batch.values())
    np.testing.assert_array_equal(a["inputs"], b["outputs"])
    np.testing.assert_array_equal(a["outputs"], b["inputs"])


def test_a_word_alone_in_its_document_is_nothing_to_cbow():
    stream = Stream(np.array([2, 3, 4], np.int32), np.array([0, 1, 1], np.int32))
    batch = windows(stream, CBOWConfig(window=2, subsampling=0.0)).at(0)
    alone = ~batch["inputs"].any(axis=1)
    assert alone.sum() == 1 and batch["outputs"][alone].tolist() == [[0]]
    assert sorted(batch["outputs"][~alone, 0]) == [3, 4]


def test_a_batch_follows_from_the_seed_and_its_index_alone():
    stream = random_stream()
    config = SkipGramConfig(window=3, subsampling=0.05)
    first, second = windows(stream, config), windows(stream, config)
    asked = [first.at(i) for i in range(first.num_batches * 2)]
    for i in (len(asked) - 1, 0, 3):  # in any order
        for name, value in second.at(i).items():
            np.testing.assert_array_equal(value, asked[i][name])
    other = windows(stream, config, seed=4).at(0)
    assert any((other[name] != asked[0][name]).any() for name in other)
    later = asked[first.num_batches]  # of the next pass
    assert any((later[name] != asked[0][name]).any() for name in later)


# Sub-sampling and noise ---------------------------------------------------------------------------


def test_a_word_is_kept_with_the_chance_of_the_paper():
    counts = np.array([0, 0, 900, 90, 9, 1])
    share = kept_share(counts, 1e-2)
    np.testing.assert_allclose(share[2:], [(1e-2 / 0.9) ** 0.5, (1e-2 / 0.09) ** 0.5, 1, 1])
    assert kept_share(counts, 0.0).tolist() == [1] * 6


def test_every_pass_keeps_as_many_words_and_each_by_its_chance():
    stream = random_stream(2_000)
    config = SkipGramConfig(window=2, subsampling=0.02)
    batches = windows(stream, config)
    share = kept_share(counts_of(stream), 0.02)
    assert batches.num_examples == int(share[stream.words].sum())
    kept = np.zeros(V)
    for seed in range(20):
        words = batches.examples(np.random.default_rng(seed))[:, 0]
        assert len(words) == batches.num_examples
        kept += np.bincount(words, minlength=V)
    np.testing.assert_allclose(kept[2:] / 20 / counts_of(stream)[2:], share[2:], atol=0.03)


def test_noise_follows_the_frequency_to_the_power():
    counts = np.array([0, 0, 16, 1, 81, 0])
    np.testing.assert_allclose(noise(counts, 0.75), np.array([0, 0, 8, 1, 27, 0]) / 36)
    np.testing.assert_allclose(noise(counts, 0.0), np.array([0, 0, 1, 1, 1, 0]) / 3)
    # Documents of one word have no window, so nothing is left out of their noise.
    stream = Stream(np.repeat(np.arange(2, 5), [16, 1, 81]).astype(np.int32), np.arange(98))
    config = SkipGramConfig(window=1, num_negatives=500, subsampling=0.0)
    batches = windows(stream, config, batch_size=98)
    drawn = np.bincount(batches.at(0)["negatives"].ravel(), minlength=5)
    np.testing.assert_allclose(drawn / drawn.sum(), np.array([0, 0, 8, 1, 27]) / 36, atol=0.01)


@pytest.mark.parametrize("kind", [SkipGramConfig, CBOWConfig])
def test_noise_is_never_an_answer_of_its_row(kind):
    batches = windows(random_stream(), kind(window=3, num_negatives=9, subsampling=0.0))
    left_out = 0
    for i in range(batches.num_batches):
        batch = batches.at(i)
        for outputs, negatives in zip(batch["outputs"], batch["negatives"], strict=True):
            assert not set(outputs) & set(negatives) - {0}
            left_out += (negatives == 0).sum()
    assert left_out


def test_texts_without_a_word_of_the_vocabulary_are_refused():
    with pytest.raises(ValueError, match="Received: none that is kept.*tokenizer.min_count"):
        windows(Stream.of([np.array([1, 1], np.int32)]))


# Co-occurrences -----------------------------------------------------------------------------------


def test_co_occurrences_are_counted_by_distance_within_documents():
    stream, window = random_stream(120), 4
    expected = np.zeros((V, V))
    for i in range(120):
        for j in range(120):
            if 0 < abs(i - j) <= window and stream.document[i] == stream.document[j]:
                expected[stream.words[i], stream.words[j]] += 1 / abs(i - j)
    cells = co_occurrences(stream, window, V)
    found = np.zeros((V, V))
    found[cells.rows, cells.columns] = cells.counts
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert (cells.counts > 0).all() and len(cells.counts) == (expected > 0).sum()


def test_a_pass_has_every_cell_once():
    cells = co_occurrences(random_stream(), 2, V)
    batches = CellBatches(cells, batch_size=3, seed=0)
    seen = [batches.at(i) for i in range(batches.num_batches)]
    places = {
        (int(i), int(j)): float(x)
        for b in seen
        for i, j, x in zip(b["inputs"][:, 0], b["outputs"][:, 0], b["count"], strict=True)
    }
    assert len(places) == 3 * batches.num_batches  # but for those that fill no last batch
    assert len(cells.counts) - len(places) < 3
    table = dict(zip(zip(cells.rows, cells.columns, strict=True), cells.counts, strict=True))
    assert all(table[place] == x for place, x in places.items())


def test_words_that_stand_alone_are_refused_by_glove():
    stream = Stream(np.array([2, 3], np.int32), np.array([0, 1], np.int32))
    with pytest.raises(ValueError, match="stand together. Received: none"):
        CellBatches(co_occurrences(stream, 2, V), batch_size=3, seed=0)
