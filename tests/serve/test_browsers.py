"""What browsers, proxies and tracers ask beside: HEAD, other origins, comments in quiet streams, spans."""

from __future__ import annotations

import time

import httpx
import pytest

from herd.errors import ConfigError
from herd.serve.app import create_app
from herd.serve.limits import Limits
from herd.serve.tracing import Tracing
from herd.stages.serve import ServeSettings
from tests.serve.conftest import chat_engine, listening

CHAT = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 3, "temperature": 0}


@pytest.mark.parametrize("path", ["/", "/health", "/v1/models", "/nothing"])
def test_head_is_get_without_the_body(http, path):
    told, whole = http.head(path), http.get(path)
    assert told.status_code == whole.status_code and not told.content
    assert told.headers["content-length"] == whole.headers["content-length"]


def test_pages_of_other_origins_may_read_answers_only_where_that_was_set(http):
    asks = {"Origin": "https://page.example", "Access-Control-Request-Method": "POST"}
    asks["Access-Control-Request-Headers"] = "authorization,content-type"
    assert "access-control-allow-origin" not in http.get("/v1/models", headers=asks).headers
    app = create_app(chat_engine(), name="tiny", key="sesame", origins=["https://page.example"])
    with listening(app) as url, httpx.Client(base_url=url) as client:
        allowed = client.options("/v1/chat/completions", headers=asks)  # a browser asks without the key
        assert allowed.status_code == 200 and allowed.headers["access-control-allow-origin"] == asks["Origin"]
        other = client.options("/v1/chat/completions", headers=asks | {"Origin": "https://other.example"})
        assert "access-control-allow-origin" not in other.headers
        key = {"Authorization": "Bearer sesame", "Origin": asks["Origin"]}
        answer = client.post("/v1/chat/completions", json=CHAT | {"store": True}, headers=key)
        assert answer.headers["access-control-allow-origin"] == asks["Origin"]
        assert "x-herd-ignored" in answer.headers["access-control-expose-headers"]
        assert client.get("/v1/models", headers={"Origin": asks["Origin"]}).status_code == 401


def test_an_origin_is_a_scheme_and_a_host():
    ServeSettings(path=["x"], origins=["*", "https://page.example", "http://localhost:3000"])
    with pytest.raises(ValueError, match="origins"):
        ServeSettings(path=["x"], origins=["page.example"])


def test_a_stream_that_has_nothing_to_say_says_so():
    engine = chat_engine()
    run = engine.loop.runner.run

    def slow(plan):
        time.sleep(0.2)
        return run(plan)

    engine.loop.runner.run = slow
    with listening(create_app(engine, name="tiny", limits=Limits(keep_alive_seconds=0.05))) as url:
        found = httpx.post(f"{url}/v1/chat/completions", json=CHAT | {"stream": True}, timeout=30)
    assert ": nothing yet\n\n" in found.text and found.text.endswith("data: [DONE]\n\n")
    assert found.headers["x-accel-buffering"] == "no"


def test_spans_name_models_and_tokens_and_nothing_that_was_said():
    trace = pytest.importorskip("opentelemetry.sdk.trace")
    export = pytest.importorskip("opentelemetry.sdk.trace.export")
    memory = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter").InMemorySpanExporter()
    provider = trace.TracerProvider()
    provider.add_span_processor(export.SimpleSpanProcessor(memory))
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    with listening(create_app(chat_engine(), name="tiny", tracing=Tracing(provider))) as url:
        said = {"messages": [{"role": "user", "content": "a secret"}]}
        httpx.post(f"{url}/v1/chat/completions", json=CHAT | said, headers={"traceparent": parent})
        httpx.post(f"{url}/v1/completions", json={"prompt": "a secret", "wrong": 1})
        httpx.get(f"{url}/health")
    good, bad = memory.get_finished_spans()
    assert good.name == "chat tiny" and f"{good.context.trace_id:032x}" == parent.split("-")[1]
    assert good.attributes["gen_ai.usage.output_tokens"] == 3 and good.attributes["gen_ai.request.model"] == "tiny"
    assert good.attributes["gen_ai.response.finish_reasons"] == ("length",) and good.end_time > good.start_time
    assert bad.name == "text_completion" and bad.attributes["error.type"] == "unknown_field"
    assert "secret" not in good.to_json() + bad.to_json()


def test_tracing_without_its_packages_is_refused_in_one_sentence(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "opentelemetry.trace", None)
    with pytest.raises(ConfigError, match="tracing"):
        Tracing()
