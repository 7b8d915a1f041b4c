"""A plan as text, and as JSON."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable

from herd.config import settings
from herd.log import amount, duration, size
from herd.model.config import ModelConfig
from herd.plan import published
from herd.plan.layout import PlanLayout
from herd.plan.project import Machine, PlannedPhase, Projection
from herd.plan.remedies import Remedy
from herd.train.optimizer import OptimizerSettings


@settings
class CostSettings:
    """Prices of electricity and devices; replace the defaults with your own."""

    rent: float = 2.5
    """Dollars per hour for a rented device."""
    price: float = 35_000
    """Dollars for a bought device with its share of server and network."""
    years: float = 4
    """Years over which a bought device is depreciated."""
    kwh: float = 0.10
    """Dollars per kilowatt-hour."""
    overhead: float = 1.3
    """Total power per watt of a device, with hosts, network and cooling."""
    carbon: float | None = None
    """Kilograms of CO2e per kilowatt-hour of a device, overheads included; default: implied by Meta's figures."""

    def __post_init__(self):
        if self.years <= 0:
            raise ValueError("years must be positive")
        if min(self.rent, self.price, self.kwh, self.overhead, self.carbon or 0) < 0:
            raise ValueError("rent, price, kwh, overhead and carbon must be 0 or more")


def as_dict(
    model: ModelConfig,
    machine: Machine,
    projection: Projection,
    best: list[PlannedPhase],
    cost: CostSettings,
    would_fit: list[Remedy],
) -> dict:
    """The plan as plain values, for JSON."""
    return {
        "parameters": projection.parameters,
        "weights_bytes": 2 * projection.parameters,
        "model": model.to_dict(),
        "device": machine.device.__dict__,
        "devices": machine.count,
        "efficiency": machine.efficiency,
        "tokens": projection.tokens,
        "phases": [planned.as_dict() for planned in projection.phases],
        "goodput": projection.goodput.__dict__,
        "interruptions": projection.interruptions,
        "seconds": projection.seconds,
        "device_hours": projection.device_hours,
        "cost": _cost(machine, projection, cost),
        "layouts": [planned.as_dict() for planned in best],
        "would_fit": [{"settings": remedy.words, "memory_bytes": remedy.bytes} for remedy in would_fit],
    }


def _cost(machine: Machine, projection: Projection, cost: CostSettings) -> dict[str, float]:
    hours = projection.device_hours
    device_kwh = hours * machine.device.watts / 1000
    return {
        "rented_dollars": hours * cost.rent,
        "bought_dollars": hours / (cost.years * 8766) * cost.price,
        "electricity_dollars": device_kwh * cost.overhead * cost.kwh,
        "kwh": device_kwh * cost.overhead,
        "co2e_kg": device_kwh * (published.CARBON_KG_PER_KWH if cost.carbon is None else cost.carbon),
    }


def table(
    model: ModelConfig,
    machine: Machine,
    projection: Projection,
    best: list[PlannedPhase],
    cost: CostSettings,
    would_fit: list[Remedy],
) -> str:
    """The plan as text of 80 columns."""
    lines = [
        *_wrapped(
            f"{amount(projection.parameters)} parameters ({projection.parameters:,}), "
            f"{size(2 * projection.parameters)} in bf16: {model.num_hidden_layers} layers of {model.hidden_size:,}, "
            f"{model.num_attention_heads} heads, {model.num_key_value_heads} for keys and values, feed-forward "
            f"{model.intermediate_size:,}, vocabulary {model.vocab_size:,}"
        ),
        f"{amount(projection.tokens)} tokens on {machine.count:,} x {machine.device.name} "
        f"({size(machine.device.memory)}, {machine.device.flops / 1e12:,.3g} TFLOP/s)",
        "",
    ]
    for planned in projection.phases:
        lines += _phase_lines(planned)
    if not all(planned.fits for planned in projection.phases):
        lines += remedy_lines(would_fit)
    lines += _total_lines(machine, projection, _cost(machine, projection, cost))
    if len(best) > 1:
        lines += ["", f"Layouts that fit, the fastest first ({projection.phases[0].phase.name}):"]
        for one in best:
            figures = (
                f"  {one.step.seconds:>7.2f} s/step  MFU {one.step.mfu:>5.1%}  {size(sum(one.memory.values())):>7}  "
            )
            lines += _wrapped(f"{figures}{one.layout}", indent=len(figures))
    share = f"Arithmetic is assumed to reach {machine.efficiency:.0%} of the peak (efficiency=...), as good"
    arithmetic = f"{share} kernels do; `herd plan --check` compares the projection with Meta's figures."
    lines += ["", *_legend(planned.layout for planned in [*projection.phases, *best]), "", *_wrapped(arithmetic, 0)]
    return "\n".join(lines)


_MEANINGS = {
    "TP": "tensor parallel: devices that split each layer's matrices",
    "CP": "context parallel: devices that split each row's tokens",
    "PP": "pipeline parallel: devices that split the layers",
    "DP": "data parallel: groups of devices that each get different rows",
    "V": "virtual stages: chunks of layers on each device of a pipeline",
    "copies": "groups of devices that each hold a whole model, sharded among them",
    "rows": "rows in a micro-batch of a device",
    "reshard": "gathered weights are freed between forward and backward pass",
    "recompute": "in the backward pass: light, norms and SwiGLU; full, whole layers",
    "MFU": "model FLOPs utilization: model FLOPs as a share of the peak",
}
"""The abbreviations in a plan's layouts."""


def _legend(layouts: Iterable[PlanLayout]) -> list[str]:
    """The legend for the abbreviations that these layouts use."""
    printed = {*re.findall(r"[A-Za-z]+", " ".join(map(str, layouts))), "MFU"}
    return [f"  {word:<10} {text}" for word, text in _MEANINGS.items() if word in printed]


def _wrapped(text: str, indent: int = 2) -> list[str]:
    """A text wrapped at 80 columns, with later lines indented."""
    return textwrap.wrap(
        text,
        80,
        subsequent_indent=" " * indent,
        break_long_words=False,
        break_on_hyphens=False,
        replace_whitespace=False,
    )


def _phase_lines(planned: PlannedPhase) -> list[str]:
    phase, step = planned.phase, planned.step
    terms = sorted(((name, s) for name, s in step.terms.items() if s > 0.0005 * step.seconds), key=lambda t: -t[1])
    parts = [(name, value) for name, value in planned.memory.items() if value > 0]
    rate = phase.batch_tokens / step.seconds
    return [
        f"{phase.name}: {phase.steps:,} steps of {amount(phase.batch_tokens)} tokens in rows of {phase.row_tokens:,}",
        *_wrapped(f"  layout   {planned.layout}", indent=11),
        f"  trained  {learned_words(phase.optimizer)}",
        *_wrapped(
            f"  step     {step.seconds:.3g} s, {amount(rate)} tokens/s, MFU {step.mfu:.1%}: "
            + ", ".join(f"{name} {seconds / step.seconds:.1%}" for name, seconds in terms),
            indent=11,
        ),
        *_wrapped(
            f"  memory   {size(sum(planned.memory.values()))} on the device that needs most: "
            + ", ".join(f"{name} {size(value)}" for name, value in parts)
            + ("" if planned.fits else "  (does not fit!)"),
            indent=11,
        ),
        f"  time     {long_duration(planned.seconds)}",
    ]


def remedy_lines(would_fit: list[Remedy]) -> list[str]:
    """The remedies as lines of text."""
    if not would_fit:
        return _wrapped(
            "  neither bf16 state, adapters, recomputation nor more such devices make it fit: use larger devices"
        )
    wide = max(len(remedy.words) for remedy in would_fit)
    lines = [f"    {r.words:<{wide}}  {size(r.bytes):>8}  {r.planned.step.seconds:.3g} s/step" for r in would_fit]
    return ["  it fits with any one of", *lines]


def learned_words(optimizer: OptimizerSettings) -> str:
    """What is trained, and the dtype of its state, in words."""
    state = "" if optimizer.state == "fp32" else ", state in bfloat16"
    if not optimizer.lora.rank:
        return "all weights" + (state or ", state in float32")
    base = " over a 4-bit base" if optimizer.lora.base == "nf4" else ""
    return f"adapters of rank {optimizer.lora.rank}{base}{state}"


def _total_lines(machine: Machine, projection: Projection, cost: dict[str, float]) -> list[str]:
    per_hour, save_every = projection.goodput.per_hour, long_duration(projection.goodput.save_every)
    lines = [
        "",
        f"In all {long_duration(projection.seconds)}, {amount(projection.device_hours)} device hours",
        *_wrapped(
            f"  interruptions  about {amount(projection.interruptions)} "
            f"(one in {long_duration(3600 / per_hour)}); save every {save_every}; "
            f"goodput {projection.goodput.share:.1%}",
            indent=17,
        ),
        f"  energy         {amount(cost['kwh'])} kWh, {amount(cost['co2e_kg'])} kg CO2e",
    ]
    if machine.on_gpu:
        lines += _wrapped(
            f"  money          rented ${cost['rented_dollars']:,.0f}; or bought: ${cost['bought_dollars']:,.0f} "
            f"depreciation and ${cost['electricity_dollars']:,.0f} of electricity",
            indent=17,
        )
    return lines


def long_duration(seconds: float) -> str:
    return duration(seconds) if seconds < 2 * 86_400 else f"{seconds / 86_400:,.1f} days"
