"""Check a text's facts against an index that `herd index` made: each sentence supported, contradicted or not found.

`herd check notes.index answer.txt`; the text itself in quotation marks works too. Each verdict comes with its passage.
"""

from __future__ import annotations

import json as json_format
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import ClassVar

from herd.config import settings
from herd.errors import DataError
from herd.knowledge.checking import Checked, check
from herd.knowledge.index import Index
from herd.log import say

_LONGEST_NAME = 255


@settings
class CheckSettings:
    """What to check, and against what."""

    bare_words: ClassVar = ("path", "text")

    path: Path
    """Folder of the index."""
    text: str
    """The text, or a file that contains it."""
    limit: int = 5
    """Passages that each sentence is compared with."""
    json: bool = False
    """Print one JSON object."""

    def __post_init__(self) -> None:
        if self.limit < 1:
            raise ValueError("limit: expected 1 or more")


def run(settings: CheckSettings) -> None:
    """Print each sentence with its verdict.

    Raises:
        DataError: there is no index, or it is damaged; the file is not text.
    """
    checked = check(_read(settings.text), Index(settings.path), limit=settings.limit)
    if settings.json:
        print(json_format.dumps([asdict(one) for one in checked], ensure_ascii=False, indent=1))
        return
    print("\n".join(map(_line, checked)))
    counts = Counter(one.verdict for one in checked)
    say(", ".join(f"{counts[name]} {name}" for name in ("supported", "contradicted", "not found")))


def _read(text: str) -> str:
    file = Path(text) if len(text) <= _LONGEST_NAME and "\n" not in text else None
    if file is None or not file.is_file():
        return text
    try:
        return file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read as text ({error})") from None


def _line(one: Checked) -> str:
    why = f" ({', '.join(one.differs)})" if one.differs else ""
    head = f"{one.verdict}{why}: {one.sentence}"
    return head if one.passage is None else f'{head}\n    {one.passage.source}: "{one.quote}"'
