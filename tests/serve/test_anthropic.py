"""Anthropic's messages: the same turns in another dialect."""

from __future__ import annotations

import json

import httpx
import pytest

from herd.serve.app import create_app
from tests.serve.conftest import chat_engine, listening

WEATHER = {
    "name": "get_weather",
    "description": "The weather.",
    "input_schema": {"type": "object", "properties": {"city": {"enum": ["Rome"]}}, "required": ["city"]},
}
CALL = '{"name": "get_weather", "parameters": {"city": "Rome"}}'
ASK = {"messages": [{"role": "user", "content": "What is the weather?"}], "temperature": 0, "max_tokens": 60}


def forced(text: str, **more) -> dict:
    return {"structured_outputs": {"choice": [text]}} | more


def post(http, **body):
    response = http.post("/v1/messages", json=ASK | body)
    assert response.status_code == 200, response.text
    return response.json()


def events(http, **body):
    response = http.post("/v1/messages", json=ASK | body | {"stream": True})
    blocks = [block.split("\n") for block in response.text.strip().split("\n\n")]
    found = [json.loads(data.removeprefix("data: ")) for _, data in blocks]
    assert [kind for kind, _ in blocks] == [f"event: {event['type']}" for event in found]
    return found


def together(found):
    """The message that a stream's events make."""
    message = found[0]["message"]
    for event in found:
        if event["type"] == "content_block_start":
            assert event["index"] == len(message["content"])
            message["content"].append(dict(event["content_block"]))
        elif event["type"] == "content_block_delta":
            block, delta = message["content"][event["index"]], event["delta"]
            if delta["type"] == "text_delta":
                block["text"] += delta["text"]
            else:
                block["json"] = block.get("json", "") + delta["partial_json"]
        elif event["type"] == "message_delta":
            message |= event["delta"] | {"usage": event["usage"]}
    for block in message["content"]:
        if "json" in block:
            block["input"] = json.loads(block.pop("json"))
    starts = sum(event["type"] == "content_block_start" for event in found)
    assert starts == sum(event["type"] == "content_block_stop" for event in found) == len(message["content"])
    assert found[-1] == {"type": "message_stop"}
    return message


def essence(message):
    content = [{k: v for k, v in block.items() if k != "id"} for block in message["content"]]
    return content, message["stop_reason"], message["stop_sequence"], message["usage"]["output_tokens"]


@pytest.mark.parametrize(
    ("body", "content", "reason", "stop"),
    [
        (forced("Sunny."), [{"type": "text", "text": "Sunny."}], "end_turn", None),
        (forced("Sunny. Dry."), [{"type": "text", "text": "Sunny"}], "stop_sequence", "."),
        (forced("Sunny and dry", max_tokens=2), None, "max_tokens", None),
        (
            forced("I look. " + CALL, tools=[WEATHER]),
            [
                {"type": "text", "text": "I look. "},
                {"type": "tool_use", "name": "get_weather", "input": {"city": "Rome"}},
            ],
            "tool_use",
            None,
        ),
    ],
    ids=["text", "stop", "cut", "call"],
)
def test_an_answer_is_blocks_whole_and_streamed(http, body, content, reason, stop):
    more = {"stop_sequences": ["."]} if stop else {}
    whole = post(http, **body, **more)
    assert whole["type"] == "message" and whole["role"] == "assistant" and whole["model"] == "tiny"
    assert whole["usage"]["input_tokens"] > 0
    assert essence(whole)[1:3] == (reason, stop) and (content is None or essence(whole)[0] == content)
    assert essence(together(events(http, **body, **more))) == essence(whole)


def test_a_call_and_its_result_are_taken_back(server, http):
    call = post(http, **forced(CALL, tools=[WEATHER]))["content"]
    result = {"type": "tool_result", "tool_use_id": call[0]["id"], "content": [{"type": "text", "text": "17"}]}
    history = [
        *ASK["messages"],
        {"role": "assistant", "content": [{"type": "thinking", "thinking": "hm", "signature": "x"}, *call]},
        {"role": "user", "content": [result | {"is_error": False}, {"type": "text", "text": "And now?"}]},
    ]
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What is the weather?"},
        {"role": "assistant", "content": "", "tool_calls": [{"name": "get_weather", "arguments": {"city": "Rome"}}]},
        {"role": "ipython", "content": "17"},
        {"role": "user", "content": "And now?"},
    ]
    system = [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}]
    body = {"messages": history, "system": system}
    counted = http.post("/v1/messages/count_tokens", json=body).json()["input_tokens"]
    assert counted == len(server.engine.encode(messages))
    used = post(http, **body, max_tokens=1)["usage"]
    assert used["input_tokens"] + used["cache_read_input_tokens"] == counted


def test_the_last_message_may_be_the_beginning_of_the_answer(server, http):
    messages = [*ASK["messages"], {"role": "assistant", "content": "It is"}]
    counted = http.post("/v1/messages/count_tokens", json={"messages": messages}).json()["input_tokens"]
    assert counted == len(server.engine.encode(ASK["messages"])) + len(server.engine.tokenizer.encode("It is"))


def test_the_longest_answer_may_be_longer_than_fits(http):
    assert post(http, **forced("Sunny.", max_tokens=128_000))["stop_reason"] == "end_turn"


def test_a_call_can_be_required_and_a_text_can_have_a_form(http):
    for choice in ({"type": "any"}, {"type": "tool", "name": "get_weather", "disable_parallel_tool_use": True}):
        (block,) = post(http, tools=[WEATHER], tool_choice=choice)["content"]
        assert block["input"] == {"city": "Rome"}
    schema = {"type": "object", "properties": {"n": {"enum": [1]}}, "required": ["n"]}
    form = {"type": "json_schema", "schema": schema}
    for body in ({"output_config": {"format": form}}, {"output_format": form}):
        assert json.loads(post(http, **body)["content"][0]["text"]) == {"n": 1}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, "text and documents"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools.0"),
        ({"tool_choice": {"type": "tool"}}, "needs `name`"),
        ({"stop": ["x"]}, "/v1/chat/completions has it"),
        ({"mcp_servers": [{"url": "x"}]}, "mcp_servers"),
    ],
    ids=str,
)
def test_what_cannot_be_done_is_refused_in_anthropics_form(http, change, words):
    body = {key: value for key, value in (ASK | change).items() if value is not None}
    response = http.post("/v1/messages", json=body)
    found = response.json()
    assert response.status_code == 400 and found["type"] == "error" and words in found["error"]["message"], found
    assert found["error"]["type"] == "invalid_request_error"


def test_what_cannot_be_honoured_is_named(http):
    fields = {"thinking": {"type": "enabled", "budget_tokens": 5}, "tools": [WEATHER | {"cache_control": {}}]}
    response = http.post("/v1/messages", json=ASK | fields, headers={"anthropic-version": "2023-06-01"})
    assert set(response.headers["x-herd-ignored"].split(", ")) == {"thinking", "tools.cache_control"}


def test_keys_and_models_are_as_anthropics_clients_expect_them():
    with listening(create_app(chat_engine(), name="tiny", key="sesame")) as url:
        refused = httpx.post(f"{url}/v1/messages", json=ASK, headers={"x-api-key": "wrong"})
        assert refused.status_code == 401 and refused.json()["error"]["type"] == "authentication_error"
        headers = {"x-api-key": "sesame", "anthropic-version": "2023-06-01"}
        assert httpx.post(f"{url}/v1/messages?beta=true", json=ASK, headers=headers).status_code == 200
        missing = httpx.post(f"{url}/v1/messages", json=ASK | {"model": "claude"}, headers=headers)
        assert missing.status_code == 404 and missing.json()["error"]["type"] == "not_found_error"
        listed = httpx.get(f"{url}/v1/models", headers=headers).json()
        assert listed["data"][0]["type"] == "model" and listed["has_more"] is False


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/count_tokens"])
@pytest.mark.parametrize("role", ["user", "assistant"])
def test_a_message_may_hold_no_blocks(http, path, role):
    body = ASK | {"messages": [{"role": role, "content": []}]}
    counting = path.endswith("tokens")
    response = http.post(path, json={"messages": body["messages"]} if counting else body | {"max_tokens": 1})
    assert response.status_code == 200, response.text


def test_errors_and_models_have_anthropics_form_wherever_its_clients_ask(http):
    version = {"anthropic-version": "2023-06-01"}
    for response, kind in (
        (http.get("/v1/models/none", headers=version), "not_found_error"),
        (http.post("/v1/messages", json={}), "invalid_request_error"),
        (http.post("/v1/messages", content=b"x" * 200_000), "request_too_large"),
        (http.get("/v1/messages/batches"), "not_found_error"),
    ):
        told = response.json()
        assert told["type"] == "error" and told["error"]["type"] == kind
        assert told["request_id"] == response.headers["request-id"]
    model = http.get("/v1/models/tiny", headers=version).json()
    assert model["type"] == "model" and model["display_name"] == "tiny" and "created_at" in model
    assert "error" in http.get("/v1/models/none").json() and "type" not in http.get("/v1/models/tiny").json()


def test_where_and_for_whom_an_answer_is_made_is_named(http):
    fields = {"inference_geo": "us", "fallbacks": [{"model": "other"}], "user_profile_id": "x"}
    told = http.post("/v1/messages", json=ASK | {"max_tokens": 1} | fields).headers["x-herd-ignored"]
    assert set(told.split(", ")) == set(fields)
