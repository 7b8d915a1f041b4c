"""Compiled training: what a C++ or Triton compiler makes faster, where there is one; the same losses to rounding.

Two things can be compiled. The kernels for the CPU (`herd/kernels/native.py`: attention, and what stands between the
matmuls) take seconds once and are kept, so `auto` uses them wherever they are to be had. `torch.compile` fuses what
stands before and after attention in each block; it takes up to a minute at each start, gains much on a GPU and little
on a CPU, so `auto` uses it on a GPU alone.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
from functools import partial
from typing import Any, Literal

import torch
from torch.utils.checkpoint import checkpoint

from herd.errors import ConfigError
from herd.kernels.native import find_compiler, without_kernels
from herd.log import say
from herd.model.llama import Llama
from herd.ops.attention import block_attention, packed_attention
from herd.ops.float8 import use_float8

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h

Compile = Literal["auto", "on", "off"]


def compile_model(model: Llama, wish: Compile) -> str:
    """Make a Llama's blocks as fast as was wished, in place; returns in words what is compiled.

    Raises:
        ConfigError: `on`, and there is no compiler.
    """
    device = next(model.parameters()).device.type
    fault = missing_compiler(device)
    if wish == "on" and fault:
        raise ConfigError(f"compile is `on`, but {fault}; install it, or set compile to `auto` or `off`")
    blocks: list[Any] = list(model.model.layers)
    if wish == "off":
        for block in blocks:
            if block.self_attn.attend is packed_attention and device == "cpu":
                block.self_attn.attend = block_attention
            block.before_attention = without_kernels(block.before_attention)
            block.after_attention = without_kernels(block.after_attention)
        setattr(model, "run", without_kernels(model.run))  # noqa: B010  (a method to the type checker)
        return "nothing"
    if wish == "on" or (device == "cuda" and not fault):
        for block in blocks:  # the compiled code is one for all of them: each brings its own weights
            block.before_attention = torch.compile(block.before_attention)
            block.after_attention = torch.compile(block.after_attention)
        return "blocks"
    return "kernels" if device == "cpu" and not fault else "nothing"


def keep_freed_memory() -> None:
    """Let the process keep what it frees for what it needs next: fresh pages cost a step on the CPU a few percent.

    Whoever tunes glibc by its own variables (`MALLOC_...`) has the last word.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt") and not any(name.startswith("MALLOC_") for name in os.environ):
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, -1)


def recompute_layers(model: Llama, every: int) -> None:
    """Let every so-manieth block of a Llama keep only its input and compute the rest again backwards, in place."""
    for index, block in enumerate(model.model.layers):
        if every and index % every == 0:
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)


def choose_float8(model: Llama, micro_tokens: int) -> None:
    """Multiply in float8 where it gains on this GPU, and say so.

    Raises:
        ConfigError: the model is not on a GPU that has float8.
    """
    device = next(model.parameters()).device
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 9):
        raise ConfigError("dtype is fp8, which needs an NVIDIA GPU of compute capability 8.9 or more; use bf16 here")
    for shape, gain in use_float8(model, micro_tokens).items():
        say(f"  float8 for {shape[0]:,} x {shape[1]:,}: {gain:.2f} times as fast")


def missing_compiler(device: str) -> str | None:
    """What `torch.compile` lacks on a device, in words; None where it can run."""
    if device == "cpu":
        return None if find_compiler() else "there is no C++ compiler (g++)"
    return None if importlib.util.find_spec("triton") else "the package `triton` is not installed"
