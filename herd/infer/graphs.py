"""Decode steps as CUDA graphs: a thousand small launches captured once and replayed as one.

A graph has a fixed shape, so a step of N rows runs in the graph of the next power of two, over the graph's own buffers;
padding rows read and write one spare block of the cache. Graphs are captured between steps, only for shapes that came
up several times, and within a share of the running time. Until then, and for everything else (prefill, adapters, a
model over several processes), steps run launch by launch. On a CPU a `Rehearsal` replaces the recorder: the same
buffers and padding without a graph, so that everything but the capture is tested there.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from herd.infer.upload import to_device
from herd.kernels import device as device_kernels
from herd.log import say

_MISSES = 3  # steps of a shape before a graph is recorded for it
_SHARE = 0.2  # of the running time that recording may take
_MOST_GRAPHS = 64
_LEAST_BLOCKS = 16  # of a graph's block table
_SPARE_BYTES = 2**30  # that must be free on the device for recording


A = TypeVar("A", np.ndarray, Tensor)


class DecodeRows(NamedTuple, Generic[A]):
    """The inputs of a decode step, one row for each token; as arrays on the host, or as tensors of a graph."""

    tokens: A  # (N,) int64
    positions: A  # (N,)
    slots: A  # (N,)
    lengths: A  # (N,)
    blocks: A  # (N, P)


class Recorder(Protocol):
    """Records a function, to be replayed."""

    def record(self, work: Callable[[], object]) -> Callable[[], None] | None:
        """A function that repeats the work on the same tensors; None if it cannot be recorded yet."""


class Rehearsal:
    """The reference for `CudaRecorder`: replays by calling the function again."""

    def record(self, work: Callable[[], object]) -> Callable[[], None] | None:
        """The function itself."""
        work()
        return lambda: (work(), None)[1]


class CudaRecorder:
    """Records what a function does on the GPU. All graphs share one pool of memory: only one runs at a time."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._pool = device, torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream(device)

    def record(self, work: Callable[[], object]) -> Callable[[], None] | None:
        """Run it once, so that libraries and kernels are initialized, then capture it."""
        if torch.cuda.mem_get_info(self._device)[0] < _SPARE_BYTES:
            return None
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            work()
            if device_kernels.are_pending():  # the graph would keep the slower path forever
                torch.cuda.current_stream(self._device).synchronize()
                return None
            self._stream.synchronize()
            graph = torch.cuda.CUDAGraph()
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")  # other threads go on
            try:
                work()
            finally:
                graph.capture_end()
        torch.cuda.current_stream(self._device).wait_stream(self._stream)
        return graph.replay


@dataclass
class _Graph:
    buffer: Tensor  # all inputs in one tensor, written by the host
    hidden: Tensor  # (rows, D) the result
    replay: Callable[[], None]


class DecodeGraphs:
    """The recorded steps of one model, and which shape to record next.

    `compute` turns rows, as tensors, into hidden states (N, D). The cache's block `spare_block` takes the padding rows'
    keys and values. `most_rows` and `most_blocks` bound the shapes.
    """

    def __init__(
        self,
        compute: Callable[[DecodeRows], Tensor],
        recorder: Recorder,
        *,
        most_rows: int,
        most_blocks: int,
        spare_block: int,
        block_size: int,
        hidden: Tensor,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """`hidden` (most_rows, D), on the model's device, receives the result of every graph."""
        self._compute, self._recorder, self._clock = compute, recorder, clock
        self.most_rows, self.most_blocks = most_rows, most_blocks
        self._spare_block, self._block_size, self._hidden = spare_block, block_size, hidden
        self._graphs: dict[tuple[int, int], _Graph] = {}
        self._misses: Counter[tuple[int, int]] = Counter()
        self._began, self._seconds_recording = clock(), 0.0
        self.num_replayed = self.num_missed = 0
        self.fault = ""
        """Why no more graphs are recorded; empty while they are."""

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """Rows and blocks of every recorded graph."""
        return sorted(self._graphs)

    @property
    def nbytes(self) -> int:
        """Bytes of the buffers; a graph's own memory is managed by the driver."""
        return self._hidden.nbytes + sum(graph.buffer.nbytes for graph in self._graphs.values())

    def shape_for(self, num_rows: int, num_blocks: int) -> tuple[int, int] | None:
        """The shape of the graph for this many rows and blocks; None if they are more than graphs have."""
        if num_rows > self.most_rows or num_blocks > self.most_blocks:
            return None
        rows = min(_power_of_two(num_rows), self.most_rows)
        return rows, min(max(_power_of_two(num_blocks), _LEAST_BLOCKS), self.most_blocks)

    def run(self, rows: DecodeRows[np.ndarray]) -> Tensor | None:
        """Hidden states (N, D), valid until the next step; None if the step must run without a graph."""
        shape = self.shape_for(*rows.blocks.shape)
        graph = self._graphs.get(shape) if shape is not None else None
        if graph is None or shape is None:
            self.num_missed += 1
            if shape is not None and not self.fault:
                self._misses[shape] += 1
            return None
        self.num_replayed += 1
        to_device(self._padded(rows, shape), graph.buffer.device, into=graph.buffer)
        graph.replay()
        return graph.hidden[: len(rows.tokens)]

    def record_most_missed(self) -> None:
        """Between steps: record the shape that was missed most, if often enough and there is time for it."""
        if not self._misses or self.fault:
            return
        shape, num_missed = self._misses.most_common(1)[0]
        seconds_running = self._clock() - self._began - self._seconds_recording
        if num_missed < _MISSES or self._seconds_recording > _SHARE * seconds_running:
            return
        began = self._clock()
        try:
            self._record(shape)
        except RuntimeError as error:  # such as out of memory
            self.fault = str(error).splitlines()[0] if str(error) else type(error).__name__
            say(f"no more CUDA graphs are recorded: {self.fault}")
        self._seconds_recording += self._clock() - began
        self._misses.clear()

    def _record(self, shape: tuple[int, int]) -> None:
        if len(self._graphs) >= _MOST_GRAPHS:
            del self._graphs[next(iter(self._graphs))]
        none = np.zeros(0, dtype=np.int64)
        no_rows = DecodeRows(none, none, none, none, np.zeros((0, 1), dtype=np.int64))
        device, result = self._hidden.device, self._hidden[: shape[0]]
        buffer = to_device(self._padded(no_rows, shape), device)
        rows = _cut(buffer, shape)
        replay = self._recorder.record(lambda: result.copy_(self._compute(rows)))
        if replay is not None:
            self._graphs[shape] = _Graph(buffer, result, replay)

    def _padded(self, rows: DecodeRows[np.ndarray], shape: tuple[int, int]) -> np.ndarray:
        """All arrays concatenated in a graph's shape; padding rows write to the spare block."""
        flat = np.zeros(shape[0] * (4 + shape[1]), dtype=np.int64)
        filled, num_rows = _cut(flat, shape), len(rows.tokens)
        filled.slots[:] = self._spare_block * self._block_size
        filled.lengths[:] = 1
        filled.blocks[:, 0] = self._spare_block
        for target, source in zip(filled[:4], rows[:4], strict=True):
            target[:num_rows] = source
        filled.blocks[:num_rows, : rows.blocks.shape[1]] = rows.blocks
        return flat


def _cut(flat: A, shape: tuple[int, int]) -> DecodeRows[A]:
    """The arrays within a graph's buffer."""
    rows, blocks = shape
    first, second, third, fourth = (flat[part * rows : (part + 1) * rows] for part in range(4))
    return DecodeRows(first, second, third, fourth, flat[4 * rows :].reshape(rows, blocks))


def _power_of_two(number: int) -> int:
    return 1 << max(number - 1, 0).bit_length()
