"""Messages of other makers' interfaces (Anthropic, Google, Amazon, Cohere, glaive) as OpenAI's: text, calls, answers.

Such a message is a list of parts: texts, thoughts, calls of tools, what tools answered. What is neither (an image, a
file) stays in the list, and is refused by whoever reads it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from herd.errors import DataError

_CALLS = ("tool_use", "toolUse", "functionCall", "function_call")
_ANSWERS = ("tool_result", "toolResult", "functionResponse", "function_response")
_ARGUMENTS = ("arguments", "input", "args", "parameters")
_THOUGHTS = ("thinking", "reasoning")
_OWN = (*_CALLS, *_ANSWERS, *_THOUGHTS)
_GLAIVE = re.compile(r"(?:^|\n)\s*(USER|ASSISTANT|FUNCTION RESPONSE): ?")
_GLAIVE_CALL = re.compile(r"<functioncall>\s*\{\s*\"name\":\s*\"([^\"]+)\"\s*,\s*\"arguments\":\s*(.*)\}\s*", re.DOTALL)


def plain_turns(turn: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A message as one, or several where it holds what tools answered; what is in OpenAI's form already as it is."""
    parts = turn.get("parts", turn.get("content"))
    if "tool_results" in turn and not isinstance(parts, list):  # Cohere's
        results = turn["tool_results"] if isinstance(turn["tool_results"], list) else [turn["tool_results"]]
        return [{"role": "tool", "content": _answer(one.get("outputs", one))} for one in results]
    if "parts" in turn and not isinstance(parts, list):
        parts = [parts]
    if not isinstance(parts, list) or ("parts" not in turn and not any(_kind(part) in _OWN for part in parts)):
        return [dict(turn)]
    return _sorted_out(turn, parts)


def _kind(part: Any) -> str:
    if not isinstance(part, Mapping):
        return "text"
    if part.get("thought") is True:
        return "thinking"
    named = next((name for name in (*_CALLS, *_ANSWERS, "reasoningContent") if part.get(name) is not None), None)
    kind = part.get("type") if isinstance(part.get("type"), str) else None
    return {"reasoningContent": "thinking"}.get(named or "", named or kind or "text")


def _sorted_out(turn: Mapping[str, Any], parts: Sequence[Any]) -> list[dict[str, Any]]:
    texts: list[Any] = []
    calls: list[Any] = []
    answers: list[dict[str, Any]] = []
    thoughts: list[str] = []
    for part in parts:
        kind = _kind(part)
        inner = part.get(kind, part) if isinstance(part, Mapping) and isinstance(part.get(kind), Mapping) else part
        if kind in _CALLS:
            calls.append(_call(inner))
        elif kind in _ANSWERS:
            answers.append(_told(inner))
        elif kind in _THOUGHTS:
            thoughts.append(_thought(part))
        else:
            texts.append(part)
    rest = {key: value for key, value in turn.items() if key not in ("parts", "content")}
    message: dict[str, Any] = rest | {"content": texts}
    if calls:
        message["tool_calls"] = [*(turn.get("tool_calls") or []), *calls]
    if any(thoughts):
        message["reasoning_content"] = "\n".join(filter(None, thoughts))
    return [*answers, *([message] if texts or calls or not answers else [])]


def _call(part: Mapping[str, Any]) -> dict[str, Any]:
    arguments: Any = next((part[name] for name in _ARGUMENTS if part.get(name) is not None), {})
    call: dict[str, Any] = {"type": "function", "function": {"name": part.get("name"), "arguments": arguments}}
    known = part.get("id") or part.get("toolUseId")
    return {"id": known} | call if known else call


def _told(part: Mapping[str, Any]) -> dict[str, Any]:
    value = part.get("content", part.get("response"))
    known = part.get("tool_use_id") or part.get("toolUseId") or part.get("id")
    named = {"tool_call_id": known} if known else {}
    return {"role": "tool", "content": _answer(value)} | named | ({"name": part["name"]} if part.get("name") else {})


def _answer(value: Any) -> Any:
    """What a tool answered: its text, or its data as JSON; parts that are neither as they are."""
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, list) and any(
        isinstance(one, Mapping) and {"type", "text", "json"} & one.keys() for one in value
    ):
        return [json.dumps(one["json"], ensure_ascii=False) if one.get("json") is not None else one for one in value]
    return json.dumps(value, ensure_ascii=False)


def _thought(part: Mapping[str, Any]) -> str:
    """The text of a thought; empty where it is not given in clear."""
    inner = part.get("reasoningContent", part)
    inner = inner.get("reasoningText", inner) if isinstance(inner, Mapping) else {}
    found = next((inner[name] for name in ("thinking", "text", "reasoning") if isinstance(inner.get(name), str)), "")
    return str(found)


def plain_tools(tools: Sequence[Any]) -> list[Any]:
    """Tools in OpenAI's form: Google's lists of declarations, Anthropic's and others' bare schemas among them."""
    found: list[Any] = []
    for tool in tools:
        named = ("functionDeclarations", "function_declarations")
        several = next((tool[name] for name in named if isinstance(tool, Mapping) and tool.get(name)), [tool])
        found += [_tool(one.get("toolSpec", one)) if isinstance(one, Mapping) else one for one in several]
    return found


def _tool(tool: Mapping[str, Any]) -> Any:
    schema = next((tool[name] for name in ("input_schema", "inputSchema") if isinstance(tool.get(name), Mapping)), None)
    if "function" in tool or not isinstance(tool.get("name"), str) or (schema is None and tool.get("type")):
        return tool if "function" in tool or tool.get("type") != "function" else _wrapped(tool, {"type"})
    given = {} if schema is None else {"parameters": schema.get("json", schema)}
    return _wrapped(tool, {"input_schema", "inputSchema", "type"}, given)


def _wrapped(tool: Mapping[str, Any], without: set[str], more: Mapping[str, Any] | None = None) -> dict[str, Any]:
    inner = {key: value for key, value in tool.items() if key not in without}
    return {"type": "function", "function": inner | dict(more or {})}


def plain_text(value: Any, name: str) -> str:
    """A text that may stand in parts: a system prompt of Anthropic's (blocks) or Google's (`parts`).

    Raises:
        DataError: a part is no text.
    """
    if isinstance(value, Mapping):
        value = value.get("parts", value.get("text", value.get("content")))
    parts = value if isinstance(value, list) else [value]
    texts: list[Any] = [part.get("text") if isinstance(part, Mapping) else part for part in parts if part is not None]
    if not all(isinstance(text, str) for text in texts):
        raise DataError(f"`{name}` holds a part that is no text")
    return "\n".join(texts)


def glaive_turns(text: str) -> list[dict[str, Any]]:
    """The messages of glaive's `chat`: `USER:`, `ASSISTANT:` (perhaps `<functioncall>`), `FUNCTION RESPONSE:`.

    Raises:
        DataError: it is no such text, or a call in it is damaged.
    """
    marks = list(_GLAIVE.finditer(text))
    if not marks or text[: marks[0].start()].strip():
        raise DataError("`chat` is no text of USER:, ASSISTANT: and FUNCTION RESPONSE:")
    ends = [mark.start() for mark in marks[1:]] + [len(text)]
    roles = {"USER": "user", "ASSISTANT": "assistant", "FUNCTION RESPONSE": "tool"}
    turns = []
    for mark, end in zip(marks, ends, strict=True):
        said = text[mark.end() : end].replace("<|endoftext|>", "").strip()
        turn: dict[str, Any] = {"role": roles[mark[1]], "content": said}
        before, called, _ = said.partition("<functioncall>")
        if called:
            turn |= {"content": before.strip(), "tool_calls": [_glaive_call(said[len(before) :])]}
        turns.append(turn)
    return turns


def _glaive_call(text: str) -> dict[str, Any]:
    """`<functioncall> {"name": "f", "arguments": '{"a": 1}'}`: JSON with its arguments in single quotes."""
    hit = _GLAIVE_CALL.fullmatch(text)
    quoted = hit[2].strip() if hit else ""
    if quoted[:1] == quoted[-1:] == "'":
        quoted = quoted[1:-1].replace("\\'", "'")
    try:
        arguments = json.loads(quoted)
    except ValueError as error:
        raise DataError(f"a <functioncall> is no JSON ({error})") from None
    assert hit is not None
    return {"type": "function", "function": {"name": hit[1], "arguments": arguments}}
