"""Duplicates: of URLs, of documents (MinHash), of lines.

Pure functions of arrays; `herd/curate/dedup/steps.py` runs them over a corpus on disk.

Source: the Llama 3 paper, section 3.1.1 (newest copy of each URL; MinHash over the whole corpus; lines seen more than
6 times in a bucket of 30M documents, after ccNet, Wenzek et al. 2019). The paper gives no MinHash parameters; 14 bands
of 8 over word 5-grams are FineWeb's (Penedo et al. 2024).
"""

from __future__ import annotations

import html
import os
import re
from contextlib import suppress
from itertools import pairwise
from typing import Literal
from urllib.parse import parse_qsl, quote, urlencode, urljoin, urlsplit, urlunsplit

os.environ.setdefault("DO_NOT_TRACK", "1")  # before Daft is imported: no telemetry

import daft
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from daft import col
from daft.expressions import ExpressionsProjection
from daft.functions import minhash
from daft.recordbatch import RecordBatch

from herd.config import settings

Survivor = Literal["longest", "newest", "first"]

_TRACKING = {"fbclid", "gclid", "msclkid", "mc_cid", "mc_eid", "igshid", "yclid", "ysclid", "dclid", "gbraid", "wbraid"}
_TRACKING |= {"twclid", "ttclid", "srsltid", "_ga", "_gl", "_hsenc", "_hsmi", "_openstat"}
_SESSION = {"sessionid", "session_id", "sessid", "phpsessid", "jsessionid", "sid", "oscsid", "zenid"}
_REL = re.compile(rb"""\brel\s*=\s*(?:["'][^"'>]*\bcanonical\b|canonical\b)""", re.I)
_HREF = re.compile(rb"""\bhref\s*=\s*(?:"([^"]{1,2000})"|'([^']{1,2000})'|([^\s"'>]{1,2000}))""", re.I)
_NOT_READ = ((b"<!--", b"-->"), (b"<script", b"</script"))
_HEAD_BYTES = 200_000
_PATH_SESSION = re.compile(r";(\w+)=([^;/]*)")  # `;jsessionid=...`, as Java's servers write it
_ASP_SESSION = re.compile(r"/\((?:[A-Z]\([\w-]{16,}\))+\)(?=/)")  # `/(S(...))/`, as ASP.NET writes it
_SESSION_ID = re.compile(r"(?=.*\d)(?=.*[A-Za-z])[\w.~!-]{16,}")  # long and random: `sid=100` is a story
_HASH = re.compile(r"[0-9a-f]{32}")
_ESCAPE = re.compile(r"%([0-9a-fA-F]{2})")
_UNRESERVED = re.compile(r"[\w.~-]", re.ASCII)


@settings
class DocumentDedup:
    """Near-duplicate documents by MinHash."""

    enabled: bool = True
    """Whether to look for near-duplicate documents."""
    ngram_words: int = 5
    """Length of the word n-grams that are compared, in words."""
    bands: int = 14
    """Bands of hashes; two documents are candidates when one band agrees."""
    rows: int = 8
    """Hashes in a band."""
    similarity: float = 0.7
    """Least Jaccard similarity at which candidates count as duplicates; 0 takes every candidate."""
    page_similarity: float = 0.5
    """The same for pages of one canonical address, and of addresses that differ in a session's id only."""
    verify: Literal["signature", "exact"] = "signature"
    """Whether similarity is estimated from the signatures or computed exactly from the n-grams (more disk and time)."""
    keep: Survivor = "longest"
    """Which copy survives: the longest text, the newest, or the first read; ties go to the first."""
    seed: int = 1
    """Seed of the hash functions."""

    def __post_init__(self):
        if min(self.ngram_words, self.bands, self.rows) < 1:
            raise ValueError("ngram_words, bands and rows must be at least 1")
        if not (0 <= self.similarity <= 1 and 0 <= self.page_similarity <= 1):
            raise ValueError("similarity and page_similarity must be between 0 and 1")


@settings
class LineDedup:
    """Lines that stand in many documents: menus, notices, boilerplate."""

    enabled: bool = True
    """Whether to drop repeated lines."""
    max_count: int = 6
    """Lines that stand in more documents of a bucket than this are dropped; in one document a line counts once."""
    bucket_documents: int = 30_000_000
    """Documents counted together."""
    keep_first: bool = True
    """Keep a repeated line in the first document that has it (ccNet drops it there too)."""

    def __post_init__(self):
        if min(self.max_count, self.bucket_documents) < 1:
            raise ValueError("max_count and bucket_documents must be at least 1")


# ---- URLs ------------------------------------------------------------------------------------------------------------


def normal_url(url: str) -> str:
    """The form under which two spellings of one address meet: case, default port, tracking and fragment taken out.

    A fragment that names a row of a file (`pages.jsonl#17`) or a client-side route (`#!`, `#/`) is part of the address.
    """
    try:
        parts = urlsplit(url.strip())
        port = parts.port
    except ValueError:
        return url.strip()
    if parts.scheme not in ("http", "https"):
        return url.strip()
    host = (parts.hostname or "").rstrip(".")
    if not host.isascii():
        with suppress(UnicodeError):
            host = host.encode("idna").decode()
    if port and port != {"http": 80, "https": 443}[parts.scheme]:
        host = f"{host}:{port}"
    query = parse_qsl(parts.query.replace("&amp;", "&"), keep_blank_values=True)
    kept = [(k, v) for k, v in query if not _is_noise(k.lower(), v)]
    fragment = parts.fragment if parts.fragment.startswith(("!", "/")) else ""
    return urlunsplit(
        (
            "http",
            host.removeprefix("www."),
            _plain_path(_ASP_SESSION.sub("", _PATH_SESSION.sub(_without_session, parts.path))).rstrip("/"),
            urlencode(kept),
            fragment,
        )
    )


def _plain_path(path: str) -> str:
    """A path without dots, and with no more escapes than it needs."""
    path = _ESCAPE.sub(_plain_escape, path) if "%" in path else path
    path = path if path.isascii() else quote(path, safe="/%:@!$&'()*+,;=~-._")
    if "/." not in path:
        return path
    parts: list[str] = []
    for part in path.split("/"):
        if part == "..":
            del parts[max(1, len(parts) - 1) :]
        elif part != ".":
            parts.append(part)
    return "/".join(parts)


def _plain_escape(match: re.Match) -> str:
    character = chr(int(match[1], 16))
    return character if _UNRESERVED.fullmatch(character) else match[0].upper()


def _is_noise(name: str, value: str) -> bool:
    if name in _SESSION or name.startswith("aspsessionid"):
        return not value or _is_session_id(value)
    if name == "s":
        return _HASH.fullmatch(value) is not None
    return name in _TRACKING or name.startswith("utm_")


def _is_session_id(value: str) -> bool:
    """Whether a value is long and random: letters and digits change often, as in no name of a story."""
    if not _SESSION_ID.fullmatch(value):
        return False
    kinds = [(c.isdigit(), c.isupper()) for c in value if c.isalnum()]
    return sum(a != b for a, b in pairwise(kinds)) >= max(3, len(value) // 8)


def _without_session(match: re.Match) -> str:
    name = match[1].lower()
    return "" if name in _SESSION and _is_noise(name, match[2]) else match[0]


def has_session(url: str) -> bool:
    """Whether an address holds a session's id, which its normal form leaves out."""
    path, _, query = url.partition("?")
    if _ASP_SESSION.search(path):
        return True
    pairs = [*_PATH_SESSION.findall(path), *(parse_qsl(query) if query else ())]
    return any(
        (name in _SESSION or name == "s" or name.startswith("aspsessionid")) and _is_noise(name, value)
        for name, value in ((name.lower(), value) for name, value in pairs)
    )


def canonical_url(content: bytes, url: str) -> str:
    """The address that a page names as its own (`<link rel="canonical">`), empty where it names none."""
    end = 0
    small = content[:_HEAD_BYTES].lower()
    while (found := small.find(b"canonical", end)) >= 0:
        start, end = content.rfind(b"<", 0, found), content.find(b">", found)
        tag = content[start:end] if 0 <= start < end and end - start < 4000 else b""
        end = found + 9
        if any(small.rfind(b, 0, start) > small.rfind(e, 0, start) for b, e in _NOT_READ):
            continue  # in a comment or a script
        if tag[:5].lower() == b"<link" and _REL.search(tag) and (target := _HREF.search(tag)):
            named = html.unescape((target[1] or target[2] or target[3]).decode("utf-8", "replace")).strip()
            try:
                whole = urljoin(url, named)
            except ValueError:
                return ""
            return whole if whole.startswith(("http://", "https://")) else ""
    return ""


def older_copies(url_keys: np.ndarray, dates: np.ndarray) -> np.ndarray:
    """For each document the index of the newer copy of its URL that replaces it, or -1 where it is the newest itself.

    `url_keys` (N,) uint64; `dates` (N,) int64, larger is newer; of equally new copies the first stays.
    Returns (N,) int64.
    """
    order = np.lexsort((np.arange(len(dates)), -dates, url_keys))
    is_start = np.ones(len(order), dtype=bool)
    is_start[1:] = url_keys[order][1:] != url_keys[order][:-1]
    newest = order[np.maximum.accumulate(np.where(is_start, np.arange(len(order)), 0))]
    replaced = np.full(len(order), -1, dtype=np.int64)
    replaced[order[~is_start]] = newest[~is_start]
    return replaced


# ---- documents -------------------------------------------------------------------------------------------------------


def signatures(texts: pa.Array, options: DocumentDedup) -> np.ndarray:
    """MinHash signatures of texts, (N, bands * rows) uint32, of lower-cased words without punctuation.

    In scripts without spaces every character is a word, as in `herd.curate.ngrams`.
    """
    count = options.bands * options.rows
    hashes = minhash(_WORDS, num_hashes=count, ngram_size=options.ngram_words, seed=options.seed)
    found = _evaluate({"text": texts}, minhash=hashes)["minhash"]
    flat = [chunk.flatten() for chunk in found.chunks]
    return pa.concat_arrays(flat).to_numpy(zero_copy_only=False).reshape(-1, count) if flat else _no_signatures(count)


_ALONE = r"([\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]\p{M}*)"  # no spaces part these
_WORDS = (
    col("text")
    .lower()
    .regexp_replace(_ALONE, " $1 ")
    .regexp_replace(r"[^\p{L}\p{N}]+", " ")
    .regexp_replace(r"^ | $", "")
)


def _evaluate(columns: dict[str, pa.Array], **expressions: daft.Expression) -> pa.Table:
    """Daft's kernels on columns in memory, without a runner: the same within a worker process, wherever it runs."""
    batch = RecordBatch.from_arrow_table(pa.table(columns))
    named = [expression.alias(name) for name, expression in expressions.items()]
    return batch.eval_expression_list(ExpressionsProjection(named)).to_arrow_table()


def _no_signatures(count: int) -> np.ndarray:
    return np.empty((0, count), dtype=np.uint32)


def shingles(texts: pa.Array, ngram_words: int) -> tuple[np.ndarray, np.ndarray]:
    """The set of word n-grams of each text as sorted 64-bit hashes, one text after the other: (S,) uint64, (N,) sizes.

    A text of fewer words is one n-gram by itself, as in `signatures`.
    """
    words = pc.split_pattern(_evaluate({"text": texts}, words=_WORDS)["words"], " ").combine_chunks()
    counts = pc.list_value_length(words).fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    hashes = _evaluate({"text": words.flatten()}, hash=col("text").hash())["hash"].to_numpy().astype(np.uint64)
    ends = np.cumsum(counts)
    document = np.repeat(np.arange(len(counts)), counts)
    last = np.repeat(ends, counts)
    grams = np.zeros(len(hashes), dtype=np.uint64)
    for i in range(ngram_words):  # beyond the end of a short text nothing is added
        inside = np.arange(len(hashes)) + i < last
        shifted = np.where(inside, np.roll(hashes, -i), np.uint64(0))
        grams = (grams ^ shifted) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(i)
    begins = np.arange(len(hashes)) + ngram_words <= last
    begins[(ends - counts)[counts > 0]] = True
    grams, document = grams[begins], document[begins]
    order = np.lexsort((grams, document))
    grams, document = grams[order], document[order]
    first = np.ones(len(grams), dtype=bool)
    first[1:] = (grams[1:] != grams[:-1]) | (document[1:] != document[:-1])
    return grams[first], np.bincount(document[first], minlength=len(counts))


def band_keys(signature: np.ndarray, rows: int) -> np.ndarray:
    """One 64-bit key for each band, different between bands: (N, bands * rows) uint32 -> (N, bands) uint64."""
    num_bands = signature.shape[1] // rows
    bands = signature.reshape(len(signature), num_bands, rows)
    keys = np.tile(np.arange(num_bands, dtype=np.uint64) + np.uint64(0xCBF29CE484222325), (len(signature), 1))
    for row in range(rows):
        keys = (keys ^ bands[:, :, row]) * np.uint64(0x9E3779B97F4A7C15)
        keys ^= keys >> np.uint64(29)
    return keys


def candidate_pairs(keys: np.ndarray, documents: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of documents that share a key: each with the first of them and with the one before it.

    `keys` (N,) uint64; `documents` (N,) the documents' numbers, by default their places. Returns two (P,) arrays,
    first < second.
    """
    documents = np.arange(len(keys)) if documents is None else documents
    ordered = np.sort(keys)
    shared = np.isin(keys, np.unique(ordered[1:][ordered[1:] == ordered[:-1]]))
    keys, documents = keys[shared], documents[shared]
    order = np.lexsort((documents, keys))
    keys, documents = keys[order], documents[order]
    same = np.flatnonzero(keys[1:] == keys[:-1]) + 1
    starts = np.maximum.accumulate(np.where(np.r_[True, keys[1:] != keys[:-1]], np.arange(len(keys)), 0))
    further = same[starts[same] != same - 1]
    left = np.concatenate([documents[same - 1], documents[starts[further]]])
    return left, np.concatenate([documents[same], documents[further]])


class Clusters:
    """Connected components of documents that are joined pair by pair; 4 or 8 bytes a document."""

    def __init__(self, num_documents: int):
        kind = np.int32 if num_documents < 2**31 else np.int64
        self.parent = np.arange(num_documents, dtype=kind)

    def roots(self, documents: np.ndarray) -> np.ndarray:
        """The smallest number in the cluster of each document, (R,) -> (R,)."""
        roots = self.parent[documents]
        while not np.array_equal(above := self.parent[roots], roots):
            roots = above
        self.parent[documents] = roots
        return roots

    def join(self, left: np.ndarray, right: np.ndarray) -> None:
        """Put the documents of each pair into one cluster, (P,), (P,)."""
        while len(left):
            a, b = self.roots(left), self.roots(right)
            apart = a != b
            left, right, a, b = left[apart], right[apart], a[apart], b[apart]
            np.minimum.at(self.parent, np.maximum(a, b), np.minimum(a, b))

    def members(self, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        """The documents of [first, last) that were joined to an earlier one, and their clusters."""
        numbers = np.arange(first, last)
        cluster = self.roots(numbers)
        joined = cluster != numbers
        return numbers[joined], cluster[joined].astype(np.int64)


def near_duplicates(texts: list[str], options: DocumentDedup) -> np.ndarray:
    """For each text the number of the one that replaces it, or -1 where it stays: all in memory, for small corpora.

    `options.keep` "newest" needs dates, which plain texts lack: it keeps the first. Returns (N,) int64.
    """
    column = pa.array(texts, pa.large_string())
    signature = signatures(column, options)
    sets, sizes = shingles(column, options.ngram_words) if options.verify == "exact" else (None, None)
    clusters = Clusters(len(texts))
    usable = np.flatnonzero(has_words(signature))
    keys = band_keys(signature[usable], options.rows)
    for band in range(options.bands):
        left, right = candidate_pairs(keys[:, band], usable)
        if sets is None or sizes is None:
            near = similar(signature[left], signature[right])
        else:
            ends = np.cumsum(sizes)
            near = np.array([jaccard(*(sets[ends[i] - sizes[i] : ends[i]] for i in pair)) for pair in zip(left, right)])
        clusters.join(left[near >= options.similarity], right[near >= options.similarity])
    rank = np.array([len(text.encode()) for text in texts] if options.keep == "longest" else [0] * len(texts))
    return survivors(clusters.roots(np.arange(len(texts))), rank)


def has_words(signature: np.ndarray) -> np.ndarray:
    """Which signatures are of texts with at least one word, (N, H) -> (N,) bool."""
    return signature[:, 0] != np.iinfo(np.uint32).max


def survivors(cluster: np.ndarray, rank: np.ndarray) -> np.ndarray:
    """For each document the index of the copy that replaces it, or -1 where it stays.

    In a cluster the largest `rank` (N,) survives, of equal ones the first. Returns (N,) int64.
    """
    return older_copies(cluster.astype(np.uint64), rank)


def similar(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Estimated Jaccard similarity of signatures, row by row: (P, H), (P, H) -> (P,)."""
    return (left == right).mean(axis=1) if len(left) else np.empty(0)


def jaccard(left: np.ndarray, right: np.ndarray) -> float:
    """Jaccard similarity of two sets given as sorted arrays without repeats."""
    shared = len(np.intersect1d(left, right, assume_unique=True))
    return shared / max(1, len(left) + len(right) - shared)


# ---- lines -----------------------------------------------------------------------------------------------------------


def line_keys(lines: list[str] | pa.Array) -> np.ndarray:
    """64-bit keys of lines, equal where lines differ only in case, digits and outer space; 0 where no letters are.

    Lines without letters (rules, brackets, numbers) carry no text that could be boilerplate. Returns (L,) uint64.
    """
    lines = pa.array(lines, pa.large_string()) if isinstance(lines, list) else lines
    normal = col("line").lower().regexp_replace(r"\d+", "0").regexp_replace(r"^\s+|\s+$", "")
    table = _evaluate({"line": lines}, key=normal.hash(), has_letters=col("line").regexp(r"\p{L}"))
    keys = table["key"].to_numpy().astype(np.uint64)
    keys[~table["has_letters"].to_numpy()] = 0
    return keys


def bucket_keys(keys: np.ndarray, documents: np.ndarray, bucket_documents: int) -> np.ndarray:
    """Keys that differ between buckets, so that each bucket counts its own lines; 0 stays 0. (L,), (L,) -> (L,)."""
    bucket = (documents // bucket_documents).astype(np.uint64)
    return np.where(keys == 0, keys, keys ^ (bucket * np.uint64(0x9E3779B97F4A7C15)))


def repeated_lines(
    keys: np.ndarray, places: np.ndarray, max_count: int, keep_first: bool, documents: np.ndarray | None = None
) -> np.ndarray:
    """Places of the lines to drop: those whose key stands in more than `max_count` documents.

    In the first document that has it, a line stays if it is kept there. `keys` (L,) uint64, 0 for lines that are never
    dropped; `places` (L,) int64 and `documents` (L,) int64 (by default each line is one of its own), growing along the
    corpus. All lines of a key must be given together. Returns (D,) int64.
    """
    documents = places if documents is None else documents
    order = np.lexsort((places, keys))
    keys, places, documents = keys[order], places[order], documents[order]
    starts = np.flatnonzero(np.r_[True, keys[1:] != keys[:-1]]) if len(keys) else np.empty(0, np.int64)
    if not len(starts):
        return places
    lengths = np.diff(np.r_[starts, len(keys)])
    is_new = np.r_[True, (keys[1:] != keys[:-1]) | (documents[1:] != documents[:-1])]
    drop = np.repeat((np.add.reduceat(is_new, starts, dtype=np.int64) > max_count) & (keys[starts] != 0), lengths)
    if keep_first:
        drop &= documents != np.repeat(documents[starts], lengths)
    return places[drop]
