"""Files of a conversation: where Python runs they lie beside the code, else the model reads their text."""

from __future__ import annotations

import asyncio
import base64
import binascii
import urllib.parse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import PurePosixPath
from typing import cast

from herd.curate.read.encoding import decode
from herd.knowledge.apart import read_apart
from herd.serve.errors import ApiError
from herd.serve.files import FileStore, plain_name, too_large
from herd.serve.prompts import is_ids
from herd.serve.turn import Guard, Inspector, Turn
from herd.tokenizer.toolcalls import CODE_INTERPRETER
from herd.types import AttachedFile, Conversation, Message

MAX_FILES = 20
"""Of one conversation."""
_GLANCE = 400  # characters of a text's beginning that are told where it lies beside the code
_LINES = 6
_BY_READER = (".pdf", ".docx", ".pptx", ".xlsx", ".html", ".htm", ".xhtml")


def attached_file(*, id: str | None = None, data: str | None = None, name: str | None = None) -> AttachedFile:
    """A file that a message names by its id, or holds in base64 (alone or as a data: address).

    Raises:
        ValueError: neither or both, or what is held is no base64.
    """
    if (id is None) == (data is None):
        raise ValueError("needs the file's id or its data, one of them")
    if id is not None:
        return AttachedFile(id=id)
    head, comma, rest = cast(str, data).partition(",")
    encoded = rest if comma and head.startswith("data:") else cast(str, data)
    try:
        if comma and not head.endswith(";base64"):
            return AttachedFile(name=name or "file.txt", data=urllib.parse.unquote_to_bytes(rest))
        return AttachedFile(name=name or _name_of(head), data=base64.b64decode(encoded, validate=True))
    except (binascii.Error, ValueError):
        raise ValueError("holds data that are no base64") from None


def _name_of(head: str) -> str:
    return "document.pdf" if "application/pdf" in head or not head.startswith("data:") else "file.txt"


async def with_files(turn: Turn, store: FileStore, guards: Sequence[Guard], *, owner: str | None, python: bool) -> Turn:
    """The turn with its files: told in the messages that brought them, and beside the code where Python may run.

    Raises:
        ApiError: 404, one is not here; 400, one cannot be read, or there are too many.
        Refused: a guard lets the text of one not through.
    """
    first = turn.inputs[0]
    if is_ids(first) or isinstance(first, str):
        return turn
    talk = cast("list[Message]", first)
    brought = [one for message in talk for one in message.get("files", ())]
    if not brought and not turn.beside:
        return turn
    if len(brought) + len(turn.beside) > MAX_FILES:
        raise ApiError(400, f"A conversation may have {MAX_FILES} files; it has more.", param="messages")
    files: dict[str, bytes] = {}
    for id in turn.beside:
        stored, data = await asyncio.to_thread(store.read, owner or "anyone", id)
        files[_other_than(files, stored.name)] = data
    if turn.beside and not python:
        raise ApiError(400, "`files` lie beside Python's code, and none runs for this request.", param="files")
    told: Conversation = []
    for message in talk:
        words = []
        for one in message.get("files", ()):
            name, data = await _contents(one, store, owner)
            name = _other_than(files, name)
            files[name] = data
            _check_room(files, store)
            text = await asyncio.to_thread(_beside if python else _read, name, data)
            for guard in guards:
                text = await guard.data(text, f"file {name}") if isinstance(guard, Inspector) else text
            words.append(text)
        rest = Message(**{key: value for key, value in message.items() if key != "files"})  # type: ignore[typeddict-item]
        told.append(rest | Message(content="\n\n".join([*words, message["content"]]).strip()) if words else rest)
    return replace(turn, inputs=[told], files=files if python else {})


async def _contents(one: AttachedFile, store: FileStore, owner: str | None) -> tuple[str, bytes]:
    if "id" in one:
        stored, data = await asyncio.to_thread(store.read, owner or "anyone", one["id"])
        return stored.name, data
    if len(one["data"]) > store.limits.file_bytes:
        raise too_large(store.limits.file_bytes)
    return plain_name(one["name"]), one["data"]


def _check_room(files: dict[str, bytes], store: FileStore) -> None:
    if (size := sum(map(len, files.values()))) > store.limits.file_bytes:
        message = f"The files of a conversation may have {store.limits.file_bytes:,} bytes together, not {size:,}."
        raise ApiError(413, message, param="messages")


def _other_than(files: dict[str, bytes], name: str) -> str:
    """The name, with a number where another file has it already."""
    path, number = PurePosixPath(name), 2
    while name in files:
        name, number = f"{path.stem}-{number}{path.suffix}", number + 1
    return name


def _beside(name: str, data: bytes) -> str:
    """What is told of a file that lies beside the code: its beginning, where that is text."""
    head = f"[The file {name!r} ({len(data):,} bytes) lies in the working folder of {CODE_INTERPRETER}."
    if b"\0" in data[:4096] or not data.strip():
        return f"{head}]"
    begins = "\n".join(decode(data[:4096])[0].splitlines()[:_LINES])[:_GLANCE]
    return f"{head} It begins:\n{begins}\n]"


def _read(name: str, data: bytes) -> str:
    """A file's text as it is told where no code runs.

    Raises:
        ApiError: 400, it has none that can be read here.
    """
    if PurePosixPath(name).suffix.lower() not in _BY_READER and b"\0" not in data[:4096]:
        return f"[The file {name!r}:]\n{decode(data)[0].strip()}\n[The end of {name!r}.]"
    sections, problem = read_apart(name, data)
    if problem:
        raise ApiError(400, f"The file {name!r} cannot be read ({problem[0]}: {problem[1]}).", param="messages")
    text = "\n\n".join("\n".join(filter(None, (f"## {one.heading}" * bool(one.heading), one.text))) for one in sections)
    return f"[The text of the file {name!r}:]\n{text.strip()}\n[The end of {name!r}.]"
