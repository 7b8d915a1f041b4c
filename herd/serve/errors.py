"""OpenAI's error object for everything that can go wrong with a request."""

from __future__ import annotations

import difflib
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import Scope

from herd.errors import UserError

MAX_FAULTS = 10
"""Faults of one body that are told of."""
_LONGEST_NAME = 100  # characters of a field's name that are repeated to its sender
_LONGEST_MESSAGE = 2000


class ApiError(Exception):
    """A refusal with its HTTP status, the field it is about, a code for programs, and when to come again."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_seconds: float = 1.0,
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code, self.retry_seconds = status, param, code, retry_seconds


_TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
_COME_AGAIN = (429, 503)
_MESSAGES, _SHARED = "/v1/messages", ("/v1/models", "/v1/files")  # whose clients are Anthropic's, or may be
_ANTHROPIC_TYPES = {
    403: "permission_error",
    413: "request_too_large",
    503: "overloaded_error",
    504: "timeout_error",
}


def speaks_anthropic(scope: Scope) -> bool:
    """The client reads Anthropic's dialect."""
    path: str = scope["path"]
    return path.startswith(_MESSAGES) or (path.startswith(_SHARED) and "anthropic-version" in Headers(scope=scope))


def error_object(status: int, message: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """`{"error": {"message", "type", "param", "code"}}`, as OpenAI's clients expect it."""
    kind = "server_error" if status >= 500 else _TYPES.get(status, "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def install(app: FastAPI, known_fields: Mapping[str, Sequence[str]] | None = None) -> None:
    """Answer every failure of the app with an error object.

    `known_fields`, by the path whose bodies have them, are offered for those that are unknown.
    """

    async def validation_error(request: Request, error: RequestValidationError) -> JSONResponse:
        return _validation_error(request, error, known_fields or {})

    handlers: dict[type[Exception], Callable[[Request, Any], Awaitable[Response]]] = {
        ApiError: refusal,
        UserError: _user_error,
        RequestValidationError: validation_error,
        HTTPException: _http_error,
        Exception: _fault,
    }
    for kind, handler in handlers.items():
        app.add_exception_handler(kind, handler)


def _respond(
    request: Request,
    status: int,
    message: str,
    *,
    param: str | None = None,
    code: str | None = None,
    headers: dict[str, str] | None = None,
) -> JSONResponse:
    if record := request.scope.get("herd.request"):
        record.error, record.field = code or _TYPES.get(status, "invalid_request_error"), param
    found = error_object(status, _shortened(message, _LONGEST_MESSAGE), param, code)
    if speaks_anthropic(request.scope):
        found = as_anthropic(status, found, record.id if record else None)
    return JSONResponse(found, status_code=status, headers=headers)


def as_anthropic(status: int, error: dict[str, Any], request_id: str | None = None) -> dict[str, Any]:
    """The error object as Anthropic's clients expect it."""
    kind = _ANTHROPIC_TYPES.get(status, error["error"]["type"])
    told = error["error"] | {"type": "api_error" if kind == "server_error" else kind}
    return {"type": "error", "error": told, "request_id": request_id}


def _shortened(text: str, most: int) -> str:
    return text if len(text) <= most else text[:most] + "..."


async def refusal(request: Request, error: ApiError) -> JSONResponse:
    """The answer that says why not."""
    headers = {"Retry-After": str(math.ceil(error.retry_seconds))} if error.status in _COME_AGAIN else {}
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return _respond(request, error.status, str(error), param=error.param, code=error.code, headers=headers)


async def _user_error(request: Request, error: UserError) -> JSONResponse:
    return _respond(request, 400, str(error))


async def _http_error(request: Request, error: HTTPException) -> JSONResponse:
    messages = {
        400: "The body cannot be read as JSON.",
        404: f"There is no {request.url.path} here; the API lives under /v1.",
        405: f"{request.method} is not allowed on {request.url.path}.",
    }
    message = messages.get(error.status_code, str(error.detail))
    return _respond(request, error.status_code, message, headers=dict(error.headers or {}))


async def _fault(request: Request, error: Exception) -> JSONResponse:
    return _respond(request, 500, "The server failed on this request; its log says why.", code="internal_error")


def _validation_error(
    request: Request, error: RequestValidationError, known: Mapping[str, Sequence[str]]
) -> JSONResponse:
    there = error.errors()
    faults = _distinct(there[: 2 * MAX_FAULTS])[:MAX_FAULTS]
    messages = [_describe(fault, request.url.path, known) for fault in faults]
    if len(there) > 2 * MAX_FAULTS or len(faults) == MAX_FAULTS < len(there):
        messages.append(f"and more: these are the first {len(faults)} faults")
    param = _place(faults[0])
    code = {"extra_forbidden": "unknown_field", "missing": "missing_field"}.get(faults[0]["type"], "invalid_value")
    return _respond(request, 400, "; ".join(messages), param=param or None, code=code)


def _distinct(faults: Sequence[dict]) -> list[dict]:
    """One fault a place, and none that another explains more closely: a union of types reports each of its members."""
    by_place: dict[str, dict] = {}
    for fault in sorted(
        faults, key=lambda fault: fault["type"].endswith("_type")
    ):  # "too short" says more than "no string"
        by_place.setdefault(_place(fault), fault)
    return [fault for place, fault in by_place.items() if not any(p.startswith(f"{place}.") for p in by_place)]


def _describe(fault: dict, path: str, known: Mapping[str, Sequence[str]]) -> str:
    place = _place(fault)
    match fault["type"]:
        case "json_invalid":
            return f"The body is not valid JSON: {fault['ctx']['error']}"
        case "extra_forbidden":
            return f"Unknown field `{place}`{_nearest(place, path, known)}"
        case "missing":
            return f"`{place}` is required" if place else "The body is empty; expected a JSON object"
        case "model_attributes_type" if place:
            return f"`{place}` must be a JSON object"
        case "model_attributes_type":
            return "The body must be a JSON object, sent with Content-Type: application/json"
        case "value_error":
            return f"`{place}` {fault['ctx']['error']}" if place else f"The body {fault['ctx']['error']}"
        case "union_tag_not_found":
            return f"`{place}` is required"
        case "union_tag_invalid":
            tag = _shortened(fault["ctx"]["tag"], _LONGEST_NAME)
            return f"`{place}`: {tag!r} is none of {fault['ctx']['expected_tags']}"
        case _:
            where = f"`{place}`: " if place else "The body: "
            return where + fault["msg"]


def _place(fault: dict) -> str:
    """`messages.0.content` from pydantic's location, without the names of a union's members."""
    if fault["type"] == "json_invalid":
        return ""
    words: list[str | int] = []
    for word in fault["loc"][1:]:
        is_member = isinstance(word, str) and ("[" in word or word in _MEMBERS)
        is_role = word in _ROLES and words[:1] == ["messages"] and isinstance(words[-1], int)
        if not is_member and not is_role:
            words.append(word)
    if fault["type"].startswith("union_tag"):
        words.append(fault["ctx"]["discriminator"].strip("'"))
    return ".".join(_shortened(str(word), _LONGEST_NAME) for word in words)


_MEMBERS = {"str", "int", "float", "bool", "none", "ToolChoice", "AllowedChoice", "NamedTool", "AllowedTools"}
_ROLES = {
    "system",
    "developer",
    "user",
    "assistant",
    "tool",
    "function",
}  # the kinds of messages, told apart by their role


def _nearest(place: str, path: str, known: Mapping[str, Sequence[str]]) -> str:
    """What may have been meant: a field of this body, or the same one of another."""
    name = place.rpartition(".")[2]
    at_top = place == name
    elsewhere = next((other for other, fields in known.items() if at_top and other != path and name in fields), None)
    if elsewhere:
        return f" of {path}; {elsewhere} has it"
    here = known.get(path, ()) if at_top else sorted({field for fields in known.values() for field in fields})
    nearest = difflib.get_close_matches(name, [field for field in here if field != name], n=1)
    return f"; did you mean `{nearest[0]}`?" if nearest else ""
