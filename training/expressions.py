"""The small language of settings: `lookahead(sam(accumulate(adamw, 4)), k=5)`, `cosine(1, 0.1)`.

An expression is read as a tree of names and numbers and never run. What a name means, and which
numbers it takes, is the business of the table that it is looked up in.
"""

from __future__ import annotations

import ast
import math
import re
import sys
from dataclasses import dataclass, field

_WORDS = {"true": True, "false": False, "none": None}
_NUMBER = r"-?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_SHORT = re.compile(rf"\s*([A-Za-z]\w*)\s*(?::\s*({_NUMBER}(?:x{_NUMBER})*))?\s*", re.ASCII)


@dataclass(frozen=True)
class Call:
    """A name with what stands in its brackets; a bare name is a call without arguments.

    Arguments and keywords are int, float, bool, None or `Call`. `str` gives the canonical text:
    `parse(str(call)) == call`.

    >>> str(parse("lookahead( sam(adamw()), k = 5 )"))
    'lookahead(sam(adamw), k=5)'
    """

    name: str
    arguments: tuple = ()
    keywords: dict = field(default_factory=dict, hash=False)

    def __str__(self) -> str:
        inside = [_text(value) for value in self.arguments]
        inside += [f"{name}={_text(value)}" for name, value in self.keywords.items()]
        return f"{self.name}({', '.join(inside)})" if inside else self.name


Value = int | float | bool | None | Call


def parse(text: str, setting: str = "expression") -> Call:
    """The call that `text` spells; ValueError, naming `setting`, for anything else."""
    value = parse_value(text, setting)
    if not isinstance(value, Call):
        raise ValueError(
            f"{setting} must be a name, or a name with arguments in brackets. Received: {text!r}"
        )
    return value


def parse_value(text: str, setting: str = "expression") -> Value:
    """Like `parse`, but a number, `true`, `false` or `none` may stand alone."""
    text = text.strip()
    try:
        tree = ast.parse(text, mode="eval")
    except SyntaxError as error:
        where = f" at character {error.offset}" if error.offset else ""
        raise ValueError(
            f"{setting} must be names, numbers, commas and brackets, for example "
            f"name(1, key=0.5): {error.msg}{where}. Received: {text!r}"
        ) from None
    except (ValueError, RecursionError, MemoryError) as error:  # a zero byte; nested too deep
        raise ValueError(f"{setting} cannot be read: {error}. Received: {text!r}") from None
    return _Reader(text, setting).read(tree.body)


@dataclass(frozen=True)
class _Reader:
    text: str
    setting: str

    def read(self, node: ast.expr) -> Value:
        match node:
            case ast.Name(id=name):
                return _WORDS[name.lower()] if name.lower() in _WORDS else Call(name)
            case ast.Constant(value=(bool() | None) as word):  # as Python spells them
                return word
            case ast.Constant(value=int() | float() as number):
                return self._finite(node, number)
            case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as number)):
                if not isinstance(number, bool):
                    return self._finite(node, -number)
            case ast.Call(func=ast.Name(id=name)) if name.lower() not in _WORDS:
                return Call(name, tuple(map(self.read, node.args)), self._keywords(node))
        raise self._error(node, "a number, true, false, none, a name or name(...)")

    def _keywords(self, call: ast.Call) -> dict:
        keywords: dict = {}
        for keyword in call.keywords:
            if keyword.arg is None:
                raise self._error(keyword, "name=value")
            if keyword.arg in keywords:
                raise self._error(keyword, f"{keyword.arg} once")
            keywords[keyword.arg] = self.read(keyword.value)
        return keywords

    def _finite(self, node: ast.expr, number: int | float) -> int | float:
        if abs(number) > sys.float_info.max:
            raise self._error(node, "a finite number")
        return number

    def _error(self, node: ast.expr | ast.keyword, expected: str) -> ValueError:
        part = ast.get_source_segment(self.text, node)
        line = self.text.splitlines()[node.lineno - 1].encode()  # columns are counted in bytes
        place = len(line[: node.col_offset].decode()) + 1
        return ValueError(
            f"{self.setting} expects {expected} at character {place} of {self.text!r}. "
            f"Received: {part}"
        )


def parse_short(text: str, setting: str = "expression") -> list[tuple[str, tuple]]:
    """The short form of the command line: (name, numbers) of each part, the outermost first.

    >>> parse_short("lookahead:5x0.5+sam")
    [('lookahead', (5, 0.5)), ('sam', ())]
    """
    parts = []
    for part in re.split(r"\+(?!\d)", text):  # but not within 1e+3
        match = _SHORT.fullmatch(part)
        if not match:
            raise ValueError(
                f"{setting} takes name, name:number or name:numberxnumber, joined by '+', for "
                f"example diloco:4x20 or lookahead:5+sam. Received: {part!r} in {text!r}"
            )
        name, numbers = match[1], match[2].split("x") if match[2] else []
        if not all(math.isfinite(float(number)) for number in numbers):
            raise ValueError(f"{setting} takes finite numbers. Received: {part!r} in {text!r}")
        parts.append((name, tuple(map(_number, numbers))))
    return parts


def _number(text: str) -> int | float:
    return int(text) if re.fullmatch(r"-?\d+", text) else float(text)


def _text(value: Value) -> str:
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)
