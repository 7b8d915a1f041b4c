"""Checkpoints in other formats: the same model comes back, other people's tools read it, a wrong copy is not kept."""

import errno
import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from herd import cli
from herd.errors import CapacityError, CheckpointError, ConfigError
from herd.formats import checkpoint, ggml, gguf_model
from herd.formats import convert as conversion
from herd.formats.checkpoint import open_checkpoint
from herd.formats.compare import difference
from herd.formats.convert import convert, plan_on_paper
from herd.formats.gguf import read_gguf
from herd.infer.engine import Engine
from herd.infer.quantize import quantize_folder
from herd.model.config import ModelConfig, RopeScaling
from herd.model.init import initialize
from herd.model.llama import LlamaForCausalLM
from herd.tokenizer.tokenizer import Tokenizer
from herd.types import SamplingParams

TINY = ModelConfig(
    vocab_size=96,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=8,
    num_key_value_heads=2,
    max_position_embeddings=131_072,
    rope_scaling=RopeScaling(),
    bos_token_id=1,
    eos_token_id=(2, 3),
)
VARIANTS = {
    "llama 2": replace(
        TINY,
        num_key_value_heads=8,
        rope_theta=10_000.0,
        rope_scaling=None,
        rms_norm_eps=1e-6,
        max_position_embeddings=4096,
    ),
    "llama 3": replace(TINY, rope_scaling=None, max_position_embeddings=8192),
    "llama 3.1": TINY,
    "llama 3.2, tied": replace(TINY, tie_word_embeddings=True, rope_scaling=RopeScaling(factor=32.0)),
}
WIDER = {
    "wide heads": replace(TINY, head_dim=16),
    "biases": replace(TINY, attention_bias=True, mlp_bias=True),
    "other scaling": replace(TINY, rope_scaling=RopeScaling(factor=4.0, original_max_position_embeddings=64)),
}
TOKENS = torch.arange(40)[None]


def build(config: ModelConfig, dtype=torch.bfloat16) -> LlamaForCausalLM:
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    initialize(model, 0)
    for parameter in model.parameters():
        parameter.data.add_(torch.randn(parameter.shape) * 0.1)
    return model.to(dtype).eval()


def saved(path, config=TINY, dtype=torch.bfloat16):
    checkpoint.save(build(config, dtype), path)
    return path


def same_weights(a, b):
    a, b = (checkpoint.load(path) for path in (a, b))
    assert a.config == b.config
    for (name, ours), theirs in zip(a.state_dict().items(), b.state_dict().values(), strict=True):
        assert ours.dtype == theirs.dtype and torch.equal(ours, theirs), name


@pytest.mark.parametrize("variant", VARIANTS | WIDER)
def test_a_model_comes_back_from_gguf_bit_for_bit(variant, tmp_path):
    source = saved(tmp_path / "source", (VARIANTS | WIDER)[variant])
    done = convert(source, tmp_path / "model.gguf")
    assert done.difference.largest <= 1e-4 * max(1, done.difference.spread)
    convert(tmp_path / "model.gguf", tmp_path / "again")
    same_weights(source, tmp_path / "again")


@pytest.mark.parametrize("shards", [1, 2, 4])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_model_comes_back_from_metas_shards_bit_for_bit(variant, shards, tmp_path):
    source = saved(tmp_path / "source", VARIANTS[variant])
    convert(source, tmp_path / "meta", format="meta", shards=shards)
    assert len(list((tmp_path / "meta").glob("consolidated.*.pth"))) == shards
    convert(tmp_path / "meta", tmp_path / "again")
    same_weights(source, tmp_path / "again")


@pytest.mark.parametrize("mmap", [True, False])
def test_torch_reads_the_pth_files_as_if_it_had_written_them(tmp_path, mmap):
    convert(saved(tmp_path / "source"), tmp_path / "meta", format="meta", shards=2)
    for part in (0, 1):
        content = torch.load(tmp_path / "meta" / f"consolidated.0{part}.pth", weights_only=True, mmap=mmap)
        model = checkpoint.load(tmp_path / "source")
        assert torch.equal(content["norm.weight"], model.model.norm.weight)
        down = model.model.layers[1].mlp.down_proj.weight
        assert torch.equal(content["layers.1.feed_forward.w2.weight"], down.chunk(2, 1)[part])
    params = json.loads((tmp_path / "meta" / "params.json").read_text())
    assert params["use_scaled_rope"] is True and params["n_kv_heads"] == 2


def permuted(weight: np.ndarray, heads: int) -> np.ndarray:
    """As llama.cpp's converter writes it."""
    rows = weight.shape[0]
    return weight.reshape(heads, 2, rows // heads // 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16", "q8_0", "q4_0"])
def test_the_gguf_package_reads_the_file_and_finds_the_bytes_that_it_would_write(precision, tmp_path):
    source = saved(tmp_path / "source", dtype=torch.float32)
    convert(source, tmp_path / "model.gguf", precision=precision)
    weights = load_file(source / "model.safetensors")
    reader = gguf.GGUFReader(tmp_path / "model.gguf")
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    assert reader.get_field("llama.attention.head_count_kv").contents() == 2
    assert tensors["blk.1.attn_norm.weight"].tensor_type == gguf.GGMLQuantizationType.F32
    for name, key, heads in (
        ("blk.1.attn_q.weight", "self_attn.q_proj", 8),
        ("blk.1.attn_k.weight", "self_attn.k_proj", 2),
        ("blk.1.ffn_down.weight", "mlp.down_proj", None),
    ):
        found, weight = tensors[name], weights[f"model.layers.1.{key}.weight"].numpy()
        assert found.tensor_type.name == conversion.PRECISIONS[precision]
        expected = gguf.quants.quantize(permuted(weight, heads) if heads else weight, found.tensor_type)
        assert np.array_equal(np.asarray(found.data).view(np.uint8), expected.view(np.uint8)), name


def test_the_divisors_of_llama_3_1_are_those_of_llama_cpps_converter(tmp_path):
    config = replace(TINY, hidden_size=128, head_dim=128, num_attention_heads=1, num_key_value_heads=1)
    convert(saved(tmp_path / "source", config), tmp_path / "model.gguf")
    found = {t.name: t for t in gguf.GGUFReader(tmp_path / "model.gguf").tensors}["rope_freqs.weight"].data
    expected = []
    for i in range(0, 128, 2):  # as written in its `LlamaModel.generate_extra_tensors`
        wavelength = 2 * np.pi * 500_000.0 ** (i / 128)
        smooth = (8192 / wavelength - 1) / (4 - 1)
        middle = 1 / ((1 - smooth) / 8 + smooth)
        expected.append(1.0 if wavelength < 8192 / 4 else 8.0 if wavelength > 8192 else middle)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    content = bytearray((tmp_path / "model.gguf").read_bytes())  # a foreign file: without the field of our own
    content = content.replace(b"herd.rope_scaling", b"some.other_fields", 1)
    (tmp_path / "foreign.gguf").write_bytes(content)
    assert open_checkpoint(tmp_path / "foreign.gguf").weights.config.rope_scaling == RopeScaling()


def test_rounding_to_blocks_changes_the_predictions_little_and_says_how_much(tmp_path):
    source = saved(tmp_path / "source", replace(TINY, vocab_size=256))
    exact, q8, q4 = (
        convert(source, tmp_path / f"{name}.gguf", precision=name).difference for name in ("float32", "q8_0", "q4_0")
    )
    assert exact.largest < 1e-4 < q8.largest < q4.largest
    assert q8.divergence < 1e-2 and q8.largest < 0.1 * q8.spread
    ours = difference(open_checkpoint(source).weights, open_checkpoint(tmp_path / "q4_0.gguf").weights)
    assert ours == q4


def test_any_format_loads_and_talks_without_a_conversion(tmp_path):
    tokenizer = Tokenizer.train(["some text about some words"], 600)
    model = build(replace(TINY, vocab_size=tokenizer.vocab_size, bos_token_id=tokenizer.bos_id, eos_token_id=None))
    checkpoint.save(model, tmp_path / "source", tokenizer)
    convert(tmp_path / "source", tmp_path / "model.gguf")
    convert(tmp_path / "source", tmp_path / "meta", format="meta", shards=2)
    params = SamplingParams(temperature=0.0, max_tokens=8)
    said = [
        Engine(path, cache_bytes=2**20, max_sequences=1).generate("some text", params).tokens
        for path in (tmp_path / "source", tmp_path / "model.gguf", tmp_path / "meta")
    ]
    assert said[0] == said[1] == said[2]


def test_packed_weights_load_as_bfloat16_unless_told_otherwise(tmp_path):
    source = saved(tmp_path / "source", dtype=torch.float32)
    convert(source, tmp_path / "model.gguf", precision="q8_0")
    assert {p.dtype for p in checkpoint.load(tmp_path / "model.gguf").parameters()} == {torch.bfloat16}
    exact = checkpoint.load(tmp_path / "model.gguf", dtype=torch.float32)
    rows = checkpoint.load(source).model.layers[0].mlp.up_proj.weight.detach()
    expected = ggml.dequantize(ggml.quantize(rows, "Q8_0"), "Q8_0")
    assert torch.equal(exact.model.layers[0].mlp.up_proj.weight, expected)


def test_eight_bit_floats_with_scales_are_read_as_the_numbers_they_stand_for(tmp_path):
    source = saved(tmp_path / "source")
    weights = load_file(source / "model.safetensors")
    expected = {}
    for name in [name for name in weights if "_proj" in name]:
        rows = weights[name].float()
        scale = rows.abs().amax(1, keepdim=True) / 448
        weights[name], weights[f"{name}_scale"] = (rows / scale).to(torch.float8_e4m3fn), scale
        expected[name] = (weights[name].float() * scale).bfloat16()
    save_file(weights, source / "model.safetensors")
    values = json.loads((source / "config.json").read_text())
    values["quantization_config"] = {"quant_method": "fbgemm_fp8"}
    (source / "config.json").write_text(json.dumps(values))
    model = checkpoint.load(source)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, expected.get(name, weights[name])), name
    convert(source, tmp_path / "plain")
    assert torch.equal(checkpoint.load(tmp_path / "plain")(TOKENS), model(TOKENS))


# ---- what goes wrong -------------------------------------------------------------------------------------------------


def test_a_wrong_permutation_is_noticed_and_the_copy_not_kept(tmp_path, monkeypatch):
    source = saved(tmp_path / "source")
    monkeypatch.setattr(gguf_model, "halves_to_interleaved", lambda weight, heads: weight)
    with pytest.raises(CheckpointError, match=r"the copy.s predictions differ from the original"):
        convert(source, tmp_path / "model.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_weights_that_are_not_finite_are_not_passed_on_unseen(tmp_path):
    model = build(TINY)
    model.model.layers[1].mlp.up_proj.weight.data[3, 4] = torch.nan
    checkpoint.save(model, tmp_path / "source")
    with pytest.raises(CheckpointError, match="weights=true"):
        convert(tmp_path / "source", tmp_path / "model.gguf")


def test_a_full_disk_and_an_occupied_place_are_refused_before_the_first_byte(tmp_path, monkeypatch):
    source = saved(tmp_path / "source")
    (tmp_path / "taken.gguf").write_text("precious")
    with pytest.raises(CheckpointError, match=r"taken\.gguf already exists"):
        convert(source, tmp_path / "taken.gguf")
    (tmp_path / "link.gguf").symlink_to("nowhere")
    with pytest.raises(CheckpointError, match=r"link\.gguf already exists"):
        convert(source, tmp_path / "link.gguf")
    (tmp_path / "link.gguf").unlink()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(CapacityError, match="of disk, 1 kB is free"):
        convert(source, tmp_path / "model.gguf")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source", "taken.gguf"]


@pytest.mark.parametrize("target, format", [("model.gguf", "gguf"), ("folder", "huggingface"), ("meta", "meta")])
def test_an_interrupted_conversion_leaves_nothing_behind(target, format, tmp_path, monkeypatch):
    source = saved(tmp_path / "source")

    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(conversion, "difference", stop)
    with pytest.raises(KeyboardInterrupt):
        convert(source, tmp_path / target, format=format)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_disk_that_fills_up_names_the_file_and_leaves_nothing(tmp_path, monkeypatch):
    source = saved(tmp_path / "source")

    def fill_up(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(conversion, "write_gguf", fill_up)
    with pytest.raises(OSError, match="No space left") as caught:
        convert(source, tmp_path / "model.gguf")
    assert caught.value.filename == str(tmp_path / "model.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize(
    "config, options, message",
    [
        (TINY, {"precision": "q8_0"}, "q8_0 exists only in GGUF"),
        (TINY, {"precision": "int3"}, "precision is 'int3'; expected one of float32"),
        (TINY, {"shards": 2}, "or more with Meta's format"),
        (TINY, {"format": "meta", "shards": 3}, "cannot be split evenly"),
        (WIDER["wide heads"], {"format": "meta"}, "has no head_dim: 16"),
        (WIDER["biases"], {"format": "meta"}, "does not support biases"),
        (WIDER["other scaling"], {"format": "meta"}, "has only Llama 3.1's RoPE scaling"),
    ],
)
def test_what_a_format_cannot_hold_is_refused_by_name(config, options, message, tmp_path):
    with pytest.raises(CheckpointError, match=message):
        convert(saved(tmp_path / "source", config), tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_quantizing_another_format_says_to_convert_it_first(tmp_path):
    convert(saved(tmp_path / "source"), tmp_path / "model.gguf")
    with pytest.raises(CheckpointError, match=r"model\.gguf is not a Hugging Face folder; `herd convert"):
        quantize_folder(tmp_path / "model.gguf", tmp_path / "small")


def test_a_missing_file_of_metas_is_named(tmp_path):
    convert(saved(tmp_path / "source"), tmp_path / "meta", format="meta", shards=4)
    (tmp_path / "meta" / "consolidated.01.pth").unlink()
    with pytest.raises(CheckpointError, match=r"consolidated\.01\.pth is missing; there is consolidated\.02\.pth"):
        _ = open_checkpoint(tmp_path / "meta").weights


def test_numbers_beyond_float16_are_refused_by_name(tmp_path):
    model = build(TINY)
    model.model.layers[0].mlp.up_proj.weight.data[0, 0] = 1e6
    checkpoint.save(model, tmp_path / "source")
    with pytest.raises(CheckpointError, match=r"layers\.0\.mlp\.up_proj\.weight holds values beyond float16"):
        convert(tmp_path / "source", tmp_path / "model.gguf", precision="float16")


def test_a_folder_quantized_to_whole_numbers_is_refused(tmp_path):
    source = saved(tmp_path / "source")
    weights = load_file(source / "model.safetensors")
    save_file(weights | {"x.weight_packed": torch.zeros(2, dtype=torch.int32)}, source / "model.safetensors")
    with pytest.raises(CheckpointError, match="is quantized already; give the original weights"):
        convert(source, tmp_path / "model.gguf")


# ---- on paper --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name, num_bytes", [("llama3_1_8b", 16_060_522_496), ("llama3_1_70b", 141_107_412_992)])
def test_released_models_are_planned_from_params_json_alone(name, num_bytes, shared_data, tmp_path):
    entries = json.loads((shared_data / "llama3" / "model_params.json").read_text())
    params = next(entry["params"] for entry in entries if entry["core_model_id"] == name)
    (tmp_path / "params.json").write_text(json.dumps(params))
    assert plan_on_paper(tmp_path, tmp_path / "out").num_bytes == num_bytes


def test_405b_is_planned_from_config_json_alone_within_4_gb_of_memory(tmp_path, capsys):
    config = ModelConfig(
        vocab_size=128_256,
        hidden_size=16_384,
        intermediate_size=53_248,
        num_hidden_layers=126,
        num_attention_heads=128,
        num_key_value_heads=8,
        max_position_embeddings=131_072,
        rope_scaling=RopeScaling(),
    )
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    plan = plan_on_paper(tmp_path, tmp_path / "x", format="meta", shards=8)
    shared = 2 * (2 * 126 + 1) * 16_384 * 7  # the norms stand in each of the eight files
    assert plan.num_bytes == 2 * 405_853_388_800 + shared and len(plan.files) == 8
    assert plan.memory_bytes < 4e9
    assert cli.main(["convert", str(tmp_path), str(tmp_path / "x.gguf"), "precision=q8_0", "dry_run=true"]) == 0
    assert "405,853,388,800 parameters" in capsys.readouterr().out and not (tmp_path / "x.gguf").exists()


def test_the_command_line_takes_source_and_target(tmp_path, capsys):
    source = saved(tmp_path / "source")
    assert cli.main(["convert", str(source), str(tmp_path / "model.gguf"), "precision=q8_0", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["format"] == "gguf" and 0 < result["difference"]["largest"] < 1
    assert result["bytes"] <= (tmp_path / "model.gguf").stat().st_size
    assert cli.main(["convert", str(source), str(tmp_path / "model.gguf")]) == 2
    assert "already exists" in capsys.readouterr().err


# ---- damaged GGUF ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    convert(saved(folder / "source", replace(TINY, rope_scaling=None)), folder / "model.gguf")
    return (folder / "model.gguf").read_bytes()


def put(content: bytes, place: int, number: int, size: int = 8) -> bytes:
    return content[:place] + number.to_bytes(size, "little") + content[place + size :]


def after(content: bytes, text: bytes, skip: int = 0) -> int:
    return content.index(text) + len(text) + skip


DAMAGES = {
    "truncated": (lambda c: c[:-1000], "is truncated: tensor .* ends at byte"),
    "cut in the header": (lambda c: c[:300], "is truncated or damaged"),
    "empty": (lambda c: b"", "cannot be read as GGUF"),
    "another kind": (lambda c: b"ABCD" + c[4:], "is no GGUF file"),
    "another version": (lambda c: put(c, 4, 9, 4), "GGUF of version 9"),
    "absurdly many tensors": (lambda c: put(c, 8, 2**60), "claims 1,152,921,504,606,846,976 tensors"),
    "absurdly many fields": (lambda c: put(c, 16, 2**60), "claims 1,152,921,504,606,846,976 fields"),
    "an absurd length of a name": (lambda c: put(c, 24, 2**62), "the key of a field would end at byte"),
    "an unknown type of a value": (lambda c: put(c, after(c, b"general.architecture"), 99, 4), "the unknown type 99"),
    "an absurd shape": (
        lambda c: put(c, after(c, b"blk.0.attn_q.weight", 4), 2**60),
        "tensor blk.0.attn_q.weight of shape .* cannot be BF16",
    ),
    "too many dimensions": (lambda c: put(c, after(c, b"blk.0.attn_q.weight"), 9, 4), "has 9 dimensions"),
    "an unknown type of a tensor": (
        lambda c: put(c, after(c, b"blk.0.attn_q.weight", 20), 99, 4),
        "blk.0.attn_q.weight is of a type not known here .99., which is not read",
    ),
    "an offset beyond the end": (lambda c: put(c, after(c, b"blk.0.attn_q.weight", 24), 2**50), "is truncated: tensor"),
    "an offset between two numbers": (
        lambda c: put(c, after(c, b"blk.0.attn_q.weight", 24), 33),
        "tensor blk.0.attn_q.weight begins at 33, no multiple of 32",
    ),
    "a shape of nothing": (
        lambda c: put(c, after(c, b"blk.0.attn_q.weight", 4), 0),
        "tensor blk.0.attn_q.weight of shape .* cannot be BF16",
    ),
    "a swapped shape": (
        lambda c: put(c, after(c, b"blk.0.attn_k.weight", 4), 32),
        r"tensor blk.0.attn_k.weight has the shape \[16, 32\], but list of fields asks for \[16, 64\]",
    ),
    "a doubled name": (lambda c: c.replace(b"blk.1.attn_q", b"blk.0.attn_q", 1), "the tensor .* occurs twice"),
    "a foreign tensor": (lambda c: c.replace(b"blk.1.attn_q", b"blk.1.attn_x", 1), "which a Llama does not have"),
    "another layer": (lambda c: c.replace(b"blk.1.attn_q", b"blk.7.attn_q", 1), "lacks the tensor model.layers.1"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_gguf_file_gives_one_error_that_names_file_and_fault(damage, whole, tmp_path):
    change, message = DAMAGES[damage]
    (tmp_path / "model.gguf").write_bytes(change(whole))
    with pytest.raises(CheckpointError, match=message) as caught:
        checkpoint.load(tmp_path / "model.gguf")
    assert "model.gguf" in str(caught.value)


def test_no_random_damage_of_the_header_gives_anything_but_a_clear_error(whole, tmp_path):
    random = np.random.default_rng(0)
    end = min(tensor.offset for tensor in _table(whole, tmp_path).values())
    for _ in range(300):
        content = bytearray(whole)
        for place in random.integers(0, end, 4):
            content[place] = random.integers(0, 256)
        (tmp_path / "model.gguf").write_bytes(content)
        try:
            _ = open_checkpoint(tmp_path / "model.gguf").weights
        except (CheckpointError, ConfigError) as fault:
            assert "model.gguf" in str(fault)


def _table(content: bytes, folder):
    (folder / "whole.gguf").write_bytes(content)
    return read_gguf(folder / "whole.gguf").tensors


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"general.architecture": "qwen2"}, "general.architecture is 'qwen2'"),
        ({"llama.expert_count": 8}, "a mixture of 8 experts"),
        ({"general.type": "adapter"}, "general.type is 'adapter': a part of a model"),
        ({"llama.attention.sliding_window": 4096}, "attention.sliding_window is 4096: a sliding window"),
        ({"llama.attention.causal": False}, "attention.causal is False: bidirectional attention"),
        ({"llama.logit_scale": 8.0}, "llama.logit_scale is 8.0: scaled logits"),
        ({"llama.attention.value_length": 4}, "keys of 8 channels but values of 4"),
        ({"llama.rope.scaling.type": "ntk"}, "RoPE scaling of the type 'ntk'"),
        ({"llama.attention.head_count": 3}, "not a multiple"),
        ({"llama.block_count": "two"}, "llama.block_count is 'two', expected int"),
        ({"llama.rope.dimension_count": 4}, "RoPE covers only part of each head"),
    ],
)
def test_what_is_no_llama_is_refused_by_name(fields, message, whole, tmp_path):
    table = _table(whole, tmp_path)
    file = read_gguf(tmp_path / "whole.gguf")
    with pytest.raises(ConfigError, match=message):
        gguf_model.config_of_file(file._replace(fields=file.fields | fields))
    assert table
