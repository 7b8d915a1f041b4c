"""Say what a training run will take before it is started: memory, time, money, interruptions, the best layout.

For one of Llama's sizes, a model folder or a recipe of `herd pretrain`, on any number of devices, without touching one:

    herd plan 125M --devices here
    herd plan 8B --devices 64 --device h100
    herd plan recipes/llama3/405b.yaml --devices 16384
    herd plan --check                 how near the projection comes to Meta's published figures
"""

from __future__ import annotations

import json as json_format
import shlex
from dataclasses import field, fields
from pathlib import Path
from typing import Literal

from herd import config as configs
from herd.config import settings
from herd.errors import CapacityError, ConfigError
from herd.log import amount, duration, size
from herd.model.config import ModelConfig, num_parameters
from herd.model.sizes import LLAMA3_ROWS, LLAMAS, hyperparameters, model_of_size
from herd.plan import published
from herd.plan.cluster import DEVICES, Device
from herd.plan.layout import Layout
from herd.plan.project import Machine, Phase, PlannedPhase, Projection, distinct, lay_out, project, ranked, summed
from herd.plan.steptime import EFFICIENCY
from herd.stages.doctor import TRAINING_EFFICIENCY, examine
from herd.stages.pretrain import PretrainSettings
from herd.train.schedule import phases, steps_for

_HERE = "here"


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


@settings
class PlanSettings:
    """What to plan for."""

    path: str | None = None
    """A size (125M, 8B, 405B, llama2-70B), or a folder or config.json of a model."""
    recipe: list[Path] = field(default_factory=list)
    """Recipes of `herd pretrain`, in the order they are run: the stages of one model."""
    devices: int | Literal["here"] = 1
    """How many devices; `here` is this machine, measured."""
    device: Literal["h100", "h200", "b200", "a100", "rtx4090"] = "h100"
    """Kind of device."""
    efficiency: float | None = None
    """Share of the peak that the arithmetic alone reaches; Meta's on GPUs by default, measured on the CPU."""
    tokens: float | None = None
    """Tokens to train on; by the recipe, or the compute-optimal number."""
    batch_tokens: int | None = None
    """Tokens of a step, where no recipe says."""
    row_tokens: int | None = None
    """Tokens of a row, where no recipe says: 8,192, for small models 2,048."""
    layouts: int = 5
    """Layouts listed, the best first."""
    cost: CostSettings = field(default_factory=CostSettings)
    """What it costs."""
    slurm: bool = False
    """Print a Slurm script that runs the recipe with the planned layout, and nothing else."""
    check: bool = False
    """Print how near the projection comes to Meta's published figures."""
    json: bool = False
    """Print one JSON object."""

    def __post_init__(self):
        if self.devices != _HERE and self.devices < 1:
            raise ValueError("devices must be at least 1, or `here`")
        if self.efficiency is not None and not 0 < self.efficiency <= 1:
            raise ValueError("efficiency is a share: above 0 and at most 1")
        counts = {name: getattr(self, name) for name in ("tokens", "batch_tokens", "row_tokens", "layouts")}
        if bad := [name for name, value in counts.items() if value is not None and value < 1]:
            raise ValueError(f"{', '.join(bad)} must be at least 1")
        if self.batch_tokens and self.row_tokens and self.batch_tokens < self.row_tokens:
            raise ValueError("batch_tokens must hold at least one row of row_tokens")
        if self.path and self.recipe:
            raise ValueError("give a size or a recipe, not both")
        if not (self.path or self.recipe or self.check):
            raise ValueError("what is to be planned? Give a size (herd plan 8B), a model folder, or a pretrain recipe")
        if self.slurm and (len(self.recipe) != 1 or self.devices == _HERE):
            raise ValueError("a Slurm script needs a recipe, one alone, and a number of devices")


def run(settings: PlanSettings) -> int:
    """Print the plan; the exit status is 2 where nothing fits."""
    if settings.check:
        print(json_format.dumps(_checks(), indent=1) if settings.json else _check_table())
        return 0
    machine = _machine(settings)
    model, stages, layout = _from_recipes(settings, machine) if settings.recipe else _from_size(settings)
    try:
        projection = project(model, machine, stages, layout)
    except ValueError as error:
        raise CapacityError(str(error)) from None
    best = distinct(ranked(model, machine, stages[0]))[: settings.layouts]
    if settings.slurm:
        print(_slurm(settings, machine, projection))
    elif settings.json:
        print(json_format.dumps(_as_dict(model, machine, projection, best, settings.cost), indent=1))
    else:
        print(_table(model, machine, projection, best, settings.cost))
    return 0


# ---- what is planned -------------------------------------------------------------------------------------------------


def _machine(settings: PlanSettings) -> Machine:
    if settings.devices != _HERE:
        return Machine(DEVICES[settings.device], settings.devices, efficiency=settings.efficiency or EFFICIENCY)
    found = examine()
    bf16 = found.matmul_bf16 >= found.matmul_fp32 or found.gpu is not None
    rate = found.matmul_bf16 if bf16 else found.matmul_fp32
    name = found.gpu or f"this CPU, {found.cores} cores"
    device = Device(name, rate, found.room, found.bandwidth, found.bandwidth, found.bandwidth, 1, 15.0 * found.cores)
    return Machine(
        device,
        1,
        efficiency=settings.efficiency or TRAINING_EFFICIENCY[found.device],
        weight_bytes=2 if bf16 else 4,
        on_gpu=found.gpu is not None,
        restart_seconds=10,
        storage_bandwidth=1e9,
    )


def _from_size(settings: PlanSettings) -> tuple[ModelConfig, list[Phase], None]:
    place = Path(settings.path)
    if place.exists():
        model = ModelConfig.from_folder(place if place.is_dir() else place.parent)
    else:
        try:
            model = model_of_size(settings.path)
        except ValueError as error:
            raise ConfigError(f"{error}; and there is no folder {settings.path}") from None
    found = hyperparameters(num_parameters(model))
    row_tokens = settings.row_tokens or (8192 if model.hidden_size >= 2048 else 2048)
    batch = settings.batch_tokens or found.batch_tokens
    batch = max(batch // row_tokens, 1) * row_tokens
    tokens = settings.tokens or found.tokens
    return model, [Phase("pre-train", row_tokens, batch, max(round(tokens / batch), 1))], None


def _from_recipes(settings: PlanSettings, machine: Machine) -> tuple[ModelConfig, list[Phase], Layout | None]:
    recipes = [configs.load(PretrainSettings, configs.find_recipe(file)) for file in settings.recipe]
    model = _model_of(recipes[0])
    stages = [stage for recipe, file in zip(recipes, settings.recipe) for stage in _phases(recipe, file, settings)]
    return model, stages, _layout_of(recipes[0], machine)


def _model_of(recipe: PretrainSettings) -> ModelConfig:
    if recipe.checkpoint is not None and recipe.checkpoint.exists():
        return ModelConfig.from_folder(recipe.checkpoint)
    rows = _rows_of(recipe.tokenizer)
    names = {one.name for one in fields(ModelConfig)}
    shape = {
        name: value for name, value in configs.to_dict(recipe.model).items() if name in names and value is not None
    }
    return ModelConfig(**shape, vocab_size=rows)


def _rows_of(tokenizer: Path) -> int:
    """Rows of the vocabulary; Llama 3's where the tokenizer is not there yet."""
    file = tokenizer / "tokenizer.json"
    if not file.exists():
        return LLAMA3_ROWS
    content = json_format.loads(file.read_text(encoding="utf-8"))
    return len(content["model"]["vocab"]) + len(content.get("added_tokens", []))


def _phases(recipe: PretrainSettings, file: Path, settings: PlanSettings) -> list[Phase]:
    num_steps = steps_for(recipe.batch, settings.tokens or recipe.tokens)
    parts = phases(recipe.batch, num_steps, {"all": 1.0})
    ends = [part.step for part in parts[1:]] + [num_steps]
    return [
        Phase(
            file.stem if len(parts) == 1 else f"{file.stem} {number}",
            part.row_tokens,
            max(round(part.batch_tokens / part.row_tokens), 1) * part.row_tokens,
            end - part.step,
        )
        for number, (part, end) in enumerate(zip(parts, ends), 1)
        if end > part.step
    ]


def _layout_of(recipe: PretrainSettings, machine: Machine) -> Layout | None:
    """The recipe's own layout on this many devices; None where it says nothing and the best one is looked for."""
    parallel = getattr(recipe, "parallel", None)
    if parallel is None or parallel == type(parallel)():
        return None
    inside = parallel.tensor * parallel.context * parallel.pipeline
    return Layout(
        tensor=parallel.tensor,
        context=parallel.context,
        pipeline=parallel.pipeline,
        data=max(machine.count // inside, 1),
        virtual=parallel.interleave,
        contiguous=parallel.contiguous,
        micro_rows=max(recipe.batch.micro_tokens // recipe.batch.row_tokens, 1),
        reshard=parallel.reshards,
        recompute="full" if recipe.run.recompute == 1 else "light" if machine.on_gpu else "off",
    )


# ---- how it is told --------------------------------------------------------------------------------------------------


def _as_dict(
    model: ModelConfig, machine: Machine, projection: Projection, best: list[PlannedPhase], cost: CostSettings
) -> dict:
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


def _table(
    model: ModelConfig, machine: Machine, projection: Projection, best: list[PlannedPhase], cost: CostSettings
) -> str:
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
        f"  step     {step.seconds:.3g} s, {amount(rate)} tokens/s, MFU {step.mfu:.1%}: "
        + ", ".join(f"{name} {seconds / step.seconds:.1%}" for name, seconds in terms),
        f"  memory   {size(sum(planned.memory.values()))} on the fullest device: "
        + ", ".join(f"{name} {size(value)}" for name, value in parts)
        + ("" if planned.fits else "  (does not fit!)"),
        f"  time     {_long(planned.seconds)}",
    ]


def _total_lines(machine: Machine, projection: Projection, cost: dict[str, float]) -> list[str]:
    lines = [
        "",
        f"In all {_long(projection.seconds)}, {amount(projection.device_hours)} device hours",
        f"  interruptions  about {amount(projection.interruptions)} "
        f"(one in {_long(3600 / projection.goodput.per_hour)}); save every {_long(projection.goodput.save_every)}; "
        f"goodput {projection.goodput.share:.1%}",
        f"  energy         {amount(cost['kwh'])} kWh, {amount(cost['co2e_kg'])} kg CO2e",
    ]
    if machine.on_gpu:
        lines.append(
            f"  money          rented ${cost['rented_dollars']:,.0f}; or bought: ${cost['bought_dollars']:,.0f} "
            f"written off and ${cost['electricity_dollars']:,.0f} of electricity"
        )
    return lines


def _long(seconds: float) -> str:
    return duration(seconds) if seconds < 2 * 86_400 else f"{seconds / 86_400:,.1f} days"


def _slurm(settings: PlanSettings, machine: Machine, projection: Projection) -> str:
    layout, per_server = projection.phases[0].layout, machine.device.per_server
    servers = -(-machine.count // per_server)
    words = [
        f"parallel.tensor={layout.tensor}",
        f"parallel.context={layout.context}",
        f"parallel.pipeline={layout.pipeline}",
        f"parallel.interleave={layout.virtual}",
        f"parallel.shard={layout.data}",
    ]
    recipe = shlex.quote(str(settings.recipe[0]))
    return f"""#!/bin/bash
#SBATCH --job-name=herd
#SBATCH --nodes={servers}
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node={min(per_server, machine.count)}
#SBATCH --exclusive
#SBATCH --requeue
#SBATCH --signal=TERM@60
# {layout}: {_long(projection.seconds)} in all
export TORCH_NCCL_AVOID_RECORD_STREAMS=1
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
srun torchrun --nnodes="$SLURM_NNODES" --nproc-per-node={min(per_server, machine.count)} --max-restarts=100 \\
  --rdzv-backend=c10d --rdzv-id="$SLURM_JOB_ID" --rdzv-endpoint="$head:29500" \\
  -m herd pretrain {recipe} {" ".join(words)}"""


# ---- how far to trust it ---------------------------------------------------------------------------------------------


def _checks() -> dict:
    rows = []
    for row in published.TABLE_4:
        step = published.predicted(row)
        rows.append(
            {
                "layout": str(row.layout),
                "row_tokens": row.row_tokens,
                "measured_mfu": row.tflops * 1e12 / published.H100.flops,
                "printed_mfu": row.mfu,
                "predicted_mfu": step.mfu,
                "seconds_by_term": step.terms,
            }
        )
    return {
        "table_4": rows,
        "gpu_hours": {"published": published.GPU_HOURS, "405B_predicted": _hours_405b()},
        "implied_mfu": {name: published.implied_mfu(name) for name in published.GPU_HOURS},
        "llama2_70b_weights_bytes": 2 * num_parameters(LLAMAS["llama2-70B"]),
    }


def _hours_405b() -> float:
    """The paper's recipe on its 16,384 GPUs: three batch sizes, then 800B tokens in long rows, as in table 4."""
    recipes = [Path("llama3/405b.yaml"), Path("llama3/405b-long.yaml")]
    settings = PlanSettings(recipe=recipes, devices=16_384)
    machine = _machine(settings)
    model, stages, _ = _from_recipes(settings, machine)
    short, long = published.TABLE_4[1:]
    planned = [
        lay_out(model, machine, stage, (long if stage.row_tokens == long.row_tokens else short).layout)
        for stage in stages
    ]
    return summed(model, machine, planned).device_hours


def _check_table() -> str:
    found = _checks()
    lines = ["Table 4 of the paper, calibrated on its first row only:", ""]
    lines.append(f"  {'layout':<40}{'row':>8}{'measured':>10}{'predicted':>11}   where a step's time goes")
    for row in found["table_4"]:
        total = sum(row["seconds_by_term"].values())
        terms = ", ".join(f"{n} {s / total:.1%}" for n, s in row["seconds_by_term"].items() if s > 0.003 * total)
        lines.append(
            f"  {row['layout'].removesuffix(' · recompute light'):<40}{row['row_tokens']:>8,}"
            f"{row['measured_mfu']:>10.1%}{row['predicted_mfu']:>11.1%}   {terms}"
        )
    hours, mine = found["gpu_hours"]["published"]["405B"], found["gpu_hours"]["405B_predicted"]
    lines += [
        "",
        f"GPU hours of 405B: published {hours / 1e6:.2f}M, projected {mine / 1e6:.2f}M ({mine / hours - 1:+.0%})",
    ]
    for name in ("8B", "70B"):
        lines.append(
            f"GPU hours of {name}: the published {published.GPU_HOURS[name] / 1e6:.2f}M mean "
            f"{found['implied_mfu'][name]:.1%} of the peak, restarts and all; nothing here is fitted to that"
        )
    lines.append(f"Weights of Llama 2 70B: {found['llama2_70b_weights_bytes'] / 1e9:.0f} GB")
    return "\n".join(lines)
