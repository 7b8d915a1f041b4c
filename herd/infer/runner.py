"""One step of arithmetic: a plan's tokens through the model, keys and values into the cache, logits out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from herd.infer.adapters import Adapters
from herd.infer.cache import PagedCache
from herd.infer.request import Answer
from herd.infer.scheduler import Chunk, Plan
from herd.model.config import num_parameters
from herd.model.llama import LlamaForCausalLM
from herd.ops.paged_attention import DecodeGroup, PagedContext, PromptChunk, decode_mask, prompt_mask

_SERIAL_FLOPS = 3e8  # up to this, a step is quicker on one core than split over several that must wait for each other
_SMALL_BATCH_BLOCKS = 512  # up to this many gathered blocks, one group of mixed lengths is quicker than several
_CLASSES_PER_DOUBLING = 2  # groups of decoding sequences differ in length by at most 2^(1/2)


class Output(NamedTuple):
    """What one step computed."""

    logits: Tensor  # (N, V) float32
    rows: dict[Answer, list[int]]  # which rows of the logits follow which answer's tokens, in order
    hidden: Tensor  # (T, D) of every token
    chunks: list[slice]  # the places of each chunk of the plan among them


@dataclass
class _Step:
    """A plan's tokens side by side."""

    tokens: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    owners: list[int] = field(default_factory=list)  # each token's sequence, as its place in the batch
    adapters: list[str | None] = field(default_factory=list)  # each token's
    num_single: int = 0  # tokens of decoding sequences: they come first
    wanted: dict[Answer, list[int]] = field(default_factory=dict)  # tokens whose logits are wanted
    chunks: list[slice] = field(default_factory=list)


def _places(answer: Answer) -> range:
    """The places a decoding sequence computes: its last token and the drafts behind it."""
    return range(answer.num_tokens - 1, answer.num_tokens + len(answer.drafts))


class Runner:
    """Turns plans into tensors and runs the model on them.

    A sequence's block table and length live in arrays with one row per place in the batch, so that the work in Python
    for a decoding sequence does not grow with its length.
    """

    def __init__(
        self,
        model: LlamaForCausalLM,
        cache: PagedCache,
        *,
        max_sequences: int,
        max_context: int,
        adapters: Adapters | None = None,
    ) -> None:
        self.model, self.cache, self._adapters = model, cache, adapters
        self.device = cache.device
        self._dtype = model.model.norm.weight.dtype
        self._flops_per_token = 2 * num_parameters(model.config)
        self._tables = np.zeros((max_sequences, -(-max_context // cache.block_size)), dtype=np.int64)
        self._owners = [-1] * max_sequences  # numbers of answers
        self._num_known = [0] * max_sequences  # blocks of the owner that its table row holds already

    @contextmanager
    def threads_for(self, plan: Plan) -> Iterator[None]:
        """Compute small steps on one core; the number of threads is as before afterwards."""
        num_tokens = sum(1 + len(answer.drafts) for answer in plan.decode) + sum(
            chunk.stop - chunk.start for chunk in plan.chunks
        )
        before = torch.get_num_threads()
        if num_tokens * self._flops_per_token < _SERIAL_FLOPS:
            torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(before)

    @torch.inference_mode()
    def run(self, plan: Plan) -> Output:
        """Compute a plan's tokens: the logits that follow each decoding sequence, its drafts, and each ended prompt."""
        step = self._flatten(plan)
        if self._adapters is not None and self._adapters.names:
            self._adapters.assign(step.adapters)
        hidden = self._hidden(step.tokens, step.positions, self._context(plan, step))
        wanted = [row for rows in step.wanted.values() for row in rows]
        chosen = hidden
        if len(wanted) < len(step.tokens) or wanted != list(range(len(wanted))):
            chosen = hidden[torch.tensor(wanted, dtype=torch.int64, device=self.device)]
        numbers = iter(range(len(wanted)))
        rows = {answer: [next(numbers) for _ in rows] for answer, rows in step.wanted.items()}
        return Output(self.model.lm_head.logits(chosen).float(), rows, hidden, step.chunks)

    @torch.inference_mode()
    def logits_of(self, hidden: Tensor) -> Tensor:
        """What the model expects after each place: (T, D) -> logits (T, V) float32."""
        return self.model.lm_head.logits(hidden).float()

    def _flatten(self, plan: Plan) -> _Step:
        """All tokens of a plan in one flat row: decoding ones by length, drafts among them, then prompts."""
        step = _Step()
        singles = sorted(
            ((place, answer) for answer in plan.decode for place in plan.places.get(answer) or _places(answer)),
            key=lambda single: single[0],
        )
        for row, (place, answer) in enumerate(singles):
            step.tokens.append(answer.token_at(place))
            step.positions.append(place)
            step.owners.append(answer.row)
            step.adapters.append(answer.params.adapter)
            step.wanted.setdefault(answer, []).append(row)
        step.num_single = len(singles)
        for chunk in plan.chunks:
            begin = len(step.tokens)
            step.tokens += chunk.answer.token_range(chunk.start, chunk.stop)
            step.positions += range(chunk.start, chunk.stop)
            step.owners += [chunk.answer.row] * (chunk.stop - chunk.start)
            step.adapters += [chunk.answer.params.adapter] * (chunk.stop - chunk.start)
            step.chunks.append(slice(begin, len(step.tokens)))
            if chunk.is_last:
                step.wanted[chunk.answer] = [len(step.tokens) - 1]
        return step

    def _hidden(self, tokens: list[int], positions: list[int], context: PagedContext) -> Tensor:
        """All tokens in one flat row through the layers: (T, D)."""
        model = self.model.model
        x = model.embed(torch.tensor([tokens], device=self.device))
        return model(x, torch.tensor([positions], device=self.device), context, self.cache.layers)[0]

    def _context(self, plan: Plan, step: _Step) -> PagedContext:
        for answer in plan.decode:
            self._update_table(answer)
        for chunk in plan.chunks:
            self._update_table(chunk.answer)
        place, block_size = np.array(step.positions), self.cache.block_size
        slots = self._tables[step.owners, place // block_size] * block_size + place % block_size
        return PagedContext(
            slots=torch.from_numpy(slots).to(self.device),
            decode=tuple(self._decode_groups(step.owners, place + 1, step.num_single)),
            prompts=tuple(self._prompts(plan.chunks, step.num_single)),
        )

    def _update_table(self, answer: Answer) -> None:
        """Copy the blocks that are new since the last step into the sequence's row."""
        row = answer.row
        known = self._num_known[row] if self._owners[row] == answer.number else 0
        if known != len(answer.blocks):
            self._tables[row, known : len(answer.blocks)] = answer.blocks[known:]
            self._owners[row], self._num_known[row] = answer.number, len(answer.blocks)

    def _decode_groups(self, rows: list[int], lengths: np.ndarray, num_decode: int) -> list[DecodeGroup]:
        """Neighbours of similar length share a gather: each group is as wide as its longest member."""
        if num_decode == 0:
            return []
        num_blocks = -(-lengths[:num_decode] // self.cache.block_size)
        borders = [0, num_decode]
        if num_decode * num_blocks[-1] > _SMALL_BATCH_BLOCKS:
            classes = np.ceil(_CLASSES_PER_DOUBLING * np.log2(num_blocks))
            borders = [0, *(np.flatnonzero(np.diff(classes)) + 1).tolist(), num_decode]
        return [
            self._decode_group(rows[start:stop], lengths[start:stop], num_blocks[stop - 1], start)
            for start, stop in pairwise(borders)
        ]

    def _decode_group(self, rows: list[int], lengths: np.ndarray, width: int, start: int) -> DecodeGroup:
        seen = torch.from_numpy(lengths).to(self.device)
        return DecodeGroup(
            rows=slice(start, start + len(rows)),
            blocks=torch.from_numpy(self._tables[rows, :width]).to(self.device),
            lengths=seen,
            mask=decode_mask(seen, int(width) * self.cache.block_size, self._dtype),
        )

    def _prompts(self, chunks: list[Chunk], start: int) -> list[PromptChunk]:
        prompts = []
        for chunk in chunks:
            num_tokens = chunk.stop - chunk.start
            width = -(-chunk.stop // self.cache.block_size)
            prompts.append(
                PromptChunk(
                    rows=slice(start, start + num_tokens),
                    blocks=torch.from_numpy(self._tables[chunk.answer.row, :width]).to(self.device),
                    start=chunk.start,
                    mask=prompt_mask(chunk.start, num_tokens, self.device),
                )
            )
            start += num_tokens
        return prompts
