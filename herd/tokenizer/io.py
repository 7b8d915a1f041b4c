"""Tokenizers on disk: tiktoken ranks, `tokenizer.json`, and the files that `transformers` reads beside them."""

from __future__ import annotations

import base64
import binascii
import json
import os
from pathlib import Path
from typing import Any, Required

from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict

from herd.errors import DataError
from herd.run import atomic_write, read_manifest
from herd.tokenizer import beside
from herd.tokenizer.alphabet import read_bytes, write_bytes
from herd.tokenizer.bpe import merges
from herd.tokenizer.pieces import is_byte_level, split_merges
from herd.tokenizer.sentencepiece import added_token, is_model, opening, read_model
from herd.tokenizer.specials import SPLIT_PATTERN
from herd.tokenizer.tokenizer import Tokenizer

RANKS_FILE = "tokenizer.model"
JSON_FILE = "tokenizer.json"
_SUPPORTED = "Herd reads BPE and Unigram vocabularies of bytes, as tokenizer.json, SentencePiece's or tiktoken's file"


# ---- read ------------------------------------------------------------------------------------------------------------


def load_tokenizer(path: str | os.PathLike[str]) -> Tokenizer:
    """Read a checkpoint or tokenizer folder, a `tokenizer.json` or a file of tiktoken ranks.

    Files of ranks have no pattern and no special tokens: Llama 3's are assumed. GGUF files are read by
    `herd.formats.vocabulary.open_tokenizer`, which also reads all of these.

    Raises:
        DataError: the file is missing, damaged, or describes a kind of tokenizer that is not supported.
    """
    file = find_vocabulary(Path(path))
    if file is None:
        raise DataError(f"{path} holds neither {JSON_FILE} nor {RANKS_FILE}. Is it a checkpoint or tokenizer folder?")
    parts = _read_file(file)
    if file.name in (JSON_FILE, RANKS_FILE):
        parts = parts | beside.read(file.parent, parts["special"], parts.pop("rows"), parts)
    else:
        parts.pop("rows")
    try:
        return Tokenizer(**parts)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None


def load_template(path: str | os.PathLike[str]) -> str | None:
    """The chat template beside a vocabulary, None if there is none.

    Raises:
        DataError: there is nothing at `path`, or a file beside the vocabulary is damaged.
    """
    file = find_vocabulary(Path(path))
    return beside.template(file.parent) if file and file.name in (JSON_FILE, RANKS_FILE) else None


def find_vocabulary(path: Path) -> Path | None:
    """The vocabulary file for a path: itself, or in the folder, its checkpoint, or the one that its run.json names.

    Raises:
        DataError: there is nothing at `path`.
    """
    if not path.exists():
        raise DataError(f"{path}: no such file or folder. Give a checkpoint folder, a {JSON_FILE} or a ranks file.")
    if not path.is_dir():
        return path
    places = [path, path / "checkpoint", path / "original"]
    if (path / "run.json").exists() and (pointer := read_manifest(path).get("checkpoint")):
        places.append(path / pointer)
    files = (place / name for place in places for name in (JSON_FILE, RANKS_FILE))
    return next((file for file in files if file.exists()), None)


def _read_file(path: Path) -> dict[str, Any]:
    content = beside.read_bytes(path)
    if content.lstrip()[:1] == b"{":
        return parts_of_json(_checked_json(content, path), path, content.decode())
    if is_model(content):
        data, bos, eos = read_model(content, path)
        return parts_of_json(data, path) | {"bos": bos, "eos": eos, "chat_template": None}
    return {"ranks": parse_ranks(content, path), "special": None, "rows": {}, "chat_template": None}


def parse_ranks(content: bytes, path: Path) -> dict[bytes, int]:
    """The ranks of a tiktoken file: lines of base64(token bytes), a space, and the rank."""
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(content.splitlines(), start=1):
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error):
            shown = line[:40].decode("utf-8", "replace")
            raise DataError(
                f"{path}: line {number} is {shown!r}, expected base64, a space and a rank. The file is damaged or "
                "not a tiktoken ranks file."
            ) from None
    _check_ranks(ranks, path)
    return ranks


def _check_ranks(ranks: dict[bytes, int], path: Path) -> None:
    missing_bytes = [b for b in range(256) if bytes([b]) not in ranks]
    if missing_bytes:
        raise DataError(f"{path}: {len(missing_bytes)} of the 256 single bytes are not tokens. {_SUPPORTED}.")
    if sorted(ranks.values()) != list(range(len(ranks))):
        raise DataError(
            f"{path}: ranks of its {len(ranks)} tokens are not 0 to {len(ranks) - 1}: lines are missing or repeated."
        )


class _AddedToken(TypedDict, total=False):
    id: Required[int]
    content: Required[str]
    special: bool


class _Bpe(TypedDict, total=False):
    vocab: Required[dict[str, int]]
    merges: Required[list[str] | list[tuple[str, str]]]
    byte_fallback: bool
    ignore_merges: bool


class _Unigram(TypedDict, total=False):
    vocab: Required[list[tuple[str, float]]]


class _Named(TypedDict):
    id: str


class _Tokens(TypedDict, total=False):
    tokens: list[str]


class _Step(TypedDict, total=False):
    type: str
    normalizers: list[_Step]
    pretokenizers: list[_Step]
    processors: list[_Step]
    decoders: list[_Step]
    single: list[dict[str, _Named]]
    special_tokens: dict[str, _Tokens] | None
    pattern: str | dict[str, str]
    content: str
    prepend: str


class _Around(TypedDict, total=False):
    added_tokens: list[_AddedToken] | None
    normalizer: _Step | None
    pre_tokenizer: _Step | None
    post_processor: _Step | None
    decoder: _Step | None


class _BpeJson(_Around):
    model: _Bpe


class _UnigramJson(_Around):
    model: _Unigram


def _checked_json(content: bytes, path: Path) -> dict[str, Any]:
    data = beside.load_object(content, path)
    kind = data["model"].get("type", "BPE") if isinstance(data.get("model"), dict) else None
    if kind not in ("BPE", "Unigram", None):
        raise DataError(f"{path}: its model type is {kind}. {_SUPPORTED}.")
    try:
        TypeAdapter(_UnigramJson if kind == "Unigram" else _BpeJson).validate_python(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"][:3]))
        raise DataError(f"{path}: damaged, or made for something else: {place}: {first['msg'].lower()}.") from None
    _check_steps(data, path)
    return data


def _check_steps(data: dict[str, Any], path: Path) -> None:
    """Refuse steps that could make a text explode: too many, too long, or replacements that multiply."""
    steps, growth = [step for name in _AROUND if (step := data.get(name))], 1
    for step in steps:  # it grows during the loop
        steps += [one for name in _INNER for one in step.get(name) or ()]
        pattern = step.get("pattern", "")
        pattern = pattern if isinstance(pattern, str) else "".join(pattern.values())
        least = len(pattern) if "String" in (step.get("pattern") or ()) else 1
        growth *= max(len(step.get("content") or "") // max(least, 1), 1)
        text = len(pattern) + len(step.get("content") or "") + len(step.get("prepend") or "")
        if len(steps) > _MOST_STEPS or text > _MOST_STEP_CHARS or growth > _MOST_GROWTH:
            raise DataError(
                f"{path}: its normalizer and pre-tokenizer are too large: at most {_MOST_STEPS} steps of "
                f"{_MOST_STEP_CHARS:,} characters that lengthen a text {_MOST_GROWTH} times are allowed."
            )


_AROUND = ("normalizer", "pre_tokenizer", "post_processor", "decoder")
_INNER = ("normalizers", "pretokenizers", "processors", "decoders")
_MOST_STEPS, _MOST_STEP_CHARS, _MOST_GROWTH = 300, 20_000, 100


def parts_of_json(data: dict[str, Any], path: Path, text: str | None = None) -> dict[str, Any]:
    """The arguments of `Tokenizer` from a `tokenizer.json` (`text` is its content); `rows` are its names and ids.

    Raises:
        DataError: the vocabulary does not cover all bytes.
    """
    model, added = data["model"], data.get("added_tokens") or []
    special = {token["content"]: token["id"] for token in added}
    visible = [token["content"] for token in added if token.get("special") is False]
    is_unigram = isinstance(model["vocab"], list)
    rows = {name: i for i, (name, _) in enumerate(model["vocab"])} if is_unigram else dict(model["vocab"])
    by_bytes = not is_unigram and is_byte_level(data)
    if not (by_bytes or model.get("byte_fallback")):
        raise DataError(f"{path}: its vocabulary is neither byte-level nor falls back to bytes. {_SUPPORTED}.")
    parts: dict[str, Any] = {"special": special, "visible": visible, "rows": rows, "bos": None, "eos": None}
    bos = _opening_token(data.get("post_processor"))
    parts |= {"bos": bos, "add_bos": bos is not None, "chat_template": None}
    if by_bytes and _does_what_tiktoken_does(data):
        ranks = {read_bytes(token): rank for token, rank in rows.items() if token not in special}
        whole = all(bytes([b]) in ranks for b in range(256)) and sorted(ranks.values()) == list(range(len(ranks)))
        if whole and split_merges(model["merges"]) == [(write_bytes(a), write_bytes(b)) for a, b in merges(ranks)]:
            return parts | {"ranks": ranks}
    return parts | {"ranks": {}, "pieces": text or json.dumps(data)}


def _opening_token(step: dict[str, Any] | None) -> str | None:
    """The token that the post-processor puts before a text."""
    for one in (step or {}).get("processors", [step or {}]):
        first = (one.get("single") or [{}])[0]
        if one.get("type") == "TemplateProcessing" and "SpecialToken" in first:
            name = first["SpecialToken"]["id"]
            names = (one.get("special_tokens") or {}).get(name, {}).get("tokens") or [name]
            return str(names[0])
    return None


def _does_what_tiktoken_does(data: dict[str, Any]) -> bool:
    """Whether it only splits by Llama 3's pattern, is byte-level, and looks up whole pre-tokens first."""
    if any(token.get(flag) for token in data.get("added_tokens") or [] for flag in ("lstrip", "rstrip", "single_word")):
        return False
    match data.get("pre_tokenizer"), data.get("normalizer"):
        case {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False},
                {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
            ],
        }, None:
            plain = not data["model"].get("byte_fallback") and data["model"].get("ignore_merges")
            return pattern == SPLIT_PATTERN and bool(plain)
    return False


# ---- write -----------------------------------------------------------------------------------------------------------


def save_tokenizer(tokenizer: Tokenizer, folder: str | os.PathLike[str], *, with_ranks: bool = False) -> Path:
    """Write `tokenizer.model` (tiktoken ranks), `tokenizer.json` and its companions, which `transformers` loads.

    The files that the tokenizer was read from are written unchanged; ranks are added to them only `with_ranks`. The
    folder may hold other files (a checkpoint's weights).
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    files = dict(tokenizer.beside or {})
    if tokenizer.pieces is None and (with_ranks or not files):
        ranked = sorted(tokenizer.ranks.items(), key=lambda item: item[1])
        files[RANKS_FILE] = b"".join(base64.b64encode(token) + b" %d\n" % rank for token, rank in ranked)
    if JSON_FILE not in files:
        files[JSON_FILE] = (tokenizer.pieces or beside.dump(tokenizer_json(tokenizer))).encode()
    for name, content in (beside.written(tokenizer) | files).items():
        (folder / name).parent.mkdir(exist_ok=True)
        atomic_write(folder / name, content)
    return folder


def tokenizer_json(tokenizer: Tokenizer) -> dict[str, Any]:
    """The vocabulary as a `tokenizer.json`, which gives the same ids."""
    ids = tokenizer.special
    bos = tokenizer.bos
    split = {"type": "Split", "pattern": {"Regex": SPLIT_PATTERN}, "behavior": "Isolated", "invert": False}
    to_bytes = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            added_token(name, i, special=name not in tokenizer.visible)
            for name, i in sorted(ids.items(), key=lambda item: item[1])
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, to_bytes]},
        "post_processor": opening(bos, ids[bos]) if bos is not None and tokenizer.add_bos else None,
        "decoder": to_bytes | {"use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": True,
            "vocab": {
                write_bytes(token): rank for token, rank in sorted(tokenizer.ranks.items(), key=lambda item: item[1])
            },
            "merges": [[write_bytes(left), write_bytes(right)] for left, right in merges(tokenizer.ranks)],
        },
    }
