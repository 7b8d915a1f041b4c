"""Int8 weights: rounding, kernels and folders."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from herd.errors import CapacityError, CheckpointError, ConfigError
from herd.formats.checkpoint import load, save
from herd.infer.engine import Engine
from herd.infer.quantize import quantize_folder, quantized_bytes
from herd.kernels import decoding
from herd.model.reward import as_reward_model
from herd.ops.compressed import SCHEMES, pack, unpack
from herd.ops.fp8 import UPPER_BOUND, fp8_linear, quantize_fp8, reference_fp8_linear
from herd.ops.quantized import (
    DecodingLinear,
    Int4Linear,
    QuantizedLinear,
    dequantize_groups,
    dequantize_rows,
    int4_linear,
    pack_nibbles,
    pair_nibbles,
    quantize_groups,
    quantize_rows,
    quantized_linear,
    reference_int4_linear,
    reference_pair_nibbles,
    reference_quantize_groups,
    reference_quantize_rows,
    reference_quantized_linear,
    unpack_nibbles,
)
from herd.types import SamplingParams
from tests.infer.models import small_tokenizer, tiny_model
from tests.ops import kernels as kernels_of

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
@pytest.mark.parametrize("num_columns", [64, 48, 36, 100, 130])
def test_the_fast_product_agrees_with_its_twin(dtype, num_tokens, num_columns):
    generator = torch.Generator().manual_seed(0)
    weight, scale = quantize_rows(torch.randn(96, num_columns, generator=generator))
    x = torch.randn(2, num_tokens, num_columns, generator=generator).to(dtype)
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
    assert report.num_layers == 14
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


def test_large_models_are_written_in_shards(tmp_path):
    save(tiny_model(), tmp_path / "model", small_tokenizer())
    quantize_folder(tmp_path / "model", tmp_path / "int8", memory_bytes=40_000)
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
    for source, message in (("int8", "already quantized"), ("reward", "only language models"), ("none", "not exist")):
        with pytest.raises(CheckpointError, match=message):
            quantize_folder(tmp_path / source, tmp_path / "out")
    with pytest.raises(CheckpointError, match="int8, int4, fp8"):
        quantize_folder(tmp_path / "model", tmp_path / "out", "int3")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["int8", "model", "reward"]


def test_an_engine_asked_for_what_it_cannot_quantize_says_so(tmp_path):
    save(tiny_model(), tmp_path / "model", small_tokenizer())
    quantize_folder(tmp_path / "model", tmp_path / "int8")
    with pytest.raises(ConfigError, match="already int8"):
        Engine(tmp_path / "int8", quantize="int4")
    assert Engine(tmp_path / "int8", quantize="int8").generate("a", SamplingParams(max_tokens=2)).tokens
    save(tiny_model(attention_bias=True), tmp_path / "biased", small_tokenizer())
    with pytest.raises(CapacityError, match="q_proj has a bias"):
        Engine(tmp_path / "biased", quantize="int8")


def test_a_checkpoint_that_says_quantized_and_holds_plain_weights_is_refused_by_name(tmp_path):
    save(tiny_model(), tmp_path / "model", small_tokenizer())
    file = tmp_path / "model" / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {"quantization_config": {"quant_method": "gptq", "bits": 4}}))
    with pytest.raises(CheckpointError, match=r"says that the weights are quantized .gptq., but none is"):
        load(tmp_path / "model")


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_transformers_reads_the_folder_and_predicts_the_same(tmp_path, tied, scheme):
    pytest.importorskip("compressed_tensors", reason="transformers reads these folders with compressed-tensors")
    transformers = pytest.importorskip("transformers")
    save(tiny_model(tie_word_embeddings=tied, num_hidden_layers=3), tmp_path / "model", small_tokenizer())
    quantize_folder(tmp_path / "model", tmp_path / "small", scheme)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "small", dtype=torch.float32)
    ours = load(tmp_path / "small", dtype=torch.float32)
    tokens = torch.randint(0, 600, (1, 30), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert (theirs(tokens).logits - ours(tokens)).abs().max() < (0.05 if scheme == "fp8" else 1e-4)


# ---- int4 ------------------------------------------------------------------------------------------------------------


@pytest.fixture(params=[*kernels_of.KINDS, "PyTorch alone"])
def kernels(request, monkeypatch):
    """All ways to compute, wherever the compiled kernels can be had."""
    if request.param == "PyTorch alone":
        monkeypatch.setattr(decoding, "_library", None)
        monkeypatch.setattr(decoding, "_building", None)
    else:
        kernels_of.use(request.param, monkeypatch)
    return request.param


@pytest.mark.parametrize("kind", kernels_of.KINDS)
def test_the_kernels_that_prepare_weights_agree_with_their_twins(monkeypatch, kind):
    kernels_of.use(kind, monkeypatch)
    weight = (torch.randn(50, 176) * torch.logspace(-6, 4, 50)[:, None]).bfloat16()
    weight[7], weight[8, :] = 0, 3e38
    for ours, theirs in zip(quantize_rows(weight), reference_quantize_rows(weight), strict=True):
        assert torch.equal(ours, theirs)
    in_order = torch.randint(0, 256, (9, 96), dtype=torch.uint8)
    assert torch.equal(pair_nibbles(in_order), reference_pair_nibbles(in_order))


@given(st.integers(1, 5), st.integers(1, 3))
def test_nibbles_are_packed_and_unpacked(num_rows, num_steps):
    weight = torch.randint(-8, 8, (num_rows, 64 * num_steps), dtype=torch.int8)
    assert torch.equal(unpack_nibbles(pack_nibbles(weight)), weight)
    assert torch.equal(unpack(pack(weight, 4), weight.shape[1], 4), weight)
    assert torch.equal(pair_nibbles(pack(weight, 4).view(torch.uint8)), pack_nibbles(weight))


def test_eight_weights_share_a_word_the_first_in_the_lowest_bits():
    word = pack(torch.tensor([[-8, 0, 7, 1, 0, 0, 0, 0]], dtype=torch.int8), 4).item() & 0xFFFFFFFF
    assert word == 0x88888888 & ~0xFFFF | 0x9 << 12 | 0xF << 8 | 0x8 << 4


def test_the_search_for_a_scale_agrees_with_its_twin_and_beats_the_plain_scale(kernels):
    weight = torch.randn(40, 128, generator=torch.Generator().manual_seed(0))
    weight[3, :32] = 0
    packed, scale = quantize_groups(weight)
    expected, expected_scale = reference_quantize_groups(weight)
    ours, theirs = dequantize_groups(packed, scale), dequantize_groups(expected, expected_scale)
    error, twin = ((found - weight).square().sum() for found in (ours, theirs))
    assert float(error) == pytest.approx(float(twin), rel=1e-4)
    assert (ours[3, :32] == 0).all()
    groups = weight.unflatten(1, (-1, 32))
    plain = groups.abs().amax(-1, keepdim=True).clamp_min(1e-9) / 7
    rounded = ((groups / plain).round() * plain).flatten(1)
    assert error < 0.8 * (rounded - weight).square().sum()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_tokens", [1, 2, 3, 4, 7, 40])
@pytest.mark.parametrize("num_columns", [64, 96, 320])
def test_the_int4_product_agrees_with_its_twin(kernels, dtype, num_tokens, num_columns):
    generator = torch.Generator().manual_seed(0)
    linear = torch.nn.Linear(num_columns, 130, bias=False)
    layer = Int4Linear.from_linear(linear)
    x = torch.randn(2, num_tokens, num_columns, generator=generator).to(dtype)
    fast, slow = (
        int4_linear(x, layer.weight, layer.weight_scale),
        reference_int4_linear(x, layer.weight, layer.weight_scale),
    )
    assert fast.shape == slow.shape and fast.dtype == dtype
    relative, absolute = (1e-5, 1e-4) if dtype == torch.float32 else (2**-7, 0.02)
    torch.testing.assert_close(fast, slow, rtol=relative, atol=absolute)


@pytest.mark.parametrize("num_tokens", [1, 3, 4])
@pytest.mark.parametrize("scheme", ["int8", "int4"])
def test_few_tokens_keep_their_precision_beside_one_that_is_a_thousand_times_larger(kernels, scheme, num_tokens):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(num_tokens, 448, generator=generator).bfloat16()
    x[:, 70] *= 1000  # as in trained models, where a few columns are far above the others
    x[0, 130:190] = 0
    weight = torch.randn(130, 448, generator=generator) / 20
    weight[:, 70] = 0  # the outlier itself adds nothing, so that an error it brings to the others would show
    layer, make = _quantized(scheme, weight)
    exact = x.float() @ make(layer).T
    error = (layer(x).float() - exact).abs().max() / exact.abs().max()
    assert float(error) < 2**-7  # rounding the result to bfloat16 alone: 2^-9


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("scheme", ["int8", "int4"])
def test_what_is_no_number_is_not_hidden_and_stays_with_its_token(kernels, scheme, bad):
    layer, _ = _quantized(scheme, torch.randn(70, 192).abs() + 0.1)
    x = torch.randn(3, 192).bfloat16()
    x[1, 100] = bad
    assert layer(x).isfinite().all(1).tolist() == [True, False, True]


def _quantized(scheme, weight):
    """A quantized layer, and what tells the numbers it stands for."""
    linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    linear.weight.data = weight
    if scheme == "int4":
        return Int4Linear.from_linear(linear), lambda it: dequantize_groups(it.weight, it.weight_scale)
    return QuantizedLinear.from_linear(linear), lambda it: dequantize_rows(it.weight, it.weight_scale)


def test_without_a_compiler_int4_runs_in_pytorchs_own_kernel(monkeypatch):
    monkeypatch.setattr(decoding, "_library", None)
    monkeypatch.setattr(decoding, "_building", None)
    layer = Int4Linear.from_linear(torch.nn.Linear(128, 192, bias=False))
    x = torch.randn(3, 128).bfloat16()
    assert decoding.is_out_of_reach()
    torch.testing.assert_close(
        layer(x), reference_int4_linear(x, layer.weight, layer.weight_scale), rtol=2**-6, atol=0.03
    )
    assert layer._for_torch is not None


@pytest.mark.parametrize("num_tokens", [1, 2, 3, 5, 16, 20])
def test_bfloat16_layers_give_the_same_product_in_our_kernel(kernels, num_tokens):
    linear = torch.nn.Linear(128, 70, bias=False).bfloat16()
    layer = DecodingLinear.from_linear(linear)
    x = torch.randn(num_tokens, 128).bfloat16()
    assert layer.weight is linear.weight
    torch.testing.assert_close(layer(x), linear(x), rtol=2**-7, atol=2**-7)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_scheme_answers_the_same_from_a_folder_from_loading_and_in_memory(tmp_path, scheme):
    save(tiny_model(num_hidden_layers=3), tmp_path / "model", small_tokenizer(), dtype=torch.bfloat16)
    quantize_folder(tmp_path / "model", tmp_path / "small", scheme)
    from_folder = Engine(tmp_path / "small").generate("The quick", GREEDY)
    assert from_folder == Engine(tmp_path / "model", quantize=scheme).generate("The quick", GREEDY)
    assert from_folder == Engine.of(load(tmp_path / "small"), small_tokenizer()).generate("The quick", GREEDY)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_size_is_known_before(tmp_path, scheme):
    save(tiny_model(num_hidden_layers=3), tmp_path / "model", small_tokenizer())
    said = quantized_bytes(tmp_path / "model", scheme)
    assert quantize_folder(tmp_path / "model", tmp_path / "small", scheme).bytes_after == said


def test_int4_stays_near_the_original(tmp_path):
    model = tiny_model()
    save(model, tmp_path / "model", small_tokenizer())
    report = quantize_folder(tmp_path / "model", tmp_path / "int4", "int4")
    assert report.num_layers == 14
    opened = load(tmp_path / "int4", dtype=torch.float32)
    tokens = torch.randint(0, 600, (2, 50), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        before, after = model(tokens).log_softmax(-1), opened(tokens).log_softmax(-1)
    assert float((before.exp() * (before - after)).sum(-1).mean()) < 0.4


def test_rows_that_fall_into_no_groups_are_refused(tmp_path):
    save(tiny_model(hidden_size=72, head_dim=16), tmp_path / "model", small_tokenizer())
    with pytest.raises(CheckpointError, match="group size 32"):
        quantize_folder(tmp_path / "model", tmp_path / "int4", "int4")


# ---- fp8 -------------------------------------------------------------------------------------------------------------


def test_fp8_keeps_each_row_within_an_eighth_and_bounds_the_scale():
    rows = (
        torch.randn(6, 50, generator=torch.Generator().manual_seed(0)) * torch.tensor([1e-4, 1, 3, 10, 100, 1])[:, None]
    )
    rows[5] = 0
    small, factor = quantize_fp8(rows)
    back = small.float() * factor[:, None]
    assert ((back - rows).abs() <= rows.abs() * 2**-4 + rows.abs().amax(1, keepdim=True) * 2**-10).all()
    huge = torch.tensor([[50_000.0, 1.0, -0.01]])
    small, factor = quantize_fp8(huge, UPPER_BOUND)
    assert float(factor) == pytest.approx(1200 / 448)
    assert (small.float() * factor[:, None])[0].tolist() == pytest.approx([1200.0, 1.0, -0.01], rel=0.07)
    without = quantize_fp8(huge)
    assert float(without[0][0, 2]) == 0  # without the bound the small value vanishes


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_fp8_product_agrees_with_its_twin(dtype):
    generator = torch.Generator().manual_seed(0)
    weight, factor = quantize_fp8(torch.randn(40, 64, generator=generator))
    x = torch.randn(2, 5, 64, generator=generator).to(dtype)
    fast, slow = fp8_linear(x, weight, factor), reference_fp8_linear(x, weight, factor)
    relative, absolute = (1e-5, 1e-3) if dtype == torch.float32 else (2**-6, 0.1)
    torch.testing.assert_close(fast, slow, rtol=relative, atol=absolute)


@pytest.mark.parametrize("scheme", ["int8", "fp8"])
def test_large_activations_in_float16_do_not_overflow(scheme):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(40, 64, generator=generator).abs() / 8
    x = torch.full((30, 64), 40.0, dtype=torch.float16)
    if scheme == "int8":
        rounded = quantize_rows(weight)
        fast, slow = quantized_linear(x, *rounded), reference_quantized_linear(x, *rounded)
    else:
        rounded = quantize_fp8(weight)
        fast, slow = fp8_linear(x, *rounded), reference_fp8_linear(x, *rounded)
    assert fast.isfinite().all()
    torch.testing.assert_close(fast, slow, rtol=2**-9, atol=0.1)


def test_fp8_takes_the_feed_forward_layers_between_the_first_and_the_last_block(tmp_path):
    save(tiny_model(num_hidden_layers=4), tmp_path / "model", small_tokenizer())
    assert quantize_folder(tmp_path / "model", tmp_path / "fp8", "fp8").num_layers == 6
    config = json.loads((tmp_path / "fp8" / "config.json").read_text())["quantization_config"]
    assert config["format"] == "float-quantized"
    assert {"model.layers.0.mlp.up_proj", "model.layers.1.self_attn.q_proj", "lm_head"} <= set(config["ignore"])


@pytest.mark.gpu
def test_the_fp8_product_on_a_gpu_agrees_with_its_twin():
    weight, factor = quantize_fp8(torch.randn(64, 128, device="cuda"))
    x = torch.randn(3, 128, device="cuda").bfloat16()
    torch.testing.assert_close(
        fp8_linear(x, weight, factor), reference_fp8_linear(x, weight, factor), rtol=2**-6, atol=0.2
    )


@pytest.mark.parametrize("layers, is_said", [(1, True), (2, True), (3, False)])
def test_fp8_says_where_there_is_no_layer_that_it_changes(layers, is_said, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("HERD_QUIET", raising=False)
    save(tiny_model(num_hidden_layers=layers), tmp_path / "model", small_tokenizer())
    Engine(tmp_path / "model", quantize="fp8", cache_bytes=1_000_000)
    assert ("quantize=fp8 changed nothing" in capsys.readouterr().err) == is_said
    assert (quantize_folder(tmp_path / "model", tmp_path / "small", "fp8").num_layers == 0) == is_said
    assert ("fp8 quantizes nothing here" in capsys.readouterr().err) == is_said


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_numbers_to_compute_in_are_a_setting(dtype, tmp_path):
    save(tiny_model(), tmp_path / "model", small_tokenizer())
    engine = Engine(tmp_path / "model", dtype=dtype, cache_bytes=1_000_000)
    assert engine.model.model.norm.weight.dtype == getattr(torch, dtype)
    assert len(engine.generate([[1, 2, 3]], SamplingParams(temperature=0.0, max_tokens=4))[0].tokens) == 4
    with pytest.raises(ConfigError, match="dtype=int8: the engine computes in float32, bfloat16 or float16"):
        Engine(tmp_path / "model", dtype="int8")
