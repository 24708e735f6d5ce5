"""Files of vectors: what is read, what is told of, what is refused."""

import gzip
import os
from pathlib import Path

import numpy as np
import pytest

from training.vectors.files import VectorsError, WordVectors, look_up, read_vectors, write_vectors

WORDS = ["the", "猫", "don't", "naïve", "."]
MATRIX = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)


def text(words=WORDS, matrix=MATRIX, end="\n"):
    lines = [
        f"{w} {' '.join(f'{x:.9g}' for x in row.tolist())}"
        for w, row in zip(words, matrix, strict=True)
    ]
    return end.join(lines).encode() + end.encode()


def binary(words=WORDS, matrix=MATRIX, after=b"\n"):
    entries = (
        w.encode() + b" " + r.astype("<f4").tobytes() for w, r in zip(words, matrix, strict=True)
    )
    return b"%d %d\n" % matrix.shape + after.join(entries) + after


HEADER = b"5 4\n"
LAYOUTS = {
    "GloVe": text(),
    "GloVe without a last line end": text().rstrip(),
    "GloVe of Windows": b"\xef\xbb\xbf" + text(end="\r\n"),
    "GloVe with tabs": text().replace(b" ", b"\t"),
    "word2vec text": HEADER + text(),
    "word2vec text as the C program writes it": HEADER + text(end=" \n"),
    "word2vec binary": binary(),
    "word2vec binary without line ends": binary(after=b""),
}


@pytest.fixture
def write(tmp_path):
    def written(data: bytes) -> Path:
        path = tmp_path / "vectors"
        path.write_bytes(data)
        return path

    return written


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_read_to_the_bit(write, layout, packed):
    path = write(gzip.compress(LAYOUTS[layout]) if packed else LAYOUTS[layout])
    vectors, faults = read_vectors(path)
    assert vectors.words == WORDS and faults.count == 0
    assert vectors.matrix.dtype == np.float32
    np.testing.assert_array_equal(vectors.matrix, MATRIX)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_only_the_words_asked_for_are_given_in_their_order(write, layout):
    found = look_up(write(LAYOUTS[layout]), ["nothing", ".", "猫"])
    assert found.rows.tolist() == [1, 2] and found.num_loose == 0
    np.testing.assert_array_equal(found.values, MATRIX[[4, 1]])


def test_what_is_written_comes_back_bit_for_bit(tmp_path):
    extreme = np.array([[1e-38, -3.4e38, 0.1], [np.pi, -0.0, 1 / 3]], np.float32)
    write_vectors(tmp_path / "vectors.txt", WordVectors(["a", "字"], extreme))
    vectors, faults = read_vectors(tmp_path / "vectors.txt")
    assert vectors.words == ["a", "字"] and not faults.count
    assert vectors.matrix.tobytes() == extreme.tobytes()


# Words --------------------------------------------------------------------------------------------


def test_words_with_blanks_inside_are_read_from_the_right(write):
    """As in GloVe 840B."""
    words = ["the", ". . .", "at name@domain.com", "1 3/4", "of"]
    vectors, faults = read_vectors(write(text(words)))
    assert vectors.words == words and not faults.count


def test_other_blanks_belong_to_the_word(write):
    words = ["the", "a\u00a0b", "c\x85d", "e\u3000f", "of"]
    vectors, _ = read_vectors(write(text(words)))
    assert vectors.words == words


def test_a_word_in_another_case_serves_where_the_exact_one_is_missing(write):
    words = ["APPLE", "Apple", "apple", "Pear", "PEAR", "plum", "it’s", "Ｗｉｄｅ"]
    matrix = np.arange(16, dtype=np.float32).reshape(8, 2)
    asked = ["apple", "pear", "Plum", "it's", "wide", "cherry"]
    found = look_up(write(text(words, matrix)), asked)
    assert found.rows.tolist() == [0, 1, 2, 3, 4]
    assert found.num_loose == 4
    np.testing.assert_array_equal(found.values, matrix[[2, 3, 5, 6, 7]])


# Broken lines -------------------------------------------------------------------------------------

BROKEN = [
    ("b 1", "line 2: 1 numbers in place of 2"),
    ("", "line 2: 0 numbers in place of 2"),
    ("b 1 2 3", "line 2: more than 2 numbers"),
    ("b 1 x", "line 2: no number: b'x'"),
    ("b nan 1", "line 2: holds nan"),
    ("b 1 -inf", "line 2: holds -inf"),
    ("b 1 1e39", "line 2: holds inf"),
    ("a 5 6", "line 2: 'a' again, first on line 1"),
]


@pytest.mark.parametrize(("line", "told"), BROKEN)
def test_broken_lines_are_told_with_their_number_and_left_out(write, line, told):
    path = write(f"a 1 2\n{line}\nc 3 4\nd 5 6\n".encode())
    vectors, faults = read_vectors(path)
    assert (vectors.words, faults.count, faults.named) == (["a", "c", "d"], 1, [told])
    found = look_up(path, ["a", "b", "c"])
    assert found.rows.tolist() == [0, 2] and found.faults.named == [told]
    np.testing.assert_array_equal(found.values, [[1, 2], [3, 4]])


def test_a_word_whose_first_line_is_broken_is_taken_from_its_second(write):
    found = look_up(write(b"a 1 nan\na 3 4\nb 5 6\n"), ["a"])
    assert found.values.tolist() == [[3, 4]] and found.faults.count == 1


def test_many_faults_are_counted_and_the_first_named(write):
    _, faults = read_vectors(write(b"a 1 2\n" + b"b 1 nan\n" * 7))
    assert faults.count == 7 and "line 4: holds nan; and 4 more" in str(faults)


def test_a_broken_first_line_does_not_decide_the_length(write):
    vectors, faults = read_vectors(write(b"a 1\nb 1 2\nc 3 4\n"))
    assert vectors.words == ["b", "c"] and faults.named == ["line 1: 1 numbers in place of 2"]


def test_a_header_that_promises_another_number_of_words_is_told(write):
    vectors, faults = read_vectors(write(b"9 4\n" + text()))
    assert len(vectors.words) == 5
    assert faults.named == ["line 1: promises 9 words, and 5 lines follow"]


def test_broken_words_of_a_binary_file_are_told(write):
    matrix = MATRIX.copy()
    matrix[2, 1] = np.nan
    vectors, faults = read_vectors(write(binary(["a", "b", "c", "a", "é"], matrix)))
    assert vectors.words == ["a", "b", "é"]
    assert faults.named == ["word 3: holds nan", "word 4: 'a' again, first on word 1"]
    cut = binary().replace("naïve".encode(), "naï".encode()[:-1])
    assert read_vectors(write(cut))[1].named == ["word 4: b'na\\xc3' is not UTF-8"]


# Refusals -----------------------------------------------------------------------------------------

FRENCH = ["été", "où", "garçon", "naïve", "forêt"]
CHINESE = ["汽车", "学校", "我们", "电影", "喜欢"]
REFUSED = {
    "cp1252": (
        text(FRENCH).decode().encode("cp1252"),
        ["line 1", "0xe9", "Windows-1252", "-f CP1252"],
    ),
    "gb18030": (text(CHINESE).decode().encode("gb18030"), ["line 1", "GB18030", "iconv"]),
    "UTF-16": (text().decode().encode("utf-16"), ["UTF-16", "iconv -f UTF-16 -t UTF-8 vectors"]),
    "UTF-16 unmarked": (text().decode().encode("utf-16-le"), ["little-endian", "-f UTF-16LE"]),
    "one byte of UTF-8": (
        text(["çà", "où", "\x01", "é", "ô"]).replace(b"\x01", b"\xff"),
        ["line 3", "0xff", "damaged there"],
    ),
    "zip": (b"PK\x03\x04" + bytes(100), ["zip", "Unpack"]),
    "binary without a header": (binary()[4:], ["neither text nor word2vec binary"]),
    "binary cut in a vector": (binary()[:-8], ["ends inside the vector of word 5 of 5"]),
    "binary cut between words": (binary()[: -18 - 1], ["word 5 is not there"]),
    "gzip cut": (gzip.compress(os.urandom(500).hex().encode())[:-90], ["cut short or damaged"]),
    "empty": (b"", ["holds no vectors"]),
    "prose": (b"Hello\nthere\n", ["expected lines of a word and its numbers", "Hello"]),
    "no number anywhere": (b"a b c\nd e f\n", ["no vector that can be read", "line 1: no number"]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_files_that_cannot_be_used_are_refused_with_what_they_are(write, name):
    data, parts = REFUSED[name]
    path = write(data)
    with pytest.raises(VectorsError) as error:
        read_vectors(path)
    assert all(part in str(error.value) for part in [str(path), *parts]), error.value


def test_a_file_of_another_language_is_refused(write):
    with pytest.raises(VectorsError, match=r"none of the 2 words.*'hund', 'katze'"):
        look_up(write(text()), ["hund", "katze"])


def test_a_missing_file_is_refused_by_its_name(tmp_path):
    with pytest.raises(VectorsError, match="nowhere.txt cannot be read: No such file"):
        read_vectors(tmp_path / "nowhere.txt")


# The real ones ------------------------------------------------------------------------------------


@pytest.mark.data
def test_real_glove(real_vectors):
    path = real_vectors / "glove.6B.50d.first2446.txt"
    vectors, faults = read_vectors(path)
    assert vectors.matrix.shape == (2446, 50) and not faults.count
    assert (vectors.words[0], vectors.words[-1]) == ("the", "handed")
    np.testing.assert_allclose(vectors.matrix[0, :3], [0.418, 0.24968, -0.41242])
    found = look_up(path, ["France", "–", "xyzzy"])
    assert found.rows.tolist() == [0, 1] and found.num_loose == 1


@pytest.mark.data
def test_the_real_copy_in_another_encoding_is_refused(real_vectors):
    with pytest.raises(VectorsError, match="line 218 has the byte 0x96.*Windows-1252.*iconv"):
        look_up(real_vectors / "glove.6B.50d.first2446.cp1252.txt", ["the"])


@pytest.mark.data
def test_real_chinese_vectors(real_vectors):
    vectors, faults = read_vectors(real_vectors / "zh_char_tencent.200d.txt.gz")
    assert vectors.matrix.shape == (4729, 200) and not faults.count
