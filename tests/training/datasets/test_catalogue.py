"""Every data set of the table goes through the same tests; a new one is tested by being listed."""

import functools
from collections import Counter

import pytest

from training.datasets import DATASETS, DatasetConfig, DatasetError, fingerprint, load_dataset
from training.datasets.examples import ClassificationData, unseen_test_indices
from training.datasets.sources import sources

# train, validation, test. The hash splits are pinned too: a change would move texts between the
# parts of earlier runs and make their figures incomparable.
SIZES = {
    "starter_sentiment": (4375, 535, 530),
    "starter_topics": (1608, 192, 180),
    "starter_stories": (1014, 113, 122),
    "sst2": (6920, 872, 1821),
    "sst5": (8544, 1101, 2210),
    "imdb": (20000, 5000, 25000),
    "ag_news_sample": (4500, 499, 7600),
    "20newsgroups": (10115, 1199, 7532),
    "sms_spam": (4530, 525, 519),
    "chnsenticorp": (9600, 1200, 1200),
    "waimai_10k": (9639, 1110, 1238),
    "online_shopping_10_cats": (50150, 6330, 6293),
    "weibo2018": (8966, 1034, 500),
    "tnews": (48029, 5331, 10000),
    "thucnews": (45000, 10000, 10000),
    "tinyshakespeare": (1, 1, 1),
    "tang_poems": (40869, 5148, 5330),
}

# Examples per label, over the parts named by their first letters.
LABEL_COUNTS = {
    "starter_sentiment": ("trvate", {"negative": 2720, "positive": 2720}),
    "sst2": ("tr", {"negative": 3310, "positive": 3610}),
    "sst5": (
        "tr",
        {
            "very negative": 1092,
            "negative": 2218,
            "neutral": 1624,
            "positive": 2322,
            "very positive": 1288,
        },
    ),
    "imdb": ("te", {"negative": 12500, "positive": 12500}),
    "ag_news_sample": ("te", dict.fromkeys(("World", "Sports", "Business", "Sci/Tech"), 1900)),
    "sms_spam": ("trvate", {"ham": 4827, "spam": 747}),
    "chnsenticorp": ("te", {"negative": 592, "positive": 608}),
    "waimai_10k": ("trvate", {"negative": 7987, "positive": 4000}),
    "online_shopping_10_cats": ("trvate", {"negative": 31046, "positive": 31727}),
    "weibo2018": ("trva", {"negative": 4504, "positive": 5496}),
    "thucnews": ("te", 1000),
}
# Sets whose validation, or validation and test, come from the hash.
OWN_VALIDATION = {"ag_news_sample", "20newsgroups", "weibo2018", "tnews"}
OWN_SPLIT = {"starter_sentiment", "starter_topics", "starter_stories", "sms_spam"} | {
    "waimai_10k",
    "online_shopping_10_cats",
    "tang_poems",
}

EVERY_DATASET = [
    pytest.param(name, marks=[pytest.mark.data] if dataset.source else [])
    for name, dataset in DATASETS.items()
]


@functools.cache
def loaded(name):
    return load_dataset(DatasetConfig(name=name), DATASETS[name].task)


@pytest.fixture
def data(name, request):
    if DATASETS[name].source:
        request.getfixturevalue("data_folder")
    return loaded(name)


def texts_of(part):
    return part if isinstance(part, list) else part.texts


@pytest.mark.parametrize("name", EVERY_DATASET)
def test_every_dataset_is_what_its_line_in_the_table_says(name, data):
    dataset = DATASETS[name]
    assert dataset.name == name
    assert set(dataset.languages) <= {"en", "zh"} and dataset.languages
    parts = (data.train, data.validation, data.test)
    assert tuple(map(len, parts)) == SIZES[name]
    for part in parts:
        assert all(isinstance(text, str) and text.strip() for text in texts_of(part))
    if dataset.task == "classification":
        assert isinstance(data, ClassificationData)
        for part in parts:
            assert set(part.labels.tolist()) == set(range(len(data.label_names)))
    train, validation, test = (set(texts_of(part)) for part in parts)
    if name in OWN_VALIDATION | OWN_SPLIT:
        assert not train & validation
    if name in OWN_SPLIT:
        assert not test & (train | validation)
    if name != "tinyshakespeare":
        assert any(note.startswith("Repeats: ") for note in data.notes)
    unseen = unseen_test_indices(data)
    assert len(unseen) == sum(text not in train for text in texts_of(data.test))


@pytest.mark.parametrize(
    "name", [param for param in EVERY_DATASET if param.values[0] in LABEL_COUNTS]
)
def test_labels_are_counted_as_published(name, data):
    prefixes, expected = LABEL_COUNTS[name]
    counts = Counter()
    for prefix, part in (("tr", data.train), ("va", data.validation), ("te", data.test)):
        if prefix in prefixes:
            counts.update(data.label_names[i] for i in part.labels.tolist())
    if isinstance(expected, int):
        expected = dict.fromkeys(data.label_names, expected)
    assert counts == expected


@pytest.mark.data
@pytest.mark.parametrize("name", [name for name, dataset in DATASETS.items() if dataset.source])
def test_no_row_of_a_published_file_is_lost(name, data):
    rows = [
        file.num_rows
        for file in sources()[DATASETS[name].source].files
        if "label" not in file.path and "class" not in file.path
    ]
    if name == "tinyshakespeare":
        text = "".join(data.train + data.validation + data.test)
        assert (text.count("\n"), len(text)) == (rows[0], 1_115_394)
    elif name == "tang_poems":
        (note,) = [note for note in data.notes if note.startswith("Left out: ")]
        assert "4 poems without text and 6,256 with editorial brackets" in note
        assert sum(SIZES[name]) + 4 + 6256 == rows[0]
    else:
        num_empty = {"online_shopping_10_cats": 1}.get(name, 0)  # reviews without text
        assert sum(SIZES[name]) + num_empty == sum(rows)


@pytest.mark.parametrize("name", [pytest.param("imdb", marks=pytest.mark.data)])
def test_reviews_have_no_line_break_tags(name, data):
    assert not any("<br" in text for part in (data.train, data.test) for text in part.texts)


@pytest.mark.parametrize("name", [pytest.param("ag_news_sample", marks=pytest.mark.data)])
def test_news_have_no_leftovers_of_html(name, data):
    texts = data.train.texts + data.test.texts
    for leftover in ("#39;", "quot;", "&lt;", "\\", "<b>"):
        assert not [text for text in texts if leftover in text], leftover
    assert any("Haiti's" in text for text in texts)


@pytest.mark.parametrize("name", [pytest.param("tnews", marks=pytest.mark.data)])
def test_the_stand_in_for_a_test_without_labels_is_told(name, data):
    assert any("test is the official dev split" in note for note in data.notes)


@pytest.mark.parametrize("name", [pytest.param("chnsenticorp", marks=pytest.mark.data)])
def test_repeats_of_a_leaky_set_show_in_the_unseen_indices(name, data):
    assert len(unseen_test_indices(data)) == 1200 - 331


@pytest.mark.parametrize("name", [pytest.param("tang_poems", marks=pytest.mark.data)])
def test_a_poem_starts_with_its_title(name, data):
    poems = set(data.train + data.validation + data.test)
    wanted = "登鸛雀樓\n白日依山盡，黃河入海流。\n欲窮千里目，更上一層樓。"
    assert wanted in poems
    assert not any(mark in poem for poem in poems for mark in "（）[]□")


def test_an_unknown_name_lists_the_known_ones():
    for call in (lambda c: load_dataset(c, "classification"), fingerprint):
        with pytest.raises(DatasetError, match="'imbd'.*imdb.*tang_poems.*\"file\""):
            call(DatasetConfig(name="imbd"))


def test_a_set_of_the_other_task_lists_those_that_fit():
    with pytest.raises(DatasetError, match="starter_stories") as caught:
        load_dataset(DatasetConfig(name="starter_topics"), "generation")
    assert "sst2" not in str(caught.value)
    with pytest.raises(DatasetError, match="summarization"):
        load_dataset(DatasetConfig(name="starter_topics"), "summarization")


def test_max_examples_cuts_train_alone_and_not_by_position():
    full = loaded("starter_topics")
    config = DatasetConfig(name="starter_topics", max_examples=100)
    cut = load_dataset(config, "classification")
    assert len(cut.train) == 100 and len(cut.test) == len(full.test)
    label_of = dict(zip(full.train.texts, full.train.labels.tolist(), strict=True))
    assert [label_of[text] for text in cut.train.texts] == cut.train.labels.tolist()
    assert len(set(cut.train.labels.tolist())) == 6  # the file is sorted by language
    assert any(any("一" <= c <= "鿿" for c in text) for text in cut.train.texts)
    assert any("max_examples" in note for note in cut.notes)
    assert cut.train.texts == load_dataset(config, "classification").train.texts


def test_max_examples_tells_which_labels_it_lost():
    config = DatasetConfig(name="starter_topics", max_examples=2)
    data = load_dataset(config, "classification")
    assert "No example is left of: " in data.notes[-1]
    stories = load_dataset(DatasetConfig(name="starter_stories", max_examples=5), "generation")
    assert len(stories.train) == 5 and len(stories.test) == 122


def test_fingerprints_differ_by_content_and_not_by_name(tmp_path):
    assert len({fingerprint(DatasetConfig(name=name)) for name in DATASETS}) == len(DATASETS)
    first, second = tmp_path / "a.csv", tmp_path / "b.csv"
    first.write_text("text,label\nx,1\n")
    second.write_text("text,label\nx,1\n")

    def of(**paths):
        return fingerprint(DatasetConfig(name="file", **{k: str(v) for k, v in paths.items()}))

    before = of(path=first)
    assert before == of(path=second) != of(path=first, test_path=second)
    assert of(path=first, test_path=second) != of(path=first, validation_path=second)
    first.write_text("text,label\nx,2\n")
    assert of(path=first) != before
    with pytest.raises(DatasetError, match="gone.csv"):
        of(path=tmp_path / "gone.csv")
