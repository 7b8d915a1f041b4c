"""Rewards: functions from rows and what a model wrote to figures from 0 to 1, where 1 is right.

A reward is a name (`answer`, `checks`, `tests`, `sound`), or a Python file of the user's:

    def reward(row, answer):             # `row` is the prompt's row, `answer` the model's last message
        return float(row["answer"] in answer)

    def reply(row, messages):            # optional: what an environment says to an answer; None: it is over
        return None

`reward(row, answer, messages)` gets the whole conversation too, `reward.py:name` names another function.
"""

from __future__ import annotations

import importlib.util
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from herd.errors import ConfigError, DataError
from herd.evals.answers import question_text, reference_of, words_of
from herd.evals.checks import checked
from herd.evals.graders import code_of
from herd.evals.scorers import SCORERS
from herd.rollout.sample import Reply, Sample
from herd.sandbox import Pool, run_many_tests

Row = Mapping[str, Any]
Reward = Callable[[Sequence[Row], Sequence[Sample]], list[float]]
"""(a row for each sample, samples) -> figures from 0 to 1."""

RIGHT = 1 - 1e-6
"""From here on an answer counts as right."""
_REPEATED = 0.5  # share of an answer's 4-grams that have been there before, from which it is no sound answer


class Judge(NamedTuple):
    """A reward, and what its environment says between an answer and the next, where there is one."""

    reward: Reward
    reply: Reply | None = None


def open_reward(name: str, *, scorer: str = "number", sandbox: str = "full") -> Judge:
    """A reward by its name or from a user's file; `scorer` is for `answer`, `sandbox` the level for `tests`.

    Raises:
        ConfigError: there is no such reward, scorer, file or function.
    """
    if scorer not in SCORERS:
        raise ConfigError(f"no scorer `{scorer}`; there are: {', '.join(SCORERS)}")
    named: dict[str, Reward] = {
        "answer": partial(_answers, SCORERS[scorer]),
        "checks": _checks,
        "all_checks": _all_checks,
        "tests": partial(_tests, sandbox),
        "sound": _sound,
    }
    if name in named:
        return Judge(named[name])
    path, _, function = name.partition(".py:")
    file = Path(f"{path}.py" if function else name)
    if file.suffix != ".py":
        raise ConfigError(f"no reward `{name}`; there are: {', '.join(named)}, and Python files (my/reward.py)")
    module = _module(file)
    return Judge(_of_user(file, module, function or "reward"), getattr(module, "reply", None))


def _answers(
    scorer: Callable[[str, Sequence[str]], float], rows: Sequence[Row], samples: Sequence[Sample]
) -> list[float]:
    """The row's `answer` (one or several), as a scorer of the evaluations compares it."""
    return [scorer(sample.text, _references(row)) for row, sample in zip(rows, samples, strict=True)]


def _references(row: Row) -> list[str]:
    given = row.get("answer")
    if isinstance(given, list) and given:
        return [str(one) for one in given]
    found = reference_of(row) if given is None or isinstance(given, str) else str(given)
    if found is None:
        raise DataError(f"a row without an `answer` cannot be judged: {question_text(row)[:80]!r}")
    return [found]


def _checks(rows: Sequence[Row], samples: Sequence[Sample]) -> list[float]:
    """The share of the row's checks (IFEval's) that the answer passes."""
    found = [checked(sample.text, row) for row, sample in zip(rows, samples, strict=True)]
    return [sum(one) / len(one) for one in found]


def _all_checks(rows: Sequence[Row], samples: Sequence[Sample]) -> list[float]:
    """Whether the answer passes all of them."""
    return [float(share >= RIGHT) for share in _checks(rows, samples)]


def _tests(level: str, rows: Sequence[Row], samples: Sequence[Sample]) -> list[float]:
    """Whether the answer's code passes the row's `tests` in the sandbox."""
    if any(not isinstance(row.get("tests"), str) for row in rows):
        raise DataError("a row without `tests`, a text of Python that ends without an error if the code is right")
    pairs = [(code_of(sample.text), row["tests"]) for row, sample in zip(rows, samples, strict=True)]
    with Pool(level=level) as pool:
        return [float(one.passed) for one in run_many_tests(pairs, pool=pool)]


def _sound(rows: Sequence[Row], samples: Sequence[Sample]) -> list[float]:
    """Whether it is an answer at all: words, not mostly repetition, and not the question said again."""
    return [float(_is_sound(question_text(row), sample)) for row, sample in zip(rows, samples, strict=True)]


def _is_sound(question: str, sample: Sample) -> bool:
    said = words_of(sample.text)
    if not said or sample.repetition > _REPEATED:
        return False
    return len(said) < 4 or " ".join(said) not in " ".join(words_of(question))


def _module(file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"reward_{file.stem}", file) if file.is_file() else None
    if spec is None or spec.loader is None:
        raise ConfigError(f"{file}: no such file; a reward is a Python file with `def reward(row, answer)`")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever the user's file does
        raise ConfigError(f"{file}: cannot be loaded ({type(error).__name__}: {error})") from error
    return module


def _of_user(file: Path, module: ModuleType, name: str) -> Reward:
    function = getattr(module, name, None)
    if not callable(function):
        raise ConfigError(f"{file}: has no function `{name}`; expected `def {name}(row, answer)` giving 0 to 1")
    with_messages = len(inspect.signature(function).parameters) > 2

    def judge(rows: Sequence[Row], samples: Sequence[Sample]) -> list[float]:
        found = []
        for row, sample in zip(rows, samples, strict=True):
            given = (row, sample.text, sample.messages) if with_messages else (row, sample.text)
            try:
                value = float(function(*given))
            except Exception as error:
                raise DataError(
                    f"{file}:{name} failed on {sample.text[:80]!r} ({type(error).__name__}: {error})"
                ) from error
            if not math.isfinite(value) or not 0 <= value <= 1:
                raise DataError(f"{file}:{name} gave {value}; expected a figure from 0 to 1, where 1 is right")
            found.append(value)
        return found

    return judge
