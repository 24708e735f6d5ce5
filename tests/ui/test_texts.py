import ast
import re
import string
from pathlib import Path

import pytest

from ui import texts

UI = Path(texts.__file__).parent
SOURCES = sorted(path for path in UI.rglob("*.py") if path.name not in ("texts.py", "__main__.py"))
CHINESE = re.compile(r"[\u4e00-\u9fff]")


def _placeholders(template: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(template) if name}


@pytest.mark.parametrize("key", texts.TEXTS)
def test_every_text_stands_in_both_languages_with_the_same_placeholders(key):
    entry = texts.TEXTS[key]
    assert set(entry) == set(texts.NAMES_OF_LANGUAGES)
    assert all(value.strip() for value in entry.values())
    assert _placeholders(entry["en"]) == _placeholders(entry["zh"])
    assert not CHINESE.search(entry["en"])
    # The same in both languages are names only.
    assert CHINESE.search(entry["zh"]) or key in {
        "generate.top_k",
        "generate.top_p",
        "version.short",
        "megabytes",
        "engine.quantiles",
    }


@pytest.mark.parametrize("page", texts.EXAMPLES)
def test_examples_are_written_in_their_language(page):
    assert set(texts.EXAMPLES[page]) == set(texts.NAMES_OF_LANGUAGES)
    assert all(CHINESE.search(example) for example in texts.EXAMPLES[page]["zh"])
    assert not any(CHINESE.search(example) for example in texts.EXAMPLES[page]["en"])


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_keys_used_in_the_code_are_in_the_table(path):
    for call in _calls(path):
        if _name(call) == "say" and isinstance(call.args[0], ast.Constant):
            assert call.args[0].value in texts.TEXTS, f"line {call.lineno}"
        if _name(call) == "Failure" and call.args and isinstance(call.args[0], ast.Constant):
            assert call.args[0].value in texts.TEXTS, f"line {call.lineno}"


def test_every_entry_of_the_table_is_used():
    code = "\n".join(path.read_text(encoding="utf-8") for path in SOURCES)
    # A key is either written out, or put together from a prefix or suffix that is: f"nav.{name}".
    built = re.findall(r'f"([\w.]*)\{[^}]*\}([\w.]*)"', code)
    for key in texts.TEXTS:
        is_built = any(
            prefix + suffix and key.startswith(prefix) and key.endswith(suffix)
            for prefix, suffix in built
            if "." in prefix + suffix
        )
        assert f'"{key}"' in code or is_built, key


# What Streamlit draws with its first argument read by the user.
DRAWING = set(
    "title header subheader markdown write text caption error warning info success code metric "
    "button form_submit_button text_area text_input slider number_input selectbox toggle radio "
    "checkbox segmented_control pills spinner expander tabs toast notice".split()
)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_no_page_holds_a_sentence_of_its_own(path):
    for call in _calls(path):
        if _name(call) not in DRAWING:
            continue
        shown = call.args[1:2] if _name(call) == "notice" else call.args[:1]
        shown += [k.value for k in call.keywords if k.arg in ("label", "help", "placeholder")]
        for argument in shown:
            literals = [
                node.value
                for node in ast.walk(argument)
                if isinstance(node, ast.Constant) and isinstance(node.value, str)
            ]
            inside_say = any(_name(inner) == "say" for inner in ast.walk(argument))
            assert inside_say or not any(re.search(r"\w", text) for text in literals), (
                f"{path.name}, line {call.lineno}: move {literals} to ui/texts.py"
            )


def _calls(path: Path) -> list[ast.Call]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [node for node in ast.walk(tree) if isinstance(node, ast.Call)]


def _name(node: ast.AST) -> str:
    """What is called: `title` for st.title(...). A line for the log is not for the reader."""
    if not isinstance(node, ast.Call) or ast.unparse(node.func).startswith("logger."):
        return ""
    return getattr(node.func, "attr", getattr(node.func, "id", ""))
