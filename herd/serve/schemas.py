"""What may be asked: OpenAI's request bodies.

Every field either works, or has no effect on the answer and is accepted (`user`, `metadata`...), or is refused by name
unless its value asks for nothing (`store: false`).
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from herd.errors import DataError, RequestError
from herd.infer.embedder import Pooling
from herd.infer.request import MAX_LOGPROBS, MAX_SEED
from herd.tokenizer.toolcalls import write
from herd.types import Conversation, Message, SamplingParams, ToolCall

MAX_STOPS = 64
MAX_INPUTS = 2048


def _only(*neutral: Any) -> AfterValidator:
    def check(value: Any) -> Any:
        if value is not None and value not in neutral:
            allowed = f" or give {neutral[0]!r}" if neutral else ""
            raise ValueError(f"is not supported here; leave it out{allowed}")
        return value

    return AfterValidator(check)


def _enum(*values: Any) -> Any:
    return Field(json_schema_extra={"enum": [None, *values]})


NotSupported = Annotated[Any, _only(), _enum()]
OnlyOne = Annotated[Any, _only(1), _enum(1)]
OnlyFalse = Annotated[Any, _only(False), _enum(False)]
OnlyEmpty = Annotated[Any, _only([], {}, ""), _enum([], {}, "")]
OnlyText = Annotated[Any, _only(["text"]), _enum(["text"])]
NoEffect = Annotated[Any, Field(description="Accepted; has no effect on the answer.")]

TokenId = Annotated[int, Field(ge=0, lt=2**31)]
Name = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9_.-]+$")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _Body(_Strict):
    """The whole body of a request."""

    @model_validator(mode="before")
    @classmethod
    def _is_text(cls, data: Any) -> Any:
        """JSON can hold half a character (`"\\ud800"`); what no text can hold is not replaced in silence."""
        if isinstance(data, bytes):  # of another content type: refused as such
            return data
        try:
            json.dumps(data, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise ValueError("holds half of a character pair (a lone surrogate), which is no text") from None
        except RecursionError:
            raise ValueError("is nested too deeply") from None
        return data


# ---- what chat and plain completion share ----------------------------------------------------------------------------


class StreamOptions(_Strict):
    """What a stream carries besides text."""

    include_usage: bool = False
    include_obfuscation: NoEffect = None


class StructuredOutputs(_Strict):
    """The form an answer must have, in one of four ways (vLLM's extension of the API)."""

    json_: dict[str, Any] | None = Field(None, alias="json", description="A JSON schema.")
    regex: str | None = Field(None, min_length=1)
    choice: Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1)] | None = None
    grammar: str | None = Field(None, min_length=1, description="A Lark grammar.")

    @model_validator(mode="after")
    def _exactly_one(self) -> StructuredOutputs:
        if sum(value is not None for value in (self.json_, self.regex, self.choice, self.grammar)) != 1:
            raise ValueError("needs exactly one of json, regex, choice and grammar")
        return self

    def constraint(self) -> dict[str, Any]:
        """The engine's setting."""
        found = {"json_schema": self.json_, "regex": self.regex, "choice": self.choice, "grammar": self.grammar}
        return {name: value for name, value in found.items() if value is not None}


class Generation(_Body):
    """The fields that chat and plain completion share."""

    model: str | None = Field(None, description="Id of the model; the first one that is served when left out.")
    max_tokens: int | None = Field(None, ge=1, description="Longest answer, in tokens.")
    min_tokens: int | None = Field(None, ge=0, description="No end before so many tokens.")
    temperature: float | None = Field(None, ge=0, allow_inf_nan=False, description="0 is greedy.")
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0, description="Keep the k likeliest tokens; 0 keeps all.")
    min_p: float | None = Field(None, ge=0, le=1, description="Drop tokens below this share of the likeliest's.")
    n: int | None = Field(None, ge=1, le=128)
    seed: int | None = Field(None, ge=-MAX_SEED, lt=MAX_SEED)
    stop: str | Annotated[list[Annotated[str, Field(min_length=1)]], Field(max_length=MAX_STOPS)] | None = None
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    repetition_penalty: float | None = Field(None, gt=0, le=10)
    logit_bias: (
        dict[Annotated[str, Field(pattern=r"^[0-9]{1,9}$")], Annotated[float, Field(ge=-100, le=100)]] | None
    ) = None
    structured_outputs: StructuredOutputs | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    user: NoEffect = None
    metadata: NoEffect = None
    service_tier: NoEffect = None
    safety_identifier: NoEffect = None
    prompt_cache_key: NoEffect = None
    prompt_cache_retention: NoEffect = None

    def sampling(self, max_tokens: int) -> SamplingParams:
        """The engine's settings; what was left out takes Llama 3.1's own values."""
        given = {
            "temperature": None if self.temperature is None else float(self.temperature),
            "top_k": self.top_k,
            "top_p": None if self.top_p is None else float(self.top_p),
            "min_p": None if self.min_p is None else float(self.min_p),
            "n": self.n,
            "seed": self.seed,
            "stop": tuple(text for text in ((self.stop,) if isinstance(self.stop, str) else self.stop or ()) if text),
            "min_tokens": self.min_tokens or None,
            "presence_penalty": float(self.presence_penalty or 0) or None,
            "frequency_penalty": float(self.frequency_penalty or 0) or None,
            "repetition_penalty": self.repetition_penalty,
            "logit_bias": {int(token): float(bias) for token, bias in (self.logit_bias or {}).items()} or None,
            "logprobs": self.wanted_logprobs,
        }
        given |= self.constraint()
        return SamplingParams(max_tokens=max_tokens, **{k: v for k, v in given.items() if v is not None})

    @model_validator(mode="after")
    def _options_of_a_stream(self) -> Generation:
        if self.stream_options is not None and not self.stream:
            raise ValueError("has `stream_options`, but no `stream: true`")
        return self

    @property
    def with_usage(self) -> bool:
        """The stream ends with a chunk of token counts."""
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def wanted_tokens(self) -> int | None:
        """The longest answer asked for."""
        return self.max_tokens

    @property
    def wanted_logprobs(self) -> int | None:
        """How many likely tokens to report for each place; None for no report at all."""
        raise AssertionError("each body says")

    @property
    def num_drawn(self) -> int:
        """Answers to each prompt that are drawn."""
        return self.n or 1

    def constraint(self) -> dict[str, Any]:
        """The engine's setting for the form of the answer; empty where it is free."""
        return self.structured_outputs.constraint() if self.structured_outputs else {}


# ---- messages --------------------------------------------------------------------------------------------------------


class TextPart(_Strict):
    """A part of a message's content."""

    type: Literal["text"]
    text: str


Content = str | list[TextPart]


def _text(content: Content | None) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content or ())


class SpokenMessage(_Strict):
    """What the system or the user says; `developer` is OpenAI's newer word for `system`."""

    role: Literal["system", "developer", "user"]
    content: Content

    def to_message(self) -> Message:
        """The house's own noun."""
        return Message(role="system" if self.role == "developer" else self.role, content=_text(self.content))


class CalledFunction(_Strict):
    """The function of a tool call, its arguments as JSON."""

    name: Name
    arguments: str

    @model_validator(mode="after")
    def _arguments_are_an_object(self) -> CalledFunction:
        try:
            arguments = json.loads(self.arguments)
            json.dumps(arguments, ensure_ascii=False).encode()
        except (ValueError, RecursionError):  # UnicodeEncodeError is one: half a character is no text
            arguments = None
        if not isinstance(arguments, dict):
            raise ValueError("needs `arguments` to be a JSON object")
        return self


class AssistantCall(_Strict):
    """A call the assistant asked for."""

    id: str
    type: Literal["function"] = "function"
    function: CalledFunction


class AssistantMessage(_Strict):
    """What the assistant said, or what it wanted called."""

    role: Literal["assistant"]
    content: Content | None = None
    tool_calls: list[AssistantCall] | None = None
    refusal: Annotated[Any, _only(""), _enum("")] = None
    annotations: OnlyEmpty = None
    audio: NotSupported = None
    function_call: NotSupported = None

    @model_validator(mode="after")
    def _says_something(self) -> AssistantMessage:
        if self.content is None and not self.tool_calls:
            raise ValueError("needs `content` or `tool_calls`")
        try:
            self.to_message()
        except DataError as error:
            raise ValueError(f"cannot be told to the model: {error}") from None
        return self

    def to_message(self) -> Message:
        """The house's own noun. Several calls at once are written as Llama writes them: `[f(a=1), g()]`."""
        message = Message(role="assistant", content=_text(self.content))
        functions = [call.function for call in self.tool_calls or ()]
        calls = [ToolCall(name=f.name, arguments=json.loads(f.arguments)) for f in functions]
        if len(calls) > 1:
            message["content"] += write(calls, "python")[0]
        elif calls:
            message["tool_calls"] = calls
        return message


class ToolMessage(_Strict):
    """What a tool answered."""

    role: Literal["tool"]
    content: Content
    tool_call_id: NoEffect = None
    name: NoEffect = None

    def to_message(self) -> Message:
        """The house's own noun: Llama's role for it is `ipython`."""
        return Message(role="ipython", content=_text(self.content))


ChatMessage = Annotated[SpokenMessage | AssistantMessage | ToolMessage, Field(discriminator="role")]


# ---- chat ------------------------------------------------------------------------------------------------------------


class ToolFunction(_Strict):
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


class Tool(_Strict):
    """A tool the model may call."""

    type: Literal["function"]
    function: ToolFunction


class ChosenFunction(_Strict):
    """The name of a function."""

    name: Name


class ToolChoice(_Strict):
    """The one tool that must be called."""

    type: Literal["function"]
    function: ChosenFunction


class JsonSchema(_Strict):
    """A schema by name."""

    name: Name
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    description: NoEffect = None
    strict: NoEffect = None


class ResponseFormat(_Strict):
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


class ChatRequest(Generation):
    """The body of `POST /v1/chat/completions`."""

    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1, description="OpenAI's newer name of max_tokens.")
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    response_format: ResponseFormat | None = None
    tools: list[Tool] | None = Field(None, max_length=128)
    tool_choice: Literal["none", "auto", "required"] | ToolChoice | None = None
    parallel_tool_calls: bool | None = Field(None, description="false keeps the first call of an answer.")

    store: OnlyFalse = None
    functions: OnlyEmpty = None
    function_call: Annotated[Any, _only("none", "auto"), _enum("none", "auto")] = None
    modalities: OnlyText = None
    audio: NotSupported = None
    prediction: NotSupported = None
    reasoning_effort: NotSupported = None
    verbosity: NotSupported = None
    web_search_options: NotSupported = None

    @model_validator(mode="after")
    def _one_form(self) -> ChatRequest:
        formed = self.response_format is not None and self.response_format.type != "text"
        names = {tool.function.name for tool in self.tools or ()}
        if len(names) != len(self.tools or ()):
            raise ValueError("has two `tools` of one name")
        if isinstance(self.tool_choice, ToolChoice) and self.tool_choice.function.name not in names:
            raise ValueError(f"has no function {self.tool_choice.function.name!r} in `tools` for its `tool_choice`")
        if self.tool_choice == "required" and not names:
            raise ValueError("has a `tool_choice` of required, but no `tools`")
        if sum((formed, self.structured_outputs is not None, self.must_call)) > 1:
            raise ValueError(
                "may have only one of `response_format`, `structured_outputs` and a required `tool_choice`"
            )
        return self

    @property
    def conversation(self) -> Conversation:
        """The messages as the engine takes them."""
        return [message.to_message() for message in self.messages]

    @property
    def usable_tools(self) -> list[dict[str, Any]]:
        """The tools that the model is told of, as OpenAI writes them."""
        if self.tool_choice == "none":
            return []
        return [tool.model_dump(exclude_none=True, exclude={"function": {"strict"}}) for tool in self.tools or ()]

    @property
    def must_call(self) -> bool:
        """The answer has to be a call."""
        return self.tool_choice == "required" or isinstance(self.tool_choice, ToolChoice)

    @property
    def wanted_tokens(self) -> int | None:
        """The longest answer asked for."""
        return self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens

    @property
    def wanted_logprobs(self) -> int | None:
        """How many likely tokens to report for each place; None for no report at all."""
        return (self.top_logprobs or 0) if self.logprobs else None

    def constraint(self) -> dict[str, Any]:
        """The engine's setting for the form of the answer; empty where it is free."""
        if self.must_call:
            try:
                return {"json_schema": self._call_schema()}
            except RecursionError:
                raise RequestError("json_schema: the parameters of a tool are nested too deeply") from None
        if self.response_format is not None and (found := self.response_format.constraint()):
            return found
        return super().constraint()

    def _call_schema(self) -> dict[str, Any]:
        """The schema of a call as Llama writes it, of any usable tool or of the chosen one."""
        functions = [tool.function for tool in self.tools or ()]
        if isinstance(self.tool_choice, ToolChoice):
            functions = [f for f in functions if f.name == self.tool_choice.function.name]
        forms = []
        for index, function in enumerate(functions):
            root = "#/properties/parameters" if len(functions) == 1 else f"#/anyOf/{index}/properties/parameters"
            parameters = {"type": "object"} | _moved(function.parameters or {}, root)
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


# ---- the other bodies ------------------------------------------------------------------------------------------------


class CompletionRequest(Generation):
    """The body of `POST /v1/completions`."""

    prompt: (
        str
        | Annotated[list[str], Field(min_length=1, max_length=MAX_INPUTS)]
        | Annotated[list[TokenId], Field(min_length=1)]
        | Annotated[list[Annotated[list[TokenId], Field(min_length=1)]], Field(min_length=1, max_length=MAX_INPUTS)]
    )
    logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    best_of: int | None = Field(None, ge=1, le=128, description="Draw so many, return the n likeliest by token.")
    echo: bool | None = Field(None, description="Begin each answer with its prompt.")

    suffix: OnlyEmpty = None

    @model_validator(mode="after")
    def _best_of_enough(self) -> CompletionRequest:
        if self.best_of is not None and self.best_of < (self.n or 1):
            raise ValueError("has a `best_of` below its `n`")
        if self.stream and (self.best_of or 1) > (self.n or 1):
            raise ValueError("cannot stream with `best_of`: which answers are best is known at the end")
        if self.stream and self.echo and self.logprobs is not None:
            raise ValueError("cannot stream with both `echo` and `logprobs`")
        return self

    def sampling(self, max_tokens: int) -> SamplingParams:
        """The engine's settings."""
        params = super().sampling(max_tokens)
        prompt_logprobs = self.logprobs if self.echo else None
        return replace(params, best_of=self.best_of, prompt_logprobs=prompt_logprobs)

    @property
    def num_drawn(self) -> int:
        """Answers to each prompt that are drawn."""
        return max(self.n or 1, self.best_of or 0)

    @property
    def prompts(self) -> list[str | list[int]]:
        """Each prompt, as text or as token ids."""
        many = isinstance(self.prompt, list) and self.prompt and not isinstance(self.prompt[0], int)
        return list(self.prompt) if many else [self.prompt]

    @property
    def wanted_logprobs(self) -> int | None:
        """How many likely tokens to report for each place; None for no report at all."""
        return self.logprobs


class EmbeddingRequest(_Body):
    """The body of `POST /v1/embeddings`."""

    model: str | None = None
    input: (
        str
        | Annotated[list[str], Field(min_length=1, max_length=MAX_INPUTS)]
        | Annotated[list[TokenId], Field(min_length=1)]
        | Annotated[list[Annotated[list[TokenId], Field(min_length=1)]], Field(min_length=1, max_length=MAX_INPUTS)]
    )
    encoding_format: Literal["float", "base64"] = "float"
    pooling: Pooling = Field("mean", description="Of all tokens, or the last one's.")
    dimensions: NotSupported = None
    user: NoEffect = None

    @property
    def inputs(self) -> list[str | list[int]]:
        """Each input, as text or as token ids."""
        many = isinstance(self.input, list) and not isinstance(self.input[0], int)
        return list(self.input) if many else [self.input]


class TokenizeRequest(_Body):
    """The body of `POST /tokenize`: a text, or a conversation up to the header of the answer."""

    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[ChatMessage], Field(min_length=1)] | None = None
    add_special_tokens: bool = Field(True, description="Begin a text with the token that begins texts.")
    return_token_strs: bool = False

    @model_validator(mode="after")
    def _one_of_two(self) -> TokenizeRequest:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("needs either `prompt` or `messages`")
        return self


class DetokenizeRequest(_Body):
    """The body of `POST /detokenize`."""

    model: str | None = None
    tokens: list[TokenId]


_BODIES = (ChatRequest, CompletionRequest, EmbeddingRequest, TokenizeRequest, DetokenizeRequest)
_MESSAGES = (SpokenMessage, AssistantMessage, ToolMessage)
KNOWN_FIELDS = sorted(
    {field.alias or name for body in (*_BODIES, *_MESSAGES) for name, field in body.model_fields.items()}
)
"""Every field that a body may hold, for "did you mean"."""
