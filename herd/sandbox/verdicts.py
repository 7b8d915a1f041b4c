"""`run_tests(code, tests, timeout) -> Verdict`: whether model-written code passes its unit tests, and why not."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from herd.sandbox.sandbox import Limits, Pool, Result, Sandbox, checked_limits, checked_text

_PATIENCE = 3  # wall-clock seconds per CPU second, so that a busy machine does not change verdicts


@dataclass(frozen=True)
class Verdict:
    """`why` is `passed`, the limit that was reached, the last line of the error, or that it ended before its tests."""

    passed: bool
    why: str
    result: Result


def run_tests(
    code: str, tests: str, timeout: float = 10.0, *, box: Sandbox | None = None, limits: Limits | None = None
) -> Verdict:
    """Run Python `code` and then `tests` in one program, which passes if it reaches the end of both.

    `timeout` is in seconds of CPU time, and three times that in wall-clock time. Without `box` a sandbox of the full
    level is opened; see `run_many_tests` for thousands. Code that ends before its tests (`exit()`) fails, but code that
    manipulates the tests in its own memory can pass: isolation does not prevent cheating.

    Raises:
        SandboxError: the box could not be set up, or its level is not available.
        ConfigError: code or tests are not strings, or a limit is invalid.
    """
    if box is None:
        with Sandbox() as box:
            return run_tests(code, tests, timeout, box=box, limits=limits)
    program, mark = _program(code, tests)
    return _verdict(box.run(program, limits=_limits(timeout, limits)), mark)


def run_many_tests(
    pairs: Iterable[tuple[str, str]], timeout: float = 10.0, *, pool: Pool, limits: Limits | None = None
) -> Iterator[Verdict]:
    """The verdicts of many (code, tests), in order, computed by all workers of the pool."""
    programs = [_program(code, tests) for code, tests in pairs]
    results = pool.map([program for program, _ in programs], limits=_limits(timeout, limits))
    return (_verdict(result, mark) for result, (_, mark) in zip(results, programs, strict=True))


def _program(code: str, tests: str) -> tuple[str, str]:
    checked_text("code", code)
    checked_text("tests", tests)
    mark = secrets.token_hex(16)
    return f"{code}\n\n{tests}\n\nimport os as _os\n_os.write(1, b'\\n{mark}')\n", mark


def _limits(timeout: float, limits: Limits | None) -> Limits:
    return replace(checked_limits(limits), cpu_seconds=timeout, wall_seconds=_PATIENCE * timeout)


def _verdict(result: Result, mark: str) -> Verdict:
    reached = mark in result.stdout
    result = replace(result, stdout=result.stdout.replace(f"\n{mark}", ""))
    if result.why != "ended":
        return Verdict(False, result.why, result)
    if result.status:
        lines = result.stderr.strip().splitlines()
        return Verdict(False, lines[-1] if lines else f"status {result.status}", result)
    return Verdict(reached, "passed" if reached else "it left before the end of its tests", result)
