"""Requests, pieces, and the text that tokens add up to."""

import dataclasses
import random

import numpy as np
import pytest

from serving.errors import Code
from serving.writing import (
    Assembler,
    InvalidField,
    Request,
    Spelling,
    TokenLogprob,
    differences,
    last_tokens,
    short,
    stop_strings,
)

TEXT = "Ein Füchslein 小狐狸 🦊🦊 lief.\n\nEND of the\nEN END"


def first_end(spelled: list[bytes], stop: tuple[str, ...], max_tokens: int) -> tuple[str, int, str]:
    """Text, number of tokens and finish reason, by looking at the whole text after every token."""
    for count in range(1, min(len(spelled), max_tokens) + 1):
        text = b"".join(spelled[:count]).decode(errors="ignore")
        found = [text.find(one) for one in stop if one in text]
        if found:
            return text[: min(found)], count, "stop"
    if max_tokens <= len(spelled):
        return b"".join(spelled[:max_tokens]).decode(errors="replace"), max_tokens, "length"
    return b"".join(spelled).decode(errors="replace"), len(spelled), "stop"


def cuts(size: int, draw: random.Random, longest: int) -> list[tuple[int, int]]:
    edges = [0]
    while edges[-1] < size:
        edges.append(min(size, edges[-1] + draw.randint(1, longest)))
    return list(zip(edges, edges[1:], strict=False))


@pytest.mark.parametrize(
    "stop", [(), ("\n\nEND",), ("END", "the\nEN"), ("狐狸 🦊🦊", "🦊 "), ("nowhere",)]
)
def test_text_by_pieces_is_the_text_at_once(stop):
    data = TEXT.encode()
    for seed in range(60):
        draw = random.Random(seed)
        spelled = [data[a:b] for a, b in cuts(len(data), draw, 5)]
        max_tokens = draw.randint(1, len(spelled) + 2)
        request = Request(prompt="", stop=stop, max_tokens=max_tokens)
        assembler = Assembler(request, num_prompt_tokens=3)
        text, tokens = "", 0
        for a, b in cuts(len(spelled), draw, 4):
            end = "stop" if b == len(spelled) else None
            piece = assembler.add(range(a, b), spelled[a:b], finish_reason=end)
            text, tokens = text + piece.text, tokens + len(piece.tokens)
            assert piece.num_prompt_tokens == 3
            assert text == TEXT[: len(text)] or piece.finish_reason
            if piece.finish_reason:
                break
        assert (text, tokens, piece.finish_reason) == first_end(spelled, stop, max_tokens), seed


def test_what_may_become_a_stop_string_is_held_back_and_no_more():
    assembler = Assembler(Request(prompt="", stop=("##", "#!x"), max_tokens=9), num_prompt_tokens=1)
    assert assembler.add([1], [b"a#"]).text == "a"
    assert assembler.add([2], [b"b#!"]).text == "#b"
    assert assembler.add([3], [b"\xf0\x9f"]).text == ""
    assert assembler.add([4], [b"\xa6\x8a"]).text == "#!🦊"
    assert assembler.add([5], [b"#"], finish_reason="length").text == "#"
    with pytest.raises(ValueError, match="has ended"):
        assembler.add([6], [b"x"])


def test_tokens_after_the_end_are_left_out_with_their_logprobs():
    assembler = Assembler(Request(prompt="", stop=(".",), max_tokens=9), num_prompt_tokens=0)
    logprobs = [TokenLogprob(-float(i)) for i in range(3)]
    piece = assembler.add([7, 8, 9], [b"a", b".b", b"c"], logprobs)
    assert (piece.text, piece.tokens, piece.finish_reason) == ("a", (7, 8), "stop")
    assert piece.logprobs == tuple(logprobs[:2])
    nothing = Assembler(Request(prompt="", max_tokens=0), num_prompt_tokens=0)
    piece = nothing.add([7], [b"a"])
    assert (piece.text, piece.tokens, piece.finish_reason) == ("", (), "length")


def test_half_a_character_at_the_end_is_a_replacement_mark():
    assembler = Assembler(Request(prompt="", max_tokens=2), num_prompt_tokens=0)
    assert assembler.add([1], [b"a\xe5"]).text == "a"
    assert assembler.add([2], [b"\xb0"]).text == "\ufffd"


def test_differences_of_whole_texts():
    texts = ["Hello", "Hello \ufffd", "Hello \ufffd\ufffd", "Hello 小", "Hello 小\ufffd"]
    assert differences("He", texts, is_end=False) == [b"llo", b" ", b"", "小".encode(), b""]
    assert differences("Hello 小", texts[4:], is_end=True) == ["\ufffd".encode()]
    # What was given out stays: a tokenizer that changes its mind goes on from there.
    assert differences("Hello!", ["Hello?", "Hello! x"], is_end=False) == [b"", b" x"]


@pytest.mark.parametrize(
    ("length", "max_tokens", "kept"),
    [(5, 16, 5), (47, 16, 47), (48, 16, 47), (100, 0, 62), (100, 1, 62), (100, 40, 31)],
)
def test_a_long_prompt_leaves_room_for_the_answer(length, max_tokens, kept):
    prompt = range(length)
    assert last_tokens(prompt, max_tokens, 64) == tuple(range(length - kept, length))


def test_spelling_asks_once_for_each_token():
    asked = []

    def detokenize(tokens: np.ndarray, num_tokens: np.ndarray) -> list[bytes]:
        assert tokens.shape == (len(num_tokens), 1) and num_tokens.tolist() == [1] * len(tokens)
        asked.extend(tokens[:, 0].tolist())
        return [bytes([token % 256]) for token in tokens[:, 0]]

    spelling = Spelling(detokenize)
    assert spelling([65, 66, 65]) == [b"A", b"B", b"A"]
    spelling.learn(range(60, 700))
    assert spelling([66, 130]) == [b"B", b"\x82"]
    assert sorted(asked) == list(range(60, 700))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_tokens", -1),
        ("max_tokens", 1.5),
        ("max_tokens", True),
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", "1"),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.01),
        ("min_p", -0.1),
        ("repetition_penalty", 0),
        ("presence_penalty", 2.1),
        ("frequency_penalty", -2.1),
        ("seed", 2**31),
        ("logprobs", 6),
    ],
)
def test_a_request_out_of_range_names_its_field(field, value):
    with pytest.raises(InvalidField, match=f"^{field} must be .* Received: ") as caught:
        Request(prompt="", **{field: value})
    assert (caught.value.code, caught.value.field) == (Code.INVALID_ARGUMENT, field)


@pytest.mark.parametrize("stop", ["", ["a"] * 5, [""], ["a" * 257], [5], {}, ("a",), None])
def test_stop_strings_out_of_range(stop):
    with pytest.raises(InvalidField, match=r"^stop must be .* Received: "):
        stop_strings(stop)
    assert stop_strings("a") == ("a",) and stop_strings(["a"] * 4) == ("a",) * 4


@pytest.mark.parametrize(
    "value",
    [
        *(
            "x" * 1000,
            ["x" * 1000],
            [["y"] * 1000],
            {"a": "x" * 1000},
            {"x" * 1000: 1},
            b"x" * 1000,
        ),
        *(("x" * 1000,), {"a": {"b": ["x" * 1000] * 80}}, [[[["x" * 1000]]]], 10**79, ["ab"] * 80),
    ],
)
def test_no_message_repeats_more_than_a_line_of_a_value(value):
    assert len(short(value)) <= 80
    assert len(InvalidField("n", "small", value).message) < 110


def test_a_request_is_a_value():
    request = Request(prompt=(5, 6), stop=("x",))
    assert dataclasses.replace(request, seed=4).seed == 4
    assert hash(request) != hash(dataclasses.replace(request, seed=4))
