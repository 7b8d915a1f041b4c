"""Spans for OpenTelemetry, one a request: who took how long, in the names that it has for generative models.

What people wrote and what was answered is in none. Extra `tracing`; the exporter is told by its own variables
(`OTEL_EXPORTER_OTLP_ENDPOINT`, `OTEL_SERVICE_NAME`, ...).
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Mapping
from typing import Any

from herd.errors import ConfigError
from herd.serve.record import RequestRecord

_OPERATIONS = {
    "/v1/chat/completions": "chat",
    "/v1/responses": "chat",
    "/v1/messages": "chat",
    "/v1/completions": "text_completion",
    "/v1/embeddings": "embeddings",
}


class Tracing:
    """Writes spans; `provider` is an own tracer provider, one that sends by OTLP when None.

    Raises:
        ConfigError: OpenTelemetry is not installed.
    """

    def __init__(self, provider: Any = None) -> None:
        try:
            self._trace = importlib.import_module("opentelemetry.trace")
            self._propagate = importlib.import_module("opentelemetry.propagate")
            provider = provider or _sending()
        except ImportError:
            raise ConfigError("log.traces: OpenTelemetry is not installed: pip install '.[tracing]'") from None
        self._tracer = provider.get_tracer("herd.serve")

    def write(self, record: RequestRecord, headers: Mapping[str, str]) -> None:
        """The span of a finished request; a request's `traceparent` is its parent."""
        operation = _OPERATIONS.get(record.path)
        if operation is None:
            return
        ended = time.time_ns()
        span = self._tracer.start_span(
            f"{operation} {record.model}" if record.model else operation,
            context=self._propagate.extract(headers),
            kind=self._trace.SpanKind.SERVER,
            start_time=ended - int(record.seconds * 1e9),
            attributes={name: value for name, value in _attributes(record, operation).items() if value is not None},
        )
        if record.status >= 500 or record.status == 0:
            span.set_status(self._trace.StatusCode.ERROR)
        span.end(ended)


def _attributes(record: RequestRecord, operation: str) -> dict[str, Any]:
    return {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": "herd",
        "gen_ai.request.model": record.model,
        "gen_ai.response.model": record.model,
        "gen_ai.response.finish_reasons": [record.finish] if record.finish else None,
        "gen_ai.usage.input_tokens": record.prompt_tokens if record.model else None,
        "gen_ai.usage.output_tokens": record.completion_tokens if record.model else None,
        "gen_ai.response.time_to_first_chunk": record.first_seconds,
        "http.response.status_code": record.status or None,
        "error.type": record.error,
    }


def _sending() -> Any:
    """A provider that sends what it is given in the background."""
    sdk = importlib.import_module("opentelemetry.sdk.trace")
    export = importlib.import_module("opentelemetry.sdk.trace.export")
    otlp = importlib.import_module("opentelemetry.exporter.otlp.proto.http.trace_exporter")
    provider = sdk.TracerProvider()
    provider.add_span_processor(export.BatchSpanProcessor(otlp.OTLPSpanExporter()))
    return provider
