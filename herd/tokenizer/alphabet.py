"""The two encodings of bytes as characters in `tokenizer.json`."""

from __future__ import annotations

import re
from functools import cache

_BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")
WORD_START = "\u2581"  # how SentencePiece writes a space


@cache
def byte_characters() -> dict[int, str]:
    """GPT-2's visible character for each byte: printable ones are unchanged, the others are from U+0100 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    moved = (b for b in range(256) if b not in printable)
    return {b: chr(b) for b in printable} | {b: chr(256 + n) for n, b in enumerate(moved)}


@cache
def _character_bytes() -> dict[str, int]:
    return {char: b for b, char in byte_characters().items()}


def write_bytes(token: bytes) -> str:
    """A byte-level token as `tokenizer.json` names it: b" a" -> "Ġa"."""
    return "".join(map(byte_characters().__getitem__, token))


def read_bytes(name: str) -> bytes:
    """The bytes of a byte-level token's name; KeyError for a character that encodes no byte."""
    return bytes(map(_character_bytes().__getitem__, name))


def read_piece(name: str) -> bytes:
    """The bytes of a SentencePiece token's name: "▁a" -> b" a", "<0x0A>" -> b"\\n"."""
    if match := _BYTE_PIECE.fullmatch(name):
        return bytes([int(match[1], 16)])
    return name.replace(WORD_START, " ").encode()


def is_byte_piece(name: str) -> bool:
    """Whether a SentencePiece token is a single byte: "<0x0A>"."""
    return _BYTE_PIECE.fullmatch(name) is not None
