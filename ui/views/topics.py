"""The page Topics."""

from ui.classifying import classifier_page


def page() -> None:
    classifier_page("topics", preferred="topics")
