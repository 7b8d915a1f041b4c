"""Tools that the server runs, through every dialect's client."""

from __future__ import annotations

import asyncio
import json

import httpx
import openai
import pytest

from herd.serve.turn import Budget, Refused
from herd.toolbox.errand import Failed, function
from tests.serve.scripts import scripted

ASK = [{"role": "user", "content": "What is six by seven?"}]
CALL = '{"name": "double", "parameters": {"word": "ab"}}'


class Double:
    function = function("double", "Says a word twice.", word="the word")

    async def call(self, arguments, errand):
        if "word" not in arguments:
            raise Failed("needs `word`")
        return arguments["word"] * 2


class Slow:
    function = function("slow", "Takes its time.", word="a word")

    async def call(self, arguments, errand):
        await asyncio.sleep(30)


def client(url):
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


def test_the_openai_client_sees_what_was_run_whole_and_streamed():
    with scripted(CALL, "It is abab.", CALL, "It is abab.", own_tools=[Double()]) as (url, script):
        whole = client(url).chat.completions.create(model="tiny", messages=ASK).choices[0].message
        with client(url).chat.completions.stream(model="tiny", messages=ASK) as stream:
            streamed = stream.get_final_completion().choices[0].message
    for said in (whole, streamed):
        assert said.content == "It is abab." and not said.tool_calls
        (used,) = said.tool_trace
        assert (used["name"], json.loads(used["arguments"])) == ("double", {"word": "ab"})
        assert (used["output"], used["failed"]) == ("abab", False)
    assert "abab" in script.prompts[1] and "Says a word twice." in script.prompts[0]


def test_an_error_goes_back_to_the_model_which_tries_again():
    wrong = '{"name": "double", "parameters": {}}'
    with scripted(wrong, CALL, "abab", own_tools=[Double()]) as (url, script):
        said = client(url).chat.completions.create(model="tiny", messages=ASK).choices[0].message
    assert [used["failed"] for used in said.tool_trace] == [True, False] and said.content == "abab"
    assert "needs `word`" in script.prompts[1]


def test_calls_in_parallel_are_answered_in_their_order():
    both = '{"name": "double", "parameters": {"word": "a"}}; {"name": "double", "parameters": {"word": "b"}}'
    with scripted(both, "done", own_tools=[Double()]) as (url, script):
        said = client(url).chat.completions.create(model="tiny", messages=ASK).choices[0].message
    assert [used["output"] for used in said.tool_trace] == ["aa", "bb"] and said.content == "done"
    assert script.prompts[1].index("aa") < script.prompts[1].index("bb")


def test_without_a_call_the_answer_is_direct():
    with scripted("Forty-two.", own_tools=[Double()]) as (url, _):
        said = client(url).chat.completions.create(model="tiny", messages=ASK).choices[0].message
    assert said.content == "Forty-two." and not hasattr(said, "tool_trace")


def test_a_tool_that_takes_too_long_is_left_and_the_model_told():
    call = '{"name": "slow", "parameters": {"word": "x"}}'
    with scripted(call, "Sorry.", own_tools=[Slow()], budget=Budget(seconds=0.2)) as (url, script):
        said = client(url).chat.completions.create(model="tiny", messages=ASK).choices[0].message
    assert said.content == "Sorry." and "took longer than 0.2 s" in script.prompts[1]


def test_the_clients_own_tools_come_back_to_it_and_the_servers_are_not_run_beside():
    mixed = '{"name": "mine", "parameters": {}}; ' + CALL
    tools = [{"type": "function", "function": {"name": "mine", "parameters": {"type": "object"}}}]
    with scripted(mixed, own_tools=[Double()]) as (url, _):
        choice = client(url).chat.completions.create(model="tiny", messages=ASK, tools=tools).choices[0]
    assert choice.finish_reason == "tool_calls" and [c.function.name for c in choice.message.tool_calls] == ["mine"]
    (left,) = choice.message.tool_trace
    assert left["failed"] and "was not run" in left["output"]


@pytest.mark.parametrize("more", [{"server_tools": []}, {"tool_choice": "none"}])
def test_a_request_can_leave_them_off(more):
    with scripted(CALL, own_tools=[Double()]) as (url, script):
        said = client(url).chat.completions.create(model="tiny", messages=ASK, extra_body=more).choices[0].message
    assert said.content == CALL and "Says a word twice." not in script.prompts[0]


def test_a_tool_that_is_not_there_is_refused_by_name():
    with scripted("x", own_tools=[Double()]) as (url, _), pytest.raises(openai.BadRequestError, match="runs: double"):
        client(url).chat.completions.create(model="tiny", messages=ASK, extra_body={"server_tools": ["python"]})


def test_responses_have_an_item_for_each_call_whole_and_streamed_and_take_it_back():
    with scripted(CALL, "It is abab.", CALL, "It is abab.", "Yes.", own_tools=[Double()]) as (url, _):
        whole = client(url).responses.create(model="tiny", input="Double ab.")
        with client(url).responses.stream(model="tiny", input="Double ab.") as stream:
            kinds = [event.type for event in stream]
            streamed = stream.get_final_response()
        again = client(url).responses.create(
            model="tiny", input=[{"role": "user", "content": "Double ab."}, *whole.output, ASK[0]]
        )
    for response in (whole, streamed):
        used, said = response.output
        assert (used.type, used.name, used.output, used.status) == ("mcp_call", "double", "abab", "completed")
        assert said.content[0].text == "It is abab." and response.status == "completed"
    assert "response.mcp_call.in_progress" in kinds and "response.mcp_call.completed" in kinds
    assert again.output_text == "Yes."


def test_max_tool_calls_of_a_response_is_kept():
    with scripted(CALL, CALL, "Enough.", own_tools=[Double()]) as (url, script):
        response = client(url).responses.create(model="tiny", input="Double ab.", max_tool_calls=1)
    assert [item.status for item in response.output[:2]] == ["completed", "failed"]
    assert response.output_text == "Enough." and "the budget of 1 calls is used up" in script.prompts[2]


def test_anthropics_dialect_has_blocks_for_them_whole_and_streamed():
    body = {"model": "tiny", "max_tokens": 100, "messages": ASK}
    with scripted(CALL, "It is abab.", CALL, "It is abab.", own_tools=[Double()]) as (url, _):
        whole = httpx.post(f"{url}/v1/messages", json=body).json()
        text = httpx.post(f"{url}/v1/messages", json=body | {"stream": True}).text
        back = [*ASK, {"role": "assistant", "content": whole["content"]}, *ASK]
        assert httpx.post(f"{url}/v1/messages", json=body | {"messages": back}).status_code == 200
    use, result, said = whole["content"]
    assert (use["type"], use["input"], whole["stop_reason"]) == ("mcp_tool_use", {"word": "ab"}, "end_turn")
    assert (result["tool_use_id"], result["content"][0]["text"]) == (use["id"], "abab")
    assert said == {"type": "text", "text": "It is abab."}
    events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: ")]
    starts = [event["content_block"]["type"] for event in events if event["type"] == "content_block_start"]
    assert starts == ["mcp_tool_use", "mcp_tool_result", "text"]


class Suspicious:
    """Lets no result through that gives orders."""

    async def before(self, turn):
        return turn

    def after(self, turn):
        return Through()

    async def data(self, text, source):
        if "ignore" in text:
            raise Refused(f"{source} brought an instruction")
        return text.replace("a", "A")


class Through:
    def push(self, text):
        return text

    def finish(self):
        return ""


def test_what_tools_bring_passes_the_guards_as_data():
    order = '{"name": "double", "parameters": {"word": "ignore"}}'
    with scripted(CALL, order, "Done.", own_tools=[Double()], guards=[Suspicious()]) as (url, script):
        said = client(url).chat.completions.create(model="tiny", messages=ASK).choices[0].message
    assert [used["output"] for used in said.tool_trace] == ["AbAb", "withheld: double brought an instruction"]
    assert "ignoreignore" not in script.prompts[2]
