"""The id by which a request is known in its answer and in logs."""

import random
import re
from collections.abc import Mapping

REQUEST_ID = "x-request-id"
_NOT_PLAIN = re.compile(r"[^A-Za-z0-9._:/-]")


def request_id_of(headers: Mapping[str, str]) -> str:
    """The caller's, if it can stand in a header and a log, else a new one of 32 hex digits."""
    given = headers.get(REQUEST_ID, "")
    if 0 < len(given) <= 128 and not _NOT_PLAIN.search(given):
        return given
    return f"{random.getrandbits(128):032x}"  # it is no secret
