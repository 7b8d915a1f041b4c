"""Several models at once; tokens and vectors."""

from __future__ import annotations

import math

import httpx
import openai
import pytest

from herd.errors import ConfigError
from herd.infer.embedder import Embedder
from herd.infer.engine import Engine
from herd.serve.app import create_app
from herd.types import SamplingParams
from tests.infer.models import small_tokenizer, tiny_model
from tests.infer.test_adapters import write_adapter
from tests.serve.conftest import chat_engine, listening


@pytest.fixture(scope="module")
def two():
    engines = {"first": chat_engine(), "second": Engine.of(tiny_model(seed=1), small_tokenizer(), max_sequences=8)}
    with listening(create_app(engines)) as url:
        yield url, engines


def test_each_model_answers_under_its_name_and_the_first_one_without(two):
    url, engines = two
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        assert [model.id for model in client.models.list()] == ["first", "second"]
        params = SamplingParams(temperature=0, max_tokens=8)
        for name, engine in engines.items():
            response = client.completions.create(model=name, prompt="The quick", temperature=0, max_tokens=8)
            assert response.choices[0].text == engine.generate("The quick", params).text and response.model == name
        with pytest.raises(openai.NotFoundError, match="`first`, `second`"):
            client.models.retrieve("third")
        with pytest.raises(openai.BadRequestError, match="base model"):
            client.chat.completions.create(model="second", messages=[{"role": "user", "content": "x"}])
    body = {"prompt": "The quick", "temperature": 0, "max_tokens": 8}
    assert httpx.post(f"{url}/v1/completions", json=body).json()["model"] == "first"


def test_adapters_are_models_by_their_own_names(tmp_path):
    engine = chat_engine()
    engine.add_adapter("polite", write_adapter(tmp_path / "polite", 0))
    with (
        listening(create_app(engine, name="tiny")) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
    ):
        assert [(model.id, model.parent) for model in client.models.list()] == [("tiny", None), ("polite", "tiny")]
        texts = {}
        for name, adapter in (("tiny", None), ("polite", "polite")):
            response = client.completions.create(model=name, prompt="The quick", temperature=0, max_tokens=12)
            params = SamplingParams(temperature=0, max_tokens=12, adapter=adapter)
            texts[name] = response.choices[0].text
            assert texts[name] == engine.generate("The quick", params).text and response.model == name
        assert texts["tiny"] != texts["polite"]
        with pytest.raises(openai.BadRequestError, match="ask `tiny`"):
            client.embeddings.create(model="polite", input="x")
    with pytest.raises(ConfigError, match="both called polite"):
        create_app(engine, name="polite")


def test_text_becomes_tokens_and_tokens_text(server, http):
    text = "naïve café 🦙"
    found = http.post("/tokenize", json={"prompt": text, "return_token_strs": True}).json()
    assert found["tokens"] == server.engine.encode(text) and found["count"] == len(found["tokens"])
    assert found["max_model_len"] == server.engine.max_context and len(found["token_strs"]) == found["count"]
    assert http.post("/detokenize", json={"tokens": found["tokens"][1:]}).json() == {"prompt": text}
    bare = http.post("/tokenize", json={"prompt": text, "add_special_tokens": False}).json()["tokens"]
    assert bare == found["tokens"][1:]
    messages = [{"role": "user", "content": text}]
    assert http.post("/tokenize", json={"messages": messages}).json()["tokens"] == server.engine.encode(messages)


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("/tokenize", {}, "either `prompt` or `messages`"),
        ("/tokenize", {"prompt": "a", "messages": [{"role": "user", "content": "b"}]}, "either"),
        ("/detokenize", {"tokens": [10**6]}, "this model knows 0 to"),
        ("/detokenize", {"tokens": [-1]}, "greater than or equal"),
        ("/v1/embeddings", {"input": []}, "at least 1"),
        ("/v1/embeddings", {"input": "word " * 3000}, "context is 2048"),
        ("/v1/embeddings", {"input": [10**6]}, "token id"),
        ("/v1/embeddings", {"input": "a", "dimensions": 800}, "`dimensions`"),
        ("/v1/embeddings", {"input": "a", "pooling": "max"}, "pooling"),
    ],
    ids=str,
)
def test_what_cannot_be_done_is_said(http, path, body, words):
    response = http.post(path, json=body)
    assert response.status_code == 400 and words in response.json()["error"]["message"]


def test_embeddings_are_the_pooled_hidden_states(server):
    texts = ["The quick brown fox", "jumps"]
    embedder = Embedder(server.engine)
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        for options in ({}, {"encoding_format": "float"}):  # the client asks for base64 by itself
            response = client.embeddings.create(model="tiny", input=texts, **options)
            for text, entry in zip(texts, response.data, strict=True):
                assert entry.embedding == pytest.approx(embedder.embed(server.engine.encode(text)).tolist(), abs=1e-6)
                assert math.hypot(*entry.embedding) == pytest.approx(1, abs=1e-5)
        assert response.usage.prompt_tokens == sum(len(server.engine.encode(text)) for text in texts)
        ids = server.engine.encode(texts[1])
        last = client.embeddings.create(model="tiny", input=ids, extra_body={"pooling": "last"})
    assert last.data[0].embedding == pytest.approx(embedder.embed(ids, "last").tolist(), abs=1e-6)


def test_vectors_do_not_hold_up_answers(server):
    """Both are asked for at once, and both are right."""
    from concurrent.futures import ThreadPoolExecutor

    with httpx.Client(base_url=server.url, timeout=30) as client, ThreadPoolExecutor(8) as pool:
        vectors = [pool.submit(client.post, "/v1/embeddings", json={"input": f"text {n}"}) for n in range(6)]
        body = {"prompt": "The quick", "max_tokens": 30, "temperature": 0}
        answers = [pool.submit(client.post, "/v1/completions", json=body) for _ in range(4)]
        assert {future.result().status_code for future in vectors} == {200}
        texts = {future.result().json()["choices"][0]["text"] for future in answers}
    assert texts == {server.engine.generate("The quick", SamplingParams(temperature=0, max_tokens=30)).text}
