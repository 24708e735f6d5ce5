"""The models of a stock server, behind its gRPC: a repository like the embedded one.

Every call goes to the backend as it came, by name, version or label, and every error of the backend
comes back with its own code and text. Classify and regress run as Predict on serialised examples,
which the backend's signatures take just the same.
"""

import contextlib
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from tensorflow.core.protobuf import meta_graph_pb2
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_management_pb2,
    model_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from model.signatures import SERVING_DEFAULT
from serving import model_configs
from serving.codec import Arrays, Tensors, tensor_from_proto, tensor_to_proto
from serving.config import ConfigError, ModelConfig, ServerConfig
from serving.errors import BY_NUMBER, Code, ServingError
from serving.keys import read_keys
from serving.repository import Readiness, State
from serving.timing import Timing

BACKEND_KEY = "STEPWISE_BACKEND_API_KEY"
SIGNATURE_SECONDS = 1.0  # how long signatures are believed; a swap is polled for as often
STATUS_TIMEOUT_SECONDS = 5.0  # for what does not compute
POLL_SECONDS = 0.2  # while waiting for the first models

Target = tuple[str, int | None, str | None]  # name, version, label


@dataclass(frozen=True)
class _Signatures:
    version: int
    by_name: Mapping[str, meta_graph_pb2.SignatureDef]
    asked_at: float  # time.monotonic()


class RemoteServable:
    """A version of the backend's, for one request: `version` is the one that answered last."""

    def __init__(self, repository: "RemoteRepository", target: Target, known: _Signatures) -> None:
        self._repository, self._target = repository, target
        self.name, self.version, self.signatures = target[0], known.version, known.by_name
        self.writer = None  # its signatures are all there is
        self.shared = repository.shared(self.name, self.version)

    def run(
        self,
        signature_name: str,
        inputs: Mapping[str, np.ndarray],
        output_filter: Sequence[str] = (),
        *,
        timeout: float | None = None,
        timing: Timing | None = None,
    ) -> Arrays:
        """Outputs by alias. `timeout` in seconds is the backend's deadline.

        `timing.compute` is the whole call. Raises ServingError with the backend's code and text.
        """
        timing = Timing() if timing is None else timing
        timing.version, timing.signature = self.version, signature_name or SERVING_DEFAULT
        request = predict_pb2.PredictRequest(
            model_spec=_spec(self._target, signature_name),
            inputs=inputs.protos
            if isinstance(inputs, Tensors)
            else {alias: tensor_to_proto(array) for alias, array in inputs.items()},
            output_filter=output_filter,
        )
        began = time.perf_counter()
        try:
            response = self._repository.predict(request, timeout)
        except ServingError:
            # A swap may have changed the signature that the inputs were read by.
            self._repository.forget(self._target)
            raise
        finally:
            timing.compute += time.perf_counter() - began
        if response.model_spec.version.value != self.version:
            self._repository.forget(self._target)
            self.version = timing.version = response.model_spec.version.value
        return {alias: tensor_from_proto(alias, proto) for alias, proto in response.outputs.items()}


class RemoteRepository:
    """What `serving.repository.Repository` gives the front ends, over the gRPC of `backend`.

    `config.backend` is HOST:PORT. Readers may come from any thread. Raises ConfigError for a key or
    certificates that cannot be used.
    """

    def __init__(self, config: ServerConfig) -> None:
        self._names = set(model_names(config))
        self._labels = {model.name: dict(model.labels) for model in config.models}
        self._timeout = config.request_timeout_seconds or None
        self._known: dict[Target, _Signatures] = {}
        self._shared: dict[tuple[str, int], dict[str, Any]] = {}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        keys = read_keys("--backend-api-key-file", config.backend_api_key_file, BACKEND_KEY)
        self._metadata = [("authorization", f"Bearer {key}") for key in keys[:1]]
        self._channel = _channel(config)
        self._prediction = prediction_service_pb2_grpc.PredictionServiceStub(self._channel)
        self._model = model_service_pb2_grpc.ModelServiceStub(self._channel)

    def start(self) -> None:
        """Nothing to load: the channel connects by itself, and again after a loss."""

    def stop(self, timeout: float | None = None) -> bool:
        self._stop.set()
        self._channel.close()
        return True

    @contextlib.contextmanager
    def acquire(
        self, name: str, version: int | None = None, label: str | None = None
    ) -> Iterator[RemoteServable]:
        """The version asked for, with its signatures. Raises ServingError as the backend does."""
        target = (name, version, label)
        yield RemoteServable(self, target, self._signatures(target))

    def _signatures(self, target: Target) -> _Signatures:
        now = time.monotonic()
        with self._lock:
            known = self._known.get(target)
        if known and now - known.asked_at < SIGNATURE_SECONDS:
            return known
        request = get_model_metadata_pb2.GetModelMetadataRequest(
            model_spec=_spec(target), metadata_field=["signature_def"]
        )
        try:
            response = self._call(
                self._prediction.GetModelMetadata, request, STATUS_TIMEOUT_SECONDS
            )
        except ServingError:
            self.forget(target)
            raise
        found = get_model_metadata_pb2.SignatureDefMap()
        if not response.metadata["signature_def"].Unpack(found):
            raise ServingError(Code.INTERNAL, "The backend's metadata holds no SignatureDefMap.")
        known = _Signatures(response.model_spec.version.value, dict(found.signature_def), now)
        with self._lock:
            self._known[target] = known
        return known

    def shared(self, name: str, version: int) -> dict[str, Any]:
        """What callers keep for as long as a version is there: of the last one of each name."""
        with self._lock:
            for other in [key for key in self._shared if key[0] == name and key[1] < version]:
                del self._shared[other]
            return self._shared.setdefault((name, version), {})

    def forget(self, target: Target) -> None:
        with self._lock:
            self._known.pop(target, None)

    def predict(
        self, request: predict_pb2.PredictRequest, timeout: float | None
    ) -> predict_pb2.PredictResponse:
        limits = [limit for limit in (timeout, self._timeout) if limit is not None]
        limit = min(limits, default=None)
        if limit is not None and limit <= 0:
            raise ServingError(Code.DEADLINE_EXCEEDED, "The deadline was over before the call.")
        return self._call(self._prediction.Predict, request, limit)

    def statuses(
        self, name: str, version: int | None = None
    ) -> list[tuple[int, State, ServingError | None]]:
        """(number, state, error) of all versions that the backend has seen; highest first."""
        request = get_model_status_pb2.GetModelStatusRequest(
            model_spec=_spec((name, version, None))
        )
        response = self._call(self._model.GetModelStatus, request, STATUS_TIMEOUT_SECONDS)
        found: list[tuple[int, State, ServingError | None]] = []
        for entry in response.model_version_status:
            code = BY_NUMBER.get(entry.status.error_code, Code.UNKNOWN)
            error = ServingError(code, entry.status.error_message)
            state = State(entry.state or State.START.value)
            found.append((entry.version, state, None if code is Code.OK else error))
        return sorted(found, key=lambda entry: entry[0], reverse=True)

    def names(self) -> list[str]:
        """The models of the configuration or of the last reload through here, in order."""
        with self._lock:
            return sorted(self._names)

    def labels(self, name: str) -> dict[str, int]:
        """The labels of our own configuration or the last reload: the backend tells nobody."""
        with self._lock:
            return dict(self._labels.get(name, {}))

    def readiness(self) -> tuple[bool, list[Readiness]]:
        """Whether the backend serves every model of `names`; one it does not know is START."""
        models = [self._readiness(name) for name in self.names()]
        return all(model.state is State.AVAILABLE for model in models), models

    def _readiness(self, name: str) -> Readiness:
        try:
            statuses = self.statuses(name)
        except ServingError:  # unknown, or nothing answers: either way not served
            return Readiness(name, None, State.START)
        served = [number for number, state, _ in statuses if state is State.AVAILABLE]
        if served:
            return Readiness(name, served[0], State.AVAILABLE)
        return Readiness(name, *statuses[0][:2]) if statuses else Readiness(name, None, State.START)

    def reload(self, models: Sequence[ModelConfig] | None, timeout: float | None = None) -> None:
        """Has the backend replace its list of models. Base paths are the backend's.

        Raises ServingError as the backend does.
        """
        if models is None:
            raise model_configs.NO_LIST
        request = model_management_pb2.ReloadConfigRequest(config=model_configs.to_proto(models))
        response = self._call(self._model.HandleReloadConfigRequest, request, timeout)
        if response.status.error_code:
            code = BY_NUMBER.get(response.status.error_code, Code.UNKNOWN)
            raise ServingError(code, response.status.error_message)
        with self._lock:
            self._names = {model.name for model in models}
            self._labels = {model.name: dict(model.labels) for model in models}
            self._known.clear()

    def _call(self, method: Any, request: Any, timeout: float | None) -> Any:
        try:
            return method(request, timeout=timeout, metadata=self._metadata)
        except grpc.RpcError as error:
            raise ServingError(Code[error.code().name], error.details() or "") from error
        except ValueError as error:  # the channel was closed by `stop`
            raise ServingError(Code.UNAVAILABLE, "The server is shutting down.") from error

    def wait_until_available(self) -> None:
        """Returns when the backend serves every model; for as long as that takes.

        Raises ServingError UNAVAILABLE after `stop`.
        """
        while not self.readiness()[0]:
            if self._stop.wait(POLL_SECONDS):
                raise ServingError(Code.UNAVAILABLE, "The server is shutting down.")


def model_names(config: ServerConfig) -> list[str]:
    """The models asked for by --models, else those of the configuration.

    Raises ConfigError or ServingError for a configuration that cannot be read.
    """
    return list(config.only_models) or [m.name for m in model_configs.current_models(config)]


def _spec(target: Target, signature_name: str = "") -> model_pb2.ModelSpec:
    name, version, label = target
    spec = model_pb2.ModelSpec(name=name, signature_name=signature_name)
    if label is not None:
        spec.version_label = label
    elif version is not None:
        spec.version.value = version
    return spec


def _channel(config: ServerConfig) -> grpc.Channel:
    unlimited = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    if not config.backend_ca:
        return grpc.insecure_channel(config.backend, unlimited)
    roots, key, chain = (
        _pem(flag, path)
        for flag, path in (
            ("--backend-ca", config.backend_ca),
            ("--backend-certificate-key", config.backend_certificate_key),
            ("--backend-certificate", config.backend_certificate),
        )
    )
    credentials = grpc.ssl_channel_credentials(roots, key, chain)
    return grpc.secure_channel(config.backend, credentials, unlimited)


def _pem(flag: str, path: Path | None) -> bytes | None:
    try:
        return path.read_bytes() if path else None
    except OSError as error:
        raise ConfigError(f"{flag} {path} cannot be read: {error}") from error
