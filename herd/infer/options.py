"""The engine's options, checked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.distributed as dist

from herd.errors import CapacityError, ConfigError
from herd.kernels import device as device_kernels
from herd.ops.compressed import LAYERS, Scheme

_CPU_PROMPT_TOKENS, _GPU_PROMPT_TOKENS = 512, 4096  # per step, by default


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of `Engine`, under the same names; its docstring says what each means.

    Raises:
        ConfigError: a limit is below 1, or the cache has no such dtype.
    """

    cache_bytes: int | None = None
    max_sequences: int = 256
    max_prompt_tokens: int | None = None
    max_context: int | None = None
    cache_dtype: Literal["int8"] | None = None
    deterministic: bool = False
    speculate: Path | str | None = None
    graphs: bool | None = None
    group: dist.ProcessGroup | None = None

    def __post_init__(self) -> None:
        for name in ("max_sequences", "max_prompt_tokens", "max_context"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name}={value}: must be at least 1")
        if self.cache_dtype not in (None, "int8"):
            raise ConfigError(f"cache_dtype={self.cache_dtype}: expected int8, or nothing for the model's own dtype")

    def prompt_tokens_on(self, device: torch.device) -> int:
        """Most prompt tokens that one step prefills."""
        return self.max_prompt_tokens or (_GPU_PROMPT_TOKENS if device.type == "cuda" else _CPU_PROMPT_TOKENS)

    def graphs_on(self, device: torch.device) -> bool:
        """Whether decode steps are replayed as CUDA graphs: by default on a GPU.

        With `deterministic`, only where our kernels compute attention: PyTorch's rounds differently in a graph's
        padded shape, so that answers would depend on when the graph was recorded.
        """
        if self.graphs is not None:
            return self.graphs
        if device.type != "cuda" or self.group is not None:
            return False
        return not self.deterministic or device_kernels.serves(torch.empty(0, device=device))


def check_device(device: str) -> None:
    """Refuse a device that this machine does not have.

    Raises:
        ConfigError, CapacityError: there is no such kind of device, or PyTorch finds no GPU.
    """
    try:
        kind = torch.device(device).type
    except RuntimeError:
        raise ConfigError(f"device={device}: no such device; expected cpu or cuda") from None
    if kind not in ("cpu", "cuda"):
        raise ConfigError(f"device={device}: the engine runs on cpu and cuda")
    if kind == "cuda" and not torch.cuda.is_available():
        raise CapacityError(f"device={device}: PyTorch finds no GPU here; leave device out to run on the CPU")


def check_scheme(quantize: Scheme | None) -> None:
    """Refuse an unknown quantization scheme.

    Raises:
        ConfigError: there is no such scheme.
    """
    if quantize is not None and quantize not in LAYERS:
        raise ConfigError(f"quantize={quantize}: expected {', '.join(LAYERS)} or nothing")
