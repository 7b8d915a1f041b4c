"""How to learn somebody's rows on this machine: what fits into memory, how long it takes, and settings that suit."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from herd.errors import CapacityError
from herd.log import duration, size
from herd.model.config import ModelConfig
from herd.plan.layout import PlanLayout
from herd.plan.project import Machine, PlannedPhase, RunPhase, lay_out
from herd.train.lora import LoraSettings
from herd.train.optimizer import OptimizerSettings
from herd.train.schedule import BatchSettings
from herd.tuning.material import Material
from herd.tuning.reading import Kind

Method = Literal["full", "lora", "qlora"]

NAMES: dict[Method, str] = {"full": "all weights", "lora": "LoRA adapters", "qlora": "QLoRA: adapters, 4-bit base"}
_RANK = 16
_WIDTH, _RATE = 4096, 2e-4  # what is usual for adapters of 7B to 8B models; smaller models take more
_RATE_SHARES = {"preferences": 0.25}
_FULL_SHARE = 0.1  # of the adapters' rate, when all weights are learned
_STEPS_PER_EPOCH = 32
_BATCH_TOKENS = 32_768
_MICRO_TOKENS = 2048
_TOKENS_PER_WEIGHT = 0.2  # from here on there is enough to learn all weights
_MINUTES, _FEW_ROWS = 10.0, 1_000  # so long by plan for so many rows, unless somebody says how long
_LEAST_STEPS = 10  # though they take longer
_LOOKING = 0.2  # the most of a run's time that goes into looking at the watched rows
_FORWARD: dict[Method, float] = {"full": 1 / 3, "lora": 1 / 2, "qlora": 1 / 2}  # of a step's time
_START = 20.0  # seconds until the model is loaded, and for the answers on the page
_EPOCHS = ((1_000, 4.0), (10_000, 3.0), (100_000, 2.0), (math.inf, 1.0))  # up to so many rows


@dataclass(frozen=True)
class Way:
    """One way to learn, with what the plan says of it."""

    method: Method
    optimizer: OptimizerSettings
    recompute: int
    bytes: float
    steps: int
    seconds: float  # of these steps, and of measuring before, meanwhile and after
    fits: bool

    def __str__(self) -> str:
        fits = "" if self.fits else ", does not fit"
        return f"{NAMES[self.method]:<28} {size(self.bytes):>8}  {duration(self.seconds):>8}{fits}"


def batch_for(material: Material, longest: int, wished: int | None = None) -> BatchSettings:
    """Rows as long as what is in them, and steps small enough that an epoch has some 32."""
    row = min(max(256, -(-material.longest // 64) * 64), max(longest, material.longest))
    tokens = wished or min(max(material.num_tokens // _STEPS_PER_EPOCH, row), _BATCH_TOKENS)
    tokens = max(round(tokens / row), 1) * row
    return BatchSettings(tokens=tokens, row_tokens=row, micro_tokens=max(min(tokens, _MICRO_TOKENS), row))


def epochs_for(material: Material) -> float:
    """How often rows are gone through, at most: few rows more often, raw text twice."""
    if material.kind == "text":
        return 2.0
    return next(epochs for most, epochs in _EPOCHS if len(material.learned) <= most)


def distance_for(material: Material, batch: BatchSettings, steps: int) -> int:
    """Steps between two looks at the watched rows: ten over the run, fewer where they took a fifth of its time."""
    return max(1, round(steps / _looks(material, batch, steps)))


def _looks(material: Material, batch: BatchSettings, steps: int) -> float:
    watched = max(int(material.watched.documents.num_tokens.sum()), 1)
    return min(max(_LOOKING * steps * batch.tokens / (_FORWARD["lora"] * watched), 3), 10)


def minutes_for(material: Material, wished: float | None, *, length_is_given: bool) -> float:
    """Minutes that a run may take by plan: as wished, else ten for few rows whose epochs or steps nobody gave."""
    few = len(material.learned) <= _FEW_ROWS and not length_is_given
    return wished or (_MINUTES if few else math.inf)


def _bounded(
    material: Material,
    general_tokens: int,
    batch: BatchSettings,
    method: Method,
    step: float,
    wished: int,
    minutes: float,
) -> tuple[int, float]:
    """How many of the wished steps, each of `step` seconds, fit into so many minutes; and what it all takes (s)."""
    forward = _FORWARD[method] * step / batch.tokens
    judged = int(material.judged.documents.num_tokens.sum())
    if material.kind == "label":  # what a row's labels share is computed once
        judged = judged // material.judged.per_row + sum(map(int, map(np.sum, material.judged.documents.trained or ())))
    once = material.num_tokens if material.kind == "preferences" else 0  # by the model they are compared with
    around = _START + forward * (2 * (judged + general_tokens) + once)
    watched = forward * int(material.watched.documents.num_tokens.sum())
    most = math.inf if math.isinf(minutes) else (60 * minutes - around) / ((1 + _LOOKING) * step)
    steps = int(min(wished, max(most, min(wished, _LEAST_STEPS))))
    return steps, around + steps * step + _looks(material, batch, steps) * watched


def rate_for(kind: Kind, config: ModelConfig, method: Method) -> float:
    """The peak learning rate: that of adapters falls with the root of the model's width."""
    rate = _RATE * math.sqrt(_WIDTH / config.hidden_size) * _RATE_SHARES.get(kind, 1.0)
    return float(f"{rate * (_FULL_SHARE if method == 'full' else 1.0):.2g}")


def ways(
    material: Material,
    config: ModelConfig,
    machine: Machine,
    batch: BatchSettings,
    wished: int,
    minutes: float,
    general_tokens: int,
) -> list[Way]:
    """Every way to learn these rows with what it takes; layers are recomputed where it does not fit otherwise.

    Of the steps that are wished each takes as many as fit into so many minutes by plan, which measures the machine.
    """
    phase = RunPhase("tune", batch.row_tokens, batch.tokens, 1, whole_rows=material.kind == "preferences")
    plain = LoraSettings(rank=_RANK, alpha=2.0 * _RANK)
    learned: dict[Method, LoraSettings] = {
        "full": LoraSettings(),
        "lora": plain,
        "qlora": replace(plain, base="nf4"),
    }
    found = []
    for method, lora in learned.items():
        rate = rate_for(material.kind, config, method)
        optimizer = OptimizerSettings(learning_rate=rate, lora=lora, weight_decay=0.0)
        planned = _laid_out(config, machine, replace(phase, optimizer=optimizer), batch)
        recompute = 1 if planned.layout.recompute == "full" else 0
        taken = sum(planned.memory.values())
        steps, seconds = _bounded(material, general_tokens, batch, method, planned.seconds, wished, minutes)
        found.append(Way(method, optimizer, recompute, taken, steps, seconds, planned.fits))
    return found


def _laid_out(config: ModelConfig, machine: Machine, phase: RunPhase, batch: BatchSettings) -> PlannedPhase:
    rows = max(1, min(batch.micro_tokens // batch.row_tokens, phase.rows))
    layout = PlanLayout(micro_rows=rows, recompute="light" if machine.on_gpu else "off")
    planned = lay_out(config, machine, phase, layout)
    return planned if planned.fits else lay_out(config, machine, phase, replace(layout, recompute="full"))


def chosen(found: list[Way], material: Material, parameters: int, wish: str) -> tuple[Way, str]:
    """The way that is wished, or the one that suits the rows and fits, and why in words.

    Raises:
        CapacityError: none fits, or the wished one does not.
    """
    by_method = {way.method: way for way in found}
    if wish != "auto":
        way = next(way for way in found if way.method == wish)
        why = "as you wish"
    elif material.num_tokens >= _TOKENS_PER_WEIGHT * parameters and by_method["full"].fits:
        way, why = by_method["full"], "there is a token for every five weights or more, and it fits"
    elif by_method["lora"].fits:
        way, why = by_method["lora"], "for so few tokens, it changes little else and is served beside the base"
    else:
        way, why = by_method["qlora"], "it is the one that fits"
    if not way.fits:
        raise CapacityError(
            f"{NAMES[way.method]} takes {size(way.bytes)}, which is more than this machine has; take a smaller model, "
            "or leave out longer rows (longest_tokens)"
        )
    return way, why
