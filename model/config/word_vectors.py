"""What a model whose word vectors are the aim is made of. Lengths are words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from model.config.checks import check_positive, require

WORD_VECTORS = "word_vectors"  # a kind that is not served: its vectors are a file of the run


@dataclass(frozen=True, kw_only=True)
class SkipGramConfig:
    """A word tells the words around it, by negative sampling (Mikolov et al., 2013b)."""

    kind: ClassVar[str] = WORD_VECTORS
    tokenizers: ClassVar[tuple[str, ...]] = ("word",)  # that it reads
    embedding_size: int = 100
    window: int = 5  # words on each side at most; how many is drawn for each word
    num_negatives: int = 5  # words of noise for each window
    noise_power: float = 0.75  # of a word's frequency: how often it is noise
    subsampling: float = (
        1e-3  # a word of frequency f is kept with chance sqrt(this / f); 0 keeps all
    )
    name: str = "skip_gram"

    def __post_init__(self) -> None:
        _check_negative_sampling(self)


@dataclass(frozen=True, kw_only=True)
class CBOWConfig:
    """The mean of the words around it tells a word, by negative sampling (Mikolov et al., 2013)."""

    kind: ClassVar[str] = WORD_VECTORS
    tokenizers: ClassVar[tuple[str, ...]] = ("word",)  # that it reads
    embedding_size: int = 100
    window: int = 5  # words on each side at most; how many is drawn for each word
    num_negatives: int = 5  # words of noise for each word
    noise_power: float = 0.75  # of a word's frequency: how often it is noise
    subsampling: float = (
        1e-3  # a word of frequency f is kept with chance sqrt(this / f); 0 keeps all
    )
    name: str = "cbow"

    def __post_init__(self) -> None:
        _check_negative_sampling(self)


@dataclass(frozen=True, kw_only=True)
class GloVeConfig:
    """Products of vectors fit the logarithm of co-occurrences (Pennington et al., 2014)."""

    kind: ClassVar[str] = WORD_VECTORS
    tokenizers: ClassVar[tuple[str, ...]] = ("word",)  # that it reads
    embedding_size: int = 100
    window: int = 10  # words on each side; one at distance d counts 1 / d
    full_count: float = 100.0  # co-occurrences from this count on weigh 1 (the paper's x_max)
    weight_power: float = 0.75  # below it they weigh (count / full_count) to this power (alpha)
    name: str = "glove"

    def __post_init__(self) -> None:
        check_positive("model.embedding_size", self.embedding_size)
        check_positive("model.window", self.window)
        require(self.full_count > 0, "model.full_count", "above 0", self.full_count)
        require(0 <= self.weight_power <= 1, "model.weight_power", "from 0 to 1", self.weight_power)


def _check_negative_sampling(config: Any) -> None:
    check_positive("model.embedding_size", config.embedding_size)
    check_positive("model.window", config.window)
    check_positive("model.num_negatives", config.num_negatives)
    require(0 <= config.noise_power <= 1, "model.noise_power", "from 0 to 1", config.noise_power)
    require(0 <= config.subsampling <= 1, "model.subsampling", "from 0 to 1", config.subsampling)
