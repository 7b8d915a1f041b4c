"""The engine: prompts in, answers out, many at a time.

    engine = herd.Engine("runs/demo")
    engine.generate("def main(", herd.SamplingParams(max_tokens=40)).text
    engine.generate([{"role": "user", "content": "What does os.path.join do?"}])
    for piece in engine.stream("Once", herd.SamplingParams()):
        print(piece.text, end="", flush=True)

The engine has no thread of its own: each call of `generate` or `stream` runs steps until its own answers are done, and
every step serves all requests, those of other threads too. `agenerate` and `astream` do the same under asyncio.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Literal, cast, overload

import torch
import torch.distributed as dist

from herd.errors import ConfigError, RequestError
from herd.formats.checkpoint import Checkpoint, open_checkpoint
from herd.infer.adjust import Adjustment
from herd.infer.build import Source, as_dtype, as_ids, check_ends, load_model
from herd.infer.guide import GuideMaker
from herd.infer.inputs import Input, as_batch, is_encoded, is_one
from herd.infer.loop import Loop
from herd.infer.options import Options, check_device, check_scheme
from herd.infer.request import Answer, Piece, PieceQueue, Request, check_params, completion
from herd.infer.split import agree
from herd.infer.wording import Wording
from herd.kernels import decoding
from herd.model.llama import LlamaForCausalLM
from herd.ops.compressed import Scheme
from herd.tokenizer.chat import ends
from herd.tokenizer.foreign import Ends
from herd.tokenizer.tokenizer import Tokenizer
from herd.types import Completion, SamplingParams

Answers = Completion | list[Completion]


class Engine:
    """Generates text with one model.

    - `path`: a checkpoint folder, a run folder or a GGUF file. `dtype` (`torch.dtype` or its name): by default the
      checkpoint's, where this machine is fast in it. `quantize` (int8, int4, fp8): quantize linear layers on loading.
    - `cache_bytes`: size of the KV cache, by default a quarter of the available memory; `cache_dtype="int8"` halves it.
    - `max_sequences`: answers in the batch. `max_prompt_tokens`: prompt tokens prefilled in one step beside them (512,
      on a GPU 4096). `max_context`: by default the model's own; one longer than it was trained on is allowed.
    - `deterministic`: compute each sequence by itself, so that an answer never depends on what else runs; slower.
    - `speculate`: draft tokens ahead and verify them together where that is faster (with `deterministic` always):
      "lookup" drafts from the text so far, a path names a smaller model. The answers stay the same.
    - `graphs=False`: on a GPU, do not replay decode steps as CUDA graphs (True on a CPU rehearses them, for tests).
    - `group`: split the model over these processes, which must all run this engine on the same requests.
    - `template`: chat format (llama3, chatml, a file ...) instead of the checkpoint's own template; `date`: its today.
    - `read_special`: read special strings in prompts as special tokens; only for text that you wrote yourself.

    Raises:
        CheckpointError: there is no language model at `path`.
        ConfigError: there is no such device, dtype or scheme, or a limit is below 1.
        CapacityError: the cache does not fit.
    """

    def __init__(
        self,
        path: Path | str | Checkpoint,
        *,
        dtype: torch.dtype | str | None = None,
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
        template: str | None = None,
        date: str | None = None,
        read_special: bool = False,
    ) -> None:
        checkpoint = open_checkpoint(path)
        check_device(device)
        check_scheme(quantize)
        options = Options(
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
        self.wording = Wording(template=template, date=date, read_special=read_special)
        if device == "cpu":
            decoding.start()
        with ThreadPoolExecutor(1) as beside:  # the tokenizer is Python's work, the weights are PyTorch's
            tokenizer = beside.submit(lambda: checkpoint.tokenizer)
            model = load_model(checkpoint, as_dtype(dtype), device, quantize, as_stored=group is None)
        self._assemble(model, tokenizer.result(), options)
        # not over several processes, which split the weights; and addresses may change a product's last digits
        self.loop.may_move = group is None and not deterministic
        check_ends(checkpoint.place, model, self.tokenizer)
        self._end_answers_with(as_ids(model.config.eos_token_id) | as_ids(checkpoint.generation.get("eos_token_id")))

    @classmethod
    def of(
        cls,
        model: LlamaForCausalLM,
        tokenizer: Tokenizer,
        *,
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
        template: str | None = None,
        date: str | None = None,
        read_special: bool = False,
    ) -> Engine:
        """An engine around a model in memory, such as one in training: weights are shared, or copied to `quantize`.

        Call `weights_changed` after they change. A change that PyTorch's version counter sees, such as an optimizer's
        step, is noticed without it, and ends running requests with a RequestError.
        """
        engine = cls.__new__(cls)
        engine.wording = Wording(template=template, date=date, read_special=read_special)
        options = Options(
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
        check_scheme(quantize)
        source = Source(model, quantize)
        engine._assemble(source.shared, tokenizer, options)
        engine.loop.source = source if group is None else None  # a split model has copies of its parts
        engine._end_answers_with(as_ids(model.config.eos_token_id))
        return engine

    def _assemble(self, model: LlamaForCausalLM, tokenizer: Tokenizer, options: Options) -> None:
        self.model, self.tokenizer, self.deterministic = model, tokenizer, options.deterministic
        self._group = options.group
        self.loop = Loop(model, tokenizer, options)
        self.max_context = self.loop.max_context

    def _end_answers_with(self, declared: frozenset[int]) -> None:
        """Collect the tokens that end an answer: those declared, the vocabulary's, and the template's end of turn."""
        self.tokenizer = self.loop.tokenizer = self.wording.settled(self.tokenizer, declared)
        self.speaks_chat = self.wording.speaks_chat(self.tokenizer, declared)
        template_ends = ends(self.tokenizer) if self.speaks_chat else Ends()
        stop_ids = declared | set(self.tokenizer.stop_ids) | set(template_ends.ids)
        vocabulary = range(self.model.config.vocab_size)  # generation_config.json may be another model's
        self.loop.stop_ids = frozenset(token for token in stop_ids if token in vocabulary)
        self._stop_texts = template_ends.texts
        end_id = self.wording.end_of_answer(self.tokenizer, self.speaks_chat)
        self.guides = GuideMaker(self.tokenizer, self.model.config.vocab_size, end_id)

    def weights_changed(self) -> None:
        """Drop everything that was computed from the weights before they changed.

        That is the prefix cache, the kernels' table of layers, CUDA graphs, copies in large pages, and, for
        `Engine.of`, quantized copies and weights that were replaced instead of changed in place. A draft model and the
        adapters' matrices stay.

        Raises:
            RequestError: answers are running.
            ConfigError: the model is split over processes, which hold copies of its parts; make a new engine.
        """
        if self._group is not None:
            raise ConfigError(
                "weights_changed: a model split over processes holds copies of its parts; make a new engine of it"
            )
        self.loop.weights_changed()

    # ---- asking ----------------------------------------------------------------------------------------------------

    @overload
    def generate(self, inputs: Input, params: SamplingParams | None = None) -> Answers: ...  # type: ignore[overload-overlap]

    @overload
    def generate(self, inputs: Sequence[Input], params: SamplingParams | None = None) -> list[Answers]: ...

    def generate(
        self, inputs: Input | Sequence[Input], params: SamplingParams | None = None
    ) -> Answers | list[Answers]:
        """Answer one input, or each of a list in the same order.

        An input is a string (text to be continued) or a conversation (a list of messages, answered as a chat).
        One answer is a `Completion`; with `params.n` above 1 it is a list of them.

        Raises:
            RequestError: a prompt is too long, or a sampling parameter is out of range.
            DataError: a conversation's messages are malformed.
        """
        single = is_one(inputs)
        batch = as_batch([inputs] if single else inputs)
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

        The request is queued when the first piece is read, so that a stream that nobody reads computes nothing.

        Raises:
            RequestError: the prompt is too long, or a sampling parameter is out of range.
        """
        pieces = PieceQueue()
        return self._drain(self.request(inputs, params, pieces), pieces)

    async def agenerate(
        self, inputs: Input | Sequence[Input], params: SamplingParams | None = None
    ) -> Answers | list[Answers]:
        """`generate` without blocking the event loop: many at once share the engine's steps.

        Raises:
            RequestError: a prompt is too long, or a sampling parameter is out of range.
            DataError: a conversation's messages are malformed.
        """
        single = is_one(inputs)
        batch = as_batch([inputs] if single else inputs)
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
            RequestError: the prompt is too long, or a sampling parameter is out of range.
        """
        pieces = PieceQueue()
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

    def _drain(self, request: Request, pieces: PieceQueue) -> Iterator[Piece]:
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
        """The prompt tokens of an input: the text after its BOS token, or the conversation up to the answer."""
        return self.wording.encode(self.tokenizer, inputs)

    def request(
        self,
        inputs: Input | list[int],
        params: SamplingParams | None = None,
        listener: Callable[[Piece], None] | None = None,
        *,
        owner: str | None = None,
    ) -> Request:
        """A checked request, ready to be submitted; a list of ids is a prompt that is already encoded.

        Prompts of different owners never share cached prefixes: the time to an answer would reveal what others asked.

        Raises:
            RequestError: the prompt is too long, or a sampling parameter is out of range.
        """
        params = params or SamplingParams()
        if self._stop_texts:
            params = replace(params, stop=(*params.stop, *self._stop_texts))
        check_params(params)
        prompt = inputs if is_encoded(inputs) else self.encode(cast("Input", inputs))
        self._check_prompt(prompt)
        seed = params.seed
        if seed is None:
            seed = secrets.randbits(63)
            seed = seed if self._group is None else agree(seed, self._group)
        if params.adapter is not None and params.adapter not in self.adapters:
            raise RequestError(f"There is no adapter {params.adapter} (loaded: {', '.join(self.adapters) or 'none'}).")
        request = Request(prompt, params, seed, listener)
        request.root = self.loop.root(params.adapter, owner)
        self._adjust(request)
        if listener is not None or params.stop:
            for answer in request.answers:
                answer.follow_text(self.loop.text_stream())
        return request

    def _adjust(self, request: Request) -> None:
        """Give each answer its changes of logits: penalties, biases, its own copy of the grammar's state."""
        params = request.params
        for name, ids in (("logit_bias", params.logit_bias), ("stop_token_ids", params.stop_token_ids)):
            if wrong := [token for token in ids if token >= self.model.config.vocab_size]:
                raise RequestError(f"{name}: this model has no token {wrong[0]}.")
        guide = self.guides.compile(params)
        if guide is None and not Adjustment.wanted(params):
            return
        for answer in request.answers:
            answer.adjustment = Adjustment(params, request.prompt, self.stop_ids, guide and guide.fork())

    def submit(self, request: Request) -> None:
        """Queue a request; safe from any thread. Somebody must call `step` until it is finished."""
        if not self.has_work:
            self.loop.looks_closely = True
        self.loop.inbox.append(("add", request))

    def cancel(self, request: Request) -> None:
        """End a request's open answers and free their blocks, at the latest before the next step; safe from any thread.

        A finished request stays as it is.
        """
        if request.finished or request.leader.asked_by() is None:  # the request was garbage collected
            return
        self.loop.inbox.append(("cancel", request))
        if self.loop.lock.acquire(blocking=False):
            try:
                self.loop.open_inbox()
            finally:
                self.loop.lock.release()

    def add_adapter(self, name: str, folder: Path | str) -> None:
        """Open a LoRA adapter (a PEFT folder); requests use it by `SamplingParams(adapter=name)`.

        Raises:
            CheckpointError: the folder is damaged or does not fit the model, or the name is taken.
            ConfigError: the model is split over processes.
        """
        if self._group is not None:
            raise ConfigError("adapters: not with a model over several processes; merge the adapter into its weights")
        with self.loop.lock:
            self.loop.adapters.add(name, folder)

    @property
    def stop_ids(self) -> frozenset[int]:
        """The tokens that end an answer, unless its request sets `ignore_eos`."""
        return self.loop.stop_ids

    @property
    def adapters(self) -> tuple[str, ...]:
        """The names of the adapters."""
        return self.loop.adapters.names

    @property
    def has_work(self) -> bool:
        """Whether there is anything left to compute."""
        return bool(self.loop.inbox) or self.loop.scheduler.has_work

    @property
    def num_waiting(self) -> int:
        """Answers waiting to be started."""
        return len(self.loop.scheduler.waiting) + len(self.loop.inbox)

    @property
    def num_running(self) -> int:
        """Answers in the batch."""
        return len(self.loop.scheduler.running)

    @property
    def cache_bytes(self) -> int:
        """Bytes of the KV cache, a draft model's included."""
        return self.loop.runner.cache.nbytes + (self.loop.speculation.cache_bytes if self.loop.speculation else 0)

    @property
    def free_share(self) -> float:
        """The share of the cache's blocks that are free."""
        return self.loop.allocator.num_free / self.loop.allocator.num_blocks

    def step(self) -> None:
        """Advance every running answer by one token and the next prompts by a chunk."""
        self.loop.step()

    def warm_up(self) -> None:
        """Wait until kernels are compiled and weights copied into large pages of memory, which makes answers fast."""
        self.loop.warm_up()

    # ---- answers ---------------------------------------------------------------------------------------------------

    def _answers(self, request: Request) -> Answers:
        request.raise_error()
        answers = [completion(answer, self.text_of(answer)) for answer in request.best]
        return answers[0] if request.params.n == 1 else answers

    def text_of(self, answer: Answer) -> str:
        """An answer's text: without special tokens, and up to its stop string."""
        return self.loop.text_of(answer)

    def _check_prompt(self, prompt: list[int]) -> None:
        if not prompt:
            raise RequestError("The prompt is empty: it needs at least one token.")
        if len(prompt) >= self.max_context:
            by_cache = self.max_context < self.model.config.max_position_embeddings
            why = ", limited by the cache or by max_context" if by_cache else ""
            raise RequestError(
                f"The prompt has {len(prompt)} tokens, but the context is {self.max_context} tokens "
                f"for prompt and answer together{why}; shorten the prompt (nothing is cut silently)."
            )
        size = self.model.config.vocab_size
        if wrong := [token for token in prompt if not 0 <= token < size]:
            raise RequestError(f"The prompt holds token id {wrong[0]}; this model has ids 0 to {size - 1}.")
