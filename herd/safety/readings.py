"""What a disguised text says: look-alike letters, hidden characters, spaced or coded words brought back to plain ones.

    words = Words(vocabulary)
    readings("k 1 l l  a  pr0cess", words)       # ["k 1 l l  a  pr0cess", "kill a process"]

Nothing is replaced in what goes on to a model: a reading is only for judging. The first reading is the text itself.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from importlib.resources import files

from herd.safety.codes import decoded
from herd.safety.words import Words

_ROUNDS = 3  # one disguise over another
_LONGEST = 20_000  # characters that are read otherwise; what is longer is read in parts
_TAGS = range(0xE0020, 0xE007F)  # invisible twins of ASCII
_ENCLOSED = ((0x1F130, 26), (0x1F150, 26), (0x1F170, 26), (0x1F1E6, 26))  # letters in boxes, circles and flags
_LETTER_NAME = re.compile(r"LATIN (?:SMALL |CAPITAL )?LETTER (?:SMALL CAPITAL )?([A-Z])(?: WITH .*)?")
_MARKS = re.compile(r"[\u0300-\u036f\u0489\u20d0-\u20ff]+")
_ODD_SPACES = re.compile(r"[^\S\n]")
_JOINED_STRINGS = re.compile(r"""(?<=\w)["']\s*[+.]\s*["'](?=\w)""")
_SINGLE = re.compile(r"(?<!\w)(?:\w(?P<gap>[ .\-_*|/·,~+:]{1,3}))(?:\w(?P=gap)+){2,}\w(?!\w)")
_WIDE = re.compile(r"(?<!\S)(?<!\S )\S(?: \S(?!\S))++(?: {2,}\S(?!\S)(?: \S(?!\S))*+)++")
_INNER = re.compile(r"\b[^\W\d_]+(?:[.\-_*|/·~^+][^\W\d_]+)+\b")
_LETTERS = re.compile(r"[^\W\d_]{12,}")
_LEET = {"0": "o", "1": "il", "2": "z", "3": "e", "4": "a", "5": "s", "6": "gb", "7": "t", "8": "b", "9": "g"}
_LEET |= {"@": "a", "$": "s", "!": "i", "|": "li", "+": "t", "(": "c", "€": "e", "£": "l", "¡": "i"}
_LEET_WORD = re.compile(r"[A-Za-z0-9@$!|+(€£¡]{2,24}")
_MOST_VARIANTS = 64
_COMMON = 200  # words that a sign of two characters may be


def readings(text: str, words: Words) -> list[str]:
    """The text, and what it says without its disguises where that differs."""
    if len(text) > _LONGEST:
        parts = [text[start : start + _LONGEST] for start in range(0, len(text), _LONGEST)]
        plain = "".join(normalized(part, words) for part in parts)
    else:
        plain = normalized(text, words)
    return [text] if _same(plain, text) else [text, plain]


def joined_readings(texts: Sequence[str], words: Words) -> list[str]:
    """What several messages say together: a request may be split over them, inside words too."""
    if len(texts) < 2:
        return []
    found = [normalized(gap.join(texts), words) for gap in (" ", "")]
    return list(dict.fromkeys(found))


def normalized(text: str, words: Words) -> str:
    """The text without its disguises; what has none stays as it is."""
    for _ in range(_ROUNDS):
        before = text
        for step in _STEPS:
            text = step(text, words)
        if text == before:
            break
    return text


def _same(one: str, other: str) -> bool:
    return " ".join(one.split()).lower() == " ".join(other.split()).lower()


# ---- characters ------------------------------------------------------------------------------------------------------


def _visible(text: str, words: Words) -> str:
    """Hidden characters away, invisible twins of letters shown, stacked marks and odd spaces gone."""
    if text.isascii():
        return "".join(c for c in text if c >= " " or c in "\n\t\r") if not text.isprintable() else text
    text = unicodedata.normalize("NFKC", text)
    found = []
    for char in text:
        code = ord(char)
        if code in _TAGS:
            found.append(chr(code - 0xE0000))
        elif start := next((start for start, count in _ENCLOSED if start <= code < start + count), 0):
            found.append(chr(ord("a") + code - start))
        elif char in "\n\t\r" or not (_is_hidden(char) or 0xFE00 <= code <= 0xFE0F):
            found.append(char)
    text = _MARKS.sub("", unicodedata.normalize("NFC", "".join(found)))
    return _ODD_SPACES.sub(lambda hit: hit[0] if hit[0] in "\t\r" else " ", text)


def _is_hidden(char: str) -> bool:
    return unicodedata.category(char) in ("Cf", "Cc", "Co", "Cn", "Cs") or char in "\u115f\u1160\u3164\u2800"


def _plain_letters(text: str, words: Words) -> str:
    """Look-alikes of Latin letters as these, in words that are mixed, or where hardly anything else is written."""
    if text.isascii():
        return text
    pieces = re.split(r"(\s+)", text)
    foreign = [piece for piece in pieces if not piece.isascii() and any(map(str.isalpha, piece))]
    alike = [piece for piece in foreign if all(c.isascii() or not c.isalpha() or c in _look_alikes() for c in piece)]
    everywhere = len(alike) >= 0.9 * len(foreign)
    for at, piece in enumerate(pieces):
        mixed = any(c.isascii() and c.isalpha() for c in piece)
        if not piece.isascii() and (everywhere or mixed):
            changed = "".join(_look_alikes().get(c, c) for c in piece)
            latin = all(c.isascii() or unicodedata.name(c, "").startswith("LATIN") for c in piece if c.isalpha())
            if not latin or _stripped(changed) in words:  # a French word keeps its accents
                pieces[at] = changed
    return "".join(pieces)


def _stripped(text: str) -> str:
    return text.strip(".,;:!?\"'()[]{}").lower()


@lru_cache(maxsize=1)
def _look_alikes() -> dict[str, str]:
    """Characters and the Latin letter or digit that each looks like. Source: Unicode's table of confusables."""
    table = json.loads((files("confusable_homoglyphs") / "confusables.json").read_text(encoding="utf-8"))
    found: dict[str, str] = {}
    for char, others in table.items():
        if len(char) == 1 and not char.isascii() and char.isalpha():
            plain = [one["c"] for one in others if len(one["c"]) == 1 and one["c"].isascii() and one["c"].isalpha()]
            if plain:
                found[char] = min(plain, key=lambda c: (c != c.lower(), c))
    for code in (*range(0xC0, 0x250), *range(0x250, 0x2B0), *range(0x1D00, 0x1D80), *range(0x1E00, 0x1F00)):
        if (hit := _LETTER_NAME.fullmatch(unicodedata.name(chr(code), ""))) and chr(code) not in found:
            found[chr(code)] = hit[1].lower()
    return found


# ---- words -----------------------------------------------------------------------------------------------------------


def _unspaced(text: str, words: Words) -> str:
    """Words whose letters stand apart, or with marks between, written as words again."""
    text = _JOINED_STRINGS.sub("", text)
    text = "\n".join(map(_every_second, text.split("\n")))
    text = _SINGLE.sub(lambda hit: _together(hit[0], words), text)
    return _INNER.sub(lambda hit: _without_marks(hit[0], words), text)


def _every_second(line: str) -> str:
    """`k.i.l.l. .h.i.m` without the mark between all of its characters."""
    marks = set(line[1::2])
    if len(line) < 7 or len(marks) != 1 or marks.pop().isalnum():
        return line
    kept = line[::2]
    return kept if sum(map(str.isalpha, kept)) >= 0.6 * len(kept) else line  # else it is a table or a list


def _together(run: str, words: Words) -> str:
    """`k i l l   h i m` by its wider gaps; without these, as the words that its letters make most likely."""
    if len({*re.findall(r"\W+|_+", run)}) > 1 or "  " in run:
        return run
    letters = re.sub(r"[\W_]", "", run)
    if not any(map(str.isalpha, letters)):  # 1 2 3 4 is a list
        return run
    return " ".join(words.cut(_unleeted(letters, words)))


def _without_marks(word: str, words: Words) -> str:
    """`b.o.m.b`, `bo-mb`: one word where its parts are none and together they are."""
    parts = re.split(r"[^\w]|_", word)
    whole = "".join(parts)
    if whole.lower() in words and not all(len(part) > 2 and part.lower() in words for part in parts):
        return whole
    singles = all(len(part) == 1 for part in parts)
    return " ".join(words.cut(whole)) if singles and len(parts) > 3 else word


def _wide_gaps(text: str, words: Words) -> str:
    """Letters apart by one space and words by more: the wider gaps are the borders."""
    return _WIDE.sub(lambda hit: " ".join(part.replace(" ", "") for part in re.split(r" {2,}", hit[0])), text)


def _cut_apart(text: str, words: Words) -> str:
    """`howtomakeabomb` as its words; a word that is one stays."""

    def cut(hit: re.Match[str]) -> str:
        if hit[0].lower() in words:
            return hit[0]
        parts = words.cut(hit[0])
        good = sum(len(part) for part in parts if part.lower() in words)
        short = sum(len(part) < 3 for part in parts)
        return " ".join(parts) if good == len(hit[0]) and len(parts) > 2 and short <= len(parts) / 2 else hit[0]

    return _LETTERS.sub(cut, text)


def _leet(text: str, words: Words) -> str:
    """`k1ll`, `b0mb`: digits and signs as letters where that makes a word, and it was none."""
    return _LEET_WORD.sub(lambda hit: _unleeted(hit[0], words), text)


def _unleeted(word: str, words: Words) -> str:
    lower = word.lower()
    tail = lower.rstrip("!|+(")  # marks at the end are marks, if the rest is a word
    if word.isalpha() or not any(c.isalpha() for c in word) or (tail in words and tail.isalpha()):
        return word
    for whole in dict.fromkeys((lower, tail)):
        found = [variant for variant in _variants(whole) if variant in words]
        best = min(found, key=words.rank, default="")
        if len(best) > 2 or (best and words.rank(best) < _COMMON):  # 3d, 5g and the like are what they are
            return best + word[len(whole) :]
    return word


def _variants(word: str) -> Iterable[str]:
    found = [""]
    for char in word:
        found = [begin + letter for begin in found for letter in _LEET.get(char, char)][:_MOST_VARIANTS]
    return (one for one in found if one.isalpha())


_STEPS: tuple[Callable[[str, Words], str], ...] = (
    _visible,
    _plain_letters,
    decoded,
    _wide_gaps,
    _unspaced,
    _leet,
    _cut_apart,
)
