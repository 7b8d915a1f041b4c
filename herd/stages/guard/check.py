"""Judge a text, or a file of texts, with a guard; rows that have labels are counted as right and wrong.

`categories=[S1,S9]` lets only these count, `drop=[S6]` all but these.
"""

from __future__ import annotations

import json as json_format
import sys
from collections.abc import Sequence
from dataclasses import asdict, field
from pathlib import Path
from typing import ClassVar

from herd.config import settings
from herd.data.rows import RowSettings
from herd.errors import ConfigError
from herd.safety.curve import areas, as_array, rates
from herd.safety.guard import Verdict
from herd.safety.opened import AnyGuard, open_any_guard
from herd.safety.policy import Where, only
from herd.safety.rows import Row, labelled_rows


@settings
class CheckSettings:
    """What is judged, and by which guard."""

    bare_words: ClassVar = ("path", "text")

    path: Path
    """Folder of the guard."""
    text: str = ""
    """A text; `-` reads one from standard input."""
    rows: list[Path] | None = None
    """Labelled rows, to be counted by what the guard makes of them."""
    where: Where = "input"
    """What the text is; rows may say it themselves."""
    categories: list[str] | None = None
    """Only these count."""
    drop: list[str] | None = None
    """All but these count."""
    threshold: float | None = None
    """Probability from which a text is flagged; the guard's own if not given."""
    columns: dict[str, str] = field(default_factory=dict)
    """What the file calls `text`, `label` (or `categories`), `where` and `group`: {text: BODY}."""
    json: bool = False
    """Print JSON."""

    def __post_init__(self) -> None:
        if bool(self.text) == bool(self.rows):
            raise ValueError("give a text or rows")
        if self.categories is not None and self.drop is not None:
            raise ValueError("give categories or drop, not both")


def run(settings: CheckSettings) -> int:
    """Print the verdict; the exit status is 1 where a text was flagged.

    Raises:
        CheckpointError: no guard lies there.
        ConfigError: a category that the guard does not know.
    """
    guard = open_any_guard(settings.path)
    counted = _counted(guard, settings)
    if settings.rows:
        _of_rows(guard, settings, counted)
        return 0
    text = sys.stdin.read() if settings.text == "-" else settings.text
    verdict = guard.judge([text], settings.where, categories=counted, threshold=settings.threshold)[0]
    print(json_format.dumps(asdict(verdict), indent=1) if settings.json else _line(guard, verdict))
    return int(verdict.flagged)


def _counted(guard: AnyGuard, settings: CheckSettings) -> list[str] | None:
    if settings.drop is None:
        return settings.categories
    dropped = only(guard.policy, settings.drop)
    left = [code for code in guard.labels if code in guard.policy.categories and code not in dropped]
    if not left:
        raise ConfigError("drop: no category is left")
    return left


def _line(guard: AnyGuard, verdict: Verdict) -> str:
    known = guard.policy.categories
    names = [known[code].name if code in known else code for code in verdict.categories]
    told = ", ".join(f"{code} {name}" if code != name else code for code, name in zip(verdict.categories, names))
    how = "" if verdict.reading == "plain" else f", in the {verdict.reading} reading"
    word = "flagged" if verdict.flagged else "passes"
    return f"{word}: probability {verdict.probability:.3f} (threshold {verdict.threshold:.3f}){how}; nearest: {told}"


def _of_rows(guard: AnyGuard, settings: CheckSettings, counted: list[str] | None) -> None:
    rows = labelled_rows(settings.rows or [], guard.policy, RowSettings(columns=settings.columns), where=settings.where)
    found = {}
    for where in dict.fromkeys(row.where for row in rows):
        found[where] = _measured(guard, [row for row in rows if row.where == where], where, settings, counted)
    if settings.json:
        print(json_format.dumps(found, indent=1))
        return
    for where, one in found.items():
        parts = [_rate(one, name) for name in ("violation", "false_refusal") if name in one]
        if area := one.get("auc"):
            parts.append(f"area {area['auc']:.3f} ({area['low']:.3f} to {area['high']:.3f})")
        print(f"{where}: {', '.join(parts)}; threshold {one['threshold']:.3f}")


def _rate(one: dict, name: str) -> str:
    span = f"{one[f'{name}_low']:.1%} to {one[f'{name}_high']:.1%}"
    return f"{name.replace('_', ' ')} {one[name]:.1%} of {one[f'{name}_rows']:,} rows ({span})"


def _measured(
    guard: AnyGuard, rows: Sequence[Row], where: Where, settings: CheckSettings, counted: list[str] | None
) -> dict:
    texts = [row.text for row in rows]
    verdicts = guard.judge(texts, where, categories=counted, threshold=settings.threshold)
    scores, codes = as_array([verdict.probability for verdict in verdicts]), set(guard.enabled(where, counted))
    unsafe = as_array([row.violates(codes) for row in rows]) > 0
    found = rates(scores, unsafe, verdicts[0].threshold)
    if unsafe.any() and not unsafe.all():
        found["auc"] = areas({"guard": scores}, unsafe)["guard"]
    return found
