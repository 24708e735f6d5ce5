"""Which data set a run reads. Plain Python: importing this costs nothing."""

from dataclasses import dataclass

USER_FILE = "file"  # the name that stands for the user's own file instead of a key of DATASETS

# What a text is labelled with.
CLASS, LABELS, GRADE, NUMBER = "class", "labels", "grade", "number"
TARGETS = {
    CLASS: "one of the labels",
    LABELS: "any number of the labels, each judged by itself",
    GRADE: "one of the labels, which have an order (proportional odds)",
    NUMBER: "a number (least squares)",
}


class DatasetError(ValueError):
    """A data set that cannot be read as asked; the message says what to do."""


@dataclass(frozen=True, kw_only=True)
class DatasetConfig:
    """A key of `DATASETS`, or `name="file"` with the path of the user's own file.

    Raises `DatasetError` for settings that contradict each other.
    """

    name: str
    path: str | None = None  # .csv, .tsv, .jsonl, .parquet, or .txt for generation
    validation_path: str | None = None
    test_path: str | None = None
    text_column: str | None = None
    label_column: str | None = None
    label_separator: str = "|"  # between the labels of a text (target=labels), and in label_order
    label_order: str | None = None  # of target=grade: all labels, from the lowest to the highest
    streaming: bool | str = "auto"  # texts stay on disk; auto: of a folder, or 64 MB and more
    join_validation: bool = False  # train on the validation split too, when all is decided
    max_examples: int | None = None  # of the training split, picked by hash; for a quick look

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise DatasetError(f"dataset.name must be a name. Received: {self.name!r}")
        if self.name == USER_FILE and not self.path:
            raise DatasetError(
                'dataset.name is "file", so dataset.path must name a .csv, .tsv, .jsonl, '
                ".parquet or .txt file."
            )
        if self.name != USER_FILE:
            only_for_files = (
                "path",
                "validation_path",
                "test_path",
                "text_column",
                "label_column",
                "label_order",
            )
            given = [name for name in only_for_files if getattr(self, name) is not None]
            given += ["streaming"] if self.streaming != "auto" else []
            if given:
                settings = ", ".join(f"dataset.{name}" for name in given)
                raise DatasetError(
                    f'{settings} can only be set with dataset.name="file". '
                    f"Received: dataset.name={self.name!r}"
                )
        if self.streaming not in ("auto", True, False):
            raise DatasetError(
                f"dataset.streaming must be auto, true or false. Received: {self.streaming!r}"
            )
        if self.text_column is not None and self.text_column == self.label_column:
            raise DatasetError(
                "dataset.text_column and dataset.label_column must name two columns. "
                f"Received {self.text_column!r} for both."
            )
        if not self.label_separator.strip():
            raise DatasetError(
                "dataset.label_separator must be a character or more that is not blank. "
                f"Received: {self.label_separator!r}"
            )
        if self.max_examples is not None and (
            isinstance(self.max_examples, bool)
            or not isinstance(self.max_examples, int)
            or self.max_examples < 1
        ):
            raise DatasetError(
                f"dataset.max_examples must be a whole number >= 1. Received: {self.max_examples!r}"
            )
