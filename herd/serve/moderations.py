"""`POST /v1/moderations`: what the server's guards say of texts, as OpenAI describes it."""

from __future__ import annotations

import asyncio
import uuid
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from pydantic import Field

from herd.errors import ConfigError
from herd.safety.guard import Verdict
from herd.safety.opened import AnyGuard
from herd.safety.policy import Where
from herd.serve.body import MAX_INPUTS, Body, NoEffect, Strict
from herd.serve.documents import REFUSALS, Moderations
from herd.serve.errors import ApiError
from herd.serve.reading import Apart
from herd.serve.turn import Turn
from herd.serve.watch import Watch
from herd.types import SamplingParams

OPENAI = (
    *("harassment", "harassment/threatening", "hate", "hate/threatening", "illicit", "illicit/violent"),
    *("self-harm", "self-harm/intent", "self-harm/instructions", "sexual", "sexual/minors", "violence"),
    "violence/graphic",
)
"""The categories that OpenAI's clients expect; a policy's `moderation` says to which of them its own belong."""


class TextPart(Strict):
    """A text among the inputs."""

    type: Literal["text"]
    text: str


class ModerationRequest(Body):
    """The body of `POST /v1/moderations`."""

    input: str | Annotated[list[str | TextPart], Field(min_length=1, max_length=MAX_INPUTS, fail_fast=True)]
    model: NoEffect = None
    where: Where = Field("input", description="Judge it as what a user writes, as an answer, or as a tool's result.")
    categories: Annotated[list[str], Field(max_length=100)] | None = Field(None, description="Only these count.")
    threshold: float | None = Field(None, ge=0, le=1, description="Probability from which a text is flagged.")

    @property
    def texts(self) -> list[str]:
        """Each input as text."""
        several = [self.input] if isinstance(self.input, str) else self.input
        return [one if isinstance(one, str) else one.text for one in several]


def routes(watch: Watch | None) -> APIRouter:
    """The router of this route; without guards it says that there are none."""
    router = APIRouter(prefix="/v1", route_class=Apart)

    @router.post("/moderations", response_model=Moderations, responses=REFUSALS)
    async def moderations(body: ModerationRequest, http: Request) -> dict[str, Any]:
        if watch is None or not watch.guards:
            raise ApiError(404, "This server has no guard; start it with guard=FOLDER.", code="no_guard")
        record = http.scope["herd.request"]
        turn = Turn(inputs=(), params=SamplingParams(), owner=record.owner, request=record.id)
        results = await asyncio.to_thread(lambda: [_result(watch, text, body, turn) for text in body.texts])
        names = ", ".join(guard.policy.name for guard in watch.guards)
        return {"id": "modr-" + uuid.uuid4().hex, "model": names, "results": results}

    return router


def _result(watch: Watch, text: str, body: ModerationRequest, turn: Turn) -> dict[str, Any]:
    try:
        found = watch.moderated(text, body.where, body.categories, body.threshold, turn)
    except ConfigError as error:
        raise ApiError(400, str(error), param="categories") from None
    if not found and body.categories is not None:
        known = sorted({code for guard in watch.guards for code in guard.labels})
        message = f"No guard here knows one of these categories for {body.where}; known are {', '.join(known)}."
        raise ApiError(400, message, param="categories")
    scores = dict.fromkeys(OPENAI, 0.0)
    flags = dict.fromkeys(OPENAI, False)
    for guard, verdict in found:
        for code, score in (verdict.scores or {}).items():
            for name in (code, *_theirs(guard, code)):
                scores[name] = min(1.0, scores.get(name, 0.0) + score)
                flags[name] = flags.get(name, False) or (verdict.flagged and code in verdict.categories)
    return {
        "flagged": any(verdict.flagged for _, verdict in found),
        "categories": flags,
        "category_scores": scores,
        "category_applied_input_types": {name: ["text"] for name in scores},
        "verdicts": [_told(guard, verdict) for guard, verdict in found],
    }


def _theirs(guard: AnyGuard, code: str) -> list[str]:
    known = guard.policy.categories
    return known[code].moderation if code in known else []


def _told(guard: AnyGuard, verdict: Verdict) -> dict[str, Any]:
    return {
        "guard": guard.policy.name,
        "probability": round(verdict.probability, 4),
        "threshold": round(verdict.threshold, 4),
        "reading": verdict.reading,
    }
