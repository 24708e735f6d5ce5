import subprocess
import sys

import pytest

from training.datasets import DatasetConfig, DatasetError


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"name": ""}, "dataset.name"),
        ({"name": "file"}, "dataset.path"),
        ({"name": "sst2", "path": "x.csv"}, "dataset.path"),
        ({"name": "sst2", "label_column": "stars"}, "dataset.label_column"),
        ({"name": "file", "path": "x.csv", "text_column": "a", "label_column": "a"}, "'a'"),
        ({"name": "sst2", "max_examples": 0}, "dataset.max_examples"),
        ({"name": "sst2", "max_examples": True}, "dataset.max_examples"),
        ({"name": "sst2", "max_examples": 1.5}, "dataset.max_examples"),
    ],
)
def test_contradicting_settings_are_refused_by_the_name_the_user_types(settings, named):
    with pytest.raises(DatasetError, match=named):
        DatasetConfig(**settings)


def test_importing_the_room_loads_nothing_heavy():
    code = (
        "import sys, training.datasets\n"
        "heavy = {'tensorflow', 'pyarrow', 'requests', 'tqdm', 'charset_normalizer', 'pandas'}\n"
        "sys.exit(', '.join(heavy & set(sys.modules)) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
