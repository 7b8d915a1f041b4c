"""Texts that stand in a code (base64, hex, rot13, Morse, ...) as what they say, where that is text."""

from __future__ import annotations

import base64
import binascii
import codecs
import html
import re
from collections.abc import Callable
from urllib.parse import unquote

from herd.safety.words import Words

_BASE64 = re.compile(r"(?<![\w+/=-])[A-Za-z0-9+/_-]{12,}={0,2}(?![\w+/=])")
_BASE32 = re.compile(r"(?<![\w=])[A-Z2-7]{16,}={0,6}(?![\w=])")
_HEX = re.compile(r"(?<![\w])(?:(?:0x|\\x)?[0-9a-fA-F]{2}[\s:,]?){6,}(?![\w])")
_BITS = re.compile(r"(?<![\w])(?:[01]{8}\s?){3,}(?![\w])")
_NUMBERS = re.compile(r"(?<![\w])(?:\d{2,3}[\s,]+){5,}\d{2,3}(?![\w])")
_ESCAPES = re.compile(r"(?:\\u[0-9a-fA-F]{4}|\\x[0-9a-fA-F]{2}){3,}")
_PERCENT = re.compile(r"(?<!\S)(?:[^\s%]*+%[0-9a-fA-F]{2}){3,}+\S*+")  # from a word's beginning on: read once
_ENTITY = re.compile(r"(?:&#x?[0-9a-fA-F]+;){3,}")
_MORSE = re.compile(
    r"(?<![\w.-])[.\-·−]{1,6}(?:\s*[/|]\s*|\s+)(?:[.\-·−]{1,6}(?:\s*[/|]\s*|\s+))+[.\-·−]{1,6}(?![\w.-])"
)
_CODED = 0.35  # of the letters in known words: a text below it may be in a code
_READABLE = 0.65
_MORSE_TABLE = (
    ".-a -...b -.-.c -..d .e ..-.f --.g ....h ..i .---j -.-k .-..l --m -.n ---o .--.p --.-q .-.r ...s -t ..-u ...-v "
    ".--w -..-x -.--y --..z"
)
_MORSE_LETTERS = {entry[:-1]: entry[-1] for entry in _MORSE_TABLE.split()}
_ATBASH = str.maketrans("abcdefghijklmnopqrstuvwxyz", "zyxwvutsrqponmlkjihgfedcba")


def decoded(text: str, words: Words) -> str:
    """The text with its coded parts as what they say."""
    for pattern, decode in _PARTS:
        pieces = _parted(pattern, text)
        pieces[1::2] = [_if_text(piece, decode, words) for piece in pieces[1::2]]
        text = "".join(pieces)
    return _from_pig_latin(_ciphered(text, words), words)


def _parted(pattern: re.Pattern[str], text: str) -> list[str]:
    """The text cut at what a pattern finds: what is between, what is found, what is between, ..."""
    found, last = [], 0
    for hit in pattern.finditer(text):
        found += [text[last : hit.start()], hit[0]]
        last = hit.end()
    return [*found, text[last:]]


def _if_text(part: str, decode: Callable[[str], bytes | str], words: Words) -> str:
    """What a part says, or the part where that is no text."""
    try:
        found = decode(part)
        text = found.decode("utf-8") if isinstance(found, bytes) else found
    except (ValueError, binascii.Error, UnicodeDecodeError):
        return part
    printable = sum(c.isprintable() or c in "\n\t" for c in text)
    letters = sum(c.isalpha() or c == " " for c in text)
    if len(text) < 3 or printable < len(text) or letters < 0.6 * len(text):
        return part
    chance = decode in (_numbers, _morse)  # numbers and dots are often nothing but that
    return text if not chance or words.share(text) > 0.4 else part


def _base64(part: str) -> bytes:
    part = part.rstrip("=").replace("-", "+").replace("_", "/")
    return base64.b64decode(part + "=" * (-len(part) % 4), validate=True)


def _base32(part: str) -> bytes:
    part = part.rstrip("=")
    return base64.b32decode(part + "=" * (-len(part) % 8))


def _hex(part: str) -> bytes:
    return bytes.fromhex(re.sub(r"0x|\\x|[\s:,]", "", part))


def _bits(part: str) -> bytes:
    digits = re.sub(r"\s", "", part)
    return bytes(int(digits[at : at + 8], 2) for at in range(0, len(digits) - 7, 8))


def _numbers(part: str) -> bytes:
    return bytes(int(number) for number in re.findall(r"\d+", part))


def _escapes(part: str) -> str:
    return re.sub(r"\\[ux]([0-9a-fA-F]{2,4})", lambda hit: chr(int(hit[1], 16)), part)


def _morse(part: str) -> str:
    part = part.replace("·", ".").replace("−", "-")
    coded = [word.split() for word in re.split(r"\s*[/|]\s*|\s{2,}", part)]
    return " ".join("".join(_MORSE_LETTERS.get(letter, "\0") for letter in word) for word in coded)


_PARTS: tuple[tuple[re.Pattern[str], Callable[[str], bytes | str]], ...] = (
    (_BITS, _bits),
    (_HEX, _hex),
    (_BASE32, _base32),
    (_BASE64, _base64),
    (_NUMBERS, _numbers),
    (_ESCAPES, _escapes),
    (_PERCENT, unquote),
    (_ENTITY, html.unescape),
    (_MORSE, _morse),
)


# ---- ciphers ---------------------------------------------------------------------------------------------------------


def _ciphered(text: str, words: Words) -> str:
    """Runs of unknown words as what they say backwards, turned by some places of the alphabet, or mirrored in it."""
    pieces = re.split(r"(?<=[:\n\"`])\s*|(?<=[.!?])\s+(?=\S)", text)
    if (whole := _plain(text, words)) != text:
        return whole
    for piece in pieces if len(pieces) > 1 else ():
        if piece and (found := _plain(piece, words)) != piece:
            text = text.replace(piece, found)
    return text


def _plain(text: str, words: Words) -> str:
    known = words.share(text)
    if known >= _CODED or sum(map(str.isalpha, text)) < 8 or " " not in text.strip():
        return text
    if not text.isascii() and sum(c.isascii() for c in text) < 0.7 * len(text):  # another language
        return text
    best = max(_ciphers(text), key=words.share)
    return best if words.share(best) >= max(_READABLE, known + 0.3) else text


def _ciphers(text: str) -> list[str]:
    lower = text.lower()
    turned = [_turned(lower, places) for places in range(1, 26)]
    backwards = [text[::-1], " ".join(word[::-1] for word in text.split(" "))]
    return [codecs.encode(text, "rot13"), *turned, *backwards, lower.translate(_ATBASH)]


def _turned(text: str, places: int) -> str:
    letters = "abcdefghijklmnopqrstuvwxyz"
    return text.translate(str.maketrans(letters, letters[places:] + letters[:places]))


def _from_pig_latin(text: str, words: Words) -> str:
    """`illkay imhay`, `ill-kay im-hay`: the beginning of a word stands at its end, before `ay`."""
    found = re.findall(r"[a-z]+(?:-[a-z]+)?", text.lower())
    if len(found) < 3 or sum(word.endswith("ay") for word in found) < 0.6 * len(found):
        return text

    def turned(hit: re.Match[str]) -> str:
        stem = (hit[1] + (hit[2] or "").replace("-", "")).lower()
        ways = [stem[cut:] + stem[:cut] for cut in range(len(stem), max(len(stem) - 4, 0), -1)]
        ways += [stem[:-1]] if stem[-1] in "wyh" and len(stem) > 1 else []
        return min(ways, key=words.rank)

    return re.sub(r"\b([a-z]+)(-[a-z]*)?ay\b", turned, text, flags=re.IGNORECASE)
