import gzip
import hashlib
import logging
import zipfile

import pytest

from training.datasets import DatasetConfig, DatasetError, fingerprint, load_dataset
from training.datasets import sources as sources_module
from training.datasets.sources import Source, SourceFile, locate, sources

SST2 = {"train": b"good\t1\nbad\t0\n", "dev": b"fine\t1\n", "test": b"awful\t0\nnice\t1\n"}


def entry(path, content, url, **settings):
    return SourceFile(
        path=path,
        num_rows=content.count(b"\n"),
        num_bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        url=url,
        **settings,
    )


@pytest.fixture
def small_sst2(server, cache, monkeypatch):
    """SST-2 in five lines on the small server."""
    files = tuple(
        entry(f"sst2/{name}.tsv", content, f"{server.address}/{name}.tsv")
        for name, content in SST2.items()
    )
    source = Source(homepage="https://example.org", licence="none stated", files=files)
    monkeypatch.setattr(sources_module, "sources", lambda: {"sst2": source})
    server.files |= {f"/{name}.tsv": content for name, content in SST2.items()}
    return source


def fill(folder, contents):
    (folder / "sst2").mkdir(parents=True)
    for name, content in contents.items():
        (folder / "sst2" / f"{name}.tsv").write_bytes(content)


def load():
    return load_dataset(DatasetConfig(name="sst2"), "classification")


def test_missing_files_are_fetched_once_and_their_licence_told(small_sst2, server, cache):
    data = load()
    assert (data.train.texts, data.test.texts) == (["good", "bad"], ["awful", "nice"])
    assert data.test.labels.tolist() == [0, 1]
    assert any("none stated" in note for note in data.notes)
    assert (cache / "sst2" / "train.tsv").read_bytes() == SST2["train"]
    assert len(server.requests) == 3
    load()
    assert len(server.requests) == 3


def test_a_damaged_file_in_the_cache_is_fetched_again(small_sst2, server, cache, caplog):
    fill(cache, SST2 | {"dev": b"fi"})
    with caplog.at_level(logging.WARNING):
        data = load()
    assert data.validation.texts == ["fine"]
    assert server.requests == [("/dev.tsv", None)]
    assert "dev.tsv is damaged" in caplog.text


def test_the_data_folder_comes_before_the_cache(small_sst2, server, cache, tmp_path, monkeypatch):
    fill(cache, SST2)
    fill(tmp_path / "own", SST2)
    monkeypatch.setenv("STEPWISE_DATA", str(tmp_path / "own"))
    files, notes = locate("sst2")
    assert all(path.is_relative_to(tmp_path / "own") for path in files.values())
    assert (notes, server.requests) == ([], [])


def test_a_changed_file_in_the_data_folder_is_used_and_told(small_sst2, tmp_path, monkeypatch):
    pinned = fingerprint(DatasetConfig(name="sst2"))
    fill(tmp_path / "own", SST2)
    monkeypatch.setenv("STEPWISE_DATA", str(tmp_path / "own"))
    assert fingerprint(DatasetConfig(name="sst2")) == pinned
    cleaned = b"very good\t1\nbad\t0\n"
    (tmp_path / "own" / "sst2" / "train.tsv").write_bytes(cleaned)
    data = load()
    assert data.train.texts == ["very good", "bad"]
    (note,) = [note for note in data.notes if "train.tsv" in note]
    assert hashlib.sha256(cleaned).hexdigest()[:12] in note
    assert hashlib.sha256(SST2["train"]).hexdigest()[:12] in note
    assert fingerprint(DatasetConfig(name="sst2")) != pinned


@pytest.mark.parametrize("line", [b"no tab here\n", b"good\t7\n"])
def test_a_changed_file_that_cannot_be_read_names_its_line(small_sst2, tmp_path, monkeypatch, line):
    fill(tmp_path / "own", SST2 | {"train": b"fine\t1\n" + line})
    monkeypatch.setenv("STEPWISE_DATA", str(tmp_path / "own"))
    with pytest.raises(DatasetError, match=r"train\.tsv, line 2"):
        load()


def test_without_file_and_network_one_sentence_names_both_ways_out(cache, monkeypatch):
    file = entry("sst2/train.tsv", SST2["train"], "http://127.0.0.1:9/train.tsv")
    source = Source(homepage="", licence="", files=(file,))
    monkeypatch.setattr(sources_module, "sources", lambda: {"sst2": source})
    with pytest.raises(DatasetError) as caught:
        load()
    message = str(caught.value)
    assert "STEPWISE_DATA to a folder that holds sst2/train.tsv" in message
    assert "connect to the internet and run again" in message
    assert "http://127.0.0.1:9/train.tsv" in message
    assert "\n" not in message and message.count(". ") == 0


def test_a_file_that_upstream_removed_is_no_question_of_connection(small_sst2, server):
    del server.files["/train.tsv"]
    with pytest.raises(DatasetError, match="404.*STEPWISE_DATA") as caught:
        load()
    assert "connect" not in str(caught.value)


def test_a_data_folder_that_is_none_is_an_error_and_no_download(small_sst2, server, monkeypatch):
    monkeypatch.setenv("STEPWISE_DATA", "/no/such/folder")
    with pytest.raises(DatasetError, match="STEPWISE_DATA.*/no/such/folder"):
        load()
    assert server.requests == []


@pytest.fixture
def zipped(server, cache, monkeypatch, tmp_path):
    """Two files made of one archive."""
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("one.txt", b"one")
        archive.writestr("two.txt", b"two")
    server.files["/a.zip"] = path.read_bytes()
    files = tuple(
        entry(
            f"set/{name}.txt",
            name.encode(),
            f"{server.address}/a.zip",
            made_by="zip_member",
            options={"member": f"{name}.txt"},
        )
        for name in ("one", "two")
    )
    source = Source(homepage="", licence="", files=files)
    monkeypatch.setattr(sources_module, "sources", lambda: {"set": source})
    return cache


def test_an_archive_is_fetched_once_for_all_its_files_and_then_removed(zipped, server):
    files, _ = locate("set")
    assert [path.read_bytes() for path in files.values()] == [b"one", b"two"]
    assert len(server.requests) == 1
    assert list((zipped / "upstream").iterdir()) == []


@pytest.mark.parametrize("broken", [b"PK\x03\x04 cut short", None])
def test_an_archive_that_gives_the_wrong_file_is_removed(zipped, server, tmp_path, broken):
    if broken is None:
        with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
            archive.writestr("one.txt", b"changed")
        broken = (tmp_path / "b.zip").read_bytes()
    server.files["/a.zip"] = broken
    with pytest.raises(DatasetError, match="set/one.txt.*downloads were removed"):
        locate("set")
    left = [path for path in zipped.rglob("*") if path.is_file()]
    assert left == []


def test_the_same_content_in_another_gzip_is_the_same_file(cache, monkeypatch):
    content = b'{"text": "x"}\n' * 50
    pinned = gzip.compress(content, 9, mtime=0)
    file = entry("set/a.jsonl.gz", pinned, "", content_sha256=hashlib.sha256(content).hexdigest())
    source = Source(homepage="", licence="", files=(file,))
    monkeypatch.setattr(sources_module, "sources", lambda: {"set": source})
    (cache / "set").mkdir(parents=True)
    (cache / "set" / "a.jsonl.gz").write_bytes(gzip.compress(content, 1))
    files, notes = locate("set")
    assert list(files) == ["set/a.jsonl.gz"] and notes == []


def test_every_listed_file_is_pinned_and_has_a_known_maker():
    for source in sources().values():
        assert source.licence and source.homepage.startswith("https://")
        for file in source.files:
            assert len(file.sha256) == 64 and file.num_bytes > 0 and file.num_rows > 0
            assert file.url.startswith("https://")
            assert file.made_by is None or file.made_by in sources_module.MAKERS
            assert (file.content_sha256 is not None) == file.path.endswith(".gz")


@pytest.mark.data
@pytest.mark.parametrize("name", list(sources()))
def test_the_listed_hashes_are_those_of_the_real_files(data_folder, name):
    files, notes = locate(name)
    assert notes == []  # a changed or missing file would leave a note
    assert set(files) == {file.path for file in sources()[name].files}
