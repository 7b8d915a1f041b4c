"""The judge: everything that decides about one document by itself, in order, each step counted in the funnel.

    heuristics -> pii -> quality

A step is a method that returns the reason to drop the document, or None; it may change the document's text or score.
What a step needs of the whole corpus was fitted before and lies in the state folder.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from herd.config import settings, to_dict
from herd.curate.addresses import Blocked, check_cutoff
from herd.curate.filters import Reason, why_drop
from herd.curate.funnel import Step
from herd.curate.pii import MASKS, mask_pii
from herd.curate.quality import quality


@settings
class Heuristics:
    """Rules of thumb about the text."""

    enabled: bool = True
    """Whether to apply the Gopher, C4 and FineWeb rules."""
    technical_sources: list[str] = field(default_factory=lambda: ["library", "pydoc"])
    """Sources held to the rules for technical pages whatever their text looks like."""


@settings
class Privacy:
    """Personal data and secrets."""

    mask: list[str] = field(default_factory=lambda: list(MASKS))
    """Kinds that are masked."""


@settings
class Quality:
    """Scores."""

    min_score: float = 0.0
    """Least score, 0 to 1."""

    def __post_init__(self):
        if not 0 <= self.min_score <= 1:
            raise ValueError("min_score must be between 0 and 1")


@settings
class Rules:
    """Which documents are kept, beside duplicates."""

    cutoff: str | None = None
    """Knowledge cutoff: pages dated later are dropped (YYYY, YYYY-MM or YYYY-MM-DD, the whole of it kept)."""
    blocked: Blocked = field(default_factory=Blocked)
    languages: list[str] | None = None
    """Languages to keep, ISO 639-1; default: all."""
    language_probability: float = 0.3
    """Least probability at which a document counts as being in its language."""
    heuristics: Heuristics = field(default_factory=Heuristics)
    privacy: Privacy = field(default_factory=Privacy)
    quality: Quality = field(default_factory=Quality)
    titles: bool = True
    """Whether a page's text begins with its title where it does not say it itself."""

    def __post_init__(self):
        check_cutoff(self.cutoff)
        if not 0 <= self.language_probability <= 1:
            raise ValueError("language_probability must be between 0 and 1")


_RULES = TypeAdapter(Rules)


def rules_to_json(rules: Rules) -> dict[str, Any]:
    """Rules as plain data that `rules_from_json` reads: they travel so to the processes that judge."""
    return to_dict(rules)


def rules_from_json(data: dict[str, Any]) -> Rules:
    """The rules that `rules_to_json` wrote."""
    return _RULES.validate_python(data)


class Judge:
    """Applies rules to documents, one after the other. Made once in each process; `state` holds what was fitted."""

    STEPS = ("heuristics", "pii", "quality")

    def __init__(self, rules: Rules, state: Path | None = None):
        self.rules = rules

    def judge(self, row: dict[str, Any], steps: dict[str, Step]) -> bool:
        """Judge a document in place; returns whether it is kept. A dropped one has `drop` and `drop_detail`.

        `row` is a document with `kind` (html, text or code); `steps` maps the names of `STEPS` to their counts.
        """
        return all(take_step(row, steps[name], getattr(self, f"_{name}")) for name in self.STEPS)

    def _heuristics(self, row: dict[str, Any], step: Step) -> Reason | None:
        if not self.rules.heuristics.enabled:
            return None
        technical = row["kind"] == "code" or row["source"] in self.rules.heuristics.technical_sources
        return why_drop(row["text"], row["language"], technical or None)

    def _pii(self, row: dict[str, Any], step: Step) -> Reason | None:
        kinds = self.rules.privacy.mask
        if row["kind"] == "code":  # numbers in code are seldom anybody's
            kinds = [kind for kind in kinds if kind == "email"]
        row["text"], found = mask_pii(row["text"], tuple(kinds))
        step.notes.update(found)
        return None

    def _quality(self, row: dict[str, Any], step: Step) -> Reason | None:
        row["quality"] = quality(row["text"], row["kind"] == "code")
        least = self.rules.quality.min_score
        return None if row["quality"] >= least else ("quality", f"score {row['quality']:.2f}")


def rule_files(rules: Rules) -> list[Path]:
    """Every file that the rules read: they are inputs of a curation like its pages."""
    lists = [*rules.blocked.domain_files.values(), *rules.blocked.word_files.values()]
    return [file for files in lists for file in files]


def take_step(row: dict[str, Any], step: Step, check: Callable[[dict[str, Any], Step], Reason | None]) -> bool:
    """Put a document through one step and count it; returns whether it goes on."""
    before = len(row["text"].encode())
    step.documents_in += 1
    step.bytes_in += before
    reason = check(row, step)
    if reason is not None:
        row["drop"], row["drop_detail"] = reason
        step.drop(row["url"], *reason, row["text"])
        return False
    step.keep(before, len(row["text"].encode()))
    return True
