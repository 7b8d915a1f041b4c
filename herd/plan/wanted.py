"""What is to be planned: a model and the stretches of its run, by a size or by the recipes of a training."""

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
from herd.plan.layout import Layout
from herd.plan.project import Machine, Phase
from herd.train.optimizer import OptimizerSettings, is_narrow, mesh_faults
from herd.train.schedule import BatchSettings, phases, steps_for

PRETRAIN = "pretrain"
STAGES = (PRETRAIN, "sft", "distill", "reward", "dpo")
"""The stages that can be planned."""

_WHOLE_ROWS = ("distill", "reward", "dpo")
_TUNING_STEPS = 9_000  # of the paper's largest models (section 4.1.3: 8.5K to 9K)
_TUNING_BATCH = 262_144  # tokens: the paper does not say
_BYTES_IN_A_SHARD = 4  # of a token: uint32
_BYTES_PER_TOKEN = 4.4  # about, of English text under Llama 3's tokenizer


@dataclass(frozen=True)
class Asked:
    """What a person says beside or instead of a recipe: `herd plan`'s settings of these names."""

    path: str | None = None
    stage: str = "auto"
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    tokens: float | None = None
    batch_tokens: int | None = None
    row_tokens: int | None = None


@dataclass(frozen=True)
class Recipe:
    """A recipe of a training: its file, its stage (one of `STAGES`), and the settings it gives that stage."""

    file: Path
    stage: str
    settings: Any


@dataclass(frozen=True)
class Wanted:
    """What is planned: a model, the stretches of its run, and for each its recipe's own layout if it has one."""

    stage: str
    model: ModelConfig
    phases: list[Phase]
    layouts: list[Layout | None]  # of each phase

    @property
    def tuning(self) -> bool:
        return self.stage != PRETRAIN

    def check_rank(self) -> None:
        """Adapters as the trainer takes them.

        Raises:
            ConfigError: their rank is above the model's width.
        """
        rank, width = self.phases[0].optimizer.lora.rank, self.model.hidden_size
        if rank > width:
            raise ConfigError(
                f"optimizer.lora.rank {rank:,} is more than the model's width ({width:,}): 8 to 64 are usual"
            )


def stage_of(file: Path) -> str:
    """The stage whose recipe this is: each has a setting of its own."""
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
    """What is planned where a size or a model's folder is given, without a recipe.

    Raises:
        ConfigError: no such size or folder, or a batch smaller than a row.
    """
    narrow = is_narrow(asked.optimizer)
    stage = asked.stage if asked.stage != "auto" else "sft" if narrow else PRETRAIN
    assert asked.path is not None  # a size or a recipe is given
    model = _model_at(asked.path, stage)
    found = hyperparameters(num_parameters(model))
    row_tokens = asked.row_tokens or (8192 if model.hidden_size >= 2048 else 2048)
    if asked.batch_tokens and asked.batch_tokens < row_tokens:
        raise ConfigError(f"batch_tokens {asked.batch_tokens:,} must hold at least one row of {row_tokens:,} tokens")
    batch = asked.batch_tokens or (found.batch_tokens if stage == PRETRAIN else _TUNING_BATCH)
    batch = max(batch // row_tokens, 1) * row_tokens
    tokens = asked.tokens or (found.tokens if stage == PRETRAIN else _TUNING_STEPS * batch)
    name = "pre-train" if stage == PRETRAIN else stage
    steps = max(round(tokens / batch), 1)
    phase = Phase(name, row_tokens, batch, steps, asked.optimizer, stage in _WHOLE_ROWS)
    return Wanted(stage, model, [phase], [None])


def from_recipes(recipes: list[Recipe], asked: Asked, machine: Machine) -> Wanted:
    """What is planned where recipes are given: the stages of one pre-training in their order, or one fine-tuning.

    Raises:
        ConfigError: recipes that do not belong together, a shape that nobody says, a layout the trainer refuses.
    """
    stages = [recipe.stage for recipe in recipes]
    if len(recipes) > 1 and set(stages) != {PRETRAIN}:
        raise ConfigError(f"recipe: several are planned together of pretrain alone, and these are of {stages}")
    first = recipes[0]
    if first.stage != PRETRAIN:
        model = _model_at(_start_of(first, asked), first.stage)
        phase = _tuning_phase(first, asked)
        return Wanted(first.stage, model, [phase], [_layout_of(first, machine, phase, always=True)])
    if asked.path:
        raise ConfigError("give a size or a recipe of `herd pretrain`, not both")
    parts, own = [], []
    for recipe in recipes:
        found = _phases(recipe, asked)
        parts += found
        own += [_layout_of(recipe, machine, found[0])] * len(found)
    return Wanted(first.stage, _model_of(first), parts, own)


def _model_at(path: str, stage: str) -> ModelConfig:
    """The shape of a size by its name, or of a model folder."""
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
    """The size or folder of the model that is fine-tuned."""
    if asked.path:
        return asked.path
    checkpoint = recipe.settings.checkpoint
    if not checkpoint.exists():
        raise ConfigError(
            f"{checkpoint}: the recipe's checkpoint is not there yet; say of which size it will be "
            f"(herd plan {recipe.file} 8B)"
        )
    return str(checkpoint)


def _tuning_phase(recipe: Recipe, asked: Asked) -> Phase:
    told, batch = recipe.settings, recipe.settings.batch
    rows = max(round(batch.tokens / batch.row_tokens), 1)
    tokens = asked.tokens or told.epochs * _tokens_learned(recipe)
    steps = max(round(tokens / (rows * batch.row_tokens)), 1) if tokens else _TUNING_STEPS
    optimizer, whole_rows = _optimizer_of(recipe, asked), recipe.stage in _WHOLE_ROWS
    return Phase(recipe.file.stem, batch.row_tokens, rows * batch.row_tokens, steps, optimizer, whole_rows)


def _optimizer_of(recipe: Recipe, asked: Asked) -> OptimizerSettings:
    own, instead = recipe.settings.optimizer, asked.optimizer
    return replace(own, state=instead.state, lora=instead.lora) if is_narrow(instead) else own


def _tokens_learned(recipe: Recipe) -> float:
    """About how many tokens an epoch of a fine-tuning has; 0 where its data are not there yet."""
    told = recipe.settings
    if recipe.stage == "distill":
        say(f"{recipe.file}: the teacher reads everything once before the student learns; that is not in this plan")
    if recipe.stage == "distill" and told.shards:
        return sum(part.stat().st_size for part in (told.shards / "train").glob("*.npy")) / _BYTES_IN_A_SHARD
    return _tokens_of(told.pairs if recipe.stage in ("reward", "dpo") else told.conversations)


def _tokens_of(files: list[Path]) -> float:
    """About how many tokens JSONL or Parquet files hold; 0 where they are not there yet."""
    found = [part for file in files for part in (file.rglob("*") if file.is_dir() else [file]) if part.is_file()]
    return sum(part.stat().st_size for part in found) / _BYTES_PER_TOKEN


def _model_of(recipe: Recipe) -> ModelConfig:
    """The shape that is trained. Of a checkpoint that is not there yet the recipe may say it."""
    told = recipe.settings
    if told.checkpoint is not None and told.checkpoint.exists():
        return open_checkpoint(told.checkpoint).config
    if told.checkpoint is not None and "model" not in configs.recipe_keys(recipe.file):
        raise ConfigError(
            f"{recipe.file}: its checkpoint {told.checkpoint} is not there yet, and it says no `model`; plan it "
            "behind the recipe that makes it (herd plan FIRST.yaml THEN.yaml)"
        )
    rows = _rows_of(told.tokenizer)
    names = {one.name for one in fields(ModelConfig)}
    given = configs.to_dict(told.model)
    shape = {name: value for name, value in given.items() if name in names and value is not None}
    return ModelConfig(**shape, vocab_size=rows)


def _rows_of(tokenizer: Path) -> int:
    """Rows of the vocabulary; Llama 3's where the tokenizer is not there yet."""
    return open_tokenizer(tokenizer).vocab_size if tokenizer.exists() else LLAMA3_ROWS


def _phases(recipe: Recipe, asked: Asked) -> list[Phase]:
    batch, file = recipe.settings.batch, recipe.file
    own = recipe.settings.tokens
    if recipe.settings.flops is not None:
        own = recipe.settings.flops / flops_per_token(_model_of(recipe), batch.row_tokens)
    num_steps = steps_for(batch, asked.tokens or own)
    parts = phases(batch, num_steps, {"all": 1.0})
    ends = [part.step for part in parts[1:]] + [num_steps]
    return [
        Phase(
            file.stem if len(parts) == 1 else f"{file.stem} {number}",
            part.row_tokens,
            max(round(part.batch_tokens / part.row_tokens), 1) * part.row_tokens,
            end - part.step,
            _optimizer_of(recipe, asked),
        )
        for number, (part, end) in enumerate(zip(parts, ends), 1)
        if end > part.step
    ]


def _layout_of(recipe: Recipe, machine: Machine, phase: Phase, always: bool = False) -> Layout | None:
    """The recipe's own layout on this many devices; None where there is none and the best one is looked for.

    Fine-tuning is laid out as its recipe says in any case (`always`).

    Raises:
        ConfigError: the trainer refuses to learn so on that layout.
    """
    told, file, parallel = recipe.settings, recipe.file, recipe.settings.parallel
    if parallel == type(parallel)() and not always:
        return None
    inside = parallel.tensor * parallel.context * parallel.pipeline
    if machine.count % inside:
        say(f"{file}: its layout takes a multiple of {inside:,} devices; the best for {machine.count:,} is looked for")
        return None
    data = machine.count // inside
    replicas = 1 if data % parallel.shard else data // parallel.shard
    recompute = told.recompute
    layout = Layout(
        tensor=parallel.tensor,
        context=parallel.context,
        pipeline=parallel.pipeline,
        data=data,
        virtual=parallel.interleave,
        contiguous=parallel.contiguous,
        micro_rows=_rows_at_once(told.batch, data),
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
