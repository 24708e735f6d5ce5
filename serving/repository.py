"""The models on disk and in memory: find versions, load, swap, unload.

One thread does all of it, one step after the other, so no two loads ever race. A version goes
START -> LOADING -> AVAILABLE -> UNLOADING -> END, or from LOADING to END with an error. A new
version is loaded before the old one is let go, and the old one leaves only after its last request.
"""

import contextlib
import logging
import math
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

from serving.config import ModelConfig, ServerConfig, current_models, version_folders
from serving.errors import Code, ServingError, as_serving_error, invalid_argument

if TYPE_CHECKING:
    from serving.servable import Servable

log = logging.getLogger(__name__)

TICK_SECONDS = 0.1


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


@dataclass
class Model:
    config: ModelConfig
    versions: dict[int, Version] = field(default_factory=dict)  # all ever seen, ended ones included
    aspired: set[int] = field(default_factory=set)  # what the policy wants loaded
    complaint: str = ""  # about its folder, so that each is logged once

    def newest(self, state: State) -> Version | None:
        return max(
            (v for v in self.versions.values() if v.state is state),
            key=lambda v: v.number,
            default=None,
        )


@dataclass(frozen=True)
class Readiness:
    """`version` is the served one, else the newest seen; None and START when there is none."""

    name: str
    version: int | None
    state: State


class Repository:
    """Keeps what is served in step with the folders. Readers may come from any thread.

    `load(name, version, path)` makes a servable or raises; it runs in the repository's thread.
    """

    def __init__(self, config: ServerConfig, load: Callable[[str, int, Path], "Servable"]) -> None:
        self._config = config
        self._load_servable = load
        self._models: dict[str, Model] = {}
        self._lock = threading.Lock()  # held to read or change states, never while loading
        self._is_scanned = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="repository", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout: float | None = None) -> bool:
        """Ends the thread and closes idle servables. False if a load is still under way."""
        self._stop.set()
        self._thread.join(timeout)
        if self._thread.is_alive():
            return False
        for model in self._models.values():
            for version in model.versions.values():
                if version.servable and version.servable.is_idle:
                    version.servable.close()
                    version.servable = None
        return True

    # ------------------------------------------------------------ for requests

    @contextlib.contextmanager
    def acquire(
        self, name: str, version: int | None = None, label: str | None = None
    ) -> Iterator["Servable"]:
        """The version asked for, or the highest loaded one; it stays loaded inside the block."""
        if label is not None:
            raise invalid_argument(f"Unrecognized servable version label: {label}")
        with self._lock:
            servable = self._find(name, version)
            servable.retain()
        try:
            yield servable
        finally:
            servable.release()

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
        with self._lock:
            model = self._models.get(name)
            versions = (
                [(v.number, v.state, v.error) for v in model.versions.values()] if model else []
            )
        if not versions:
            raise ServingError(Code.NOT_FOUND, f"Could not find any versions of model {name}")
        if version is not None:
            versions = [entry for entry in versions if entry[0] == version]
            if not versions:
                raise ServingError(
                    Code.NOT_FOUND, f"Could not find version {version} of model {name}"
                )
        return sorted(versions, key=lambda entry: entry[0], reverse=True)

    def readiness(self) -> tuple[bool, list[Readiness]]:
        """Whether every model found by a finished first scan is served, and the models by name."""
        models = []
        with self._lock:
            for name, model in sorted(self._models.items()):
                version = model.newest(State.AVAILABLE)
                if version is None and model.versions:
                    version = model.versions[max(model.versions)]
                if version is None:
                    models.append(Readiness(name, None, State.START))
                else:
                    models.append(Readiness(name, version.number, version.state))
            is_scanned = self._is_scanned
        return is_scanned and all(m.state is State.AVAILABLE for m in models), models

    # ------------------------------------------------------------ the thread

    def _run(self) -> None:
        wait = self._config.file_system_poll_wait_seconds
        next_scan = time.monotonic() if wait >= 0 else math.inf
        while not self._stop.is_set():
            try:
                if time.monotonic() >= next_scan:
                    next_scan = time.monotonic() + wait if wait > 0 else math.inf
                    self._scan()
                for model in list(self._models.values()):
                    self._load_due(model)
                    self._unload_superseded(model)
            except Exception:  # the thread must outlive a bug: it is the only one that loads
                log.exception("The model repository met an unexpected error; it goes on.")
            self._stop.wait(TICK_SECONDS)

    def _scan(self) -> None:
        for config in current_models(self._config):
            if config.name not in self._models:
                with self._lock:
                    self._models[config.name] = Model(config)
        for name, model in self._models.items():
            complaint = ""
            try:
                folders = version_folders(model.config.base_path)
            except OSError as error:  # a vanished folder changes nothing: it may be on its way back
                complaint = f"Model {name}: its folder cannot be read, nothing is changed: {error}"
            else:
                self._aspire(model, folders)
                if not folders:
                    complaint = f"Model {name}: no version folder in {model.config.base_path}"
            if complaint and complaint != model.complaint:
                log.warning(complaint)
            model.complaint = complaint
        self._is_scanned = True

    def _aspire(self, model: Model, folders: dict[int, Path]) -> None:
        aspired = model.config.policy.choose(folders)
        with self._lock:
            for number in aspired:
                version = model.versions.setdefault(number, Version(number, folders[number]))
                if number not in model.aspired and version.state is State.END:
                    # It was away and came back: a new life, with all its tries.
                    model.versions[number] = Version(number, folders[number])
            model.aspired = aspired

    def _load_due(self, model: Model) -> None:
        for number in sorted(model.aspired, reverse=True):
            version = model.versions[number]
            is_retry = (
                version.state is State.END
                and version.error is not None
                and version.num_failures <= self._config.max_num_load_retries
                and time.monotonic() >= version.retry_at
            )
            if (version.state is State.START or is_retry) and not self._stop.is_set():
                self._load(model, version)

    def _load(self, model: Model, version: Version) -> None:
        name = model.config.name
        version.state = State.LOADING
        start = time.monotonic()
        try:
            servable = self._load_servable(name, version.number, version.path)
        except Exception as error:  # whatever a broken SavedModel makes TensorFlow raise
            self._record_failure(name, version, error)
            return
        with self._lock:
            version.servable, version.error, version.num_failures = servable, None, 0
            version.state = State.AVAILABLE
        seconds = time.monotonic() - start
        log.info("Model %s version %d is available (%.1f s)", name, version.number, seconds)

    def _record_failure(self, name: str, version: Version, error: Exception) -> None:
        known = as_serving_error(error)
        if known is None:
            code = Code.NOT_FOUND if isinstance(error, OSError) else Code.INTERNAL
            known = ServingError(code, f"{type(error).__name__}: {error}")
        with self._lock:
            version.error = known
            version.num_failures += 1
            version.retry_at = time.monotonic() + self._config.load_retry_interval_seconds
            version.state = State.END
        tries_left = self._config.max_num_load_retries + 1 - version.num_failures
        if tries_left:
            wait = self._config.load_retry_interval_seconds
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

    def _unload_superseded(self, model: Model) -> None:
        is_replaced = not model.aspired or any(
            model.versions[number].state is State.AVAILABLE for number in model.aspired
        )
        for number in sorted(model.versions.keys() - model.aspired):
            version = model.versions[number]
            with self._lock:
                if version.state is State.AVAILABLE and is_replaced:
                    version.state = State.UNLOADING
                elif version.state is State.START:
                    version.state = State.END
            if version.state is State.UNLOADING and version.servable and version.servable.is_idle:
                version.servable.close()
                with self._lock:
                    version.servable, version.state = None, State.END
                log.info("Model %s version %d is unloaded", model.config.name, number)
