"""The encoding of a user's file, guessed and named; damaged bytes stay visible.

Bytes that do not fit the encoding come out as lone surrogates (U+D800 to U+DFFF), which no
correct text contains: `is_damaged` finds the rows that hold them, so they can be reported.
"""

import codecs
import re

SAMPLE_BYTES = 64 * 1024

# The longer mark first: UTF-32's begins with UTF-16's.
BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)

# What users' files are in, as charset-normalizer spells it. Left to all of its hundred encodings
# it takes a few French words for Mac Central European.
CANDIDATES = ["gb18030", "big5", "cp1252", "shift_jis", "euc_kr", "cp1251"]

NAMES = {
    "utf-8": "UTF-8",
    "utf-8-sig": "UTF-8 with a byte order mark",
    "utf-16": "UTF-16",
    "utf-16-le": "UTF-16 (little-endian)",
    "utf-16-be": "UTF-16 (big-endian)",
    "utf-32": "UTF-32",
    "gb18030": "GB18030",
    "big5": "Big5",
    "cp1252": "Windows-1252",
    "cp1251": "Windows-1251",
    "shift_jis": "Shift JIS",
    "euc_kr": "EUC-KR",
}

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


def decode(data: bytes) -> tuple[str, str]:
    """The text of `data`, and the name of its encoding for people.

    UTF-8 comes first, also with a few damaged lines; then UTF-16 by its zero bytes, then a guess
    by charset-normalizer among `CANDIDATES`.
    """
    codec = _codec_of(data)
    if codec.startswith(("utf-16", "utf-32")):
        width = 2 if codec.startswith("utf-16") else 4
        whole, rest = data[: len(data) // width * width], len(data) % width
        text = whole.decode(codec, errors="surrogatepass") + "\udc80" * bool(rest)
    else:
        text = data.decode(codec, errors="surrogateescape")
    return text, NAMES[codec]


def is_damaged(text: str) -> bool:
    """Whether `text` holds bytes that did not fit the encoding, or half of a character."""
    return _LONE_SURROGATE.search(text) is not None


def _codec_of(data: bytes) -> str:
    for mark, codec in BYTE_ORDER_MARKS:
        if data.startswith(mark):
            return codec
    head = data[:SAMPLE_BYTES]
    # Plain English in UTF-16 is valid UTF-8 with a zero after each letter, so this comes before it.
    if head.count(0) > len(head) // 5:
        return _utf16_order(head)
    if _is_utf8(data):
        return "utf-8"
    if 0 in head:
        return _utf16_order(head)
    telling = [line for line in data.split(b"\n") if not line.isascii()]
    # No other encoding of half of these lines would pass as UTF-8 by chance.
    if 2 * sum(map(_is_utf8, telling)) >= len(telling):
        return "utf-8"
    return _guess(b"\n".join(telling)[:SAMPLE_BYTES])


def _guess(sample: bytes) -> str:
    from charset_normalizer import from_bytes

    # The default threshold gives up on French full of accents; better a guess, as it is named.
    for threshold in (0.2, 0.8):
        best = from_bytes(sample, cp_isolation=CANDIDATES, threshold=threshold).best()
        if best is not None and best.encoding in CANDIDATES:
            return best.encoding
    return "cp1252"


def _utf16_order(head: bytes) -> str:
    # A zero is the high byte of an ASCII character: second in little-endian, first in big-endian.
    return "utf-16-le" if head[1::2].count(0) >= head[::2].count(0) else "utf-16-be"


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
