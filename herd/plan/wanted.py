"""What is to be planned: a model and the phases of its run, from a size or from recipes."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from herd import config as configs
from herd.errors import ConfigError
from herd.formats.checkpoint import open_checkpoint
from herd.formats.vocabulary import open_tokenizer
from herd.log import say
from herd.model.config import ModelConfig, num_parameters
from herd.model.flops import flops_per_token
from herd.model.reward import reward_config
from herd.model.sizes import LLAMA3_ROWS, hyperparameters, model_of_size
from herd.plan.layout import PlanLayout
from herd.plan.project import Machine, RunPhase
from herd.train.optimizer import OptimizerSettings, is_narrow, mesh_faults
from herd.train.schedule import BatchSettings, phases, steps_for

PRETRAIN = "pretrain"
STAGES = (PRETRAIN, "sft", "distill", "reward", "dpo")
"""The stages that can be planned."""

_WHOLE_ROWS = ("distill", "reward", "dpo")
_TUNING_STEPS = 9_000  # of Llama 3's largest models (paper, section 4.1.3: 8.5K to 9K)
_TUNING_BATCH = 262_144  # tokens: the paper does not say
_BYTES_IN_A_SHARD = 4  # of a token: uint32
_BYTES_PER_TOKEN = 4.4  # about, for English text with Llama 3's tokenizer


@dataclass(frozen=True)
class Asked:
    """`herd plan`'s settings that complement or replace a recipe."""

    path: str | None = None
    stage: str = "auto"
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    tokens: float | None = None
    batch_tokens: int | None = None
    row_tokens: int | None = None


@dataclass(frozen=True)
class Recipe:
    """A training recipe: its file, its stage (one of `STAGES`), and that stage's settings."""

    file: Path
    stage: str
    settings: Any


@dataclass(frozen=True)
class Wanted:
    """What is planned: a model, the phases of its run, and for each its recipe's layout if it has one."""

    stage: str
    model: ModelConfig
    phases: list[RunPhase]
    layouts: list[PlanLayout | None]  # of each phase

    @property
    def tuning(self) -> bool:
        return self.stage != PRETRAIN

    def check_rank(self) -> None:
        """Check the rank of adapters as the trainer does.

        Raises:
            ConfigError: it is above the model's hidden size.
        """
        rank, width = self.phases[0].optimizer.lora.rank, self.model.hidden_size
        if rank > width:
            raise ConfigError(f"optimizer.lora.rank {rank:,} is more than hidden_size ({width:,}): 8 to 64 are usual")


def stage_of(file: Path) -> str:
    """The stage of a recipe, recognized by a setting that only it has."""
    names = configs.recipe_keys(file)
    own = {
        "teacher": "distill",
        "conversations": "sft",
        "beta": "dpo",
        "nll": "dpo",
        "holdout": "reward",
        "pairs": "dpo",
    }
    return next((stage for name, stage in own.items() if name in names), PRETRAIN)


def from_size(asked: Asked) -> Wanted:
    """The plan's subject for a size or a model's folder, without a recipe.

    Raises:
        ConfigError: no such size or folder, or a batch smaller than a row.
    """
    narrow = is_narrow(asked.optimizer)
    stage = asked.stage if asked.stage != "auto" else "sft" if narrow else PRETRAIN
    assert asked.path is not None  # a size or a recipe is given
    model = _model_at(asked.path, stage)
    usual = hyperparameters(num_parameters(model))
    row_tokens = asked.row_tokens or (8192 if model.hidden_size >= 2048 else 2048)
    if asked.batch_tokens and asked.batch_tokens < row_tokens:
        raise ConfigError(f"batch_tokens {asked.batch_tokens:,} must hold at least one row of {row_tokens:,} tokens")
    batch = asked.batch_tokens or (usual.batch_tokens if stage == PRETRAIN else _TUNING_BATCH)
    batch = max(batch // row_tokens, 1) * row_tokens
    tokens = asked.tokens or (usual.tokens if stage == PRETRAIN else _TUNING_STEPS * batch)
    name = "pre-train" if stage == PRETRAIN else stage
    steps = max(round(tokens / batch), 1)
    phase = RunPhase(name, row_tokens, batch, steps, asked.optimizer, stage in _WHOLE_ROWS)
    return Wanted(stage, model, [phase], [None])


def from_recipes(recipes: list[Recipe], asked: Asked, machine: Machine) -> Wanted:
    """The plan's subject for recipes: the stages of one pre-training in order, or one fine-tuning.

    Raises:
        ConfigError: recipes that do not belong together, an unknown model shape, a layout that the trainer refuses.
    """
    stages = [recipe.stage for recipe in recipes]
    if len(recipes) > 1 and set(stages) != {PRETRAIN}:
        raise ConfigError(f"recipe: only recipes of pretrain can be planned together; these are of {stages}")
    first = recipes[0]
    if first.stage != PRETRAIN:
        model = _model_at(_start_of(first, asked), first.stage)
        phase = _tuning_phase(first, asked)
        return Wanted(first.stage, model, [phase], [_layout_of(first, machine, phase, always=True)])
    if asked.path:
        raise ConfigError("give a size or a recipe of `herd pretrain`, not both")
    parts, own = [], []
    for recipe in recipes:
        phases_here = _phases(recipe, asked)
        parts += phases_here
        own += [_layout_of(recipe, machine, phases_here[0])] * len(phases_here)
    return Wanted(first.stage, _model_of(first), parts, own)


def _model_at(path: str, stage: str) -> ModelConfig:
    """The shape for a size, or of a model folder."""
    place = Path(path)
    if place.exists():
        model = open_checkpoint(place).config
    else:
        try:
            model = model_of_size(path)
        except ValueError as error:
            raise ConfigError(f"{error}; and there is no folder {path}") from None
    return reward_config(model) if stage == "reward" else model


def _start_of(recipe: Recipe, asked: Asked) -> str:
    """The size or folder of the model to be fine-tuned."""
    if asked.path:
        return asked.path
    checkpoint = recipe.settings.checkpoint
    if not checkpoint.exists():
        raise ConfigError(
            f"{checkpoint}: the recipe's checkpoint does not exist yet; give its size (herd plan {recipe.file} 8B)"
        )
    return str(checkpoint)


def _tuning_phase(recipe: Recipe, asked: Asked) -> RunPhase:
    settings, batch = recipe.settings, recipe.settings.batch
    rows = max(round(batch.tokens / batch.row_tokens), 1)
    tokens = asked.tokens or settings.epochs * _tokens_learned(recipe)
    steps = max(round(tokens / (rows * batch.row_tokens)), 1) if tokens else _TUNING_STEPS
    optimizer, whole_rows = _optimizer_of(recipe, asked), recipe.stage in _WHOLE_ROWS
    return RunPhase(recipe.file.stem, batch.row_tokens, rows * batch.row_tokens, steps, optimizer, whole_rows)


def _optimizer_of(recipe: Recipe, asked: Asked) -> OptimizerSettings:
    own, instead = recipe.settings.optimizer, asked.optimizer
    return replace(own, state=instead.state, lora=instead.lora) if is_narrow(instead) else own


def _tokens_learned(recipe: Recipe) -> float:
    """About how many tokens an epoch of fine-tuning has; 0 if its data do not exist yet."""
    settings = recipe.settings
    if recipe.stage == "distill":
        say(f"{recipe.file}: the teacher's pass over the data before training is not included in this plan")
    if recipe.stage == "distill" and settings.shards:
        return sum(part.stat().st_size for part in (settings.shards / "train").glob("*.npy")) / _BYTES_IN_A_SHARD
    return _tokens_of(settings.pairs if recipe.stage in ("reward", "dpo") else settings.conversations)


def _tokens_of(files: list[Path]) -> float:
    """About how many tokens JSONL or Parquet files hold; 0 if they do not exist yet."""
    parts = [part for file in files for part in (file.rglob("*") if file.is_dir() else [file]) if part.is_file()]
    return sum(part.stat().st_size for part in parts) / _BYTES_PER_TOKEN


def _model_of(recipe: Recipe) -> ModelConfig:
    """The model's shape: the checkpoint's, or the recipe's `model` if that does not exist yet."""
    settings = recipe.settings
    if settings.checkpoint is not None and settings.checkpoint.exists():
        return open_checkpoint(settings.checkpoint).config
    if settings.checkpoint is not None and "model" not in configs.recipe_keys(recipe.file):
        raise ConfigError(
            f"{recipe.file}: its checkpoint {settings.checkpoint} does not exist yet, and it has no `model`; plan it "
            "after the recipe that makes the checkpoint (herd plan FIRST.yaml THEN.yaml)"
        )
    rows = _rows_of(settings.tokenizer)
    names = {one.name for one in fields(ModelConfig)}
    given = configs.to_dict(settings.model)
    shape = {name: value for name, value in given.items() if name in names and value is not None}
    return ModelConfig(**shape, vocab_size=rows)


def _rows_of(tokenizer: Path) -> int:
    """Size of the vocabulary; Llama 3's if the tokenizer does not exist yet."""
    return open_tokenizer(tokenizer).vocab_size if tokenizer.exists() else LLAMA3_ROWS


def _phases(recipe: Recipe, asked: Asked) -> list[RunPhase]:
    batch, file = recipe.settings.batch, recipe.file
    own = recipe.settings.tokens
    if recipe.settings.flops is not None:
        own = recipe.settings.flops / flops_per_token(_model_of(recipe), batch.row_tokens)
    num_steps = steps_for(batch, asked.tokens or own)
    parts = phases(batch, num_steps, {"all": 1.0})
    ends = [part.step for part in parts[1:]] + [num_steps]
    return [
        RunPhase(
            file.stem if len(parts) == 1 else f"{file.stem} {number}",
            part.row_tokens,
            max(round(part.batch_tokens / part.row_tokens), 1) * part.row_tokens,
            end - part.step,
            _optimizer_of(recipe, asked),
        )
        for number, (part, end) in enumerate(zip(parts, ends), 1)
        if end > part.step
    ]


def _layout_of(recipe: Recipe, machine: Machine, phase: RunPhase, always: bool = False) -> PlanLayout | None:
    """The recipe's layout on this number of devices; None if it has none, so that the best one is used.

    With `always` (for fine-tuning) the recipe's default layout counts too.

    Raises:
        ConfigError: the trainer refuses that layout.
    """
    settings, file, parallel = recipe.settings, recipe.file, recipe.settings.parallel
    if parallel == type(parallel)() and not always:
        return None
    inside = parallel.tensor * parallel.context * parallel.pipeline
    if machine.count % inside:
        say(f"{file}: its layout needs a multiple of {inside:,} devices; the best one for {machine.count:,} is used")
        return None
    data = machine.count // inside
    replicas = 1 if data % parallel.shard else data // parallel.shard
    recompute = settings.recompute
    layout = PlanLayout(
        tensor=parallel.tensor,
        context=parallel.context,
        pipeline=parallel.pipeline,
        data=data,
        virtual=parallel.interleave,
        contiguous=parallel.contiguous,
        micro_rows=_rows_at_once(settings.batch, data),
        reshard=parallel.reshards and data // replicas * parallel.context > 1,
        recompute="full" if recompute == 1 else "light" if machine.on_gpu else "off",
        replicas=replicas,
        layers=tuple(parallel.layers),
    )
    if refused := mesh_faults(phase.optimizer, layout.parallel, phase.whole_rows):
        raise ConfigError(f"{file}: parallel: " + "\n  ".join(refused))
    return layout


def _rows_at_once(batch: BatchSettings, data: int) -> int:
    """Rows of a micro-batch, as the loader divides a process's share of a step evenly."""
    share = max(round(batch.tokens / batch.row_tokens) // data, 1)
    parts = -(-share // max(batch.micro_tokens // batch.row_tokens, 1))
    return -(-share // parts)
