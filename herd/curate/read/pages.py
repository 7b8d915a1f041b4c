"""Reading pages from wherever they lie: WARC and WET, HTML files, JSONL, Parquet, text, code and git repositories.

Damage is counted, never fatal: a truncated archive gives the pages before the break.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from herd.curate.read.storage import file_size, list_files, location, modified, open_file
from herd.curate.read.warc import read_warc
from herd.errors import DataError

MAX_PAGE_BYTES = 20_000_000
"""Pages over this size are not parsed; they are kept as dropped, with the reason."""

_MAX_LINE_BYTES = 100_000_000
_COLUMNS = {"html", "text", "content", "raw_content", "url", "date", "timestamp", "warc_date", "path"}

CODE_SUFFIXES = {".py", ".pyi", ".c", ".h", ".cc", ".cpp", ".hpp", ".cu", ".rs", ".go", ".java", ".kt", ".swift"}
CODE_SUFFIXES |= {".js", ".ts", ".tsx", ".jsx", ".rb", ".php", ".pl", ".sh", ".sql", ".r", ".jl", ".lua", ".scala"}
CODE_SUFFIXES |= {".cs", ".hs", ".ml", ".lean", ".tex", ".css", ".toml", ".yaml", ".yml"}
TEXT_SUFFIXES = {".txt", ".md", ".rst"}
_HTML_SUFFIXES = {".html", ".htm", ".xhtml"}
_HTML_TYPES = {"text/html", "application/xhtml+xml", "application/xhtml"}
_NO_PAGES = {
    "text/javascript",
    "text/ecmascript",
    "text/css",
    "text/x-javascript",
    "text/vtt",
    "text/calendar",
    "text/vcard",
}
_FORMATS = ".html .htm .warc .wet .jsonl .ndjson .parquet .txt .md .rst and source code, also .gz and .zst"


class RawPage(NamedTuple):
    """A page before extraction. `kind` is `html`, `text` or `code`."""

    id: str  # content hash: stable across runs
    url: str
    date: str
    kind: str
    charset: str  # as declared by the server, empty when it said nothing
    content: bytes  # empty where the page is over the size limit
    num_bytes: int
    source: str
    place: str  # the file, and byte offset (WARC), line or row in it


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
    return files


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
    for page in read_warc(path, counts, max_bytes):
        kind = _kind(page.url, page.media_type, page.content)
        if kind is None:
            counts["not a page: " + (page.media_type or "unknown type")] += 1
            continue
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


def _kind(url: str, media_type: str, content: bytes) -> str | None:
    if media_type in _HTML_TYPES:
        return "html"
    suffix = Path(url.partition("?")[0]).suffix.lower() if url else ""
    if media_type in _NO_PAGES:
        return None
    if media_type.startswith("text/"):
        return "code" if suffix in CODE_SUFFIXES else "text"
    if media_type in ("", "application/octet-stream", "application/http"):
        return "html" if looks_like_html(content) else None
    return None


def looks_like_html(content: bytes) -> bool:
    """Whether bytes of unknown type begin like a web page."""
    head = content[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    return head.startswith((b"<!doctype html", b"<html", b"<head", b"<body")) or b"<html" in head


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
        changed = None if kind == "html" else modified(path)  # a copy of a page tells when it was copied: undated
        date = "" if changed is None else time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(changed))
        yield _page(_name(path), date, kind, "", content, num_bytes, _name(path))

    return read


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
            schema = pq.read_schema(stream)
            # nothing nested is of use, and a value that stands in many rows is held once
            flat = [field for field in schema if field.name in _COLUMNS and not pa.types.is_nested(field.type)]
            texts = [field.name for field in flat if _is_text(field.type)]
            file = pq.ParquetFile(stream, read_dictionary=texts)
            for batch in file.iter_batches(batch_size=256, columns=[field.name for field in flat]):
                for row in _plain_rows(batch, max_bytes):
                    counts["records"] += 1
                    number += 1
                    page = _row_page(row, f"{_name(path)}#{number}", counts, max_bytes)
                    if page is not None:
                        yield page
    except (OSError, MemoryError, pa.ArrowException):
        counts["corrupt"] += 1


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_binary(kind)


def _plain_rows(batch: pa.RecordBatch, max_bytes: int) -> Iterator[dict[str, Any] | None]:
    """A batch's rows as Python values, one at a time; only the length of a value over the limit.

    None for a row that has none (a date past the calendar, broken UTF-8).
    """
    lengths = {name: _lengths(batch[name]) for name in batch.schema.names if pa.types.is_dictionary(batch[name].type)}
    for number in range(len(batch)):
        try:
            sizes = {name: size[number] or 0 for name, size in lengths.items()}
            long = {name: _Length(size) for name, size in sizes.items() if size > max_bytes}
            yield {name: batch[name][number].as_py() for name in batch.schema.names if name not in long} | long
        except (ValueError, LookupError, OverflowError, pa.ArrowException):
            yield None


def _lengths(column: pa.DictionaryArray) -> list[int | None]:
    return pc.binary_length(column.dictionary).take(column.indices).to_pylist()


class _Length(int):
    """What is known of a value that is too long to be looked at: its bytes."""


def _row_page(row: Any, place: str, counts: Counter, max_bytes: int) -> RawPage | None:
    """A row of JSONL or Parquet as a page: `html`, or `text` (also called content, raw_content), with url and date."""
    if not isinstance(row, dict):
        counts["corrupt"] += 1
        return None
    html, text = row.get("html"), next((row[k] for k in ("text", "content", "raw_content") if row.get(k)), None)
    content = html or text
    if isinstance(content, _Length):
        url = place if isinstance(row.get("url"), _Length) else str(row.get("url") or place)
        return _page(url, "", "html" if html else "text", "", b"", int(content), place)
    if isinstance(content, str):
        content = content.encode("utf-8", "surrogatepass")
    if not isinstance(content, bytes):
        counts["no html or text in the row"] += 1
        return None
    url = str(row.get("url") or place)
    date = str(row.get("date") or row.get("timestamp") or row.get("warc_date") or "")
    kind = "html" if html else ("code" if Path(str(row.get("path") or url)).suffix in CODE_SUFFIXES else "text")
    kept = content if len(content) <= max_bytes else b""
    charset = "utf-8" if isinstance(html or text, str) else ""
    return _page(url, date, kind, charset, kept, len(content), place)


_READERS = (
    dict.fromkeys([".warc", ".wet"], _read_warc)
    | dict.fromkeys([".jsonl", ".ndjson", ".json"], _read_jsonl)
    | {".parquet": _read_parquet}
    | dict.fromkeys(_HTML_SUFFIXES, _read_file("html"))
    | dict.fromkeys(TEXT_SUFFIXES, _read_file("text"))
    | dict.fromkeys(CODE_SUFFIXES, _read_file("code"))
)
