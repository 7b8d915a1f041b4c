"""Where model code runs: isolated without root or Docker, at a level that says how strong it is.

`run(code, language, files, limits)` for one piece, `Sandbox` for several, `Pool` for thousands; `run_tests` and
`run_many_tests` for code with unit tests; `Session` keeps its state from cell to cell. `sandbox.py` is the way in;
`warden.py` starts boxes, `box.py` is one, `processes.py` what runs in it; `kernel.py`, `seccomp.py` and `cgroup.py`
are what they are made of.
"""

from herd.sandbox.levels import LAYERS, LEVELS, available, strongest
from herd.sandbox.sandbox import Limits, Pool, Result, Sandbox, run
from herd.sandbox.session import Session
from herd.sandbox.verdicts import Verdict, run_many_tests, run_tests

__all__ = [
    "LAYERS", "LEVELS", "Limits", "Pool", "Result", "Sandbox", "Session", "Verdict", "available", "run",
    "run_many_tests", "run_tests", "strongest",
]  # fmt: skip
