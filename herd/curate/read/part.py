"""Some files of pages read: into raw parts, each page with its date and the keys that it goes by."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pyarrow as pa

from herd.curate.dedup import duplicates as dedup
from herd.curate.filters.addresses import AddressGate, plain_date
from herd.curate.funnel import Step
from herd.curate.judge.rules import rules_from_json
from herd.curate.parts import save_table, write_record
from herd.curate.read.dates import date_of
from herd.curate.read.pages import RawPage, page_made_of, read_pages

_RAW = pa.schema(
    [(name, pa.string()) for name in ("id", "url", "date", "kind", "charset", "source", "place")]
    + [("content", pa.large_binary()), ("num_bytes", pa.int64()), ("drop", pa.string()), ("drop_detail", pa.string())]
    + [("url_key", pa.uint64()), ("page_key", pa.uint64()), ("date_number", pa.int64())]
)


def read_unit(job: dict[str, Any]) -> dict[str, Any]:
    """Read some files into raw parts and record their names and counts."""
    counts: Counter = Counter()
    step, gate_step = Step("read"), Step("addresses")
    rules = rules_from_json(job["rules"])
    gate = AddressGate(rules.blocked, rules.cutoff)
    parts: list[str] = []
    part_rows: list[int] = []
    folder = Path(job["folder"])
    pages = (page for file in job["files"] for page in read_pages(Path(file), counts, job["max_page_bytes"]))
    for batch in _batches(pages, job["part_bytes"]):
        name = f"{job['unit']:06d}-{len(parts):05d}"
        rows = [_through_gate(page, gate, gate_step) for page in batch]
        save_table(pa.Table.from_pylist(rows, _RAW), folder / f"{name}.parquet")
        parts.append(name)
        part_rows.append(len(batch))
        num_bytes = sum(page.num_bytes for page in batch)
        step.add({"documents_out": len(batch), "bytes_out": num_bytes, "bytes_in": num_bytes})
    step.documents_in = counts["records"]
    step.notes = counts
    files = [folder / f"{name}.parquet" for name in parts]
    record = {"parts": parts, "part_rows": part_rows, "step": step.as_dict(), "addresses": gate_step.as_dict()}
    write_record(folder / f"{job['unit']:06d}.json", sum(part_rows), files, **record)
    return {"unit": job["unit"]}


def _through_gate(page: RawPage, gate: AddressGate, step: Step) -> dict[str, Any]:
    """The row of a raw page; a page that its address or date rules out keeps its reason and loses its content."""
    made = page_made_of(page.url)
    number = -2 if made else _date_number(page.date)  # a page is worth more than the source that it is made of
    dated = date_of(page.url, page.date, page.content if page.kind in ("html", "text") else b"")
    address = dedup.normal_url(made or page.url)
    named = dedup.canonical_url(page.content, page.url) if page.kind == "html" else ""
    keys = {"url_key": _key(page.url if dedup.has_session(page.url) else address)}  # a session's pages: by their texts
    keys |= {"page_key": _key(dedup.normal_url(named) if named else address)}
    row = page._asdict() | keys | {"date_number": number}
    row["date"] = dated.date
    step.documents_in += 1
    step.bytes_in += page.num_bytes
    step.notes[f"dated by the {dated.by}" if dated.by else "undated"] += 1
    reason = gate.why_refuse(page.url, dated.date)
    if reason is None:
        step.keep(page.num_bytes, page.num_bytes)
        return row
    step.drop(page.url, *reason, "")
    return row | {"content": b"", "drop": reason[0], "drop_detail": reason[1]}


def _batches(pages: Iterator[RawPage], part_bytes: int) -> Iterator[list[RawPage]]:
    batch: list[RawPage] = []
    size = 0
    for page in pages:
        batch.append(page)
        size += len(page.content) + 1000
        if size >= part_bytes:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _key(text: str) -> int:
    return int.from_bytes(blake2b(text.encode("utf-8", "replace"), digest_size=8).digest(), "little")


def _date_number(date: str) -> int:
    """`2024-05-01T10:20:30Z` as 20240501102030; what is missing counts as the earliest."""
    digits = "".join(c for c in plain_date(date) if c.isdigit())
    return int(digits.ljust(14, "0")) if digits else 0
