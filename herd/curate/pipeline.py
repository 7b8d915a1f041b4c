"""Curation from end to end: read, drop old copies of URLs, extract, drop near-duplicates and repeated lines, judge.

The corpus is worked on in parts. A step maps a pure function over the parts with Daft, which spreads them over
processes or a cluster; every finished part has a record with checksums, so a killed run goes on with the parts that
are missing or damaged. Between the maps stand the steps over the whole corpus (`dedup/steps.py`).

    state/raw/      pages as read                state/text/    extracted text
    state/keys/     signatures, keys of lines    documents/     the result
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from herd.config import settings, to_dict
from herd.curate.dedup import duplicates as dedup
from herd.curate.dedup.steps import (
    Corpus,
    drop_near_duplicates,
    drop_old_urls,
    find_repeated_lines,
)
from herd.curate.engine import Engine, map_parts
from herd.curate.extract.part import extract_part
from herd.curate.filters.addresses import AddressGate
from herd.curate.funnel import Funnel, Step
from herd.curate.judge.documents import (
    Judge,
    Rules,
    count_part,
    fit,
    needs_fitting,
    rules_to_json,
)
from herd.curate.judge.part import judge_part
from herd.curate.judge.planted import Written, find_planted
from herd.curate.meanings import meaning
from herd.curate.parts import read_record
from herd.curate.read.part import read_unit
from herd.curate.read.storage import file_size
from herd.curate.workers import workers
from herd.errors import DataError


@settings
class Work:
    """How the work is cut."""

    processes: int | None = None
    """Processes that extract and judge at the same time; default: one for each core of the machine or cluster."""
    part_bytes: int = 8_000_000
    """Bytes of pages in a part: what a killed run may have to do again, and what a process holds."""
    memory_bytes: int = 64_000_000
    """Memory for a partition of a step over the whole corpus (URLs, near-duplicates, lines), in bytes."""
    max_page_bytes: int = 20_000_000
    """Pages over this size, in bytes, are dropped unparsed."""
    engine: Engine = "native"
    """Where parts are worked on: in processes of this machine, or on a `ray` cluster that sees the same files."""
    address: str | None = None
    """The Ray cluster's address (`ray://host:10001`, `host:6379`, `auto`); default: one started on this machine."""

    def __post_init__(self):
        if self.processes is not None and self.processes < 1:
            raise ValueError("processes must be at least 1")
        if min(self.part_bytes, self.memory_bytes, self.max_page_bytes) < 1:
            raise ValueError("part_bytes, memory_bytes and max_page_bytes must be at least 1")


def curate(
    files: list[Path], out: Path, rules: Rules, documents: dedup.DocumentDedup, lines: dedup.LineDedup, work: Work
) -> dict[str, Any]:
    """Curate the pages of `files` into `out`/documents/*.parquet and `out`/funnel.json; returns headline figures."""
    workers().expect([read_unit, extract_part, count_part, judge_part])
    state = out / "state"
    funnel = Funnel(out / "funnel.json")
    corpus = _read(files, state, funnel, rules, work)
    funnel.add(drop_old_urls(corpus))
    _extract(corpus, funnel, rules, documents, lines, work)
    funnel.add(drop_near_duplicates(corpus, documents))
    find_repeated_lines(corpus, lines)
    _fit(corpus, rules, work)
    if rules.planted.enabled:
        funnel.planted = find_planted(corpus, rules.planted)
        funnel.write()
    return _judge(corpus, out, funnel, rules, lines, work)


# ---- reading ---------------------------------------------------------------------------------------------------------


def _read(files: list[Path], state: Path, funnel: Funnel, rules: Rules, work: Work) -> Corpus:
    """Cut the input files into raw parts."""
    step, gate_step = funnel.step("read"), funnel.step("addresses")
    AddressGate(rules.blocked, rules.cutoff)  # a fault in a list or a model is told before the work begins
    Judge(rules)
    folder = state / "raw"
    folder.mkdir(parents=True, exist_ok=True)
    jobs = [
        {"unit": number, "files": [str(file) for file in unit], "folder": str(folder)}
        | {"part_bytes": work.part_bytes, "max_page_bytes": work.max_page_bytes, "rules": rules_to_json(rules)}
        for number, unit in enumerate(_units(files, work.part_bytes))
    ]
    names: list[str] = []
    rows: list[int] = []
    for record in _records(read_unit, jobs, [folder / f"{job['unit']:06d}.json" for job in jobs], work, "read"):
        names += record["parts"]
        rows += record["part_rows"]
        step.add(record["step"])
        gate_step.add(record["addresses"])
    funnel.write()
    if not names:
        found = ", ".join(f"{count:,} {name}" for name, count in step.notes.items() if count)
        raise DataError(f"{files[0]}: no page could be read; what was found: {found or 'nothing'}")
    return Corpus(state, names, rows, work.memory_bytes)


def _records(
    task: Callable[[dict], dict],
    jobs: list[dict],
    paths: list[Path],
    work: Work,
    label: str,
    report: Callable[[dict], None] | None = None,
) -> Iterator[dict[str, Any]]:
    """The records of all jobs in order, after those that are missing or damaged were made; `report` sees them come."""
    done = [read_record(path) for path in paths]
    waiting = [job for job, record in zip(jobs, done, strict=True) if record is None]
    for result in map_parts(task, waiting, work.processes, label, work.engine, work.address):
        if report is not None:
            report(result)
    for path, record in zip(paths, done, strict=True):
        yield record or _made(path)


def _made(path: Path) -> dict[str, Any]:
    record = read_record(path)
    if record is None:
        raise DataError(f"{path}: its files are not what was just written; is the disk sound and the folder shared?")
    return record


def _units(files: list[Path], part_bytes: int) -> list[list[Path]]:
    """Files that are read together: small ones gathered until they make a part."""
    units: list[list[Path]] = []
    room = 0
    for file in files:
        size = file_size(file)
        if not units or size > room:
            units.append([])
            room = part_bytes
        units[-1].append(file)
        room -= size
    return units


# ---- extraction ------------------------------------------------------------------------------------------------------


def _extract(
    corpus: Corpus,
    funnel: Funnel,
    rules: Rules,
    documents: dedup.DocumentDedup,
    lines: dedup.LineDedup,
    work: Work,
) -> None:
    (corpus.state / "text").mkdir(exist_ok=True)
    least = rules.language_probability
    least = (0.3 if rules.languages else 0.0) if least is None else least
    options: dict[str, Any] = {"languages": rules.languages, "probability": least}
    options |= {"probabilities": rules.language_probabilities, "foreign": rules.foreign_paragraphs}
    options |= {"documents": to_dict(documents), "lines": lines.enabled, "group": rules.group}
    jobs = [{"state": str(corpus.state), "name": name, **options} for name in corpus.names]
    _run_part_steps(extract_part, jobs, corpus.state / "text", "", ("extract", "language"), funnel, work, "extract")


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
    """Run a task over the parts that lack a sound record, the funnel growing as they come; then count them in order.

    The order of arrival differs from run to run, so the final counts and examples are taken in order.
    """
    growing = [funnel.step(name) for name in names]

    def report(result: dict) -> None:
        for step in growing:
            step.add(result[step.name])
        funnel.show()

    paths = [folder / f"{job['name']}{suffix}.json" for job in jobs]
    counted = [Step(name) for name in names]
    for record in _records(task, jobs, paths, work, label, report):
        for step in counted:
            step.add(record["steps"][step.name])
        funnel.add_tables(record.get("tables", {}))
    funnel.steps[-len(names) :] = counted
    funnel.write()


# ---- judging ---------------------------------------------------------------------------------------------------------


def _fit(corpus: Corpus, rules: Rules, work: Work) -> None:
    """Fit what the judge compares documents with: the words and domains of the corpus."""
    if not needs_fitting(rules):
        return
    job = {"state": str(corpus.state), "rules": rules_to_json(rules), "every": Written.every(sum(corpus.rows))}
    places = zip(corpus.names, corpus.offsets[:-1].tolist(), strict=True)
    jobs = [job | {"name": name, "first": first} for name, first in places]
    records = [corpus.state / "keys" / f"{name}.words.json" for name in corpus.names]
    for _ in _records(count_part, jobs, records, work, "words"):
        pass
    fit(corpus.names, corpus.state, rules)


def _judge(
    corpus: Corpus, out: Path, funnel: Funnel, rules: Rules, lines: dedup.LineDedup, work: Work
) -> dict[str, Any]:
    (out / "documents").mkdir(exist_ok=True)
    job = {"state": str(corpus.state), "out": str(out), "rules": rules_to_json(rules), "lines": lines.enabled}
    jobs = [job | {"name": name} for name in corpus.names]
    names = ("line_dedup", *Judge.STEPS)
    _run_part_steps(judge_part, jobs, corpus.state / "text", ".judged", names, funnel, work, "judge")
    last = funnel.steps[-1]
    if not last.documents_out:
        reasons = sum((step.reasons for step in funnel.steps), Counter()).most_common(3)
        told = "; ".join(f"{reason} ({count:,}): {meaning(reason)}".rstrip(": .") for reason, count in reasons)
        page = funnel.path.with_suffix(".html")
        raise DataError(f"no document was kept; most were dropped for {told or 'nothing'}. {page} shows them")
    return {
        "documents_read": funnel.steps[0].documents_out,
        "documents": last.documents_out,
        "bytes": last.bytes_out,
        "corrupt": funnel.steps[0].notes.get("corrupt", 0),
        "undated": funnel.steps[1].notes.get("undated", 0),
    }
