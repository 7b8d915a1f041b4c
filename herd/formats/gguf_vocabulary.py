"""A vocabulary as GGUF files hold it, the form that llama.cpp reads.

tokenizer.ggml.model       `gpt2` for byte-level BPE (Llama 3), `llama` for SentencePiece's kind (Llama 1 and 2)
tokenizer.ggml.pre         which split pattern: `llama-bpe` is Llama 3's, and takes whole pre-tokens first
tokenizer.ggml.tokens      one name a row, as in `tokenizer.json`
tokenizer.ggml.token_type  one kind a row (`TokenType`)
tokenizer.ggml.merges      "left right" in order of rank (byte-level), or
tokenizer.ggml.scores      one figure a row, the higher is merged first (SentencePiece's kind)
tokenizer.ggml.*_token_id  begin, end, end of turn, end of message, padding, unknown
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from enum import IntEnum
from pathlib import Path
from typing import Any

from herd.errors import DataError
from herd.formats.gguf import GGUFFile
from herd.tokenizer.alphabet import WORD_START, is_byte_piece, read_bytes, write_bytes
from herd.tokenizer.bpe import merges
from herd.tokenizer.pieces import adds_a_space, split_merges
from herd.tokenizer.specials import END_OF_MESSAGE, END_OF_TURN, PAD
from herd.tokenizer.tokenizer import Tokenizer


class TokenType(IntEnum):
    """What a row of the vocabulary is to llama.cpp."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


def gguf_fields(tokenizer: Tokenizer, num_rows: int | None = None) -> dict[str, Any]:
    """The metadata of a GGUF file that describe a tokenizer, under their full names: str, int, bool and lists.

    Lists are of str (tokens, merges), int (token_type: int32) and float (scores: float32). `num_rows` is the number of
    rows of the model's embedding where that is more than the vocabulary's; what is left over is marked unused.

    Raises:
        DataError: the vocabulary is of a kind that GGUF knows no name for, or has more rows than `num_rows`.
    """
    fields = _pieces_fields(tokenizer) if tokenizer.pieces is not None else _byte_level_fields(tokenizer)
    rows = dict(fields.pop("rows"))
    end = tokenizer.vocab_size if num_rows is None else num_rows
    if end < tokenizer.vocab_size:
        raise DataError(f"the tokenizer has {tokenizer.vocab_size} rows, the model's embedding only {num_rows}")
    names, types = zip(*(rows.get(i, (f"[PAD{i}]", TokenType.UNUSED)) for i in range(end)), strict=True)
    if scores := fields.pop("scores", None):
        fields["tokenizer.ggml.scores"] = [scores.get(i, 0.0) for i in range(end)]
    ids = {name: tokenizer.special.get(token) for name, token in _named(tokenizer)}
    return {
        **fields,
        "tokenizer.ggml.tokens": list(names),
        "tokenizer.ggml.token_type": list(map(int, types)),
        **{f"tokenizer.ggml.{name}_token_id": token_id for name, token_id in ids.items() if token_id is not None},
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.chat_template": tokenizer.chat_template,
    }


def _named(tokenizer: Tokenizer) -> Iterable[tuple[str, str]]:
    yield from (("bos", tokenizer.bos), ("eos", tokenizer.eos), ("eot", END_OF_TURN), ("eom", END_OF_MESSAGE))
    yield from (("padding", PAD), ("unknown", "<unk>"))


def _special_rows(tokenizer: Tokenizer) -> dict[int, tuple[str, TokenType]]:
    unknown = {"<unk>": TokenType.UNKNOWN}
    return {i: (name, unknown.get(name, TokenType.CONTROL)) for name, i in tokenizer.special.items()}


def _byte_level_fields(tokenizer: Tokenizer) -> dict[str, Any]:
    rows = {rank: (write_bytes(token), TokenType.NORMAL) for token, rank in tokenizer.ranks.items()}
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "llama-bpe",
        "tokenizer.ggml.merges": [
            f"{write_bytes(left)} {write_bytes(right)}" for left, right in merges(tokenizer.ranks)
        ],
        "rows": rows | _special_rows(tokenizer),
    }


def _pieces_fields(tokenizer: Tokenizer) -> dict[str, Any]:
    data = json.loads(tokenizer.pieces or "")
    model = data["model"]
    if not model.get("byte_fallback"):
        raise DataError(
            "GGUF has no name for this vocabulary's way of splitting text; Llama's own kinds can be written"
        )
    vocabulary = model["vocab"]
    rows = {i: (name, TokenType.BYTE if is_byte_piece(name) else TokenType.NORMAL) for name, i in vocabulary.items()}
    scores: dict[int, float] = {}
    for order, (left, right) in enumerate(split_merges(model["merges"])):
        scores.setdefault(vocabulary[left + right], -float(order))
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.add_space_prefix": adds_a_space(data),
        "rows": rows | _special_rows(tokenizer),
        "scores": scores,
    }


# ---- read ------------------------------------------------------------------------------------------------------------

_LLAMA3_SPLITS = ("llama-bpe", "llama3", "llama-v3")  # llama.cpp's names for Llama 3's pattern
_TEMPLATE = "tokenizer.chat_template"


def read_vocabulary(file: GGUFFile) -> Tokenizer:
    """The tokenizer in a GGUF file.

    Raises:
        DataError: it holds no vocabulary, or one of a kind that is not supported.
    """
    parts = _parts(file.fields, file.path)
    try:
        return Tokenizer(**parts)
    except DataError as error:
        raise DataError(f"{file.path}: {error}") from None


def read_template(file: GGUFFile) -> str | None:
    """The chat template in a GGUF file, None where there is none."""
    template = file.fields.get(_TEMPLATE)
    return template if isinstance(template, str) else None


def _parts(fields: dict[str, Any], path: Path) -> dict[str, Any]:
    kind = fields.get("tokenizer.ggml.model")
    names, types = fields.get("tokenizer.ggml.tokens"), fields.get("tokenizer.ggml.token_type")
    if kind not in ("gpt2", "llama") or not isinstance(names, list) or not isinstance(types, list):
        raise DataError(f"{path}: holds no vocabulary of a Llama (tokenizer.ggml.model is {kind!r}).")
    if len(names) != len(types):
        raise DataError(f"{path}: {len(names)} tokens but {len(types)} token types.")
    rows = {i: (name, type) for i, (name, type) in enumerate(zip(names, types)) if type != TokenType.UNUSED}
    parts = _byte_level_parts(fields, rows, path) if kind == "gpt2" else _pieces_parts(fields, rows, path)
    for role in ("bos", "eos"):
        token_id = fields.get(f"tokenizer.ggml.{role}_token_id")
        if isinstance(token_id, int) and token_id in rows:
            parts[role] = names[token_id]
            parts["special"].setdefault(names[token_id], token_id)
    if isinstance(template := fields.get(_TEMPLATE), str):
        parts["chat_template"] = template
    return parts


def _byte_level_parts(fields: dict[str, Any], rows: dict[int, tuple[str, int]], path: Path) -> dict[str, Any]:
    if (split := fields.get("tokenizer.ggml.pre")) not in _LLAMA3_SPLITS:
        raise DataError(f"{path}: splits text in the way {split!r}; of byte-level vocabularies Llama 3's are read.")
    ranks, special = {}, {}
    for token_id, (name, type) in rows.items():
        if type in (TokenType.CONTROL, TokenType.USER_DEFINED):
            special[name] = token_id
        else:
            ranks[read_bytes(name)] = token_id
    if sorted(ranks.values()) != list(range(len(ranks))):
        raise DataError(f"{path}: the ids of its {len(ranks)} ordinary tokens are not 0 to {len(ranks) - 1}.")
    return {"ranks": ranks, "special": special}


def _pieces_parts(fields: dict[str, Any], rows: dict[int, tuple[str, int]], path: Path) -> dict[str, Any]:
    """SentencePiece's kind as a `tokenizer.json`: of the neighbours that make a piece, the best score goes first."""
    scores = fields.get("tokenizer.ggml.scores")
    if not isinstance(scores, list) or len(scores) < len(rows):
        raise DataError(f"{path}: lacks the field tokenizer.ggml.scores.")
    kinds = (TokenType.CONTROL, TokenType.USER_DEFINED, TokenType.UNKNOWN)
    special = {name: i for i, (name, type) in rows.items() if type in kinds}
    vocabulary = {name: i for i, (name, _) in rows.items()}
    pieces = {name for name, i in vocabulary.items() if rows[i][1] == TokenType.NORMAL}
    ways = [
        (-scores[vocabulary[name]], vocabulary[name[:cut]], vocabulary[name[cut:]], [name[:cut], name[cut:]])
        for name in pieces
        for cut in range(1, len(name))
        if name[:cut] in pieces and name[cut:] in pieces
    ]
    opens = fields.get("tokenizer.ggml.add_space_prefix", True)
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": WORD_START}
    back = {"type": "Replace", "pattern": {"String": WORD_START}, "content": " "}
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if opens else []
    data = {
        "version": "1.0",
        "added_tokens": [_added(name, i) for name, i in special.items()],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [*([{"type": "Prepend", "prepend": WORD_START}] if opens else []), replace],
        },
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": [back, {"type": "ByteFallback"}, {"type": "Fuse"}, *strip]},
        "model": {
            "type": "BPE",
            "unk_token": next((name for name, i in special.items() if rows[i][1] == TokenType.UNKNOWN), None),
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": vocabulary,
            "merges": [way for *_, way in sorted(ways)],
        },
    }
    return {"ranks": {}, "special": special, "pieces": json.dumps(data)}


def _added(name: str, token_id: int) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"id": token_id, "content": name, **flags}
