"""One loaded version of a model: a SavedModel in a session with a graph of its own.

A session, not `tf.saved_model.load`: it is what TensorFlow Serving runs, it loads graphs of
TensorFlow 1 too, and it gives the signatures as they were written.
"""

import functools
import itertools
import logging
import threading
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf
import tensorflow_text  # noqa: F401  registers the ops a graph with a tokenizer inside needs
from google.protobuf.message import DecodeError
from tensorflow.core.protobuf import config_pb2, meta_graph_pb2
from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

from model.signatures import SERVING_DEFAULT, WARMUP_FILE
from serving.codec import Arrays, tensor_from_proto, type_name
from serving.errors import Code, ServingError, invalid_argument

log = logging.getLogger(__name__)

MAX_WARMUP_RECORDS = 1000
MAX_CALLABLES = 64  # distinct sets of outputs asked for, per signature and version


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
    ) -> None:
        self.name = name
        self.version = version
        self.signatures = signatures
        self._session = session
        self._users = 0
        self._users_lock = threading.Lock()
        self._callable = functools.lru_cache(maxsize=MAX_CALLABLES)(self._make_callable)

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
        self._callable.cache_clear()
        self._session.close()

    def run(self, signature_name: str, inputs: Arrays, output_filter: Sequence[str] = ()) -> Arrays:
        """Outputs by alias, only those of `output_filter` if it names any.

        Shapes are left to the graph: a signature's shapes are not a promise (TensorFlow Serving
        does not check them either). Dtypes must match; nothing is cast.
        """
        signature = self.signatures.get(signature_name or SERVING_DEFAULT)
        if signature is None:
            raise ServingError(
                Code.FAILED_PRECONDITION,
                f'Serving signature key "{signature_name or SERVING_DEFAULT}" not found.',
            )
        feeds = _feeds(signature, inputs)
        aliases = _output_aliases(signature, output_filter)
        fetches = sorted({signature.outputs[alias].name for alias in aliases})
        results = self._callable(tuple(feeds), tuple(fetches))(*feeds.values())
        by_tensor = dict(zip(fetches, results, strict=True))
        return {alias: _as_array(by_tensor[signature.outputs[alias].name]) for alias in aliases}

    def _make_callable(self, feeds: tuple[str, ...], fetches: tuple[str, ...]):  # type: ignore[no-untyped-def]
        # Session.run would refuse shapes in Python that the graph itself takes.
        options = config_pb2.CallableOptions(feed=feeds, fetch=fetches)
        return self._session._make_callable_from_options(options)


def load(name: str, version: int, path: Path) -> Servable:
    """Loads the meta graph tagged `serve` and replays the version's warm-up requests.

    Raises whatever TensorFlow raises for a broken SavedModel; a failing warm-up fails the load.
    """
    graph = tf.Graph()
    # Grown as needed, GPU memory leaves room for a training run beside the server.
    options = config_pb2.ConfigProto(gpu_options=config_pb2.GPUOptions(allow_growth=True))
    session = tf.compat.v1.Session(graph=graph, config=options)
    try:
        with graph.as_default():
            meta_graph = tf.compat.v1.saved_model.loader.load(session, ["serve"], str(path))
        servable = Servable(name, version, session, dict(meta_graph.signature_def))
        warm_up(servable, path / WARMUP_FILE)
    except BaseException:
        session.close()
        raise
    return servable


def warm_up(servable: Servable, path: Path) -> None:
    """Runs each recorded request once, so that the first caller does not pay for initialisation."""
    if not path.exists():
        return
    records = tf.data.TFRecordDataset(str(path)).take(MAX_WARMUP_RECORDS + 1)
    try:
        serialized = list(records.as_numpy_iterator())
        logs = [prediction_log_pb2.PredictionLog.FromString(record) for record in serialized]
    except (tf.errors.OpError, DecodeError) as error:
        raise ServingError(
            Code.DATA_LOSS,
            f"Failed to read warmup data from {path}: {error}. "
            "Please verify your warmup data is in TFRecord format.",
        ) from error
    if len(logs) > MAX_WARMUP_RECORDS:
        raise invalid_argument(
            f"Number of warmup records exceeds the maximum ({MAX_WARMUP_RECORDS}) at {path}"
        )
    for record in logs:
        kind = record.WhichOneof("log_type")
        if kind == "predict_log":
            predict(servable, record.predict_log.request)
        elif kind in ("classify_log", "regress_log", "multi_inference_log"):
            log.warning("Skipped a warm-up record of type %s: only predict is replayed.", kind)
        else:
            raise ServingError(Code.UNIMPLEMENTED, f"Unsupported log_type for warmup: {kind}")


def predict(servable: Servable, request: predict_pb2.PredictRequest) -> Arrays:
    """Answers a PredictRequest; which model it names is the caller's matter."""
    inputs = {alias: tensor_from_proto(alias, proto) for alias, proto in request.inputs.items()}
    return servable.run(request.model_spec.signature_name, inputs, list(request.output_filter))


def _as_array(result: np.ndarray | bytes) -> np.ndarray:
    # A string without dimensions comes as bytes, which numpy would make a fixed-width type.
    return np.asarray(result, dtype=object if isinstance(result, bytes) else None)


def _feeds(signature: meta_graph_pb2.SignatureDef, inputs: Arrays) -> Arrays:
    """The arrays to feed, by tensor name in sorted order, so that equal feeds share a callable."""
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
    for alias in wanted:
        info = signature.inputs[alias]
        if alias in inputs:
            feeds[info.name] = inputs[alias]
        elif alias in signature.defaults:
            feeds[info.name] = tensor_from_proto(alias, signature.defaults[alias])
        else:
            raise invalid_argument(
                f"Signature input alias: {alias}(feed name: {info.name}) not found in request and "
                f"no default value provided. Inputs expected to be in the set {_braces(wanted)}."
            )
        dtypes[info.name] = info.dtype
    feeds = dict(sorted(feeds.items()))
    for i, (tensor, array) in enumerate(feeds.items()):
        provided = tf.as_dtype(array.dtype).as_datatype_enum
        if provided != dtypes[tensor]:
            raise invalid_argument(
                f"Expects arg[{i}] to be {type_name(dtypes[tensor])} "
                f"but {type_name(provided)} is provided"
            )
    return feeds


def _output_aliases(
    signature: meta_graph_pb2.SignatureDef, output_filter: Sequence[str]
) -> list[str]:
    for alias in output_filter:
        if alias not in signature.outputs:
            raise invalid_argument(
                f"output tensor alias not found in signature: {alias} "
                f"Outputs expected to be in the set {_braces(signature.outputs)}."
            )
    for first, second in itertools.pairwise(sorted(output_filter)):
        if first == second:
            raise invalid_argument(f"duplicate output tensor alias: {first}")
    return list(output_filter) or sorted(signature.outputs)


def _braces(names: Collection[str]) -> str:
    return "{" + ",".join(sorted(names)) + "}"
