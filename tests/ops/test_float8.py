"""Float8 products: the twin on a CPU, `torch._scaled_mm` beside it on a GPU, the probe's choice."""

import pytest
import torch
from torch import nn

from herd.ops.float8 import Float8Linear, float8_linear, quantize_rows, reference_scaled_mm, scaled_mm, use_float8
from tests.train.tiny import tiny_model


def test_rows_use_the_whole_range_of_float8_and_come_back_near():
    torch.manual_seed(0)
    x = torch.randn(6, 64) * torch.logspace(-6, 6, 6)[:, None]
    narrow, scale = quantize_rows(x)
    assert narrow.dtype == torch.float8_e4m3fn
    assert (narrow.float().abs().amax(1) == 448).all()
    assert ((narrow.float() * scale - x).abs() <= 0.04 * x.abs().amax(1, keepdim=True)).all()
    assert torch.equal(quantize_rows(torch.zeros(2, 16))[0].float(), torch.zeros(2, 16))


def test_a_product_and_its_gradients_are_near_those_of_float32():
    torch.manual_seed(0)
    x, weight = torch.randn(2, 40, 64, requires_grad=True), torch.randn(48, 64, requires_grad=True)
    target = torch.randn(2, 40, 48)
    exact = torch.autograd.grad((nn.functional.linear(x, weight) * target).sum(), (x, weight))
    out = float8_linear(x, weight)
    found = torch.autograd.grad((out * target).sum(), (x, weight))
    expected = nn.functional.linear(x, weight)
    assert (out - expected).norm() < 0.05 * expected.norm()
    assert (found[0] - exact[0]).norm() < 0.05 * exact[0].norm()
    torch.testing.assert_close(found[1], exact[1])  # the weight's gradient is not rounded


def test_only_shapes_that_gain_are_changed_and_names_stay():
    model = tiny_model()
    names = list(model.state_dict())
    gains = use_float8(model, 128, lambda kind, tokens, out, inputs: 2.0 if kind == "bf16" and out == 64 else 1.0)
    assert gains[(64, 32)] == 2.0 and gains[(32, 64)] == 1.0
    block = model.model.layers[1]
    assert isinstance(block.mlp.up_proj, Float8Linear) and not isinstance(block.mlp.down_proj, Float8Linear)
    assert list(model.state_dict()) == names
    tokens = torch.arange(3, 35)[None]
    assert (model(tokens) - tiny_model()(tokens)).norm() < 0.1 * tiny_model()(tokens).norm()


@pytest.mark.gpu
def test_on_a_gpu_the_product_is_the_twins():
    torch.manual_seed(0)
    a, b = (torch.randn(256, 512, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    wanted = reference_scaled_mm(a, b).float()
    assert (scaled_mm(a, b).float() - wanted).norm() < 0.01 * wanted.norm()  # both are rounded to bfloat16
