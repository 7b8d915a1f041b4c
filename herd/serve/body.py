"""What the bodies of requests have in common.

Every field either works, or has no effect on the answer and is accepted (`user`, `metadata`...), or cannot be honoured
and is accepted and named (`verbosity`), or is refused by name unless its value asks for nothing (`audio`).
"""

from __future__ import annotations

import json
import typing
from dataclasses import replace
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from herd.infer.request import MAX_SEED
from herd.serve.models import Model
from herd.serve.reading import Sound
from herd.serve.unheeded import named
from herd.types import SamplingParams

MAX_STOPS = 64
MAX_STOP_CHARACTERS = 4096  # of all stops together: each token of an answer is held against them
MAX_INPUTS = 2048
MAX_MESSAGES = 2048
MAX_FIELDS = 64  # of one object of the API's own
MAX_BIASES = 1024


def only(*neutral: Any) -> AfterValidator:
    def check(value: Any) -> Any:
        if value is not None and value not in neutral:
            allowed = f" or give {neutral[0]!r}" if neutral else ""
            raise ValueError(f"is not supported here; leave it out{allowed}")
        return value

    return AfterValidator(check)


def _few_biases(value: Any) -> Any:
    if isinstance(value, dict) and len(value) > MAX_BIASES:
        raise ValueError(f"has {len(value):,} entries; at most {MAX_BIASES:,} are taken")
    return value


def _short_stops(value: Any) -> Any:
    total = len(value) if isinstance(value, str) else sum(map(len, value or ()))
    if total > MAX_STOP_CHARACTERS:
        raise ValueError(f"has {total:,} characters; all stops together may have {MAX_STOP_CHARACTERS:,}")
    return value


SHORT_STOPS = AfterValidator(_short_stops)


def enum_of(*values: Any) -> Any:
    return Field(json_schema_extra={"enum": [None, *values]})


NotSupported = Annotated[Any, only(), enum_of()]
OnlyOne = Annotated[Any, only(1), enum_of(1)]
OnlyFalse = Annotated[Any, only(False), enum_of(False)]
OnlyEmpty = Annotated[Any, only([], {}, ""), enum_of([], {}, "")]
OnlyText = Annotated[Any, only(["text"]), enum_of(["text"])]
NoEffect = Annotated[Any, Field(description="Accepted; has no effect on the answer.")]

TokenId = Annotated[int, Field(ge=0, lt=2**31)]
Ids = Annotated[list[TokenId], Field(min_length=1, fail_fast=True)]  # the first fault of a long list is enough
Inputs = (
    str
    | Annotated[list[str], Field(min_length=1, max_length=MAX_INPUTS, fail_fast=True)]
    | Ids
    | Annotated[list[Ids], Field(min_length=1, max_length=MAX_INPUTS, fail_fast=True)]
)
Name = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9_.-]+$")]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _has_few_fields(cls, data: Any) -> Any:
        if isinstance(data, dict) and len(data) > MAX_FIELDS:  # each unknown one would be a fault of its own
            raise ValueError(f"has {len(data):,} fields; no object here has more than {MAX_FIELDS}")
        return data

    @model_validator(mode="before")
    @classmethod
    def _null_is_left_out(cls, data: Any) -> Any:
        """`null` says as much as no field at all where the field has a value of its own."""
        if not isinstance(data, dict) or not any(value is None for value in data.values()):
            return data
        return {name: value for name, value in data.items() if value is not None or not _has_default(cls, name)}


class Open(Strict):
    """An object of a history: what nobody knows in it is passed over, and named."""

    model_config = ConfigDict(extra="allow", strict=True)


class Body(Strict):
    """The whole body of a request."""

    @model_validator(mode="before")
    @classmethod
    def _whole_numbers(cls, data: Any) -> Any:
        """JSON has one kind of number: 3.0 is as whole as 3."""
        if not isinstance(data, dict):
            return data
        return {name: int(value) if _is_whole(cls, name, value) else value for name, value in data.items()}

    def unheeded(self, model: Model) -> list[str]:
        """The names of fields that are accepted and cannot be honoured."""
        return named(self)

    @model_validator(mode="before")
    @classmethod
    def _istext_of(cls, data: Any) -> Any:
        """JSON can hold half a character (`"\\ud800"`); what no text can hold is not replaced in silence."""
        if isinstance(data, Sound) or not isinstance(data, dict):  # looked at already, or refused as no object
            return data
        try:
            json.dumps(data, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise ValueError("holds half of a character pair (a lone surrogate), which is no text") from None
        except RecursionError:
            raise ValueError("is nested too deeply") from None
        return data


def _is_whole(cls: type[BaseModel], name: str, value: Any) -> bool:
    info = cls.model_fields.get(name) if isinstance(value, float) and value.is_integer() else None
    return info is not None and int in (info.annotation, *typing.get_args(info.annotation))


def _has_default(cls: type[BaseModel], name: str) -> bool:
    info = cls.model_fields.get(name)
    return info is not None and not info.is_required() and info.default is not None


class StreamOptions(Strict):
    """What a stream carries besides text."""

    include_usage: bool = False
    continuous_usage_stats: bool = Field(False, description="Counts of tokens in every chunk (vLLM).")
    include_obfuscation: NoEffect = None


class StructuredOutputs(Strict):
    """The form an answer must have, in one of four ways (vLLM's extension of the API)."""

    json_: dict[str, Any] | None = Field(None, alias="json", description="A JSON schema.")
    regex: str | None = Field(None, min_length=1)
    choice: Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1, fail_fast=True)] | None = None
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


class Drawing(Body):
    """The fields that say how tokens are drawn, in every dialect."""

    model: str | None = Field(None, description="Id of the model; the first one that is served when left out.")
    min_tokens: int | None = Field(None, ge=0, description="No end before so many tokens.")
    temperature: float | None = Field(None, ge=0, allow_inf_nan=False, description="0 is greedy.")
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1, description="Keep the k likeliest tokens; 0 and -1 keep all.")
    min_p: float | None = Field(None, ge=0, le=1, description="Drop tokens below this share of the likeliest's.")
    seed: int | None = Field(None, ge=-MAX_SEED, lt=MAX_SEED)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    repetition_penalty: float | None = Field(None, gt=0, le=10)
    logit_bias: Annotated[
        dict[Annotated[str, Field(pattern=r"^[0-9]{1,9}$")], Annotated[float, Field(ge=-100, le=100)]] | None,
        BeforeValidator(_few_biases),
    ] = None
    ignore_eos: bool | None = Field(None, description="The model's own end tokens end nothing.")
    stop_token_ids: Annotated[list[TokenId], Field(max_length=MAX_STOPS, fail_fast=True)] | None = None
    structured_outputs: StructuredOutputs | None = None
    stream: bool | None = None

    user: NoEffect = None
    metadata: NoEffect = None
    service_tier: NoEffect = None
    safety_identifier: NoEffect = None
    prompt_cache_key: NoEffect = None
    prompt_cache_retention: NoEffect = None
    prompt_cache_options: NoEffect = None

    input_field: ClassVar[str]  # where the prompt stands

    def sampling(self) -> SamplingParams:
        """The engine's settings but the longest answer; what was left out takes Llama 3.1's own values."""
        given: dict[str, Any] = {
            "temperature": None if self.temperature is None else float(self.temperature),
            "top_k": None if self.top_k is None else max(self.top_k, 0),
            "top_p": None if self.top_p is None else float(self.top_p),
            "min_p": None if self.min_p is None else float(self.min_p),
            "seed": self.seed,
            "min_tokens": self.min_tokens or None,
            "presence_penalty": float(self.presence_penalty or 0) or None,
            "frequency_penalty": float(self.frequency_penalty or 0) or None,
            "repetition_penalty": self.repetition_penalty,
            "logit_bias": {int(token): float(bias) for token, bias in (self.logit_bias or {}).items()} or None,
            "logprobs": self.wanted_logprobs,
            "ignore_eos": self.ignore_eos,
            "stop_token_ids": tuple(self.stop_token_ids or ()),
        }
        given |= self.constraint()
        return SamplingParams(**{k: v for k, v in given.items() if v is not None})

    @property
    def form_field(self) -> str:
        """Where the form of the answer was asked for."""
        return "structured_outputs"

    @property
    def wanted_logprobs(self) -> int | None:
        """How many likely tokens to report for each place; None for no report at all."""
        raise AssertionError("each body says")

    def constraint(self) -> dict[str, Any]:
        """The engine's setting for the form of the answer; empty where it is free."""
        return self.structured_outputs.constraint() if self.structured_outputs else {}

    def field_of(self, message: str) -> str:
        """The field that a message of the engine is about: it begins with a setting's name, or is about the prompt."""
        name = message.replace(":", " ").split(" ", 1)[0]
        if name in ("json_schema", "regex", "grammar", "choice"):
            return self.form_field
        return name if name in type(self).model_fields else self.input_field


class Generation(Drawing):
    """The fields that chat and plain completion share."""

    max_tokens: int | None = Field(None, ge=1, description="Longest answer, in tokens.")
    n: int | None = Field(None, ge=1, le=128)
    stop: Annotated[
        str | Annotated[list[Annotated[str, Field(min_length=1)]], Field(max_length=MAX_STOPS, fail_fast=True)] | None,
        SHORT_STOPS,
    ] = None
    stream_options: StreamOptions | None = None

    @model_validator(mode="after")
    def _options_of_a_stream(self) -> Generation:
        if self.stream_options is not None and not self.stream:
            raise ValueError("has `stream_options`, but no `stream: true`")
        return self

    def sampling(self) -> SamplingParams:
        """The engine's settings but the longest answer."""
        stop = (self.stop,) if isinstance(self.stop, str) else self.stop or ()
        return replace(super().sampling(), n=self.n or 1, stop=tuple(text for text in stop if text))

    @property
    def with_usage(self) -> bool:
        """The stream ends with a chunk of token counts."""
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def usage_throughout(self) -> bool:
        """Every chunk of the stream has counts of tokens."""
        return bool(self.stream_options and self.stream_options.continuous_usage_stats)

    @property
    def wanted_tokens(self) -> int | None:
        """The longest answer asked for."""
        return self.max_tokens
