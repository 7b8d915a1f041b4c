"""Plain completions: `POST /v1/completions`, as OpenAI describes it; texts and token ids are gone on with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import Field, model_validator

from herd.infer.request import MAX_LOGPROBS, Piece
from herd.serve.answers import Desk, answer
from herd.serve.body import Generation, Inputs, OnlyEmpty
from herd.serve.documents import TextCompletion, streamed
from herd.serve.models import Models
from herd.serve.replies import Event, Gathered, Reply, Unscored, usage_of
from herd.serve.turn import Turn
from herd.tokenizer.tokenizer import Tokenizer
from herd.types import SamplingParams, TokenLogprob


class CompletionRequest(Generation):
    """The body of `POST /v1/completions`."""

    input_field: ClassVar[str] = "prompt"

    prompt: Inputs
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

    def sampling(self) -> SamplingParams:
        """The engine's settings but the longest answer."""
        prompt_logprobs = self.logprobs if self.echo else None
        return replace(super().sampling(), best_of=self.best_of, prompt_logprobs=prompt_logprobs)

    @property
    def prompts(self) -> list[str | list[int]]:
        """Each prompt, as text or as token ids."""
        prompt: Any = self.prompt
        return prompt if isinstance(prompt, list) and not isinstance(prompt[0], int) else [prompt]

    @property
    def wanted_logprobs(self) -> int | None:
        """How many likely tokens to report for each place; None for no report at all."""
        return self.logprobs

    def turn(self) -> Turn:
        """What is asked for."""
        return Turn(
            inputs=self.prompts,
            params=self.sampling(),
            max_tokens=self.wanted_tokens,
            echo=bool(self.echo),
            stream=bool(self.stream),
            with_usage=self.with_usage,
        )

    def reply(self, tokenizer: Tokenizer, model: str, turn: Turn, prompts: Sequence[list[int]]) -> CompletionReply:
        """How it is answered."""
        return CompletionReply(tokenizer, model, turn, prompts)


class CompletionReply(Reply):
    """`text_completion` objects, whole or in chunks of the same kind."""

    id_prefix = "cmpl-"

    def whole(self, answers: Sequence[Gathered], prompt_tokens: int) -> dict[str, Any]:
        """The response that is not streamed."""
        usage = usage_of(prompt_tokens, sum(answer.num_tokens for answer in answers))
        choices = [
            self._choice(index, answer.text, self._logprobs(answer.logprobs, 0), answer.finish_reason)
            for index, answer in enumerate(answers)
        ]
        return self._frame(choices) | {"usage": usage}

    def opening(self, index: int, prompt: int = 0) -> Iterator[Event]:
        """An answer's prompt, where that is echoed."""
        if self.echoes:
            yield self._frame([self._choice(index, self.echoes[prompt], None, None)])

    def chunks(self, index: int, piece: Piece, answer: Gathered) -> Iterator[Event]:
        """Add a piece to its answer; the chunk that it makes."""
        offset = len(answer.text)
        text, _ = self.take(index, piece, answer)
        logprobs = self._logprobs(piece.logprobs, offset)
        if text or piece.finish_reason or (logprobs and piece.logprobs):
            yield self._frame([self._choice(index, text, logprobs, piece.finish_reason)])

    def closing(self, answers: Sequence[Gathered], prompt_tokens: int) -> Iterator[Event]:
        """The chunk of token counts, where it was asked for."""
        if self.turn.with_usage:
            usage = usage_of(prompt_tokens, sum(answer.num_tokens for answer in answers))
            yield self._frame([]) | {"usage": usage}

    def _choice(self, index: int, text: str, logprobs: dict[str, Any] | None, finish: str | None) -> dict[str, Any]:
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish}

    def _frame(self, choices: list[dict[str, Any]]) -> Event:
        kind = "text_completion"
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model, "choices": choices}

    def _logprobs(self, entries: Sequence[TokenLogprob | Unscored], text_offset: int) -> dict[str, Any] | None:
        if self.turn.params.logprobs is None:
            return None
        tokens = [self.name_of(entry.token) for entry in entries]
        offsets = [text_offset]
        for token in tokens[:-1]:
            offsets.append(offsets[-1] + len(token))
        return {
            "tokens": tokens,
            "token_logprobs": [entry.logprob for entry in entries],
            "top_logprobs": [
                None if entry.logprob is None else {self.name_of(token): value for token, value in entry.top}
                for entry in entries
            ],
            "text_offset": offsets[: len(tokens)],
        }


def routes(desk: Desk, models: Models) -> APIRouter:
    """The router of this dialect."""
    router = APIRouter(prefix="/v1")

    @router.post("/completions", response_model=None, responses=streamed(TextCompletion))
    async def completions(body: CompletionRequest, http: Request) -> Response:
        return await answer(desk, models.find(body.model), http, body)

    return router
