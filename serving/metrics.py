"""What the server counts, under TensorFlow Serving's names, and the page Prometheus reads.

Counters belong to the process, as in TensorFlow Serving. `prometheus_client` is not used: it
appends `_total` to counters and writes other numbers than the page's own `%g`.
"""

import re
import threading
from bisect import bisect_right
from collections.abc import Callable, Iterable
from itertools import accumulate
from pathlib import Path

from serving import text_config
from serving.timing import Timing

DEFAULT_PATH = "/monitoring/prometheus/metrics"

_lock = threading.Lock()  # of all cells; held for a microsecond
_METRICS: "dict[str, _Metric]" = {}


class _Metric:
    kind = ""

    def __init__(self, path: str, *labels: str) -> None:
        self.name = re.sub(r"[^A-Za-z0-9_]", ":", path)
        self.labels = labels
        _METRICS[self.name] = self

    def lines(self) -> Iterable[str]:
        raise NotImplementedError

    def _braces(self, values: tuple[str, ...], *more: str) -> str:
        pairs = (
            f'{label}="{_escaped(value)}"' for label, value in zip(self.labels, values, strict=True)
        )
        return "{" + ",".join((*pairs, *more)) + "}"


class _Counter(_Metric):
    kind = "counter"

    def __init__(self, path: str, *labels: str) -> None:
        super().__init__(path, *labels)
        self.cells: dict[tuple[str, ...], int] = {}

    def add(self, amount: int, *values: str) -> None:
        with _lock:
            self.cells[values] = self.cells.get(values, 0) + amount

    def lines(self) -> Iterable[str]:
        with _lock:
            cells = list(self.cells.items())
        for values, value in cells:
            yield f"{self.name}{self._braces(values)} {value}"


class _Histogram(_Metric):
    """Buckets below `scale`, below `scale * growth`, ...: `count` of them, and one for the rest."""

    kind = "histogram"

    def __init__(self, path: str, *labels: str, scale: float, growth: float, count: int) -> None:
        super().__init__(path, *labels)
        self.limits = [scale * growth**i for i in range(count)]
        self.counts: dict[tuple[str, ...], list[int]] = {}
        self.sums: dict[tuple[str, ...], float] = {}

    def observe(self, value: float, *values: str) -> None:
        with _lock:
            counts = self.counts.get(values)
            if counts is None:
                counts = self.counts[values] = [0] * (len(self.limits) + 1)
                self.sums[values] = 0.0
            counts[bisect_right(self.limits, value)] += 1
            self.sums[values] += value

    def lines(self) -> Iterable[str]:
        limits = [*(f"{limit:g}" for limit in self.limits), "+Inf"]
        with _lock:
            cells = [(v, list(counts), self.sums[v]) for v, counts in self.counts.items()]
        for values, counts, total in cells:
            for limit, count in zip(limits, accumulate(counts), strict=True):
                le = f'le="{limit}"'
                yield f"{self.name}_bucket{self._braces(values, le)} {count}"
            yield f"{self.name}_sum{self._braces(values)} {total:g}"
            yield f"{self.name}_count{self._braces(values)} {sum(counts)}"


class _Gauge(_Metric):
    """Read when the page is."""

    kind = "gauge"

    def __init__(self, path: str, read: Callable[[], int]) -> None:
        super().__init__(path)
        self.read = read

    def lines(self) -> Iterable[str]:
        yield f"{self.name}{{}} {self.read()}"


class _Mark(_Counter):
    """Texts by label. The page shows each as 0, as the stock one does."""

    kind = "gauge"


def _latency(path: str, *labels: str) -> _Histogram:
    return _Histogram(path, *labels, scale=10, growth=1.8, count=33)  # microseconds


def _batch_size(name: str, *labels: str) -> _Histogram:
    path = f"/tensorflow/serving/batching_session/{name}"
    return _Histogram(path, *labels, scale=1, growth=2, count=14)  # rows


_request_count = _Counter("/tensorflow/serving/request_count", "model_name", "status")
_request_latency = _latency(
    "/tensorflow/serving/request_latency", "model_name", "API", "entrypoint"
)
_runtime_latency = _latency("/tensorflow/serving/runtime_latency", "model_name", "API", "runtime")
_example_counts = _Histogram(
    "/tensorflow/serving/request_example_counts", "model", scale=1, growth=2, count=15
)
_example_count = _Counter("/tensorflow/serving/request_example_count_total", "model")
_log_count = _Counter("/tensorflow/serving/request_log_count", "model_name", "status_code")
_warmup_latency = _latency("/tensorflow/serving/model_warmup_latency", "model_path", "status")
_warmup_records = _Counter("/tensorflow/serving/model_warmup_records_read", "model_path", "status")
_mlmd_map = _Mark("/tensorflow/serving/mlmd_map", "model_name", "version")
_queuing_latency = _Histogram(
    "/tensorflow/serving/batching_session/queuing_latency",
    "thread_pool_name",
    scale=100,
    growth=1.2,
    count=52,
)
_wrapped_runs = _Counter("/tensorflow/serving/batching_session/wrapped_run_count")
_padding_size = _batch_size("padding_size", "execution_batch_size")
_input_batch_size = _batch_size("input_batch_size")
_processed_batch_size = _batch_size("processed_batch_size")

# Ours: where the time of a request went, microseconds.
_STAGE_LABELS = ("model_name", "version", "signature_name", "entrypoint")
_queue = _latency("/stepwise/serving/queue_latency", *_STAGE_LABELS)
_compute = _latency("/stepwise/serving/compute_latency", *_STAGE_LABELS)
_serialize = _latency("/stepwise/serving/serialize_latency", *_STAGE_LABELS)


# Of answers that are written piece by piece, microseconds and tokens.
_first_token = _latency("/stepwise/serving/time_to_first_token", "model_name")
_next_token = _latency("/stepwise/serving/time_between_tokens", "model_name")
_prompt_tokens = _Counter("/stepwise/serving/prompt_tokens", "model_name")
_written_tokens = _Counter("/stepwise/serving/written_tokens", "model_name")

# Of the engine that writes: how long a prompt waits to be read, microseconds; rows that write in a
# call, and rows computed; tokens of prompts that were in the cache.
_generation_queue = _latency("/stepwise/serving/generation_queue_latency", "model_name")
_generation_rows = _Counter("/stepwise/serving/generation_rows", "model_name")
_generation_padded_rows = _Counter("/stepwise/serving/generation_padded_rows", "model_name")
_generation_batch = _Histogram(
    "/stepwise/serving/generation_batch_size", "model_name", scale=1, growth=2, count=8
)
_cached_tokens = _Counter("/stepwise/serving/cached_tokens", "model_name")

_shed = _Counter("/stepwise/serving/shed_requests", "reason")


def count_shed(reason: str) -> None:
    """A request that was turned away: `rate`, or for too many in the `queue` or `streams`."""
    _shed.add(1, reason)


def count_request(model: str, status: str) -> None:
    """One request for inference that ended with `status`, a code's name such as `OK`."""
    _request_count.add(1, model, status)


def observe_request(model: str, api: str, entrypoint: str, timing: Timing, seconds: float) -> None:
    """A request that succeeded, from its receipt to its answer.

    `api` is `Predict`, `Classify` or `Regress` for gRPC and the URL's method in lower case for
    REST; `entrypoint` is `GRPC` or `REST`.
    """
    _request_latency.observe(seconds * 1e6, model, api, entrypoint)
    labels = (model, str(timing.version), timing.signature, entrypoint)
    _queue.observe(timing.queue * 1e6, *labels)
    _compute.observe(timing.compute * 1e6, *labels)
    _serialize.observe(timing.serialize * 1e6, *labels)


def observe_runtime(model: str, api: str, seconds: float) -> None:
    """The time one request's run took inside TensorFlow, waiting for a batch included."""
    _runtime_latency.observe(seconds * 1e6, model, api, "TF1")


def observe_examples(model: str, count: int) -> None:
    """How many rows or tf.Examples one request held."""
    _example_counts.observe(count, model)
    _example_count.add(count, model)


def observe_warmup(model_path: str, status: str, seconds: float, records: int) -> None:
    """The replay of a version's warm-up file; `status` is a code's name."""
    _warmup_latency.observe(seconds * 1e6, model_path, status)
    _warmup_records.add(records, model_path, status)


def mark_ml_metadata(model: str, version: int) -> None:
    """A version that comes with the key of its entry in ML Metadata."""
    _mlmd_map.add(0, model, str(version))


def count_log(model: str, status: str) -> None:
    """One request that was written to a request log."""
    _log_count.add(1, model, status)


def observe_batch_input(rows: int) -> None:
    """An input tensor of one task on its way to a batch."""
    _input_batch_size.observe(rows)


def observe_queuing(thread_pool_name: str, seconds: float) -> None:
    """How long one task waited for its batch to be run."""
    _queuing_latency.observe(seconds * 1e6, thread_pool_name)


def observe_batch(rows: int, padded_rows: int) -> None:
    """A batch of `rows` that was rounded up to `padded_rows`, at its run."""
    _padding_size.observe(padded_rows - rows, str(padded_rows))
    _processed_batch_size.observe(padded_rows)
    _wrapped_runs.add(1)


def observe_first_token(model: str, seconds: float) -> None:
    """From an answer's beginning, once its prompt is read as tokens, to its first token."""
    _first_token.observe(seconds * 1e6, model)


def observe_next_tokens(model: str, seconds: float, count: int) -> None:
    """`count` tokens that came together, `seconds` each after those before them."""
    for _ in range(count):
        _next_token.observe(seconds * 1e6, model)


def count_tokens(model: str, num_prompt: int, num_written: int) -> None:
    """What one request read and wrote."""
    _prompt_tokens.add(num_prompt, model)
    _written_tokens.add(num_written, model)


def observe_admission(model: str, seconds: float, num_cached: int) -> None:
    """A prompt began to be read after so long, so many of its tokens being cached."""
    _generation_queue.observe(seconds * 1e6, model)
    _cached_tokens.add(num_cached, model)


def observe_generation(model: str, rows: int, padded_rows: int) -> None:
    """A call of the engine in which `rows` texts were written, `padded_rows` computed."""
    _generation_batch.observe(rows, model)
    _generation_rows.add(rows, model)
    _generation_padded_rows.add(padded_rows, model)


def watch(path: str, read: Callable[[], int]) -> None:
    """Puts a gauge on the page; `read` gives its value. A second one of the name replaces it."""
    _Gauge(path, read)


def counter(name: str) -> int | None:
    """The sum of a counter over its labels, by either form of its name; None if there is none."""
    metric = _METRICS.get(re.sub(r"[^A-Za-z0-9_]", ":", name))
    if not isinstance(metric, _Counter):
        return None
    with _lock:
        return sum(metric.cells.values())


def page() -> str:
    """All metrics in Prometheus' text format, sorted by name."""
    lines = []
    for name, metric in sorted(_METRICS.items()):
        lines.append(f"# TYPE {name} {metric.kind}")
        lines.extend(metric.lines())
    return "\n".join(lines) + "\n"


def page_path(monitoring_config_file: Path | None) -> str | None:
    """Where the page is served, or None when the file does not enable it.

    Raises ConfigError for a file that is no MonitoringConfig.
    """
    if monitoring_config_file is None:
        return None
    settings = text_config.read(
        "--monitoring_config_file", monitoring_config_file, "MonitoringConfig"
    ).prometheus_config
    return (settings.path or DEFAULT_PATH) if settings.enable else None


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
