"""The funnel as one self-contained page: what each step took in and let through, what it dropped and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from herd.curate.dropped import sample
from herd.curate.filters.heuristics import Limits
from herd.curate.funnel import KEPT, LINES, PHRASES, REST
from herd.curate.meanings import STEPS, limits, meaning
from herd.log import size

BYTES_PER_TOKEN = 4.0
"""UTF-8 bytes that a token stands for in the page's estimates; about right for English under a 128k vocabulary."""

_MAX_ROWS = 40
_RARE = 3  # documents of a domain that counts as rare
_RAW_STEPS = {"read", "addresses", "url_dedup"}  # pages, not yet text: no tokens to speak of
_KINDS = ("prose", "code", "maths", "rare domains")


def page_style() -> str:
    """The CSS of the funnel's page and of those of dropped documents."""
    return Path(__file__).with_suffix(".css").read_text(encoding="utf-8")


def page(
    funnel: dict[str, Any],
    title: str,
    given: Mapping[str, Limits] | None = None,
    browsable: Mapping[str, str] | None = None,
) -> str:
    """The page of a `funnel.json`.

    `given` are the recipe's limits of filters, `browsable` the page of all documents dropped for a reason.
    """
    style = page_style()
    head = (
        f"<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>{escape(title)}</title><style>{style}</style>"
    )
    tables = funnel.get("tables", {})
    sections = [
        _headline(funnel["steps"], title),
        _steps(funnel["steps"]),
        _dropped(funnel["steps"], given or {}, browsable or {}),
        _by_kind(tables),
        _spared(funnel["steps"]),
        _planted(funnel.get("planted", {})),
        *(_table(kind, tables[kind]) for kind in ("language", "domain", "source") if tables.get(kind)),
    ]
    return f"{head}<body>{''.join(sections)}</body></html>\n"


def _headline(steps: list[dict], title: str) -> str:
    first, last = steps[0], steps[-1]
    kept = last["documents_out"]
    figures = {
        "documents read": f"{first['documents_out']:,}",
        "documents kept": f"{kept:,} ({_percent(kept, first['documents_out'])})",
        "text kept": size(last["bytes_out"]),
        "tokens, about": _tokens(last["bytes_out"]),
        "damaged records skipped": f"{first['notes'].get('corrupt', 0):,}",
    }
    cells = "".join(f"<span><b>{value}</b>{name}</span>" for name, value in figures.items())
    note = f"Tokens are estimated at {BYTES_PER_TOKEN:g} bytes each; <code>herd pack</code> counts them exactly."
    return f"<h1>{escape(title)}</h1><div class=figures>{cells}</div><p>{note}</p>"


def _steps(steps: list[dict]) -> str:
    whole = max(1, steps[0]["documents_in"], steps[0]["documents_out"])
    rows = []
    for step in steps:
        share = 100 * step["documents_out"] / whole
        text = step["name"] not in _RAW_STEPS
        before = _tokens(step["bytes_in"]) if text and step["name"] != "extract" else "–"
        rows.append(
            f"<tr><td>{_name(step)}<td><span class=bar><i style='width:{share:.1f}%'></i></span>"
            f"<td class=n>{step['documents_in']:,}<td class=n>{step['documents_out']:,}"
            f"<td class=n>{size(step['bytes_in'])}<td class=n>{size(step['bytes_out'])}"
            f"<td class=n>{before}<td class=n>{_tokens(step['bytes_out']) if text else '–'}"
        )
    head = "<tr><th>step<th><th class=n>documents in<th class=n>out<th class=n>bytes in<th class=n>out"
    head += "<th class=n>tokens in<th class=n>out"
    return f"<h2>Step by step</h2><div class=wide><table>{head}{''.join(rows)}</table></div>"


def _name(step: dict) -> str:
    return escape(STEPS.get(step["name"], step["name"]))


def _dropped(steps: list[dict], given: Mapping[str, Limits], browsable: Mapping[str, str]) -> str:
    parts = []
    for step in steps:
        for reason, count in step["reasons"].items():
            samples = "".join(sample(e) for e in step["examples"] if e["reason"] == reason)
            rule = " ".join(filter(None, [meaning(reason), limits(reason, given)]))
            every = f" <a href='{escape(browsable[reason])}'>All of them</a>" if reason in browsable else ""
            samples = f"<p>{escape(rule)}{every}</p>{samples}" if rule or every else samples
            share = _percent(count, step["documents_in"])
            told = f"<span class=dim>{_name(step)}: {count:,} documents, {share} of those that came</span>"
            parts.append(
                f"<details><summary><span class=reason>{escape(reason)}</span>{told}</summary>{samples}</details>"
            )
        if lines := step["notes"].get(LINES):
            samples = f"<p>{escape(meaning(LINES))}</p>" * bool(meaning(LINES))
            samples += "".join(map(sample, step.get("lines", ())))
            told = f"<span class=dim>{_name(step)}: {lines:,} lines, their documents stay</span>"
            parts.append(f"<details><summary><span class=reason>{LINES}</span>{told}</summary>{samples}</details>")
    return f"<h2>What was dropped, and why</h2>{''.join(parts) or '<p>Nothing.</p>'}"


def _by_kind(tables: dict[str, Any]) -> str:
    """Which share of code, maths and rare domains each reason drops: rules made for prose must not eat these."""
    kinds = dict(tables.get("kind", {}))
    if not kinds:
        return ""
    kinds["rare domains"] = _rare(tables.get("domain", {}))
    totals = {kind: _documents(kinds.get(kind, {})) for kind in _KINDS}
    reasons = sorted({r for counts in kinds.values() for r in counts} - {KEPT, "bytes"})
    head = "<tr><th>reason" + "".join(f"<th class=n>{kind} ({totals[kind]:,})" for kind in _KINDS)
    rows = [
        f"<tr><td>{escape(reason)}"
        + "".join(f"<td class=n>{_percent(kinds.get(kind, {}).get(reason, 0), totals[kind])}" for kind in _KINDS)
        for reason in [*reasons, KEPT]
    ]
    note = f"<p>Share of each kind that a reason drops. Rare are domains with at most {_RARE} documents.</p>"
    return f"<h2>By kind of page</h2>{note}<div class=wide><table>{head}{''.join(rows)}</table></div>"


def _spared(steps: list[dict]) -> str:
    """What the filters for prose would have dropped of technical pages, were they not exempt."""
    step = next((step for step in steps if step["name"] == "heuristics"), {})
    tables = step.get("tables", {})
    kinds = [name.removesuffix(": spared") for name in tables if name.endswith(": spared")]
    if not kinds:
        return ""
    pages = tables["pages"]
    head = "<tr><th>filter" + "".join(f"<th class=n>{escape(kind)} ({pages[kind]:,})" for kind in kinds)
    rows = [
        f"<tr><td>{escape(name)}"
        + "".join(f"<td class=n>{_percent(tables[f'{kind}: spared'].get(name, 0), pages[kind])}" for kind in kinds)
        for name in sorted({name for kind in kinds for name in tables[f"{kind}: spared"]})
    ]
    note = "<p>Share of each kind that a filter made for prose would have dropped: technical pages are exempt.</p>"
    return f"<h2>What the exemption spared</h2>{note}<div class=wide><table>{head}{''.join(rows)}</table></div>"


def _planted(step: dict[str, Any]) -> str:
    """Phrases in documents that share nothing else, and where they stand."""
    phrases = step.get("tables", {}).get(PHRASES, {})
    if not phrases:
        return ""
    rows = []
    for phrase, documents in sorted(phrases.items(), key=lambda item: -item[1]):
        samples = "".join(sample(e) for e in step["examples"] if e["reason"] == f"{PHRASES}: {phrase}")
        told = f"<span class=dim>{documents:,} documents, which stay</span>"
        rows.append(f"<details><summary><span class=reason>{escape(phrase)}</span>{told}</summary>{samples}</details>")
    note = "<p>They stand in documents of several sites that share nothing else: poison, or boilerplate.</p>"
    return f"<h2>Phrases that look planted</h2>{note}{''.join(rows)}"


def _rare(domains: dict[str, dict[str, int]]) -> Counter:
    counts: Counter = Counter()
    for name, row in domains.items():
        if name == REST or _documents(row) <= _RARE:
            counts.update(row)
    return counts


def _table(kind: str, table: dict[str, dict[str, int]]) -> str:
    rows = []
    for name, counts in list(table.items())[:_MAX_ROWS]:
        documents, kept = _documents(counts), counts.get(KEPT, 0)
        reasons = Counter({r: n for r, n in counts.items() if r not in (KEPT, "bytes")}).most_common(2)
        told = ", ".join(f"{escape(reason)} {count:,}" for reason, count in reasons)
        num_bytes, share = counts.get("bytes", 0), _percent(kept, documents)
        rows.append(
            f"<tr><td>{escape(name)}<td class=n>{documents:,}<td class=n>{kept:,}<td class=n>{share}"
            f"<td class=n>{size(num_bytes)}<td class=n>{_tokens(num_bytes)}<td>{told}"
        )
    head = f"<tr><th>{kind}<th class=n>documents<th class=n>kept<th class=n>share<th class=n>text<th class=n>tokens"
    more = f"<p>{len(table) - _MAX_ROWS:,} more rows in funnel.json.</p>" if len(table) > _MAX_ROWS else ""
    return f"<h2>By {kind}</h2><div class=wide><table>{head}<th>dropped most for{''.join(rows)}</table></div>{more}"


def _documents(counts: dict[str, int]) -> int:
    return sum(count for name, count in counts.items() if name != "bytes")


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "–"


def _tokens(num_bytes: int) -> str:
    tokens = num_bytes / BYTES_PER_TOKEN
    for unit, factor in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if tokens >= factor:
            return f"{tokens / factor:.1f}{unit}"
    return f"{tokens:.0f}"
