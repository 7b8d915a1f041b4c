"""A session in the supervisor: one interpreter that runs cell after cell and is frozen in between."""

from __future__ import annotations

import socket
import time
from pathlib import Path
from typing import Any

from herd.sandbox import frames
from herd.sandbox.files import Folder
from herd.sandbox.processes import Program, Setting

INTERPRETER = (Path(__file__).parent / "interpreter.py").read_text("utf-8")


def serve(channel: socket.socket, setting: Setting, folder: Folder) -> None:
    """Run cells until the client closes the channel; between cells nothing runs."""
    python = setting.job["steps"][0][0]
    program: Program | None = None
    while cell := frames.receive(channel):
        refused = folder.put(cell["files"])
        out = {"stdout": bytearray(), "stderr": bytearray()}
        if program is None:
            program = Program([python, "-s", "-B", "-c", INTERPRETER], setting, out, session=True)
        began = time.monotonic()
        kept = _one(program, cell, out)
        result: dict[str, Any] = {"status": program.status, "why": program.why, "seconds": time.monotonic() - began}
        files, left_out = folder.collect(cell["limits"]["returned_bytes"])
        streams = {name: bytes(data).decode("utf-8", "replace") for name, data in out.items()}
        program = program if kept else None
        result |= {"files": files, "left_out": {**left_out, **refused}, "state_lost": not kept}
        frames.send(channel, {**streams, **result})
    if program is not None:
        program.end()


def _one(program: Program, cell: dict[str, Any], out: dict[str, bytearray]) -> bool:
    """Run one cell; returns whether the session has kept its state."""
    program.begin_cell(cell["code"], cell["limits"], out)
    done = program.watch()
    if not done and program.why in ("time", "cpu", "output"):
        done = program.interrupt()
    if done and program.freeze():
        return True
    program.end()
    return False
