"""Hardware for training: devices and the links between them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Device:
    """One device. Rates in FLOP/s and bytes/s (links: one direction), sizes in bytes, power in watts."""

    name: str
    flops: float
    memory: float
    memory_bandwidth: float
    inner_link: float
    outer_link: float
    per_server: int
    watts: float

    def __post_init__(self):
        if min(self.flops, self.memory, self.memory_bandwidth, self.inner_link, self.outer_link) <= 0:
            raise ValueError(f"{self.name}: rates and sizes of a device must be positive")


DEVICES = {
    "h100": Device("H100 SXM", 989e12, 80e9, 3.35e12, 450e9, 50e9, 8, 700),
    "h200": Device("H200 SXM", 989e12, 141e9, 4.8e12, 450e9, 50e9, 8, 700),
    "b200": Device("B200 SXM", 2250e12, 180e9, 7.7e12, 900e9, 50e9, 8, 1000),
    "a100": Device("A100 80GB SXM", 312e12, 80e9, 2.04e12, 300e9, 25e9, 8, 400),
    "rtx4090": Device("RTX 4090", 165e12, 24e9, 1.01e12, 25e9, 3e9, 8, 450),
}
"""Dense bf16 peaks, memory and links from the vendors' data sheets; usual outer links: 400 Gb/s for an H100 (Llama 3
paper, section 3.3.1), 200 Gb/s for an A100, PCIe 4 and 25 Gb/s for a gaming card."""
