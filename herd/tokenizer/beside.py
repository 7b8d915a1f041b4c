"""The files beside a vocabulary in a folder, with BOS, EOS and padding tokens and the chat template: read and restored.

Publishers put BOS and EOS tokens in different places. They are read from the first of these that names them:
tokenizer_config.json, special_tokens_map.json, the ids in config.json and generation_config.json, and the vocabulary's
post-processor.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict

from herd.errors import DataError
from herd.tokenizer.specials import PAD

if TYPE_CHECKING:
    from herd.tokenizer.tokenizer import Tokenizer

CONFIG_FILE = "tokenizer_config.json"
MAP_FILE = "special_tokens_map.json"
VOCABULARY = "tokenizer.json"
TEMPLATE_FILE, TEMPLATE_JSON, TEMPLATES = "chat_template.jinja", "chat_template.json", "additional_chat_templates"
DEFAULT, TOOL_USE = "default", "tool_use"
_KEPT = (CONFIG_FILE, MAP_FILE, TEMPLATE_FILE, TEMPLATE_JSON, "added_tokens.json", VOCABULARY, "tokenizer.model")
_IDS = ("config.json", "generation_config.json")
_MOST_BYTES = 500_000_000  # more than ten times the largest vocabulary's file


class _NamedToken(TypedDict):
    content: str


class _NamedTemplate(TypedDict):
    name: str
    template: str


class _Config(TypedDict, total=False):
    bos_token: str | _NamedToken | None
    eos_token: str | _NamedToken | None
    pad_token: str | _NamedToken | None
    add_bos_token: bool | None
    chat_template: str | list[_NamedTemplate] | dict[str, str] | None


# ---- read ------------------------------------------------------------------------------------------------------------


def read(
    folder: Path, special: dict[str, int] | None, rows: Mapping[str, int], found: Mapping[str, Any]
) -> dict[str, Any]:
    """A folder's settings for a vocabulary: `bos`, `eos`, `pad`, `add_bos`, `chat_template`, and the files themselves.

    `rows` are the names and ids of the vocabulary, `found` its own settings. A named token that is not an added token
    becomes a special one.

    Raises:
        DataError: a file is damaged.
    """
    config = _config(folder)
    found_templates = templates(folder)
    parts: dict[str, Any] = {
        "chat_template": found_templates.get(DEFAULT),
        "tool_template": found_templates.get(TOOL_USE),
    }
    parts["named"] = {
        key: name
        for source in (_optional(folder / MAP_FILE), config)
        for key, value in source.items()
        if key.endswith("_token") and (name := _name(value))
    }
    if special is not None:
        for role in ("bos", "eos", "pad"):
            name = _named(folder, config, role, special, rows) or found.get(role)
            if name is not None and name in rows:
                special.setdefault(name, rows[name])
            parts[role] = name if role != "pad" or name in special else None
        parts["special"] = special
        parts["add_bos"] = bool(found.get("add_bos"))
        if isinstance(adds := config.get("add_bos_token"), bool) and not (folder / VOCABULARY).exists():
            parts["add_bos"] = adds  # otherwise tokenizer.json decides, as in `transformers`
    else:  # tiktoken ranks, with Llama 3's special tokens
        parts |= {role: name for role in ("bos", "eos") if (name := _name(config.get(f"{role}_token")))}
    files = {name: folder / name for name in _KEPT}
    files |= {f"{TEMPLATES}/{path.name}": path for path in sorted((folder / TEMPLATES).glob("*.jinja"))}
    kept = {name: path.read_bytes() for name, path in files.items() if path.is_file()}
    return parts | ({"beside": kept} if CONFIG_FILE in kept else {})


def _named(
    folder: Path, config: Mapping[str, Any], role: str, special: Mapping[str, int], rows: Mapping[str, int]
) -> str | None:
    key = f"{role}_token"
    if name := _name(config.get(key)):
        return name
    if isinstance(name := _name(_optional(folder / MAP_FILE).get(key)), str):
        return name
    names = {token_id: name for name, token_id in [*rows.items(), *special.items()]}
    for ids in (_optional(folder / file).get(f"{key}_id") for file in _IDS):
        first = next(iter(ids), None) if isinstance(ids, list) else ids
        if isinstance(first, int) and first in names:
            return names[first]
    return None


def _name(token: Any) -> str | None:
    name = token.get("content") if isinstance(token, Mapping) else token
    return name if isinstance(name, str) and name else None


def template(folder: Path) -> str | None:
    """The chat template of a folder, None if there is none.

    Raises:
        DataError: a file is damaged.
    """
    return templates(folder).get(DEFAULT)


def templates(folder: Path) -> dict[str, str]:
    """The chat templates of a folder by name; most have one, named `default`.

    Raises:
        DataError: a file is damaged.
    """
    return dict(_templates(folder))


def _templates(folder: Path) -> Iterator[tuple[str, str]]:
    for value in (_config(folder).get("chat_template"), _optional(folder / TEMPLATE_JSON).get("chat_template")):
        if isinstance(value, str):
            yield DEFAULT, value
        elif isinstance(value, Mapping):
            yield from value.items()
        else:
            yield from ((one["name"], one["template"]) for one in value or ())
    for file in sorted((folder / TEMPLATES).glob("*.jinja")):
        yield file.stem, _text(file)
    if (folder / TEMPLATE_FILE).exists():
        yield DEFAULT, _text(folder / TEMPLATE_FILE)


def _text(file: Path) -> str:
    return read_bytes(file).decode("utf-8", "replace").replace("\r\n", "\n")


def _config(folder: Path) -> dict[str, Any]:
    file = folder / CONFIG_FILE
    if not file.exists():
        return {}
    data = load_object(read_bytes(file), file)
    try:
        TypeAdapter(_Config).validate_python(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"][:3]))
        raise DataError(f"{file}: damaged, or made for something else: {place}: {first['msg'].lower()}.") from None
    return data


def _optional(file: Path) -> dict[str, Any]:
    return load_object(read_bytes(file), file) if file.is_file() else {}


def read_bytes(path: Path) -> bytes:
    """A file's bytes.

    Raises:
        DataError: it cannot be read, is not a regular file (a device, a pipe), or is larger than any such file.
    """
    try:
        if path.exists() and not path.is_file():
            raise DataError(f"{path} is not a regular file; give the file itself.")
        if path.stat().st_size > _MOST_BYTES:
            raise DataError(f"{path} has {path.stat().st_size:,} bytes; at most {_MOST_BYTES:,} are allowed.")
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}).") from None


def load_object(content: bytes, path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        DataError: the file is not a JSON object.
    """
    try:
        data = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: damaged, not JSON ({error}).") from None
    if not isinstance(data, dict):
        raise DataError(f"{path}: expected a JSON object, found {type(data).__name__}.")
    return data


# ---- write -----------------------------------------------------------------------------------------------------------


def written(tokenizer: Tokenizer) -> dict[str, bytes]:
    """The files that `transformers` reads beside a vocabulary, for a tokenizer that was not read from such files."""
    if tokenizer.beside is not None:
        return {}
    named = {"bos_token": tokenizer.bos, "eos_token": tokenizer.eos, "pad_token": tokenizer.pad or PAD}
    named = {role: name for role, name in named.items() if name in tokenizer.special}
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        **named,
    }
    if tokenizer.chat_template is not None:
        config["chat_template"] = tokenizer.chat_template
    return {CONFIG_FILE: dump(config).encode(), MAP_FILE: dump(named).encode()}


def with_template(files: Mapping[str, bytes] | None, chat_template: str | None) -> dict[str, bytes] | None:
    """The files with another chat template, in the place of the old one."""
    if files is None:
        return None
    changed = {name: content for name, content in files.items() if not name.startswith(TEMPLATES)}
    in_file = changed.pop(TEMPLATE_FILE, None) is not None
    changed.pop(TEMPLATE_JSON, None)
    config = json.loads(changed[CONFIG_FILE])
    config.pop("chat_template", None)
    if chat_template is not None and in_file:
        changed[TEMPLATE_FILE] = chat_template.encode()
    elif chat_template is not None:
        config["chat_template"] = chat_template
    return changed | {CONFIG_FILE: dump(config).encode()}


def dump(data: Any) -> str:
    """JSON as it is written beside a checkpoint."""
    return json.dumps(data, ensure_ascii=False, indent=1) + "\n"
