"""What a case is, and the rows of TensorFlow Serving's table of error texts."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

# In the order of the protocol's own table. Every one has a case with the exact text.
ERRORS = (
    "unknown model, no version",
    "unknown version",
    "unknown label",
    "status of an unknown model",
    "status of an unknown version",
    "unknown signature, REST predict",
    "unknown signature, gRPC Predict",
    "unknown signature, classify and regress",
    "signature without inputs, REST",
    "empty body",
    "malformed JSON",
    "top level not an object",
    "signature_name not a string",
    "neither key",
    "both keys",
    "instances not a list",
    "instances empty",
    "plain rows, several inputs",
    "plain columns, several inputs",
    "missing input, columns",
    "wrong keys in a row",
    "error in a row",
    "error in a row of objects",
    "inner: unknown input",
    "inner: wrong type",
    "inner: rows differ in size",
    "inner: rows differ in shape",
    "uneven lists",
    "too deep",
    "too shallow",
    "mixed rows, object first",
    "mixed rows, value first",
    "bad base64",
    "no base64 object",
    "examples missing",
    "examples not a list",
    "examples empty",
    "wrong shape inside the graph",
    "no such URL or verb",
    "version beyond int64",
    "scalar output in rows",
    "uneven outputs in rows",
    "type that JSON cannot hold, input",
    "type that JSON cannot hold, output",
)


class Raw(str):
    """A body to the letter, but for white space."""


@dataclass(frozen=True)
class Case:
    """A request and its answer.

    An answer that is a `Raw` is the body, a string the exact text of the error (or a body that is
    no JSON), a pattern is searched for in that; anything else is the value, numbers within 1e-5,
    where further keys of an object are not looked at. `headers` of an answer: None is absent.
    `needs` names the feature without which a server is not asked; `rows` are of `ERRORS`.
    """

    name: str  # verb and path, or method
    request: Any
    status: int | str
    answer: Any
    rows: tuple[str, ...] = ()
    needs: str = ""
    sent_headers: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str | None] = field(default_factory=dict)


def words(text: str) -> re.Pattern[str]:
    """These words, anywhere."""
    return re.compile(re.escape(text))


def is_exact(answer: Any) -> bool:
    return isinstance(answer, str) or (isinstance(answer, re.Pattern) and "$" in answer.pattern)
