"""Say what this machine has and what it can do with it.

Measures matmul rates, memory bandwidth and disk, looks for a GPU and a compiler, and works out which model sizes can be
trained and run here, how long that takes and what memory it needs. Takes about five seconds.
"""

from __future__ import annotations

import json as json_format
from pathlib import Path

from herd import sandbox
from herd.config import find_recipe, settings
from herd.demo.pace import SLOW
from herd.errors import CapacityError
from herd.log import amount, duration, size
from herd.markup import read_markup
from herd.plan.measured import SIZES, TOKENS_PER_PARAMETER, Measured, ability, measure

_DEMO_MEMORY_BYTES = 4_000_000_000


@settings
class DoctorSettings:
    """What to print."""

    json: bool = False
    """Print one JSON object instead of a table."""


def run(settings: DoctorSettings) -> int:
    """Print the findings; the exit status is 0 unless not even the demo can run here."""
    machine = measure()
    abilities = [ability(name, config, machine) for name, config in SIZES.items()]
    if settings.json:
        print(json_format.dumps({"machine": machine.__dict__, "can_do": abilities}, indent=1))
    else:
        print(_table(machine, abilities))
    if machine.memory < _DEMO_MEMORY_BYTES * 0.9:
        raise CapacityError(f"{size(machine.memory)} of memory here; even the demo needs {size(_DEMO_MEMORY_BYTES)}")
    return 0


def _table(machine: Measured, abilities: list[dict]) -> str:
    gpu = f"{machine.gpu}, {size(machine.gpu_memory)}" if machine.gpu else "none: everything runs on the CPU"
    lines = [
        f"Python {machine.python}, PyTorch {machine.torch}, {machine.system}",
        f"  cores        {machine.cores}",
        f"  memory       {size(machine.memory)}",
        f"  disk         {size(machine.disk_free)} free here",
        f"  GPU          {gpu}",
        f"  compiler     {machine.compiler or 'none: PyTorch runs eagerly, nothing here needs one'}",
        f"  matmul       {machine.matmul_bf16 / 1e9:,.0f} GFLOP/s in bf16, {machine.matmul_fp32 / 1e9:,.0f} in fp32",
        f"  bandwidth    {machine.bandwidth / 1e9:.1f} GB/s",
        f"  sandbox      {_sandbox()}",
        "",
        f"What it can do ({TOKENS_PER_PARAMETER} tokens a parameter; estimates from the rates above):",
        f"  {'size':<9}{'train from scratch':>20}{'memory':>15}   {'run (16 bit)':<13}{'speed':>12}",
    ]
    for row in abilities:
        train = _long(row["train_seconds"])
        fits = size(row["train_bytes"]) if row["train_fits"] else f"{size(row['train_bytes'])} (!)"
        runs = "fits" if row["run_fits"] else "fits as int8" if row["run_int8_fits"] else "too large"
        speed = f"{amount(row['tokens_per_second'])} tok/s" if row["run_int8_fits"] else ""
        lines.append(f"  {row['size']:<9}{train:>20}{fits:>15}   {runs:<13}{speed:>12}".rstrip())
    lines += ["", "(!) more memory than this machine has. Speed is the bandwidth limit of one conversation."]
    return "\n".join([*lines, "", *_next(abilities[0])])


def _next(demo: dict) -> list[str]:
    """What the demo does with its model here, which is not what the table's first line says."""
    rate = demo["train_tokens"] / demo["train_seconds"]
    planned = read_markup(find_recipe(Path("demo/story.yaml")))["seconds"]
    seconds = sum(planned[name] for name in ("pretrain", "longer-context", "anneal"))
    return [
        "Next: `herd demo` raises a model of that first size from raw pages in about ten minutes. It trains on what",
        f"fits into {duration(seconds)} of them, here about {amount(rate * seconds)} tokens "
        f"instead of {amount(demo['train_tokens'])}; below {SLOW:,} tokens a second the model is smaller.",
    ]


def _sandbox() -> str:
    """The strongest level for model code, its layers, and why the others are not there."""
    strongest, there = sandbox.strongest(), sandbox.available()
    lacking = "".join(f"; no {layer}: {why}" for layer, why in there.items() if why)
    return f"level {strongest} ({', '.join(sandbox.LAYERS[strongest])}){lacking}"


def _long(seconds: float) -> str:
    if seconds < 172_800:
        return duration(seconds)
    return f"{seconds / 86_400:.0f} days" if seconds < 400 * 86_400 else "years"
