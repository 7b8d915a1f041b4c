"""A text as the filters measure it: words, lines, what kind it is; and the common words of 27 languages."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from itertools import accumulate
from typing import Any

import numpy as np

from herd.curate.filters.structure import is_label, looks_like_code, running_text, without
from herd.curate.ngrams import CHARACTERS_PER_WORD, split_words, word_numbers

Reason = tuple[str, str]
"""Why a document is dropped: the rule's name and the figure that broke it."""


_STOP_WORDS = {
    "en": "the be to of and that have with",
    "de": "der die und in den von zu das mit sich des auf ist im dem nicht ein eine",
    "fr": "de la le et les des en un du une que est pour qui dans",
    "es": "de la que el en y a los se del las un por con una",
    "it": "di e il la che in un per è una sono con del della",
    "pt": "de a o que e do da em um para com não uma os no",
    "nl": "de van het een en in is dat op te zijn met voor",
    "pl": "w i na z do się nie że jest o to za po",
    "ru": "и в не на что с по как это он из за к",
    "uk": "і в не на що з та до як це за від",
    "cs": "a se v na je že o s z do i to",
    "sv": "och i att det som en på är av för med",
    "da": "og i at det er en til på som af for med",
    "no": "og i det er på som en til av for med å",
    "fi": "ja on ei että se oli hän mutta ovat kun myös",
    "hu": "a az és hogy nem is egy volt meg ez de",
    "ro": "de și în a la cu pe că nu din un o",
    "tr": "ve bir bu da de için ile ne çok olarak daha",
    "el": "και το να του η της με που για από στο",
    "bg": "и на в да се за от не е с че",
    "hr": "i u je na se da su za od s što",
    "id": "yang dan di dengan untuk dari ini itu pada tidak",
    "vi": "và của là có trong được cho không một các",
    "hi": "के में है की और से का को पर एक",
    "ar": "في من على أن إلى عن التي هذا مع لا ما",
    "fa": "و در به از که این را با است برای",
    "he": "של את על לא הוא זה עם כי גם או",
}
"""A language's commonest words: running text in it holds some of them. Languages that are not here are not asked."""
STOP_WORDS = {language: frozenset(words.split()) for language, words in _STOP_WORDS.items()}
_TEX = re.compile(r"\$[^$\n]{1,400}\$|\\[a-zA-Z]{2,}")


_LEAST_OWN_WORDS = 50  # beside links, for the rules to look at the running text alone
_LEAST_PROSE_WORDS = 50  # of running text, for there to be enough to judge
_LEAST_PROSE_SHARE = 0.2  # and of a page's words
LINE_RANGES = ("code_lines", "aside_lines", "link_lines")
"""The columns of a document on its way that tell what some of its lines are: start, end, start, end..."""


def keep_lines(row: dict[str, Any], keep: list[bool]) -> None:
    """Take lines out of a document; its ranges of lines move along, and of two empty lines that meet one goes."""
    lines = row["text"].split("\n")
    last = ""
    for number, line in enumerate(lines):
        keep[number] = keep[number] and bool(line or last)
        last = line if keep[number] else last
    kept = [line for line, stays in zip(lines, keep, strict=True) if stays]
    places = [0, *accumulate(map(int, keep))]  # of a bool the first sum would be a bool
    row["text"] = "\n".join(kept).rstrip("\n")
    for name in LINE_RANGES:
        found = [places[min(number, len(keep))] for number in row.get(name) or ()]
        pairs = zip(found[::2], found[1::2], strict=True)
        row[name] = [number for start, end in pairs if start < end for number in (start, end)]


class Text:
    """A text with the measures that several filters share, each computed once.

    `aside` are the lines that are known to be code, tables and lists, `links` those of lists of links: start, end...
    """

    def __init__(self, text: str, language: str = "en", aside: Sequence[int] = (), links: Sequence[int] = ()):
        self.text = text
        self.language = language
        self.word_characters = CHARACTERS_PER_WORD.get(language, 0)  # 0: spaces part the words
        self._aside, self._links = aside, links

    @cached_property
    def prose(self) -> Text | None:
        """The running text: without code, tables, lists and verse, lines that were broken at a width put together.

        Headings and labels go too where there are tables or lists to label. The whole text where little else than links
        is beside it; None where there is hardly any running text.
        """
        lines = self.text.split("\n")
        own = without(lines, self._links)
        if self._links and Text("\n".join(own), self.language).num_words < _LEAST_OWN_WORDS:
            return self
        prose = running_text(lines, [*self._aside, *self._links])
        if prose == self.text:
            return self
        found = Text("\n".join(line for line in prose.split("\n") if not is_label(line)), self.language)
        if found.num_words < _LEAST_PROSE_WORDS or found.num_words < _LEAST_PROSE_SHARE * self.num_words:
            beside = Text(prose, self.language).num_words
            return self if beside - found.num_words > self.num_words - beside else None  # a menu with an item among it
        return found

    @cached_property
    def words(self) -> list[str]:
        """What spaces part; in languages without spaces, single characters."""
        return split_words(self.text, self.language)

    @cached_property
    def lower_words(self) -> list[str]:
        """The words in lower case."""
        if self.word_characters:
            return [word.lower() for word in self.words]
        return self.text.lower().split()

    @property
    def num_words(self) -> int:
        """The number of words; estimated in languages without spaces."""
        return len(self.words) // (self.word_characters or 1)

    @cached_property
    def word_numbers(self) -> np.ndarray:  # (words,) uint64, see `herd.curate.ngrams`
        return word_numbers(self.text)

    @cached_property
    def lines(self) -> list[str]:
        """Lines that are not blank, without white space at their ends."""
        return [stripped for line in self.text.split("\n") if (stripped := line.strip())]

    @cached_property
    def word_ids(self) -> np.ndarray:  # (words,) int64
        numbers = {word: number for number, word in enumerate(dict.fromkeys(self.lower_words))}
        return np.fromiter(map(numbers.__getitem__, self.lower_words), dtype=np.int64, count=len(self.lower_words))

    def ngram_keys(self, n: int) -> np.ndarray:  # (words - n + 1,) uint64
        """One key for each n words in a row."""
        least, keys = max((item for item in self._ngram_keys.items() if item[0] <= n), key=lambda item: item[0])
        ids = self.word_ids.astype(np.uint64) + np.uint64(1) if least < n else self.word_ids
        for have in range(least, n):
            count = max(0, len(ids) - have)
            keys = keys[:count] * np.uint64(0x9E3779B97F4A7C15) + ids[have : have + count]
        self._ngram_keys[n] = keys
        return keys

    @cached_property
    def _ngram_keys(self) -> dict[int, np.ndarray]:  # by the number of words; those of none are zeros
        return {0: np.zeros(len(self.word_ids), dtype=np.uint64)}

    @cached_property
    def word_lengths(self) -> np.ndarray:  # (words,) characters
        return np.fromiter(map(len, self.words), dtype=np.int64, count=len(self.words))


def is_technical(text: str) -> bool:
    """Whether code or formulas make up a fair part of a text."""
    return technical_kind(text) is not None


def technical_kind(
    text: str, num_code_lines: int = 0, least_code: float = 0.2, least_maths: float = 0.05
) -> str | None:
    """`code` or `maths` where a fifth of the lines are code, a twentieth of the characters formulas, or both in part.

    `num_code_lines` is what the page itself marks as code blocks; lines that look like code count without.
    """
    head = text[:100_000]
    lines = [line for line in head.split("\n") if line.strip()]
    if not lines:
        return None
    num_code = max(num_code_lines, sum(map(looks_like_code, lines)))
    code = num_code / len(lines) / least_code
    maths = sum(map(len, _TEX.findall(head))) / len(head) / least_maths
    if code + maths < 1:
        return None
    return "code" if code >= maths else "maths"
