"""Reading and writing checkpoint folders: what is whole comes back equal, what is damaged gives one clear error."""

import json
import pickle
import struct
from dataclasses import replace

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import herd
from herd.errors import CheckpointError, ConfigError, DataError
from herd.formats import checkpoint
from herd.formats.convert import convert
from herd.model.config import SEQUENCE_CLASSIFICATION, ModelConfig, RopeScaling
from herd.model.init import initialize
from herd.model.llama import LlamaForCausalLM, LlamaForSequenceClassification
from herd.model.reward import as_reward_model
from herd.tokenizer.io import save_tokenizer
from herd.tokenizer.tokenizer import Tokenizer

TINY = ModelConfig(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=131_072,
    rope_scaling=RopeScaling(),
    bos_token_id=1,
    eos_token_id=(2, 3),
)
TOKENS = torch.arange(20)[None]


@pytest.fixture
def folder(tmp_path):
    model = LlamaForCausalLM(TINY)
    initialize(model, 0)
    checkpoint.save(model, tmp_path / "model")
    return tmp_path / "model"


def edit_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_config_survives_the_way_to_disk_and_back(folder):
    assert ModelConfig.from_folder(folder) == TINY
    generation = json.loads((folder / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [2, 3] and generation["temperature"] == 0.6


def test_config_of_transformers_5_is_read_like_that_of_4():
    values = TINY.to_dict()
    rope = values.pop("rope_scaling") | {"rope_theta": values.pop("rope_theta")}
    assert ModelConfig.from_dict(values | {"rope_parameters": rope}) == TINY
    assert ModelConfig.from_dict(values | {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}) == replace(
        TINY, rope_scaling=None
    )


def test_saving_in_another_dtype_rounds_the_weights_and_says_so(folder, tmp_path):
    model = checkpoint.load(folder)
    checkpoint.save(model, tmp_path / "half", dtype=torch.bfloat16)
    again = checkpoint.load(tmp_path / "half")
    assert json.loads((tmp_path / "half" / "config.json").read_text())["dtype"] == "bfloat16"
    for a, b in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(a.bfloat16(), b)
    assert next(checkpoint.load(tmp_path / "half", dtype=torch.float32).parameters()).dtype == torch.float32


def test_large_checkpoints_are_written_in_shards(folder, tmp_path, monkeypatch):
    model = checkpoint.load(folder)
    monkeypatch.setattr(checkpoint, "MAX_SHARD_BYTES", 10_000)
    checkpoint.save(model, tmp_path / "sharded")
    index = json.loads((tmp_path / "sharded" / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 2
    assert torch.equal(checkpoint.load(tmp_path / "sharded")(TOKENS), model(TOKENS))


def test_saving_replaces_a_folder_whole(folder):
    other = LlamaForCausalLM(TINY)
    initialize(other, 1)
    (folder / "stale.txt").write_text("old")
    checkpoint.save(other, folder)
    assert not (folder / "stale.txt").exists()
    assert torch.equal(checkpoint.load(folder)(TOKENS), other(TOKENS))


def test_a_reward_model_comes_back_as_one_and_loads_in_transformers(folder, tmp_path):
    reward = as_reward_model(checkpoint.load(folder), seed=0)
    checkpoint.save(reward, tmp_path / "reward")
    again = checkpoint.load(tmp_path / "reward")
    assert isinstance(again, LlamaForSequenceClassification)
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "reward").eval()
    assert type(theirs).__name__ == SEQUENCE_CLASSIFICATION
    theirs.config.pad_token_id = 0
    with torch.no_grad():
        scores = again(TOKENS + 1)
        torch.testing.assert_close(scores[:, -1], theirs(TOKENS + 1).logits, atol=1e-5, rtol=0)


def test_old_leftovers_in_a_file_do_no_harm(folder):
    edit_config(folder, tie_word_embeddings=True)
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    save_file(weights, folder / "model.safetensors")
    model = checkpoint.load(folder)
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_a_run_folder_stands_for_its_checkpoint(folder, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        checkpoint.open_checkpoint(run)
    (run / "run.json").write_text(json.dumps({"checkpoint": "../model"}))
    assert checkpoint.open_checkpoint(run).place.resolve() == folder
    folder.rename(run / "checkpoint")
    assert checkpoint.open_checkpoint(run).place == run / "checkpoint"
    with pytest.raises(CheckpointError, match="does not exist"):
        checkpoint.open_checkpoint(tmp_path / "nowhere")


@pytest.fixture(scope="module")
def formats(tmp_path_factory):
    """One model with its tokenizer in every format, and the folder's template and generation settings its own."""
    place = tmp_path_factory.mktemp("formats")
    tokenizer = Tokenizer.train(["some text about some words"], 600).with_template("{{ messages }}")
    model = LlamaForCausalLM(replace(TINY, vocab_size=tokenizer.vocab_size, eos_token_id=tokenizer.eos_id))
    initialize(model, 0)
    checkpoint.save(model, place / "huggingface", tokenizer)
    (place / "huggingface" / "generation_config.json").write_text('{"temperature": 0.25}')
    convert(place / "huggingface", place / "meta", format="meta")
    convert(place / "huggingface", place / "gguf" / "model.gguf")
    return place, model, tokenizer


@pytest.mark.parametrize("format", ["huggingface", "meta", "gguf"])
def test_an_opened_checkpoint_has_all_that_travels_with_it(formats, format):
    place, model, tokenizer = formats
    opened = herd.open_checkpoint(place / format)
    assert herd.open_checkpoint(opened) is opened and opened.format == format
    assert opened.config.vocab_size == tokenizer.vocab_size and opened.learnable_config() == opened.config
    assert opened.tokenizer.fingerprint == tokenizer.fingerprint == herd.open_tokenizer(place / format).fingerprint
    assert opened.chat_template == "{{ messages }}"
    assert opened.generation == ({} if format == "gguf" else {"temperature": 0.25})
    assert opened.weights.tensors.keys() == dict(model.named_parameters()).keys()
    torch.testing.assert_close(opened.load()(TOKENS), model(TOKENS), atol=1e-5, rtol=0)


@pytest.mark.parametrize("format", ["huggingface", "gguf"])
def test_the_files_of_an_opened_checkpoint_are_looked_through_once(formats, format, monkeypatch):
    opened = herd.open_checkpoint(formats[0] / format)
    seen = []
    for name in ("read_gguf", "tensors_in_folder"):
        read = getattr(checkpoint, name)
        monkeypatch.setattr(checkpoint, name, lambda place, read=read: seen.append(place) or read(place))
    _ = opened.config, opened.tokenizer, opened.chat_template, opened.weights, opened.load(), opened.load()
    assert seen == [opened.place]


def test_an_opened_checkpoint_says_what_does_not_travel_with_it(folder, formats):
    opened = herd.open_checkpoint(folder)
    with pytest.raises(DataError, match=r"holds neither tokenizer.json nor tokenizer.model"):
        _ = opened.tokenizer
    assert opened.chat_template is None
    (folder / "generation_config.json").unlink()
    assert opened.generation == {}
    save_tokenizer(formats[2], folder)
    (folder / "tokenizer_config.json").unlink()
    assert herd.open_checkpoint(folder).chat_template is None
    with pytest.raises(CheckpointError, match="not a Hugging Face folder; `herd convert"):
        _ = herd.open_checkpoint(formats[0] / "gguf").table


def test_herd_load_gives_model_and_tokenizer_in_two_words(tmp_path):
    tokenizer = Tokenizer.train(["some text about some words"], 600)
    model = LlamaForCausalLM(replace(TINY, vocab_size=tokenizer.vocab_size))
    initialize(model, 0)
    checkpoint.save(model, tmp_path / "model", tokenizer)
    loaded, words = herd.load(tmp_path / "model")
    logits = loaded(torch.tensor([words.encode("some words", bos=True)]))
    assert logits.shape[-1] == tokenizer.vocab_size and not loaded.training


def truncate(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def cut_the_header(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:50])


def empty_the_file(folder):
    (folder / "model.safetensors").write_bytes(b"")


def append_bytes(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes() + b"spare")


def break_the_header(folder):
    file = folder / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[8:12] = b"@@@@"
    file.write_bytes(content)


def claim_a_huge_header(folder):
    file = folder / "model.safetensors"
    file.write_bytes(struct.pack("<Q", 2**62) + file.read_bytes()[8:])


def lie_about_a_shape(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes().replace(b'"shape":[48,32]', b'"shape":[48,31]', 1))


def drop_a_tensor(folder):
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors")


def add_a_tensor(folder):
    weights = load_file(folder / "model.safetensors")
    save_file(weights | {"model.layers.7.mlp.up_proj.weight": torch.ones(3)}, folder / "model.safetensors")


def another_shape(folder):
    edit_config(folder, intermediate_size=40)


def index_beside_nothing(folder):
    shard = {"weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(shard))


def index_that_leaves_the_folder(folder):
    shard = {"weight_map": {"model.norm.weight": "../secret.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(shard))


def index_that_misplaces(folder):
    names = load_file(folder / "model.safetensors")
    index = {"weight_map": dict.fromkeys([*names, "model.layers.9.mlp.up_proj.weight"], "model.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def index_without_a_map(folder):
    (folder / "model.safetensors.index.json").write_text("[]")


def not_finite(folder):
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][-1, 5] = torch.nan
    save_file(weights, folder / "model.safetensors")


def no_weights(folder):
    (folder / "model.safetensors").unlink()


def config_that_is_no_json(folder):
    (folder / "config.json").write_text("{")


def nest_the_header_deeply(folder):
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", 100_000) + b"[" * 100_000)


def an_infinite_shape(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes().replace(b'"shape":[48,32]', b'"shape":[1e999]', 1))


def whole_numbers(folder):
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"].int()
    save_file(weights, folder / "model.safetensors")


def config_that_is_nested_deeply(folder):
    (folder / "config.json").write_text("[" * 100_000)


def index_that_is_nested_deeply(folder):
    (folder / "model.safetensors.index.json").write_text("[" * 100_000)


@pytest.mark.parametrize(
    "damage, message",
    [
        (nest_the_header_deeply, "model.safetensors is damaged: its header is not JSON"),
        (an_infinite_shape, "tensor model.layers.0.mlp.gate_proj.weight has an unreadable header entry"),
        (whole_numbers, r"model.safetensors: tensor model.norm.weight holds integers \(int32\)"),
        (config_that_is_nested_deeply, "config.json cannot be read as JSON"),
        (index_that_is_nested_deeply, "index.json is damaged: no readable `weight_map`"),
        (truncate, "model.safetensors is truncated: [0-9,]+ bytes where its header asks for"),
        (cut_the_header, "model.safetensors is truncated"),
        (empty_the_file, "model.safetensors is truncated"),
        (append_bytes, "model.safetensors is damaged: [0-9,]+ bytes where"),
        (break_the_header, "model.safetensors is damaged: its header is not JSON"),
        (claim_a_huge_header, "model.safetensors is truncated"),
        (lie_about_a_shape, "tensor model.layers.0.mlp.gate_proj.weight of shape .* does not fit its byte range"),
        (drop_a_tensor, "lacks the tensor model.layers.1.mlp.up_proj.weight, which its config.json asks for"),
        (add_a_tensor, "holds the tensor model.layers.7.mlp.up_proj.weight, for which its config.json has no place"),
        (another_shape, r"tensor model.layers.0.mlp.gate_proj.weight has the shape \[48, 32\].* asks for \[40, 32\]"),
        (index_beside_nothing, "model-00001-of-00002.safetensors is missing"),
        (index_that_leaves_the_folder, "names the file '../secret.safetensors': only safetensors files beside it"),
        (index_that_misplaces, "lacks the tensor model.layers.9.mlp.up_proj.weight"),
        (index_without_a_map, "index.json is damaged: no readable `weight_map`"),
        (not_finite, "tensor model.layers.1.mlp.up_proj.weight holds values that are not finite"),
        (no_weights, "no weights to load"),
        (config_that_is_no_json, "config.json cannot be read as JSON"),
    ],
)
def test_a_damaged_folder_gives_one_error_that_names_the_fault(folder, damage, message):
    damage(folder)
    with pytest.raises(CheckpointError, match=message):
        checkpoint.load(folder)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"num_attention_heads": 3}, r"num_attention_heads \(3\) is not a multiple of num_key_value_heads \(2\)"),
        ({"hidden_size": 30, "head_dim": None}, r"hidden_size \(30\) is not divisible by num_attention_heads \(4\)"),
        ({"head_dim": 7}, r"head_dim \(7\) must be even"),
        ({"vocab_size": 0}, "vocab_size must be a whole number of at least 1, not 0"),
        ({"model_type": "mamba"}, "model_type is 'mamba'"),
        ({"architectures": ["LlamaForTokenClassification"]}, "architectures names 'LlamaForTokenClassification'"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5, not 1"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"rope_scaling": {"rope_type": "proportional", "factor": 2.0}}, "has the type 'proportional'"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0, "alpha": 3.0}}, "'linear' sets alpha, which is not"),
        ({"rope_scaling": {"factor": 2.0}}, "sets factor but no type"),
        ({"rope_scaling": {"type": "dynamic"}}, "rope_scaling lacks factor"),
        ({"rope_scaling": {"type": "longrope", "short_factor": [1], "long_factor": [2]}}, "has 1 divisors in short"),
        ({"rope_parameters": {"full_attention": {"rope_type": "yarn"}}, "rope_scaling": None}, "sets full_attention"),
        ({"sliding_window": 4096}, "sliding_window is 4096, below the context"),
        ({"layer_types": ["sliding_attention", "full_attention"]}, "layer_types names sliding_attention"),
        ({"attention_multiplier": 0.0078}, "attention_multiplier is 0.0078; a Llama divides attention scores by"),
        ({"query_pre_attn_scalar": 256}, "query_pre_attn_scalar is 256"),
        ({"logits_scaling": 8.0}, "logits_scaling is 8.0, not 1: scaled logits"),
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping is 30.0, not 0: soft-capped logits"),
        ({"use_qk_norm": True}, "use_qk_norm is True, not 0: norms of queries and keys"),
        ({"no_rope_layers": [1, 0]}, "no_rope_layers: some layers have no RoPE"),
        ({"num_local_experts": 8}, "a mixture of experts"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 2.0}}, "rope_scaling lacks high_freq_factor"),
        ({"rope_theta": -1.0}, "rope_theta must be above 1"),
        ({"hidden_size": None}, "lacks hidden_size"),
        ({"intermediate_size": 2**62}, "intermediate_size .* is above"),
        ({"vocab_size": 2**40}, "vocab_size .* is above"),
        ({"max_position_embeddings": 2**40}, "max_position_embeddings .* is above"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers .* is above 10000"),
        ({"rope_theta": "5e5"}, "rope_theta must be above 1, not '5e5'"),
        ({"eos_token_id": [2, "</s>"]}, "eos_token_id must be the id of a token"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings must be true or false, not 'no'"),
        ({"architectures": {"a": 1}}, "architectures must be a list"),
        ({"rope_parameters": [1]}, "rope_parameters must be an object"),
        ({"quantization_config": [1]}, "quantization_config must be an object"),
        (
            {"rope_scaling": TINY.to_dict()["rope_scaling"] | {"factor": "8"}},
            "rope_scaling: factor must be a number, not '8'",
        ),
    ],
)
def test_an_impossible_config_is_refused_by_name(folder, changes, message):
    edit_config(folder, **changes)
    with pytest.raises(ConfigError, match=message):
        checkpoint.load(folder)


class Bomb:
    def __reduce__(self):
        return (open, ("/dev/null",))


def test_nothing_in_a_pickle_is_executed(folder):
    (folder / "model.safetensors").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(CheckpointError):
        checkpoint.load(folder)


@torch.no_grad()
def test_a_head_stored_beside_a_tied_embedding_is_used_where_it_is_another_as_transformers_does(folder, tmp_path):
    edit_config(folder, tie_word_embeddings=True)
    ours, theirs = checkpoint.load(folder), transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    assert ours.lm_head.weight is not ours.model.embed_tokens.weight and not ours.config.tie_word_embeddings
    torch.testing.assert_close(ours(TOKENS), theirs(TOKENS).logits, atol=1e-5, rtol=0)
    convert(folder, tmp_path / "again")
    assert torch.equal(checkpoint.load(tmp_path / "again")(TOKENS), ours(TOKENS))


@pytest.mark.parametrize(
    "values",
    [
        {"rope_theta": 10_000.0, "rope_parameters": {"rope_type": "default", "rope_theta": 70_000.0}},
        {"rope_theta": 70_000.0, "rope_scaling": None, "rope_parameters": None},
        {
            "rope_theta": 70_000.0,
            "rope_scaling": {"type": "linear", "factor": 1.0},
            "rope_parameters": {"rope_theta": 5},
        },
    ],
)
def test_of_two_bases_that_are_named_the_one_that_transformers_takes_is_taken(values):
    plain = {name: value for name, value in TINY.to_dict().items() if not name.startswith("rope_")}
    theirs = transformers.LlamaConfig(**plain | json.loads(json.dumps(values)))
    assert ModelConfig.from_dict(plain | values).rope_theta == theirs.rope_parameters["rope_theta"] == 70_000.0
