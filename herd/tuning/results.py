"""What a tuning has come to: `results.json`, the page, and a few lines on the console."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from herd.infer.engine import Engine
from herd.log import say
from herd.model.llama import LlamaForCausalLM
from herd.run import atomic_write
from herd.tokenizer.tokenizer import Tokenizer
from herd.tuning.judging import General, Measured, calibration, confusion, figures, probabilities
from herd.tuning.material import Material
from herd.tuning.page import page
from herd.types import Message, SamplingParams

RESULTS, PAGE = "results.json", "results.html"
_ANSWER_TOKENS = 120


def outcome(material: Material, general: General, before: Measured, after: Measured) -> dict[str, Any]:
    """Figures before and after, of label tasks with the confusion matrix and calibration."""
    found = {"figures": [one.as_dict() for one in figures(material, general, before, after)]}
    if material.kind != "label":
        return found
    part, pair = material.judged, {"before": before, "after": after}
    chances = {name: probabilities(part, one) for name, one in pair.items()}
    errors = {name: calibration(part, chance) for name, chance in chances.items()}
    return found | {
        "labels": list(material.labels),
        "confusion": {name: confusion(part, chance).tolist() for name, chance in chances.items()},
        "calibration": {
            name: {"ece": [error.value, error.low, error.high], "bins": [list(one) for one in bins]}
            for name, (error, bins) in errors.items()
        },
        "probabilities": [
            {
                "text": entry.asked[0]["content"],
                "label": entry.reference,
                **{name: dict(zip(material.labels, chance[row].round(5).tolist())) for name, chance in chances.items()},
            }
            for row, entry in enumerate(part.entries)
        ],
    }


def answers(model: LlamaForCausalLM, tokenizer: Tokenizer, material: Material, count: int) -> list[str]:
    """What the model answers to the first `count` held-out questions; nothing where rows are no conversations."""
    asked: list[Sequence[Message]] = questions(material, count)
    if not asked:
        return []
    params = SamplingParams(temperature=0.0, max_tokens=_ANSWER_TOKENS)
    engine = Engine.of(model, tokenizer, max_context=min(model.config.max_position_embeddings, 4096))
    found: Any = engine.generate([list(prompt) for prompt in asked], params)
    return [one.text.strip() for one in found]


def questions(material: Material, count: int) -> list[Sequence[Message]]:
    """The first held-out questions, as messages."""
    return [entry.asked for entry in _asked(material, count)]


def _asked(material: Material, count: int) -> list[Any]:
    return [entry for entry in material.judged.entries if entry.asked][:count] if material.kind == "chat" else []


def beside(material: Material, count: int, before: Sequence[str], after: Sequence[str]) -> list[dict[str, str]]:
    """The same questions with both answers, for the page."""
    return [
        {
            "asked": str(entry.asked[-1].get("content")),
            "reference": entry.reference,
            "before": first,
            "after": second,
        }
        for entry, first, second in zip(_asked(material, count), before, after, strict=True)
    ]


def write(folder: Path, results: Mapping[str, Any]) -> None:
    """`results.json` and the page."""
    atomic_write(folder / RESULTS, json.dumps(results, indent=1, ensure_ascii=False))
    atomic_write(folder / PAGE, page(results))


def tell(folder: Path) -> None:
    """A few lines on the console, of what was written."""
    results = json.loads((folder / RESULTS).read_text(encoding="utf-8"))
    say()
    say(f"  {'on rows kept aside':<46} {'n':>5}  {'before':>8}  {'after':>8}  difference with 95 % interval")
    for row in results["figures"]:
        low, high = row["difference"][1:]
        span = f"{row['difference'][0]:+.3f} ({low:+.3f} to {high:+.3f})"
        pair = f"{row['before'][0]:>8.3f}  {row['after'][0]:>8.3f}"
        say(f"  {row['name']:<46} {row['n']:>5}  {pair}  {span}  {row['says']}")
    if "calibration" in results:
        errors = [results["calibration"][name]["ece"] for name in ("before", "after")]
        told = [f"{value:.3f} ({low:.3f} to {high:.3f})" for value, low, high in errors]
        say(f"  calibration error (ECE): before {told[0]}, after {told[1]}")
    say(f"\n  the page: {folder / PAGE}")
    for what, command in results["commands"].items():
        say(f"  {what}:\n    {command}")


def commands(base: Path, out: Path, adapted: bool) -> dict[str, str]:
    """How to use what was learned."""
    found = {"talk to it": f"herd chat {out}"}
    if adapted:
        served = f'herd serve {base} "adapters={{tuned: {out / "adapter"}}}"'
        return {"serve it beside the base, as the model `tuned`": served} | found
    return {"serve it": f"herd serve {out}"} | found
