"""Word vectors: texts to running words, a vocabulary to vectors and what they say of each other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from model.catalogue import build_model
from model.config import GloVeConfig
from model.tokenizers import WordTokenizer, encode, load_tokenizer, train_tokenizer
from training.config import RunConfig
from training.vectors.analogies import Question, accuracy_of, built_in_questions, nearest
from training.vectors.corpus import FIRST_WORD, Stream
from training.vectors.files import WordVectors, write_vectors
from training.vectors.objectives import CoOccurrences, Windows

VECTORS_FILE = "vectors.txt"  # of a run: word2vec text
COUNTS_FILE = "word_counts.npy"  # of a run: int64 (V,), of the training split
_NUM_NEIGHBOURS = 5
_SHOWN_RANKS = range(50, 401, 50)  # of words by frequency, whose neighbours are shown


class WordVectorModel:
    """A tokenizer and the vectors of its words."""

    def __init__(self, config: RunConfig, tokenizer: WordTokenizer, counts: np.ndarray):
        """`counts` int64 (V,): how often each id stands in the training split."""
        self.config, self.tokenizer, self.counts = config, tokenizer, counts
        self.model = build_model(
            config.model, tokenizer.vocabulary_size, seed=config.seed, precision=config.precision
        )
        self.supervised = CoOccurrences if isinstance(config.model, GloVeConfig) else Windows
        self.loss = self.supervised.loss_of(self.model)
        self._sums = tf.function(self.loss, reduce_retracing=True, autograph=False)

    @classmethod
    def create(cls, config: RunConfig, data: Any, texts: Sequence[str] = ()) -> WordVectorModel:
        """Untrained, with the words and counts of the training split and of more `texts`."""
        from training.objectives import texts_of

        every = [*texts_of(data, "train"), *texts]
        tokenizer = train_tokenizer(every, config.tokenizer)
        words = Stream.of(encode(tokenizer, every)).words
        return cls(config, tokenizer, np.bincount(words, minlength=tokenizer.vocabulary_size))

    @classmethod
    def load(cls, config: RunConfig, folder: Path) -> WordVectorModel:
        tokenizer = load_tokenizer(folder, config.tokenizer)
        return cls(config, tokenizer, np.load(folder / COUNTS_FILE))

    def save(self, folder: Path) -> None:
        """What `load` needs besides the tokenizer."""
        np.save(folder / COUNTS_FILE, self.counts)

    def stream(self, texts: Sequence[str]) -> Stream:
        return Stream.of(encode(self.tokenizer, texts))

    def figures_of(self, split: Any) -> dict[str, float]:
        """Loss (nats a pair; of GloVe the weighted square a cell) and accuracy on texts."""
        return self.figures(self.stream(getattr(split, "texts", split)))

    def figures(self, stream: Stream) -> dict[str, float]:
        batches = self.supervised.held_out_batches(self, stream)
        total = {"loss_sum": 0.0, "num_targets": 0.0, "num_correct": 0.0}
        for i in range(batches.num_batches):
            sums = self._sums(batches.at(i))
            total = {name: value + float(sums[name]) for name, value in total.items()}
        count = max(total["num_targets"], 1.0)
        return {"loss": total["loss_sum"] / count, "accuracy": total["num_correct"] / count}

    def vectors(self) -> WordVectors:
        """Those of the vocabulary, the most frequent word first."""
        return WordVectors(self.tokenizer.words, self.model.word_vectors().numpy()[FIRST_WORD:])

    def evaluate(
        self, split: Any, folder: Path, questions: Sequence[Question] | None = None
    ) -> dict:
        """Loss, neighbours of some frequent words, analogies; writes the vectors to `folder`.

        `questions` are those of this project's own unless given.
        """
        vectors = self.vectors()
        write_vectors(folder / VECTORS_FILE, vectors)
        last = len(vectors.words) - 1
        shown = dict.fromkeys(vectors.words[min(rank, last)] for rank in _SHOWN_RANKS)
        return self.figures_of(split) | {
            "num_words": len(vectors.words),
            "neighbours": {word: nearest(vectors, word, _NUM_NEIGHBOURS) for word in shown},
            "analogies": accuracy_of(
                vectors, built_in_questions() if questions is None else questions
            ),
        }
