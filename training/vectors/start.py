"""Word vectors of a file as the start of a network's embedding. Axes: V vocabulary, D numbers."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from model.tokenizers import encode
from training.config import RunConfig
from training.vectors.files import VectorsError, look_up

logger = logging.getLogger(__name__)

FOUND_FILE = "found_vectors.npz"  # of a run: what it found, so that the big file is read once
_FIRST_WORD = 2  # ids of padding and of unknown words are before


def find_vectors(config: RunConfig, tokenizer: Any, texts: Sequence[str], folder: Path) -> None:
    """Looks the vocabulary up in the file `config.vectors`, and keeps what it has in `folder`.

    What was found is logged: the share of the vocabulary, and of the running words of `texts`, the
    training split. Raises VectorsError for a file that cannot be used, and for vectors of another
    length than the network's.
    """
    path = str(config.vectors)
    found = look_up(path, tokenizer.words)
    setting, size = config.embedding_size or ("", 0)
    if found.values.shape[1] != size:
        raise VectorsError(
            f"vectors={path} has vectors of {found.values.shape[1]} numbers, and {setting} is "
            f"{size}. Set {setting}={found.values.shape[1]}, or take another file."
        )
    rows = found.rows + _FIRST_WORD
    counts = np.bincount(
        np.concatenate(encode(tokenizer, texts)), minlength=tokenizer.vocabulary_size
    )
    running, is_known = int(counts[1:].sum()), int(counts[rows].sum())
    logger.info(
        f"{path}: {len(rows):,} of {len(tokenizer.words):,} words of the vocabulary found "
        f"({len(rows) / len(tokenizer.words):.1%}), {found.num_loose:,} of them in another case or "
        f"width; they are {is_known / max(running, 1):.1%} of the running words of the training "
        "texts."
    )
    if found.faults.count:
        logger.warning(f"{path}: {found.faults}.")
    np.savez(folder / FOUND_FILE, rows=rows, values=found.values)


def start_from_vectors(learner: Any, folder: Path) -> None:
    """Sets rows of the embedding to what `find_vectors` kept.

    The other rows keep their random values, scaled to the standard deviation of those that were
    found: Kim (2014, sec. 4.3) draws them with the variance of the pre-trained ones.
    """
    with np.load(folder / FOUND_FILE) as found:
        rows, values = found["rows"], found["values"]
    embedding = embedding_of(learner)
    matrix = embedding.numpy()
    matrix *= values.std() / max(float(matrix.std()), np.finfo(np.float32).tiny)
    matrix[rows] = values
    embedding.assign(matrix)


def embedding_of(learner: Any) -> Any:
    """The variable (V, D) that holds a vector for each id of the learner's tokenizer."""
    found = [
        v
        for v in learner.model.variables
        if v.path.split("/")[-2:] == ["embedding", "embeddings"]
        and v.shape[0] == learner.tokenizer.vocabulary_size
    ]
    if len(found) != 1:
        raise ValueError(
            f"vectors needs a network with one embedding of words, and {learner.config.model.name} "
            f"has {len(found)}. Leave vectors out."
        )
    return found[0]
