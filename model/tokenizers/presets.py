"""Tokenizers of KerasHub presets: folders that `save_to_preset` wrote, or names of presets.

A preset's own ids are put into our order, in which padding, unknown, begin and end are the first
four; `Preset` holds both orders. Axes: B batch, T tokens, V vocabulary.

KerasHub is imported where it is needed: it takes a second, and most runs do not.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from model.config import PresetTokenizerConfig
from model.tokenizers.normalization import END, PADDING, UNKNOWN, valid_utf8

_WEIGHTS = "*.weights.*"


class Preset:
    """Where a preset is, and its ids in our order.

    `order` int32 (V,): the preset's id of each of ours; `ours` int32: the inverse. Ids that the
    preset lacks, such as the begin of a text, stand for its padding in `order`. `has_weights` is
    False for the copy that a run keeps, whose weights are in its checkpoints.
    """

    def __init__(self, source: str | Path):
        keras_nlp = _keras_nlp()
        self.source = str(source)
        self.tokenizer = _loaded(keras_nlp.models.Tokenizer, self.source)
        # Called eagerly, KerasHub gives lists of Python.
        self.tokenize = tf.function(self.tokenizer, autograph=False)
        self.detokenize = tf.function(self.tokenizer.detokenize, autograph=False)
        folder = Path(self.source)
        self.has_weights = not folder.is_dir() or bool(list(folder.glob(_WEIGHTS)))
        special = {
            name: getattr(self.tokenizer, f"{name}_token_id", None)
            for name in ("pad", "unk", "start", "end")
        }
        padding = special["pad"] if special["pad"] is not None else 0
        first = [padding if token is None else token for token in special.values()]
        size = self.tokenizer.vocabulary_size()
        self.has_begin, self.has_end = (special[name] is not None for name in ("start", "end"))
        others = np.setdiff1d(np.arange(size), first)
        self.order = np.concatenate([first, others]).astype(np.int32)
        self.ours = np.zeros(size, np.int32)
        self.ours[self.order[::-1]] = np.arange(len(self.order))[::-1]  # of several the first ...
        if self.has_end:
            self.ours[first[END]] = END  # ... but an end is an end, whatever else it is
        # Ids that no text is given: padding, and those that another id stands for.
        self.is_written = self.ours[self.order] == np.arange(len(self.order))
        self.is_written[PADDING] = False

    @property
    def longest(self) -> int | None:
        """Tokens that its positions reach, None where they have no end."""
        return self.config().get("max_sequence_length")

    def config(self) -> dict[str, Any]:
        return json.loads((self._folder() / "config.json").read_text(encoding="utf-8"))["config"]

    def save(self, folder: Path) -> None:
        """Copies all but the weights."""
        if folder != Path(self.source):
            shutil.copytree(
                self._folder(),
                folder,
                ignore=shutil.ignore_patterns(_WEIGHTS),
                dirs_exist_ok=True,
            )

    def task(self, kind: str, **settings) -> Any:
        """The preset's network as KerasHub's "TextClassifier", "CausalLM" or "Backbone".

        Raises NoTask where the preset's family has no such task.
        """
        import keras

        return _loaded(
            getattr(_keras_nlp().models, kind),
            self.source,
            load_weights=self.has_weights,
            # In the precision of the run, not in that of whoever saved the preset.
            dtype=keras.config.dtype_policy().name,
            **settings,
        )

    def _folder(self) -> Path:
        if Path(self.source).is_dir():
            return Path(self.source)
        from keras_hub.src.utils.preset_utils import get_file

        return Path(get_file(self.source, "config.json")).parent


class PresetTokenizer(tf.Module):
    """The tokenizer that a network was pre-trained with.

    Call: string (B,) -> ragged int32 (B, T), without begin and end; T is at most `max_tokens` where
    that is given.
    """

    folder_name = "preset"

    def __init__(self, preset: Preset, config: PresetTokenizerConfig):
        super().__init__()
        self.preset, self.max_tokens = preset, config.max_tokens
        self.tables = preset.tokenizer  # an attribute, so that an export finds what it looks up in
        self.vocabulary_size = len(preset.order)

    @classmethod
    def train(cls, texts, config: PresetTokenizerConfig) -> PresetTokenizer:
        """Nothing to learn: the preset brings its vocabulary."""
        return cls(Preset(config.preset), config)

    def __call__(self, text: tf.Tensor) -> tf.RaggedTensor:
        tokens = self.preset.tokenize(valid_utf8(text))
        if not isinstance(tokens, tf.RaggedTensor):
            tokens = tf.RaggedTensor.from_tensor(tokens)
        tokens = tokens[:, : self.max_tokens].with_row_splits_dtype(tf.int64)
        ids = tokens.flat_values  # -1 for a character that byte pairs were never told of
        ours = tf.gather(self.preset.ours, tf.maximum(ids, 0))
        return tokens.with_flat_values(tf.where(ids < 0, UNKNOWN, ours))

    def detokenize(self, tokens: tf.RaggedTensor) -> tf.Tensor:
        """Ragged int32 (B, T) -> valid UTF-8 strings (B,)."""
        theirs = tokens.with_flat_values(tf.gather(self.preset.order, tokens.flat_values))
        return valid_utf8(self.preset.detokenize(theirs))

    def save(self, folder: Path) -> None:
        self.preset.save(folder / self.folder_name)

    @classmethod
    def load(cls, folder: Path, config: PresetTokenizerConfig) -> PresetTokenizer:
        return cls(Preset(folder / cls.folder_name), config)


class NoTask(ValueError):
    """The preset's family has no such task."""


def _keras_nlp():
    import keras_nlp

    return keras_nlp


def _loaded(kind: Any, source: str, **settings):
    try:
        return kind.from_preset(source, **settings)
    except Exception as error:  # what it raises depends on where it looked: file, Kaggle, HF
        if "Unable to find a subclass" in str(error):
            raise NoTask(f"The preset {source} is no {kind.__name__}.") from error
        raise ValueError(
            "tokenizer.preset must be a folder that save_to_preset of keras_nlp wrote, with its "
            "tokenizer, or, where there is a network, the name of a preset. "
            f"Received: {source}. keras_nlp says: {str(error).strip().splitlines()[0]}"
        ) from error
