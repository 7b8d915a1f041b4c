"""Plain completions: `POST /v1/completions`, as OpenAI describes it; texts and token ids are gone on with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import Field, model_validator

from herd.infer.request import MAX_LOGPROBS, Piece
from herd.serve.answers import answer
from herd.serve.body import Generation, Inputs, OnlyEmpty
from herd.serve.documents import TextCompletion, streamed
from herd.serve.models import Model, Models
from herd.serve.reading import Apart
from herd.serve.replies import Counts, Event, Reply, num_tokens, usage_of
from herd.serve.services import Services
from herd.serve.speech import Speech, Unscored
from herd.serve.tools import Part, Words
from herd.serve.turn import Turn
from herd.tokenizer.stream import TextStream
from herd.types import SamplingParams, TokenLogprob


class CompletionRequest(Generation):
    """The body of `POST /v1/completions`."""

    input_field: ClassVar[str] = "prompt"

    prompt: Inputs
    max_tokens: int | None = Field(
        None, ge=0, description="Longest answer, in tokens; 0 with `echo`: the prompt alone."
    )
    logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    best_of: int | None = Field(None, ge=1, le=128, description="Draw so many, return the n likeliest by token.")
    echo: bool | None = Field(None, description="Begin each answer with its prompt.")

    suffix: OnlyEmpty = None

    @model_validator(mode="after")
    def _best_of_enough(self) -> CompletionRequest:
        if self.max_tokens == 0 and not self.echo:
            raise ValueError("has `max_tokens` 0, which asks for nothing without `echo`")
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
            max_tokens=self.wanted_tokens or (1 if self.max_tokens == 0 else None),
            empty=self.max_tokens == 0,
            echo=bool(self.echo),
            stream=bool(self.stream),
            with_usage=self.with_usage,
            usage_throughout=self.usage_throughout,
        )

    def reply(self, model: Model, turn: Turn, prompts: Sequence[list[int]]) -> CompletionReply:
        """How it is answered."""
        return CompletionReply(model, turn, prompts)


class CompletionReply(Reply):
    """`text_completion` objects, whole or in chunks of the same kind."""

    id_prefix = "cmpl-"

    def __init__(self, model: Model, turn: Turn, prompts: Sequence[list[int]] = ()) -> None:
        super().__init__(model, turn, prompts)
        self._places: dict[int, _Places] = {}
        self._written_tokens = 0

    def whole(self, answers: Sequence[Speech], counts: Counts) -> dict[str, Any]:
        """The response that is not streamed."""
        choices = [self._whole(index, answer) for index, answer in enumerate(answers)]
        count = 0 if self.turn.empty else num_tokens(answers)
        return self._frame(choices) | {"usage": usage_of(counts, count)}

    def _whole(self, index: int, answer: Speech) -> dict[str, Any]:
        text, entries, finish = answer.text, answer.logprobs, answer.finish_reason
        if self.turn.empty:  # what was drawn stands behind the prompt, and was not asked for
            prompt = index // self.turn.params.n
            text, entries, finish = self.echoes[prompt], entries[: len(self.prompts[prompt])], "length"
        return self._choice(index, text, self._logprobs(entries, _Places(self)), finish) | _refusal(answer)

    def opening(self, index: int, prompt: int = 0) -> Iterator[Event]:
        """An answer's prompt, where that is echoed."""
        self._places[index] = _Places(self)
        if self.echoes:
            self._places[index].length = len(self.echoes[prompt])
            yield self._frame([self._choice(index, self.echoes[prompt], None, None)])

    def chunks(self, index: int, parts: Sequence[Part], piece: Piece, answer: Speech) -> Iterator[Event]:
        """The chunk that a piece makes."""
        self._written_tokens += len(piece.tokens)
        text = "" if self.turn.empty else "".join(part.text for part in parts if isinstance(part, Words))
        logprobs = None if self.turn.empty else self._logprobs(piece.logprobs, self._places[index])
        finish = "length" if self.turn.empty and piece.finish_reason else piece.finish_reason
        if text or finish or (logprobs and piece.logprobs):
            choice = self._choice(index, text, logprobs, finish)
            frame = self._frame([choice | _refusal(answer) if finish else choice])
            if self.turn.usage_throughout:
                frame["usage"] = usage_of(Counts(sum(map(len, self.prompts))), self._written_tokens)
            yield frame

    def closing(self, answers: Sequence[Speech], counts: Counts) -> Iterator[Event]:
        """The chunk of token counts, where it was asked for."""
        if self.turn.with_usage:
            count = 0 if self.turn.empty else num_tokens(answers)
            yield self._frame([]) | {"usage": usage_of(counts, count)}

    def _choice(self, index: int, text: str, logprobs: dict[str, Any] | None, finish: str | None) -> dict[str, Any]:
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish}

    def _frame(self, choices: list[dict[str, Any]]) -> Event:
        head = {"id": self.id, "object": "text_completion", "created": self.created, "model": self.model}
        head |= {"usage": None} if self.turn.with_usage else {}  # of every chunk but the last one
        return head | {"system_fingerprint": self.fingerprint, "choices": choices}

    def _logprobs(self, entries: Sequence[TokenLogprob | Unscored], places: _Places) -> dict[str, Any] | None:
        if self.turn.params.logprobs is None:
            return None
        return {
            "tokens": [self.name_of(entry.token) for entry in entries],
            "token_logprobs": [entry.logprob for entry in entries],
            "top_logprobs": [
                None if entry.logprob is None else {self.name_of(token): value for token, value in entry.top}
                for entry in entries
            ],
            "text_offset": [places.next(entry.token) for entry in entries],
        }


def _refusal(answer: Speech) -> dict[str, Any]:
    """A guard's words and verdict, which OpenAI's form has no place for."""
    return {} if answer.refusal is None else {"refusal": answer.refusal, "verdict": answer.verdict}


class _Places:
    """Where the tokens of one answer begin in its text, in characters.

    A token that begins within a character begins where the character does; one that is no text takes no place.
    """

    def __init__(self, reply: Reply) -> None:
        self._stream = TextStream(reply.tokenizer, skip_unknown=True)
        self.length = 0

    def next(self, token: int) -> int:
        """The place of the next token."""
        place = self.length
        self.length += len(self._stream.push(token))
        return place


def routes(services: Services, models: Models) -> APIRouter:
    """The router of this dialect."""
    router = APIRouter(prefix="/v1", route_class=Apart)

    @router.post("/completions", response_model=None, responses=streamed(TextCompletion))
    async def completions(body: CompletionRequest, http: Request) -> Response:
        return await answer(services, models.find(body.model), http, body)

    return router
