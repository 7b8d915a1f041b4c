"""Tool calls in Llama 3's formats: two for built-in tools, four for custom tools.

    <|python_tag|>brave_search.call(query="...")                      built-in search and Wolfram
    <|python_tag|>print(1)                                            code for the interpreter
    <|python_tag|>{"type": "function", "name": "f", "parameters": {}} custom, `json`
    {"name": "f", "parameters": {}}                                   custom, `bare`
    <function=name>{"argument": 1}</function>                         custom, `tag`
    [name(argument=1), other(x="y")]                                  custom, `python` (several calls in one message)

Source: Meta's prompt format notes for Llama 3.1 and 3.2.
"""

from __future__ import annotations

import ast
import json
import keyword
import re
from collections.abc import Mapping
from typing import Any, Literal

from herd.errors import DataError
from herd.types import ToolCall

Format = Literal["json", "bare", "tag", "python"]

SEARCH_TOOLS = ("brave_search", "wolfram_alpha", "photogen")
CODE_INTERPRETER = "code_interpreter"
_SEARCH_CALL = re.compile(r'(?P<name>\w+)\.call\(query="(?P<query>[^"]*)"\)')
_CALL_KEYS = ("type", "name", "parameters")
_FIRST_KEY = re.compile(r'\{\s*"?([^"]*)')
_PYTHON_START = re.compile(r"""\[\s*[^\s()\[\]{}"',=:#]*\s*(?:\(|\Z)""")
_TAG_OPEN = "<function="
_TAG_NAME = re.compile(r"[^}>]+")
_TAGGED_FUNCTION = re.compile(r"<function=(?P<name>[^}>]+)>(?P<arguments>\{.*\})(?:</function>)?", re.DOTALL)


def checked(call: Any, where: str) -> ToolCall:
    """A call in Herd's form, from Herd's or OpenAI's form (`{"function": {"name", "arguments": "<JSON>"}}`).

    Raises:
        DataError: it has another form, or its arguments are not JSON.
    """
    function = call.get("function", call) if isinstance(call, Mapping) else {}
    function = function if isinstance(function, Mapping) else {}
    name, arguments = function.get("name"), function.get("arguments", {})
    try:
        arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
        json.dumps(arguments, allow_nan=False)
    except (ValueError, TypeError, RecursionError) as error:
        raise DataError(f"{where}: the arguments of tool call {name!r} are not JSON ({error})") from None
    if not isinstance(name, str) or not isinstance(arguments, dict):
        raise DataError(f"{where}: a tool call needs a `name` and an object of `arguments`, found {call!r}")
    return ToolCall(name=name, arguments=arguments)


def write(calls: list[ToolCall], form: Format = "json") -> tuple[str, bool]:
    """The text of calls, and whether `<|python_tag|>` goes before it; `form` is for custom tools.

    Raises:
        DataError: the form cannot express these calls.
    """
    if form == "python" and not any(map(_is_builtin, calls)):
        return f"[{', '.join(map(_python_call, calls))}]", False
    if len(calls) != 1:
        raise DataError(f"{len(calls)} tool calls in one message; only the `python` format allows more than one")
    name, arguments = calls[0]["name"], calls[0]["arguments"]
    if form == "bare":
        return _json({"name": name, "parameters": arguments}), False
    if _is_builtin(calls[0]):
        code = arguments["code"] if name == CODE_INTERPRETER else f'{name}.call(query="{arguments["query"]}")'
        return code, True
    if form == "tag":
        if not _TAG_NAME.fullmatch(name):
            raise DataError(f"the name of tool {name!r} cannot be written in a <function=...> tag")
        return f"<function={name}>{_json(arguments)}</function>", False
    return _json({"type": "function", "name": name, "parameters": arguments}), True


def read_tagged(text: str) -> list[ToolCall]:
    """The call after `<|python_tag|>`: a custom call in JSON, a search, or else code."""
    if call := _json_call(text):
        return [call]
    if match := _SEARCH_CALL.fullmatch(text.strip()):
        return [ToolCall(name=match["name"], arguments={"query": match["query"]})]
    return read_untagged(text) or [ToolCall(name=CODE_INTERPRETER, arguments={"code": text})]


def read_untagged(text: str) -> list[ToolCall]:
    """The calls in a whole message without `<|python_tag|>`; none if it is ordinary text."""
    text = text.strip()
    if not may_become_call(text):
        return []
    if match := _TAGGED_FUNCTION.fullmatch(text):
        try:
            return [ToolCall(name=match["name"], arguments=_as_json(json.loads(match["arguments"])))]
        except (ValueError, RecursionError):
            return []
    if call := _json_call(text):
        return [call]
    return _python_calls(text)


def may_become_call(text: str) -> bool:
    """Whether a message that begins with this text may still become a call without `<|python_tag|>`.

    If not, `read_untagged` finds no call, whatever follows.
    """
    text = text.lstrip()
    if text.startswith("{"):
        key = _FIRST_KEY.match(text)
        assert key is not None  # it matches the brace alone
        return key[1] in _CALL_KEYS or (key.end() == len(text) and any(name.startswith(key[1]) for name in _CALL_KEYS))
    if text.startswith("["):
        return _PYTHON_START.match(text) is not None
    return text.startswith(_TAG_OPEN) or _TAG_OPEN.startswith(text)


def _is_builtin(call: ToolCall) -> bool:
    """Whether the call fits a built-in form; a search for text with a double quote does not and is written in JSON."""
    name, arguments = call["name"], call["arguments"]
    if name == CODE_INTERPRETER:
        return arguments.keys() == {"code"} and isinstance(arguments["code"], str)
    query = arguments.get("query")
    return name in SEARCH_TOOLS and len(arguments) == 1 and isinstance(query, str) and '"' not in query


def _json(data: Any) -> str:
    return json.dumps(data, ensure_ascii=False)


def _as_json(arguments: dict[str, Any]) -> dict[str, Any]:
    """Arguments as JSON has them: Python's tuples and NaN, which a model can write, have no place in an answer.

    Raises:
        ValueError: JSON cannot hold them.
    """
    try:
        return json.loads(json.dumps(arguments, allow_nan=False))
    except TypeError as error:
        raise ValueError(error) from None


def _json_call(text: str) -> ToolCall | None:
    try:
        data = json.loads(text)
        json.dumps(data, allow_nan=False)
    except (ValueError, RecursionError):
        return None
    if not isinstance(data, dict) or not data.keys() <= set(_CALL_KEYS):
        return None
    name, parameters = data.get("name"), data.get("parameters")
    if data.get("type", "function") != "function" or not isinstance(name, str) or not isinstance(parameters, dict):
        return None
    return ToolCall(name=name, arguments=parameters)


def _python_call(call: ToolCall) -> str:
    for name in (call["name"], *call["arguments"]):
        if not name.isidentifier() or keyword.iskeyword(name):
            raise DataError(f"{name!r} of tool {call['name']!r} is no Python name, as the `python` format needs")
    return f"{call['name']}({', '.join(f'{key}={value!r}' for key, value in call['arguments'].items())})"


def _python_calls(text: str) -> list[ToolCall]:
    """The calls of `[f(a=1), g(b="x")]`; none if the text is anything else."""
    if not (text.startswith("[") and text.endswith("]")):
        return []
    try:
        tree = ast.parse(text, mode="eval").body
        if not isinstance(tree, ast.List):
            return []
        return [_python_node(node) for node in tree.elts]
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []


def _python_node(node: ast.expr) -> ToolCall:
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name) or node.args:
        raise ValueError("not a call by keywords")
    if any(argument.arg is None for argument in node.keywords):
        raise ValueError("arguments without names")
    arguments = {str(argument.arg): ast.literal_eval(argument.value) for argument in node.keywords}
    return ToolCall(name=node.func.id, arguments=_as_json(arguments))
