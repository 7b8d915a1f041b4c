"""Curation from end to end: read, drop old copies of URLs, extract, drop near-duplicates and repeated lines, judge.

The corpus is worked on in parts. A step maps a pure function over the parts with Daft, which spreads them over
processes; every finished part is a file, so a killed run goes on with the parts that are missing. Between the maps
stand three global steps (URLs, MinHash, lines), each over compact arrays on disk.

    state/raw/      pages as read                state/text/    extracted text
    state/keys/     signatures, keys of lines    documents/     the result
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any

os.environ.setdefault("DO_NOT_TRACK", "1")  # before Daft is imported: no telemetry

import daft
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from herd.config import settings
from herd.curate import dedup
from herd.curate.addresses import AddressGate, Reason
from herd.curate.extract import extract
from herd.curate.funnel import Funnel, Step
from herd.curate.judge import Judge, Rules, rules_from_json, rules_to_json, take_step
from herd.curate.language import language
from herd.curate.read import RawPage, read_pages
from herd.errors import DataError
from herd.log import progress
from herd.run import atomic_write
from herd.types import DOCUMENT_COLUMNS

_RAW = pa.schema(
    [(name, pa.string()) for name in ("id", "url", "date", "kind", "charset", "source")]
    + [("content", pa.large_binary()), ("num_bytes", pa.int64()), ("drop", pa.string()), ("drop_detail", pa.string())]
)
_DOCUMENT = [(name, pa.type_for_alias(kind)) for name, kind in DOCUMENT_COLUMNS.items()]
_TEXT = pa.schema([*_DOCUMENT, ("kind", pa.string()), ("code_lines", pa.list_(pa.int32()))])
DOCUMENT_SCHEMA = pa.schema(_DOCUMENT)
"""The Arrow schema of curated documents."""


@settings
class Work:
    """How the work is cut."""

    processes: int | None = None
    """Processes that extract and judge at the same time; default: one for each core."""
    part_bytes: int = 8_000_000
    """Bytes of pages in a part: what a killed run may have to do again, and what a process holds."""
    line_memory_bytes: int = 256_000_000
    """Memory for counting lines, in bytes; more lines than fit are counted in several passes."""
    max_page_bytes: int = 20_000_000
    """Pages over this size, in bytes, are dropped unparsed."""

    def __post_init__(self):
        if self.processes is not None and self.processes < 1:
            raise ValueError("processes must be at least 1")
        if min(self.part_bytes, self.line_memory_bytes, self.max_page_bytes) < 1:
            raise ValueError("part_bytes, line_memory_bytes and max_page_bytes must be at least 1")


def curate(
    files: list[Path], out: Path, rules: Rules, documents: dedup.DocumentDedup, lines: dedup.LineDedup, work: Work
) -> dict[str, Any]:
    """Curate the pages of `files` into `out`/documents/*.parquet and `out`/funnel.json; returns headline figures."""
    state = out / "state"
    funnel = Funnel(out / "funnel.json")
    parts = _read(files, state, funnel, rules, work)
    _drop_old_urls(parts, state, funnel)
    _extract(parts, state, funnel, rules, work)
    _drop_near_duplicates(parts, state, funnel, documents)
    _count_lines(parts, state, funnel, lines, work)
    return _judge(parts, state, out, funnel, rules, lines, work)


# ---- mapping a function over parts with Daft -------------------------------------------------------------------------


def map_parts(task: Callable[[dict], dict], jobs: list[dict], processes: int, label: str) -> Iterator[dict]:
    """Run a pure function over jobs in processes of Daft's runner; results come in as they are ready.

    A single job, or a single process, needs no runner and stays in this process.
    """
    if not jobs:
        return
    processes = min(processes, len(jobs))
    with progress(label, total=len(jobs), unit="parts") as bar:
        for result in map(task, jobs) if processes == 1 else _map_with_daft(task, jobs, processes):
            bar.advance()
            yield result


def _map_with_daft(task: Callable[[dict], dict], jobs: list[dict], processes: int) -> Iterator[dict]:
    @daft.cls(use_process=True, max_concurrency=processes)
    class Worker:
        @daft.method.batch(return_dtype=daft.DataType.string(), batch_size=1)
        def run(self, jobs: daft.Series) -> list[str]:
            return [json.dumps(task(json.loads(job))) for job in jobs.to_pylist()]

    frame = daft.from_pydict({"job": [json.dumps(job) for job in jobs]})
    for row in frame.select(Worker().run(daft.col("job")).alias("result")).iter_rows():
        yield json.loads(row["result"])


# ---- reading ---------------------------------------------------------------------------------------------------------


def _read(files: list[Path], state: Path, funnel: Funnel, rules: Rules, work: Work) -> list[str]:
    """Cut the input files into raw parts; returns the parts' names in order."""
    step, gate_step = funnel.step("read"), funnel.step("addresses")
    AddressGate(rules.blocked, rules.cutoff)  # a fault in a list is told before the work begins
    folder = state / "raw"
    folder.mkdir(parents=True, exist_ok=True)
    units = _units(files, work.part_bytes)
    jobs = [
        {"unit": number, "files": [str(file) for file in unit], "folder": str(folder)}
        | {"part_bytes": work.part_bytes, "max_page_bytes": work.max_page_bytes, "rules": rules_to_json(rules)}
        for number, unit in enumerate(units)
        if not (folder / f"{number:06d}.json").exists()
    ]
    for _ in map_parts(read_unit, jobs, _processes(work), "read"):
        pass
    names: list[str] = []
    for number in range(len(units)):
        record = json.loads((folder / f"{number:06d}.json").read_text())
        names += record["parts"]
        step.add(record["step"])
        gate_step.add(record["addresses"])
    funnel.write()
    if not names:
        raise DataError(f"{files[0]}: no page could be read; what was found: {dict(step.notes) or 'nothing'}")
    return names


def _units(files: list[Path], part_bytes: int) -> list[list[Path]]:
    """Files that are read together: small ones gathered until they make a part."""
    units: list[list[Path]] = []
    room = 0
    for file in files:
        size = file.stat().st_size
        if not units or size > room:
            units.append([])
            room = part_bytes
        units[-1].append(file)
        room -= size
    return units


def read_unit(job: dict[str, Any]) -> dict[str, Any]:
    """Read some files into raw parts and record their names and counts."""
    counts: Counter = Counter()
    step, gate_step = Step("read"), Step("addresses")
    rules = rules_from_json(job["rules"])
    gate = AddressGate(rules.blocked, rules.cutoff)
    parts: list[str] = []
    folder = Path(job["folder"])
    pages = (page for file in job["files"] for page in read_pages(Path(file), counts, job["max_page_bytes"]))
    for batch in _batches(pages, job["part_bytes"]):
        name = f"{job['unit']:06d}-{len(parts):05d}"
        rows = [_through_gate(page, gate, gate_step) for page in batch]
        _write_parquet(pa.Table.from_pylist(rows, _RAW), folder / f"{name}.parquet")
        parts.append(name)
        num_bytes = sum(page.num_bytes for page in batch)
        step.add({"documents_out": len(batch), "bytes_out": num_bytes, "bytes_in": num_bytes})
    step.documents_in = counts["records"]
    step.notes = counts
    record = {"parts": parts, "step": step.as_dict(), "addresses": gate_step.as_dict()}
    atomic_write(folder / f"{job['unit']:06d}.json", json.dumps(record))
    return {"unit": job["unit"]}


def _through_gate(page: RawPage, gate: AddressGate, step: Step) -> dict[str, Any]:
    """The row of a raw page; a page that its address or date rules out keeps its reason and loses its content."""
    row = page._asdict()
    step.documents_in += 1
    step.bytes_in += page.num_bytes
    step.notes["undated"] += not page.date
    reason = gate.why_refuse(page.url, page.date)
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


# ---- old copies of URLs ----------------------------------------------------------------------------------------------


def _drop_old_urls(parts: list[str], state: Path, funnel: Funnel) -> None:
    """Keep the newest copy of each URL; writes `state/keys/NAME.url.npy`: the date of the kept copy, -1 for it."""
    keys, dates, sizes, wanted, offsets = [], [], [], [], [0]
    for name in parts:
        table = pq.read_table(state / "raw" / f"{name}.parquet", columns=["url", "date", "num_bytes", "drop"])
        urls = table["url"].to_pylist()
        keys.append(np.array([_key(dedup.normal_url(url)) for url in urls], dtype=np.uint64))
        dates.append(np.array([_date_number(date) for date in table["date"].to_pylist()], dtype=np.int64))
        sizes.append(table["num_bytes"].to_numpy())
        wanted.append(table["drop"].is_null().to_numpy())
        offsets.append(offsets[-1] + len(urls))
    all_dates = np.concatenate(dates)
    keep = np.concatenate(wanted)
    replaced = np.full(len(keep), -1, dtype=np.int64)  # by number among all pages; those ruled out take no part
    mine = dedup.older_copies(np.concatenate(keys)[keep], all_dates[keep])
    replaced[keep] = np.where(mine < 0, -1, np.flatnonzero(keep)[mine])
    step = funnel.step("url_dedup")
    all_sizes = np.concatenate(sizes)
    left = keep & (replaced < 0)
    step.documents_in, step.bytes_in = int(keep.sum()), int(all_sizes[keep].sum())
    step.documents_out, step.bytes_out = int(left.sum()), int(all_sizes[left].sum())
    if step.documents_in > step.documents_out:
        step.reasons["url_older_copy"] = step.documents_in - step.documents_out
    (state / "keys").mkdir(exist_ok=True)
    for i, name in enumerate(parts):
        mine = replaced[offsets[i] : offsets[i + 1]]
        _save_array(state / "keys" / f"{name}.url.npy", np.where(mine < 0, -1, all_dates[mine]))
    funnel.write()


def _key(text: str) -> int:
    return int.from_bytes(blake2b(text.encode("utf-8", "replace"), digest_size=8).digest(), "little")


def _date_number(date: str) -> int:
    """`2024-05-01T10:20:30Z` as 20240501102030; what is missing counts as the earliest."""
    digits = "".join(c for c in date if c.isdigit())[:14]
    return int(digits.ljust(14, "0")) if digits else 0


# ---- extraction ------------------------------------------------------------------------------------------------------


def _extract(parts: list[str], state: Path, funnel: Funnel, rules: Rules, work: Work) -> None:
    (state / "text").mkdir(exist_ok=True)
    options = {"languages": rules.languages, "probability": rules.language_probability}
    jobs = [{"state": str(state), "name": name, **options} for name in parts]
    _run_part_steps(extract_part, jobs, state / "text", "", ("extract", "language"), funnel, work, "extract")


def _run_part_steps(
    task: Callable[[dict], dict],
    jobs: list[dict],
    folder: Path,
    suffix: str,
    names: tuple[str, ...],
    funnel: Funnel,
    work: Work,
    label: str,
) -> None:
    """Run a task over the parts that lack its record, the funnel growing as they come; then count in order of parts.

    The order of arrival differs from run to run, so the final counts and examples are taken in order.
    """
    records = {job["name"]: folder / f"{job['name']}{suffix}.json" for job in jobs}
    waiting = [job for job in jobs if not records[job["name"]].exists()]
    steps = [funnel.step(name) for name in names]
    for result in map_parts(task, waiting, _processes(work), label):
        for step in steps:
            step.add(result[step.name])
        funnel.write()
    del funnel.steps[-len(steps) :]
    steps = [funnel.step(name) for name in names]
    for record in records.values():
        result = json.loads(record.read_text())
        for step in steps:
            step.add(result[step.name])
    funnel.write()


def extract_part(job: dict[str, Any]) -> dict[str, Any]:
    """Extract one part's pages: text, title, language."""
    state, name = Path(job["state"]), job["name"]
    rows = pq.read_table(state / "raw" / f"{name}.parquet").to_pylist()
    replaced = np.load(state / "keys" / f"{name}.url.npy")
    steps = {"extract": Step("extract"), "language": Step("language")}
    table = pa.Table.from_pylist(
        [_document(row, old, steps, job) for row, old in zip(rows, replaced, strict=True)], _TEXT
    )
    _write_parquet(table, state / "text" / f"{name}.parquet")
    result = {key: step.as_dict() for key, step in steps.items()}
    atomic_write(state / "text" / f"{name}.json", json.dumps(result))
    return result


def _document(row: dict[str, Any], replaced: int, steps: dict[str, Step], job: dict[str, Any]) -> dict[str, Any]:
    document = {key: row[key] for key in ("id", "url", "date", "kind", "source")}
    document |= {"group": _group(row["url"]), "title": "", "text": "", "language": "", "quality": 0.0}
    document |= {"drop": row["drop"], "drop_detail": row["drop_detail"], "code_lines": []}
    if row["drop"]:
        return document
    if replaced >= 0:
        kept = f"the copy of {str(replaced)[:8]} was kept" if replaced else "another undated copy was kept"
        return document | {"drop": "url_older_copy", "drop_detail": kept}
    step = steps["extract"]
    step.documents_in += 1
    step.bytes_in += row["num_bytes"]
    problem = None
    if row["num_bytes"] > len(row["content"]):
        problem = ("page_size", f"{row['num_bytes']:,} bytes")
    else:
        page = extract(row["content"], row["url"], row["charset"], row["kind"])
        document |= {"text": page.text, "title": page.title, "code_lines": page.code_lines}
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
        if job["languages"] and (code not in job["languages"] or probability < job["probability"]):
            detail = f"{code or 'none'} with probability {probability:.2f}"
            step.drop(document["url"], "language", detail, document["text"])
            return document | {"drop": "language", "drop_detail": detail}
        step.notes[code or "unknown"] += 1
    else:
        step.notes["code"] += 1
    step.keep(size, size)
    return document


def _group(url: str) -> str:
    """What must not be torn apart: the top-level module of a library page, else the page."""
    if not url.startswith("python://"):
        return url
    path = url.split("/", 4)[4] if url.count("/") >= 4 else url
    if path.startswith("topics."):
        return path.removesuffix(".html")
    return path.split("/")[0].removesuffix(".html").removesuffix(".py").split(".")[0]


# ---- near-duplicate documents ----------------------------------------------------------------------------------------


def _drop_near_duplicates(parts: list[str], state: Path, funnel: Funnel, options: dedup.DocumentDedup) -> None:
    """Find clusters of near-duplicates; writes `state/keys/NAME.copy.parquet`, the survivor's URL or null."""
    step = funnel.step("document_dedup")
    offsets, ranks, kept, sizes = [0], [], [], []
    with progress("near-duplicates", total=len(parts), unit="parts") as bar:
        for name in parts:
            table = pq.read_table(state / "text" / f"{name}.parquet", columns=["text", "drop", "date"])
            lengths = pc.binary_length(table["text"]).to_numpy().astype(np.int64)
            kept.append(table["drop"].is_null().to_numpy())
            sizes.append(lengths)
            offsets.append(offsets[-1] + len(lengths))
            ranks.append(_rank(options.keep, lengths, table["date"]))
            file = state / "keys" / f"{name}.minhash.npy"
            if options.enabled and not file.exists():
                _save_array(file, dedup.signatures(table["text"].combine_chunks(), options))
            bar.advance()
    keep, size = np.concatenate(kept), np.concatenate(sizes)
    copy = np.full(len(keep), -1, dtype=np.int64)
    if options.enabled:
        copy = _copies(parts, state, options, keep, np.concatenate(ranks))
    step.documents_in, step.bytes_in = int(keep.sum()), int(size[keep].sum())
    left = keep & (copy < 0)
    step.documents_out, step.bytes_out = int(left.sum()), int(size[left].sum())
    survivors = _urls(parts, state, offsets, np.unique(copy[copy >= 0]))
    for i, name in enumerate(parts):
        urls = [survivors.get(number) for number in copy[offsets[i] : offsets[i + 1]].tolist()]
        _write_parquet(pa.table({"copy_of": pa.array(urls, pa.string())}), state / "keys" / f"{name}.copy.parquet")
        _add_duplicates(step, state / "text" / f"{name}.parquet", urls)
    funnel.write()


def _rank(keep: str, lengths: np.ndarray, dates: pa.ChunkedArray) -> np.ndarray:
    if keep == "longest":
        return lengths
    if keep == "newest":
        return np.array([_date_number(date) for date in dates.to_pylist()], dtype=np.int64)
    return np.zeros(len(lengths), dtype=np.int64)


def _copies(
    parts: list[str], state: Path, options: dedup.DocumentDedup, keep: np.ndarray, rank: np.ndarray
) -> np.ndarray:
    arrays = [np.load(state / "keys" / f"{name}.minhash.npy", mmap_mode="r") for name in parts]
    bounds = np.cumsum([0] + [len(array) for array in arrays])
    has_words = np.concatenate([array[:, 0] for array in arrays]) != np.iinfo(np.uint32).max

    def rows_of(indices: np.ndarray) -> np.ndarray:
        part = np.searchsorted(bounds, indices, side="right") - 1
        return np.stack([arrays[p][i - bounds[p]] for p, i in zip(part, indices, strict=True)])

    def pairs() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        usable = np.flatnonzero(keep & has_words)
        for band in range(options.bands):
            columns = slice(band * options.rows, (band + 1) * options.rows)
            keys = np.concatenate([dedup.band_keys(array[:, columns], options.rows)[:, 0] for array in arrays])
            left, right = dedup.candidate_pairs(keys[usable])
            left, right = usable[left], usable[right]
            if options.similarity > 0 and len(left):
                near = dedup.similar(rows_of(left), rows_of(right)) >= options.similarity
                left, right = left[near], right[near]
            yield left, right

    copy = dedup.survivors(dedup.clusters(len(keep), pairs()), np.where(keep, rank, -1))
    copy[~keep] = -1
    return copy


def _urls(parts: list[str], state: Path, offsets: list[int], numbers: np.ndarray) -> dict[int, str]:
    """The URLs of some documents by their number in the corpus."""
    found: dict[int, str] = {}
    for i, name in enumerate(parts):
        mine = numbers[(numbers >= offsets[i]) & (numbers < offsets[i + 1])]
        if len(mine):
            urls = pq.read_table(state / "text" / f"{name}.parquet", columns=["url"])["url"].take(mine - offsets[i])
            found |= dict(zip(mine.tolist(), urls.to_pylist(), strict=True))
    return found


def _add_duplicates(step: Step, part: Path, copy_of: list[str | None]) -> None:
    if any(copy_of):
        table = pq.read_table(part, columns=["url", "text"]).to_pylist()
        for row, original in zip(table, copy_of, strict=True):
            if original:
                step.drop(row["url"], "near_duplicate", f"of {original}", row["text"])


# ---- repeated lines --------------------------------------------------------------------------------------------------


def _count_lines(parts: list[str], state: Path, funnel: Funnel, options: dedup.LineDedup, work: Work) -> None:
    """Find lines seen too often; writes `state/keys/NAME.lines.npy` (a key a line) and `state/keys/repeated.npy`."""
    if not options.enabled:
        return
    total, first_document = 0, 0
    buckets: list[tuple[np.ndarray, np.ndarray]] = []
    with progress("repeated lines", total=len(parts), unit="parts") as bar:
        for name in parts:
            columns = ["text", "drop", "kind"]
            table = pq.read_table(state / "text" / f"{name}.parquet", columns=columns)
            is_original = pq.read_table(state / "keys" / f"{name}.copy.parquet")["copy_of"].is_null().to_numpy()
            counted = table["drop"].is_null().to_numpy() & is_original & pc.not_equal(table["kind"], "code").to_numpy()
            file = state / "keys" / f"{name}.lines.npy"
            texts = [
                text.split("\n") if use else [] for text, use in zip(table["text"].to_pylist(), counted, strict=True)
            ]
            lengths = np.array([len(lines) for lines in texts], dtype=np.int64)
            if not file.exists():
                _save_array(file, dedup.line_keys([line for lines in texts for line in lines]))
            documents = np.repeat(np.arange(first_document, first_document + len(texts)), lengths)
            _save_array(state / "keys" / f"{name}.line_documents.npy", documents)
            buckets.append((file, state / "keys" / f"{name}.line_documents.npy"))
            first_document += len(texts)
            total += int(lengths.sum())
            bar.advance()
    partitions = max(1, -(-total * 48 // work.line_memory_bytes))

    def slices(partition: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        keys, documents = [], []
        for key_file, document_file in buckets:
            key, document = np.load(key_file), np.load(document_file)
            key = dedup.bucket_keys(key, document, options.bucket_documents)
            mine = (key != 0) & (key % np.uint64(count) == partition)
            keys.append(key[mine])
            documents.append(document[mine])
        return np.concatenate(keys), np.concatenate(documents)

    keys, first = dedup.repeated_lines(slices, partitions, options.max_count)
    order = np.argsort(keys)
    np.savez(state / "keys" / "repeated.npz", keys=keys[order], first=first[order])


# ---- judging ---------------------------------------------------------------------------------------------------------


def _judge(
    parts: list[str], state: Path, out: Path, funnel: Funnel, rules: Rules, lines: dedup.LineDedup, work: Work
) -> dict[str, Any]:
    (out / "documents").mkdir(exist_ok=True)
    jobs, first = [], 0
    for name in parts:
        job = {"state": str(state), "out": str(out), "name": name, "first": first, "rules": rules_to_json(rules)}
        job |= {"lines": lines.enabled, "keep_first": lines.keep_first, "bucket_documents": lines.bucket_documents}
        jobs.append(job)
        first += pq.read_metadata(state / "text" / f"{name}.parquet").num_rows
    names = ("line_dedup", *Judge.STEPS)
    _run_part_steps(judge_part, jobs, state / "text", ".judged", names, funnel, work, "judge")
    last = funnel.steps[-1]
    if not last.documents_out:
        reasons = sum((step.reasons for step in funnel.steps), Counter()).most_common(3)
        told = ", ".join(f"{reason} ({count:,})" for reason, count in reasons)
        raise DataError(f"no document was kept; most were dropped for: {told}. See {funnel.path} for examples")
    return {
        "documents_read": funnel.steps[0].documents_out,
        "documents": last.documents_out,
        "bytes": last.bytes_out,
        "corrupt": funnel.steps[0].notes.get("corrupt", 0),
    }


def judge_part(job: dict[str, Any]) -> dict[str, Any]:
    """Drop repeated lines from one part's documents, judge them, mask personal data, score, and write them."""
    state, name = Path(job["state"]), job["name"]
    rows = pq.read_table(state / "text" / f"{name}.parquet").to_pylist()
    copies = pq.read_table(state / "keys" / f"{name}.copy.parquet")["copy_of"].to_pylist()
    rules = rules_from_json(job["rules"])
    judge = Judge(rules, state)
    steps = {key: Step(key) for key in ("line_dedup", *Judge.STEPS)}
    lines = _RepeatedLines(state, name, job["bucket_documents"]) if job["lines"] else None
    for number, (row, original) in enumerate(zip(rows, copies, strict=True), job["first"]):
        if row["drop"] is None and original:
            row |= {"drop": "near_duplicate", "drop_detail": f"of {original}"}
        elif row["drop"] is None:
            clean = partial(_clean_lines, number, lines, job["keep_first"], rules.titles)
            if take_step(row, steps["line_dedup"], clean):
                judge.judge(row, steps)
    table = pa.Table.from_pylist(rows, _TEXT).select(DOCUMENT_SCHEMA.names)
    _write_parquet(table, Path(job["out"]) / "documents" / f"{name}.parquet")
    result = {key: step.as_dict() for key, step in steps.items()}
    atomic_write(state / "text" / f"{name}.judged.json", json.dumps(result))
    return result


class _RepeatedLines:
    """The repeated lines of the corpus, and the keys of one part's lines in order."""

    def __init__(self, state: Path, name: str, bucket_documents: int):
        repeated = np.load(state / "keys" / "repeated.npz")
        self.keys, self.first = repeated["keys"], repeated["first"]
        self.documents = np.load(state / "keys" / f"{name}.line_documents.npy")
        keys = np.load(state / "keys" / f"{name}.lines.npy")
        self.part_keys = dedup.bucket_keys(keys, self.documents, bucket_documents)

    def keep(self, number: int, keep_first: bool) -> np.ndarray:
        """For each line of a document whether it stays, (lines,) bool."""
        start, end = np.searchsorted(self.documents, [number, number + 1])
        keys = self.part_keys[start:end]
        place = np.searchsorted(self.keys, keys)
        place[place == len(self.keys)] = 0
        repeated = self.keys[place] == keys if len(self.keys) else np.zeros(len(keys), dtype=bool)
        if not keep_first:
            return ~repeated
        is_first = (self.first[place] == number) if len(self.keys) else repeated
        seen: set[int] = set()
        for i in np.flatnonzero(repeated & is_first):
            is_first[i] = keys[i] not in seen
            seen.add(keys[i])
        return ~repeated | is_first


def _clean_lines(
    number: int, lines: _RepeatedLines | None, keep_first: bool, titles: bool, row: dict, step: Step
) -> Reason | None:
    reason = _drop_lines(number, lines, keep_first, row, step)
    if reason is None and titles:
        _with_title(row)
    return reason


def _drop_lines(number: int, lines: _RepeatedLines | None, keep_first: bool, row: dict, step: Step):
    """Take repeated lines out of prose; code stays exactly as it is."""
    if lines is None or row["kind"] == "code":
        return None
    keep = lines.keep(number, keep_first)
    if keep.all():
        return None
    for start, end in zip(row["code_lines"][::2], row["code_lines"][1::2], strict=True):
        keep[start:end] = True
    text_lines = row["text"].split("\n")
    step.notes["lines dropped"] += int((~keep).sum())
    kept: list[str] = []
    for line, stays in zip(text_lines, keep, strict=True):
        if stays and (line or (kept and kept[-1])):  # no second empty line where one was taken out between two
            kept.append(line)
    row["text"] = "\n".join(kept).strip("\n")
    return None if row["text"].strip() else ("repeated_lines", "nothing but repeated lines")


def _with_title(row: dict) -> None:
    """Begin a page's text with its title where it does not say it itself; after its lines were counted."""
    title, text = row["title"], row["text"]
    if title and text and title not in text[: len(title) + 300]:
        row["text"] = f"{title}\n\n{text}"


# ---- files -----------------------------------------------------------------------------------------------------------


def _processes(work: Work) -> int:
    return work.processes or (os.cpu_count() or 1)


def _write_parquet(table: pa.Table, path: Path) -> None:
    aside = path.with_name(f".{path.name}.tmp")
    pq.write_table(table, aside, compression="zstd")
    _flush(aside)
    os.replace(aside, path)


def _save_array(path: Path, array: np.ndarray) -> None:
    aside = path.with_name(f".{path.name}.tmp")
    with open(aside, "wb") as file:
        np.save(file, array)
    os.replace(aside, path)


def _flush(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())
