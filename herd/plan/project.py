"""Projecting a whole run: layouts for its phases on a cluster, and their totals."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import product

from herd.errors import ConfigError
from herd.model.config import ModelConfig, num_parameters
from herd.plan.cluster import Device
from herd.plan.layout import PlanLayout, faults
from herd.plan.memory import fits, memory_by_part
from herd.plan.reliability import Goodput, goodput
from herd.plan.steptime import EFFICIENCY, StepTime, step_time
from herd.train.lora import adapter_parameters
from herd.train.optimizer import STATE_BYTES, OptimizerSettings, keeps_copies, mesh_faults

_NEAR = 1024  # numbers of devices tried in each direction if the given one is impossible


@dataclass(frozen=True)
class RunPhase:
    """A part of a run with one row length and one batch size; `optimizer` says what is trained, and how.

    With `whole_rows` the objective (reward models, DPO, distillation) needs whole rows, so the model is only copied or
    sharded.
    """

    name: str
    row_tokens: int
    batch_tokens: int
    steps: int
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    whole_rows: bool = False

    @property
    def rows(self) -> int:
        return max(self.batch_tokens // self.row_tokens, 1)

    @property
    def tokens(self) -> int:
        return self.rows * self.row_tokens * self.steps


@dataclass(frozen=True)
class Machine:
    """Devices of one kind, their efficiency, and the system around them."""

    device: Device
    count: int
    efficiency: float = EFFICIENCY
    weight_bytes: int = 2
    on_gpu: bool = True
    restart_seconds: float = 720.0
    storage_bandwidth: float = 2e12


@dataclass(frozen=True)
class PlannedPhase:
    """A phase with its layout, the time of one step and the memory of the device that needs most, by part (bytes)."""

    phase: RunPhase
    layout: PlanLayout
    step: StepTime
    memory: dict[str, float]
    fits: bool

    @property
    def seconds(self) -> float:
        return self.step.seconds * self.phase.steps

    def as_dict(self) -> dict:
        return {
            "phase": self.phase.name,
            "row_tokens": self.phase.row_tokens,
            "batch_tokens": self.phase.batch_tokens,
            "steps": self.phase.steps,
            "layout": dict(self.layout.__dict__),
            "step_seconds": self.step.seconds,
            "seconds_by_term": self.step.terms,
            "mfu": self.step.mfu,
            "memory_bytes": sum(self.memory.values()),
            "memory_by_part": self.memory,
            "fits": self.fits,
            "seconds": self.seconds,
        }


@dataclass(frozen=True)
class Projection:
    """The whole run. `device_hours` counts all devices, interruptions and saves included."""

    parameters: int
    devices: int
    phases: tuple[PlannedPhase, ...]
    goodput: Goodput

    @property
    def tokens(self) -> int:
        return sum(planned.phase.tokens for planned in self.phases)

    @property
    def seconds(self) -> float:
        return sum(planned.seconds for planned in self.phases) / self.goodput.share

    @property
    def device_hours(self) -> float:
        return self.devices * self.seconds / 3600

    @property
    def interruptions(self) -> float:
        return self.goodput.per_hour * self.seconds / 3600


def phase_faults(config: ModelConfig, layout: PlanLayout, phase: RunPhase) -> list[str]:
    """Why a layout does not work for a phase, by its shapes or the trainer's limits; empty if it does."""
    shapes = faults(config, layout, phase.row_tokens, phase.rows)
    return shapes + mesh_faults(phase.optimizer, layout.parallel, phase.whole_rows)


def lay_out(
    config: ModelConfig, machine: Machine, phase: RunPhase, layout: PlanLayout, used: int | None = None
) -> PlannedPhase:
    """Time and memory of a phase with a given layout.

    Raises:
        ValueError: the layout does not fit the model or the batch.
    """
    if found := phase_faults(config, layout, phase):
        raise ValueError(f"{phase.name}, {layout}: " + "; ".join(found))
    shape, optimizer = (phase.row_tokens, phase.rows), phase.optimizer
    width, on_gpu = machine.weight_bytes, machine.on_gpu
    memory = memory_by_part(config, layout, *shape, width=width, on_gpu=on_gpu, optimizer=optimizer)
    step = step_time(config, layout, machine.device, *shape, machine.efficiency, optimizer=optimizer)
    return PlannedPhase(phase, layout, step, memory, fits(memory, machine.device))


def ranked(config: ModelConfig, machine: Machine, phase: RunPhase) -> list[PlannedPhase]:
    """All layouts that are possible and fit into memory, the fastest first."""
    planned = [lay_out(config, machine, phase, layout) for layout in _possible(config, machine, phase)]
    return sorted(
        (one for one in planned if one.fits),
        key=lambda one: (float(f"{one.step.seconds:.3g}"), sum(one.memory.values())),
    )


def distinct(planned: Sequence[PlannedPhase]) -> list[PlannedPhase]:
    """The first of each group of layouts that differ only in micro-batch, chunks or recomputation."""
    kinds: dict[tuple[int, int, int, bool], PlannedPhase] = {}
    for one in planned:
        kinds.setdefault((one.layout.tensor, one.layout.context, one.layout.pipeline, one.layout.reshard), one)
    return list(kinds.values())


def layouts(config: ModelConfig, machine: Machine, phase: RunPhase) -> Iterator[PlanLayout]:
    """The layouts to try: tensor parallelism within a server, everything in powers of two.

    With adapters and bfloat16 state, copies of the model are tried as well as shards.
    """
    inner = [size for size in (1, 2, 4, 8) if size <= min(machine.device.per_server, machine.count)]
    outer = [2**power for power in range(11)]
    for tensor, context, pipeline in product(inner, outer, outer[:6]):
        inside = tensor * context * pipeline
        if machine.count % inside or (context > 1 and phase.row_tokens < 16_384):
            continue
        data = machine.count // inside
        if phase.rows % data:
            continue
        copies = sorted({1, data if keeps_copies(phase.optimizer) else 1})
        most = (config.num_hidden_layers + 2) // pipeline
        for virtual in [v for v in (1, 2, 4, 8) if v <= most] if pipeline > 1 else [1]:
            for rows, replicas in product([r for r in (1, 2, 4, 8, 16) if phase.rows % (data * r) == 0], copies):
                for reshard in (False, True) if data // replicas * context > 1 else (False,):
                    for recompute in ("light", "full") if machine.on_gpu else ("off", "full"):
                        sizes = (tensor, context, pipeline, data, virtual, 0, rows)
                        yield PlanLayout(*sizes, reshard, recompute, replicas=replicas)


def project(
    config: ModelConfig, machine: Machine, phases: Sequence[RunPhase], wished: Sequence[PlanLayout | None] = ()
) -> Projection:
    """Plan each phase, with its requested layout if that is possible, otherwise with the fastest that fits.

    Raises:
        ValueError: no layout fits; the message says how much memory is needed.
        ConfigError: a batch cannot be split over this number of devices; the message names numbers that work.
    """
    wished = wished or [None] * len(phases)
    return summed(config, machine, [_planned(config, machine, *pair) for pair in zip(phases, wished, strict=True)])


def summed(config: ModelConfig, machine: Machine, planned: Sequence[PlannedPhase]) -> Projection:
    """The totals of planned phases, with the interruptions expected on a machine of this size."""
    optimizer = planned[0].phase.optimizer
    learned = adapter_parameters(config, optimizer.lora) if optimizer.lora.rank else num_parameters(config)
    save = STATE_BYTES[optimizer.state] * learned / machine.storage_bandwidth + 2
    return Projection(
        num_parameters(config), machine.count, tuple(planned), goodput(machine.count, machine.restart_seconds, save)
    )


def _planned(config: ModelConfig, machine: Machine, phase: RunPhase, layout: PlanLayout | None) -> PlannedPhase:
    if layout is not None and not phase_faults(config, layout, phase):
        return lay_out(config, machine, phase, layout)
    best = ranked(config, machine, phase)
    if best:
        return best[0]
    tightest = [lay_out(config, machine, phase, one) for one in _possible(config, machine, phase)]
    if not tightest:
        others = " or ".join(f"{count:,}" for count in _nearest_counts(config, machine, phase))
        raise ConfigError(
            f"{phase.name}: {phase.rows:,} rows of {phase.row_tokens:,} tokens per step cannot be split over "
            f"{machine.count:,} devices; change the batch, or plan for {others or 'fewer'} devices"
        )
    least = min(sum(one.memory.values()) for one in tightest)
    raise ValueError(
        f"{phase.name}: no layout fits {machine.count:,} x {machine.device.name}: the smallest needs "
        f"{least / 1e9:.1f} GB on a device of {machine.device.memory / 1e9:.0f} GB"
    )


def _possible(config: ModelConfig, machine: Machine, phase: RunPhase) -> Iterator[PlanLayout]:
    """The layouts that model and batch allow, whether or not they fit into memory."""
    for layout in layouts(config, machine, phase):
        if not phase_faults(config, layout, phase):
            yield layout


def _nearest_counts(config: ModelConfig, machine: Machine, phase: RunPhase) -> list[int]:
    """The next smaller and the next larger number of devices that the batch can be split over."""
    count = machine.count
    ways = range(count - 1, max(count - _NEAR, 0), -1), range(count + 1, count + _NEAR)
    able = [(n for n in way if any(_possible(config, replace(machine, count=n), phase))) for way in ways]
    return [nearest for way in able if (nearest := next(way, None))]
