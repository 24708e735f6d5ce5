"""Every tokenizer once more in plain Python, from its definition: slow, and without TensorFlow.

Each takes the bytes of one text, UTF-8 or not, and returns the ids.
"""

import functools
import itertools
import re
import unicodedata
from collections import Counter

import numpy as np
import regex  # re knows no scripts

UNKNOWN, FIRST_BYTE = 1, 4
_BLANKS = " \t\n\v\f\r"  # of ASCII
_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
_ALONE = regex.compile(rf"[{_UNSPACED}]|[^\p{{L}}\p{{M}}\p{{N}}' \t\n\f\r]")
_IGNORABLE = regex.compile(r"\p{Default_Ignorable_Code_Point}+")
# Bytes that are not UTF-8 are decoded as surrogates, which no class below has.
_PIECE = regex.compile(r"( ?[\p{L}\p{M}]+| ?\p{N}+| ?[^ \t\n\f\r\p{Z}\p{L}\p{M}\p{N}\p{Cs}]+)")


def normalized(data, form, simplified=None):
    text = data.decode("utf-8", "replace")
    if form != "none":
        text = unicodedata.normalize("NFKC", text)
    if form == "nfkc_cf":
        text = unicodedata.normalize("NFC", "".join(map(_nfkc_casefold, text)))
    return "".join((simplified or {}).get(character, character) for character in text)


@functools.cache
def _nfkc_casefold(character):
    """Unicode's NFKC_Casefold of one character (The Unicode Standard, sec. 3.13, R5)."""
    before, after = None, character
    while after != before:
        before = after
        after = unicodedata.normalize("NFKC", _IGNORABLE.sub("", before.casefold()))
    return after


def words(data, form="nfkc_cf", simplified=None):
    text = normalized(data, form, simplified).replace("’", "'")
    text = _ALONE.sub(lambda match: f" {match[0]} ", text)
    return [word for word in re.split(f"[{_BLANKS}]+", text) if word]


def word_ids(data, vocabulary, max_tokens, **how):
    ids = {word: i for i, word in enumerate(vocabulary, 2)}
    return [ids.get(word, UNKNOWN) for word in words(data, **how)][:max_tokens]


def character_ids(data, vocabulary, max_tokens, form, simplified=None):
    ids = {character: i for i, character in enumerate(vocabulary, 2)}
    text = normalized(data, form, simplified)
    return [ids.get(character, UNKNOWN) for character in text][:max_tokens]


def ngram_ids(data, *, max_ngram, characters, num_buckets, has_counts, **how):
    """`characters` are the widths of character n-grams."""
    found, split = [], words(data, **how)
    for width in range(1, max_ngram + 1):
        for i in range(len(split) - width + 1):
            found.append(" ".join(split[i : i + width]))
    for word, width in itertools.product(split, characters):
        marked = f"<{word}>"
        for i in range(len(marked) - width + 1):
            found.append("\x01" + marked[i : i + width])
    counts = Counter(fingerprint64(gram.encode()) % num_buckets + 1 for gram in found)
    times = {i: min(count, 64) - 1 if has_counts else 0 for i, count in counts.items()}
    return [i + times[i] * (num_buckets + 1) for i in sorted(counts)]


def wordpiece_ids(data, vocabulary, max_tokens, **how):
    ids = {piece: i for i, piece in enumerate(vocabulary, 2)}
    return [i for word in words(data, **how) for i in _wordpieces(word, ids)][:max_tokens]


def _wordpieces(word, ids):
    if len(word.encode()) > 100:
        return [UNKNOWN]
    found, start = [], 0
    while start < len(word):
        for end in range(len(word), start, -1):
            piece = ("##" if start else "") + word[start:end]
            if piece in ids:
                found.append(ids[piece])
                start = end
                break
        else:
            return [UNKNOWN]
    return found


def bytes_ids(data, max_tokens=None):
    return [byte + FIRST_BYTE for byte in data][:max_tokens]


def byte_bpe_ids(data, merges, max_tokens=None, form="none", simplified=None):
    if form != "none" or simplified:
        data = normalized(data, form, simplified).encode()
    ranks = {tuple(pair): rank for rank, pair in enumerate(merges)}
    found = []
    for piece in _PIECE.split(data.decode("utf-8", "surrogateescape")):
        piece = piece.encode("utf-8", "surrogateescape")
        for start in range(0, len(piece), 48):
            found += _merged([byte + FIRST_BYTE for byte in piece[start : start + 48]], ranks)
    return found[:max_tokens]


def _merged(symbols, ranks):
    while True:
        known = [pair for pair in itertools.pairwise(symbols) if pair in ranks]
        if not known:
            return symbols
        best = min(known, key=ranks.__getitem__)
        joined = []
        while symbols:
            if tuple(symbols[:2]) == best:
                joined.append(260 + ranks[best])
                symbols = symbols[2:]
            else:
                joined.append(symbols[0])
                symbols = symbols[1:]
        symbols = joined


# SentencePiece ------------------------------------------------------------------------------------


class SentencePiece:
    """Encodes by a ModelProto: unigram by Viterbi, bpe by merging, char by characters."""

    def __init__(self, proto):
        self.kind = {1: "unigram", 2: "bpe", 4: "char"}[proto.trainer_spec.model_type]
        self.scores, self.ids, self.byte_ids = {}, {}, {}
        self.own = {piece.piece for piece in proto.pieces if piece.type == 4}  # user-defined
        for i, piece in enumerate(proto.pieces):
            if piece.type == 6:
                self.byte_ids[int(piece.piece[1:-1], 16)] = i
            elif piece.type in (1, 4):  # normal or user-defined, not a control symbol
                self.ids[piece.piece], self.scores[piece.piece] = i, piece.score
        normal = [score for piece, score in self.scores.items() if piece not in self.own]
        self.unknown, most = float(np.float32(min(normal)) - np.float32(10)), max(normal)
        self.longest = max(map(len, self.ids))
        for piece in self.own:
            self.scores[piece] = len(piece.encode()) * most - 0.1

    def __call__(self, data, max_tokens=None, form="none", simplified=None):
        text = normalized(data, form, simplified).replace("\r\n", "\n").replace(" ", "▁")
        found = []
        for piece in getattr(self, "_" + self.kind)(text):
            if piece in self.ids:
                found.append(self.ids[piece])
            elif self.byte_ids:
                found += [self.byte_ids[byte] for byte in piece.encode()]
            elif found[-1:] != [UNKNOWN]:  # one for all that are beside each other
                found.append(UNKNOWN)
        return found[:max_tokens]

    def _char(self, text):
        return list(text)

    def _unigram(self, text):
        """The most probable cut (Kudo, 2018, sec. 3.2); sums are kept in float32, as there."""
        best = [(0.0, 0)] + [None] * len(text)
        for start in range(len(text)):
            for end in range(start + 1, min(start + self.longest, len(text)) + 1):
                piece = text[start:end]
                if piece in self.scores:
                    score = self.scores[piece]
                elif end == start + 1:
                    score = self.unknown
                else:
                    continue
                score += best[start][0]
                if best[end] is None or score > best[end][0]:
                    best[end] = (float(np.float32(score)), start)
        pieces, end = [], len(text)
        while end:
            pieces.append(text[best[end][1] : end])
            end = best[end][1]
        return pieces[::-1]

    def _bpe(self, text):
        symbols = list(text)
        while True:
            known = [
                (-self.scores[left + right], i)
                for i, (left, right) in enumerate(itertools.pairwise(symbols))
                if left + right in self.scores and not {left, right} & self.own
            ]
            if not known:
                return symbols
            _, i = min(known)
            symbols[i : i + 2] = [symbols[i] + symbols[i + 1]]


# FarmHash -----------------------------------------------------------------------------------------

_MASK = 2**64 - 1
_K0, _K1, _K2 = 0xC3A5C85C97CB3127, 0xB492B66FBE98F273, 0x9AE16A3B2F90404F


def _rotate(value, shift):
    value &= _MASK
    return (value >> shift | value << (64 - shift)) & _MASK


def _mix(value):
    value &= _MASK
    return value ^ value >> 47


def _pair(u, v, mul):
    a = _mix(((u ^ v) & _MASK) * mul)
    return _mix((v ^ a) * mul) * mul & _MASK


def _weak(s, at, a, b):
    w, x, y, z = (int.from_bytes(s[i : i + 8], "little") for i in range(at, at + 32, 8))
    a = (a + w) & _MASK
    b = _rotate(b + a + z, 21)
    c, a = a, a + x + y
    return (a + z) & _MASK, (b + _rotate(a, 44) + c) & _MASK


def fingerprint64(s):
    """FarmHash's Fingerprint64 (farmhashna::Hash64), which TensorFlow's buckets are made by."""
    n = len(s)
    mul = _K2 + 2 * n

    def fetch(at, size=8):
        return int.from_bytes(s[at : at + size], "little")

    if n == 0:
        return _K2
    if n < 4:
        y, z = s[0] + (s[n >> 1] << 8), n + (s[n - 1] << 2)
        return _mix(y * _K2 ^ z * _K0) * _K2 & _MASK
    if n < 8:
        return _pair(n + (fetch(0, 4) << 3), fetch(n - 4, 4), mul)
    if n <= 16:
        a, b = fetch(0) + _K2, fetch(n - 8)
        return _pair(_rotate(b, 37) * mul + a, (_rotate(a, 25) + b) * mul & _MASK, mul)
    if n <= 64:
        a, b = fetch(0) * (_K1 if n <= 32 else _K2), fetch(8)
        c, d = fetch(n - 8) * mul, fetch(n - 16) * _K2
        y = _rotate(a + b, 43) + _rotate(c, 30) + d
        z = _pair(y, (a + _rotate(b + _K2, 18) + c) & _MASK, mul)
        if n <= 32:
            return z
        e, f = fetch(16) * mul, fetch(24)
        g, h = (y + fetch(n - 32)) * mul, (z + fetch(n - 24)) * mul
        return _pair(
            _rotate(e + f, 43) + _rotate(g, 30) + h,
            (e + _rotate(f + a, 18) + g) & _MASK,
            mul,
        )
    x, y = 81, 81 * _K1 + 113
    z = _mix(y * _K2 + 113) * _K2
    v, w = (0, 0), (0, 0)
    x = x * _K2 + fetch(0)

    def turn(at, x, y, z, v, w, mul, ninth):
        x = _rotate(x + y + v[0] + fetch(at + 8), 37) * mul
        y = _rotate(y + v[1] + fetch(at + 48), 42) * mul
        x = (x ^ w[1] * ninth) & _MASK
        y += v[0] * ninth + fetch(at + 40)
        z = _rotate(z + w[0], 33) * mul
        v = _weak(s, at, v[1] * mul, x + w[0])
        w = _weak(s, at + 32, z + w[1], y + fetch(at + 16))
        return z, y, x, v, w  # x and z trade places

    for at in range(0, (n - 1) // 64 * 64, 64):
        x, y, z, v, w = turn(at, x, y, z, v, w, _K1, 1)
    mul = _K1 + ((z & 0xFF) << 1)
    w = (w[0] + ((n - 1) & 63), w[1])
    v = (v[0] + w[0], v[1])
    w = (w[0] + v[0], w[1])
    x, y, z, v, w = turn(n - 64, x, y, z, v, w, mul, 9)
    u = _pair(v[0] & _MASK, w[0] & _MASK, mul) + _mix(y) * _K0 + z
    return _pair(u & _MASK, (_pair(v[1], w[1], mul) + x) & _MASK, mul)
