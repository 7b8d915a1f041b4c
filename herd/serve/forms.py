"""What form an answer must have: a call of a tool, JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from herd.errors import RequestError
from herd.serve.body import Drawing, Name, NoEffect, Strict

MAX_TOOLS = 128


class ToolFunction(Strict):
    """A function the model may call."""

    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    @model_validator(mode="after")
    def _takes_an_object(self) -> ToolFunction:
        if self.parameters and self.parameters.get("type", "object") != "object":
            raise ValueError("needs `parameters` of type object: a function is called with named arguments")
        return self


class Tool(Strict):
    """A tool the model may call."""

    type: Literal["function"]
    function: ToolFunction


class ChosenFunction(Strict):
    """The name of a function."""

    name: Name


class ToolChoice(Strict):
    """The one tool that must be called."""

    type: Literal["function"]
    function: ChosenFunction


class AllowedTools(Strict):
    """The tools that may be called, and whether one must be."""

    mode: Literal["auto", "required"]
    tools: Annotated[list[ToolChoice], Field(min_length=1, max_length=MAX_TOOLS, fail_fast=True)]


class AllowedChoice(Strict):
    """A choice among some of the tools."""

    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


class Choice:
    """What a request says of calls, in any dialect: the tools there are for the model, and whether one must be called.

    `tools` are OpenAI's objects; `only` names those that may be called, all of them when None.

    Raises:
        ValueError: two tools have one name, or a choice names a tool that is not there, or needs one where none is.
    """

    def __init__(
        self, tools: Sequence[Mapping[str, Any]], *, mode: str = "auto", only: Sequence[str] | None = None
    ) -> None:
        names = [tool["function"]["name"] for tool in tools]
        if len(set(names)) != len(names):
            raise ValueError("has two `tools` of one name")
        if missing := next((name for name in only or () if name not in names), None):
            raise ValueError(f"has no function {missing!r} in `tools` for its `tool_choice`")
        if mode == "required" and not names:
            raise ValueError("has a `tool_choice` of required, but no `tools`")
        self.must_call, self.may_call = mode == "required", mode != "none"
        usable = [tool for tool in tools if only is None or tool["function"]["name"] in only]
        self.tools: list[Mapping[str, Any]] = [] if mode == "none" else usable

    def constraint(self, form: Mapping[str, Any] | None) -> dict[str, Any]:
        """The engine's setting, where the text is to have a form (a JSON schema): a call, the form, or either.

        Raises:
            RequestError: a schema is nested too deeply.
        """
        functions = [tool["function"] for tool in self.tools]
        if self.must_call:
            return {"json_schema": call_schema(functions)}
        if form is None:
            return {}
        return {"json_schema": either(functions, form) if functions else form}

    def looks_like(self, form: Mapping[str, Any] | None) -> bool:
        """A text in the form may read as a call; calls then begin with their type, to be told from it."""
        properties = (form or {}).get("properties")
        return (
            bool(self.tools) and isinstance(properties, Mapping) and "name" in properties and _has_arguments(properties)
        )


def _has_arguments(properties: Mapping[str, Any]) -> bool:
    return "parameters" in properties or "arguments" in properties


class JsonSchema(Strict):
    """A schema by name."""

    name: Name
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    description: NoEffect = None
    strict: NoEffect = None


class ResponseFormat(Strict):
    """The form of the answer: text, any JSON object, or JSON that fits a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema", description="Of json_object (llama.cpp, Together).")

    @model_validator(mode="after")
    def _schema_where_it_belongs(self) -> ResponseFormat:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("needs `json_schema` with type json_schema, and only there")
        if self.schema_ is not None and self.type != "json_object":
            raise ValueError("may have `schema` only with type json_object; of json_schema it stands in `json_schema`")
        return self

    @property
    def form(self) -> dict[str, Any] | None:
        """The JSON schema of the text; None where it is free."""
        if self.type == "text":
            return None
        return self.schema_ or (self.json_schema and self.json_schema.schema_) or {}


def call_schema(functions: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The schema of a call as Llama writes it, of any of these functions.

    Raises:
        RequestError: the parameters are nested too deeply.
    """
    if len(functions) == 1:
        return _call_form(functions[0], "#", typed=False)
    return {"anyOf": [_call_form(function, f"#/anyOf/{i}", typed=False) for i, function in enumerate(functions)]}


def either(functions: Sequence[Mapping[str, Any]], form: Mapping[str, Any]) -> dict[str, Any]:
    """The schema of a call of any of these functions, or of a text in this form.

    Raises:
        RequestError: a schema is nested too deeply.
    """
    properties = form.get("properties")
    typed = isinstance(properties, Mapping) and "name" in properties and _has_arguments(properties)
    calls = [_call_form(function, f"#/anyOf/{i}", typed=typed) for i, function in enumerate(functions)]
    return {"anyOf": [*calls, _moved_deep(form or {"type": "object"}, f"#/anyOf/{len(calls)}")]}


def _call_form(function: Mapping[str, Any], place: str, *, typed: bool) -> dict[str, Any]:
    parameters = {"type": "object"} | _moved_deep(function.get("parameters") or {}, f"{place}/properties/parameters")
    properties: dict[str, Any] = {"type": {"const": "function"}} if typed else {}
    properties |= {"name": {"const": function["name"]}, "parameters": parameters}
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def _moved_deep(schema: Mapping[str, Any], place: str) -> dict[str, Any]:
    try:
        return _moved(dict(schema), place)
    except RecursionError:
        raise RequestError("json_schema: the schema of an answer or of a tool is nested too deeply") from None


def _moved(schema: Any, root: str) -> Any:
    """A schema that becomes a part of another at `root`, with its references to itself (`#/$defs/...`) led there."""
    if isinstance(schema, list):
        return [_moved(item, root) for item in schema]
    if not isinstance(schema, dict) or "$id" in schema:  # with an id, references count from it wherever it stands
        return schema
    moved = {key: _moved_part(key, value, root) for key, value in schema.items()}
    reference = schema.get("$ref")
    if isinstance(reference, str) and (reference == "#" or reference.startswith("#/")):
        moved["$ref"] = root + reference[1:]
    return moved


def _moved_part(key: str, value: Any, root: str) -> Any:
    if key in _PLAIN_VALUES:
        return value
    if key in _BY_NAME and isinstance(value, dict):
        return {name: _moved(part, root) for name, part in value.items()}
    return _moved(value, root)


_BY_NAME = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")  # schemas by any names
_PLAIN_VALUES = ("const", "enum", "default", "examples")  # of a schema: no schemas themselves


class Talk(Drawing):
    """What a request for an answer in a conversation says of its form and of calls, in any dialect."""

    own_form: ClassVar[str]  # the dialect's field for the form of a text
    server_tools: list[Name] | None = Field(
        None, max_length=MAX_TOOLS, description="Of the tools that the server runs itself, those that may be called."
    )

    files: Annotated[list[Annotated[str, Field(max_length=100)]], Field(max_length=20)] = Field(
        default_factory=list, description="Ids of files that lie beside the code that Python runs here."
    )
    documents: bool | None = Field(
        None, description="Whether to answer from the server's documents; as the server is set up when left out."
    )

    @cached_property
    def choice(self) -> Choice:
        """What is said of calls."""
        raise AssertionError("each dialect says")

    @property
    def form(self) -> dict[str, Any] | None:
        """The JSON schema of the text; None where it is free."""
        raise AssertionError("each dialect says")

    @model_validator(mode="after")
    def _one_form(self) -> Talk:
        must_call = self.choice.must_call
        if self.structured_outputs is not None and (self.form is not None or must_call):
            raise ValueError(
                f"may have `structured_outputs` only without `{self.own_form}` and a required `tool_choice`"
            )
        return self

    @property
    def own(self) -> list[str] | None:
        """The server's own tools that may be called; all of them when None."""
        return self.server_tools if self.choice.may_call else []

    def constraint(self) -> dict[str, Any]:
        """The engine's setting for the form of the answer; empty where it is free."""
        return self.choice.constraint(self.form) or super().constraint()

    @property
    def form_field(self) -> str:
        """Where the form of the answer was asked for."""
        if self.structured_outputs is not None:
            return "structured_outputs"
        return "tools" if self.choice.must_call else self.own_form
