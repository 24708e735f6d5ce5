"""Fetches one address into one file: resumed after a break, checked, renamed into place."""

import gzip
import hashlib
import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from training.datasets.config import DatasetError

if TYPE_CHECKING:
    import requests

logger = logging.getLogger(__name__)

TRANSIENT_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})
CHUNK_BYTES = 1 << 13  # what a break may cost: urllib3 drops the chunk it happens in
LONGEST_WAIT_SECONDS = 60.0


class DownloadError(DatasetError):
    """A download that failed for good. `is_offline`: the server could not be reached at all."""

    def __init__(self, message: str, *, is_offline: bool = False):
        super().__init__(message)
        self.is_offline = is_offline


class _Interrupted(Exception):
    """A fault that may pass: worth another attempt from where the file ends."""

    def __init__(self, reason: str, *, is_offline: bool = False, wait_seconds: float = 0.0):
        super().__init__(reason)
        self.is_offline = is_offline
        self.wait_seconds = wait_seconds


def sha256_of(path: Path) -> str:
    """The sha256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return sha256_of_stream(file)


def sha256_of_stream(stream: BinaryIO | gzip.GzipFile) -> str:
    """The sha256 of what a binary stream still holds."""
    digest = hashlib.sha256()
    while chunk := stream.read(1 << 20):
        digest.update(chunk)
    return digest.hexdigest()


def download(
    url: str,
    target: Path,
    *,
    sha256: str | None = None,
    attempts: int = 4,
    backoff_seconds: float = 1.0,
    timeout_seconds: tuple[float, float] = (10.0, 60.0),
) -> None:
    """Writes what `url` holds to `target`, by way of `target` + ".part".

    A ".part" left by an earlier break is continued with a Range request; a server that ignores the
    range sends everything again. `attempts` counts tries in a row that bring no new byte, with
    `backoff_seconds`, twice that, ... between them. `timeout_seconds` is (connect, read).
    Raises `DownloadError`; a file with the wrong sha256 is removed first.
    """
    import requests

    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    was_resumed = _size(part) > 0
    with requests.Session() as session:
        _fetch(session, url, part, attempts, backoff_seconds, timeout_seconds)
        received = sha256_of(part)
        if sha256 is not None and received != sha256 and was_resumed:
            # The old half may be of another version of the file: once more from the beginning.
            logger.warning("%s does not fit its earlier part; starting again.", target.name)
            part.unlink()
            _fetch(session, url, part, attempts, backoff_seconds, timeout_seconds)
            received = sha256_of(part)
    if sha256 is not None and received != sha256:
        part.unlink()
        raise DownloadError(
            f"what {url} sent has sha256 {received[:12]}..., expected {sha256[:12]}...; "
            "the file was removed"
        )
    part.replace(target)


def _fetch(
    session: "requests.Session",
    url: str,
    part: Path,
    attempts: int,
    backoff_seconds: float,
    timeout_seconds: tuple[float, float],
) -> None:
    failures = 0
    while True:
        size_before = _size(part)
        try:
            _append(session, url, part, timeout_seconds)
            return
        except _Interrupted as fault:
            failures = 1 if _size(part) > size_before else failures + 1
            if failures >= attempts:
                raise DownloadError(
                    f"{url}: {fault}, after {attempts} attempts", is_offline=fault.is_offline
                ) from fault
            wait = max(backoff_seconds * 2 ** (failures - 1), fault.wait_seconds)
            logger.warning("%s: %s; trying again in %.0f s.", url, fault, wait)
            time.sleep(min(wait, LONGEST_WAIT_SECONDS))


def _append(
    session: "requests.Session", url: str, part: Path, timeout_seconds: tuple[float, float]
) -> None:
    """One request for all after the end of `part`. Raises `_Interrupted` to be called again."""
    import requests
    from tqdm import tqdm

    start = _size(part)
    # Without "identity" a server may pack the bytes, and a range would count the packed ones.
    headers = {"Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    try:
        with session.get(url, headers=headers, stream=True, timeout=timeout_seconds) as response:
            if response.status_code == 416:  # nothing after `start`: complete, or not this file
                if response.headers.get("Content-Range", "").endswith(f"/{start}"):
                    return
                part.unlink()
                raise _Interrupted("the server refused to continue the file")
            _check_status(url, response)
            is_continued = response.status_code == 206 and response.headers.get(
                "Content-Range", ""
            ).startswith(f"bytes {start}-")
            if not is_continued:
                start = 0
            expected = _expected_size(response, start)
            with (
                part.open("ab" if is_continued else "wb") as file,
                tqdm(
                    desc=part.name.removesuffix(".part"),
                    initial=start,
                    total=expected,
                    unit="B",
                    unit_scale=True,
                    leave=False,
                    disable=None,  # no bar where standard error is not a terminal
                ) as progress,
            ):
                for chunk in response.iter_content(CHUNK_BYTES):
                    file.write(chunk)
                    progress.update(len(chunk))
    except requests.exceptions.ConnectTimeout as error:
        raise _Interrupted("no connection (timed out)", is_offline=True) from error
    except requests.exceptions.ChunkedEncodingError as error:
        raise _Interrupted("the connection broke off") from error
    except requests.exceptions.Timeout as error:
        raise _Interrupted("the server stopped sending") from error
    except requests.exceptions.ConnectionError as error:
        # Before the first byte it is the network; requests also uses it for a read that breaks off.
        is_offline = _size(part) == start
        reason = "no connection" if is_offline else "the connection broke off"
        raise _Interrupted(reason, is_offline=is_offline) from error
    except requests.exceptions.RequestException as error:
        raise DownloadError(f"{url}: {error}") from error
    if expected is not None and _size(part) < expected:
        raise _Interrupted(f"the connection broke off at {_size(part):,} of {expected:,} bytes")


def _check_status(url: str, response: "requests.Response") -> None:
    if response.status_code in TRANSIENT_STATUS:
        retry_after = response.headers.get("Retry-After", "")
        raise _Interrupted(
            f"the server answered {response.status_code} {response.reason}",
            wait_seconds=float(retry_after) if retry_after.isdigit() else 0.0,
        )
    if response.status_code not in (200, 206):
        raise DownloadError(f"{url}: the server answered {response.status_code} {response.reason}")


def _expected_size(response: "requests.Response", start: int) -> int | None:
    """Bytes of the whole file, or None where the server does not say or packed them after all."""
    length = response.headers.get("Content-Length")
    if length is None or response.headers.get("Content-Encoding", "identity") != "identity":
        return None
    return start + int(length)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
