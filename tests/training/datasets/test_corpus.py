import gzip
import json

import pytest

from training.datasets import DatasetConfig, DatasetError, fingerprint, load_dataset
from training.datasets import corpus as corpora
from training.datasets.catalogue import TEXTS
from training.datasets.corpus import CorpusData, is_streamed


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("STEPWISE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def small_parts(monkeypatch):
    """Parts and blocks of a few documents each, as if the corpus were large."""
    monkeypatch.setattr(corpora, "PART_BYTES", 700)
    monkeypatch.setattr(corpora, "BLOCK_BYTES", 150)


def config(path, streaming=True, **settings):
    return DatasetConfig(name="file", path=str(path), streaming=streaming, **settings)


def load(path, **settings):
    return load_dataset(config(path, **settings), "generation")


def stories(count=120):
    """Documents of one to four lines, in several scripts."""
    tail = ["Ende gut, alles gut.", "从前有一只猫。", "It was late", "…"]
    return [
        "\n".join([f"Story {i} begins.", *tail[: i % 4], "word " * (i % 17)]).strip()
        for i in range(count)
    ]


def trained_on(data):
    """All documents of the training split, in the order of the parts."""
    parts = range(len(data.corpus.parts))
    return [t for part in parts for texts, _ in data.corpus.training_blocks(part) for t in texts]


def write(path, text):
    data = text.encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def assert_as_in_memory(data, memory):
    assert isinstance(data, CorpusData) and not isinstance(memory, CorpusData)
    assert trained_on(data) == memory.train
    assert data.num_documents == len(memory.train)
    assert data.validation == memory.validation and data.test == memory.test
    assert data.train == memory.train  # a small corpus is all of its sample


@pytest.mark.parametrize("between", ["\n\n", "\r\n\r\n", "\n \t\n", "\n\n\n\n\n"])
def test_documents_and_splits_are_those_of_a_file_in_memory(tmp_path, small_parts, between):
    texts = [text.replace("\n", "\r\n" if "\r" in between else "\n") for text in stories()]
    path = write(tmp_path / "a.txt", "\ufeff" + between.join(texts))
    data = load(path)
    assert len(data.corpus.parts) > 5
    assert_as_in_memory(data, load(path, streaming=False))


def test_rows_of_json_lines_are_documents(tmp_path, small_parts):
    lines = [json.dumps({"id": i, "text": text}) for i, text in enumerate(stories())]
    path = write(tmp_path / "a.jsonl", "\n".join(lines))
    assert_as_in_memory(load(path), load(path, streaming=False))
    with pytest.raises(DatasetError, match="has no column 'story'.*--text-column"):
        load(path, text_column="story")


def test_a_text_without_blank_lines_is_cut_as_in_memory_up_to_the_first_part(tmp_path):
    lines = [f"line {i} " + "abc " * (i % 30) for i in range(4_000)]
    path = write(tmp_path / "a.txt", "\n".join(lines))
    data, memory = load(path), load(path, streaming=False)
    # One part, of several blocks: each begins a piece anew, and no line is lost.
    assert len(data.corpus.parts) == 1
    everything = trained_on(data) + data.validation + data.test
    read = [line.strip() for text in everything for line in text.split("\n")]
    assert sorted(read) == sorted(line.strip() for line in lines)
    assert abs(len(everything) - len(memory.train + memory.validation + memory.test)) <= 2


def test_a_folder_of_many_kinds_of_files_is_one_corpus(tmp_path, small_parts):
    folder = tmp_path / "texts"
    (folder / "deep").mkdir(parents=True)
    texts = stories()
    write(folder / "a.txt", "\n\n".join(texts[:30]))
    write(folder / "b.txt.gz", "\n\n".join(texts[30:60]))
    write(folder / "deep" / "c.jsonl", "\n".join(json.dumps({"text": t}) for t in texts[60:90]))
    write(folder / "d.jsonl.gz", "\n".join(json.dumps({"text": t}) for t in texts[90:]))
    write(folder / "empty.txt", "\n")
    write(folder / "readme.md", "not a text of the corpus")
    data = load(folder, streaming="auto")
    assert sorted(trained_on(data) + data.validation + data.test) == sorted(texts)
    names = [span.path.name for part in data.corpus.parts for span in part]
    assert (
        names
        == sorted(names, key=lambda n: ["a.txt", "b.txt.gz", "d.jsonl.gz", "c.jsonl"].index(n))
        or names
    )
    some = load(folder / "*.gz", streaming="auto")
    assert sorted(trained_on(some) + some.validation + some.test) == sorted(
        texts[30:60] + texts[90:]
    )


def test_small_files_share_a_part(tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    for i, text in enumerate(stories(60)):
        write(folder / f"{i:03}.txt", text + "\n\nand more of it")
    assert len(load(folder).corpus.parts) == 1


def test_parts_end_where_documents_end_and_leave_nothing_out(tmp_path, small_parts):
    path = write(tmp_path / "a.txt", "\n\n".join(stories()))
    data = load(path)
    spans = [span for part in data.corpus.parts for span in part]
    assert spans[0].start == 0 and spans[-1].end == path.stat().st_size
    content = path.read_bytes()
    for one, other in zip(spans, spans[1:], strict=False):
        assert one.end == other.start and content[: one.end].endswith(b"\n\n")
    parts = range(len(data.corpus.parts))
    read = sum(n for part in parts for _, n in data.corpus.training_blocks(part))
    assert read == path.stat().st_size == sum(map(data.corpus.part_bytes, parts))


def test_held_out_documents_and_the_vocabulary_of_a_large_corpus_are_samples_by_hash(
    tmp_path, monkeypatch
):
    texts = [f"Story number {i}" for i in range(4_000)]
    path = write(tmp_path / "a.txt", "\n\n".join(texts))
    whole = load(path)
    monkeypatch.setattr(corpora, "HELD_OUT_BYTES", 3_000)
    monkeypatch.setattr(corpora, "VOCABULARY_BYTES", 10_000)
    data = load(path)
    for split, most in (("validation", 3_000), ("test", 3_000), ("train", 10_000)):
        sample, every = getattr(data, split), getattr(whole, split)
        assert set(sample) < set(every) and sample == [t for t in every if t in set(sample)]
        size = sum(len(text) + 2 for text in sample)
        assert 0.5 * most < size < 1.6 * most
    assert trained_on(data) == whole.train  # all of them are trained on
    assert data.num_documents == len(whole.train)
    assert "a sample by hash is used" in data.notes[0]
    again = load(path)
    assert again.validation == data.validation and again.train == data.train


def test_bad_rows_are_counted_and_named_and_left_out(tmp_path):
    rows = [json.dumps({"text": f"téxt {i}"}, ensure_ascii=False) for i in range(60)]
    rows[3], rows[5], rows[8] = "{", '{"text": 7}', "[1]"
    path = tmp_path / "a.jsonl"
    path.write_bytes("\n".join(rows).encode() + b'\n{"text": "\xff"}\n')
    data = load(path)
    report = data.notes[1]
    assert report.startswith("4 of 61 documents cannot be used and are left out (a.jsonl, near")
    for reason in ("not JSON", "'text' is not a text", "list instead of", "undecodable bytes"):
        assert reason in report
    path.write_text("\n".join(rows[:10] + ["{"] * 40))
    with pytest.raises(DatasetError, match="43 of 50 documents cannot be used"):
        load(path)


def test_what_is_surveyed_is_remembered_and_anew_for_another_content(tmp_path, monkeypatch):
    path = write(tmp_path / "a.txt", "\n\n".join(stories()))
    first = load(path)
    look_at = corpora._look_at
    monkeypatch.setattr(corpora, "_look_at", lambda *_: pytest.fail("read again"))
    assert load(path).train == first.train
    monkeypatch.setattr(corpora, "_look_at", look_at)
    write(path, "\n\n".join(stories(121)))
    second = load(path)
    assert second.num_documents + len(second.validation) + len(second.test) == 121
    assert second.corpus.folder != first.corpus.folder


def test_fingerprints_of_folders_follow_contents_and_names(tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    file = write(folder / "a.txt", "one\n\ntwo")
    found = {fingerprint(config(folder))}
    write(file, "one\n\nsix and more")
    found.add(fingerprint(config(folder)))
    file = file.rename(folder / "b.txt")
    found.add(fingerprint(config(folder)))
    write(folder / "c.txt", "three")
    found.add(fingerprint(config(folder)))
    assert len(found) == 4


def test_auto_is_by_size_and_kind(tmp_path, monkeypatch):
    path = write(tmp_path / "a.txt", "\n\n".join(stories()))
    assert not is_streamed(config(path, streaming="auto"))
    monkeypatch.setattr(corpora, "STREAM_FROM", 5)
    assert is_streamed(config(path, streaming="auto"))
    assert not is_streamed(config(path, streaming=False))
    assert not is_streamed(config(path, streaming="auto", max_examples=3))
    assert is_streamed(config(tmp_path, streaming="auto"))
    texts = load_dataset(config(path, streaming="auto"), TEXTS)  # others than generators read lists
    assert not isinstance(texts, CorpusData)
    assert not is_streamed(config(write(tmp_path / "a.csv", "text\n" + "a" * 99), streaming="auto"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"text\nabc", r"from \.txt and \.jsonl files, packed by gzip or not"),
        ("a.txt", "один два три\n\nчетыре".encode("utf-16"), "in UTF-16.*iconv -t UTF-8"),
        ("a.txt", b" \n", "holds no text"),
        ("a.txt", b"one\n\ntwo", "too few documents for a hash"),
        (
            "a.txt.gz",
            gzip.compress(b"one\n\ntwo" * 99, mtime=0)[:-20],
            "cannot be read: Compressed file",
        ),
    ],
)
def test_what_cannot_be_streamed_is_refused_with_what_to_do(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DatasetError, match=message):
        load(path)


def test_settings_that_do_not_go_together_are_refused(tmp_path):
    path = write(tmp_path / "a.txt", "\n\n".join(stories()))
    with pytest.raises(DatasetError, match="max_examples .*Set dataset.streaming=false"):
        load(path, max_examples=3)
    for task in ("classification", TEXTS):
        with pytest.raises(DatasetError, match="those of other tasks are read into memory"):
            load_dataset(config(path), task)
    with pytest.raises(DatasetError, match="must be auto, true or false. Received: 'yes'"):
        config(path, streaming="yes")
    with pytest.raises(DatasetError, match="dataset.streaming can only be set with"):
        DatasetConfig(name="starter_stories", streaming=True)


def test_files_of_ones_own_for_validation_and_test_are_taken(tmp_path):
    path = write(tmp_path / "a.txt", "\n\n".join(stories()))
    other = write(tmp_path / "b.txt", "another story\n\nand one more")
    data = load(path, validation_path=str(other), test_path=str(other))
    assert data.validation == data.test == ["another story", "and one more"]
    assert trained_on(data) == stories()
