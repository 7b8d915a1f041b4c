"""The server through the eyes of OpenAI's own client."""

from __future__ import annotations

import asyncio

import openai
import pytest

from herd.types import SamplingParams

MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What does this function do?"}]


@pytest.fixture
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def direct(server, inputs, **params):
    """What the engine itself answers."""
    return server.engine.generate(inputs, SamplingParams(**params))


def test_a_chat_answer_is_the_engines(server, client):
    response = client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=12, seed=3, temperature=0.9)
    expected = direct(server, MESSAGES, max_tokens=12, seed=3, temperature=0.9)
    choice = response.choices[0]
    assert (choice.message.role, choice.message.content) == ("assistant", expected.text)
    assert choice.finish_reason == expected.finish_reason
    assert response.usage.prompt_tokens == expected.prompt_tokens
    assert response.usage.completion_tokens == len(expected.tokens)
    assert response.usage.total_tokens == expected.prompt_tokens + len(expected.tokens)
    assert response.object == "chat.completion" and response.id.startswith("chatcmpl-")


def test_a_stream_adds_up_to_the_whole_answer_and_ends_with_usage(server, client):
    settings = {"max_tokens": 20, "seed": 4, "temperature": 1.0}
    stream = client.chat.completions.create(
        model="tiny", messages=MESSAGES, stream=True, stream_options={"include_usage": True}, **settings
    )
    chunks = list(stream)
    expected = direct(server, MESSAGES, **settings)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == expected.text
    assert [c.choices[0].finish_reason for c in chunks[:-1]][-1] == expected.finish_reason
    assert all(c.choices[0].finish_reason is None for c in chunks[:-2])
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == len(expected.tokens)
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"} and len({c.id for c in chunks}) == 1


def test_several_answers_and_stop_strings(server, client):
    settings = {"max_tokens": 30, "seed": 5, "temperature": 1.0}
    plain = direct(server, MESSAGES, n=3, **settings)
    stop = plain[0].text[3:6]
    response = client.chat.completions.create(model="tiny", messages=MESSAGES, n=3, stop=[stop], **settings)
    assert [choice.index for choice in response.choices] == [0, 1, 2]
    for choice, answer in zip(response.choices, plain, strict=True):
        assert choice.message.content == answer.text.split(stop)[0]


def test_streamed_answers_are_told_apart_by_their_index(server, client):
    settings = {"max_tokens": 10, "seed": 6, "temperature": 1.0, "n": 3}
    texts = ["", "", ""]
    for chunk in client.chat.completions.create(model="tiny", messages=MESSAGES, stream=True, **settings):
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert texts == [answer.text for answer in direct(server, MESSAGES, **settings)]


def test_chat_log_probabilities(server, client):
    settings = {"max_tokens": 5, "seed": 1}
    response = client.chat.completions.create(
        model="tiny", messages=MESSAGES, logprobs=True, top_logprobs=2, **settings
    )
    expected = direct(server, MESSAGES, logprobs=2, **settings)
    content = response.choices[0].logprobs.content
    assert [entry.logprob for entry in content] == pytest.approx([entry.logprob for entry in expected.logprobs])
    assert [len(entry.top_logprobs) for entry in content] == [2] * len(expected.tokens)
    assert b"".join(bytes(entry.bytes) for entry in content).decode(errors="replace") == expected.text


def test_plain_completions_of_text_and_of_token_ids(server, client):
    settings = {"max_tokens": 8, "seed": 2}
    ids = server.engine.encode("The quick")
    expected = direct(server, "The quick", **settings)
    for prompt in ("The quick", ids):
        response = client.completions.create(model="tiny", prompt=prompt, **settings)
        assert response.choices[0].text == expected.text
        assert response.usage.prompt_tokens == len(ids)
    many = client.completions.create(model="tiny", prompt=["The quick", "def main("], n=2, logprobs=1, **settings)
    assert [choice.index for choice in many.choices] == [0, 1, 2, 3]
    first, second = direct(server, ["The quick", "def main("], n=2, **settings)
    assert [choice.text for choice in many.choices] == [answer.text for answer in [*first, *second]]
    assert len(many.choices[0].logprobs.token_logprobs) == len(first[0].tokens)
    streamed = client.completions.create(model="tiny", prompt="The quick", stream=True, **settings)
    assert "".join(chunk.choices[0].text for chunk in streamed) == expected.text


def test_extra_sampling_settings_reach_the_engine(server, client):
    response = client.chat.completions.create(
        model="tiny", messages=MESSAGES, max_completion_tokens=9, seed=7, extra_body={"top_k": 3, "min_p": 0.1}
    )
    expected = direct(server, MESSAGES, max_tokens=9, seed=7, top_k=3, min_p=0.1)
    assert response.choices[0].message.content == expected.text


def test_models_are_listed(server, client):
    listed = client.models.list().data
    assert [model.id for model in listed] == ["tiny"]
    assert client.models.retrieve("tiny").max_context == server.engine.max_context


def test_many_clients_at_once_get_their_own_answers(server):
    prompts = [f"The quick brown fox number {n}" for n in range(24)]
    expected = [answer.text for answer in direct(server, prompts, max_tokens=12, seed=1)]

    async def ask_all():
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            return await asyncio.gather(*(ask(client, prompt, n % 2 == 0) for n, prompt in enumerate(prompts)))

    async def ask(client, prompt, streaming):
        response = await client.completions.create(model="tiny", prompt=prompt, max_tokens=12, seed=1, stream=streaming)
        if not streaming:
            return response.choices[0].text
        return "".join([chunk.choices[0].text async for chunk in response])

    assert asyncio.run(ask_all()) == expected


def test_the_clients_error_classes_fit(client):
    with pytest.raises(openai.NotFoundError, match="gpt-4"):
        client.chat.completions.create(model="gpt-4", messages=MESSAGES)
    with pytest.raises(openai.BadRequestError) as error:
        client.chat.completions.create(model="tiny", messages=MESSAGES, presence_penalty=3)
    assert error.value.param == "presence_penalty"
