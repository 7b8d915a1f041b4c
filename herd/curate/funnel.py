"""The funnel: what every step of curation took in, let through and dropped, and examples of what it dropped."""

from __future__ import annotations

import json
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from herd.curate.meanings import spans
from herd.curate.privacy.personal import mask_pii
from herd.run import atomic_write

EXAMPLES_PER_REASON = 3
_PLAIN = ("name", "documents_in", "documents_out", "bytes_in", "bytes_out", "examples", "lines")
_EXAMPLE_CHARACTERS = 600
_LOOKED_AT = 20_000  # characters in which the words that met a rule are looked for
_SHOW_SECONDS = 2.0
_MAX_ROWS = 5000  # rows of a table that are kept while it is gathered: a crawl has millions of domains
KEPT = "kept"
PHRASES = "planted phrases"
"""The table of phrases that look planted, and the documents that hold each."""
LINES = "lines dropped"
"""The note of lines taken out of documents that stay."""
REST = "(the rest)"


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
    lines: list[dict[str, str]] = field(default_factory=list)  # examples of lines taken out of documents that stay
    tables: dict[str, Counter] = field(default_factory=lambda: defaultdict(Counter))  # further counts by row and column

    def add(self, other: dict[str, Any]) -> None:
        """Add another part's counts (the dictionary form of a step)."""
        for name in ("documents_in", "documents_out", "bytes_in", "bytes_out"):
            setattr(self, name, getattr(self, name) + other.get(name, 0))
        self.reasons.update(other.get("reasons", {}))
        self.notes.update(other.get("notes", {}))
        for name, counts in other.get("tables", {}).items():
            self.tables[name].update(counts)
        self.lines = (self.lines + other.get("lines", []))[:EXAMPLES_PER_REASON]
        for example in other.get("examples", []):
            if sum(1 for e in self.examples if e["reason"] == example["reason"]) < EXAMPLES_PER_REASON:
                self.examples.append(example)

    def drop(self, url: str, reason: str, detail: str, text: str) -> None:
        """Count a dropped document and keep the first few of each reason as examples, personal data masked."""
        self.reasons[reason] += 1
        if self.reasons[reason] <= EXAMPLES_PER_REASON:
            shown = mask_pii(excerpt(text, detail, reason))[0]
            example = {"url": url, "reason": reason, "detail": mask_pii(detail)[0], "text": shown}
            self.examples.append(example)

    def show_line(self, url: str, line: str) -> None:
        """Keep the first few lines that were taken out of documents which stay."""
        if len(self.lines) < EXAMPLES_PER_REASON:
            self.lines.append(
                {"url": url, "reason": LINES, "detail": "taken out", "text": mask_pii(line[:_EXAMPLE_CHARACTERS])[0]}
            )

    def room_for(self, reason: str, documents: int) -> int:
        """For how many of so many documents dropped for a reason `drop` still keeps examples."""
        return max(0, min(documents, EXAMPLES_PER_REASON - self.reasons[reason]))

    def keep(self, bytes_in: int, bytes_out: int) -> None:
        """Count a document that passed."""
        self.documents_out += 1
        self.bytes_out += bytes_out

    def as_dict(self) -> dict[str, Any]:
        """Plain data, reasons by falling count."""
        counts = {"reasons": dict(self.reasons.most_common()), "notes": dict(self.notes.most_common())}
        tables = {name: dict(sorted(table.items())) for name, table in sorted(self.tables.items()) if table}
        return {name: getattr(self, name) for name in _PLAIN} | counts | {"tables": tables}


def excerpt(text: str, detail: str, reason: str = "") -> str:
    """The beginning of a text, or the surroundings of the words that met the rule."""
    place = next((start for start, _ in spans(reason, detail, text[:_LOOKED_AT])), 0)
    start = max(0, place - _EXAMPLE_CHARACTERS // 3) if place > _EXAMPLE_CHARACTERS // 2 else 0
    return ("… " if start else "") + text[start : start + _EXAMPLE_CHARACTERS]


Table = dict[str, dict[str, int]]
"""What became of the documents of each language or domain: its name -> `kept` or the reason -> documents."""


def tables_of(rows: list[dict[str, Any]]) -> dict[str, Table]:
    """Tables of one part's judged documents."""
    tables: dict[str, dict[str, Counter]] = {"language": {}, "domain": {}, "source": {}, "kind": {}}
    for row in rows:
        names = {"language": row["language"] or "none", "domain": domain(row["url"]), "source": row["source"]}
        names["kind"] = _kind(row)
        for kind, name in names.items():
            counts = tables[kind].setdefault(name, Counter())
            counts[row["drop"] or KEPT] += 1
            if row["drop"] is None:
                counts["bytes"] += len(row["text"].encode())
    return {kind: {name: dict(counts) for name, counts in table.items()} for kind, table in tables.items()}


def _kind(row: dict[str, Any]) -> str:
    """`code`, `maths` or `prose`, by what the extraction marked as code and by TeX commands."""
    text, code = row["text"], row.get("code_lines") or []
    if row.get("kind") == "code" or 5 * sum(code[1::2], -sum(code[::2])) >= 1 + text.count("\n"):
        return "code"
    return "maths" if 150 * text.count("\\") >= max(len(text), 1500) else "prose"


_NO_RULES = {KEPT, "bytes", "near_duplicate", "url_older_copy", "source_of_page", "page_size", "empty", "binary"}


def heavy_losses(funnel: dict[str, Any], least: int = 10) -> list[str]:
    """One sentence for each source of which the rules dropped more than half, with the reasons that took most."""
    told = []
    for source, counts in funnel.get("tables", {}).get("source", {}).items():
        judged = sum(n for name, n in counts.items() if name == KEPT or name not in _NO_RULES)
        lost = Counter({name: n for name, n in counts.items() if name not in _NO_RULES})
        if judged >= least and lost.total() > judged / 2:
            most = ", ".join(f"{name} {n:,}" for name, n in lost.most_common(3))
            told.append(f"the rules dropped {lost.total():,} of {judged:,} documents of `{source}`: {most}")
    return told


def planted_phrases(funnel: dict[str, Any]) -> str:
    """One sentence about the phrases that look planted, empty where there are none."""
    tables = funnel.get("planted", {}).get("tables", {})
    phrases = sorted(tables.get(PHRASES, {}).items(), key=lambda item: -item[1])
    shown = ", ".join(f"`{phrase}` {documents:,}" for phrase, documents in phrases[:3])
    return f"{len(phrases):,} phrases look planted (documents of several sites share nothing else): {shown}" * bool(
        phrases
    )


def domain(url: str) -> str:
    """The host of a URL without `www.`; for files, what they are read from."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "(broken address)"
    return (parts.hostname or parts.scheme or "(files)").removeprefix("www.")


class Funnel:
    """The steps in order, written to a file whenever one advances."""

    def __init__(self, path: Path):
        self.path = path
        self.steps: list[Step] = []
        self.tables: dict[str, dict[str, Counter]] = {}
        self.planted: Step | None = None  # drops nothing, so it is no step of the funnel's own
        self._written = 0.0

    def step(self, name: str) -> Step:
        """Begin a step."""
        self.steps.append(Step(name))
        return self.steps[-1]

    def add(self, step: Step) -> None:
        """Add a step that is done."""
        self.steps.append(step)
        self.write()

    def add_tables(self, tables: dict[str, Table]) -> None:
        """Add another part's tables; the smallest rows of a table that grows too long are summed up."""
        for kind, table in tables.items():
            mine = self.tables.setdefault(kind, {})
            for name, counts in table.items():
                mine.setdefault(name, Counter()).update(counts)
            if len(mine) > 2 * _MAX_ROWS:
                order = sorted(mine, key=lambda name: (name == REST, -_documents(mine[name]), name))
                rest = mine.setdefault(REST, Counter())
                for name in order[_MAX_ROWS:]:
                    if name != REST:
                        rest.update(mine.pop(name))

    def show(self) -> None:
        """Write the state so far for who watches, if the last time is a while ago."""
        if time.monotonic() - self._written > _SHOW_SECONDS:
            self.write()

    def write(self) -> None:
        """Write the state so far, whole or not at all."""
        tables = {
            kind: dict(sorted(table.items(), key=lambda item: (item[0] == REST, -_documents(item[1]), item[0])))
            for kind, table in self.tables.items()
        }
        state: dict[str, Any] = {"steps": [step.as_dict() for step in self.steps], "tables": tables}
        if self.planted is not None:
            state["planted"] = self.planted.as_dict()
        self._written = time.monotonic()
        atomic_write(self.path, json.dumps(state, indent=1))


def _documents(counts: Counter) -> int:
    return sum(count for name, count in counts.items() if name != "bytes")
