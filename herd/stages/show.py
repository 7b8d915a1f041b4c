"""Show: a conversation as the model sees it, with the tokens that are trained on in colour."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.text import Text

from herd.config import settings
from herd.data.coloured import colour
from herd.data.conversations import render_talk
from herd.data.rows import read_rows
from herd.data.shapes import talks_of
from herd.data.talks import Notes
from herd.errors import DataError
from herd.formats.vocabulary import open_tokenizer


@settings
class ShowSettings:
    """Print conversations with their special tokens; trained tokens are green (without colour: between ⟦ and ⟧)."""

    path: Path
    """File or folder of conversations, as `herd sft` takes them."""
    tokenizer: Path = Path("runs/demo")
    """Checkpoint or tokenizer folder."""
    first: int = 1
    """The first conversation to show, counted from 1."""
    number: int = 3
    """How many conversations to show."""
    style: Literal["meta", "hf"] | None = None
    """Chat style; default: the checkpoint's own."""

    def __post_init__(self):
        if self.first < 1 or self.number < 1:
            raise ValueError("first and number must be at least 1")


def run(settings: ShowSettings) -> None:
    """Print conversations to standard output."""
    tokenizer = open_tokenizer(settings.tokenizer)
    console = Console(highlight=False, soft_wrap=True)
    begin = settings.first - 1
    shown, notes = 0, Notes()
    for place, row in islice(read_rows(settings.path), begin, begin + settings.number):
        try:
            talks = [render_talk(tokenizer, talk, notes, style=settings.style) for talk in talks_of(row, notes)]
        except DataError as error:
            raise DataError(f"{place}: {error}") from None
        shown += 1
        for rendered in talks:
            num_trained = sum(rendered.mask)
            console.rule(Text(f"{place}: {len(rendered.tokens)} tokens, {num_trained} trained"), style="dim")
            console.print(colour(tokenizer, rendered, marks=not console.is_terminal))
    notes.tell()
    if not shown:
        raise DataError(f"{settings.path}: has no conversation {settings.first}")
