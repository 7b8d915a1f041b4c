"""Files wherever they lie: local paths, and URLs that fsspec opens (`s3://`, `gs://`, `https://`, `memory://`, `zip://`).

Settings hold paths, and a URL that became a path has lost a slash (`s3:/bucket/key`); `location` puts it back.
"""

from __future__ import annotations

import re
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

from herd.errors import DataError

_SCHEME = re.compile(r"^[a-z][a-z0-9+.-]+:[/:]", re.I)
_SIGNS = ("ETag", "etag", "md5Hash", "CRC", "mtime", "LastModified")
_LOST_SLASH = re.compile(r"(^|::)([a-z][a-z0-9+.-]+):/(?!/)", re.I)


def location(path: Path | str) -> str | None:
    """The URL that a path stands for, or None for a local file."""
    text = str(path)
    if not _SCHEME.search(text):
        return None
    url = _LOST_SLASH.sub(r"\1\2://", text)
    return "file:///" + url[7:].lstrip("/") if url.startswith("file://") else url


def open_file(path: Path) -> IO[bytes]:
    """A file opened for reading bytes; it can seek."""
    url = location(path)
    if url is None:
        return open(path, "rb")
    filesystem, inner = _resolve(url)
    return _told(url, filesystem.open, inner, "rb")


def file_size(path: Path) -> int:
    """Bytes of a file."""
    url = location(path)
    return path.stat().st_size if url is None else int(_info(url).get("size") or 0)


def modified(path: Path) -> float | None:
    """When a file changed last, in seconds since 1970; None where its store does not say."""
    url = location(path)
    if url is None:
        return path.stat().st_mtime
    info = _info(url)
    found = next((info[k] for k in ("mtime", "LastModified", "updated", "created") if info.get(k)), None)
    return found.timestamp() if isinstance(found, datetime) else found if isinstance(found, float) else None


def list_files(path: Path) -> list[Path] | None:
    """Every file under the folder that a URL names, or the file itself; None for a local path.

    Raises:
        DataError: there is nothing.
    """
    url = location(path)
    if url is None:
        return None
    filesystem, inner = _resolve(url)
    if not _told(url, filesystem.exists, inner):
        raise DataError(f"{url}: no such file or folder")
    if filesystem.isfile(inner):
        return [Path(url)]
    chain = url.partition("::")[1:]  # what an archive's files lie in
    scheme = url.partition("://")[0]
    return [Path(f"{scheme}://{name.lstrip('/')}{''.join(chain)}") for name in sorted(filesystem.find(inner))]


def identity(path: Path) -> str:
    """What tells whether a remote file or folder is still the same: names, sizes and the store's checksums."""
    parts = []
    for file in list_files(path) or []:
        info = _info(location(file) or "")
        sign = next(
            (str(info[k]) for k in ("ETag", "etag", "md5Hash", "CRC", "mtime", "LastModified") if k in info), ""
        )
        parts.append(f"{file}\0{info.get('size')}\0{sign}")
    return "\n".join(parts)


def _info(url: str) -> dict[str, Any]:
    filesystem, inner = _resolve(url)
    return _told(url, filesystem.info, inner)


@lru_cache(maxsize=16)  # an archive's filesystem closes the archive when it goes, under the files that are still open
def _resolve(url: str) -> tuple[Any, str]:
    try:
        import fsspec
    except ImportError:
        raise DataError(f"{url}: URLs need the package: pip install fsspec") from None
    try:
        return fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise DataError(f"{url}: {error}") from None


def _told(url: str, call: Any, *arguments: Any) -> Any:
    """Whatever a store's client raises becomes one sentence: each client has its own kinds of errors."""
    try:
        return call(*arguments)
    except FileNotFoundError:
        raise DataError(f"{url}: no such file or folder") from None
    except Exception as error:
        raise DataError(f"{url}: cannot be read: {type(error).__name__}: {error}") from None
