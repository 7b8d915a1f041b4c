"""llama.cpp itself on files that Herd wrote: the same greedy tokens, for every variant of a Llama."""

import json
import urllib.request
from dataclasses import replace

import pytest
import torch

from herd.formats import checkpoint
from herd.formats.convert import convert
from herd.model.config import ModelConfig, RopeScaling
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
    max_position_embeddings=256,
    rope_scaling=RopeScaling(original_max_position_embeddings=64),
)
VARIANTS = {
    "llama 2": replace(TINY, num_key_value_heads=4, rope_theta=10_000.0, rope_scaling=None, rms_norm_eps=1e-6),
    "llama 3": replace(TINY, rope_scaling=None),
    "llama 3.1": TINY,
    "llama 3.2, tied": replace(TINY, tie_word_embeddings=True, rope_scaling=RopeScaling(factor=32.0)),
    "wide heads": replace(TINY, head_dim=32),
    "biases": replace(TINY, attention_bias=True, mlp_bias=True),
}
PROMPT, NUM_TOKENS, CLOSE = 40, 24, 1e-2


def llama_cpps_answer(path, prompt: list[int]) -> list[int]:
    """What llama.cpp's server finds likeliest, token by token."""
    xllamacpp = pytest.importorskip("xllamacpp")
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(path)
    parameters.n_ctx, parameters.n_parallel, parameters.warmup = 128, 1, False
    parameters.cpuparams.n_threads = 1
    server = xllamacpp.Server(parameters)
    body = {"prompt": prompt, "n_predict": NUM_TOKENS, "temperature": 0.0, "return_tokens": True, "ignore_eos": True}
    request = urllib.request.Request(server.listening_address + "/completion", json.dumps(body).encode())
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)["tokens"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_llama_cpp_goes_on_with_the_same_tokens_until_two_are_equally_likely(variant, tmp_path):
    torch.manual_seed(0)
    tokenizer = Tokenizer.train(["some text about some words"], 600)
    model = LlamaForCausalLM(replace(VARIANTS[variant], vocab_size=tokenizer.vocab_size))
    initialize(model, 0)
    for parameter in model.parameters():
        parameter.data.add_(torch.randn(parameter.shape) * 0.15)
    checkpoint.save(model, tmp_path / "model", tokenizer)
    convert(tmp_path / "model", tmp_path / "model.gguf")
    prompt = torch.randint(0, 256, (PROMPT,)).tolist()
    answer = llama_cpps_answer(tmp_path / "model.gguf", prompt)
    assert len(answer) == NUM_TOKENS
    with torch.no_grad():
        logits = model(torch.tensor([prompt + answer]))[0, PROMPT - 1 : -1]
    for place, token in enumerate(answer):
        best = logits[place].topk(2)
        if token != int(best.indices[0]):
            assert best.values[0] - best.values[1] < CLOSE and place > 0
            return


@pytest.mark.parametrize("precision", ["q4_k_m", "q5_k_m", "q6_k"])
def test_llama_cpp_predicts_from_a_mix_what_herd_reads_in_it(precision, tmp_path):
    torch.manual_seed(0)
    tokenizer = Tokenizer.train(["some text about some words"], 600)
    config = replace(TINY, vocab_size=tokenizer.vocab_size, hidden_size=256, intermediate_size=512)
    model = LlamaForCausalLM(config)
    initialize(model, 0)
    checkpoint.save(model, tmp_path / "model", tokenizer)
    convert(tmp_path / "model", tmp_path / "model.gguf", precision=precision)
    prompt = torch.randint(0, 256, (PROMPT,)).tolist()
    answer = llama_cpps_answer(tmp_path / "model.gguf", prompt)
    again = checkpoint.load(tmp_path / "model.gguf", dtype=torch.float32)
    with torch.no_grad():
        logits = again(torch.tensor([prompt + answer]))[0, PROMPT - 1 : -1]
    for row, token in zip(logits, answer, strict=True):
        if token != int(row.argmax()):  # it rounds what it multiplies to 8 bits
            assert row.max() - row[token] < 0.05 * row.std()
            return
