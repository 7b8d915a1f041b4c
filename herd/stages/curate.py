"""Curate: from raw pages to clean, deduplicated, judged documents."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import field
from pathlib import Path

from herd.config import settings
from herd.curate.dedup.duplicates import DocumentDedup, LineDedup
from herd.curate.dropped import write_dropped
from herd.curate.estimate import estimate
from herd.curate.filters.heuristics import Limits
from herd.curate.funnel import heavy_losses, planted_phrases
from herd.curate.funnel_page import page, page_style
from herd.curate.judge.documents import Rules, rule_files
from herd.curate.pipeline import Work, curate
from herd.curate.read.pages import find_files
from herd.curate.read.storage import identity, location
from herd.errors import DataError
from herd.log import say, size
from herd.run import atomic_write, open_run


@settings
class CurateSettings:
    """Extract, filter, deduplicate and score pages."""

    out: Path
    """Run folder to write."""
    pages: list[Path]
    """What to curate: folders, files and URLs of HTML, WARC, WET, JSONL, Parquet, text or code."""
    rules: Rules = field(default_factory=Rules)
    documents: DocumentDedup = field(default_factory=DocumentDedup)
    lines: LineDedup = field(default_factory=LineDedup)
    work: Work = field(default_factory=Work)

    def __post_init__(self):
        if not self.pages:
            raise ValueError("pages: give at least one file, folder or URL")


def run(settings: CurateSettings) -> Path:
    """Write `documents/*.parquet` (dropped ones with their reason), `funnel.json`, its page and `dropped/*.html`.

    Raises:
        DataError: no page can be read, or no document is kept.
    """
    files = find_files(settings.pages)
    pages = [identity(path) if location(path) else path for path in settings.pages]
    inputs: dict[str, Sequence[Path | str]] = {"pages": pages, "lists": rule_files(settings.rules)}
    with open_run(settings.out, stage="curate", settings=settings, inputs=inputs) as run:
        if run.finished:
            return run.path
        expected = estimate(files, settings.rules, settings.work.processes, settings.work.max_page_bytes)
        run.need(disk_bytes=expected.disk_bytes, seconds=expected.seconds)
        try:
            figures = curate(files, run.path, settings.rules, settings.documents, settings.lines, settings.work)
        except DataError:  # nothing was kept: the page says why
            _write_pages(run.path, settings.rules.heuristics.limits)
            raise
        _write_pages(run.path, settings.rules.heuristics.limits)
        kept, read = figures["documents"], figures["documents_read"]
        if figures["corrupt"]:
            say(f"  {figures['corrupt']:,} damaged records skipped")
        if settings.rules.cutoff and figures["undated"]:
            say(f"  {figures['undated']:,} pages have no date that can be read: the cutoff cannot tell, and they stay")
        funnel = json.loads((run.path / "funnel.json").read_text())
        for warning in filter(None, [*heavy_losses(funnel), planted_phrases(funnel)]):
            say(f"  {warning}")
        say(f"  {kept:,} of {read:,} documents kept, {size(figures['bytes'])} of text")
        say(f"  what was dropped, and why: {run.path / 'funnel.html'}")
        run.finish(figures)
        shutil.rmtree(run.path / "state")
    return run.path


def _write_pages(out: Path, limits: dict[str, Limits]) -> None:
    """The funnel as a page, and all dropped documents behind it."""
    if (out / "funnel.json").exists():
        funnel = json.loads((out / "funnel.json").read_text())
        browsable = write_dropped(out, page_style(), limits)
        atomic_write(out / "funnel.html", page(funnel, "The funnel", limits, browsable))
