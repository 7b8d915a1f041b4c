"""A plan as a person reads it, and as JSON."""

from __future__ import annotations

from herd.config import settings
from herd.log import amount, duration, size
from herd.model.config import ModelConfig
from herd.plan import published
from herd.plan.project import Machine, PlannedPhase, Projection
from herd.plan.remedies import Remedy
from herd.train.optimizer import OptimizerSettings


@settings
class CostSettings:
    """What electricity and devices cost: your own figures count."""

    rent: float = 2.5
    """Dollars for an hour of a rented device."""
    price: float = 35_000
    """Dollars for a bought device with its share of server and network."""
    years: float = 4
    """Years over which a bought device is written off."""
    kwh: float = 0.10
    """Dollars for a kilowatt-hour."""
    overhead: float = 1.3
    """Power drawn in all for each watt of a device: hosts, network, cooling."""
    carbon: float | None = None
    """Kilograms of CO2e for each kilowatt-hour a device draws, overheads included; Meta's implied figure by default."""

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
    """Everything, for programs."""
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
    """Everything, for people."""
    lines = [
        f"{amount(projection.parameters)} parameters ({projection.parameters:,}), {size(2 * projection.parameters)} in "
        f"bf16: {model.num_hidden_layers} layers of {model.hidden_size:,}, {model.num_attention_heads} heads, "
        f"{model.num_key_value_heads} for keys and values, feed-forward {model.intermediate_size:,}, "
        f"{model.vocab_size:,} rows",
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
            lines.append(
                f"  {one.layout!s:<52} {one.step.seconds:>8.2f} s/step  MFU {one.step.mfu:>5.1%}  "
                f"{size(sum(one.memory.values())):>8} a device"
            )
    lines += [
        "",
        f"The arithmetic alone is taken to reach {machine.efficiency:.0%} of the peak (efficiency=...), as good "
        "kernels do; `herd plan --check` shows how near that comes to Meta's figures.",
    ]
    return "\n".join(lines)


def _phase_lines(planned: PlannedPhase) -> list[str]:
    phase, step = planned.phase, planned.step
    terms = sorted(((name, s) for name, s in step.terms.items() if s > 0.0005 * step.seconds), key=lambda t: -t[1])
    parts = [(name, value) for name, value in planned.memory.items() if value > 0]
    rate = phase.batch_tokens / step.seconds
    return [
        f"{phase.name}: {phase.steps:,} steps of {amount(phase.batch_tokens)} tokens in rows of {phase.row_tokens:,}",
        f"  layout   {planned.layout}",
        f"  learned  {learned_words(phase.optimizer)}",
        f"  step     {step.seconds:.3g} s, {amount(rate)} tokens/s, MFU {step.mfu:.1%}: "
        + ", ".join(f"{name} {seconds / step.seconds:.1%}" for name, seconds in terms),
        f"  memory   {size(sum(planned.memory.values()))} on the fullest device: "
        + ", ".join(f"{name} {size(value)}" for name, value in parts)
        + ("" if planned.fits else "  (does not fit!)"),
        f"  time     {long_duration(planned.seconds)}",
    ]


def remedy_lines(would_fit: list[Remedy]) -> list[str]:
    """What would make a run fit that does not."""
    if not would_fit:
        return ["  neither narrower state, adapters, recomputation nor more such devices make it fit: take larger ones"]
    wide = max(len(remedy.words) for remedy in would_fit)
    told = [f"    {r.words:<{wide}}  {size(r.bytes):>8}  {r.planned.step.seconds:.3g} s/step" for r in would_fit]
    return ["  it fits with any one of", *told]


def learned_words(optimizer: OptimizerSettings) -> str:
    """What is learned, and in which number types."""
    state = "" if optimizer.state == "fp32" else ", state in bfloat16"
    if not optimizer.lora.rank:
        return "all weights" + (state or ", state in float32")
    base = " over a base of 4 bits" if optimizer.lora.base == "nf4" else ""
    return f"adapters of rank {optimizer.lora.rank}{base}{state}"


def _total_lines(machine: Machine, projection: Projection, cost: dict[str, float]) -> list[str]:
    per_hour, save_every = projection.goodput.per_hour, long_duration(projection.goodput.save_every)
    lines = [
        "",
        f"In all {long_duration(projection.seconds)}, {amount(projection.device_hours)} device hours",
        f"  interruptions  about {amount(projection.interruptions)} "
        f"(one in {long_duration(3600 / per_hour)}); save every {save_every}; "
        f"goodput {projection.goodput.share:.1%}",
        f"  energy         {amount(cost['kwh'])} kWh, {amount(cost['co2e_kg'])} kg CO2e",
    ]
    if machine.on_gpu:
        lines.append(
            f"  money          rented ${cost['rented_dollars']:,.0f}; or bought: ${cost['bought_dollars']:,.0f} "
            f"written off and ${cost['electricity_dollars']:,.0f} of electricity"
        )
    return lines


def long_duration(seconds: float) -> str:
    return duration(seconds) if seconds < 2 * 86_400 else f"{seconds / 86_400:,.1f} days"
