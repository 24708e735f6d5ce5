"""Texts of many scripts, of emoji, of blanks and controls, and of bytes that are no text."""

import random
import unicodedata

# Blocks that have been as they are for many years, so that every library knows them alike.
_BLOCKS = [
    (0x20, 0x7F),  # ASCII, four times
    (0x20, 0x7F),
    (0x41, 0x7B),
    (0x61, 0x7B),
    (0x00, 0x20),  # controls
    (0x7F, 0x100),
    (0x100, 0x250),  # Latin
    (0x300, 0x370),  # combining marks
    (0x370, 0x3FF),  # Greek
    (0x400, 0x530),  # Cyrillic
    (0x5D0, 0x5EB),  # Hebrew
    (0x620, 0x660),  # Arabic
    (0x660, 0x66A),  # its digits
    (0x905, 0x950),  # Devanagari
    (0xB95, 0xBC3),  # Tamil
    (0xE01, 0xE3B),  # Thai
    (0xE81, 0xEC0),  # Lao
    (0xF40, 0xF70),  # Tibetan
    (0x1000, 0x1050),  # Myanmar
    (0x1100, 0x1200),  # Hangul letters
    (0x1780, 0x17D4),  # Khmer
    (0x1E00, 0x2000),  # Latin and Greek with marks
    (0x2000, 0x2065),  # punctuation, blanks, marks without width
    (0x2070, 0x20B0),  # superscripts, currencies
    (0x2100, 0x2190),  # letter-like, Roman numerals
    (0x2460, 0x2500),  # in circles
    (0x2600, 0x27C0),  # symbols
    (0x3000, 0x3040),  # Chinese punctuation
    (0x3041, 0x3100),  # Hiragana, Katakana
    (0x3200, 0x3400),  # in circles and squares
    (0x4E00, 0x9FA6),  # Chinese, twice
    (0x4E00, 0x5000),
    (0xAC00, 0xD7A4),  # Hangul
    (0xE000, 0xE010),  # private use
    (0xF900, 0xFA0E),  # compatibility ideographs
    (0xFB00, 0xFB07),  # ligatures
    (0xFB50, 0xFBB2),  # Arabic forms
    (0xFE00, 0xFE10),  # variation selectors
    (0xFE70, 0xFEFD),
    (0xFF01, 0xFFEF),  # full and half width
    (0x1D400, 0x1D7CA),  # mathematical letters
    (0x1F1E6, 0x1F200),  # flags
    (0x1F300, 0x1F5FF),  # emoji, twice
    (0x1F600, 0x1F650),
    (0x20000, 0x20100),  # Chinese, extension B
]
_ALPHABETS = [
    [chr(code) for code in range(*block) if unicodedata.category(chr(code)) != "Cn"]
    for block in _BLOCKS
]
_PIECES = [
    *" ", *" ", " ", "  ", "\n", "\r\n", "\r", "\t", "\v", "\f", "\0", "\x1c", "\x85", "\xa0",
    "\u3000", "\u2028", "\u2581", "'", "’", "'s", "n't", "...", "the", " the", "The", "cat",
    "tion", "aaaaaaaa", "1234567", "天气", "今天", "，", "漢語", "[UNK]", "##s", "<s>", "</s>",
    "<0x41>", "ß", "ẞ", "İ", "ı", "ŉ", "ǰ", "ΐ", "ﬃ", "ς", "Σ", "ſ", "\u0345", "e\u0301",
    "가", "\u1100\u1161", "ﾊﾟ", "①", "㍿", "½", "\ufeff", "\ufffe", "\U0010ffff", "\u200d",
    "👨\u200d👩\u200d👧\u200d👦", "👍🏽", "🇨🇳", "1\ufe0f\u20e3", "❤\ufe0f",
    "🏴\U000e0067\U000e007f",
]  # fmt: skip
_BAD = [
    b"\xff", b"\xfe", b"\x80", b"\xbf\xbf", b"\xc3", b"\xc0\x80", b"\xc1\xbf", b"\xe4\xbd",
    b"\xe0\x80\x80", b"\xed\xa0\x80", b"\xed\xb0\x80", b"\xed\xa0\xbd\xed\xb8\x80", b"\xf0\x9f\x98",
    b"\xf0\x9f", b"\xf0", b"\xf0\x80\x80\x80", b"\xf4\x90\x80\x80", b"\xf5\x80\x80\x80",
    b"\xf8\x88\x80\x80\x80", b"\xfc\x84\x80\x80\x80\x80", b"\xe4\xe4\xbd\xa0", b"\xc3\x28",
]  # fmt: skip


def random_texts(count, seed, known=()):
    """`count` byte strings; `known` are words that some are made of."""
    draw = random.Random(seed)
    texts = [b"", b"\0", b" ", b"\n", b"\xff", b"a" * 3_000, "猫".encode() * 300]
    texts += [b"", b"x" * 100, b"x" * 101, b" " * 60, b"\xe4" * 60, ("z" * 47 + "é").encode()]
    while len(texts) < count:
        texts.append(b"".join(_piece(draw, known) for _ in range(draw.randrange(1, 9))))
    return texts


def _piece(draw, known):
    kind = draw.random()
    if known and kind < 0.25:
        return draw.choice(known).encode() + (b" " if draw.random() < 0.6 else b"")
    if kind < 0.32:
        return draw.choice(_BAD)
    if kind < 0.55:
        return draw.choice(_PIECES).encode()
    alphabet = draw.choice(_ALPHABETS)
    return "".join(draw.choices(alphabet, k=draw.randrange(1, 7))).encode()
