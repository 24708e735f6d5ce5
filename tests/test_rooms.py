"""The rooms import one way only, so each can be read, replaced and shipped without the others."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("model", "training", "serving", "ui")

# Which of our own modules a room may import, besides its own.
ALLOWED = {
    "model": (),
    "training": ("model",),
    # Signatures, tokenizers and samplers of the contract; never a layer or a weight.
    "serving": (
        "model.signatures",
        "model.tokenizers",
        "model.samplers",
        "model.runtime",
        "model.version_check",  # the same checks at export and at load, no layers in it
    ),
    "ui": ("serving.client",),
}
# These start before anything heavy is needed, or live without it.
LIGHT = [
    "serving/client.py",
    "serving/__main__.py",
    "serving/config.py",
    "serving/flags.py",
    "serving/generate.py",
    "serving/writing.py",
    "serving/openai_requests.py",
    "serving/model_configs.py",
    "serving/promote.py",
    "training/__main__.py",
    "training/config.py",
    "training/expressions.py",
    "training/schedules.py",
    "training/sampling.py",
    "training/hardware.py",
    "training/packing.py",
    "training/permutations.py",
    "training/pipeline.py",
    "training/shards.py",
    "training/stacking.py",
    "training/plots.py",
    "training/strategies/catalogue.py",
    "ui/__main__.py",
    "model/signatures.py",
    "model/config/__init__.py",
    "model/config/checks.py",
    "model/config/tokenizers.py",
    "model/config/classifiers.py",
    "model/config/generators.py",
    "model/config/transformers.py",
    "model/config/first_steps.py",
    "model/runtime.py",
]
HEAVY = ("tensorflow", "keras", "tensorflow_text", "streamlit", "sklearn", "matplotlib", "pandas")


def imports(path, *, top_level_only=False):
    """Names of the modules that a file imports, `from a import b` as both `a` and `a.b`."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = tree.body if top_level_only else list(ast.walk(tree))
    for node in nodes:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield (alias.name,)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively; rooms are named in full"
            for alias in node.names:
                yield (node.module, f"{node.module}.{alias.name}")


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_what_it_may(room):
    files = sorted((ROOT / room).rglob("*.py"))
    assert files
    for path in files:
        for names in imports(path):
            if names[0].split(".")[0] not in (*ROOMS, "tests", "benchmarks", "demo"):
                continue
            allowed = (room, *ALLOWED[room])
            assert any(n == a or n.startswith(a + ".") for n in names for a in allowed), (
                f"{path.relative_to(ROOT)} imports {names[-1]}"
            )


@pytest.mark.parametrize("path", LIGHT)
def test_light_files_import_nothing_heavy_at_the_top(path):
    for names in imports(ROOT / path, top_level_only=True):
        assert names[0].split(".")[0] not in HEAVY, f"{path} imports {names[0]}"


def test_serving_can_be_imported_by_parts():
    assert (ROOT / "serving" / "__init__.py").read_text() == ""
    assert (ROOT / "ui" / "__init__.py").read_text() == ""


def test_no_file_of_the_pages_is_named_like_a_room():
    """Streamlit puts the script's folder first on the path, where it would hide the room."""
    names = {path.stem for path in (ROOT / "ui").rglob("*")} - {"__init__", "__main__"}
    assert not names & set(ROOMS)


def test_test_files_have_names_of_their_own():
    """pytest imports them by name alone: two of one name cannot be collected together."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert len(set(names)) == len(names)
