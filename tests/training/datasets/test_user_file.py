import json
from collections import Counter

import numpy as np
import pytest

from training.datasets import (
    DatasetConfig,
    DatasetError,
    load_dataset,
    read_labelled,
    read_texts,
)


@pytest.fixture
def write(tmp_path):
    def write_file(name, content, encoding="utf-8"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode(encoding))
        return str(path)

    return write_file


def config(path, **settings):
    return DatasetConfig(name="file", path=path, **settings)


def classify(path, **settings):
    return load_dataset(config(path, **settings), "classification")


def generate(path, **settings):
    return load_dataset(config(path, **settings), "generation")


def rows(count, labels=("no", "yes"), separator=","):
    return "".join(f"text number {i}{separator}{labels[i % len(labels)]}\n" for i in range(count))


def everything(data):
    """(text, label name) of all parts."""
    return {
        (text, data.label_names[i])
        for part in (data.train, data.validation, data.test)
        for text, i in zip(part.texts, part.labels.tolist(), strict=True)
    }


def note_with(data_or_notes, words):
    notes = getattr(data_or_notes, "notes", data_or_notes)
    (found,) = [note for note in notes if words in note]
    return found


EXPECTED = {(f"text number {i}", ("no", "yes")[i % 2]) for i in range(100)}


# Formats


@pytest.mark.parametrize(
    ("name", "separator", "words"),
    [
        ("a.csv", ",", "commas"),
        ("a.csv", ";", "semicolons"),
        ("a.csv", "\t", "tabs"),
        ("a.tsv", "\t", "tabs"),
        ("A.TSV", ",", "commas"),
    ],
)
def test_the_separator_is_found_and_named(write, name, separator, words):
    data = classify(write(name, f"text{separator}label\n" + rows(100, separator=separator)))
    assert everything(data) == EXPECTED
    assert f"separated by {words}" in note_with(data, "100 rows")


def test_commas_in_texts_do_not_hide_a_semicolon(write):
    text = "review;stars\n" + "".join(f"good, cheap, number {i};{i % 2 + 1}\n" for i in range(60))
    data = classify(write("a.csv", text))
    assert data.label_names == ("1", "2") and len(everything(data)) == 60


def test_json_lines_and_parquet_read_like_csv(write, tmp_path):
    import pyarrow
    import pyarrow.parquet

    pairs = [(f"text number {i}", ("no", "yes")[i % 2]) for i in range(100)]
    lines = "\n\n".join(json.dumps({"label": label, "text": text}) for text, label in pairs)
    assert everything(classify(write("a.jsonl", lines))) == EXPECTED
    table = pyarrow.table({"text": [t for t, _ in pairs], "label": [y for _, y in pairs]})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    assert everything(classify(str(tmp_path / "a.parquet"))) == EXPECTED


@pytest.mark.parametrize(
    ("encoding", "name"),
    [
        ("utf-8-sig", "UTF-8 with a byte order mark"),
        ("gb18030", "GB18030"),
        ("utf-16", "UTF-16"),
    ],
)
def test_another_encoding_is_read_and_named(write, encoding, name):
    text = "文本,标签\n" + "".join(
        f"第{i}次来，{('味道很好', '味道很差')[i % 2]}。,{('好评', '差评')[i % 2]}\n"
        for i in range(60)
    )
    data = classify(write("a.csv", text, encoding))
    assert data.label_names == ("好评", "差评")
    assert ("第0次来，味道很好。", "好评") in everything(data)
    note = note_with(data, "60 rows")
    assert name in note and "'文本'" in note and "'标签'" in note


def test_windows_1252_is_read_and_named(write):
    text = "text;label\r\n" + "".join(f"Le café n° {i} était fermé;{i % 2}\r\n" for i in range(40))
    data = classify(write("a.csv", text, "cp1252"))
    assert ("Le café n° 3 était fermé", "1") in everything(data)
    assert "Windows-1252" in note_with(data, "40 rows")


def test_another_suffix_lists_those_that_are_read(write):
    with pytest.raises(DatasetError, match=r"\.csv, \.tsv, \.jsonl, \.parquet.*\.txt.*'\.xlsx'"):
        classify(write("a.xlsx", b"PK\x03\x04"))


def test_a_workbook_under_a_false_name_is_told(write):
    with pytest.raises(DatasetError, match="Excel"):
        classify(write("a.csv", b"PK\x03\x04" + bytes(100)))


def test_a_broken_parquet_file_is_told(write):
    with pytest.raises(DatasetError, match="not a Parquet file"):
        classify(write("a.parquet", b"PAR1 but no more"))


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.parquet"])
def test_a_missing_file_is_told(tmp_path, name):
    with pytest.raises(DatasetError, match="No such file"):
        classify(str(tmp_path / name))


@pytest.mark.parametrize(
    ("name", "content"), [("a.csv", ""), ("a.csv", "text,label\n"), ("a.jsonl", "\n")]
)
def test_an_empty_file_is_told(write, name, content):
    with pytest.raises(DatasetError, match="no rows"):
        classify(write(name, content))


# Columns


@pytest.mark.parametrize(
    ("header", "found"),
    [
        ("Text,Label", ("'Text'", "'Label'")),
        ("stars,Review ", ("'Review'", "'stars'")),
        ("内容,类别", ("'内容'", "'类别'")),
        ("id,sentence,class", ("'sentence'", "'class'")),
        ("title,text,label", ("'text'", "'label'")),
    ],
)
def test_columns_with_usual_names_are_found_and_named(write, header, found):
    names = [name.strip() for name in header.split(",")]
    lines = "".join(",".join(f"{name} {i % 9}" for name in names) + "\n" for i in range(60))
    note = note_with(classify(write("a.csv", f"{header}\n{lines}")), "60 rows")
    assert f"text in {found[0]}, label in {found[1]}" in note


def test_named_columns_win_over_usual_ones(write):
    text = "text,label,body,kind\n" + "".join(f"x,y,body {i},{i % 2}\n" for i in range(60))
    data = classify(write("a.csv", text), text_column="body", label_column="kind")
    assert ("body 7", "1") in everything(data)


def test_columns_that_are_not_found_are_answered_with_those_there_are(write):
    path = write("a.csv", "foo,bar\n" + rows(20))
    with pytest.raises(DatasetError, match="--text-column.*'foo', 'bar'"):
        classify(path)
    with pytest.raises(DatasetError, match="--label-column.*'foo', 'bar'"):
        classify(path, text_column="foo")
    with pytest.raises(DatasetError, match="no column 'baz'.*'foo', 'bar'"):
        classify(path, text_column="foo", label_column="baz")


def test_two_columns_of_one_name_are_not_guessed_between(write):
    with pytest.raises(DatasetError, match="2 columns named 'text'"):
        classify(write("a.csv", "text,text,label\n" + "a,b,c\n" * 9))


# Bad rows


def test_bad_rows_are_named_by_their_line_and_the_rest_is_kept(write):
    text = (
        "text,label\n"  # line 1
        '"two\nlines",yes\n'  # 2 and 3
        "\n"  # 4, blank
        ",no\n"  # 5, empty text
        "one field\n"  # 6
        "no label here,\n"  # 7
        '"a ""quoted"" word, and\r\na second line",no\n'  # 8 and 9
        "three,fields,here\n"  # 10
        "   ,yes\n"  # 11
        "one field more\n"  # 12
    ) + rows(100)
    data = classify(write("a.csv", text))
    found = everything(data)
    assert ("two\nlines", "yes") in found
    assert ('a "quoted" word, and\r\na second line', "no") in found
    assert len(found) == 102
    note = note_with(data, "left out")
    assert "6 of 108 rows" in note
    for words in (
        "line 5: empty text",
        "line 6: expected 2 fields, found 1",
        "line 7: no label",
        "line 10: expected 2 fields, found 3",
        "line 11: empty text",
        "and 1 more",
    ):
        assert words in note
    assert "line 12" not in note


def test_bad_json_is_named_by_its_line(write):
    lines = [json.dumps({"text": f"text {i}", "label": i % 2}) for i in range(30)]
    lines[3] = '{"text": "cut off'
    lines[5] = '["a", "list"]'
    lines[7] = '{"text": 7, "label": 1}'
    lines[9] = '{"label": 1}'
    lines[11] = r'{"text": "half a smile \ud83d", "label": 1}'
    lines[13] = '{"text": "x", "label": null}'
    note = note_with(classify(write("a.jsonl", "\n".join(lines))), "left out")
    assert "6 of 30 rows" in note
    assert "line 4: not JSON" in note
    assert "line 6: list instead of a JSON object" in note
    assert "line 8: 'text' is not a text" in note
    assert "line 10: empty text" in note
    assert "line 12: undecodable bytes" in note


def test_a_line_separator_inside_a_json_string_ends_no_line(write):
    lines = [
        json.dumps({"text": f"a\u2028b\x85c {i}", "label": i % 2}, ensure_ascii=False)
        for i in range(30)
    ]
    data = classify(write("a.jsonl", "\n".join(lines)))
    assert len(everything(data)) == 30


def test_undecodable_bytes_cost_their_row_only(write):
    lines = ("text,label\n" + "".join(f"第{i}次很好,{i % 2}\n" for i in range(50))).encode()
    lines = lines.split(b"\n")
    lines[10] = lines[10].replace("次".encode(), b"\xe6\xac")
    data = classify(write("a.csv", b"\n".join(lines)))
    assert len(everything(data)) == 49
    assert "line 11: undecodable bytes" in note_with(data, "left out")


def test_more_bad_than_good_is_an_error_with_the_first_lines(write):
    with pytest.raises(DatasetError, match="11 of 20 rows.*line 11: expected 2 fields, found 1"):
        classify(write("a.csv", "text,label\n" + rows(9) + "broken\n" * 11))


def test_a_stray_quote_does_not_swallow_the_rows_after_it(write):
    lines = [f"text number {i}\t{i % 2}" for i in range(100)]
    lines[20] = '"Great" is the word\t1'
    lines[40] = '"opened and never closed\t0'
    data = classify(write("a.tsv", "text\tlabel\n" + "\n".join(lines)))
    found = everything(data)
    assert len(found) == 100
    assert ('"Great" is the word', "1") in found and ('"opened and never closed', "0") in found
    assert note_with(data, "quotation marks")


def test_a_field_of_many_pages_is_no_mistake(write):
    text = "text,label\n" + rows(50) + f'"{"long " * 60_000}",yes\n'
    data = classify(write("a.csv", text))
    assert max(len(text) for text, _ in everything(data)) == 299_999


# Labels


def test_whole_numbers_are_sorted_as_numbers_and_words_by_alphabet(write):
    numbers = classify(write("a.csv", "text,label\n" + rows(110, ("10", "2", "1", "-1"))))
    assert numbers.label_names == ("-1", "1", "2", "10")
    words = classify(write("a.csv", "text,label\n" + rows(110, ("b", "a", "10"))))
    assert words.label_names == ("10", "a", "b")


def test_the_same_label_in_other_types_is_the_same_label(write):
    values = [1, "1", 1.0, 0, " 0 ", 0.0]
    lines = "\n".join(json.dumps({"text": f"text {i}", "label": values[i % 6]}) for i in range(120))
    data = classify(write("a.jsonl", lines))
    assert data.label_names == ("0", "1")
    yes = classify(write("b.jsonl", lines.replace("1.0", "true").replace('"1"', "true")))
    assert "true" in yes.label_names


def test_numbers_with_gaps_from_parquet_are_missing_labels(tmp_path):
    import pyarrow
    import pyarrow.parquet

    labels = [None if i == 4 else float("nan") if i == 6 else float(i % 2) for i in range(60)]
    table = pyarrow.table({"text": [f"text {i}" for i in range(60)], "label": labels})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    data = classify(str(tmp_path / "a.parquet"))
    assert data.label_names == ("0", "1")
    note = note_with(data, "left out")
    assert "row 5: no label" in note and "row 7: no label" in note


def test_labels_that_cannot_be_learned_are_refused(write):
    with pytest.raises(DatasetError, match="one label only: 'yes'"):
        classify(write("a.csv", "text,label\n" + rows(50, ("yes",))))
    ids = "text,label\n" + "".join(f"text {i},{i // 1.5}\n" for i in range(50))
    with pytest.raises(DatasetError, match="different labels.*--label-column"):
        classify(write("b.csv", ids))
    many = "text,label\n" + "".join(f"text {i},{i % 1001}\n" for i in range(4004))
    with pytest.raises(DatasetError, match="1,001 different labels"):
        classify(write("c.csv", many))


def test_a_label_with_one_example_is_told(write):
    data = classify(write("a.csv", "text,label\n" + rows(60) + "the only one,rare\n"))
    assert "'rare'" in note_with(data, "single example")
    assert "'rare'" in note_with(data, "Not in every part")
    rare = data.label_names.index("rare")
    assert rare in data.train.labels and rare not in data.test.labels


# Splits


def test_the_split_does_not_depend_on_the_order_of_the_rows(write):
    lines = rows(300).splitlines(keepends=True)
    first = classify(write("a.csv", "text,label\n" + "".join(lines)))
    second = classify(
        write("b.csv", "text,label\n" + "".join(sorted(lines, key=lambda x: x[::-1])))
    )
    for part in ("train", "validation", "test"):
        assert set(getattr(first, part).texts) == set(getattr(second, part).texts)
    assert 10 < len(first.test) < 55


def test_equal_texts_stay_on_one_side_also_in_a_tiny_file(write):
    data = classify(write("a.csv", "text,label\n" + "the same,a\nthe same,b\n" * 5 + rows(6)))
    parts = [set(part.texts) for part in (data.train, data.validation, data.test)]
    assert sum("the same" in part for part in parts) == 1
    assert note_with(data, "more than one label")


@pytest.mark.parametrize("count", [6, 7, 10, 20, 40])
def test_every_part_of_a_tiny_file_gets_every_label(write, count):
    data = classify(write("a.csv", "text,label\n" + rows(count)))
    for part in (data.train, data.validation, data.test):
        assert set(part.labels.tolist()) == {0, 1}
    assert len(everything(data)) == count
    assert not set(data.train.texts) & set(data.test.texts + data.validation.texts)


def test_four_rows_still_make_a_run_and_the_notes_say_what_it_is_worth(write):
    data = classify(write("a.csv", "text,label\n" + rows(4)))
    assert set(data.train.labels.tolist()) == {0, 1}
    assert len(data.validation) and len(data.test)
    assert note_with(data, "say little")


def test_a_rare_label_does_not_move_the_texts_of_the_others(write):
    common = classify(write("a.csv", "text,label\n" + rows(400)))
    extra = "".join(f"seldom {i},rare\n" for i in range(4))
    with_rare = classify(write("b.csv", "text,label\n" + rows(400) + extra))
    for part in ("train", "validation", "test"):
        before, after = getattr(common, part), getattr(with_rare, part)
        assert set(before.texts) == {t for t in after.texts if not t.startswith("seldom")}
        assert any(t.startswith("seldom") for t in after.texts)
    assert "'rare'" in note_with(with_rare, "dealt out")


def test_the_users_own_parts_are_taken_as_they_are(write):
    test = write("test.csv", "text,label\nunseen,yes\ntext number 1,yes\n")
    validation = write("valid.csv", "text,label\nanother,no\n")
    path = write("a.csv", "text,label\n" + rows(100))
    both = classify(path, validation_path=validation, test_path=test)
    assert (len(both.train), both.validation.texts) == (100, ["another"])
    assert both.test.texts == ["unseen", "text number 1"]
    assert "1 of 2 test texts also occur in training" in note_with(both, "Repeats")
    only_test = classify(path, test_path=test)
    assert len(only_test.train) + len(only_test.validation) == 100
    assert 0 < len(only_test.validation) < 30


def test_labels_training_does_not_know_are_named(write):
    path = write("a.csv", "text,label\n" + rows(100))
    test = write("test.csv", "text,label\nunseen,maybe\nseen,yes\n")
    with pytest.raises(DatasetError, match="test.csv.*'maybe'.*Known: 'no', 'yes'"):
        classify(path, test_path=test)


# Generation


def test_blank_lines_separate_documents(write):
    text = "".join(f"Title {i}\r\nfirst line\r\n \t\r\n" for i in range(60))
    data = generate(write("a.txt", text))
    documents = data.train + data.validation + data.test
    assert sorted(documents) == sorted(f"Title {i}\nfirst line" for i in range(60))
    assert "separated by blank lines" in note_with(data, "60 rows")


def test_a_text_without_blank_lines_is_cut_at_line_ends(write):
    lines = [f"line {i} of a long text that goes on and on" for i in range(2_000)]
    data = generate(write("a.txt", "\n".join(lines)))
    documents = data.train + data.validation + data.test
    assert all(len(document) <= 2_100 for document in documents)
    assert Counter("\n".join(documents).split("\n")) == Counter(lines)
    assert data.validation and data.test
    assert "about 2,000 characters" in note_with(data, "no blank lines")


def test_a_text_of_one_endless_line_is_cut_after_sentences(write):
    text = "".join(f"这是第{i}句话，说的都是平常的事情。" for i in range(1_500))
    data = generate(write("a.txt", text))
    documents = data.train + data.validation + data.test
    assert sum(map(len, documents)) == len(text)
    assert all(document.endswith("。") and len(document) <= 2_000 for document in documents)


def test_a_document_of_a_few_characters_gives_no_empty_pieces(write):
    data = generate(write("two.txt", "a long paragraph " * 40 + "\n\nHi\n"))
    assert all(piece.strip() for piece in [*data.train, *data.validation, *data.test])


def test_one_short_document_is_cut_by_position(write):
    text = "0123456789" * 10
    data = generate(write("a.txt", text))
    assert "".join(data.train + data.validation + data.test).count("0") == 10
    assert (len(data.train[0]), len(data.validation[0]), len(data.test[0])) == (80, 10, 10)
    assert note_with(data, "Too few documents")
    with pytest.raises(DatasetError, match="too little text"):
        generate(write("b.txt", "short"))


@pytest.mark.parametrize("count", [3, 4, 12])
def test_a_few_documents_reach_every_part(write, count):
    data = generate(write("a.txt", "\n\n".join(f"Document {i}" for i in range(count))))
    assert data.train and data.validation and data.test
    assert len(data.train) + len(data.validation) + len(data.test) == count


def test_a_table_gives_a_document_per_row_and_needs_no_label(write):
    data = generate(write("a.csv", "id,content\n" + "".join(f"{i},poem {i}\n" for i in range(50))))
    assert len(data.train) + len(data.validation) + len(data.test) == 50
    test = write("test.txt", "one\n\ntwo\n")
    own = generate(write("a.csv", "content\n" + "a poem\nanother\nthird\n" * 9), test_path=test)
    assert own.test == ["one", "two"]


def test_plain_text_has_no_labels(write):
    with pytest.raises(DatasetError, match="plain text and has no labels"):
        classify(write("a.txt", "one\ntwo\n"))


# Files to predict and to evaluate


def test_texts_to_predict_keep_their_order(write):
    texts, notes = read_texts(write("a.txt", "one, two\r\n\r\nthree\n"))
    assert texts == ["one, two", "three"] and "a text per line" in notes[0]
    assert read_texts(write("a.csv", 'review\n"one, two"\nthree\n'))[0] == ["one, two", "three"]
    texts, notes = read_texts(write("a.jsonl", '{"q": "x"}\n{"q": ""}\n{"q": "y"}\n'), "q")
    assert texts == ["x", "y"] and "line 2: empty text" in notes[1]


def test_a_column_of_texts_with_commas_is_one_column(write):
    texts, _ = read_texts(write("a.csv", "text\none; two\nthree; four\nfive\n"))
    assert texts == ["one; two", "three; four", "five"]


def test_labelled_texts_use_the_labels_of_the_model(write):
    path = write("a.csv", "text,label\ngood,yes\nbad,no\n")
    data, notes = read_labelled(path, None, None, ("no", "maybe", "yes"))
    assert data.labels.tolist() == [2, 0] and data.labels.dtype == np.int32
    assert "2 rows" in notes[0]
    with pytest.raises(DatasetError, match="'no'.*Known: 'maybe', 'yes'"):
        read_labelled(path, None, None, ("maybe", "yes"))
