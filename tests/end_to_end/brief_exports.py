"""brief_exports.py FOLDER: the three default recipes, trained for seconds, in FOLDER/exports.

The real road on the real starter texts; only the story-teller is smaller and learns less.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from training.__main__ import main

BRIEF = {
    "sentiment": ["epochs=2"],
    "topics": ["epochs=2"],
    "stories": ["epochs=0.3", "model.num_layers=2", "model.context_length=64"],
}


def make(folder: Path) -> None:
    places = ["--runs", str(folder / "runs"), "--exports", str(folder / "exports")]
    for recipe, settings in BRIEF.items():
        changes = [word for setting in settings for word in ("--set", setting)]
        if code := main([*places, "all", recipe, *changes]):
            sys.exit(code)


if __name__ == "__main__":
    make(Path(sys.argv[1]))
