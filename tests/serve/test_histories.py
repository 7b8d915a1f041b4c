"""Whatever the server answered, and whatever clients make of it, can be sent back."""

from __future__ import annotations

import pytest

USER, SYSTEM = {"role": "user", "content": "hi"}, {"role": "system", "content": "Be brief."}
TOOLS = [{"type": "function", "function": {"name": "get-weather"}}]


def called(*arguments: str, content=None):
    calls = [
        {"id": f"c{n}", "type": "function", "index": n, "function": {"name": "get-weather", "arguments": text}}
        for n, text in enumerate(arguments)
    ]
    return {"role": "assistant", "content": content, "tool_calls": calls}


RESULT = {"role": "tool", "tool_call_id": "c0", "content": "17"}


@pytest.mark.parametrize(
    "messages",
    [
        [USER, called("{}", content="Let me see."), RESULT],
        [USER, called('{"a": 1}', '{"a": 2}'), RESULT, RESULT],
        [USER, called("", content=""), RESULT],
        [USER, called('{"a": '), USER],
        [{"role": "assistant", "content": "Hello!"}, USER],
        [SYSTEM, {"role": "assistant", "content": "Hello!"}, USER],
        [SYSTEM, SYSTEM, USER],
        [SYSTEM, {"role": "developer", "content": "And kind."}, USER],
        [RESULT],
        [SYSTEM, RESULT],
        [called("{}"), RESULT],
        [USER, {"role": "assistant", "content": None}, USER],
        [USER, {"role": "assistant", "content": None, "refusal": "No."}, USER],
        [USER, {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]}, USER],
        [USER, {"role": "assistant", "content": "x", "audio": None, "function_call": None, "annotations": []}, USER],
        [
            USER,
            {"role": "assistant", "content": [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "x"}]},
        ],
        [{"role": "user", "content": [{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}]}],
        [USER, called("{}"), {"role": "tool", "content": [{"type": "text", "text": "17"}], "name": "get-weather"}],
        [USER, called("{}"), {"role": "function", "name": "get-weather", "content": "17"}],
    ],
    ids=str,
)
@pytest.mark.parametrize("tools", [[], TOOLS])
def test_a_history_is_taken_back(http, messages, tools):
    body = {"messages": messages, "tools": tools, "max_tokens": 2}
    response = http.post("/v1/chat/completions", json=body)
    assert response.status_code == 200, response.text
