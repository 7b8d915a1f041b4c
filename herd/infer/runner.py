"""Computing one step: a plan's tokens through the model, keys and values into the cache, logits out."""

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
from herd.infer.compiled import CompiledLayers
from herd.infer.graphs import CudaRecorder, DecodeGraphs, DecodeRows, Recorder, Rehearsal
from herd.infer.request import Answer
from herd.infer.scheduler import PrefillChunk, StepPlan
from herd.infer.threads import cores
from herd.infer.upload import indices, upload
from herd.kernels import decoding
from herd.kernels import device as device_kernels
from herd.model.config import num_parameters
from herd.model.llama import LlamaForCausalLM
from herd.ops.paged_attention import DecodeGroup, PagedContext, PromptChunk, decode_mask, prompt_mask

_SERIAL_FLOPS = 3e8  # a smaller step is faster on one core than on several, because of synchronization
_COMPILED_FLOPS_PER_TOKEN = 5e7  # from here on our kernels use all cores for any step: their barriers are cheap
_SMALL_BATCH_BLOCKS = 512  # up to this many gathered blocks, one group of mixed lengths is faster than several
_CLASSES_PER_DOUBLING = 2  # groups of decoding sequences differ in length by at most 2^(1/2)


class Output(NamedTuple):
    """The results of one step."""

    logits: Tensor  # (N, V) float32
    rows: dict[Answer, list[int]]  # each answer's rows of the logits, in order
    hidden: Tensor  # (T, D) of every token; valid until the next step
    chunks: list[slice]  # the rows of `hidden` for each chunk of the plan


@dataclass
class _Step:
    """A plan's tokens as flat lists."""

    tokens: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    owners: list[int] = field(default_factory=list)  # each token's sequence, as its row in the batch
    adapters: list[str | None] = field(default_factory=list)  # each token's
    num_single: int = 0  # tokens of decoding sequences, which come first
    wanted: dict[Answer, list[int]] = field(default_factory=dict)  # tokens whose logits are needed
    chunks: list[slice] = field(default_factory=list)


def _places(answer: Answer) -> range:
    """The positions that a decoding sequence computes: its last token and the drafts after it."""
    return range(answer.num_tokens - 1, answer.num_tokens + len(answer.drafts))


class Runner:
    """Turns plans into tensors and runs the model on them.

    Block tables and lengths are kept in arrays with one row per sequence of the batch, so that the work in Python for a
    decoding sequence does not grow with its length.
    """

    def __init__(
        self,
        model: LlamaForCausalLM,
        cache: PagedCache,
        *,
        max_sequences: int,
        max_context: int,
        adapters: Adapters | None = None,
        may_compile: bool = True,
        with_graphs: bool = False,
    ) -> None:
        """`may_compile` lets the layers run in our CPU kernels, which do not support several processes.
        `with_graphs` replays decode steps on a GPU (see `graphs.py`); the cache must then have a spare block.
        """
        self.model, self.cache, self._adapters, self._may_compile = model, cache, adapters, may_compile
        self._layers: CompiledLayers | None = None
        self.device = cache.device
        self._dtype = model.model.norm.weight.dtype
        self._flops_per_token = 2 * num_parameters(model.config)
        self._tables = np.zeros((max_sequences, -(-max_context // cache.block_size)), dtype=np.int64)
        self._owners = [-1] * max_sequences  # number of the answer in each row
        self._num_known = [0] * max_sequences  # its blocks that are already in the table
        self.graphs = self._make_graphs(max_sequences) if with_graphs else None

    def _make_graphs(self, most_rows: int) -> DecodeGraphs:
        recorder: Recorder = CudaRecorder(self.device) if self.device.type == "cuda" else Rehearsal()
        weight = self.model.model.norm.weight
        return DecodeGraphs(
            self._compute_rows,
            recorder,
            most_rows=most_rows,
            most_blocks=self._tables.shape[1],
            spare_block=self.cache.num_blocks,
            block_size=self.cache.block_size,
            hidden=weight.new_zeros(most_rows, self.model.config.hidden_size),
        )

    @contextmanager
    def threads_for(self, plan: StepPlan) -> Iterator[None]:
        """Run small steps on one core."""
        if self.device.type != "cpu":
            yield
            return
        num_tokens = sum(1 + len(answer.drafts) for answer in plan.decode) + sum(
            chunk.stop - chunk.start for chunk in plan.chunks
        )
        is_small = num_tokens * self._flops_per_token < _SERIAL_FLOPS
        is_compiled = self._layers is not None and decoding.serve_tokens(num_tokens)
        with cores(serial=is_small and not (is_compiled and self._flops_per_token >= _COMPILED_FLOPS_PER_TOKEN)):
            yield

    @torch.inference_mode()
    def run(self, plan: StepPlan) -> Output:
        """Compute a plan's tokens: logits for each decoding sequence, its drafts, and each completed prompt."""
        step = self._flatten(plan)
        if self._adapters is not None and self._adapters.names:
            self._adapters.assign(step.adapters)
        for answer in (*plan.decode, *(chunk.answer for chunk in plan.chunks)):
            self._update_table(answer)
        wanted = [row for rows in step.wanted.values() for row in rows]
        is_whole = wanted == list(range(len(step.tokens)))
        hidden = self._replayed(step)
        if hidden is not None:  # all tokens' logits are needed, perhaps in another order
            chosen = hidden if is_whole else hidden[indices(wanted, self.device)]
        else:
            hidden, chosen = self._computed(plan, step, None if is_whole else wanted)
        numbers = iter(range(len(wanted)))
        rows = {answer: [next(numbers) for _ in rows] for answer, rows in step.wanted.items()}
        return Output(self.logits_of(chosen), rows, hidden, step.chunks)

    def record_graphs(self) -> None:
        """Between steps: record the graph that was missed most, if there is time for it."""
        if self.graphs is None:
            return
        if self._adapters is not None:
            self._adapters.assign([])  # graphs are without adapters
        self.graphs.record_most_missed()

    @torch.inference_mode()
    def logits_of(self, hidden: Tensor) -> Tensor:
        """Hidden states (T, D) -> logits (T, V) float32."""
        if len(hidden) == 0:  # no prompt of this step is complete
            return hidden.new_empty((0, self.model.config.vocab_size), dtype=torch.float32)
        return self.model.lm_head.logits(hidden).float()

    def _flatten(self, plan: StepPlan) -> _Step:
        """All tokens of a plan in one flat row: those of decoding sequences by position, then prompts."""
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

    def _replayed(self, step: _Step) -> Tensor | None:
        """Hidden states of a step without prefill, by a CUDA graph; None where there is no graph for it."""
        if self.graphs is None or step.num_single < len(step.tokens) or any(step.adapters):
            return None
        positions = np.array(step.positions)
        width = positions[-1] // self.cache.block_size + 1  # the longest comes last
        blocks = self._tables[step.owners, :width]
        return self.graphs.run(
            DecodeRows(np.array(step.tokens), positions, self._slots(step.owners, positions), positions + 1, blocks)
        )

    def _compiled_layers(self, step: _Step) -> CompiledLayers | None:
        """The layers in our CPU kernels; None where they are not available or slower, or a token has an adapter."""
        if not self._may_compile or not decoding.serve_tokens(len(step.tokens)) or any(step.adapters):
            return None
        if self._layers is None:  # the kernels may have just been compiled
            self._layers = CompiledLayers.of(self.model, self.cache)
            self._may_compile = self._layers is not None
        return self._layers

    def forget_places(self) -> None:
        """Drop the addresses of weights, after they moved."""
        self._layers = None

    def forget_weights(self) -> None:
        """Drop addresses and CUDA graphs after the weights changed: graphs would still read the old ones."""
        self._layers = None
        if self.graphs is not None:
            self.graphs = self._make_graphs(len(self._owners))

    def _spans(self, plan: StepPlan, step: _Step) -> np.ndarray:
        """The same as `paged_attention.spans_of(context)`, without building the context."""
        first, width = self._tables.ctypes.data, self._tables.strides[0]
        singles = enumerate(zip(step.owners[: step.num_single], step.positions, strict=False))
        rows = [(row, 1, place, first + owner * width) for row, (owner, place) in singles]
        for chunk, places in zip(plan.chunks, step.chunks, strict=True):
            rows.append((places.start, chunk.stop - chunk.start, chunk.start, first + chunk.answer.row * width))
        return np.array(rows, dtype=np.int64)

    def _compute_rows(self, rows: DecodeRows[Tensor]) -> Tensor:
        """Hidden states (N, D) of decoding rows that are already on the device."""
        group = DecodeGroup(slice(0, len(rows.tokens)), rows.blocks, rows.lengths)
        with torch.inference_mode():
            return self._hidden(rows.tokens, rows.positions, PagedContext(rows.slots, decode=(group,)))

    def _computed(self, plan: StepPlan, step: _Step, wanted: list[int] | None) -> tuple[Tensor, Tensor]:
        """Hidden states of all tokens, and of the wanted ones; all inputs go to the device in one transfer."""
        positions = np.array(step.positions)
        if (layers := self._compiled_layers(step)) is not None:
            slots = self._slots(step.owners, positions)
            hidden = layers.run(step.tokens, step.positions, slots, self._spans(plan, step))
            return hidden, hidden if wanted is None else hidden[indices(wanted, self.device)]
        groups = self._decode_groups(step.owners, positions + 1, step.num_single)
        prompts = [self._tables[chunk.answer.row, : self._num_blocks(chunk.stop)] for chunk in plan.chunks]
        arrays = [np.array(step.tokens), positions, self._slots(step.owners, positions)]
        arrays += [part for _, *parts in groups for part in parts] + prompts
        arrays += [] if wanted is None else [np.array(wanted, dtype=np.int64)]
        tensors = iter(upload(arrays, self.device))
        tokens, places, slots_there = (next(tensors) for _ in range(3))
        context = PagedContext(
            slots_there,
            tuple(self._decode_group(rows, next(tensors), next(tensors)) for rows, _, _ in groups),
            tuple(self._prompts(plan.chunks, step.num_single, tensors)),
        )
        hidden = self._hidden(tokens, places, context)
        return hidden, hidden if wanted is None else hidden[next(tensors)]

    def _hidden(self, tokens: Tensor, positions: Tensor, context: PagedContext) -> Tensor:
        """All tokens in one flat row through the layers: (T,), (T,) -> (T, D)."""
        model = self.model.model
        return model(model.embed(tokens[None]), positions[None], context, self.cache.layers)[0]

    def _slots(self, owners: list[int], positions: np.ndarray) -> np.ndarray:
        """The cache slot for each token's keys and values."""
        block_size = self.cache.block_size
        return self._tables[owners, positions // block_size] * block_size + positions % block_size

    def _num_blocks(self, num_tokens: int) -> int:
        return -(-num_tokens // self.cache.block_size)

    def _update_table(self, answer: Answer) -> None:
        """Copy blocks added since the last step into the sequence's row of the block table."""
        row = answer.row
        known = self._num_known[row] if self._owners[row] == answer.number else 0
        if known != len(answer.blocks):
            self._tables[row, known : len(answer.blocks)] = answer.blocks[known:]
            self._owners[row], self._num_known[row] = answer.number, len(answer.blocks)

    def _decode_groups(
        self, rows: list[int], lengths: np.ndarray, num_decode: int
    ) -> list[tuple[slice, np.ndarray, np.ndarray]]:
        """Rows, blocks and lengths of each group. Sequences of similar length share a gather, padded to the longest.

        Our GPU kernels need no gather: there all sequences are one group.
        """
        if num_decode == 0:
            return []
        num_blocks = -(-lengths[:num_decode] // self.cache.block_size)
        borders = [0, num_decode]
        if num_decode * num_blocks[-1] > _SMALL_BATCH_BLOCKS and not self._has_kernels:
            classes = np.ceil(_CLASSES_PER_DOUBLING * np.log2(num_blocks))
            borders = [0, *(np.flatnonzero(np.diff(classes)) + 1).tolist(), num_decode]
        return [
            (slice(start, stop), self._tables[rows[start:stop], : num_blocks[stop - 1]], lengths[start:stop])
            for start, stop in pairwise(borders)
        ]

    @property
    def _has_kernels(self) -> bool:
        return self.device.type != "cpu" and device_kernels.serves(self.cache.tensors[0])

    def _decode_group(self, rows: slice, blocks: Tensor, lengths: Tensor) -> DecodeGroup:
        if self._has_kernels:
            return DecodeGroup(rows, blocks, lengths)
        return DecodeGroup(
            rows, blocks, lengths, decode_mask(lengths, blocks.shape[1] * self.cache.block_size, self._dtype)
        )

    def _prompts(self, chunks: list[PrefillChunk], start: int, blocks: Iterator[Tensor]) -> list[PromptChunk]:
        prompts = []
        for chunk in chunks:
            num_tokens = chunk.stop - chunk.start
            prompts.append(
                PromptChunk(
                    rows=slice(start, start + num_tokens),
                    blocks=next(blocks),
                    start=chunk.start,
                    mask=prompt_mask(chunk.start, num_tokens, self.device),
                )
            )
            start += num_tokens
        return prompts
