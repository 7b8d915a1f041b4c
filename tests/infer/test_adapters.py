"""LoRA adapters: each answer as from a model with the adapter added to its weights."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from herd.errors import CheckpointError, RequestError
from herd.infer.embedder import Embedder
from herd.infer.engine import Engine
from herd.types import SamplingParams
from tests.infer.models import small_tokenizer, tiny_model

PROMPT = "What does this function do? It joins paths. "
LAYERS = ("model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj", "model.layers.1.self_attn.v_proj")


def write_adapter(folder, seed, rank=4, alpha=8, **config):
    """A random adapter in PEFT's layout."""
    folder.mkdir()
    generator, model, tensors = torch.Generator().manual_seed(seed), tiny_model(), {}
    for layer in LAYERS:
        rows, columns = model.get_submodule(layer).weight.shape
        name = f"base_model.model.{layer}.lora"
        tensors[f"{name}_A.weight"] = torch.randn(rank, columns, generator=generator) * 0.2
        tensors[f"{name}_B.weight"] = torch.randn(rows, rank, generator=generator) * 0.2
    save_file(tensors, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": rank, "lora_alpha": alpha, "bias": "none", "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(settings | config))
    return folder


def merged(folder, scale=2.0, model=None):
    """The tiny model with an adapter added to its weights."""
    model, tensors = model or tiny_model(), load_file(folder / "adapter_model.safetensors")
    with torch.no_grad():
        for layer in LAYERS:
            name = f"base_model.model.{layer}.lora"
            model.get_submodule(layer).weight += scale * tensors[f"{name}_B.weight"] @ tensors[f"{name}_A.weight"]
    return model


def greedy(adapter=None):
    return SamplingParams(temperature=0, max_tokens=20, adapter=adapter)


def test_answers_with_different_adapters_share_a_batch_and_equal_merged_models(tmp_path):
    folders = {name: write_adapter(tmp_path / name, seed) for seed, name in enumerate(("polite", "brief"))}
    engine = Engine.of(tiny_model(), small_tokenizer())
    expected = {None: engine.generate(PROMPT, greedy()).tokens}
    for name, folder in folders.items():
        engine.add_adapter(name, folder)
        expected[name] = Engine.of(merged(folder), small_tokenizer()).generate(PROMPT, greedy()).tokens
    assert len({tuple(tokens) for tokens in expected.values()}) == 3
    for _ in range(2):  # the second time the prompt's pages are known: each adapter has its own
        requests = {name: engine.request(PROMPT, greedy(name)) for name in expected}
        for request in requests.values():
            engine.submit(request)
        while engine.has_work:
            engine.step()
        assert {name: request.leader.tokens for name, request in requests.items()} == expected
    assert engine.adapters == ("polite", "brief")
    assert Embedder(engine).embed([1, 2, 3]).shape == (64,)


def test_an_adapter_on_quantized_weights_changes_the_answer(tmp_path):
    engine = Engine.of(tiny_model().bfloat16(), small_tokenizer())
    engine.add_adapter("a", write_adapter(tmp_path / "a", 3))
    assert engine.generate(PROMPT, greedy("a")).tokens != engine.generate(PROMPT, greedy()).tokens


def test_a_layer_with_a_bias_takes_an_adapter(tmp_path):
    model = tiny_model(attention_bias=True, mlp_bias=True)
    engine = Engine.of(model, small_tokenizer())
    engine.add_adapter("a", write_adapter(tmp_path / "a", 3))
    changed = merged(tmp_path / "a", model=tiny_model(attention_bias=True, mlp_bias=True))
    expected = Engine.of(changed, small_tokenizer()).generate(PROMPT, greedy()).tokens
    assert engine.generate(PROMPT, greedy("a")).tokens == expected != engine.generate(PROMPT, greedy()).tokens
    assert Embedder(engine).embed([1, 2, 3]).shape == (64,)


def test_unknown_and_unfit_adapters_are_refused(tmp_path):
    engine = Engine.of(tiny_model(), small_tokenizer())
    with pytest.raises(RequestError, match="no adapter"):
        engine.generate(PROMPT, greedy("missing"))
    with pytest.raises(CheckpointError, match="adapter_config"):
        engine.add_adapter("a", tmp_path)
    with pytest.raises(CheckpointError, match="use_dora"):
        engine.add_adapter("a", write_adapter(tmp_path / "dora", 0, use_dora=True))
    wide = Engine.of(tiny_model(hidden_size=32), small_tokenizer())
    with pytest.raises(CheckpointError, match="another model"):
        wide.add_adapter("a", write_adapter(tmp_path / "a", 0))
    engine.add_adapter("a", tmp_path / "a")
    with pytest.raises(CheckpointError, match="already"):
        engine.add_adapter("a", tmp_path / "a")


def test_damaged_adapters_are_refused_by_name(tmp_path):
    engine, name = Engine.of(tiny_model(), small_tokenizer()), f"base_model.model.{LAYERS[0]}.lora_A.weight"
    folder = write_adapter(tmp_path / "a", 0)
    weights, config = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    good, settings, tensors = weights.read_bytes(), json.loads(config.read_text()), load_file(weights)

    def refused(why: str) -> None:
        with pytest.raises(CheckpointError, match=why):
            engine.add_adapter("a", folder)

    for change, why in (
        ({"lora_alpha": "x"}, "lora_alpha"),
        ({"lora_alpha": float("inf")}, "lora_alpha inf"),
        ({"r": 2.5}, "r 2.5"),
        ({"r": 8}, "rank 4"),
        ({"lora_alpha": True}, "lora_alpha True"),
        ({"lora_alpha": 1e308}, "beyond the range of torch.float32"),
        ({"use_rslora": "false"}, "use_rslora"),
        ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens"),
        ({"init_lora_weights": "pissa_niter_4"}, "path_initial_model_for_weight_conversion"),
    ):
        config.write_text(json.dumps(settings | change))
        refused(why)
    for text in ("[" * 100_000, "null", '{"peft_type": "LORA"'):
        config.write_text(text)
        refused("adapter_config.json: expected")
    config.unlink()
    refused("adapter_config.json is missing")
    config.write_text(json.dumps(settings))
    for wrong in (tensors[name] * float("nan"), tensors[name][0].clone(), tensors[name].long()):
        save_file(tensors | {name: wrong}, weights)
        refused("lora_A.weight (holds|is)")
    for content, why in ((good[:100], "cannot be read"), (b"", "cannot be read")):
        weights.write_bytes(content)
        refused(why)
    save_file({}, weights)
    refused("no tensors")
    save_file({key: tensor.double() * 1e200 for key, tensor in tensors.items()}, weights)
    refused("beyond the range")
    save_file({key: tensor.to(torch.float8_e4m3fn) for key, tensor in tensors.items()}, weights)
    engine.add_adapter("of 8-bit floats", folder)
    weights.write_bytes(good)
    engine.add_adapter("a", folder)
    assert engine.generate(PROMPT, greedy("a")).tokens
