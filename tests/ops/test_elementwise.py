"""RMSNorm, rotary embedding and SwiGLU against their twins, with the C++ kernels and without; the machine probe."""

import pytest
import torch

from herd.kernels.native import find_compiler, layer_kernels, without_kernels
from herd.ops import probe
from herd.ops.rms_norm import reference_rms_norm, rms_norm
from herd.ops.rope import apply_rotary, reference_apply_rotary
from herd.ops.swiglu import reference_swiglu, swiglu

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


@pytest.fixture(params=["with kernels", "without"])
def paths(request):
    """A function with the kernels, where this machine has them, and in plain PyTorch."""
    return (lambda f: f) if request.param == "with kernels" else without_kernels


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_rms_norm_equals_its_twin(dtype, paths):
    torch.manual_seed(0)
    x, weight = torch.randn(3, 50, 96) * 3 + 1, torch.rand(96) + 0.5
    fast = paths(lambda a, b: rms_norm(a, b, 1e-5))
    compare(fast, lambda a, b: reference_rms_norm(a, b, 1e-5), [x, weight], dtype)


@pytest.mark.parametrize("channels", [16, 32, 96])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_rotary_equals_its_twin(dtype, channels, paths):
    torch.manual_seed(0)
    angles = torch.randn(2, 9, 1, channels // 2)
    cos = torch.cat((angles.cos(), angles.cos()), -1).to(dtype)
    sin = torch.cat((-angles.sin(), angles.sin()), -1).to(dtype)
    turn = paths(lambda x: apply_rotary(x, cos, sin))
    compare(
        turn, lambda x: reference_apply_rotary(x, cos.float(), sin.float()), [torch.randn(2, 9, 4, channels)], dtype
    )


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_swiglu_equals_its_twin(dtype, paths):
    torch.manual_seed(0)
    gate, up = torch.randn(3, 50, 96) * 4, torch.randn(3, 50, 96)
    gate[0, :4] = torch.tensor([200.0, -200.0, 90.0, -90.0])[:, None]  # where e^x has no float32
    compare(paths(swiglu), reference_swiglu, [gate, up], dtype)


@pytest.mark.skipif(
    not torch.cpu._is_avx512_bf16_supported() or find_compiler() is None, reason="no AVX-512 BF16 or no C++ compiler"
)
def test_the_kernels_take_whole_plain_bfloat16_tensors_and_can_be_switched_off():
    x = torch.ones(4, 32, dtype=torch.bfloat16)
    assert layer_kernels(x, torch.nn.Parameter(x)) is not None
    assert layer_kernels(x.float()) is None
    assert layer_kernels(x, x[:, :24]) is None
    assert layer_kernels(x, x[:, 16:]) is None
    assert layer_kernels(x.to("meta")) is None
    assert without_kernels(layer_kernels)(x) is None
    assert layer_kernels(x) is not None


@pytest.mark.skipif(
    not torch.cpu._is_avx512_bf16_supported() or find_compiler() is None, reason="no AVX-512 BF16 or no C++ compiler"
)
def test_rms_norm_by_the_kernel_is_rounded_only_once():
    torch.manual_seed(0)
    x, weight = torch.randn(64, 96).bfloat16(), torch.rand(96).bfloat16().requires_grad_()
    exact = reference_rms_norm(x.double(), weight.double(), 1e-5)
    assert ((rms_norm(x, weight, 1e-5).double() - exact).abs() <= exact.abs() * 2**-8).all()


def test_the_probe_counts_the_operations_and_bytes_of_what_it_times(monkeypatch):
    done = []

    def half_a_second(work, seconds, device):
        done.append(work())
        return 0.5

    monkeypatch.setattr(probe, "best_seconds", half_a_second)
    assert probe.matmul_rate(torch.float32, size=64, seconds=0.01) == 2 * 64**3 / 0.5
    assert probe.memory_bandwidth(seconds=0.01, megabytes=4) == 2 * 4 * 2**20 / 0.5
    product, copy = done
    assert product.shape == (64, 64) and product.count_nonzero() > 0 and (copy == 1).all()


def test_the_faster_number_type_is_measured_by_one_thread_which_others_hardly_disturb(monkeypatch):
    threads = torch.get_num_threads()
    for faster in (torch.float32, torch.bfloat16):
        seen = []

        def rate(dtype, faster=faster, seen=seen, **how):
            seen.append(torch.get_num_threads())
            return 2.0 if dtype == faster else 1.0

        monkeypatch.setattr(probe, "matmul_rate", rate)
        probe.best_dtype.cache_clear()
        assert probe.best_dtype() == faster and set(seen) == {1}
        assert probe.quiet_matmul_rate(faster) == 2.0 * threads and torch.get_num_threads() == threads
    probe.best_dtype.cache_clear()
