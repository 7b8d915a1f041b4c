"""Labelled rows as conversations in Llama Guard's prompt, from which a language model learns to be a guard.

`herd tune MODEL talks.jsonl out=...` (or `herd sft`) trains on them; the checkpoint is then a guard: `guard=FOLDER`.
"""

from __future__ import annotations

from dataclasses import field
from pathlib import Path

from herd.config import settings
from herd.data.rows import RowSettings, write_rows
from herd.log import say
from herd.safety.llama_guard import talk_of
from herd.safety.policy import UNSAFE, Where, read_policy
from herd.safety.rows import labelled_rows


@settings
class TalksSettings:
    """Which rows, and where the conversations go."""

    rows: list[Path]
    """Labelled rows, as `herd guard train` reads them; those that only say `unsafe` are left out."""
    out: Path
    """JSONL file to write: `messages` of the user (the prompt) and the assistant (the verdict)."""
    policy: Path = Path("safety/hazards.yaml")
    """Categories (YAML)."""
    where: Where = "input"
    """What rows are that do not say so."""
    columns: dict[str, str] = field(default_factory=dict)
    """What the files call `text`, `label` (or `categories`), `where` and `group`: {text: BODY}."""


def run(settings: TalksSettings) -> None:
    """Write the conversations.

    Raises:
        DataError: a row without text or label.
    """
    policy = read_policy(settings.policy)
    rows = labelled_rows(settings.rows, policy, RowSettings(columns=settings.columns), where=settings.where)
    named = [row for row in rows if UNSAFE not in row.codes]
    if left := len(rows) - len(named):
        say(f"  {left:,} rows without a category are left out: Llama Guard's answer names one")
    write_rows(settings.out, (talk_of(row.text, row.where, row.codes, policy) for row in named))
    say(f"{settings.out}: {len(named):,} conversations, {sum(row.is_unsafe for row in named):,} of them unsafe")
