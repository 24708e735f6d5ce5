"""Data sets: texts and labels as plain lists and arrays, whatever they were stored as."""

from training.datasets.catalogue import DATASETS, Dataset, fingerprint, load_dataset
from training.datasets.config import DatasetConfig, DatasetError
from training.datasets.examples import (
    ClassificationData,
    LabelledTexts,
    TextData,
    split_by_hash,
    unseen_test_indices,
)
from training.datasets.user_file import read_documents, read_labelled, read_texts

__all__ = [
    "DATASETS",
    "ClassificationData",
    "Dataset",
    "DatasetConfig",
    "DatasetError",
    "LabelledTexts",
    "TextData",
    "fingerprint",
    "load_dataset",
    "read_labelled",
    "read_documents",
    "read_texts",
    "split_by_hash",
    "unseen_test_indices",
]
