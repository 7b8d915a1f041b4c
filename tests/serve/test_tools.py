"""Tools: the calls a model writes come back as OpenAI's."""

from __future__ import annotations

import asyncio
import itertools
import json

import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from herd.serve.dialects.chat import ChatRequest
from herd.serve.tools import CallReader

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Rome", "Oslo"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
CLOCK = {"type": "function", "function": {"name": "clock"}}
CALL = '{"name": "get_weather", "parameters": {"city": "Rome"}}'
ASK = [{"role": "user", "content": "What is the weather in Rome?"}]
CALLED = [{"name": "get_weather", "arguments": {"city": "Rome"}}]


def read(text: str, cuts: list[int] = (), *, tag_at: int | None = None, **options):
    """What a reader makes of a text that comes in pieces."""
    reader = CallReader(["get_weather", "clock"], **options)
    places = sorted({0, len(text), *(min(cut, len(text)) for cut in cuts), *([tag_at] if tag_at is not None else [])})
    passed = ""
    if len(places) == 1:
        passed = reader.push("", tag=tag_at == 0)
    for start, stop in itertools.pairwise(places):
        passed += reader.push(text[start:stop], tag=start == tag_at)
    rest, calls = reader.finish()
    return passed + rest, calls


@pytest.mark.parametrize(
    ("text", "tag_at"),
    [
        (CALL, None),
        ("\n " + CALL, None),
        ('<function=get_weather>{"city": "Rome"}</function>', None),
        ('[get_weather(city="Rome")]', None),
        ('{"type": "function", "name": "get_weather", "parameters": {"city": "Rome"}}', 0),
    ],
)
@given(cuts=st.lists(st.integers(0, 80), max_size=10))
def test_every_form_of_a_call_is_read_however_it_is_cut(text, tag_at, cuts):
    assert read(text, cuts, tag_at=tag_at) == ("", CALLED)


@pytest.mark.parametrize(
    "text",
    [
        "Hello",
        "",
        " ",
        "{",
        '{"name": "Bob"}',
        "[1, 2]",
        "<b>",
        "<function",
        '{"name": "rm", "parameters": {}}',
        "[x(a=1)]",
    ],
)
@given(cuts=st.lists(st.integers(0, 40), max_size=6))
def test_everything_else_stays_text(text, cuts):
    assert read(text, cuts) == (text, [])


def test_text_before_a_tag_is_text_and_goes_on_at_once():
    reader = CallReader(["clock"])
    assert reader.push("Let me see. ") == "Let me see. "
    assert reader.push('{"name": "clock", "parameters": {}}', tag=True) == ""
    assert reader.finish() == ("", [{"name": "clock", "arguments": {}}])


def test_several_calls_are_kept_unless_one_is_asked_for():
    text = '[get_weather(city="Rome"), clock()]'
    assert [call["name"] for call in read(text)[1]] == ["get_weather", "clock"]
    assert [call["name"] for call in read(text, one_call=True)[1]] == ["get_weather"]


# ---- through the official client -------------------------------------------------------------------------------------


@pytest.fixture
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def forced(text: str) -> dict:
    """Settings that make the tiny model write this text: what it would write by itself is noise."""
    return {"extra_body": {"structured_outputs": {"choice": [text]}}, "max_tokens": 200, "temperature": 0}


def test_a_call_becomes_tool_calls(client):
    choice = client.chat.completions.create(model="tiny", messages=ASK, tools=[WEATHER], **forced(CALL)).choices[0]
    assert choice.finish_reason == "tool_calls" and choice.message.content is None
    (call,) = choice.message.tool_calls
    assert call.function.name == "get_weather" and json.loads(call.function.arguments) == {"city": "Rome"}


def test_a_call_is_streamed_too_and_text_beside_tools(client):
    stream = client.chat.completions.create(model="tiny", messages=ASK, tools=[WEATHER], stream=True, **forced(CALL))
    chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == ""
    (call,) = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or ()]
    assert call.index == 0 and call.id and json.loads(call.function.arguments) == {"city": "Rome"}
    assert chunks[-1].choices[0].finish_reason == "tool_calls"
    stream = client.chat.completions.create(
        model="tiny", messages=ASK, tools=[WEATHER], stream=True, **forced("Sunny.")
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == "Sunny."


def test_without_tools_a_call_is_text(client):
    for options in ({}, {"tools": [WEATHER], "tool_choice": "none"}):
        choice = client.chat.completions.create(model="tiny", messages=ASK, **options, **forced(CALL)).choices[0]
        assert choice.finish_reason == "stop" and choice.message.content == CALL


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "get_weather"}}])
def test_a_call_can_be_required(client, choice):
    for seed in range(3):
        response = client.chat.completions.create(
            model="tiny", messages=ASK, tools=[WEATHER], tool_choice=choice, max_tokens=150, seed=seed
        )
        (call,) = response.choices[0].message.tool_calls
        assert json.loads(call.function.arguments)["city"] in ("Rome", "Oslo")


@pytest.mark.parametrize("num_tools", [1, 2])
def test_a_required_call_follows_references_within_a_functions_schema(client, num_tools):
    """As pydantic writes a model within a model: `#/$defs/...` counts from the function's own schema."""
    place = {"type": "object", "properties": {"id": {"enum": [7]}}, "required": ["id"], "additionalProperties": False}
    parameters = {
        "$defs": {"Place": place},
        "type": "object",
        "properties": {"place": {"$ref": "#/$defs/Place"}},
        "required": ["place"],
        "additionalProperties": False,
    }
    functions = [{"name": f"visit_{i}", "parameters": parameters} for i in range(num_tools)]
    response = client.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": "Go."}],
        tools=[{"type": "function", "function": function} for function in functions],
        tool_choice="required",
        max_tokens=100,
        temperature=0,
    )
    call = response.choices[0].message.tool_calls[0].function
    assert call.name in {function["name"] for function in functions}
    assert json.loads(call.arguments) == {"place": {"id": 7}}


def required(parameters, *more):
    functions = [{"name": f"f{index}", "parameters": schema} for index, schema in enumerate((parameters, *more))]
    tools = [{"type": "function", "function": function} for function in functions]
    return {"tools": tools, "tool_choice": "required", "max_tokens": 100, "temperature": 0}


def test_properties_may_have_the_names_of_keywords_and_a_schema_its_own_address(client):
    seven = {"x": {"enum": [7]}}
    named = {"properties": {"enum": {"$ref": "#/$defs/x"}}, "required": ["enum"], "additionalProperties": False}
    own = {"$id": "http://example.com/own", **named}
    for settings in (required(named | {"$defs": seven}), required(own | {"$defs": seven}, {"type": "object"})):
        settings["tool_choice"] = {"type": "function", "function": {"name": "f0"}}
        response = client.chat.completions.create(model="tiny", messages=ASK, **settings)
        assert json.loads(response.choices[0].message.tool_calls[0].function.arguments) == {"enum": 7}


def test_parameters_are_an_object_and_not_bottomless(client):
    for nested, settings in ((False, required({"type": "string"})), (True, required({}))):
        for _ in range(300 if nested else 0):
            function = settings["tools"][0]["function"]
            function["parameters"] = {"properties": {"a": function["parameters"]}}
        with pytest.raises(openai.BadRequestError, match="nested too deeply" if nested else "of type object") as error:
            client.chat.completions.create(model="tiny", messages=ASK, **settings)
        assert error.value.param == ("tools" if nested else "tools.0.function")


def test_several_calls_of_one_answer_are_taken_back(server, client):
    """What the server itself hands out comes back with the tools' answers."""
    calls = '[get_weather(city="Rome"), get_weather(city="Oslo")]'
    first = client.chat.completions.create(model="tiny", messages=ASK, tools=[WEATHER], **forced(calls)).choices[0]
    assert len(first.message.tool_calls) == 2
    answers = [{"role": "tool", "tool_call_id": call.id, "content": "17"} for call in first.message.tool_calls]
    messages = [*ASK, first.message.model_dump(exclude_none=True), *answers]
    assert client.chat.completions.create(model="tiny", messages=messages, tools=[WEATHER], max_tokens=5).choices
    body = ChatRequest.model_validate({"messages": messages})
    assert body.conversation[1]["content"] == calls.replace('"', "'")
    messages[1]["tool_calls"][0]["function"]["name"] = "get-weather"
    with pytest.raises(openai.BadRequestError, match="no Python name"):
        client.chat.completions.create(model="tiny", messages=messages, tools=[WEATHER], max_tokens=5)


@pytest.mark.parametrize("arguments", ["[]", "{", '{"a": "\\ud800"}', '{"\\ud800": 1}'])
def test_arguments_that_are_no_object_or_hold_half_a_character_are_refused(client, arguments):
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": arguments}}
    with pytest.raises(openai.BadRequestError, match="JSON object"):
        client.chat.completions.create(model="tiny", messages=[*ASK, {"role": "assistant", "tool_calls": [call]}])


def test_the_model_is_told_of_the_tools(server, client):
    with_tools = client.chat.completions.create(model="tiny", messages=ASK, tools=[WEATHER, CLOCK], max_tokens=2)
    without = client.chat.completions.create(model="tiny", messages=ASK, max_tokens=2)
    assert with_tools.usage.prompt_tokens > without.usage.prompt_tokens + 30


def test_a_tools_answer_is_part_of_the_conversation(server, client):
    first = client.chat.completions.create(model="tiny", messages=ASK, tools=[WEATHER], **forced(CALL)).choices[0]
    call = first.message.tool_calls[0]
    answer = {"role": "tool", "tool_call_id": call.id, "content": '{"sky": "clear"}'}
    messages = [*ASK, first.message, answer]
    response = client.chat.completions.create(model="tiny", messages=messages, tools=[WEATHER], max_tokens=5)
    assert response.choices[0].message.role == "assistant"


def test_the_async_client_streams_calls(server):
    async def ask():
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            stream = await client.chat.completions.create(
                model="tiny", messages=ASK, tools=[WEATHER], stream=True, **forced(CALL)
            )
            return [call async for chunk in stream for call in chunk.choices[0].delta.tool_calls or ()]

    (call,) = asyncio.run(ask())
    assert call.function.name == "get_weather"
