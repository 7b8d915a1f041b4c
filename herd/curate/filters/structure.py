"""Which lines of a text are running text, and which are code, tables, lists, verse: rules made for prose judge prose.

What a page marks (`pre`, tables, lists) is told by ranges of lines; of plain text the shape of the lines tells.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

_CODE_START = re.compile(
    r"\s*(?:def |class |import |from \S+ import|return\b|if .*:$|for .*:$|while .*:$|#include|>>> |\$ |@\w+|"
    r"(?:public|private|static|const|let|var|function|fn|func)\s)"
)
_CODE_CALL = re.compile(r"\w\([^)]*\)\s*(?:[;{:]|->|$)")
_ASSIGNMENT = re.compile(r"\s*[\w.\[\]]+\s*[-+*/|&]?=\s*\S")
_LIST_ITEM = re.compile(r"\s*(?:[-*+•‣▪◦·]|\(?(?:\d{1,3}|[a-zA-Z])[.)])\s+\S")
_UNITS = (
    r"cups?|tsps?|tbsps?|tablespoons?|teaspoons?|oz|ounces?|lbs?|pounds?|k?g|mg|grams?|[mcd]?l|lit(?:re|er)s?|slices?|"
    r"pieces?|pinch(?:es)?|cloves?|servings?|cans?|handfuls?|sticks?|glass(?:es)?|bowls?|large|medium|small|el|tl|"
    r"prisen?|stück|tassen?|gramm|bund|zehen?|cuill[eè]res?|c\. ?à|tasses?|verres?|tranches?|gousses?|"
    r"cucharad(?:it)?as?|tazas?|vasos?|dientes?|cucchiai\w*|bicchier[ei]|łyż\w+|szklan\w+|ст\. ?л|ч\. ?л|г|кг|мл|шт"
)
_QUANTITY = re.compile(  # of a recipe: "1 cup of skim milk"
    r"\s*(?:\d{1,4}(?:[.,/]\d{1,3})?|[½¼¾⅓⅔⅛]|an?|one|two|three)(?: ?[½¼¾⅓⅔⅛]| \d/\d)?(?: ?[-–] ?\d{1,4})? ?"
    rf"(?:{_UNITS})(?!\w)",
    re.I,
)
_SPEECH = re.compile(  # a line of dialogue: quoted, behind a dash, or behind the name of who speaks
    r"\s*(?:[\"“„‟«»‹「『'‘]\s*\S.*[.!?…。！？,—–-][\"”“’»«›」』'](?:.{0,300}[.!?…。！？:,;])?|[—–―]\s?\S.*[.!?…:,]|"
    r"[^\W\d_a-z][\w.'’-]{0,20}(?: [^\W\d_a-z][\w.'’-]{0,20}){0,3}[:.] \S.*[.!?…][\"”’)]?)\s*"
)
_VALUES = re.compile(r"[^,\n]*(?:,[^,\s][^,\n]*){3,}")  # separated by commas, without spaces
_COLUMNS = re.compile(r"\S(?: {3,}|\t)\S.*\S(?: {3,}|\t)\S|^\s*\|.*\|\s*$|^\s*[-+|=: ]{5,}$")
_MAX_ITEM_CHARACTERS = 300
_END_OF_VERSE = (",", ";", ":", ".", "!", "?", "—", "–", "…", "”", '"', "’", "'", "。", "，", "、", "！", "？", "।")
_VERSE = (4, 70, 3.0, 0.3)  # lines of a stanza at least, characters of a line at most, mean words, share of end marks
_SONG = (3.5, 0.4)  # mean words of the lines of a stanza without marks, share of them that speak of me and you
_ME_AND_YOU = re.compile(
    r"(?<!\w)(?:i|i['’]\w{1,2}|me|my|mine|you|your|you['’]\w{1,2}|we|we['’]\w{1,2}|us|our|"  # English
    r"ich|mich|mir|mein\w{0,2}|du|dich|dir|dein\w{0,2}|wir|uns|je|j['’]\w+|moi|mon|ma|mes|tu|toi|ton|ta|nous|"
    r"yo|mí|mi|mis|tú|ti|eu|meu|minha|io|mio|mia|ik|mij|jij|jou|jag|mig|jeg|meg|ja|mnie|ty|ciebie|я|меня|мне|ты|тебя|мы)"
    r"(?!\w)",
    re.I,
)
_CHAT = re.compile(  # who speaks, perhaps behind the time: `[12:01] <anne> hi`, `Anne: hi`
    r"\s*(?:[\[(]?\d{1,2}:\d\d(?::\d\d)?(?: ?[ap]m)?[\])]?,? ?(?:[-–] ?)?)?"
    r"(?:<[@+%~&]?(?P<nick>[^<>\n]{1,24})>|(?P<name>[^\W\d_][\w.'-]{0,20}(?: [^\W\d_][\w.'-]{0,20})?) ?:)"
    r"\s+[^\W\d]",
    re.I,
)
_CHAT_LINES, _CHAT_SHARE = 6, 0.8  # of speakers who speak more than once; of all lines
_MAX_LABEL_WORDS = 6
_MAX_QUANTITY_WORDS = 12
_WIDTH = (50, 100)  # characters within which lines are broken
_TYPICAL_LENGTH = 0.75  # of the width, that every broken line but the last has


def running_text(lines: list[str], aside: Sequence[int] = ()) -> str:
    """The running text among some lines, each paragraph on a line of its own; `aside`: start, end, start, end..."""
    found: list[str] = []
    block: list[str] = []
    for line in [*_without_chat(without(lines, aside)), ""]:
        if line.strip():
            block.append(line)
        elif block:
            found += [*_paragraphs(block), ""]
            block = []
    return "\n".join(found).strip("\n")


def without(lines: list[str], ranges: Sequence[int]) -> list[str]:
    """Lines of which some ranges (start, end, start, end...) are blank."""
    if not ranges:
        return lines
    lines = list(lines)
    for start, end in zip(ranges[::2], ranges[1::2], strict=True):
        end = min(end, len(lines))
        lines[start:end] = [""] * max(0, end - start)
    return lines


def _without_chat(lines: list[str]) -> list[str]:
    """Lines of which those of a chat are blank: several speakers, of whom each speaks again."""
    said = [_CHAT.match(line) if ":" in line or ">" in line else None for line in lines]
    names = [one and (one["nick"] or one["name"]) for one in said]
    counts = Counter(name for name in names if name)
    speakers = {name for name, count in counts.items() if count > 1}
    spoken = sum(counts[name] for name in speakers)
    if len(speakers) < 2 or spoken < max(_CHAT_LINES, _CHAT_SHARE * sum(map(bool, map(str.strip, lines)))):
        return lines
    return ["" if name else line for name, line in zip(names, lines, strict=True)]


def _paragraphs(block: list[str]) -> list[str]:
    """The running text of lines without an empty one between."""
    if is_verse(block):
        return []
    if is_broken_at_a_width(block):
        return [" ".join(line.strip() for line in block)] if not _LIST_ITEM.match(block[0]) else []
    return [line for line in block if not is_structured(line)]


def is_structured(line: str) -> bool:
    """Whether a line is of a table, a list or code by its shape."""
    if "\t" in line.strip() or (
        ("   " in line or "|" in line or "--" in line or "==" in line) and _COLUMNS.search(line)
    ):
        return True
    if len(line) <= _MAX_ITEM_CHARACTERS and (_LIST_ITEM.match(line) or _is_quantity(line)):
        return True
    return looks_like_code(line) or (line.count(",") > 2 and _VALUES.fullmatch(line) is not None)


def _is_quantity(line: str) -> bool:
    """Whether a line is an ingredient or a portion: so much of it, and no sentence."""
    is_short = len(line.split()) <= _MAX_QUANTITY_WORDS and not line.endswith((".", "!", "?"))
    return is_short and _QUANTITY.match(line) is not None


def is_speech(line: str) -> bool:
    """Whether a line is what somebody says: quoted, behind a dash, or behind a name, with a mark at its end."""
    return _SPEECH.fullmatch(line) is not None


def is_label(line: str) -> bool:
    """Whether a line is a heading, a term, a signature: a few words without a mark at their end."""
    return len(line.split()) <= _MAX_LABEL_WORDS and not line.rstrip().endswith(_END_OF_VERSE) and len(line) < 80


def is_verse(block: list[str]) -> bool:
    """Whether lines are a stanza: short ones of several words, many with a mark at their end or of me and you."""
    least, most_characters, least_words, least_marks = _VERSE
    if len(block) < least or max(map(len, block)) > most_characters:
        return False
    words = sum(len(line.split()) for line in block)
    marks = sum(line.rstrip().endswith(_END_OF_VERSE) for line in block)
    if marks < least_marks * len(block):  # a song without marks, or headlines and menus
        least_words, least_share = _SONG
        if sum(_ME_AND_YOU.search(line) is not None for line in block) < least_share * len(block):
            return False
    return words >= least_words * len(block) and not is_broken_at_a_width(block)


def is_broken_at_a_width(block: list[str]) -> bool:
    """Whether lines are one paragraph that was broken where it reached a width."""
    lengths = [len(line.rstrip()) for line in block]
    width = max(lengths)
    least, most = _WIDTH
    return len(block) > 1 and least <= width <= most and min(lengths[:-1]) >= _TYPICAL_LENGTH * width


def looks_like_code(line: str) -> bool:
    """Whether a line looks like one of source code."""
    return bool(
        _CODE_START.match(line)
        or ("(" in line and _CODE_CALL.search(line))
        or ("=" in line and _ASSIGNMENT.match(line))
        or line.rstrip().endswith(("{", "}", ";"))
    )
