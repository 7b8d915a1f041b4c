"""The blocks of llama.cpp: the same bytes and the same numbers as the `gguf` package."""

import ctypes
from collections import Counter

import gguf
import numpy as np
import pytest
import torch

from herd.formats import ggml
from herd.formats.gguf import TYPES
from herd.formats.gguf_model import types_of
from herd.formats.stored import expected_shapes
from herd.model.config import ModelConfig

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
@pytest.mark.parametrize("name", ["Q8_0", "Q4_0", "Q5_0", "Q5_1", "F16", "BF16", "F32"])
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


@pytest.mark.parametrize("name, step", [("Q8_0", 1 / 127), ("Q4_0", 1 / 8), ("Q5_0", 1 / 16)])
def test_what_was_quantized_comes_back_within_a_step(name, step):
    rows = torch.randn(16, 256, generator=torch.Generator().manual_seed(1))
    again = ggml.dequantize(ggml.quantize(rows, name), name)
    largest = rows.reshape(16, -1, 32).abs().amax(-1, keepdim=True).expand(-1, -1, 32).reshape(16, 256)
    assert ((again - rows).abs() <= largest * step * 1.01).all()


# ---- blocks of 256, beside llama.cpp's own quantizer -----------------------------------------------------------------


def llama_cpps_bytes(rows: torch.Tensor, name: str) -> torch.Tensor:
    """What llama.cpp's library makes of float32 rows."""
    xllamacpp = pytest.importorskip("xllamacpp")
    quantize = ctypes.CDLL(xllamacpp.xllamacpp.__file__).ggml_quantize_chunk
    quantize.restype, pointer, number = ctypes.c_size_t, ctypes.c_void_p, ctypes.c_int64
    quantize.argtypes = [ctypes.c_int, pointer, pointer, number, number, number, pointer]
    block = TYPES[name]
    content = torch.empty(len(rows), rows.shape[1] // block.num_weights * block.num_bytes, dtype=torch.uint8)
    rows = rows.contiguous()
    assert quantize(block.id, rows.data_ptr(), content.data_ptr(), 0, *rows.shape, None) == content.numel()
    return content


def error_of(rows: torch.Tensor, content: torch.Tensor, name: str) -> float:
    return float((ggml.dequantize(content, name) - rows).square().sum() / rows.square().sum())


@pytest.mark.parametrize("name", ["Q4_K", "Q5_K", "Q6_K"])
def test_blocks_of_256_are_llama_cpps_but_for_the_order_of_sums(name):
    rows = torch.randn(256, 1024, generator=torch.Generator().manual_seed(2)) * 0.02
    ours, theirs = ggml.quantize(rows, name), llama_cpps_bytes(rows, name)
    assert (ours == theirs).float().mean() > 0.98
    assert error_of(rows, ours, name) == pytest.approx(error_of(rows, theirs, name), rel=1e-3)


@pytest.mark.parametrize("name", ["Q4_K", "Q5_K", "Q6_K"])
def test_wild_rows_in_blocks_of_256_err_as_little_as_llama_cpps(name):
    rows = wild_rows()
    for ours, theirs, row in zip(ggml.quantize(rows, name), llama_cpps_bytes(rows, name), rows, strict=True):
        errors = [(ggml.dequantize(c[None], name)[0] - row).square().sum() for c in (ours, theirs)]
        assert torch.isfinite(errors[0]) and errors[0] <= errors[1] * 1.06 + 1e-12


LLAMAS = {
    "Llama 3 8B": (32, 4096, 14_336, 32, False),
    "Llama 3 70B": (80, 8192, 28_672, 64, False),
    "Llama 3.2 1B": (16, 2048, 8192, 32, True),
    "Llama 3.2 3B": (28, 3072, 8192, 24, True),
}
PUBLISHED = {  # as llama.cpp counts the tensors when it loads the files that hubs offer
    ("Llama 3 8B", "Q4_K_M"): {"F32": 65, "Q4_K": 193, "Q6_K": 33},
    ("Llama 3 8B", "Q5_K_M"): {"F32": 65, "Q5_K": 193, "Q6_K": 33},
    ("Llama 3 8B", "Q6_K"): {"F32": 65, "Q6_K": 226},
    ("Llama 3 70B", "Q4_K_M"): {"F32": 161, "Q4_K": 441, "Q5_K": 40, "Q6_K": 81},
    ("Llama 3.2 1B", "Q4_K_M"): {"F32": 33, "Q4_K": 96, "Q6_K": 17},
    ("Llama 3.2 3B", "Q4_K_M"): {"F32": 57, "Q4_K": 168, "Q6_K": 29},
}


@pytest.mark.parametrize("model, mix", PUBLISHED)
def test_the_mixes_are_those_of_the_files_that_llama_cpp_publishes(model, mix):
    layers, width, inner, heads, tied = LLAMAS[model]
    config = ModelConfig(
        vocab_size=128_256,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=8,
        tie_word_embeddings=tied,
    )
    assert Counter(types_of(config, expected_shapes(config), mix).values()) == PUBLISHED[model, mix]


def test_rows_that_are_no_multiple_of_256_fall_back_as_llama_cpps_do():
    config = ModelConfig(
        vocab_size=49_152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
    )
    for mix, narrow, wide in (("Q4_K_M", "Q5_0", "Q4_K"), ("Q5_K_M", "Q5_1", "Q5_K"), ("Q6_K", "Q8_0", "Q6_K")):
        types = types_of(config, expected_shapes(config), mix)
        assert types["model.embed_tokens.weight"] == types["model.layers.0.self_attn.v_proj.weight"] == "Q8_0"
        assert types["model.layers.4.self_attn.q_proj.weight"] == narrow
        assert (types["model.layers.0.mlp.down_proj.weight"], types["model.layers.4.mlp.down_proj.weight"]) == (
            "Q6_K",
            wide,
        )
        assert types["model.norm.weight"] == "F32"
