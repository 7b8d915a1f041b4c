"""Vocabularies in GGUF files, in the form that llama.cpp reads.

tokenizer.ggml.model       `gpt2` for byte-level BPE (Llama 3), `llama` for SentencePiece BPE (Llama 1 and 2)
tokenizer.ggml.pre         the pre-tokenizer's pattern, by llama.cpp's name (`herd.tokenizer.splits`)
tokenizer.ggml.tokens      the tokens in order of id, as in `tokenizer.json`
tokenizer.ggml.token_type  their types (`TokenType`)
tokenizer.ggml.merges      "left right" in order of rank (byte-level), or
tokenizer.ggml.scores      a score for each token, highest merged first (SentencePiece)
tokenizer.ggml.*_token_id  begin, end, end of turn, end of message, padding, unknown
"""

from __future__ import annotations

import json
from enum import IntEnum
from pathlib import Path
from typing import Any

from herd.errors import DataError
from herd.formats.gguf import GGUFFile
from herd.tokenizer.alphabet import is_byte_piece, write_bytes
from herd.tokenizer.beside import CONFIG_FILE, MAP_FILE
from herd.tokenizer.bpe import merges
from herd.tokenizer.io import parts_of_json
from herd.tokenizer.pieces import adds_a_space, is_byte_level, split_merges
from herd.tokenizer.sentencepiece import Piece, added_token, opening, pieces_json
from herd.tokenizer.specials import END_OF_MESSAGE, END_OF_TURN, PAD
from herd.tokenizer.splits import SPLITS, find_split, name_split, pre_tokenizer
from herd.tokenizer.tokenizer import Tokenizer


class TokenType(IntEnum):
    """llama.cpp's type of a token."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


_TEMPLATE = "tokenizer.chat_template"
_BESIDE, _CARRIED = "herd.beside.", (CONFIG_FILE, MAP_FILE)  # Herd's own fields, so that a folder can be restored


def gguf_fields(tokenizer: Tokenizer, num_rows: int | None = None) -> dict[str, Any]:
    """A GGUF file's fields for a tokenizer, by full name: str, int, bool and lists.

    Lists are of str (tokens, merges), int (token_type: int32) or float (scores: float32). `num_rows` is the number of
    rows of the model's embedding, if larger than the vocabulary; the remaining ids are marked unused.

    Raises:
        DataError: GGUF does not support this kind of vocabulary, or it is larger than `num_rows`.
    """
    fields = _pieces_fields(tokenizer) if tokenizer.pieces is not None else _byte_level_fields(tokenizer)
    rows = dict(fields.pop("rows"))
    end = tokenizer.vocab_size if num_rows is None else num_rows
    if end < tokenizer.vocab_size:
        raise DataError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, but the model's embedding only {num_rows} rows"
        )
    names, types = zip(*(rows.get(i, (f"[PAD{i}]", TokenType.UNUSED)) for i in range(end)), strict=True)
    if scores := fields.pop("scores", None):
        fields["tokenizer.ggml.scores"] = [scores.get(i, 0.0) for i in range(end)]
    named = {"bos": tokenizer.bos, "eos": tokenizer.eos, "eot": END_OF_TURN, "eom": END_OF_MESSAGE}
    named |= {"padding": tokenizer.pad or PAD, "unknown": fields.pop("unknown", None) or "<unk>"}
    ids = {
        role: token_id for role, name in named.items() if (token_id := tokenizer.special.get(name or "")) is not None
    }
    template = {} if tokenizer.chat_template is None else {_TEMPLATE: tokenizer.chat_template}
    return {
        **fields,
        "tokenizer.ggml.tokens": list(names),
        "tokenizer.ggml.token_type": list(map(int, types)),
        **{f"tokenizer.ggml.{role}_token_id": token_id for role, token_id in ids.items()},
        "tokenizer.ggml.add_bos_token": tokenizer.add_bos,
        **template,
        **{_BESIDE + name: content.decode() for name, content in (tokenizer.beside or {}).items() if name in _CARRIED},
    }


def _special_rows(tokenizer: Tokenizer) -> dict[int, tuple[str, TokenType]]:
    kinds = dict.fromkeys(tokenizer.visible, TokenType.USER_DEFINED) | {"<unk>": TokenType.UNKNOWN}
    return {i: (name, kinds.get(name, TokenType.CONTROL)) for name, i in tokenizer.special.items()}


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
    if is_byte_level(data):
        return _other_byte_level_fields(data, tokenizer)
    if isinstance(model["vocab"], list) or not _is_sentencepieces(data):
        raise DataError("GGUF has no name for this vocabulary's pre-tokenizer; it supports BPE as in Llama")
    vocabulary = model["vocab"]
    rows = {i: (name, TokenType.BYTE if is_byte_piece(name) else TokenType.NORMAL) for name, i in vocabulary.items()}
    scores: dict[int, float] = {}
    for order, (left, right) in enumerate(split_merges(model["merges"])):
        scores.setdefault(vocabulary[left + right], -float(order))
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.add_space_prefix": adds_a_space(data),
        "unknown": model.get("unk_token"),
        "rows": rows | _special_rows(tokenizer),
        "scores": scores,
    }


def _is_sentencepieces(data: dict[str, Any]) -> bool:
    """Whether it is SentencePiece BPE: without a pre-tokenizer pattern, and normalizing only spaces."""
    step = data.get("pre_tokenizer") or {}
    normalizer = data.get("normalizer") or {}
    kinds = {one.get("type") for one in normalizer.get("normalizers", [normalizer])}
    return step.get("type") in (None, "Metaspace") and not step.get("split") and kinds <= {None, "Prepend", "Replace"}


def _other_byte_level_fields(data: dict[str, Any], tokenizer: Tokenizer) -> dict[str, Any]:
    if (name := name_split(data)) is None or data.get("normalizer") is not None:
        raise DataError(
            f"GGUF has no name for this vocabulary's pre-tokenizer; it has {', '.join(SPLITS)}, without a normalizer"
        )
    rows = {token_id: (name, TokenType.NORMAL) for name, token_id in data["model"]["vocab"].items()}
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": name,
        "tokenizer.ggml.merges": [" ".join(pair) for pair in split_merges(data["model"]["merges"])],
        "unknown": data["model"].get("unk_token"),
        "rows": rows | _special_rows(tokenizer),
    }


# ---- read ------------------------------------------------------------------------------------------------------------

_ROLES = ("bos", "eos", "eot", "eom", "unknown", "padding")


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
    """The chat template in a GGUF file, None if there is none."""
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
    declared = {role: fields.get(f"tokenizer.ggml.{role}_token_id") for role in _ROLES}
    ids = {role: i for role, i in declared.items() if isinstance(i, int) and i in rows}
    named = {role: names[i] for role, i in ids.items()}
    for role in ("bos", "eos", "eot", "eom"):  # these are special tokens, whatever their type says
        if role in named and rows[ids[role]][1] == TokenType.NORMAL:
            rows[ids[role]] = (named[role], TokenType.CONTROL)
    split = find_split(fields.get("tokenizer.ggml.pre")) if kind == "gpt2" else None
    adds = fields.get("tokenizer.ggml.add_bos_token")
    adds = (split.add_bos if split else kind == "llama") if not isinstance(adds, bool) else adds
    data = _byte_level(fields, rows, path) if kind == "gpt2" else _pieces(fields, rows, path)
    if adds and "bos" in named:
        data["post_processor"] = opening(named["bos"], ids["bos"])
    template = fields.get(_TEMPLATE)
    parts = parts_of_json(data, path) | {
        "add_bos": adds,
        "chat_template": template if isinstance(template, str) else None,
    }
    parts |= {"bos": named.get("bos"), "eos": named.get("eos"), "pad": named.get("padding")}
    kept = {name: value for name in _CARRIED if isinstance(value := fields.get(_BESIDE + name), str)}
    if CONFIG_FILE in kept:
        parts["beside"] = {name: text.encode() for name, text in kept.items()}
    parts["ends"] = [named[role] for role in ("eot", "eom") if role in named]
    parts.pop("rows")
    return parts


def _byte_level(fields: dict[str, Any], rows: dict[int, tuple[str, int]], path: Path) -> dict[str, Any]:
    """Byte-level BPE as a `tokenizer.json`."""
    pairs = fields.get("tokenizer.ggml.merges")
    if not isinstance(pairs, list):
        raise DataError(f"{path}: lacks the field tokenizer.ggml.merges.")
    if (split := find_split(name := fields.get("tokenizer.ggml.pre"))) is None:
        raise DataError(
            f"{path}: tokenizer.ggml.pre is {name!r}, which is not supported; supported are {', '.join(SPLITS)}."
        )
    added = (TokenType.CONTROL, TokenType.USER_DEFINED, TokenType.UNKNOWN)
    cuts = (pair.find(" ", 1) for pair in pairs)
    to_text = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            added_token(name, i, special=kind != TokenType.USER_DEFINED)
            for i, (name, kind) in rows.items()
            if kind in added
        ],
        "normalizer": None,
        "pre_tokenizer": pre_tokenizer(split),
        "post_processor": None,
        "decoder": to_text,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": split.whole_first,
            "vocab": {name: i for i, (name, _) in rows.items()},
            "merges": [[pair[:cut], pair[cut + 1 :]] for pair, cut in zip(pairs, cuts)],
        },
    }


def _pieces(fields: dict[str, Any], rows: dict[int, tuple[str, int]], path: Path) -> dict[str, Any]:
    """SentencePiece BPE as a `tokenizer.json`."""
    scores = fields.get("tokenizer.ggml.scores")
    if not isinstance(scores, list) or len(scores) < len(rows):
        raise DataError(f"{path}: lacks the field tokenizer.ggml.scores.")
    unused = (f"[unused {i}]" for i in range(len(scores)))
    pieces = [
        Piece(*((rows[i][0], score, rows[i][1]) if i in rows else (name, score, TokenType.UNUSED)))
        for i, (score, name) in enumerate(zip(scores, unused))
    ]
    return pieces_json(pieces, opens_with_space=bool(fields.get("tokenizer.ggml.add_space_prefix", True)))
