"""Run a file of code (or `-`: standard input) in the sandbox, and say how strongly it was kept in.

The layers and how the run ended go to standard error, what the program wrote to standard output and error, with every
control character made visible. The exit status is 0 where the program ended by itself with 0, else 1.
"""

from __future__ import annotations

import sys
from pathlib import Path

from herd.config import settings
from herd.errors import DataError
from herd.sandbox import Limits
from herd.sandbox import run as run_code
from herd.sandbox.languages import LANGUAGES

_BY_SUFFIX = {Path(language.file).suffix: name for name, language in LANGUAGES.items()}


@settings
class SandboxSettings:
    """What to run, in which language, how strongly kept in."""

    path: Path
    """File of code, or `-` for standard input."""
    language: str | None = None
    """Language of the code; default: by the file's ending, Python for standard input."""
    level: str = "full"
    """What must be had: full, namespaces, landlock or limits (docs/sandbox.md)."""
    allow_weaker: bool = False
    """Run at the strongest level there is where `level` is not to be had."""
    seconds: float = 10.0
    """Limit of wall-clock and of processor time, in seconds."""
    memory_bytes: int = 1 << 30
    """Limit of memory of all its processes together, in bytes."""


def run(settings: SandboxSettings) -> int:
    """Run it and print what it wrote."""
    limits = Limits(settings.seconds, settings.seconds, settings.memory_bytes)
    code, language = _read(settings.path), settings.language or _BY_SUFFIX.get(settings.path.suffix, "python")
    result = run_code(code, language, limits=limits, level=settings.level, allow_weaker=settings.allow_weaker)
    print(f"level {result.level}: {', '.join(result.layers)}", file=sys.stderr)
    print(shown(result.stdout), end="")
    print(shown(result.stderr), end="", file=sys.stderr)
    files = f"; files: {', '.join(map(repr, result.files))}" if result.files else ""
    left_out = f"; left out: {result.left_out}" if result.left_out else ""
    ended = f"{result.why}, status {result.status}, {result.seconds:.2f} s{files}{left_out}"
    print(ended, file=sys.stderr)
    return 0 if result.ok else 1


def shown(text: str) -> str:
    """Text that a terminal may show: control characters are spelt out, so that none is obeyed."""
    return "".join(c if c.isprintable() or c in "\n\t" else ascii(c)[1:-1] for c in text)


def _read(path: Path) -> str:
    try:
        return sys.stdin.read() if str(path) == "-" else path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error}); expected a file of code in UTF-8") from None
