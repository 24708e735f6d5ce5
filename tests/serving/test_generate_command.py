"""`python -m serving generate`, in this process."""

import io
import re
import signal
import sys

import pytest
from openai_server import repository_of, serving
from toy_writer import answer_of, writer_model

from serving import generate
from serving.__main__ import main
from serving.config import ServerConfig


@pytest.fixture(scope="module")
def exports(tmp_path_factory):
    folder = tmp_path_factory.mktemp("generate")
    writer_model(folder / "writer" / "1")
    writer_model(folder / "writer" / "12", is_concatenation=False)
    return folder


@pytest.fixture(scope="module")
def url(exports):
    with repository_of(exports) as repository, serving(repository, ServerConfig()) as running:
        yield running.url


@pytest.fixture
def run(exports, capsys):
    """Exit code, standard output and standard error of a command line."""

    def run(*arguments):
        place = [] if "--url" in arguments else ["--exports", str(exports), "--allow-foreign"]
        code = main(["generate", *arguments, *place])
        return code, *capsys.readouterr()

    return run


SETTINGS = ["--temperature=0.5", "--top-k=3", "--top-p=0.9", "--min-p=0.1", "--seed=7"]
WANTED = {"temperature": 0.5, "top_k": 3, "top_p": 0.9, "min_p": 0.1, "seed": 7}


@pytest.mark.parametrize("place", ["here", "server"])
def test_a_text_is_written_and_its_numbers_told_apart(run, request, place):
    where = ["--url", request.getfixturevalue("url")] if place == "server" else []
    code, text, told = run("writer", "小", *SETTINGS, *where)
    wanted = answer_of("小", **WANTED)
    assert (code, text) == (0, wanted + "\n")
    assert f"[{len(wanted.encode())} tokens, the first after " in told
    assert told.endswith("a second, stop, seed 7]\n")
    code, text, told = run(
        "writer", "ab", "--max-tokens=5", "--echo", "--top-p=1", "--seed=2", *where
    )
    assert text == "ab" + answer_of("ab", temperature=0.8, seed=2)[:5] + "\n"
    assert "[5 tokens, " in told and "length" in told
    text = run("writer", "ab", "--stop=0.0", "--stop=nowhere", "--seed=2", *where)[1]
    assert text == answer_of("ab", temperature=0.8, top_p=0.95, seed=2).split("0.0")[0] + "\n"


def test_the_newest_version_writes_unless_another_is_asked_for(run):
    code, _, told = run("writer", "a", "--version=3")
    assert code == 1 and "writer has no version 3; it has: 1, 12" in told
    assert run("writer", "a", "--version=1")[0] == 0


def test_the_prompt_may_come_from_standard_input(run, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("abcd\n"))
    assert run("writer", "-", "--seed=1")[1].startswith("5 ")


def test_what_cannot_be(run, exports):
    code, text, told = run("nobody", "a")
    assert (code, text) == (1, "") and "no model named 'nobody'; it holds: writer" in told
    code, text, told = run("writer", "a", "--top-p=0")
    assert code == 1 and told.startswith("top_p must be above 0")
    code, _, told = run("writer", "a", "--url", "http://127.0.0.1:9")
    assert code == 1 and told.startswith("No server answers at http://127.0.0.1:9")
    assert main(["generate", "writer", "a", "--exports", str(exports)]) == 1  # no manifest


def test_an_interrupt_ends_it_cleanly(run, monkeypatch):
    """Ctrl-C after the first piece: what is there stays, the numbers are told, no traceback."""
    write = sys.stdout.write

    def interrupted(text):
        if len(text) > 1:
            signal.raise_signal(signal.SIGINT)
        return write(text)

    monkeypatch.setattr(sys.stdout, "write", interrupted)
    code, text, told = run("writer", "a", "--seed=1")
    assert code == generate.EXIT_INTERRUPTED and text.endswith("\n")
    assert "interrupted, seed 1]" in told


def test_help_says_what_there_is(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["generate", "--help"])
    assert caught.value.code == 0 and "--url" in capsys.readouterr().out


def test_a_machine_without_httpx_is_told_what_to_install(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "serving.client", None)
    code, _, told = run("writer", "a", "--url", "http://127.0.0.1:9")
    assert code == 1 and told == "--url needs httpx; install it with: pip install httpx.\n"


def test_nothing_to_write_and_too_much_to_read_are_told_alike_by_a_server(run, url):
    found = []
    for where in ([], ["--url", url]):
        told = [run("writer", "a", "--max-tokens=0", "--seed=1", *where)]
        assert told == [(0, "\n", "[0 tokens, length, seed 1]\n")]
        for prompt, size in (("b" * 500, 4), ("b" * 500, 90), ("b" * 94, 4), ("b" * 94, 1)):
            code, text, lines = run("writer", prompt, f"--max-tokens={size}", "--seed=1", *where)
            told.append((code, text, re.sub(r"[0-9.]+ s,|then \d+ a", "", lines)))
        found.append(told)
    assert found[0] == found[1]
    first, last = found[0][1][2].splitlines()
    assert first.startswith("[of 500 tokens of the prompt the last 91 are read: ")
    assert last.startswith("[4 tokens, the first after ") and len(found[0][1][1]) == 5
    assert "the prompt" not in found[0][4][2]


@pytest.mark.parametrize("place", ["here", "server"])
def test_what_was_written_before_an_interrupt_is_counted(run, url, monkeypatch, place):
    write, texts = sys.stdout.write, []

    def interrupted(text):
        if text.strip():
            texts.append(text)
            if len(texts) == 2:
                signal.raise_signal(signal.SIGINT)
        return write(text)

    monkeypatch.setattr(sys.stdout, "write", interrupted)
    where = ["--url", url] if place == "server" else []
    code, text, told = run("writer", "a", "--seed=1", *where)
    # The last part is not in what `capsys` has seen, but was written.
    assert code == generate.EXIT_INTERRUPTED and text.endswith("\n")
    assert told.startswith("[3 tokens, the first after ")


def test_what_is_for_this_machine_does_not_go_with_a_server(run, url):
    for option in ("--version=1", "--allow-foreign", "--exports=elsewhere"):
        code, text, told = run("writer", "a", "--url", url, option)
        assert (code, text) == (1, "") and told.startswith(option.partition("=")[0])
        assert "the server's newest version writes" in told
    for where in ([], ["--url", url]):
        code, text, told = run("writer", "a", *["--stop=a"] * 5, *where)
        assert (code, text) == (1, "") and told.startswith("stop must be a string or at most 4")


def test_a_terminal_shows_that_the_model_is_loaded(run, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    _, text, told = run("writer", "a", "--max-tokens=2", "--seed=1", "--echo")
    assert told.startswith("\r\033[KLoading writer ...\r\033[K[2 tokens, ")
    assert text.startswith("a") and len(text) == 4
    assert "Loading writer ...\r\033[K--version" in run("writer", "a", "--version=3")[2]


def test_an_empty_folder_of_exports_is_told(capsys, tmp_path):
    assert main(["generate", "writer", "a", "--exports", str(tmp_path / "none")]) == 1
    assert "holds no models; make one with `python -m training`" in capsys.readouterr().err
