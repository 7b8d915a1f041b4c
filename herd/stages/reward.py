"""Reward model: the pre-trained (or fine-tuned) layers with a score head, trained to put better responses higher."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Literal

import torch

from herd.config import settings
from herd.data.loader import PackedLoader
from herd.data.preferences import Pairs, load_pairs
from herd.log import amount, say
from herd.model.llama import Llama
from herd.parallel.launch import from_all
from herd.parallel.model import ParallelModel
from herd.train.job import training
from herd.train.objectives import reward_margins, reward_pairs
from herd.train.settings import TuneSettings


@settings
class RewardSettings(TuneSettings):
    """Train a reward model on preference pairs."""

    pairs: list[Path]
    """JSONL, JSON, CSV or Parquet files (or folders of them) of preferences in any form that docs/tuning.md lists."""
    holdout: float = 0.1
    """Share (0 to 1) of the prompts kept aside to measure accuracy on."""
    min_strength: Literal["marginally_better", "slightly_better", "better", "significantly_better"] = "better"
    """Pairs whose responses are more alike than this are left out."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.holdout < 1:
            raise ValueError("holdout is a share: 0 or more, less than 1")


def run(settings: RewardSettings) -> Path:
    """Train, measure accuracy on the held-out pairs by kind, and write `checkpoint/`."""
    inputs: dict[str, Path | list[Path] | None] = {"pairs": settings.pairs, "checkpoint": settings.checkpoint}
    with training(settings, "reward", inputs) as job:
        if job.finished:
            return settings.out
        job.start_from(settings.checkpoint, scores=True, whole_rows=True)
        row_tokens = settings.batch.row_tokens
        pairs = load_pairs(settings.pairs, job.tokenizer, row_tokens, min_strength=settings.min_strength)
        trained, held_out = pairs.split(settings.holdout)
        say(f"  {amount(len(trained))} pairs to train on, {amount(len(held_out))} held out")
        columns = trained.reward_columns
        figures = job.learn(reward_pairs, {"pairs": trained.documents}, epochs=settings.epochs, columns=columns)
        figures |= {"pairs": len(trained), "heldout_pairs": len(held_out)}
        if len(held_out):
            loader = job.loader({"pairs": held_out.documents}, 1, columns=held_out.reward_columns)
            figures |= accuracy(job.model, held_out, loader)
            say(f"  held-out accuracy {figures['heldout_accuracy']:.1%}")
        job.finish(figures)
    return settings.out


@torch.no_grad()
def accuracy(model: Llama | ParallelModel, pairs: Pairs, loader: PackedLoader) -> dict[str, float]:
    """How often the better response of a held-out comparison scores higher, over all and for each kind of pair."""
    model.eval()
    device = next(model.parameters()).device
    won: list[tuple[bool, int]] = []
    for batch in loader.epoch():
        signs = (model.run(reward_margins, batch.to(device)) > 0).tolist()
        won += zip(signs, batch.columns["document"].tolist())
    right: dict[str, list[bool]] = {}
    for better, document in chain.from_iterable(from_all(won)):
        for name in ("heldout_accuracy", f"heldout_accuracy/{pairs.kind[document]}"):
            right.setdefault(name, []).append(better)
    return {name: sum(values) / len(values) for name, values in right.items() if not name.endswith("/")}
