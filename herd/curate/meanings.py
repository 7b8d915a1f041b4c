"""What a reason to drop a document means, its limits, and the words of a text that met it."""

from __future__ import annotations

import inspect
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping

from herd.curate.filters import heuristics
from herd.curate.filters.heuristics import Limits

SPAN = re.compile(r"(?<!\w)['\"](.{1,200}?)['\"](?!\w)")
"""The words that broke a rule, as a reason's detail quotes them."""

STEPS = {
    "url_dedup": "newest copy of each address",
    "document_dedup": "near-duplicates",
    "line_dedup": "repeated lines",
    "heuristics": "rules",
    "decontaminate": "benchmark questions",
    "pii": "personal data",
    "knowledge": "shares of classes",
}
"""The funnel's steps in words, where their names are not."""

_MEANINGS = {
    "near_duplicate": "Drop pages that say nearly the same as one that is kept (MinHash; documents.similarity).",
    "url_older_copy": "Keep the newest copy of each address.",
    "source_of_page": "Drop sources that a documentation ships beside the page made of them.",
    "page_size": "Drop pages that are too large to be read (work.max_page_bytes).",
    "page_tags": "Drop pages with more tags than can be read.",
    "page_time": "Drop pages that take the processor too long.",
    "pdf": "Drop PDF files that are damaged.",
    "empty": "Drop pages on which no text is left beside menus and decoration.",
    "binary": "Drop what is no text.",
    "language": "Keep pages of the wanted languages, recognised with enough certainty (rules.languages).",
    "repeated_lines": "Drop pages of which nothing is left without the lines that too many pages share.",
    "outlier_words": "Drop pages whose words are too far from those of the corpus (rules.heuristics.outliers).",
    "contaminated": "Drop pages that hold questions of a benchmark (rules.contamination).",
    "quality": "Drop pages that score below rules.quality.min_score.",
    "after_cutoff": "Drop pages that are newer than rules.cutoff.",
    "listed_words": "Drop pages that hold listed words (rules.heuristics.word_lists).",
    "lines dropped": "Lines that too many pages share are taken out; their documents stay.",
}
_BEGINNINGS = {
    "blocked_domain": "Drop pages of blocked domains (rules.blocked).",
    "blocked_word": "Drop pages with a blocked word in their address (rules.blocked).",
    "knowledge": "Hold back classes there is too much of (rules.quality.keep_shares, max_class_share).",
    "pii": "Drop pages with personal data of these kinds (rules.privacy.drop).",
}
_FILTERS: dict[str, Callable] = {
    name: one
    for name, one in vars(heuristics).items()
    if inspect.isfunction(one) and "text" in inspect.signature(one).parameters
}


def meaning(reason: str) -> str:
    """A sentence on what is dropped for a reason; empty for one that is not known here."""
    if reason in _FILTERS:
        return (inspect.getdoc(_FILTERS[reason]) or "").split("\n\n")[0].replace("\n", " ")
    if reason in _MEANINGS:
        return _MEANINGS[reason]
    return next((told for beginning, told in _BEGINNINGS.items() if reason.startswith(beginning)), "")


def limits(reason: str, given: Mapping[str, Limits] | None = None) -> str:
    """A filter's limits in words, with those that a recipe gives for all languages or for some (`given`)."""
    if reason not in _FILTERS:
        return ""
    usual = {
        name: one.default
        for name, one in inspect.signature(_FILTERS[reason]).parameters.items()
        if isinstance(one.default, int | float)
    }
    told = [_listed("usual limits: ", usual)] if usual else []
    by_language = [(language, table) for language, table in heuristics.LANGUAGE_LIMITS.items() if reason in table]
    told += [_listed(f"{language}: ", table[reason]) for language, table in by_language]
    for language, table in (given or {}).items():
        if reason in table:
            told.append(_listed(f"{'here' if language == '*' else f'{language} here'}: ", table[reason]))
    return "; ".join(told)


def _listed(before: str, table: Mapping[str, float]) -> str:
    return before + ", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in table.items())


def spans(reason: str, detail: str, text: str) -> list[tuple[int, int]]:
    """Where the words lie that met a rule: those that the detail quotes, else what a rule counts."""
    quoted = {match[1] for match in SPAN.finditer(detail) if match[1].strip()}
    found = [(at.start(), at.end()) for span in quoted for at in re.finditer(re.escape(span), text)]
    if not found and (look := _LOOKED_FOR.get(reason)):
        found = list(look(text))
    merged: list[tuple[int, int]] = []
    for start, end in sorted(found):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def _lines(holds: Callable[[str], bool]) -> Callable[[str], Iterator[tuple[int, int]]]:
    def look(text: str) -> Iterator[tuple[int, int]]:
        return ((at.start(), at.end()) for at in re.finditer(r"[^\n]+", text) if holds(at[0].strip()))

    return look


def _pattern(pattern: str) -> Callable[[str], Iterator[tuple[int, int]]]:
    return lambda text: ((at.start(), at.end()) for at in re.finditer(pattern, text))


def _repeated(pattern: str) -> Callable[[str], Iterator[tuple[int, int]]]:
    """What stands in a text again after it has stood there once."""

    def look(text: str) -> Iterator[tuple[int, int]]:
        counts = Counter(at[0].strip() for at in re.finditer(pattern, text))
        return ((at.start(), at.end()) for at in re.finditer(pattern, text) if counts[at[0].strip()] > 1)

    return look


def _repeated_words(text: str) -> Iterator[tuple[int, int]]:
    """Runs of five words that stand in a text more than once."""
    words = [(at.start(), at.end(), at[0].lower()) for at in re.finditer(r"\S+", text)]
    runs = Counter(tuple(word for *_, word in words[place : place + 5]) for place in range(len(words) - 4))
    for place in range(len(words) - 4):
        if runs[tuple(word for *_, word in words[place : place + 5])] > 1:
            yield words[place][0], words[place + 4][1]


_REPEATED_LINES = _repeated(r"[^\n]+")
_LOOKED_FOR: dict[str, Callable[[str], Iterator[tuple[int, int]]]] = {
    "gopher_symbols": _pattern(r"#|\.\.\.|…"),
    "gopher_bullets": _lines(lambda line: line.startswith(("•", "‣", "►", "▶", "◦", "-", "*", "·", "●", "–"))),
    "gopher_ellipses": _lines(lambda line: line.endswith(("...", "…"))),
    "gopher_letters": _pattern(r"(?<!\S)[\W\d_]+(?!\S)"),
    "gopher_repeated_lines": _REPEATED_LINES,
    "gopher_repeated_paragraphs": _REPEATED_LINES,
    "gopher_repeated_ngrams": _repeated_words,
    "technical_repetition": _repeated_words,
    "structured_repetition": _repeated_words,
    "fineweb_repeated_characters": _REPEATED_LINES,
    "fineweb_line_ends": _lines(lambda line: line[-1:].isalnum()),
    "fineweb_short_lines": _lines(lambda line: 0 < len(line) < 30),
    "fineweb_lines_to_words": _lines(lambda line: 0 < len(line.split()) < 3),
    "c4_curly_bracket": _pattern(r"[{}]"),
}
"""Rules whose detail is a figure: what in a text they count."""
