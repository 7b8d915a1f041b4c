"""The energy a run uses, where the machine measures it: RAPL for processors, NVML for GPUs."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

_RAPL = Path("/sys/class/powercap")


class Energy:
    """Joules since the last reading, of all readable counters of this machine; false if there are none."""

    def __init__(self, rapl: Path = _RAPL):
        self._counters: list[_Rapl | _Nvml] = [
            _Rapl(zone) for zone in sorted(rapl.glob("intel-rapl:?")) if _readable(zone)
        ]
        self._counters += _gpus()

    def __bool__(self) -> bool:
        return bool(self._counters)

    def joules(self) -> float:
        """Joules since the last call (or since construction)."""
        return sum(counter.joules() for counter in self._counters)


class _Rapl:
    """A processor package; its counter of microjoules wraps around at a limit."""

    def __init__(self, zone: Path):
        self._file = zone / "energy_uj"
        self._limit = int((zone / "max_energy_range_uj").read_text())
        self._last = self._read()

    def joules(self) -> float:
        now = self._read()
        spent, self._last = (now - self._last) % self._limit, now
        return spent / 1e6

    def _read(self) -> int:
        return int(self._file.read_text())


class _Nvml:
    """A GPU; its counter of millijoules starts when the driver is loaded."""

    def __init__(self, nvml: Any, index: int):
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        self._read: Callable[[], float] = lambda: nvml.nvmlDeviceGetTotalEnergyConsumption(handle)
        self._last = self._read()

    def joules(self) -> float:
        now = self._read()
        spent, self._last = now - self._last, now
        return float(spent) / 1e3


def _readable(zone: Path) -> bool:
    """Whether the counter can be read; many machines allow that only to root."""
    try:
        return int((zone / "energy_uj").read_text()) >= 0 and (zone / "max_energy_range_uj").exists()
    except (OSError, ValueError):
        return False


def _gpus() -> list[_Nvml]:
    try:
        nvml = importlib.import_module("pynvml")
        nvml.nvmlInit()
        return [_Nvml(nvml, index) for index in range(nvml.nvmlDeviceGetCount())]
    except Exception:  # no package, driver or permission: NVML has an error class for each
        return []
