"""The real files of vectors."""

import os
from pathlib import Path

import pytest


@pytest.fixture
def real_vectors() -> Path:
    """The folder with them; the test is skipped where there is none."""
    folder = Path(os.environ.get("STEPWISE_DATA", "")) / "vectors"
    if not (folder / "glove.6B.50d.first2446.txt").is_file():
        pytest.skip("STEPWISE_DATA does not name a folder with vectors")
    return folder
