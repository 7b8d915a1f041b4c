"""Reward model: the pre-trained (or fine-tuned) layers with a score head, trained to score better responses higher."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import torch

from herd.config import settings
from herd.data.joined import joined
from herd.data.loader import PackedLoader
from herd.data.preferences import Pairs, load_pairs
from herd.errors import DataError
from herd.evals.statistics import summary
from herd.log import amount, say
from herd.model.llama import Llama
from herd.parallel.launch import from_all
from herd.parallel.model import ParallelModel
from herd.train.job import Job, training
from herd.train.objectives import reward_margins, reward_pairs
from herd.train.settings import TuneSettings
from herd.train.validation import KeptAside


@settings
class RewardSettings(TuneSettings):
    """Train a reward model on preference pairs."""

    pairs: list[Path]
    """JSONL, JSON, CSV or Parquet files (or folders of them) of preferences in any form that docs/tuning.md lists."""
    holdout: float = 0.1
    """Share (0 to 1) of the prompts held out to measure accuracy."""
    concatenated: bool = False
    """Train with all responses of a prompt concatenated in one row, as in the paper, instead of in separate rows: the
    prompt is computed once, and responses attend to one another. Held-out pairs are scored separately."""
    min_strength: Literal["marginally_better", "slightly_better", "better", "significantly_better"] = "better"
    """Pairs with a weaker preference than this are left out."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.holdout < 1:
            raise ValueError("holdout must be at least 0 and below 1")


def run(settings: RewardSettings) -> Path:
    """Train, measure accuracy on the held-out pairs by kind, and write `checkpoint/`."""
    inputs: dict[str, Path | list[Path] | None] = {"pairs": settings.pairs, "checkpoint": settings.checkpoint}
    inputs["validation"] = settings.validation.files or None
    with training(settings, "reward", inputs) as job:
        if job.finished:
            return settings.out
        job.start_from(settings.checkpoint, scores=True, whole_rows=True)
        trained, held_out, aside = _pairs(settings, job)
        kept = f", {amount(len(aside))} kept aside" if aside else ""
        say(f"  {amount(len(trained))} pairs to train on, {amount(len(held_out))} held out{kept}")
        learned = joined(trained, settings.seed) if settings.concatenated else trained
        figures = job.learn(
            reward_pairs,
            {"pairs": learned.documents},
            epochs=settings.epochs,
            columns=learned.reward_columns,
            max_steps=settings.max_steps,
            aside=KeptAside({"pairs": aside.documents}, aside.reward_columns) if aside else None,
        )
        figures |= {"pairs": len(trained), "heldout_pairs": len(held_out)}
        if len(held_out):
            loader = job.loader({"pairs": held_out.documents}, 1, columns=held_out.reward_columns)
            figures |= accuracy(job.model, held_out, loader)
            low, high = figures["heldout_accuracy_interval"]
            say(f"  held-out accuracy {figures['heldout_accuracy']:.1%} ({low:.1%} to {high:.1%})")
        job.finish(figures)
    return settings.out


def _pairs(settings: RewardSettings, job: Job) -> tuple[Pairs, Pairs, Pairs | None]:
    """Training pairs, held-out pairs, and validation pairs, if any."""
    row_tokens, validation = settings.batch.row_tokens, settings.validation
    context = job.config.max_position_embeddings
    load = partial(
        load_pairs, tokenizer=job.tokenizer, row_tokens=row_tokens, min_strength=settings.min_strength, context=context
    )
    pairs = load(settings.pairs, options=settings.rows)
    trained, held_out = pairs.split(settings.holdout)
    if not validation:
        return trained, held_out, None
    if validation.files:
        return trained, held_out, load(validation.files, options=replace(settings.rows, weights={}))
    trained, aside = trained.split(validation.share, "validation")
    if not (len(trained) and len(aside)):
        raise DataError(f"validation.share={validation.share} leaves one part of {len(pairs)} pairs empty; change it")
    return trained, held_out, aside


@torch.no_grad()
def accuracy(model: Llama | ParallelModel, pairs: Pairs, loader: PackedLoader) -> dict[str, Any]:
    """The share of held-out comparisons in which the better response scores higher, overall and for each kind of pair;
    overall with its 95 % interval, clustered by prompt."""
    model.eval()
    device = next(model.parameters()).device
    won: list[tuple[bool, int]] = []
    for batch in loader.epoch():
        signs = (model.run(reward_margins, batch.to(device)) > 0).tolist()
        won += zip(signs, batch.columns["document"].tolist())
    right: dict[str, list[float]] = {}
    outcomes = list(chain.from_iterable(from_all(won)))
    interval = summary(
        [float(better) for better, _ in outcomes], [str(pairs.group[document]) for _, document in outcomes]
    )
    for better, document in outcomes:
        for name in ("heldout_accuracy", f"heldout_accuracy/{pairs.kind[document]}"):
            right.setdefault(name, []).append(float(better))
    figures: dict[str, Any] = {"heldout_accuracy_interval": [round(interval.low, 4), round(interval.high, 4)]}
    return figures | {name: sum(values) / len(values) for name, values in right.items() if not name.endswith("/")}
