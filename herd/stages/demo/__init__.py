"""The whole story on this machine: raw pages become a model you can talk to, in about ten minutes.

Every step is an ordinary stage with a recipe from `recipes/demo/`, in its own run folder. A finished step is skipped,
one that was interrupted continues, so the same command goes on wherever it was stopped. What depends on this machine's
speed is measured once, before training, and kept in `choices.json`: a continued run is the same run.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
import typing
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from herd import config
from herd.config import settings
from herd.data.loader import PackedLoader, Phase
from herd.data.shards import open_shards
from herd.errors import CapacityError
from herd.formats.vocabulary import open_tokenizer
from herd.log import amount, duration, say
from herd.model.init import initialize
from herd.model.llama import empty_model
from herd.ops.probe import best_dtype
from herd.report import render
from herd.run import Run, atomic_write, fingerprint, open_run, read_manifest
from herd.stages.pretrain import ModelSettings, PretrainSettings, new_config
from herd.train.objectives import next_token
from herd.train.trainer import tokens_per_second

_DISK_BYTES = 700_000_000
_MEMORY_BYTES = 4_000_000_000
_PRETRAINING = {"pretrain": 0.62, "longer-context": 0.12, "anneal": 0.26}  # shares of the time for pre-training
_MIXTURE = {"library": 0.55, "pydoc": 0.45}  # of Python's own pages
_ARITHMETIC_SHARE = 0.88  # the rest is the optimizer, saving, logging
_SLOW = 3000  # tokens a second of the usual shape below which a smaller model is raised


_JUDGED = ("average", "sft", "sft-best", "dpo")  # the models that are asked questions, in the order they are made


@dataclass(frozen=True)
class Step:
    """One step of the story: the run folder it writes, its stage, its recipe and where its inputs come from."""

    name: str
    verb: str  # a module of `herd.stages`
    inputs: dict[str, str] = field(default_factory=dict)  # setting -> run folder (or file in one)

    @property
    def recipe(self) -> str:
        return f"demo/{self.name}.yaml"


_REJECT = {"prompts": "questions/prompts.jsonl", "references": "questions/train.jsonl"}

STORY = (
    Step("pages", "demo.pages"),
    Step("curate", "curate", {"pages": "pages"}),
    Step("tokenizer", "tokenizer", {"documents": "curate"}),
    Step("pack", "pack", {"documents": "curate", "tokenizer": "tokenizer"}),
    Step("pretrain", "pretrain", {"shards": "pack", "tokenizer": "tokenizer"}),
    Step("longer-context", "pretrain", {"shards": "pack", "tokenizer": "tokenizer", "checkpoint": "pretrain"}),
    Step("anneal", "pretrain", {"shards": "pack", "tokenizer": "tokenizer", "checkpoint": "longer-context"}),
    Step("average", "average", {"checkpoints": "anneal"}),
    Step("questions", "demo.questions", {"documents": "curate", "pages": "pages"}),
    Step("sft", "sft", {"checkpoint": "average", "conversations": "questions/train.jsonl"}),
    Step("preferences", "demo.preferences", {"checkpoint": "sft", "questions": "questions"}),
    Step("reward", "reward", {"checkpoint": "sft", "pairs": "preferences/pairs.jsonl"}),
    Step("reject", "reject", {"checkpoint": "sft", "reward": "reward"} | _REJECT),
    Step("sft-best", "sft", {"checkpoint": "sft", "conversations": "reject/conversations.jsonl"}),
    Step("dpo", "dpo", {"checkpoint": "sft-best", "pairs": "preferences/pairs.jsonl"}),
    Step("evaluate", "evaluate", {"data": ""} | {f"models.{n}": n for n in _JUDGED}),
    Step("quantize", "quantize", {"checkpoint": "dpo", "shards": "pack"}),
)

BASE_ENDING = (
    Step("evaluate-base", "evaluate", {"data": "", "models.average": "average"}),
    Step("quantize", "quantize", {"checkpoint": "average", "shards": "pack"}),
)
"""How the story ends where the pages give too few questions: with the base model."""


@settings
class DemoSettings:
    """Raise a small Llama here."""

    path: Path = Path("runs/demo")
    """Folder for the whole story: one run folder for each step, and report.html."""
    pages: list[Path] = field(default_factory=list)
    """Your own pages (folders or files: HTML, WARC, JSONL, Parquet); this Python's documentation when not given."""
    pretrain_seconds: float = 360.0
    """Seconds for pre-training, longer context and annealing together."""
    pretrain_tokens: int | None = None
    """Tokens for these three together, whatever time they take: two runs with the same number are the same run."""

    def __post_init__(self):
        if self.pretrain_seconds < 1:
            raise ValueError("pretrain_seconds must be at least 1")
        if self.pretrain_tokens is not None and self.pretrain_tokens < 10_000:
            raise ValueError("pretrain_tokens must be at least 10,000")


def run(settings: DemoSettings) -> Path:
    """Go through the story, and end by telling how to talk to the model."""
    began = time.monotonic()
    inputs = {"pages": settings.pages} if settings.pages else {}
    with open_run(settings.path, stage="demo", settings=settings, inputs=inputs) as run:
        if run.finished:
            _check_steps(settings.path)
        else:
            _check_machine(run, settings)
            _raise(run, settings)
    _farewell(settings.path, time.monotonic() - began)
    return settings.path


# ---- the way -------------------------------------------------------------------------------------------------------


def _check_machine(run: Run, settings: DemoSettings) -> None:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if memory < 0.9 * _MEMORY_BYTES:
        raise CapacityError(f"{memory / 1e9:.1f} GB of memory here; the demo needs {_MEMORY_BYTES / 1e9:.0f} GB")
    run.need(disk_bytes=_DISK_BYTES, seconds=settings.pretrain_seconds + 200)


def _check_steps(path: Path) -> None:
    """Whether every finished step still holds what it wrote; the step that does not is named."""
    for manifest in sorted(path.glob("*/run.json")):
        fingerprint(manifest.parent)


def _raise(run: Run, settings: DemoSettings) -> None:
    steps = list(STORY)
    for number, step in enumerate(steps, 1):
        say(f"\n[{number}/{len(steps)}] {step.name}")
        _take(step, run, settings)
        if step.name == "questions" and not read_manifest(run.path / step.name)["figures"]["enough"]:
            steps[number:] = BASE_ENDING  # the stage has said so
    say("\nreport")
    atomic_write(run.path / "report.html", render(run.path))
    run.finish(_headlines(run.path), checkpoint=_chosen_model(run.path))


def _take(step: Step, run: Run, settings: DemoSettings) -> None:
    """Run one stage with its recipe, its inputs within the demo's folder and what was chosen for this machine."""
    stage = importlib.import_module(f"herd.stages.{step.verb}")
    cls = typing.get_type_hints(stage.run)["settings"]
    overrides = [f"{name}={run.path / place}" for name, place in step.inputs.items()]
    overrides += [f"out={run.path / step.name}", *_of_this_machine(step, run, settings)]
    if step.name == "pages" and settings.pages:
        overrides.append(f"pages={json.dumps([str(page) for page in settings.pages])}")
    stage.run(config.load(cls, config.find_recipe(Path(step.recipe)), overrides))


def _of_this_machine(step: Step, run: Run, settings: DemoSettings) -> Iterator[str]:
    """The settings of a step that follow from how fast this machine trains."""
    if step.name not in _PRETRAINING:
        return
    chosen = _choices(run, settings)
    torch.set_num_threads(chosen["threads"])
    yield f"tokens={chosen['tokens'][step.name]}"
    yield f"dtype={chosen['dtype']}"
    if not settings.pages:  # one's own count by their size
        yield from (f"mixture.{source}={weight}" for source, weight in _MIXTURE.items())
    if step.name == "pretrain":
        yield from (f"model.{name}={value}" for name, value in chosen["model"].items())


# ---- what depends on the machine -----------------------------------------------------------------------------------


def _choices(run: Run, settings: DemoSettings) -> dict:
    """Size, number type and tokens for this machine: measured once and kept, whatever happens later."""
    file = run.path / "choices.json"
    if not file.exists():
        atomic_write(file, json.dumps(_choose(run.path, settings), indent=1))
    return json.loads(file.read_text(encoding="utf-8"))


def _choose(path: Path, settings: DemoSettings) -> dict:
    dtype = best_dtype()
    shape, smaller = config.load(PretrainSettings, config.find_recipe(Path("demo/pretrain.yaml"))).model, {}
    rates = {row_tokens: _measured_rate(path, shape, dtype, row_tokens) for row_tokens in (256, 1024)}
    if rates[256] < _SLOW:
        smaller = {"hidden_size": 128, "num_hidden_layers": 4, "intermediate_size": 352}
        shape = replace(shape, **smaller)
        rates = {row_tokens: _measured_rate(path, shape, dtype, row_tokens) for row_tokens in (256, 1024)}
    seconds = {name: share * settings.pretrain_seconds for name, share in _PRETRAINING.items()}
    tokens = {name: round(seconds[name] * rates[256 if name == "pretrain" else 1024]) for name in seconds}
    if settings.pretrain_tokens:
        tokens = {name: round(share * settings.pretrain_tokens) for name, share in _PRETRAINING.items()}
    say(f"  this machine trains {amount(rates[256])} tokens/s: {amount(sum(tokens.values()))} tokens in all")
    return {
        "dtype": {torch.bfloat16: "bf16", torch.float32: "fp32"}[dtype],
        "threads": torch.get_num_threads(),
        "model": smaller,
        "tokens_per_second": {str(row_tokens): round(rate) for row_tokens, rate in rates.items()},
        "tokens": tokens,
    }


def _measured_rate(path: Path, shape: ModelSettings, dtype: torch.dtype, row_tokens: int) -> float:
    """Training tokens per second of a model of this shape on the real data, the optimizer and saving considered."""
    sources = open_shards(path / "pack" / "train")
    mixture = {name: float(documents.num_tokens.sum()) for name, documents in sources.items()}
    loader = PackedLoader(sources, [Phase(batch_tokens=4096, row_tokens=row_tokens, mixture=mixture)])
    model = empty_model(new_config(shape, open_tokenizer(path / "tokenizer"), row_tokens), device="cpu")
    initialize(model, seed=0)
    return _ARITHMETIC_SHARE * tokens_per_second(model.to(dtype).train(), next_token, loader.batches(0), repeats=5)


# ---- the end -------------------------------------------------------------------------------------------------------


def _headlines(path: Path) -> dict[str, float | str]:
    """The figures that say how it went."""
    last = next(name for name in ("anneal", "longer-context", "pretrain") if (path / name / "run.json").exists())
    figures = read_manifest(path / last)["figures"]
    return {name: figures[name] for name in ("tokens", "loss", "heldout_bits_per_byte") if name in figures}


def _chosen_model(path: Path) -> str:
    """The checkpoint that a chat opens: the best by answers, or the base model where nothing was asked."""
    if (path / "evaluate" / "run.json").exists():
        best = read_manifest(path / "evaluate")["figures"].get("best")
        if best:
            return f"{best}/checkpoint"
    return "average/checkpoint"


def _farewell(path: Path, seconds: float) -> None:
    herd = sys.argv[0] if os.sep in sys.argv[0] and not sys.argv[0].endswith("__main__.py") else "herd"
    herd = os.path.relpath(herd) if os.sep in herd else herd
    say(f"\nDone in {duration(seconds)}. Talk to it:\n")
    say(f"  {herd} chat {path}       # here in the terminal")
    say(f"  {herd} serve {path}      # a chat page, and an OpenAI-compatible API")
    say(f"\nWhat happened, with every figure: {path / 'report.html'}")
