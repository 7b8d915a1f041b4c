"""Mix: recommend a mixture of sources from small runs with different mixtures, with intervals.

`herd pretrain mixture_from=FOLDER` trains on it, if the sources have the same content.
"""

from __future__ import annotations

import json
from dataclasses import asdict, field
from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator

from herd.config import settings
from herd.curate.read.documents import as_list
from herd.log import say
from herd.run import atomic_write, open_run
from herd.scaling.mixing import Mixture, recommend
from herd.scaling.points import MAX_EPOCHS, collect


@settings
class MixtureSettings:
    """A regression over the mixtures of finished runs."""

    runs: Annotated[list[Path], BeforeValidator(as_list)]
    """Run folders of `herd pretrain` that differ in their `mixture`, or folders of them."""
    out: Path
    """Run folder to write."""
    weights: dict[str, float] = field(default_factory=dict)
    """Weight of each held-out text; default: all equal."""
    tokens: float | None = None
    """Tokens of the run that the mixture is for: no source is then recommended beyond `max_epochs`."""
    max_epochs: float = MAX_EPOCHS
    """Most epochs over a source."""
    draws: int = 200
    """Number of bootstrap samples."""
    seed: int = 0
    """Seed of the bootstrap and of the mixtures tried."""

    def __post_init__(self):
        if min(self.weights.values(), default=1.0) < 0 or (self.weights and not sum(self.weights.values())):
            raise ValueError("weights must be 0 or more, not all 0")
        if self.draws < 20 or self.max_epochs <= 0 or (self.tokens is not None and self.tokens <= 0):
            raise ValueError("draws must be at least 20; max_epochs and tokens above 0")


def run(settings: MixtureSettings) -> Path:
    """Write `mix.json`, keyed by the content of the sources."""
    collection = collect(settings.runs, "heldout_bits_per_byte", max_epochs=settings.max_epochs, mixtures=True)
    with open_run(settings.out, stage="scaling mix", settings=settings, inputs={"runs": collection.folders}) as run:
        if run.finished:
            return run.path
        for name, why in collection.left_out.items():
            say(f"  left out: {name}: {why}")
        sources = _sources(collection.folders[0])
        total = sum(one["tokens"] for one in sources.values())
        others = {
            "uniform": dict.fromkeys(sources, 1 / len(sources)),
            "natural": {name: one["tokens"] / total for name, one in sources.items()},
        }
        most = dict.fromkeys(sources, 1.0)
        if settings.tokens:
            most = {name: settings.max_epochs * one["tokens"] / settings.tokens for name, one in sources.items()}
        result = recommend(
            collection.points,
            others,
            weights=settings.weights or None,
            most=most,
            draws=settings.draws,
            seed=settings.seed,
        )
        record = {
            "metric": "held-out bits per byte",
            "sources": {name: one["sha256"] for name, one in sources.items()},
            "tokenizer": collection.made_of["their tokenizer"],
            "runs": [
                {"name": point.name, "shares": point.shares, "measured": measured, "fitted": fitted}
                for point, measured, fitted in zip(collection.points, result.measured, result.fitted, strict=True)
            ],
            "recommended": asdict(result.recommended),
            **{name: asdict(one) for name, one in result.others.items()},
            "notes": result.notes,
        }
        atomic_write(run.path / "mix.json", json.dumps(record, indent=1))
        say("\n".join(_lines({"recommended": result.recommended, **result.others})))
        for note in result.notes:
            say(f"  {note}")
        figures = {f"loss_{name}": round(one.loss[0], 5) for name, one in result.others.items()}
        run.finish({"runs": len(collection.points), "loss_recommended": round(result.recommended.loss[0], 5)} | figures)
    return run.path


def _sources(folder: Path) -> dict[str, dict]:
    return json.loads((folder / "sources.json").read_text(encoding="utf-8"))["sources"]


def _lines(mixtures: dict[str, Mixture]) -> list[str]:
    lines = []
    for name, one in mixtures.items():
        shares = ", ".join(
            f"{source} {share:.0%}" + (f" ({one.ends[source][0]:.0%} to {one.ends[source][1]:.0%})" if one.ends else "")
            for source, share in one.shares.items()
        )
        value, low, high = one.loss
        lines.append(f"  {name}: {value:.4f} ({low:.4f} to {high:.4f}): {shares}")
        if name != "recommended":
            lines.append(f"    the recommended one is {one.gain[0]:.4f} lower ({one.gain[1]:.4f} to {one.gain[2]:.4f})")
    return lines
