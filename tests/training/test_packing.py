import numpy as np
import pytest

from training.packing import PackedBatches, ShardBatches, language_model_batches
from training.pipeline import LanguageModelBatches
from training.shards import make_shards

BEGIN, END = 2, 3
LENGTHS = [[30, 3, 9, 61], [2, 17, 5, 5, 40, 8], [25]]  # tokens of the documents of each shard


def documents():
    """For each shard its documents; ids all differ, so that each says where it stands."""
    given = iter(range(10, 10_000))
    return [
        [np.array([BEGIN, *(next(given) for _ in range(n - 2)), END], np.int32) for n in lengths]
        for lengths in LENGTHS
    ]


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    parts = documents()

    def encoded(part):
        for document in parts[part]:
            yield document, np.array([len(document)]), 1

    folder = tmp_path_factory.mktemp("shards")
    return make_shards(folder, [1] * len(parts), encoded, vocabulary_size=10_000)


def packed(shards, num_tokens=8, batch_size=3, seed=0, **settings):
    settings = {
        "end": END,
        "num_tokens": num_tokens,
        "batch_size": batch_size,
        "seed": seed,
    } | settings
    return PackedBatches(shards, **settings)


def streamed(shards, num_tokens=8, batch_size=3, seed=0, **settings):
    return ShardBatches(shards, num_tokens=num_tokens, batch_size=batch_size, seed=seed, **settings)


BOTH = pytest.mark.parametrize("make", [packed, streamed])


def pass_of(batches, epoch):
    first = epoch * batches.num_batches
    return [batches.at(index) for index in range(first, first + batches.num_batches)]


def targets_of(batches):
    found = np.concatenate([batch["targets"].ravel() for batch in batches])
    return found[found > 0]


def pairs_of(batches):
    """(token, its target) of every place that has a target."""
    return {
        (int(token), int(target))
        for batch in batches
        for token, target in zip(batch["tokens"].ravel(), batch["targets"].ravel(), strict=True)
        if target
    }


def true_pairs():
    flat = [document for part in documents() for document in part]
    return {(int(a), int(b)) for d in flat for a, b in zip(d, d[1:], strict=False)}


@BOTH
def test_a_batch_depends_on_the_seed_and_the_index_alone(make, shards):
    one, other = make(shards), make(shards)
    for index in (5, 0, 41, 5, 17):
        for name, value in one.at(index).items():
            assert value.dtype == np.int32
            np.testing.assert_array_equal(value, other.at(index)[name])
    a, b = make(shards, seed=1), make(shards)
    assert any(not np.array_equal(a.at(i)["tokens"], b.at(i)["tokens"]) for i in range(4))


@BOTH
def test_targets_follow_their_tokens_and_never_cross_the_end_of_a_document(make, shards):
    batches = make(shards)
    for epoch in range(4):
        assert pairs_of(pass_of(batches, epoch)) <= true_pairs()
    everything = [batch for epoch in range(12) for batch in pass_of(batches, epoch)]
    assert pairs_of(everything) == true_pairs()  # beginnings, ends and middles alike


def test_a_pass_over_documents_has_every_target_once(shards):
    batches = streamed(shards, batch_size=1)
    expected = sorted(t for part in documents() for d in part for t in d[1:])
    for epoch in range(3):
        assert sorted(targets_of(pass_of(batches, epoch))) == expected


def test_a_row_of_documents_is_of_one_document_and_not_longer_than_told(shards):
    batches = streamed(shards, batch_size=1)
    rows = [batch for epoch in range(3) for batch in pass_of(batches, epoch)]
    assert max(batch["tokens"].shape[1] for batch in rows) == batches.longest == 8
    for batch in rows:
        tokens = batch["tokens"][0]
        assert END not in tokens and BEGIN not in tokens[1:]
    firsts = [{int(b["tokens"][0, 0]) for b in pass_of(batches, epoch)} for epoch in range(2)]
    assert firsts[0] != firsts[1]  # long documents are cut elsewhere in every pass


def test_a_pass_of_packed_rows_uses_every_token_at_most_once_and_hardly_leaves_any(shards):
    batches = packed(shards, batch_size=1)
    assert batches.num_batches == sum(sum(lengths) // 8 for lengths in LENGTHS)
    left_out = []
    for epoch in range(6):
        rows = pass_of(batches, epoch)
        tokens = np.concatenate([batch["tokens"].ravel() for batch in rows])
        own = tokens[tokens > END]
        assert len(np.unique(own)) == len(own)
        assert all(batch["tokens"].shape == (1, 8) and np.all(batch["tokens"]) for batch in rows)
        every = {int(t) for part in documents() for d in part for t in d[1:-1]}
        left_out.append(every - set(own.tolist()))
        assert len(left_out[-1]) <= 3 * 7  # less than a row of each shard
    assert not set.intersection(*left_out)  # elsewhere in every pass


def test_documents_share_packed_rows_with_no_target_behind_an_end(shards):
    rows = [batch for epoch in range(4) for batch in pass_of(packed(shards), epoch)]
    tokens = np.concatenate([batch["tokens"] for batch in rows])
    targets = np.concatenate([batch["targets"] for batch in rows])
    inside = (tokens == END)[:, :-1] & (tokens == BEGIN)[:, 1:]
    assert inside.any()
    np.testing.assert_array_equal(targets == 0, tokens == END)


def test_documents_in_memory_are_packed_in_the_same_way():
    flat = [document for part in documents() for document in part]
    batches = language_model_batches(
        flat, num_tokens=8, packing="packed", end=END, batch_size=2, seed=3
    )
    assert isinstance(batches, PackedBatches)
    everything = [batch for epoch in range(12) for batch in pass_of(batches, epoch)]
    assert pairs_of(everything) == true_pairs()
    plain = language_model_batches(flat, num_tokens=8, end=END, batch_size=2, seed=3)
    assert isinstance(plain, LanguageModelBatches)


@BOTH
def test_schedules_of_the_batch_size_read_one_stream(make, shards):
    batches = make(shards, batch_size="linear(1, 6, steps=6)", num_updates=60)
    sizes = [len(batches.at(index)["tokens"]) for index in range(10)]
    assert sizes == [1, 2, 3, 4, 4, 5, 6, 6, 6, 6] or sizes == sorted(sizes)
    assert sizes[0] == 1 and sizes[-1] == 6 == batches.batch_size
    rows, index = [], 0
    while len(rows) < batches.num_examples:
        rows += [row.tolist() for row in batches.at(index)["targets"]]
        index += 1
    rows = [[t for t in row if t] for row in rows[: batches.num_examples]]
    found = [t for row in rows for t in row if t > END]
    assert len(set(found)) == len(found)  # a pass has everything once, across batches


@BOTH
def test_warm_up_of_the_length_reads_a_window_of_the_same_rows(make, shards):
    short, whole = make(shards, max_tokens=3), make(shards)
    assert short.longest == 3
    for index in range(6):
        windows, rows = short.at(index), whole.at(index)
        assert windows["tokens"].shape[1] <= 3
        for window, row in zip(windows["tokens"], rows["tokens"], strict=True):
            assert set(window[window > END]) <= set(row)


@BOTH
def test_what_needs_a_list_of_all_rows_is_refused_with_what_to_set(make, shards):
    for settings in ({"batch_size": "full"}, {"sampling": "poisson"}):
        with pytest.raises(ValueError, match="Set packing=documents and dataset.streaming=false"):
            make(shards, **settings)


def test_too_little_to_fill_a_row_is_refused(shards):
    with pytest.raises(ValueError, match=r"rows of 500 tokens, .* has 205\. Set packing=documents"):
        packed(shards, num_tokens=500)


def test_like_lengths_share_a_batch_of_documents(shards):
    rows = [batch for epoch in range(3) for batch in pass_of(streamed(shards, batch_size=4), epoch)]
    padding = np.mean([np.mean(batch["tokens"] == 0) for batch in rows])
    assert padding < 0.25


def test_pages_are_given_back_from_time_to_time(shards, monkeypatch):
    batches, calls = packed(shards), []
    monkeypatch.setattr(shards, "release", lambda: calls.append(1))
    for index in range(600):
        batches.at(index)
    assert len(calls) >= 2
