"""Shield: what is insecure in code, by file, line and CWE: files, folders, answers (Markdown), or standard input (`-`).

The exit status is 1 where something was found that `fail` counts.
"""

from __future__ import annotations

import json as json_format
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from herd.config import settings
from herd.errors import DataError
from herd.log import say
from herd.safety.shield import SEVERITIES, Finding, Shield
from herd.safety.source import language_of

_ANSWERS = {".md", ".markdown", ".txt"}
_PASSED_OVER = {".git", "node_modules", "__pycache__", ".venv"}
_LARGEST = 2_000_000  # bytes of a file


@settings
class ShieldSettings:
    """What is scanned, and what is told."""

    path: list[Path]
    """Files and folders; `-` reads standard input."""
    language: str | None = None
    """Take everything for this language; by a file's name or a block's fence when not given."""
    least: Literal["block", "warn", "note"] = "warn"
    """The mildest that is told: block, warn, or note."""
    fail: Literal["block", "warn", "never"] = "block"
    """From which on the exit status is 1."""
    rules: Path | None = None
    """YAML file of your own rules, beside the shipped ones; those of the same names are replaced."""
    json: bool = False
    """Print JSON."""

    def __post_init__(self) -> None:
        if not self.path:
            raise ValueError("path: name a file or a folder, or - for standard input")


def run(settings: ShieldSettings) -> int:
    """Print what was found; 1 where something counts.

    Raises:
        ConfigError: the rules or the language cannot be read.
        DataError: a file is missing.
    """
    shield = Shield(settings.rules)
    found: list[tuple[str, Finding]] = []
    scanned = passed = 0
    for name, text in _texts(settings.path):
        if text is None or not (settings.language or _is_read(name)):
            passed += 1
            continue
        scanned += 1
        found += [(name, one) for one in _scanned(shield, name, text, settings)]
    told = [(name, one) for name, one in found if SEVERITIES.index(one.severity) <= SEVERITIES.index(settings.least)]
    if settings.json:
        print(json_format.dumps([{"file": name, **vars(one)} for name, one in told], indent=1, ensure_ascii=False))
    else:
        for name, one in told:
            print(f"{name}:{one.line}: {one.severity} {one.cwe}: {one.says} ({one.rule})\n    {one.text}")
    counts = Counter(one.severity for _, one in found)
    left = f"; {passed:,} files of no known language, or larger than 2 MB, passed over" if passed else ""
    say(f"{scanned:,} files scanned: {', '.join(f'{counts[name]:,} to {name}' for name in SEVERITIES)}{left}")
    return int(settings.fail != "never" and any(one.severity in _failing(settings.fail) for _, one in found))


def _failing(fail: str) -> tuple[str, ...]:
    return SEVERITIES[: SEVERITIES.index(fail) + 1]


def _texts(paths: list[Path]) -> Iterator[tuple[str, str | None]]:
    """Names and texts of files; None for one that is not read."""
    for path in paths:
        if str(path) == "-":
            yield "-", sys.stdin.read()
        elif path.is_dir():
            for file in sorted(path.rglob("*")):
                if file.is_file() and not _PASSED_OVER & set(file.parts):
                    yield str(file), _text(file) if _is_read(file.name) else None
        elif path.is_file():
            yield str(path), _text(path)
        else:
            raise DataError(f"{path}: no such file or folder")


def _text(file: Path) -> str | None:
    try:
        if file.stat().st_size > _LARGEST:
            return None
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error})") from None


def _is_read(name: str) -> bool:
    return name == "-" or Path(name).suffix in _ANSWERS or language_of(Path(name).name) is not None


def _scanned(shield: Shield, name: str, text: str, settings: ShieldSettings) -> list[Finding]:
    """A file of code as such, a text as an answer."""
    if settings.language:
        return shield.scan(text, settings.language)
    known = language_of(Path(name).name) if name != "-" and Path(name).suffix not in _ANSWERS else None
    return shield.scan(text, known) if known else shield.answer(text)
