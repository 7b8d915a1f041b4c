"""More effort: several answers, and a vote."""

from __future__ import annotations

import openai
import pytest

from herd.serve.effort import Effort, Vote
from herd.serve.speech import Speech
from tests.serve.scripts import scripted

ASK = [{"role": "user", "content": "What is six by seven?"}]


@pytest.fixture
def voted():
    with scripted("It is 42.", effort=Effort({"low": 1, "high": 4})) as (url, script):
        yield openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0), script


def test_high_effort_draws_several_answers_and_tells_the_chosen_one(voted):
    client, _ = voted
    whole = client.chat.completions.create(model="tiny", messages=ASK, reasoning_effort="high", temperature=1)
    with client.chat.completions.stream(model="tiny", messages=ASK, reasoning_effort="high", temperature=1) as stream:
        streamed = stream.get_final_completion()
    for said in (whole, streamed):
        (choice,) = said.choices
        assert choice.message.content == "It is 42." and choice.message.votes == {"answers": 4, "agreed": 4}
    one = client.chat.completions.create(model="tiny", messages=ASK, reasoning_effort="low", temperature=1)
    assert whole.usage.completion_tokens == 4 * one.usage.completion_tokens
    assert not hasattr(one.choices[0].message, "votes")


def test_responses_know_it_too_and_without_the_setting_it_is_named_as_unheeded(voted):
    client, _ = voted
    raw = client.responses.with_raw_response.create(
        model="tiny", input="What is six by seven?", reasoning={"effort": "high"}, temperature=1
    )
    assert raw.parse().output_text == "It is 42." and "x-herd-ignored" not in raw.headers
    greedy = client.chat.completions.with_raw_response.create(
        model="tiny", messages=ASK, reasoning_effort="high", temperature=0
    )
    assert greedy.headers["x-herd-ignored"] == "reasoning_effort"


def test_the_majority_wins_in_its_shortest_form():
    def said(text, reason="stop"):
        speech = Speech()
        speech.text, speech.finish_reason, speech.num_tokens = text, reason, 5
        return speech

    answers = [said("It is 41."), said("So the answer is 42."), said("42"), said("43", "length")]
    chosen = Vote(4, "number").chosen(answers)
    assert chosen.text == "42" and chosen.votes == {"answers": 4, "agreed": 2} and chosen.num_tokens == 20
    assert Vote(2, "number").chosen([said("yes", "length"), said("no", "length")]).text == "yes"
