import hashlib

import numpy as np
import pytest

from training.pipeline import (
    ClassificationBatches,
    LanguageModelBatches,
    MixedBatches,
    classification_rows,
    language_model_windows,
)


def texts_of(count, seed=0):
    """Rows that can be told apart: text i starts with i + 1; labels are i % 3."""
    rng = np.random.default_rng(seed)
    rows = [np.array([i + 1, *[9] * rng.integers(0, 12)], np.int32) for i in range(count)]
    return rows, np.arange(count) % 3


def classification(count=23, batch_size=5, seed=0, **settings):
    return ClassificationBatches(*texts_of(count), batch_size=batch_size, seed=seed, **settings)


def documents_of(*lengths):
    """Documents whose tokens all differ, so that each says where it stands."""
    ends = np.cumsum([0, *lengths])
    return [np.arange(a + 1, b + 1, dtype=np.int32) for a, b in zip(ends, ends[1:], strict=False)]


def language(lengths=(103, 9, 5, 30), num_tokens=8, batch_size=3, seed=0, **settings):
    documents = documents_of(*lengths)
    return LanguageModelBatches(
        documents, num_tokens=num_tokens, batch_size=batch_size, seed=seed, **settings
    )


def streamed(make, **settings):
    return make(**{"batch_size": "linear(1, 9, steps=6)", "num_updates": 10} | settings)


def classification_stream(**settings):
    return streamed(classification, **settings)


def language_stream(**settings):
    return streamed(language, **settings)


def classification_poisson(**settings):
    return classification(sampling="poisson", **settings)


def language_warmup(**settings):
    return language(max_tokens="linear(2, 8, steps=9)", num_updates=20, **settings)


def mixture(seed=0, **settings):
    first, second = classification(seed=seed), classification(count=11, batch_size=2, seed=seed + 9)
    settings = {"share": "linear(0, 1)", "num_updates": 12} | settings
    return MixedBatches(first, second, seed=seed, **settings)


def pass_of(batches, epoch):
    """The first token of every row of a pass, in order."""
    first = epoch * batches.num_batches
    steps = range(first, first + batches.num_batches)
    return [int(row[0]) for step in steps for row in batches.at(step)["tokens"]]


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name])
        assert a[name].dtype == (np.float32 if name == "weight" else np.int32)


@pytest.mark.parametrize(
    "make",
    [
        classification,
        language,
        classification_stream,
        language_stream,
        classification_poisson,
        language_warmup,
        mixture,
    ],
)
class TestAll:
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


# Batch sizes --------------------------------------------------------------------------------------


def rows_of(batches, indices):
    """The first token of every row."""
    return [int(row[0]) for index in indices for row in batches.at(index)["tokens"]]


def test_a_number_gives_the_batches_it_always_gave():
    """The order of a pass, written out: runs of earlier versions go on with the same batches."""
    rows, _ = texts_of(700)
    batches = classification(count=700, batch_size=5)
    lengths = np.array([len(row) for row in rows])
    for epoch in (0, 3):
        rng = np.random.default_rng([0, epoch])
        order = rng.permutation(700)
        for start in range(0, 700, 320):
            piece = order[start : start + 320]
            order[start : start + 320] = piece[np.argsort(lengths[piece], kind="stable")]
        expected = order.reshape(140, 5)[rng.permutation(140)]
        assert pass_of(batches, epoch) == (expected.ravel() + 1).tolist()


def test_language_model_batches_of_a_number_are_those_of_earlier_versions():
    digest = hashlib.sha256()
    batches = language(lengths=(103, 9, 5, 30, 64) * 9, num_tokens=8, batch_size=3)
    for index in range(2 * batches.num_batches):
        digest.update(batches.at(index)["tokens"].tobytes())
    assert digest.hexdigest()[:16] == "9f44f2b3b1e6a104"


def test_the_full_batch_has_every_text_once_in_every_pass():
    batches = classification(count=600, batch_size="full")
    assert (batches.num_batches, batches.batch_size) == (3, 256)
    assert [len(batches.at(index)["label"]) for index in range(6)] == [256, 256, 88] * 2
    assert sorted(pass_of(batches, 0)) == sorted(pass_of(batches, 4)) == list(range(1, 601))
    assert classification(count=7, batch_size="full").num_batches == 1
    lengths = [(batches.at(index)["tokens"] != 0).sum(axis=1) for index in range(3)]
    assert (np.diff(np.concatenate(lengths)) >= 0).all()  # little padding


def test_the_full_batch_has_every_target_once_and_is_the_same_for_every_seed():
    lengths = [103, 9, 5, 30, 1] * 40
    batches = language(lengths=lengths, batch_size="full")
    assert batches.num_batches > 2
    assert sorted(targets_of(a_pass(batches))) == every_target(documents_of(*lengths))
    for index in range(batches.num_batches):
        assert_same(batches.at(index), batches.at(index + 3 * batches.num_batches))
        assert_same(
            batches.at(index), language(lengths=lengths, batch_size="full", seed=5).at(index)
        )


@pytest.mark.parametrize("make", [classification_stream, language_stream])
def test_a_schedule_of_the_batch_size_is_followed_through_every_pass(make):
    batches = make()
    sizes = [1, 2, 4, 5, 6, 8, 9, 9, 9, 9, 9, 9, 9]  # 1 + 8 t / 6, rounded; half to even
    assert [len(batches.at(index)["tokens"]) for index in range(13)] == sizes
    assert batches.batch_size == 9
    stream, count = rows_of(batches, range(13)), batches.num_examples
    assert len(set(stream[:count])) == count  # a whole pass before anything comes again
    again = stream[count : 2 * count]
    assert len(set(again)) == len(again) and stream[: len(again)] != again
    before_a_pass = np.cumsum([0, *sizes])
    assert before_a_pass[batches.num_batches - 1] < count <= before_a_pass[batches.num_batches]


def test_the_examples_of_a_stream_are_complete_in_every_pass():
    batches = classification_stream(count=23)
    stream = rows_of(batches, range(40))
    for start in range(0, len(stream) - 23, 23):
        assert sorted(stream[start : start + 23]) == list(range(1, 24))
    language_batches = language_stream()
    targets = targets_of([language_batches.at(index) for index in range(40)])
    wanted = every_target(documents_of(103, 9, 5, 30))
    for start in range(0, len(targets) - len(wanted), len(wanted)):
        assert sorted(targets[start : start + len(wanted)]) == wanted


def test_a_pass_may_take_longer_than_the_schedule_and_a_batch_is_at_most_a_pass():
    batches = classification(count=23, batch_size="linear(1, 3)", num_updates=2)
    assert batches.num_batches == 9  # 1 + 2 + 7 times 3 = 24
    assert len(set(rows_of(batches, range(9)))) == 23
    large = classification(count=23, batch_size="constant(50)", num_updates=2)
    assert (large.num_batches, large.batch_size) == (1, 23)
    assert sorted(rows_of(large, [7])) == list(range(1, 24))


def test_schedules_are_read_at_the_update_not_at_the_micro_batch():
    batches = classification_stream(batches_per_update=3, max_tokens="linear(1, 4, steps=3)")
    sizes = [len(batches.at(index)["tokens"]) for index in range(9)]
    assert sizes == [1, 1, 1, 2, 2, 2, 4, 4, 4]
    longest = [batches.at(index)["tokens"].shape[1] for index in range(6, 18)]
    assert max(longest[:3]) == 3 and max(longest[3:]) == 4
    full = classification(
        count=600, batch_size="full", max_tokens="linear(1, 5, steps=4)", num_updates=4
    )
    longest = [full.at(index)["tokens"].shape[1] for index in range(15)]
    assert [max(longest[i : i + 3]) for i in range(0, 15, 3)] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("make", [classification, language])
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": "linear(1, 9)"}, "batch_size is a schedule, .* needs num_updates"),
        ({"max_tokens": "linear(1, 9)"}, "max_tokens is a schedule, .* needs num_updates"),
        ({"batch_size": "liner(1, 9)", "num_updates": 5}, "batch_size must .* mean linear?"),
        ({"max_tokens": "linear(a)", "num_updates": 5}, "max_tokens: start of linear must be"),
        ({"sampling": "random"}, "sampling must be shuffled or poisson. Received: 'random'"),
        ({"sampling": "poisson", "batch_size": "full"}, "a number with sampling=poisson"),
    ],
)
def test_settings_that_cannot_be_followed_are_refused(make, settings, message):
    with pytest.raises(ValueError, match=message):
        make(**settings)


# Lengths ------------------------------------------------------------------------------------------


def test_texts_are_cut_to_the_tokens_of_the_update():
    whole = classification(count=40, batch_size=5)
    batches = classification(
        count=40, batch_size=5, max_tokens="linear(2, 12, steps=5)", num_updates=20
    )
    for index in range(20):
        limit = min(2 + 2 * index, 12)
        expected = whole.at(index)
        np.testing.assert_array_equal(batches.at(index)["label"], expected["label"])
        np.testing.assert_array_equal(batches.at(index)["tokens"], expected["tokens"][:, :limit])
    for index in range(16):
        fixed = classification(count=40, batch_size=5, max_tokens=3).at(index)["tokens"]
        np.testing.assert_array_equal(fixed, whole.at(index)["tokens"][:, :3])


def test_windows_of_a_language_model_grow_inside_the_pieces_of_a_run_without_them():
    whole, batches = language(), language_warmup()
    starts = set()
    for index in range(3 * whole.num_batches):
        limit = min(2 + round(6 * index / 9), 8)
        batch, pieces = batches.at(index), whole.at(index)
        targets_of([batch])  # each follows its token
        lengths = (pieces["targets"] != 0).sum(axis=1)
        np.testing.assert_array_equal(
            (batch["targets"] != 0).sum(axis=1), np.minimum(lengths, limit)
        )
        inside = [
            set(row) <= {*piece, 0}
            for row, piece in zip(batch["targets"], pieces["targets"], strict=True)
        ]
        assert all(inside)
        starts |= set((batch["tokens"][:, 0] - pieces["tokens"][:, 0]).tolist())
        if index >= 9:
            assert_same(batch, pieces)
    assert {0, 1, 2, 3, 4} <= starts  # anywhere in the piece


def test_every_window_comes_with_time():
    batches = language(lengths=[20], num_tokens=19, batch_size=1, max_tokens=4)
    assert {int(batches.at(index)["tokens"][0, 0]) for index in range(200)} == set(range(1, 17))


def test_the_full_batch_of_a_language_model_is_not_cut():
    with pytest.raises(ValueError, match="max_tokens must be none with batch_size=full"):
        language(batch_size="full", max_tokens=4)


@pytest.mark.parametrize(
    ("batches", "longest"),
    [
        (classification(count=200), 12),
        (classification(count=200, max_tokens=7), 7),
        (classification(count=200, max_tokens="linear(1, 9)", num_updates=4), 9),
        (classification(count=200, max_tokens=50), 12),
        (language(), 8),
        (language(lengths=(5, 7)), 6),
        (language(max_tokens=3), 3),
        (mixture(), 12),
    ],
)
def test_the_longest_row_is_known_beforehand(batches, longest):
    assert batches.longest == longest
    found = {batches.at(index)["tokens"].shape[1] for index in range(60)}
    assert max(found) == longest


# Poisson sampling ---------------------------------------------------------------------------------


def test_each_text_is_drawn_by_itself_with_the_same_probability():
    batches = classification(count=20, batch_size=5, sampling="poisson")
    drawn = np.zeros((3000, 20))
    for index in range(3000):
        batch = batches.at(index)
        if batch["weight"].any():
            drawn[index, batch["tokens"][:, 0] - 1] = 1
    assert batches.plan.probability == 0.25
    assert (batches.num_batches, batches.batch_size) == (4, 5)
    np.testing.assert_allclose(drawn.mean(axis=0), 0.25, atol=0.04)  # five standard errors
    # Independence: the size is binomial, its variance n q (1 - q); not 0 as of a fixed size.
    assert drawn.sum(axis=1).var() == pytest.approx(20 * 0.25 * 0.75, rel=0.15)
    assert np.abs(np.corrcoef(drawn.T) - np.eye(20)).max() < 0.1


@pytest.mark.parametrize("make", [classification, language])
def test_an_empty_batch_is_a_row_of_padding_without_weight(make):
    batches = make(batch_size=1, sampling="poisson")
    found = [batches.at(index) for index in range(40)]
    empty = [batch for batch in found if not batch["weight"].all()]
    assert 0 < len(empty) < 40
    for batch in empty:
        assert {name: array.tolist() for name, array in batch.items()} == {
            name: [0.0] if array.ndim == 1 else [[0]] for name, array in batch.items()
        }
    for batch in found:
        assert batch["weight"].dtype == np.float32
        assert batch["weight"].shape == batch["tokens"].shape[:1]
        assert {name: array.ndim for name, array in batch.items()} == {
            name: array.ndim for name, array in empty[0].items()
        }


def test_all_are_drawn_when_the_batch_is_as_large_as_the_data():
    batches = language(batch_size=10_000, sampling="poisson")
    documents = documents_of(103, 9, 5, 30)
    for index in range(3):
        assert sorted(targets_of([batches.at(index)])) == every_target(documents)


# Mixtures -----------------------------------------------------------------------------------------


def test_a_mixture_goes_on_in_each_source_where_it_was():
    first, second = classification(), classification(count=11, batch_size=2, seed=9)
    mixed = MixedBatches(first, second, share="0.4", num_updates=50, seed=3)
    positions, chosen = [0, 0], []
    for index in range(200):  # beyond the schedule, too
        batch = mixed.at(index)
        which = int(len(batch["label"]) == 2)
        assert_same(batch, (first, second)[which].at(positions[which]))
        positions[which] += 1
        chosen.append(which)
    assert 50 < sum(chosen) < 110  # of 200 with 0.4: four standard errors
    again = MixedBatches(first, second, share="0.4", num_updates=50, seed=3)
    assert_same(again.at(199), mixed.at(199))
    assert_same(again.at(20), mixed.at(20))


def test_the_share_follows_its_schedule():
    def chosen(**settings):
        return [len(mixture(seed=1, **settings).at(index)["label"]) == 2 for index in range(30)]

    assert chosen(share="0") == [False] * 30
    assert chosen(share="1") == [True] * 30
    late = chosen(share="linear(0, 1, steps=1)", num_updates=5)
    assert late == [False] + [True] * 29
    by_update = chosen(share="linear(0, 1, steps=1)", num_updates=5, batches_per_update=4)
    assert by_update == [False] * 4 + [True] * 26


def test_a_mixture_needs_fitting_parts():
    assert mixture().num_batches == 4 + 5
    with pytest.raises(ValueError, match=r"mixture_share must stay from 0 to 1. .* from 0 to 2"):
        mixture(share="linear(0, 2)")
    with pytest.raises(ValueError, match="Received: tokens, label and tokens, targets"):
        MixedBatches(classification(), language(), share="0.5", num_updates=4, seed=0)
