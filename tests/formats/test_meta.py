"""Meta's consolidated.*.pth: merged, reordered, and equal to the model they were made from."""

import json
import re
from dataclasses import replace

import pytest
import torch

from herd.errors import CheckpointError, ConfigError
from herd.formats import checkpoint, meta
from herd.formats.convert import convert
from herd.model.config import ModelConfig, RopeScaling, num_parameters
from herd.model.init import initialize
from herd.model.llama import LlamaForCausalLM
from herd.model.rope import halves_to_interleaved, rotary_table
from herd.ops.rope import apply_rotary

CONFIG = ModelConfig(
    vocab_size=64,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=8,
    num_key_value_heads=2,
    max_position_embeddings=131_072,
    rope_scaling=RopeScaling(),
)
TOKENS = torch.arange(30)[None]


def to_meta(model: LlamaForCausalLM) -> dict[str, torch.Tensor]:
    """The other way round, written independently: plain names, then the inverse permutation."""
    names = {target: (source, dimension) for source, (target, dimension) in meta.NAMES.items()}
    state = {}
    for name, tensor in model.state_dict().items():
        layer = re.match(r"model\.layers\.(\d+)\.", name)
        inner = name.removeprefix(layer.group() if layer else "").removesuffix(".weight")
        source, _ = names[inner]
        if inner.endswith(("q_proj", "k_proj")):
            heads = model.config.num_attention_heads if inner.endswith("q_proj") else model.config.num_key_value_heads
            tensor = halves_to_interleaved(tensor, heads)
        state[f"layers.{layer[1]}.{source}.weight" if layer else f"{source}.weight"] = tensor.clone()
    return state


def write(folder, model, shards=1, columns=False):
    folder.mkdir(exist_ok=True)
    c = model.config
    params = {"dim": c.hidden_size, "n_layers": c.num_hidden_layers, "n_heads": c.num_attention_heads}
    params |= {"n_kv_heads": c.num_key_value_heads, "vocab_size": c.vocab_size, "norm_eps": c.rms_norm_eps}
    params |= {"rope_theta": c.rope_theta, "use_scaled_rope": c.rope_scaling is not None}
    (folder / "params.json").write_text(json.dumps(params))
    state = to_meta(model)
    for shard in range(shards):
        part = {}
        for name, tensor in state.items():
            inner = re.sub(r"^layers\.\d+\.", "", name).removesuffix(".weight")
            dimension = 1 if columns and inner == "tok_embeddings" else meta.NAMES[inner][1]
            if dimension is None:
                part[name] = tensor
            elif inner in ("attention.wk", "attention.wv") and shards > c.num_key_value_heads:
                heads = tensor.chunk(c.num_key_value_heads)
                part[name] = heads[shard * c.num_key_value_heads // shards].clone()
            else:
                part[name] = tensor.chunk(shards, dimension)[shard].clone()
        torch.save(part, folder / f"consolidated.{shard:02d}.pth")


@pytest.fixture
def model():
    model = LlamaForCausalLM(CONFIG)
    initialize(model, 0)
    return model.eval()


@pytest.mark.parametrize("shards", [1, 2, 4])
def test_any_number_of_shards_gives_the_original_model(model, shards, tmp_path):
    write(tmp_path / "meta", model, shards)
    assert checkpoint.open_checkpoint(tmp_path / "meta").format == "meta"
    loaded = checkpoint.load(tmp_path / "meta")
    assert loaded.config == CONFIG
    for (name, ours), theirs in zip(loaded.state_dict().items(), model.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name


def test_embeddings_split_by_columns_are_joined_by_columns(tmp_path):
    config = replace(
        CONFIG, num_key_value_heads=8, rope_scaling=None, rope_theta=10_000.0, max_position_embeddings=8192
    )
    model = LlamaForCausalLM(config)
    initialize(model, 0)
    write(tmp_path / "meta", model, 2, columns=True)
    assert torch.equal(checkpoint.load(tmp_path / "meta")(TOKENS), model(TOKENS))


def test_turning_adjacent_channels_equals_turning_halves_after_the_permutation(model):
    """Meta's own rotation, complex numbers over adjacent channels, is the witness."""
    torch.manual_seed(0)
    heads, channels = 8, 8
    halves = torch.randn(heads * channels, 64)
    x = torch.randn(5, 64)
    adjacent = (x @ halves_to_interleaved(halves, heads).T).view(5, heads, channels // 2, 2)
    angles = torch.arange(5)[:, None] * 500_000.0 ** (-torch.arange(0, channels, 2) / channels)
    turned = torch.view_as_complex(adjacent) * torch.polar(torch.ones_like(angles), angles)[:, None]
    expected = torch.view_as_real(turned).flatten(-2)

    table = rotary_table(replace(CONFIG, rope_scaling=None), torch.arange(5)[None], torch.float32)
    ours = apply_rotary((x @ halves.T).view(1, 5, heads, channels), *table)[0]
    interleaved = ours.view(5, heads, 2, channels // 2).transpose(2, 3).flatten(-2)
    torch.testing.assert_close(interleaved, expected)


def test_params_of_the_released_models_give_their_shapes(shared_data):
    for entry in json.loads((shared_data / "llama3" / "model_params.json").read_text()):
        p = entry["params"]
        width = meta.feed_forward_width(p["dim"], p["ffn_dim_multiplier"], p["multiple_of"])
        config = ModelConfig(
            vocab_size=p["vocab_size"],
            hidden_size=p["dim"],
            intermediate_size=width,
            num_hidden_layers=p["n_layers"],
            num_attention_heads=p["n_heads"],
            num_key_value_heads=p["n_kv_heads"],
        )
        counts = {"llama3_1_8b": 8_030_261_248, "llama3_1_70b": 70_553_706_496}
        assert num_parameters(config) == counts.get(entry["core_model_id"], num_parameters(config))


def test_a_pickle_with_code_is_refused_and_not_run(model, tmp_path):
    marker = tmp_path / "ran"

    class Bomb:
        def __reduce__(self):
            return (marker.write_text, ("boom",))

    write(tmp_path / "meta", model)
    torch.save({"tok_embeddings.weight": Bomb()}, tmp_path / "meta" / "consolidated.00.pth")
    with pytest.raises(CheckpointError, match="was not opened: it could run code"):
        checkpoint.load(tmp_path / "meta")
    assert not marker.exists()


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("vision.weight", torch.ones(3), r"01\.pth holds the tensor vision\.weight, which consolidated\.00\.pth lacks"),
        ("norm.weight", torch.ones(32).int(), r"01\.pth: tensor norm\.weight is int32, expected floats"),
        ("norm.weight", torch.ones(32).cfloat(), r"01\.pth: tensor norm\.weight is complex64, expected floats"),
        ("norm.weight", torch.ones(32).to_sparse(), r"01\.pth: tensor norm\.weight is sparse_coo, expected floats"),
    ],
)
def test_what_a_shard_should_not_hold_is_named(model, name, tensor, message, tmp_path):
    write(tmp_path / "meta", model, 2)
    shard = tmp_path / "meta" / "consolidated.01.pth"
    torch.save(torch.load(shard) | {name: tensor}, shard)
    with pytest.raises(CheckpointError, match=message):
        checkpoint.load(tmp_path / "meta")


def test_a_truncated_or_incomplete_set_of_files_is_named(model, tmp_path):
    write(tmp_path / "meta", model, 2)
    shard = tmp_path / "meta" / "consolidated.01.pth"
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=r"consolidated\.01\.pth is truncated or damaged"):
        checkpoint.load(tmp_path / "meta")
    shard.unlink()
    with pytest.raises(CheckpointError, match=r"has the shape .* but params\.json asks for"):
        checkpoint.load(tmp_path / "meta")
    (tmp_path / "meta" / "params.json").unlink()
    with pytest.raises(CheckpointError, match=r"params\.json"):
        checkpoint.load(tmp_path / "meta")


@pytest.mark.parametrize(
    "params, message",
    [
        ({"sliding_window": 4096}, "sliding_window is 4096: a sliding window"),
        ({"moe": {"num_experts": 8}}, "moe is .*: a mixture of experts"),
        ({"quantization_args": {"group_size": 256}}, "quantization_args is .*: weights quantized for ExecuTorch"),
    ],
)
def test_params_that_ask_for_something_else_than_a_llama_are_refused(params, message, model, tmp_path):
    write(tmp_path / "meta", model, 1)
    file = tmp_path / "meta" / "params.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | params))
    with pytest.raises(ConfigError, match=message):
        checkpoint.load(tmp_path / "meta")


def test_a_high_frequency_factor_of_its_own_is_read_and_written(model, tmp_path):
    write(tmp_path / "meta", model, 1)
    file = tmp_path / "meta" / "params.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"rope_high_freq_factor": 2.0}))
    convert(tmp_path / "meta", tmp_path / "again", format="meta")
    for place in ("meta", "again"):
        assert checkpoint.open_checkpoint(tmp_path / place).config.rope_scaling == RopeScaling(high_freq_factor=2.0)
