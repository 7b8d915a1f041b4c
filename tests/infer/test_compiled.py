"""A step through the compiled layers beside its twin, the model in PyTorch."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from herd.infer.build import quantize_layers
from herd.infer.engine import Engine
from herd.kernels import decoding
from herd.model.llama import LlamaForCausalLM
from herd.ops.quantized import Int4Linear, QuantizedLinear, dequantize_groups, dequantize_rows
from herd.types import SamplingParams
from tests.infer.models import small_tokenizer, tiny_model
from tests.ops.kernels import KINDS, use

SHAPES = {
    "grouped, 32 channels": {"head_dim": 32},
    "every head its own, 64 channels": {"head_dim": 64, "num_key_value_heads": 4},
    "one kv head, 128 channels": {"head_dim": 128, "num_key_value_heads": 1},
    "tied, a panel and a half": {"head_dim": 32, "intermediate_size": 192, "tie_word_embeddings": True},
    "wide": {"head_dim": 64, "hidden_size": 640, "intermediate_size": 1152},
}
PROMPTS = [
    "The",
    "def main(argument): return os.path.join(argument, 'naïve café')",
    "Grüße aus Köln, 日本語 and ελληνικά; numbers 123 456 789, emoji 🦙🦙. What does this function do? It joins paths. "
    * 2,
    *[f"numbers {n}" for n in range(5)],
]


@pytest.fixture(autouse=True, params=KINDS)
def kernels(request, monkeypatch):
    use(request.param, monkeypatch)


def engine_of(shape: dict, scheme: str | None, cache_dtype: str | None = None, **limits) -> Engine:
    model = tiny_model(**({"intermediate_size": 128} | shape)).bfloat16()
    if scheme is not None:
        quantize_layers(model, scheme)
    return Engine.of(model, small_tokenizer(), cache_dtype=cache_dtype, **limits)


def exact(engine: Engine) -> Engine:
    """The same weights, dequantized, in float32 arithmetic."""
    model = copy.deepcopy(engine.model)
    for block in model.model.layers:
        for parent in (block.self_attn, block.mlp):
            for name, linear in list(parent.named_children()):
                setattr(parent, name, plain_linear(linear))
    model.lm_head = plain_linear(model.lm_head)
    return Engine.of(whole_model(model), small_tokenizer())


def plain_linear(linear: torch.nn.Module) -> torch.nn.Linear:
    plain = torch.nn.Linear(linear.in_features, linear.out_features, bias=False)
    if isinstance(linear, QuantizedLinear):
        plain.weight.data = dequantize_rows(linear.weight, linear.weight_scale)
    elif isinstance(linear, Int4Linear):
        plain.weight.data = dequantize_groups(linear.weight, linear.weight_scale)[:, : linear.in_features]
    else:
        plain.weight.data = linear.weight.data.float()
    return plain


def whole_model(model: LlamaForCausalLM) -> LlamaForCausalLM:
    plain = LlamaForCausalLM(replace(model.config, tie_word_embeddings=False))
    plain.load_state_dict(model.float().state_dict())
    return plain.eval()


def logprobs_of(engine: Engine, sequences: list[list[int]]) -> torch.Tensor:
    """Of every token of every sequence, given those before it."""
    requests = [engine.request(tokens, SamplingParams(max_tokens=1, prompt_logprobs=0)) for tokens in sequences]
    for request in requests:
        engine.submit(request)
    while engine.has_work:
        engine.step()
    return torch.tensor([token.logprob for request in requests for token in request.prompt_logprobs[1:]])


@pytest.mark.parametrize("cache_dtype", [None, "int8"])
@pytest.mark.parametrize("scheme", [None, "int8", "int4"])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_layers_are_as_near_to_float32_as_pytorchs_are(monkeypatch, shape, scheme, cache_dtype):
    # Chunks of 40 tokens: prompts are computed in parts, beside answers that are decoded already.
    engine = engine_of(SHAPES[shape], scheme, cache_dtype, max_prompt_tokens=40)
    answers = engine.generate(PROMPTS, SamplingParams(temperature=0, max_tokens=8, logprobs=0, prompt_logprobs=0))
    assert engine.loop.runner._layers is not None
    ours = [token.logprob for answer in answers for token in answer.prompt_logprobs[1:] + answer.logprobs]
    sequences = [engine.encode(prompt) + answer.tokens for prompt, answer in zip(PROMPTS, answers, strict=True)]
    truth = logprobs_of(exact(engine), sequences)
    monkeypatch.setattr(decoding, "_library", None)
    twin = Engine.of(engine.model, small_tokenizer(), cache_dtype=cache_dtype, max_prompt_tokens=40)
    error, twins = ((found - truth).abs() for found in (torch.tensor(ours), logprobs_of(twin, sequences)))
    # PyTorch's way takes a prompt's first chunk before it is rounded to the int8 cache, the kernels after it.
    factor = 1.2 if cache_dtype is None else 1.6
    assert error.median() < factor * twins.median() + 0.002
    assert error.mean() < factor * twins.mean() + 0.002


@pytest.mark.parametrize("num_answers", [2, 3, 4, 5, 7, 16, 27, 28, 40])
@pytest.mark.parametrize("scheme", [None, "int8", "int4"])
def test_any_number_of_answers_at_once_agrees_with_one_at_a_time(num_answers, scheme):
    engine = engine_of(SHAPES["wide"], scheme)
    params = SamplingParams(temperature=0, max_tokens=3, logprobs=0)
    prompts = [f"{n} {n * n}" for n in range(num_answers)]
    together = engine.generate(prompts, params)
    for prompt, answer in zip(prompts, together, strict=True):
        alone = engine.generate(prompt, params)
        gap = abs(alone.logprobs[0].logprob - answer.logprobs[0].logprob)
        assert gap < 0.2, (prompt, gap)


def test_a_model_that_the_kernels_do_not_fit_runs_in_pytorch():
    for changes in ({"attention_bias": True}, {"head_dim": 16}, {"hidden_size": 96, "head_dim": 32}):
        model = tiny_model(**changes).bfloat16()
        engine = Engine.of(model, small_tokenizer())
        assert engine.generate("def", SamplingParams(max_tokens=4)).tokens
        assert engine.loop.runner._layers is None


def test_several_threads_give_the_same_tokens_as_one(monkeypatch):
    params = SamplingParams(temperature=0, max_tokens=12)
    monkeypatch.setattr("herd.infer.runner._SERIAL_FLOPS", 0)
    answers, before = [], torch.get_num_threads()
    try:
        for num_threads in (1, 2, 3):
            torch.set_num_threads(num_threads)
            answers.append([a.tokens for a in engine_of(SHAPES["wide"], None).generate(PROMPTS, params)])
    finally:
        torch.set_num_threads(before)
    assert answers[0] == answers[1] == answers[2]


@pytest.mark.parametrize("cache_dtype", [None, "int8"])
@pytest.mark.parametrize("scheme", [None, "int8", "int4"])
def test_a_deterministic_answer_of_the_kernels_does_not_depend_on_its_neighbours(scheme, cache_dtype):
    model = tiny_model(head_dim=32, intermediate_size=128).bfloat16()
    if scheme is not None:
        quantize_layers(model, scheme)
    engine = Engine.of(model, small_tokenizer(), cache_dtype=cache_dtype, deterministic=True)
    params = SamplingParams(temperature=1.0, seed=5, max_tokens=12, logprobs=2)
    alone = [engine.generate(prompt, params) for prompt in PROMPTS]
    together = engine.generate(list(reversed(PROMPTS)) + PROMPTS, params)
    for answer, first, second in zip(alone, reversed(together[: len(PROMPTS)]), together[len(PROMPTS) :], strict=True):
        assert answer.tokens == first.tokens == second.tokens
        assert answer.logprobs == first.logprobs == second.logprobs
