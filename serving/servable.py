"""One loaded version of a model: a SavedModel in a session with a graph of its own.

A session, not `tf.saved_model.load`: it is what TensorFlow Serving runs, it loads graphs of
TensorFlow 1 too, and it gives the signatures as they were written.
"""

import functools
import logging
import math
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_text  # noqa: F401  registers the ops a graph with a tokenizer inside needs
from google.protobuf import text_format
from tensorflow.core.framework import tensor_pb2
from tensorflow.core.protobuf import config_pb2, meta_graph_pb2
from tensorflow.python.client import pywrap_tf_session

from model.signatures import DECODE, SERVING_DEFAULT, VOCABULARY_SIZE
from serving import gate, metrics
from serving.batching import (
    Batcher,
    BatchingParameters,
    Key,
    Pool,
    Task,
    Wait,
    configured_parameters,
    read_parameters,
)
from serving.codec import Arrays, datatype_of, tensor_from_proto, type_name
from serving.config import ConfigError, ServerConfig
from serving.engine import Engine, engine_for
from serving.errors import Code, ServingError, invalid_argument
from serving.repository import COMPILING
from serving.timing import Timing
from serving.warmup import warm_up

log = logging.getLogger(__name__)

MAX_CALLS = 256  # distinct sets of outputs asked for, per version
MAX_TIMEOUT_MS = 2**31 - 1  # three weeks
SMALL_MODEL = 64 * 1024 * 1024  # bytes of weights
ML_METADATA_FILE = "assets.extra/mlmd_uuid"
BATCHING_FILE = "batching_params.pbtxt"  # in a version's folder, where each has its own

Loader = Callable[[str, int, Path], "Servable"]


class _NotWanted(Exception):
    """The servable was closed before its writer was made."""


@dataclass(frozen=True)
class _Wanted:
    """A run as the session takes it, and what its results are called."""

    key: Key
    arrays: tuple[np.ndarray, ...]
    tensors: dict[str, str]  # names by alias of the output

    def by_alias(self, results: Sequence[np.ndarray]) -> Arrays:
        by_tensor = dict(zip(self.key[1], results, strict=True))
        return {alias: _as_array(by_tensor[tensor]) for alias, tensor in self.tensors.items()}


@dataclass(frozen=True)
class _Signature:
    """What a run looks at, in dicts: a third of the time of asking the protobuf."""

    inputs: dict[str, tuple[str, int]]  # tensor and DataType by alias
    outputs: dict[str, str]  # tensor by alias, in the order of the aliases
    defaults: Mapping[str, tensor_pb2.TensorProto]

    @classmethod
    def of(cls, proto: meta_graph_pb2.SignatureDef) -> "_Signature":
        return cls(
            {alias: (info.name, info.dtype) for alias, info in proto.inputs.items()},
            {alias: proto.outputs[alias].name for alias in sorted(proto.outputs)},
            proto.defaults,
        )


class Servable:
    """Runs the signatures of one version. Safe to call from many threads.

    Closing a session cancels what runs in it, so users are counted: `retain` before a call,
    `release` after it, and `close` only when `is_idle`.
    """

    def __init__(
        self,
        name: str,
        version: int,
        session: tf.compat.v1.Session,
        signatures: dict[str, meta_graph_pb2.SignatureDef],
        batching: tuple[BatchingParameters, Pool] | None = None,
    ) -> None:
        self.name = name
        self.version = version
        self.signatures = signatures
        self._plain = {name: _Signature.of(proto) for name, proto in signatures.items()}
        self.writer: Engine | None = None  # until there is one, a network writes by its signatures
        self.shared: dict[str, Any] = {}  # what callers keep for as long as this version is there
        self._session = session
        self._users = 0
        self._users_lock = threading.Lock()
        self._writer_lock = threading.Lock()  # held to set `writer` or to close
        self._is_closed = False
        self._call = functools.lru_cache(maxsize=MAX_CALLS)(self._make_call)
        self._batcher = Batcher(*batching, self._run_session) if batching else None

    def retain(self) -> None:
        with self._users_lock:
            self._users += 1

    def release(self) -> None:
        with self._users_lock:
            self._users -= 1

    @property
    def is_idle(self) -> bool:
        return self._users == 0

    def close(self) -> None:
        with self._writer_lock:
            self._is_closed = True
        if self.writer:
            self.writer.close()
        self._session.close()

    def make_writer(self, make: Callable[[Callable[[], None]], Engine]) -> threading.Thread:
        """Gives it the writer that `make` compiles, in a thread beside; returns that.

        A failure is logged, and the network goes on by its signatures. `make` calls what it is
        given now and then: it raises once the servable is closed, and nobody wants a writer.
        """

        def check() -> None:
            if self._is_closed:
                raise _NotWanted

        def work() -> None:
            try:
                writer = make(check)
                with self._writer_lock:
                    if not self._is_closed:
                        self.writer = writer
                        return
                writer.close()
            except Exception:
                if not self._is_closed:
                    text = "Model %s version %d has no engine and writes by its signatures"
                    log.exception(text, self.name, self.version)

        thread = threading.Thread(target=work, name=f"{COMPILING}{self.name}", daemon=True)
        thread.start()
        return thread

    def run(
        self,
        signature_name: str,
        inputs: Mapping[str, np.ndarray],
        output_filter: Sequence[str] = (),
        *,
        timeout: float | None = None,
        timing: Timing | None = None,
    ) -> Arrays:
        """Outputs by alias, only those of `output_filter` if it names any.

        Shapes are left to the graph: a signature's shapes are not a promise (TensorFlow Serving
        does not check them either). Dtypes must match; nothing is cast. A run that takes longer
        than `timeout` seconds raises DEADLINE_EXCEEDED. `timing` is told what took how long.
        """
        timing = Timing() if timing is None else timing
        wanted = self._wanted(signature_name, inputs, output_filter, timing)
        if self._batcher:
            results = self._batcher.run(wanted.key, wanted.arrays, timeout, timing)
        else:
            start = time.perf_counter()
            try:
                results = self._run_session(wanted.key, wanted.arrays, timeout)
            finally:
                timing.compute += time.perf_counter() - start
        return wanted.by_alias(results)

    async def run_without_thread(
        self,
        signature_name: str,
        inputs: Mapping[str, np.ndarray],
        output_filter: Sequence[str] = (),
        *,
        timeout: float | None,
        timing: Timing,
        wait: Wait = Task.wait_in_loop,
    ) -> Arrays:
        """As `run`, of a model whose runs are batched, for a coroutine; of asyncio if nothing else
        is said by `wait`, which waits for a task."""
        if self._batcher is None:
            raise RuntimeError(f"Model {self.name} is not batched, so a run would hold the loop")
        wanted = self._wanted(signature_name, inputs, output_filter, timing)
        results = await self._batcher.run_without_thread(
            wanted.key, wanted.arrays, timeout, timing, wait
        )
        return wanted.by_alias(results)

    def _wanted(
        self,
        signature_name: str,
        inputs: Mapping[str, np.ndarray],
        output_filter: Sequence[str],
        timing: Timing,
    ) -> "_Wanted":
        signature_name = signature_name or SERVING_DEFAULT
        signature = self._plain.get(signature_name)
        if signature is None:
            raise ServingError(
                Code.FAILED_PRECONDITION, f'Serving signature key "{signature_name}" not found.'
            )
        timing.version, timing.signature = self.version, signature_name
        feeds, dtypes = _feeds(signature, inputs)
        tensors = _fetches(signature, output_filter)
        _check_dtypes(feeds, dtypes)
        key = (tuple(feeds), tuple(sorted(set(tensors.values()))))
        return _Wanted(key, tuple(feeds.values()), tensors)

    def _run_session(
        self, key: Key, arrays: Sequence[np.ndarray], timeout: float | None
    ) -> Sequence[np.ndarray]:
        # Not Session.run, which refuses shapes in Python that the graph itself takes. Unlike a
        # callable, whose time limit is fixed, this takes one for each run.
        if timeout is not None and timeout <= 0:
            raise ServingError(Code.DEADLINE_EXCEEDED, "Timed out waiting for notification")
        feeds, fetches = self._call(key)
        options = None
        if timeout is not None:
            milliseconds = min(max(math.ceil(timeout * 1000), 1), MAX_TIMEOUT_MS)
            options = pywrap_tf_session.TF_NewBufferFromString(
                config_pb2.RunOptions(timeout_in_ms=milliseconds).SerializeToString()
            )
        try:
            return pywrap_tf_session.TF_SessionRun_wrapper(
                self._session._session,
                options,
                dict(zip(feeds, arrays, strict=True)),
                fetches,
                [],
                None,
            )
        except UnicodeDecodeError as error:
            # An error whose text quotes bytes of the request: TensorFlow fails to raise it.
            raise invalid_argument(bytes(error.object).decode(errors="replace")) from error
        finally:
            if options is not None:
                pywrap_tf_session.TF_DeleteBuffer(options)

    def _make_call(self, key: Key):  # type: ignore[no-untyped-def]
        """The tensors of `key` in the form the session takes them."""
        graph = self._session.graph
        return tuple([_tensor(graph, name)._as_tf_output() for name in names] for names in key)


def loader(config: ServerConfig) -> Loader:
    """`load` behind the gate, with the server's settings.

    Batches of all its models share one pool of threads. Raises ConfigError for a file
    of settings that cannot be read.
    """
    parameters = configured_parameters(config)
    pool = Pool(parameters.num_batch_threads, parameters.thread_pool_name) if parameters else None
    _session_config(config)

    def load_checked(name: str, version: int, path: Path) -> Servable:
        manifest = gate.check(path, allow_foreign=config.allow_foreign, allow_ops=config.allow_ops)
        servable = load(name, version, path, config=config, batching=parameters, pool=pool)
        try:
            if manifest:
                gate.check_golden(servable, manifest)
                servable.shared[VOCABULARY_SIZE] = manifest.get(VOCABULARY_SIZE)
            if config.generation_slots and DECODE in servable.signatures:
                making = servable.make_writer(functools.partial(engine_for, servable, path, config))
                if config.wait_for_engine:
                    making.join()
        except BaseException:
            servable.close()
            raise
        return servable

    return load_checked


def load(
    name: str,
    version: int,
    path: Path,
    *,
    config: ServerConfig | None = None,
    batching: BatchingParameters | None = None,
    pool: Pool | None = None,
) -> Servable:
    """Loads the meta graph with the configured tags and replays the version's warm-up requests.

    Without a `pool` nothing is batched. Raises ServingError or whatever TensorFlow raises for a
    broken SavedModel; a failing warm-up fails the load.
    """
    config = config or ServerConfig()
    if batching:
        batching.check()
    if batching and config.enable_per_model_batching_parameters:
        file = path / BATCHING_FILE
        batching = (
            read_parameters("--enable_per_model_batching_parameters", file)
            if file.exists()
            else None
        )
        if batching:
            batching.check()
    graph = tf.Graph()
    session = tf.compat.v1.Session(graph=graph, config=_session_config(config))
    try:
        signatures = _load_graph(session, config.saved_model_tags, path)
        servable = Servable(
            name, version, session, signatures, (batching, pool) if batching and pool else None
        )
        if config.enable_model_warmup:
            warm_up(servable, path, config.num_request_iterations_for_warmup or 1)
    except BaseException:
        session.close()
        raise
    if (path / ML_METADATA_FILE).exists():
        metrics.mark_ml_metadata(name, version)
    return servable


def _load_graph(
    session: tf.compat.v1.Session, tags: str, path: Path
) -> dict[str, meta_graph_pb2.SignatureDef]:
    """The signatures of the SavedModel that `session` then holds, errors in the stock words."""
    wanted = [tag for tag in tags.split(",") if tag]
    try:
        with session.graph.as_default():
            meta_graph = tf.compat.v1.saved_model.loader.load(session, wanted, str(path))
    except OSError as error:
        if not any((path / file).exists() for file in ("saved_model.pb", "saved_model.pbtxt")):
            raise ServingError(
                Code.NOT_FOUND,
                "Could not find SavedModel .pb or .pbtxt at supplied export directory path: "
                f"{path}. Check that the directory exists and that you have the right "
                "permissions for accessing it.",
            ) from error
        raise ServingError(
            Code.DATA_LOSS, f"Can't parse {path / 'saved_model.pb'} as binary proto"
        ) from error
    except RuntimeError as error:
        if "MetaGraphDef associated with tags" not in str(error):
            raise
        raise ServingError(
            Code.NOT_FOUND,
            f"Could not find meta graph def matching supplied tags: {{ {' '.join(wanted)} }}. To "
            "inspect available tag-sets in the SavedModel, please use the SavedModel CLI: "
            "`saved_model_cli`",
        ) from error
    return dict(meta_graph.signature_def)


def _session_config(config: ServerConfig) -> config_pb2.ConfigProto:
    settings = config_pb2.ConfigProto()
    # One of the passes over a graph before it runs, half of their time, and answers come no sooner.
    settings.graph_options.rewrite_options.disable_tfg_optimizer = True
    file = config.tensorflow_session_config_file
    if file:
        try:
            text_format.Parse(file.read_text(encoding="utf-8"), settings)
        except (OSError, UnicodeDecodeError, text_format.ParseError) as error:
            raise ConfigError(
                f"Invalid protobuf file: '{file}' of --tensorflow_session_config_file should "
                f"hold a text-format tensorflow.ConfigProto: {error}"
            ) from error
    both = config.tensorflow_session_parallelism
    if intra := config.tensorflow_intra_op_parallelism or both or _threads_of_an_op(config):
        settings.intra_op_parallelism_threads = intra
    if inter := config.tensorflow_inter_op_parallelism or both:
        settings.inter_op_parallelism_threads = inter
    if config.per_process_gpu_memory_fraction:
        settings.gpu_options.per_process_gpu_memory_fraction = (
            config.per_process_gpu_memory_fraction
        )
    elif not file:
        # Grown as needed, GPU memory leaves room for a training run beside the server.
        settings.gpu_options.allow_growth = True
    return settings


def _threads_of_an_op(config: ServerConfig) -> int:
    """1 where all models that are there at the start are small, else 0, which is all processors.

    The threads of a pool that share out small operations cost more than they bring, most of all
    when several requests run at once (EXPERIMENTS.md). TensorFlow has one such pool in a process.
    """
    if config.tensorflow_session_config_file:
        return 0
    weights = "*/variables/variables.data-*"  # below a model
    files = [file for model in config.models for file in Path(model.base_path).glob(weights)]
    if config.exports:
        files += config.exports.glob(f"*/{weights}")
    sizes = [file.stat().st_size for file in files]
    return 1 if sizes and max(sizes) <= SMALL_MODEL else 0


def _as_array(result: np.ndarray | bytes) -> np.ndarray:
    # A string without dimensions comes as bytes, which numpy would make a fixed-width type.
    return np.asarray(result, dtype=object if isinstance(result, bytes) else None)


def _feeds(
    signature: _Signature, inputs: Mapping[str, np.ndarray]
) -> tuple[Arrays, dict[str, int]]:
    """The arrays to feed, by tensor name in sorted order, so that equal feeds share a callable; and
    the DataTypes that they should have.
    """
    wanted = signature.inputs.keys()
    too_few = len(inputs) < len(wanted) and not signature.defaults
    if len(inputs) > len(wanted) or too_few:
        raise invalid_argument(
            f"input size does not match signature: {len(inputs)}!={len(wanted)} "
            f"len({_braces(inputs)}) != len({_braces(wanted)}). "
            f"Sent extra: {_braces(inputs.keys() - wanted)}. "
            f"Missing but required: {_braces(wanted - inputs.keys())}."
        )
    feeds = {}
    dtypes = {}
    for alias, (tensor, dtype) in signature.inputs.items():
        if alias in inputs:
            feeds[tensor] = inputs[alias]
        elif alias in signature.defaults:
            feeds[tensor] = tensor_from_proto(alias, signature.defaults[alias])
        else:
            raise invalid_argument(
                f"Signature input alias: {alias}(feed name: {tensor}) not found in request and "
                f"no default value provided. Inputs expected to be in the set {_braces(wanted)}."
            )
        dtypes[tensor] = dtype
    return dict(sorted(feeds.items())), dtypes


def _check_dtypes(feeds: Arrays, dtypes: Mapping[str, int]) -> None:
    for i, (tensor, array) in enumerate(feeds.items()):
        provided = datatype_of(array.dtype)
        if provided != dtypes[tensor]:
            raise invalid_argument(
                f"Expects arg[{i}] to be {type_name(dtypes[tensor])} "
                f"but {type_name(provided)} is provided"
            )


def _tensor(graph: tf.Graph, name: str) -> tf.Tensor:
    """A tensor of a signature; one that the graph lacks is refused in the session's own words."""
    node, _, index = name.partition(":")
    try:
        outputs = graph.get_operation_by_name(node).outputs
    except (KeyError, ValueError) as error:
        raise ServingError(Code.NOT_FOUND, f"FetchOutputs node {name}: not found") from error
    if int(index or 0) >= len(outputs):
        raise invalid_argument(
            f"FetchOutputs {node}:{index or 0}: output index too large, must be < {len(outputs)}"
        )
    return outputs[int(index or 0)]


def _fetches(signature: _Signature, output_filter: Sequence[str]) -> dict[str, str]:
    """The tensors to fetch by alias: those of the filter, or all."""
    wanted: dict[str, str] = {}
    for alias in output_filter:
        if alias not in signature.outputs:
            raise invalid_argument(
                f"output tensor alias not found in signature: {alias} "
                f"Outputs expected to be in the set {_braces(signature.outputs)}."
            )
        if alias in wanted:
            raise invalid_argument(f"duplicate output tensor alias: {alias}")
        wanted[alias] = signature.outputs[alias]
    return wanted or signature.outputs


def _braces(names: Collection[str]) -> str:
    return "{" + ",".join(sorted(names)) + "}"
