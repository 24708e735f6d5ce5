"""JSON text to values, as RapidJSON reads it: the same numbers, the same refusals, word by word.

Three readers, each slower and more lenient than the one before. orjson takes nearly every body.
Python's own takes NaN, Infinity, invalid UTF-8 and text behind the value. `_Reader` follows
RapidJSON's states and finds the rest: `Inf`, a byte order mark, or what is wrong and where.
"""

import json
import math
import re
from collections.abc import Iterator
from decimal import Decimal
from typing import Any, NoReturn

import numpy as np
import orjson

from serving.errors import ServingError, invalid_argument

MAX_SHOWN = 256  # bytes of a value in a message, and what its last token has beyond them
INDENT = " " * 4

INVALID_VALUE = "Invalid value."
MISSING_NAME = "Missing a name for object member."
MISSING_COLON = "Missing a colon after a name of object member."
MISSING_COMMA = {
    b"}": "Missing a comma or } after an object member.",
    b"]": "Missing a comma or ] after an array element.",
}
TOO_BIG = "Number too big to be stored in double."

_SPACE = re.compile(rb"[ \t\r\n]*")
_PLAIN = re.compile(rb'[^"\\\x00-\x1f]*')  # of a string
_DIGITS = re.compile(rb"[0-9]*")
_HEX = re.compile(rb"[0-9a-fA-F]{4}")
_ESCAPES = dict(zip(b'"\\/bfnrt', b'"\\/\b\f\n\r\t', strict=True))
_WRITTEN_ESCAPES = {code: f"\\u{code:04X}" for code in range(32)} | {
    code: f"\\{chr(letter)}" for letter, code in _ESCAPES.items() if letter != ord("/")
}


def parse(body: bytes, max_depth: int) -> Any:
    """The first JSON value in `body`; the rest is ignored. NaN, Infinity and Inf are numbers.

    Bytes that are no UTF-8 become lone surrogates. Integers beyond 64 bits become floats. Of two
    members of one name the last one counts. Raises INVALID_ARGUMENT for other text, and for lists
    and objects that are more than `max_depth` within one another.
    """
    if not body:
        raise invalid_argument("JSON Parse error: The document is empty")
    _check_depth(body, max_depth)
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        pass  # not that simple
    text = body.decode("utf-8", errors="surrogateescape")
    if "\\ud" not in text and "\\uD" not in text:  # Python would take half of a pair
        try:
            return _DECODER.raw_decode(text, len(text) - len(text.lstrip(" \t\r\n")))[0]
        except (ValueError, RecursionError):
            pass  # something to find in it
    return _Reader(body).read()


def check_counts(body: bytes, max_rows: int, max_values: int) -> None:
    """Raises INVALID_ARGUMENT for a body with more lists, objects or strings than `max_rows` rows
    have, each an object of two names and two texts, or with more than `max_values` values.

    Other threads go on meanwhile; while orjson reads they do not, and it is many values that take
    it long, not many bytes.
    """
    outside = _outside_of_strings(body)
    containers, strings, commas = (int(np.count_nonzero(outside == ord(sign))) for sign in '{",')
    # Around the rows there are a list, an object, and its names and values.
    if containers > max_rows + 2 or strings > 4 * max_rows + 100:
        raise invalid_argument(
            f"The body holds {containers} lists and objects and {strings} strings, which is more "
            f"than --max-rows={max_rows} allows."
        )
    if commas >= max_values:
        raise invalid_argument(
            f"The body holds {commas + 1} values; --max-characters allows {max_values}."
        )


def _check_depth(body: bytes, max_depth: int) -> None:
    """Counts the brackets outside of strings, at the speed of memory."""
    if np.count_nonzero(_folded(body) == ord("{")) <= max_depth:
        return
    outside = _outside_of_strings(body)
    opens = outside == ord("{")
    brackets = opens[opens | (outside == ord("}"))]
    depth = np.cumsum(np.where(brackets, 1, -1)).max(initial=0)
    if depth > max_depth:
        raise invalid_argument(
            f"Lists and objects are nested {depth} deep; --max-json-depth allows {max_depth}."
        )


def _outside_of_strings(body: bytes) -> np.ndarray:
    """The bytes of no string, folded, with one of the quotes of each string."""
    if b"\\" in body:
        body = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    folded = _folded(body)
    is_quote = np.frombuffer(body, np.uint8) == ord('"')
    return folded[~np.logical_xor.accumulate(is_quote)]


def _folded(text: bytes) -> np.ndarray:
    """The bytes with [ as { and ] as }."""
    return np.frombuffer(text, np.uint8) | 0x20


def _integer(digits: str) -> int | float:
    if len(digits) > 20:
        return _double(digits)
    number = int(digits)
    return number if -(2**63) <= number < 2**64 else float(number)


def _double(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise ValueError(TOO_BIG)
    return number


_DECODER = json.JSONDecoder(parse_int=_integer, parse_float=_double)


class _Reader:
    """RapidJSON's iterative parser. Offsets are bytes; the end of the text reads as a zero byte."""

    def __init__(self, text: bytes) -> None:
        self.text = text + b"\0"
        self.at = 3 if text.startswith(b"\xef\xbb\xbf") else 0

    def read(self) -> Any:
        if self._next() in b"\0]},:":
            self._fail("The document is empty.")
        value = self._value()
        open_ones: list[Any] = []  # the containers around the place, outermost first
        keys: list[str] = []  # under which each open object takes its next member
        while True:
            is_new = isinstance(value, dict | list)
            if is_new:
                open_ones.append(value)
            while True:  # up to the next value, closing what ends here
                if not open_ones:
                    return value
                container = open_ones[-1]
                closing = b"}" if isinstance(container, dict) else b"]"
                byte = self._next()
                if not is_new:
                    if isinstance(container, dict):
                        container[keys.pop()] = value
                    else:
                        container.append(value)
                    if byte not in (b",", closing):
                        self._fail(MISSING_COMMA[closing])
                if byte == closing:
                    self.at += 1
                    value, is_new = open_ones.pop(), False
                    continue
                if not is_new:
                    self.at += 1  # the comma
                    self._next()
                break
            if isinstance(container, dict):
                keys.append(self._name())
            value = self._value()

    def _name(self) -> str:
        if self._peek() != b'"':
            self._fail(MISSING_NAME)
        name = self._string()
        if self._next() != b":":
            self._fail(MISSING_COLON)
        self.at += 1
        self._next()
        return name

    def _value(self) -> Any:
        """A scalar, or a container that is still empty and open."""
        byte = self._peek()
        if byte == b"{":
            self.at += 1
            return {}
        if byte == b"[":
            self.at += 1
            return []
        if byte == b'"':
            return self._string()
        for word, value in ((b"true", True), (b"false", False), (b"null", None)):
            if byte == word[:1]:
                if not self._takes(word):
                    self._fail(INVALID_VALUE)
                return value
        return self._number()

    def _number(self) -> int | float:
        start = self.at
        is_negative = self._takes(b"-")
        byte = self._peek()
        if byte == b"N" or byte == b"I":
            if byte == b"N" and self._takes(b"NaN"):
                return math.nan
            if byte == b"I" and self._takes(b"Inf"):
                if self._peek() != b"i" or self._takes(b"inity"):
                    return -math.inf if is_negative else math.inf
            self._fail(INVALID_VALUE)
        if byte == b"0":
            self.at += 1
        elif not self._digits():
            self._fail(INVALID_VALUE)
        is_integer = True
        if self._takes(b"."):
            is_integer = False
            if not self._digits():
                self._fail("Miss fraction part in number.")
        if self._takes(b"e") or self._takes(b"E"):
            is_integer = False
            if not self._takes(b"+"):
                self._takes(b"-")
            if not self._digits():
                self._fail("Miss exponent in number.")
        try:
            digits = self.text[start : self.at].decode("ascii")
            return _integer(digits) if is_integer else _double(digits)
        except ValueError:
            self._fail(TOO_BIG, start)

    def _digits(self) -> bool:
        start = self.at
        self.at = _end(_DIGITS, self.text, self.at)
        return self.at > start

    def _string(self) -> str:
        self.at += 1
        pieces = bytearray()
        while True:
            start = self.at
            self.at = _end(_PLAIN, self.text, start)
            pieces += self.text[start : self.at]
            byte = self._peek()
            if byte == b'"':
                self.at += 1
                return pieces.decode("utf-8", errors="surrogateescape")
            if byte == b"\\":
                pieces += self._escape()
            elif byte == b"\0":
                self._fail("Missing a closing quotation mark in string.")
            else:
                self._fail("Invalid encoding in string.")

    def _escape(self) -> bytes:
        start = self.at
        kind = self.text[start + 1]
        self.at += 2
        if kind in _ESCAPES:
            return bytes([_ESCAPES[kind]])
        if kind != ord("u"):
            self._fail("Invalid escape character in string.", start)
        unit = self._hex(start)
        if not 0xD800 <= unit <= 0xDFFF:
            return chr(unit).encode()
        if unit < 0xDC00 and self._takes(b"\\u"):
            low = self._hex(start)
            if 0xDC00 <= low <= 0xDFFF:
                return chr(0x10000 + ((unit - 0xD800) << 10) + (low - 0xDC00)).encode()
        self._fail("The surrogate pair in string is invalid.", start)

    def _hex(self, escape_start: int) -> int:
        match = _HEX.match(self.text, self.at)
        if not match:
            self._fail("Incorrect hex digit after \\u escape in string.", escape_start)
        self.at += 4
        return int(match[0], 16)

    def _next(self) -> bytes:
        self.at = _end(_SPACE, self.text, self.at)
        return self._peek()

    def _peek(self) -> bytes:
        return self.text[self.at : self.at + 1]

    def _takes(self, word: bytes) -> bool:
        """Reads `word`; at something else it stops before the first byte that differs."""
        for byte in word:
            if self.text[self.at] != byte:
                return False
            self.at += 1
        return True

    def _fail(self, fault: str, at: int | None = None) -> NoReturn:
        raise _parse_error(fault, self.at if at is None else at)


def _end(pattern: re.Pattern[bytes], text: bytes, at: int) -> int:
    match = pattern.match(text, at)
    return match.end() if match else at


def _parse_error(fault: str, offset: int) -> ServingError:
    return invalid_argument(f"JSON Parse error: {fault} at offset: {offset}")


# ---------------------------------------------------------------- values in messages


def shown(value: Any) -> str:
    """`JSON Value: <json>` for an error text, as RapidJSON's pretty writer puts it: lists on one
    line, members each on its own. The token that reaches `MAX_SHOWN` is the last one; a number
    that JSON does not know ends the text before it.
    """
    pieces, size = [], 0
    try:
        for token in _tokens(value, "", 0):
            if token is None or size >= MAX_SHOWN:
                break
            pieces.append(token)
            size += len(token.encode("utf-8", errors="surrogateescape"))
    except RecursionError:
        pieces = ["(nested too deeply to show)"]
    text = "".join(pieces).encode("utf-8", errors="surrogateescape").decode(errors="replace")
    return f"JSON Value: {text}"


def _tokens(value: Any, before: str, depth: int) -> Iterator[str | None]:
    """The value's tokens, each with the white space before it; None where the writer gives up."""
    if isinstance(value, dict):
        yield before + "{"
        indent = "\n" + INDENT * depth
        for i, (name, member) in enumerate(value.items()):
            yield ("," if i else "") + indent + INDENT + _quoted(name)
            yield from _tokens(member, ": ", depth + 1)
        yield indent + "}" if value else "}"
    elif isinstance(value, list):
        yield before + "["
        for i, item in enumerate(value):
            yield from _tokens(item, ", " if i else "", depth + 1)
        yield "]"
    elif isinstance(value, str):
        yield before + _quoted(value)
    elif isinstance(value, float):
        yield before + (_shown_double(value) if math.isfinite(value) else "")
        if not math.isfinite(value):
            yield None
    else:
        yield before + json.dumps(value)


def _quoted(text: str) -> str:
    return f'"{text.translate(_WRITTEN_ESCAPES)}"'


def _shown_double(number: float) -> str:
    """Shortest digits, as in RapidJSON with an exponent from 1e21 up and below 1e-6 only."""
    sign, digits, exponent = Decimal(repr(number)).normalize().as_tuple()
    text, minus = "".join(map(str, digits)), "-" * sign
    point = len(text) + int(exponent)  # digits before the point
    if number == 0:
        return f"{minus}0.0"
    if not -6 < point <= 21:
        return f"{minus}{text[0]}{'.' * (len(text) > 1)}{text[1:]}e{point - 1}"
    if point <= 0:
        return f"{minus}0.{'0' * -point}{text}"
    return f"{minus}{text[:point].ljust(point, '0')}.{text[point:] or '0'}"
