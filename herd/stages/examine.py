"""Examine: every curation filter's verdict on a page, also of those that keep it."""

from __future__ import annotations

from collections import Counter
from dataclasses import field
from itertools import islice
from pathlib import Path
from typing import Any

from herd.config import settings
from herd.curate.extract.html import explain_thread, extract
from herd.curate.filters.addresses import AddressGate
from herd.curate.filters.heuristics import PROSE_FILTERS, TECHNICAL_FILTERS, WEB_FILTERS, limits_for
from herd.curate.filters.language import language, paragraph_languages
from herd.curate.funnel import Step
from herd.curate.judge.documents import Judge, Rules, page_kind, text_of
from herd.curate.privacy.personal import find_pii
from herd.curate.read.pages import RawPage, find_files, read_pages
from herd.errors import DataError

_SHOWN = 90  # characters of a line


@settings
class ExamineSettings:
    """Show how curation treats single pages: text, language, every filter's verdict, personal data, score."""

    path: Path
    """File or folder of pages: HTML, WARC, JSONL, Parquet, text."""
    first: int = 1
    """The first page to show, counted from 1."""
    number: int = 1
    """How many pages to show."""
    text: bool = False
    """Whether to print the extracted text as well."""
    blocks: bool = False
    """Whether to print each block of a forum's page: kept (+) or not, score, the figures that moved it most, text."""
    rules: Rules = field(default_factory=Rules)

    def __post_init__(self):
        if self.first < 1 or self.number < 1:
            raise ValueError("first and number must be at least 1")


def run(settings: ExamineSettings) -> None:
    """Print the verdicts to standard output.

    Raises:
        DataError: there is no such page.
    """
    gate = AddressGate(settings.rules.blocked, settings.rules.cutoff)
    judge = Judge(settings.rules)
    pages = (page for file in find_files([settings.path]) for page in read_pages(file, Counter()))
    shown = 0
    for page in islice(pages, settings.first - 1, settings.first - 1 + settings.number):
        _show(page, gate, judge, settings)
        shown += 1
    if not shown:
        raise DataError(f"{settings.path}: has no page {settings.first}")


def _show(page: RawPage, gate: AddressGate, judge: Judge, settings: ExamineSettings) -> None:
    extracted = extract(page.content, page.url, page.charset, page.kind)
    row: dict[str, Any] = {"id": page.id, "url": page.url, "text": extracted.text, "kind": page.kind, "drop": None}
    row |= {"source": page.source, "code_lines": extracted.code_lines}
    row |= {"aside_lines": list(extracted.aside_lines), "link_lines": list(extracted.link_lines)}
    row["language"], probability = language(extracted.text) if page.kind != "code" else ("", 0.0)
    title = extracted.title or "none"
    print(f"{page.url}\n  {page.num_bytes:,} bytes -> {len(extracted.text):,} characters; title: {title}")
    if refused := gate.why_refuse(page.url, page.date):
        print(f"  address        DROP {refused[0]}: {refused[1]}")
    if extracted.problem:
        print(f"  extraction     DROP {extracted.problem[0]}: {extracted.problem[1]}")
        return
    if page.kind == "html" and (blocks := explain_thread(page.content, page.charset)):
        print(f"  extraction     a thread: {sum(block.kept for block in blocks)} of {len(blocks)} blocks are posts")
        for block in blocks if settings.blocks else []:
            reasons = ", ".join(f"{name} {share:+.1f}" for name, share in block.reasons)
            print(f"    {'+' if block.kept else ' '} {block.score:+5.1f}  {block.text[:_SHOWN]!r} ({reasons})")
    others = Counter(p.language for p in paragraph_languages(extracted.text) if p.language not in ("", row["language"]))
    foreign = "".join(f", {count} paragraphs {name}" for name, count in others.most_common(3))
    print(
        f"  language       {row['language'] or 'none'} ({probability:.2f}){foreign}; kind: {page_kind(row) or 'prose'}"
    )
    _show_filters(row, judge.rules)
    for one in find_pii(extracted.text)[:10]:
        print(f"  {one.kind:<14} {extracted.text[one.start : one.end][:_SHOWN]!r}")
    steps = {name: Step(name) for name in Judge.STEPS}
    judge.judge(row, steps)
    if "quality" in row:
        print(f"  quality        {row['quality']:.3f}")
    print(f"  verdict        {'DROP ' + row['drop'] + ': ' + row['drop_detail'] if row['drop'] else 'kept'}")
    if settings.text:
        print("\n" + extracted.text)


def _show_filters(row: dict[str, Any], rules: Rules) -> None:
    """Each heuristic's verdict, in order; those that do not apply to this kind of page are marked."""
    options = rules.heuristics
    technical = page_kind(row) in options.exempt or row["source"] in options.technical_sources
    text, limits = text_of(row), limits_for(row["language"], options.limits)
    for rule in (*WEB_FILTERS, *TECHNICAL_FILTERS):
        name = rule.__name__
        judged = text.prose if rule in PROSE_FILTERS and not technical else text
        reason = rule(judged, **limits.get(name, {})) if judged is not None else None
        applies = technical == (rule in TECHNICAL_FILTERS) and name not in options.skip and options.enabled
        if reason:
            print(f"  {'DROP' if applies else 'spared':<6}         {name}: {reason[1]}")
