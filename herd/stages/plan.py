"""Say what a training run will take before it is started: memory, time, money, interruptions, the best layout.

For one of Llama's sizes, a model folder or a recipe of `herd pretrain`, `sft`, `reward` or `dpo`, on any number of
devices, without touching one:

    herd plan 125M --devices here
    herd plan 8B --devices 64 --device h100
    herd plan recipes/llama3/405b.yaml --devices 16384
    herd plan recipes/llama3/8b-sft.yaml 8B --device h200      fine-tuning: does it fit, and if not, what does
    herd plan 70B --device h200 optimizer.lora.rank=16 optimizer.lora.base=nf4
    herd plan --check                 how near the projection comes to Meta's published figures
"""

from __future__ import annotations

import json as json_format
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Literal

from herd import config as configs
from herd.config import settings
from herd.errors import CapacityError, ConfigError
from herd.formats.checkpoint import open_checkpoint
from herd.log import say
from herd.model.config import ModelConfig, num_parameters
from herd.model.reward import reward_config
from herd.model.sizes import LLAMA3_ROWS, LLAMAS, hyperparameters, model_of_size
from herd.plan import published
from herd.plan.cluster import DEVICES, Device
from herd.plan.layout import Layout
from herd.plan.project import Machine, Phase, distinct, lay_out, project, ranked, summed
from herd.plan.remedies import Remedy, remedies
from herd.plan.slurm import processes_per_server, slurm_script
from herd.plan.steptime import EFFICIENCY
from herd.plan.table import CostSettings, as_dict, remedy_lines, table
from herd.stages.doctor import TRAINING_EFFICIENCY, examine
from herd.stages.dpo import DpoSettings
from herd.stages.pretrain import PretrainSettings
from herd.stages.reward import RewardSettings
from herd.stages.sft import SftSettings
from herd.train.optimizer import OptimizerSettings, is_narrow, mesh_faults
from herd.train.schedule import BatchSettings, phases, steps_for

_HERE, _PRETRAIN = "here", "pretrain"
_SETTINGS = {_PRETRAIN: PretrainSettings, "sft": SftSettings, "reward": RewardSettings, "dpo": DpoSettings}
_WHOLE_ROWS = ("reward", "dpo")
_TUNING_STEPS = 9_000  # of the paper's largest models (section 4.1.3: 8.5K to 9K)
_TUNING_BATCH = 262_144  # tokens: the paper does not say
_BYTES_PER_TOKEN = 4.4  # about, of English text under Llama 3's tokenizer
_NOT_FITTING = 2


@settings
class PlanSettings:
    """What to plan for."""

    path: str | None = None
    """A size (125M, 8B, 405B, llama2-70B), or a folder or config.json of a model; with a recipe for fine-tuning: what
    it starts from."""
    recipe: list[Path] = field(default_factory=list)
    """Recipes of `herd pretrain`, in the order they are run: the stages of one model; or one of sft, reward or dpo."""
    stage: Literal["auto", "pretrain", "sft", "reward", "dpo"] = "auto"
    """What is run; auto: by the recipe's own settings, else fine-tuning where `optimizer` is other than usual."""
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    """What is learned and in which number types (`state`, `lora`), instead of what the recipe says."""
    devices: int | Literal["here"] = 1
    """How many devices; `here` is this machine, measured."""
    device: Literal["h100", "h200", "b200", "a100", "rtx4090"] = "h100"
    """Kind of device."""
    efficiency: float | None = None
    """Share of the peak that the arithmetic alone reaches; Meta's on GPUs by default, measured on the CPU."""
    tokens: float | None = None
    """Tokens to train on; by the recipe, or the compute-optimal number; for fine-tuning by its data, or 9,000 steps."""
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
        if not (self.path or self.recipe or self.check):
            raise ValueError("what is to be planned? Give a size (herd plan 8B), a model folder, or a recipe")
        if self.slurm and (len(self.recipe) != 1 or self.devices == _HERE):
            raise ValueError("a Slurm script needs a recipe, one alone, and a number of devices")


@dataclass(frozen=True)
class _Wanted:
    """What is planned: a model, the stretches of its run, and for each its recipe's own layout if it has one."""

    stage: str
    model: ModelConfig
    phases: list[Phase]
    layouts: list[Layout | None]  # of each phase

    @property
    def tuning(self) -> bool:
        return self.stage != _PRETRAIN


def run(settings: PlanSettings) -> int:
    """Print the plan; the exit status is 2 where it does not fit."""
    if settings.check:
        print(json_format.dumps(_checks(), indent=1) if settings.json else _check_table())
        return 0
    machine = _machine(settings)
    if settings.slurm:
        processes_per_server(machine)  # before anything is worked out
    wanted = _from_recipes(settings, machine) if settings.recipe else _from_size(settings)
    _check_rank(wanted)
    try:
        projection = project(wanted.model, machine, wanted.phases, wanted.layouts)
    except ValueError as error:
        told = remedy_lines(_remedies(wanted, machine, wanted.phases[-1]))
        raise CapacityError("\n".join([str(error), *told])) from None
    too_big = [planned.phase for planned in projection.phases if not planned.fits]
    if settings.slurm:
        tokens = None if wanted.tuning else settings.tokens
        print(slurm_script(wanted.stage, settings.recipe[0], machine, projection, tokens))
        return 0
    best = distinct(ranked(wanted.model, machine, wanted.phases[0]))[: settings.layouts]
    would_fit = _remedies(wanted, machine, too_big[-1]) if too_big else []
    if settings.json:
        told = json_format.dumps(as_dict(wanted.model, machine, projection, best, settings.cost, would_fit), indent=1)
    else:
        told = table(wanted.model, machine, projection, best, settings.cost, would_fit)
    print(told)
    return _NOT_FITTING if too_big else 0


def _check_rank(wanted: _Wanted) -> None:
    """Adapters as the trainer takes them."""
    rank, width = wanted.phases[0].optimizer.lora.rank, wanted.model.hidden_size
    if rank > width:
        raise ConfigError(f"optimizer.lora.rank {rank:,} is more than the model's width ({width:,}): 8 to 64 are usual")


def _remedies(wanted: _Wanted, machine: Machine, phase: Phase) -> list[Remedy]:
    return remedies(wanted.model, machine, phase, wanted.layouts[wanted.phases.index(phase)], wanted.tuning)


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


def _from_size(settings: PlanSettings) -> _Wanted:
    narrow = is_narrow(settings.optimizer)
    stage = settings.stage if settings.stage != "auto" else "sft" if narrow else _PRETRAIN
    model = _model_at(settings.path, stage)
    found = hyperparameters(num_parameters(model))
    row_tokens = settings.row_tokens or (8192 if model.hidden_size >= 2048 else 2048)
    if settings.batch_tokens and settings.batch_tokens < row_tokens:
        raise ConfigError(f"batch_tokens {settings.batch_tokens:,} must hold at least one row of {row_tokens:,} tokens")
    batch = settings.batch_tokens or (found.batch_tokens if stage == _PRETRAIN else _TUNING_BATCH)
    batch = max(batch // row_tokens, 1) * row_tokens
    tokens = settings.tokens or (found.tokens if stage == _PRETRAIN else _TUNING_STEPS * batch)
    name = "pre-train" if stage == _PRETRAIN else stage
    steps = max(round(tokens / batch), 1)
    phase = Phase(name, row_tokens, batch, steps, settings.optimizer, stage in _WHOLE_ROWS)
    return _Wanted(stage, model, [phase], [None])


def _model_at(path: str, stage: str) -> ModelConfig:
    """The shape of a size by its name, or of a model folder."""
    place = Path(path)
    if place.exists():
        model = open_checkpoint(place if place.is_dir() or place.suffix == ".gguf" else place.parent).config
    else:
        try:
            model = model_of_size(path)
        except ValueError as error:
            raise ConfigError(f"{error}; and there is no folder {path}") from None
    return reward_config(model) if stage == "reward" else model


def _from_recipes(settings: PlanSettings, machine: Machine) -> _Wanted:
    files = [configs.find_recipe(file) for file in settings.recipe]
    stages = [settings.stage if settings.stage != "auto" else _stage_of(file) for file in files]
    if len(files) > 1 and set(stages) != {_PRETRAIN}:
        raise ConfigError(f"recipe: several are planned together of pretrain alone, and these are of {stages}")
    recipes = [configs.load(_SETTINGS[stage], file) for stage, file in zip(stages, files)]
    first, stage = recipes[0], stages[0]
    if stage != _PRETRAIN:
        model = _model_at(_start_of(first, settings), stage)
        phase = _tuning_phase(first, settings, stage, files[0])
        return _Wanted(stage, model, [phase], [_layout_of(first, files[0], machine, phase, always=True)])
    if settings.path:
        raise ConfigError("give a size or a recipe of `herd pretrain`, not both")
    parts, own = [], []
    for recipe, file in zip(recipes, files):
        found = _phases(recipe, file, settings)
        parts += found
        own += [_layout_of(recipe, file, machine, found[0])] * len(found)
    return _Wanted(stage, _model_of(first, files[0]), parts, own)


def _stage_of(file: Path) -> str:
    """The stage whose recipe this is: each has a setting of its own."""
    names = configs.recipe_keys(file)
    own = {"conversations": "sft", "beta": "dpo", "nll": "dpo", "holdout": "reward", "pairs": "dpo"}
    return next((stage for name, stage in own.items() if name in names), _PRETRAIN)


def _start_of(recipe: SftSettings | RewardSettings | DpoSettings, settings: PlanSettings) -> str:
    """The size or folder of the model that is fine-tuned."""
    if settings.path:
        return settings.path
    if not recipe.checkpoint.exists():
        raise ConfigError(
            f"{recipe.checkpoint}: the recipe's checkpoint is not there yet; say of which size it will be "
            f"(herd plan {settings.recipe[0]} 8B)"
        )
    return str(recipe.checkpoint)


def _tuning_phase(
    recipe: SftSettings | RewardSettings | DpoSettings, settings: PlanSettings, stage: str, file: Path
) -> Phase:
    batch = recipe.batch
    rows = max(round(batch.tokens / batch.row_tokens), 1)
    tokens = settings.tokens or recipe.epochs * _tokens_of(recipe.conversations if stage == "sft" else recipe.pairs)
    steps = max(round(tokens / (rows * batch.row_tokens)), 1) if tokens else _TUNING_STEPS
    optimizer = _optimizer_of(recipe, settings)
    return Phase(file.stem, batch.row_tokens, rows * batch.row_tokens, steps, optimizer, stage in _WHOLE_ROWS)


def _optimizer_of(recipe: object, settings: PlanSettings) -> OptimizerSettings:
    asked = settings.optimizer
    return replace(recipe.optimizer, state=asked.state, lora=asked.lora) if is_narrow(asked) else recipe.optimizer


def _tokens_of(files: list[Path]) -> float:
    """About how many tokens JSONL or Parquet files hold; 0 where they are not there yet."""
    found = [part for file in files for part in (file.rglob("*") if file.is_dir() else [file]) if part.is_file()]
    return sum(part.stat().st_size for part in found) / _BYTES_PER_TOKEN


def _model_of(recipe: PretrainSettings, file: Path) -> ModelConfig:
    """The shape that is trained. Of a checkpoint that is not there yet the recipe may say it."""
    if recipe.checkpoint is not None and recipe.checkpoint.exists():
        return open_checkpoint(recipe.checkpoint).config
    if recipe.checkpoint is not None and "model" not in configs.recipe_keys(file):
        raise ConfigError(
            f"{file}: its checkpoint {recipe.checkpoint} is not there yet, and it says no `model`; plan it behind the "
            "recipe that makes it (herd plan FIRST.yaml THEN.yaml)"
        )
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
            _optimizer_of(recipe, settings),
        )
        for number, (part, end) in enumerate(zip(parts, ends), 1)
        if end > part.step
    ]


def _layout_of(
    recipe: PretrainSettings | SftSettings | RewardSettings | DpoSettings,
    file: Path,
    machine: Machine,
    phase: Phase,
    always: bool = False,
) -> Layout | None:
    """The recipe's own layout on this many devices; None where there is none and the best one is looked for.

    Fine-tuning is laid out as its recipe says in any case (`always`).

    Raises:
        ConfigError: the trainer refuses to learn so on that layout.
    """
    parallel = recipe.parallel
    if parallel == type(parallel)() and not always:
        return None
    inside = parallel.tensor * parallel.context * parallel.pipeline
    if machine.count % inside:
        say(f"{file}: its layout takes a multiple of {inside:,} devices; the best for {machine.count:,} is looked for")
        return None
    data = machine.count // inside
    replicas = 1 if data % parallel.shard else data // parallel.shard
    recompute = recipe.recompute if always else recipe.run.recompute
    layout = Layout(
        tensor=parallel.tensor,
        context=parallel.context,
        pipeline=parallel.pipeline,
        data=data,
        virtual=parallel.interleave,
        contiguous=parallel.contiguous,
        micro_rows=_rows_at_once(recipe.batch, data),
        reshard=parallel.reshards and data // replicas * parallel.context > 1,
        recompute="full" if recompute == 1 else "light" if machine.on_gpu else "off",
        replicas=replicas,
        layers=tuple(parallel.layers),
    )
    if refused := mesh_faults(phase.optimizer, layout.parallel, phase.whole_rows):
        raise ConfigError(f"{file}: parallel: " + "\n  ".join(refused))
    return layout


def _rows_at_once(batch: BatchSettings, data: int) -> int:
    """Rows of a micro-batch, as the loader cuts a process's share of a step into equal ones."""
    share = max(round(batch.tokens / batch.row_tokens) // data, 1)
    parts = -(-share // max(batch.micro_tokens // batch.row_tokens, 1))
    return -(-share // parts)


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
    wanted = _from_recipes(settings, machine)
    short, long = published.TABLE_4[1:]
    planned = [
        lay_out(wanted.model, machine, phase, (long if phase.row_tokens == long.row_tokens else short).layout)
        for phase in wanted.phases
    ]
    return summed(wanted.model, machine, planned).device_hours


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
