"""The page Sentiment."""

from ui.classifying import classifier_page


def page() -> None:
    classifier_page("sentiment", preferred="sentiment")
