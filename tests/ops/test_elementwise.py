"""RMSNorm and rotary embedding against their twins; the machine probe."""

import pytest
import torch

from herd.ops import probe
from herd.ops.rms_norm import reference_rms_norm, rms_norm
from herd.ops.rope import apply_rotary, reference_apply_rotary

TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 2e-2}


def compare(fast, twin, inputs, dtype):
    """Values and gradients; the twin computes in float32 from the same (rounded) inputs."""
    leaves = [x.to(dtype).requires_grad_() for x in inputs]
    wide = [x.detach().float().requires_grad_() for x in leaves]
    got, expected = fast(*leaves), twin(*wide)
    upstream = torch.randn(expected.shape).to(dtype)
    pairs = [(got, expected)]
    pairs += zip(
        torch.autograd.grad(got, leaves, upstream), torch.autograd.grad(expected, wide, upstream.float()), strict=True
    )
    for ours, theirs in pairs:
        assert ours.dtype == dtype
        scale = max(1.0, theirs.abs().max().item())
        torch.testing.assert_close(ours.float(), theirs, atol=TOLERANCE[dtype] * scale, rtol=0)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_rms_norm_equals_its_twin(dtype):
    torch.manual_seed(0)
    x, weight = torch.randn(3, 50, 96) * 3 + 1, torch.rand(96) + 0.5
    compare(lambda a, b: rms_norm(a, b, 1e-5), lambda a, b: reference_rms_norm(a, b, 1e-5), [x, weight], dtype)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_rotary_equals_its_twin(dtype):
    torch.manual_seed(0)
    angles = torch.randn(2, 9, 1, 8)
    cos = torch.cat((angles.cos(), angles.cos()), -1).to(dtype)
    sin = torch.cat((-angles.sin(), angles.sin()), -1).to(dtype)
    turn, twin = (lambda x: apply_rotary(x, cos, sin)), (lambda x: reference_apply_rotary(x, cos.float(), sin.float()))
    compare(turn, twin, [torch.randn(2, 9, 4, 16)], dtype)


def test_the_probe_measures_positive_rates_and_names_a_dtype():
    assert probe.matmul_rate(torch.float32, size=64, seconds=0.01) > 1e6
    assert probe.memory_bandwidth(seconds=0.01, megabytes=4) > 1e6
    assert probe.best_dtype() in (torch.float32, torch.bfloat16)
