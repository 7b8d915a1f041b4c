"""A tokenizer on disk: tiktoken ranks, `tokenizer.json`, and what `transformers` reads beside them."""

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
from herd.tokenizer.alphabet import byte_characters, read_bytes, write_bytes
from herd.tokenizer.bpe import merges
from herd.tokenizer.pieces import split_merges
from herd.tokenizer.specials import PAD, SPLIT_PATTERN
from herd.tokenizer.tokenizer import Tokenizer

RANKS_FILE = "tokenizer.model"
JSON_FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"
TEMPLATE_FILE = "chat_template.jinja"
_SUPPORTED = "Herd reads BPE vocabularies of Llama models, as tokenizer.json or as tiktoken ranks"


# ---- read ------------------------------------------------------------------------------------------------------------


def load_tokenizer(path: str | os.PathLike[str]) -> Tokenizer:
    """Read a checkpoint or tokenizer folder, a `tokenizer.json` or a file of tiktoken ranks.

    Ranks alone carry no pattern and no special tokens: Llama 3's are assumed. A GGUF file's vocabulary is read by
    `herd.formats.vocabulary.open_tokenizer`, which takes all of these too.

    Raises:
        DataError: the file is missing, damaged, or describes a kind of tokenizer that is not supported.
    """
    file = find_vocabulary(Path(path))
    if file is None:
        raise DataError(f"{path}: holds neither {JSON_FILE} nor {RANKS_FILE}. Is it a checkpoint or tokenizer folder?")
    parts = _read_file(file) | _read_config(file)
    try:
        return Tokenizer(**parts)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None


def load_template(path: str | os.PathLike[str]) -> str | None:
    """The chat template that travels with a vocabulary, None where there is none.

    Raises:
        DataError: there is nothing at `path`, or what stands beside the vocabulary is damaged.
    """
    file = find_vocabulary(Path(path))
    return _read_config(file).get("chat_template") if file else None


def find_vocabulary(path: Path) -> Path | None:
    """The file with the vocabulary that a path means: itself, or in a folder, its checkpoint, what its run.json names.

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
    content = _read_bytes(path)
    if content.lstrip()[:1] == b"{":
        return _parse_json(content, path)
    return {"ranks": parse_ranks(content, path)}


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}).") from None


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


class _AddedToken(TypedDict):
    id: int
    content: str


class _Model(TypedDict, total=False):
    vocab: Required[dict[str, int]]
    merges: Required[list[str] | list[tuple[str, str]]]
    byte_fallback: bool
    ignore_merges: bool


class _TokenizerJson(TypedDict, total=False):
    model: Required[_Model]
    added_tokens: list[_AddedToken] | None
    normalizer: dict[str, Any] | None
    pre_tokenizer: dict[str, Any] | None
    decoder: dict[str, Any] | None


def _parse_json(content: bytes, path: Path) -> dict[str, Any]:
    data = _load_object(content, path)
    kind = data["model"].get("type", "BPE") if isinstance(data.get("model"), dict) else None
    if kind not in ("BPE", None):
        raise DataError(f"{path}: its model type is {kind}. {_SUPPORTED}.")
    data = _validated(_TokenizerJson, data, path)
    model, special = data["model"], {token["content"]: token["id"] for token in data.get("added_tokens") or []}
    if not (_is_byte_level(data) or model.get("byte_fallback")):
        raise DataError(f"{path}: its BPE is neither byte-level nor falls back to bytes. {_SUPPORTED}.")
    if _does_what_tiktoken_does(data):
        ranks = {read_bytes(token): rank for token, rank in model["vocab"].items() if token not in special}
        _check_ranks(ranks, path)
        if split_merges(model["merges"]) == [(write_bytes(left), write_bytes(right)) for left, right in merges(ranks)]:
            return {"ranks": ranks, "special": special}
    return {"ranks": {}, "special": special, "pieces": content.decode()}


def _is_byte_level(data: dict[str, Any]) -> bool:
    alphabet = frozenset(byte_characters().values())
    special = {token["content"] for token in data.get("added_tokens") or []}
    return (data.get("decoder") or {}).get("type") == "ByteLevel" and all(
        alphabet.issuperset(token) for token in data["model"]["vocab"] if token not in special
    )


def _does_what_tiktoken_does(data: dict[str, Any]) -> bool:
    """Whether it only splits by Llama 3's pattern and takes bytes, whole pre-tokens first."""
    match data.get("pre_tokenizer"), data.get("normalizer"):
        case {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False},
                {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
            ],
        }, None:
            plain = not data["model"].get("byte_fallback") and data["model"].get("ignore_merges")
            return pattern == SPLIT_PATTERN and _is_byte_level(data) and bool(plain)
    return False


class _NamedToken(TypedDict):
    content: str


class _NamedTemplate(TypedDict):
    name: str
    template: str


class _TokenizerConfig(TypedDict, total=False):
    bos_token: str | _NamedToken | None
    eos_token: str | _NamedToken | None
    chat_template: str | list[_NamedTemplate] | None


def _read_config(vocabulary: Path) -> dict[str, Any]:
    """What stands beside the vocabulary: begin and end token, chat template."""
    if vocabulary.name not in (JSON_FILE, RANKS_FILE):
        return {}
    folder = vocabulary.parent
    config, file = {}, folder / CONFIG_FILE
    if file.exists():
        config = _validated(_TokenizerConfig, _load_object(_read_bytes(file), file), file)
    found: dict[str, Any] = {}
    for role in ("bos", "eos"):
        if token := config.get(f"{role}_token"):
            found[role] = token if isinstance(token, str) else token["content"]
    template = config.get("chat_template")
    if isinstance(template, list):
        template = next((named["template"] for named in template if named["name"] == "default"), None)
    if (folder / TEMPLATE_FILE).exists():
        template = _read_bytes(folder / TEMPLATE_FILE).decode("utf-8", "replace").replace("\r\n", "\n")
    return found | ({"chat_template": template} if template else {})


def _load_object(content: bytes, path: Path) -> dict[str, Any]:
    try:
        data = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: damaged, no JSON ({error}).") from None
    if not isinstance(data, dict):
        raise DataError(f"{path}: expected a JSON object, found {type(data).__name__}.")
    return data


def _validated(shape: type, data: dict[str, Any], path: Path) -> Any:
    try:
        return TypeAdapter(shape).validate_python(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"][:3]))
        raise DataError(f"{path}: damaged, or made for something else: {place}: {first['msg'].lower()}.") from None


# ---- write -----------------------------------------------------------------------------------------------------------


def save_tokenizer(tokenizer: Tokenizer, folder: str | os.PathLike[str]) -> Path:
    """Write `tokenizer.model` (tiktoken ranks), `tokenizer.json` and its companions, which `transformers` loads.

    The folder may hold other files (a checkpoint's weights).
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if tokenizer.pieces is None:
        ranked = sorted(tokenizer.ranks.items(), key=lambda item: item[1])
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
    split = {"type": "Split", "pattern": {"Regex": SPLIT_PATTERN}, "behavior": "Isolated", "invert": False}
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
            "vocab": {
                write_bytes(token): rank for token, rank in sorted(tokenizer.ranks.items(), key=lambda item: item[1])
            },
            "merges": [[write_bytes(left), write_bytes(right)] for left, right in merges(tokenizer.ranks)],
        },
    }
