"""What a person may have on disk: PyTorch's .bin files, shards without an index, GGUF in parts, broken copies."""

import json
import pickle

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import herd
from herd.errors import CheckpointError
from herd.formats import checkpoint
from herd.formats.checkpoint import open_checkpoint
from herd.formats.convert import convert
from herd.formats.vocabulary import open_tokenizer
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


@pytest.fixture
def folder(tmp_path):
    """A checkpoint as one safetensors file."""
    model = LlamaForCausalLM(TINY)
    initialize(model, 0)
    checkpoint.save(model, tmp_path / "model", Tokenizer.train(["some text about some words"], 600))
    return tmp_path / "model"


def in_parts(folder, save, pattern: str, index: str | None = None) -> None:
    """Replace the one file by three under the names of `pattern`, with or without an index."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names, weight_map = list(weights), {}
    for number in range(3):
        file = pattern.format(number + 1)
        part = {name: weights[name] for name in names[number::3]}
        save(part, folder / file)
        weight_map |= dict.fromkeys(part, file)
    if index:
        (folder / index).write_text(json.dumps({"weight_map": weight_map}))


def old_save(tensors, file) -> None:
    torch.save(tensors, file, _use_new_zipfile_serialization=False)


WAYS = {
    "safetensors without an index": (save_file, "model-{:05d}-of-00003.safetensors", None),
    "safetensors under another name": (save_file, "llama-{:05d}-of-00003.safetensors", None),
    "bin with an index": (torch.save, "pytorch_model-{:05d}-of-00003.bin", "pytorch_model.bin.index.json"),
    "bin without an index": (torch.save, "pytorch_model-{:05d}-of-00003.bin", None),
    "bin of old PyTorch": (old_save, "pytorch_model-{:05d}-of-00003.bin", None),
}


@pytest.mark.parametrize("way", WAYS)
def test_weights_in_several_files_are_the_same_model(way, folder, tmp_path):
    expected = checkpoint.load(folder)(TOKENS)
    in_parts(folder, *WAYS[way])
    assert torch.equal(checkpoint.load(folder)(TOKENS), expected)
    assert torch.equal(checkpoint.load(next(folder.glob("*00002-of-00003.*")))(TOKENS), expected)
    convert(folder, tmp_path / "again")
    assert torch.equal(checkpoint.load(tmp_path / "again")(TOKENS), expected)


@pytest.mark.parametrize("way", ["safetensors without an index", "bin without an index"])
def test_a_missing_shard_is_named(way, folder):
    in_parts(folder, *WAYS[way])
    next(folder.glob("*00002-of-00003.*")).unlink()
    with pytest.raises(CheckpointError, match=r"00002-of-00003.* is missing; there are 2 of 3 shards"):
        checkpoint.load(folder)


def test_two_sets_of_shards_are_not_mixed(folder):
    in_parts(folder, *WAYS["safetensors without an index"])
    save_file({"x.weight": torch.ones(1)}, folder / "other-00001-of-00001.safetensors")
    with pytest.raises(CheckpointError, match="several sets of weights, and no index"):
        checkpoint.load(folder)


def test_one_bin_file_and_a_lone_safetensors_file_are_read(folder, capsys, monkeypatch):
    monkeypatch.delenv("HERD_QUIET")
    expected = checkpoint.load(folder)(TOKENS)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").rename(folder / "weights.safetensors")
    assert {info.file.name for info in open_checkpoint(folder).table.values()} == {"pytorch_model.bin"}
    assert torch.equal(checkpoint.load(folder)(TOKENS), expected)
    (folder / "pytorch_model.bin").unlink()
    assert torch.equal(checkpoint.load(folder)(TOKENS), expected)
    assert "weights are read from weights.safetensors" in capsys.readouterr().err


class Bomb:
    def __reduce__(self):
        return (open, ("/dev/null",))


def test_a_bin_file_runs_nothing(folder):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"a": Bomb()}))
    with pytest.raises(CheckpointError, match="it could run code"):
        checkpoint.load(folder)


# ---- GGUF ------------------------------------------------------------------------------------------------------------


def split(file, folder, count: int = 3, *, first_empty: bool = False) -> list:
    """A GGUF file in parts, as `llama-gguf-split` writes them."""
    reader = gguf.GGUFReader(file)
    folder.mkdir()
    parts = []
    shares = count - 1 if first_empty else count
    for number in range(count):
        parts.append(folder / f"model-{number + 1:05d}-of-{count:05d}.gguf")
        writer = gguf.GGUFWriter(parts[-1], "llama")
        for field in reader.fields.values() if number == 0 else ():
            if not field.name.startswith("GGUF.") and field.name != "general.architecture":
                kind = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
                writer.add_key_value(field.name, field.contents(), field.types[0], sub_type=kind)
        writer.add_uint16("split.no", number)
        writer.add_uint16("split.count", count)
        writer.add_int32("split.tensors.count", len(reader.tensors))
        share = number - 1 if first_empty else number
        for tensor in reader.tensors[share::shares] if share >= 0 else ():
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return parts


@pytest.mark.parametrize("first_empty", [False, True])
def test_a_gguf_file_in_parts_is_one_model_by_its_folder_and_by_any_part(first_empty, folder, tmp_path):
    convert(folder, tmp_path / "model.gguf", precision="q8_0")
    whole = herd.load(tmp_path / "model.gguf")
    parts = split(tmp_path / "model.gguf", tmp_path / "parts", first_empty=first_empty)
    for place in (tmp_path / "parts", parts[0], parts[2]):
        model, tokenizer = herd.load(place)
        assert torch.equal(model(TOKENS), whole[0](TOKENS))
        assert tokenizer.fingerprint == whole[1].fingerprint == open_tokenizer(place).fingerprint
    convert(tmp_path / "parts", tmp_path / "again.gguf", precision="q8_0")
    assert torch.equal(checkpoint.load(tmp_path / "again.gguf")(TOKENS), whole[0](TOKENS))


def test_a_part_that_is_missing_renamed_or_anothers_is_named(folder, tmp_path):
    convert(folder, tmp_path / "model.gguf")
    parts = split(tmp_path / "model.gguf", tmp_path / "parts")
    parts[1].rename(tmp_path / "kept.gguf")
    with pytest.raises(CheckpointError, match=r"00002-of-00003.gguf is missing: the model has 3 parts"):
        checkpoint.load(tmp_path / "parts")
    parts[1].write_bytes(parts[2].read_bytes())
    with pytest.raises(CheckpointError, match="is not part 2 of 3: it belongs to another model"):
        checkpoint.load(tmp_path / "parts")
    parts[0].rename(tmp_path / "renamed.gguf")
    with pytest.raises(CheckpointError, match="one of 3 parts, expected NAME-00001-of-00003"):
        checkpoint.load(tmp_path / "renamed.gguf")


@pytest.mark.parametrize("name", ["Q2_K", "Q3_K", "Q4_K", "IQ4_NL", "IQ4_XS", "MXFP4"])
def test_a_file_of_small_blocks_loads_as_the_numbers_that_the_gguf_package_reads(name, folder, tmp_path):
    wide = ModelConfig.from_dict(TINY.to_dict() | {"hidden_size": 256, "intermediate_size": 256, "head_dim": None})
    checkpoint.save(LlamaForCausalLM(wide), tmp_path / "wide", Tokenizer.train(["some text"], 600))
    convert(tmp_path / "wide", tmp_path / "plain.gguf", precision="float32")
    reader, kind = gguf.GGUFReader(tmp_path / "plain.gguf"), gguf.GGMLQuantizationType[name]
    writer = gguf.GGUFWriter(tmp_path / "small.gguf", "llama")
    for field in reader.fields.values():
        if not field.name.startswith("GGUF.") and field.name != "general.architecture":
            sub = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, field.contents(), field.types[0], sub_type=sub)
    expected, random = {}, np.random.default_rng(0)
    block, size = gguf.GGML_QUANT_SIZES[kind]
    for tensor in reader.tensors:
        if not tensor.name.endswith("ffn_up.weight"):
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
            continue
        content = random.integers(0, 60, (256, 256 // block * size), dtype=np.uint8)  # scales that are finite
        writer.add_tensor(tensor.name, content, raw_dtype=kind)
        expected[tensor.name] = torch.from_numpy(gguf.quants.dequantize(content, kind))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    weights = open_checkpoint(tmp_path / "small.gguf").load(dtype=torch.float32).state_dict()
    for layer in range(2):
        assert torch.equal(weights[f"model.layers.{layer}.mlp.up_proj.weight"], expected[f"blk.{layer}.ffn_up.weight"])


def test_a_type_that_is_not_read_is_called_by_its_name(folder, tmp_path):
    convert(folder, tmp_path / "model.gguf", precision="q8_0")
    content = (tmp_path / "model.gguf").read_bytes()
    name = b"blk.0.attn_q.weight"
    place = content.index(name) + len(name) + 4 + 2 * 8
    (tmp_path / "other.gguf").write_bytes(content[:place] + (16).to_bytes(4, "little") + content[place + 4 :])
    with pytest.raises(CheckpointError, match=r"attn_q.weight is stored as IQ2_XXS, which is not read.*Q4_K_M or Q8_0"):
        checkpoint.load(tmp_path / "other.gguf")


# ---- broken copies ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.1, 0.5, 0.97, 0.999])
@pytest.mark.parametrize("kind", ["safetensors", "gguf"])
def test_a_copy_that_broke_off_and_left_zeros_is_refused(kind, share, folder, tmp_path):
    file = folder / "model.safetensors"
    if kind == "gguf":
        file = tmp_path / "model.gguf"
        convert(folder, file)
    content = file.read_bytes()
    begin = content.index(b"data_offsets") if kind == "safetensors" else 20_000
    kept = max(int(share * len(content)), begin + 20_000)
    file.write_bytes(content[:kept] + bytes(len(content) - kept))
    with pytest.raises(CheckpointError, match=r"is incomplete: its last weight, .* ends in zeros"):
        checkpoint.load(folder if kind == "safetensors" else file)


def test_rows_of_zeros_for_ids_without_a_token_are_no_broken_copy(folder):
    weights = load_file(folder / "model.safetensors")
    for name in ("lm_head.weight", "model.embed_tokens.weight"):
        weights[name][-50:] = 0
    save_file({name: weights[name] for name in ("lm_head.weight",)}, folder / "model-00001-of-00002.safetensors")
    weights.pop("lm_head.weight")
    save_file(weights, folder / "model-00002-of-00002.safetensors")
    (folder / "model.safetensors").unlink()
    assert (checkpoint.load(folder).lm_head.weight[-50:] == 0).all()


@pytest.mark.parametrize("target", ["out.gguf", "out", "meta"])
def test_a_checkpoint_without_a_tokenizer_is_converted(target, folder, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("HERD_QUIET")
    for file in folder.glob("tokenizer*"):
        file.unlink()
    convert(folder, tmp_path / target, format="meta" if target == "meta" else None)
    assert "the copy gets no tokenizer" in capsys.readouterr().err
    assert torch.equal(checkpoint.load(tmp_path / target)(TOKENS), checkpoint.load(folder)(TOKENS))
