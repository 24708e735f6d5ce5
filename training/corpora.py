"""A corpus as ids on disk: tokenised once for each tokenizer, by the graph's own ops.

Axes: D documents of a block.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from model.config import TokenizerConfig
from model.tokenizers import BEGIN, END
from training.datasets.corpus import Corpus
from training.shards import Blocks, Shards, make_shards


def shards_of(
    corpus: Corpus,
    tokenizer: Any,
    settings: TokenizerConfig,
    *,
    verify: bool = False,
    num_threads: int | None = None,
) -> Shards:
    """The training documents of `corpus`, BEGIN and END included, tokenised if they are not yet.

    Kept in the corpus' folder of the cache, under a digest of the tokenizer and of its `settings`,
    one folder for each, until they are removed by hand. What was stopped goes on after the parts
    that are whole; `verify` looks at the content of every file. Several threads work at once:
    TensorFlow Text leaves Python's lock to the others, so that processes, each with a TensorFlow of
    its own, are not needed.
    """
    ids_of = tf.function(
        tokenizer, input_signature=[tf.TensorSpec([None], tf.string)], autograph=False
    ).get_concrete_function()  # traced here, not by the threads at once

    def encoded(part: int) -> Blocks:
        for texts, num_bytes in corpus.training_blocks(part):
            ragged = ids_of(tf.constant(texts, tf.string))
            ids, lengths = with_ends(ragged.flat_values.numpy(), ragged.row_lengths().numpy())
            yield ids, lengths, num_bytes

    return make_shards(
        corpus.folder / f"tokens-{digest_of(tokenizer, settings)[:12]}",
        [corpus.part_bytes(part) for part in range(len(corpus.parts))],
        encoded,
        vocabulary_size=tokenizer.vocabulary_size,
        verify=verify,
        num_threads=num_threads,
    )


def with_ends(ids: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ids one after the other, with BEGIN and END around each of the D documents.

    int32 (L,) and int64 (D,) -> int32 (L + 2D,) and int64 (D,).
    """
    lengths = lengths + 2
    ends = np.cumsum(lengths)
    framed = np.empty(len(ids) + 2 * len(lengths), np.int32)
    is_own = np.ones(len(framed), bool)
    is_own[ends - lengths] = is_own[ends - 1] = False
    framed[is_own] = ids
    framed[ends - lengths], framed[ends - 1] = BEGIN, END
    return framed, lengths


def digest_of(tokenizer: Any, settings: TokenizerConfig) -> str:
    """A sha256 of all that decides what a tokenizer makes of a text: its settings and its files."""
    hashed = hashlib.sha256(json.dumps(dataclasses.asdict(settings), sort_keys=True).encode())
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save(Path(folder))
        for path in sorted(Path(folder).iterdir()):
            hashed.update(path.name.encode() + path.read_bytes())
    return hashed.hexdigest()
