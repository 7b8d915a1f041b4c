"""A turn: guards before and after, tools of the server's own between; streams pass through them."""

from __future__ import annotations

import json
from dataclasses import replace

import httpx
import pytest

from herd.serve.app import create_app
from herd.serve.turn import Refused
from tests.serve.conftest import chat_engine, listening

ASK = [{"role": "user", "content": "What time is it?"}]


class Censor:
    """Takes the letter e out of answers, a word late; refuses questions about bombs and answers that say so."""

    async def before(self, turn):
        if "bomb" in str(turn.inputs):
            raise Refused("I will not.")
        return replace(turn, max_tokens=min(turn.max_tokens or 60, 60))

    def after(self, turn):
        return Held()


class Held:
    def __init__(self):
        self.held = ""

    def push(self, text):
        text, self.held = self.held + text, ""
        if "forbidden" in text:
            raise Refused("I stop here.")
        cut = text.rfind(" ") + 1
        self.held = text[cut:]
        return text[:cut].replace("e", "")

    def finish(self):
        return self.held.replace("e", "")


class Clock:
    """A tool that the server runs."""

    def __init__(self):
        self.function = {"name": "clock", "description": "The time.", "parameters": {"type": "object"}}
        self.asked = []

    async def call(self, arguments, errand):
        self.asked.append(arguments)
        return "noon"


def forced(text, **more):
    return {"messages": ASK, "structured_outputs": {"choice": [text]}, "max_tokens": 60, "temperature": 0} | more


def said(url, body):
    """What an answer says and how it ends, whole and streamed."""
    whole = httpx.post(f"{url}/v1/chat/completions", json=body).json()["choices"][0]
    text = httpx.post(f"{url}/v1/chat/completions", json=body | {"stream": True}).text
    chunks = [json.loads(line[6:])["choices"][0] for line in text.split("\n\n") if line.startswith("data: {")]
    streamed = "".join(chunk["delta"].get("content") or "" for chunk in chunks)
    refusal = "".join(chunk["delta"].get("refusal") or "" for chunk in chunks)
    assert text.endswith("data: [DONE]\n\n")
    assert (streamed, chunks[-1]["finish_reason"]) == (whole["message"]["content"], whole["finish_reason"])
    assert refusal == (whole["message"]["refusal"] or "")
    return whole["message"]["content"], whole["message"]["refusal"], whole["finish_reason"]


def test_guards_see_every_turn_and_streams_pass_through_them():
    engine = chat_engine(max_position_embeddings=512)
    with listening(create_app(engine, name="tiny", guards=[Censor()])) as url:
        assert said(url, forced("we see the sea, yes")) == ("w s th sa, ys", None, "stop")
        refused = forced("x", messages=[{"role": "user", "content": "a bomb"}])
        assert said(url, refused) == ("", "I will not.", "content_filter")
        assert said(url, forced("well, that is forbidden to say")) == (
            "wll, that is ",
            "I stop here.",
            "content_filter",
        )
        plain = httpx.post(f"{url}/v1/completions", json=forced("the end", prompt="x") | {"messages": None})
        assert plain.status_code == 400
    assert not engine.has_work


@pytest.mark.parametrize("stream", [False, True])
def test_a_tool_of_the_server_is_run_and_the_answer_goes_on(stream):
    engine, clock = chat_engine(max_position_embeddings=2048), Clock()
    with listening(create_app(engine, name="tiny", own_tools=[clock])) as url:
        call = '{"name": "clock", "parameters": {"zone": 1}}'
        rounds = iter([call, "It is noon."])
        make = engine.request

        def request(prompt, params, *more, **options):  # each round of the tiny model says what a script says
            words = next(rounds)
            prompts.append(engine.tokenizer.decode(prompt))
            return make(prompt, replace(params, choice=(words,)), *more, **options)

        prompts: list[str] = []
        engine.request = request
        body = {"messages": ASK, "max_tokens": 100, "temperature": 0, "stream": stream}
        response = httpx.post(f"{url}/v1/chat/completions", json=body)
        if stream:
            chunks = [json.loads(line[6:])["choices"][0] for line in response.text.split("\n\n") if "{" in line]
            text, finish = "".join(c["delta"].get("content") or "" for c in chunks), chunks[-1]["finish_reason"]
            assert not any(chunk["delta"].get("tool_calls") for chunk in chunks)
        else:
            choice = response.json()["choices"][0]
            text, finish = choice["message"]["content"], choice["finish_reason"]
    assert (text, finish) == ("It is noon.", "stop") and clock.asked == [{"zone": 1}]
    assert "The time." in prompts[0] and '"zone": 1' in prompts[1] and "noon" in prompts[1]


def test_a_tool_that_is_called_without_end_is_called_a_few_times():
    engine, clock = chat_engine(max_position_embeddings=8192), Clock()
    with listening(create_app(engine, name="tiny", own_tools=[clock])) as url:
        body = forced('{"name": "clock", "parameters": {}}', max_tokens=2000)
        choice = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60).json()["choices"][0]
    assert choice["finish_reason"] == "length" and choice["message"]["content"] == "" and len(clock.asked) == 8
    last = choice["message"]["tool_trace"][-1]
    assert last["failed"] and "the budget of 8 calls is used up" in last["output"]


def test_a_client_that_offers_a_tool_of_the_same_name_has_the_call_itself():
    engine, clock = chat_engine(max_position_embeddings=2048), Clock()
    with listening(create_app(engine, name="tiny", own_tools=[clock])) as url:
        body = forced('{"name": "clock", "parameters": {}}')
        body["tools"] = [{"type": "function", "function": {"name": "clock", "description": "Mine."}}]
        choice = httpx.post(f"{url}/v1/chat/completions", json=body).json()["choices"][0]
    assert choice["finish_reason"] == "tool_calls" and not clock.asked
