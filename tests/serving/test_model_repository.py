"""A version's life: found, loaded, swapped, kept when its successor is broken, let go when idle."""

import asyncio
import gc
import shutil
import threading
import weakref

import pytest
from starlette.testclient import TestClient
from toy_exports import gate_model, scale_model, wait_until

from serving import model_configs, servable
from serving.config import ModelConfig, ServerConfig, VersionPolicy
from serving.errors import Code, ServingError, VersionRefused
from serving.repository import Repository, State
from serving.rest import create_app
from serving.server import _is_available
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


def test_a_number_may_be_negative_and_must_fit_in_64_bits(tmp_path, start, loader):
    put(tmp_path, "a", "-5", "-12", str(2**63), "9" * 200)
    repository = start()
    wait_until(lambda: repository.readiness()[0])
    assert version_of(repository) == -5


def test_of_two_names_for_a_version_the_last_counts(tmp_path, start, caplog):
    put(tmp_path, "a", "3", "003")
    repository = start()
    wait_until(lambda: repository.readiness()[0])
    assert repository._models["a"].versions[3].path.name == "3"
    assert caplog.text.count("left out for another name of the same version: 003") == 1


def test_a_new_version_replaces_the_old_one_after_it_is_loaded(tmp_path, start):
    (tmp_path / "a" / "1").mkdir(parents=True)
    repository = start()
    wait_until(lambda: states(repository, "a") == {1: State.AVAILABLE})
    (tmp_path / "a" / "2").mkdir()
    wait_until(lambda: states(repository, "a") == {2: State.AVAILABLE, 1: State.END})
    assert version_of(repository) == 2
    with pytest.raises(ServingError, match=r"Specific\(a, 1\)"), repository.acquire("a", 1):
        pass


def test_the_memory_of_a_version_comes_back_at_once(tmp_path, start):
    held = []

    def load(name, version, path):
        one = FakeServable(version)
        one.itself = one  # as a graph, which its operations know
        held.append(weakref.ref(one))
        return one

    put(tmp_path, "a", 1)
    repository = start(load)
    wait_until(lambda: repository.readiness()[0])
    gc.disable()
    try:
        put(tmp_path, "a", 2)
        wait_until(lambda: held[0]() is None)
    finally:
        gc.enable()
    assert version_of(repository) == 2


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


# ---------------------------------------------------------------- lists of models, labels, reload


class GatedLoader(FakeLoader):
    """Loads of the models in `held` stay under way until they are let go."""

    def __init__(self, *held):
        super().__init__()
        self.gates = {name: threading.Event() for name in held}
        self.running = set()

    def __call__(self, name, version, path):
        self.running.add((name, version))
        if name in self.gates:
            assert self.gates[name].wait(30)
        self.running.discard((name, version))
        return super().__call__(name, version, path)


def config_of(folder, name="a", **settings):
    return ModelConfig(name, folder / name, **settings)


def put(folder, name, *versions):
    for version in versions:
        (folder / name / str(version)).mkdir(parents=True)


def refusal(code, *arguments):
    """The text with which a call is refused."""
    with pytest.raises(ServingError) as caught:
        call, *rest = arguments
        call(*rest)
    assert caught.value.code is code
    return caught.value.message


def label_answers(repository, label, name="a"):
    with repository.acquire(name, label=label) as found:
        return found.version


def test_a_slow_load_holds_up_neither_a_status_nor_another_model(tmp_path, start):
    loader = GatedLoader("a")
    put(tmp_path, "a", 1)
    put(tmp_path, "b", 1)
    repository = start(loader)
    wait_until(lambda: states(repository, "b") == {1: State.AVAILABLE})
    assert states(repository, "a") == {1: State.LOADING}
    assert repository.names() == ["a", "b"]
    put(tmp_path, "b", 2)  # one load thread is taken by a, at the start there are more
    wait_until(lambda: states(repository, "b").get(2) is State.AVAILABLE)
    loader.gates["a"].set()
    wait_until(lambda: repository.readiness()[0])


@pytest.mark.parametrize(("num_load_threads", "at_once"), [(0, 1), (2, 2)])
def test_load_threads_bound_the_loads_at_once(tmp_path, start, num_load_threads, at_once):
    put(tmp_path, "first", 1)
    loader = GatedLoader("a", "b", "c")
    models = [config_of(tmp_path, name) for name in ("first", "a", "b", "c")]
    repository = start(loader, models=tuple(models[:1]), num_load_threads=num_load_threads)
    wait_until(lambda: not repository._is_starting)
    for name in "abc":
        put(tmp_path, name, 1)
    waiting = threading.Thread(target=repository.reload, args=(models,))
    waiting.start()
    for _ in "abc":
        wait_until(lambda: len(loader.running) >= min(at_once, 4 - len(loader.loaded)))
        assert len(loader.running) <= at_once
        loader.gates[min(loader.running)[0]].set()
        done = len(loader.loaded)
        wait_until(lambda done=done: len(loader.loaded) > done)
    waiting.join(30)
    assert not waiting.is_alive() and repository.readiness()[0]


def test_higher_versions_load_first(tmp_path, start, loader):
    put(tmp_path, "a", 1, 2, 3)
    repository = start(models=(config_of(tmp_path, policy=VersionPolicy(latest=0)),))
    repository._is_starting = False
    repository.wait_until_available()
    wait_until(lambda: len(loader.loaded) == 3)
    assert version_of(repository) == 3


def test_the_start_waits_for_every_model_and_names_those_that_failed(tmp_path, start, loader):
    put(tmp_path, "a", 1)
    put(tmp_path, "b", 2)
    loader.broken = {2}
    models = (config_of(tmp_path), config_of(tmp_path, "b"))
    repository = start(models=models, max_num_load_retries=1)
    message = refusal(Code.UNKNOWN, repository.wait_until_available)
    assert loader.loaded.count(("b", 2)) == 2  # after the last try only
    path = tmp_path / "b" / "2"
    assert message == (
        "1 servable(s) did not become available: {{{name: b version: 2} due to error: "
        f"NOT_FOUND: OSError: SavedModel file does not exist at: {path}}}, }}"
    )
    assert version_of(repository) == 1


def test_the_start_ends_at_once_when_the_gate_refuses_a_version(tmp_path, start):
    put(tmp_path, "a", 1)

    def refuse(name, version, path):
        raise VersionRefused("has no manifest")

    repository = start(load=refuse, models=(config_of(tmp_path),), max_num_load_retries=5)
    message = refusal(Code.UNKNOWN, repository.wait_until_available)
    assert message.startswith("1 servable(s) did not become available")
    assert "FAILED_PRECONDITION: has no manifest" in message
    [(_, state, error)] = repository.statuses("a")
    assert state is State.END and "no manifest" in error.message


def test_the_start_waits_for_a_model_without_a_version_until_it_is_stopped(tmp_path, start):
    repository = start(models=(config_of(tmp_path),))
    errors = []
    waiting = threading.Thread(
        target=lambda: errors.append(refusal(Code.UNAVAILABLE, repository.wait_until_available))
    )
    waiting.start()
    repository.stop(10)
    waiting.join(30)
    assert errors == ["The server is shutting down."]


def test_a_stop_signal_ends_the_wait_of_the_start(tmp_path, start):
    repository = start(models=(config_of(tmp_path),))

    async def wait_for_models():
        stopping = asyncio.Event()
        stopping.set()
        is_available = await _is_available(repository, stopping)
        return is_available, await asyncio.to_thread(repository.stop, 10)

    assert asyncio.run(wait_for_models()) == (False, True)


def test_labels_at_the_start_need_the_flag(tmp_path, start):
    put(tmp_path, "a", 1)
    models = (config_of(tmp_path, labels={"stable": 1}),)
    assert refusal(Code.FAILED_PRECONDITION, lambda: start(models=models)) == (
        "Request to assign label to version 1 of model a, which is not currently available for "
        "inference"
    )
    repository = start(models=models, allow_version_labels_for_unavailable_models=True)
    repository.wait_until_available()
    assert label_answers(repository, "stable") == 1


@pytest.mark.parametrize("is_allowed", [False, True])
def test_rules_of_labels(tmp_path, start, is_allowed):
    put(tmp_path, "a", 1, 2)
    both = VersionPolicy(latest=2)
    repository = start(
        models=(config_of(tmp_path, policy=both),),
        allow_version_labels_for_unavailable_models=is_allowed,
    )
    wait_until(lambda: states(repository, "a") == dict.fromkeys((1, 2), State.AVAILABLE))
    unknown = "Unrecognized servable version label: stable"
    assert refusal(Code.INVALID_ARGUMENT, label_answers, repository, "stable") == unknown

    repository.reload([config_of(tmp_path, policy=both, labels={"stable": 1, "canary": 2})])
    assert label_answers(repository, "stable") == 1
    assert label_answers(repository, "canary") == 2
    repository.reload([config_of(tmp_path, policy=both, labels={"stable": 2})])
    assert label_answers(repository, "stable") == 2
    assert "canary" in refusal(Code.INVALID_ARGUMENT, label_answers, repository, "canary")

    # A label in use stays at a loaded version, whatever the flag; all of the new list is refused.
    put(tmp_path, "b", 1)
    moved = [config_of(tmp_path, policy=both, labels={"stable": 3}), config_of(tmp_path, "b")]
    assert "version 3 of model a" in refusal(Code.FAILED_PRECONDITION, repository.reload, moved)
    assert label_answers(repository, "stable") == 2 and repository.names() == ["a"]

    # A new label may run ahead of its version with the flag only.
    ahead = [config_of(tmp_path, policy=both, labels={"next": 3})]
    if is_allowed:
        repository.reload(ahead)
        gone = refusal(Code.NOT_FOUND, label_answers, repository, "next")
        assert gone == "Servable not found for request: Specific(a, 3)"
        put(tmp_path, "a", 3)
        wait_until(lambda: states(repository, "a").get(3) is State.AVAILABLE)
        assert label_answers(repository, "next") == 3
    else:
        assert "version 3" in refusal(Code.FAILED_PRECONDITION, repository.reload, ahead)


def test_a_label_whose_version_is_gone_is_not_found(tmp_path, start):
    put(tmp_path, "a", 1)
    repository = start(models=(config_of(tmp_path),))
    repository.wait_until_available()
    repository.reload([config_of(tmp_path, labels={"stable": 1})])
    put(tmp_path, "a", 2)
    wait_until(lambda: states(repository, "a") == {2: State.AVAILABLE, 1: State.END})
    message = refusal(Code.NOT_FOUND, label_answers, repository, "stable")
    assert message == "Servable not found for request: Specific(a, 1)"


def test_reload_replaces_the_list_and_waits_for_what_is_new(tmp_path, start):
    put(tmp_path, "a", 1)
    put(tmp_path, "b", 4)
    repository = start(models=(config_of(tmp_path),))
    repository.wait_until_available()
    repository.reload([config_of(tmp_path, "b")])
    assert version_of(repository, "b") == 4  # no waiting: reload has done that
    wait_until(lambda: states(repository, "a") == {1: State.END})  # its status is kept
    assert repository.names() == ["b"]
    assert [model.name for model in repository.readiness()[1]] == ["b"]
    repository.reload([config_of(tmp_path, "b"), config_of(tmp_path)])
    assert version_of(repository) == 1
    repository.reload([])
    wait_until(lambda: states(repository, "b") == {4: State.END})
    assert repository.names() == []


def test_reload_says_what_failed_and_stays_in_force(tmp_path, start, loader):
    put(tmp_path, "a", 1)
    repository = start(models=(config_of(tmp_path),), max_num_load_retries=0)
    repository.wait_until_available()
    loader.broken = {7}
    put(tmp_path, "b", 7)
    message = refusal(
        Code.UNKNOWN, repository.reload, [config_of(tmp_path), config_of(tmp_path, "b")]
    )
    assert message.startswith("1 model(s) did not become available: {{{name: b version: 7} due to")
    assert repository.names() == ["a", "b"]
    loader.broken = set()  # taken out and put back it is new again, with all its tries
    repository.reload([config_of(tmp_path)])
    repository.reload([config_of(tmp_path), config_of(tmp_path, "b")])
    assert version_of(repository, "b") == 7


def test_reload_waits_no_longer_than_it_is_told(tmp_path, start):
    put(tmp_path, "a", 1)
    repository = start(models=(config_of(tmp_path),))
    models = [config_of(tmp_path), config_of(tmp_path, "empty")]
    message = refusal(Code.DEADLINE_EXCEEDED, repository.reload, models, 0.1)
    assert message == "Not yet available in time: empty"
    assert repository.names() == ["a", "empty"]


def test_lists_that_reload_refuses(tmp_path, start):
    put(tmp_path, "a", 1)
    repository = start(models=(config_of(tmp_path),))
    other = [config_of(tmp_path, platform="other")]
    assert refusal(Code.INVALID_ARGUMENT, repository.reload, other) == (
        "Illegal to change a model's platform. For model a platform was tensorflow and new "
        "platform requested is other"
    )
    other = [config_of(tmp_path, "b", platform="other")]
    message = refusal(Code.INVALID_ARGUMENT, repository.reload, other)
    assert message == "Model b requests unsupported platform other"
    twice = [config_of(tmp_path), config_of(tmp_path)]
    message = refusal(Code.INVALID_ARGUMENT, repository.reload, twice)
    assert message == "Illegal to list model a multiple times in config list"
    assert "Cannot transition" in refusal(Code.FAILED_PRECONDITION, repository.reload, None)
    assert repository.names() == ["a"]


def test_a_changed_base_path_reloads_nothing_that_is_loaded(tmp_path, start, loader):
    put(tmp_path, "a", 1)
    put(tmp_path, "elsewhere", 1, 2)
    repository = start(models=(config_of(tmp_path),))
    repository.wait_until_available()
    keep_both = VersionPolicy(latest=2)
    repository.reload([ModelConfig("a", tmp_path / "elsewhere", keep_both)])
    wait_until(lambda: states(repository, "a") == dict.fromkeys((1, 2), State.AVAILABLE))
    assert loader.loaded == [("a", 1), ("a", 2)]


@pytest.mark.parametrize(("num_unload_threads", "at_once"), [(0, 1), (2, 2)])
def test_unload_threads_bound_the_unloads_at_once(tmp_path, start, num_unload_threads, at_once):
    put(tmp_path, "a", 1)
    put(tmp_path, "b", 1)
    closing, leave = [], threading.Event()

    class SlowToClose(FakeServable):
        def close(self):
            closing.append(self)
            assert leave.wait(30)

    repository = start(
        lambda name, version, path: SlowToClose(version),
        models=(config_of(tmp_path), config_of(tmp_path, "b")),
        num_unload_threads=num_unload_threads,
    )
    repository.wait_until_available()
    repository.reload([])
    wait_until(lambda: len(closing) == at_once)
    assert states(repository, "a") == states(repository, "b") == {1: State.UNLOADING}
    assert len(closing) == at_once
    leave.set()
    wait_until(lambda: states(repository, "a") == states(repository, "b") == {1: State.END})
    assert len(closing) == 2


def test_a_version_wanted_again_after_its_unloading_is_loaded_again(tmp_path, start, loader):
    put(tmp_path, "a", 1, 2)
    one, two = (config_of(tmp_path, policy=VersionPolicy(specific=(n,))) for n in (1, 2))
    repository = start(models=(one,))
    repository.wait_until_available()
    repository.reload([two])
    wait_until(lambda: states(repository, "a") == {2: State.AVAILABLE, 1: State.END})
    repository.reload([one])
    wait_until(lambda: states(repository, "a") == {1: State.AVAILABLE, 2: State.END})


def config_text(folder, *names, more=""):
    entries = "".join(
        f"config {{ name: '{name}' base_path: '{folder / name}' model_platform: 'tensorflow' "
        f"{more} }}\n"
        for name in names
    )
    return f"model_config_list {{ {entries} }}"


def test_a_polled_config_file_is_followed_and_a_broken_one_left_out(tmp_path, start, caplog):
    put(tmp_path, "a", 1)
    put(tmp_path, "b", 1)
    file = tmp_path / "models.config"
    file.write_text(config_text(tmp_path, "a"))
    config = ServerConfig(model_config_file=file)
    repository = start(
        models=model_configs.current_models(config),
        model_config_file=file,
        model_config_file_poll_wait_seconds=1,
    )
    repository.wait_until_available()

    def write(text):
        unfinished = tmp_path / "unfinished"
        unfinished.write_text(text)
        unfinished.rename(file)
        repository._next_look_at_config = 0.0  # now, not in a second

    write(config_text(tmp_path, "a", "b", more="version_labels { key: 'stable' value: 1 }"))
    wait_until(lambda: "version 1 of model b" in caplog.text)  # not loaded yet: refused as a whole
    write(config_text(tmp_path, "a", "b"))
    wait_until(lambda: states(repository, "b") == {1: State.AVAILABLE})
    write("model_config_list { config {")
    wait_until(lambda: "what was there stays in force" in caplog.text)
    write("")
    wait_until(lambda: "Cannot transition to requested config" in caplog.text)
    assert repository.names() == ["a", "b"]
    write(config_text(tmp_path, "b", more="version_labels { key: 'stable' value: 1 }"))
    wait_until(lambda: repository.names() == ["b"])
    assert label_answers(repository, "stable", "b") == 1


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
    repository = start(load=servable.load, max_num_load_retries=0)
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
