"""Files that clients send and tools make: kept by key, bounded, and gone when they are deleted or no longer used.

`POST /v1/files`, its list, its contents and its deletion are OpenAI's, or Anthropic's where a client says so. Nothing
outlives the server.
"""

from __future__ import annotations

import asyncio
import mimetypes
import re
import shutil
import tempfile
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

from fastapi import APIRouter, File, Form, Request, UploadFile
from fastapi.responses import JSONResponse, Response

from herd.serve.documents import REFUSALS, FileDeleted, FileList, FileObject
from herd.serve.errors import ApiError, speaks_anthropic
from herd.serve.unheeded import told

_LONGEST_NAME = 120
_NO_NAME = re.compile(r"[\x00-\x1f\x7f<>:\"|?*]")
MADE = "assistants_output"
"""The purpose of files that tools make."""


@dataclass(frozen=True)
class FileLimits:
    """What is kept, for each key."""

    file_bytes: int = 32_000_000
    num_files: int = 100
    bytes: int = 200_000_000
    seconds: float = 3600.0  # without being used


@dataclass(eq=False)
class StoredFile:
    """One file; its contents lie on disk."""

    name: str
    size: int
    purpose: str
    owner: str
    used: float
    id: str = field(default_factory=lambda: f"file-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def kind(self) -> str:
        """Its media type, by its name."""
        return mimetypes.guess_type(self.name)[0] or "application/octet-stream"

    def describe(self, *, anthropic: bool = False) -> dict[str, Any]:
        """As OpenAI writes it, or Anthropic."""
        if anthropic:
            created = datetime.fromtimestamp(self.created, UTC).isoformat()
            found = {"type": "file", "mime_type": self.kind, "size_bytes": self.size, "downloadable": True}
            return {"id": self.id, "filename": self.name, "created_at": created} | found
        found = {"object": "file", "bytes": self.size, "created_at": self.created, "filename": self.name}
        return {"id": self.id} | found | {"purpose": self.purpose, "status": "processed", "expires_at": None}

    def told(self) -> dict[str, Any]:
        """As the trace of an answer tells of it."""
        return {"id": self.id, "name": self.name, "bytes": self.size, "kind": self.kind, "url": self.url}

    @property
    def url(self) -> str:
        """Where its contents are to be had, with the same key."""
        return f"/v1/files/{self.id}/content"


class FileStore:
    """The files of all keys; each is there for the key that brought it alone."""

    def __init__(self, limits: FileLimits | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.limits, self._clock = limits or FileLimits(), clock
        self._files: dict[str, StoredFile] = {}
        self._lock = threading.Lock()
        self._folder: Path | None = None

    def put(self, owner: str, name: str, data: bytes, purpose: str = "user_data") -> StoredFile:
        """Keep a file. What a tool makes takes the place of what tools made before, oldest first.

        Raises:
            ApiError: 413, it is too large; 400, the key's room is used up.
        """
        if len(data) > self.limits.file_bytes:
            raise too_large(self.limits.file_bytes)
        with self._lock:
            self._sweep()
            mine = [one for one in self._files.values() if one.owner == owner]
            while mine and self._is_full(mine, len(data)):
                oldest = next((one for one in mine if one.purpose == MADE), None) if purpose == MADE else None
                if oldest is None:
                    room = f"{self.limits.num_files} files of {self.limits.bytes:,} bytes together"
                    raise ApiError(400, f"There is no more room: {room} are kept; delete some.", code="files_full")
                mine.remove(oldest)
                self._forget(oldest)
            stored = StoredFile(plain_name(name), len(data), purpose, owner, self._clock())
            self._place(stored.id).write_bytes(data)
            self._files[stored.id] = stored
        return stored

    def get(self, owner: str, id: str) -> StoredFile:
        """A file by its id; that it was asked for keeps it for longer.

        Raises:
            ApiError: 404, the key has none of this id, or has it no more.
        """
        with self._lock:
            self._sweep()
            found = self._files.get(id)
            if found is None or found.owner != owner:
                kept = f"files are kept for {self.limits.seconds / 60:g} minutes after their last use"
                raise ApiError(404, f"There is no file `{id[:100]}` here ({kept}).", code="file_not_found")
            found.used = self._clock()
            return found

    def read(self, owner: str, id: str) -> tuple[StoredFile, bytes]:
        """A file and its contents.

        Raises:
            ApiError: 404, as `get`.
        """
        found = self.get(owner, id)
        try:
            return found, self._place(id).read_bytes()
        except FileNotFoundError:  # deleted at this moment
            raise ApiError(404, f"There is no file `{id[:100]}` here.", code="file_not_found") from None

    def listed(self, owner: str) -> list[StoredFile]:
        """The files of a key, newest first."""
        with self._lock:
            self._sweep()
            return [one for one in reversed(self._files.values()) if one.owner == owner]

    def delete(self, owner: str, id: str) -> None:
        """Forget a file.

        Raises:
            ApiError: 404, as `get`.
        """
        found = self.get(owner, id)
        with self._lock:
            self._forget(found)

    def sweep(self) -> None:
        """Forget what has not been used for too long."""
        with self._lock:
            self._sweep()

    def close(self) -> None:
        """Forget everything."""
        with self._lock:
            self._files.clear()
            if self._folder is not None:
                shutil.rmtree(self._folder, ignore_errors=True)
                self._folder = None

    def _is_full(self, mine: list[StoredFile], more: int) -> bool:
        return len(mine) >= self.limits.num_files or sum(one.size for one in mine) + more > self.limits.bytes

    def _sweep(self) -> None:
        until = self._clock() - self.limits.seconds
        for one in [one for one in self._files.values() if one.used < until]:
            self._forget(one)

    def _forget(self, one: StoredFile) -> None:
        self._files.pop(one.id, None)
        self._place(one.id).unlink(missing_ok=True)

    def _place(self, id: str) -> Path:
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="herd-files-"))  # its owner's alone
        return self._folder / id


def plain_name(name: str) -> str:
    """A file's name without folders and without what names may not hold, its ending kept where it is long."""
    name = _NO_NAME.sub("", PurePosixPath(name.replace("\\", "/")).name).strip().lstrip(".")
    name = name.encode("utf-8", "ignore").decode()
    stem, dot, suffix = name.rpartition(".")
    if len(name) > _LONGEST_NAME:
        name = f"{stem[: _LONGEST_NAME - 20]}.{suffix[:19]}" if dot else name[:_LONGEST_NAME]
    return name or "file"


def too_large(most: int) -> ApiError:
    """The refusal of a file that is too large."""
    return ApiError(413, f"A file may have {most:,} bytes (limits.max_file_mb of the server); send less.", param="file")


def routes(store: FileStore) -> APIRouter:
    """`/v1/files`."""
    router = APIRouter(prefix="/v1/files")

    @router.post("", response_model=FileObject, responses=REFUSALS)
    async def create(
        http: Request, file: Annotated[UploadFile, File()], purpose: Annotated[str, Form(max_length=64)] = "user_data"
    ) -> Response:
        record = http.scope["herd.request"]
        record.unheeded = told(name for name in await http.form() if name not in ("file", "purpose"))
        if (file.size or 0) > store.limits.file_bytes:
            raise too_large(store.limits.file_bytes)
        data = await file.read()
        purpose = "user_data" if purpose == MADE else purpose  # else it would go first
        stored = await asyncio.to_thread(store.put, record.owner, file.filename or "file", data, purpose)
        return JSONResponse(stored.describe(anthropic=speaks_anthropic(http.scope)))

    @router.get("", response_model=FileList, responses=REFUSALS)
    async def listed(http: Request) -> Response:
        anthropic = speaks_anthropic(http.scope)
        found = await asyncio.to_thread(store.listed, http.scope["herd.request"].owner)
        data = [one.describe(anthropic=anthropic) for one in found]
        ends = {"first_id": found[0].id if found else None, "last_id": found[-1].id if found else None}
        return JSONResponse({"object": "list", "data": data, "has_more": False} | ends)

    @router.get("/{id}", response_model=FileObject, responses=REFUSALS)
    async def described(id: str, http: Request) -> Response:
        found = await asyncio.to_thread(store.get, http.scope["herd.request"].owner, id)
        return JSONResponse(found.describe(anthropic=speaks_anthropic(http.scope)))

    @router.get("/{id}/content", response_class=Response, responses=REFUSALS)
    async def content(id: str, http: Request) -> Response:
        found, data = await asyncio.to_thread(store.read, http.scope["herd.request"].owner, id)
        return Response(data, media_type="application/octet-stream", headers=_HEADERS | {"X-Herd-Kind": found.kind})

    @router.delete("/{id}", response_model=FileDeleted, responses=REFUSALS)
    async def delete(id: str, http: Request) -> Response:
        await asyncio.to_thread(store.delete, http.scope["herd.request"].owner, id)
        told = {"type": "file_deleted"} if speaks_anthropic(http.scope) else {"object": "file", "deleted": True}
        return JSONResponse({"id": id} | told)

    return router


_HEADERS = {  # whatever a file holds, no browser runs it here
    "Content-Disposition": "attachment",
    "Content-Security-Policy": "default-src 'none'; sandbox",
    "X-Content-Type-Options": "nosniff",
}
