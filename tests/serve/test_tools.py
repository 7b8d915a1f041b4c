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
from herd.serve.prompts import conversation_prompt
from herd.serve.tools import Begun, CallReader, Ended, Grown, Words

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


def read(text: str, cuts: list[int] = (), *, tag_at: int | None = None, cut: bool = False, **options):
    """What a reader makes of a text that comes in pieces: the text, and (name, arguments, whether it is whole)."""
    reader = CallReader(["get_weather", "clock"], **options)
    places = sorted({0, len(text), *(min(cut, len(text)) for cut in cuts), *([tag_at] if tag_at is not None else [])})
    parts = reader.push("", tag=tag_at == 0) if len(places) == 1 else []
    for start, stop in itertools.pairwise(places):
        parts += reader.push(text[start:stop], tag=start == tag_at)
    parts += reader.finish(cut=cut)
    calls = [part.call for part in parts if isinstance(part, Begun)]
    for call in calls:
        assert call.arguments == "".join(p.text for p in parts if isinstance(p, Grown) and p.call is call)
        assert sum(isinstance(part, Ended) and part.call is call for part in parts) == 1
    words = "".join(part.text for part in parts if isinstance(part, Words))
    return words, [(call.name, call.arguments, call.is_whole) for call in calls]


WEATHER_CALL, CLOCK_CALL = ("get_weather", '{"city": "Rome"}', True), ("clock", "{}", True)
NULL = '{"name": "clock", "arguments": null}'


@pytest.mark.parametrize("eager", [False, True])
@pytest.mark.parametrize(
    ("text", "words", "calls"),
    [
        (CALL, "", [WEATHER_CALL]),
        ("\n " + CALL, "", [WEATHER_CALL]),
        ('<function=get_weather>{"city": "Rome"}</function>', "", [WEATHER_CALL]),
        ('[get_weather(city="Rome")]', "", [WEATHER_CALL]),
        ("```python\n[clock()]\n```", "", [CLOCK_CALL]),
        ('{"arguments": {"city": "Rome"}, "name": "get_weather"}', "", [WEATHER_CALL]),
        ('{"type": "function", "function": {"name": "clock", "parameters": {}}}', "", [CLOCK_CALL]),
        ('{"name": "clock", "arguments": "{}"}', "", [CLOCK_CALL]),
        (NULL, "", [CLOCK_CALL]),
        (f"{CALL}; {NULL}", "", [WEATHER_CALL, CLOCK_CALL]),
        (f"[{CALL}, {NULL}]", "", [WEATHER_CALL, CLOCK_CALL]),
        (f"{CALL}\n{NULL}\n", "", [WEATHER_CALL, CLOCK_CALL]),
        (f"Let me see. {CALL}", "Let me see. ", [WEATHER_CALL]),
        (f"{CALL}\n\nDone.", "Done.", [WEATHER_CALL]),
        (f"```json\n{CALL}\n```", "", [WEATHER_CALL]),
        (f"<tool_call>\n{CALL}\n</tool_call>\n<tool_call>\n{NULL}\n</tool_call>", "", [WEATHER_CALL, CLOCK_CALL]),
        (f"I'll look.\n<tool_call>{CALL}</tool_call>", "I'll look.\n", [WEATHER_CALL]),
        (f'{{"a": {CALL}}} {NULL}', f'{{"a": {CALL}}} ', [CLOCK_CALL]),
    ],
)
@given(cuts=st.lists(st.integers(0, 150), max_size=10))
def test_every_form_of_a_call_is_read_however_it_is_cut(text, words, calls, eager, cuts):
    assert read(text, cuts, eager=eager) == (words, calls)


@pytest.mark.parametrize("eager", [False, True])
@pytest.mark.parametrize(
    "text",
    [
        *("Hello", "", " ", "{", "{}", '{"name": "Bob"}', "[1, 2]", "<b>", "<function", "<tool_call>", "```", "a < b;"),
        *('{"name": "rm", "parameters": {}}', "[x(a=1)]", "see [here](there)", '```json\n{"a": 1}\n```', "`x` {y}"),
        *('{"name": "clock", "parameters": []}', '{"name": "clock", "parameters"', "if (a) { b(); }"),
    ],
)
@given(cuts=st.lists(st.integers(0, 40), max_size=6))
def test_everything_else_stays_text(text, eager, cuts):
    assert read(text, cuts, eager=eager) == (text, [])


def test_a_call_is_handed_on_as_it_is_written():
    reader = CallReader(["clock"], eager=True)
    assert reader.push('{"name": "clock", "para') == []
    begun, grown = reader.push('meters": {"a": "b')
    assert begun.call.name == "clock" and grown.text == '{"a": "b'
    assert [part.text for part in reader.push("cd\\")] == ["cd"]
    assert [part.text for part in reader.push('"e"}')] == ['\\"e"}']
    (ended,) = reader.push("}")
    assert ended.call.is_whole and reader.finish() == []


def test_a_broken_call_is_text_but_in_a_stream_which_has_begun_it():
    text = '{"name": "clock", "parameters": {"a": NaN}}'
    assert read(text) == (text, [])
    assert read(text, eager=True) == ("", [("clock", '{"a": NaN}', False)])


@pytest.mark.parametrize("eager", [False, True])
def test_a_call_that_is_cut_is_a_call_and_not_whole(eager):
    assert read('{"name": "clock", "parameters": {"a": 1', cut=True, eager=eager) == ("", [("clock", '{"a": 1', False)])
    assert read('{"name": "clo', cut=True, eager=eager, must_call=True) == ("", [])


def test_text_before_a_tag_is_text_and_goes_on_at_once():
    reader = CallReader(["clock"])
    assert reader.push("Let me see. ") == [Words("Let me see. ")]
    assert reader.push('{"name": "clock", "parameters": {}', tag=True) == []
    call = reader.push("}")[0].call
    assert (call.name, call.arguments) == ("clock", "{}")
    assert read('x{"type": "function", "name": "clock", "parameters": {}}', tag_at=1) == ("x", [CLOCK_CALL])
    assert read('brave.call(query="x")', tag_at=0) == ('brave.call(query="x")', [])


def test_several_calls_are_kept_unless_one_is_asked_for():
    for text in ('[get_weather(city="Rome"), clock()]', f"{CALL}; {NULL}"):
        assert read(text)[1] == [WEATHER_CALL, CLOCK_CALL]
        assert read(text, one_call=True)[1] == [WEATHER_CALL]


def test_calls_are_told_by_their_type_where_a_text_may_look_like_one():
    assert read(CALL, typed=True) == (CALL, [])
    assert read('{"type": "function", ' + CALL[1:], typed=True) == ("", [WEATHER_CALL])


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
    first, *more = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or ()]
    assert first.index == 0 and first.id and first.function.name == "get_weather" and len(more) > 1
    assert json.loads("".join(call.function.arguments for call in (first, *more))) == {"city": "Rome"}
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
    engine, conversation = server.engine, ChatRequest.model_validate({"messages": messages}).conversation
    assert calls.replace('"', "'") in engine.tokenizer.decode(conversation_prompt(engine, conversation))
    messages[1]["tool_calls"][0]["function"]["name"] = "get-weather"
    conversation = ChatRequest.model_validate({"messages": messages}).conversation
    told = '{"name": "get-weather", "parameters": {"city": "Rome"}}; {"name": "get_weather"'
    assert told in engine.tokenizer.decode(conversation_prompt(engine, conversation))


@pytest.mark.parametrize("arguments", ["", "{}", "[]", "{", '{"a": "\\ud800"}', '{"\\ud800": 1}', '{"a": NaN}'])
def test_arguments_are_taken_back_whatever_a_model_made_of_them(client, arguments):
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": arguments}}
    messages = [*ASK, {"role": "assistant", "content": "So:", "tool_calls": [call]}, {"role": "tool", "content": "1"}]
    assert client.chat.completions.create(model="tiny", messages=messages, tools=[CLOCK], max_tokens=2).choices


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

    assert asyncio.run(ask())[0].function.name == "get_weather"


def answered(client, **settings):
    return client.chat.completions.create(model="tiny", messages=ASK, max_tokens=150, **settings).choices[0]


def test_with_tools_and_a_form_the_answer_is_a_call_or_a_text_in_the_form(client):
    schema = {"type": "object", "properties": {"sky": {"enum": ["clear"]}}, "required": ["sky"]}
    form = {"type": "json_schema", "json_schema": {"name": "sky", "schema": schema}}
    seen = set()
    for seed in range(12):
        choice = answered(client, tools=[WEATHER], response_format=form, seed=seed, temperature=2.0)
        if choice.finish_reason == "tool_calls":
            assert json.loads(choice.message.tool_calls[0].function.arguments)["city"] in ("Rome", "Oslo")
        else:
            assert json.loads(choice.message.content) == {"sky": "clear"}
        seen.add(choice.finish_reason)
    assert seen == {"stop", "tool_calls"}
    required = answered(client, tools=[WEATHER], response_format=form, tool_choice="required")
    assert required.message.tool_calls


def test_a_text_in_a_form_that_looks_like_a_call_is_no_call(client):
    properties = {"name": {"enum": ["get_weather"]}, "parameters": {"enum": [{"city": "Rome"}]}}
    schema = {"type": "object", "properties": properties, "required": ["name", "parameters"]}
    form = {"type": "json_schema", "json_schema": {"name": "looks", "schema": schema}}
    assert json.loads(answered(client, response_format=form).message.content)["name"] == "get_weather"
    for seed in range(6):
        choice = answered(client, tools=[WEATHER], response_format=form, seed=seed, temperature=2.0)
        if choice.finish_reason == "stop":
            assert json.loads(choice.message.content) == json.loads(CALL) and not choice.message.tool_calls


def test_a_schema_that_is_silent_on_further_properties_is_kept_to_the_listed_ones(client):
    schema = {"type": "object", "properties": {"a": {"type": "integer", "maximum": 9, "minimum": 0}}}
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    for seed in range(4):
        choice = answered(client, response_format=form, seed=seed, temperature=2.0)
        assert choice.finish_reason == "stop" and set(json.loads(choice.message.content)) <= {"a"}


@pytest.mark.parametrize("stream", [False, True])
def test_a_required_call_that_is_cut_is_told_as_such(client, stream):
    settings = {"model": "tiny", "messages": ASK, "tools": [WEATHER], "tool_choice": "required", "stream": stream}
    for length in (4, 40):
        found = client.chat.completions.create(max_tokens=length, temperature=0, **settings)
        choice = list(found)[-1].choices[0] if stream else found.choices[0]
        assert choice.finish_reason == "length"
        if not stream:
            assert not choice.message.content
