"""How far a tokenizer shrinks texts: bytes and characters per token, for each source and language."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any

from herd.curate.read.texts import Text
from herd.data.split import is_held_out
from herd.tokenizer import Tokenizer

_TELLING_BYTES = 20_000  # less text says little; such rows stand in the file only
_SAMPLE_BYTES = 1_000_000  # of each kind of text, to measure compression on


def compression(tokenizer: Tokenizer, texts: Iterator[Text], holdout: float) -> list[dict[str, Any]]:
    """Bytes and characters per token, for each source and language, apart for held-out groups.

    Measured on the first megabyte of each.
    """
    sums: defaultdict[tuple[str, str, bool], Counter[str]] = defaultdict(Counter)
    for document in texts:
        held_out = is_held_out(document.group, holdout)
        row = sums[document.source, document.language, held_out]
        if row["bytes"] < _SAMPLE_BYTES:
            size = len(document.text.encode("utf-8", "replace"))
            row.update(bytes=size, characters=len(document.text), tokens=len(tokenizer.encode(document.text)))
    return [
        {
            "source": source,
            "language": language,
            "held_out": held_out,
            **row,
            "bytes_per_token": round(row["bytes"] / row["tokens"], 3),
            "characters_per_token": round(row["characters"] / row["tokens"], 3),
        }
        for (source, language, held_out), row in sorted(sums.items())
    ]


def add_before(rows: list[dict[str, Any]], before: list[dict[str, Any]]) -> None:
    """What the base made of the same texts, into the rows of the extended vocabulary."""
    for row, base in zip(rows, before, strict=True):
        row |= {f"base_{key}": base[key] for key in ("tokens", "bytes_per_token", "characters_per_token")}


def compression_table(rows: list[dict[str, Any]]) -> str:
    """The rows for a person; those of little text are left out where there are others."""
    has_base = any("base_tokens" in row for row in rows)
    before = f" {'(base)':>8}" if has_base else ""
    lines = [f"  {'source':<12} {'language':<9} {'':<9} {'bytes/token':>11}{before} {'characters/token':>17}{before}"]
    telling = [row for row in rows if row["bytes"] >= _TELLING_BYTES]
    for row in telling or rows:
        name = f"{row['source'] or '-':<12} {row['language'] or '-':<9} {'held out' if row['held_out'] else '':<9}"
        figures = [f"{row['bytes_per_token']:>11.2f}", f"{row['characters_per_token']:>17.2f}"]
        if has_base:
            figures.insert(1, f"{row['base_bytes_per_token']:>8.2f}")
            figures.append(f"{row['base_characters_per_token']:>8.2f}")
        lines.append(" ".join([f"  {name}", *figures]))
    return "\n".join(lines)
