import numpy as np
import pytest

from training.pipeline import (
    ClassificationBatches,
    LanguageModelBatches,
    classification_rows,
    language_model_windows,
)


def texts_of(count, seed=0):
    """Rows that can be told apart: text i starts with i + 1; labels are i % 3."""
    rng = np.random.default_rng(seed)
    rows = [np.array([i + 1, *[9] * rng.integers(0, 12)], np.int32) for i in range(count)]
    return rows, np.arange(count) % 3


def classification(count=23, batch_size=5, seed=0):
    return ClassificationBatches(*texts_of(count), batch_size=batch_size, seed=seed)


def documents_of(*lengths):
    """Documents whose tokens all differ, so that each says where it stands."""
    ends = np.cumsum([0, *lengths])
    return [np.arange(a + 1, b + 1, dtype=np.int32) for a, b in zip(ends, ends[1:], strict=False)]


def language(lengths=(103, 9, 5, 30), num_tokens=8, batch_size=3, seed=0):
    documents = documents_of(*lengths)
    return LanguageModelBatches(documents, num_tokens=num_tokens, batch_size=batch_size, seed=seed)


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


def targets_of(batches):
    """All targets but the padding; checks on the way that each follows its token."""
    found = []
    for batch in batches:
        tokens, targets = batch["tokens"], batch["targets"]
        assert tokens.shape == targets.shape and tokens.dtype == targets.dtype == np.int32
        is_target = targets != 0
        assert is_target.any(axis=1).all()  # no row of padding alone
        assert is_target.any(axis=0).all()  # no column either
        np.testing.assert_array_equal(targets[is_target], tokens[is_target] + 1)
        assert (np.diff(is_target.astype(int), axis=1) <= 0).all()  # padding only at the end
        found.extend(int(target) for target in targets[is_target])
    return found


def every_target(documents):
    return [int(token) for document in documents for token in document[1:]]


def a_pass(batches, epoch=0):
    first = epoch * batches.num_batches
    return [batches.at(step) for step in range(first, first + batches.num_batches)]


@pytest.mark.parametrize("num_tokens", [1, 2, 3, 8])
@pytest.mark.parametrize("length", [2, 3, 5, 8, 9, 10, 12, 13, 14, 16, 17, 18, 25, 33, 64, 65])
def test_a_pass_over_one_document_has_every_target_once(length, num_tokens):
    batches = language(lengths=[length], num_tokens=num_tokens, batch_size=1)
    for epoch in range(20):
        seen = a_pass(batches, epoch)
        assert sorted(targets_of(seen)) == list(range(2, length + 1))
        assert max(batch["tokens"].shape[1] for batch in seen) <= num_tokens


def test_a_document_that_fits_is_one_row_from_its_beginning():
    documents = documents_of(9, 5, 2, 7)
    batches = language(lengths=(9, 5, 2, 7), num_tokens=8, batch_size=2)
    firsts = {int(row[0]) for batch in a_pass(batches) for row in batch["tokens"]}
    assert firsts == {int(document[0]) for document in documents}


def test_a_long_document_is_cut_elsewhere_in_every_pass():
    batches = language(lengths=[103], num_tokens=8, batch_size=1)
    cuts = [
        frozenset(int(row[0]) for batch in a_pass(batches, epoch) for row in batch["tokens"])
        for epoch in range(12)
    ]
    assert len(set(cuts)) >= 3
    assert all(1 in cut for cut in cuts)  # its beginning is always a beginning


def test_rows_that_do_not_fill_a_batch_wait_for_another_pass():
    batches = language(lengths=[5] * 7, num_tokens=8, batch_size=3)
    assert batches.num_batches == 2
    passes = [targets_of(a_pass(batches, epoch)) for epoch in range(20)]
    assert all(len(targets) == len(set(targets)) == 6 * 4 for targets in passes)
    assert set().union(*passes) == set(every_target(documents_of(*[5] * 7)))


def test_rows_of_like_length_share_a_batch():
    batches = language(lengths=[4, 9] * 30, num_tokens=8, batch_size=6)
    for batch in a_pass(batches):
        assert len({int((row != 0).sum()) for row in batch["targets"]}) == 1


@pytest.mark.parametrize("lengths", [(), (1,), (0, 1, 1)])
def test_training_needs_a_token_to_predict(lengths):
    with pytest.raises(ValueError, match="at least one document of 2 tokens. Received: none"):
        language(lengths=lengths)


@pytest.mark.parametrize("lengths", [(), (1,), (2,), (9, 3), (8, 17, 2, 1, 40)])
def test_evaluation_predicts_every_token_but_the_first_once(lengths):
    documents = documents_of(*lengths)
    batches = list(language_model_windows(documents, num_tokens=8, batch_size=2))
    assert all(batch["tokens"].shape[0] <= 2 and batch["tokens"].shape[1] <= 8 for batch in batches)
    assert sorted(targets_of(batches)) == every_target(documents)
