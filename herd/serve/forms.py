"""What form an answer must have: a call of a tool, JSON."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from herd.errors import RequestError
from herd.serve.body import Name, NoEffect, Strict


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

    @model_validator(mode="after")
    def _schema_where_it_belongs(self) -> ResponseFormat:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("needs `json_schema` with type json_schema, and only there")
        return self

    def constraint(self) -> dict[str, Any]:
        """The engine's setting."""
        if self.type == "text":
            return {}
        return {"json_schema": (self.json_schema and self.json_schema.schema_) or {}}


def call_schema(functions: list[ToolFunction]) -> dict[str, Any]:
    """The schema of a call as Llama writes it, of any of these functions.

    Raises:
        RequestError: the parameters are nested too deeply.
    """
    forms = []
    for index, function in enumerate(functions):
        root = "#/properties/parameters" if len(functions) == 1 else f"#/anyOf/{index}/properties/parameters"
        try:
            parameters = {"type": "object"} | _moved(function.parameters or {}, root)
        except RecursionError:
            raise RequestError("json_schema: the parameters of a tool are nested too deeply") from None
        forms.append(
            {
                "type": "object",
                "properties": {"name": {"const": function.name}, "parameters": parameters},
                "required": ["name", "parameters"],
                "additionalProperties": False,
            }
        )
    return forms[0] if len(forms) == 1 else {"anyOf": forms}


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
