"""HumanEval and MBPP in the sandbox: canonical solutions pass, single mutations fail, survivors are looked into.

    python benchmarks/sandbox_mutations.py ../shared/data

A mutation changes one operator, comparison, constant or `not` of a solution, chosen by a seed and the task's name. For
a mutant that its tests let live, inputs near those of the tests are tried on both programs, inside the sandbox: where
the two differ the tests are weak, and the input is named; where no input was found, a reason by hand stands in REASONS.
"""

from __future__ import annotations

import argparse
import ast
import gzip
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.curate_extraction import commit, machine  # noqa: E402
from herd.sandbox import Limits, Pool, run_many_tests, strongest  # noqa: E402

SEED = 0
_COMPARISONS = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
}  # fmt: skip
_OPERATORS = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv, ast.Pow: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.BitXor: ast.BitAnd,
    ast.LShift: ast.RShift, ast.RShift: ast.LShift,
}  # fmt: skip

REASONS = {
    "HumanEval/114": "equivalent: a sum of whole numbers below 1 and not below 0 is 0, and is set to 0",
    "HumanEval/154": "equivalent: pat has twice the length l, so j - l is j + l for j < l; j = l repeats j = 0",
    "MBPP/31": "equivalent: counts grow by 2 from 1, which keeps their order, and only the order is used",
    "MBPP/67": "equivalent: one more row that is never read",
    "MBPP/188": "equivalent: for i = n + 1 the condition i * i < n + 1 is false",
    "MBPP/189": "equivalent: what is 1 is set to 1",
    "MBPP/227": "equivalent: where a = b the next branch gives b, the same number",
    "MBPP/521": "equivalent: the operators bind tighter than !=, and y & y and y | y are both y",
    "MBPP/607": "equivalent: the parameter of the same name hides the text that was changed",
    "MBPP/672": "equivalent: where num2 = num3 the last branch gives num3, the same number",
    "MBPP/714": "equivalent: differs only for n = p * p, where the loop counts 1 and the line after it does too",
    "MBPP/818": "equivalent: one character is at most 'zx' exactly when it is at most 'z'",
    "MBPP/849": "equivalent: one more element that is never read",
    "MBPP/850": "equivalent: where a + b = c = 90, b + c >= a or a + c >= b, since the two sum to 3 * 90",
    "MBPP/870": "equivalent: a 0 more in a sum",
    "MBPP/899": "equivalent: g is never 1, as arr[i] - arr[i] < 0 never holds",
    "MBPP/924": "equivalent: where x = y both branches give the same number",
    "MBPP/940": "equivalent: a sift from beyond the end does nothing",
}
"""Mutants that no input was found for: why they are equivalent."""

INPUTS = {
    "HumanEval/19": ("seven six",), "HumanEval/64": ("x",), "HumanEval/124": ("12-00-2000",), "MBPP/123": ("a",),
    "MBPP/133": ([0.5, -1],), "MBPP/559": ([0.5], 1),
}  # fmt: skip
"""Inputs by hand, tried first."""


@dataclass(frozen=True)
class Problem:
    """One task: `code` is a whole program, of which the lines after `num_given` are the solution."""

    name: str
    code: str
    tests: str
    function: str
    num_given: int = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="the folder of shared data")
    parser.add_argument("--every", type=int, default=1, help="every n-th task")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/sandbox_mutations.json")
    words = parser.parse_args()
    found = {"machine": machine(), "commit": commit(), "date": time.strftime("%Y-%m-%d"), "seed": SEED}
    sets = {"HumanEval": humaneval(words.data), "MBPP": mbpp(words.data)}
    with Pool(level=strongest()) as pool:
        found["level"] = strongest()
        found["sets"] = {name: judged(problems[:: words.every], pool) for name, problems in sets.items()}
    words.out.write_text(json.dumps(found, indent=1) + "\n")
    for name, one in found["sets"].items():
        print(name, {key: len(value) if isinstance(value, dict) else value for key, value in one.items()})


def humaneval(data: Path) -> list[Problem]:
    """Every task of HumanEval."""
    return [
        Problem(
            row["task_id"],
            row["prompt"] + row["canonical_solution"],
            f"{row['test']}\ncheck({row['entry_point']})",
            row["entry_point"],
            row["prompt"].count("\n"),
        )
        for row in _rows(data / "bench-humaneval/HumanEval.jsonl.gz")
    ]


def mbpp(data: Path) -> list[Problem]:
    """Every task of MBPP that is there."""
    return [
        Problem(
            f"MBPP/{row['task_id']}",
            row["code"],
            "\n".join([row["test_setup_code"], *row["test_list"], *row["challenge_test_list"]]),
            _tested(row["code"], row["test_list"]),
        )
        for row in _rows(data / "bench-mbpp/mbpp.jsonl.gz")
    ]


def judged(problems: list[Problem], pool: Pool) -> dict:
    """How the canonical solutions and one mutant of each that passes did."""
    began = time.perf_counter()
    canonical = list(run_many_tests(((one.code, one.tests) for one in problems), 10, pool=pool))
    broken = {one.name: told.why for one, told in zip(problems, canonical, strict=True) if not told.passed}
    sound = [one for one in problems if one.name not in broken]
    mutants = {one.name: mutated(one) for one in sound}
    able = [one for one in sound if mutants[one.name]]
    verdicts = list(run_many_tests(((mutants[one.name][0], one.tests) for one in able), 5, pool=pool))
    alive = [one for one, told in zip(able, verdicts, strict=True) if told.passed]
    seconds = time.perf_counter() - began
    probes = pool.map([probe(one, mutants[one.name][0]) for one in alive], limits=Limits(60, 30))
    survivors = {}
    for one, result in zip(alive, probes, strict=True):
        difference = result.stdout.partition("\nDIFFERENCE ")[2].strip()
        told = f"weak tests: {difference}" if difference else REASONS.get(one.name, "no difference found")
        survivors[one.name] = {"change": mutants[one.name][1], "finding": told}
        survivors[one.name] |= {} if difference or result.ok else {"probe": result.why + " " + result.stderr[-200:]}
    return {
        "tasks": len(problems),
        "canonical_passed": len(sound),
        "broken": broken,
        "without_a_site": {one.name: "nothing to mutate" for one in sound if not mutants[one.name]},
        "mutants": len(able),
        "mutants_failed": len(able) - len(alive),
        "why_failed": dict(Counter(told.why.partition(":")[0] for told in verdicts if not told.passed)),
        "survivors": survivors,
        "runs_per_second": round((len(problems) + len(able)) / seconds, 1),
    }


# ---- mutation --------------------------------------------------------------------------------------------------------


def mutated(problem: Problem) -> tuple[str, str] | None:
    """The program with one change, and the changed line before and after; None where there is nothing to change."""
    tree = ast.parse(problem.code)
    sites = list(_sites(tree, problem.num_given))
    if not sites:
        return None
    before = ast.unparse(tree).splitlines()
    random.Random(f"{SEED} {problem.name}").choice(sites)()
    after = ast.unparse(tree)
    changed = next((pair for pair in zip(before, after.splitlines(), strict=False) if pair[0] != pair[1]), ("?", "?"))
    return after, f"{changed[0].strip()} -> {changed[1].strip()}"


def _sites(tree: ast.AST, num_given: int) -> Iterator[Callable[[], None]]:
    """Every change that can be made."""
    left_alone = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.arg | ast.FunctionDef | ast.AnnAssign):
            notes = [getattr(node, "annotation", None), getattr(node, "returns", None)]
            left_alone |= {id(inner) for note in notes if note for inner in ast.walk(note)}
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            left_alone.add(id(node.value))  # a docstring
    for node in ast.walk(tree):
        if id(node) in left_alone or getattr(node, "lineno", 0) <= num_given:
            continue
        if isinstance(node, ast.Compare):
            for at, op in enumerate(node.ops):
                yield _set_item(node.ops, at, _COMPARISONS[type(op)]())
        elif isinstance(node, ast.BinOp | ast.AugAssign) and type(node.op) in _OPERATORS:
            yield _set_field(node, "op", _OPERATORS[type(node.op)]())
        elif isinstance(node, ast.BoolOp):
            yield _set_field(node, "op", ast.Or() if isinstance(node.op, ast.And) else ast.And())
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            yield _set_field(node, "op", ast.UAdd())
        elif isinstance(node, ast.Constant) and isinstance(node.value, bool | int | float | str):
            yield _set_field(node, "value", _other(node.value))
        elif isinstance(node, ast.Return) and node.value is not None:
            yield _set_field(node, "value", ast.Constant(None))


def _other(value: bool | float | str) -> bool | float | str:
    if isinstance(value, bool):
        return not value
    return value + "x" if isinstance(value, str) else value + 1


def _set_field(node: ast.AST, field: str, value: object) -> Callable[[], None]:
    return lambda: setattr(node, field, value)


def _set_item(items: list, at: int, value: object) -> Callable[[], None]:
    return lambda: items.__setitem__(at, value)


def _tested(code: str, tests: list[str]) -> str:
    """The function of the code that the tests call."""
    defined = {node.name for node in ast.walk(ast.parse(code)) if isinstance(node, ast.FunctionDef)}
    called = [n.id for test in tests for n in ast.walk(ast.parse(test)) if isinstance(n, ast.Name) and n.id in defined]
    return called[0] if called else ""


# ---- survivors -------------------------------------------------------------------------------------------------------

_PROBE = """
import copy, random, signal
ORIGINAL, MUTANT, TESTS, FUNCTION, HAND = {parts!r}
class TooLong(Exception): pass
def late(*_): raise TooLong
signal.signal(signal.SIGALRM, late)
spaces = []
for code in (ORIGINAL, MUTANT):
    space = {{"__name__": "probe"}}
    exec(code, space)
    spaces.append(space)
right, wrong = (space[FUNCTION] for space in spaces)
seen = []
def recorder(*args):
    seen.append(copy.deepcopy(args))
    return right(*args)
exec(TESTS, {{**spaces[0], FUNCTION: recorder}})
def outcome(function, args):
    signal.setitimer(signal.ITIMER_REAL, 0.5)
    try: return repr(function(*copy.deepcopy(args)))
    except TooLong: return "does not end"
    except Exception as error: return "raises " + type(error).__name__
    finally: signal.setitimer(signal.ITIMER_REAL, 0)
dice = random.Random(0)
def near(x):
    if isinstance(x, bool): return not x
    if isinstance(x, int):
        return dice.choice([x + 1, x - 1, x + 2, x * 2, x // 2, 0, 1, 2, 3, -x, x + 10, dice.randrange(200)])
    if isinstance(x, float): return dice.choice([x + 1, x - 1, x * 2, x / 2, -x, 0.0, round(x), x + 0.5])
    if isinstance(x, str):
        at = dice.randrange(len(x) + 1)
        one = dice.choice(x or "a")
        new = dice.choice("abzAZ 019.,_-()[]<>")
        return dice.choice([x[:at] + x[at + 1:], x[:at] + one + x[at:], x[:at] + new + x[at:], x.swapcase(), x[::-1],
                            x + x, "", x[:at], x[at:]])
    if isinstance(x, (list, tuple)):
        items = list(x)
        at = dice.randrange(len(items) + 1)
        way = dice.randrange(8)
        if way < 4 and items: items[at - 1] = near(items[at - 1])
        elif way == 4: del items[at:at + 1]
        elif way == 5 and items: items.insert(at, copy.deepcopy(dice.choice(items)))
        elif way == 6: items.reverse()
        elif items: items = items[:at]
        return type(x)(items)
    if isinstance(x, dict):
        items = [[near(k) if dice.random() < 0.2 else k, near(v) if dice.random() < 0.5 else v] for k, v in x.items()]
        return dict(items[: dice.randrange(len(items) + 1)] if dice.random() < 0.2 else items)
    return x
tried = 0
import time
end = time.monotonic() + 20
while seen and tried < 20000 and time.monotonic() < end:
    args = copy.deepcopy(dice.choice(seen)) if tried or HAND is None else HAND
    for _ in range(dice.choice([1, 1, 2, 3]) if tried or HAND is None else 0):
        at = dice.randrange(len(args)) if args else 0
        try: args = tuple(near(a) if i == at else a for i, a in enumerate(args))
        except TypeError: pass
    tried += 1
    first = outcome(right, args)
    if first.startswith("raises") or first == "does not end" or len(repr(args)) > 300: continue
    second = outcome(wrong, args)
    if first != second:
        shown = ", ".join(map(repr, args))
        print(f"\\nDIFFERENCE {{FUNCTION}}({{shown}}) is {{first[:100]}}, the mutant's {{second[:100]}}")
        break
else:
    print("tried", tried)
"""


def probe(problem: Problem, mutant: str) -> str:
    """A program that looks for an input on which the two differ."""
    return _PROBE.format(parts=(problem.code, mutant, problem.tests, problem.function, INPUTS.get(problem.name)))


def _rows(path: Path) -> list[dict]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


if __name__ == "__main__":
    main()
