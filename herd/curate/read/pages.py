"""Reading pages from wherever they lie: WARC and WET, HTML files, JSONL, Parquet, text, code and git repositories.

Damage is counted, never fatal: a truncated archive gives the pages before the break.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

import pyarrow as pa

from herd.curate.read.kinds import (
    ASSET_SUFFIXES,
    CODE_SUFFIXES,
    HTML_SUFFIXES,
    OTHER_SUFFIXES,
    TEXT_SUFFIXES,
    kind_of,
    kind_of_name,
    sniff,
)
from herd.curate.read.storage import file_size, list_files, location, modified, open_file
from herd.curate.read.warc import read_arc, read_warc
from herd.errors import DataError
from herd.log import say
from herd.parquet import Length, read_rows

MAX_PAGE_BYTES = 20_000_000
"""Pages over this size are not parsed; they are kept as dropped, with the reason."""

_MAX_LINE_BYTES = 100_000_000
_ENTITY = re.compile(rb"&(?:#\d{1,6}|[a-zA-Z]{2,8});")
_NO_PAGES = ("json", "xml", "script", "records")  # in a file that is named a web page
_COLUMNS = {"html", "text", "content", "raw_content", "url", "date", "timestamp", "warc_date", "path"}

_FORMATS = ".html .htm .warc .wet .arc .jsonl .ndjson .parquet .txt .md .rst .tex .pdf .rss .atom and source code, "
_FORMATS += "also .gz, .zst"


class RawPage(NamedTuple):
    """A page before extraction. `kind` is one of `kinds.kind_of`: html, text, code, markdown, latex, feed, pdf."""

    id: str  # content hash: stable across runs
    url: str
    date: str
    kind: str
    charset: str  # as declared by the server, empty when it said nothing
    content: bytes  # empty where the page is over the size limit
    num_bytes: int
    source: str
    place: str  # the file, and byte offset (WARC), line or row in it


_SOURCE = re.compile(r"/_sources/(.+?)\.(?:rst|md|txt|ipynb|rst\.txt|md\.txt|ipynb\.txt)$")


def page_made_of(url: str) -> str | None:
    """The address of the page that is made of a source which a documentation ships beside it; None for other pages.

    Sphinx puts the source of `guide/bees.html` at `_sources/guide/bees.rst.txt`.
    """
    return _SOURCE.sub(r"/\1.html", url) if "/_sources/" in url and _SOURCE.search(url) else None


def find_files(paths: list[Path]) -> list[Path]:
    """The files that hold pages under the given files, folders and URLs, in a fixed order.

    A run folder of `pages` counts as what it holds or points to. A URL is a path to fsspec (`storage.py`).

    Raises:
        DataError: a path is missing, or holds no file of a known kind.
    """
    files: list[Path] = []
    for path in paths:
        files += _files_under(Path(path))
    return files


def _files_under(path: Path) -> list[Path]:
    remote = list_files(path)
    if remote is not None:
        files = [file for file in remote if _suffix(file) in _READERS]
        if not files:
            raise DataError(f"{location(path)}: no file of pages there; expected {_FORMATS}")
        return files
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    if path.is_file():
        if _suffix(path) in _READERS:
            return [path]
        raise DataError(f"{path}: cannot tell what kind of file this is; expected {_FORMATS}")
    if (path / "pages.warc.gz").exists():
        return [path / "pages.warc.gz"]
    if (path / "repositories.json").exists():
        return [path / "pages.jsonl.gz"]
    if (path / "sources.json").exists():
        return find_files([Path(p) for p in json.loads((path / "sources.json").read_text())["paths"]])
    hidden = [file for file in path.rglob("*") if file.is_file() and _suffix(file) in _READERS]
    files = sorted(f for f in hidden if not any(part.startswith(".") for part in f.relative_to(path).parts))
    if not files:
        raise DataError(f"{path}: no file of pages in this folder; expected {_FORMATS}")
    return _without_assets(path, files)


def _without_assets(folder: Path, files: list[Path]) -> list[Path]:
    """Files without the scripts and style sheets that belong to web pages; in a repository they are code."""
    if not any(_suffix(file) in HTML_SUFFIXES for file in files) or (folder / ".git").exists():
        return files
    kept = [file for file in files if _suffix(file) not in ASSET_SUFFIXES]
    if len(kept) < len(files):
        say(f"  {folder}: {len(files) - len(kept):,} scripts and style sheets of its web pages are left out")
    return kept


def _suffix(path: Path) -> str:
    """`.warc` for `crawl.warc.gz`: the suffix that names the format."""
    suffixes = [suffix.lower() for suffix in Path(_plain_name(path)).suffixes]
    if suffixes and suffixes[-1] in (".gz", ".zst"):
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def _plain_name(path: Path) -> str:
    """A file's name without what a URL adds; a mirror on the disk may have `page?x=1.html` and `page.html?x=1`."""
    if location(path):
        return str(path).partition("::")[0].partition("?")[0]
    return path.name if "." in path.name.rpartition("?")[2] else path.name.partition("?")[0]


def read_pages(path: Path, counts: Counter, max_bytes: int = MAX_PAGE_BYTES) -> Iterator[RawPage]:
    """The pages of one file, in order. `counts` gathers how many records were read, corrupt, or of another kind.

    Raises:
        DataError: the file cannot be opened.
    """
    try:
        yield from _READERS[_suffix(path)](path, counts, max_bytes)
    except PermissionError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None


def _page(url: str, date: str, kind: str, charset: str, content: bytes, num_bytes: int, place: str) -> RawPage:
    url, date, place = _writable(url), _writable(date), _writable(place)
    id = hashlib.blake2b(url.encode("utf-8", "replace") + b"\0" + content, digest_size=12).hexdigest()
    return RawPage(id, url, date, kind, charset, content, num_bytes, _source(url), place)


def _writable(text: str) -> str:
    """Lone surrogates (of a file's name, of JSON) as escapes: no file of ours could hold them."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def _read_warc(path: Path, counts: Counter, max_bytes: int) -> Iterator[RawPage]:
    name = _name(path)
    for page in (read_arc if _suffix(path) == ".arc" else read_warc)(path, counts, max_bytes):
        kind = kind_of(page.url, page.media_type, page.content)
        if kind is None:
            counts["not a page: " + (page.media_type or "unknown type")] += 1
            continue
        if page.media_type.endswith("html") and kind != "html":
            counts[f"declared as HTML, read as {kind}"] += 1
        yield _page(page.url, page.date, kind, page.charset, page.content, page.num_bytes, f"{name}#{page.offset}")


def _name(path: Path) -> str:
    """A file's URL, or its path as it was given."""
    return location(path) or path.as_posix()


def _source(url: str) -> str:
    if url.startswith("python://"):
        return "library" if "/lib/" in url else "pydoc"
    if url.startswith("git:"):
        return "code"
    return "web" if url.startswith(("http://", "https://")) else "files"


def _read_file(kind: str) -> Any:
    def read(path: Path, counts: Counter, max_bytes: int) -> Iterator[RawPage]:
        counts["records"] += 1
        num_bytes = file_size(path)
        content = b""
        if num_bytes <= max_bytes:
            try:
                with _open(path) as file:
                    content = file.read(max_bytes + 1)
            except (OSError, EOFError, zlib.error):
                counts["corrupt"] += 1
                return
        if len(content) > max_bytes:
            num_bytes, content = len(content), b""
        found = _file_kind(kind, content)
        if found is None:
            counts[f"not a page: {sniff(content)} in a file named {_suffix(path)}"] += 1
            return
        untold = found in ("html", "feed", "pdf")  # a copy of a page tells when it was copied: undated
        changed = None if untold else modified(path)
        date = "" if changed is None else time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(changed))
        yield _page(_name(path), date, found, "", content, num_bytes, _name(path))

    return read


def _file_kind(named: str, content: bytes) -> str | None:
    """What a file is whose name says `named`; None where its content is no document of any kind."""
    if not content or named in ("code", "markdown", "latex"):
        return named
    found = sniff(content)
    if found in ("pdf", "feed"):
        return found
    if named == "html" and found == "text" and not _ENTITY.search(content[:4096]):
        return "text"
    if found == "binary" or named in ("feed", "pdf") or (named == "html" and found in _NO_PAGES):
        return "html" if found == "html" else None
    return named


def _open(path: Path) -> IO[bytes]:
    file = open_file(path)
    ending = Path(_plain_name(path)).suffix.lower()
    if ending == ".gz":
        return cast(IO[bytes], gzip.open(file, "rb"))
    if ending == ".zst":
        return pa.input_stream(file, compression="zstd")
    return file


def _read_jsonl(path: Path, counts: Counter, max_bytes: int) -> Iterator[RawPage]:
    number = 0
    try:
        with _open(path) as file:
            for number, line in enumerate(_lines(file), 1):
                counts["records"] += 1
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError):
                    row = None
                    if number == 1 and _suffix(path) == ".json":  # once, not for each of its lines
                        counts["a JSON document, not JSON lines"] += 1
                        return
                page = _row_page(row, f"{_name(path)}#{number}", counts, max_bytes)
                if page is not None:
                    yield page
    except (OSError, EOFError, zlib.error):
        counts["corrupt"] += 1


def _lines(file: IO[bytes]) -> Iterator[bytes]:
    """Lines that are not blank; unlike iterating over the file, this works for Arrow's streams and bounds a line."""
    pieces: list[bytes] = []
    size = blank = 0
    for block in _blocks(file):
        if blank := 0 if block.strip() else blank + len(block):
            if blank > _MAX_LINE_BYTES:
                yield b"{"  # counted as corrupt; what stands behind so much nothing is left out
                return
            block = b"\n" if b"\n" in block else block[:1]
        first, *others = block.split(b"\n")
        size += len(first)
        if size <= _MAX_LINE_BYTES:
            pieces.append(first)
        if others:
            yield from _line(pieces, size)
            yield from (line for line in others[:-1] if line.strip())
            pieces, size = [others[-1]], len(others[-1])
    yield from _line(pieces, size)


def _line(pieces: list[bytes], size: int) -> Iterator[bytes]:
    line = b"".join(pieces) if size <= _MAX_LINE_BYTES else b"{"  # counted as corrupt
    if line.strip():
        yield line


def _blocks(file: IO[bytes]) -> Iterator[bytes]:
    """A stream in blocks so small that a break takes little along: a read that meets it fails as a whole."""
    read, size = (file.read1, 1 << 20) if isinstance(file, gzip.GzipFile) else (file.read, 1 << 14)
    while block := read(size):
        yield block


def _read_parquet(path: Path, counts: Counter, max_bytes: int) -> Iterator[RawPage]:
    number = 0
    try:
        with open_file(path) as stream:
            for row in read_rows(stream, counts, _COLUMNS, flat=True, max_bytes=max_bytes):
                counts["records"] += 1
                number += 1
                page = _row_page(row, f"{_name(path)}#{number}", counts, max_bytes)
                if page is not None:
                    yield page
    except (OSError, MemoryError, pa.ArrowException):
        counts["corrupt"] += 1


def _row_page(row: Any, place: str, counts: Counter, max_bytes: int) -> RawPage | None:
    """A row of JSONL or Parquet as a page: `html`, or `text` (also called content, raw_content), with url and date."""
    if not isinstance(row, dict):
        counts["corrupt"] += 1
        return None
    html, text = row.get("html"), next((row[k] for k in ("text", "content", "raw_content") if row.get(k)), None)
    content = html or text
    if isinstance(content, Length):
        url = place if isinstance(row.get("url"), Length) else str(row.get("url") or place)
        return _page(url, "", "html" if html else "text", "", b"", int(content), place)
    if isinstance(content, str):
        content = content.encode("utf-8", "surrogatepass")
    if not isinstance(content, bytes):
        counts["no html or text in the row"] += 1
        return None
    url = str(row.get("url") or place)
    date = str(row.get("date") or row.get("timestamp") or row.get("warc_date") or "")
    named = kind_of_name(str(row.get("path") or url))
    kind = "html" if html else (named if named in ("code", "markdown", "latex") else "text")
    if html and (kind := _file_kind("html", content) or "") == "":
        counts[f"not a page: {sniff(content)}"] += 1
        return None
    kept = content if len(content) <= max_bytes else b""
    charset = "utf-8" if isinstance(html or text, str) else ""
    return _page(url, date, kind, charset, kept, len(content), place)


_READERS = (
    dict.fromkeys([".warc", ".wet", ".arc"], _read_warc)
    | dict.fromkeys([".jsonl", ".ndjson", ".json"], _read_jsonl)
    | {".parquet": _read_parquet}
    | dict.fromkeys(HTML_SUFFIXES, _read_file("html"))
    | {suffix: _read_file(kind_of_name("x" + suffix) or "text") for suffix in TEXT_SUFFIXES}
    | dict.fromkeys(CODE_SUFFIXES, _read_file("code"))
    | {suffix: _read_file("pdf" if suffix == ".pdf" else "feed") for suffix in OTHER_SUFFIXES}
)
