import collections

import numpy as np
import pytest

from training.pipeline import (
    ClassificationBatches,
    LanguageModelBatches,
    classification_rows,
    language_model_windows,
    token_stream,
)


def texts_of(count, seed=0):
    """Rows that can be told apart: text i starts with i + 1; labels are i % 3."""
    rng = np.random.default_rng(seed)
    rows = [np.array([i + 1, *[9] * rng.integers(0, 12)], np.int32) for i in range(count)]
    return rows, np.arange(count) % 3


def classification(count=23, batch_size=5, seed=0):
    return ClassificationBatches(*texts_of(count), batch_size=batch_size, seed=seed)


def language(length=103, num_tokens=8, batch_size=3, seed=0):
    stream = np.arange(1, length + 1, dtype=np.int32)  # every token says where it stands
    return LanguageModelBatches(stream, num_tokens=num_tokens, batch_size=batch_size, seed=seed)


def pass_of(batches, epoch):
    """The first token of every row of a pass, in order."""
    first = epoch * batches.num_batches
    steps = range(first, first + batches.num_batches)
    return [int(row[0]) for step in steps for row in batches.at(step)["tokens"]]


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name])
        assert a[name].dtype == np.int32


@pytest.mark.parametrize("make", [classification, language])
class TestBoth:
    def test_a_batch_depends_on_the_seed_and_the_step_alone(self, make):
        forward, asked_at_random = make(), make()
        steps = list(range(4 * forward.num_batches))
        batches = [forward.at(step) for step in steps]
        for step in np.random.default_rng(0).permutation(steps):
            assert_same(asked_at_random.at(int(step)), batches[step])
        assert_same(make().at(steps[-1]), batches[-1])  # as a resumed run asks first

    def test_passes_and_seeds_differ_in_order(self, make):
        orders = [pass_of(make(seed=seed), epoch) for seed in (0, 1) for epoch in (0, 1, 2)]
        assert len({tuple(order) for order in orders}) == 6


# Classification -----------------------------------------------------------------------------------


@pytest.mark.parametrize("epoch", [0, 3])
def test_a_pass_has_every_text_at_most_once_and_leaves_out_the_remainder(epoch):
    batches = classification(count=23, batch_size=5)
    seen = pass_of(batches, epoch)
    assert batches.num_batches == 4
    assert len(seen) == len(set(seen)) == 20


def test_no_text_waits_for_ever():
    batches = classification(count=23, batch_size=5)
    assert {text for epoch in range(8) for text in pass_of(batches, epoch)} == set(range(1, 24))


def test_rows_keep_their_label_and_are_padded_to_the_longest_of_the_batch():
    rows, labels = texts_of(23)
    batches = classification()
    for step in range(batches.num_batches):
        batch = batches.at(step)
        texts = batch["tokens"][:, 0] - 1
        np.testing.assert_array_equal(batch["label"], labels[texts])
        assert batch["tokens"].shape == (5, max(len(rows[i]) for i in texts))
        for line, i in zip(batch["tokens"], texts, strict=True):
            np.testing.assert_array_equal(line[: len(rows[i])], rows[i])
            assert not line[len(rows[i]) :].any()


def test_texts_of_like_length_share_a_batch_but_batches_come_in_any_order():
    rng = np.random.default_rng(0)
    rows = [np.ones(n, np.int32) for n in rng.integers(1, 100, 2000)]
    batches = ClassificationBatches(rows, np.zeros(2000, int), batch_size=20, seed=0)
    found = [batches.at(step)["tokens"] for step in range(batches.num_batches)]
    slots = sum(tokens.size for tokens in found)
    assert np.count_nonzero(found[0]) and sum(map(np.count_nonzero, found)) / slots > 0.9
    lengths = [tokens.shape[1] for tokens in found]
    assert abs(np.corrcoef(lengths, range(len(lengths)))[0, 1]) < 0.4


@pytest.mark.parametrize("count", [1, 4, 5, 6])
def test_fewer_texts_than_a_batch_make_a_smaller_batch(count):
    batches = classification(count=count, batch_size=5)
    assert batches.num_batches == 1
    seen = pass_of(batches, 0)
    assert len(seen) == len(set(seen)) == min(count, 5)


def test_training_needs_a_text():
    with pytest.raises(ValueError, match="at least one text"):
        ClassificationBatches([], np.zeros(0, int), batch_size=5, seed=0)


def test_empty_texts_share_a_batch_with_others():
    rows = [np.zeros(0, np.int32), np.array([4, 5], np.int32)]
    batch = ClassificationBatches(rows, np.array([0, 1]), batch_size=2, seed=0).at(0)
    assert sorted(batch["tokens"].tolist()) == [[0, 0], [4, 5]]
    only_empty = ClassificationBatches(rows[:1], np.array([0]), batch_size=2, seed=0).at(0)
    assert only_empty["tokens"].shape == (1, 0)


def test_evaluation_has_every_text_exactly_once_beside_its_index():
    rows, labels = texts_of(23)
    seen = []
    for indices, batch in classification_rows(rows, labels, batch_size=5):
        np.testing.assert_array_equal(batch["tokens"][:, 0] - 1, indices)
        np.testing.assert_array_equal(batch["label"], labels[indices])
        seen.extend(indices)
    assert sorted(seen) == list(range(23))
    assert list(classification_rows([], labels[:0], batch_size=5)) == []


# Language model -----------------------------------------------------------------------------------


def test_targets_are_the_tokens_that_follow():
    batches = language()
    for step in range(2 * batches.num_batches):
        batch = batches.at(step)
        assert batch["tokens"].shape == batch["targets"].shape == (3, 8)
        np.testing.assert_array_equal(batch["targets"], batch["tokens"] + 1)
        np.testing.assert_array_equal(np.diff(batch["tokens"], axis=1), 1)


def test_windows_of_a_pass_do_not_overlap_and_cover_nearly_all():
    batches = language(length=1000, num_tokens=8, batch_size=3)
    targets = [
        target
        for step in range(batches.num_batches)
        for target in batches.at(step)["targets"].ravel()
    ]
    assert len(targets) == len(set(targets)) > 0.95 * 1000
    starts = np.array(pass_of(batches, 0)) % 8
    assert len(set(starts)) == 1  # all cut at one offset


def test_every_token_gets_its_turn_as_a_target():
    """The random offset moves, so no token is left out at the ends for ever."""
    batches = language(length=50, num_tokens=8, batch_size=2)
    seen = collections.Counter(
        int(target)
        for step in range(200 * batches.num_batches)
        for target in batches.at(step)["targets"].ravel()
    )
    assert set(seen) == set(range(2, 51))  # all but the very first


@pytest.mark.parametrize("length", [2, 3, 5, 8, 9, 10, 16, 17, 18, 24, 25, 26, 33])
def test_short_streams_give_what_there_is(length):
    batches = language(length=length, num_tokens=8, batch_size=3)
    assert batches.num_batches >= 1
    for step in range(20):
        batch = batches.at(step)
        assert 1 <= batch["tokens"].shape[1] <= min(8, length - 1)
        np.testing.assert_array_equal(batch["targets"], batch["tokens"] + 1)
        assert batch["targets"].max() <= length


@pytest.mark.parametrize("length", [0, 1])
def test_training_needs_a_token_to_predict(length):
    with pytest.raises(ValueError, match=f"at least 2 tokens. Received: {length}"):
        language(length=length)


@pytest.mark.parametrize("length", [0, 1, 2, 7, 8, 9, 10, 16, 17, 18, 40])
def test_evaluation_predicts_every_token_but_the_first_once(length):
    stream = np.arange(1, length + 1, dtype=np.int32)
    targets = []
    for batch in language_model_windows(stream, num_tokens=8, batch_size=2):
        assert batch["tokens"].shape == batch["targets"].shape
        assert batch["tokens"].shape[0] <= 2 and batch["tokens"].shape[1] == 8
        is_target = batch["targets"] != 0
        assert is_target.any(axis=1).all()  # no window of padding alone
        np.testing.assert_array_equal(batch["targets"][is_target], batch["tokens"][is_target] + 1)
        targets.extend(batch["targets"][is_target])
    assert targets == list(range(2, length + 1))


def test_documents_are_strung_together_between_their_marks():
    documents = [np.array([7, 8], np.int32), np.array([], np.int32), np.array([9], np.int32)]
    stream = token_stream(documents, 2, 3)
    assert stream.tolist() == [2, 7, 8, 3, 2, 3, 2, 9, 3] and stream.dtype == np.int32
    assert token_stream([], 2, 3).shape == (0,)
