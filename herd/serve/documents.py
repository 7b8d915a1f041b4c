"""The shapes of what is answered, for the OpenAPI document."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel


class ErrorDetail(BaseModel):
    """What is wrong, where, and a code for programs."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorObject(BaseModel):
    """OpenAI's error object."""

    error: ErrorDetail


class Usage(BaseModel):
    """Counts of tokens."""

    prompt_tokens: int
    total_tokens: int
    completion_tokens: int = 0
    prompt_tokens_details: dict[str, int] | None = None


class Function(BaseModel):
    """A function's name, and its arguments as JSON."""

    name: str
    arguments: str


class Call(BaseModel):
    """A call of a tool that the model asks for."""

    id: str
    type: Literal["function"]
    function: Function


class AnswerMessage(BaseModel):
    """What the model said, or what it wants called."""

    role: Literal["assistant"]
    content: str | None
    refusal: str | None
    tool_calls: list[Call] | None = None
    reasoning_content: str | None = None
    tool_trace: list[dict[str, Any]] | None = None
    annotations: list[dict[str, Any]] | None = None
    documents: dict[str, Any] | None = None
    votes: dict[str, int] | None = None


class ChatChoice(BaseModel):
    """One of the answers."""

    index: int
    message: AnswerMessage
    finish_reason: Literal["stop", "length", "tool_calls", "content_filter"]
    logprobs: dict[str, Any] | None
    verdict: dict[str, Any] | None = None


class ChatCompletion(BaseModel):
    """The answer to `POST /v1/chat/completions`."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage


class TextChoice(BaseModel):
    """One of the answers."""

    index: int
    text: str
    finish_reason: Literal["stop", "length", "content_filter"]
    logprobs: dict[str, Any] | None


class TextCompletion(BaseModel):
    """The answer to `POST /v1/completions`."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[TextChoice]
    usage: Usage


class ModelObject(BaseModel):
    """A model that is served."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_context: int
    max_model_len: int
    chat: bool
    parent: str | None


class ServerObject(BaseModel):
    """What the server has beside models: its own tools, words for effort, documents (and whether they answer)."""

    tools: list[str]
    effort: list[str]
    documents: bool | None


class ModelList(BaseModel):
    """The models that are served."""

    object: Literal["list"]
    data: list[ModelObject]
    server: ServerObject | None = None


class EmbeddingObject(BaseModel):
    """A vector: numbers, or base64 of little-endian float32."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingList(BaseModel):
    """The answer to `POST /v1/embeddings`."""

    object: Literal["list"]
    model: str
    data: list[EmbeddingObject]
    usage: Usage


class Moderation(BaseModel):
    """What the guards say of one text; categories are OpenAI's, and those of the guards' policies by their codes."""

    flagged: bool
    categories: dict[str, bool]
    category_scores: dict[str, float]
    category_applied_input_types: dict[str, list[str]]
    verdicts: list[dict[str, Any]]


class Moderations(BaseModel):
    """The answer to `POST /v1/moderations`."""

    id: str
    model: str
    results: list[Moderation]


class Tokenized(BaseModel):
    """The answer to `POST /tokenize`."""

    tokens: list[int]
    count: int
    max_model_len: int
    token_strs: list[str] | None = None


class Detokenized(BaseModel):
    """The answer to `POST /detokenize`."""

    prompt: str


class ResponseObject(BaseModel):
    """The answer to `POST /v1/responses`."""

    id: str
    object: Literal["response"]
    created_at: int
    status: Literal["completed", "incomplete", "failed", "in_progress"]
    model: str
    output: list[dict[str, Any]]
    usage: dict[str, Any] | None


class ResponseItems(BaseModel):
    """The items that were sent with a response."""

    object: Literal["list"]
    data: list[dict[str, Any]]
    has_more: bool
    first_id: str | None
    last_id: str | None


class FileObject(BaseModel):
    """A file that is kept: OpenAI's object, or Anthropic's."""

    id: str
    filename: str
    created_at: int | str


class FileList(BaseModel):
    """The files of a key."""

    object: Literal["list"]
    data: list[FileObject]
    has_more: bool


class FileDeleted(BaseModel):
    """A file is forgotten."""

    id: str


class InputTokens(BaseModel):
    """The answer to `POST /v1/responses/input_tokens`."""

    object: Literal["response.input_tokens"]
    input_tokens: int


class ResponseDeleted(BaseModel):
    """A response is forgotten."""

    id: str
    object: Literal["response"]
    deleted: bool


class AnthropicMessage(BaseModel):
    """The answer to `POST /v1/messages`."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[dict[str, Any]]
    stop_reason: Literal["end_turn", "max_tokens", "stop_sequence", "tool_use", "refusal"]
    stop_sequence: str | None
    usage: dict[str, int]


class TokenCount(BaseModel):
    """The answer to `POST /v1/messages/count_tokens`."""

    input_tokens: int


class Health(BaseModel):
    """How the server is."""

    status: Literal["ok", "stopping", "stopped"]
    running: int
    waiting: int


_MEANINGS = {
    400: "A field is unknown, wrong or not supported, or the prompt does not fit.",
    401: "A key is missing or wrong.",
    404: "No such model.",
    408: "The body took too long to arrive.",
    413: "The body is too large.",
    421: "The server does not answer under this host name.",
    429: "The queue is full or the key's allowance is used up; see Retry-After.",
    500: "The server failed.",
    503: "The server is stopping.",
    504: "The answer took too long.",
}
REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorObject, "description": text} for status, text in _MEANINGS.items()
}
"""Every refusal that a route may answer with."""


def streamed(model: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    """The answers of a route that can stream: a whole response, server-sent events, or a refusal."""
    text = {"type": "string", "description": "A chunk as JSON, or [DONE]."}
    event = {"type": "object", "properties": {"event": {"type": "string"}, "data": text}, "required": ["data"]}
    content = {"text/event-stream": {"schema": event}}  # OpenAPI 3.1 describes each event of a stream
    return {200: {"model": model, "description": "The answer.", "content": content}, **REFUSALS}
