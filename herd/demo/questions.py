"""Questions and answers made from facts.

The wordings for training, for sampling and for evaluation are disjoint: a score on the evaluation's says that the model
understood which name is meant and what is wanted, not that it has seen the sentence. Facts of held-out groups are only
ever asked about in the evaluation.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b

from herd.data.split import is_held_out
from herd.demo.facts import Fact
from herd.demo.wordings import (
    CHATS,
    CLOSINGS,
    EVAL_WORDINGS,
    OPENINGS,
    PROMPT_WORDINGS,
    TRAIN_WORDINGS,
    UNKNOWN,
)


def kinds_of(fact: Fact) -> tuple[str, ...]:
    """The kinds of question asked about a fact; the reverse only for every fourth, because it is long."""
    if fact.kind in (*_PAGE_KINDS, "module"):
        return (fact.kind,)
    signature = ("signature",) if fact.parameters is not None and len(fact.parameters) <= MAX_SIGNATURE_CHARS else ()
    reverse = ("reverse",) if _hash(fact.name, "reverse") % 4 == 0 else ()
    return ("summary", *signature, *reverse)


def is_trained_on(fact: Fact, holdout: float) -> bool | None:
    """True for training, False for held out, None where the document and the name's own module fall on two sides."""
    groups = {fact.group} if fact.kind in _PAGE_KINDS else {fact.group, fact.module.partition(".")[0]}
    held_out = {is_held_out(group, holdout) for group in groups}
    return None if len(held_out) > 1 else not held_out.pop()


_PAGE_KINDS = ("page", "section", "term")
MAX_SIGNATURE_CHARS = 70
_MAX_TASK_WORDS = 16


# ---- which facts -----------------------------------------------------------------------------------------------------


def ranked(facts: Iterable[Fact], uses: Mapping[str, int]) -> list[Fact]:
    """Facts with distinct names and answers, the best known and clearest first.

    Well known is what the pages themselves use: `uses` counts how many sources import a module and how many call a
    name. Modules, functions and classes come before methods, short summaries before long ones. Where two facts give
    the same answer, one stays: the other could only be told apart by luck.
    """
    names: set[str] = set()
    summaries: set[str] = set()
    kept = []
    for fact in sorted(facts, key=lambda fact: (-_renown(fact, uses), fact.name, fact.summary)):
        summary = " ".join(re.findall(r"\w+", fact.summary.lower()))
        if fact.name not in names and summary not in summaries:
            kept.append(fact)
            names.add(fact.name)
            summaries.add(summary)
    return kept


_KIND_BONUS = {"module": 3.0, "function": 2.0, "class": 1.5, "attribute": -0.5, "page": 3.0, "term": 2.0}


def _renown(fact: Fact, uses: Mapping[str, int]) -> float:
    known = math.log2(1 + uses.get(fact.module, 0)) + math.log2(1 + uses.get(fact.name, 0))
    words = len(fact.summary.split())
    return known + _KIND_BONUS.get(fact.kind, 0.0) - 0.08 * abs(words - 8) - 0.5 * fact.name.count(".")


# ---- rows ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class QuestionSets:
    """The output of the questions stage: rows of `messages`, `name`, `kind`, `group` and `answer` (which is scored)."""

    train: list[dict]
    prompts: list[dict]  # the same facts in wordings of their own: what preferences and rejection sampling ask
    eval_trained: list[dict]
    eval_heldout: list[dict]
    unknown: list[dict]  # invented names: the honest answer is that it is not known; preferences ask about these
    eval_unknown: list[dict]  # others, of syllables that no training has seen


def make_questions(
    facts: Sequence[Fact],
    *,
    holdout: float,
    max_facts: int,
    max_questions: int,
    wordings: int,
    subject: str,
) -> QuestionSets:
    """Question sets from ranked facts (see `ranked`): a pure function of its arguments.

    `wordings` is how many different summary questions each trained fact gets; signatures get half as many.
    """
    known = {fact.name for fact in facts}
    trained = [fact for fact in facts if is_trained_on(fact, holdout)][:max_facts]
    heldout = [fact for fact in facts if is_trained_on(fact, holdout) is False][:max_questions]
    train, prompts = [], []
    for fact in trained:
        train += _training_rows(fact, wordings)
        prompts += _prompt_rows(fact)
    count = max(len(trained) // 10, 8)
    invented = list(invented_names(trained, known, count=3 * count))
    train += [_varied(row) for row in _unknown_rows(invented[:count], TRAIN_WORDINGS["summary"])]
    new = invented_names(trained, known, count=max(max_questions // 4, 8), syllables=_NEW_SYLLABLES)
    train += _chat_rows(subject, len(train))
    return QuestionSets(
        train=_with_dialogues(_shuffled(train)),
        prompts=_shuffled(prompts),
        eval_trained=_evaluation_rows(trained, max_questions),
        eval_heldout=_evaluation_rows(heldout, max_questions // 2),
        unknown=_unknown_rows(invented[count:], PROMPT_WORDINGS["summary"]),
        eval_unknown=_unknown_rows(list(new), EVAL_WORDINGS["summary"]),
    )


def question_row(fact: Fact, kind: str, wording: str) -> dict:
    """One question with its answer as a conversation row."""
    task = _task(fact.summary)
    question = wording.format(name=fact.name, module=fact.module, task=task)
    return _row(question, answer_to(fact, kind), group=fact.group, name=fact.name, kind=kind)


def answer_to(fact: Fact, kind: str) -> str:
    """The expected answer without the name, which the question contains already: this part is scored."""
    if kind == "signature":
        return f"({fact.parameters})"
    if kind == "reverse":
        return fact.name.removeprefix(f"{fact.module}.")
    return fact.summary


def spoken(name: str, kind: str, answer: str) -> str:
    """The full answer, which begins with the name it is about, like a page of the documentation."""
    if kind == "signature":
        return name + answer
    return f"{name}: {answer}" if kind in ("summary", "module", "section", "term") else answer


def _row(question: str, answer: str, *, group: str, name: str, kind: str) -> dict:
    said = spoken(name, kind, answer)
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": said}]
    return {"messages": messages, "source": "questions", "group": group, "name": name, "kind": kind, "answer": answer}


def _task(summary: str) -> str:
    words = summary.split()
    return summary if len(words) <= _MAX_TASK_WORDS else " ".join(words[:_MAX_TASK_WORDS]) + " ..."


def _training_rows(fact: Fact, wordings: int) -> list[dict]:
    """The rows a fact is trained on: signatures in half as many wordings as summaries, the reverse in one."""
    rows = []
    for kind in kinds_of(fact):
        count = {"signature": (wordings + 1) // 2, "reverse": 1}.get(kind, wordings)
        rows += [_varied(question_row(fact, kind, wording)) for wording in _drawn(fact, TRAIN_WORDINGS[kind], count)]
    return rows


def _prompt_rows(fact: Fact) -> list[dict]:
    """The rows whose questions later steps put to the model: two for a summary, one for a signature."""
    rows = []
    for kind in kinds_of(fact):
        drawn = _drawn(fact, PROMPT_WORDINGS.get(kind, ()), 1 if kind == "signature" else 2)
        rows += [question_row(fact, kind, wording) for wording in drawn]
    return rows


def _drawn(fact: Fact, wordings: Sequence[str], count: int) -> list[str]:
    """Some of the wordings, others for each fact."""
    return sorted(wordings, key=lambda wording: _hash(fact.name, wording))[:count]


def _varied(row: dict) -> dict:
    """Half of the questions have something before or after them, some write the name as `name()` or in backticks."""
    question, draw = row["messages"][0]["content"], _hash(row["messages"][0]["content"], "style")
    if row["kind"] in ("summary", "signature") and draw % 16 < 2:
        question = question.replace(row["name"], f"{row['name']}()" if draw % 2 else f"`{row['name']}`", 1)
    around = draw // 16 % 6
    if around in (0, 1):
        question = OPENINGS[draw // 96 % len(OPENINGS)] + question
    elif around == 2:
        question += CLOSINGS[draw // 96 % len(CLOSINGS)]
    return {**row, "messages": [{"role": "user", "content": question}, row["messages"][1]]}


def _evaluation_rows(facts: Sequence[Fact], max_questions: int) -> list[dict]:
    """One question a fact in an evaluation wording: mostly what it is for, some signatures, few reversed."""
    rows = []
    for fact in sorted(facts, key=lambda fact: _hash(fact.name, "evaluation"))[:max_questions]:
        kinds = kinds_of(fact)
        draw = _hash(fact.name, "kind") % 10
        kind = kinds[0]
        if draw < 2 and "signature" in kinds:
            kind = "signature"
        elif draw < 6 and "reverse" in kinds:
            kind = "reverse"
        choices = EVAL_WORDINGS[kind]
        rows.append(question_row(fact, kind, choices[_hash(fact.name, "wording") % len(choices)]))
    return rows


def _unknown_rows(names: Sequence[str], wordings: Sequence[str]) -> list[dict]:
    questions = {name: wordings[_hash(name) % len(wordings)].format(name=name) for name in names}
    return [_row(question, UNKNOWN, group="", name=name, kind="unknown") for name, question in questions.items()]


def _chat_rows(subject: str, num_rows: int) -> list[dict]:
    """Every chat pair, repeated until they are about 2 % of the rows."""
    pairs = [(said, answer.format(subject=subject)) for sayings, answer in CHATS for said in sayings]
    times = max(1, round(0.02 * num_rows / len(pairs)))
    return [_row(said, answer, group="", name="", kind="chat") for said, answer in pairs for _ in range(times)]


def _with_dialogues(rows: Sequence[dict]) -> list[dict]:
    """The rows, a fifth of them joined into conversations of two or three questions, so that a chat may go on."""
    joined = list(rows[: len(rows) // 5])
    singles = rows[len(joined) :]
    dialogues = []
    while joined:
        length = 2 + len(joined) % 2
        dialogues.append(_dialogue(joined[:length]))
        joined = joined[length:]
    return _shuffled([*singles, *dialogues])


def _dialogue(turns: Sequence[dict]) -> dict:
    messages = [message for turn in turns for message in turn["messages"]]
    names = " ".join(turn["name"] for turn in turns if turn["name"])
    return {**turns[-1], "messages": messages, "name": names, "kind": "dialogue"}


def invented_names(
    facts: Sequence[Fact], known: set[str], *, count: int, syllables: Sequence[Sequence[str]] = ()
) -> Iterator[str]:
    """Plausible names that do not exist: a real module with an invented word."""
    syllables = syllables or _SYLLABLES
    modules = sorted({fact.module for fact in facts if fact.kind not in _PAGE_KINDS})
    seen = set(known)
    for index in range(count if modules else 0):
        draw = _hash(str(index), "invented")
        word = "".join(parts[(draw >> 8 * place) % len(parts)] for place, parts in enumerate(syllables))
        name = f"{modules[(draw >> 24) % len(modules)]}.{word}"
        if name not in seen:
            seen.add(name)
            yield name


_SYLLABLES = (
    ("flo", "bri", "quo", "zan", "mer", "tul", "vop", "gri", "sna", "ple", "dro", "chi"),
    ("ble", "nix", "dorf", "mpify", "ster", "lux", "vate", "ndle", "gger", "rt"),
    ("", "", "_all", "_once", "s", "_name"),
)
_NEW_SYLLABLES = (
    ("wug", "kre", "yol", "dax", "hup", "jim", "nar", "ost", "rux", "spo", "tri", "umb"),
    ("bit", "cade", "fex", "kin", "lor", "mux", "pel", "sift", "tron", "zle"),
    ("", "", "_it", "_by", "er", "_two"),
)
"""Of which the evaluation's names are made: a refusal is to be of what is not known, not of a syllable."""


def _shuffled(rows: Sequence[dict]) -> list[dict]:
    """The rows in a fixed pseudo-random order."""
    return [rows[place] for place in sorted(range(len(rows)), key=lambda place: _hash("order", str(place)))]


def _hash(*parts: str) -> int:
    return int.from_bytes(blake2b("\0".join(parts).encode(), digest_size=7).digest())
