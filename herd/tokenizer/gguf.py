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
from typing import TYPE_CHECKING, Any

from herd.errors import DataError
from herd.tokenizer.alphabet import is_byte_piece, write_bytes
from herd.tokenizer.files import merges, split_merges
from herd.tokenizer.pieces import adds_a_space
from herd.tokenizer.specials import END_OF_MESSAGE, END_OF_TURN, PAD

if TYPE_CHECKING:
    from herd.tokenizer.tokenizer import Tokenizer


class TokenType(IntEnum):
    """What a row of the vocabulary is to llama.cpp."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
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
