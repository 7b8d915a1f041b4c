"""More effort: several answers, and a vote."""

from __future__ import annotations

import openai
import pytest

from herd.errors import ConfigError
from herd.serve.app import create_app
from herd.serve.effort import Choice, Effort, chosen_of
from herd.serve.judges import open_judge
from herd.serve.speech import Speech
from tests.serve.conftest import chat_engine, listening
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
    chosen = Choice(4, "number").chosen(answers, ASK)
    assert chosen.text == "42" and chosen.votes == {"answers": 4, "agreed": 2} and chosen.num_tokens == 20
    assert Choice(2, "number").chosen([said("yes", "length"), said("no", "length")], ASK).text == "yes"


def longer(talks):
    """A judge that likes what says 43, and beginnings that have more lines."""
    return [5.0 * ("43" in talk[-1]["content"]) + talk[-1]["content"].count("\n") for talk in talks]


def test_a_judge_chooses_or_weighs_the_votes():
    texts = ["It is 42.", "So 42.", "It is 43."]
    scores = longer([[{"role": "assistant", "content": text}] for text in texts])
    assert chosen_of(texts, "vote", "number", None) == "So 42."
    assert chosen_of(texts, "best", "number", scores) == chosen_of(texts, "weighted", "number", scores) == "It is 43."
    assert chosen_of(texts, "weighted", "number", [0.0, 0.0, 0.5]) == "So 42."
    assert chosen_of(["yes", "no"], "weighted", "number", [0.0, 1.0]) == "no"


@pytest.mark.parametrize("how", ["best", "weighted"])
def test_the_server_asks_the_judge(how):
    with scripted("It is 42.", effort=Effort({"high": 3}, how=how, judge=longer)) as (url, _):
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        said = client.chat.completions.create(model="tiny", messages=ASK, reasoning_effort="high", temperature=1)
    assert said.choices[0].message.votes["answers"] == 3


def test_a_tree_grows_within_its_budget_and_always_ends_with_an_answer():
    effort = Effort({"high": 4}, how="tree", judge=longer)
    engine = chat_engine(max_position_embeddings=2048)
    with listening(create_app(engine, name="tiny", effort=effort)) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        asked = {"model": "tiny", "messages": ASK, "reasoning_effort": "high", "temperature": 1, "max_tokens": 30}
        whole = client.chat.completions.create(**asked)
        streamed = "".join(
            event.choices[0].delta.content or "" for event in client.chat.completions.create(**asked, stream=True)
        )
        tools = [{"type": "function", "function": {"name": "mine"}}]
        other = client.chat.completions.with_raw_response.create(**asked, tools=tools)
    assert whole.choices[0].message.content and streamed
    assert whole.usage.completion_tokens <= 4 * 30 and other.headers["x-herd-ignored"] == "reasoning_effort"


def test_a_judge_is_a_function_of_a_file_and_a_file_without_one_is_refused(tmp_path):
    (tmp_path / "judge.py").write_text("def score(messages, answer):\n    return len(answer) - len(messages)\n")
    assert open_judge(tmp_path / "judge.py")([[*ASK, {"role": "assistant", "content": "four"}]]) == [3.0]
    (tmp_path / "none.py").write_text("x = 1\n")
    for name, words in (("none.py", "defines no"), ("gone.py", "there is no file")):
        with pytest.raises(ConfigError, match=words):
            open_judge(tmp_path / name)
