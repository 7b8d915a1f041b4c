"""Which sequences advance in the next step: continuous batching over a paged cache.

A request is admitted, first come first served, once its longest possible answer fits into blocks that are not reserved
for others; so nothing runs out of memory midway and nothing is ever swapped. Prompts are prefilled in chunks beside the
decoding sequences, the one served least recently first, so that a long prompt delays neither answers nor short prompts;
chunk borders do not depend on the load. The n answers of a request share its prompt's blocks, which are computed once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from herd.infer.blocks import BlockAllocator
from herd.infer.request import Answer, Request

_PROMPTS_AT_ONCE = 8  # prompts being prefilled, taking turns


@dataclass(frozen=True)
class PrefillChunk:
    """The part of a prompt that a step computes: positions `start` to `stop` of an answer's tokens."""

    answer: Answer
    start: int
    stop: int

    @property
    def is_last(self) -> bool:
        """Whether the prompt is complete with this chunk, so that the next token can be drawn."""
        return self.stop == self.answer.num_tokens


@dataclass
class StepPlan:
    """One step: sequences that decode a token (with drafts perhaps several), and chunks of prompts."""

    decode: list[Answer] = field(default_factory=list)
    chunks: list[PrefillChunk] = field(default_factory=list)
    places: dict[Answer, range] = field(default_factory=dict)  # if only some of an answer's positions are computed

    def __bool__(self) -> bool:
        return bool(self.decode or self.chunks)


class Scheduler:
    """The queue of waiting answers, the running batch, and the blocks reserved for them.

    `max_context` tokens must fit into the cache, so that every request can at least run alone.
    """

    def __init__(
        self,
        allocator: BlockAllocator,
        *,
        max_sequences: int,
        max_prompt_tokens: int,
        max_context: int,
        shares_prefixes: bool = True,
    ) -> None:
        self.allocator = allocator
        self.max_prompt_tokens, self.max_context = max_prompt_tokens, max_context
        self.waiting: deque[Answer] = deque()
        self.running: list[Answer] = []
        self.num_reserved_blocks = 0
        self._open: set[Request] = set()  # answers refer to their request only weakly
        self._free_rows = list(range(max_sequences - 1, -1, -1))
        self._shares_prefixes = shares_prefixes
        self._step = 0

    @property
    def has_work(self) -> bool:
        """Whether any answer waits or runs."""
        return bool(self.waiting or self.running)

    @property
    def num_decoding(self) -> int:
        """Running answers whose prompt is complete."""
        return sum(bool(answer.tokens) for answer in self.running)

    def add(self, request: Request) -> None:
        """Queue a request; one that was cancelled before is ignored."""
        if not request.finished:
            self._open.add(request)
        self.waiting.extend(answer for answer in request.answers if not answer.finish_reason)

    def plan(self, guess: Callable[[Answer, int], list[int]] | None = None) -> StepPlan:
        """The next step. Decoding sequences always advance; prompts share the step's budget of prompt tokens.

        `guess(answer, most)` gives at most `most` drafts of an answer's next tokens.
        """
        self._step += 1
        plan = StepPlan(decode=[answer for answer in self.running if answer.tokens])
        budget = self.max_prompt_tokens
        for answer in self._prompts():
            if answer.served_at < 0:
                self._match_again(answer)
            chunk = self._next_chunk(answer)
            if chunk.stop - chunk.start > budget:
                continue
            budget -= chunk.stop - chunk.start
            if answer.served_at < 0 and answer is answer.request.leader and not answer.tokens:
                answer.request.num_cached = chunk.start
            answer.served_at = self._step
            plan.chunks.append(chunk)
            self._advance(answer, chunk.stop)
        for answer in plan.decode:
            answer.drafts = guess(answer, self._room(answer)) if guess else []
            self._advance(answer, answer.num_tokens)
        return plan

    def settle(self, answer: Answer) -> None:
        """After a step drew an answer's tokens: roll back to the last accepted one.

        The rejected drafts' slots will be overwritten; their blocks stay, since they were reserved anyway.
        """
        answer.drafts = []
        answer.num_computed = answer.num_tokens - 1
        answer.num_drafter_computed = min(answer.num_drafter_computed, answer.num_computed)

    def fork(self, leader: Answer) -> tuple[list[Answer], list[tuple[int, int]]]:
        """After a prompt's last chunk: start the request's other answers on its blocks, as many as fit.

        Full blocks are shared. The last one, if it is not full, must be copied for each: the pairs (from, to).
        """
        siblings: list[Answer] = []
        copies: list[tuple[int, int]] = []
        if len(leader.request.answers) == 1:
            return siblings, copies
        num_shared, rest = divmod(leader.num_computed, self.allocator.block_size)
        for sibling in leader.request.answers[1:]:
            needed = self._blocks_for(sibling) - num_shared
            if sibling.row >= 0 or sibling.finish_reason or not self._fits(needed):
                continue
            self._enter(sibling, needed)
            for block in leader.blocks[:num_shared]:
                self.allocator.share(block)
            sibling.blocks = leader.blocks[:num_shared]
            sibling.num_computed = leader.num_computed
            sibling.num_registered, sibling.content = leader.num_registered, leader.content
            if rest:
                self._take_block(sibling)
                copies.append((leader.blocks[-1], sibling.blocks[-1]))
            siblings.append(sibling)
        if siblings:
            gone = set(map(id, siblings))
            self.waiting = deque(answer for answer in self.waiting if id(answer) not in gone)
        return siblings, copies

    def finish(self, answer: Answer, reason: str) -> None:
        """End an answer, waiting or running, and release its blocks and reservations."""
        if answer.finish_reason:
            return
        answer.finish_reason = reason
        if answer.request.finished:
            self._open.discard(answer.request)
        if answer.row < 0:
            if answer in self.waiting:  # unless it was cancelled before it was queued
                self.waiting.remove(answer)
            return
        self.running.remove(answer)
        self._free_rows.append(answer.row)
        answer.row = -1
        self.num_reserved_blocks -= answer.reserved_blocks
        answer.reserved_blocks = 0
        self.allocator.release(answer.blocks)
        answer.blocks = []

    # ---- admission -------------------------------------------------------------------------------------------------

    def _prompts(self) -> list[Answer]:
        """The prompts being prefilled, least recently served first; new ones are admitted as long as they fit."""
        prompts = [answer for answer in self.running if not answer.tokens]
        while len(prompts) < _PROMPTS_AT_ONCE and (answer := self._admit_next()) is not None:
            prompts.append(answer)
        return sorted(prompts, key=lambda answer: (max(answer.served_at, answer.admitted_at), answer.served_at >= 0))

    def _admit_next(self) -> Answer | None:
        """Admit the first waiting answer; None if it does not fit (later ones do not overtake it).

        Answers whose prompt is being computed for their leader are skipped: they join when it is complete.
        """
        if not self._free_rows:
            return None
        for place, answer in enumerate(self.waiting):
            leader = answer.request.leader
            if answer is not leader and leader.row >= 0 and not leader.tokens:
                continue
            if not self._admit(answer):
                return None
            del self.waiting[place]
            return answer
        return None

    def _admit(self, answer: Answer) -> bool:
        blocks, content = self._known_prefix(answer)
        needed = self._blocks_for(answer) - len(blocks)
        if not self._fits(needed):
            self.allocator.release(blocks)
            return False
        self._enter(answer, needed)
        answer.blocks, answer.content, answer.num_registered = blocks, content, len(blocks)
        answer.num_computed = len(blocks) * self.allocator.block_size
        return True

    def _known_prefix(self, answer: Answer) -> tuple[list[int], int]:
        """Cached blocks of the prompt's prefix; none if log-probabilities of the prompt need all of it computed."""
        request = answer.request
        if not self._shares_prefixes or (request.params.prompt_logprobs is not None and answer is request.leader):
            return [], request.root
        return self.allocator.match(request.prompt, request.root)

    def _match_again(self, answer: Answer) -> None:
        """Before its first chunk: also use blocks that were cached since the answer was admitted."""
        blocks, content = self._known_prefix(answer)
        more = len(blocks) - len(answer.blocks)
        if more <= 0:
            self.allocator.release(blocks)
            return
        self.allocator.release(answer.blocks)
        answer.reserved_blocks -= more
        self.num_reserved_blocks -= more
        answer.blocks, answer.content, answer.num_registered = blocks, content, len(blocks)
        answer.num_computed = len(blocks) * self.allocator.block_size

    def _enter(self, answer: Answer, num_blocks: int) -> None:
        answer.row = self._free_rows.pop()
        answer.admitted_at = self._step
        answer.reserved_blocks = num_blocks
        self.num_reserved_blocks += num_blocks
        self.running.append(answer)

    def _fits(self, num_blocks: int) -> bool:
        return bool(self._free_rows) and num_blocks <= self.allocator.num_free - self.num_reserved_blocks

    def _blocks_for(self, answer: Answer) -> int:
        """Blocks for the longest answer allowed."""
        return -(-self._most_computed(answer) // self.allocator.block_size)

    def _most_computed(self, answer: Answer) -> int:
        """Tokens of the longest answer allowed, without the last one, whose keys and values are never needed."""
        request = answer.request
        return min(len(request.prompt) + request.params.max_tokens, self.max_context) - 1

    def _room(self, answer: Answer) -> int:
        """How many drafts fit after an answer's tokens."""
        return max(self._most_computed(answer) - answer.num_tokens, 0)

    # ---- progress --------------------------------------------------------------------------------------------------

    def _next_chunk(self, answer: Answer) -> PrefillChunk:
        """Up to the next multiple of a step's budget, so that chunk borders never depend on other requests."""
        start, most = answer.num_computed, self.max_prompt_tokens
        return PrefillChunk(answer, start, min(answer.num_tokens, start - start % most + most))

    def _advance(self, answer: Answer, stop: int) -> None:
        """Take the blocks for positions up to `stop` and the drafts after it, and register the full ones for sharing.

        They may be shared before they are written, because a step writes all keys before it reads any. Blocks with
        drafts are not shared, since drafts may be rejected.
        """
        block_size = self.allocator.block_size
        while len(answer.blocks) * block_size < stop + len(answer.drafts):
            self._take_block(answer)
        answer.num_computed = stop
        if not self._shares_prefixes:
            return
        while (answer.num_registered + 1) * block_size <= stop:
            start = answer.num_registered * block_size
            tokens = answer.token_range(start, start + block_size)
            answer.content = self.allocator.register(answer.blocks[answer.num_registered], answer.content, tokens)
            answer.num_registered += 1

    def _take_block(self, answer: Answer) -> None:
        answer.blocks.append(self.allocator.take())
        answer.reserved_blocks -= 1
        self.num_reserved_blocks -= 1
