"""The engine: prompts in, answers out, many at a time.

    engine = herd.Engine("runs/demo")
    engine.generate("def main(", herd.SamplingParams(max_tokens=40)).text
    engine.generate([{"role": "user", "content": "What does os.path.join do?"}])
    for piece in engine.stream("Once", herd.SamplingParams()):
        print(piece.text, end="", flush=True)

Whoever waits for an answer drives: each call of `generate` or `stream` runs steps until its own answers are done, and
every step serves all requests, those of other threads too. `agenerate` and `astream` do the same beside an event loop.
"""

from __future__ import annotations

import asyncio
import secrets
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch
import torch.distributed as dist
from torch import nn

from herd.errors import CapacityError, CheckpointError, ConfigError, RequestError
from herd.formats.checkpoint import Checkpoint, open_checkpoint
from herd.infer.adapters import AdaptedLinear, Adapters
from herd.infer.adjust import Adjustment
from herd.infer.blocks import BlockAllocator
from herd.infer.cache import BLOCK_SIZE, PagedCache, block_bytes, num_blocks_for
from herd.infer.draw import draw
from herd.infer.guide import GuideMaker
from herd.infer.pages import Moving
from herd.infer.request import Answer, Piece, Pieces, Request, check_params, completion
from herd.infer.runner import Output, Runner
from herd.infer.sampler import log_probabilities
from herd.infer.scheduler import Plan, Scheduler
from herd.infer.speculate import LOOKUP, DraftModel, PromptLookup, Speculation
from herd.infer.split import agree, split_for_inference
from herd.kernels import decoding
from herd.kernels import device as device_kernels
from herd.model.llama import Attend, LlamaForCausalLM, empty_model
from herd.ops.compressed import LAYERS, Scheme, check_quantization, empty_like, takes
from herd.ops.paged_attention import paged_attention
from herd.ops.quantized import DecodingLinear, Int4Linear, QuantizedLinear, replace_linears
from herd.tokenizer.chat import render
from herd.tokenizer.specials import END_OF_TURN
from herd.tokenizer.stream import TextStream
from herd.tokenizer.tokenizer import Tokenizer
from herd.types import Completion, Conversation, SamplingParams, TokenLogprob

Input = str | Conversation
Answers = Completion | list[Completion]

_CPU_PROMPT_TOKENS, _GPU_PROMPT_TOKENS = 512, 4096  # of new prompts in a step, unless told otherwise
_LOGPROB_ROWS = 64  # rows of logits held at a time for a prompt's log-probabilities


class Engine:
    """Generates text with one model.

    `path` is a checkpoint folder or a run folder. `dtype` None keeps the checkpoint's own where this machine computes
    in it well. `quantize` (int8, int4 or fp8) rounds the weights of the linear layers on loading. The cache of keys and
    values takes `cache_bytes`, by default a quarter of the available memory; `max_sequences` answers grow at the same
    time, and a step computes at most `max_prompt_tokens` tokens of new prompts beside them (512, on a GPU 4096). The
    context is the model's own; a longer `max_context` than it was trained on is taken as it is (answers say how much
    they repeat themselves). `cache_dtype="int8"` makes the cache half as large. `deterministic` computes each sequence
    for itself, so that an answer never depends on what else runs: slower with many at once. `speculate` guesses tokens
    ahead and verifies them together, where that gains (with `deterministic` always): "lookup" takes them from the text
    so far, a path from a smaller model; the answers stay the same. `graphs=False` runs every step on a GPU launch by
    launch instead of replaying decode steps as CUDA graphs (True on a CPU rehearses them, for tests). `group` splits
    the model over processes that all run this engine on the same requests.

    Raises:
        CheckpointError: there is no language model at `path`.
        ConfigError: a device, type or limit is none that the engine has.
        CapacityError: the cache does not fit.
    """

    def __init__(
        self,
        path: Path | str | Checkpoint,
        *,
        dtype: torch.dtype | None = None,
        device: str = "cpu",
        quantize: Scheme | None = None,
        cache_bytes: int | None = None,
        max_sequences: int = 256,
        max_prompt_tokens: int | None = None,
        max_context: int | None = None,
        cache_dtype: Literal["int8"] | None = None,
        deterministic: bool = False,
        speculate: Path | str | None = None,
        graphs: bool | None = None,
        group: dist.ProcessGroup | None = None,
    ) -> None:
        checkpoint = open_checkpoint(path)
        _check_device(device)
        if quantize is not None and quantize not in LAYERS:
            raise ConfigError(f"quantize={quantize}: expected {', '.join(LAYERS)} or nothing")
        if device == "cpu":
            decoding.start()
        with ThreadPoolExecutor(1) as beside:  # the tokenizer is Python's work, the weights are PyTorch's
            tokenizer = beside.submit(lambda: checkpoint.tokenizer)
            model = self._load(checkpoint, dtype, device, quantize)
        options = _Options(
            cache_bytes=cache_bytes,
            max_sequences=max_sequences,
            max_prompt_tokens=max_prompt_tokens,
            max_context=max_context,
            cache_dtype=cache_dtype,
            deterministic=deterministic,
            speculate=speculate,
            graphs=graphs,
            group=group,
        )
        self._assemble(model, tokenizer.result(), options)
        # several processes have only a part of the weights each; and where they lie may show in a product's last digits
        self._may_move = group is None and not deterministic
        _check_ends(checkpoint.place, model, self.tokenizer)
        self._end_answers_with(_as_ids(model.config.eos_token_id) | _as_ids(checkpoint.generation.get("eos_token_id")))

    @staticmethod
    def _load(
        checkpoint: Checkpoint, dtype: torch.dtype | None, device: str, quantize: Scheme | None
    ) -> LlamaForCausalLM:
        """The model, its layers replaced by those that are quick here."""
        model = checkpoint.load(dtype=dtype, device=device, attend=paged_attention)
        if not isinstance(model, LlamaForCausalLM):
            raise CheckpointError(f"{checkpoint.place} holds a reward model, which gives scores and no text.")
        if dtype is None and device == "cpu":
            model = model.to(_cpu_dtype(model.model.norm.weight.dtype))
        if quantize is not None:
            _check_quantizable(checkpoint.place, model, quantize)
            quantize_layers(model, quantize)
        _make_fast(model)
        return model

    @classmethod
    def of(
        cls,
        model: LlamaForCausalLM,
        tokenizer: Tokenizer,
        *,
        cache_bytes: int | None = None,
        max_sequences: int = 256,
        max_prompt_tokens: int | None = None,
        max_context: int | None = None,
        cache_dtype: Literal["int8"] | None = None,
        deterministic: bool = False,
        speculate: Path | str | None = None,
        graphs: bool | None = None,
        group: dist.ProcessGroup | None = None,
    ) -> Engine:
        """An engine around a model in memory, such as one in training: the weights are shared, not copied."""
        engine = cls.__new__(cls)
        shared = with_attention(model, paged_attention)
        options = _Options(
            cache_bytes=cache_bytes,
            max_sequences=max_sequences,
            max_prompt_tokens=max_prompt_tokens,
            max_context=max_context,
            cache_dtype=cache_dtype,
            deterministic=deterministic,
            speculate=speculate,
            graphs=graphs,
            group=group,
        )
        _make_fast(shared)
        engine._assemble(shared, tokenizer, options)
        engine._end_answers_with(_as_ids(model.config.eos_token_id))
        return engine

    def _assemble(self, model: LlamaForCausalLM, tokenizer: Tokenizer, options: _Options) -> None:
        config, weight, group = model.config, model.model.norm.weight, options.group
        _check_options(options)
        if tokenizer.vocab_size > config.vocab_size:
            raise CheckpointError(
                f"The tokenizer has {tokenizer.vocab_size} rows and the model only {config.vocab_size}: "
                "they do not belong together."
            )
        self.model, self.tokenizer = model, tokenizer
        self._adapters = Adapters(model)
        self.deterministic = options.deterministic
        if self.deterministic and weight.device.type == "cpu":
            decoding.wait()  # kernels that come later would round otherwise, midway
        self._group = group
        if group is not None:
            if options.speculate is not None:
                raise ConfigError("speculate: processes that measure each for itself whether it gains would part ways")
            if options.graphs:
                raise ConfigError("graphs: a model over several processes runs launch by launch; leave graphs out")
            config = split_for_inference(model, group)
        drafter = None if options.speculate in (None, LOOKUP) else _open_drafter(options.speculate, self)
        dtype = torch.int8 if options.cache_dtype == "int8" else weight.dtype
        on_gpu = weight.device.type == "cuda"
        with_graphs = _wants_graphs(options, weight.device) if options.graphs is None else options.graphs
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
        max_prompt_tokens = options.max_prompt_tokens or (_GPU_PROMPT_TOKENS if on_gpu else _CPU_PROMPT_TOKENS)
        self.max_context = min(options.max_context or config.max_position_embeddings, num_blocks * BLOCK_SIZE)
        max_sequences = min(options.max_sequences, num_blocks)  # each has a block of its own
        limits = {"max_sequences": max_sequences, "max_context": self.max_context}
        cache = PagedCache(
            config, num_blocks, block_size=BLOCK_SIZE, dtype=dtype, device=weight.device, num_spare=int(with_graphs)
        )
        self._runner = Runner(
            model, cache, adapters=self._adapters, with_graphs=with_graphs, may_compile=group is None, **limits
        )
        self._allocator = BlockAllocator(num_blocks, BLOCK_SIZE)
        self._scheduler = Scheduler(
            self._allocator,
            max_prompt_tokens=max_prompt_tokens,
            shares_prefixes=not options.deterministic,
            **limits,
        )
        self._moving: Moving | None = None
        self._may_move = False
        self._speculation: Speculation | None = None
        always = options.deterministic  # several tokens at once round otherwise than one: no clock may decide it
        if options.speculate == LOOKUP:
            self._speculation = Speculation(PromptLookup(), always=always)
        elif drafter is not None:
            pages = PagedCache(
                drafter.config, num_blocks, block_size=BLOCK_SIZE, dtype=weight.dtype, device=weight.device
            )
            guesser = DraftModel(Runner(drafter, pages, **limits), max_prompt_tokens, config.vocab_size)
            self._speculation = Speculation(guesser, always=always)
        self._inbox: deque[tuple[Literal["add", "cancel"], Request]] = deque()
        self._lock = threading.Lock()

    def _end_answers_with(self, declared: frozenset[int]) -> None:
        """Any stop token ends an answer. A checkpoint that declares the end of turn was trained on conversations."""
        ids = range(self.model.config.vocab_size)  # generation_config.json may be another model's
        self.stop_ids = frozenset(token for token in declared | set(self.tokenizer.stop_ids) if token in ids)
        self.speaks_chat = self.tokenizer.special.get(END_OF_TURN) in declared
        end_id = self.tokenizer.eot_id if self.speaks_chat else self.tokenizer.eos_id
        self._guides = GuideMaker(self.tokenizer, self.model.config.vocab_size, end_id)

    # ---- asking ----------------------------------------------------------------------------------------------------

    def generate(
        self, inputs: Input | Sequence[Input], params: SamplingParams | None = None
    ) -> Answers | list[Answers]:
        """Answer one input, or each of a list in the same order.

        An input is a string (plain text to go on with) or a conversation (a list of messages, answered as a chat).
        One answer is a `Completion`; with `params.n` above 1 it is a list of them.

        Raises:
            RequestError: a prompt is too long, or a sampling setting is out of its range.
            DataError: a conversation's messages are malformed.
        """
        single = _is_one(inputs)
        batch = [inputs] if single else _as_batch(inputs)
        requests = [self.request(item, params) for item in batch]
        try:
            for request in requests:
                self.submit(request)
            for request in requests:
                while not request.finished:
                    self.step()
        except BaseException:
            for request in requests:
                self.cancel(request)
            raise
        answers = [self._answers(request) for request in requests]
        return answers[0] if single else answers

    def stream(self, inputs: Input, params: SamplingParams | None = None) -> Iterator[Piece]:
        """Answer one input piece by piece; leaving the loop early cancels the request.

        It is queued when the first piece is asked for, so that a stream that nobody reads computes nothing.

        Raises:
            RequestError: the prompt is too long, or a sampling setting is out of its range.
        """
        pieces = Pieces()
        return self._drain(self.request(inputs, params, pieces), pieces)

    async def agenerate(
        self, inputs: Input | Sequence[Input], params: SamplingParams | None = None
    ) -> Answers | list[Answers]:
        """`generate` without blocking the event loop: many at once share the engine's steps.

        Raises:
            RequestError: a prompt is too long, or a sampling setting is out of its range.
            DataError: a conversation's messages are malformed.
        """
        single = _is_one(inputs)
        batch = [inputs] if single else _as_batch(inputs)
        requests = [self.request(item, params) for item in batch]
        try:
            for request in requests:
                self.submit(request)
            while not all(request.finished for request in requests):
                await asyncio.to_thread(self.step)
        finally:
            for request in requests:
                self.cancel(request)
        answers = [self._answers(request) for request in requests]
        return answers[0] if single else answers

    async def astream(self, inputs: Input, params: SamplingParams | None = None) -> AsyncIterator[Piece]:
        """`stream` without blocking the event loop; leaving the loop early cancels the request.

        Raises:
            RequestError: the prompt is too long, or a sampling setting is out of its range.
        """
        pieces = Pieces()
        request = self.request(inputs, params, pieces)
        self.submit(request)
        try:
            while pieces.waiting or not request.finished:
                while pieces.waiting:
                    yield pieces.waiting.popleft()
                if not request.finished:
                    await asyncio.to_thread(self.step)
            request.raise_error()
        finally:
            self.cancel(request)

    def _drain(self, request: Request, pieces: Pieces) -> Iterator[Piece]:
        self.submit(request)
        try:
            while pieces.waiting or not request.finished:
                while pieces.waiting:
                    yield pieces.waiting.popleft()
                if not request.finished:
                    self.step()
            request.raise_error()
        finally:
            self.cancel(request)

    def encode(self, inputs: Input) -> list[int]:
        """The prompt tokens of an input: begin of text and the text, or the conversation up to the answer's header."""
        if isinstance(inputs, str):
            return self.tokenizer.encode(inputs, bos=True)
        if not _is_one(inputs):
            raise RequestError(f"An input is a string or a list of messages, not {type(inputs).__name__}.")
        return render(self.tokenizer, inputs, generation_prompt=True).tokens

    def request(
        self,
        inputs: Input | list[int],
        params: SamplingParams | None = None,
        listener: Callable[[Piece], None] | None = None,
    ) -> Request:
        """A checked request, ready to be submitted; a list of ids is a prompt that is encoded already.

        Raises:
            RequestError: the prompt is too long, or a sampling setting is out of its range.
        """
        params = params or SamplingParams()
        check_params(params)
        prompt = inputs if _is_encoded(inputs) else self.encode(inputs)
        self._check_prompt(prompt)
        seed = params.seed
        if seed is None:
            seed = secrets.randbits(63)
            seed = seed if self._group is None else agree(seed, self._group)
        if params.adapter is not None and params.adapter not in self.adapters:
            known = ", ".join(self.adapters) or "none"
            raise RequestError(f"There is no adapter {params.adapter} here (known: {known}).")
        request = Request(prompt, params, seed, listener)
        request.root = self._adapters.root(params.adapter)
        self._adjust(request)
        if listener is not None or params.stop:
            for answer in request.answers:
                answer.follow_text(self._text_stream())
        return request

    def _adjust(self, request: Request) -> None:
        """Give each answer what must change its logits: penalties, biases, a grammar's guide of its own."""
        params = request.params
        wrong = [token for token in params.logit_bias if token >= self.model.config.vocab_size]
        if wrong:
            raise RequestError(f"logit_bias: this model has no token {wrong[0]}.")
        guide = self._guides.compile(params)
        if guide is None and not Adjustment.wanted(params):
            return
        for answer in request.answers:
            own = guide.fork() if guide is not None else None
            answer.adjustment = Adjustment(params, request.prompt, self.stop_ids, own)

    def submit(self, request: Request) -> None:
        """Queue a request; safe from any thread. Somebody must call `step` until it is finished."""
        self._inbox.append(("add", request))

    def cancel(self, request: Request) -> None:
        """End a request's open answers and free their blocks, at the latest before the next step; safe from any thread.

        A finished request is left as it is.
        """
        if request.finished or request.leader.asked_by() is None:  # thrown away, and the engine with it
            return
        self._inbox.append(("cancel", request))
        if self._lock.acquire(blocking=False):
            try:
                self._open_inbox()
            finally:
                self._lock.release()

    def add_adapter(self, name: str, folder: Path | str) -> None:
        """Open a LoRA adapter (a PEFT folder); requests use it by `SamplingParams(adapter=name)`.

        Raises:
            CheckpointError: the folder is damaged, does not fit the model, or the name is taken.
            ConfigError: the model is split over processes.
        """
        if self._group is not None:
            raise ConfigError("adapters: a model over several processes takes none; merge the adapter into its weights")
        with self._lock:
            self._adapters.add(name, folder)

    @property
    def adapters(self) -> tuple[str, ...]:
        """The names of the adapters."""
        return self._adapters.names

    @property
    def has_work(self) -> bool:
        """A step would do something."""
        return bool(self._inbox) or self._scheduler.has_work

    @property
    def num_waiting(self) -> int:
        """Answers that have not begun."""
        return len(self._scheduler.waiting) + len(self._inbox)

    @property
    def num_running(self) -> int:
        """Answers in the batch."""
        return len(self._scheduler.running)

    @property
    def cache_bytes(self) -> int:
        """What the cache of keys and values may take."""
        drafts = self._speculation.cache_bytes if self._speculation is not None else 0
        return self._runner.cache.nbytes + drafts

    @property
    def free_share(self) -> float:
        """The share of the cache's blocks that nobody holds."""
        return self._allocator.num_free / self._allocator.num_blocks

    # ---- stepping --------------------------------------------------------------------------------------------------

    def step(self) -> None:
        """Advance every running answer by one token and the next prompts by a chunk."""
        with self._lock:
            self._settle()
            self._open_inbox()
            try:
                with torch.inference_mode(), device_kernels.waiting(self.deterministic):
                    self._advance()
                    self._runner.record_graphs()
                self._begin_moving()  # now that the first answer is under way
            except BaseException as error:
                self._abandon(error)
                raise

    def warm_up(self) -> None:
        """Wait for what makes answers quick and is got ready while the first ones are made: compiled kernels, and the
        weights' place in large pages of memory."""
        if self._runner.device.type == "cpu":
            decoding.wait()
        with self._lock:
            self._begin_moving()
            if self._moving is not None:
                self._moving.wait()
            self._settle()

    def _begin_moving(self) -> None:
        if self._may_move:
            self._may_move = False
            self._moving = Moving.begin(self.model)

    def _settle(self) -> None:
        if self._moving is not None and self._moving.settle():
            self._moving = None
            self._runner.forget_places()

    def _advance(self) -> None:
        """Plan a step and compute it: at once, or sequence by sequence where nothing may depend on the neighbours."""
        if self._speculation is not None:
            self._speculation.begin(self._scheduler.num_decoding)
        plan = self._scheduler.plan(self._speculation.guess if self._speculation is not None else None)
        parts = _one_by_one(plan) if self.deterministic else [plan]
        for part in parts if plan else []:
            with self._runner.threads_for(part):
                if self._speculation is not None:
                    self._speculation.propose(part)
                self._draw(part, self._runner.run(part))
        if self._speculation is not None:
            self._speculation.end(plan)

    def _open_inbox(self) -> None:
        while self._inbox:
            kind, request = self._inbox.popleft()
            if kind == "add":
                self._scheduler.add(request)
            else:
                for answer in request.answers:
                    if not answer.finish_reason:
                        self._end(answer, "cancelled", "", ())

    def _draw(self, plan: Plan, output: Output) -> None:
        """Draw the tokens that the step's logits allow, siblings of a finished prompt included."""
        self._note_prompts(plan, output)
        answers = [answer for answer in plan.decode if not answer.finish_reason]
        rows = [output.rows[answer] for answer in answers]
        for chunk in plan.chunks:
            if chunk.is_last:
                group = [chunk.answer, *self._part(chunk.answer)]
                answers += group
                rows += [output.rows[chunk.answer]] * len(group)
        if not answers:
            return
        for answer, drawn in zip(answers, draw(answers, rows, output.logits), strict=True):
            for token, logprob in drawn:
                if not answer.finish_reason:
                    self._accept(answer, token, logprob)
            if not answer.finish_reason:
                self._scheduler.settle(answer)

    def _part(self, leader: Answer) -> list[Answer]:
        """The siblings that begin where a prompt has ended."""
        if leader is not leader.request.leader:
            return []
        siblings, copies = self._scheduler.fork(leader)
        for source, target in copies:
            self._runner.cache.copy(source, target)
        return siblings

    def _note_prompts(self, plan: Plan, output: Output) -> None:
        """The log-probabilities of prompts, chunk by chunk, where they are asked for."""
        for chunk, places in zip(plan.chunks, output.chunks, strict=True):
            request = chunk.answer.request
            if request.params.prompt_logprobs is None or chunk.answer is not request.leader:
                continue
            targets = request.prompt[chunk.start + 1 : chunk.stop + 1]
            for start in range(0, len(targets), _LOGPROB_ROWS):
                part = targets[start : start + _LOGPROB_ROWS]
                hidden = output.hidden[places][start : start + len(part)]
                num_top = [request.params.prompt_logprobs] * len(part)
                request.prompt_logprobs += log_probabilities(self._runner.logits_of(hidden), part, num_top)

    def _accept(self, answer: Answer, token: int, logprob: TokenLogprob | None) -> None:
        """Append a drawn token and see whether the answer ends with it."""
        answer.tokens.append(token)
        if logprob is not None:
            answer.sum_logprob += logprob.logprob
            if answer.params.logprobs is None:
                logprob = None  # wanted only to choose the best answers
            else:
                answer.logprobs.append(logprob)
        if answer.adjustment is not None:
            answer.adjustment.accept(token)
            if fault := answer.adjustment.fault:
                self._give_up(answer.request, fault)
                return
        reason, text = None, ""
        if token in self.stop_ids or (answer.adjustment is not None and answer.adjustment.is_complete):
            reason = "stop"
        elif len(answer.tokens) == answer.params.max_tokens or answer.num_tokens == self.max_context:
            reason = "length"
        if answer.stream is not None:
            text = answer.stops.push(answer.stream.push(token) + (answer.stream.flush() if reason else ""))
            if answer.stops.found:
                reason = "stop"
            elif reason:
                text += answer.stops.flush()
        added = () if logprob is None else (logprob,)
        if reason:
            self._end(answer, reason, text, (token,), added)
        elif answer.stream is not None:
            self._tell(answer.request, answer, text, (token,), added)

    def _end(
        self,
        answer: Answer,
        reason: str,
        text: str,
        tokens: tuple[int, ...],
        logprobs: tuple[TokenLogprob, ...] = (),
    ) -> None:
        request = answer.request  # held: the scheduler lets go of it with its last answer
        self._scheduler.finish(answer, reason)
        if answer.stream is not None:
            self._tell(request, answer, text, tokens, logprobs)

    def _tell(
        self,
        request: Request,
        answer: Answer,
        text: str,
        tokens: tuple[int, ...],
        logprobs: tuple[TokenLogprob, ...],
    ) -> None:
        answer.pieces.append(text)
        if not request.chooses:
            self._pass_on(request, Piece(answer.index, text, tokens, logprobs, answer.finish_reason))
        elif request.finished and request.listener is not None:
            for index, best in enumerate(request.best):
                whole = "".join(best.pieces)
                self._pass_on(
                    request, Piece(index, whole, tuple(best.tokens), tuple(best.logprobs), best.finish_reason)
                )

    def _pass_on(self, request: Request, piece: Piece) -> None:
        """Tell a request's listener. One that fails ends its own request and hears no more; the others go on."""
        if request.listener is None:
            return
        try:
            request.listener(piece)
        except Exception as error:
            request.listener = None
            self._give_up(request, error)

    def _give_up(self, request: Request, error: Exception) -> None:
        """End a request that turned out, midway, to ask for what cannot be, or that nobody can be told of."""
        request.error = error
        for answer in request.answers:
            if not answer.finish_reason:
                self._end(answer, "cancelled", "", ())

    def _abandon(self, error: BaseException) -> None:
        """A step failed half-way: end everything it touched, and trust nothing that the cache holds."""
        for answer in [*self._scheduler.running, *self._scheduler.waiting]:
            if answer.finish_reason:  # with a sibling, whose listener failed
                continue
            request = answer.request
            request.error = error
            self._scheduler.finish(answer, "cancelled")
            if answer.index < answer.params.n:
                self._pass_on(request, Piece(answer.index, "", (), (), "cancelled"))
        self._allocator.forget()

    # ---- answers ---------------------------------------------------------------------------------------------------

    def _answers(self, request: Request) -> Answers:
        request.raise_error()
        answers = [completion(answer, self.text_of(answer)) for answer in request.best]
        return answers[0] if request.params.n == 1 else answers

    def text_of(self, answer: Answer) -> str:
        """An answer's text: without special tokens, and up to its stop string."""
        if answer.stream is not None:
            return "".join(answer.pieces)
        stream = self._text_stream()
        return "".join(map(stream.push, answer.tokens)) + stream.flush()

    def _text_stream(self) -> TextStream:
        return TextStream(self.tokenizer, skip_unknown=True)

    def _check_prompt(self, prompt: list[int]) -> None:
        if not prompt:
            raise RequestError("The prompt is empty: it needs at least one token.")
        if len(prompt) >= self.max_context:
            by_cache = self.max_context < self.model.config.max_position_embeddings
            why = ", limited by the cache or by max_context" if by_cache else ""
            raise RequestError(
                f"The prompt has {len(prompt)} tokens, but the context is {self.max_context} tokens, the answer "
                f"included{why}; shorten the prompt (nothing is cut silently)."
            )
        wrong = [token for token in prompt if not 0 <= token < self.model.config.vocab_size]
        if wrong:
            raise RequestError(
                f"The prompt holds token id {wrong[0]}; this model knows 0 to {self.model.config.vocab_size - 1}."
            )


@dataclass(frozen=True)
class _Options:
    cache_bytes: int | None
    max_sequences: int
    max_prompt_tokens: int | None
    max_context: int | None
    cache_dtype: Literal["int8"] | None
    deterministic: bool
    speculate: Path | str | None
    graphs: bool | None
    group: dist.ProcessGroup | None


def _check_options(options: _Options) -> None:
    """Refuse limits that leave room for nothing, and types of cache that there are not."""
    for name in ("max_sequences", "max_prompt_tokens", "max_context"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ConfigError(f"{name}={value}: must be at least 1")
    if options.cache_dtype not in (None, "int8"):
        raise ConfigError(f"cache_dtype={options.cache_dtype}: expected int8, or nothing for the model's own type")


def _wants_graphs(options: _Options, device: torch.device) -> bool:
    """On a GPU; but where an answer must not depend on when a graph was recorded, only if our kernels compute both:
    PyTorch's attention rounds differently over the width of a graph."""
    if device.type != "cuda" or options.group is not None:
        return False
    return not options.deterministic or device_kernels.serves(torch.empty(0, device=device))


def _one_by_one(plan: Plan) -> Iterator[Plan]:
    """The same step, each sequence for itself: a product's rounding depends on how many rows it has.

    What ends before its turn, with a sibling whose request failed, has given back its place and is left out.
    """
    yield from (Plan(decode=[answer]) for answer in plan.decode if not answer.finish_reason)
    yield from (Plan(chunks=[chunk]) for chunk in plan.chunks if not chunk.answer.finish_reason)


def _open_drafter(path: Path | str, engine: Engine) -> LlamaForCausalLM:
    """The draft model, in the engine's own type and on its device.

    Raises:
        CheckpointError: it does not speak the same tokens.
    """
    checkpoint, weight = open_checkpoint(path), engine.model.model.norm.weight
    folder = checkpoint.place
    drafter = checkpoint.load(dtype=weight.dtype, device=str(weight.device), attend=paged_attention)
    if not isinstance(drafter, LlamaForCausalLM):
        raise CheckpointError(f"{folder} holds a reward model, which drafts no text.")
    if checkpoint.tokenizer.fingerprint != engine.tokenizer.fingerprint:
        raise CheckpointError(f"{folder}: a draft model must have the same tokenizer as the model it drafts for.")
    if drafter.config.max_position_embeddings < engine.model.config.max_position_embeddings:
        most = drafter.config.max_position_embeddings
        raise CheckpointError(f"{folder}: a draft model of {most} tokens is shorter than the model it drafts for.")
    _make_fast(drafter)
    return drafter


def with_attention(model: LlamaForCausalLM, attend: Attend) -> LlamaForCausalLM:
    """The same model with another attention and without adapters: the weights are shared, not copied."""
    shared = empty_model(model.config, attend)
    own = {name.replace(".base", ""): module for name, module in model.named_modules()}
    for name, module in own.items():
        if isinstance(module, AdaptedLinear):
            continue
        scheme = next((scheme for scheme, kind in LAYERS.items() if type(module) is kind), None)
        if scheme is not None:
            replace_linears(shared, [name], partial(empty_like, scheme=scheme))
    shared.load_state_dict({k.replace(".base.", "."): v for k, v in model.state_dict().items()}, assign=True)
    if isinstance(shared.lm_head, nn.Linear):
        shared.tie_weights()
    return shared.eval()


def _check_quantizable(folder: Path, model: LlamaForCausalLM, scheme: Scheme) -> None:
    stored = check_quantization(model.config.quantization_config, folder)
    if stored not in (None, scheme):
        raise ConfigError(f"quantize={scheme}: the weights in {folder} are {stored} already; leave quantize out")


def quantize_layers(model: LlamaForCausalLM, scheme: Scheme) -> None:
    """Quantize a model in place; embedding, head and norms stay as they are.

    Raises:
        CapacityError: the scheme does not fit the model's shape.
    """
    if scheme == "int4":
        decoding.wait()  # two seconds at most, where the plain way would take a minute
    num_layers = model.config.num_hidden_layers
    names = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and takes(scheme, name, num_layers)
    ]
    if biased := next((name for name in names if model.get_submodule(name).bias is not None), None):
        raise CapacityError(f"quantize={scheme}: {biased} has a bias, which the quantized layers have no place for")
    try:
        replace_linears(model, names, LAYERS[scheme].from_linear)
    except ValueError as error:
        raise CapacityError(f"quantize={scheme}: {error}; int8 fits every shape.") from None


def _make_fast(model: LlamaForCausalLM) -> None:
    """Decoding on a CPU reads every weight for each token: layers in bfloat16 get the kernel that does it quickest.

    A quantized model's head is rounded to int8 by rows: it is read whole for every token, and in bfloat16 would take
    as long as all the layers of 4 bits together. Its embedding stays as it is.
    """
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and name != "lm_head"]
    quantized = any(isinstance(module, QuantizedLinear | Int4Linear) for module in model.modules())
    if quantized and isinstance(model.lm_head, nn.Linear):
        replace_linears(model, ["lm_head"], QuantizedLinear.from_linear)
    weight = model.model.norm.weight
    if weight.device.type == "cpu" and weight.dtype == torch.bfloat16:
        names += [] if quantized else ["lm_head"]
        replace_linears(model, names, DecodingLinear.from_linear)


def _check_device(device: str) -> None:
    try:
        kind = torch.device(device).type
    except RuntimeError:
        raise ConfigError(f"device={device}: no such device; expected cpu or cuda") from None
    if kind not in ("cpu", "cuda"):
        raise ConfigError(f"device={device}: the engine runs on cpu and cuda")
    if kind == "cuda" and not torch.cuda.is_available():
        raise CapacityError(f"device={device}: PyTorch finds no GPU here; leave device out to run on the CPU")


def _check_ends(folder: Path, model: LlamaForCausalLM, tokenizer: Tokenizer) -> None:
    """A tokenizer that does not know the ids that end the model's answers is another model's."""
    unknown = [token for token in _as_ids(model.config.eos_token_id) if token >= tokenizer.vocab_size]
    if unknown:
        raise CheckpointError(
            f"{folder}: its config.json ends answers with id {unknown[0]}, its tokenizer has only "
            f"{tokenizer.vocab_size} ids: they do not belong together"
        )


def _as_ids(ids: object) -> frozenset[int]:
    listed = ids if isinstance(ids, list | tuple) else [ids]
    return frozenset(token for token in listed if isinstance(token, int))


def _cpu_dtype(dtype: torch.dtype) -> torch.dtype:
    """bfloat16 only where this machine computes in it well, float16 never: its products are emulated."""
    return dtype if dtype == torch.bfloat16 and decoding.computes_bf16() else torch.float32


def _is_one(inputs: object) -> bool:
    """One input, rather than a list of them: a string, or a list of messages."""
    return isinstance(inputs, str) or (
        isinstance(inputs, Sequence) and bool(inputs) and all(isinstance(item, dict) for item in inputs)
    )


def _as_batch(inputs: object) -> list[Input]:
    if not isinstance(inputs, Sequence) or isinstance(inputs, bytes):
        raise RequestError(
            f"The input is {type(inputs).__name__}; expected a string, a conversation (a list of messages), or a list "
            "of these."
        )
    return list(inputs)


def _is_encoded(inputs: object) -> bool:
    return isinstance(inputs, list) and bool(inputs) and isinstance(inputs[0], int)
