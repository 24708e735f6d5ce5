"""The gRPC front end: TensorFlow Serving's PredictionService and ModelService.

One function, `Calls.answer`, takes every request and is the only place where an exception becomes
a status; what a method does is a plain function of a repository. A request has a thread of gRPC's
own once its message is there. Only a small prediction of a model that is batched has none: it is
begun by the thread that hears of calls, waits for its batch in no thread, and one thread that all
share writes the answers. On REST's event loop each cost twice the processor time.
"""

import logging
import queue
import re
import threading
import time
import types
from collections.abc import Callable, Coroutine, Generator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any
from urllib.parse import unquote

import grpc
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    model_management_pb2,
    model_pb2,
    predict_pb2,
    regression_pb2,
)

from model.signatures import SERVING_DEFAULT
from serving import inference, metrics, model_configs, text_config
from serving.batching import Task
from serving.codec import Tensors, check_filled, check_texts, tensor_to_proto
from serving.config import ConfigError, ServerConfig
from serving.errors import Code, ServingError, invalid_argument
from serving.grpc_calls import Begin, Call, Reception, headers_of, parsed
from serving.keys import Keys
from serving.profiler import Profiler
from serving.rates import RateLimit
from serving.repository import Repository
from serving.request_ids import REQUEST_ID, request_id_of
from serving.service import SMALL_OUTPUT, Service, is_small, needs_no_thread, num_threads
from serving.timing import Timing

log = logging.getLogger(__name__)

MAX_MESSAGE_BYTES = 2**31 - 1  # of an answer
OTHER_THREADS = 16  # of health and reflection, whose callers may hold one each
LEAST_AWAITED = 64  # calls that may lack their message, however few may wait

# Messages cross as bytes and are read here: one that is none gets an answer of ours.
_PREDICTION = {
    "Predict": predict_pb2.PredictRequest,
    "Classify": classification_pb2.ClassificationRequest,
    "Regress": regression_pb2.RegressionRequest,
    "MultiInference": inference_pb2.MultiInferenceRequest,
    "GetModelMetadata": get_model_metadata_pb2.GetModelMetadataRequest,
}
_MODEL = {
    "GetModelStatus": get_model_status_pb2.GetModelStatusRequest,
    "HandleReloadConfigRequest": model_management_pb2.ReloadConfigRequest,
}
_SERVICES = {
    "tensorflow.serving.PredictionService": _PREDICTION,
    "tensorflow.serving.ModelService": _MODEL,
}
# The names that tensorflow_model_server reports.
_HEALTHY = ("", "ModelService", "PredictionService")
_INFERENCE = ("Predict", "Classify", "Regress", "MultiInference")

# A step of one ends where it waits for a task or, None, for a thread.
Answer = Coroutine[Task | None, None, None]


class GrpcServer:
    """Both services, and those for health and reflection where they are asked for.

    Raises ConfigError for settings that cannot work.
    """

    def __init__(
        self, service: Service, config: ServerConfig, rates: RateLimit | None = None
    ) -> None:
        self._config, self._health = config, None
        threads = config.grpc_max_threads or num_threads(config)
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="grpc")
        most_awaited = max(config.max_waiting_requests, LEAST_AWAITED)
        reception = Reception(OTHER_THREADS, most_awaited=most_awaited)
        self.server = grpc.server(
            reception,
            interceptors=[KeyedReflection(config)] if config.grpc_reflection else [],
            options=_options(config),
        )
        self._answers = Answers(self._threads)
        calls = Calls(service, config, rates)
        begins: dict[str, Begin] = {
            f"/{name}/{method}": partial(self._begin, partial(calls.answer, method, kind))
            for name, methods in _SERVICES.items()
            for method, kind in methods.items()
        }
        if config.enable_profiler and config.engine != "remote":
            begins |= Profiler(Keys.from_config(config)).begins()
        self.server.add_generic_rpc_handlers([reception.handlers(begins)])
        names = list(_SERVICES)
        if config.enable_grpc_healthcheck_service:
            from grpc_health.v1 import health, health_pb2_grpc

            self._health = health.HealthServicer()
            health_pb2_grpc.add_HealthServicer_to_server(self._health, self.server)
            names.append(health.SERVICE_NAME)
        if config.grpc_reflection:
            from grpc_reflection.v1alpha import reflection
            from tensorflow_serving.apis import (  # noqa: F401  what reflection tells of
                model_service_pb2,
                prediction_service_pb2,
            )

            reflection.enable_server_reflection([*names, reflection.SERVICE_NAME], self.server)

    def _begin(self, answer: Callable[[Call], Answer], call: Call) -> None:
        self._answers.begin(answer(call))

    def start(self, host: str) -> list[str]:
        """Opens the port and the socket that the settings name; returns what listens where.

        Raises ConfigError when one of them cannot be had.
        """
        credentials = _credentials(self._config)
        addresses = [f"{host}:{self._config.port}"] if self._config.port else []
        if self._config.grpc_socket_path:
            addresses.append(f"unix:{self._config.grpc_socket_path}")
        for address in addresses:
            is_socket = address.startswith("unix:")
            try:
                if credentials and not is_socket:
                    self.server.add_secure_port(address, credentials)
                else:
                    self.server.add_insecure_port(address)
            except RuntimeError as error:
                flag = "--grpc_socket_path" if is_socket else "--port"
                raise ConfigError(f"{flag}: cannot listen on {address}: {error}") from error
        if addresses:
            self.server.start()
        if self._health:
            from grpc_health.v1 import health_pb2

            for name in _HEALTHY:
                self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        return addresses

    def drain(self) -> None:
        """Tells the callers of the health service; requests are refused by the service itself."""
        if self._health:
            self._health.enter_graceful_shutdown()

    def stop(self, seconds: float) -> None:
        """Ends what still runs after `seconds`."""
        self.server.stop(seconds).wait()
        self._answers.close()
        self._threads.shutdown(wait=False, cancel_futures=True)


def _host(peer: str) -> str:
    """The address in "ipv4:127.0.0.1:5000" or "ipv6:%5B::1%5D:5000", as the REST side has it; empty
    for a Unix socket."""
    return unquote(peer).partition(":")[2].rpartition(":")[0].strip("[]")


class KeyedReflection(grpc.ServerInterceptor):
    """Asks callers of reflection for a key, as `Calls` asks its own; health wants none."""

    def __init__(self, config: ServerConfig) -> None:
        self._keys = Keys.from_config(config)

    def intercept_service(self, continuation: Callable[[Any], Any], call: Any) -> Any:
        if not call.method.startswith("/grpc.reflection."):
            return continuation(call)
        try:
            self._keys.check(headers_of(call.invocation_metadata))
        except ServingError as error:
            code, message = grpc.StatusCode[error.code.name], error.message
            return grpc.stream_stream_rpc_method_handler(
                lambda requests, context: context.abort(code, message)
            )
        return continuation(call)


class Answers:
    """Runs answers: a step in the thread that begins one, the rest in a thread of a pool or, once a
    batch is done, in one thread that writes all those that wait for batches."""

    def __init__(self, threads: ThreadPoolExecutor) -> None:
        self._threads = threads
        self._done: queue.SimpleQueue[tuple[Answer, Task] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def begin(self, answer: Answer) -> None:
        """Runs it until it waits; it goes on when what it waits for is done."""
        try:
            task = answer.send(None)
            if task is None:
                self._threads.submit(self.begin, answer)
                return
            if self._thread is None:
                self._start()
            task.then(lambda: self._done.put((answer, task)))
        except StopIteration:
            pass
        except Exception:  # which would end a thread that all share
            log.exception("An answer failed")

    def close(self) -> None:
        if self._thread:
            self._done.put(None)
            self._thread.join()

    def _start(self) -> None:
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="grpc-replies", daemon=True)
                self._thread.start()

    def _work(self) -> None:
        while waited := self._done.get():
            answer, task = waited
            if is_small(task.outputs):
                self.begin(answer)
            else:
                self._threads.submit(self.begin, answer)


@types.coroutine
def _batch(task: Task) -> Generator[Task, None, None]:
    """What an answer awaits for a task to be done; it holds no thread."""
    yield task


@types.coroutine
def _thread() -> Generator[None, None, None]:
    """What an answer awaits to go on in a thread of its own."""
    yield None


class Calls:
    """Answers every method of both services."""

    def __init__(
        self,
        service: Service,
        config: ServerConfig,
        rates: RateLimit | None = None,
    ) -> None:
        self._service, self._config = service, config
        self._keys, self._rates = Keys.from_config(config), rates
        self._work: dict[str, Callable[..., Any]] = {
            "Classify": self._classify,
            "Regress": self._regress,
            "MultiInference": self._multi_inference,
            "GetModelMetadata": _metadata,
            "GetModelStatus": _status,
        }

    async def answer(self, method: str, kind: Any, call: Call) -> None:
        """The one place where an exception becomes a gRPC status. In the thread that hears of calls
        until it waits: for a thread, or for `Answers` to find its batch done."""
        began = time.perf_counter()
        timing, model = Timing(), ""
        headers = call.headers
        told = [(REQUEST_ID, request_id_of(headers))]
        try:
            who = self._keys.check(headers, admin=method == "HandleReloadConfigRequest")
            self._check_rate(who or _host(call.peer))
            with self._service.caller() as repository:  # from here on a drain waits for it
                is_held = method == "Predict" and needs_no_thread(self._config, len(call.body))
                if not is_held:
                    await _thread()
                request = parsed(kind, call.body)
                model = _model_of(request)
                if self._check_sizes(request) > SMALL_OUTPUT and is_held:
                    await _thread()
                    is_held = False
                timing.parse = time.perf_counter() - began
                timeout = call.seconds_left()
                response = await self._run(method, repository, request, timing, timeout, is_held)
                call.reply(response.SerializeToString(), told)
        except Exception as error:
            code = call.fail(error, told)
            if method in _INFERENCE:
                metrics.count_request(model, code.name)
            return
        if method in _INFERENCE:
            metrics.count_request(model, Code.OK.name)
            seconds = time.perf_counter() - began
            metrics.observe_request(model, method, "GRPC", timing, seconds)

    def _check_sizes(self, request: Any) -> int:
        """How many values a Predict feeds; its texts and what it fills up have limits."""
        if not isinstance(request, predict_pb2.PredictRequest):
            return 0
        total = 0
        for alias, tensor in request.inputs.items():
            check_texts(tensor.string_val, self._config.max_characters)
            total += check_filled(alias, tensor, self._config.max_inflated_bytes)
        return total

    def _check_rate(self, who: str) -> None:
        if self._rates and (seconds := self._rates.wait(who)):
            metrics.count_shed("rate")
            raise ServingError(
                Code.RESOURCE_EXHAUSTED,
                f"More than --rate-limit={self._config.rate_limit}; come again in {seconds:.0f} s.",
            )

    async def _run(
        self,
        method: str,
        repository: Repository,
        request: Any,
        timing: Timing,
        timeout: float | None,
        is_held: bool,
    ) -> Any:
        if method == "HandleReloadConfigRequest":
            return self._reload(repository, request, timeout)
        if method not in _INFERENCE:
            return self._work[method](repository, request)
        if timeout is None:
            timeout = self._config.request_timeout_seconds or None
        elif timeout <= 0:
            raise ServingError(Code.DEADLINE_EXCEEDED, "The deadline was over on arrival.")
        if method == "Predict":
            return await self._predict(repository, request, timeout, timing, is_held)
        return self._work[method](repository, request, timeout, timing)

    async def _predict(
        self,
        repository: Repository,
        request: Any,
        timeout: float | None,
        timing: Timing,
        is_held: bool,
    ) -> predict_pb2.PredictResponse:
        name, version, label = _target(request)
        with repository.acquire(name, version, label) as servable:
            if self._config.enable_signature_method_name_check:
                inference.check_predict_method(servable, request.model_spec.signature_name)
            if is_held:
                outputs = await servable.run_without_thread(
                    request.model_spec.signature_name,
                    Tensors(request.inputs),
                    list(request.output_filter),
                    timeout=timeout,
                    timing=timing,
                    wait=_batch,
                )
            else:
                outputs = inference.predict(servable, request, timeout=timeout, timing=timing)
            version = servable.version
        _observe(name, "Predict", timing, _rows(outputs))
        began = time.perf_counter()
        as_content = self._config.enable_serialization_as_tensor_content
        response = predict_pb2.PredictResponse(
            model_spec=_spec(name, version, request.model_spec.signature_name),
            outputs={
                alias: tensor_to_proto(array, as_content=as_content)
                for alias, array in outputs.items()
            },
        )
        timing.serialize += time.perf_counter() - began
        return response

    def _classify(
        self, repository: Repository, request: Any, timeout: float | None, timing: Timing
    ) -> classification_pb2.ClassificationResponse:
        result, spec = self._examples(inference.classify, "Classify", repository, request)(
            timeout, timing
        )
        return classification_pb2.ClassificationResponse(result=result, model_spec=spec)

    def _regress(
        self, repository: Repository, request: Any, timeout: float | None, timing: Timing
    ) -> regression_pb2.RegressionResponse:
        result, spec = self._examples(inference.regress, "Regress", repository, request)(
            timeout, timing
        )
        return regression_pb2.RegressionResponse(result=result, model_spec=spec)

    def _examples_of(self, request: Any) -> list[bytes]:
        examples = inference.examples_of(request.input)
        if len(examples) > self._config.max_rows:
            raise invalid_argument(
                f"The request holds {len(examples)} examples; --max-rows allows "
                f"{self._config.max_rows} in a request."
            )
        return examples

    def _examples(
        self, method: Callable[..., Any], api: str, repository: Repository, request: Any
    ) -> Callable[[float | None, Timing], tuple[Any, model_pb2.ModelSpec]]:
        """Both of the calls that read tf.Examples."""

        def run(timeout: float | None, timing: Timing) -> tuple[Any, model_pb2.ModelSpec]:
            name, version, label = _target(request)
            signature = request.model_spec.signature_name
            with repository.acquire(name, version, label) as servable:
                examples = self._examples_of(request)
                result = method(
                    servable,
                    signature,
                    examples,
                    timeout=timeout,
                    timing=timing,
                    check_method_name=self._config.enable_signature_method_name_check,
                )
                version = servable.version
            _observe(name, api, timing, len(examples))
            return result, _spec(name, version, signature)

        return run

    def _multi_inference(
        self, repository: Repository, request: Any, timeout: float | None, timing: Timing
    ) -> inference_pb2.MultiInferenceResponse:
        name, version, label = _target(request.tasks[0] if request.tasks else request)
        with repository.acquire(name, version, label) as servable:
            examples = self._examples_of(request)
            response = inference.multi_inference(
                servable,
                request.tasks,
                examples,
                timeout=timeout,
                timing=timing,
                check_method_name=self._config.enable_signature_method_name_check,
            )
        _observe(name, "MultiInference", timing, len(examples))
        return response

    def _reload(
        self, repository: Repository, request: Any, timeout: float | None
    ) -> model_management_pb2.ReloadConfigResponse:
        if request.config.WhichOneof("config") != "model_config_list":
            raise invalid_argument(
                "ServerModelConfig type not supported by HandleReloadConfigRequest. Only "
                "ModelConfigList is currently supported"
            )
        before = {name: metrics.counter(name) or 0 for name in request.metric_names}
        repository.reload(model_configs.from_proto(request.config), timeout)
        response = model_management_pb2.ReloadConfigResponse()
        response.status.SetInParent()
        for name in request.metric_names:
            response.metric.add(
                name=name, int64_value_increase=(metrics.counter(name) or 0) - before[name]
            )
        return response


def _model_of(request: Any) -> str:
    if isinstance(request, inference_pb2.MultiInferenceRequest):
        return request.tasks[0].model_spec.name if request.tasks else ""
    return getattr(getattr(request, "model_spec", None), "name", "")


def _target(request: Any) -> tuple[str, int | None, str | None]:
    """(name, version, label) of a request's model_spec."""
    if isinstance(request, inference_pb2.MultiInferenceRequest):  # without any task
        raise invalid_argument("ModelSpec has no name specified.")
    spec = _model_spec(request)
    if not spec.name:
        raise invalid_argument("ModelSpec has no name specified.")
    choice = spec.WhichOneof("version_choice")
    version = spec.version.value if choice == "version" else None
    label = spec.version_label if choice == "version_label" else None
    return spec.name, version, label


def _model_spec(request: Any) -> model_pb2.ModelSpec:
    if not request.HasField("model_spec"):
        raise invalid_argument("Missing ModelSpec")
    return request.model_spec


def _spec(name: str, version: int | None, signature_name: str) -> model_pb2.ModelSpec:
    spec = model_pb2.ModelSpec(name=name, signature_name=signature_name or SERVING_DEFAULT)
    if version is not None:
        spec.version.value = version
    return spec


def _observe(model: str, api: str, timing: Timing, rows: int) -> None:
    metrics.observe_runtime(model, api, timing.compute)
    metrics.observe_examples(model, rows)


def _rows(outputs: Mapping[str, Any]) -> int:
    return max([len(array) for array in outputs.values() if array.ndim], default=1)


def _metadata(
    repository: Repository, request: get_model_metadata_pb2.GetModelMetadataRequest
) -> get_model_metadata_pb2.GetModelMetadataResponse:
    _model_spec(request)
    if not request.metadata_field:
        raise invalid_argument("GetModelMetadataRequest must specify at least one metadata_field")
    for field in request.metadata_field:
        if field != "signature_def":
            raise invalid_argument(f"Metadata field {field} is not supported")
    name, version, label = _target(request)
    response = get_model_metadata_pb2.GetModelMetadataResponse()
    with repository.acquire(name, version, label) as servable:
        signatures = get_model_metadata_pb2.SignatureDefMap(signature_def=servable.signatures)
        response.model_spec.name = name
        response.model_spec.version.value = servable.version
    response.metadata["signature_def"].Pack(signatures)
    return response


def _status(
    repository: Repository, request: get_model_status_pb2.GetModelStatusRequest
) -> get_model_status_pb2.GetModelStatusResponse:
    spec = _model_spec(request)  # any name is looked for, a label is not, as in TensorFlow Serving
    version = spec.version.value if spec.HasField("version") else None
    response = get_model_status_pb2.GetModelStatusResponse()
    for number, state, error in repository.statuses(spec.name, version):
        entry = response.model_version_status.add(version=number, state=state.value)
        entry.status.SetInParent()  # of a version without fault, too
        if error:
            entry.status.error_code = error.code.number
            entry.status.error_message = error.message
    return response


def _options(config: ServerConfig) -> list[tuple[str, Any]]:
    options: dict[str, Any] = {
        "grpc.max_send_message_length": MAX_MESSAGE_BYTES,
        "grpc.max_receive_message_length": min(config.max_body_bytes, MAX_MESSAGE_BYTES),
        # Shared ports would let a second server start unseen and take half of the requests.
        "grpc.so_reuseport": 0,
    }
    for pair in filter(None, config.grpc_channel_arguments.split(",")):
        name, separator, value = pair.partition("=")
        if not separator or not name:
            raise ConfigError(
                f"--grpc_channel_arguments takes key=value,key=value. Received: {pair!r}"
            )
        options[name] = int(value) if re.fullmatch(r"[+-]?\d+", value, re.ASCII) else value
    return list(options.items())


def _credentials(config: ServerConfig) -> grpc.ServerCredentials | None:
    """TLS by --ssl_config_file, which is TensorFlow Serving's, or by the pair that REST uses."""
    if config.ssl_config_file:
        if config.tls_certificate:
            raise ConfigError("--ssl_config_file and --tls-certificate cannot go together for gRPC")
        settings = text_config.read("--ssl_config_file", config.ssl_config_file, "SSLConfig")
        pair = (settings.server_key.encode(), settings.server_cert.encode())
        if not all(pair):
            raise ConfigError("--ssl_config_file must give server_key and server_cert, PEM texts")
        root = settings.custom_ca.encode() or None
        if settings.client_verify and root is None:
            raise ConfigError("--ssl_config_file: client_verify needs custom_ca, a PEM text")
        return grpc.ssl_server_credentials([pair], root, bool(settings.client_verify))
    if config.tls_certificate and config.tls_key:
        try:
            pair = (config.tls_key.read_bytes(), config.tls_certificate.read_bytes())
        except OSError as error:
            raise ConfigError(f"--tls-certificate or --tls-key cannot be read: {error}") from error
        return grpc.ssl_server_credentials([pair])
    return None
