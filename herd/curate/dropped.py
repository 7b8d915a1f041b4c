"""All dropped documents as pages that can be leafed through, a set for each reason; personal data is masked."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from herd.curate.filters.heuristics import Limits
from herd.curate.funnel import excerpt
from herd.curate.meanings import limits, meaning, spans
from herd.curate.privacy.personal import mask_pii
from herd.run import atomic_write

FOLDER = "dropped"
MOST = 5000
"""Documents of a reason that are written as pages; a crawl's Parquet files hold the rest."""
_ON_PAGE = 100


def write_dropped(out: Path, style: str, given: Mapping[str, Limits]) -> dict[str, str]:
    """Write `dropped/REASON-0001.html` and so on of a curated folder; the first page of each reason.

    `style` is the pages' CSS, `given` the recipe's limits of filters.
    """
    totals: Counter[str] = Counter()
    waiting: dict[str, list[dict[str, Any]]] = {}
    pages: Counter[str] = Counter()
    for row in _dropped(out):
        reason = row["drop"]
        totals[reason] += 1
        if totals[reason] <= MOST:
            rows = waiting.setdefault(reason, [])
            if len(rows) == _ON_PAGE:  # there is one more: this page has a next one
                _write(out, reason, pages, rows, style, given, more=True)
                rows.clear()
            rows.append(row)
    for reason, rows in waiting.items():
        _write(out, reason, pages, rows, style, given, more=False, left=max(0, totals[reason] - MOST))
    return {reason: f"{FOLDER}/{_file(reason, 1)}" for reason in totals}


def _dropped(out: Path) -> Iterator[dict[str, Any]]:
    for file in sorted((out / "documents").glob("*.parquet")):
        for batch in pq.ParquetFile(file).iter_batches(1000, columns=["url", "drop", "drop_detail", "text"]):
            yield from (row for row in batch.to_pylist() if row["drop"] is not None)


def _file(reason: str, page: int) -> str:
    return f"{re.sub(r'[^A-Za-z0-9_-]+', '-', reason)[:80]}-{page:04d}.html"


def _write(
    out: Path,
    reason: str,
    pages: Counter[str],
    rows: list[dict[str, Any]],
    style: str,
    given: Mapping[str, Limits],
    *,
    more: bool,
    left: int = 0,
) -> None:
    pages[reason] += 1
    number = pages[reason]
    ways = [("../funnel.html", "the funnel")]
    ways += [(_file(reason, number - 1), "the page before")] if number > 1 else []
    ways += [(_file(reason, number + 1), "the next page")] if more else []
    links = " · ".join(f"<a href='{escape(to)}'>{told}</a>" for to, told in ways)
    rest = f"<p>{left:,} more in documents/*.parquet, with this reason in the column <code>drop</code>.</p>" * bool(
        left
    )
    shown = "".join(map(sample, map(_masked, rows)))
    head = "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
    title = f"{reason}, page {number}"
    rule = f"<p>{escape(meaning(reason))} {escape(limits(reason, given))}</p>"
    body = f"<h1>{escape(title)}</h1>{rule}<p>{links}</p>{shown}{rest}<p>{links}</p>"
    page = f"{head}<title>{escape(title)}</title><style>{style}</style><body>{body}</body></html>\n"
    atomic_write(out / FOLDER / _file(reason, number), page)


def _masked(row: dict[str, Any]) -> dict[str, str]:
    detail = row["drop_detail"] or ""
    shown = excerpt(row["text"] or "", detail, row["drop"])
    return {"url": row["url"], "reason": row["drop"], "detail": mask_pii(detail)[0], "text": mask_pii(shown)[0]}


def sample(example: dict[str, str]) -> str:
    """A dropped document as HTML: its address, the detail, its text with what met the rule marked."""
    text, at, parts = example["text"], 0, []
    for start, end in spans(example["reason"], example["detail"], text):
        parts += [escape(text[at:start]), f"<mark>{escape(text[start:end])}</mark>"]
        at = end
    shown = "".join([*parts, escape(text[at:])])
    place = f"<div class=url>{escape(example['url'])}: <b>{escape(example['detail'])}</b></div>"
    return place + (f"<pre>{shown}</pre>" if text else "")
