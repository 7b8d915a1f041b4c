"""A task put to a subject, item by item, and the scores of what came back."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from herd.evals.answers import expected_part, scored_part
from herd.evals.retrieval import retrieved_answers, shuffled_answers
from herd.evals.scorers import SCORERS
from herd.evals.statistics import summary
from herd.evals.subject import Subject
from herd.evals.task import Item, Task, rows_of
from herd.types import SamplingParams, Score

RETRIEVED, SHUFFLED = "retrieved answer of another question", "random answer of its kind"
"""Names of the baselines in tables."""

Result = dict[str, Any]
"""Of one item: `answer`, the scores by metric, and `prompt_tokens` where they are known."""


def ask(task: Task, items: Sequence[Item], subject: Subject, base: bool | None = None) -> list[Result]:
    """Results in the items' order; `base` says that the subject continues raw text, whatever it says itself."""
    chat = subject.speaks_chat if base is None else not base
    prompts = [item.prompt(task, chat) for item in items]
    if task.ask == "choices":
        return _choose(task, items, prompts, subject)
    raw = bool(prompts) and isinstance(prompts[0], str)
    stop = tuple(task.stop) or (("\n",) if raw else ())
    texts = subject.generate(prompts, SamplingParams(temperature=0.0, max_tokens=task.max_tokens, stop=stop))
    return [scored(task, item, text.strip()) for item, text in zip(items, texts, strict=True)]


def _choose(task: Task, items: Sequence[Item], prompts: Sequence[Any], subject: Subject) -> list[Result]:
    texts = [[task.before_answer + one for one in item.choices] for item in items]
    found = subject.likelihoods(list(zip(prompts, texts, strict=True)))
    alone = found
    if task.scorer == "accuracy_pmi":
        alone = subject.likelihoods([("", choices) for choices in texts])
    results = []
    for item, ones, free in zip(items, found, alone, strict=True):
        by = {
            "accuracy": [one.nats for one in ones],
            "accuracy_norm": [
                one.nats / max(len(text.encode()), 1) for one, text in zip(ones, item.choices, strict=True)
            ],
        }
        if task.scorer == "accuracy_pmi":
            by["accuracy_pmi"] = [one.nats - other.nats for one, other in zip(ones, free, strict=True)]
        picked = {metric: max(range(len(values)), key=values.__getitem__) for metric, values in by.items()}
        scores = {metric: float(place == item.best) for metric, place in picked.items()}
        answer = item.choices[picked[main_metric(task)]]
        results.append({"answer": answer, "scores": scores, "nats": [round(one.nats, 4) for one in ones]})
    return results


def scored(task: Task, item: Item, answer: str) -> Result:
    """The result of a free answer. What the question gives away, the row's `name`, earns nothing at its beginning."""
    found = answer
    if task.pattern:
        matches = list(re.finditer(task.pattern, answer))
        found = matches[-1][1 if matches[-1].re.groups else 0] if matches else ""
    elif not task.prompt:
        found = scored_part(answer, item.row)
    right = item.right if task.answer else (expected_part(item.row),)
    value = SCORERS[task.scorer or "exact_words"](found, right)
    if task.at_least is not None:
        value = float(value > task.at_least)
    return {"answer": answer, "scores": {main_metric(task): value}}


def main_metric(task: Task) -> str:
    """The metric that decides between models."""
    return task.metric or task.scorer or ("accuracy" if task.ask == "choices" else "exact_words")


def baseline_results(task: Task, items: Sequence[Item]) -> dict[str, list[Result]]:
    """What answers are worth that know nothing, by baseline."""
    rows = [{**item.row, "kind": item.kind or item.row.get("kind")} for item in items]
    given = {}
    if task.pool is not None and "retrieved" in task.baselines:
        given[RETRIEVED] = retrieved_answers(rows, list(rows_of(task.pool, task.columns)))
    if "shuffled" in task.baselines:
        given[SHUFFLED] = shuffled_answers(rows)
    return {
        name: [scored(task, item, text) for item, text in zip(items, texts, strict=True)]
        for name, texts in given.items()
    }


def scores_of(task: Task, items: Sequence[Item], results: Mapping[str, Sequence[Result]]) -> list[Score]:
    """Scores of every model: over all items, of each kind, the gain over the retrieved answer."""
    scores = []
    kinds = sorted({item.kind for item in items if item.kind})
    groups = [item.group for item in items] if task.group else None
    for name, found in results.items():
        for metric in found[0]["scores"] if found else ():
            values = [one["scores"][metric] for one in found]
            scores.append(_score(task, task.name, metric, name, values, groups))
            if RETRIEVED in results and name not in (RETRIEVED, SHUFFLED):
                gain = [a - b["scores"][metric] for a, b in zip(values, results[RETRIEVED], strict=True)]
                scores.append(_score(task, task.name, "gain_over_retrieved", name, gain, groups))
            for kind in kinds if len(kinds) > 1 else ():
                of_kind = [value for value, item in zip(values, items, strict=True) if item.kind == kind]
                own = [item.group for item in items if item.kind == kind] if groups else None
                scores.append(_score(task, f"{kind} {task.name}", metric, name, of_kind, own))
    return scores


def _score(
    task: Task, name: str, metric: str, model: str, values: Sequence[float], groups: Sequence[str] | None
) -> Score:
    found = summary(values, groups)
    score = Score(task=name, metric=metric, model=model, value=0.0, shots=task.shots)
    if not found.n:
        return score
    return replace(score, value=found.value, stderr=found.stderr, n=found.n, low=found.low, high=found.high)


def samples_of(task: Task, items: Sequence[Item], results: Mapping[str, Sequence[Result]]) -> list[dict[str, Any]]:
    """Every answer of every model, unedited, beside its question, the right answer and the score."""
    rows = []
    for place, item in enumerate(items):
        for name, found in results.items():
            if name in (RETRIEVED, SHUFFLED):
                continue
            row = {"task": task.name, "model": name, "item": item.number, "group": item.group, "kind": item.kind}
            row |= {"name": item.row["name"]} if "name" in item.row else {}
            row |= {"question": item.text, "answer": found[place]["answer"], "reference": _reference(item)}
            row |= {metric: round(value, 4) for metric, value in found[place]["scores"].items()}
            row |= {"choices": item.choices, "nats": found[place]["nats"]} if "nats" in found[place] else {}
            rows.append(row)
    return rows


def _reference(item: Item) -> str:
    messages = item.row.get("messages") or [{}]
    return messages[-1]["content"] if messages[-1].get("role") == "assistant" else " | ".join(item.right)
