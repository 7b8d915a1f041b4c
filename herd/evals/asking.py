"""A task put to a subject, item by item, and the scores of what came back."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence, Set
from dataclasses import replace
from hashlib import blake2b
from typing import Any

from herd.evals.answers import expected_part, scored_part
from herd.evals.graders import GRADERS
from herd.evals.likelihood import Choice
from herd.evals.retrieval import retrieved_answers, shuffled_answers
from herd.evals.rows import rows_of
from herd.evals.scorers import SCORERS
from herd.evals.services import played
from herd.evals.statistics import summary
from herd.evals.subject import Prompt, Subject, TooLong
from herd.evals.task import Item, Task
from herd.evals.templates import list_of, render
from herd.types import SamplingParams, Score

LOWER = ("bits_per_byte", "nats", "kl_nats")
"""Metrics of which less is better."""

RETRIEVED, SHUFFLED = "retrieved answer of another question", "random answer of its kind"
"""Names of the baselines in tables."""

Result = dict[str, Any]
"""Of one item: `answer` and the scores by metric. Without scores, `left_out` says why it could not be asked; `shots` is
there where it was asked with fewer examples than the task's."""


def ask(task: Task, items: Sequence[Item], subject: Subject, base: bool | None = None) -> list[Result]:
    """Results in the items' order; `base` says that the subject continues raw text, whatever it says itself.

    An item beyond the context is asked with fewer examples where the task says so, and else left out.
    """
    chat = subject.speaks_chat if base is None else not base
    asked, results = list(items), _asked(task, items, subject, chat)
    while places := [place for place in range(len(asked)) if _may_shrink(task, asked[place], results[place])]:
        for place in places:
            asked[place] = replace(asked[place], examples=asked[place].examples[:-1])
        again = _asked(task, [asked[place] for place in places], subject, chat)
        for place, one in zip(places, again, strict=True):
            results[place] = one | {"shots": len(asked[place].examples)}
    for item, one in zip(asked, results, strict=True):
        if "left_out" not in one:
            one["prompt_hash"] = digest([item.prompt(task, chat), item.before, item.choices])
    return results


def digest(what: Any) -> str:
    """Eight bytes that tell texts and numbers apart, as hexadecimal digits."""
    return blake2b(json.dumps(what, sort_keys=True, default=str).encode(), digest_size=8).hexdigest()


def _may_shrink(task: Task, item: Item, result: Result) -> bool:
    return task.drop_shots and "left_out" in result and bool(item.examples)


def answered(results: Mapping[str, Sequence[Result]], models: Sequence[str]) -> list[int]:
    """Places of the items that none of these models left out."""
    rows = [results[name] for name in models]
    return [place for place, ones in enumerate(zip(*rows, strict=True)) if not any("left_out" in one for one in ones)]


def _asked(task: Task, items: Sequence[Item], subject: Subject, chat: bool) -> list[Result]:
    prompts = [item.prompt(task, chat) for item in items]
    if task.ask == "choices":
        return _choose(task, items, prompts, subject)
    if task.ask == "text":
        return _read(task, items, prompts, subject)
    if task.ask == "cache":
        return _in_place(*_cached(subject, [str(prompt) for prompt in prompts], task.context_tokens))
    raw = bool(prompts) and isinstance(prompts[0], str)
    stop = tuple(task.stop) or (("\n",) if raw else ())
    params = SamplingParams(temperature=task.temperature, top_p=1.0, max_tokens=task.max_tokens, stop=stop)
    params = replace(params, min_tokens=task.min_tokens)
    if task.services:
        rows = [item.row for item in items]
        return played(task, rows, prompts, subject, replace(params, seed=task.seed))
    if task.turns:
        return _converse(task, items, prompts, subject, replace(params, seed=task.seed))
    first = subject.generate(prompts, replace(params, seed=task.seed))
    fits = [not isinstance(text, TooLong) for text in first]
    kept = [item for item, fit in zip(items, fits) if fit]
    asked = [prompt for prompt, fit in zip(prompts, fits) if fit]
    if not kept:
        return _in_place(first, [])
    draws = [first, *(subject.generate(asked, replace(params, seed=task.seed + n)) for n in range(1, task.samples))]
    drawn = [graded(task, kept, [text for text in draw if isinstance(text, str)]) for draw in draws]
    together = drawn[0] if task.samples == 1 else [_together(task, ones) for ones in zip(*drawn, strict=True)]
    return _in_place(first, together)


def _converse(
    task: Task, items: Sequence[Item], prompts: Sequence[Prompt], subject: Subject, params: SamplingParams
) -> list[Result]:
    """Conversations of several turns, every answer scored: the mean, and each turn's score."""
    talks = [[*prompt] for prompt in prompts if not isinstance(prompt, str)]
    later = [[str(one) for one in list_of(task.turns, item.row)] for item in items]
    results: list[Result] = [{"answer": "", "scores": {}, "turns": []} for _ in items]
    for turn in range(1 + max(map(len, later), default=0)):
        asked = [place for place, one in enumerate(results) if turn <= len(later[place]) and "left_out" not in one]
        for place in asked if turn else ():
            talks[place].append({"role": "user", "content": later[place][turn - 1]})
        texts = subject.generate([talks[place] for place in asked], params)
        for place, text in zip(asked, texts, strict=True):
            if isinstance(text, TooLong):
                results[place] = {"answer": "", "scores": {}, "left_out": f"turn {turn + 1}: {text.why}"}
                continue
            talks[place].append({"role": "assistant", "content": text})
            results[place]["turns"].append(graded(task, [items[place]], [text])[0])
    return [_of_turns(task, one) if "turns" in one else one for one in results]


def _of_turns(task: Task, result: Result) -> Result:
    metric, turns = main_metric(task), result["turns"]
    values = [_mean(one["scores"][metric]) for one in turns]
    scores = {metric: sum(values) / len(values)} | {f"turn {n}": value for n, value in enumerate(values, 1)}
    return {"answer": "\n\n".join(f"({n}) {one['answer']}" for n, one in enumerate(turns, 1)), "scores": scores}


def _read(task: Task, items: Sequence[Item], prompts: Sequence[Prompt], subject: Subject) -> list[Result]:
    """How likely given texts are: bits a byte, and nats in all; `weight` is their bytes."""
    texts = [item.right[0] for item in items]
    found = subject.likelihoods([(one, [("", task.before_answer + text)]) for one, text in zip(prompts, texts)])
    results: list[Result] = []
    for text, ones in zip(texts, found, strict=True):
        if not isinstance(ones, TooLong):
            nats, size = -ones[0].nats, max(len(text.encode()), 1)
            results.append({"answer": "", "scores": {"bits_per_byte": nats / math.log(2) / size, "nats": nats}})
            results[-1]["weight"] = size
    return _in_place(found, results)


def _cached(subject: Subject, texts: Sequence[str], context_tokens: int | None) -> tuple[list[Any], list[Result]]:
    found = subject.cache_divergences(texts, context_tokens)
    return found, [{"answer": "", "scores": one} for one in found if not isinstance(one, TooLong)]


def _in_place(found: Sequence[Any], results: Sequence[Result]) -> list[Result]:
    """A result for each item: of what was too long that it was."""
    rest = iter(results)
    return [
        {"answer": "", "scores": {}, "left_out": one.why} if isinstance(one, TooLong) else next(rest) for one in found
    ]


def graded(task: Task, items: Sequence[Item], texts: Sequence[str]) -> list[Result]:
    """The results of free answers."""
    if task.scorer not in GRADERS:
        return [scored(task, item, text.strip()) for item, text in zip(items, texts, strict=True)]
    grades = GRADERS[task.scorer](task, items, texts)
    results: list[Result] = []
    for text, one in zip(texts, grades, strict=True):
        why = {"why": one.pop("why")} if "why" in one else {}
        scores = {task.metric if task.metric and not place else name: one[name] for place, name in enumerate(one)}
        results.append({"answer": text, "scores": scores} | why)
    return results


def _together(task: Task, results: Sequence[Result]) -> Result:
    """Several answers to one question: the mean of their scores, and how likely one of k is right.

    Source: Chen et al. 2021, equation 1 (the unbiased estimate of pass@k).
    """
    metric = main_metric(task)
    scores = {name: sum(_mean(one["scores"][name]) for one in results) / len(results) for name in results[0]["scores"]}
    right = sum(one["scores"][metric] == 1 for one in results)
    n = len(results)
    scores |= {f"pass@{k}": 1 - math.comb(n - right, k) / math.comb(n, k) for k in task.pass_at}
    return {"answer": results[0]["answer"], "answers": [one["answer"] for one in results], "scores": scores}


def _choose(task: Task, items: Sequence[Item], prompts: Sequence[Prompt], subject: Subject) -> list[Result]:
    texts: list[list[Choice]] = []
    for item in items:
        befores = item.before or [""] * len(item.choices)
        texts.append([(one, task.before_answer + choice) for one, choice in zip(befores, item.choices, strict=True)])
    found = subject.likelihoods(list(zip(prompts, texts, strict=True)))
    alone = found
    if task.scorer == "accuracy_pmi":
        alone = subject.likelihoods([("", choices) for choices in texts])
    results = []
    for item, ones, free in zip(items, found, alone, strict=True):
        if isinstance(ones, TooLong) or isinstance(free, TooLong):
            continue
        by = {
            "accuracy": [one.nats for one in ones],
            "accuracy_norm": [
                one.nats / max(len(text.encode()), 1) for one, text in zip(ones, item.choices, strict=True)
            ],
        }
        if task.scorer == "accuracy_pmi":
            by["accuracy_pmi"] = [one.nats - other.nats for one, other in zip(ones, free, strict=True)]
        picked = {metric: max(range(len(values)), key=values.__getitem__) for metric, values in by.items()}
        scores = {metric: float(place in item.rights) for metric, place in picked.items()}
        if task.scorer == "mass":
            scores = {"mass": _mass(by["accuracy"], item.rights)} | scores
        answer = item.choices[picked[main_metric(task) if task.scorer in by else "accuracy"]]
        results.append({"answer": answer, "scores": scores, "nats": [round(one.nats, 4) for one in ones]})
    return _in_place([free if isinstance(free, TooLong) else one for one, free in zip(found, alone)], results)


def _mass(nats: Sequence[float], rights: Set[int]) -> float:
    """The share of the choices' probability that lies on right ones. Source: Lin et al. 2022 (TruthfulQA, MC2)."""
    shares = [math.exp(value - max(nats)) for value in nats]
    return sum(shares[place] for place in rights) / sum(shares)


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
    by_name = {"squad": "exact_words", "translation": "chrf", "rules": "adherence", "repetition": "fresh"}
    if task.scorer in by_name and not task.metric:
        return by_name[task.scorer]
    if task.ask in ("text", "cache"):
        return "bits_per_byte" if task.ask == "text" else "kl_nats"
    return task.metric or task.scorer or ("accuracy" if task.ask == "choices" else "exact_words")


def baseline_results(task: Task, items: Sequence[Item]) -> dict[str, list[Result]]:
    """What answers are worth that know nothing, by baseline."""
    rows = [{**item.row, "kind": item.kind or item.row.get("kind")} for item in items]
    given = {}
    if task.pool is not None and "retrieved" in task.baselines:
        given[RETRIEVED] = retrieved_answers(rows, list(rows_of(task.pool, task.columns)))
    if "shuffled" in task.baselines:
        given[SHUFFLED] = shuffled_answers(rows)
    return {name: graded(task, items, texts) for name, texts in given.items()}


def scores_of(task: Task, items: Sequence[Item], results: Mapping[str, Sequence[Result]]) -> list[Score]:
    """Scores of every model: over all items, of each kind, the gain over the retrieved answer."""
    scores = []
    kinds = sorted({item.kind for item in items if item.kind})
    for name, found in results.items():
        ones = list(zip(items, found, strict=True))
        metrics = list(dict.fromkeys(key for one in found for key in one["scores"])) or [main_metric(task)]
        for metric in metrics if found else ():
            scores.append(_score(task, task.name, metric, name, ones))
            if RETRIEVED in results and name not in (RETRIEVED, SHUFFLED):
                gains = [_gain(metric, one, other) for one, other in zip(found, results[RETRIEVED], strict=True)]
                gained = list(zip(items, gains, strict=True))
                scores.append(_score(task, task.name, "gain_over_retrieved", name, gained))
            for kind in kinds if len(kinds) > 1 else ():
                of_kind = [(item, one) for item, one in ones if item.kind == kind]
                scores.append(_score(replace(task, average="items"), f"{kind} {task.name}", metric, name, of_kind))
    return scores


def _gain(metric: str, one: Result, other: Result) -> Result:
    if "left_out" in one:
        return one
    return one | {"scores": {"gain_over_retrieved": one["scores"][metric] - other["scores"][metric]}}


def _score(task: Task, name: str, metric: str, model: str, results: Sequence[tuple[Item, Result]]) -> Score:
    flat, groups = list[float](), list[str]()
    asked = [(item, one) for item, one in results if "left_out" not in one]
    scale = _mean([one.get("weight", 1) for _, one in asked] or [1])
    for item, one in asked:
        if metric not in one["scores"]:
            continue  # a turn that this conversation does not have
        value = one["scores"][metric]
        if metric == "bits_per_byte" and "weight" in one:  # all bits by all bytes
            value = value * one["weight"] / scale
        parts = value if isinstance(value, list) else [value]
        flat += parts
        groups += [item.group if task.group else str(item.number)] * len(parts)
    kinds = [item.kind for item, _ in asked] if task.average == "kinds" and len(flat) == len(asked) else None
    found = summary(flat, groups, kinds)
    score = Score(
        task=name,
        metric=metric,
        model=model,
        value=0.0,
        shots=task.shots,
        left_out=tuple(item.number for item, one in results if "left_out" in one),
        fewer_shots=tuple(item.number for item, one in asked if "shots" in one),
        prompt_hash=digest([one["prompt_hash"] for _, one in asked])
        if all("prompt_hash" in one for _, one in asked)
        else "",
    )
    if not found.n:
        return score
    return replace(score, value=found.value, stderr=found.stderr, n=found.n, low=found.low, high=found.high)


def _mean(value: float | list[float]) -> float:
    return sum(value) / len(value) if isinstance(value, list) else value


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
            row |= {metric: round(_mean(value), 4) for metric, value in found[place]["scores"].items()}
            row |= {
                name: found[place][name] for name in ("why", "left_out", "shots", "prompt_hash") if name in found[place]
            }
            row |= {"answers": found[place]["answers"]} if "answers" in found[place] else {}
            if task.map:
                row["map"] = [render(one, item.row) for one in task.map]
                row["axes"] = [one.strip("{} ") for one in task.map]
            row |= {"choices": item.choices, "nats": found[place]["nats"]} if "nats" in found[place] else {}
            rows.append(row)
    return rows


def _reference(item: Item) -> str:
    messages = item.row.get("messages") or [{}]
    return messages[-1]["content"] if messages[-1].get("role") == "assistant" else " | ".join(item.right)
