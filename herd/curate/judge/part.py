"""One part of a corpus judged: repeated lines go, the judge drops and masks, and the documents are written."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from herd.curate.extract.part import DOCUMENT_SCHEMA, TEXT_SCHEMA
from herd.curate.filters.text import LINE_RANGES, Reason, keep_lines
from herd.curate.funnel import LINES, Step, tables_of
from herd.curate.judge.documents import Judge, rules_from_json, take_step
from herd.curate.parts import read_table, save_table, write_record


def judge_part(job: dict[str, Any]) -> dict[str, Any]:
    """Drop repeated lines from one part's documents, judge them, mask personal data, score, and write them."""
    state, name = Path(job["state"]), job["name"]
    rows = read_table(state / "text" / f"{name}.parquet").to_pylist()
    copies = np.load(state / "keys" / f"{name}.copy.npy")
    for number, url in zip(copies["doc"].tolist(), copies["url"].tolist()):
        rows[number] |= {"drop": "near_duplicate", "drop_detail": f"of {url.decode(errors='ignore')}"}
    rules = rules_from_json(job["rules"])
    judge = Judge(rules, state)
    steps = {key: Step(key) for key in ("line_dedup", *Judge.STEPS)}
    lines = _RepeatedLines(state, name) if job["lines"] else None
    for number, row in enumerate(rows):
        clean = partial(_clean_lines, number, lines, rules.titles)
        if row["drop"] is None and take_step(row, steps["line_dedup"], clean):
            judge.judge(row, steps)
    for row in rows:
        judge.mask_rest(row)
    table = pa.Table.from_pylist(rows, TEXT_SCHEMA).select(DOCUMENT_SCHEMA.names)
    file = Path(job["out"]) / "documents" / f"{name}.parquet"
    save_table(table, file, durable=True)
    result = {key: step.as_dict() for key, step in steps.items()}
    record = state / "text" / f"{name}.judged.json"
    write_record(record, len(rows), [file], steps=result, tables=tables_of(rows))
    return result


class _RepeatedLines:
    """Which lines of one part's documents stand too often in the corpus."""

    def __init__(self, state: Path, name: str):
        lines = np.load(state / "keys" / f"{name}.docs.npy")["lines"]
        self.ends = np.cumsum(lines)
        self.starts = self.ends - lines
        self.dropped = np.load(state / "keys" / f"{name}.drop.npy")  # lines numbered through the part

    def keep(self, number: int) -> np.ndarray:
        """For each line of a document whether it stays, (lines,) bool."""
        start, end = self.starts[number], self.ends[number]
        keep = np.ones(end - start, dtype=bool)
        first, last = np.searchsorted(self.dropped, [start, end])
        keep[self.dropped[first:last] - start] = False
        return keep


def _clean_lines(number: int, lines: _RepeatedLines | None, titles: bool, row: dict, step: Step) -> Reason | None:
    reason = _drop_lines(number, lines, row, step)
    if reason is None and titles:
        _with_title(row)
    return reason


def _drop_lines(number: int, lines: _RepeatedLines | None, row: dict, step: Step):
    """Take repeated lines out of prose; code stays exactly as it is."""
    if lines is None or row["kind"] == "code":
        return None
    keep = lines.keep(number)
    if keep.all():
        return None
    gone = [line for line, stays in zip(row["text"].split("\n"), keep, strict=True) if not stays]
    step.notes[LINES] += len(gone)
    step.show_line(row["url"], gone[0])
    keep_lines(row, keep.tolist())
    return None if row["text"].strip() else ("repeated_lines", "nothing but repeated lines")


def _with_title(row: dict) -> None:
    """Begin a page's text with its title where it does not say it itself; after its lines were counted."""
    title, text = row["title"], row["text"]
    if title and text and title not in text[: len(title) + 300]:
        row["text"] = f"{title}\n\n{text}"
        for name in LINE_RANGES:
            row[name] = [number + 2 for number in row[name] or ()]
