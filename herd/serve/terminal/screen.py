"""How texts look in a terminal."""

from __future__ import annotations

import os
import re
import sys

BOLD, DIM = "\x1b[1m", "\x1b[2m"
_PLAIN = "\x1b[0m"
_CODES = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # what a terminal obeys and does not show


def styled(code: str, text: str) -> str:
    """A text in bold or dim where the terminal can, and nobody has asked for plain ones (https://no-color.org)."""
    is_plain = os.environ.get("NO_COLOR") or os.environ.get("TERM", "dumb") == "dumb" or not sys.stdout.isatty()
    return text if is_plain else f"{code}{text}{_PLAIN}"


def shown(text: str) -> str:
    """What a model or a server said, without the codes that would move the cursor, or worse."""
    return _CODES.sub("\N{REPLACEMENT CHARACTER}", text.replace("\r", ""))
