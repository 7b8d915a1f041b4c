"""Building blocks of the report's sections, and readable names for recorded figures."""

from __future__ import annotations

import html
from collections.abc import Iterable
from typing import Any

from herd.log import duration, figure, size

KEPT_FOR_FIRST = ("verdict", "best")
"""Figures that only the first screen shows."""

_WORDS = {
    "mfu": "share of the peak arithmetic rate (MFU)",
    "nll": "loss of the chosen answer per token",
    "enough": "enough facts to ask about",
    "facts": "facts found",
    "train": "questions to train on",
    "prompts": "questions to sample answers to",
    "unknown": "questions about invented names",
    "eval_trained": "held-out questions about trained modules",
    "eval_heldout": "held-out questions about held-out modules",
    "eval_unknown": "held-out questions about invented names",
    "own_sample": "pairs with a wrong answer of the model itself",
    "other_answer": "pairs with another question's answer",
    "wrong_kind": "pairs with an answer of the wrong kind",
    "wrong_signature": "pairs with a wrong signature",
    "edited": "pairs with an edited answer",
    "refusal": "pairs with a refusal",
    "differing": "questions whose sampled answers differ",
    "kept": "answers kept",
    "failed": "modules that could not be rendered",
    "corrupt": "damaged records skipped",
    "undated": "pages without a date",
    "gain": "gain of the last step",
    "gain_low": "gain, lower end of the interval",
    "gain_high": "gain, upper end of the interval",
    "gain_prompts": "questions that the gain is measured on",
    "bytes": "text",
    "token_f1": "F1 over words",
    "copied": "word found",
    "chosen": "word chosen among 16",
    "refused": "share refused",
    "kl_nats_per_token": "divergence from the original (nats per token)",
    "same_likeliest_token": "same likeliest token as the original",
    "pretokens": "distinct words counted",
    "largest_undercount": "largest error of a count",
}
_ENDINGS = {
    "bits_per_byte": "bits per byte",
    "token_f1": "F1 over words",
    "gain_over_retrieved": "gain over a retrieved answer",
    "tokens_per_second": "tokens per second",
    "tokens_per_second_before": "tokens per second, before",
    "tokens_per_second_after": "tokens per second, after",
}
_FLAGS = ("enough",)


def words(key: str) -> str:
    """A readable name for a recorded figure."""
    if key in _WORDS:
        return _WORDS[key]
    for ending, name in _ENDINGS.items():
        if key.endswith(f"_{ending}"):
            return f"{key.removesuffix(f'_{ending}').replace('_', ' ')}: {name}"
    return _ENDINGS.get(key, key.replace("_", " ").replace("heldout", "held-out").replace("/", ": "))


def section(title: str, body: str, note: str = "") -> str:
    """A card of the page; `body` and `note` are HTML."""
    note = f"<p class=note>{note}</p>" if note else ""
    return f"<section><h2>{escaped(title)}</h2>{note}{body}</section>"


def table(head: Iterable[str], rows: Iterable[Iterable[Any]], *, raw: bool = False) -> str:
    """A table that scrolls sideways if it is too wide; with `raw` the cells are HTML."""
    keep = str if raw else escaped
    top = "".join(f"<th>{escaped(name)}" for name in head)
    body = "".join("<tr>" + "".join(f"<td>{keep(cell)}" for cell in row) for row in rows)
    return f"<div class=wide><table><tr>{top}{body}</table></div>"


def shown(key: str, value: Any) -> str:
    """A recorded figure's value as HTML, in the unit that its name implies."""
    if isinstance(value, bool) or (key in _FLAGS and value in (0, 1)):
        return "yes" if value else "no"
    if isinstance(value, list) and value and all(isinstance(one, int | float) for one in value):
        return " to ".join(shown(key, one) for one in value)
    if not isinstance(value, int | float):
        return escaped(value)
    if key.endswith("_bytes") or "_bytes_" in key or key == "bytes":
        return size(value)
    if key.endswith("seconds"):
        return duration(value)
    return figure(value) if isinstance(value, float) else f"{value:,}"


def escaped(value: Any) -> str:
    """A value as HTML text."""
    return html.escape(str(value), quote=True)
