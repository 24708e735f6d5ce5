"""The documents say what is so: commands parse, files and targets exist, no picture is missing."""

import doctest
import importlib
import re
import shlex
from pathlib import Path

import pytest

from serving import flags, generate, promote
from training.__main__ import parser
from training.recipes import FIRST_STEPS, RECIPES
from training.recipes.auto import AUTO

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [
    "README.md",
    "README.zh.md",
    "DESIGN.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "EXPERIMENTS.md",
    "docs/serving.md",
    "docs/generation.md",
]


def text_of(name):
    return (ROOT / name).read_text(encoding="utf-8")


def code_lines(name):
    """Lines inside ``` blocks."""
    for block in re.findall(r"^```\w*\n(.*?)^```", text_of(name), re.M | re.S):
        yield from block.splitlines()


@pytest.mark.parametrize("name", DOCUMENTS)
def test_training_commands_in_the_documents_parse(name):
    lines = [line for line in code_lines(name) if "python -m training" in line]
    if name.startswith("README"):
        assert len(lines) >= 6
    for line in lines:
        words = shlex.split(line.partition("#")[0])
        options = parser().parse_args(words[words.index("training") + 1 :])
        recipe = getattr(options, "recipe", None)
        assert recipe is None or recipe in (*RECIPES, *FIRST_STEPS, AUTO), line


@pytest.mark.parametrize("name", DOCUMENTS)
def test_serving_commands_in_the_documents_parse(name):
    lines = [line for line in code_lines(name) if line.startswith("python -m serving")]
    if name.startswith("README"):
        assert len(lines) >= 8
    for line in lines:
        _, _, _, *words = shlex.split(line, comments=True)
        if words[:1] in (["promote"], ["rollback"]):
            promote.parser().parse_args(words)
        elif words[:1] == ["generate"]:
            generate.parser().parse_args(words[1:])
        else:
            parsed = flags.parse(words)
            assert not parsed.unknown and not parsed.ignored, line


@pytest.mark.parametrize("name", DOCUMENTS)
def test_make_targets_in_the_documents_exist(name):
    targets = set(re.findall(r"^([a-z-]+):", text_of("Makefile"), re.M))
    for line in [*code_lines(name), *re.findall(r"`([^`\n]*)`", text_of(name))]:
        if line.startswith("make "):
            assert line.split()[1] in targets, line


@pytest.mark.parametrize("name", DOCUMENTS)
def test_files_in_the_documents_exist(name):
    text = text_of(name)
    linked = [t for t in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in t]
    pattern = r"`((?:model|training|serving|ui|tests|benchmarks|scripts|docs)/[\w./-]*)`"
    for path in linked:
        assert ((ROOT / name).parent / path).exists(), f"{name} links to {path}"
    for path in re.findall(pattern, text):
        assert (ROOT / path).exists(), f"{name} names {path}"


def test_the_map_names_files_to_start_with():
    rows = re.findall(r"^\| `(\w+)/` \|.*\| (.*) \|$", text_of("README.md"), re.M)
    assert {room for room, _ in rows} >= {"model", "training", "serving", "ui", "tests"}
    for room, files in rows:
        for file in re.findall(r"`([\w./]+\.py)`", files):
            assert (ROOT / room / file).is_file(), f"{room}/{file}"


def test_both_readmes_show_the_same_commands():
    def commands(name):
        lines = (line.partition("#")[0].strip() for line in code_lines(name))
        return {line for line in lines if line.startswith(("make ", "python -m", "curl"))}

    assert commands("README.md") == commands("README.zh.md")


def test_documents_hold_no_placeholder():
    for name in DOCUMENTS:
        assert not re.search(r"@[A-Z]+@|TODO|FIXME|XXX", text_of(name)), name


@pytest.mark.parametrize(
    "name",
    [
        "training.datasets.examples",
        "training.expressions",
        "training.statistics",
        "training.report",
        "training.compare",
        "training.search",
        "ui.charts",
    ],
)
def test_examples_in_docstrings_give_what_they_show(name):
    results = doctest.testmod(importlib.import_module(name))
    assert results.attempted > 0 and results.failed == 0
