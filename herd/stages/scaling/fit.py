"""Fit: scaling laws from a ladder of runs: the best size, tokens and loss of any budget.

A parabola for each budget over the logarithm of tokens; a power law through the minima. docs/scaling.md.
"""

from __future__ import annotations

import json
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator

from herd.config import settings
from herd.log import amount, say
from herd.run import atomic_write, open_run
from herd.scaling.law import IRREDUCIBLE, Fit, fit
from herd.scaling.points import MAX_EPOCHS, Collection, collect
from herd.scaling.record import FILE, to_record


def _flat(given: Any) -> Any:
    """One folder, several, or nested lists of them, as a story gives for grids."""
    if not isinstance(given, list | tuple):
        return [given]
    return [one for part in given for one in (part if isinstance(part, list | tuple) else [part])]


@settings
class FitSettings:
    """IsoFLOP fits over finished runs."""

    runs: Annotated[list[Path], BeforeValidator(_flat)]
    """Run folders of `herd pretrain`, or folders (of stories) that hold them."""
    out: Path
    """Run folder to write."""
    metric: str = "heldout_bits_per_byte"
    """Figure of the runs that is fitted; lower is better."""
    irreducible: float = IRREDUCIBLE
    """Irreducible loss in the metric's unit; a fitted one is shown beside it."""
    max_epochs: float = MAX_EPOCHS
    """Runs with more epochs over a source are left out."""
    also: list[Path] = field(default_factory=list)
    """Further runs, also on other data, used only for the second step of a forecast: from nats to accuracy."""
    draws: int = 500
    """Number of bootstrap samples."""
    seed: int = 0
    """Seed of the bootstrap."""

    def __post_init__(self):
        if self.irreducible < 0 or self.max_epochs <= 0 or self.draws < 20:
            raise ValueError("irreducible must be 0 or more, max_epochs above 0, draws at least 20")


def run(settings: FitSettings) -> Path:
    """Write `fit.json`, and print the law with all caveats."""
    collection = collect(settings.runs, settings.metric, max_epochs=settings.max_epochs)
    also = [point for path in settings.also for point in collect([path], settings.metric, max_epochs=1e9).points]
    inputs: dict[str, Any] = {"runs": collection.folders, "also": settings.also}
    with open_run(settings.out, stage="scaling fit", settings=settings, inputs=inputs) as run:
        if run.finished:
            return run.path
        for name, why in collection.left_out.items():
            say(f"  left out: {name}: {why}")
        result = fit(collection.points, irreducible=settings.irreducible, draws=settings.draws, seed=settings.seed)
        record = to_record(result, collection, settings.metric, also)
        atomic_write(run.path / FILE, json.dumps(record, indent=1))
        say("\n".join(_summary(result, record, collection)))
        law = result.law
        run.finish(
            {
                "runs": len(collection.points),
                "left_out": len(collection.left_out),
                "budgets": len(result.budgets),
                "tokens_exponent": round(law.tokens.exponent, 4),
                "tokens_factor": float(f"{law.tokens.factor:.4g}"),
                "parameters_exponent": round(law.parameters.exponent, 4),
                "loss_exponent": round(law.loss.power.exponent, 4),
                "noise": float(f"{result.noise:.3g}"),
            }
        )
    return run.path


def _summary(result: Fit, record: dict[str, Any], collection: Collection) -> list[str]:
    lines = [f"  {len(collection.points)} runs of {len(result.budgets)} budgets"]
    for one in result.budgets:
        if one.why:
            continue
        off = max(abs(one.residuals()))
        lines.append(
            f"  {one.flops:.3g} FLOPs: best at {amount(one.parameters)} parameters and {amount(one.tokens)} tokens, "
            f"{record['metric']} {one.loss:.4f} (runs within {off:.4f} of the parabola)"
        )
    law, ends = result.law, record["intervals"]
    for name, curve in (("tokens", law.tokens), ("parameters", law.parameters)):
        spread = ends[f"{name}.exponent"]
        between = f" (95 %: {spread[0]:.3f} to {spread[1]:.3f})" if spread else ""
        lines.append(f"  best {name} = {curve.factor:.4g} FLOPs^{curve.exponent:.3f}{between}")
    fixed = law.loss
    lines.append(f"  loss = {fixed.irreducible:g} (fixed) + {fixed.power.factor:.4g} FLOPs^{fixed.power.exponent:.4f}")
    if law.fitted:
        floor, curve = law.fitted.irreducible, law.fitted.power
        lines.append(f"  loss = {floor:.3g} (fitted) + {curve.factor:.4g} FLOPs^{curve.exponent:.4f}")
    if result.joint:
        n, d = result.joint.best(result.budgets[-1].flops)
        lines.append(
            f"  all runs at once, outliers held back (Huber): loss = {result.joint.irreducible:.3g} + "
            f"{result.joint.a:.3g} N^-{result.joint.alpha:.3f} + {result.joint.b:.3g} D^-{result.joint.beta:.3f}; "
            f"at the largest budget best with {amount(n)} parameters and {amount(d)} tokens"
        )
    else:
        lines.append(f"  no fit of all runs at once: {result.joint_why}")
    return lines + [f"  {note}" for note in result.notes]
