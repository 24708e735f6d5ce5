"""What the pages are told from outside: environment variables, set by `python -m ui` or by hand."""

import os

SERVER = "STEPWISE_SERVER"
MODELS = "STEPWISE_MODELS"
LANGUAGE = "STEPWISE_LANGUAGE"

LANGUAGES = ("en", "zh")


def server() -> str:
    """Address of the model server's REST API, without a slash at the end."""
    return (os.environ.get(SERVER) or "http://127.0.0.1:8501").rstrip("/")


def models() -> tuple[str, ...]:
    """Names to ask for at a server that cannot list its models."""
    names = os.environ.get(MODELS) or "sentiment,topics,stories"
    return tuple(name.strip() for name in names.split(",") if name.strip())


def language() -> str:
    """The language the pages start in; empty means the browser's."""
    value = os.environ.get(LANGUAGE, "")
    return value if value in LANGUAGES else ""
