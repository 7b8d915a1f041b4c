"""Measuring this machine, and estimating what it can train and run."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from herd.model.config import ModelConfig, num_parameters
from herd.model.flops import flops_per_token
from herd.ops.probe import best_dtype, memory_bandwidth, quiet_matmul_rate
from herd.plan.cluster import Device
from herd.plan.project import Machine

# Share of the measured peak matmul rate that our training step reaches: on CPU from benchmarks/results/train_step
# (small matrices, eager), on GPU a conservative estimate for torch.compile in bf16.
TRAINING_EFFICIENCY = {"cpu": 0.45, "cuda": 0.4}
TOKENS_PER_PARAMETER = 20  # compute-optimal training (Hoffmann et al. 2022; Llama 3 trains its small models longer)
_CONTEXT_TOKENS = 1024

# Bytes per parameter: weights in the training dtype, fp32 masters, two moments and gradients.
_TRAINING_BYTES = {torch.bfloat16: 2 + 4 + 4 + 4 + 2, torch.float32: 4 + 4 + 4 + 4}
_ACTIVATION_BYTES = 400_000_000


def _shape(
    hidden: int, layers: int, heads: int, kv_heads: int, feed_forward: int, rows: int, tied: bool = True
) -> ModelConfig:
    return ModelConfig(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        intermediate_size=feed_forward,
        vocab_size=rows,
        tie_word_embeddings=tied,
    )


SIZES = {
    "demo 5M": _shape(256, 4, 4, 2, 704, 8192),
    "15M": _shape(320, 8, 5, 5, 896, 16_384),
    "60M": _shape(512, 12, 8, 4, 1536, 32_768),
    "125M": _shape(768, 12, 12, 4, 2048, 49_152),
    "1B": _shape(2048, 16, 32, 8, 8192, 128_256),
    "3B": _shape(3072, 28, 24, 8, 8192, 128_256),
    "8B": _shape(4096, 32, 32, 8, 14_336, 128_256, tied=False),
    "70B": _shape(8192, 80, 64, 8, 28_672, 128_256, tied=False),
}
"""The shapes in the table; 1B and 3B are Llama 3.2's, 8B and 70B Llama 3.1's."""


@dataclass(frozen=True)
class Measured:
    """A machine's hardware and measured rates. Rates in FLOP/s and bytes/s, sizes in bytes."""

    python: str
    torch: str
    system: str
    cores: int
    memory: int
    disk_free: int
    gpu: str | None
    gpu_memory: int
    compiler: str | None
    matmul_fp32: float
    matmul_bf16: float
    bandwidth: float

    @property
    def device(self) -> str:
        return "cuda" if self.gpu else "cpu"

    @property
    def room(self) -> int:
        """Memory for models: the GPU's if there is one."""
        return self.gpu_memory if self.gpu else self.memory


def measure() -> Measured:
    """Measure this machine."""
    gpu = torch.cuda.is_available()
    device = "cuda" if gpu else "cpu"
    return Measured(
        python=platform.python_version(),
        torch=torch.__version__,
        system=platform.platform(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        memory=_memory_bytes(),
        disk_free=shutil.disk_usage(Path.cwd()).free,
        gpu=torch.cuda.get_device_name() if gpu else None,
        gpu_memory=torch.cuda.get_device_properties(0).total_memory if gpu else 0,
        compiler=next((path for name in ("c++", "g++", "clang++") if (path := shutil.which(name))), None),
        matmul_fp32=quiet_matmul_rate(torch.float32, device),
        matmul_bf16=quiet_matmul_rate(torch.bfloat16, device),
        bandwidth=memory_bandwidth(device=device),
    )


def ability(name: str, config: ModelConfig, machine: Measured) -> dict[str, Any]:
    """Estimated cost of training and running one size on a machine, from its measured rates."""
    parameters = num_parameters(config)
    dtype = best_dtype(machine.device)
    rate = machine.matmul_bf16 if dtype == torch.bfloat16 else machine.matmul_fp32
    tokens = parameters * TOKENS_PER_PARAMETER
    flops = flops_per_token(config, _CONTEXT_TOKENS) * tokens
    training_bytes = parameters * _TRAINING_BYTES[dtype] + _ACTIVATION_BYTES
    running_bytes = parameters * 2
    return {
        "size": name,
        "parameters": parameters,
        "train_tokens": tokens,
        "train_seconds": flops / (rate * TRAINING_EFFICIENCY[machine.device]),
        "train_bytes": training_bytes,
        "train_fits": training_bytes < machine.room * 0.9,
        "run_bytes": running_bytes,
        "run_fits": running_bytes < machine.room * 0.9,
        "run_int8_fits": parameters < machine.room * 0.9,
        "tokens_per_second": machine.bandwidth / running_bytes,
    }


def this_machine(efficiency: float | None = None) -> Machine:
    """This machine, measured, as a target for a plan."""
    here = measure()
    bf16 = best_dtype(here.device) == torch.bfloat16
    rate = here.matmul_bf16 if bf16 else here.matmul_fp32
    name = here.gpu or f"this CPU, {here.cores} cores"
    device = Device(name, rate, here.room, here.bandwidth, here.bandwidth, here.bandwidth, 1, 15.0 * here.cores)
    used, own = efficiency or TRAINING_EFFICIENCY[here.device], {"restart_seconds": 10.0, "storage_bandwidth": 1e9}
    return Machine(device, 1, efficiency=used, weight_bytes=2 if bf16 else 4, on_gpu=here.gpu is not None, **own)


def _memory_bytes() -> int:
    if sys.platform == "darwin" or not hasattr(os, "sysconf"):
        return int(os.popen("sysctl -n hw.memsize").read() or 0)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
