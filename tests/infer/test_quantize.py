"""Int8 weights: rounding, kernels and folders."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from herd.errors import CheckpointError
from herd.infer import quantize
from herd.infer.engine import Engine
from herd.infer.quantize import quantize_folder
from herd.model.checkpoint import as_reward_model, load, save
from herd.ops.quantized import (
    dequantize_rows,
    pack,
    quantize_rows,
    quantized_linear,
    reference_quantized_linear,
    unpack,
)
from herd.types import SamplingParams
from tests.infer.models import small_tokenizer, tiny_model

GREEDY = SamplingParams(temperature=0, max_tokens=8)


@given(st.integers(0, 2**31), st.sampled_from([1e-6, 1.0, 3e4]))
def test_rounding_errs_by_at_most_half_a_step_of_each_row(seed, spread):
    weight = torch.randn(5, 37, generator=torch.Generator().manual_seed(seed)) * spread
    weight[2] = 0
    rounded, scale = quantize_rows(weight)
    error = (dequantize_rows(rounded, scale) - weight).abs()
    assert (error <= scale.float()[:, None] * 0.5001).all()
    assert rounded.abs().max() <= 127 and (error[2] == 0).all()
    assert (scale.float() * 127 <= weight.abs().amax(1) * 1.01)[[0, 1, 3, 4]].all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_tokens", [1, 3, 16, 17, 100])
def test_the_fast_product_agrees_with_its_twin(dtype, num_tokens):
    generator = torch.Generator().manual_seed(0)
    weight, scale = quantize_rows(torch.randn(96, 64, generator=generator))
    x = torch.randn(2, num_tokens, 64, generator=generator).to(dtype)
    fast, slow = quantized_linear(x, weight, scale), reference_quantized_linear(x, weight, scale)
    assert fast.shape == slow.shape and fast.dtype == dtype
    relative, absolute = (1e-5, 1e-4) if dtype == torch.float32 else (2**-7, 0.02)
    torch.testing.assert_close(fast, slow, rtol=relative, atol=absolute)


@given(st.integers(1, 9), st.integers(1, 17))
def test_packing_is_undone_by_unpacking(num_rows, num_columns):
    weight = torch.randint(-127, 128, (num_rows, num_columns), dtype=torch.int8)
    packed = pack(weight)
    assert packed.dtype == torch.int32
    assert torch.equal(unpack(packed, num_columns), weight)


def test_four_weights_share_a_word_the_first_in_the_lowest_bits():
    assert pack(torch.tensor([[-127, 0, 1, 127]], dtype=torch.int8)).tolist() == [
        [(1 | 128 << 8 | 129 << 16 | 255 << 24) - 2**32]
    ]


@pytest.mark.parametrize("tied", [False, True])
def test_a_quantized_folder_opens_and_predicts_nearly_the_same(tmp_path, tied):
    model = tiny_model(tie_word_embeddings=tied)
    save(model, tmp_path / "model", small_tokenizer())
    report = quantize_folder(tmp_path / "model", tmp_path / "int8")
    assert report.num_layers == 14 and 0 < report.largest_error < 0.005
    assert report.bytes_after < 0.55 * report.bytes_before
    on_disk = (tmp_path / "int8" / "model.safetensors").stat().st_size
    assert abs(on_disk - report.bytes_after) < 10_000
    opened = load(tmp_path / "int8", dtype=torch.float32)
    tokens = torch.randint(0, 600, (2, 50), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        before, after = model(tokens).log_softmax(-1), opened(tokens).log_softmax(-1)
    assert float((before.exp() * (before - after)).sum(-1).mean()) < 0.01  # KL divergence, in nats


def test_the_engine_answers_from_a_quantized_folder_as_from_weights_quantized_on_loading(tmp_path):
    save(tiny_model(), tmp_path / "model", small_tokenizer(), dtype=torch.bfloat16)
    quantize_folder(tmp_path / "model", tmp_path / "int8")
    from_folder = Engine(tmp_path / "int8").generate("The quick", GREEDY)
    on_loading = Engine(tmp_path / "model", quantize="int8").generate("The quick", GREEDY)
    assert from_folder == on_loading
    in_memory = Engine.of(load(tmp_path / "int8"), small_tokenizer()).generate("The quick", GREEDY)
    assert in_memory == on_loading


def test_large_models_are_written_in_shards(tmp_path, monkeypatch):
    monkeypatch.setattr(quantize, "SHARD_BYTES", 20_000)
    save(tiny_model(), tmp_path / "model", small_tokenizer())
    quantize_folder(tmp_path / "model", tmp_path / "int8")
    index = json.loads((tmp_path / "int8" / "model.safetensors.index.json").read_text())
    files = set(index["weight_map"].values())
    assert len(files) > 3 and all((tmp_path / "int8" / file).is_file() for file in files)
    assert not list((tmp_path / "int8").glob("part-*"))
    assert Engine(tmp_path / "int8").generate("The quick", GREEDY).tokens


def test_the_folder_describes_itself_in_the_words_of_compressed_tensors(tmp_path):
    save(tiny_model(), tmp_path / "model", small_tokenizer())
    quantize_folder(tmp_path / "model", tmp_path / "int8")
    config = json.loads((tmp_path / "int8" / "config.json").read_text())["quantization_config"]
    assert (config["quant_method"], config["format"]) == ("compressed-tensors", "pack-quantized")
    weights = config["config_groups"]["group_0"]["weights"]
    assert (weights["num_bits"], weights["strategy"], weights["symmetric"]) == (8, "channel", True)
    assert (tmp_path / "int8" / "tokenizer.json").is_file()


def test_what_cannot_be_quantized_is_refused_and_leaves_nothing_behind(tmp_path):
    save(tiny_model(), tmp_path / "model", small_tokenizer())
    quantize_folder(tmp_path / "model", tmp_path / "int8")
    save(as_reward_model(tiny_model(), seed=0), tmp_path / "reward", small_tokenizer())
    for source, message in (("int8", "quantized already"), ("reward", "only language models"), ("none", "not exist")):
        with pytest.raises(CheckpointError, match=message):
            quantize_folder(tmp_path / source, tmp_path / "out")
    with pytest.raises(CheckpointError, match="only 8"):
        quantize_folder(tmp_path / "model", tmp_path / "out", bits=3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["int8", "model", "reward"]


def test_checkpoints_quantized_in_another_way_are_refused_by_name(tmp_path):
    save(tiny_model(), tmp_path / "model", small_tokenizer())
    file = tmp_path / "model" / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {"quantization_config": {"quant_method": "gptq", "bits": 4}}))
    with pytest.raises(CheckpointError, match="gptq"):
        load(tmp_path / "model")


@pytest.mark.parametrize("tied", [False, True])
def test_transformers_reads_the_folder_and_predicts_the_same(tmp_path, tied):
    pytest.importorskip("compressed_tensors", reason="transformers reads these folders with compressed-tensors")
    transformers = pytest.importorskip("transformers")
    save(tiny_model(tie_word_embeddings=tied), tmp_path / "model", small_tokenizer())
    quantize_folder(tmp_path / "model", tmp_path / "int8")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "int8", dtype=torch.float32)
    ours = load(tmp_path / "int8", dtype=torch.float32)
    tokens = torch.randint(0, 600, (1, 30), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert (theirs(tokens).logits - ours(tokens)).abs().max() < 1e-4
