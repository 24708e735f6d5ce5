"""What all tests share: the environment, and exports of briefly trained models."""

import gc
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Tests run side by side: threads that share out tiny operations would only wait for each other.
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")
os.environ.setdefault("TF_NUM_INTEROP_THREADS", "1")
if "STEPWISE_DATA" not in os.environ and (ROOT.parent / "shared" / "data").is_dir():
    os.environ["STEPWISE_DATA"] = str(ROOT.parent / "shared" / "data")


@pytest.hookimpl(tryfirst=True)  # before xdist reads the marks
def pytest_collection_modifyitems(items):
    """Tests that share what takes long to make share a worker, so that it is made once."""
    for item in items:
        if item.get_closest_marker("xdist_group"):
            continue
        names = getattr(item, "fixturenames", ())
        if "trained_folder" in names:
            item.add_marker(pytest.mark.xdist_group("trained_exports"))
        elif "tiny_writer" in names:
            item.add_marker(pytest.mark.xdist_group("tiny_writer"))
        elif _has_fixtures_of_its_module(item):
            item.add_marker(pytest.mark.xdist_group(item.nodeid.partition("::")[0]))


def _has_fixtures_of_its_module(item) -> bool:
    found = getattr(item, "_fixtureinfo", None)
    definitions = [one for some in found.name2fixturedefs.values() for one in some] if found else []
    return any(one.scope == "module" and one.baseid.endswith(".py") for one in definitions)


@pytest.fixture(scope="module", autouse=True)
def collected():
    """What a module leaves behind is collected once, not looked through in every test after it.

    TensorFlow's modules alone are 400,000 objects, and Streamlit collects after every page.
    """
    gc.freeze()
    yield
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def trained_folder(tmp_path_factory) -> Path:
    """A folder with `runs/` and `exports/` of sentiment, topics and stories, trained briefly."""
    folder = tmp_path_factory.mktemp("trained")
    script = ROOT / "tests" / "end_to_end" / "brief_exports.py"
    done = subprocess.run(
        [sys.executable, str(script), str(folder)], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="session")
def trained_exports(trained_folder) -> Path:
    """The folder that a server is started on."""
    return trained_folder / "exports"


@pytest.fixture(scope="session")
def tiny_writer():
    """An untrained language model in memory, of 2 layers and 32 tokens, with a firm taste."""
    from tests.tiny_writer import tiny_writer

    return tiny_writer()


@pytest.fixture(scope="session")
def writer_exports(tiny_writer, tmp_path_factory) -> Path:
    """A folder with `tiny_writer` as `writer/1`: read only, for all signatures of a generator."""
    from training.export import export_learner

    exports = tmp_path_factory.mktemp("writer")
    export_learner(tiny_writer, exports)
    return exports
