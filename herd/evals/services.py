"""Calls over several turns that change the state of simulated services (BFCL), played in the sandbox.

The services, and the check of the states that they are left in, are those of the package `bfcl-eval`: a few files of
it, from where it is unpacked or installed. Nothing of it is imported here.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from herd.errors import DataError
from herd.evals.calls import Call, calls_of
from herd.evals.subject import Prompt, Subject, TooLong
from herd.evals.templates import list_of
from herd.sandbox import Limits, Session
from herd.types import Message, SamplingParams

MOST_STEPS = 20
"""Answers with calls in one turn; whoever goes on then has failed, as with the leaderboard."""

_PARTS = ("constants/executable_backend_config.py", "eval_checker/multi_turn_eval/**/*.py")
_COLUMNS = ("id", "initial_config", "involved_classes", "ground_truth")
LIMITS = Limits(wall_seconds=20.0, cpu_seconds=20.0, output_bytes=4 << 20)
"""Of one step's calls."""
_CELL = """
import json
from bfcl_eval.eval_checker.multi_turn_eval import multi_turn_checker, multi_turn_utils
entry, calls, truth = map(json.loads, ({entry!r}, {calls!r}, {truth!r}))
if truth is None:
    options = dict(long_context="long_context" in entry["id"])
    names = entry["initial_config"], entry["involved_classes"], "played", entry["id"]
    found = [multi_turn_utils.execute_multi_turn_func_call(step, *names, **options)[0] for step in calls][-1]
else:
    found = multi_turn_checker.multi_turn_checker(calls, truth, entry, "", "judged")
    found = [found["valid"], str(found.get("error_message", ""))]
print("\\n" + json.dumps(found))
"""


def services_folder(folder: Path) -> Path | None:
    """Where the package is: a folder somebody unpacked it in, or that of the installed one; None where neither is."""
    if (folder / "eval_checker" / "multi_turn_eval").is_dir():
        return folder
    spec = importlib.util.find_spec("bfcl_eval")
    places = [Path(place) for place in (spec.submodule_search_locations or ()) if spec] if spec else []
    return next((place for place in places if (place / "eval_checker" / "multi_turn_eval").is_dir()), None)


class Services:
    """A session of the sandbox in which conversations have their services, each its own.

    Where one is lost (a call that took too long), the others are played again up to where they were.
    """

    def __init__(self, folder: Path, level: str) -> None:
        found = [file for part in _PARTS for file in sorted(folder.glob(part))]
        files = {f"bfcl_eval/{file.relative_to(folder)}": file.read_bytes() for file in found}
        self._session = Session(level, packages=["mpmath"], files=files, limits=LIMITS)
        self._lost = 0  # how often everything was lost
        self._known: dict[str, int] = {}  # conversations whose services are up, and since which loss

    def __enter__(self) -> Services:
        return self

    def __exit__(self, *_: object) -> None:
        self._session.close()

    def call(self, row: Mapping[str, Any], before: Sequence[list[str]], calls: list[str]) -> list[str]:
        """What the services answer to a step's calls, after the steps before."""
        anew = self._known.get(row["id"]) != self._lost
        self._known[row["id"]] = self._lost
        found, why = self._run(row, [*before, calls] if anew else [calls], None)
        return [str(one) for one in found] if found is not None else [f"Error during execution: {why}"] * len(calls)

    def judge(self, row: Mapping[str, Any], turns: Sequence[Sequence[list[str]]]) -> tuple[bool, str]:
        """Whether all turns' calls lead to the states and answers of the right ones, and what is otherwise."""
        found, why = self._run(row, turns, row["ground_truth"])
        return (bool(found[0]), str(found[1])[:300]) if found is not None else (False, why)

    def _run(self, row: Mapping[str, Any], calls: Sequence[Any], truth: Any) -> tuple[Any, str]:
        texts = {"entry": {name: row[name] for name in _COLUMNS[:3]}, "calls": calls, "truth": truth}
        result = self._session.run(_CELL.format(**{name: json.dumps(value) for name, value in texts.items()}))
        self._lost += result.state_lost
        if result.ok:
            return json.loads(result.stdout.splitlines()[-1]), ""
        return None, result.stderr.strip().splitlines()[-1] if result.stderr.strip() else result.why


def written(call: Call) -> str:
    """A call as Python writes it."""
    name, arguments = call
    return f"{name}({', '.join(f'{key}={value!r}' for key, value in arguments.items())})"


@dataclass
class _Play:
    """One conversation under way."""

    row: Mapping[str, Any]
    talk: list[Message]
    later: list[str]  # what the user says in the turns after the first
    turns: list[list[list[str]]] = field(default_factory=list)  # the calls of each step of each turn
    ended: str = ""  # why it does not go on
    left_out: str = ""

    def step(self, text: str | TooLong, services: Services) -> bool:
        """Take an answer, make its calls and tell their results; whether there were any."""
        if isinstance(text, TooLong):
            self.left_out, self.ended = text.why if not any(self.turns) and len(self.turns) == 1 else "", text.why
            return False
        self.talk.append({"role": "assistant", "content": text})
        calls = [written(call) for call in calls_of(text)]
        if not calls:
            return False
        before = [step for turn in self.turns for step in turn]
        self.turns[-1].append(calls)
        told = [{"name": call, "content": one} for call, one in zip(calls, services.call(self.row, before, calls))]
        self.talk.append({"role": "user", "content": json.dumps(told)})
        return True

    def result(self, services: Services) -> dict[str, Any]:
        if self.left_out:
            return {"answer": "", "scores": {}, "left_out": self.left_out}
        right, why = (False, self.ended) if self.ended else services.judge(self.row, self.turns)
        answer = "\n".join(f"({n}) {'; '.join(map(str, steps)) or 'no call'}" for n, steps in enumerate(self.turns, 1))
        return {"answer": answer, "scores": {"calls": float(right)}} | ({"why": why} if why else {})


def played(
    task: Any, rows: Sequence[Mapping[str, Any]], prompts: Sequence[Prompt], subject: Subject, params: SamplingParams
) -> list[dict[str, Any]]:
    """Conversations in which each answer's calls are made and their results told, until an answer has none; then the
    user's next turn. Right is whose calls leave the services, after every turn, as the row's own would.

    Raises:
        DataError: a row has no services or no right calls.
    """
    for number, row in enumerate(rows, 1):
        if lacking := [name for name in _COLUMNS if name not in row]:
            raise DataError(f"{task.data}, question {number} of {task.name}: has no {', '.join(lacking)}")
    talks = [[*prompt] for prompt in prompts if not isinstance(prompt, str)]
    later = [[str(one) for one in list_of(task.turns, row)] for row in rows]
    plays = [_Play(row, talk, own) for row, talk, own in zip(rows, talks, later, strict=True)]
    with Services(task.services, task.sandbox) as services:
        for turn in range(1 + max(map(len, later), default=0)):
            going = [play for play in plays if turn <= len(play.later) and not play.ended]
            for play in going:
                play.turns.append([])
                play.talk += [{"role": "user", "content": play.later[turn - 1]}] if turn else []
            for _ in range(MOST_STEPS + 1):
                texts = subject.generate([play.talk for play in going], params) if going else []
                going = [play for play, text in zip(going, texts, strict=True) if play.step(text, services)]
            for play in going:
                play.ended = f"turn {turn + 1}: more than {MOST_STEPS} answers with calls"
        return [play.result(services) for play in plays]
