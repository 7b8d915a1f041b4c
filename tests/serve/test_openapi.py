"""The server keeps what its OpenAPI document promises, whatever is sent."""

from __future__ import annotations

import itertools

import hypothesis
import pytest

from herd.serve.app import create_app
from herd.serve.limits import Limits
from tests.serve.conftest import chat_engine, listening

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")
checks = pytest.importorskip("schemathesis.specs.openapi.checks")
GenerationMode = pytest.importorskip("schemathesis").GenerationMode

KEY = "sesame"


@pytest.fixture(scope="module")
def document():
    engine = chat_engine(max_position_embeddings=48)
    limits = Limits(max_tokens=2, timeout_seconds=20, wrong_keys_per_minute=10_000)  # a wrong key is not held back
    with listening(create_app(engine, name="tiny", key=KEY, limits=limits)) as url:
        yield schemathesis.openapi.from_url(f"{url}/openapi.json", wait_for_schema=5)


def examine(document, num_examples: int) -> None:
    """Send right and wrong requests to every operation and compare what comes back with the document."""
    for found, mode in itertools.product(list(document.get_all_operations()), GenerationMode):
        operation = found.ok()
        if mode is GenerationMode.NEGATIVE and operation.method == "get":
            continue  # there is nothing to get wrong

        @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
        @hypothesis.settings(
            max_examples=num_examples,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        def probe(case) -> None:
            case.call_and_validate(
                headers={"Authorization": f"Bearer {KEY}"},
                excluded_checks=[checks.positive_data_acceptance],  # a prompt may be too long, a model's name unknown
            )

        probe()


def test_every_answer_is_one_that_the_document_promises(document):
    examine(document, 5)


@pytest.mark.slow
def test_and_so_are_many_more(document):
    examine(document, 10)


def test_the_document_names_every_way_to_be_refused(http):
    document = http.get("/openapi.json").json()
    for path, operations in document["paths"].items():
        for operation in operations.values():
            assert "422" not in operation["responses"]
            if path.startswith("/v1"):
                assert {"200", "400", "401", "404", "429"} <= set(operation["responses"])
                assert operation["security"]
    fields = document["components"]["schemas"]["ChatRequest"]["properties"]
    assert {"tools", "response_format", "logit_bias", "stream_options"} <= set(fields)
