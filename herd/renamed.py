"""What had another name in an earlier version: the old name is refused in one sentence that gives the new one."""

from __future__ import annotations

VERBS: dict[str, str] = {
    "pages": "demo pages",
    "questions": "demo questions",
    "preferences": "demo preferences",
}
"""An old verb of the command line -> its new words: `"questions": "demo questions"`."""

SETTINGS: dict[str, dict[str, str]] = {"RejectSettings": {"questions": "prompts"}}
"""A settings class -> its old dotted settings -> the new ones: `"SftSettings": {"optimizer.rate": "optimizer.lr"}`."""
