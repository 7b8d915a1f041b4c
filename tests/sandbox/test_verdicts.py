from __future__ import annotations

import pytest

from herd import sandbox
from herd.sandbox import Pool, Sandbox, run_many_tests, run_tests

ADD = "def add(a, b):\n    return a + b\n"
TESTS = "assert add(1, 2) == 3\nassert add(2, 2) == 4"


@pytest.fixture(scope="module")
def box():
    with Sandbox(sandbox.strongest()) as one:
        yield one


@pytest.mark.parametrize(
    ("code", "passed", "why"),
    [
        (ADD, True, "passed"),
        (ADD.replace("+", "-"), False, "AssertionError"),
        (ADD.replace("+", "+ undefined +"), False, "NameError: name 'undefined' is not defined"),
        ("1 +", False, "SyntaxError: invalid syntax"),
        ("def add(a, b):\n    while True: pass", False, "the limit"),
        (f"{ADD}import os; os._exit(0)", False, "it left before the end of its tests"),
        (f"{ADD}exit()", False, "it left before the end of its tests"),
        (f"{ADD}import os; os.abort()", False, "signal SIGABRT"),
        (f"{ADD}raise SystemExit(3)", False, "status 3"),
    ],
)  # fmt: skip
def test_a_verdict_says_why(code, passed, why, box):
    verdict = run_tests(code, TESTS, timeout=1, box=box)
    said = "the limit" if verdict.why in ("cpu", "time") else verdict.why  # a busy machine may meet the clock first
    assert (verdict.passed, said) == (passed, why)


def test_the_output_of_the_code_stays_its_own(box):
    assert run_tests(f"{ADD}print('said')", TESTS, box=box).result.stdout == "said\n"


def test_many_verdicts_come_in_their_order():
    with Pool(2, sandbox.strongest()) as pool:
        pairs = [(f"def f(): return {n}", f"assert f() % 3 == 0  # {n}") for n in range(9)]
        assert [verdict.passed for verdict in run_many_tests(pairs, pool=pool)] == [n % 3 == 0 for n in range(9)]
