"""What a curation will take, measured on its first pages: they are read, extracted and judged once to see.

Pages are taken from a few files spread over all of them. What they took and how small they pack stands for the rest.
"""

from __future__ import annotations

import os
import time
import zlib
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from herd.curate.extract.html import extract
from herd.curate.filters.language import language
from herd.curate.funnel import Step
from herd.curate.judge.documents import Judge
from herd.curate.judge.rules import Rules, rules_from_json, rules_to_json
from herd.curate.read.pages import RawPage, read_pages
from herd.curate.read.storage import file_size

_FILES, _PAGES, _BYTES = 12, 60, 6_000_000  # what is looked at, at most
_BYTES_PER_DOCUMENT = 900  # signatures, bands, lines and columns beside the text
_FIXED_BYTES = 5_500_000  # counts of words and domains
_START_SECONDS = 4.0
_OVERHEAD = 1.6  # what is written and read between the steps, over what the pages alone take
_PACKED = (".gz", ".zst", ".parquet")


class Estimate(NamedTuple):
    """What a curation takes."""

    disk_bytes: float
    seconds: float


def estimate(files: list[Path], rules: Rules, processes: int | None, max_page_bytes: int) -> Estimate:
    """Disk and time that curating some files takes, from a sample of their pages."""
    sizes = [file_size(file) for file in files]
    chosen = sorted({i * (len(files) - 1) // max(1, _FILES - 1) for i in range(_FILES)})
    judge = Judge(_without_corpus(rules))
    pages = texts = content = packed = read = 0
    began = time.perf_counter()
    for number in chosen:
        for page in _some(files[number], max_page_bytes, max(1, _PAGES // len(chosen))):
            text = _taken(page, judge)
            pages, texts, content = pages + 1, texts + len(text), content + len(page.content)
            packed += len(zlib.compress(page.content, 1))
            read += len(text) and len(zlib.compress(text.encode("utf-8", "replace"), 1))
        if content > _BYTES:
            break
    seconds = time.perf_counter() - began
    if not content:
        return Estimate(1e7, _START_SECONDS)
    of_file = packed if any(str(files[number]).endswith(_PACKED) for number in chosen) else content
    times = sum(sizes) / of_file  # how often the sample is in all of it
    cores = processes or os.cpu_count() or 1
    disk = _FIXED_BYTES + times * (packed + 2 * read + pages * _BYTES_PER_DOCUMENT)
    return Estimate(
        disk, _START_SECONDS + _OVERHEAD * times * seconds / min(cores, max(1, len(files), sum(sizes) / 8e6))
    )


def _some(file: Path, max_page_bytes: int, number: int) -> list[RawPage]:
    return list(islice(read_pages(file, Counter(), max_page_bytes), number))


def _taken(page: RawPage, judge: Judge) -> str:
    """The text of a page that went the whole way."""
    found = extract(page.content, page.url, page.charset, page.kind)
    row: dict[str, Any] = {
        "id": page.id,
        "url": page.url,
        "text": found.text,
        "kind": page.kind,
        "drop": None,
        "source": page.source,
    }
    row |= {"code_lines": list(found.code_lines), "aside_lines": list(found.aside_lines)}
    row |= {"link_lines": list(found.link_lines), "language": language(found.text)[0]}
    judge.judge(row, {name: Step(name) for name in Judge.STEPS})
    return found.text


def _without_corpus(rules: Rules) -> Rules:
    """Rules without benchmarks and classifiers, which take seconds to load."""
    plain = rules_to_json(rules)
    plain["contamination"]["benchmarks"] = []
    plain["quality"] |= {"classifiers": {}, "knowledge": None, "keep_shares": {}, "max_class_share": None}
    return rules_from_json(plain)
