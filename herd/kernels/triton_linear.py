"""Triton kernels for 8-bit and 4-bit weights times few tokens; weights are read once and not dequantized in memory.

The columns of a weight may be split over programs (otherwise a layer with few rows would leave most of a GPU idle); the
number of splits depends only on the weight's shape, and their sums are added in a fixed order. The references are in
`quantized.py`. This module imports Triton, so it is used only after `device_kernels.serves`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from herd.kernels.device import Launch, run, wide_in_tests

_PROGRAMS = 264  # two per multiprocessor of an H100 or H200
_MOST_SPLITS = 8
_INT8 = {"COLUMNS": 32, "INNER": 256}
_INT4 = {"COLUMNS": 32, "PAIRS": 4}


def int8_linear(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor | None:
    """x (M, K) times int8 (N, K) with scales (N,): (M, N); None while the kernels are not compiled."""
    steps = -(-weight.shape[1] // _INT8["INNER"])
    return _linear(_int8_part, x, weight, scale, steps, _INT8)


def int4_linear(x: Tensor, packed: Tensor, scale: Tensor) -> Tensor | None:
    """x (M, K) times uint8 (N, K' / 2) with scales (N, K' / 32): (M, N); None while the kernels are not compiled."""
    steps = -(-packed.shape[1] // (32 * _INT4["PAIRS"]))
    return _linear(_int4_part, x, packed, scale, steps, _INT4)


def _linear(kernel, x: Tensor, weight: Tensor, scale: Tensor, steps: int, sizes: dict[str, int]) -> Tensor | None:
    """Partial sums over parts of the columns, then their sum; `steps` is the iterations over all columns."""
    (num_rows, inner), num_columns = x.shape, weight.shape[0]
    tile = min(max(triton.next_power_of_2(num_rows), 16), 64)
    tiles = -(-num_columns // sizes["COLUMNS"])
    num_splits = max(min(-(-_PROGRAMS // tiles), _MOST_SPLITS, steps), 1)
    found = torch.empty(num_splits, num_rows, num_columns, dtype=torch.float32, device=x.device)
    out = torch.empty(num_rows, num_columns, dtype=x.dtype, device=x.device)
    stages = {16: 4, 32: 3, 64: 2}[tile]  # as many as fit into shared memory for two programs
    shape = {"OUT": num_columns, "INSIDE": inner, "STEPS": -(-steps // num_splits)}
    launches = [
        Launch(
            kernel, (tiles, num_splits, -(-num_rows // tile)), (x.contiguous(), weight, scale, found, num_rows),
            {
                **shape, **sizes, "ROWS": tile, "WIDE": weight.shape[1], "NUMBER": wide_in_tests(x.dtype),
                "num_warps": 4, "num_stages": stages,
            },
        ),
        Launch(
            _sum_parts, (num_rows, -(-num_columns // 1024)), (found, scale, out, num_rows),
            {"OUT": num_columns, "SPLITS": num_splits, "SCALED": kernel is _int8_part, "num_warps": 4},
        ),
    ]  # fmt: skip
    return out if run(launches) else None


@triton.jit(do_not_specialize=["num_rows"], do_not_specialize_on_alignment=["x"])
def _int8_part(
    x, weight, scale, found, num_rows,
    OUT: tl.constexpr, INSIDE: tl.constexpr, STEPS: tl.constexpr, COLUMNS: tl.constexpr, INNER: tl.constexpr,
    ROWS: tl.constexpr, WIDE: tl.constexpr, NUMBER: tl.constexpr,
):  # fmt: skip
    """Partial sums over some columns, without scales."""
    split = tl.program_id(1)
    row = tl.program_id(2) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for step in range(STEPS):
        inner = (split * STEPS + step) * INNER + tl.arange(0, INNER)
        is_inner = inner < INSIDE
        left = tl.load(
            x + row[:, None] * INSIDE + inner[None, :], mask=(row < num_rows)[:, None] & is_inner[None, :], other=0.0
        )
        right = tl.load(
            weight + column[None, :].to(tl.int64) * WIDE + inner[:, None],
            mask=is_inner[:, None] & (column < OUT)[None, :],
            other=0,
        )
        total += tl.dot(left.to(NUMBER), right.to(tl.float32).to(NUMBER), input_precision="ieee")
    place = (split * num_rows + row)[:, None] * OUT + column[None, :]
    tl.store(found + place, total, mask=(row < num_rows)[:, None] & (column < OUT)[None, :])


@triton.jit(do_not_specialize=["num_rows"], do_not_specialize_on_alignment=["x"])
def _int4_part(
    x, weight, scale, found, num_rows,
    OUT: tl.constexpr, INSIDE: tl.constexpr, STEPS: tl.constexpr, COLUMNS: tl.constexpr, PAIRS: tl.constexpr,
    ROWS: tl.constexpr, WIDE: tl.constexpr, NUMBER: tl.constexpr,
):  # fmt: skip
    """Partial sums over some columns. In each pair of groups (64 weights, 32 bytes) low nibbles are the first."""
    split = tl.program_id(1)
    row = tl.program_id(2) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    is_row, is_column = row < num_rows, column < OUT
    byte = tl.arange(0, 32)
    flat = tl.arange(0, PAIRS * 32)
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for step in range(STEPS):
        first = (split * STEPS + step) * PAIRS
        pair = first + tl.arange(0, PAIRS)
        is_pair = is_column[:, None] & (pair * 32 < WIDE)[None, :]
        places = column[:, None, None].to(tl.int64) * WIDE + pair[None, :, None] * 32 + byte[None, None, :]
        packed = tl.load(weight + places, mask=is_pair[:, :, None], other=0)
        scales = scale + column[:, None].to(tl.int64) * (WIDE // 16) + pair[None, :] * 2
        inner = first * 64 + flat // 32 * 64 + flat % 32
        for upper in tl.static_range(2):
            nibble = (packed >> 4 * upper) & 15
            factor = tl.load(scales + upper, mask=is_pair, other=0.0).to(tl.float32)
            wide = (nibble.to(tl.float32) - 8.0) * factor[:, :, None]
            right = tl.trans(tl.reshape(wide.to(NUMBER), (COLUMNS, PAIRS * 32)))
            places_x = inner + 32 * upper
            left = tl.load(
                x + row[:, None] * INSIDE + places_x[None, :],
                mask=is_row[:, None] & (places_x < INSIDE)[None, :],
                other=0.0,
            )
            total += tl.dot(left.to(NUMBER), right, input_precision="ieee")
    place = (split * num_rows + row)[:, None] * OUT + column[None, :]
    tl.store(found + place, total, mask=is_row[:, None] & is_column[None, :])


@triton.jit(do_not_specialize=["num_rows"])
def _sum_parts(found, scale, out, num_rows, OUT: tl.constexpr, SPLITS: tl.constexpr, SCALED: tl.constexpr):
    """The sum of one row's splits, in order, times the scales of int8."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * 1024 + tl.arange(0, 1024)
    mask = column < OUT
    total = tl.zeros([1024], tl.float32)
    for split in tl.static_range(SPLITS):
        total += tl.load(found + (split * num_rows + row) * OUT + column, mask=mask, other=0.0)
    if SCALED:
        total *= tl.load(scale + column, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + row * OUT + column, total.to(out.dtype.element_ty), mask=mask)
