"""A rendered conversation for the terminal: trained tokens in colour, special tokens dim."""

from __future__ import annotations

from itertools import groupby

from rich.text import Text

from herd.tokenizer.llama3 import Rendered
from herd.tokenizer.tokenizer import Tokenizer


def colour(tokenizer: Tokenizer, rendered: Rendered, *, marks: bool = False) -> Text:
    """A rendered conversation for the terminal: trained tokens green, special tokens dim.

    `marks` puts ⟦ and ⟧ around what is trained, for where colour is lost.
    """
    special = tokenizer.special_ids
    text = Text()
    for trained, run_of_tokens in groupby(zip(*rendered, strict=True), key=lambda pair: pair[1]):
        if trained and marks:
            text.append("⟦")
        for characters, is_special in _pieces(tokenizer, [token for token, _ in run_of_tokens], special):
            colours = ["green" if trained else "default", "dim" if is_special else "not dim"]
            text.append(characters, style=" ".join(colours))
        if trained and marks:
            text.append("⟧")
    return text


def _pieces(tokenizer: Tokenizer, tokens: list[int], special: frozenset[int]) -> list[tuple[str, bool]]:
    """Runs of special and of ordinary tokens as text, in whole characters and without terminal control codes."""
    grouped = groupby(tokens, key=special.__contains__)
    return [(tokenizer.decode(run).replace("\x1b", "␛"), is_special) for is_special, run in grouped]
