"""Running model-written code in isolation, without root or Docker, at a stated level of isolation.

`run(code, language, files, limits)` for one program, `Sandbox` for several, `Pool` for thousands; `run_tests` and
`run_many_tests` for code with unit tests; `Session` keeps its state from cell to cell. `sandbox.py` is the interface;
`warden.py` starts boxes, `box.py` sets one up, `processes.py` runs programs in it; `kernel.py`, `seccomp.py` and
`cgroup.py` are the system interfaces.
"""

from herd.sandbox.levels import LAYERS, LEVELS, available, strongest
from herd.sandbox.sandbox import Limits, Pool, Result, Sandbox, run
from herd.sandbox.session import Session
from herd.sandbox.verdicts import Verdict, run_many_tests, run_tests

__all__ = [
    "LAYERS", "LEVELS", "Limits", "Pool", "Result", "Sandbox", "Session", "Verdict", "available", "run",
    "run_many_tests", "run_tests", "strongest",
]  # fmt: skip
