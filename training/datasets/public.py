"""The public data sets: one loader each, on the official split where there is one.

Every loader reads the files that `sources.locate` finds or fetches. A set without an official
validation part takes it from train by hash; without any split, both come from the hash.
"""

import csv
import gzip
import html
import io
import json
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TextIO

import numpy as np

from training.datasets.config import DatasetConfig, DatasetError
from training.datasets.examples import (
    TEST,
    TRAIN,
    VALIDATION,
    ClassificationData,
    LabelledTexts,
    TextData,
    classification_data,
    split_by_hash,
    text_data,
)
from training.datasets.sources import locate

SENTIMENTS = ("negative", "positive")
NEGATIVE_POSITIVE = {"0": 0, "1": 1}

# (line number, text, label as the file writes it); a parser raises ValueError on a foreign line
Row = tuple[int, str, str]


# English


def load_sst2(config: DatasetConfig) -> ClassificationData:
    """SST-2, whole sentences (Socher et al., 2013); official split."""
    files, notes = locate("sst2")
    read = _lines(_text_tab_label)
    return _official(
        SENTIMENTS,
        _labelled(files["sst2/train.tsv"], read, NEGATIVE_POSITIVE, notes),
        _labelled(files["sst2/dev.tsv"], read, NEGATIVE_POSITIVE, notes),
        _labelled(files["sst2/test.tsv"], read, NEGATIVE_POSITIVE, notes),
        notes,
    )


def load_sst5(config: DatasetConfig) -> ClassificationData:
    """SST-5, whole sentences (Socher et al., 2013); official split."""
    files, notes = locate("sst5")
    names = ("very negative", "negative", "neutral", "positive", "very positive")
    labels = {str(i): i for i in range(len(names))}
    read = _lines(_label_space_text)
    return _official(
        names,
        _labelled(files["sst5/stsa.fine.train"], read, labels, notes),
        _labelled(files["sst5/stsa.fine.dev"], read, labels, notes),
        _labelled(files["sst5/stsa.fine.test"], read, labels, notes),
        notes,
    )


def load_imdb(config: DatasetConfig) -> ClassificationData:
    """Film reviews (Maas et al., 2011); official test, 20,000 + 5,000 of the official training set.

    `<br />` becomes a space; other HTML stays.
    """
    files, notes = locate("imdb")
    labels = {"neg": 0, "pos": 1}
    read = _json_lines(clean=_without_line_break_tags)
    return _official(
        SENTIMENTS,
        _labelled(files["imdb/train.jsonl.gz"], read, labels, notes),
        _labelled(files["imdb/val.jsonl.gz"], read, labels, notes),
        _labelled(files["imdb/test.jsonl.gz"], read, labels, notes),
        notes,
    )


def load_ag_news_sample(config: DatasetConfig) -> ClassificationData:
    """AG News (Zhang et al., 2015): 4,999 of the 120,000 training rows, the official test.

    Text = title + space + description, without the leftovers of HTML. Validation from train.
    """
    files, notes = locate("ag_news")
    names = ("World", "Sports", "Business", "Sci/Tech")
    labels = {str(i + 1): i for i in range(len(names))}
    return _official(
        names,
        _labelled(files["ag_news/train_subset.csv"], _ag_news_rows, labels, notes),
        None,
        _labelled(files["ag_news/test.csv"], _ag_news_rows, labels, notes),
        notes,
    )


def load_20newsgroups(config: DatasetConfig) -> ClassificationData:
    """20 Newsgroups by date; whole posts with headers, which give the topic away."""
    files, notes = locate("20newsgroups")
    path = files["20newsgroups/train.jsonl.gz"]
    names = sorted({label for _, _, label in _json_lines()(path)})
    labels = {name: i for i, name in enumerate(names)}
    return _official(
        names,
        _labelled(path, _json_lines(), labels, notes),
        None,
        _labelled(files["20newsgroups/test.jsonl.gz"], _json_lines(), labels, notes),
        notes,
    )


def load_sms_spam(config: DatasetConfig) -> ClassificationData:
    """SMS Spam Collection (Almeida et al., 2011); hash split."""
    files, notes = locate("sms_spam")
    path = files["sms_spam/SMSSpamCollection"]
    labels = {"ham": 0, "spam": 1}
    return _by_hash(tuple(labels), _labelled(path, _lines(_label_tab_text), labels, notes), notes)


def load_tinyshakespeare(config: DatasetConfig) -> TextData:
    """Tiny Shakespeare, one document per split, cut by position as everybody does.

    Test = the last 10 % of the characters (what nanoGPT calls validation), validation = the last
    tenth of the first 90 %, train = the rest.
    """
    files, notes = locate("tinyshakespeare")
    text = files["tinyshakespeare/input.txt"].read_text(encoding="utf-8")
    test_start = int(len(text) * 0.9)
    validation_start = int(test_start * 0.9)
    notes.append(
        f"{len(text):,} characters, cut by position: train up to {validation_start:,}, "
        f"validation up to {test_start:,}, then test."
    )
    return TextData(
        [text[:validation_start]],
        [text[validation_start:test_start]],
        [text[test_start:]],
        tuple(notes),
    )


# Chinese


def load_chnsenticorp(config: DatasetConfig) -> ClassificationData:
    """ChnSentiCorp, the 9,600 / 1,200 / 1,200 split of the BERT papers."""
    files, notes = locate("chnsenticorp")
    read = _lines(_label_tab_text, header="label\ttext_a")
    return _official(
        SENTIMENTS,
        _labelled(files["chnsenticorp/train.tsv"], read, NEGATIVE_POSITIVE, notes),
        _labelled(files["chnsenticorp/dev.tsv"], read, NEGATIVE_POSITIVE, notes),
        _labelled(files["chnsenticorp/test.tsv"], read, NEGATIVE_POSITIVE, notes),
        notes,
    )


def load_waimai_10k(config: DatasetConfig) -> ClassificationData:
    """Reviews of food deliveries; hash split."""
    files, notes = locate("waimai_10k")
    path = files["waimai_10k/waimai_10k.csv"]
    everything = _labelled(path, _label_review_rows, NEGATIVE_POSITIVE, notes)
    return _by_hash(SENTIMENTS, everything, notes)


def load_online_shopping_10_cats(config: DatasetConfig) -> ClassificationData:
    """Reviews of ten kinds of goods, negative or positive; hash split."""
    files, notes = locate("online_shopping_10_cats")
    path = files["online_shopping_10_cats/online_shopping_10_cats.zip"]
    everything = _labelled(path, _category_label_review_rows, NEGATIVE_POSITIVE, notes)
    return _by_hash(SENTIMENTS, everything, notes)


def load_weibo2018(config: DatasetConfig) -> ClassificationData:
    """Weibo posts; official test, validation from train."""
    files, notes = locate("weibo2018")
    read = _lines(_id_comma_label_comma_text)
    return _official(
        SENTIMENTS,
        _labelled(files["weibo2018/train.txt"], read, NEGATIVE_POSITIVE, notes),
        None,
        _labelled(files["weibo2018/test.txt"], read, NEGATIVE_POSITIVE, notes),
        notes,
    )


def load_tnews(config: DatasetConfig) -> ClassificationData:
    """TNEWS of CLUE, 15 classes. The public test has no labels: test = the labelled dev split."""
    files, notes = locate("tnews")
    names = files["tnews/labels.txt"].read_text(encoding="utf-8").split()
    labels = {name: i for i, name in enumerate(names)}
    read = _lines(_text_tab_label)
    notes.append("The public test of TNEWS has no labels, so test is the official dev split.")
    return _official(
        names,
        _labelled(files["tnews/train.tsv"], read, labels, notes),
        None,
        _labelled(files["tnews/dev.tsv"], read, labels, notes),
        notes,
    )


def load_thucnews(config: DatasetConfig) -> ClassificationData:
    """THUCNews headlines, 10 classes: official dev and test, 45,000 of 180,000 training rows."""
    files, notes = locate("thucnews")
    names = files["thucnews/class.txt"].read_text(encoding="utf-8").split()
    labels = {str(i): i for i in range(len(names))}
    read = _lines(_text_tab_label)
    return _official(
        names,
        _labelled(files["thucnews/train_subset.txt"], read, labels, notes),
        _labelled(files["thucnews/dev.txt"], read, labels, notes),
        _labelled(files["thucnews/test.txt"], read, labels, notes),
        notes,
    )


# Brackets hold variants and sources of the edition, the other marks stand for lost characters.
EDITORIAL_MARK = re.compile(r"[（）()\[\]［］〔〕【】〖〗{}□○●]")


def load_tang_poems(config: DatasetConfig) -> TextData:
    """Poems of the Tang in Traditional Chinese: title, then a line per verse; hash split.

    The title comes first so that a title can be the prompt. Poems without text, and poems whose
    title or verses carry the editor's brackets or marks for lost characters, are left out.
    """
    files, notes = locate("chinese_poetry")
    poems, num_empty, num_edited = [], 0, 0
    for _, poem in _json_objects(files["chinese_poetry/tang_shi.jsonl.gz"]):
        title = poem["title"].strip()
        verses = [line.strip() for line in poem["lines"] if line.strip()]
        if not verses:
            num_empty += 1
        elif EDITORIAL_MARK.search(title + "".join(verses)):
            num_edited += 1
        else:
            poems.append("\n".join([title, *verses] if title else verses))
    notes.append(
        f"Left out: {num_empty:,} poems without text and {num_edited:,} with editorial brackets or "
        f"marks for lost characters; {len(poems):,} stay, split by a hash of the text."
    )
    sides = split_by_hash(poems)
    train, validation, test = (
        [poems[i] for i in sides[side]] for side in (TRAIN, VALIDATION, TEST)
    )
    return text_data(train, validation, test, notes)


# Splits


def _official(
    label_names: Sequence[str],
    train: LabelledTexts,
    validation: LabelledTexts | None,
    test: LabelledTexts,
    notes: list[str],
) -> ClassificationData:
    """The official parts; a validation part that does not exist is taken from train by hash."""
    if validation is None:
        sides = split_by_hash(train.texts, held_out=(VALIDATION,))
        notes.append(
            f"No official validation part: {len(sides[VALIDATION]):,} of {len(train):,} training "
            "rows, by a hash of the text."
        )
        train, validation = train.take(sides[TRAIN]), train.take(sides[VALIDATION])
    return classification_data(label_names, train, validation, test, notes)


def _by_hash(
    label_names: Sequence[str], everything: LabelledTexts, notes: list[str]
) -> ClassificationData:
    notes.append("No official split: by a hash of the text.")
    sides = split_by_hash(everything.texts)
    return classification_data(
        label_names,
        everything.take(sides[TRAIN]),
        everything.take(sides[VALIDATION]),
        everything.take(sides[TEST]),
        notes,
    )


# Files


def _labelled(
    path: Path, read: Callable[[Path], Iterable[Row]], labels: Mapping[str, int], notes: list[str]
) -> LabelledTexts:
    """What `read` finds in `path`. Raises `DatasetError` with the line that does not fit."""
    texts, indices, num_empty = [], [], 0
    for number, text, label in read(path):
        if label not in labels:
            raise DatasetError(
                f"{path}, line {number}: expected a label out of {', '.join(labels)}. "
                f"Received: {label[:40]!r}"
            )
        if not text.strip():
            num_empty += 1
            continue
        texts.append(text)
        indices.append(labels[label])
    if num_empty:
        notes.append(f"{path.name}: {num_empty:,} rows without text left out.")
    return LabelledTexts(texts, np.array(indices, np.int32))


def _lines(
    parse: Callable[[str], tuple[str, str]], header: str | None = None
) -> Callable[[Path], Iterator[Row]]:
    """A reader of one example per line; `parse` gives (text, label)."""

    def read(path: Path) -> Iterator[Row]:
        # Not splitlines(): headlines hold U+2028 and its like. Not strip(): a text may end in them.
        lines = path.read_text(encoding="utf-8-sig").split("\n")
        for number, line in enumerate(lines, start=1):
            line = line.removesuffix("\r")
            if not line or (number == 1 and line == header):
                continue
            try:
                text, label = parse(line)
            except ValueError as error:
                raise DatasetError(
                    f"{path}, line {number}: {error}. Received: {line[:60]!r}"
                ) from error
            yield number, text, label

    return read


def _json_lines(clean: Callable[[str], str] = str) -> Callable[[Path], Iterator[Row]]:
    """A reader of gzipped JSON lines with "text" and "label"."""

    def read(path: Path) -> Iterator[Row]:
        for number, row in _json_objects(path):
            yield number, clean(row["text"]), row["label"]

    return read


def _json_objects(path: Path) -> Iterator[tuple[int, dict]]:
    try:
        with gzip.open(path, "rt", encoding="utf-8", newline="\n") as file:
            for number, line in enumerate(file, start=1):
                yield number, json.loads(line)
    except (OSError, EOFError, ValueError) as error:
        raise DatasetError(f"{path} is not JSON lines in gzip: {error}") from error


def _ag_news_rows(path: Path) -> Iterator[Row]:
    for number, (label, *parts) in _csv_rows(path):
        yield number, _without_html_leftovers(" ".join(parts)), label


def _label_review_rows(path: Path) -> Iterator[Row]:
    for number, row in _csv_rows(path):
        if row == ["label", "review"]:
            continue
        if len(row) != 2:
            raise DatasetError(f"{path}, line {number}: expected 2 fields. Received: {len(row)}")
        yield number, row[1], row[0]


def _category_label_review_rows(path: Path) -> Iterator[Row]:
    try:
        with zipfile.ZipFile(path) as archive, archive.open(f"{path.stem}.csv") as file:
            rows = list(_rows_of(io.TextIOWrapper(file, encoding="utf-8-sig", newline="")))
    except (zipfile.BadZipFile, KeyError) as error:
        raise DatasetError(f"{path} does not hold {path.stem}.csv in a zip: {error}") from error
    for number, row in rows:
        if row == ["cat", "label", "review"]:
            continue
        if len(row) != 3:
            raise DatasetError(f"{path}, line {number}: expected 3 fields. Received: {len(row)}")
        yield number, row[2], row[1]


def _csv_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        yield from _rows_of(file)


def _rows_of(file: TextIO) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(file)
    for row in reader:
        if row:
            yield reader.line_num, row


def _text_tab_label(line: str) -> tuple[str, str]:
    text, tab, label = line.rpartition("\t")
    if not tab:
        raise ValueError("expected a text, a tab and a label")
    return text, label


def _label_tab_text(line: str) -> tuple[str, str]:
    label, tab, text = line.partition("\t")
    if not tab:
        raise ValueError("expected a label, a tab and a text")
    return text, label


def _label_space_text(line: str) -> tuple[str, str]:
    label, space, text = line.partition(" ")
    if not space:
        raise ValueError("expected a label, a space and a text")
    return text, label


def _id_comma_label_comma_text(line: str) -> tuple[str, str]:
    fields = line.split(",", 2)  # the text has commas of its own and no quotes
    if len(fields) != 3:
        raise ValueError("expected an id, a label and a text with commas between")
    return fields[2], fields[1]


# Texts


def _without_line_break_tags(text: str) -> str:
    # An optional space in front of the pattern would make it ten times slower.
    return re.sub(r"(?:<br\s*/?>\s*)+", " ", text.replace(" <br", "<br"))


def _without_html_leftovers(text: str) -> str:
    """Entities that lost their "&" become characters, tags and line breaks (a backslash) spaces."""
    text = re.sub(r" ?#(\d+);", r"&#\1;", text)
    text = re.sub(r"(?<!&)\b(quot|amp|lt|gt|nbsp);", r"&\1;", text)
    text = re.sub(r"</?\w+[^<>]*>", " ", html.unescape(html.unescape(text)))
    return re.sub(r"[\s\\]+", " ", text).strip()
