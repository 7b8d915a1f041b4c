"""Compiled blocks: the losses and gradients of plain ones, one compilation for all layers, clear words without one."""

import pytest
import torch

from herd.errors import ConfigError
from herd.kernels.native import find_compiler
from herd.ops.attention import block_attention
from herd.train import compile as compiling
from herd.train.compile import choose_float8, compile_model, recompute_layers
from herd.train.objectives import next_token
from tests.train.tiny import tiny_loader, tiny_model


def loss_and_gradients(model):
    [batch] = tiny_loader(micro_tokens=10_000).batches(0)
    loss = model.run(next_token, batch)
    loss.sum.backward()
    return loss.sum.item(), {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.slow
@pytest.mark.skipif(find_compiler() is None, reason="no C++ compiler")
def test_compiled_blocks_have_the_losses_and_gradients_of_plain_ones():
    plain, compiled, tolerance = tiny_model(), tiny_model(), 1e-5
    assert compile_model(compiled, "on") == "blocks"
    (loss, grads), (got_loss, got) = loss_and_gradients(plain), loss_and_gradients(compiled)
    assert got_loss == pytest.approx(loss, rel=tolerance / 10)
    for name, grad in grads.items():
        assert (got[name] - grad).norm() <= tolerance * grad.norm(), name


@pytest.mark.slow
@pytest.mark.skipif(find_compiler() is None, reason="no C++ compiler")
def test_one_compilation_serves_all_layers_of_a_model_of_32():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model = tiny_model(num_hidden_layers=32)
    compile_model(model, "on")
    loss_and_gradients(model)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 4  # two regions, at most two compilations each


def test_off_means_plain_pytorch_and_auto_says_what_it_took(monkeypatch):
    model = tiny_model()
    assert compile_model(model, "off") == "nothing"
    assert all(block.self_attn.attend is block_attention for block in model.model.layers)
    monkeypatch.setattr(compiling, "find_compiler", lambda: None)
    assert compile_model(tiny_model(), "auto") == "nothing"
    with pytest.raises(ConfigError, match=r"compile is `on`, but there is no C\+\+ compiler"):
        compile_model(tiny_model(), "on")


@pytest.mark.parametrize("width", [32, 64])  # the kernel serves heads of 16 channels, not of 8
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_activations_computed_again_give_the_same_gradients(dtype, width):
    plain, again = (tiny_model(dtype=dtype, hidden_size=width) for _ in range(2))
    recompute_layers(again, 1)
    (loss, grads), (got_loss, got) = loss_and_gradients(plain), loss_and_gradients(again)
    assert got_loss == loss
    assert all(torch.equal(got[name], grad) for name, grad in grads.items())


def test_float8_where_there_is_no_gpu_for_it_is_refused():
    with pytest.raises(ConfigError, match="dtype is fp8, which needs an NVIDIA GPU"):
        choose_float8(tiny_model(), 128)
