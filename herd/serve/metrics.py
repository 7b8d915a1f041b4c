"""Figures for Prometheus. They need `prometheus-client`; without it nothing is counted and `/metrics` says so."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from herd.serve.errors import ApiError
from herd.serve.models import Models
from herd.serve.record import RequestRecord
from herd.serve.watch import Watch

try:
    import prometheus_client
except ImportError:
    prometheus_client = None  # type: ignore[assignment]

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1)
_PATHS = (
    *("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/v1/messages/count_tokens"),
    *("/v1/embeddings", "/v1/moderations", "/v1/models", "/tokenize", "/detokenize"),
)
_OTHER = "other"


class Metrics:
    """Counts of requests and tokens, times, and how full the engines are."""

    def __init__(self, models: Models, watch: Watch | None = None) -> None:
        self.registry = None
        if prometheus_client is None:
            return
        self.registry = registry = prometheus_client.CollectorRegistry()
        registry.register(_EngineGauges(models))
        if watch is not None:
            registry.register(_Verdicts(watch))
        counter, histogram = prometheus_client.Counter, prometheus_client.Histogram
        path, model = ["path", "status"], ["model"]
        self._requests = counter("herd_requests", "Requests by path and status.", path, registry=registry)
        self._finished = counter("herd_answers", "Answers by how they ended.", ["model", "reason"], registry=registry)
        self._prompt = counter("herd_prompt_tokens", "Tokens of prompts.", model, registry=registry)
        self._generated = counter("herd_generated_tokens", "Tokens of answers.", model, registry=registry)
        self._seconds = histogram(
            "herd_request_seconds", "A whole request.", ["path"], buckets=_SECONDS, registry=registry
        )
        self._first = histogram(
            "herd_first_token_seconds", "Until an answer begins.", model, buckets=_SECONDS, registry=registry
        )
        self._each = histogram(
            "herd_token_seconds", "Between tokens, mean of a request.", model, buckets=_TOKEN_SECONDS, registry=registry
        )

    def observe(self, record: RequestRecord) -> None:
        """Count a finished request."""
        if self.registry is None:
            return
        path = record.path if record.path in _PATHS else _OTHER  # a label for every wrong address would never end
        self._requests.labels(path, record.status or "gone").inc()
        self._seconds.labels(path).observe(record.seconds)
        if record.model is None:
            return
        self._prompt.labels(record.model).inc(record.prompt_tokens)
        self._generated.labels(record.model).inc(record.completion_tokens)
        if record.finish:
            self._finished.labels(record.model, record.finish).inc()
        if record.first_seconds is not None:
            self._first.labels(record.model).observe(record.first_seconds)
            if record.completion_tokens > 1:
                rest = record.seconds - record.first_seconds
                self._each.labels(record.model).observe(rest / (record.completion_tokens - 1))

    def page(self) -> tuple[bytes, str]:
        """The text for Prometheus, and its content type.

        Raises:
            ApiError: 501, the library is not installed.
        """
        if self.registry is None:
            message = "Metrics need the package prometheus-client: pip install prometheus-client"
            raise ApiError(501, message, code="no_metrics")
        return prometheus_client.generate_latest(self.registry), prometheus_client.CONTENT_TYPE_LATEST


class _Verdicts:
    """Reads what the guards counted when it is asked."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch

    def collect(self) -> Iterator[Any]:
        """One counter."""
        labels = ["guard", "where", "outcome", "category", "key"]
        family = prometheus_client.metrics_core.CounterMetricFamily(
            "herd_verdicts", "Verdicts of guards.", labels=labels
        )
        for names, count in self._watch.tallies():
            family.add_metric(names, count)
        yield family


class _EngineGauges:
    """Reads the engines when it is asked."""

    def __init__(self, models: Models) -> None:
        self._models = models

    def collect(self) -> Iterator[Any]:
        """One gauge after another."""
        yield self._gauge(
            "herd_running", "Answers in the batch.", ((m.name, m.engine.num_running) for m in self._models.bases)
        )
        yield self._gauge(
            "herd_waiting", "Answers that wait.", ((m.name, m.engine.num_waiting) for m in self._models.bases)
        )
        free = ((m.name, m.engine.free_share) for m in self._models.bases)
        yield self._gauge("herd_cache_free_share", "Free share of the cache of keys and values.", free)

    def _gauge(self, name: str, text: str, values: Iterable[tuple[str, float]]) -> Any:
        gauge = prometheus_client.metrics_core.GaugeMetricFamily(name, text, labels=["model"])
        for model, value in values:
            gauge.add_metric([model], value)
        return gauge
