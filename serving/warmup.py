"""Replays the requests that come with a version, so that its first caller waits no longer."""

import logging
import time
from pathlib import Path
from typing import Any

import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow_serving.apis import prediction_log_pb2

from model.signatures import WARMUP_FILE
from serving import inference, metrics
from serving.errors import Code, ServingError, invalid_argument

log = logging.getLogger(__name__)

MAX_RECORDS = 1000


def warm_up(servable: Any, folder: Path, num_iterations: int) -> None:
    """Runs each recorded request of the version in `folder` so often; no file, nothing to do.

    Raises what the first failing request raises, DATA_LOSS for a file that is broken,
    INVALID_ARGUMENT for one of more than 1,000 records, UNIMPLEMENTED for a kind of record that
    TensorFlow Serving does not replay either.
    """
    path = folder / WARMUP_FILE
    if not path.exists():
        return
    start = time.perf_counter()
    records = _read(path)
    for record in records:
        for _ in range(num_iterations):
            _replay(servable, record)
    seconds = time.perf_counter() - start
    metrics.observe_warmup(str(folder), "OK", seconds, len(records))
    log.info("%s: %d warm-up requests in %.1f s", folder, len(records), seconds)


def _read(path: Path) -> list[prediction_log_pb2.PredictionLog]:
    records = tf.data.TFRecordDataset(str(path)).take(MAX_RECORDS + 1)
    try:
        serialized = list(records.as_numpy_iterator())
    except tf.errors.OpError as error:
        raise ServingError(
            Code.DATA_LOSS,
            f"Failed to read warmup data from {path}: {error.message}. "
            "Please verify your warmup data is in TFRecord format.",
        ) from error
    if len(serialized) > MAX_RECORDS:
        raise invalid_argument(
            f"Number of warmup records exceeds the maximum ({MAX_RECORDS}) at {path}"
        )
    try:
        return [prediction_log_pb2.PredictionLog.FromString(record) for record in serialized]
    except DecodeError as error:
        raise invalid_argument(f"Failed to parse warmup record: {error} from {path}") from error


def _replay(servable: Any, record: prediction_log_pb2.PredictionLog) -> None:
    """The model and version that a record names are not looked at."""
    kind = record.WhichOneof("log_type")
    if kind == "predict_log":
        inference.predict(servable, record.predict_log.request)
    elif kind in ("classify_log", "regress_log"):
        request = getattr(record, kind).request
        run = inference.classify if kind == "classify_log" else inference.regress
        run(servable, request.model_spec.signature_name, inference.examples_of(request.input))
    elif kind == "multi_inference_log":
        batch = record.multi_inference_log.request
        inference.multi_inference(servable, batch.tasks, inference.examples_of(batch.input))
    else:
        raise ServingError(Code.UNIMPLEMENTED, f"Unsupported log_type for warmup: {kind}")
