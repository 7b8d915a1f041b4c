"""SentencePiece vocabularies: its `.model` files, and scored pieces as a `tokenizer.json`.

A `.model` is a protocol buffer, of which three parts matter here: the pieces with score and kind, whether it is BPE or
Unigram, and whether a space is put before a text.

Source: sentencepiece_model.proto in SentencePiece.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from herd.errors import DataError
from herd.tokenizer.alphabet import WORD_START

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
"""Kinds of pieces, numbered as in GGUF."""

_UNIGRAM, _BPE = 1, 2


class Piece(NamedTuple):
    """An entry of the vocabulary."""

    name: str
    score: float
    kind: int


def is_model(content: bytes) -> bool:
    """Whether a file seems to be a SentencePiece model: it begins with a piece, and is not text."""
    return content[:1] == b"\x0a" and b"\x00" in content[:4096]


def read_model(content: bytes, path: Path) -> tuple[dict[str, Any], str | None, str | None]:
    """A SentencePiece model as a `tokenizer.json`, and the names of its begin and end tokens.

    Raises:
        DataError: it is damaged, or neither BPE nor Unigram.
    """
    pieces: list[Piece] = []
    kind, opens, bos, eos = _UNIGRAM, True, 1, 2
    try:
        for number, value in _fields(content):
            if number == 1:
                pieces.append(_piece(value))
            elif number == 2:
                spec = dict(_fields(value))
                kind, bos, eos = spec.get(3, kind), _signed(spec.get(41, bos)), _signed(spec.get(42, eos))
            elif number == 3:
                opens = bool(dict(_fields(value)).get(3, 1))
    except (IndexError, ValueError, TypeError, struct.error):
        raise DataError(f"{path}: a damaged or truncated SentencePiece model.") from None
    if kind not in (_UNIGRAM, _BPE):
        raise DataError(f"{path}: a SentencePiece model of words or characters; only BPE and Unigram are supported.")
    data = pieces_json(pieces, opens_with_space=opens, unigram=kind == _UNIGRAM)
    names = {i: piece.name for i, piece in enumerate(pieces)}
    if names.get(bos):
        data["post_processor"] = opening(names[bos], bos)
    return data, names.get(bos), names.get(eos)


def _piece(content: bytes) -> Piece:
    fields = dict(_fields(content))
    (score,) = struct.unpack("<f", fields.get(2, b"\x00" * 4))
    return Piece(fields.get(1, b"").decode(), score, fields.get(3, NORMAL))


def _fields(content: bytes) -> Iterator[tuple[int, Any]]:
    """Number and value of each field of a protocol buffer's message."""
    place = 0
    value: int | bytes
    while place < len(content):
        key, place = _varint(content, place)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, place = _varint(content, place)
        elif wire in (1, 2, 5):
            size, place = _varint(content, place) if wire == 2 else ((8 if wire == 1 else 4), place)
            value, place = bytes(content[place : place + size]), place + size
            if place > len(content):
                raise ValueError("cut short")
        else:
            raise ValueError("no such kind of field")
        yield number, value


def _varint(content: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = content[place]
        value |= (byte & 127) << shift
        place, shift = place + 1, shift + 7
        if byte < 128:
            return value, place


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


# ---- write -----------------------------------------------------------------------------------------------------------


def pieces_json(pieces: Sequence[Piece], *, opens_with_space: bool, unigram: bool = False) -> dict[str, Any]:
    """Scored pieces, in order of id, as a `tokenizer.json`.

    Unused pieces are left out. A space is put before every section of text between special tokens, as in llama.cpp and
    `transformers`; SentencePiece itself puts one only before the first if a user-defined symbol is between them.
    BPE: of the adjacent pairs that make a piece, the one with the best score is merged first.
    """
    rows = {i: piece for i, piece in enumerate(pieces) if piece.kind != UNUSED}
    unknown = next((i for i, piece in rows.items() if piece.kind == UNKNOWN), None)
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": WORD_START}
    back = {"type": "Replace", "pattern": {"String": WORD_START}, "content": " "}
    prepend = [{"type": "Prepend", "prepend": WORD_START}] if opens_with_space else []
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if opens_with_space else []
    bytes_there = any(piece.kind == BYTE for piece in pieces)
    model: dict[str, Any]
    if unigram:
        scored = [[piece.name, piece.score] for piece in pieces]
        model = {"type": "Unigram", "unk_id": unknown, "vocab": scored, "byte_fallback": bytes_there}
    else:
        model = {
            "type": "BPE",
            "unk_token": None if unknown is None else rows[unknown].name,
            "fuse_unk": True,
            "byte_fallback": bytes_there,
            "vocab": {piece.name: i for i, piece in rows.items()},
            "merges": _merges(rows),
        }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            added_token(piece.name, i, special=piece.kind != USER_DEFINED)
            for i, piece in rows.items()
            if piece.kind in (UNKNOWN, CONTROL, USER_DEFINED)
        ],
        "normalizer": {"type": "Sequence", "normalizers": [*prepend, replace]},
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": [back, {"type": "ByteFallback"}, {"type": "Fuse"}, *strip]},
        "model": model,
    }


def _merges(rows: dict[int, Piece]) -> list[list[str]]:
    ids = {piece.name: i for i, piece in rows.items() if piece.kind in (NORMAL, USER_DEFINED)}
    ways: Iterable[tuple[float, int, int, list[str]]] = (
        (-rows[i].score, ids[name[:cut]], ids[name[cut:]], [name[:cut], name[cut:]])
        for name, i in ids.items()
        if rows[i].kind == NORMAL
        for cut in range(1, len(name))
        if name[:cut] in ids and name[cut:] in ids
    )
    return [way for *_, way in sorted(ways)]


def added_token(name: str, token_id: int, *, special: bool = True) -> dict[str, Any]:
    """An added token's entry in `tokenizer.json`; one that is not special counts as text."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": special}
    return {"id": token_id, "content": name, **flags}


def opening(bos: str, bos_id: int | None) -> dict[str, Any]:
    """The post-processor that puts a BOS token before every text."""
    return {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": bos, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [
            {"SpecialToken": {"id": bos, "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
            {"SpecialToken": {"id": bos, "type_id": 1}},
            {"Sequence": {"id": "B", "type_id": 1}},
        ],
        "special_tokens": {bos: {"id": bos, "ids": [bos_id], "tokens": [bos]}},
    }
