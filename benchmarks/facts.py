"""`herd check` on labelled sentences of real text: supported, contradicted, not found; beside overlap with BM25's hits.

    python -m benchmarks.facts --data FOLDER [--out results/facts.json]

Sentences of WikiText-2 (test and valid), a seeded program's choice. Half of the paragraphs are indexed. Supported: a
sentence of these, as it stands, without its last clause, or with other small words. Contradicted: the same with another
number, another name, or a negation put in or taken out. Not found: a sentence of the other half, whose own title words
may well be in the index. The baseline takes the best share of a sentence's words that one of BM25's five passages holds
and cuts it at two thresholds, which are fitted on as many other sentences of the same making. Macro F1 with 95 %
intervals (bootstrap over sentences).

Declining: XQuAD's English questions, half of whose articles are indexed beside WikiText's paragraphs; the share of the
answerable that is kept, and of the others that is declined, by how much of a question's words a passage must hold.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.curate_extraction import commit, machine
from benchmarks.documents import distractors, interval, rows_of
from herd.knowledge.build import index_folder
from herd.knowledge.checking import judged
from herd.knowledge.citations import content_words, sentences_of
from herd.knowledge.grounding import LEAST_COVERED
from herd.knowledge.index import Index

LABELS = ("supported", "contradicted", "not found")
_KEPT = 0.35  # of sentences word for word, so that the ways are about equally many
EACH = 100  # of a label, in each of the two halves
_AUXILIARY = re.compile(r"\b(was|were|is|are|had|has|can|could|will|would)\b (?!not\b)")
_NEGATED = re.compile(r"\b(was|were|is|are|had|has|can|could|will|would|did) not\b")
_NUMBER = re.compile(r"(?<![\w.,])\d{1,4}(?![\w,]|\.\d)")
_NAME = re.compile(r"(?<=[a-z,] )[A-Z][a-z]{3,}(?= |,|\.)")
_OTHER_WORDS = {
    " began ": " started ", " however , ": " ", " also ": " ", " while ": " whereas ", " such as ": " like ",
    " although ": " though ", " around ": " about ", " due to ": " because of ", " until ": " till ",
    " several ": " some ", " large ": " big ", " as well as ": " and ",
}  # fmt: skip


def sentences(text: str) -> list[str]:
    found = [text[start:end] for start, end in sentences_of(text)]
    return [one for one in found if 8 <= len(one.split()) <= 40 and one[0].isupper() and one.endswith(".")]


def said_otherwise(sentence: str, draw: random.Random) -> tuple[str, str] | None:
    """The same fact: as it stands, without its last clause, or with other small words; a third of each."""
    way = draw.choice(("word for word", "shortened", "other words"))
    if way == "shortened" and sentence.count(", ") >= 1 and len(sentence.rpartition(", ")[0].split()) >= 8:
        return sentence.rpartition(", ")[0] + ".", way
    if way == "other words":
        for old, new in _OTHER_WORDS.items():
            if old in sentence:
                return sentence.replace(old, new), way
    return (sentence, way) if way == "word for word" and draw.random() < _KEPT else None


def contradicted(sentence: str, names: Sequence[str], draw: random.Random) -> tuple[str, str] | None:
    """Another fact in nearly the same words."""
    ways = ["number", "name", "negation"]
    draw.shuffle(ways)
    for way in ways:
        if way == "number" and (found := list(_NUMBER.finditer(sentence))):
            one = draw.choice(found)
            value = int(one[0])
            other = value + draw.choice((-1, 1)) * draw.randint(1, max(2, value // 10))
            if other > 0 and str(other) not in sentence:
                return sentence[: one.start()] + str(other) + sentence[one.end() :], way
        if way == "name" and (found := list(_NAME.finditer(sentence))):
            one, other_name = draw.choice(found), draw.choice(names)
            if other_name not in sentence:
                return sentence[: one.start()] + other_name + sentence[one.end() :], way
        if way == "negation":
            if found := list(_NEGATED.finditer(sentence)):
                one = found[0]
                return sentence[: one.start()] + one[1] + sentence[one.end() :], way
            if one_found := _AUXILIARY.search(sentence):
                return sentence[: one_found.end(1)] + " not" + sentence[one_found.end(1) :], way
    return None


def labelled(inside: Sequence[str], outside: Sequence[str], draw: random.Random) -> list[dict[str, str]]:
    names = sorted({name for text in inside for name in _NAME.findall(text)})
    pool = [one for text in inside for one in sentences(text)]
    strange = [one for text in outside for one in sentences(text)]
    draw.shuffle(pool)
    draw.shuffle(strange)
    rows: list[dict[str, str]] = []
    source = iter(pool)
    while len(rows) < 2 * EACH:
        if said := said_otherwise(next(source), draw):
            rows.append({"text": said[0], "label": "supported", "way": said[1]})
    while len(rows) < 4 * EACH:
        said = said_otherwise(next(source), draw)
        if said and (changed := contradicted(said[0], names, draw)):
            rows.append({"text": changed[0], "label": "contradicted", "way": changed[1]})
    rows += [{"text": one, "label": "not found", "way": "elsewhere"} for one in strange[: 2 * EACH]]
    return rows


def overlap(sentence: str, index: Index) -> float:
    words = content_words(sentence)
    hits = index.search(sentence, 5, words_only=True)
    return max((len(words & content_words(hit.text)) / len(words) for hit in hits), default=0.0)


def by_thresholds(shares: Sequence[float], low: float, high: float) -> list[str]:
    return ["not found" if one < low else "contradicted" if one < high else "supported" for one in shares]


def f1_of(labels: Sequence[str], given: Sequence[str]) -> dict[str, float]:
    found = {}
    for name in LABELS:
        right = sum(a == b == name for a, b in zip(labels, given, strict=True))
        found[name] = 2 * right / max(labels.count(name) + list(given).count(name), 1)
    return found


def macro(labels: Sequence[str], given: Sequence[str]) -> float:
    return statistics.mean(f1_of(labels, given).values())


def bootstrap(labels: Sequence[str], given: Sequence[str], draw: random.Random) -> list[float]:
    places, scores = range(len(labels)), []
    for _ in range(1000):
        chosen = draw.choices(places, k=len(labels))
        scores.append(macro([labels[at] for at in chosen], [given[at] for at in chosen]))
    scores.sort()
    return [round(scores[25], 3), round(scores[974], 3)]


def measured(rows: Sequence[dict[str, str]], given: Sequence[str], draw: random.Random) -> dict[str, Any]:
    labels = [row["label"] for row in rows]
    table = {name: dict.fromkeys(LABELS, 0) for name in LABELS}
    ways: dict[str, list[int]] = {}
    for row, one in zip(rows, given, strict=True):
        table[row["label"]][one] += 1
        count = ways.setdefault(f"{row['label']}: {row['way']}", [0, 0])
        count[0] += one == row["label"]
        count[1] += 1
    f1 = {name: round(value, 3) for name, value in f1_of(labels, given).items()}
    whole = {"macro_f1": round(macro(labels, given), 3), "interval": bootstrap(labels, given, draw), "f1": f1}
    return whole | {"given_by_label": table, "right_of_by_way": dict(sorted(ways.items()))}


def declining(data: Path, folder: Path) -> dict[str, Any]:
    rows = [row for row in rows_of(data / "bench-xquad/xquad.jsonl.gz") if row["lang"] == "en"]
    held_out = set(sorted({row["title"] for row in rows})[::2])
    folder.mkdir()
    for row in rows:
        if row["title"] not in held_out:
            (folder / f"q{row['para']}.txt").write_text(row["context"], encoding="utf-8")
    for number, text in enumerate(distractors(data, "en")):
        (folder / f"d{number}.txt").write_text(text, encoding="utf-8")
    index_folder(folder, folder.with_name("questions"))
    index = Index(folder.with_name("questions"))
    shares: dict[bool, list[float]] = {True: [], False: []}
    for row in rows:
        hits = index.search(row["question"], 5, words_only=True)
        shares[row["title"] not in held_out].append(index.covered(row["question"], hits))
    table = {}
    for least in (0.3, LEAST_COVERED, 0.5, 0.6):
        kept, declined = sum(one >= least for one in shares[True]), sum(one < least for one in shares[False])
        table[str(least)] = {
            "answerable_kept": [round(kept / len(shares[True]), 3), *interval(kept, len(shares[True]))],
            "others_declined": [round(declined / len(shares[False]), 3), *interval(declined, len(shares[False]))],
        }
    return {"answerable": len(shares[True]), "others": len(shares[False]), "by_least": table}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results/facts.json")
    options = parser.parse_args()
    draw = random.Random(11)
    texts = list(distractors(options.data, "en"))
    draw.shuffle(texts)
    inside, outside = texts[: len(texts) // 2], texts[len(texts) // 2 :]
    rows = labelled(inside, outside, draw)
    draw.shuffle(rows)
    with tempfile.TemporaryDirectory() as folder:
        files = Path(folder, "files")
        files.mkdir()
        for number, text in enumerate(inside):
            (files / f"{number}.txt").write_text(text, encoding="utf-8")
        index_folder(files, Path(folder, "index"))
        index = Index(Path(folder, "index"))
        fit, test = rows[: len(rows) // 2], rows[len(rows) // 2 :]
        shares = [overlap(row["text"], index) for row in fit]
        cuts = [at / 50 for at in range(51)]
        score: Callable[[tuple[float, float]], float] = lambda pair: macro(  # noqa: E731
            [row["label"] for row in fit], by_thresholds(shares, *pair)
        )
        low, high = max(itertools.combinations(cuts, 2), key=score)
        start = time.perf_counter()
        ours = [judged(row["text"], index.search(row["text"], 5, words_only=True)).verdict for row in test]
        seconds = time.perf_counter() - start
        declined = declining(options.data, Path(folder, "texts"))
        theirs = by_thresholds([overlap(row["text"], index) for row in test], low, high)
    words = ["../" + Path(word).name if "/" in word else word for word in sys.argv[1:]]
    found: dict[str, Any] = {"machine": machine(), "cores": len(os.sched_getaffinity(0)), "commit": commit()}
    found |= {"command": " ".join(["python -m benchmarks.facts", *words]), "paragraphs_indexed": len(inside)}
    found |= {"sentences": len(test), "ms_a_sentence": round(1000 * seconds / len(test), 1)}
    found["check"] = measured(test, ours, random.Random(1))
    found["bm25_overlap"] = measured(test, theirs, random.Random(1)) | {"thresholds": [low, high]}
    found["declining"] = declined
    options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
