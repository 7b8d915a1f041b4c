"""An engine around weights that change answers as an engine made afterwards."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

from herd.errors import ConfigError, RequestError
from herd.infer.engine import Engine
from herd.kernels import decoding
from herd.model.llama import LlamaForCausalLM
from herd.train.lora import LoraSettings, add_adapters, merged_model
from herd.types import SamplingParams
from tests.infer.models import TEXT, small_tokenizer, tiny_model
from tests.infer.test_adapters import write_adapter
from tests.ops.kernels import KINDS, use

GREEDY = SamplingParams(temperature=0, max_tokens=24)
OPTIONS = [{}, {"quantize": "int8"}, {"quantize": "int4"}, {"speculate": "lookup"}, {"graphs": True}]
PROMPT = TEXT[:200]  # several blocks of the cache


def of(model: LlamaForCausalLM, **options) -> Engine:
    return Engine.of(model, small_tokenizer(), **options)


def other_values(model: LlamaForCausalLM, seed: int = 7) -> dict[str, torch.Tensor]:
    like = tiny_model(seed, tie_word_embeddings=model.config.tie_word_embeddings).state_dict()
    return {name: like[name].to(tensor.dtype) for name, tensor in model.state_dict().items()}


def in_place(model):
    model.load_state_dict(other_values(model))


def replaced(model):
    for name, parameter in model.named_parameters():
        parameter.data = other_values(model)[name]


def by_an_optimizer(model):
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    tokens = torch.tensor([small_tokenizer().encode(TEXT)[:64]])
    model.train()(tokens).float().logsumexp(-1).sum().backward()
    optimizer.step()
    model.eval()


@pytest.mark.parametrize("change", [in_place, replaced, by_an_optimizer])
@pytest.mark.parametrize(
    "options", [{}, {"quantize": "int8"}, {"quantize": "int4"}, {"speculate": "lookup"}, {"graphs": True}]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_answers_are_those_of_a_fresh_engine(change, options, dtype):
    if dtype == torch.bfloat16:
        decoding.start()
        decoding.wait()
    model = tiny_model(tie_word_embeddings=True).to(dtype)
    engine = of(model, **options)
    before = engine.generate(PROMPT, GREEDY).tokens
    change(model)
    engine.weights_changed()
    after = engine.generate(PROMPT, GREEDY).tokens
    assert after == of(model, **options).generate(PROMPT, GREEDY).tokens
    assert after != before


@pytest.mark.parametrize("kind", KINDS)
def test_our_kernels_read_the_new_weights(kind, monkeypatch):
    use(kind, monkeypatch)
    model = tiny_model(intermediate_size=128, head_dim=32).bfloat16()
    engine = of(model)
    engine.generate(PROMPT, GREEDY)
    like = tiny_model(9, intermediate_size=128, head_dim=32).bfloat16().state_dict()
    for name, parameter in model.named_parameters():
        parameter.data = like[name]
    engine.weights_changed()
    assert engine.generate(PROMPT, GREEDY).tokens == of(model).generate(PROMPT, GREEDY).tokens


@pytest.mark.parametrize("change", [in_place, replaced, by_an_optimizer])
def test_a_change_nobody_told_of_is_noticed_before_the_next_prompt(change):
    model = tiny_model()
    engine = of(model)
    engine.generate(PROMPT, GREEDY)
    change(model)
    assert engine.generate(PROMPT, GREEDY).tokens == of(model).generate(PROMPT, GREEDY).tokens


def test_a_change_of_a_few_values_is_noticed_where_pytorch_counts_it():
    model = tiny_model()
    engine = of(model)
    before = engine.generate(PROMPT, GREEDY).tokens
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.v_proj.weight[:, 1].mul_(-200)
    after = engine.generate(PROMPT, GREEDY).tokens
    assert after == of(model).generate(PROMPT, GREEDY).tokens != before


def test_parameters_put_in_place_of_others_are_noticed():
    model = tiny_model()
    engine = of(model)
    engine.generate(PROMPT, GREEDY)
    model.load_state_dict(other_values(model), assign=True)
    assert engine.generate(PROMPT, GREEDY).tokens == of(model).generate(PROMPT, GREEDY).tokens


@pytest.mark.parametrize("options", [{}, {"speculate": "lookup"}, {"deterministic": True}, {"quantize": "int8"}])
def test_a_change_amid_answers_ends_them_and_what_waits_is_answered_from_the_new_weights(options):
    model = tiny_model()
    engine = of(model, **options)
    pieces = engine.stream(PROMPT, GREEDY)
    next(pieces)
    in_place(model)
    after = engine.generate(PROMPT, GREEDY).tokens
    assert after == of(model, **options).generate(PROMPT, GREEDY).tokens
    with pytest.raises(RequestError, match="running"):
        list(pieces)
    assert not engine.has_work and engine.free_share == 1


def test_rounded_copies_and_replaced_weights_are_given_back():
    model = tiny_model()
    engines = [of(model), of(model, quantize="int8")]
    old = [weakref.ref(buffer) for buffer in engines[1].model.buffers()]
    before = [weakref.ref(parameter.data.untyped_storage()) for parameter in model.parameters()]
    replaced(model)
    for engine in engines:
        engine.weights_changed()
    gc.collect()
    assert old and not any(ref() for ref in old + before)


def test_without_a_change_the_cached_prefix_serves_again():
    engine = of(tiny_model())
    engine.generate(PROMPT, GREEDY)
    prompt = engine.encode(PROMPT)
    blocks, _ = engine.loop.allocator.match(prompt)
    engine.loop.allocator.release(blocks)
    assert blocks
    engine.generate(PROMPT, GREEDY)
    engine.weights_changed()
    assert engine.loop.allocator.match(prompt)[0] == []


def test_answers_under_way_are_not_mixed_of_two_models():
    model = tiny_model()
    engine = of(model)
    pieces = engine.stream(PROMPT, GREEDY)
    next(pieces)
    with pytest.raises(RequestError, match="running"):
        engine.weights_changed()
    pieces.close()
    engine.weights_changed()


def test_an_adapter_stays_on_the_changed_base(tmp_path):
    model = tiny_model()
    write_adapter(tmp_path / "a", seed=3)
    engine, hot = of(model), SamplingParams(temperature=0, max_tokens=24, adapter="a")
    engine.add_adapter("a", tmp_path / "a")
    engine.generate(PROMPT, hot)
    replaced(model)
    engine.weights_changed()
    fresh = of(model)
    fresh.add_adapter("a", tmp_path / "a")
    assert engine.generate(PROMPT, hot).tokens == fresh.generate(PROMPT, hot).tokens


def test_an_unknown_rounding_is_refused():
    with pytest.raises(ConfigError, match="quantize=int3"):
        of(tiny_model(), quantize="int3")


def test_adapters_in_training_count_and_their_steps_are_noticed():
    model = tiny_model()
    add_adapters(model, LoraSettings(rank=4, alpha=32.0))
    engine = of(model)
    before = engine.generate(PROMPT, GREEDY).tokens
    for name, parameter in model.named_parameters():
        if name.endswith("lora_B"):
            parameter.data.normal_(0, 0.3, generator=torch.Generator().manual_seed(1))
    after = engine.generate(PROMPT, GREEDY).tokens
    assert after == of(merged_model(model)).generate(PROMPT, GREEDY).tokens
    assert after != before
