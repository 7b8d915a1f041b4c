"""Search and citations over one's own files: what is found among five, how fast, and whether citations hold.

    python -m benchmarks.documents --data FOLDER [--encoder FOLDER] [--out results/documents.json]

XQuAD's paragraphs (60 a language), each a file, beside distractors: English paragraphs of WikiText-2, Thai ones of
government news. Recall@5: the share of 310 questions whose own paragraph is among the first five hits, with its 95 %
interval (Wilson). `sqlite_trigram` is FTS5's own trigram tokenizer over the same passages. Citations: the sentence of
the paragraph that holds the answer, as it stands and with another question's answer in it, checked against the five
hits. Milliseconds are of one thread, questions one after another, the first ones left out.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import random
import re
import resource
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.curate_extraction import commit, machine
from herd.knowledge.build import index_folder
from herd.knowledge.citations import cite
from herd.knowledge.index import Index
from herd.knowledge.store import FILE
from herd.knowledge.terms import terms

LIMIT = 5


def rows_of(file: Path) -> list[dict[str, Any]]:
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def distractors(data: Path, language: str) -> Iterator[str]:
    """Paragraphs of 300 to 2,000 characters."""
    if language == "th":
        texts = [row["text"] for row in rows_of(data / "text-thaigov/docs.jsonl.gz")]
        found = (text[at : at + 900] for text in texts for at in range(0, len(text), 900))
    else:
        files = [data / f"text-wikitext2/{part}.txt.gz" for part in ("test", "valid")]
        lines = (line for file in files for line in gzip.decompress(file.read_bytes()).decode().split("\n"))
        found = (re.sub(r" ([.,;:)'])", r"\1", line.replace(" @-@ ", "-").strip()) for line in lines)
    return (text for text in found if 300 <= len(text) <= 2000)


def interval(right: int, count: int) -> list[float]:
    """Wilson's, 95 %."""
    p, z = right / count, 1.96
    middle, half = p + z * z / (2 * count), z * (p * (1 - p) / count + z * z / (4 * count * count)) ** 0.5
    return [round((middle + sign * half) / (1 + z * z / count), 3) for sign in (-1, 1)]


def asked(index: Index, rows: list[dict[str, Any]], **how: Any) -> dict[str, Any]:
    right, times = 0, []
    for row in rows:
        start = time.perf_counter()
        hits = index.search(row["question"], LIMIT, **how)
        times.append(1000 * (time.perf_counter() - start))
        right += row["file"] in {hit.file for hit in hits}
    return found_of(right, times[5:])


def found_of(right: int, times: list[float]) -> dict[str, Any]:
    count = len(times) + 5
    median, late = statistics.median(times), statistics.quantiles(times, n=20)[-1]
    return {"recall_at_5": round(right / count, 3), "interval": interval(right, count), "questions": count,
            "ms_median": round(median, 2), "ms_p95": round(late, 2)}  # fmt: skip


def sqlite_trigram(place: Path, rows: list[dict[str, Any]]) -> dict[str, Any]:
    base = sqlite3.connect(place / FILE)
    table = sqlite3.connect(":memory:")
    table.execute("CREATE VIRTUAL TABLE t USING fts5(name UNINDEXED, text, tokenize='trigram')")
    query = "SELECT f.name, p.text FROM passages p JOIN files f ON p.file = f.id"
    table.executemany("INSERT INTO t VALUES (?, ?)", base.execute(query))
    right, times = 0, []
    for row in rows:
        start = time.perf_counter()
        plain = re.sub(r"[^\w\u0e00-\u0e7f]+", " ", row["question"].lower())
        wanted = {piece[at : at + 3] for piece in plain.split() for at in range(len(piece) - 2)}
        match = " OR ".join(f'"{one}"' for one in sorted(wanted))
        found = table.execute("SELECT name FROM t WHERE t MATCH ? ORDER BY rank LIMIT ?", (match, LIMIT)).fetchall()
        times.append(1000 * (time.perf_counter() - start))
        right += row["file"] in {name for (name,) in found}
    return found_of(right, times[5:])


def measure(data: Path, language: str, most: int, encoder: Path | None, folder: Path) -> dict[str, Any]:
    rows = [row for row in rows_of(data / "bench-xquad/xquad.jsonl.gz") if row["lang"] == language]
    files = folder / "files"
    files.mkdir(parents=True)
    for row in rows:
        row["file"] = f"q{row['para']}-{row['title']}.txt".replace("/", "-")
        (files / row["file"]).write_text(row["context"], encoding="utf-8")
    count = 0
    for count, text in enumerate(distractors(data, language), 1):
        (files / f"d{count}.txt").write_text(text, encoding="utf-8")
        if count == most:
            break
    start = time.perf_counter()
    indexed = index_folder(files, folder / "index", encoder=encoder)
    seconds = time.perf_counter() - start
    index = Index(folder / "index")
    found: dict[str, Any] = {
        "distractors": count, "passages": indexed.passages, "build_seconds": round(seconds, 1),
        "bytes_of_text": sum(file.stat().st_size for file in files.iterdir()),
        "bytes_of_index": (folder / "index" / FILE).stat().st_size,
        "bm25": asked(index, rows, words_only=True),
    }  # fmt: skip
    if encoder:
        found["hybrid"] = asked(index, rows)
        found["without_vector"] = indexed.without_vector
    if language == "th":
        found["sqlite_trigram"] = sqlite_trigram(folder / "index", rows)
    elif not encoder:
        found["citations"] = citations(index, rows)
    return found


def citations(index: Index, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """How often a true sentence is supported by its own paragraph, and a falsified one by any."""
    draw = random.Random(7)
    true = own = false = count = 0
    kinds: dict[str, list[int]] = {}
    for row in rows:
        answer, text = row["answers"][0], row["context"]
        at = answer["answer_start"]
        start = max(text.rfind(". ", 0, at), text.rfind("? ", 0, at)) + 1
        end = text.find(". ", at + len(answer["text"]))
        sentence = text[start : len(text) if end < 0 else end + 1].strip()
        other = draw.choice([one for one in rows if not set(terms(one["answers"][0]["text"])) & set(terms(text))])
        wrong = sentence.replace(answer["text"], other["answers"][0]["text"])
        if wrong == sentence:
            continue
        hits = index.search(row["question"], LIMIT, words_only=True)
        if row["file"] not in {hit.file for hit in hits}:
            continue
        count += 1
        kept = cite(sentence, hits)
        true += all(one.supported for one in kept)
        own += all(one.passage is not None and hits[one.passage].file == row["file"] for one in kept)
        passed = all(one.supported for one in cite(wrong, hits))
        false += passed
        put = other["answers"][0]["text"]
        kind = "number" if re.search(r"\d", put) else "name" if put != put.lower() else "words in lower case"
        kinds[kind] = [sum(pair) for pair in zip(kinds.get(kind, [0, 0]), (passed, 1))]
    return {"sentences": count, "true_supported": round(true / count, 3), "of_its_own_file": round(own / count, 3),
            "falsified_supported": round(false / count, 3), "interval": interval(false, count),
            "falsified_supported_of_by_kind": kinds}  # fmt: skip


def large(data: Path, count: int, folder: Path) -> dict[str, Any]:
    """Milliseconds over many passages: sentences of WikiText, drawn five at a time."""
    sentences = [one for text in distractors(data, "en") for one in text.split(". ")]
    draw = random.Random(7)
    (folder / "files").mkdir(parents=True)
    for part in range(10):
        lines = (json.dumps({"text": ". ".join(draw.sample(sentences, 5))}) for _ in range(count // 10))
        (folder / f"files/{part}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    start = time.perf_counter()
    indexed = index_folder(folder / "files", folder / "index")
    seconds = time.perf_counter() - start
    rows = [row | {"file": ""} for row in rows_of(data / "bench-xquad/xquad.jsonl.gz") if row["lang"] == "en"]
    found = asked(Index(folder / "index"), rows[:100])
    return {"passages": indexed.passages, "build_seconds": round(seconds, 1), "ms_median": found["ms_median"],
            "ms_p95": found["ms_p95"], "bytes_of_index": (folder / "index" / FILE).stat().st_size,
            "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--encoder", type=Path)
    parser.add_argument("--embedded", type=int, default=1000, help="distractors where vectors are made")
    parser.add_argument("--large", type=int, default=100_000)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results/documents.json")
    options = parser.parse_args()
    words = ["../" + Path(word).name if "/" in word else word for word in sys.argv[1:]]
    found: dict[str, Any] = {"machine": machine(), "cores": len(os.sched_getaffinity(0)), "commit": commit()}
    found["command"] = " ".join(["python -m benchmarks.documents", *words])
    with tempfile.TemporaryDirectory() as folder:
        for language in ("en", "th"):
            found[language] = measure(options.data, language, 5000, None, Path(folder, language))
            if options.encoder:
                name = f"{language}, with encoder"
                found[name] = measure(options.data, language, options.embedded, options.encoder, Path(folder, name))
            print(json.dumps(found, indent=1), flush=True)
        if options.large:
            found["large"] = large(options.data, options.large, Path(folder, "large"))
    options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
