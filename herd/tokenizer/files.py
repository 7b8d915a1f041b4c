"""Tokenizer files: tiktoken ranks, `tokenizer.json`, and the configuration that `transformers` reads beside them."""

from __future__ import annotations

import base64
import binascii
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from herd.errors import DataError
from herd.run import atomic_write
from herd.tokenizer.alphabet import read_bytes, write_bytes
from herd.tokenizer.specials import PAD

if TYPE_CHECKING:
    from herd.tokenizer.tokenizer import Tokenizer

RANKS_FILE = "tokenizer.model"
JSON_FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"
TEMPLATE_FILE = "chat_template.jinja"
_SUPPORTED = "Herd reads BPE vocabularies of Llama models, as tokenizer.json or as tiktoken ranks"


# ---- read ------------------------------------------------------------------------------------------------------------


def read(path: Path) -> dict[str, Any]:
    """What `Tokenizer(...)` takes, from a folder, a `tokenizer.json` or a ranks file.

    Raises:
        DataError: missing, damaged or unsupported files.
    """
    if path.is_dir():
        return _read_folder(path)
    if not path.exists():
        raise DataError(f"{path}: no such file or folder. Give a checkpoint folder, a {JSON_FILE} or a ranks file.")
    return _read_file(path) | _read_config(path.parent if path.name in (JSON_FILE, RANKS_FILE) else None)


def _read_folder(folder: Path) -> dict[str, Any]:
    places = (folder, folder / "checkpoint", folder / "original")
    for file in (place / name for place in places for name in (JSON_FILE, RANKS_FILE)):
        if file.exists():
            return _read_file(file) | _read_config(file.parent)
    raise DataError(f"{folder}: holds neither {JSON_FILE} nor {RANKS_FILE}. Is it a checkpoint or tokenizer folder?")


def _read_file(path: Path) -> dict[str, Any]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}).") from None
    if content.lstrip()[:1] == b"{":
        return _parse_json(content, path)
    return {"ranks": parse_ranks(content, path)}


def parse_ranks(content: bytes, path: Path) -> dict[bytes, int]:
    """The ranks of a tiktoken file: lines of base64(token bytes), a space, and the rank."""
    ranks: dict[bytes, int] = {}
    if content[:1] in (b"\x08", b"\x0a") and b"\x00" in content[:4096]:
        raise DataError(f"{path}: a SentencePiece model. Give the {JSON_FILE} that belongs to it.")
    for number, line in enumerate(content.splitlines(), start=1):
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error):
            shown = line[:40].decode("utf-8", "replace")
            raise DataError(
                f"{path}: line {number} is {shown!r}, expected base64, a space and a rank. The file is damaged or "
                "is no tiktoken ranks file."
            ) from None
    _check_ranks(ranks, path)
    return ranks


def _check_ranks(ranks: dict[bytes, int], path: Path) -> None:
    missing_bytes = [b for b in range(256) if bytes([b]) not in ranks]
    if missing_bytes:
        raise DataError(f"{path}: {len(missing_bytes)} of the 256 single bytes are no tokens. {_SUPPORTED}.")
    if sorted(ranks.values()) != list(range(len(ranks))):
        raise DataError(
            f"{path}: the ranks of its {len(ranks)} tokens are not 0 to {len(ranks) - 1}: lines are missing or double."
        )


def _parse_json(content: bytes, path: Path) -> dict[str, Any]:
    try:
        data = json.loads(content)
        kind = data["model"].get("type", "BPE")
        vocab, special = data["model"]["vocab"], {t["content"]: t["id"] for t in data.get("added_tokens") or []}
        own_merges = [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in data["model"].get("merges", [])]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: damaged, or no tokenizer.json ({error!r}).") from None
    if kind != "BPE":
        raise DataError(f"{path}: its model type is {kind}. {_SUPPORTED}.")
    pattern = _find_pattern(data)
    byte_level = (data.get("decoder") or {}).get("type") == "ByteLevel"
    if not (byte_level or data["model"].get("byte_fallback")):
        raise DataError(f"{path}: its BPE is neither byte-level nor falls back to bytes. {_SUPPORTED}.")
    if not byte_level or pattern is None:
        return {"ranks": {}, "special": special, "pieces": content.decode()}
    try:
        ranks = {read_bytes(token): rank for token, rank in vocab.items() if token not in special}
    except KeyError as error:
        raise DataError(f"{path}: {error.args[0]!r} in its vocabulary stands for no byte. {_SUPPORTED}.") from None
    _check_ranks(ranks, path)
    if own_merges != [(write_bytes(left), write_bytes(right)) for left, right in merges(ranks)]:
        return {"ranks": {}, "special": special, "pieces": content.decode()}  # tiktoken would merge in another order
    return {"ranks": ranks, "special": special, "pattern": pattern}


def _find_pattern(data: dict[str, Any]) -> str | None:
    """The pattern of a `tokenizer.json` that does no more than split by it and take bytes, as tiktoken does."""
    match data.get("pre_tokenizer"), data.get("normalizer"):
        case {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": str(pattern)}, "behavior": "Isolated", "invert": False},
                {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
            ],
        }, None if data["model"].get("ignore_merges"):
            return pattern
    return None


def _read_config(folder: Path | None) -> dict[str, Any]:
    """What stands beside the vocabulary: the end token and the chat template."""
    if folder is None:
        return {}
    config = _read_json_object(folder / CONFIG_FILE)
    found: dict[str, Any] = {}
    for role in ("bos", "eos"):
        token = config.get(f"{role}_token")
        if token:
            found[role] = token["content"] if isinstance(token, dict) else token
    template = config.get("chat_template")
    if isinstance(template, list):
        template = next((t["template"] for t in template if t.get("name") == "default"), None)
    if (folder / TEMPLATE_FILE).exists():
        template = (folder / TEMPLATE_FILE).read_text("utf-8")
    if template:
        found["chat_template"] = template
    return found


def _read_json_object(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        data = json.loads(path.read_bytes())
    except ValueError as error:
        raise DataError(f"{path}: damaged ({error}).") from None
    if not isinstance(data, dict):
        raise DataError(f"{path}: expected a JSON object, found {type(data).__name__}.")
    return data


# ---- write -----------------------------------------------------------------------------------------------------------


def write(tokenizer: Tokenizer, folder: Path) -> Path:
    """Write all the files into a folder, which may hold other files (a checkpoint's weights)."""
    folder.mkdir(parents=True, exist_ok=True)
    if tokenizer.pieces is None:
        ranked = sorted(tokenizer.ranks.items(), key=_by_rank)
        lines = b"".join(base64.b64encode(token) + b" %d\n" % rank for token, rank in ranked)
        atomic_write(folder / RANKS_FILE, lines)
    atomic_write(folder / JSON_FILE, tokenizer.pieces or _dump(tokenizer_json(tokenizer)))
    named = {"bos_token": tokenizer.bos, "eos_token": tokenizer.eos, "pad_token": PAD}
    named = {role: name for role, name in named.items() if name in tokenizer.special}
    atomic_write(folder / "special_tokens_map.json", _dump(named))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        **named,
        "chat_template": tokenizer.chat_template,
    }
    atomic_write(folder / CONFIG_FILE, _dump(config))
    return folder


def _dump(data: Any) -> str:
    return json.dumps(data, ensure_ascii=False, indent=1) + "\n"


def tokenizer_json(tokenizer: Tokenizer) -> dict[str, Any]:
    """The vocabulary in the form of the `tokenizers` library, giving the same ids."""
    ids = tokenizer.special
    bos = tokenizer.bos
    split = {"type": "Split", "pattern": {"Regex": tokenizer.pattern}, "behavior": "Isolated", "invert": False}
    to_bytes = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    opening = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": bos, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [
            {"SpecialToken": {"id": bos, "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
            {"SpecialToken": {"id": bos, "type_id": 1}},
            {"Sequence": {"id": "B", "type_id": 1}},
        ],
        "special_tokens": {bos: {"id": bos, "ids": [ids.get(bos)], "tokens": [bos]}},
    }
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, "content": name, **flags} for name, i in sorted(ids.items(), key=lambda n: n[1])],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, to_bytes]},
        "post_processor": opening if bos in ids else None,
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
            "vocab": {write_bytes(token): rank for token, rank in sorted(tokenizer.ranks.items(), key=_by_rank)},
            "merges": [[write_bytes(left), write_bytes(right)] for left, right in merges(tokenizer.ranks)],
        },
    }


def _by_rank(item: tuple[bytes, int]) -> int:
    return item[1]


def merges(ranks: dict[bytes, int]) -> list[tuple[bytes, bytes]]:
    """Every way in which two tokens make a third, in the order of the third's rank.

    tiktoken joins any two neighbours whose concatenation is a token, the lowest rank first; a reader that works with a
    list of merges does the same when the list holds all the ways.
    """
    found = []
    for token, _ in sorted(ranks.items(), key=_by_rank):
        ways = [(token[:i], token[i:]) for i in range(1, len(token)) if token[:i] in ranks and token[i:] in ranks]
        found += sorted(ways, key=lambda way: (ranks[way[0]], ranks[way[1]]))
    return found
