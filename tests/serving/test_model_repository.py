"""A version's life: found, loaded, swapped, kept when its successor is broken, let go when idle."""

import shutil
import threading

import pytest
from starlette.testclient import TestClient
from toy_exports import gate_model, scale_model, wait_until

from serving import servable
from serving.config import ModelConfig, ServerConfig, VersionPolicy
from serving.errors import Code, ServingError
from serving.repository import Repository, State
from serving.rest import create_app
from serving.service import Service


class FakeServable:
    def __init__(self, version):
        self.version, self.is_idle, self.is_closed = version, True, False

    def retain(self):
        self.is_idle = False

    def release(self):
        self.is_idle = True

    def close(self):
        self.is_closed = True


class FakeLoader:
    """Makes fake servables and records the order; versions in `broken` raise."""

    def __init__(self):
        self.loaded, self.broken = [], set()

    def __call__(self, name, version, path):
        self.loaded.append((name, version))
        if version in self.broken:
            raise OSError(f"SavedModel file does not exist at: {path}")
        return FakeServable(version)


@pytest.fixture
def loader():
    return FakeLoader()


@pytest.fixture
def start(tmp_path, loader):
    """Starts a repository over tmp_path with the fake loader (or another one)."""
    started = []

    def start(load=loader, **settings):
        settings = {
            "exports": tmp_path,
            "file_system_poll_wait_seconds": 0.05,
            "load_retry_interval_micros": 50_000,
        } | settings
        repository = Repository(ServerConfig(**settings), load)
        repository.start()
        started.append(repository)
        return repository

    yield start
    for repository in started:
        repository.stop(10)


def states(repository, name):
    try:
        return {number: state for number, state, _ in repository.statuses(name)}
    except ServingError:
        return {}


def version_of(repository, name="a"):
    with repository.acquire(name) as found:
        return found.version


def test_the_highest_version_is_served_and_the_names_are_numbers(tmp_path, start, loader):
    for name in ("1", "00000009", "10.tmp", "latest", "-11", "²"):
        (tmp_path / "a" / name).mkdir(parents=True)
    repository = start()
    wait_until(lambda: repository.readiness()[0])
    assert version_of(repository) == 9
    assert loader.loaded == [("a", 9)]


def test_a_new_version_replaces_the_old_one_after_it_is_loaded(tmp_path, start):
    (tmp_path / "a" / "1").mkdir(parents=True)
    repository = start()
    wait_until(lambda: states(repository, "a") == {1: State.AVAILABLE})
    (tmp_path / "a" / "2").mkdir()
    wait_until(lambda: states(repository, "a") == {2: State.AVAILABLE, 1: State.END})
    assert version_of(repository) == 2
    with pytest.raises(ServingError, match=r"Specific\(a, 1\)"), repository.acquire("a", 1):
        pass


def test_a_version_in_use_is_not_closed(tmp_path, start):
    (tmp_path / "a" / "1").mkdir(parents=True)
    repository = start()
    wait_until(lambda: repository.readiness()[0])
    with repository.acquire("a") as old:
        (tmp_path / "a" / "2").mkdir()
        wait_until(lambda: states(repository, "a").get(2) is State.AVAILABLE)
        wait_until(lambda: states(repository, "a")[1] is State.UNLOADING)
        assert version_of(repository) == 2
        assert not old.is_closed
    wait_until(lambda: states(repository, "a")[1] is State.END)
    assert old.is_closed


def test_a_broken_version_leaves_the_old_one_and_is_tried_a_bounded_number_of_times(
    tmp_path, start, loader
):
    loader.broken = {2}
    (tmp_path / "a" / "1").mkdir(parents=True)
    repository = start(max_num_load_retries=2)
    wait_until(lambda: repository.readiness()[0])
    (tmp_path / "a" / "2").mkdir()
    wait_until(lambda: loader.loaded.count(("a", 2)) == 3)
    wait_until(lambda: states(repository, "a") == {2: State.END, 1: State.AVAILABLE})
    assert version_of(repository) == 1
    (number, _, error), *_ = repository.statuses("a")
    assert (number, error.code) == (2, Code.NOT_FOUND)
    assert "SavedModel file does not exist" in error.message
    assert repository.readiness()[0]  # the old version serves, so the model is ready

    (tmp_path / "b" / "1").mkdir(parents=True)  # several polls later ...
    wait_until(lambda: states(repository, "b") == {1: State.AVAILABLE})
    assert loader.loaded.count(("a", 2)) == 3  # ... there was no fourth try


def test_a_version_that_was_away_and_came_back_is_tried_again(tmp_path, start, loader):
    loader.broken = {2}
    (tmp_path / "a" / "1").mkdir(parents=True)
    (tmp_path / "a" / "2").mkdir(parents=True)
    repository = start(max_num_load_retries=0)
    wait_until(lambda: states(repository, "a").get(2) is State.END)
    (tmp_path / "a" / "2").rmdir()
    wait_until(lambda: states(repository, "a").get(1) is State.AVAILABLE)
    loader.broken = set()
    (tmp_path / "a" / "2").mkdir()
    wait_until(lambda: states(repository, "a").get(2) is State.AVAILABLE)
    assert repository.statuses("a")[0][2] is None


def test_a_retry_that_works_clears_the_error(tmp_path, start, loader):
    loader.broken = {1}
    (tmp_path / "a" / "1").mkdir(parents=True)
    repository = start(max_num_load_retries=1000)
    wait_until(lambda: loader.loaded.count(("a", 1)) > 1)
    assert not repository.readiness()[0]
    loader.broken = set()
    wait_until(lambda: states(repository, "a").get(1) is State.AVAILABLE)
    assert repository.statuses("a")[0][2] is None


def test_a_model_that_appears_later_is_picked_up(tmp_path, start):
    (tmp_path / "a" / "1").mkdir(parents=True)
    repository = start()
    wait_until(lambda: repository.readiness()[0])
    (tmp_path / "b" / "5").mkdir(parents=True)
    wait_until(lambda: states(repository, "b") == {5: State.AVAILABLE})


def test_a_vanished_base_path_changes_nothing_an_empty_one_unloads(tmp_path, start, caplog):
    (tmp_path / "a" / "1").mkdir(parents=True)
    repository = start()
    wait_until(lambda: repository.readiness()[0])
    (tmp_path / "a").rename(tmp_path / ".away")
    wait_until(lambda: "nothing is changed" in caplog.text)
    assert version_of(repository) == 1
    (tmp_path / "a").mkdir()
    wait_until(lambda: states(repository, "a") == {1: State.END})
    ready, (model,) = repository.readiness()
    assert not ready and model.state is State.END


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        (VersionPolicy(), {3}),
        (VersionPolicy(latest=2), {2, 3}),
        (VersionPolicy(latest=0), {1, 2, 3}),
        (VersionPolicy(specific=(1, 7)), {1}),
    ],
)
def test_version_policies(tmp_path, start, policy, expected):
    for number in (1, 2, 3):
        (tmp_path / "a" / str(number)).mkdir(parents=True)
    repository = start(models=(ModelConfig("a", tmp_path / "a", policy),))
    wait_until(lambda: states(repository, "a") == dict.fromkeys(expected, State.AVAILABLE))
    assert version_of(repository) == max(expected)


def test_readiness_waits_for_the_first_scan():
    repository = Repository(ServerConfig(), FakeLoader())
    assert repository.readiness() == (False, [])


# ---------------------------------------------------------------- with real SavedModels


def test_hot_swap_under_requests_fails_none_of_them(tmp_path, start):
    scale_model(tmp_path / "a" / "1", factor=1.0)
    repository = start(load=servable.load)
    wait_until(lambda: repository.readiness()[0])
    scale_model(tmp_path / ".next", factor=10.0)

    stop, answers, failures = threading.Event(), set(), []
    with TestClient(create_app(Service(repository))) as rest:

        def keep_asking():
            while not stop.is_set():
                response = rest.post("/v1/models/a:predict", json={"instances": [1.0]})
                if response.status_code == 200:
                    answers.add(response.json()["predictions"][0])
                else:
                    failures.append(response.text)

        threads = [threading.Thread(target=keep_asking) for _ in range(3)]
        for thread in threads:
            thread.start()
        wait_until(lambda: answers == {3.0})
        (tmp_path / ".next").rename(tmp_path / "a" / "2")
        wait_until(lambda: states(repository, "a") == {2: State.AVAILABLE, 1: State.END})
        wait_until(lambda: 12.0 in answers)
        stop.set()
        for thread in threads:
            thread.join()
    assert answers == {3.0, 12.0} and not failures


def corrupt_graph(path):
    (path / "saved_model.pb").write_bytes(b"\x0anot a protobuf")


def corrupt_variables(path):
    for file in (path / "variables").glob("*.data*"):
        file.unlink()


def no_model(path):
    (path / "saved_model.pb").unlink()


def broken_warmup(path):
    (path / "assets.extra").mkdir()
    (path / "assets.extra" / "tf_serving_warmup_requests").write_bytes(b"no records at all")


@pytest.mark.parametrize("spoil", [corrupt_graph, corrupt_variables, no_model, broken_warmup])
def test_a_corrupt_version_is_reported_and_the_old_one_answers(tmp_path, start, spoil):
    scale_model(tmp_path / "a" / "1")
    repository = start(load=servable.load)
    wait_until(lambda: repository.readiness()[0])
    scale_model(tmp_path / ".next")
    spoil(tmp_path / ".next")
    (tmp_path / ".next").rename(tmp_path / "a" / "2")
    wait_until(lambda: states(repository, "a").get(2) is State.END)
    with TestClient(create_app(Service(repository))) as rest:
        broken, good = rest.get("/v1/models/a").json()["model_version_status"]
        assert (broken["version"], broken["state"]) == ("2", "END")
        assert broken["status"]["error_code"] != "OK" and broken["status"]["error_message"]
        assert (good["version"], good["state"]) == ("1", "AVAILABLE")
        response = rest.post("/v1/models/a:predict", json={"instances": [2.0]})
        assert response.json() == {"predictions": [3.0]}


def test_a_running_request_survives_the_unloading_of_its_version(tmp_path, start):
    """Closing a session cancels what runs in it, so a handle too few would fail this request."""
    gate_model(tmp_path / "a" / "1")
    repository = start(load=servable.load)
    wait_until(lambda: repository.readiness()[0])
    entry, leave = tmp_path / "entry", tmp_path / "leave"
    answers = []
    with TestClient(create_app(Service(repository))) as rest:
        row = {"entry": str(entry), "leave": str(leave)}
        request = threading.Thread(
            target=lambda: answers.append(
                rest.post("/v1/models/a:predict", json={"instances": [row]}).json()
            )
        )
        request.start()
        wait_until(entry.exists)  # now the request runs inside the graph
        shutil.copytree(tmp_path / "a" / "1", tmp_path / ".next")
        (tmp_path / ".next").rename(tmp_path / "a" / "2")
        wait_until(lambda: states(repository, "a").get(1) is State.UNLOADING)
        assert rest.get("/healthz").status_code == 200  # a slow request blocks nobody
        leave.touch()
        request.join()
    assert answers == [{"predictions": [True]}]
    wait_until(lambda: states(repository, "a") == {2: State.AVAILABLE, 1: State.END})
