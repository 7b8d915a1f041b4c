"""A checkpoint's own chat template writes what the server tells the model, in every dialect."""

from __future__ import annotations

import httpx
import pytest

from herd.infer.engine import Engine
from herd.serve.app import create_app
from tests.infer.models import small_tokenizer, tiny_model
from tests.serve.conftest import listening

TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'system' and not loop.first %}{{ raise_exception('one system message') }}"
    "{% endif %}<{{ m.role }}>{{ m.content }}{% for c in m.tool_calls or [] %}<call>{{ c.function.name }}{% endfor %}"
    "</{{ m.role }}>\n{% endfor %}{% if tools %}<tools>{{ tools[0].function.name }}</tools>{% endif %}"
    "{{ mood }}{% if add_generation_prompt %}<assistant>{% endif %}"
)
TOOL = {"type": "function", "function": {"name": "clock", "parameters": {"type": "object", "properties": {}}}}
USER, SYSTEM = {"role": "user", "content": "hi"}, {"role": "system", "content": "Be brief."}
CALL = {"id": "1", "type": "function", "function": {"name": "clock", "arguments": "{}"}}


@pytest.fixture(scope="module")
def url():
    tokenizer = small_tokenizer().with_template(TEMPLATE)
    model = tiny_model(eos_token_id=list(tokenizer.stop_ids), max_position_embeddings=1024)
    with listening(create_app(Engine.of(model, tokenizer, max_sequences=4), name="tiny")) as found:
        yield found


def told(url, **body) -> str:
    tokens = httpx.post(f"{url}/tokenize", json=body).json()["tokens"]
    return httpx.post(f"{url}/detokenize", json={"tokens": tokens}).json()["prompt"].removeprefix("<|begin_of_text|>")


def test_the_template_is_told_of_messages_tools_and_its_variables(url):
    body = {"messages": [USER], "tools": [TOOL], "chat_template_kwargs": {"mood": "gay"}}
    assert told(url, **body) == "<user>hi</user>\n<tools>clock</tools>gay<assistant>"
    answered = httpx.post(f"{url}/v1/chat/completions", json=body | {"max_tokens": 2})
    assert answered.status_code == 200 and "x-herd-ignored" not in answered.headers


def test_tools_that_the_template_passes_over_are_named_as_ignored():
    tokenizer = small_tokenizer().with_template(TEMPLATE.partition("{% if tools %}")[0] + "<assistant>")
    model = tiny_model(eos_token_id=list(tokenizer.stop_ids), max_position_embeddings=1024)
    with listening(create_app(Engine.of(model, tokenizer, max_sequences=4), name="tiny")) as url:
        body = {"messages": [USER], "tools": [TOOL], "max_tokens": 2}
        assert httpx.post(f"{url}/v1/chat/completions", json=body).headers["x-herd-ignored"] == "tools"


def test_a_last_message_of_the_assistants_is_left_open(url):
    messages = [USER, {"role": "assistant", "content": "Once"}]
    assert told(url, messages=messages, continue_final_message=True) == "<user>hi</user>\n<assistant>Once"


def test_several_calls_and_several_system_messages_are_told(url):
    messages = [SYSTEM, SYSTEM, USER, {"role": "assistant", "content": "So:", "tool_calls": [CALL, CALL]}]
    messages.append({"role": "tool", "tool_call_id": "1", "content": "noon"})
    assert told(url, messages=messages) == (
        "<system>Be brief.\n\nBe brief.</system>\n<user>hi</user>\n<assistant>So:<call>clock<call>clock</assistant>\n"
        "<tool>noon</tool>\n<assistant>"
    )


def test_every_dialect_counts_the_same_prompt(url):
    count = len(httpx.post(f"{url}/tokenize", json={"messages": [SYSTEM, USER]}).json()["tokens"])
    chat = {"messages": [SYSTEM, USER], "max_tokens": 1}
    found = httpx.post(f"{url}/v1/chat/completions", json=chat).json()["usage"]["prompt_tokens"]
    body = {"input": "hi", "instructions": "Be brief.", "max_output_tokens": 1}
    usage = httpx.post(f"{url}/v1/responses", json=body).json()["usage"]
    body = {"messages": [USER], "system": "Be brief."}
    counted = httpx.post(f"{url}/v1/messages/count_tokens", json=body).json()["input_tokens"]
    assert count == found == usage["input_tokens"] == counted
