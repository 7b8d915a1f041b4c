"""Tune a model on your own rows: their kind is detected, and the effect of training is measured.

    herd tune BASE DATA                         a checkpoint, and a CSV, JSONL, Parquet, text file or folder
    herd tune BASE reviews.csv look=true        only show what would be done

Rows may be raw text, conversations (or questions with answers), texts with a label, or preferences. A fifth is held
out; the model is compared before and after on it, and on general text. docs/tuning.md lists the forms of rows.
"""

from __future__ import annotations

import json
from dataclasses import field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from rich.console import Console

from herd.config import load, settings
from herd.data.coloured import colour
from herd.data.preferences import load_pairs
from herd.data.rows import RowSettings
from herd.data.talks import Notes
from herd.errors import ConfigError, DataError
from herd.formats.checkpoint import Checkpoint, open_checkpoint
from herd.log import amount, duration, say
from herd.model.config import SEQUENCE_CLASSIFICATION, num_parameters
from herd.model.llama import LlamaForCausalLM, LlamaForSequenceClassification
from herd.parallel.launch import agreed
from herd.plan.measured import this_machine
from herd.run import atomic_write
from herd.tokenizer.chat import format_name, in_format, stops
from herd.tokenizer.tokenizer import Tokenizer
from herd.train.checkpoint import is_first
from herd.train.compile import Compile
from herd.train.job import Job, training_as
from herd.train.lora import has_adapters, merged_model
from herd.train.objectives import dpo, next_token
from herd.train.reference import log_probs
from herd.train.schedule import ScheduleSettings, steps_for
from herd.train.settings import Dtype, TuneSettings
from herd.train.validation import KeptAside, ValidationSettings, history
from herd.tuning import results
from herd.tuning.judging import General, Measured, general_text, measured, read_measured, write_measured
from herd.tuning.labels import labelled
from herd.tuning.material import Entry, Material, classified, split, split_pairs, talks, texts
from herd.tuning.reading import Kind, Placed, by_split, kind_of, read
from herd.tuning.ways import NAMES, Way, batch_for, chosen, distance_for, epochs_for, minutes_for, ways

_KINDS = {
    "text": "raw text: pre-training is continued, all of it is learned",
    "chat": "conversations: what the assistant says is learned",
    "label": "texts with a label: the label is learned",
    "preferences": "preferences: DPO",
}
_FORMATS = ("llama3", "chatml", "vicuna")  # tried in this order, where a base model has none


@settings
class TuneOwnSettings:
    """Tune a model on your own rows."""

    bare_words: ClassVar[tuple[str, ...]] = ("path", "data")
    may_change: ClassVar[tuple[str, ...]] = ("look",)

    path: Path
    """The base model: a checkpoint, or a run folder with one."""
    data: Path
    """Your rows: a file (CSV, TSV, JSONL, JSON, Parquet, or text) or a folder of them."""
    out: Path = Path("runs/tuned")
    """Run folder to write."""
    kind: Literal["auto", "text", "chat", "label", "preferences"] = "auto"
    """Kind of the rows; auto: detected and printed."""
    rows: RowSettings = field(default_factory=RowSettings)
    """How rows are read: column names, weights of files, treatment of long rows."""
    judge_on: Path | None = None
    """File or folder of test rows; default: a fifth of the rows, split by prompt, or a folder's own test file."""
    general: Path | None = None
    """Text file to measure forgetting on; default: two dozen passages that come with Herd."""
    method: Literal["auto", "full", "lora", "qlora"] = "auto"
    """Which weights are trained; auto: chosen by the rows and the memory."""
    ask: str = ""
    """The question for label tasks, with {text} and {labels} as placeholders."""
    template: str | None = None
    """Chat format for a base model without one; default: the first of llama3, chatml and vicuna that its vocabulary
    supports."""
    epochs: float | None = None
    """Most passes over the rows; default: depends on their number."""
    max_steps: int | None = None
    """Most steps."""
    minutes: float | None = None
    """Planned time limit in minutes, including all measurements; default: 10 for up to 1,000 rows if neither epochs nor
    max_steps is given."""
    learning_rate: float | None = None
    """Peak learning rate; default: depends on the method and the model's width."""
    batch_tokens: int | None = None
    """Tokens per step; default: such that an epoch has about 32 steps."""
    longest_tokens: int = 2048
    """Longest training row, in tokens; at most the model's context."""
    answers: int = 3
    """Held-out questions answered before and after, for the page."""
    look: bool = False
    """Only show the kind of the rows and the plan."""
    dtype: Dtype = "auto"
    """Number type of weights and activations."""
    compile: Compile = "auto"
    """What to compile with a C++ or Triton compiler."""
    seed: int = 0
    """Seed of the row order."""

    def __post_init__(self) -> None:
        numbers = {
            name: getattr(self, name) for name in ("epochs", "max_steps", "minutes", "learning_rate", "batch_tokens")
        }
        if bad := [name for name, value in numbers.items() if value is not None and value <= 0]:
            raise ValueError(f"{', '.join(bad)} must be positive")
        if self.longest_tokens < 16 or self.answers < 0:
            raise ValueError("longest_tokens must be at least 16, answers 0 or more")
        if self.ask and "{text}" not in self.ask:
            raise ValueError("ask must contain {text}, the place of the text")


def tune(base: Path | str, data: Path | str, **options: Any) -> dict[str, Any]:
    """Tune a model on rows, like `herd tune`; returns the content of `results.json` and the run folder as `path`.

    `options` are the settings of `herd tune` by name, with dots as in `{"rows.columns": {...}}`.
    """
    words = [
        f"{name}={json.dumps(str(value) if isinstance(value, Path) else value)}" for name, value in options.items()
    ]
    path = run(load(TuneOwnSettings, None, [f"path={json.dumps(str(base))}", f"data={json.dumps(str(data))}", *words]))
    file = path / results.RESULTS
    return {"path": path} | (json.loads(file.read_text(encoding="utf-8")) if file.exists() else {})


def run(settings: TuneOwnSettings) -> Path:
    """Show the kind of the rows, train on them, and write the adapter or checkpoint and the results."""
    base = open_checkpoint(settings.path)
    config = base.learnable_config()
    if config.architecture == SEQUENCE_CLASSIFICATION:
        raise ConfigError(f"{settings.path} is a reward model; give a language model")
    material, tokenizer, template = _material(settings, base)
    general = general_text(settings.general, tokenizer)
    _show(material, tokenizer)
    settings_of_run, way = _settled(settings, material, general, config, template)
    if settings.look:
        say("  nothing is run: look=true")
        return settings.out
    own = {name: getattr(settings, name) for name in ("data", "judge_on", "general")}
    with training_as(settings, settings_of_run, "tune", {"checkpoint": settings.path} | own) as job:
        if not job.finished:
            job.start_from(settings.path, whole_rows=material.kind == "preferences")
            _learn(settings, job, material, general, way)
    if is_first():
        results.tell(settings.out)
    return settings.out


# ---- rows ------------------------------------------------------------------------------------------------------------


def _material(settings: TuneOwnSettings, base: Checkpoint) -> tuple[Material, Tokenizer, str | None]:
    """The rows split into parts, the tokenizer with their chat format, and that format's name if it is new."""
    paths, judged_paths = by_split([settings.data])
    judged_paths = [settings.judge_on] if settings.judge_on else judged_paths
    rows = read(paths, settings.rows)
    judged = read(judged_paths, replace(settings.rows, weights={})) if judged_paths else None
    kind, shape = kind_of(rows)
    if settings.kind != "auto":
        kind, shape = settings.kind, f"kind={settings.kind}, as you say"
    if judged and settings.kind == "auto" and kind_of(judged)[0] != kind:
        raise DataError(f"the rows to judge on are {kind_of(judged)[0]}, those to learn from {kind}")
    say(f"  {settings.data}: {len(rows):,} rows ({shape}): {_KINDS[kind]}")
    tokenizer, template = _written(base.tokenizer, kind, settings.template)
    longest = min(settings.longest_tokens, base.config.max_position_embeddings)
    if kind == "preferences":
        pairs = load_pairs(paths, tokenizer, 2 * longest, options=settings.rows, context=longest)
        own = load_pairs(judged_paths, tokenizer, 2 * longest, context=longest) if judged_paths else None
        return split_pairs(pairs, own, tokenizer), tokenizer, template
    notes = Notes()
    entries, labels = _entries(kind, rows, tokenizer, longest, settings, notes, None)
    own_entries = _entries(kind, judged, tokenizer, longest, settings, notes, rows)[0] if judged else None
    notes.tell()
    material = split(kind, entries, tokenizer, own_entries, labels)
    return replace(material, left_out=notes.left_out), tokenizer, template


def _entries(
    kind: Kind,
    rows: list[Placed],
    tokenizer: Tokenizer,
    longest: int,
    settings: TuneOwnSettings,
    notes: Notes,
    like: list[Placed] | None,
) -> tuple[list[Entry], tuple[str, ...]]:
    """Rendered rows, and the labels: those of `like`, if given."""
    if kind == "text":
        return texts(rows, tokenizer, longest, notes), ()
    if kind == "chat":
        return talks(rows, tokenizer, longest, settings.rows.too_long, notes), ()
    known = labelled(like or rows, settings.ask)
    return classified(rows, tokenizer, longest, settings.rows.too_long, notes, known), known.labels


def _written(tokenizer: Tokenizer, kind: Kind, wish: str | None) -> tuple[Tokenizer, str | None]:
    """The tokenizer with a chat format, and that format's name if the checkpoint had none."""
    if wish is not None:
        return in_format(tokenizer, wish), wish
    if kind == "text" or tokenizer.chat_template is not None:
        return tokenizer, None
    for name in _FORMATS:
        try:
            formatted = in_format(tokenizer, name)
        except ConfigError:
            continue
        say(f"  the checkpoint has no chat format; rows are written in {format_name(formatted)}, also in the result")
        return formatted, name
    raise ConfigError(
        "the checkpoint has no chat format, and its vocabulary supports none; give one: template=FILE.jinja"
    )


def _show(material: Material, tokenizer: Tokenizer) -> None:
    """Print the sizes of the parts, and a rendered row with the trained tokens in colour."""
    parts = (material.learned, material.watched, material.judged)
    counts = [f"{len(part):,} {what}" for part, what in zip(parts, ("learned", "watched while learning", "judged on"))]
    say(f"  {', '.join(counts)}; {amount(material.num_tokens)} tokens learned from")
    if material.kind == "label":
        say(f"  labels: {', '.join(material.labels)}")
    if not is_first():
        return
    console = Console(highlight=False, soft_wrap=True)
    for name, rendered in zip(material.labels if material.kind == "preferences" else ("one row",), material.sample):
        console.rule(f"{name}: what is learned is {'green' if console.is_terminal else 'between ⟦ and ⟧'}", style="dim")
        console.print(colour(tokenizer, rendered, marks=not console.is_terminal))
    console.rule(style="dim")


# ---- training --------------------------------------------------------------------------------------------------------


def _settled(
    settings: TuneOwnSettings, material: Material, general: General, config: Any, template: str | None
) -> tuple[TuneSettings, Way]:
    """The settings of the training, and the method; a resumed run keeps its method."""
    longest = min(settings.longest_tokens, config.max_position_embeddings)
    batch = batch_for(material, longest, settings.batch_tokens)
    epochs = settings.epochs or epochs_for(material)
    whole = steps_for(batch, epochs * material.num_tokens)
    minutes = minutes_for(
        material, settings.minutes, length_is_given=settings.epochs is not None or settings.max_steps is not None
    )
    tokens, wished = int(general.documents.num_tokens.sum()), min(whole, settings.max_steps or whole)
    options = ways(material, config, this_machine(), batch, wished, minutes, tokens)
    begun, wish = settings.out / "way.json", settings.method
    kept = json.loads(begun.read_text(encoding="utf-8")) if agreed(begun.exists) else {}
    if wish == "auto":
        wish = kept.get("method", wish)
    way, why = agreed(lambda: chosen(options, material, num_parameters(config), wish))
    way = replace(way, steps=kept.get("steps", way.steps))
    for one in options:
        say(f"    {'>' if one.method == way.method else ' '} {one}")
    rate = settings.learning_rate or way.optimizer.learning_rate
    say(
        f"  {NAMES[way.method]}: {why}; at most {way.steps:,} steps of {amount(batch.tokens)} tokens "
        f"({epochs * way.steps / whole:.2g} epochs), rate {rate:g}, about {duration(way.seconds)} by plan"
    )
    if way.steps < wished:
        say(f"  {epochs:g} epochs take {wished:,} steps, and {minutes:g} minutes were planned for; minutes= gives more")
    distance = distance_for(material, batch, way.steps)
    chosen_settings = TuneSettings(
        checkpoint=settings.path,
        out=settings.out,
        epochs=epochs,
        max_steps=way.steps,
        template=template,
        batch=batch,
        optimizer=replace(way.optimizer, learning_rate=rate),
        schedule=ScheduleSettings(warmup_share=0.05, final_share=0.1),
        validation=ValidationSettings(patience=3, every_steps=distance),
        recompute=way.recompute,
        dtype=settings.dtype,
        compile=settings.compile,
        seed=settings.seed,
    )
    return chosen_settings, way


def _learn(settings: TuneOwnSettings, job: Job, material: Material, general: General, way: Way) -> None:
    """Measure, train, measure again, and write the results."""
    folder, batch = job.run.path, job.settings.batch
    if is_first():
        atomic_write(folder / "way.json", json.dumps({"method": way.method, "steps": way.steps}))
    how = {"row_tokens": batch.row_tokens, "micro_tokens": batch.micro_tokens} | job.placement.rows
    before, answered = _before(settings, job, material, general, how)
    figures = _trained(job, material)
    say("  measuring again")
    after = measured(job.model, material, general, **how)
    if isinstance(job.model, LlamaForCausalLM) and is_first():
        plain = merged_model(job.model) if has_adapters(job.model) else job.model
        assert isinstance(plain, LlamaForCausalLM)
        again = results.answers(plain, job.tokenizer, material, settings.answers)
    else:
        again = [""] * len(answered)
    if is_first():
        outcome = results.outcome(material, general, before, after)
        outcome |= {
            "facts": _facts(settings, material, general, way, figures),
            "commands": results.commands(settings.path, settings.out, way.method != "full"),
            "answers": results.beside(material, settings.answers, answered, again),
            "validation": history(folder),
            "left_out": dict(material.left_out),
        }
        results.write(folder, outcome)
    if material.kind != "text":
        job.model.config = replace(job.config, eos_token_id=stops(job.tokenizer))
    shown = {row["name"]: row["difference"][0] for row in outcome["figures"]} if is_first() else {}
    job.finish({"kind": material.kind, "method": way.method, "rows": len(material.learned)} | figures | shown)


def _before(
    settings: TuneOwnSettings, job: Job, material: Material, general: General, how: dict[str, int]
) -> tuple[Measured, list[str]]:
    """The base model's measurements, saved so that a resumed run does not repeat them."""
    file = job.run.path / "before.json"
    if agreed(file.exists):
        kept = json.loads(file.read_text(encoding="utf-8"))
        return read_measured(kept), kept["answers"]
    say("  measuring the base")
    before = measured(job.model, material, general, **how)
    given: list[str] = []
    if isinstance(job.model, LlamaForCausalLM):
        given = results.answers(job.model, job.tokenizer, material, settings.answers)
    if is_first():
        atomic_write(file, json.dumps(write_measured(before) | {"answers": given}))
    return before, given


def _trained(job: Job, material: Material) -> dict[str, Any]:
    chosen_settings: Any = job.settings
    options = {"epochs": chosen_settings.epochs, "max_steps": chosen_settings.max_steps}
    learned, watched = material.learned, material.watched
    if learned.pairs is None or watched.pairs is None:
        aside = KeptAside({"rows": watched.documents})
        return job.learn(next_token, {"rows": learned.documents}, aside=aside, **options)
    batch, pairs = chosen_settings.batch, []
    assert not isinstance(job.model, LlamaForSequenceClassification)
    for part in (learned.pairs, watched.pairs):
        how = {"row_tokens": batch.row_tokens, "micro_tokens": batch.micro_tokens} | job.placement.rows
        pairs.append(part.with_reference(log_probs(job.model, part, **how)))
    aside = KeptAside({"pairs": pairs[1].documents}, pairs[1].dpo_columns)
    return job.learn(dpo, {"pairs": pairs[0].documents}, columns=pairs[0].dpo_columns, aside=aside, **options)


def _facts(
    settings: TuneOwnSettings, material: Material, general: General, way: Way, figures: dict[str, Any]
) -> dict[str, Any]:
    parts = (len(part) for part in (material.learned, material.watched, material.judged))
    left_out = ", ".join(f"{what} ({count:,})" for what, count in material.left_out.items())
    return {
        "base": str(settings.path),
        "data": str(settings.data),
        "rows are": _KINDS[material.kind],
        "rows learned, watched, judged on": ", ".join(f"{count:,}" for count in parts),
        "left out": left_out or "nothing",
        "learned": NAMES[way.method],
        "steps": figures["steps"],
        "step whose weights are kept": f"{figures['validation_step']:.0f}",
        "general text": general.source,
    }
