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
from herd.serve.account import Account

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

    def write(self, account: Account, headers: Mapping[str, str]) -> None:
        """The span of a finished request; a request's `traceparent` is its parent."""
        operation = _OPERATIONS.get(account.path)
        if operation is None:
            return
        ended = time.time_ns()
        span = self._tracer.start_span(
            f"{operation} {account.model}" if account.model else operation,
            context=self._propagate.extract(headers),
            kind=self._trace.SpanKind.SERVER,
            start_time=ended - int(account.seconds * 1e9),
            attributes={name: value for name, value in _attributes(account, operation).items() if value is not None},
        )
        if account.status >= 500 or account.status == 0:
            span.set_status(self._trace.StatusCode.ERROR)
        span.end(ended)


def _attributes(account: Account, operation: str) -> dict[str, Any]:
    return {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": "herd",
        "gen_ai.request.model": account.model,
        "gen_ai.response.model": account.model,
        "gen_ai.response.finish_reasons": [account.finish] if account.finish else None,
        "gen_ai.usage.input_tokens": account.prompt_tokens if account.model else None,
        "gen_ai.usage.output_tokens": account.completion_tokens if account.model else None,
        "gen_ai.response.time_to_first_chunk": account.first_seconds,
        "http.response.status_code": account.status or None,
        "error.type": account.error,
    }


def _sending() -> Any:
    """A provider that sends what it is given in the background."""
    sdk = importlib.import_module("opentelemetry.sdk.trace")
    export = importlib.import_module("opentelemetry.sdk.trace.export")
    otlp = importlib.import_module("opentelemetry.exporter.otlp.proto.http.trace_exporter")
    provider = sdk.TracerProvider()
    provider.add_span_processor(export.BatchSpanProcessor(otlp.OTLPSpanExporter()))
    return provider
