"""One part of a corpus extracted: from raw pages to texts, and what the steps over the whole corpus need of them."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import blake2b
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from herd.curate.dedup import duplicates as dedup
from herd.curate.dedup.steps import DOCUMENT_FACTS
from herd.curate.extract.html import extract
from herd.curate.filters.addresses import host, registered_domain
from herd.curate.filters.language import foreign_lines, language
from herd.curate.filters.text import LINE_RANGES, keep_lines
from herd.curate.funnel import Step
from herd.curate.parts import read_table, save_array, save_table, write_record
from herd.curate.read.pages import page_made_of
from herd.types import DOCUMENT_COLUMNS

_DOCUMENT = [(name, pa.type_for_alias(kind)) for name, kind in DOCUMENT_COLUMNS.items()]
TEXT_SCHEMA = pa.schema([*_DOCUMENT, ("kind", pa.string()), *((name, pa.list_(pa.int32())) for name in LINE_RANGES)])
"""Documents on their way: what the steps to come need beside the columns."""
DOCUMENT_SCHEMA = pa.schema(_DOCUMENT)
"""The Arrow schema of curated documents."""


PAGE_SECONDS = 20.0
"""Of the processor, for one page; honest ones take milliseconds."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Stop what takes more time of the processor, where signals are to be had: in a main thread, not on Windows.

    Raises:
        TimeoutError: it took more. What the parser itself takes is bounded by what it is given.
    """
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGPROF, _too_long)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def _too_long(number: int, frame: FrameType | None) -> None:
    raise TimeoutError


def extract_part(job: dict[str, Any]) -> dict[str, Any]:
    """Extract one part's pages: text, title, language; and what the steps over the whole corpus need of them."""
    state, name = Path(job["state"]), job["name"]
    raw = read_table(state / "raw" / f"{name}.parquet")
    replaced = np.load(state / "keys" / f"{name}.url.npy")
    steps = {"extract": Step("extract"), "language": Step("language")}
    rows = [_document(row, int(old), steps, job) for row, old in zip(raw.to_pylist(), replaced, strict=True)]
    table = pa.Table.from_pylist(rows, TEXT_SCHEMA)
    files = [state / "text" / f"{name}.parquet"]
    save_table(table, files[0])
    for kind, array in keys_of(table, raw, job).items():
        files.append(state / "keys" / f"{name}.{kind}.npy")
        save_array(array, files[-1])
    result = {key: step.as_dict() for key, step in steps.items()}
    write_record(state / "text" / f"{name}.json", len(table), files, steps=result)
    return result


def keys_of(table: pa.Table, raw: pa.Table, job: dict[str, Any]) -> dict[str, np.ndarray]:
    """What stays of one part's texts for the steps over the whole corpus, as arrays by kind."""
    text = table["text"].combine_chunks()
    facts = np.zeros(len(table), dtype=DOCUMENT_FACTS)
    facts["kept"] = table["drop"].is_null().to_numpy()
    facts["code"] = pc.equal(table["kind"], "code").to_numpy()
    facts["bytes"] = pc.binary_length(text).to_numpy()
    facts["date"], facts["page"] = raw["date_number"].to_numpy(), raw["page_key"].to_numpy()
    facts["language"] = [int.from_bytes(blake2b(code.encode(), digest_size=8).digest()) for code in _languages(table)]
    arrays = {"docs": facts}
    options = dedup.DocumentDedup(**job["documents"])
    if options.enabled:
        arrays["minhash"] = dedup.signatures(text, options)
        if options.verify == "exact":
            arrays["shingles"], arrays["shingle_sizes"] = dedup.shingles(text, options.ngram_words)
    if job["lines"]:
        prose = facts["kept"] & ~facts["code"]
        lines = pc.split_pattern(text.filter(pa.array(prose)), "\n")
        facts["lines"][prose] = pc.list_value_length(lines).to_numpy()
        keys = dedup.line_keys(lines.flatten())
        arrays["lines"] = np.where(keys == 0, keys, keys ^ np.repeat(facts["language"], facts["lines"]))
        arrays["lines"][_structured(table, prose, facts["lines"])] = 0
    return arrays


def _languages(table: pa.Table) -> list[str]:
    return [code or "" for code in table["language"].to_pylist()]


def _structured(table: pa.Table, prose: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Which of the lines of a part's prose are of code, tables and lists: these are never counted, (lines,) bool."""
    starts = np.cumsum(lengths) - lengths
    found = np.zeros(int(lengths.sum()), dtype=bool)
    for name in ("code_lines", "aside_lines"):
        for number in np.flatnonzero(prose).tolist():
            ranges = table[name][number].as_py() or []
            for start, end in zip(ranges[::2], ranges[1::2], strict=True):
                found[starts[number] + start : min(starts[number] + end, starts[number] + lengths[number])] = True
    return found


def _document(row: dict[str, Any], replaced: int, steps: dict[str, Step], job: dict[str, Any]) -> dict[str, Any]:
    document = {key: row[key] for key in ("id", "url", "date", "kind", "source", "place")}
    document |= {
        "group": group_of(row["url"], job.get("group", "site")),
        "title": "",
        "text": "",
        "language": "",
        "quality": 0.0,
    }
    document |= {
        "drop": row["drop"],
        "drop_detail": row["drop_detail"],
        "code_lines": [],
        "aside_lines": [],
        "link_lines": [],
    }
    if row["drop"]:
        return document
    if replaced >= 0:
        if page_made_of(row["url"]):
            return document | {"drop": "source_of_page", "drop_detail": "the page that is made of it was kept"}
        kept = f"the copy of {str(replaced)[:8]} was kept" if replaced else "another undated copy was kept"
        return document | {"drop": "url_older_copy", "drop_detail": kept}
    step = steps["extract"]
    step.documents_in += 1
    step.bytes_in += row["num_bytes"]
    problem = None
    if row["num_bytes"] > len(row["content"]):
        problem = ("page_size", f"{row['num_bytes']:,} bytes")
    else:
        problem = ("page_time", f"more than {PAGE_SECONDS:g} s of the processor")
        with suppress(TimeoutError), time_limit(PAGE_SECONDS):
            page = extract(row["content"], row["url"], row["charset"], row["kind"])
            document |= {"text": page.text, "title": page.title, "code_lines": page.code_lines}
            document |= {"aside_lines": list(page.aside_lines), "link_lines": list(page.link_lines)}
            problem = page.problem or (None if page.text.strip() else ("empty", "no text on the page"))
    if problem:
        step.drop(row["url"], *problem, document["text"])
        return document | {"drop": problem[0], "drop_detail": problem[1]}
    size = len(document["text"].encode())
    step.keep(row["num_bytes"], size)
    return _with_language(document, row["kind"], size, steps["language"], job)


def _with_language(document: dict, kind: str, size: int, step: Step, job: dict[str, Any]) -> dict[str, Any]:
    """Judge the language of prose; code has none."""
    step.documents_in += 1
    step.bytes_in += size
    if kind != "code":
        code, probability = language(document["text"])
        document["language"] = code
        least = job.get("probabilities", {}).get(code, job["probability"])
        if probability < least or (job["languages"] and code not in job["languages"]):
            detail = f"{code or 'none'} with probability {probability:.2f}"
            step.drop(document["url"], "language", detail, document["text"])
            return document | {"drop": "language", "drop_detail": detail}
        step.notes[code or "unknown"] += 1
        if code and job.get("foreign") == "drop":
            gone, count = foreign_lines(document["text"], code, document["code_lines"])
            keep_lines(document, [number not in gone for number in range(document["text"].count("\n") + 1)])
            step.notes["foreign paragraphs dropped"] += count
    else:
        step.notes["code"] += 1
    step.keep(size, len(document["text"].encode()))
    return document


def group_of(url: str, kind: str = "site") -> str:
    """What must not be torn apart: a site, the top-level module of a library page, a repository, else the page.

    `kind` says what counts as a site: its registered domain (`site`), its `host`, or each `page`.
    """
    if url.startswith("git:"):
        return url.partition("@")[0]
    if url.startswith(("http://", "https://")):
        name = host(url)
        return url if kind == "page" or not name else name if kind == "host" else registered_domain(name) or name
    if not url.startswith("python://"):
        return url
    path = url.split("/", 4)[4] if url.count("/") >= 4 else url
    if path.startswith("topics."):
        return path.removesuffix(".html")
    return path.split("/")[0].removesuffix(".html").removesuffix(".py").split(".")[0]
