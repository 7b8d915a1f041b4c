"""The engine's loop: plan a step, compute it, draw tokens, deliver them."""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Iterator
from typing import Any, Literal

import torch

from herd.errors import CheckpointError, ConfigError, RequestError
from herd.infer.adapters import Adapters
from herd.infer.blocks import ROOT, BlockAllocator
from herd.infer.build import Source, open_drafter
from herd.infer.cache import BLOCK_SIZE, PagedCache, block_bytes, num_blocks_for
from herd.infer.draw import draw
from herd.infer.options import Options
from herd.infer.pages import PageCopy
from herd.infer.request import Answer, Piece, Request
from herd.infer.runner import Output, Runner
from herd.infer.sampler import log_probabilities
from herd.infer.scheduler import Scheduler, StepPlan
from herd.infer.speculate import LOOKUP, DraftModel, PromptLookup, Speculation
from herd.infer.split import agree, split_for_inference
from herd.kernels import decoding
from herd.kernels import device as device_kernels
from herd.model.llama import LlamaForCausalLM
from herd.model.rope import fixed_rope
from herd.tokenizer.stream import TextStream
from herd.tokenizer.tokenizer import Tokenizer
from herd.types import TokenLogprob

_LOGPROB_ROWS = 64  # rows of logits held at a time for a prompt's log-probabilities


class Loop:
    """An engine's parts and its step. One thread at a time runs it (`lock`); requests arrive in the `inbox`."""

    def __init__(self, model: LlamaForCausalLM, tokenizer: Tokenizer, options: Options) -> None:
        config, weight, group = model.config, model.model.norm.weight, options.group
        if tokenizer.vocab_size > config.vocab_size:
            raise CheckpointError(
                f"The tokenizer has {tokenizer.vocab_size} tokens, but the model only {config.vocab_size}: "
                "they do not belong together."
            )
        self.model, self.tokenizer = model, tokenizer
        self.adapters = Adapters(model)
        self._roots: dict[tuple[str | None, str | None], int] = {(None, None): ROOT}
        self._new_roots = itertools.count(ROOT - 1, -1)
        self.deterministic = options.deterministic
        if self.deterministic and weight.device.type == "cpu":
            decoding.wait()  # kernels that arrived later would change the rounding midway
        self.group = group
        if group is not None:
            if options.speculate is not None:
                raise ConfigError("speculate: not with a model over several processes; leave speculate out")
            if options.graphs:
                raise ConfigError("graphs: not with a model over several processes; leave graphs out")
            config = split_for_inference(model, group)
        drafter = None if options.speculate in (None, LOOKUP) else open_drafter(options.speculate, model, tokenizer)
        dtype = torch.int8 if options.cache_dtype == "int8" else weight.dtype
        with_graphs = options.graphs_on(weight.device)
        num_blocks = num_blocks_for(
            config,
            block_size=BLOCK_SIZE,
            dtype=dtype,
            device=weight.device,
            max_sequences=options.max_sequences,
            max_context=max(options.max_context or 0, config.max_position_embeddings),
            cache_bytes=options.cache_bytes,
            num_spare=int(with_graphs),
            other_bytes=0 if drafter is None else block_bytes(drafter.config, BLOCK_SIZE, weight.dtype),
        )
        num_blocks = num_blocks if group is None else agree(num_blocks, group)
        self.max_context = min(options.max_context or config.max_position_embeddings, num_blocks * BLOCK_SIZE)
        for own in (model, drafter) if drafter is not None else (model,):
            own.model.config = fixed_rope(own.config, self.max_context)  # keys are rotated once, for any length
        max_sequences = min(options.max_sequences, num_blocks)  # each needs at least one block
        limits: dict[str, Any] = {"max_sequences": max_sequences, "max_context": self.max_context}
        cache = PagedCache(
            config, num_blocks, block_size=BLOCK_SIZE, dtype=dtype, device=weight.device, num_spare=int(with_graphs)
        )
        self.runner = Runner(
            model, cache, adapters=self.adapters, with_graphs=with_graphs, may_compile=group is None, **limits
        )
        self.allocator = BlockAllocator(num_blocks, BLOCK_SIZE)
        self.scheduler = Scheduler(
            self.allocator,
            max_prompt_tokens=options.prompt_tokens_on(weight.device),
            shares_prefixes=not options.deterministic,
            **limits,
        )
        self._moving: PageCopy | None = None
        self.may_move = False
        self.speculation: Speculation | None = None
        always = options.deterministic  # several tokens at once round differently than one, so timing must not decide
        if options.speculate == LOOKUP:
            self.speculation = Speculation(PromptLookup(), always=always)
        elif drafter is not None:
            pages = PagedCache(
                drafter.config, num_blocks, block_size=BLOCK_SIZE, dtype=weight.dtype, device=weight.device
            )
            guesser = DraftModel(
                Runner(drafter, pages, **limits), options.prompt_tokens_on(weight.device), config.vocab_size
            )
            self.speculation = Speculation(guesser, always=always)
        self.inbox: deque[tuple[Literal["add", "cancel"], Request]] = deque()
        self.lock = threading.Lock()
        self.stop_ids: frozenset[int] = frozenset()
        self.source: Source | None = None  # the model in memory whose weights are shared
        self.looks_closely = False  # whether the next step checks its weights thoroughly

    def step(self) -> None:
        """Advance every running answer by one token and the next prompts by a chunk."""
        with self.lock:
            self._settle()
            self._look_at_weights()
            self.open_inbox()
            try:
                with torch.inference_mode(), device_kernels.waiting(self.deterministic):
                    self._advance()
                    self.runner.record_graphs()
                self._begin_moving()  # now that the first answer is under way
            except BaseException as error:
                self._abandon(error)
                raise

    def root(self, adapter: str | None, owner: str | None) -> int:
        """The content id of the empty prefix for an adapter and an owner, whose prefixes are not shared with others."""
        whose = (adapter, owner)
        if whose not in self._roots:
            self._roots.setdefault(whose, next(self._new_roots))
        return self._roots[whose]

    def warm_up(self) -> None:
        """Wait until kernels are compiled and weights copied into large pages of memory; see `Engine.warm_up`."""
        if self.runner.device.type == "cpu":
            decoding.wait()
        with self.lock:
            self._begin_moving()
            if self._moving is not None:
                self._moving.wait()
            self._settle()

    def weights_changed(self) -> None:
        """Drop what was computed from the old weights; see `Engine.weights_changed`."""
        with self.lock:
            if fault := self._mixed():
                raise fault
            self._forget_weights()

    def _look_at_weights(self) -> None:
        """Notice weights that changed without a call of `weights_changed`, before a step mixes them with cached values.

        Running answers end with an error; requests in the inbox are answered from the new weights.
        """
        closely, self.looks_closely = self.looks_closely, False
        if self.source is None or not self.source.has_changed(closely=closely):
            return
        if fault := self._mixed():
            self._abandon(fault)
        self._forget_weights()

    def _mixed(self) -> RequestError | None:
        begun = sum(bool(one.tokens) for one in self.scheduler.waiting) + len(self.scheduler.running)
        if not begun:
            return None
        return RequestError(
            f"The weights changed while {begun} answers are running, which would mix two models. "
            "Let them end, or cancel them, before the weights change."
        )

    def _forget_weights(self) -> None:
        if self._moving is not None:  # the copy may hold old values
            self._moving, self.may_move = None, True
        self.allocator.forget()
        self.runner.forget_weights()
        if self.source is not None:
            self.source.take()

    def _begin_moving(self) -> None:
        if self.may_move:
            self.may_move = False
            self._moving = PageCopy.begin(self.model)

    def _settle(self) -> None:
        if self._moving is not None and self._moving.settle():
            self._moving = None
            self.runner.forget_places()

    def _advance(self) -> None:
        """Plan a step and compute it: as one batch, or sequence by sequence if `deterministic`."""
        if self.speculation is not None:
            self.speculation.begin(self.scheduler.num_decoding)
        plan = self.scheduler.plan(self.speculation.guess if self.speculation is not None else None)
        parts = _one_by_one(plan) if self.deterministic else [plan]
        for part in parts if plan else []:
            with self.runner.threads_for(part):
                if self.speculation is not None:
                    self.speculation.propose(part)
                self._draw(part, self.runner.run(part))
        if self.speculation is not None:
            self.speculation.end(plan)

    def open_inbox(self) -> None:
        """Queue or cancel the requests that arrived since the last step; the lock must be held."""
        while self.inbox:
            kind, request = self.inbox.popleft()
            if kind == "add":
                self.scheduler.add(request)
            else:
                for answer in request.answers:
                    if not answer.finish_reason:
                        self._end(answer, "cancelled", "", ())

    def _draw(self, plan: StepPlan, output: Output) -> None:
        """Draw the next tokens from the step's logits, also for all answers of a prompt that is now complete."""
        self._add_prompt_logprobs(plan, output)
        answers = [answer for answer in plan.decode if not answer.finish_reason]
        rows = [output.rows[answer] for answer in answers]
        for chunk in plan.chunks:
            if chunk.is_last:
                group = [chunk.answer, *self._fork(chunk.answer)]
                answers += group
                rows += [output.rows[chunk.answer]] * len(group)
        if not answers:
            return
        for answer, drawn in zip(answers, draw(answers, rows, output.logits), strict=True):
            for token, logprob in drawn:
                if not answer.finish_reason:
                    self.accept(answer, token, logprob)
            if not answer.finish_reason:
                self.scheduler.settle(answer)

    def _fork(self, leader: Answer) -> list[Answer]:
        """The other answers of a request that start now that its prompt is computed."""
        if leader is not leader.request.leader:
            return []
        siblings, copies = self.scheduler.fork(leader)
        for source, target in copies:
            self.runner.cache.copy(source, target)
        return siblings

    def _add_prompt_logprobs(self, plan: StepPlan, output: Output) -> None:
        """Add the log-probabilities of this step's prompt chunks, where requested."""
        for chunk, places in zip(plan.chunks, output.chunks, strict=True):
            request = chunk.answer.request
            if request.params.prompt_logprobs is None or chunk.answer is not request.leader:
                continue
            targets = request.prompt[chunk.start + 1 : chunk.stop + 1]
            for start in range(0, len(targets), _LOGPROB_ROWS):
                part = targets[start : start + _LOGPROB_ROWS]
                hidden = output.hidden[places][start : start + len(part)]
                num_top = [request.params.prompt_logprobs] * len(part)
                request.prompt_logprobs += log_probabilities(self.runner.logits_of(hidden), part, num_top)

    def accept(self, answer: Answer, token: int, logprob: TokenLogprob | None) -> None:
        """Append a drawn token, and end the answer if it is complete."""
        answer.tokens.append(token)
        if logprob is not None:
            answer.sum_logprob += logprob.logprob
            if answer.params.logprobs is None:
                logprob = None  # needed only to rank the answers
            else:
                answer.logprobs.append(logprob)
        if answer.adjustment is not None:
            answer.adjustment.accept(token)
            if fault := answer.adjustment.fault:
                self._give_up(answer.request, fault)
                return
        reason, text = None, ""
        if self._ends(answer, token):
            reason = "stop"
        elif len(answer.tokens) == answer.params.max_tokens or answer.num_tokens == self.max_context:
            reason = "length"
        if answer.stream is not None and answer.stops is not None:
            text = answer.stream.push(token) + (answer.stream.flush() if reason else "")
            text = answer.stops.push(text, may_end=len(answer.tokens) >= answer.params.min_tokens)
            if answer.stops.found:
                reason = "stop"
            elif reason:
                text += answer.stops.flush()
        added = () if logprob is None else (logprob,)
        if reason:
            self._end(answer, reason, text, (token,), added)
        elif answer.stream is not None:
            self._emit(answer.request, answer, text, (token,), added)

    def _ends(self, answer: Answer, token: int) -> bool:
        """Whether an answer ends with this token, apart from stop strings."""
        if answer.adjustment is not None and answer.adjustment.is_complete:
            return True
        if token in answer.params.stop_token_ids:
            return len(answer.tokens) >= answer.params.min_tokens
        return token in self.stop_ids and not answer.params.ignore_eos

    def _end(
        self,
        answer: Answer,
        reason: str,
        text: str,
        tokens: tuple[int, ...],
        logprobs: tuple[TokenLogprob, ...] = (),
    ) -> None:
        request = answer.request  # keep a reference: the scheduler drops its own with the last answer
        self.scheduler.finish(answer, reason)
        if answer.stream is not None:
            self._emit(request, answer, text, tokens, logprobs)

    def _emit(
        self,
        request: Request,
        answer: Answer,
        text: str,
        tokens: tuple[int, ...],
        logprobs: tuple[TokenLogprob, ...],
    ) -> None:
        answer.pieces.append(text)
        if not request.chooses:
            stop = answer.stops.which if answer.finish_reason and answer.stops else None
            self._notify(request, Piece(answer.index, text, tokens, logprobs, answer.finish_reason, stop))
        elif request.finished and request.listener is not None:
            for index, best in enumerate(request.best):
                whole = "".join(best.pieces)
                drawn, scored = tuple(best.tokens), tuple(best.logprobs)
                stop = best.stops.which if best.stops else None
                self._notify(request, Piece(index, whole, drawn, scored, best.finish_reason, stop))

    def _notify(self, request: Request, piece: Piece) -> None:
        """Pass a piece to a request's listener. If it raises, only its own request ends."""
        if request.listener is None:
            return
        try:
            request.listener(piece)
        except Exception as error:
            request.listener = None
            self._give_up(request, error)

    def _give_up(self, request: Request, error: Exception) -> None:
        """End a request whose grammar turned out to be impossible midway, or whose listener failed."""
        request.error = error
        for answer in request.answers:
            if not answer.finish_reason:
                self._end(answer, "cancelled", "", ())

    def _abandon(self, error: BaseException) -> None:
        """After a failed step: end all queued answers, and drop the prefix cache."""
        for answer in [*self.scheduler.running, *self.scheduler.waiting]:
            if answer.finish_reason:  # its listener failed on another answer
                continue
            request = answer.request
            request.error = error
            self.scheduler.finish(answer, "cancelled")
            if answer.index < answer.params.n:
                self._notify(request, Piece(answer.index, "", (), (), "cancelled"))
        self.allocator.forget()

    def text_of(self, answer: Answer) -> str:
        """An answer's text: without special tokens, and up to its stop string."""
        if answer.stream is not None:
            return "".join(answer.pieces)
        stream = self.text_stream()
        return "".join(map(stream.push, answer.tokens)) + stream.flush()

    def text_stream(self) -> TextStream:
        """A decoder of an answer's tokens into text."""
        return TextStream(self.tokenizer, skip_unknown=True)


def _one_by_one(plan: StepPlan) -> Iterator[StepPlan]:
    """A step as one step for each sequence, because the rounding of a product depends on its number of rows.

    Answers that ended meanwhile, because their request failed, are left out.
    """
    yield from (StepPlan(decode=[answer]) for answer in plan.decode if not answer.finish_reason)
    yield from (StepPlan(chunks=[chunk]) for chunk in plan.chunks if not chunk.answer.finish_reason)
