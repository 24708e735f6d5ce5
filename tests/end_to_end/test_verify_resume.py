"""`verify-resume` as a user runs it, on a file of their own."""

import csv

import pytest
from programs import running

pytestmark = pytest.mark.slow


def test_a_killed_run_is_proved_to_end_like_one_left_alone(tmp_path):
    path = tmp_path / "reviews.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for i in range(60):
            writer.writerow([f"I loved part {i}, it was a joy", "good"])
            writer.writerow([f"I hated part {i}, it was a bore", "bad"])
    changes = [
        "dataset.name=file",
        f"dataset.path={path}",
        "tokenizer.num_buckets=4096",
        "batch_size=8",
    ]
    settings = [word for change in changes for word in ("--set", change)]
    with running("-m", "training", "verify-resume", "sentiment", "--kills", 1, *settings) as proof:
        assert proof.end() == 0, proof.output
    assert "Identical after 1 kill: " in proof.output
    (row,) = (line for line in proof.output.splitlines() if line.startswith("1  "))
    *_, resumed_from = row.split()
    assert 0 <= int(resumed_from) <= 100
