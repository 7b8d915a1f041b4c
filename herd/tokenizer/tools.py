"""The tools offered in a conversation, and their announcement in the prompt.

A tool is given as OpenAI's schema (`{"type": "function", "function": {"name", "description", "parameters"}}`), as only
the inner object, or, for Llama 3.1's built-in tools, as its name or `{"type": name}`.

    built-in tools   `Environment: ipython` and `Tools: brave_search, wolfram_alpha` begin the system message
    `json`, `bare`   schemas before the text of the first user message (with `json`, `Environment: ipython` as well)
    `tag`, `python`  schemas in the system message, before its own text

Source: Meta's prompt format notes for Llama 3.1 (`json`, `tag`) and 3.2 (`python`); `bare` is the wording of Hugging
Face's Llama 3.1 template.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from herd.errors import DataError
from herd.tokenizer.toolcalls import CODE_INTERPRETER, SEARCH_TOOLS, Format
from herd.types import Message

BUILTIN_TOOLS = (CODE_INTERPRETER, *SEARCH_TOOLS)
ENVIRONMENT = "Environment: ipython"

_JSON_INTRODUCTION = """\
Answer the user's question by making use of the following functions if needed.
If none of the function can be used, please say so.
Here is a list of functions in JSON format:"""
_JSON_CLOSING = "Return function calls in JSON format."
_BARE_INTRODUCTION = (
    "Given the following functions, please respond with a JSON for a function call with its proper arguments that best "
    'answers the given prompt.\n\nRespond in the format {"name": function name, "parameters": dictionary of argument '
    "name and its value}.Do not use variables."
)
_TAG_INTRODUCTION = "You have access to the following functions:"
_TAG_CLOSING = """\
Think very carefully before calling functions.
If you choose to call a function ONLY reply in the following format with no prefix or suffix:

<function=example_function_name>{"example_name": "example_value"}</function>

Reminder:
- Function calls MUST follow the specified format, start with <function= and end with </function>
- Required parameters MUST be specified
- Only call one function at a time
- Put the entire function call reply on one line"""
_PYTHON_INTRODUCTION = """\
You are an expert in composing functions. You are given a question and a set of possible functions.
Based on the question, you will need to make one or more function/tool calls to achieve the purpose.
If none of the function can be used, point it out. If the given question lacks the parameters required by the function,
also point it out. You should only return the function call in tools call sections.

If you decide to invoke any of the function(s), you MUST put it in the format of \
[func_name1(params_name1=params_value1, params_name2=params_value2...), func_name2(params)]
You SHOULD NOT include any other text in the response.

Here is a list of functions in JSON format that you can invoke."""


class Offered(NamedTuple):
    """The tools of a conversation: names of built-in ones, schemas (OpenAI's form) of the others."""

    builtin: tuple[str, ...] = ()
    custom: tuple[Mapping[str, Any], ...] = ()


def checked(tools: Sequence[Any] | None) -> Offered:
    """Check the tools, and separate built-in from custom ones.

    Raises:
        DataError: one is not a tool, has no name, or its parameters are not the JSON schema of an object.
    """
    if tools is not None and (isinstance(tools, str | Mapping) or not isinstance(tools, Iterable)):
        raise DataError(f"tools is {type(tools).__name__}, expected a list of tools")
    builtin: list[str] = []
    custom: list[Mapping[str, Any]] = []
    for number, tool in enumerate(tools or ()):
        name = tool.get("type") if isinstance(tool, Mapping) and "function" not in tool else tool
        if isinstance(name, str) and name in BUILTIN_TOOLS:
            builtin.append(name)
        else:
            custom.append(_checked_schema(tool, f"tool {number}"))
    names = [*builtin, *(tool["function"]["name"] for tool in custom)]
    if double := next((name for name in names if names.count(name) > 1), None):
        raise DataError(f"tool {double!r} is offered twice")
    return Offered(tuple(builtin), tuple(custom))


def _checked_schema(tool: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(tool, Mapping):
        raise DataError(
            f"{where} is {tool!r}, expected one of {', '.join(BUILTIN_TOOLS)} or an object with `type` and `function`"
        )
    function = tool.get("function", tool)
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str) or not function["name"]:
        raise DataError(f"{where} has no name: expected {{'type': 'function', 'function': {{'name': ...}}}}")
    where = f"{where} ({function['name']})"
    parameters = function.get("parameters") or {}
    if not isinstance(parameters, Mapping) or not isinstance(parameters.get("properties", {}), Mapping):
        raise DataError(f"{where}: `parameters` must be the JSON schema of an object, found {parameters!r}")
    required = parameters.get("required", [])
    if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
        raise DataError(f"{where}: `required` must be a list of names, found {required!r}")
    if not isinstance(function.get("description", ""), str):
        raise DataError(f"{where}: `description` must be text")
    tool = tool if "function" in tool else {"type": "function", "function": dict(function)}
    try:
        json.dumps(tool, allow_nan=False)
    except (ValueError, TypeError, RecursionError) as error:
        raise DataError(f"{where} is not JSON ({error})") from None
    return tool


def announce(messages: list[Message], offered: Offered, form: Format, date_lines: str = "") -> list[Message]:
    """The messages with the tools' definitions added, as in Meta's prompt format (style `meta`).

    Raises:
        DataError: the form needs a first user message for the definitions, but the conversation begins with another.
    """
    has_system = messages[0]["role"] == "system"
    head = []
    if offered.builtin or (offered.custom and form == "json"):
        head.append(ENVIRONMENT)
    if searches := [name for name in offered.builtin if name != CODE_INTERPRETER]:
        head.append(f"Tools: {', '.join(searches)}")
    if date_lines:
        head.append(date_lines)
    sections = ["\n".join(head)] if head else []
    if offered.custom and form in ("tag", "python"):
        sections.append(definitions(offered, form))
    if sections:
        system = messages[0]["content"] if has_system else ""
        sections += [system] if system else []
        messages = [Message(role="system", content="\n\n".join(sections)), *messages[has_system:]]
    if offered.custom and form in ("json", "bare"):
        messages = into_first_user_message(messages, definitions(offered, form))
    return messages


def into_first_user_message(messages: list[Message], text: str) -> list[Message]:
    """The messages with `text` put before the first user message."""
    place = 1 if messages[0]["role"] == "system" else 0
    if place == len(messages) or messages[place]["role"] != "user":
        raise DataError("tools are announced in the first user message, and the conversation does not open with one")
    user = Message(role="user", content=f"{text}\n\n{messages[place]['content']}")
    return [*messages[:place], user, *messages[place + 1 :]]


def definitions(offered: Offered, form: Format) -> str:
    """The prompt's text about the custom tools."""
    functions = [tool["function"] for tool in offered.custom]
    if form == "python":
        return f"{_PYTHON_INTRODUCTION}\n\n{_indented([_as_dict(function) for function in functions])}"
    if form == "tag":
        lines = [
            f"Use the function '{f['name']}' to '{f.get('description', '')}':\n{_line(_plain(f))}" for f in functions
        ]
        return "\n\n".join([_TAG_INTRODUCTION, *lines, _TAG_CLOSING])
    if form == "bare":
        return "\n\n".join([_BARE_INTRODUCTION, *map(_indented, offered.custom)])
    schemas = [_indented({"type": "function", "function": _plain(function)}) for function in functions]
    return "\n".join([_JSON_INTRODUCTION, *schemas, _JSON_CLOSING])


def _plain(function: Mapping[str, Any]) -> dict[str, Any]:
    """Name, description and parameters, in this order and always all three."""
    parameters = function.get("parameters") or {"type": "object", "properties": {}}
    return {"name": function["name"], "description": function.get("description", ""), "parameters": parameters}


def _as_dict(function: Mapping[str, Any]) -> dict[str, Any]:
    """The same in Llama 3.2's form: parameters of type `dict`, `required` first."""
    parameters = function.get("parameters") or {}
    worded = {"type": "dict", "required": [*parameters.get("required", [])]}
    return _plain(function) | {"parameters": worded | {"properties": parameters.get("properties", {})}}


def _indented(data: Any) -> str:
    return json.dumps(data, ensure_ascii=False, indent=4)


def _line(data: Any) -> str:
    return json.dumps(data, ensure_ascii=False)
