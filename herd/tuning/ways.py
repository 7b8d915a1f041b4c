"""How to learn somebody's rows on this machine: what fits into memory, how long it takes, and settings that suit."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from herd.errors import CapacityError
from herd.log import duration, size
from herd.model.config import ModelConfig
from herd.plan.layout import Layout
from herd.plan.project import Machine, Phase, PlannedPhase, lay_out
from herd.train.lora import LoraSettings
from herd.train.optimizer import OptimizerSettings
from herd.train.schedule import BatchSettings, steps_for
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
_EPOCHS = ((1_000, 4.0), (10_000, 3.0), (100_000, 2.0), (math.inf, 1.0))  # up to so many rows


@dataclass(frozen=True)
class Way:
    """One way to learn, with what the plan says of it."""

    method: Method
    optimizer: OptimizerSettings
    recompute: int
    bytes: float
    seconds: float
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


def distance_for(material: Material, batch: BatchSettings, epochs: float, most_steps: int | None) -> int:
    """Steps between two looks at the watched rows: ten over the run, fewer where they took a fifth of its time."""
    steps = min(steps_for(batch, epochs * material.num_tokens), most_steps or 10**9)
    watched = max(int(material.watched.documents.num_tokens.sum()), 1)
    looks = min(max(0.4 * steps * batch.tokens / watched, 3), 10)  # forward alone is half of an adapter's step
    return max(1, round(steps / looks))


def rate_for(kind: Kind, config: ModelConfig, method: Method) -> float:
    """The peak learning rate: that of adapters falls with the root of the model's width."""
    rate = _RATE * math.sqrt(_WIDTH / config.hidden_size) * _RATE_SHARES.get(kind, 1.0)
    return float(f"{rate * (_FULL_SHARE if method == 'full' else 1.0):.2g}")


def ways(
    material: Material,
    config: ModelConfig,
    machine: Machine,
    batch: BatchSettings,
    epochs: float,
    most_steps: int | None,
) -> list[Way]:
    """Every way to learn these rows with what it takes; layers are recomputed where it does not fit otherwise."""
    steps = min(steps_for(batch, epochs * material.num_tokens), most_steps or 10**9)
    phase = Phase("tune", batch.row_tokens, batch.tokens, steps, whole_rows=material.kind == "preferences")
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
        found.append(Way(method, optimizer, recompute, taken, planned.seconds, planned.fits))
    return found


def _laid_out(config: ModelConfig, machine: Machine, phase: Phase, batch: BatchSettings) -> PlannedPhase:
    rows = max(1, min(batch.micro_tokens // batch.row_tokens, phase.rows))
    layout = Layout(micro_rows=rows, recompute="light" if machine.on_gpu else "off")
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
