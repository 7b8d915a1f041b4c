"""Weights that others quantized: packed here as their tools document it, or by their tools; read as what they mean."""

import json

import pytest
import torch
import transformers
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
from safetensors.torch import load_file, save_file

import herd
from herd.errors import CheckpointError
from herd.formats import checkpoint
from herd.formats.checkpoint import open_checkpoint
from herd.formats.convert import convert
from herd.formats.examine import examine
from herd.model.config import ModelConfig
from herd.model.init import initialize
from herd.model.llama import LlamaForCausalLM
from herd.tokenizer.tokenizer import Tokenizer

TINY = ModelConfig(
    vocab_size=600,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
)
TOKENS = torch.arange(20)[None]
GROUP = 32
GENERATOR = torch.Generator().manual_seed(0)


@pytest.fixture
def folder(tmp_path):
    """A plain checkpoint, whose layers the tests quantize in place."""
    model = LlamaForCausalLM(TINY)
    initialize(model, 0)
    torch.manual_seed(0)
    for parameter in model.parameters():
        parameter.data.add_(torch.randn(parameter.shape) * 0.05)
    checkpoint.save(model, tmp_path / "model", Tokenizer.train(["some text about some words"], 600))
    return tmp_path / "model"


def quantized(folder, quantization: dict, pack) -> dict[str, torch.Tensor]:
    """Replace every layer's weight by what `pack` makes of it; the numbers that it stands for, by their names."""
    weights, meant = load_file(folder / "model.safetensors"), {}
    for name in [name for name in weights if name.endswith("_proj.weight")]:
        layer = name.removesuffix(".weight")
        parts, meant[name] = pack(weights.pop(name))
        weights |= {f"{layer}.{part}": tensor.contiguous() for part, tensor in parts.items()}
    save_file(weights, folder / "model.safetensors")
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | {"quantization_config": quantization}))
    return meant


def assert_read_as(folder, meant: dict[str, torch.Tensor], tolerance: float = 0.0) -> None:
    """Every way of reading gives these numbers."""
    state = checkpoint.load(folder, dtype=torch.float32).state_dict()
    stored = open_checkpoint(folder).weights
    for name, expected in meant.items():
        torch.testing.assert_close(state[name], expected, atol=tolerance, rtol=1e-6)
        torch.testing.assert_close(stored.tensors[name].rows(8, 16).float(), expected[8:16], atol=tolerance, rtol=1e-6)
    convert(folder, folder.parent / "plain", precision="float32")
    plain = checkpoint.load(folder.parent / "plain")
    assert plain.config.quantization_config is None
    torch.testing.assert_close(plain(TOKENS), checkpoint.load(folder, dtype=torch.float32)(TOKENS), atol=1e-5, rtol=0)


# ---- GPTQ ------------------------------------------------------------------------------------------------------------


def in_words(numbers: list[int], bits: int) -> list[int]:
    """Numbers in words of 32 bits as AutoGPTQ's `pack` writes them: by hand, also where 3 bits cross a border."""
    words = []
    if bits != 3:
        per_word = 32 // bits
        for begin in range(0, len(numbers), per_word):
            words.append(sum(n << bits * i for i, n in enumerate(numbers[begin : begin + per_word])))
        return words
    for begin in range(0, len(numbers), 32):
        n = numbers[begin : begin + 32] + [0] * max(0, begin + 32 - len(numbers))
        first = sum(n[j] << 3 * j for j in range(10)) | n[10] << 30
        second = n[10] >> 2 & 1 | sum(n[11 + j] << 3 * j + 1 for j in range(10)) | n[21] << 31
        third = n[21] >> 1 & 3 | sum(n[22 + j] << 3 * j + 2 for j in range(10))
        words += [word & 0xFFFFFFFF for word in (first, second, third)]
    return words


def packed(numbers: torch.Tensor, bits: int) -> torch.Tensor:
    """(N, K) -> int32 (N, words)."""
    rows = [in_words(row, bits) for row in numbers.tolist()]
    return torch.tensor(rows, dtype=torch.int64).to(torch.uint32).view(torch.int32)


def gptq(bits: int, *, act_order: bool = False, offset: int = 1, with_order: bool = True):
    def pack(weight: torch.Tensor):
        num_rows, columns = weight.shape
        groups = columns // GROUP
        q = torch.randint(0, 2**bits, (num_rows, columns), generator=GENERATOR)
        zeros = torch.randint(offset, 2**bits, (groups, num_rows), generator=GENERATOR)
        scales = (torch.rand(groups, num_rows, generator=GENERATOR) * 0.05).half()
        order = torch.arange(columns) // GROUP
        if act_order:
            order = order[torch.randperm(columns, generator=GENERATOR)]
        meant = (q - zeros[order].T) * scales[order].T.float()
        parts = {"qweight": packed(q, bits).T, "qzeros": packed(zeros - offset, bits), "scales": scales}
        return parts | ({"g_idx": order.int(), "bias": torch.zeros(num_rows)} if with_order else {}), meant

    return pack


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_gptq_means_scale_times_number_less_zero(bits, folder):
    quantization = {"quant_method": "gptq", "bits": bits, "group_size": GROUP, "desc_act": False, "sym": False}
    assert_read_as(folder, quantized(folder, quantization, gptq(bits)))


@pytest.mark.parametrize(
    "changes, ways",
    [
        ({"desc_act": True}, {"act_order": True}),
        ({"checkpoint_format": "gptq_v2"}, {"offset": 0}),
        ({"checkpoint_format": "gptq"}, {"with_order": False}),
    ],
)
def test_gptq_with_act_order_in_its_second_format_and_without_an_order(changes, ways, folder):
    quantization = {"quant_method": "gptq", "bits": 4, "group_size": GROUP} | changes
    assert_read_as(folder, quantized(folder, quantization, gptq(4, **ways)))


def test_the_zero_biases_of_autogptq_are_left_out_and_others_refused(folder, capsys, monkeypatch):
    monkeypatch.delenv("HERD_QUIET")
    quantized(folder, {"quant_method": "gptq", "bits": 4, "group_size": GROUP}, gptq(4))
    checkpoint.load(folder)
    assert "14 biases are all zero, as written by AutoGPTQ" in capsys.readouterr().err
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.bias"][3] = 1.0
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"mlp.up_proj.bias, for which its config.json has no place"):
        checkpoint.load(folder)


# ---- AWQ -------------------------------------------------------------------------------------------------------------


def awq(weight: torch.Tensor):
    """As AutoAWQ's `WQLinear_GEMM.from_linear` packs: column order[i] of eight goes to bits 4i."""
    num_rows, columns = weight.shape
    groups, order = columns // GROUP, [0, 2, 4, 6, 1, 3, 5, 7]
    q = torch.randint(0, 16, (columns, num_rows), generator=GENERATOR)
    zeros = torch.randint(0, 16, (groups, num_rows), generator=GENERATOR)
    scales = (torch.rand(groups, num_rows, generator=GENERATOR) * 0.05).half()

    def words(numbers: torch.Tensor) -> torch.Tensor:
        found = torch.zeros(numbers.shape[0], num_rows // 8, dtype=torch.int64)
        for i in range(8):
            found |= numbers[:, order[i] :: 8] << 4 * i
        return found.to(torch.uint32).view(torch.int32)

    group = torch.arange(columns) // GROUP
    meant = ((q - zeros[group]) * scales[group].float()).T
    return {"qweight": words(q), "qzeros": words(zeros), "scales": scales}, meant


AWQ = {"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True, "version": "gemm"}


def test_awq_means_scale_times_number_less_zero(folder):
    assert_read_as(folder, quantized(folder, AWQ, awq))


# ---- words of any content, beside a dequantizer written from the layouts that the tools document ---------------------


def any_words(rows: int, columns: int, bits: int = 0) -> torch.Tensor:
    """Words that nobody packed; of `bits` in a row, each number is even, so that a zero point is never the largest."""
    words = torch.randint(-(2**31), 2**31, (rows, columns), generator=GENERATOR, dtype=torch.int64)
    if bits:
        mask = sum((2**bits - 2) << bits * place for place in range(32 * columns // bits))
        kept = [(int.from_bytes(row.to(torch.int32).numpy().tobytes(), "little") & mask) for row in words]
        return torch.tensor([[row >> 32 * i & 0xFFFFFFFF for i in range(columns)] for row in kept]).to(torch.int32)
    return words.to(torch.int32)


def in_stream(words: torch.Tensor, bits: int) -> list[int]:
    """GPTQ: the numbers lie one after another in the bits of the words, the lowest first, across borders too."""
    stream = int.from_bytes(words.contiguous().numpy().tobytes(), "little")
    return [stream >> bits * place & (2**bits - 1) for place in range(32 * len(words) // bits)]


def gptq_by_layout(parts: dict[str, torch.Tensor], bits: int, offset: int) -> torch.Tensor:
    """weight[n, k] = scales[g, n] (q[k, n] - zero[g, n]), g = g_idx[k]; the first format stores each zero less 1."""
    rows = range(parts["qweight"].shape[1])
    numbers = [in_stream(parts["qweight"][:, n], bits) for n in rows]
    zeros = [[number + offset for number in in_stream(words, bits)] for words in parts["qzeros"]]
    scales, order = parts["scales"].double().tolist(), parts["g_idx"].tolist()
    return torch.tensor([[scales[g][n] * (numbers[n][k] - zeros[g][n]) for k, g in enumerate(order)] for n in rows])


def awq_by_layout(parts: dict[str, torch.Tensor]) -> torch.Tensor:
    """weight[n, k] = scales[g, n] (q[k, n] - zero[g, n]); the eight rows of a word are 0, 4, 1, 5, 2, 6, 3, 7."""
    columns, rows = parts["qweight"].shape[0], parts["scales"].shape[1]
    place = {0: 0, 1: 4, 2: 1, 3: 5, 4: 2, 5: 6, 6: 3, 7: 7}
    words, zeros, scales = (parts[name].tolist() for name in ("qweight", "qzeros", "scales"))
    found = torch.zeros(rows, columns)
    for n in range(rows):
        for k in range(columns):
            at, g = 4 * place[n % 8], k // GROUP
            found[n, k] = scales[g][n] * ((words[k][n // 8] >> at & 15) - (zeros[g][n // 8] >> at & 15))
    return found


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("form, offset", [("gptq", 1), ("gptq_v2", 0)])
def test_gptq_is_what_a_dequantizer_by_its_layout_makes_of_any_words(bits, form, offset, folder):
    def pack(weight: torch.Tensor):
        rows, columns = weight.shape
        groups = columns // GROUP
        parts = {
            "qweight": any_words(rows, columns * bits // 32).T.contiguous(),
            "qzeros": any_words(groups, rows * bits // 32, bits),
            "scales": (torch.rand(groups, rows, generator=GENERATOR) * 0.05).half(),
            "g_idx": (torch.arange(columns) // GROUP)[torch.randperm(columns, generator=GENERATOR)].int(),
        }
        return parts, gptq_by_layout(parts, bits, offset)

    quantization = {
        "quant_method": "gptq",
        "bits": bits,
        "group_size": GROUP,
        "desc_act": True,
        "checkpoint_format": form,
    }
    assert_read_as(folder, quantized(folder, quantization, pack))


def test_awq_is_what_a_dequantizer_by_its_layout_makes_of_any_words(folder):
    def pack(weight: torch.Tensor):
        rows, columns = weight.shape
        groups = columns // GROUP
        parts = {
            "qweight": any_words(columns, rows // 8),
            "qzeros": any_words(groups, rows // 8),
            "scales": (torch.rand(groups, rows, generator=GENERATOR) * 0.05).half(),
        }
        return parts, awq_by_layout(parts)

    assert_read_as(folder, quantized(folder, AWQ, pack))


def test_the_engine_answers_and_learning_begins_from_a_packed_folder(folder):
    quantized(folder, AWQ, awq)
    engine = herd.Engine(folder, dtype=torch.float32, cache_bytes=1_000_000)
    answer = engine.generate([list(range(20))], herd.SamplingParams(temperature=0.0, max_tokens=1))[0]
    with torch.no_grad():
        assert answer.tokens[0] == int(checkpoint.load(folder, dtype=torch.float32)(TOKENS)[0, -1].argmax())
    assert open_checkpoint(folder).learnable_config().quantization_config is None
    assert examine(folder)["dtypes"]["awq_int4"] == 14


# ---- compressed-tensors and FP8, beside transformers -----------------------------------------------------------------


def compressed(form: str, weights: dict, activations: dict | None = None) -> dict:
    group = {"targets": ["Linear"], "weights": weights, "input_activations": activations, "output_activations": None}
    return {
        "quant_method": "compressed-tensors", "format": form, "quantization_status": "compressed",
        "config_groups": {"group_0": group}, "ignore": ["lm_head"],
    }  # fmt: skip


def assert_transformers_agrees(folder, tolerance: float = 1e-3) -> None:
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        torch.testing.assert_close(
            checkpoint.load(folder, dtype=torch.float32)(TOKENS), theirs(TOKENS).logits.float(), atol=tolerance, rtol=0
        )


def integers(bits: int, group: int, *, symmetric: bool):
    def pack(weight: torch.Tensor):
        num_rows, columns = weight.shape
        half = 2 ** (bits - 1)
        q = torch.randint(-half, half, (num_rows, columns), generator=GENERATOR).to(torch.int8)
        scales = torch.rand(num_rows, columns // group, generator=GENERATOR) * 0.05
        zeros = torch.randint(-half, half, scales.shape, generator=GENERATOR).to(torch.int8)
        shape = {"weight_shape": torch.tensor(weight.shape)}
        parts = {"weight_packed": pack_to_int32(q, bits), "weight_scale": scales} | shape
        if symmetric:
            zeros.zero_()
        else:
            parts["weight_zero_point"] = pack_to_int32(zeros, bits, packed_dim=0)
        spread = zeros.repeat_interleave(group, 1).float(), scales.repeat_interleave(group, 1)
        return parts, (q.float() - spread[0]) * spread[1]

    return pack


@pytest.mark.parametrize("bits, group, symmetric", [(4, 16, True), (4, 32, False), (8, 32, True), (3, 32, True)])
def test_compressed_tensors_integers_are_those_of_its_own_packing(bits, group, symmetric, folder):
    weights = {"num_bits": bits, "type": "int", "symmetric": symmetric, "strategy": "group", "group_size": group}
    meant = quantized(folder, compressed("pack-quantized", weights), integers(bits, group, symmetric=symmetric))
    assert_read_as(folder, meant)
    if bits == 4 and symmetric:  # of others it mistakes the shape of the zero points
        assert_transformers_agrees(folder)


def floats(shape_of_scale, name: str = "weight_scale", *, with_input: bool = False):
    def pack(weight: torch.Tensor):
        shape = shape_of_scale(weight)
        scale = torch.rand(shape, generator=GENERATOR) * 1e-3 + 1e-4
        rounded = (weight / 1e-3).to(torch.float8_e4m3fn)
        full = scale
        if len(shape) == 2 and shape[1] > 1:
            full = scale.repeat_interleave(32, 0)[: weight.shape[0]].repeat_interleave(32, 1)[:, : weight.shape[1]]
        parts = {"weight": rounded, name: scale}
        return parts | ({"input_scale": torch.ones(1)} if with_input else {}), rounded.float() * full

    return pack


STATIC = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "tensor", "dynamic": False}


def test_static_fp8_is_read_without_its_scales_of_activations_and_that_is_said(folder, capsys, monkeypatch):
    monkeypatch.delenv("HERD_QUIET")
    weights = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "tensor"}
    quantization = compressed("float-quantized", weights, STATIC)
    meant = quantized(folder, quantization, floats(lambda w: (1,), with_input=True))
    assert_read_as(folder, meant)
    assert "settings for quantized activations (14 scales) are ignored" in capsys.readouterr().err


def test_fp8_by_rows_without_scales_for_activations_is_read(folder):
    weights = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "channel"}
    meant = quantized(folder, compressed("naive-quantized", weights), floats(lambda w: (w.shape[0], 1)))
    assert_read_as(folder, meant)


@pytest.mark.parametrize("name", ["weight_scale_inv", "weight_scale"])
def test_fp8_by_blocks_is_read(name, folder):
    blocks = floats(lambda w: (-(-w.shape[0] // 32), -(-w.shape[1] // 32)), name)
    quantization = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [32, 32]}
    assert_read_as(folder, quantized(folder, quantization, blocks))


def test_fp8_of_nvidia_is_read(folder):
    quantization = {"quant_method": "modelopt", "quant_algo": "FP8"}
    assert_read_as(folder, quantized(folder, quantization, floats(lambda w: (), with_input=True)))


def test_int8_by_rows_for_int8_activations_is_read(folder):
    def pack(weight: torch.Tensor):
        q = torch.randint(-128, 128, weight.shape, generator=GENERATOR).to(torch.int8)
        scale = torch.rand(weight.shape[0], 1, generator=GENERATOR) * 1e-3
        return {"weight": q, "weight_scale": scale}, q.float() * scale

    weights = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"}
    activations = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
    assert_read_as(folder, quantized(folder, compressed("int-quantized", weights, activations), pack))


# ---- refused ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "quantization, words",
    [
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, r"by bitsandbytes \(NF4 or int8\)"),
        ({"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"}, "GPTQ and repacked for a kernel .marlin."),
        ({"quant_method": "gptq", "bits": 5}, "by GPTQ to 5 bits"),
        ({"quant_method": "awq", "bits": 4, "version": "gemv"}, r"by AWQ \(gemv, 4 bits\)"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "by NVIDIA's ModelOpt as NVFP4"),
        (compressed("nvfp4-pack-quantized", {"num_bits": 4}), "by compressed-tensors as nvfp4-pack-quantized"),
        ({"quant_method": "hqq"}, "by HQQ"),
        ({"quant_method": "new"}, "by a method named 'new'"),
        ({}, "by a method named None"),
    ],
)
def test_what_is_not_read_is_refused_in_words(quantization, words, folder):
    quantized(folder, quantization, awq)
    with pytest.raises(
        CheckpointError, match=f"its weights are quantized.*{words}, which is not supported. Supported are GPTQ"
    ):
        checkpoint.load(folder)


@pytest.mark.parametrize(
    "part, tensor, message",
    [
        ("qzeros", None, "lacks .*up_proj.qzeros, without which the weight cannot be dequantized"),
        ("scales", torch.ones(3, 5).half(), r"up_proj.scales has the shape \[3, 5\], expected \[3, 96\]"),
        ("g_idx", torch.full((64,), 7, dtype=torch.int32), "up_proj.g_idx names group 7 of 2"),
    ],
)
def test_a_damaged_layer_is_named(part, tensor, message, folder):
    quantized(folder, {"quant_method": "gptq", "bits": 4, "group_size": GROUP}, gptq(4))
    weights = load_file(folder / "model.safetensors")
    name = f"model.layers.1.mlp.up_proj.{part}"
    weights = {key: value for key, value in weights.items() if key != name}
    save_file(weights | ({} if tensor is None else {name: tensor}), folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=message):
        checkpoint.load(folder)
