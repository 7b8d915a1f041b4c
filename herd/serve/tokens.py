"""The routes that answer at once: `/tokenize`, `/detokenize` and `/v1/embeddings`."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from functools import partial
from typing import Annotated, Any, Literal, cast

from fastapi import APIRouter, Request
from fastapi.responses import Response, StreamingResponse
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn.functional import normalize

from herd.errors import DataError, RequestError
from herd.infer.embedder import Pooling
from herd.infer.engine import Engine
from herd.serve.body import MAX_MESSAGES, Body, Inputs, NoEffect, TokenId
from herd.serve.documents import REFUSALS, Detokenized, EmbeddingList, Tokenized
from herd.serve.errors import ApiError
from herd.serve.forms import MAX_TOOLS, Tool
from herd.serve.messages import ChatMessage
from herd.serve.models import Model, Models
from herd.serve.prompts import conversation_prompt, unknown_variables
from herd.serve.reading import Apart
from herd.serve.services import Services
from herd.serve.unheeded import named

MAX_TEXT = 1_000_000  # characters that /tokenize takes
MAX_LISTED = 200_000  # tokens that /tokenize and /detokenize list


class EmbeddingRequest(Body):
    """The body of `POST /v1/embeddings`."""

    model: str | None = None
    input: Inputs
    encoding_format: Literal["float", "base64"] = "float"
    pooling: Pooling = Field("mean", description="Of all tokens, or the last one's.")
    dimensions: int | None = Field(None, ge=1, description="Keep the first of so many, brought to length 1 again.")
    user: NoEffect = None

    @property
    def inputs(self) -> list[str | list[int]]:
        """Each input, as text or as token ids."""
        many = isinstance(self.input, list) and not isinstance(self.input[0], int)
        return cast("list[str | list[int]]", self.input if many else [self.input])


class TokenizeRequest(Body):
    """The body of `POST /tokenize`: a text, or a conversation up to the header of the answer."""

    model: str | None = None
    prompt: str | None = Field(None, max_length=MAX_TEXT)
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)] | None = None
    tools: Annotated[list[Tool], Field(max_length=MAX_TOOLS, fail_fast=True)] | None = None
    chat_template_kwargs: dict[str, Any] | None = Field(None, description="Variables of the template: date_string.")
    add_generation_prompt: bool = Field(True, description="End a conversation with the header of the answer.")
    continue_final_message: bool = Field(False, description="The last message is the answer's beginning.")
    add_special_tokens: bool = Field(True, description="Begin a text with the token that begins texts.")
    return_token_strs: bool | None = None

    @model_validator(mode="after")
    def _one_of_two(self) -> TokenizeRequest:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("needs either `prompt` or `messages`")
        if self.tools and self.messages is None:
            raise ValueError("has `tools`, which only `messages` are told of")
        return self

    def unheeded(self, model: Model) -> list[str]:
        """The names of fields that are accepted and cannot be honoured."""
        return named(self, unknown_variables(model.engine, self.chat_template_kwargs))


class DetokenizeRequest(Body):
    """The body of `POST /detokenize`."""

    model: str | None = None
    tokens: Annotated[list[TokenId], Field(max_length=MAX_LISTED, fail_fast=True)]


def routes(services: Services, models: Models) -> APIRouter:
    """The router of this file's routes."""
    router = APIRouter(responses=REFUSALS, route_class=Apart)

    @router.post("/tokenize", response_model=Tokenized)
    async def tokenize(body: TokenizeRequest, http: Request) -> Response:
        model = _model(models, body.model, http)
        http.scope["herd.request"].unheeded = await asyncio.to_thread(body.unheeded, model)
        found = await asyncio.to_thread(_tokenized, model.engine, body)
        return Response(found, media_type="application/json")

    @router.post("/detokenize", response_model=Detokenized)
    async def detokenize(body: DetokenizeRequest, http: Request) -> dict[str, Any]:
        tokenizer = _model(models, body.model, http).engine.tokenizer
        wrong = max(body.tokens, default=0)
        if wrong >= tokenizer.vocab_size:
            message = f"`tokens` holds id {wrong}; this model knows 0 to {tokenizer.vocab_size - 1}."
            raise ApiError(400, message, param="tokens")
        return {"prompt": await asyncio.to_thread(tokenizer.decode, body.tokens)}

    @router.post("/v1/embeddings", response_model=EmbeddingList)
    async def embeddings(body: EmbeddingRequest, http: Request) -> Response:
        model = _model(models, body.model, http)
        if model.base is not None:
            message = f"`{model.name}` is an adapter, and vectors are made without adapters; ask `{model.base.name}`."
            raise ApiError(400, message, param="model")
        width = model.engine.model.config.hidden_size
        if body.dimensions is not None and body.dimensions > width:
            raise ApiError(400, f"`dimensions` is {body.dimensions}; this model has {width}.", param="dimensions")
        prompts = await asyncio.to_thread(_prompts, model.engine, body)
        http.scope["herd.request"].prompt_tokens = count = sum(map(len, prompts))
        vectors = []
        for prompt in prompts:
            vector = await services.worker.run(partial(model.embedder.embed, prompt, body.pooling))
            vectors.append(vector if body.dimensions is None else normalize(vector[: body.dimensions], dim=0))
        usage = {"prompt_tokens": count, "total_tokens": count}
        head = {"object": "list", "model": model.name, "usage": usage}
        return StreamingResponse(_written(head, vectors, body.encoding_format), media_type="application/json")

    return router


def _model(models: Models, name: str | None, http: Request) -> Model:
    model = models.find(name)
    http.scope["herd.request"].model = model.name
    return model


async def _written(head: dict[str, Any], vectors: list[Tensor], form: str) -> AsyncIterator[str]:
    """The answer vector by vector: millions of numbers written at once would keep everybody else waiting."""
    yield json.dumps(head)[:-1] + ', "data": ['
    for index, vector in enumerate(vectors):
        value: Any = vector.tolist()
        if form == "base64":
            value = base64.b64encode(vector.numpy().astype("<f4").tobytes()).decode()
        yield ", " * (index > 0) + json.dumps({"object": "embedding", "index": index, "embedding": value})
        await asyncio.sleep(0)
    yield "]}"


def _tokenized(engine: Engine, body: TokenizeRequest) -> str:
    tokens = _tokenize(engine, body)
    if len(tokens) > MAX_LISTED:
        message = f"There are {len(tokens):,} tokens; at most {MAX_LISTED:,} are listed: ask in parts."
        raise ApiError(400, message, param="messages" if body.prompt is None else "prompt")
    found: dict[str, Any] = {"tokens": tokens, "count": len(tokens), "max_model_len": engine.max_context}
    if body.return_token_strs:
        found["token_strs"] = [engine.tokenizer.decode([token]) for token in tokens]
    return json.dumps(found, ensure_ascii=False)


def _tokenize(engine: Engine, body: TokenizeRequest) -> list[int]:
    if body.messages is None:
        return engine.tokenizer.encode(body.prompt or "", bos=body.add_special_tokens)
    if not engine.speaks_chat:
        raise ApiError(
            400, "`messages` needs a model that was trained on conversations; give `prompt`.", code="no_chat"
        )
    talk = [message.to_message() for message in body.messages]
    if any(message.get("files") for message in talk):
        raise ApiError(400, "Files are not told here; ask /v1/responses/input_tokens.", param="messages")
    try:
        return conversation_prompt(
            engine,
            talk,
            tools=[tool.model_dump(exclude_none=True, exclude={"function": {"strict"}}) for tool in body.tools or ()],
            template=body.chat_template_kwargs,
            goes_on=body.continue_final_message,
            opens_answer=body.add_generation_prompt,
        )
    except DataError as error:
        raise ApiError(400, str(error), param="messages") from None


def _prompts(engine: Engine, body: EmbeddingRequest) -> list[list[int]]:
    """The token ids of every input, checked before the first is computed."""
    prompts = []
    for item in body.inputs:
        prompt = item if isinstance(item, list) else engine.encode(item)
        try:
            engine.request(prompt)
        except RequestError as error:
            code = "context_length_exceeded" if "context" in str(error) else None
            raise ApiError(400, str(error), param="input", code=code) from None
        prompts.append(prompt)
    return prompts
