"""The models on disk and in memory: find versions, load, swap, unload.

One thread decides and a few others load and close, so no two decisions ever race and a slow load
delays neither another model nor a status. A version goes START -> LOADING -> AVAILABLE ->
UNLOADING -> END, or from LOADING to END with an error. A new version is loaded before the old one
is let go, and the old one leaves only after its last request.
"""

import concurrent.futures
import contextlib
import logging
import math
import os
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

from serving import model_configs
from serving.config import ConfigError, ModelConfig, ServerConfig, numbered_children
from serving.errors import (
    Code,
    ServingError,
    VersionRefused,
    as_serving_error,
    invalid_argument,
)
from serving.memory import give_back

if TYPE_CHECKING:
    from serving.servable import Servable

log = logging.getLogger(__name__)

TICK_SECONDS = 0.1
COMPILING = "compiling-"  # how threads are named that make an engine: they cannot be stopped
INITIAL_LOADS = 4 * (os.cpu_count() or 1)  # at once, until the first models are there


class State(Enum):
    """Names and numbers of tensorflow.serving.ModelVersionStatus.State."""

    START = 10
    LOADING = 20
    AVAILABLE = 30
    UNLOADING = 40
    END = 50


@dataclass
class Version:
    number: int
    path: Path
    state: State = State.START
    error: ServingError | None = None  # of the last load, if it failed
    servable: "Servable | None" = None
    num_failures: int = 0
    retry_at: float = 0.0  # time.monotonic()
    is_closing: bool = False


@dataclass
class Model:
    config: ModelConfig
    is_configured: bool = True  # False once it has left the configuration; its status is kept
    is_scanned: bool = False  # its folder was read since it is configured
    versions: dict[int, Version] = field(default_factory=dict)  # all ever seen, ended ones included
    aspired: set[int] = field(default_factory=set)  # what the policy wants loaded
    complaint: str = ""  # about its folder, so that each is logged once

    def newest(self, state: State) -> Version | None:
        found = None
        for version in self.versions.values():
            if version.state is state and (found is None or version.number > found.number):
                found = version
        return found


@dataclass(frozen=True)
class Readiness:
    """`version` is the served one, else the newest seen; None and START when there is none."""

    name: str
    version: int | None
    state: State


class Repository:
    """Keeps what is served in step with the folders. Readers may come from any thread.

    `load(name, version, path)` makes a servable or raises; it runs in threads of the repository.
    """

    def __init__(self, config: ServerConfig, load: Callable[[str, int, Path], "Servable"]) -> None:
        self._config = config
        self._load_servable = load
        self._is_discovering = config.is_discovering
        self._configs: tuple[ModelConfig, ...] = ()  # in force
        self._models: dict[str, Model] = {}  # all ever configured
        # Held to read or change states, never while loading; notified of every change.
        self._changed = threading.Condition(threading.Lock())
        self._is_scanned = False
        self._is_starting = True  # until nothing is left to load for the first time
        self._num_loading = 0
        self._num_loads = max(1, config.num_load_threads)
        self._loads = concurrent.futures.ThreadPoolExecutor(
            max(self._num_loads, INITIAL_LOADS), thread_name_prefix="load"
        )
        self._unloads = concurrent.futures.ThreadPoolExecutor(
            max(1, config.num_unload_threads), thread_name_prefix="unload"
        )
        self._next_scan = 0.0 if config.file_system_poll_wait_seconds >= 0 else math.inf
        self._next_look_at_config = math.inf
        self._config_complaint = ""
        self._stop = threading.Event()
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._run, name="repository", daemon=True)

    def start(self) -> None:
        """Raises ServingError when the models of the configuration may not be served."""
        if not self._is_discovering:
            with self._changed:
                self._put_in_force(self._config.models)
        if self._config.model_config_file and self._config.model_config_file_poll_wait_seconds > 0:
            self._next_look_at_config = 0.0
        self._thread.start()

    def stop(self, timeout: float | None = None) -> bool:
        """Ends the threads and closes idle servables. False if a load is still under way."""
        self._stop.set()
        self._wake.set()
        with self._changed:
            self._changed.notify_all()
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        if self._thread.is_alive():
            self._thread.join(timeout)
        self._loads.shutdown(wait=False, cancel_futures=True)
        self._unloads.shutdown(wait=False, cancel_futures=True)
        with self._changed:
            left = None if timeout is None else max(0.0, deadline - time.monotonic())
            if not self._changed.wait_for(lambda: self._num_loading == 0, left):
                return False
            versions = [v for model in self._models.values() for v in model.versions.values()]
        for version in versions:
            if version.servable and version.servable.is_idle and not version.is_closing:
                version.servable.close()
                version.servable = None
        return True

    # ------------------------------------------------------------ for requests

    @contextlib.contextmanager
    def acquire(
        self, name: str, version: int | None = None, label: str | None = None
    ) -> Iterator["Servable"]:
        """The version asked for, or the highest loaded one; it stays loaded inside the block.

        Raises ServingError: INVALID_ARGUMENT for an unknown label, NOT_FOUND for what is not
        loaded.
        """
        with self._changed:
            if label is not None:
                version = self._version_of(name, label)
                if version is None:
                    raise invalid_argument(f"Unrecognized servable version label: {label}")
            servable = self._find(name, version)
            servable.retain()
        try:
            yield servable
        finally:
            servable.release()

    def _version_of(self, name: str, label: str) -> int | None:
        model = self._models.get(name)
        return model.config.labels.get(label) if model and model.is_configured else None

    def _find(self, name: str, version: int | None) -> "Servable":
        model = self._models.get(name)
        if model:
            found = (
                model.newest(State.AVAILABLE) if version is None else model.versions.get(version)
            )
            if found and found.state is State.AVAILABLE and found.servable:
                return found.servable
        wanted = f"Latest({name})" if version is None else f"Specific({name}, {version})"
        raise ServingError(Code.NOT_FOUND, f"Servable not found for request: {wanted}")

    def statuses(
        self, name: str, version: int | None = None
    ) -> list[tuple[int, State, ServingError | None]]:
        """(number, state, error) of all versions ever seen, or of one; highest first."""
        with self._changed:
            model = self._models.get(name)
            versions = (
                [(v.number, v.state, v.error) for v in model.versions.values()] if model else []
            )
        if version is not None:
            versions = [entry for entry in versions if entry[0] == version]
        if not versions:
            wanted = "any versions" if version is None else f"version {version}"
            raise ServingError(Code.NOT_FOUND, f"Could not find {wanted} of model {name}")
        return sorted(versions, key=lambda entry: entry[0], reverse=True)

    def names(self) -> list[str]:
        """The models that are configured, whether loaded or not, in order."""
        with self._changed:
            return sorted(name for name, model in self._models.items() if model.is_configured)

    def labels(self, name: str) -> dict[str, int]:
        """The versions that the labels of a configured model stand for."""
        with self._changed:
            model = self._models.get(name)
            return dict(model.config.labels) if model and model.is_configured else {}

    def readiness(self) -> tuple[bool, list[Readiness]]:
        """Whether every model found by a finished first scan is served, and the models by name."""
        models = []
        with self._changed:
            for name, model in sorted(self._models.items()):
                if not model.is_configured:
                    continue
                version = model.newest(State.AVAILABLE)
                if version is None and model.versions:
                    version = model.versions[max(model.versions)]
                if version is None:
                    models.append(Readiness(name, None, State.START))
                else:
                    models.append(Readiness(name, version.number, version.state))
            is_scanned = self._is_scanned
        return is_scanned and all(m.state is State.AVAILABLE for m in models), models

    # ------------------------------------------------------------ for whoever configures

    def reload(self, models: Sequence[ModelConfig] | None, timeout: float | None = None) -> None:
        """Replaces the list of models, then waits until each new one is available or has failed.

        `timeout` in seconds bounds the wait; without it a new model that has no version is waited
        for until there is one. None stands for a configuration without a list.

        Raises ServingError: INVALID_ARGUMENT or FAILED_PRECONDITION when the list is refused, and
        nothing has changed; UNKNOWN when a new model failed, DEADLINE_EXCEEDED or UNAVAILABLE when
        it was not waited for to the end, and the list is in force all the same.
        """
        if models is None:
            raise model_configs.NO_LIST
        with self._changed:
            before = {config.name for config in self._configs}
            self._put_in_force(tuple(models))
        self._wake.set()
        self._wait_for([m.name for m in models if m.name not in before], "model", timeout)

    def wait_until_available(self) -> None:
        """Returns when every configured model is served; for as long as that takes.

        Raises ServingError UNKNOWN when a load has failed for good or was refused by the version
        gate, UNAVAILABLE after `stop`.
        """
        self._wait_for([config.name for config in self._configs], "servable", None)

    def _wait_for(self, names: Collection[str], noun: str, timeout: float | None) -> None:
        with self._changed:
            models = [self._models[name] for name in names]
            has_settled = self._changed.wait_for(
                lambda: self._stop.is_set() or all(map(self._has_settled, models)), timeout
            )
            waiting = [model.config.name for model in models if not self._has_settled(model)]
            failed = [
                (m.config.name, max(v, key=lambda v: v.number))
                for m in models
                if (v := self._failed_versions(m))
            ]
        if not has_settled:
            raise ServingError(
                Code.DEADLINE_EXCEEDED, f"Not yet available in time: {', '.join(waiting)}"
            )
        if waiting:
            raise ServingError(Code.UNAVAILABLE, "The server is shutting down.")
        if failed:
            reasons = "".join(
                f"{{{{name: {name} version: {version.number}}} due to error: "
                f"{version.error.code.name}: {version.error.message}}}, "
                for name, version in failed
                if version.error
            )
            raise ServingError(
                Code.UNKNOWN,
                f"{len(failed)} {noun}(s) did not become available: {{{reasons}}}",
            )

    def _has_settled(self, model: Model) -> bool:
        if not model.is_configured:
            return True  # gone by a later reload: nobody need wait for it
        if not model.is_scanned:
            return False
        return bool(model.newest(State.AVAILABLE) or self._failed_versions(model))

    def _failed_versions(self, model: Model) -> list[Version]:
        """Its aspired versions, if none is served and whoever waits need not hope for one."""
        versions = [model.versions[number] for number in model.aspired]
        if not model.is_configured or model.newest(State.AVAILABLE):
            return []
        return versions if all(map(self._is_hopeless, versions)) else []

    def _is_hopeless(self, version: Version) -> bool:
        is_refused = version.state is State.END and isinstance(version.error, VersionRefused)
        return is_refused or self._has_failed_for_good(version)

    def _has_failed_for_good(self, version: Version) -> bool:
        return (
            version.state is State.END
            and version.error is not None
            and version.num_failures > self._config.max_num_load_retries
        )

    def _put_in_force(self, configs: tuple[ModelConfig, ...]) -> None:
        """All of `configs` or, with a ServingError, nothing of it. Needs the lock."""
        model_configs.check_transition(self._configs, configs)
        for config in configs:
            for label, version in config.labels.items():
                self._check_label(config.name, label, version)
        names = {config.name for config in configs}
        for name, model in self._models.items():
            if name not in names and model.is_configured:
                model.is_configured, model.aspired = False, set()
                log.info("Model %s has left the configuration", name)
        for config in configs:
            known = self._models.setdefault(config.name, Model(config))
            if not known.is_configured:
                known.is_configured, known.is_scanned = True, False
            known.config = config
        self._configs = configs
        self._is_discovering = False
        if self._config.file_system_poll_wait_seconds >= 0:
            self._next_scan = 0.0
        self._changed.notify_all()

    def _check_label(self, name: str, label: str, version: int) -> None:
        model = self._models.get(name)
        found = model.versions.get(version) if model else None
        if found and found.state is State.AVAILABLE:
            return
        is_new = self._version_of(name, label) in (None, version)
        if not (is_new and self._config.allow_version_labels_for_unavailable_models):
            raise ServingError(
                Code.FAILED_PRECONDITION,
                f"Request to assign label to version {version} of model {name}, which is not "
                "currently available for inference",
            )

    # ------------------------------------------------------------ the deciding thread

    def _run(self) -> None:
        while not self._stop.is_set():
            self._wake.clear()
            try:
                self._look_at_config_file()
                self._scan()
                for model in list(self._models.values()):
                    self._unload_superseded(model)
                self._load_due()
            except Exception:  # the thread must outlive a bug: it is the only one that decides
                log.exception("The model repository met an unexpected error; it goes on.")
            self._wake.wait(TICK_SECONDS)

    def _look_at_config_file(self) -> None:
        if time.monotonic() < self._next_look_at_config or not self._config.model_config_file:
            return
        wait = self._config.model_config_file_poll_wait_seconds
        self._next_look_at_config = time.monotonic() + wait
        complaint = ""
        try:
            models = model_configs.read(self._config.model_config_file)
            if models is None:
                raise model_configs.NO_LIST
            if models != self._configs:
                with self._changed:
                    self._put_in_force(models)
                log.info("Models by the changed file: %s", ", ".join(m.name for m in models))
        except (ConfigError, ServingError) as error:
            complaint = f"--model_config_file is left out, what was there stays in force: {error}"
        if complaint and complaint != self._config_complaint:
            log.error(complaint)
        self._config_complaint = complaint

    def _scan(self) -> None:
        if time.monotonic() < self._next_scan:
            return
        wait = self._config.file_system_poll_wait_seconds
        with self._changed:
            self._next_scan = time.monotonic() + wait if wait > 0 else math.inf
            is_discovering = self._is_discovering
        if is_discovering:
            found = model_configs.current_models(self._config)
            with self._changed:
                known = {config.name for config in self._configs}
                new = tuple(config for config in found if config.name not in known)
                self._configs += new
                self._models |= {config.name: Model(config) for config in new}
        for name, model in list(self._models.items()):
            config = model.config
            if not model.is_configured:
                continue
            complaint = ""
            try:
                children = numbered_children(config.base_path)
            except OSError as error:  # a vanished folder changes nothing: it may be on its way back
                complaint = f"Model {name}: its folder cannot be read, nothing is changed: {error}"
            else:
                folders = dict(children)
                self._aspire(model, config, folders)
                if len(folders) < len(children):
                    left_out = [path.name for n, path in children if folders[n] != path]
                    complaint = (
                        f"Model {name}: left out for another name of the same version: "
                        f"{', '.join(left_out)}"
                    )
                if not folders:
                    complaint = f"Model {name}: no version folder in {config.base_path}"
            if complaint and complaint != model.complaint:
                log.warning(complaint)
            model.complaint = complaint
        self._is_scanned = True

    def _aspire(self, model: Model, config: ModelConfig, folders: dict[int, Path]) -> None:
        aspired = config.policy.choose(folders)
        with self._changed:
            if model.config is not config or not model.is_configured:
                return  # reconfigured meanwhile; the next scan is due at once
            for number in aspired:
                version = model.versions.setdefault(number, Version(number, folders[number]))
                is_back = number not in model.aspired and version.state is State.END
                if is_back or (version.state is State.END and version.path != folders[number]):
                    # It was away and came back, or is another folder: a new life, with all tries.
                    model.versions[number] = Version(number, folders[number])
            model.aspired = aspired
            model.is_scanned = True
            self._changed.notify_all()

    def _load_due(self) -> None:
        with self._changed:
            limit = self._loads_at_once()
            due = [
                (model, version)
                for model in self._models.values()
                for number in sorted(model.aspired, reverse=True)
                if self._is_due(version := model.versions[number])
            ]
            if self._is_scanned and not due and not self._num_loading:
                self._is_starting = False
            for model, version in due[: max(0, limit - self._num_loading)]:
                if not self._stop.is_set():
                    version.state = State.LOADING
                    self._num_loading += 1
                    self._loads.submit(self._load, model.config.name, version)

    def _loads_at_once(self) -> int:
        return max(self._num_loads, INITIAL_LOADS) if self._is_starting else self._num_loads

    def _is_due(self, version: Version) -> bool:
        if version.state is State.END and version.error is None:
            return True  # it was unloaded and is wanted again
        is_retry = (
            version.state is State.END
            and not self._has_failed_for_good(version)
            and time.monotonic() >= version.retry_at
        )
        return version.state is State.START or is_retry

    def _load(self, name: str, version: Version) -> None:
        start = time.monotonic()
        try:
            servable = self._load_servable(name, version.number, version.path)
        except Exception as error:  # whatever a broken SavedModel makes TensorFlow raise
            self._record_failure(name, version, error)
            return
        seconds = time.monotonic() - start
        log.info("Model %s version %d is available (%.1f s)", name, version.number, seconds)
        with self._changed:
            version.servable, version.error, version.num_failures = servable, None, 0
            self._end_load(version, State.AVAILABLE)

    def _end_load(self, version: Version, state: State) -> None:
        version.state = state
        self._num_loading -= 1
        self._changed.notify_all()
        self._wake.set()

    def _record_failure(self, name: str, version: Version, error: Exception) -> None:
        known = as_serving_error(error)
        if known is None:
            code = Code.NOT_FOUND if isinstance(error, OSError) else Code.INTERNAL
            known = ServingError(code, f"{type(error).__name__}: {error}")
        wait = self._config.load_retry_interval_seconds
        tries_left = self._config.max_num_load_retries - version.num_failures
        if tries_left > 0:
            outlook = f"next try in {wait:g} s, {tries_left} left"
        else:
            outlook = "no more tries: export it again under a new number"
        log.error(
            "Model %s version %d failed to load (%s): %s",
            name,
            version.number,
            outlook,
            known.message,
        )
        with self._changed:
            version.error = known
            version.num_failures += 1
            version.retry_at = time.monotonic() + wait
            self._end_load(version, State.END)

    def _unload_superseded(self, model: Model) -> None:
        with self._changed:
            if model.is_configured and not model.is_scanned:
                return  # what is wanted of it is not known yet
            is_replaced = not model.aspired or any(
                model.versions[number].state is State.AVAILABLE for number in model.aspired
            )
            for number in sorted(model.versions.keys() - model.aspired):
                version = model.versions[number]
                if version.state is State.AVAILABLE and is_replaced:
                    version.state = State.UNLOADING
                elif version.state is State.START:
                    version.state = State.END
                self._changed.notify_all()
            for version in model.versions.values():
                is_leaving = version.state is State.UNLOADING and not version.is_closing
                if is_leaving and version.servable and version.servable.is_idle:
                    version.is_closing = True
                    self._unloads.submit(self._close, model.config.name, version)

    def _close(self, name: str, version: Version) -> None:
        try:
            if version.servable:
                version.servable.close()
        except Exception:
            log.exception("Model %s version %d was not closed cleanly", name, version.number)
        log.info("Model %s version %d is unloaded", name, version.number)
        with self._changed:
            version.servable, version.state, version.is_closing = None, State.END, False
            self._changed.notify_all()
        give_back()  # another version may not fit beside it
        self._wake.set()
