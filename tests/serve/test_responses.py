"""The Responses API: what the Open Responses specification asks of a server, in our own words."""

from __future__ import annotations

import json

import httpx
import openai
import pydantic
import pytest

from herd.errors import ConfigError
from herd.serve.app import create_app
from herd.serve.store import Store
from tests.serve.conftest import chat_engine, listening

WEATHER = {
    "type": "function",
    "name": "get_weather",
    "parameters": {
        "type": "object",
        "properties": {"city": {"enum": ["Rome"]}},
        "required": ["city"],
    },
}
CALL = '{"name": "get_weather", "parameters": {"city": "Rome"}}'
ASK = {"input": "What is the weather?", "temperature": 0, "max_output_tokens": 60}


def forced(text: str, **more) -> dict:
    return ASK | {"structured_outputs": {"choice": [text]}} | more


def post(http, **body):
    response = http.post("/v1/responses", json=ASK | body)
    assert response.status_code == 200, response.text
    return response.json()


def events(http, **body):
    response = http.post("/v1/responses", json=ASK | body | {"stream": True})
    assert response.status_code == 200 and response.text.endswith("data: [DONE]\n\n"), response.text
    found = []
    for block in response.text.split("\n\n")[:-2]:
        kind, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert kind == f"event: {event['type']}"
        found.append(event)
    assert [event["sequence_number"] for event in found] == list(range(len(found)))
    return found


def essence(item):
    """An item without what is drawn by lot."""
    return {key: value for key, value in item.items() if key not in ("id", "call_id")}


def test_a_text_is_a_message_with_one_part(http):
    found = post(http, **forced("Sunny."))
    (item,) = found["output"]
    assert found["object"] == "response" and found["status"] == "completed" and found["id"].startswith("resp_")
    assert item["role"] == "assistant" and item["status"] == "completed"
    assert item["content"] == [{"type": "output_text", "text": "Sunny.", "annotations": [], "logprobs": []}]
    usage = found["usage"]
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    assert found["store"] is False and found["error"] is None and found["incomplete_details"] is None


def test_a_stream_tells_the_same_by_events(http):
    whole, found = post(http, **forced("Sunny and dry.")), events(http, **forced("Sunny and dry."))
    kinds = [event["type"] for event in found]
    deltas = [event for event in found if event["type"] == "response.output_text.delta"]
    assert kinds[:4] == [
        *("response.created", "response.in_progress", "response.output_item.added", "response.content_part.added"),
    ]
    assert kinds[-4:] == [
        *("response.output_text.done", "response.content_part.done", "response.output_item.done", "response.completed"),
    ]
    assert "".join(event["delta"] for event in deltas) == "Sunny and dry." and len(deltas) > 2
    done = found[-1]["response"]
    assert [essence(item) for item in done["output"]] == [essence(item) for item in whole["output"]]
    assert done["usage"]["output_tokens"] == whole["usage"]["output_tokens"]
    assert {event["item_id"] for event in deltas} == {done["output"][0]["id"]}


def test_instructions_and_roles_are_told_to_the_model(server, http):
    say = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "input_text", "text": "x"}]},
    ]
    wanted = [{"role": "system", "content": "Be kind."}, say[0], {"role": "user", "content": "x"}]
    found = post(http, input=say, instructions="Be kind.", max_output_tokens=1)
    assert found["usage"]["input_tokens"] == len(server.engine.encode(wanted)) and found["instructions"] == "Be kind."
    assert found["status"] == "incomplete" and found["incomplete_details"] == {"reason": "max_output_tokens"}


def test_a_call_is_an_item_and_its_answer_comes_back_as_one(http):
    found = post(http, **forced(CALL, tools=[WEATHER]))
    (call,) = found["output"]
    assert call["type"] == "function_call" and json.loads(call["arguments"]) == {"city": "Rome"}
    result = {"type": "function_call_output", "call_id": call["call_id"], "output": "17"}
    history = [{"role": "user", "content": "x"}, call, result]
    assert post(http, input=history, tools=[WEATHER])["output"]
    streamed = events(http, **forced("I look. " + CALL, tools=[WEATHER]))
    grown = [event["delta"] for event in streamed if event["type"] == "response.function_call_arguments.delta"]
    (done,) = [event for event in streamed if event["type"] == "response.function_call_arguments.done"]
    assert len(grown) > 1 and "".join(grown) == done["arguments"] == call["arguments"]
    output = streamed[-1]["response"]["output"]
    assert [item["type"] for item in output] == ["message", "function_call"]
    assert essence(output[1]) == essence(call) and done["output_index"] == 1
    assert post(http, input=[{"role": "user", "content": "x"}, *output, result | {"call_id": "c"}])["output"]


@pytest.mark.parametrize(
    "choice",
    [
        "required",
        {"type": "function", "name": "get_weather"},
        {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "get_weather"}]},
    ],
)
def test_a_call_can_be_required(http, choice):
    found = post(http, tools=[WEATHER], tool_choice=choice)
    assert json.loads(found["output"][0]["arguments"]) == {"city": "Rome"} and found["tool_choice"] == choice


def test_a_text_can_have_a_form(server):
    class Person(pydantic.BaseModel):
        name: str = pydantic.Field(max_length=5)
        age: int = pydantic.Field(ge=0, le=99)

    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        found = client.responses.parse(model="tiny", input="x", text_format=Person, max_output_tokens=120)
        assert isinstance(found.output_parsed, Person)
        with client.responses.stream(model="tiny", input="x", text_format=Person, max_output_tokens=120) as stream:
            assert isinstance(stream.get_final_response().output_parsed, Person)


def test_log_probabilities_come_where_they_are_asked_for(http):
    found = post(http, **forced("Hm."), include=["message.output_text.logprobs"], top_logprobs=2)
    entries = found["output"][0]["content"][0]["logprobs"]
    assert (
        bytes(byte for entry in entries for byte in entry["bytes"]) == b"Hm." and len(entries[0]["top_logprobs"]) == 2
    )


@pytest.mark.parametrize(
    ("change", "param", "words"),
    [
        ({"previous_response_id": "resp_x"}, "previous_response_id", "store=FILE"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
            "input",
            "text and files",
        ),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input", "send the item itself"),
        ({"input": []}, "input", "no message"),
        ({"tools": [{"type": "web_search"}]}, "tools", "'function'"),
        ({"conversation": "x"}, "conversation", "not supported"),
        ({"background": True}, "background", "not supported"),
        ({"messages": []}, "messages", "/v1/chat/completions has it"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, None, "text.format.schema"),
    ],
    ids=str,
)
def test_what_cannot_be_done_is_refused_by_name(http, change, param, words):
    response = http.post("/v1/responses", json=ASK | change)
    error = response.json()["error"]
    assert response.status_code == 400 and words in error["message"], error
    assert (error["param"] or "").split(".")[0] == (param or "")


def test_what_cannot_be_honoured_is_named(http):
    fields = {"store": True, "reasoning": {"effort": "high"}, "text": {"verbosity": "low"}, "truncation": "auto"}
    told = http.post("/v1/responses", json=ASK | fields).headers["x-herd-ignored"]
    assert set(told.split(", ")) == {"store", "reasoning.effort", "text.verbosity", "truncation"}


def test_a_stream_that_fails_says_so_in_its_own_events(http):
    response = http.post(
        "/v1/responses", json=ASK | {"stream": True, "structured_outputs": {"regex": "(a|aa|aaa){500,5000}b"}}
    )
    assert "event: response.failed" in response.text and "event: error" in response.text


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    store = Store(tmp_path_factory.mktemp("store") / "responses.sqlite")
    engine = chat_engine(max_position_embeddings=2048)
    with listening(create_app(engine, name="tiny", store=store, keys={"ann": "a", "bob": "b"})) as url:
        yield url


def test_a_conversation_goes_on_from_a_response_that_is_kept(kept):
    with httpx.Client(base_url=kept, headers={"X-Api-Key": "a"}, timeout=30) as http:
        first = post(http, **forced(CALL, tools=[WEATHER]))
        answer = [{"type": "function_call_output", "call_id": first["output"][0]["call_id"], "output": "17"}]
        second = post(http, **forced("It is 17.", input=answer, previous_response_id=first["id"]))
        third = events(http, **forced("Yes.", input="Sure?", previous_response_id=second["id"]))[-1]["response"]
        whole = [
            {"role": "user", "content": ASK["input"]},
            *first["output"],
            *answer,
            *second["output"],
            {"role": "user", "content": "Sure?"},
        ]
        again = post(http, **forced("Yes.", input=whole))
        assert first["store"] is True and second["previous_response_id"] == first["id"]
        assert third["usage"]["input_tokens"] == again["usage"]["input_tokens"]
        assert http.get(f"/v1/responses/{third['id']}").json() == third
        (item,) = http.get(f"/v1/responses/{second['id']}/input_items").json()["data"]
        assert item["output"] == "17"
        assert http.delete(f"/v1/responses/{third['id']}").json()["deleted"] is True
        assert http.get(f"/v1/responses/{third['id']}").status_code == 404
        unkept = post(http, **forced("Yes.", store=False))
        assert unkept["store"] is False and http.get(f"/v1/responses/{unkept['id']}").status_code == 404
        others = {"X-Api-Key": "b"}
        assert http.get(f"/v1/responses/{second['id']}", headers=others).status_code == 404
        assert http.delete(f"/v1/responses/{second['id']}", headers=others).status_code == 404
        asked = http.post("/v1/responses", json=ASK | {"previous_response_id": second["id"]}, headers=others)
        assert asked.status_code == 400 and asked.json()["error"]["code"] == "previous_response_not_found"


def test_items_that_were_sent_are_listed_page_by_page_and_answers_can_be_referred_to(kept):
    with httpx.Client(base_url=kept, headers={"X-Api-Key": "a"}, timeout=30) as http:
        talk = [{"role": role, "content": text} for role, text in (("user", "a"), ("assistant", "b"), ("user", "c"))]
        first = post(http, **forced("Yes.", input=talk))
        place = f"/v1/responses/{first['id']}/input_items"
        pages = [http.get(place).json(), http.get(place, params={"order": "asc", "limit": 2}).json()]
        pages.append(http.get(place, params={"order": "asc", "after": pages[1]["last_id"]}).json())
        told = [[item["content"][0]["text"] for item in page["data"]] for page in pages]
        assert told == [["c", "b", "a"], ["a", "b"], ["c"]] and [page["has_more"] for page in pages] == [0, 1, 0]
        assert [item["content"][0]["type"] for item in pages[1]["data"]] == ["input_text", "output_text"]
        for wrong in ({"limit": 0}, {"order": "up"}, {"after": "nothing"}):
            refused = http.get(place, params=wrong)
            assert refused.status_code == 400 and refused.json()["error"]["param"] == next(iter(wrong))
        refer = {"type": "item_reference", "id": first["output"][0]["id"]}
        more = {"role": "user", "content": "Sure?"}
        assert (
            post(http, **forced("Yes.", input=[*talk, refer, more]))["usage"]["input_tokens"]
            == post(http, **forced("Yes.", input=[*talk, *first["output"], more]))["usage"]["input_tokens"]
        )
        asked = http.post("/v1/responses", json=ASK | {"input": [refer, more]}, headers={"X-Api-Key": "b"})
        assert asked.status_code == 404 and asked.json()["error"]["code"] == "item_not_found"


def test_a_call_begins_empty_and_its_deltas_bring_all_of_it(http):
    told = events(http, **forced(CALL, tools=[WEATHER]))
    begun = next(event["item"] for event in told if event["type"] == "response.output_item.added")
    grown = [event["delta"] for event in told if event["type"] == "response.function_call_arguments.delta"]
    done = next(event for event in told if event["type"] == "response.function_call_arguments.done")
    assert begun["arguments"] == "" and "".join(grown) == done["arguments"] == '{"city": "Rome"}'


def test_tokens_are_counted_beforehand(http):
    body = {"input": ASK["input"], "instructions": "Be brief.", "tools": [WEATHER]}
    counted = http.post("/v1/responses/input_tokens", json=body).json()
    assert counted == {
        "object": "response.input_tokens",
        "input_tokens": post(http, **forced("Yes.", **body))["usage"]["input_tokens"],
    }
    assert http.post("/v1/responses/input_tokens", json={"input": []}).json()["error"]["param"] == "input"


@pytest.mark.parametrize("include", ["file_search_call.results", "web_search_call.action.sources"])
def test_what_no_answer_here_holds_can_be_asked_for(http, include):
    assert post(http, **forced("Yes.", include=[include]))["output"][0]["type"] == "message"


@pytest.mark.parametrize("fields", [{"metadata": "x"}, {"metadata": {"a": 1}}, {"truncation": "sometimes"}])
def test_what_is_told_back_has_the_form_that_clients_read(http, fields):
    refused = http.post("/v1/responses", json=ASK | fields)
    assert refused.status_code == 400 and refused.json()["error"]["param"].startswith(next(iter(fields)))


def test_a_store_is_a_file_of_its_own(tmp_path):
    path = tmp_path / "responses.sqlite"
    Store(path)
    assert path.stat().st_mode & 0o077 == 0
    (tmp_path / "rubbish").write_bytes(b"no database" * 100)
    for wrong in (tmp_path / "rubbish", tmp_path, tmp_path / "nowhere" / "x"):
        with pytest.raises(ConfigError, match="store"):
            Store(wrong)
