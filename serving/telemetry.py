"""OpenTelemetry traces of requests, an extra: names, times and outcomes, never a caller's texts."""

import contextlib
from collections.abc import Iterator, MutableMapping
from typing import Any

from serving.config import ConfigError


class Tracer:
    """One span a request, exported as the OTEL_ variables say.

    Raises ConfigError when the packages are not installed.
    """

    def __init__(self) -> None:
        try:
            from opentelemetry import propagate, trace
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError as error:
            raise ConfigError(
                "--telemetry needs packages that are no requirement of ours; install them with: "
                "pip install -r requirements-telemetry.txt"
            ) from error
        self._provider = TracerProvider()
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("stepwise.serving")
        self._extract, self._kind = propagate.extract, trace.SpanKind.SERVER

    @contextlib.contextmanager
    def span(self, scope: MutableMapping[str, Any]) -> Iterator[None]:
        """The span of a request, below that of its caller if `traceparent` names one."""
        headers = {k.decode("latin-1"): v.decode("latin-1") for k, v in scope["headers"]}
        with self._tracer.start_as_current_span(
            f"{scope['method']} {scope['path']}", context=self._extract(headers), kind=self._kind
        ) as span:
            yield
            state = scope.get("state", {})
            for name in ("model_name", "model_version"):
                if state.get(name) is not None:
                    span.set_attribute(f"stepwise.{name}", state[name])

    def close(self) -> None:
        self._provider.shutdown()
