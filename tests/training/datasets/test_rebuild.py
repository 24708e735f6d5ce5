"""Each maker on a small archive of the upstream's layout, and on the real rows turned back."""

import base64
import csv
import gzip
import hashlib
import io
import json
import tarfile
import zipfile

import pytest

from training.datasets import rebuild
from training.datasets.rebuild import MAKERS, urls_of
from training.datasets.sources import sources


def tar_of(path, files):
    with tarfile.open(path, "w:gz", compresslevel=1) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def rows_of(packed):
    return [json.loads(line) for line in gzip.decompress(packed).splitlines()]


def md5(text):
    return hashlib.md5(text.encode()).hexdigest()


def test_a_zip_member_is_found_below_any_folder(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("__MACOSX/data/._train.tsv", b"junk")
        archive.writestr("data/train.tsv", b"label\ttext_a\n")
    assert MAKERS["zip_member"]([path], {"member": "train.tsv"}, {}) == b"label\ttext_a\n"
    with pytest.raises(ValueError, match="dev.tsv"):
        MAKERS["zip_member"]([path], {"member": "dev.tsv"}, {})


def test_reviews_go_to_the_split_the_list_says(tmp_path, monkeypatch):
    listed = tmp_path / "validation.json"
    bits = {"neg": bytes([0b10]), "pos": bytes([0b01])}  # validation: neg 1, pos 0
    encoded = {k: base64.b64encode(v).decode() for k, v in bits.items()}
    listed.write_text(json.dumps(encoded))
    monkeypatch.setattr(rebuild, "IMDB_VALIDATION_FILE", listed)
    names = ["train/neg/0_3", "train/neg/1_1", "train/pos/0_9", "train/pos/1_10", "test/pos/0_7"]
    files = {f"aclImdb/{name}.txt": f"naïve {name}".encode() for name in names}
    files |= {"aclImdb/train/unsup/0_0.txt": b"no label", "aclImdb/README": b""}
    archive = tar_of(tmp_path / "a.tar.gz", files)
    made = {
        split: rows_of(MAKERS["imdb_reviews"]([archive], {"split": split}, {}))
        for split in ("train", "val", "test")
    }
    assert {row["id"] for row in made["train"]} == {"train/neg/0_3", "train/pos/1_10"}
    assert {row["id"] for row in made["val"]} == {"val/neg/1_1", "val/pos/0_9"}
    assert made["test"] == [
        {"id": "test/pos/0_7", "label": "pos", "rating": 7, "text": "naïve test/pos/0_7"}
    ]
    ids = [row["id"] for row in made["train"]]
    assert ids == sorted(ids, key=md5)


def test_posts_are_read_as_latin_1(tmp_path):
    archive = tar_of(
        tmp_path / "a.tar.gz",
        {
            "x/data/20ng/20news-bydate-train/rec.autos/1": "caf\xe9".encode("latin-1"),
            "x/data/20ng/20news-bydate-test/rec.autos/2": b"other split",
        },
    )
    assert rows_of(MAKERS["newsgroup_posts"]([archive], {"split": "train"}, {})) == [
        {"id": "train/rec.autos/1", "label": "rec.autos", "text": "café"}
    ]


def test_poems_keep_the_order_of_the_numbers(tmp_path):
    options = {"numbers": [0, 2000, 1000]}
    assert urls_of("u/{number}.json", options) == ["u/0.json", "u/1000.json", "u/2000.json"]
    paths = []
    for title in ("一", "二", "三"):
        path = tmp_path / f"{title}.json"
        path.write_text(
            json.dumps([{"author": "佚名", "paragraphs": ["。"], "title": title, "id": "x"}]),
            "utf-8",
        )
        paths.append(path)
    rows = rows_of(MAKERS["poems"](paths, options, {}))
    assert [(row["title"], row["src"]) for row in rows] == [
        ("一", "poet.tang.0.json"),
        ("二", "poet.tang.1000.json"),
        ("三", "poet.tang.2000.json"),
    ]
    assert list(rows[0]) == ["title", "author", "lines", "src"]


def test_the_sample_loses_the_rows_that_are_in_test(tmp_path):
    (tmp_path / "test.csv").write_text('"3","Oil up","Prices rise"\n', "utf-8")
    (tmp_path / "train.csv").write_text(
        'text,label\nOil up Prices rise,2\n"He said ""no"", twice",0\n', "utf-8"
    )
    made = MAKERS["ag_news_sample"](
        [tmp_path / "train.csv"], {"test": "test.csv"}, {"test.csv": tmp_path / "test.csv"}
    )
    assert made == b'"1","He said ""no"", twice"\n'


# The network is not needed to know that the makers give the pinned bytes: the stored rows hold all
# that upstream does, so they are turned back into its layout and made again.


def pinned(source, path):
    return next(file for file in sources()[source].files if file.path == path)


@pytest.mark.data
def test_real_reviews_come_out_byte_for_byte(data_folder, tmp_path):
    files = {}
    for split in ("train", "val"):
        for row in rows_of((data_folder / f"imdb/{split}.jsonl.gz").read_bytes()):
            _, label, name = row["id"].split("/")
            if split == "val" or len(files) < 1000:  # some that must stay out
                files[f"aclImdb/train/{label}/{name}.txt"] = row["text"].encode()
    archive = tar_of(tmp_path / "a.tar.gz", dict(sorted(files.items())))
    file = pinned("imdb", "imdb/val.jsonl.gz")
    made = MAKERS["imdb_reviews"]([archive], file.options, {})
    assert hashlib.sha256(gzip.decompress(made)).hexdigest() == file.content_sha256
    assert len(made) == file.num_bytes


@pytest.mark.data
def test_real_posts_come_out_byte_for_byte(data_folder, tmp_path):
    rows = rows_of((data_folder / "20newsgroups/test.jsonl.gz").read_bytes())
    files = {
        f"repository/data/20ng/20news-bydate-{row['id']}": row["text"].encode("latin-1")
        for row in rows
    }
    archive = tar_of(tmp_path / "a.tar.gz", dict(sorted(files.items())))
    file = pinned("20newsgroups", "20newsgroups/test.jsonl.gz")
    made = MAKERS["newsgroup_posts"]([archive], file.options, {})
    assert hashlib.sha256(gzip.decompress(made)).hexdigest() == file.content_sha256


@pytest.mark.data
def test_real_poems_come_out_byte_for_byte(data_folder, tmp_path):
    by_file = {}
    for row in rows_of((data_folder / "chinese_poetry/tang_shi.jsonl.gz").read_bytes()):
        poem = {"author": row["author"], "paragraphs": row["lines"], "title": row["title"]}
        by_file.setdefault(row["src"], []).append(poem)
    file = pinned("chinese_poetry", "chinese_poetry/tang_shi.jsonl.gz")
    paths = []
    for url in urls_of(file.url, file.options):
        paths.append(tmp_path / url.rsplit("/", 1)[-1])
        paths[-1].write_text(json.dumps(by_file.pop(paths[-1].name)), "utf-8")
    assert not by_file
    made = MAKERS["poems"](paths, file.options, {})
    assert hashlib.sha256(gzip.decompress(made)).hexdigest() == file.content_sha256


@pytest.mark.data
def test_the_real_sample_comes_out_byte_for_byte(data_folder, tmp_path):
    upstream = tmp_path / "train.csv"
    test_path = data_folder / "ag_news/test.csv"
    with (data_folder / "ag_news/train_subset.csv").open(encoding="utf-8", newline="") as file:
        rows = [[text, int(label) - 1] for label, text in csv.reader(file)]
    with test_path.open(encoding="utf-8", newline="") as file:
        rows.insert(7, [" ".join(next(csv.reader(file))[1:]), 2])  # the row that must go
    with upstream.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["text", "label"], *rows])
    entry = pinned("ag_news", "ag_news/train_subset.csv")
    made = MAKERS["ag_news_sample"]([upstream], entry.options, {"ag_news/test.csv": test_path})
    assert hashlib.sha256(made).hexdigest() == entry.sha256
