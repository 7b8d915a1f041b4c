"""The routes that answer at once: `/tokenize`, `/detokenize` and `/v1/embeddings`."""

from __future__ import annotations

import asyncio
import base64
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from pydantic import Field, model_validator

from herd.errors import DataError, RequestError
from herd.infer.embedder import Pooling
from herd.infer.engine import Engine
from herd.serve.answers import Desk
from herd.serve.body import MAX_INPUTS, Body, NoEffect, NotSupported, TokenId
from herd.serve.documents import REFUSALS, Detokenized, EmbeddingList, Tokenized
from herd.serve.errors import ApiError
from herd.serve.messages import ChatMessage
from herd.serve.models import Model, Models


class EmbeddingRequest(Body):
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


class TokenizeRequest(Body):
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


class DetokenizeRequest(Body):
    """The body of `POST /detokenize`."""

    model: str | None = None
    tokens: list[TokenId]


def routes(desk: Desk, models: Models) -> APIRouter:
    """The router of this file's routes."""
    router = APIRouter(responses=REFUSALS)

    @router.post("/tokenize", response_model=Tokenized)
    async def tokenize(body: TokenizeRequest, http: Request) -> dict[str, Any]:
        model = _model(models, body.model, http)
        tokens = await asyncio.to_thread(_tokenize, model.engine, body)
        found: dict[str, Any] = {"tokens": tokens, "count": len(tokens), "max_model_len": model.engine.max_context}
        if body.return_token_strs:
            found["token_strs"] = [model.engine.tokenizer.decode([token]) for token in tokens]
        return found

    @router.post("/detokenize", response_model=Detokenized)
    async def detokenize(body: DetokenizeRequest, http: Request) -> dict[str, Any]:
        tokenizer = _model(models, body.model, http).engine.tokenizer
        wrong = next((token for token in body.tokens if token >= tokenizer.vocab_size), None)
        if wrong is not None:
            message = f"`tokens` holds id {wrong}; this model knows 0 to {tokenizer.vocab_size - 1}."
            raise ApiError(400, message, param="tokens")
        return {"prompt": tokenizer.decode(body.tokens)}

    @router.post("/v1/embeddings", response_model=EmbeddingList)
    async def embeddings(body: EmbeddingRequest, http: Request) -> dict[str, Any]:
        model = _model(models, body.model, http)
        if model.base is not None:
            message = f"`{model.name}` is an adapter, and vectors are made without adapters; ask `{model.base.name}`."
            raise ApiError(400, message, param="model")
        prompts = await asyncio.to_thread(_prompts, model.engine, body)
        http.scope["herd.account"].prompt_tokens = count = sum(map(len, prompts))
        data = []
        for index, prompt in enumerate(prompts):
            vector = await desk.worker.run(lambda prompt=prompt: model.embedder.embed(prompt, body.pooling))
            if body.encoding_format == "base64":
                value: Any = base64.b64encode(vector.numpy().astype("<f4").tobytes()).decode()
            else:
                value = vector.tolist()
            data.append({"object": "embedding", "index": index, "embedding": value})
        usage = {"prompt_tokens": count, "total_tokens": count}
        return {"object": "list", "model": model.name, "data": data, "usage": usage}

    return router


def _model(models: Models, name: str | None, http: Request) -> Model:
    model = models.find(name)
    http.scope["herd.account"].model = model.name
    return model


def _tokenize(engine: Engine, body: TokenizeRequest) -> list[int]:
    if body.messages is None:
        return engine.tokenizer.encode(body.prompt or "", bos=body.add_special_tokens)
    if not engine.speaks_chat:
        raise ApiError(
            400, "`messages` needs a model that was trained on conversations; give `prompt`.", code="no_chat"
        )
    try:
        return engine.encode([message.to_message() for message in body.messages])
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
