"""Triton kernels agree with their twins: in Triton's interpreter on a CPU, compiled on a GPU.

The interpreter must be chosen before Triton is imported, so on a CPU a test runs this file again in a process of its
own.
"""

import importlib.util
import os
import subprocess
import sys

import pytest
import torch

from herd.kernels import device as device_kernels
from herd.ops.paged_attention import (
    DecodeGroup,
    LayerCache,
    PagedContext,
    PromptChunk,
    paged_attention,
    prompt_mask,
    quantize_heads,
    reference_paged_attention,
)
from herd.ops.quantized import (
    int4_linear,
    quantize_groups,
    quantize_rows,
    quantized_linear,
    reference_int4_linear,
    reference_quantized_linear,
)
from herd.ops.rms_norm import reference_rms_norm, rms_norm
from herd.ops.rope import apply_rotary, reference_apply_rotary
from herd.ops.swiglu import reference_swiglu, swiglu

HAS_TRITON = importlib.util.find_spec("triton") is not None
DEVICE = "cpu" if device_kernels.IS_INTERPRETED else "cuda"
TYPES = [torch.float32, torch.bfloat16]

on_a_device = pytest.mark.gpu if not device_kernels.IS_INTERPRETED else lambda test: test
"""In the interpreter these tests run as they are; without it they need a GPU."""


@pytest.mark.slow
@pytest.mark.skipif(not HAS_TRITON, reason="the package triton is not installed")
@pytest.mark.skipif(device_kernels.IS_INTERPRETED, reason="this is the interpreter")
def test_the_kernels_agree_with_their_twins_in_tritons_interpreter():
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", __file__]
    done = subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout + done.stderr


@pytest.fixture(autouse=True)
def _kernels_and_nothing_else(request):
    """Wait for compilers, and see to it that what ran was the kernels."""
    if "interpreter" in request.node.name or "compile" in request.node.name or "without" in request.node.name:
        yield
        return
    with torch.no_grad(), device_kernels.waiting():
        yield
    assert not device_kernels._compilations.failed


def near(got: torch.Tensor, expected: torch.Tensor) -> None:
    """Within rounding; the interpreter cuts where a GPU rounds."""
    tolerance = 1e-5 if got.dtype == torch.float32 else 2e-2
    assert got.dtype == expected.dtype and got.isfinite().all()
    assert (got.float() - expected.float()).norm() <= tolerance * expected.float().norm()


def filled_cache(shape: tuple[int, ...], dtype: torch.dtype, int8: bool) -> LayerCache:
    keys, values = torch.randn(2, *shape, dtype=dtype)
    if not int8:
        return LayerCache(keys.to(DEVICE), values.to(DEVICE))
    (keys, key_scales), (values, value_scales) = quantize_heads(keys), quantize_heads(values)
    return LayerCache(*(tensor.to(DEVICE) for tensor in (keys, values, key_scales, value_scales)))


@on_a_device
@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("heads", "kv_heads", "channels"), [(4, 2, 16), (6, 1, 24), (2, 2, 64)])
def test_paged_attention_is_the_twins(dtype, int8, heads, kv_heads, channels):
    torch.manual_seed(0)
    cache = filled_cache((45, 16, kv_heads, channels), dtype, int8)
    copy = LayerCache(*(None if part is None else part.cpu() for part in cache))
    lengths = torch.tensor([1, 16, 33, 300, 640])
    blocks = torch.stack([torch.randperm(40) for _ in lengths])
    blocks[:, 0] = torch.arange(40, 45)  # each its own last one, so that nobody writes where another reads
    for row, length in enumerate(lengths.tolist()):
        last = (length - 1) // 16
        blocks[row, [0, last]] = blocks[row, [last, 0]]
    slots = torch.stack([blocks[n, (x - 1) // 16] * 16 + (x - 1) % 16 for n, x in enumerate(lengths.tolist())])
    q, k, v = (torch.randn(1, 5, count, channels, dtype=dtype) for count in (heads, kv_heads, kv_heads))
    context = PagedContext(slots, (DecodeGroup(slice(0, 5), blocks, lengths),))
    expected = reference_paged_attention(q, k, v, context, copy)
    there = PagedContext(slots.to(DEVICE), (DecodeGroup(slice(0, 5), blocks.to(DEVICE), lengths.to(DEVICE)),))
    got = paged_attention(q.to(DEVICE), k.to(DEVICE), v.to(DEVICE), there, cache).cpu()
    near(got, expected)
    for one, other in zip(cache, copy, strict=True):
        assert one is None or torch.equal(one.cpu(), other)


@on_a_device
def test_a_sequences_attention_depends_on_its_own_length_alone():
    from herd.kernels import triton_attention

    torch.manual_seed(0)
    cache = filled_cache((400, 16, 2, 16), torch.float32, int8=False)
    blocks, q = torch.randperm(400)[None].to(DEVICE), torch.randn(1, 4, 16, device=DEVICE)
    lengths = torch.tensor([700], device=DEVICE)
    alone = triton_attention.attend(q, *cache, blocks[:, :44], lengths)
    wide = triton_attention.attend(
        torch.cat((q, q + 1)), *cache, blocks.repeat(2, 1), torch.cat((lengths, lengths + 5000))
    )
    assert torch.equal(alone[0], wide[0])


@on_a_device
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("num_columns", "inner", "tokens"), [(100, 96, 1), (64, 640, 17), (70, 1024, 70)])
def test_products_with_small_weights_are_the_twins(dtype, num_columns, inner, tokens):
    torch.manual_seed(0)
    weight, x = torch.randn(num_columns, inner), torch.randn(1, tokens, inner, dtype=dtype)
    for quantize, product, twin in (
        (quantize_rows, quantized_linear, reference_quantized_linear),
        (quantize_groups, int4_linear, reference_int4_linear),
    ):
        parts = quantize(weight)
        got = product(x.to(DEVICE), *(part.to(DEVICE) for part in parts)).cpu()
        near(got, twin(x, *parts))


@on_a_device
@pytest.mark.parametrize("dtype", TYPES)
def test_what_stands_between_products_is_the_twins(dtype):
    torch.manual_seed(0)
    x, weight = torch.randn(1, 3, 96, dtype=dtype), torch.randn(96, dtype=dtype)
    near(rms_norm(x.to(DEVICE), weight.to(DEVICE), 1e-5).cpu(), reference_rms_norm(x, weight, 1e-5))
    gate, up = torch.randn(2, 1, 3, 1000, dtype=dtype)
    near(swiglu(gate.to(DEVICE), up.to(DEVICE)).cpu(), reference_swiglu(gate, up))
    x, angles = torch.randn(1, 3, 4, 24, dtype=dtype), torch.randn(1, 3, 1, 12)
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    table = torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)
    near(apply_rotary(x.to(DEVICE), *(part.to(DEVICE) for part in table)).cpu(), reference_apply_rotary(x, *table))


@on_a_device
def test_an_engine_of_kernels_answers_like_one_of_plain_pytorch(monkeypatch):
    from herd.infer.build import quantize_layers
    from herd.infer.engine import Engine
    from herd.types import SamplingParams
    from tests.infer.models import small_tokenizer, tiny_model

    params = SamplingParams(temperature=0, max_tokens=4)
    for scheme, cache_dtype in ((None, None), ("int8", "int8"), ("int4", None)):
        answers = []
        for has_kernels in (True, False):
            model = tiny_model().to(DEVICE)
            if scheme is not None:
                quantize_layers(model, scheme)
            with monkeypatch.context() as patch:
                if not has_kernels:
                    patch.setattr(device_kernels, "serves", lambda x: False)
                engine = Engine.of(model, small_tokenizer(), cache_dtype=cache_dtype, graphs=True, max_sequences=2)
                answers.append([answer.tokens for answer in engine.generate(["The quick", "q"], params)])
        assert answers[0] == answers[1]


def test_a_later_chunk_sees_the_same_without_a_mask_that_is_made():
    torch.manual_seed(0)
    pool = [torch.randn(4, 16, 2, 16) for _ in range(2)]
    slots, (q, k, v) = torch.arange(23, 30), (torch.randn(1, 7, heads, 16) for heads in (4, 2, 2))
    outs = []
    for device in ("cpu", "cuda"):
        chunk = PromptChunk(slice(0, 7), torch.tensor([0, 1]), 23, prompt_mask(23, 7, device))
        cache = LayerCache(*(part.clone() for part in pool))
        with torch.inference_mode():
            outs.append(paged_attention(q, k, v, PagedContext(slots, prompts=(chunk,)), cache))
    torch.testing.assert_close(*outs)


def test_a_tensor_on_a_cpu_is_served_without_kernels():
    assert device_kernels.serves(torch.zeros(1)) == device_kernels.IS_INTERPRETED


@pytest.mark.skipif(device_kernels.IS_INTERPRETED, reason="the interpreter compiles nothing")
def test_until_a_kernel_is_compiled_nobody_waits_and_afterwards_it_runs(monkeypatch):
    import threading

    from herd.kernels.device import Launch, _Compilations, run, waiting

    launched, may_compile = [], threading.Event()

    class Kernel:
        __name__ = "kernel"

        def __getitem__(self, grid):
            return lambda *arguments, **constants: launched.append(grid)

    class Refused(Kernel):
        __name__ = "refused"

    def compile_launch(launch):
        may_compile.wait()
        if launch.kernel.__name__ == "refused":
            raise ValueError("no such instruction")

    monkeypatch.setattr(device_kernels, "_compilations", _Compilations())
    monkeypatch.setattr(device_kernels, "compile_launch", compile_launch)
    good, bad = (Launch(kernel(), (1,), (torch.zeros(1),), {"SIZE": 1}) for kernel in (Kernel, Refused))
    assert not run([good]) and not run([bad]) and device_kernels.are_pending()
    may_compile.set()
    with waiting():
        assert run([good]) and not run([bad])
    assert launched == [(1,)] and not device_kernels.are_pending()
    assert device_kernels._compilations.failed[bad.key] == "refused: no such instruction"
    assert not run([good._replace(constants={"SIZE": 2})])  # another shape is another kernel


@pytest.mark.skipif(not HAS_TRITON, reason="the package triton is not installed")
@pytest.mark.skipif(device_kernels.IS_INTERPRETED, reason="the interpreter compiles nothing")
@pytest.mark.parametrize("int8", [False, True])
def test_kernels_compile_for_a_gpu_that_is_not_here(monkeypatch, int8):
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.compiler import compile as compile_source

    from herd.kernels import triton_attention, triton_layers, triton_linear

    seen = []

    def compile_all(launches):
        names = {torch.bfloat16: "*bf16", torch.float32: "*fp32", torch.int8: "*i8", torch.uint8: "*u8"}
        for launch in launches:
            options = {name: launch.constants[name] for name in ("num_warps", "num_stages") if name in launch.constants}
            constants = {name: value for name, value in launch.constants.items() if name not in options}
            types = [
                names.get(part.dtype, "*i64")
                if isinstance(part, torch.Tensor)
                else {float: "fp32"}.get(type(part), "i32")
                for part in launch.arguments
            ]
            signature = dict(zip(launch.kernel.arg_names, types, strict=False)) | dict.fromkeys(constants, "constexpr")
            source = ASTSource(fn=launch.kernel, signature=signature, constexprs=constants)
            compiled = compile_source(source, target=GPUTarget("cuda", 90, 32), options=options)
            assert compiled.metadata.shared <= 227 * 1024  # what a program may have on an H100 or H200
            seen.append(launch.kernel.__name__)
        return False

    for module in (triton_attention, triton_layers, triton_linear):
        monkeypatch.setattr(module, "run", compile_all)
    bf16 = {"dtype": torch.bfloat16}
    pool = torch.zeros(4, 16, 8, 128, dtype=torch.int8 if int8 else torch.bfloat16)
    scales = torch.zeros(4, 16, 8, **bf16) if int8 else None
    row, number = torch.zeros(1, 8, 128, **bf16), torch.ones(1, dtype=torch.int64)
    triton_attention.attend(torch.zeros(1, 32, 128, **bf16), pool, pool, scales, scales, number[None], number)
    triton_attention.write(row, row, number, pool, pool, scales, scales)
    for tokens in (1, 64):
        x = torch.zeros(tokens, 1024, **bf16)
        if int8:
            triton_linear.int8_linear(x, torch.zeros(256, 1024, dtype=torch.int8), torch.zeros(256, **bf16))
        else:
            triton_linear.int4_linear(x, torch.zeros(256, 512, dtype=torch.uint8), torch.zeros(256, 32, **bf16))
    triton_layers.rms_norm(x, x[0], 1e-5)
    triton_layers.silu_times(x, x)
    triton_layers.rotary(row[None], row[None, :, :1], row[None, :, :1])
    assert len(seen) == 10
