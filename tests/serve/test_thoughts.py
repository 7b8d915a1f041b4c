"""What a model thinks is told apart from its answer, in every dialect, and never takes all the tokens."""

from __future__ import annotations

import copy
import json

import httpx
import openai
import pytest

from herd.infer.engine import Engine
from herd.serve.app import create_app
from herd.serve.thoughts import ThoughtReader
from tests.infer.models import small_tokenizer, tiny_model
from tests.serve.conftest import listening
from tests.serve.scripts import scripted

ASK = [{"role": "user", "content": "What is six by seven?"}]
SAID = "<think>\nSix sevens are 42.\n</think>\n\nIt is 42."


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
@pytest.mark.parametrize(
    ("text", "opened", "thought", "answer"),
    [
        (SAID, False, "\nSix sevens are 42.\n", "It is 42."),
        ("so it is</think>\nyes", True, "so it is", "yes"),
        ("<think>never ends </thi", False, "never ends </thi", ""),
        ("<thing> is no thought", False, "", "<thing> is no thought"),
        ("no <think>thought</think>", False, "", "no <think>thought</think>"),
        ("<", False, "", "<"),
        ("<think></think>yes", False, "", "yes"),
    ],
)
def test_a_text_is_sorted_however_it_is_cut(text, opened, thought, answer, size):
    reader = ThoughtReader(opened=opened)
    pairs = [reader.push(text[at : at + size]) for at in range(0, len(text), size)] + [reader.finish()]
    assert ("".join(one for one, _ in pairs), "".join(other for _, other in pairs)) == (thought, answer)


def test_every_dialect_tells_thoughts_apart_whole_and_streamed():
    with scripted(SAID) as (url, _):
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        whole = client.chat.completions.create(model="tiny", messages=ASK).choices[0].message
        deltas = [e.choices[0].delta for e in client.chat.completions.create(model="tiny", messages=ASK, stream=True)]
        response = client.responses.create(model="tiny", input=ASK)
        with client.responses.stream(model="tiny", input=ASK) as stream:
            kinds = [event.type for event in stream]
            streamed = stream.get_final_response()
        back = client.responses.create(model="tiny", input=[ASK[0], *response.output, ASK[0]])
        body = {"model": "tiny", "max_tokens": 100, "messages": ASK}
        message = httpx.post(f"{url}/v1/messages", json=body).json()
        text = httpx.post(f"{url}/v1/messages", json=body | {"stream": True}).text
    assert (whole.content, whole.reasoning_content.strip()) == ("It is 42.", "Six sevens are 42.")
    assert "".join(delta.content or "" for delta in deltas) == "It is 42."
    assert "".join(getattr(d, "reasoning_content", "") for d in deltas).strip() == "Six sevens are 42."
    for one in (response, streamed, back):
        thought, said = one.output
        assert (thought.type, thought.content[0].text.strip()) == ("reasoning", "Six sevens are 42.")
        assert said.content[0].text == "It is 42."
    assert "response.reasoning_text.delta" in kinds and "response.reasoning_text.done" in kinds
    assert [block["type"] for block in message["content"]] == ["thinking", "text"]
    events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: ")]
    starts = [event["content_block"]["type"] for event in events if event["type"] == "content_block_start"]
    assert starts == ["thinking", "text"]


def test_a_thought_that_takes_too_long_is_closed_so_that_an_answer_follows():
    tokenizer = copy.copy(small_tokenizer())  # others have theirs as it is
    tokenizer.chat_template = (
        "{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content }}<|eot_id|>"
        "{% endfor %}<|start_header_id|>assistant<|end_header_id|>\n\n<think>{# ends with </think> #}"
    )
    model = tiny_model(eos_token_id=list(tokenizer.stop_ids), max_position_embeddings=2048)
    with listening(create_app(Engine.of(model, tokenizer, max_sequences=4), name="tiny")) as url:
        body = {"messages": ASK, "max_tokens": 40, "temperature": 0, "logit_bias": {}, "ignore_eos": True}
        found = httpx.post(f"{url}/v1/chat/completions", json=body).json()
    message, usage = found["choices"][0]["message"], found["usage"]
    assert message["reasoning_content"] and message["content"]
    assert usage["completion_tokens"] == 40 and found["choices"][0]["finish_reason"] == "length"
