"""Graders: scorers that need the whole question, or much work at once; by name in one table."""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, Protocol

from herd.curate.filters.language import language
from herd.errors import ConfigError
from herd.evals.calls import calls_of, right_calls
from herd.evals.checks import checked
from herd.evals.scorers import best_f1, bleu, chrf, exact_words, fresh, fresh_by_eighth
from herd.evals.templates import expression_of, render, value_of
from herd.log import say
from herd.sandbox import Pool, run_many_tests

Grades = dict[str, Any]
"""Scores of one answer by metric: a figure from 0 to 1, or a list of them, one for each part that counts alone; the
first decides. `why` is no score, but what to tell of it."""


class Question(Protocol):
    """What a grader reads of a question (`herd.evals.task.Item`)."""

    @property
    def row(self) -> Mapping[str, Any]: ...


Grader = Callable[[Any, Sequence[Question], Sequence[str]], list[Grades]]
"""(task, questions, answers) -> grades, in their order."""

_FENCE = re.compile(r"```[\w+#]*\n(.*?)(?:```|\Z)", re.DOTALL)


def program(task: Any, questions: Sequence[Question], answers: Sequence[str]) -> list[Grades]:
    """Run the task's `program` around each answer's code, and then its `tests`, in the sandbox: all must be reached.

    Source: Chen et al. 2021 (HumanEval), functional correctness.
    """
    rows = [{**one.row, "answer": code_of(text)} for one, text in zip(questions, answers, strict=True)]
    pairs = [(render(task.program, row), render(task.tests, row)) for row in rows]
    with Pool(level=task.sandbox) as pool:
        if task.language == "python":
            verdicts = list(run_many_tests(pairs, pool=pool))
            return [{"program": float(one.passed), "why": one.why} for one in verdicts]
        results = list(pool.map([f"{code}\n{tests}" for code, tests in pairs], task.language))
    return [{"program": float(one.ok), "why": one.stderr[-200:] if one.why == "ended" else one.why} for one in results]


def squad(task: Any, questions: Sequence[Question], answers: Sequence[str]) -> list[Grades]:
    """The same words as a right answer, and words in common with the nearest. Source: Rajpurkar et al. 2016."""
    grades = []
    for question, answer in zip(questions, answers, strict=True):
        right = value_of(task.answer, question.row)
        right = [str(one) for one in right] if isinstance(right, list) else [str(right)]
        text = answer.strip()
        grades.append({"exact_words": exact_words(text, right), "token_f1": best_f1(text, right)})
    return grades


def code_of(answer: str) -> str:
    """The first fenced block of an answer, else all of it."""
    fenced = _FENCE.search(answer)
    return fenced[1] if fenced else answer


def calls(task: Any, questions: Sequence[Question], answers: Sequence[str]) -> list[Grades]:
    """The answer's function calls are the expected ones (`answer`), under the schemas of `functions`."""
    grades = []
    for question, answer in zip(questions, answers, strict=True):
        expected = value_of(task.answer, question.row)
        functions = expression_of(task.functions, question.row) if task.functions else []
        made = calls_of(answer)
        named = not isinstance(expected, str) and [name for name, _ in made] == [next(iter(one)) for one in expected]
        right = right_calls(made, expected, functions)
        grades.append({"calls": float(right), "functions": float(right or named)})
    return grades


def ifeval(task: Any, questions: Sequence[Question], answers: Sequence[str]) -> list[Grades]:
    """Instructions that code can check, by the checkers of lm-evaluation-harness (extra `eval`).

    Source: Zhou et al. 2023 (IFEval); the figure of the paper is the mean of the four.
    """
    checkers = _ifeval_checkers()
    grades = []
    for question, answer in zip(questions, answers, strict=True):
        columns = ("prompt", "instruction_id_list", "kwargs")
        asked = SimpleNamespace(**{name: question.row[name] for name in columns})
        strict = checkers.test_instruction_following_strict(asked, answer).follow_instruction_list
        loose = checkers.test_instruction_following_loose(asked, answer).follow_instruction_list
        shares = [float(all(strict)), float(all(loose)), sum(strict) / len(strict), sum(loose) / len(loose)]
        grades.append(
            {
                "ifeval": sum(shares) / 4,
                "prompt_strict": shares[0],
                "prompt_loose": shares[1],
                "instruction_strict": [float(one) for one in strict],
                "instruction_loose": [float(one) for one in loose],
            }
        )
    return grades


def rules(task: Any, questions: Sequence[Question], answers: Sequence[str]) -> list[Grades]:
    """The share of a system prompt's rules that an answer keeps to, strictly; rules are IFEval's instructions."""
    grades = ifeval(task, questions, answers)
    return [{"adherence": sum(one["instruction_strict"]) / len(one["instruction_strict"])} for one in grades]


def repetition(task: Any, questions: Sequence[Question], answers: Sequence[str]) -> list[Grades]:
    """How much of an answer is new, and of each eighth of it (`herd.evals.scorers.fresh`)."""
    return [
        {"fresh": fresh(text, ())} | {f"fresh {n}/8": value for n, value in enumerate(fresh_by_eighth(text), 1)}
        for text in answers
    ]


def translation(task: Any, questions: Sequence[Question], answers: Sequence[str]) -> list[Grades]:
    """chrF and BLEU of each sentence, and whether the answer is in the language that was asked for."""
    grades = []
    for question, answer in zip(questions, answers, strict=True):
        right = [str(value_of(task.answer, question.row))]
        text, wanted = answer.strip(), render(task.output_language, question.row)
        found, _ = language(text)
        grade: Grades = {"chrf": chrf(text, right), "bleu": bleu(text, right), "language": float(found == wanted)}
        grades.append(grade | {"why": f"in {found or 'no language'}, wanted {wanted}"})
    return grades


def checks(task: Any, questions: Sequence[Question], answers: Sequence[str]) -> list[Grades]:
    """Instructions that code can check, by Herd's own checkers: all of a row's hold, and each for itself."""
    grades = []
    for question, answer in zip(questions, answers, strict=True):
        found = [float(one) for one in checked(answer, question.row)]
        grades.append({"checks": float(all(found)), "each": found})
    return grades


def _ifeval_checkers() -> Any:
    before = os.environ.get("LOCAL_RANK")
    os.environ["LOCAL_RANK"] = "1"  # else the import fetches data for NLTK from the network
    try:
        checkers = importlib.import_module("lm_eval.tasks.ifeval.utils")
        library: Any = importlib.import_module("lm_eval.tasks.ifeval.instructions_util")
        importlib.import_module("langdetect").DetectorFactory.seed = 0  # it draws at random otherwise
    except ImportError as error:
        raise ConfigError(f"IFEval's checkers are lm-evaluation-harness's ({error}): pip install '.[eval]'") from None
    finally:
        os.environ.pop("LOCAL_RANK") if before is None else os.environ.update(LOCAL_RANK=before)
    try:
        library.count_sentences("One. Two.")
    except LookupError:
        say("  IFEval: NLTK's sentence model (punkt_tab) is not here; sentences are counted at . ! ? instead")
        library.count_sentences = lambda text: len(
            re.findall(r"[^.!?\s][^.!?]*[.!?]+(?=\s|$)|\S[^.!?]*$", text.strip())
        )
    return checkers


GRADERS: Mapping[str, Grader] = {
    "program": program,
    "calls": calls,
    "checks": checks,
    "ifeval": ifeval,
    "squad": squad,
    "rules": rules,
    "repetition": repetition,
    "translation": translation,
}
"""What `scorer:` of a task may name beside `herd.evals.scorers.SCORERS`."""
