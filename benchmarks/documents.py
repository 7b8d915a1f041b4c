"""Search and citations over one's own files: what is found among five, how fast, and whether citations hold.

    python -m benchmarks.documents --data FOLDER [--encoder FOLDER] [--parts words,encoder,large] [--out FILE]

XQuAD's paragraphs (60 a language), each a file, beside up to 5,000 distractors of the same language: WikiText-2, Thai
government news, guides, books, FLORES. Recall@5: the share of 310 questions whose own paragraph is among the first five
hits, with its 95 % interval (Wilson). `sqlite_trigram` is FTS5's own trigram tokenizer over the same passages,
`haystack` the library haystack-ai's BM25 (and, with vectors of the same encoder, its BM25 and embedding retrievers
joined by reciprocal ranks), where it is installed. Citations: the sentence of the paragraph that holds the answer, as
it stands and with another question's answer in it, checked against the five hits. Milliseconds are of one thread,
questions one after another, the first ones left out. A run renews its parts of the result and leaves the others.
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

import numpy as np

from benchmarks.curate_extraction import commit, machine
from herd.formats.encoder import open_encoder
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
    """Paragraphs of 300 to 2,000 characters, those nearest to an encyclopaedia first."""
    if language == "en":
        files = [data / f"text-wikitext2/{part}.txt.gz" for part in ("test", "valid")]
        lines = (line for file in files for line in gzip.decompress(file.read_bytes()).decode().split("\n"))
        plain = (re.sub(r" ([.,;:)'])", r"\1", line.replace(" @-@ ", "-").strip()) for line in lines)
        yield from (text for text in plain if 300 <= len(text) <= 2000)
    if language == "th":
        yield from cut("\n".join(row["text"] for row in rows_of(data / "text-thaigov/docs.jsonl.gz")), "")
    flores = [row["text"] for row in rows_of(data / "text-flores/dev.jsonl.gz") if row["lang"] == language]
    yield from cut("\n".join(flores))
    for name in ("text-docs-multilingual/docs.jsonl.gz", "text-books/books.jsonl.gz"):
        for row in rows_of(data / name):
            if row["lang"] == language:
                yield from cut(row["text"])


def cut(text: str, at: str = "\n") -> Iterator[str]:
    """Pieces of 300 to 900 characters that end with a line, or anywhere."""
    if not at:
        yield from (text[start : start + 900] for start in range(0, len(text) - 300, 900))
        return
    piece = ""
    for line in text.split(at):
        piece = f"{piece} {line.strip()}".strip()[:900]
        if len(piece) >= 300:
            yield piece
            piece = ""


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


def haystack(place: Path, rows: list[dict[str, Any]], encoder: Path | None) -> dict[str, Any] | None:
    """The same passages in haystack-ai's store; None where it is not installed."""
    os.environ["HAYSTACK_TELEMETRY_ENABLED"] = "False"
    try:
        from haystack import Document
        from haystack.components.joiners import DocumentJoiner
        from haystack.document_stores.in_memory import InMemoryDocumentStore
    except ImportError:
        return None
    base, reader = sqlite3.connect(place / FILE), open_encoder(encoder) if encoder else None
    query = "SELECT p.id, f.name, p.text FROM passages p JOIN files f ON p.file = f.id"
    vectors = dict(base.execute("SELECT passage, vector FROM vectors")) if encoder else {}
    store = InMemoryDocumentStore(embedding_similarity_function="cosine")
    store.write_documents([
        Document(id=str(number), content=text, meta={"file": name},
                 embedding=np.frombuffer(vectors[number], "<f2").astype(float).tolist() if encoder else None)
        for number, name, text in base.execute(query)
    ])  # fmt: skip
    joiner, right, times = DocumentJoiner(join_mode="reciprocal_rank_fusion"), 0, []
    for row in rows:
        start = time.perf_counter()
        found = store.bm25_retrieval(row["question"], top_k=10)
        if reader is not None:
            near = store.embedding_retrieval(reader.embed([row["question"]])[0].tolist(), top_k=10)
            found = joiner.run(documents=[found, near])["documents"]
        times.append(1000 * (time.perf_counter() - start))
        right += row["file"] in {one.meta["file"] for one in found[:LIMIT]}
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
    if (theirs := haystack(folder / "index", rows, encoder if not indexed.without_vector else None)) is not None:
        found["haystack"] = theirs
    if language == "th":
        found["sqlite_trigram"] = sqlite_trigram(folder / "index", rows)
    elif language == "en" and not encoder:
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
    parser.add_argument("--embedded", type=int, default=400, help="distractors where vectors are made")
    parser.add_argument("--large", type=int, default=100_000)
    parser.add_argument("--parts", default="words,encoder,large")
    parser.add_argument("--languages", default="en,de,es,hi,th")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results/documents.json")
    options = parser.parse_args()
    words = ["../" + Path(word).name if "/" in word else word for word in sys.argv[1:]]
    found: dict[str, Any] = json.loads(options.out.read_text("utf-8")) if options.out.exists() else {}
    head = {"machine": machine(), "cores": len(os.sched_getaffinity(0)), "commit": commit()}
    head["command"] = " ".join(["python -m benchmarks.documents", *words])
    parts, languages = options.parts.split(","), options.languages.split(",")
    with tempfile.TemporaryDirectory() as folder:
        for language in languages if "words" in parts else ():
            found[language] = head | measure(options.data, language, 5000, None, Path(folder, language))
        for language in languages if "encoder" in parts and options.encoder else ():
            name = f"{language}, with encoder"
            found[name] = head | measure(options.data, language, options.embedded, options.encoder, Path(folder, name))
        if "large" in parts:
            found["large"] = head | large(options.data, options.large, Path(folder, "large"))
    options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
