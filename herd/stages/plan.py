"""Estimate a training run before it is started: memory, time, money, interruptions, the best layout.

For one of Llama's sizes, a model folder or a recipe of `herd pretrain`, `sft`, `distill`, `reward` or `dpo`, on any
number of devices, without using one:

    herd plan 125M --devices here
    herd plan 8B --devices 64 --device h100
    herd plan recipes/llama3/405b.yaml --devices 16384
    herd plan recipes/llama3/8b-sft.yaml 8B --device h200      fine-tuning: does it fit, and if not, what does
    herd plan 70B --device h200 optimizer.lora.rank=16 optimizer.lora.base=nf4
    herd plan --check                 how close the projection is to Meta's published figures
"""

from __future__ import annotations

import json as json_format
from dataclasses import field
from pathlib import Path
from typing import Literal

from herd import config as configs
from herd import stages
from herd.config import settings
from herd.errors import CapacityError
from herd.plan.check import check_table, checks
from herd.plan.cluster import DEVICES
from herd.plan.measured import this_machine
from herd.plan.project import Machine, RunPhase, distinct, project, ranked
from herd.plan.remedies import Remedy, remedies
from herd.plan.slurm import processes_per_server, slurm_script
from herd.plan.steptime import EFFICIENCY
from herd.plan.table import CostSettings, as_dict, remedy_lines, table
from herd.plan.wanted import Asked, Recipe, Wanted, from_recipes, from_size, stage_of
from herd.train.optimizer import OptimizerSettings

_HERE = "here"
_NOT_FITTING = 2


@settings
class PlanSettings:
    """What to plan for."""

    path: str | None = None
    """A size (125M, 8B, 405B, llama2-70B), or a folder or config.json of a model; with a recipe for fine-tuning, the
    model it starts from."""
    recipe: list[Path] = field(default_factory=list)
    """Recipes of `herd pretrain` for the stages of one model, in order; or one recipe for fine-tuning."""
    stage: Literal["auto", "pretrain", "sft", "distill", "reward", "dpo"] = "auto"
    """The stage to plan; auto: from the recipe's settings, or fine-tuning if `optimizer` is not the default."""
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    """What is trained and in which number types (`state`, `lora`); overrides the recipe."""
    devices: int | Literal["here"] = 1
    """How many devices; `here` is this machine, measured."""
    device: Literal["h100", "h200", "b200", "a100", "rtx4090"] = "h100"
    """Kind of device."""
    efficiency: float | None = None
    """Share of the peak that the arithmetic alone reaches; default: Meta's on GPUs, measured on the CPU."""
    tokens: float | None = None
    """Tokens to train on; default: the recipe's, or the compute-optimal number; for fine-tuning from its data, or 9,000
    steps."""
    batch_tokens: int | None = None
    """Tokens per step, if no recipe says."""
    row_tokens: int | None = None
    """Tokens per row, if no recipe says; default: 8,192, for small models 2,048."""
    layouts: int = 5
    """Number of layouts listed, best first."""
    cost: CostSettings = field(default_factory=CostSettings)
    """Prices."""
    slurm: bool = False
    """Print only a Slurm script that runs the recipe with the planned layout."""
    check: bool = False
    """Print how close the projection is to Meta's published figures."""
    json: bool = False
    """Print one JSON object."""

    def __post_init__(self):
        if isinstance(self.devices, int) and self.devices < 1:
            raise ValueError("devices must be at least 1, or `here`")
        if self.efficiency is not None and not 0 < self.efficiency <= 1:
            raise ValueError("efficiency is a share: above 0 and at most 1")
        counts = {name: getattr(self, name) for name in ("tokens", "batch_tokens", "row_tokens", "layouts")}
        if bad := [name for name, value in counts.items() if value is not None and value < 1]:
            raise ValueError(f"{', '.join(bad)} must be at least 1")
        if self.batch_tokens and self.row_tokens and self.batch_tokens < self.row_tokens:
            raise ValueError("batch_tokens must hold at least one row of row_tokens")
        if not (self.path or self.recipe or self.check):
            raise ValueError("nothing to plan: give a size (herd plan 8B), a model folder, or a recipe")
        if self.slurm and (len(self.recipe) != 1 or self.devices == _HERE):
            raise ValueError("a Slurm script needs exactly one recipe and a number of devices")


def run(settings: PlanSettings) -> int:
    """Print the plan; the exit status is 2 if it does not fit."""
    if settings.check:
        print(json_format.dumps(_checks(), indent=1) if settings.json else check_table(_checks()))
        return 0
    machine = _machine(settings)
    if settings.slurm:
        processes_per_server(machine)  # refuses unsuitable machines early
    names = ("path", "stage", "optimizer", "tokens", "batch_tokens", "row_tokens")
    asked = Asked(**{name: getattr(settings, name) for name in names})
    wanted = from_recipes(_recipes(settings), asked, machine) if settings.recipe else from_size(asked)
    wanted.check_rank()
    try:
        projection = project(wanted.model, machine, wanted.phases, wanted.layouts)
    except ValueError as error:
        hints = remedy_lines(_remedies(wanted, machine, wanted.phases[-1]))
        raise CapacityError("\n".join([str(error), *hints])) from None
    too_big = [planned.phase for planned in projection.phases if not planned.fits]
    if settings.slurm:
        tokens = None if wanted.tuning else settings.tokens
        print(slurm_script(wanted.stage, settings.recipe[0], machine, projection, tokens))
        return 0
    best = distinct(ranked(wanted.model, machine, wanted.phases[0]))[: settings.layouts]
    would_fit = _remedies(wanted, machine, too_big[-1]) if too_big else []
    if settings.json:
        print(json_format.dumps(as_dict(wanted.model, machine, projection, best, settings.cost, would_fit), indent=1))
    else:
        print(table(wanted.model, machine, projection, best, settings.cost, would_fit))
    return _NOT_FITTING if too_big else 0


def _remedies(wanted: Wanted, machine: Machine, phase: RunPhase) -> list[Remedy]:
    return remedies(wanted.model, machine, phase, wanted.layouts[wanted.phases.index(phase)], wanted.tuning)


def _machine(settings: PlanSettings) -> Machine:
    if isinstance(settings.devices, int):
        return Machine(DEVICES[settings.device], settings.devices, efficiency=settings.efficiency or EFFICIENCY)
    return this_machine(settings.efficiency)


def _recipes(settings: PlanSettings) -> list[Recipe]:
    files = [configs.find_recipe(file) for file in settings.recipe]
    names = [settings.stage if settings.stage != "auto" else stage_of(file) for file in files]
    return [Recipe(file, name, configs.load(stages.settings_of(name), file)) for file, name in zip(files, names)]


def _checks() -> dict:
    paper = PlanSettings(recipe=[Path("llama3/405b.yaml"), Path("llama3/405b-long.yaml")], devices=16_384)
    machine = _machine(paper)
    return checks(from_recipes(_recipes(paper), Asked(), machine), machine)
