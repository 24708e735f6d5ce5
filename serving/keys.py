"""Who may ask: keys from a file or the environment, the same for REST and gRPC."""

import hashlib
import hmac
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from serving.config import ConfigError, ServerConfig
from serving.errors import Code, ServingError

API_KEYS, ADMIN_KEYS = "STEPWISE_API_KEYS", "STEPWISE_ADMIN_KEYS"
MIN_CHARACTERS = 16


class Keys:
    """Those that may call models, and those that may change what is served besides.

    Only digests are kept, all of one length, so that comparing takes the same time for every key.
    """

    def __init__(self, users: Iterable[str] = (), admins: Iterable[str] = ()) -> None:
        self._admins = [_digest(key) for key in admins]
        self._users = [_digest(key) for key in users]

    @classmethod
    def from_config(cls, config: ServerConfig) -> "Keys":
        """Keys of the two files and the two variables. Raises ConfigError for unusable ones."""
        return cls(
            read_keys("--api-keys-file", config.api_keys_file, API_KEYS),
            read_keys("--admin-keys-file", config.admin_keys_file, ADMIN_KEYS),
        )

    @property
    def are_asked_for(self) -> bool:
        return bool(self._users or self._admins)

    def check(self, headers: Mapping[str, str], *, admin: bool = False) -> str:
        """Whose request this is: a short name of the key, empty when none is asked for.

        `headers` by lower-case name: `authorization: Bearer KEY` or `x-api-key: KEY`. An admin's
        key opens all; where only API keys are set, nothing that wants an admin is allowed. Raises
        ServingError: UNAUTHENTICATED without a valid key, PERMISSION_DENIED with one that may not.
        """
        if not self.are_asked_for:
            return ""
        scheme, _, bearer = headers.get("authorization", "").partition(" ")
        key = headers.get("x-api-key") or (bearer.strip() if scheme.lower() == "bearer" else "")
        given = _digest(key)
        is_admin = _is_one_of(given, self._admins)
        is_user = _is_one_of(given, self._users)
        if not (is_admin or is_user):
            if not self._users and not admin:
                return ""  # only what wants an admin is locked
            what = "This key is not known" if key else "A key is missing"
            raise ServingError(
                Code.UNAUTHENTICATED,
                f"{what}; send one as 'Authorization: Bearer KEY' or 'x-api-key: KEY'.",
            )
        if admin and not is_admin:
            raise ServingError(
                Code.PERMISSION_DENIED,
                f"This wants an admin's key, of --admin-keys-file or {ADMIN_KEYS}.",
            )
        return given.hex()[:8]


def read_keys(flag: str, path: Path | None, variable: str) -> list[str]:
    """Those of a variable and, a line each, of a file. Raises ConfigError for unusable ones."""
    words = os.environ.get(variable, "").replace(",", " ").split()
    if path is not None:
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{flag} {path} cannot be read: {error}") from error
        found = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
        if not found:
            raise ConfigError(f"{flag} {path} holds no key; write one a line")
        words += found
    for word in words:
        if len(word) < MIN_CHARACTERS or not word.isascii() or not word.isprintable():
            raise ConfigError(
                f"A key of {flag} or {variable} must be at least {MIN_CHARACTERS} plain ASCII "
                f"characters. Received one of {len(word)}; make one with: openssl rand -hex 24"
            )
    return words


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode(errors="surrogateescape")).digest()


def _is_one_of(given: bytes, known: list[bytes]) -> bool:
    """Compares with all of them, whichever is right."""
    found = False
    for key in known:
        found |= hmac.compare_digest(given, key)
    return found
