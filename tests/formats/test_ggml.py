"""The blocks of llama.cpp: the same bytes and the same numbers as the `gguf` package."""

import gguf
import numpy as np
import pytest
import torch

from herd.formats import ggml
from herd.formats.gguf import TYPES

READ = [name for name in TYPES if name not in ggml.PLAIN]


def theirs(name):
    return gguf.GGMLQuantizationType[name]


def wild_rows() -> torch.Tensor:
    """Usual weights, rows of one value, zeros, ties in size, halves exactly between two steps, large and small ones."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(64, 512, generator=generator) * torch.logspace(-6, 3, 64)[:, None]
    rows[0], rows[1], rows[2] = 0.0, 1.5, -1.5
    rows[3] = torch.arange(512) % 2 * 2.0 - 1
    rows[4, :] = (torch.arange(512) - 256) / 2
    rows[5, :] = 127.0 / 2 * (torch.arange(512) % 3 - 1)
    return rows


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["Q8_0", "Q4_0", "F16", "BF16", "F32"])
def test_blocks_equal_the_gguf_packages_bit_for_bit(name, dtype):
    rows = wild_rows().to(dtype)
    expected = gguf.quants.quantize(rows.float().numpy(), theirs(name)).view(np.uint8)
    assert np.array_equal(ggml.quantize(rows, name).numpy(), expected)


@pytest.mark.parametrize("name", READ)
def test_any_bytes_stand_for_the_numbers_that_the_gguf_package_reads(name):
    block = TYPES[name]
    content = np.random.default_rng(0).integers(0, 256, (40, 3 * block.num_bytes), dtype=np.uint8)
    with np.errstate(all="ignore"):
        expected = gguf.quants.dequantize(content, theirs(name))
    ours = ggml.dequantize(torch.from_numpy(content), name).numpy()
    assert ours.shape == expected.shape == (40, 3 * block.num_weights)
    np.testing.assert_array_equal(ours, expected)


@pytest.mark.parametrize("name, step", [("Q8_0", 1 / 127), ("Q4_0", 1 / 8)])
def test_what_was_quantized_comes_back_within_a_step(name, step):
    rows = torch.randn(16, 256, generator=torch.Generator().manual_seed(1))
    again = ggml.dequantize(ggml.quantize(rows, name), name)
    largest = rows.reshape(16, -1, 32).abs().amax(-1, keepdim=True).expand(-1, -1, 32).reshape(16, 256)
    assert ((again - rows).abs() <= largest * step * 1.01).all()
