"""A tree of an answer's steps, grown by the server's worker: others are answered in between.

At most as many tokens are drawn as so many whole answers would have; those for one answer are kept back for the end.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import NamedTuple

from herd.infer.engine import Engine
from herd.infer.request import Request as EngineRequest
from herd.rollout.search import Score, Tree, TreeOptions, step_requests, steps_in
from herd.serve.worker import PieceRelay, Worker
from herd.types import Conversation

_STEP_TOKENS = 96


class Searched(NamedTuple):
    """The answer that was found, whether it has ended, and all tokens that were drawn."""

    text: str
    is_whole: bool
    num_tokens: int
    num_answers: int


@dataclass(frozen=True)
class Search:
    """Where and until when a tree grows."""

    worker: Worker
    engine: Engine
    until: float  # of the event loop's clock
    owner: str | None = None

    async def run(
        self, first: EngineRequest, talk: Conversation, score: Score, *, answers: int, width: int
    ) -> Searched:
        """The best answer to a request that was not submitted, from a tree of as many steps as so many answers have
        that are `width` lines long.

        Raises:
            TimeoutError: it was not found in time.
            RequestError: a beginning has become too long.
        """
        params, longest = first.params, first.params.max_tokens
        options = TreeOptions(
            expansions=answers,
            width=width,
            step_tokens=min(_STEP_TOKENS, longest),
            answer_tokens=longest,
            temperature=params.temperature,
            seed=params.seed or 0,
        )
        tree, spent = Tree(talk, list(first.prompt)), 0
        for turn in range(options.expansions):
            node = tree.leaf(options.curiosity)
            if node is None or spent + width * options.step_tokens > (answers - 1) * longest:
                break
            begun = (tree.prompt, node.text)
            (request,) = step_requests(self.engine, [begun], options, turn, owner=self.owner, adapter=params.adapter)
            relay = PieceRelay()
            request.listener = relay.listener(0)
            await self._draw(request, relay)
            spent += sum(len(answer.tokens) for answer in request.answers)
            steps = steps_in(self.engine, begun, request, options)
            values = await asyncio.to_thread(score, [tree.talk(text) for text, _ in steps])
            tree.grow(node, [(text, whole, value) for (text, whole), value in zip(steps, values, strict=True)])
        if tree.whole:
            return Searched(tree.best().text, True, spent, len(tree.whole))
        begun_text = tree.beginning().text if tree.root.children else ""
        so_far = self.engine.tokenizer.encode(begun_text) if begun_text else []
        left = max(longest - len(so_far), 1)
        relay, params = PieceRelay(), replace(params, max_tokens=left)
        end = self.engine.request([*tree.prompt, *so_far], params, relay.listener(0), owner=self.owner)
        await self._draw(end, relay)
        (answer,) = end.answers
        text = begun_text + self.engine.text_of(answer)
        return Searched(text.strip(), answer.finish_reason == "stop", spent + len(answer.tokens), 1)

    async def _draw(self, request: EngineRequest, relay: PieceRelay) -> None:
        """Have the worker answer a request."""
        async with aclosing(relay.pieces(self.worker, self.engine, [request], self.until)) as batches:
            async for _ in batches:
                pass
