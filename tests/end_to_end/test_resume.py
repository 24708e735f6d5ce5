"""Training that is stopped anywhere ends where it would have ended without the stop."""

import json
import signal
from pathlib import Path

import pytest
from programs import running

from training.__main__ import main
from training.verify import differences

pytestmark = pytest.mark.slow

# Small, so that a run takes seconds; evaluated, and so saved, several times in them.
LSTM = [
    *("fit", "sentiment_lstm", "--set", "epochs=4", "--set", "evaluate_every=40"),
    *("--set", "patience=0", "--set", "dataset.max_examples=1600"),
    *("--set", "tokenizer.max_tokens=24", "--set", "tokenizer.vocabulary_size=2000"),
    *("--set", "model.embedding_size=16", "--set", "model.units=12"),
]
STORIES = [
    *("fit", "stories", "--set", "epochs=1", "--set", "evaluate_every=20", "--set", "patience=0"),
    *("--set", "dataset.max_examples=200", "--set", "batch_size=8"),
    *("--set", "tokenizer.vocabulary_size=2000", "--set", "model.num_layers=1"),
    *("--set", "model.width=32", "--set", "model.num_heads=2", "--set", "model.inner_width=64"),
    *("--set", "model.context_length=32", "--set", "model.dropout=0.1"),
]


def test_a_killed_run_ends_with_the_same_weights(tmp_path, caplog):
    uninterrupted = finish(tmp_path / "a", LSTM)

    with running("-m", "training", "--runs", tmp_path / "b", *LSTM) as training:
        # Update 50 is reported but not saved: it is done again, and may not count twice.
        training.wait_until(lambda: last_update(tmp_path / "b") >= 50)
        training.process.kill()
        assert training.end() == -signal.SIGKILL
    (folder,) = (tmp_path / "b").iterdir()
    assert not (folder / "results.json").exists()

    caplog.clear()
    assert finish(tmp_path / "b", LSTM) == folder
    assert update_it_went_on_from(caplog.text) >= 40
    assert differences(folder, uninterrupted) == []
    # A kill loses lines of the log no more than weights.
    assert figures(folder) == figures(uninterrupted)


def test_ctrl_c_saves_and_the_same_command_goes_on(tmp_path, caplog):
    uninterrupted = finish(tmp_path / "a", STORIES)

    with running("-m", "training", "--runs", tmp_path / "b", *STORIES) as training:
        training.wait_until(lambda: last_update(tmp_path / "b") >= 20)
        training.interrupt()
        assert training.end() == 130
    (folder,) = (tmp_path / "b").iterdir()
    assert "Traceback" not in training.output
    last = training.output.splitlines()[-1]
    stopped = int(last.removeprefix("Stopped at update ").split(",")[0])
    expected = f"Stopped at update {stopped}, saved in {folder}. The same command goes on."
    assert last == expected and stopped >= 20
    assert (folder / "checkpoints" / "stories" / "last" / f"ckpt-{stopped}.npz").exists()

    caplog.clear()
    finish(tmp_path / "b", STORIES)
    assert update_it_went_on_from(caplog.text) == stopped
    assert differences(folder, uninterrupted) == []


def finish(runs: Path, command: list[str]) -> Path:
    """Runs `command` to its end in this process; returns its folder."""
    assert main(["--runs", str(runs), *command]) == 0
    (folder,) = runs.iterdir()
    return folder


def lines_of(folder: Path) -> list[dict]:
    """What metrics.jsonl holds; the last line may still be on its way."""
    whole = (folder / "metrics.jsonl").read_text().rpartition("\n")[0]
    return [json.loads(line) for line in whole.splitlines()]


def last_update(runs: Path) -> int:
    """That the one run in `runs` has reported; -1 before it reports anything."""
    reported = [
        line["step"] for path in runs.glob("*/metrics.jsonl") for line in lines_of(path.parent)
    ]
    return max(reported, default=-1)


def figures(folder: Path) -> list[dict]:
    """The lines of metrics.jsonl without times."""
    return [
        {name: value for name, value in line.items() if "second" not in name}
        for line in lines_of(folder)
    ]


def update_it_went_on_from(text: str) -> int:
    return int(text.partition("Going on from update ")[2].split()[0])
