"""What is done to a text before it is split, and reading what a run's folder holds."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf
import tensorflow_text as tf_text

from model.config.tokenizers import NFKC, NFKC_CASE_FOLDED, UNCHANGED

PADDING, UNKNOWN = 0, 1
BEGIN, END = 2, 3  # of a text; tokenizers that write have them

_SIMPLIFIED_FILE = "simplified.json"
_CHUNK = 1024  # texts a call when a corpus is encoded; bounds memory, costs nothing
# Blocks of Chinese characters: basic, extensions A to H, compatibility.
_HAN = ((0x3400, 0x4DC0), (0x4E00, 0xA000), (0xF900, 0xFB00), (0x20000, 0x323B0))


def valid_utf8(text: tf.Tensor) -> tf.Tensor:
    """The same strings with U+FFFD in place of bytes that are not UTF-8.

    One mark for each longest beginning of a character, as Python's `errors="replace"` has it.
    """
    return tf.strings.unicode_transcode(text, "UTF-8", "UTF-8", errors="replace")


class Normalizer(tf.Module):
    """Text as the setting `tokenizer.normalization` wants it: string (B,) -> string (B,).

    `nfkc` composes characters and turns full-width forms into half-width ones (of katakana and
    hangul, half into full). `nfkc_cf` is Unicode's NFKC_Casefold: case is folded too, fully (ß
    becomes ss), and what has no look of its own (joiners, variation selectors, soft hyphens) goes.
    `none` changes nothing. With `simplified` each Traditional Chinese character then becomes its
    Simplified one. What is changed at all comes out as valid UTF-8.
    """

    def __init__(self, form: str = NFKC_CASE_FOLDED, simplified: Mapping[str, str] | None = None):
        super().__init__()
        self.form, self.simplified = form, simplified
        self.is_identity = form == UNCHANGED and not simplified
        if simplified:
            self.table = tf.lookup.StaticHashTable(
                tf.lookup.KeyValueTensorInitializer(
                    tf.constant([ord(character) for character in simplified], tf.int32),
                    tf.constant([ord(character) for character in simplified.values()], tf.int32),
                ),
                default_value=-1,
            )

    @classmethod
    def create(cls, config: Any) -> Normalizer:
        """As the settings of a tokenizer say, with a new table of characters if they want one."""
        return cls(config.normalization, simplified_characters() if config.simplify else None)

    @classmethod
    def load(cls, folder: Path, config: Any) -> Normalizer:
        table = read_vocabulary(folder / _SIMPLIFIED_FILE, _is_map) if config.simplify else None
        return cls(config.normalization, table)

    def save(self, folder: Path) -> None:
        if self.simplified:
            write_vocabulary(folder / _SIMPLIFIED_FILE, self.simplified)

    def to_valid(self, text: tf.Tensor) -> tf.Tensor:
        """The same, and valid UTF-8 also where nothing else is changed."""
        return valid_utf8(text) if self.is_identity else self(text)

    def __call__(self, text: tf.Tensor) -> tf.Tensor:
        if self.is_identity:
            return text
        text = valid_utf8(text)
        if self.form in (NFKC, NFKC_CASE_FOLDED):
            text = tf_text.normalize_utf8(text, "NFKC")
        if self.form == NFKC_CASE_FOLDED:
            text = tf_text.case_fold_utf8(text)
        if self.simplified:
            characters = tf.strings.unicode_decode(text, "UTF-8")
            found = self.table.lookup(characters.flat_values)
            text = tf.strings.unicode_encode(
                characters.with_flat_values(tf.where(found < 0, characters.flat_values, found)),
                "UTF-8",
            )
        return text


CASE_FOLDED = Normalizer()


@functools.cache
def simplified_characters() -> dict[str, str]:
    """Traditional characters and their Simplified ones by OpenCC (t2s), one for one.

    OpenCC also knows phrases in which a character stays as it is (乾坤); one character at a time
    it takes the usual reading, which is what a lookup inside a graph can do.
    """
    # Only needed where a vocabulary is made.
    import opencc

    characters = [chr(code) for start, end in _HAN for code in range(start, end)]
    converted = opencc.OpenCC("t2s").convert("\n".join(characters)).split("\n")
    return {
        traditional: simple
        for traditional, simple in zip(characters, converted, strict=True)
        if simple != traditional and len(simple) == 1
    }


def normalized(normalize: Normalizer, texts: Sequence[str]) -> Iterator[str]:
    """The texts as `normalize` leaves them, by the graph's own ops."""
    if normalize.is_identity:
        yield from texts
        return
    for chunk in chunks(texts):
        yield from (text.decode() for text in normalize(tf.constant(chunk, tf.string)).numpy())


def chunks(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(texts), _CHUNK):
        yield texts[start : start + _CHUNK]


def cut(tokens: tf.RaggedTensor, max_tokens: int | None) -> tf.RaggedTensor:
    """The first `max_tokens` of each row; all of them for None."""
    return tokens if max_tokens is None else tokens[:, :max_tokens]


def write_vocabulary(path: Path, vocabulary: Any) -> None:
    path.write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")


def read_vocabulary(path: Path, is_sound: Callable[[Any], bool]) -> Any:
    """What `write_vocabulary` wrote; raises ValueError, with the way out, for anything else."""
    try:
        vocabulary = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise damaged(path, "it is missing") from None
    except ValueError as error:
        raise damaged(path, f"it is not JSON ({error})") from error
    if not is_sound(vocabulary):
        raise damaged(path, f"it holds {str(vocabulary)[:60]}")
    return vocabulary


def damaged(path: Path, what: str) -> ValueError:
    return ValueError(
        f"{path} must be the vocabulary that this run was trained with, but {what}. The weights "
        "mean nothing without it: put the file back, or remove the folder and train again."
    )


def is_list_of_words(vocabulary: Any) -> bool:
    """Whether it is a list of different words, one at least."""
    return (
        isinstance(vocabulary, list)
        and len(vocabulary) > 0
        and all(isinstance(word, str) and word for word in vocabulary)
        and len(set(vocabulary)) == len(vocabulary)
    )


def _is_map(vocabulary: Any) -> bool:
    return (
        isinstance(vocabulary, dict)
        and len(vocabulary) > 0
        and all(isinstance(x, str) and len(x) == 1 for pair in vocabulary.items() for x in pair)
    )
