"""Graders: scorers that need the whole question, or much work at once; by name in one table."""

from __future__ import annotations

import importlib
import os
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, Protocol

from herd.errors import ConfigError
from herd.evals.calls import calls_of, right_calls
from herd.evals.templates import expression_of, render, value_of
from herd.log import say
from herd.sandbox.sandbox import Pool

Grades = dict[str, Any]
"""Scores of one answer by metric: a figure from 0 to 1, or a list of them, one for each part that counts alone."""


class Question(Protocol):
    """What a grader reads of a question (`herd.evals.task.Item`)."""

    @property
    def row(self) -> Mapping[str, Any]: ...


Grader = Callable[[Any, Sequence[Question], Sequence[str]], list[Grades]]
"""(task, questions, answers) -> grades, in their order. The first metric decides between models."""

_FENCE = re.compile(r"```[\w+#]*\n(.*?)(?:```|\Z)", re.DOTALL)


def program(task: Any, questions: Sequence[Question], answers: Sequence[str]) -> list[Grades]:
    """Run the task's `program` around each answer's code in the sandbox: it must reach its end.

    Source: Chen et al. 2021 (HumanEval), functional correctness.
    """
    mark = secrets.token_hex(8)  # an answer that ends the program early does not print it
    closing = f"\nprint({mark!r})\n" if task.language == "python" else ""
    programs = [
        render(task.program, {**question.row, "answer": code_of(answer)}) + closing
        for question, answer in zip(questions, answers, strict=True)
    ]
    with Pool(level=task.sandbox) as pool:
        results = list(pool.map(programs, task.language))
    passed = [one.ok and (not closing or one.stdout.rstrip().endswith(mark)) for one in results]
    return [{"program": float(one)} for one in passed]


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
        asked = SimpleNamespace(**{name: question.row[name] for name in ("prompt", "instruction_id_list", "kwargs")})
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


def _ifeval_checkers() -> Any:
    before = os.environ.get("LOCAL_RANK")
    os.environ["LOCAL_RANK"] = "1"  # else the import fetches data for NLTK from the network
    try:
        checkers = importlib.import_module("lm_eval.tasks.ifeval.utils")
        library: Any = importlib.import_module("lm_eval.tasks.ifeval.instructions_util")
        importlib.import_module("langdetect").DetectorFactory.seed = 0  # it draws at random otherwise
    except ImportError as error:
        raise ConfigError(
            f"IFEval's checkers are lm-evaluation-harness's ({error}): pip install 'herd-lm[eval]'"
        ) from None
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


GRADERS: Mapping[str, Grader] = {"program": program, "calls": calls, "ifeval": ifeval}
"""What `scorer:` of a task may name beside `herd.evals.scorers.SCORERS`."""
