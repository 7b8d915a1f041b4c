"""Layers of a GGUF file's blocks: the numbers that the file means, in kernels and without, and engines on them."""

from __future__ import annotations

import pytest
import torch

from herd.formats import checkpoint
from herd.formats.blocks import BLOCK_TYPES, to_blocks
from herd.formats.convert import convert
from herd.formats.ggml import dequantize
from herd.formats.gguf import TYPES
from herd.infer.embedder import Embedder
from herd.infer.engine import Engine
from herd.kernels import decoding
from herd.ops.blocks import BlockEmbedding, BlockLinear, block_linear, widen
from herd.types import SamplingParams
from tests.infer.models import small_tokenizer, tiny_model

FLOATS = {"Q4_1": (0, 2), "Q5_1": (0, 2), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q3_K": (108,), "Q6_K": (208,)}
GREEDY = SamplingParams(temperature=0, max_tokens=8)


def random_content(type: str, num_rows: int, num_columns: int) -> torch.Tensor:
    """Bytes of random blocks, their float16 fields small numbers."""
    torch.manual_seed(0)
    block = TYPES[type]
    content = torch.randint(0, 256, (num_rows * num_columns // block.num_weights, block.num_bytes), dtype=torch.uint8)
    for begin in FLOATS.get(type, (0,)):
        content[:, begin : begin + 2] = (torch.randn(len(content), 1) * 0.01).half().view(torch.uint8)
    return content.view(num_rows, -1)


@pytest.mark.parametrize("type", sorted(BLOCK_TYPES))
def test_blocks_are_the_files_numbers_and_their_products_those_of_plain_weights(type):
    decoding.wait()
    for num_columns in (256, 1536) if TYPES[type].num_weights == 256 else (64, 576, 1024):
        content = random_content(type, 70, num_columns)
        meant, blocks = dequantize(content, type), to_blocks(content, type)
        assert blocks is not None
        exact = TYPES[type].num_weights == 32
        torch.testing.assert_close(widen(blocks), meant, rtol=0, atol=0 if exact else 1e-3 * float(meant.abs().max()))
        for num_tokens in (1, 3, 6, 40):  # one kernel for few, one for some, one for many
            x = torch.randn(num_tokens, num_columns).bfloat16()
            expected = x.float() @ meant.T
            found = block_linear(x, blocks).float()
            assert (found - expected).norm() < 5e-3 * expected.norm()
            assert (block_linear(x.float(), blocks) - expected).norm() < 1e-3 * expected.norm()


def test_what_the_engine_has_no_blocks_for_is_none():
    assert to_blocks(random_content("Q4_1", 2, 32), "Q4_1") is None  # a row is no whole step
    assert to_blocks(torch.zeros(2, 84, dtype=torch.uint8), "Q2_K") is None
    beyond = random_content("Q6_K", 1, 256)
    beyond[0, 192:208], beyond[0, 208:210] = 127, torch.tensor([60_000.0]).half().view(torch.uint8)
    assert to_blocks(beyond, "Q6_K") is None  # 127 times that is beyond float16


@pytest.fixture(params=[True, False], ids=["tied", "with a head"])
def file(request, tmp_path):
    model = tiny_model(hidden_size=256, intermediate_size=256, tie_word_embeddings=request.param)
    checkpoint.save(model, tmp_path / "model", small_tokenizer())
    convert(tmp_path / "model", tmp_path / "model.gguf", precision="q4_k_m")
    return tmp_path / "model.gguf"


def test_an_engine_computes_with_a_files_blocks_as_they_are(file):
    if not decoding.wait():
        pytest.skip("no compiler: blocks are turned into bfloat16 as they are opened")
    engine = Engine(file, cache_bytes=1_000_000)
    layers = [module for module in engine.model.modules() if isinstance(module, BlockLinear)]
    assert len(layers) == 7 * 2 + 1 and isinstance(engine.model.model.embed_tokens, BlockEmbedding)
    held = {tensor.data_ptr(): tensor.nbytes for tensor in engine.model.state_dict().values()}
    plain = checkpoint.load(file)
    assert sum(held.values()) < 0.45 * sum(weight.nbytes for weight in plain.parameters())
    tokens = engine.encode("The quick brown fox jumps over the lazy dog. What does")
    exact = checkpoint.load(file, dtype=torch.float32)
    with torch.no_grad():
        ids = torch.tensor([tokens])
        hidden = exact.model(exact.model.embed(ids), torch.arange(len(tokens))[None])[0]
    assert Embedder(engine).embed(tokens, "last") @ torch.nn.functional.normalize(hidden[-1], dim=0) > 0.999
    answer = engine.generate([tokens], GREEDY)[0].tokens
    place = torch.tensor([tokens + list(answer)])
    with torch.no_grad():
        logits = exact(place)[0, len(tokens) - 1 : -1]
    behind = logits.max(-1).values - logits.gather(1, torch.tensor(answer)[:, None])[:, 0]
    assert behind.max() < 0.05 * logits.std()


def test_who_names_a_type_or_a_scheme_gets_plain_numbers_or_that_scheme(file):
    for options in ({"dtype": "float32"}, {"dtype": "bfloat16"}, {"quantize": "int8"}):
        engine = Engine(file, cache_bytes=1_000_000, **options)
        assert not any(isinstance(module, BlockLinear | BlockEmbedding) for module in engine.model.modules())
        assert len(engine.generate("The quick", GREEDY).tokens) == 8
