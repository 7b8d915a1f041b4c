"""Penalties, biases, echo, best of several, and answers whose form is given."""

from __future__ import annotations

import json
import re

import openai
import pydantic
import pytest

from herd.types import SamplingParams

MESSAGES = [{"role": "user", "content": "Who is it?"}]
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 5}, "age": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.fixture
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_penalties_and_biases_reach_the_engine(server, client):
    settings = {"max_tokens": 20, "temperature": 0, "presence_penalty": 1.5, "frequency_penalty": 0.5}
    token = server.engine.tokenizer.encode("e")[0]
    expected = server.engine.generate(MESSAGES, SamplingParams(logit_bias={token: 30.0}, **settings))
    response = client.chat.completions.create(model="tiny", messages=MESSAGES, logit_bias={str(token): 30}, **settings)
    assert response.choices[0].message.content == expected.text
    plain = client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=20, temperature=0)
    assert plain.choices[0].message.content != expected.text
    with pytest.raises(openai.BadRequestError) as error:
        client.chat.completions.create(model="tiny", messages=MESSAGES, logit_bias={"999999": 1})
    assert error.value.param == "logit_bias"


def test_an_echo_stands_before_the_answer_with_its_log_probabilities(server, client):
    settings = {"model": "tiny", "prompt": "The quick", "max_tokens": 4, "temperature": 0, "echo": True}
    response = client.completions.create(logprobs=2, **settings).choices[0]
    answer = server.engine.generate(
        "The quick", SamplingParams(max_tokens=4, temperature=0, logprobs=2, prompt_logprobs=2)
    )
    assert response.text == "The quick" + answer.text
    scores = response.logprobs
    assert len(scores.tokens) == answer.prompt_tokens + len(answer.tokens)
    assert scores.token_logprobs[0] is None and scores.top_logprobs[0] is None
    known = [entry.logprob for entry in [*answer.prompt_logprobs[1:], *answer.logprobs]]
    assert scores.token_logprobs[1:] == pytest.approx(known, abs=1e-5)
    streamed = client.completions.create(stream=True, **settings)
    assert "".join(chunk.choices[0].text for chunk in streamed) == response.text


def test_the_best_of_several_is_the_likeliest(server, client):
    settings = {"max_tokens": 6, "temperature": 1.0, "seed": 3}
    expected = server.engine.generate("The quick", SamplingParams(best_of=4, **settings)).text
    response = client.completions.create(model="tiny", prompt="The quick", best_of=4, **settings)
    assert [choice.text for choice in response.choices] == [expected]


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_fits_its_schema(client, stream):
    schema = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON, "strict": True}}
    for seed in range(3):
        response = client.chat.completions.create(
            model="tiny", messages=MESSAGES, response_format=schema, max_tokens=120, seed=seed, stream=stream
        )
        if stream:
            text = "".join(chunk.choices[0].delta.content or "" for chunk in response)
        else:
            text = response.choices[0].message.content
        person = json.loads(text)
        assert set(person) == {"name", "age"} and 0 <= person["age"] <= 99 and len(person["name"]) <= 5


def test_a_form_that_turns_out_to_have_no_end_is_refused_by_its_field(server, client):
    endless = {"type": "object", "properties": {"next": {"$ref": "#"}}, "required": ["next"]}
    schema = {"type": "json_schema", "json_schema": {"name": "endless", "schema": endless}}
    with pytest.raises(openai.BadRequestError) as error:
        client.chat.completions.create(model="tiny", messages=MESSAGES, response_format=schema, n=2)
    assert error.value.param == "response_format" and "json_schema cannot be followed to an end" in str(error.value)
    regex = {"structured_outputs": {"regex": "(a|aa|aaa){500,5000}b"}}
    with pytest.raises(openai.APIError) as error:
        list(client.completions.create(model="tiny", prompt="x", extra_body=regex, stream=True))
    assert error.value.param == "structured_outputs"
    server.wait_until_idle()


def test_the_clients_own_parser_gives_objects(client):
    class Person(pydantic.BaseModel):
        name: str = pydantic.Field(max_length=5)
        age: int = pydantic.Field(ge=0, le=99)

    response = client.chat.completions.parse(model="tiny", messages=MESSAGES, response_format=Person, max_tokens=120)
    assert isinstance(response.choices[0].message.parsed, Person)


def test_any_json_object_will_do_where_only_that_is_asked(client):
    response = client.chat.completions.create(
        model="tiny", messages=MESSAGES, response_format={"type": "json_object"}, max_tokens=200, seed=5
    )
    if response.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(response.choices[0].message.content), dict)
    assert response.choices[0].message.content.lstrip().startswith("{")


@pytest.mark.parametrize(
    ("form", "pattern"),
    [
        ({"regex": "[a-c]{3}-[0-9]{2}"}, "[a-c]{3}-[0-9]{2}"),
        ({"choice": ["yes", "no"]}, "yes|no"),
        ({"grammar": 'start: "a" "b"+ "c"'}, "ab+c"),
        ({"json": {"enum": [1, 2]}}, "1|2"),
    ],
    ids=str,
)
def test_other_forms_hold_in_chat_and_in_plain_completion(client, form, pattern):
    extra = {"extra_body": {"structured_outputs": form}, "max_tokens": 40, "logit_bias": {}}
    chat = client.chat.completions.create(model="tiny", messages=MESSAGES, **extra)
    plain = client.completions.create(model="tiny", prompt="x", **extra)
    for choice, text in ((chat.choices[0], chat.choices[0].message.content), (plain.choices[0], plain.choices[0].text)):
        assert choice.finish_reason == "length" or re.fullmatch(pattern, text), text


def test_a_form_that_cannot_be_followed_is_refused_by_name(client):
    bad = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "strnig"}}}
    with pytest.raises(openai.BadRequestError) as error:
        client.chat.completions.create(model="tiny", messages=MESSAGES, response_format=bad)
    assert error.value.param == "response_format"
    with pytest.raises(openai.BadRequestError) as error:
        client.completions.create(model="tiny", prompt="x", extra_body={"structured_outputs": {"regex": "("}})
    assert error.value.param == "structured_outputs"
