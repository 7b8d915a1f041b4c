"""The fields that programs send: each with its meaning, or named where it cannot be honoured."""

from __future__ import annotations

import io
import json
import math

import httpx
import openai
import pytest

from herd.serve.app import create_app
from herd.serve.journal import Journal
from herd.types import SamplingParams
from tests.serve.conftest import chat_engine, listening

ASK = [{"role": "user", "content": "hi"}]
CHAT = {"messages": ASK, "max_tokens": 3, "temperature": 0}
TOOLS = [{"type": "function", "function": {"name": name}} for name in ("get_weather", "clock")]


def chat(http, **fields):
    response = http.post("/v1/chat/completions", json=CHAT | fields)
    assert response.status_code == 200, response.text
    return response


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({"verbosity": "low"}, "verbosity"),
        ({"verbosity": "medium", "store": False, "reasoning_effort": "none"}, None),
        ({"store": True, "reasoning_effort": "high"}, "store, reasoning_effort"),
        ({"messages": [ASK[0] | {"name": "Bob"}]}, "messages.name"),
        ({"messages": [ASK[0] | {"mood": 1}] * 3}, "messages.mood"),
        ({"messages": [{"role": "assistant", "content": "x", "reasoning_content": "y"}]}, "messages.reasoning_content"),
        ({"chat_template_kwargs": {"date_string": "1 May 2025", "thinking": 1}}, "chat_template_kwargs.thinking"),
        ({"chat_template_kwargs": {"ü\n": 1}}, "'chat_template_kwargs.\\xfc\\n'"),
        ({"messages": [ASK[0] | {f"f{i}": 1 for i in range(14)}]}, "and 4 more"),
    ],
    ids=str,
)
def test_what_cannot_be_honoured_is_accepted_and_named_once(http, fields, names):
    told = chat(http, **fields).headers.get("x-herd-ignored")
    assert told == names or set(told.split(", ")) == set(names.split(", ")) or told.endswith(names)


def test_the_log_names_what_was_ignored_and_which_field_was_refused():
    out = io.StringIO()
    with listening(create_app(chat_engine(), name="tiny", journal=Journal("text", stream=out))) as url:
        httpx.post(f"{url}/v1/chat/completions", json=CHAT | {"verbosity": "low"})
        httpx.post(f"{url}/v1/chat/completions", json=CHAT | {"wrong": 1})
    first, second = out.getvalue().splitlines()
    assert "ignored: verbosity" in first and "unknown_field  wrong" in second


def test_numbers_are_whole_whether_written_with_a_point_or_not(http):
    assert chat(http, max_tokens=3.0, seed=1.0, n=1.0, top_k=-1).json() is not None
    assert chat(http, top_k=-1).json()["choices"] == chat(http, top_k=0).json()["choices"]


def test_usage_comes_in_every_chunk_where_it_is_asked_for(http):
    options = {"include_usage": True, "continuous_usage_stats": True}
    for path, body in (("/v1/chat/completions", CHAT), ("/v1/completions", {"prompt": "x", "max_tokens": 3})):
        text = http.post(path, json=body | {"stream": True, "stream_options": options}).text
        chunks = [json.loads(line[6:]) for line in text.split("\n\n") if line.startswith("data: {")]
        assert all(chunk["usage"]["prompt_tokens"] > 0 for chunk in chunks)
        assert chunks[-1]["usage"]["completion_tokens"] == chunks[-2]["usage"]["completion_tokens"] > 0


def test_an_answer_goes_on_past_its_end_and_stops_at_tokens_where_told_so(server, http):
    end = server.engine.tokenizer.eot_id
    bias = {"logit_bias": {str(end): 100}, "prompt": "x", "temperature": 0, "max_tokens": 6}
    assert http.post("/v1/completions", json=bias).json()["usage"]["completion_tokens"] == 1
    assert http.post("/v1/completions", json=bias | {"ignore_eos": True}).json()["usage"]["completion_tokens"] == 6
    body = {"prompt": "x", "temperature": 0, "max_tokens": 20, "ignore_eos": True}
    tokens = server.engine.generate("x", SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)).tokens
    found = http.post("/v1/completions", json=body | {"stop_token_ids": [tokens[5]]}).json()
    assert found["usage"]["completion_tokens"] == tokens.index(tokens[5]) + 1
    assert found["choices"][0]["finish_reason"] == "stop"
    wrong = http.post("/v1/completions", json=body | {"stop_token_ids": [10**6]})
    assert wrong.status_code == 400 and wrong.json()["error"]["param"] == "stop_token_ids"


def test_no_stop_string_ends_an_answer_before_its_least_length(server):
    whole = server.engine.generate("x", SamplingParams(temperature=0, max_tokens=30, ignore_eos=True))
    stop = whole.text[1]
    early = server.engine.generate("x", SamplingParams(temperature=0, max_tokens=30, stop=(stop,), ignore_eos=True))
    late = server.engine.generate(
        "x", SamplingParams(temperature=0, max_tokens=30, stop=(stop,), ignore_eos=True, min_tokens=15)
    )
    assert len(early.tokens) < 15 <= len(late.tokens) and whole.text.startswith(late.text)


def test_a_prompt_alone_is_scored(http):
    body = {"prompt": "The quick brown", "max_tokens": 0, "echo": True, "logprobs": 1}
    found = http.post("/v1/completions", json=body).json()
    scores = found["choices"][0]["logprobs"]
    assert found["choices"][0]["text"] == "The quick brown" and found["usage"]["completion_tokens"] == 0
    assert len(scores["tokens"]) == found["usage"]["prompt_tokens"] and scores["token_logprobs"][0] is None
    streamed = http.post("/v1/completions", json={"prompt": "The", "max_tokens": 0, "echo": True, "stream": True}).text
    texts = [json.loads(line[6:])["choices"][0]["text"] for line in streamed.split("\n\n") if "{" in line]
    assert "".join(texts) == "The"
    assert http.post("/v1/completions", json={"prompt": "x", "max_tokens": 0}).status_code == 400


def test_offsets_and_bytes_are_right_for_tokens_that_are_no_text(server, http):
    body = {"prompt": "é🦙 x", "max_tokens": 0, "echo": True, "logprobs": 1}
    scores = http.post("/v1/completions", json=body).json()["choices"][0]["logprobs"]
    text, tokenizer = "é🦙 x", server.engine.tokenizer
    ids = server.engine.encode(text)
    data, places = b"", []
    for token in ids:
        places.append(len(data.decode("utf-8", "ignore")))
        data += b"" if token in tokenizer.special_ids else tokenizer.token_bytes(token)
    assert scores["text_offset"] == places and data.decode() == text
    bias = {"logit_bias": {str(tokenizer.eot_id): 100}, "logprobs": True}
    (entry,) = chat(http, **bias).json()["choices"][0]["logprobs"]["content"]
    assert entry["token"] == "<|eot_id|>" and entry["bytes"] is None


def test_some_of_the_tools_are_allowed(server, http):
    named = [{"type": "function", "function": {"name": "clock"}}]
    choice = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": named}}
    message = chat(http, tools=TOOLS, tool_choice=choice, max_tokens=60).json()["choices"][0]["message"]
    assert [call["function"]["name"] for call in message["tool_calls"]] == ["clock"] and message["content"] is None
    choice["allowed_tools"]["mode"] = "auto"
    some, one = chat(http, tools=TOOLS, tool_choice=choice).json(), chat(http, tools=TOOLS[1:]).json()
    assert some["usage"]["prompt_tokens"] == one["usage"]["prompt_tokens"]
    choice["allowed_tools"]["tools"] = [{"type": "function", "function": {"name": "f"}}]
    response = http.post("/v1/chat/completions", json=CHAT | {"tools": TOOLS, "tool_choice": choice})
    assert response.status_code == 400 and "no function 'f'" in response.text


def test_the_last_message_may_be_the_beginning_of_the_answer(server, http):
    messages = [*ASK, {"role": "assistant", "content": "Once upon"}]
    settings = {"messages": messages, "continue_final_message": True, "add_generation_prompt": False}
    found = http.post("/tokenize", json=settings).json()["tokens"]
    whole = http.post("/tokenize", json={"messages": messages, "add_generation_prompt": False}).json()["tokens"]
    assert whole == [*found, server.engine.tokenizer.eot_id]
    assert chat(http, **settings).json()["usage"]["prompt_tokens"] == len(found)
    assert http.post("/v1/chat/completions", json=CHAT | {"continue_final_message": True}).status_code == 400


def test_tools_and_dates_are_part_of_what_is_counted(http):
    plain = http.post("/tokenize", json={"messages": ASK}).json()["count"]
    with_tools = http.post("/tokenize", json={"messages": ASK, "tools": TOOLS}).json()["count"]
    dated = http.post("/tokenize", json={"messages": ASK, "chat_template_kwargs": {"date_string": "1 May"}}).json()
    assert with_tools > plain + 30 and dated["count"] > plain
    assert chat(http, tools=TOOLS).json()["usage"]["prompt_tokens"] == with_tools
    assert http.post("/tokenize", json={"prompt": "x", "tools": TOOLS}).status_code == 400


def test_vectors_can_be_shortened(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        long = client.embeddings.create(model="tiny", input="x").data[0].embedding
        short = client.embeddings.create(model="tiny", input="x", dimensions=8).data[0].embedding
    length = math.hypot(*long[:8])
    assert short == pytest.approx([value / length for value in long[:8]], abs=1e-6)


def test_the_key_may_come_as_anthropics_clients_send_it():
    with listening(create_app(chat_engine(), name="tiny", key="sesame")) as url:
        assert httpx.get(f"{url}/v1/models", headers={"X-Api-Key": "sesame"}).status_code == 200
        assert httpx.get(f"{url}/v1/models", headers={"X-Api-Key": "wrong"}).status_code == 401


def test_what_was_computed_before_is_counted_and_the_server_names_itself(http):
    body = CHAT | {"messages": [{"role": "user", "content": "the same words again and again " * 8}]}
    first, second = (http.post("/v1/chat/completions", json=body).json() for _ in range(2))
    cached = [found["usage"]["prompt_tokens_details"]["cached_tokens"] for found in (first, second)]
    assert cached[0] == 0 < cached[1] < second["usage"]["prompt_tokens"]
    assert first["system_fingerprint"] == second["system_fingerprint"] != ""
    (model,) = http.get("/v1/models").json()["data"]
    assert model["max_model_len"] == model["max_context"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": ASK, "stream": True, "stream_options": {"include_usage": None}}),
        ("/v1/embeddings", {"input": "a", "encoding_format": None, "pooling": None}),
        ("/tokenize", {"prompt": "a", "add_special_tokens": None, "return_token_strs": None}),
        ("/v1/messages", {"messages": ASK, "max_tokens": 1, "stop_sequences": None}),
    ],
)
def test_null_is_as_much_as_no_field(http, path, body):
    response = http.post(path, json=body)
    assert response.status_code == 200, response.text


@pytest.mark.parametrize(
    ("path", "body"), [("/v1/chat/completions", {"messages": ASK}), ("/v1/completions", {"prompt": "a"})]
)
def test_all_chunks_but_the_last_have_no_usage_where_it_is_asked_for(http, path, body):
    more = {"stream": True, "stream_options": {"include_usage": True}, "max_tokens": 3}
    lines = http.post(path, json=body | more).text.split("\n\n")[:-2]
    *chunks, last = [json.loads(line.removeprefix("data: "))["usage"] for line in lines]
    assert set(chunks) == {None} and last["total_tokens"] > 0


def test_an_object_may_come_with_a_schema(http):
    schema = {"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"]}
    form = {"type": "json_object", "schema": schema}
    body = {"messages": ASK, "max_tokens": 60, "response_format": form}
    answer = http.post("/v1/chat/completions", json=body).json()["choices"][0]["message"]["content"]
    assert json.loads(answer) == {"a": 1}
    refused = http.post("/v1/chat/completions", json=body | {"response_format": form | {"type": "text"}})
    assert refused.status_code == 400 and "json_object" in refused.json()["error"]["message"]
