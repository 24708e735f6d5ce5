"""RapidJSON's numbers and refusals; offsets are bytes of the body."""

import math
import random

import orjson
import pytest

from serving.errors import ServingError
from serving.json_text import _Reader, check_counts, parse, shown

INVALID = "Invalid value."
NO_NAME = "Missing a name for object member."
NO_COLON = "Missing a colon after a name of object member."
NO_COMMA = "Missing a comma or } after an object member."
NO_COMMA_IN_LIST = "Missing a comma or ] after an array element."
EMPTY = "The document is empty."
OPEN = "Missing a closing quotation mark in string."
HALF_PAIR = "The surrogate pair in string is invalid."
HEX = "Incorrect hex digit after \\u escape in string."
ESCAPE = "Invalid escape character in string."
TOO_BIG = "Number too big to be stored in double."

FAULTS = [
    (" ", EMPTY, 1), ("\n}", EMPTY, 1), ("]", EMPTY, 0), (",", EMPTY, 0), (":", EMPTY, 0),
    ("\0[]", EMPTY, 0),
    ("{", NO_NAME, 1), ("{1", NO_NAME, 1), ('{"a":1,', NO_NAME, 7), ('{"a":1,}', NO_NAME, 7),
    ("{,}", NO_NAME, 1), ("{'a'", NO_NAME, 1),
    ('{"a"', NO_COLON, 4), ('{"é" 1', NO_COLON, 6), ('{"a",', NO_COLON, 4),
    ('{"a":', INVALID, 5), ('{"a":}', INVALID, 5), ('{"a":,', INVALID, 5), ("[", INVALID, 1),
    ("[,", INVALID, 1), ("[1,", INVALID, 3), ("[1,]", INVALID, 3), ("[}", INVALID, 1),
    ("[1", NO_COMMA_IN_LIST, 2), ("[1 2]", NO_COMMA_IN_LIST, 3), ("[1}", NO_COMMA_IN_LIST, 2),
    ("[01]", NO_COMMA_IN_LIST, 2), ("[[1] ", NO_COMMA_IN_LIST, 5), ("[1:", NO_COMMA_IN_LIST, 2),
    ('{"a":1', NO_COMMA, 6), ('{"a":1]', NO_COMMA, 6), ('{"a":{} "b"', NO_COMMA, 8),
    ("[nulL]", INVALID, 4), ("[nil]", INVALID, 2), ("[tru]", INVALID, 4), ("[True]", INVALID, 1),
    ("[fals", INVALID, 5), ("[x]", INVALID, 1), ("[+1]", INVALID, 1), ("[-]", INVALID, 2),
    ("[-x]", INVALID, 2), ("[.5]", INVALID, 1), ("[nan]", INVALID, 2), ("[Nan]", INVALID, 3),
    ("[inf]", INVALID, 1), ("[Infinitx]", INVALID, 8), ("[-In]", INVALID, 4), ("\xa0", INVALID, 0),
    ("[1.]", "Miss fraction part in number.", 3), ("[1.e5]", "Miss fraction part in number.", 3),
    ("[1e]", "Miss exponent in number.", 3), ("[-1E+x", "Miss exponent in number.", 5),
    ("[1e400]", TOO_BIG, 1), ("[2, -1e309]", TOO_BIG, 4), ("[1" + "0" * 400 + "]", TOO_BIG, 1),
    ("[" + "9" * 10_000 + "]", TOO_BIG, 1),
    ('"abc', OPEN, 4), ('["é', OPEN, 4), ('["a\0b"]', OPEN, 3),
    ('["a\tb"]', "Invalid encoding in string.", 3), ('["\n"]', "Invalid encoding in string.", 2),
    ('["\\x"]', ESCAPE, 2), ('["ab\\', ESCAPE, 4), ("[\"\\'\"]", ESCAPE, 2),
    ('["\\u12g4"]', HEX, 2), ('["a\\u"]', HEX, 3), ('["\\ud83d\\u00"]', HEX, 2),
    ('["\\ud83d"]', HALF_PAIR, 2), ('["\\ud83d\\n"]', HALF_PAIR, 2), ('["\\ude00"]', HALF_PAIR, 2),
    ('["\\ud83d\\ud83d"]', HALF_PAIR, 2), ('{"\\udc00": 1}', HALF_PAIR, 2),
]  # fmt: skip


@pytest.mark.parametrize(("text", "fault", "offset"), FAULTS)
def test_faults(text, fault, offset):
    with pytest.raises(ServingError) as caught:
        parse(text.encode(), max_depth=64)
    assert caught.value.message == f"JSON Parse error: {fault} at offset: {offset}"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (b"[-Inf, Inf, Infinity, -Infinity]", [-math.inf, math.inf, math.inf, -math.inf]),
        (b'\xef\xbb\xbf {"a": "Inf"} rest', {"a": "Inf"}),
        (b'["\xff\\u00e9\\ud83d\\ude00\\n\\/", Inf]', ["\udcffé😀\n/", math.inf]),
        (b'["\xff"]', ["\udcff"]),
        (b'[{"a": [], "b": {}}, [[]], "", -0.5, 1E2, true] x', [
            {"a": [], "b": {}}, [[]], "", -0.5, 100.0, True]),
        (b"12]", 12),
        (b"NaN1", math.nan),
    ],
)  # fmt: skip
def test_what_only_rapidjson_takes(text, value):
    assert repr(parse(text, max_depth=64)) == repr(value)


@pytest.mark.parametrize("tail", ["", " x", ", Inf]"])
def test_every_reader_tells_integers_from_floats_alike(tail):
    """Nothing behind the list, text behind it, and a word that only the last reader knows."""
    numbers = "1, 1.0, 1e0, -0, 18446744073709551615, 18446744073709551616, -9223372036854775809"
    text = f"[[{numbers}]{tail}" if tail.endswith("]") else f"[{numbers}]{tail}"
    value = parse(text.encode(), max_depth=64)
    value = value[0] if tail.endswith("]") else value
    kinds = [int, float, float, int, int, float, float]
    assert value == [1, 1, 1, 0, 2**64 - 1, float(2**64), -float(2**63)]
    assert [type(number) for number in value] == kinds


def test_the_last_of_equal_names_counts_in_every_reader():
    for tail in (b"", b" x", b""):
        assert parse(b'{"a": 1, "a": 2}' + tail, max_depth=64) == {"a": 2}
    assert parse(b'{"a": Inf, "a": 2}', max_depth=64) == {"a": 2}


def test_depth_counts_only_brackets_outside_of_strings():
    text = '{"a": ["]]]", "\\"[[[", "\\\\", [["}"]], "[[[["]}'
    assert parse(text.encode(), max_depth=4)["a"][3] == [["}"]]
    with pytest.raises(ServingError, match="nested 4 deep; --max-json-depth allows 3"):
        parse(text.encode(), max_depth=3)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("[" + ",[]" * 10, None),
        ("{" + ",[]" * 12, "13 lists and objects and 0 strings"),
        ("{" + ",{}" * 12, "--max-rows=10"),
        ('["' + '[{,\\"' * 300 + '"]', None),
        ("[" + ',""' * 140, None),
        ("[" + ',""' * 141, "1 lists and objects and 141 strings"),
        ("[" + "1," * 149, None),
        ("[" + "1," * 150, "holds 151 values; --max-characters allows 150"),
    ],
)
def test_what_takes_long_to_read_is_counted_first(body, words):
    if words is None:
        check_counts(body.encode(), 10, 150)
        return
    with pytest.raises(ServingError, match=words):
        check_counts(body.encode(), 10, 150)


@pytest.mark.parametrize("opening", [b"[", b'{"a":', b'["]",'])
def test_the_deepest_body_is_refused_without_a_descent(opening):
    with pytest.raises(ServingError, match="--max-json-depth allows 64"):
        parse(opening * 500_000, max_depth=64)


def test_a_depth_beyond_the_recursion_limit_can_be_asked_for():
    value = parse(b"[" * 50_000 + b"]" * 50_000, max_depth=50_000)
    depth = 1
    while value:
        (value,), depth = value, depth + 1
    assert depth == 50_000


def test_the_last_reader_agrees_with_orjson_on_made_up_values():
    rng = random.Random(0)

    def made_up(depth=0):
        kind = rng.randrange(9 if depth < 4 else 6)
        if kind < 6:
            text = "".join(rng.choice('a"\\\né文😀/\x01') for _ in range(rng.randrange(6)))
            return [text, rng.random() * 10 ** rng.randrange(-9, 9), 2**63, -5, None, True][kind]
        values = [made_up(depth + 1) for _ in range(rng.randrange(4))]
        return values if kind < 8 else {str(i): value for i, value in enumerate(values)}

    for _ in range(500):
        value = made_up()
        for option in (None, orjson.OPT_INDENT_2):
            assert _Reader(orjson.dumps(value, option=option)).read() == value


SHOWN = [
    ([], "[]"),
    ({}, "{}"),
    ([1, [2, "é"], []], '[1, [2, "é"], []]'),
    ({"a": [1, {"b": {}}]}, '{\n    "a": [1, {\n            "b": {}\n        }]\n}'),
    ({"a": None, "b": {"c": True}}, '{\n    "a": null,\n    "b": {\n        "c": true\n    }\n}'),
    ('"/\\\n\x1f\x7f', '"\\"/\\\\\\n\\u001F\x7f"'),
    ([0.0, -0.0, 1.0, 0.1, 1e-6, 1.5e-7, 100.0, 2.5e20, 1e21, 1.25e300],
     "[0.0, -0.0, 1.0, 0.1, 0.000001, 1.5e-7, 100.0, 250000000000000000000.0, 1e21, 1.25e300]"),
    ({"a": [1, math.nan, 2]}, '{\n    "a": [1, '),
    (["x" * 300, "y"], '["' + "x" * 300 + '"'),
    (["é" * 60, "é" * 60, "é" * 60], f'["{"é" * 60}", "{"é" * 60}", "{"é" * 60}"'),
    (list(range(1000)), str(list(range(67)))[:-1]),
]  # fmt: skip


@pytest.mark.parametrize(("value", "text"), SHOWN)
def test_values_are_shown_as_rapidjson_writes_them_and_up_to_the_token_at_256_bytes(value, text):
    assert shown(value) == f"JSON Value: {text}"
