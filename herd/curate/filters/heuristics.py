"""Heuristic filters. Each is a function of a text that returns the reason to drop it and the figure behind it, or None.

Adding one takes a function and a line in `WEB_FILTERS` or `TECHNICAL_FILTERS`. Its keyword arguments are its limits:
what fits a language better stands in `LANGUAGE_LIMITS`, what fits a corpus better in a recipe
(`rules.heuristics.limits: {de: {gopher_word_length: {most: 12}}}`).

Sources: Gopher (Rae et al. 2021, table A1), C4 (Raffel et al. 2020, section 2.2), FineWeb (Penedo et al. 2024, section
3.6). Technical pages, code, documentation and mathematics, break nearly every rule made for prose (few sentences end in
full stops, many words are no words), so they are held to length and repetition alone.
"""

from __future__ import annotations

import inspect
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np

from herd.curate.filters.repetition import (
    gopher_repeated_lines,
    gopher_repeated_ngrams,
    gopher_repeated_paragraphs,
    gopher_top_ngram,
    repeated_ngram_share,
    repeats,
    technical_repetition,
)
from herd.curate.filters.structure import is_speech
from herd.curate.filters.text import STOP_WORDS, Reason, Text, is_technical
from herd.curate.ngrams import ngram_numbers, word_numbers

Limits = dict[str, dict[str, float]]
"""Name of a filter to its keyword arguments."""

_LETTERED_WORD = re.compile(r"[^\W\d_]\S*")  # from its first letter on: one to a word that has any
_DASH = re.compile(r"(?<!\S)[–—―](?!\S)")
_MARKS = ("Mn", "Mc")  # Thai vowel signs stand alone where every character is a word
_SENTENCE = re.compile(r"[.!?…]+[\"'”’)\]]*(?:\s|$)|[。！？।؟۔]")
_BULLETS = ("•", "‣", "►", "▶", "◦", "-", "*", "·", "●", "–")
_END_MARKS: tuple[str, ...] = (".", "!", "?", '"', "'", "”", "’", "…", "。", "！", "？", "।", "ฯ", "؟", ":")
_END_MARKS += ("»", "」", "』")
# ---- Gopher: quality -------------------------------------------------------------------------------------------------


def gopher_word_count(text: Text, least: float = 50, most: float = 100_000) -> Reason | None:
    """Drop pages outside 50 to 100,000 words."""
    count = text.num_words
    return None if least <= count <= most else ("gopher_word_count", f"{count} words")


def gopher_word_length(text: Text, least: float = 3, most: float = 10) -> Reason | None:
    """Drop pages whose mean word length is outside 3 to 10 characters."""
    if text.word_characters or not text.words:
        return None
    mean = float(text.word_lengths.mean())
    return None if least <= mean <= most else ("gopher_word_length", f"mean {mean:.1f} characters")


def gopher_symbols(text: Text, most: float = 0.1) -> Reason | None:
    """Drop pages with more than one hash or ellipsis to ten words."""
    words = max(1, text.num_words)
    for name, symbols in (("#", ("#",)), ("...", ("...", "…"))):
        share = sum(text.text.count(symbol) for symbol in symbols) / words
        if share > most:
            return "gopher_symbols", f"{share:.2f} {name} per word"
    return None


def gopher_bullets(text: Text, most: float = 0.9) -> Reason | None:
    """Drop pages where over 90 % of the lines start with a bullet."""
    share = _share(text.lines, lambda line: line.startswith(_BULLETS))
    return None if share <= most else ("gopher_bullets", f"{share:.0%} of lines")


def gopher_ellipses(text: Text, most: float = 0.3) -> Reason | None:
    """Drop pages where over 30 % of the lines end in an ellipsis."""
    share = _share(text.lines, lambda line: line.endswith(("...", "…")))
    return None if share <= most else ("gopher_ellipses", f"{share:.0%} of lines")


def gopher_letters(text: Text, least: float = 0.8) -> Reason | None:
    """Drop pages where fewer than 80 % of the words hold a letter."""
    share = _lettered_share(text)
    return None if share >= least else ("gopher_letters", f"{share:.0%} of words")


def _lettered_share(text: Text) -> float:
    if text.word_characters:
        words = [word for word in text.words if unicodedata.category(word[0])[0] != "P" or len(word) > 2]
        return _share(words, lambda word: any(map(str.isalpha, word)) or unicodedata.category(word[0]) in _MARKS)
    count = len(text.words)
    if not text.text.isascii():
        count -= len(_DASH.findall(text.text))  # a dash is no word
    return len(_LETTERED_WORD.findall(text.text)) / count if count > 0 else 0.0


def gopher_stop_words(text: Text, least: float = 2) -> Reason | None:
    """Drop pages with fewer than two of their language's commonest words (in English the paper's eight)."""
    common = STOP_WORDS.get(text.language)
    if common is None:
        return None
    found = common.intersection(text.lower_words)
    return None if len(found) >= least else ("gopher_stop_words", f"{len(found)} of {len(common)} common words")


# ---- C4 and FineWeb --------------------------------------------------------------------------------------------------


def c4_placeholder(text: Text) -> Reason | None:
    """Drop pages with filler text or that only ask for JavaScript."""
    head = text.text[:5000].lower()
    if "lorem ipsum" in head:
        return "c4_placeholder", "lorem ipsum"
    if len(text.words) < 200 and ("enable javascript" in head or "javascript is disabled" in head):
        return "c4_placeholder", "asks for JavaScript"
    return None


_NOTICE = re.compile(
    r"\bjavascript\b|terms of (?:use|service)|privacy policy|cookie policy|uses? (?:of )?cookies|"
    r"datenschutzerklärung|wir verwenden cookies|politique de confidentialité|política de (?:privacidad|cookies)",
    re.I,
)
_NOTICE_MARKS = ("javasc", "terms of", "cook", "acy pol", "datensch", "que de conf", "ca de pr")  # one in each notice
_MAX_NOTICE_CHARACTERS = 250


def without_notices(text: str) -> tuple[str, int]:
    """A text without lines that only speak of JavaScript, cookies or terms, and how many went.

    C4 takes every such line; here longer ones stay, since those are paragraphs about the matter.
    """
    if not has_notices(text):
        return text, 0
    lines = text.split("\n")
    kept = [line for line, stays in zip(lines, no_notices(lines), strict=True) if stays]
    return "\n".join(kept).strip("\n"), len(lines) - len(kept)


def no_notices(lines: list[str]) -> list[bool]:
    """For each line whether it is more than a notice about JavaScript, cookies or terms."""
    return [len(line) > _MAX_NOTICE_CHARACTERS or not _NOTICE.search(line) for line in lines]


def punctuated(lines: list[str], least_words: int = 3) -> list[bool]:
    """For each line whether it is empty or a sentence: three words and more that end in a mark (C4, section 2.2)."""
    return [
        not line.strip() or (line.rstrip().endswith(_TERMINAL) and len(line.split()) >= least_words) for line in lines
    ]


_TERMINAL = (".", "!", "?", '"', "”", "。", "！", "？", "।", "؟")


def has_notices(text: str) -> bool:
    """Whether a text may hold such lines: a search that ignores case is slow, and most pages hold none."""
    folded = text.casefold()
    return any(mark in folded for mark in _NOTICE_MARKS) and _NOTICE.search(text) is not None


def c4_curly_bracket(text: Text, most: float = 0.005) -> Reason | None:
    """Drop prose pages with curly brackets in it (leaked code), over one to 200 words; technical pages are exempt."""
    count = text.text.count("{")
    return None if count < 3 or count <= most * text.num_words else ("c4_curly_bracket", f"{count} brackets")


def c4_sentences(text: Text, least: float = 3) -> Reason | None:
    """Drop pages of fewer than three sentences; Thai ends none with a mark."""
    if text.language == "th" or text.prose is None:
        return None
    count = sum(1 for _ in _SENTENCE.finditer(text.text))
    if count < least:
        count += sum(_is_unmarked_sentence(line, text.language) for line in text.lines)
    return None if count >= least else ("c4_sentences", f"{count} sentences")


def fineweb_line_ends(text: Text, least: float = 0.12) -> Reason | None:
    """Drop pages where under 12 % of the lines end in punctuation."""
    share = _share(text.lines, lambda line: line.endswith(_END_MARKS) or _is_unmarked_sentence(line, text.language))
    return None if share >= least or text.language == "th" else ("fineweb_line_ends", f"{share:.0%} of lines")


def _is_unmarked_sentence(line: str, language: str) -> bool:
    """Whether a line without a mark at its end is a sentence all the same: a long one, with common words in it."""
    words = line.lower().split()
    common = STOP_WORDS.get(language, frozenset())
    return len(words) >= _LONG_LINE_WORDS and len(common.intersection(words)) >= _LONG_LINE_COMMON


_LONG_LINE_WORDS, _LONG_LINE_COMMON = 20, 3


def fineweb_short_lines(text: Text, most: float = 0.67, characters: float = 30) -> Reason | None:
    """Drop pages where over 67 % of the lines have fewer than 30 characters; short lines of dialogue count as long."""
    share = _share(text.lines, lambda line: len(line) < characters and not is_speech(line))
    return None if share <= most else ("fineweb_short_lines", f"{share:.0%} of lines")


def fineweb_repeated_characters(text: Text, most: float = 0.1) -> Reason | None:
    """Drop pages where repeated lines hold over 10 % of the characters."""
    return repeats("fineweb_repeated_characters", "lines", text.lines, 1.0, most)


def fineweb_lines_to_words(text: Text, most: float = 0.3) -> Reason | None:
    """Drop pages with over 0.3 line breaks to a word (empty lines aside): lists and tables of single words."""
    share = sum(not is_speech(line) for line in text.lines[1:]) / max(1, text.num_words)
    return None if share <= most else ("fineweb_lines_to_words", f"{share:.2f} line breaks to a word")


def _share(items: list[str], test) -> float:
    return sum(1 for item in items if test(item)) / len(items) if items else 0.0


# ---- tables, lists, code and verse, by themselves -------------------------------------------------------------------


def structured_words(text: Text, least: float = 0.3) -> Reason | None:
    """Drop pages of tables and lists alone where under 30 % of the words hold a letter."""
    if text.prose is not None or not text.words:
        return None
    share = _lettered_share(text)
    return None if share >= least else ("structured_words", f"{share:.0%} of words have a letter")


def structured_repetition(text: Text, most: float = 0.75) -> Reason | None:
    """Drop pages whose tables and lists are mostly repetition."""
    if text.prose is text:
        return None
    share = repeated_ngram_share(text, 10 * (text.word_characters or 1))
    return None if share <= most else ("structured_repetition", f"repeated 10-grams cover {share:.0%}")


# ---- words that the user lists ---------------------------------------------------------------------------------------


class ListedWords:
    """Drop pages that hold listed words: over `most` of them, and over `most_share` of the page's words.

    With both limits 0 one word is enough, as in C4; the Llama 3 paper counts them ("dirty word counting", section
    3.1.1) to find adult pages that no block list holds. Entries of several words are met as phrases.
    """

    def __init__(self, lists: Mapping[str, Iterable[str]], most: float = 2, most_share: float = 0.002):
        self.most, self.most_share = most, most_share
        self._by_length: dict[int, dict[int, tuple[str, str]]] = {}
        for category, entries in lists.items():
            for entry in entries:
                words = word_numbers(entry)
                if len(words):
                    number = int(ngram_numbers(words, len(words))[0])
                    self._by_length.setdefault(len(words), {})[number] = (category, entry)
        self._numbers = {n: np.sort(np.array(list(known), np.uint64)) for n, known in self._by_length.items()}

    def __call__(self, text: Text) -> Reason | None:
        found: Counter = Counter()
        for n, known in self._numbers.items():
            numbers = ngram_numbers(text.word_numbers, n)
            place = np.minimum(np.searchsorted(known, numbers), len(known) - 1)
            found.update(numbers[known[place] == numbers].tolist())
        count = found.total()
        if count <= self.most or count <= self.most_share * len(text.word_numbers):
            return None
        entries = {number: entry for known in self._by_length.values() for number, entry in known.items()}
        names = [entries[number] for number, _ in found.most_common(3)]
        return f"listed_words_{names[0][0]}", f"{count} listed words, such as {', '.join(word for _, word in names)}"


# ---- which filters apply ---------------------------------------------------------------------------------------------

Filter = Callable[..., Reason | None]

WEB_FILTERS: tuple[Filter, ...] = (
    gopher_word_count,
    gopher_word_length,
    gopher_symbols,
    gopher_bullets,
    gopher_ellipses,
    gopher_letters,
    gopher_stop_words,
    gopher_repeated_lines,
    gopher_repeated_paragraphs,
    gopher_top_ngram,
    gopher_repeated_ngrams,
    structured_words,
    structured_repetition,
    c4_placeholder,
    c4_curly_bracket,
    c4_sentences,
    fineweb_line_ends,
    fineweb_short_lines,
    fineweb_repeated_characters,
    fineweb_lines_to_words,
)
"""For prose, in order: the first reason is the one recorded."""


PROSE_FILTERS = frozenset(WEB_FILTERS) - {
    gopher_word_count,
    gopher_bullets,
    gopher_stop_words,
    structured_words,
    structured_repetition,
    c4_placeholder,
    c4_sentences,
}
"""These look at running text alone: in tables, lists, code and verse, short lines and repetition are no fault."""


def technical_word_count(text: Text, least: float = 20) -> Reason | None:
    """Drop technical pages of fewer than 20 words."""
    count = text.num_words
    return None if count >= least else ("technical_word_count", f"{count} words")


TECHNICAL_FILTERS: tuple[Filter, ...] = (technical_word_count, technical_repetition)
"""For code, documentation and mathematics."""

_LONG_WORDS: Limits = {"gopher_word_length": {"most": 14}}  # words that carry whole clauses
_DENSE_LINES: Limits = {"fineweb_short_lines": {"characters": 12}}  # a character says as much as two or three letters
_LONG_NAMES: Limits = {"gopher_repeated_ngrams": {"most_5": 0.35, "most_10": 0.25}}  # a name is an n-gram by itself
LANGUAGE_LIMITS: dict[str, Limits] = {
    **dict.fromkeys(("th", "lo", "km", "my"), _LONG_NAMES),
    **dict.fromkeys(("fi", "et", "hu", "tr", "kk", "az", "uz", "ka", "eu", "ta", "te", "ml", "de"), _LONG_WORDS),
    **dict.fromkeys(("zh", "ja"), _DENSE_LINES),
    "ko": {"gopher_word_length": {"least": 1.5}, "fineweb_short_lines": {"characters": 15}},
    "vi": {"gopher_word_length": {"least": 2}},
    "he": {"gopher_word_length": {"least": 2.5}},
}
"""Limits that differ from the functions' own by language: those were set for English."""


def limits_for(language: str, overrides: dict[str, Limits] | None = None) -> Limits:
    """The limits of a language: its own, over them a recipe's for all languages (`*`), over them its for this one."""
    result: Limits = {}
    for layer in (LANGUAGE_LIMITS.get(language, {}), *((overrides or {}).get(key, {}) for key in ("*", language))):
        for name, values in layer.items():
            result[name] = {**result.get(name, {}), **values}
    return result


def check_limits(overrides: dict[str, Limits]) -> None:
    """Refuse limits of unknown filters, and limits that a filter does not have.

    Raises:
        ValueError: which, and what there is.
    """
    known = {rule.__name__: rule for rule in (*WEB_FILTERS, *TECHNICAL_FILTERS)}
    for language, limits in overrides.items():
        check_names(limits)
        for name, values in limits.items():
            parameters = list(inspect.signature(known[name]).parameters)[1:]
            if unknown := sorted(set(values) - set(parameters)):
                has = ", ".join(parameters) or "none"
                raise ValueError(f"limits.{language}.{name}: no limit `{unknown[0]}`; it has: {has}")


def check_names(names: Iterable[str]) -> None:
    """Refuse the names of unknown filters.

    Raises:
        ValueError: which, and what there is.
    """
    known = [rule.__name__ for rule in (*WEB_FILTERS, *TECHNICAL_FILTERS)]
    for name in names:
        if name not in known:
            raise ValueError(f"no filter `{name}`; there are: {', '.join(known)}")


def why_drop(
    text: str | Text,
    language: str = "en",
    technical: bool | None = None,
    overrides: dict[str, Limits] | None = None,
    skip: frozenset[str] = frozenset(),
) -> Reason | None:
    """The first reason to drop a text, or None. `technical` None looks at the text to choose the filters."""
    measured = text if isinstance(text, Text) else Text(text, language)
    if technical is None:
        technical = is_technical(measured.text)
    return next(reasons(measured, TECHNICAL_FILTERS if technical else WEB_FILTERS, overrides, skip), None)


def reasons(
    text: Text,
    rules: Iterable[Filter],
    overrides: dict[str, Limits] | None = None,
    skip: frozenset[str] = frozenset(),
    whole: bool = False,
) -> Iterator[Reason]:
    """Every reason to drop a text that some filters give, in their order.

    `whole` holds also tables, lists and code to the rules for prose: what these would do by the letter.
    """
    limits = limits_for(text.language, overrides)
    for rule in rules:
        name = getattr(rule, "__name__", "")  # a list of words is an object and has none
        judged = text.prose if rule in PROSE_FILTERS and not whole else text
        if name not in skip and judged is not None:
            reason = rule(judged, **limits.get(name, {}))
            if reason is not None:
                yield reason
