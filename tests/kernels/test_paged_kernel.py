"""One token's attention over the paged cache in our C++ kernel, against plain arithmetic."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from herd.kernels import decoding
from tests.ops.kernels import KINDS, use

BLOCK = 16


@pytest.fixture(autouse=True, params=KINDS)
def kernels(request, monkeypatch):
    use(request.param, monkeypatch)


@pytest.mark.parametrize("cache_dtype", [torch.bfloat16, torch.int8])
@pytest.mark.parametrize("num_places", [1, 15, 16, 17, 255, 256, 257, 700])
@pytest.mark.parametrize("heads, kv_heads, channels", [(3, 1, 32), (8, 8, 64), (12, 4, 128), (32, 4, 64), (7, 1, 64)])
def test_one_token_sees_exactly_the_places_before_it(heads, kv_heads, channels, num_places, cache_dtype):
    torch.manual_seed(num_places)
    num_blocks = -(-num_places // BLOCK)
    pools = [_pool(num_blocks + 3, kv_heads, channels, cache_dtype) for _ in range(2)]
    table = torch.randperm(num_blocks + 3)[:num_blocks].contiguous()
    if cache_dtype == torch.bfloat16:  # what an earlier sequence left behind the last place must not matter
        for numbers, _, _ in pools:
            numbers[table[-1], (num_places - 1) % BLOCK + 1 :] = float("nan")
    q = torch.randn(1, heads, channels).bfloat16()
    out = torch.empty_like(q)
    (keys, key_scales, _), (values, value_scales, _) = pools
    span = np.array([[0, 1, num_places - 1, table.data_ptr()]], dtype=np.int64)
    decoding.kernels().attend(
        q.data_ptr(), keys.data_ptr(), values.data_ptr(), _pointer(key_scales), _pointer(value_scales),
        span.ctypes.data, 1, out.data_ptr(), 1, heads, kv_heads, channels, 2,
    )  # fmt: skip
    k, v = (real[table].flatten(0, 1)[:num_places].repeat_interleave(heads // kv_heads, 1) for _, _, real in pools)
    weights = (torch.einsum("hc,thc->ht", q[0].float(), k) / math.sqrt(channels)).softmax(-1)
    expected = torch.einsum("ht,thc->hc", weights, v)
    assert float((out[0].float() - expected).abs().max() / expected.abs().max()) < 2**-7


def _pool(num_blocks, kv_heads, channels, dtype):
    """Numbers, scales, and the real numbers they stand for."""
    shape = (num_blocks, BLOCK, kv_heads)
    if dtype == torch.bfloat16:
        numbers = torch.randn(*shape, channels).bfloat16()
        return numbers, None, numbers.float()
    numbers, scales = torch.randint(-127, 128, (*shape, channels), dtype=dtype), (torch.rand(shape) / 50).bfloat16()
    return numbers, scales, numbers.float() * scales.float()[..., None]


def _pointer(tensor):
    return 0 if tensor is None else tensor.data_ptr()
