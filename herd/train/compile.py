"""Compiled training, if a C++ or Triton compiler is installed; losses are the same up to rounding.

Two things can be compiled. The CPU kernels (`herd/kernels/native.py`: attention, and the operations between matmuls)
take seconds once and are cached, so `auto` uses them wherever they are available. `torch.compile` fuses the operations
before and after attention in each block; it takes up to a minute at each start, gains much on a GPU and little on a
CPU, so `auto` uses it only on a GPU.
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
    """Compile a Llama's blocks in place, as `wish` says; returns what is compiled, for a message.

    Raises:
        ConfigError: `wish` is `on`, but there is no compiler.
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
        for block in blocks:  # compiled once for all of them, with the weights as inputs
            block.before_attention = torch.compile(block.before_attention)
            block.after_attention = torch.compile(block.after_attention)
        return "blocks"
    return "kernels" if device == "cpu" and not fault else "nothing"


def keep_freed_memory() -> None:
    """Let malloc keep freed memory for reuse: page faults on fresh memory cost a few percent of a step on the CPU.

    Nothing is changed if glibc is tuned by its own variables (`MALLOC_...`).
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt") and not any(name.startswith("MALLOC_") for name in os.environ):
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, -1)


def recompute_layers(model: Llama, every: int) -> None:
    """Activation checkpointing in every `every`-th block of a Llama, in place; 0: in none."""
    for index, block in enumerate(model.model.layers):
        if every and index % every == 0:
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)


def choose_float8(model: Llama, micro_tokens: int) -> None:
    """Use float8 matmuls for the shapes where they are faster on this GPU, and report them.

    Raises:
        ConfigError: the model is not on a GPU with float8.
    """
    device = next(model.parameters()).device
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 9):
        raise ConfigError("dtype is fp8, which needs an NVIDIA GPU of compute capability 8.9 or more; use bf16 here")
    for shape, gain in use_float8(model, micro_tokens).items():
        say(f"  float8 for {shape[0]:,} x {shape[1]:,}: {gain:.2f} times as fast")


def missing_compiler(device: str) -> str | None:
    """What `torch.compile` lacks on a device, for a message; None if it can run."""
    if device == "cpu":
        return None if find_compiler() else "there is no C++ compiler (g++)"
    return None if importlib.util.find_spec("triton") else "the package `triton` is not installed"
