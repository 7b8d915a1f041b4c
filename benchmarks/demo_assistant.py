"""The demo's index of pages as an assistant: by name, in other words, and what the pages do not hold.

    python -m benchmarks.demo_assistant runs/demo [--out benchmarks/results/demo_assistant.json]

By name: the demo's own questions about modules that no training saw. In other words: a hundred questions written by
hand without the name (benchmarks/data/demo_questions.csv); the answer is right when its token F1 with the first
sentence of the object's docstring is at least 0.8. Beside it BM25 alone: of its best passage the sentence that
shares most words with the question. Not held: invented names of the demo, and questions about the world.
"""

from __future__ import annotations

import argparse
import csv
import importlib
import inspect
import json
import random
import re
from datetime import date
from pathlib import Path

from herd.environment import environment
from herd.evals.answers import token_f1
from herd.evals.statistics import wilson
from herd.knowledge.citations import cite
from herd.knowledge.index import Index
from herd.knowledge.reading import read_out
from herd.stages.demo.index import RIGHT

QUESTIONS = Path(__file__).parent / "data" / "demo_questions.csv"
WORLD = [
    "What is the capital of Australia?", "Who painted the Mona Lisa?", "How do I bake sourdough bread?",
    "When did the Second World War end?", "Which river flows through Vienna?", "How tall is Mount Everest?",
    "Who wrote Pride and Prejudice?", "What do pandas eat in the wild?", "How many players has a football team?",
    "Why is the sky blue?", "What is the boiling point of ethanol?", "Who was the first woman in space?",
    "Which vitamins are in oranges?", "How do bees make honey?", "What is the currency of Sweden?",
    "When was the Eiffel Tower built?", "Who composed the Moonlight Sonata?", "How far away is the moon?",
    "What language is spoken in Brazil?", "Which planet has the most rings?", "How do I knit a scarf?",
    "What are the symptoms of measles?", "Who discovered penicillin?", "How long is the Great Wall of China?",
    "Which wine goes with grilled salmon?",
]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("demo", type=Path)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "demo_assistant.json")
    options = parser.parse_args()
    index = Index(options.demo / "index" / "index")
    heldout = [row for row in rows(options.demo, "eval_heldout") if row["kind"] != "signature"][:100]
    named = [(row["messages"][0]["content"], row["answer"]) for row in heldout]
    with QUESTIONS.open(newline="", encoding="utf-8") as file:
        worded = [(row["question"], first_sentence(row["name"])) for row in csv.DictReader(file)]
    unknown = [row["messages"][0]["content"] for row in rows(options.demo, "eval_unknown")[:25]] + WORLD
    by_reading = [is_right(answer(index, question), wanted) for question, wanted in worded]
    by_words = [is_right(first_hit(index, question), wanted) for question, wanted in worded]
    result = {
        "benchmark": "demo_assistant",
        "date": date.today().isoformat(),
        "command": "python -m benchmarks.demo_assistant runs/demo",
        "hardware": environment()["processor"],
        "passages": index.passages,
        "by name": share([is_right(answer(index, question), wanted) for question, wanted in named]),
        "in other words": share(by_reading),
        "in other words, BM25 alone": share(by_words),
        "in other words, lead over BM25 alone": lead(by_reading, by_words),
        "not held, declined": share([answer(index, question) is None for question in unknown]),
    }
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


def rows(demo: Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (demo / "questions" / f"{name}.jsonl").read_text("utf-8").splitlines()]


def first_sentence(name: str) -> str:
    """Of the docstring of an object by its full name, a first line with its signature aside."""
    parts = name.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:cut]))
        except ImportError:
            continue
        for part in parts[cut:]:
            found = getattr(found, part)
        text = re.sub(rf"^{parts[-1]}\(.*?\)(?: -> [^\n]*?)?(?:\n\s*|: | -- )", "", inspect.getdoc(found) or "")
        return re.split(r"(?<=[.])\s", " ".join(text.split("\n\n")[0].split()))[0]
    raise SystemExit(f"{name} is not here")


def answer(index: Index, question: str) -> str | None:
    found = read_out(index, question)
    return found.text if found else None


def first_hit(index: Index, question: str) -> str | None:
    """What BM25 alone would answer: of its best passage the sentence nearest to the question."""
    hits = index.search(question, 1, words_only=True)
    found = cite(question, hits)
    return found[0].quote if hits and found else None


def is_right(said: str | None, wanted: str) -> bool:
    return said is not None and token_f1(said, wanted) >= RIGHT


def share(right: list[bool]) -> dict:
    found = wilson([float(one) for one in right])
    return {"n": found.n, "share": round(found.value, 3), "interval": [round(found.low, 3), round(found.high, 3)]}


def lead(ours: list[bool], theirs: list[bool]) -> dict:
    """The difference on the same questions, with a bootstrap interval."""
    draw, gaps = random.Random(0), [int(a) - int(b) for a, b in zip(ours, theirs, strict=True)]
    means = sorted(sum(draw.choices(gaps, k=len(gaps))) / len(gaps) for _ in range(2000))
    return {"mean": round(sum(gaps) / len(gaps), 3), "interval": [round(means[50], 3), round(means[1949], 3)]}


if __name__ == "__main__":
    main()
