"""The report's first screen: what was made, five dialogues, what each step gained."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from herd.log import amount, duration, size
from herd.report.parts import escaped, section, shown, table, words
from herd.report.runs import StageRun

_DIALOGUES = 5
_RIGHT, _WRONG = 0.8, 0.3  # word F1 from which an answer is marked right, below which wrong


def first_screen(title: str, path: Path, runs: Sequence[StageRun]) -> str:
    """The header of the page and its first cards."""
    energy = sum(run.figures.get("energy_joules", 0) for run in runs)
    facts = [f"{len(runs)} {'stage' if len(runs) == 1 else 'stages'}", duration(sum(run.seconds for run in runs))]
    facts += [f"{energy / 3.6e6:.3f} kWh"] if energy else []
    facts.append(f"finished {runs[-1].manifest['finished'].replace('T', ' ').removesuffix('Z')} UTC")
    head = f"<header><h1>{escaped(title)}</h1><p>{' · '.join(map(escaped, facts))}</p></header>"
    return head + _made(path, runs) + _dialogues(runs) + _gained(runs)


def _made(path: Path, runs: Sequence[StageRun]) -> str:
    sentences = []
    best = _best(path, runs)
    if best and (parameters := _parameters(best.path / "checkpoint")):
        sentences.append(
            f"A language model of <b>{amount(parameters)} parameters</b> (<code>{escaped(best.name)}</code>)."
        )
    if curated := next((run for run in runs if run.stage == "curate"), None):
        read, kept = (curated.figures.get(name, 0) for name in ("documents_read", "documents"))
        sentences.append(
            f"{kept:,} documents were kept from {read:,} pages, {size(curated.figures.get('bytes', 0))} of text."
        )
    if tokens := sum(run.figures.get("tokens", 0) for run in runs if run.stage == "pretrain"):
        sentences.append(f"It was pre-trained on {amount(tokens)} tokens.")
    if rows := [run for run in runs if run.figures.get("conversations")]:
        sentences.append(f"It was fine-tuned on {rows[0].figures['conversations']:,} conversations.")
    if not sentences:
        return ""
    command = f"<pre>herd chat {escaped(path)}</pre>" if best else ""
    return section("What was made", f"<p>{' '.join(sentences)}</p>{command}")


def _best(path: Path, runs: Sequence[StageRun]) -> StageRun | None:
    """The run whose checkpoint `herd chat` opens: the best by evaluation, else the last one with a checkpoint."""
    named = next((run.figures["best"] for run in runs if run.figures.get("best")), None)
    candidates = [run for run in runs if (run.path / "checkpoint").is_dir() and run.stage not in ("reward", "quantize")]
    return next((run for run in candidates if run.name == named), candidates[-1] if candidates else None)


def _parameters(folder: Path) -> int:
    """The number of parameters of a checkpoint, from the headers of its files."""
    total = 0
    for file in folder.glob("*.safetensors"):
        with open(file, "rb") as opened:
            head = json.loads(opened.read(int.from_bytes(opened.read(8), "little")))
        total += sum(math.prod(tensor["shape"]) for name, tensor in head.items() if name != "__metadata__")
    return total


def _dialogues(runs: Sequence[StageRun]) -> str:
    rows = [row for run in runs if run.stage == "evaluate" for row in run.rows("samples.jsonl")]
    best = next((run.figures["best"] for run in runs if run.figures.get("best")), None)
    rows = [row for row in rows if row.get("question") and "left_out" not in row]
    rows = [row for row in rows if best in (None, row.get("model"))]
    if not rows:
        return ""
    chosen = [rows[place] for place in np.linspace(0, len(rows) - 1, min(_DIALOGUES, len(rows))).astype(int)]
    parts = [
        f"<div class=talk><p class=user>{escaped(row['question'])}</p><p class=answer>{escaped(row['answer'])}</p>"
        f"<p class=reference>{_marked(row)}expected: {escaped(row.get('reference', ''))}</p></div>"
        for row in chosen
    ]
    note = "The best model's answers, unedited: an even sample of the held-out questions, answered well or not."
    return section("Five dialogues" if len(parts) == _DIALOGUES else "Dialogues", "".join(parts), note)


def _marked(row: dict[str, Any]) -> str:
    score = next((row[name] for name in ("token_f1", "exact_match", "refused", "accuracy") if name in row), None)
    if score is None:
        return ""
    kind = "right" if score >= _RIGHT else "wrong" if score < _WRONG else "in part"
    return f"<span class='mark {kind.split()[0]}'>{kind}</span> "


def _gained(runs: Sequence[StageRun]) -> str:
    key = "heldout_bits_per_byte"
    learned = [(run.name, run.figures[key]) for run in runs if key in run.figures]
    text = ", ".join(f"<b>{figure:.3f}</b> after {escaped(name)}" for name, figure in learned)
    parts = [f"<p>Bits per byte of held-out text (lower is better): {text}.</p>"] if learned else []
    rows = [
        (
            f"<b>{escaped(row['model'])}</b> after {escaped(row['against'])}",
            f"{escaped(row['task'])}<small>{escaped(words(row['metric']))}</small>",
            f"{row['difference']:+.3f}<small>{row['low']:+.3f} to {row['high']:+.3f}</small>",
            f"<span class='mark {_KINDS.get(row['says'], 'in')}'>{escaped(row['says'])}</span>",
        )
        for run in runs
        for row in run.rows("comparisons.jsonl")
    ]
    if rows:
        parts.append(table(("step", "measure", "difference", "verdict"), rows, raw=True))
    elif verdicts := [one for run in runs for one in str(run.figures.get("verdict", "")).split("; ") if one]:
        parts.append("<ul>" + "".join(f"<li>{escaped(one)}</li>" for one in verdicts) + "</ul>")
    rewarded = [run for run in runs if "heldout_accuracy" in run.figures]
    for run in rewarded:
        parts.append(
            f"<p>The reward model ({escaped(run.name)}) prefers the better of two held-out answers in "
            f"{shown('share', float(run.figures['heldout_accuracy']))} of cases (chance: 0.5).</p>"
        )
    note = "What each step changed, with its 95 % interval, measured on data that training never contained."
    return section("What each step gained", "".join(parts), note) if parts else ""


_KINDS = {"better": "right", "worse": "wrong"}
