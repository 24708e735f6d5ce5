"""The one error type of a request, and the one table from gRPC code to HTTP status."""

from enum import Enum


class Code(Enum):
    """Canonical status codes: (number on the wire of gRPC, HTTP status of the REST answer)."""

    OK = (0, 200)
    CANCELLED = (1, 499)
    UNKNOWN = (2, 500)
    INVALID_ARGUMENT = (3, 400)
    DEADLINE_EXCEEDED = (4, 504)
    NOT_FOUND = (5, 404)
    ALREADY_EXISTS = (6, 409)
    PERMISSION_DENIED = (7, 403)
    RESOURCE_EXHAUSTED = (8, 429)
    FAILED_PRECONDITION = (9, 400)
    ABORTED = (10, 409)
    OUT_OF_RANGE = (11, 400)
    UNIMPLEMENTED = (12, 501)
    INTERNAL = (13, 500)
    UNAVAILABLE = (14, 503)
    DATA_LOSS = (15, 500)
    UNAUTHENTICATED = (16, 401)

    @property
    def number(self) -> int:
        return self.value[0]

    @property
    def http_status(self) -> int:
        return self.value[1]


BY_NUMBER = {code.number: code for code in Code}

INTERNAL_TEXT = "The server failed on this request; its log has the details."


class ServingError(Exception):
    """What a caller gets to see: a code and a text. Both front ends answer with it."""

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class VersionRefused(ServingError):
    """A version that may not be served as it is: trying again helps only once its files change."""

    def __init__(self, message: str) -> None:
        super().__init__(Code.FAILED_PRECONDITION, message)


def invalid_argument(message: str) -> ServingError:
    return ServingError(Code.INVALID_ARGUMENT, message)


def as_serving_error(error: Exception) -> ServingError | None:
    """The error as callers may see it, or None for one of ours: a bug, to be logged and hidden.

    TensorFlow's errors are known by their two attributes, so that this file needs no TensorFlow.
    """
    if isinstance(error, ServingError):
        return error
    number, message = getattr(error, "error_code", None), getattr(error, "message", None)
    if isinstance(number, int) and isinstance(message, str) and number in BY_NUMBER:
        return ServingError(BY_NUMBER[number], message)
    return None
