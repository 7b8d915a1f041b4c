"""Train a small guard from labelled rows and a policy: a folder that `herd serve guard=FOLDER` takes.

Rows are CSV, JSONL or Parquet: `text`, and `label` (safe, unsafe, or a category) or `categories`; perhaps `where`
(input, output, tool) and `group` (what a split must not tear apart). See docs/safety.md.
"""

from __future__ import annotations

import json
from dataclasses import field
from pathlib import Path

from herd.config import find_recipe, settings
from herd.data.rows import RowSettings
from herd.formats.encoder import open_encoder
from herd.log import say
from herd.run import atomic_write, open_run
from herd.safety.curve import curve_page
from herd.safety.guard import save_guard
from herd.safety.policy import Where, read_policy
from herd.safety.rows import counts_of, labelled_rows
from herd.safety.training import GuardTraining, told, train_guard


@settings
class GuardSettings:
    """Train a guard, choose its threshold on rows held out, and draw violation against false refusal."""

    rows: list[Path]
    """Labelled rows (CSV, JSONL, Parquet, ...)."""
    out: Path
    """Run folder to write."""
    encoder: Path
    """An encoder's folder (BERT, MiniLM, RoBERTa), which `make base-model` brings, or a package that holds one."""
    policy: Path = Path("safety/hazards.yaml")
    """Categories and refusals (YAML); shipped: safety/hazards.yaml (S1 to S14), safety/prompt-guard.yaml."""
    judged: list[Path] | None = None
    """Rows of other sources, to choose the threshold on and draw the curve from; default: a share of `rows`."""
    where: Where = "input"
    """What rows are that do not say so."""
    columns: dict[str, str] = field(default_factory=dict)
    """What the files call `text`, `label` (or `categories`), `where` and `group`: {text: BODY}."""
    training: GuardTraining = field(default_factory=GuardTraining)
    """How it is trained."""


def run(settings: GuardSettings) -> Path:
    """Write the guard, `curve.json` and `curve.html`.

    Raises:
        DataError: a row without text or label, or too few rows.
        CheckpointError: the encoder cannot be read.
    """
    inputs = {
        "rows": settings.rows,
        "judged": settings.judged,
        "policy": find_recipe(settings.policy),
        "encoder": settings.encoder if settings.encoder.exists() else None,
    }
    policy = read_policy(settings.policy)
    with open_run(settings.out, stage="guard train", settings=settings, inputs=inputs) as run:
        if run.finished:
            return run.path
        run.need(disk_bytes=1.5e8)
        reading, where = RowSettings(columns=settings.columns), settings.where
        rows = labelled_rows(settings.rows, policy, reading, where=where)
        judged = labelled_rows(settings.judged, policy, reading, where=where) if settings.judged else []
        say(f"  {len(rows):,} rows: {', '.join(f'{code} {count:,}' for code, count in counts_of(rows).items())}")
        trained = train_guard(rows, open_encoder(settings.encoder), policy, settings.training, judged)
        save_guard(trained.guard, settings.encoder, run.path, rows=len(rows))
        atomic_write(run.path / "curve.json", json.dumps(trained.report, indent=1) + "\n")
        atomic_write(run.path / "curve.html", curve_page(trained.report))
        told(trained.report)
        figures = {f"{where} auc": one["areas"]["guard"]["auc"] for where, one in trained.report["places"].items()}
        run.finish(figures)
        say(f'{run.path}: herd guard check {run.path} "your text"; the curve is {run.path / "curve.html"}')
    return run.path
