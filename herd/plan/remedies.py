"""Remedies for a run that does not fit: settings to change, the mildest first, each with its memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice

from herd.model.config import ModelConfig
from herd.plan.layout import PlanLayout
from herd.plan.project import Machine, PlannedPhase, RunPhase, lay_out, phase_faults, ranked
from herd.train.lora import LoraSettings
from herd.train.optimizer import OptimizerSettings

_RANK = 16
_MOST_DEVICES = 2**15


@dataclass(frozen=True)
class Remedy:
    """Settings in command-line form, and the phase planned with them."""

    words: str
    planned: PlannedPhase

    @property
    def bytes(self) -> float:
        return sum(self.planned.memory.values())


def remedies(
    config: ModelConfig, machine: Machine, phase: RunPhase, layout: PlanLayout | None, tuning: bool
) -> list[Remedy]:
    """All remedies that fit, and the smallest number of devices that does. Without a layout the best one is used.

    Adapters are suggested only for fine-tuning (`tuning`).
    """
    wishes = [(*wish, machine) for wish in _wishes(phase, layout, tuning)]
    found = [remedy for wish in wishes if (remedy := _tried(config, *wish))]
    more = (_tried(config, *wish) for wish in _more_devices(machine, phase, layout))
    found += islice(filter(None, more), 1)
    return found


def _tried(
    config: ModelConfig, words: str, phase: RunPhase, layout: PlanLayout | None, machine: Machine
) -> Remedy | None:
    if layout is None:
        planned = next(iter(ranked(config, machine, phase)), None)
    elif phase_faults(config, layout, phase):
        return None
    else:
        planned = lay_out(config, machine, phase, layout)
    return Remedy(words, planned) if planned is not None and planned.fits else None


def _more_devices(
    machine: Machine, phase: RunPhase, layout: PlanLayout | None
) -> Iterator[tuple[str, RunPhase, PlanLayout | None, Machine]]:
    count, (more, optimizer) = machine.count, _shardable(phase.optimizer)
    sharded = replace(phase, optimizer=optimizer)
    while count < _MOST_DEVICES:
        count *= 2
        if layout is None:
            yield f"{count} devices{more}", sharded, None, replace(machine, count=count)
            continue
        data = layout.data * count // machine.count
        spread = replace(layout, data=data, replicas=1, reshard=True)
        for wish in _smaller(f"{count} devices parallel.shard={data}{more}", sharded, spread):
            yield *wish, replace(machine, count=count)


def _wishes(
    phase: RunPhase, layout: PlanLayout | None, tuning: bool
) -> Iterator[tuple[str, RunPhase, PlanLayout | None]]:
    """Settings as words, with the phase and layout that they result in."""
    yield from _smaller("", phase, layout, itself=False)
    if layout is not None and layout.replicas > 1:
        yield from _smaller(f"parallel.shard={layout.data}", phase, replace(layout, replicas=1, reshard=True))
    options = [("optimizer.state=bf16", replace(phase.optimizer, state="bf16", lora=LoraSettings()))]
    if tuning:
        plain = LoraSettings(rank=_RANK)
        for lora, more in ((plain, ""), (replace(plain, base="nf4"), " optimizer.lora.base=nf4")):
            options.append((f"optimizer.lora.rank={_RANK}{more}", replace(_wide(phase.optimizer), lora=lora)))
    for words, optimizer in options:
        if optimizer != phase.optimizer:
            for spread, how in _spreads(layout):
                yield from _smaller(words + how, replace(phase, optimizer=optimizer), spread)


def _spreads(layout: PlanLayout | None) -> Iterator[tuple[PlanLayout | None, str]]:
    """The layout itself, only with copies and only with shards, with the settings for that."""
    yield layout, ""
    if layout is not None and layout.replicas < layout.data:
        yield replace(layout, replicas=layout.data, reshard=False), " parallel.shard=1"
    if layout is not None and layout.replicas > 1:
        yield replace(layout, replicas=1, reshard=True), f" parallel.shard={layout.data}"


def _smaller(
    words: str, phase: RunPhase, layout: PlanLayout | None, itself: bool = True
) -> Iterator[tuple[str, RunPhase, PlanLayout | None]]:
    """The layout itself, with one row per micro-batch, and with recomputed layers too."""
    if itself:
        yield words, phase, layout
    if layout is None:
        return
    if layout.micro_rows > 1:
        words = f"{words} batch.micro_tokens={phase.row_tokens}".strip()
        layout = replace(layout, micro_rows=1)
        yield words, phase, layout
    if layout.recompute != "full":
        yield f"{words} recompute=1".strip(), phase, replace(layout, recompute="full")


def _wide(optimizer: OptimizerSettings) -> OptimizerSettings:
    return replace(optimizer, state="fp32", lora=LoraSettings())


def _shardable(optimizer: OptimizerSettings) -> tuple[str, OptimizerSettings]:
    """The settings that make training work on shards, as words and applied."""
    words = " optimizer.state=fp32" * (optimizer.state != "fp32")
    words += " optimizer.lora.base=as_is" * (optimizer.lora.rank > 0 and optimizer.lora.base != "as_is")
    return words, replace(optimizer, state="fp32", lora=replace(optimizer.lora, base="as_is"))
