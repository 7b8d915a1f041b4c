"""Python for a model, in the sandbox: one session an answer, kept open from call to call."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from herd.errors import SandboxError
from herd.sandbox import Limits, Result, Session
from herd.sandbox.packages import chosen
from herd.sandbox.sandbox import checked_level
from herd.tokenizer.toolcalls import CODE_INTERPRETER
from herd.toolbox.errand import Errand, Failed, function, text_argument

_AT_ONCE = 4  # sessions; a box may take a gigabyte


class Interpreter:
    """Runs Python for the answers of a server; what one call defines the next one of the same answer can use.

    Raises:
        SandboxError: the sandbox's level is not to be had here.
        ConfigError: a package is not installed.
    """

    def __init__(
        self, *, level: str = "full", allow_weaker: bool = False, packages: Sequence[str] = (), seconds: float = 20.0
    ) -> None:
        self.level, self.packages = checked_level(level, allow_weaker), list(packages)
        chosen(self.packages)
        most = {"output_bytes": 200_000, "returned_bytes": 8 << 20, "disk_bytes": 256 << 20}
        self._limits = Limits(wall_seconds=seconds, cpu_seconds=seconds, **most)
        self._places = asyncio.Semaphore(_AT_ONCE)

    async def run(self, code: str, errand: Errand) -> Result:
        """Run a cell in the answer's session.

        Raises:
            Failed: the session could not be opened, or its process is gone.
        """
        async with self._places:
            return await asyncio.to_thread(self._run, code, errand)

    def _run(self, code: str, errand: Errand) -> Result:
        try:
            how: dict[str, Any] = {"packages": self.packages, "files": errand.given, "limits": self._limits}
            session = errand.kept(self, lambda: Session(self.level, **how))
            return session.run(code)
        except SandboxError as error:
            errand.forget(self)
            raise Failed(f"{error}; what was defined before is lost") from None


class Python:
    """`code_interpreter`: the name that Llama 3.1 knows it by."""

    def __init__(self, interpreter: Interpreter) -> None:
        self._interpreter = interpreter
        packages = ", ".join(interpreter.packages)
        can = "Runs Python code and gives what it prints" + (f"; {packages} can be imported" if packages else "")
        self.function = function(CODE_INTERPRETER, f"{can}. There is no network.", code="Python code")

    async def call(self, arguments: dict[str, Any], errand: Errand) -> str:
        """What came of the code, in the words that Llama 3.1 was taught: completed or failed, what was printed.

        Raises:
            Failed: it ended by an error or over a limit.
        """
        result = await self._interpreter.run(text_argument(arguments, "code"), errand)
        left = {**result.left_out, **dict.fromkeys(errand.made(result.files), "too large to hand over")}
        lines = ["completed" if result.ok else "failed"]
        for name, text in (("stdout", result.stdout), ("stderr", result.stderr)):
            if text.strip():
                lines.append(f"[{name}]{text.rstrip()}[/{name}]")
        if result.why != "ended":
            lines.append(f"ended by: {result.why}" + ("; what was defined is lost" if result.state_lost else ""))
        if result.files:
            lines.append(f"files: {', '.join(sorted(result.files))}")
        lines += [f"file left out: {name} ({why})" for name, why in sorted(left.items())]
        if not result.ok:
            raise Failed("\n".join(lines))
        return "\n".join(lines)
