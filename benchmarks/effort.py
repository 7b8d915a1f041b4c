"""What more effort buys: a vote, the best by a reward model or a verifier, a weighed vote and a tree, at equal compute.

    python -m benchmarks.effort CHECKPOINT --work FOLDER [--out benchmarks/results/effort.json]

CHECKPOINT, a small model, first learns sums of three numbers step by step (`herd sft`, 6,000 rows); a reward model then
learns from its own samples on 600 other sums which answers, and which first steps, are right (`herd reward`). Asked are
300 sums that neither has seen, with numbers up to the largest bound for which the greedy answer is right in 20 to 60 %.
Every way is told with the tokens that it drew for a question. The verifier works out each line again (`a + b = c`)
and knows nothing of the question: a sum of other numbers, rightly added, passes it.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.curate_extraction import commit, machine
from herd.config import load
from herd.data.rows import write_rows
from herd.evals.scorers import last_number_of
from herd.evals.statistics import paired_difference, wilson
from herd.infer.engine import Engine
from herd.post.reward import RewardModel
from herd.rollout.search import Score, Tree, TreeOptions, step_requests, steps_in
from herd.serve.effort import chosen_of
from herd.stages import reward, sft
from herd.types import Completion, Conversation, Message, SamplingParams

BOUNDS = (9, 15, 20, 30, 50, 99)
QUESTIONS = 300
ROWS = 6000  # that are learned
JUDGED = 600  # sums whose samples the reward model learns from
SAMPLES = 16
TREES = ((2, 4), (4, 4), (8, 4))  # steps gone on with, next ones drawn of each
_LINE = re.compile(r"(-?\d+) ([+-]) (\d+) = (-?\d+)")


def sums(count: int, bound: int, seed: int, but: set[str]) -> list[dict[str, Any]]:
    """Sums of three numbers with their steps; none of `but`, to which they are added."""
    draw, rows = random.Random(seed), []
    for _ in range(200 * count):
        a, b, c = (draw.randint(1, bound) for _ in range(3))
        first, second = draw.choice("+-"), draw.choice("+-")
        question = f"What is {a} {first} {b} {second} {c}?"
        if question in but:
            continue
        but.add(question)
        half = a + b if first == "+" else a - b
        whole = half + c if second == "+" else half - c
        steps = f"{a} {first} {b} = {half}\n{half} {second} {c} = {whole}\nThe answer is {whole}."
        rows.append({"messages": [{"role": "user", "content": question}], "steps": steps, "answer": whole})
        if len(rows) == count:
            return rows
    raise SystemExit(f"there are not {count} more sums up to {bound}")


def right(text: str, row: dict[str, Any]) -> bool:
    return last_number_of(text) == row["answer"]


def verified(_: Sequence[Message], answer: str) -> float:
    """The share of an answer's lines that are true sums; 0 where there are none."""
    lines = _LINE.findall(answer)
    true = [(int(a) + int(b) if sign == "+" else int(a) - int(b)) == int(c) for a, sign, b, c in lines]
    return fmean(true) if true else 0.0


def sampled(engine: Engine, rows: Sequence[dict], n: int, temperature: float) -> list[list[Completion]]:
    params = SamplingParams(temperature=temperature, top_p=1.0, max_tokens=64, n=n, seed=1)
    found = engine.generate([row["messages"] for row in rows], params)
    return [one if isinstance(one, list) else [one] for one in found]


def taught(checkpoint: Path, work: Path, seen: set[str]) -> Path:
    rows = [row for part, bound in enumerate(BOUNDS) for row in sums(ROWS // len(BOUNDS), bound, part, seen)]
    talks = [{"messages": [*row["messages"], {"role": "assistant", "content": row["steps"]}]} for row in rows]
    write_rows(work / "sums.jsonl", talks)
    words = [
        f"checkpoint={checkpoint}", f"conversations=[{work / 'sums.jsonl'}]", f"out={work / 'sft'}", "epochs=3",
        "batch.tokens=1024", "batch.row_tokens=256", "batch.micro_tokens=1024", "optimizer.learning_rate=1e-3",
        "schedule.shape=linear", "schedule.warmup_steps=20", "schedule.final_share=0.0",
    ]  # fmt: skip
    return sft.run(load(sft.SftSettings, None, words))


def rewarded(model: Path, work: Path, rows: Sequence[dict]) -> Path:
    """A reward model of right against wrong answers, and of right against wrong first steps."""
    draw, pairs = random.Random(3), []
    for row, answers in zip(rows, sampled(Engine(model), rows, 8, 1.0), strict=True):
        for cut in (lambda text: text, lambda text: text.split("\n")[0]):
            texts = dict.fromkeys(cut(one.text.strip()) for one in answers)
            good = [text for text in texts if verified((), text) == 1 and row["steps"].startswith(text)]
            bad = [text for text in texts if text and not row["steps"].startswith(text)]
            if good and bad:
                pair = {"prompt": row["messages"], "chosen": good[0], "rejected": draw.choice(bad)}
                pairs.append(pair | {"strength": "significantly_better"})
    write_rows(work / "pairs.jsonl", pairs)
    words = [
        f"checkpoint={model}", f"pairs=[{work / 'pairs.jsonl'}]", f"out={work / 'reward'}", "epochs=4",
        "batch.tokens=4096", "batch.row_tokens=512", "batch.micro_tokens=4096", "optimizer.learning_rate=3e-4",
        "schedule.shape=linear", "schedule.warmup_steps=5", "schedule.final_share=0.0",
    ]  # fmt: skip
    return reward.run(load(reward.RewardSettings, None, words))


def searched(engine: Engine, rows: Sequence[dict], score: Score, expansions: int, width: int) -> tuple[list[str], int]:
    """The best of each tree, and the tokens that all of them drew."""
    options = TreeOptions(expansions=expansions, width=width, step_tokens=24, answer_tokens=64)
    trees, tokens = [Tree(row["messages"], engine.encode(row["messages"])) for row in rows], 0
    for turn in range(expansions):
        growing = [(tree, node) for tree in trees if (node := tree.leaf(options.curiosity)) is not None]
        begun = [(tree.prompt, node.text) for tree, node in growing]
        requests = step_requests(engine, begun, options, turn)
        for request in requests:
            engine.submit(request)
        while not all(request.finished for request in requests):
            engine.step()
        steps = [steps_in(engine, one, request, options) for one, request in zip(begun, requests, strict=True)]
        talks = [tree.talk(text) for (tree, _), several in zip(growing, steps) for text, _ in several]
        values = iter(score(talks))
        for (tree, node), several in zip(growing, steps, strict=True):
            tree.grow(node, [(text, whole, next(values)) for text, whole in several])
        tokens += sum(len(answer.tokens) for request in requests for answer in request.answers)
    return [tree.best().text for tree in trees], tokens


def measure(engine: Engine, judge: RewardModel, rows: Sequence[dict], greedy: list[list[Completion]]) -> dict[str, Any]:
    drawn = sampled(engine, rows, SAMPLES, 0.8)
    talks: list[list[Conversation]] = [
        [[*row["messages"], Message(role="assistant", content=one.text.strip())] for one in several]
        for row, several in zip(rows, drawn, strict=True)
    ]
    flat = iter(judge.score([talk for several in talks for talk in several]))
    rewards = [[next(flat) for _ in several] for several in talks]
    checks = [[verified((), one.text) for one in several] for several in drawn]
    found: dict[str, Any] = {"greedy": share([right(one.text, row) for (one,), row in zip(greedy, rows)],
                                             sum(len(one.tokens) for (one,) in greedy))}  # fmt: skip
    ways: dict[str, tuple[str, list[list[float]] | None]] = {
        "vote": ("vote", None), "best by reward": ("best", rewards), "vote weighed by reward": ("weighted", rewards),
        "best by verifier": ("best", checks), "vote weighed by verifier": ("weighted", checks),
    }  # fmt: skip
    marks: dict[str, list[bool]] = {}
    for count in (2, 4, 8, 16):
        tokens = sum(len(one.tokens) for several in drawn for one in several[:count])
        for name, (how, scores) in ways.items():
            texts = [
                chosen_of([one.text for one in several[:count]], how, "number", scores[at][:count] if scores else None)
                for at, several in enumerate(drawn)
            ]
            marks[f"{name}, {count}"] = [right(text, row) for text, row in zip(texts, rows)]
            found[f"{name}, {count}"] = share(marks[f"{name}, {count}"], tokens)
            if scores:
                found[f"{name}, {count}"]["lead over the vote"] = lead(
                    marks[f"{name}, {count}"], marks[f"vote, {count}"]
                )
        found[f"any right, {count}"] = share(
            [any(right(one.text, row) for one in several[:count]) for several, row in zip(drawn, rows)], tokens
        )
    by: dict[str, Callable[[Sequence[Conversation]], list[float]]] = {
        "reward": judge.score,
        "verifier": lambda talks: [verified(talk[:-1], talk[-1]["content"]) for talk in talks],
    }
    for name, score in by.items():
        for expansions, width in TREES:
            texts, tokens = searched(engine, rows, score, expansions, width)
            marks["tree"] = [right(text, row) for text, row in zip(texts, rows)]
            nearest = min(
                (2, 4, 8, 16), key=lambda n: abs(found[f"vote, {n}"]["tokens a question"] - tokens / len(rows))
            )
            told = share(marks["tree"], tokens) | {"lead over the vote": lead(marks["tree"], marks[f"vote, {nearest}"])}
            found[f"tree by {name}, {expansions} steps of {width}"] = told | {"that vote's answers": nearest}
    return found


def share(marks: Sequence[bool], tokens: int) -> dict[str, Any]:
    value = wilson([float(mark) for mark in marks])
    return {"right": round(value.value, 3), "interval": [round(value.low, 3), round(value.high, 3)],
            "tokens a question": round(tokens / len(marks), 1)}  # fmt: skip


def lead(mine: Sequence[bool], others: Sequence[bool]) -> list[float]:
    found = paired_difference([float(one) for one in mine], [float(one) for one in others])
    return [round(found.low, 3), round(found.high, 3)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "effort.json")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    seen: set[str] = set()
    model = taught(options.checkpoint, options.work, seen)
    engine, tried = Engine(model, max_sequences=64), {}
    for bound in reversed(BOUNDS):
        rows = sums(QUESTIONS, bound, 100 + bound, seen)
        greedy = sampled(engine, rows, 1, 0.0)
        tried[bound] = round(fmean(right(one.text, row) for (one,), row in zip(greedy, rows)), 3)
        print(bound, tried[bound], flush=True)
        if 0.2 <= tried[bound] <= 0.6:
            break
    judge = RewardModel(rewarded(model, options.work, sums(JUDGED, bound, 7, seen)))
    result = {"benchmark": "effort", "date": date.today().isoformat(), "machine": machine(),
              "cores": len(os.sched_getaffinity(0)), "commit": commit(),
              "command": "python -m benchmarks.effort runs/demo/average --work runs/effort", "questions": QUESTIONS,
              "largest number": bound, "greedy, by the largest number": tried}  # fmt: skip
    result |= measure(engine, judge, rows, greedy)
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
