"""Reading rows of data in common file formats: JSON lines, JSON, CSV and TSV (each plain, gz, zst), Parquet, Arrow.

Text is UTF-8, or UTF-16 where the file begins with its mark.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import field
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from herd.config import settings
from herd.errors import DataError
from herd.log import say
from herd.parquet import tell_lost, whole_rows
from herd.run import atomic_write

_LINES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".ndjson", ".parquet", ".arrow")
_TABLES = tuple(kind + packed for kind in (".csv", ".tsv") for packed in ("", ".gz", ".zst"))
_WHOLE = tuple(".json" + packed for packed in ("", ".gz", ".zst"))
SUFFIXES = (*_LINES, *_TABLES, *_WHOLE)
_CACHED = "cache-"  # what `datasets` leaves beside the rows
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_DELIMITERS = (",", ";", "\t", "|")
_SPLIT = re.compile(r"(?:^|[._-])(train|test|val|valid|validation|dev|eval)(?=[._-])", re.IGNORECASE)


@settings
class RowSettings:
    """How rows are read."""

    columns: dict[str, str] = field(default_factory=dict)
    """The file's names for keys of docs/tuning.md: {prompt: QUESTION, completion: REPLY}."""
    weights: dict[str, float] = field(default_factory=dict)
    """Weights of files by name: with 2 their rows count twice, with 0.5 every second row is taken; default: 1."""
    too_long: Literal["leave_out", "cut", "refuse"] = "leave_out"
    """What becomes of a row that is longer than `batch.row_tokens` or the model's context: it is left out and counted,
    loses its end, or ends the run."""

    min_gap: float = 0.0
    """Pairs whose own scores (chosen_score and rejected_score, score_chosen, overall_score) differ by less are left out
    as near-ties; those of equal scores, or with the rejected response above, always are."""

    def __post_init__(self) -> None:
        if any(not 0 <= weight < math.inf for weight in self.weights.values()):
            raise ValueError("weights must be 0 or more")
        if not 0 <= self.min_gap < math.inf:
            raise ValueError("min_gap must be 0 or more")


def read_rows(paths: Path | Sequence[Path], options: RowSettings | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each row of files and folders of such files, with where it is (`file, row 3`), in a fixed order.

    Raises:
        DataError: a path is missing, a folder has no such file, a file is damaged, a row is not an object, or
            `options` names a file or columns that are not there.
    """
    files = [file for path in ([paths] if isinstance(paths, str | Path) else paths) for file in _files(Path(path))]
    if options is None:
        for file in files:
            yield from _rows(file)
        return
    if unknown := [name for name in options.weights if name not in (known := [file.name for file in files])]:
        raise DataError(f"weights names {unknown[0]}, which is not among the files: {', '.join(known)}")
    for file in files:
        owed = 0.0
        for place, row in _rows(file):
            owed += options.weights.get(file.name, 1.0)
            named = _renamed(place, row, options.columns)
            while owed >= 1 - 1e-9:
                owed -= 1
                yield place, named


def _renamed(place: str, row: dict[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """The row with the keys that Herd knows, in small letters (`Question`, `INSTRUCTION`)."""
    if not columns:
        return _in_small_letters(row)
    found = {key: row[column] for key, column in columns.items() if column in row}
    rest = {key: value for key, value in row.items() if key not in columns.values()}
    if not found:
        raise DataError(f"{place}: has none of the columns {', '.join(columns.values())}; it has {', '.join(row)}")
    if taken := found.keys() & rest.keys():
        key = min(taken)
        raise DataError(f"{place}: has a column `{key}` beside `{columns[key]}`, which is to be called so; rename it")
    return _in_small_letters(rest | found)


def _in_small_letters(row: dict[str, Any]) -> dict[str, Any]:
    """The row with keys such as `Question` and `INSTRUCTION` in small letters, unless another key is called so."""
    if not any(key[:1].isupper() for key in row):
        return row
    small = Counter(key.lower() for key in row)
    plain = {key: key.lower() for key in row if (key.istitle() or key.isupper()) and small[key.lower()] == 1}
    return {plain.get(key, key): one for key, one in row.items()}


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        return _files_in(path)
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    if not path.name.endswith(SUFFIXES):
        raise DataError(f"{path}: expected a file that ends with {', '.join(SUFFIXES)}")
    return [path]


def splits_in(folder: Path) -> dict[str, list[Path]]:
    """A folder's data files by the split that their names or folders say (train, test, ...), those of none under "".

    Where it has none itself, those of the folders in it (`data/train-0.parquet`, `train/data-0.arrow`). Documents
    (`.json`), which may be anything's settings, count only where there are no others.
    """
    below = sorted(file for file in folder.rglob("*") if file.name.endswith(SUFFIXES) and _counts(folder, file))
    for files in ([file for file in below if file.parent == folder], below):
        names = [file for file in files if not file.name.endswith(_WHOLE)]
        if names or (files and files == below):
            break
    found: dict[str, list[Path]] = {}
    for file in names or files:
        hits = [_SPLIT.search(f"{part}.") for part in reversed(file.relative_to(folder).parts)]
        hit = next((hit for hit in hits if hit), None)
        found.setdefault(hit[1].lower() if hit else "", []).append(file)
    return found


def _counts(folder: Path, file: Path) -> bool:
    parts = file.relative_to(folder).parts
    return file.is_file() and not any(part.startswith(".") for part in parts) and not file.name.startswith(_CACHED)


def _files_in(folder: Path) -> list[Path]:
    splits = splits_in(folder)
    files = sorted(file for several in splits.values() for file in several)
    if not files:
        raise DataError(f"{folder}: no data files; expected {', '.join(SUFFIXES)}")
    if apart := sorted({str(file.parent) for file in folder.rglob("*") if _is_beside(folder, file, files)}):
        say(f"  {folder}: its own files are read, not those in {', '.join(apart)}")
    splits.pop("", None)
    if "train" in splits and len(splits) > 1:
        raise DataError(
            f"{folder}: holds the splits {', '.join(sorted(splits))}, which are not to be mixed; name the files to "
            f"read, such as {splits['train'][0]}"
        )
    return files


def _is_beside(folder: Path, file: Path, read: Sequence[Path]) -> bool:
    return file.name.endswith((*_LINES, *_TABLES)) and file not in read and _counts(folder, file)


def _rows(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    if file.suffix in (".parquet", ".arrow"):
        return _parquet_rows(file) if file.suffix == ".parquet" else _arrow_rows(file)
    if file.name.endswith(_TABLES):
        return _table_rows(file)
    return _document_rows(file) if file.name.endswith(_WHOLE) else _json_rows(file)


def _document_rows(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a JSON list, or of the one that an object holds (`{"data": [...]}`); or JSON lines in `.json`."""
    try:
        with _open(file) as stream:
            text = stream.read()
    except (OSError, EOFError, zlib.error, pa.ArrowException) as error:
        raise DataError(f"{file}: damaged or truncated ({error})") from None
    try:
        rows = json.loads(text.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        if text.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"["):
            raise DataError(f"{file}: not valid JSON ({error})") from None
        for number, line in enumerate(text.splitlines(), 1):
            if line.strip():
                yield f"{file}, row {number}", _object(file, number, line)
        return
    rows = rows if isinstance(rows, list) else _rows_in(file, rows)
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise DataError(f"{file}, row {number}: expected an object, got {type(row).__name__}")
        yield f"{file}, row {number}", row


def _rows_in(file: Path, whole: Any) -> list[Any]:
    """The rows of a JSON document that is no list: those of its only list of objects, else itself.

    Raises:
        DataError: it has several such lists, or is no object.
    """
    if not isinstance(whole, dict):
        raise DataError(f"{file}: expected a list of objects, got {type(whole).__name__}")
    lists = [key for key, value in whole.items() if isinstance(value, list) and value and isinstance(value[0], dict)]
    if len(lists) > 1:
        raise DataError(f"{file}: holds several lists ({', '.join(lists)}); write the one that is meant to a file")
    of_rows = lists and "role" not in (first := whole[lists[0]][0]) and "from" not in first
    rows: list[Any] = whole[lists[0]] if of_rows else [whole]
    if of_rows and len(whole) > 1:
        say(f"  {file}: the rows are its `{lists[0]}`; not read: {', '.join(key for key in whole if key != lists[0])}")
    return rows


def _table_rows(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a table with a header; every value is text. Its header tells what parts columns."""
    csv.field_size_limit(1 << 30)  # its own limit of 128 KiB is less than an article
    try:
        with _open(file) as stream:
            text = stream.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: is neither UTF-8 nor UTF-16 ({error}); save it as UTF-8") from None
    except (OSError, EOFError, zlib.error, pa.ArrowException) as error:
        raise DataError(f"{file}: damaged or truncated ({error})") from None
    header = text.partition("\n")[0]
    delimiter = "\t" if ".tsv" in file.suffixes else max(_DELIMITERS, key=header.count)
    if delimiter != "," and ".csv" in file.suffixes:
        say(f"  {file}: its columns are parted by {'tabs' if delimiter == chr(9) else delimiter}")
    yield from _table(file, text, delimiter, csv.QUOTE_NONE if _is_unquoted(text, delimiter) else csv.QUOTE_MINIMAL)


def _is_unquoted(text: str, delimiter: str) -> bool:
    """Whether quotes in a table with tabs are just marks of its texts: each line has the columns of the first."""
    lines = text.rstrip("\r\n").splitlines()
    return delimiter == "\t" and len({line.count("\t") for line in lines if line}) == 1 and '""' not in text and any(
        field.count('"') % 2 for line in lines for field in line.split("\t")
    )  # fmt: skip


def _table(file: Path, text: str, delimiter: str, quoting: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, quoting=quoting, strict=True)
    try:
        names = list(reader.fieldnames or ())
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise DataError(f"{file}: two columns are called {twice!r}")
        for number, row in enumerate(reader, 1):
            if None in row or None in row.values():
                raise DataError(f"{file}, row {number} (line {reader.line_num}): expected {len(names)} columns")
            yield f"{file}, row {number}", row
    except csv.Error as error:
        raise DataError(
            f"{file}, after line {reader.line_num}: cannot be read as CSV ({error}); a quote in a text is written "
            "twice, and the text is put into quotes"
        ) from None


def _json_rows(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        with _open(file) as stream:
            for number, line in enumerate(stream, 1):
                if line.strip():
                    yield f"{file}, row {number}", _object(file, number, line)
    except (OSError, EOFError, zlib.error, pa.ArrowException) as error:
        raise DataError(f"{file}: damaged or truncated ({error})") from None


def _open(file: Path) -> Any:  # a binary file, of Python or of Arrow; UTF-8, as no line can be told in UTF-16
    with _unpacked(file) as stream:
        mark = stream.read(2)
        whole = mark + stream.read() if mark in _UTF16 else b""
    try:
        return io.BytesIO(whole.decode("utf-16").encode()) if whole else _unpacked(file)
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: begins as UTF-16 and is not ({error})") from None


def _unpacked(file: Path) -> Any:
    if file.name.endswith(".gz"):
        return gzip.open(file, "rb")
    if file.name.endswith(".zst"):
        return pa.input_stream(str(file), compression="zstd")
    return open(file, "rb")


def _object(file: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file}, row {number}: not valid JSON ({error})") from None
    if not isinstance(row, dict):
        raise DataError(f"{file}, row {number}: expected an object, got {type(row).__name__}")
    return row


def _parquet_rows(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    counts: Counter[str] = Counter()
    try:
        for number, row in enumerate(whole_rows(file, counts), 1):
            yield f"{file}, row {number}", row
        tell_lost(file, counts)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{file}: cannot be read as Parquet ({error})") from None


def _arrow_rows(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows of an Arrow stream or file, as `datasets` saves them."""
    try:
        with pa.memory_map(str(file)) as source:
            try:
                batches = iter(pa.ipc.open_stream(source))
            except pa.ArrowInvalid:
                opened = pa.ipc.open_file(source)
                batches = (opened.get_batch(number) for number in range(opened.num_record_batches))
            number = 0
            for batch in batches:
                batch.validate(full=True)
                for index in range(len(batch)):
                    number += 1
                    yield f"{file}, row {number}", batch.slice(index, 1).to_pylist()[0]
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DataError(f"{file}: cannot be read as Arrow ({error})") from None


def write_rows(file: Path, rows: Iterable[dict[str, Any]]) -> None:
    """JSON lines, whole or not at all."""
    atomic_write(file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
