"""A text as the filters measure it: words, lines, what kind it is; and the common words of 27 languages."""

from __future__ import annotations

import re
from functools import cached_property

import numpy as np

from herd.curate.ngrams import word_numbers

Reason = tuple[str, str]
"""Why a document is dropped: the rule's name and the figure that broke it."""


_SPACELESS = r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff"
_SPACELESS_WORD = re.compile(rf"[{_SPACELESS}]|[^\s{_SPACELESS}]+")
_CHARACTERS_PER_WORD = {"zh": 2, "ja": 2, "th": 4, "lo": 4, "km": 4, "my": 4}
"""Languages that put no spaces between words, and how many characters make up a word on average."""
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
_CODE_START = re.compile(
    r"\s*(?:def |class |import |from \S+ import|return\b|if .*:$|for .*:$|while .*:$|#include|>>> |\$ |@\w+|"
    r"(?:public|private|static|const|let|var|function|fn|func)\s)"
)
_CODE_CALL = re.compile(r"\w\([^)]*\)\s*(?:[;{:]|->|$)")
_ASSIGNMENT = re.compile(r"\s*[\w.\[\]]+\s*[-+*/|&]?=\s*\S")
_TEX = re.compile(r"\$[^$\n]{1,400}\$|\\[a-zA-Z]{2,}")


class Text:
    """A text with the measures that several filters share, each computed once."""

    def __init__(self, text: str, language: str = "en"):
        self.text = text
        self.language = language
        self.word_characters = _CHARACTERS_PER_WORD.get(language, 0)  # 0: spaces part the words

    @cached_property
    def words(self) -> list[str]:
        """What spaces part; in languages without spaces, single characters."""
        return _SPACELESS_WORD.findall(self.text) if self.word_characters else self.text.split()

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
    num_code = max(num_code_lines, sum(map(_looks_like_code, lines)))
    code = num_code / len(lines) / least_code
    maths = sum(map(len, _TEX.findall(head))) / len(head) / least_maths
    if code + maths < 1:
        return None
    return "code" if code >= maths else "maths"


def _looks_like_code(line: str) -> bool:
    return bool(
        _CODE_START.match(line)
        or ("(" in line and _CODE_CALL.search(line))
        or ("=" in line and _ASSIGNMENT.match(line))
        or line.rstrip().endswith(("{", "}", ";"))
    )
