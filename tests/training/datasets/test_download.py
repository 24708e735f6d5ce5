import hashlib
import logging
import socket

import pytest

from training.datasets.download import CHUNK_BYTES, DownloadError, download

BODY = bytes(range(256)) * 1000
SHA256 = hashlib.sha256(BODY).hexdigest()


@pytest.fixture
def target(tmp_path):
    return tmp_path / "folder" / "file.bin"


def is_clean(target):
    """Only the finished file is there."""
    return [path.name for path in target.parent.iterdir()] == [target.name]


def test_a_file_arrives_whole(server, target):
    server.files["/file"] = BODY
    download(f"{server.address}/file", target, sha256=SHA256)
    assert target.read_bytes() == BODY and is_clean(target)


def test_a_cut_connection_is_resumed_where_it_broke(server, target):
    server.files["/file"] = BODY
    server.cut_after = [100_000, 50_000]
    download(f"{server.address}/file", target, sha256=SHA256)
    assert target.read_bytes() == BODY and is_clean(target)
    first, *resumed = [wanted for _, wanted in server.requests]
    starts = [int(wanted.removeprefix("bytes=").removesuffix("-")) for wanted in resumed]
    assert first is None and len(starts) == 2
    assert 100_000 - CHUNK_BYTES < starts[0] <= 100_000
    assert starts[0] + 50_000 - CHUNK_BYTES < starts[1] <= starts[0] + 50_000


def test_the_part_of_an_earlier_run_is_continued(server, target):
    server.files["/file"] = BODY
    target.parent.mkdir()
    target.with_name("file.bin.part").write_bytes(BODY[:70_000])
    download(f"{server.address}/file", target, sha256=SHA256)
    assert target.read_bytes() == BODY and is_clean(target)
    assert server.requests == [("/file", "bytes=70000-")]


def test_a_server_that_ignores_ranges_does_not_get_its_file_doubled(server, target):
    server.files["/file"], server.ignores_range = BODY, True
    server.cut_after = [100_000]
    download(f"{server.address}/file", target, sha256=SHA256)
    assert target.read_bytes() == BODY and is_clean(target)


def test_a_part_that_is_already_whole_needs_no_byte_more(server, target):
    server.files["/file"] = BODY
    target.parent.mkdir()
    target.with_name("file.bin.part").write_bytes(BODY)
    download(f"{server.address}/file", target, sha256=SHA256)
    assert target.read_bytes() == BODY and is_clean(target)


def test_a_part_longer_than_the_file_is_thrown_away(server, target):
    server.files["/file"] = BODY
    target.parent.mkdir()
    target.with_name("file.bin.part").write_bytes(BODY + b"more")
    download(f"{server.address}/file", target, sha256=SHA256)
    assert target.read_bytes() == BODY


def test_a_part_of_another_version_is_fetched_again_from_the_beginning(server, target):
    server.files["/file"] = BODY
    target.parent.mkdir()
    target.with_name("file.bin.part").write_bytes(b"old" * 1000)
    download(f"{server.address}/file", target, sha256=SHA256)
    assert target.read_bytes() == BODY
    assert [wanted for _, wanted in server.requests] == ["bytes=3000-", None]


def test_wrong_content_is_removed_and_named_by_both_hashes(server, target):
    server.files["/file"] = b"a page that says sorry"
    with pytest.raises(DownloadError) as caught:
        download(f"{server.address}/file", target, sha256=SHA256)
    received = hashlib.sha256(b"a page that says sorry").hexdigest()
    assert received[:12] in str(caught.value) and SHA256[:12] in str(caught.value)
    assert not caught.value.is_offline
    assert list(target.parent.iterdir()) == []


def test_a_missing_file_fails_at_once(server, target):
    with pytest.raises(DownloadError, match="404"):
        download(f"{server.address}/nothing", target)
    assert len(server.requests) == 1


def test_a_busy_server_is_asked_again(server, target, caplog):
    server.files["/file"] = BODY
    server.statuses = [503, 429]
    with caplog.at_level(logging.WARNING):
        download(f"{server.address}/file", target, sha256=SHA256)
    assert target.read_bytes() == BODY
    assert "503" in caplog.text and "429" in caplog.text


def test_a_server_that_stays_broken_is_given_up(server, target):
    server.statuses = [500] * 10
    with pytest.raises(DownloadError, match="500.*after 4 attempts") as caught:
        download(f"{server.address}/file", target)
    assert len(server.requests) == 4 and not caught.value.is_offline


def test_attempts_count_from_the_last_byte_that_came(server, target):
    server.files["/file"] = BODY
    server.cut_after = [10_000] * 12
    download(f"{server.address}/file", target, sha256=SHA256, attempts=2)
    assert target.read_bytes() == BODY


def test_a_file_of_unknown_length_arrives_whole(server, target):
    server.files["/file"], server.says_length = BODY, False
    download(f"{server.address}/file", target, sha256=SHA256)
    assert target.read_bytes() == BODY


def test_no_connection_is_told_from_a_bad_answer(target):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    with pytest.raises(DownloadError, match="no connection") as caught:
        download(f"http://127.0.0.1:{port}/file", target)
    assert caught.value.is_offline


def test_a_silent_server_is_given_up(target):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(8)
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/file"
        with pytest.raises(DownloadError, match="stopped sending"):
            download(url, target, attempts=2, timeout_seconds=(1.0, 0.05))
