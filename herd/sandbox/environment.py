"""The Python environment that code sees: the running interpreter's library, and the packages that were chosen."""

from __future__ import annotations

import os
import sys

SITE = f"lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages"
INSIDE = "/python"  # where it stands in a box that has a root of its own


def lay(folder: str, python: str) -> None:
    """Make `folder` a virtual environment of `python` with nothing in it; its own packages are out of sight."""
    os.makedirs(f"{folder}/bin", exist_ok=True)
    os.makedirs(f"{folder}/{SITE}", exist_ok=True)
    os.symlink(python, f"{folder}/bin/python")
    with open(f"{folder}/pyvenv.cfg", "w", encoding="utf-8") as file:
        file.write(f"home = {os.path.dirname(python)}\ninclude-system-site-packages = false\n")
