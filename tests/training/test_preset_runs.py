"""A preset on disk goes the whole road: fine-tuned, exported, and replayed without the project."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.presets import save_bert, save_gpt2
from training.__main__ import main
from training.recipes import fine_tuned, recipe
from training.run import load_run
from training.runs import find_run, run_folder

ROOT = Path(__file__).resolve().parents[2]
REPLAY = ROOT / "tests" / "end_to_end" / "replay_golden.py"


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    folder = tmp_path_factory.mktemp("preset_runs")
    save_bert(folder / "bert")
    save_gpt2(folder / "gpt2")
    rows = [("good film" if i % 2 else "dull film", "no yes".split()[i % 2], i) for i in range(60)]
    lines = [json.dumps({"text": f"{text} {i}", "label": label}) for text, label, i in rows]
    (folder / "reviews.jsonl").write_text("\n".join(lines))
    stories = "\n\n".join(f"the {word} thing" for word in "good bad dull warm funny".split() * 6)
    (folder / "stories.txt").write_text(stories)
    return folder


def run(places, name, preset, *settings, data="reviews.jsonl", base="sentiment"):
    arguments = ["fit", base, "--name", name, "--preset", str(places / preset)]
    arguments += ["--data", str(places / data), "--runs", str(places / "runs")]
    for setting in settings:
        arguments += ["--set", setting]
    assert main(arguments) == 0
    return find_run(places / "runs", name)


RATE = "optimizer.peak_learning_rate=0.01"


@pytest.mark.parametrize(
    ("name", "preset", "settings"),
    [
        (
            "low_rank",
            "bert",
            ["epochs=2", RATE, "lora_rank=2", "lora_layers=query/kernel", "trainable=logits"],
        ),
        ("in_full", "bert", ["epochs=2", RATE]),
    ],
)
def test_a_classifier_is_tuned_exported_and_answers_alike(places, name, preset, settings, capsys):
    folder = run(places, name, preset, *settings)
    exports = places / "exports"
    assert main(["export", str(folder), "--exports", str(exports)]) == 0
    done = subprocess.run(
        [sys.executable, str(REPLAY), str(exports / name / "1")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    manifest = json.loads((exports / name / "1" / "manifest.json").read_text())
    assert manifest["config"]["tokenizer"]["preset"] == preset  # and not where it was


def test_a_generator_is_tuned_and_exported(places, capsys):
    folder = run(
        places,
        "writer",
        "gpt2",
        "epochs=2",
        RATE,
        "model.context_length=16",
        data="stories.txt",
        base="stories",
    )
    learner = load_run(folder)
    assert isinstance(learner.continue_text("the", max_tokens=5, temperature=0.0), str)
    exports = places / "exports"
    assert main(["export", str(folder), "--exports", str(exports)]) == 0
    done = subprocess.run(
        [sys.executable, str(REPLAY), str(exports / "writer" / "1")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_another_preset_is_another_run(places):
    config = fine_tuned(recipe("sentiment"), str(places / "bert"))
    first = run_folder(Path(), config)
    assert run_folder(Path(), config) == first
    weights = places / "bert" / "model.weights.h5"
    kept = weights.read_bytes()
    weights.write_bytes(kept + b"\0")
    assert run_folder(Path(), config) != first
    weights.write_bytes(kept)
    assert run_folder(Path(), dataclasses.replace(config, seed=1)) != first
