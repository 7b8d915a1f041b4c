"""Where model code runs: isolated without root or Docker, at a level that says how strong it is.

`run(code, language, files, limits)` for one piece, `Sandbox` for several, `Pool` for thousands. `sandbox.py` is the way
in; `warden.py` starts boxes, `box.py` is one; `kernel.py` and `seccomp.py` are what they are made of.
"""

from herd.sandbox.levels import LAYERS, LEVELS, available, strongest
from herd.sandbox.sandbox import Limits, Pool, Result, Sandbox, run

__all__ = ["LAYERS", "LEVELS", "Limits", "Pool", "Result", "Sandbox", "available", "run", "strongest"]
