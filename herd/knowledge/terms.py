"""What is looked up of a text: its words; of scripts without spaces every three letters in a row, of Han and kana two.

Three letters are what SQLite's own `trigram` tokenizer takes. They stand here in one table with the words, so that one
BM25 ranks a text in two scripts; words of Han have two letters more often than three, which `trigram` cannot find.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator

_THREES = "\u0e00-\u0e7f\u0e80-\u0eff\u1000-\u109f\u1780-\u17ff"  # Thai, Lao, Burmese, Khmer
_TWOS = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af"  # kana, Han, Hangul
_RUN = re.compile(rf"([{_THREES}]+)|([{_TWOS}]+)")


def is_han(text: str) -> bool:
    """Whether a text holds Han, kana or Hangul, of which a vocabulary may hold nothing but single letters."""
    return any(run[2] for run in _RUN.finditer(text))


def searchable(text: str) -> str:
    """A text as the index holds it: runs of such scripts as their pieces, with spaces between them."""
    return _RUN.sub(lambda run: f" {' '.join(_pieces(run[0], 3 if run[1] else 2))} ", text)


def terms(text: str) -> list[str]:
    """The different words and pieces of a text, in lower case, in their order."""
    return list(dict.fromkeys(_words(searchable(text))))


def lookups(question: str) -> list[str]:
    """The same of a question as FTS5 is asked for them, quoted; what is shorter than a piece by how a piece begins."""
    found = []
    for term in terms(question):
        run = _RUN.fullmatch(term)
        found.append(f'"{term}"*' if run and len(term) < (3 if run[1] else 2) else f'"{term}"')
    return found


def _pieces(run: str, length: int) -> Iterator[str]:
    return (run[at : at + length] for at in range(max(1, len(run) - length + 1)))


def _words(text: str) -> list[str]:
    kept = (c if unicodedata.category(c)[0] in "LNM" else " " for c in text.lower())
    return "".join(kept).split()
