import json
import os

import numpy as np
import pytest

from training.shards import make_shards, open_shards


def part(number):
    """Three documents of a part: ids that say where they are."""
    lengths = np.array([4, 2, 3 + number])
    return 100 * number + np.arange(lengths.sum()), lengths


class Encoder:
    """Gives the parts, document by document, and counts which of them were asked for."""

    def __init__(self):
        self.asked = []

    def __call__(self, number):
        self.asked.append(number)
        ids, lengths = part(number)
        starts = np.cumsum([0, *lengths])
        for start, end in zip(starts, starts[1:], strict=False):
            yield ids[start:end].astype(np.int32), np.array([end - start]), 10


def make(folder, count=4, vocabulary_size=5_000, encoder=None, **settings):
    encoder = encoder or Encoder()
    shards = make_shards(
        folder, [30] * count, encoder, vocabulary_size=vocabulary_size, num_threads=2, **settings
    )
    return shards, sorted(encoder.asked)


def assert_whole(shards, count=4):
    assert shards.num_documents.tolist() == [3] * count
    for number in range(count):
        ids, lengths = part(number)
        np.testing.assert_array_equal(shards.tokens(number), ids)
        np.testing.assert_array_equal(shards.ends(number), np.cumsum(lengths))
        np.testing.assert_array_equal(shards.document(number, 1), ids[4:6])
        assert shards.longest[number] == lengths.max()


@pytest.mark.parametrize(("vocabulary_size", "dtype"), [(65_536, "uint16"), (65_537, "int32")])
def test_what_is_read_is_what_was_written(tmp_path, vocabulary_size, dtype):
    shards, asked = make(tmp_path, vocabulary_size=vocabulary_size)
    assert asked == [0, 1, 2, 3]
    assert_whole(shards)
    assert shards.tokens(0).dtype == dtype and not shards.tokens(0).flags.writeable
    shards.release()
    assert_whole(shards)  # what was given back is read again
    assert_whole(open_shards(tmp_path))


def test_what_is_whole_is_not_made_again(tmp_path):
    make(tmp_path)
    times = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    shards, asked = make(tmp_path)
    assert asked == []
    assert_whole(shards)
    assert {p.name: p.stat().st_mtime_ns for p in tmp_path.iterdir()} | {"lock": 0} == times | {
        "lock": 0
    }


def test_work_that_was_stopped_goes_on_after_the_parts_that_are_whole(tmp_path):
    class Killed(Encoder):
        def __call__(self, number):
            for i, block in enumerate(super().__call__(number)):
                if number == 2 and i == 1:
                    raise KeyboardInterrupt
                yield block

    with pytest.raises(KeyboardInterrupt):
        make_shards(tmp_path, [30] * 4, Killed(), vocabulary_size=99, num_threads=1)
    assert (tmp_path / "00002.tokens.part").stat().st_size > 0  # half of a part is left ...
    assert not (tmp_path / "00002.tokens").exists()
    with pytest.raises(FileNotFoundError):
        open_shards(tmp_path)
    shards, asked = make(tmp_path, vocabulary_size=99)
    assert asked == [2, 3]  # ... and never read
    assert_whole(shards)


def test_a_part_whose_last_file_was_not_written_is_not_there(tmp_path):
    make(tmp_path)
    (tmp_path / "00001.json").unlink()  # killed between renaming the files and this one
    shards, asked = make(tmp_path)
    assert asked == [1]
    assert_whole(shards)


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def flip(path):
    data = bytearray(path.read_bytes())
    data[3] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["00001.tokens", "00001.ends"])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut, "damaged: expected .* bytes, found"),
        (flip, "damaged: its sha256 is not that of what was written"),
        (os.unlink, "is missing"),
    ],
)
def test_a_damaged_shard_is_told_and_made_again(tmp_path, caplog, name, damage, message):
    make(tmp_path)
    damage(tmp_path / name)
    with pytest.raises(ValueError, match=f"{name} .*{message}.*Run the command"):
        open_shards(tmp_path)
    shards, asked = make(tmp_path)
    assert asked == [1]
    assert f"{name} is" in caplog.text and "it is made again" in caplog.text
    assert_whole(shards)


def test_a_change_that_left_no_trace_is_found_when_asked_to_look(tmp_path):
    make(tmp_path)
    path = tmp_path / "00002.tokens"
    stat = path.stat()
    flip(path)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert make(tmp_path)[1] == []
    shards, asked = make(tmp_path, verify=True)
    assert asked == [2]
    assert_whole(shards)


def test_a_file_that_was_only_touched_is_kept(tmp_path):
    make(tmp_path)
    os.utime(tmp_path / "00002.tokens", ns=(1, 1))
    assert make(tmp_path)[1] == []


def test_the_index_lists_every_shard_with_its_counts_and_sums(tmp_path):
    make(tmp_path)
    index = json.loads((tmp_path / "index.json").read_text())
    assert index["dtype"] == "<u2"
    assert [shard["name"] for shard in index["shards"]] == ["00000", "00001", "00002", "00003"]
    assert [shard["num_tokens"] for shard in index["shards"]] == [9, 10, 11, 12]
    sums = {shard["sha256"][ending] for shard in index["shards"] for ending in ("tokens", "ends")}
    assert len(sums) == 8 and all(len(digest) == 64 for digest in sums)


def test_an_error_in_one_part_stops_all_and_is_told(tmp_path):
    class Failing(Encoder):
        def __call__(self, number):
            yield from super().__call__(number)
            if number == 1:
                raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space left"):
        make(tmp_path, encoder=Failing())


def test_a_part_without_training_documents_is_an_empty_shard(tmp_path):
    def encoded(number):
        if number != 1:
            yield from Encoder()(number)

    shards = make_shards(tmp_path, [30] * 3, encoded, vocabulary_size=9_999)
    assert shards.num_tokens.tolist() == [9, 0, 11]
    assert len(shards.tokens(1)) == len(shards.ends(1)) == 0
    assert [list(p) for p in shards.number_of_pieces(100, lambda n: np.ones_like(n))] == [
        [1, 2, 3],
        [],
        [1, 2, 3],
    ]
