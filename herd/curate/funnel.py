"""The funnel: what every step of curation took in, let through and dropped, and examples of what it dropped."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from herd.run import atomic_write

EXAMPLES_PER_REASON = 3
_EXAMPLE_CHARACTERS = 300


@dataclass
class Step:
    """One step's counts. `reasons` counts documents by why they were dropped; `notes` counts what else happened."""

    name: str
    documents_in: int = 0
    documents_out: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    reasons: Counter = field(default_factory=Counter)
    notes: Counter = field(default_factory=Counter)
    examples: list[dict[str, str]] = field(default_factory=list)

    def add(self, other: dict[str, Any]) -> None:
        """Add another part's counts (the dictionary form of a step)."""
        for name in ("documents_in", "documents_out", "bytes_in", "bytes_out"):
            setattr(self, name, getattr(self, name) + other.get(name, 0))
        self.reasons.update(other.get("reasons", {}))
        self.notes.update(other.get("notes", {}))
        for example in other.get("examples", []):
            if sum(1 for e in self.examples if e["reason"] == example["reason"]) < EXAMPLES_PER_REASON:
                self.examples.append(example)

    def drop(self, url: str, reason: str, detail: str, text: str) -> None:
        """Count a dropped document and keep the first few of each reason as examples."""
        self.reasons[reason] += 1
        if self.reasons[reason] <= EXAMPLES_PER_REASON:
            example = {"url": url, "reason": reason, "detail": detail, "text": text[:_EXAMPLE_CHARACTERS]}
            self.examples.append(example)

    def keep(self, bytes_in: int, bytes_out: int) -> None:
        """Count a document that passed."""
        self.documents_out += 1
        self.bytes_out += bytes_out

    def as_dict(self) -> dict[str, Any]:
        """Plain data, reasons by falling count."""
        return asdict(self) | {"reasons": dict(self.reasons.most_common()), "notes": dict(self.notes.most_common())}


class Funnel:
    """The steps in order, written to a file whenever one advances."""

    def __init__(self, path: Path):
        self.path = path
        self.steps: list[Step] = []

    def step(self, name: str) -> Step:
        """Begin a step."""
        self.steps.append(Step(name))
        return self.steps[-1]

    def write(self) -> None:
        """Write the state so far, whole or not at all."""
        atomic_write(self.path, json.dumps({"steps": [step.as_dict() for step in self.steps]}, indent=1))
