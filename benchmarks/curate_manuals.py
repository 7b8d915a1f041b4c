"""Manuals as Debian ships them, curated with the rules as they are: how many of their pages stay, and why others go.

    python benchmarks/curate_manuals.py [--packages postgresql-doc-15,...] [--folder /tmp/manuals]

The packages are fetched by `apt-get download` and unpacked by `dpkg -x` into a temporary folder. Counted are pages with
at least 50 words of their own: text that is no list of links, and no line that many pages share.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import tempfile
import time
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
from selectolax.lexbor import LexborHTMLParser

from herd.curate.dedup.duplicates import DocumentDedup, LineDedup
from herd.curate.judge.documents import Rules
from herd.curate.pipeline import Work, curate
from herd.curate.read.pages import find_files

ROOT = Path(__file__).resolve().parent.parent
WANTED = ("postgresql-doc-15", "python3.11-doc", "python-django-doc", "sqlite3-doc", "python-sqlalchemy-doc")
OTHERS = ("openjdk-17-doc", "debian-handbook", "git-doc", "nodejs-doc", "libboost1.81-doc", "developers-reference")
OTHERS += ("debian-policy", "rust-doc")
LEAST_WORDS = 50
DUPLICATES = {"near_duplicate", "url_older_copy", "source_of_page"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packages", default=",".join(WANTED + OTHERS))
    parser.add_argument("--folder", type=Path, help="where packages are, or are to be, unpacked")
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="manuals-"))
    packages = options.packages.split(",")
    fetch(packages, folder)
    out = Path(tempfile.mkdtemp(prefix="curated-"))
    began = time.monotonic()
    work = Work(processes=options.processes)
    figures = curate(find_files([folder / p for p in packages]), out, Rules(), DocumentDedup(), LineDedup(), work)
    result = {"date": time.strftime("%Y-%m-%d"), "commit": commit(), "processor": platform.processor() or "x86-64"}
    result |= {"seconds": round(time.monotonic() - began, 1), "peak_mb": peak_mb(), **figures}
    result["packages"] = {package: of_package(out, folder / package) for package in packages}
    wanted = [row for package, row in result["packages"].items() if package in WANTED]
    pages = sum(row["pages"] for row in wanted)
    result["wanted_kept"] = round(sum(row["kept"] for row in wanted) / max(1, pages), 4)
    target = ROOT / "benchmarks/results/curate_manuals.json"
    target.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))


def fetch(packages: list[str], folder: Path) -> None:
    """Download and unpack what is not there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    for package in packages:
        if not (folder / package).exists():
            subprocess.run(["apt-get", "download", package], cwd=folder, check=True, capture_output=True)
            (folder / package).mkdir()
            (file,) = folder.glob(f"{package}_*.deb")
            subprocess.run(["dpkg", "-x", str(file), str(folder / package)], check=True)
            file.unlink()


def of_package(out: Path, folder: Path) -> dict:
    """Pages with words of their own, how many stayed, and why others did not; copies of other pages apart."""
    columns = ["url", "text", "drop"]
    counts: Counter = Counter()
    reasons: Counter = Counter()
    examples: dict[str, list[str]] = {}
    for row in pq.read_table(out / "documents", columns=columns).to_pylist():
        if not row["url"].startswith(f"{folder.as_posix()}/"):
            continue
        counts["documents"] += 1
        if not row["url"].endswith((".html", ".htm")) or row["drop"] in DUPLICATES:
            counts[row["drop"] or "other kinds"] += 1
            continue
        if own_words(row["text"], Path(row["url"])) < LEAST_WORDS:
            counts["under 50 words"] += 1
            continue
        counts["pages"] += 1
        counts["kept"] += row["drop"] is None
        if row["drop"]:
            reasons[row["drop"]] += 1
            examples.setdefault(row["drop"], []).append(os.path.relpath(row["url"], folder))
    share = round(counts["kept"] / max(1, counts["pages"]), 4)
    shown = {reason: names[:5] for reason, names in examples.items()}
    return {**counts, "share": share, "dropped": dict(reasons.most_common()), "examples": shown}


def own_words(text: str, file: Path) -> int:
    """Words of a page's text, without the lines that other pages share, that are not in lists of links."""
    tree = LexborHTMLParser(file.read_bytes())
    links = Counter(" ".join((link.text() or "").split()) for link in tree.css("li a[href], dt a[href], td a[href]"))
    return sum(len(line.split()) for line in text.split("\n") if " ".join(line.split()) not in links)


def peak_mb() -> int:
    """The largest memory of this process and of any that it started."""
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return max(resource.getrusage(kind).ru_maxrss for kind in kinds) // 1024


def commit() -> str:
    """The commit that was measured."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    main()
