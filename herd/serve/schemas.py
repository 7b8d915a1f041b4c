"""What may be asked: OpenAI's request bodies.

Every field either works, or has no effect on the answer and is accepted (`user`, `metadata`...), or is refused by name
unless its value asks for nothing (`presence_penalty: 0`).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from herd.infer.request import MAX_LOGPROBS, MAX_SEED
from herd.types import Conversation, Message, SamplingParams

MAX_STOPS = 64


def _only(*neutral: Any) -> AfterValidator:
    def check(value: Any) -> Any:
        if value is not None and value not in neutral:
            allowed = f" or give {neutral[0]!r}" if neutral else ""
            raise ValueError(f"is not supported here; leave it out{allowed}")
        return value

    return AfterValidator(check)


NotSupported = Annotated[Any, _only()]
OnlyZero = Annotated[Any, _only(0)]
OnlyFalse = Annotated[Any, _only(False)]
OnlyEmpty = Annotated[Any, _only([], {}, "")]
NoEffect = Annotated[Any, Field(description="Accepted; has no effect on the answer.")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class StreamOptions(_Strict):
    """What a stream carries besides text."""

    include_usage: bool = False
    include_obfuscation: NoEffect = None


class Generation(_Strict):
    """The fields that chat and plain completion share."""

    model: str | None = Field(None, description="Id of the model; the one that is served when left out.")
    max_tokens: int | None = Field(None, ge=1, description="Longest answer, in tokens.")
    temperature: float | None = Field(None, ge=0, allow_inf_nan=False, description="0 is greedy.")
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0, description="Keep the k likeliest tokens; 0 keeps all.")
    min_p: float | None = Field(None, ge=0, le=1, description="Drop tokens below this share of the likeliest's.")
    n: int | None = Field(None, ge=1, le=128)
    seed: int | None = Field(None, ge=-MAX_SEED, lt=MAX_SEED)
    stop: str | Annotated[list[Annotated[str, Field(min_length=1)]], Field(max_length=MAX_STOPS)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    user: NoEffect = None
    metadata: NoEffect = None
    service_tier: NoEffect = None
    safety_identifier: NoEffect = None
    prompt_cache_key: NoEffect = None

    presence_penalty: OnlyZero = None
    frequency_penalty: OnlyZero = None
    logit_bias: OnlyEmpty = None

    def sampling(self, max_tokens: int, logprobs: int | None) -> SamplingParams:
        """The engine's settings; what was left out takes Llama 3.1's own values."""
        default = SamplingParams()
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        return SamplingParams(
            temperature=default.temperature if self.temperature is None else float(self.temperature),
            top_k=self.top_k or 0,
            top_p=default.top_p if self.top_p is None else float(self.top_p),
            min_p=float(self.min_p or 0),
            max_tokens=max_tokens,
            n=self.n or 1,
            seed=self.seed,
            stop=tuple(text for text in stop if text),
            logprobs=logprobs,
        )

    @property
    def with_usage(self) -> bool:
        """The stream ends with a chunk of token counts."""
        return bool(self.stream_options and self.stream_options.include_usage)


class TextPart(_Strict):
    """A part of a message's content."""

    type: Literal["text"]
    text: str


class ChatMessage(_Strict):
    """One message of the conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]

    def to_message(self) -> Message:
        """The house's own noun; `developer` is OpenAI's newer word for `system`."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return Message(role="system" if self.role == "developer" else self.role, content=text)


class ChatRequest(Generation):
    """The body of `POST /v1/chat/completions`."""

    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1, description="OpenAI's newer name of max_tokens.")
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)

    store: OnlyFalse = None
    parallel_tool_calls: NoEffect = None
    response_format: Annotated[Any, _only({"type": "text"})] = None
    tools: OnlyEmpty = None
    tool_choice: Annotated[Any, _only("none", "auto")] = None
    functions: OnlyEmpty = None
    function_call: Annotated[Any, _only("none", "auto")] = None
    modalities: Annotated[Any, _only(["text"])] = None
    audio: NotSupported = None
    prediction: NotSupported = None
    reasoning_effort: NotSupported = None
    verbosity: NotSupported = None
    web_search_options: NotSupported = None

    @property
    def conversation(self) -> Conversation:
        """The messages as the engine takes them."""
        return [message.to_message() for message in self.messages]

    @property
    def wanted_tokens(self) -> int | None:
        """The longest answer asked for."""
        return self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens

    @property
    def wanted_logprobs(self) -> int | None:
        """How many likely tokens to report for each place; None for no report at all."""
        return (self.top_logprobs or 0) if self.logprobs else None


class CompletionRequest(Generation):
    """The body of `POST /v1/completions`."""

    prompt: str | list[str] | list[int] | list[list[int]]
    logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)

    best_of: Annotated[Any, _only(1)] = None
    echo: OnlyFalse = None
    suffix: OnlyEmpty = None

    @property
    def prompts(self) -> list[str | list[int]]:
        """Each prompt, as text or as token ids."""
        many = isinstance(self.prompt, list) and self.prompt and not isinstance(self.prompt[0], int)
        return list(self.prompt) if many else [self.prompt]

    @property
    def wanted_tokens(self) -> int | None:
        """The longest answer asked for."""
        return self.max_tokens

    @property
    def wanted_logprobs(self) -> int | None:
        """How many likely tokens to report for each place; None for no report at all."""
        return self.logprobs


KNOWN_FIELDS = sorted({*ChatRequest.model_fields, *CompletionRequest.model_fields, *ChatMessage.model_fields})
"""Every field that a body may hold, for "did you mean"."""
