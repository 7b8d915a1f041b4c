"""Duplicates: of URLs, of documents (MinHash), of lines.

Every global step works on arrays on disk, a slice at a time: what stays in memory is at most 24 bytes a document.

Source: the Llama 3 paper, section 3.1.1 (newest copy of each URL; MinHash over the whole corpus; lines seen more than
6 times in a bucket of 30M documents, after ccNet, Wenzek et al. 2019). The paper gives no MinHash parameters; 14 bands
of 8 over word 5-grams are FineWeb's (Penedo et al. 2024).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Literal
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

os.environ.setdefault("DO_NOT_TRACK", "1")  # before Daft is imported: no telemetry

import daft
import numpy as np
import pyarrow as pa
from daft import col
from daft.functions import minhash

from herd.config import settings

Survivor = Literal["longest", "newest", "first"]

_TRACKING = {"fbclid", "gclid", "msclkid", "mc_cid", "mc_eid", "igshid", "sessionid", "phpsessid", "jsessionid", "sid"}


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
    """Least estimated Jaccard similarity at which candidates count as duplicates; 0 takes every candidate."""
    keep: Survivor = "longest"
    """Which copy survives: the longest text, the newest, or the first read; ties go to the first."""
    seed: int = 1
    """Seed of the hash functions."""

    def __post_init__(self):
        if min(self.ngram_words, self.bands, self.rows) < 1:
            raise ValueError("ngram_words, bands and rows must be at least 1")
        if not 0 <= self.similarity <= 1:
            raise ValueError("similarity must be between 0 and 1")


@settings
class LineDedup:
    """Lines that stand in many documents: menus, notices, boilerplate."""

    enabled: bool = True
    """Whether to drop repeated lines."""
    max_count: int = 6
    """Lines seen more often than this in a bucket are dropped."""
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
    if port and port != {"http": 80, "https": 443}[parts.scheme]:
        host = f"{host}:{port}"
    query = parse_qsl(parts.query, keep_blank_values=True)
    kept = [(k, v) for k, v in query if k.lower() not in _TRACKING and not k.lower().startswith("utm_")]
    fragment = parts.fragment if parts.fragment.startswith(("!", "/")) else ""
    return urlunsplit(("http", host.removeprefix("www."), parts.path.rstrip("/"), urlencode(kept), fragment))


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
    """MinHash signatures of texts, (N, bands * rows) uint32, of lower-cased words without punctuation."""
    count = options.bands * options.rows
    words = col("text").lower().regexp_replace(r"[^\p{L}\p{N}]+", " ").regexp_replace(r"^ | $", "")
    frame = daft.from_arrow(pa.table({"text": texts})).select(
        minhash(words, num_hashes=count, ngram_size=options.ngram_words, seed=options.seed).alias("minhash")
    )
    table = frame.to_arrow()
    flat = [chunk.flatten() for chunk in table["minhash"].chunks]
    return pa.concat_arrays(flat).to_numpy(zero_copy_only=False).reshape(-1, count) if flat else _no_signatures(count)


def _no_signatures(count: int) -> np.ndarray:
    return np.empty((0, count), dtype=np.uint32)


def band_keys(signature: np.ndarray, rows: int) -> np.ndarray:
    """One 64-bit key for each band: (N, bands * rows) uint32 -> (N, bands) uint64."""
    bands = signature.reshape(len(signature), signature.shape[1] // rows, rows).astype(np.uint64)
    keys = np.full(bands.shape[:2], 0xCBF29CE484222325, dtype=np.uint64)
    for row in range(rows):
        keys = (keys ^ bands[:, :, row]) * np.uint64(0x9E3779B97F4A7C15)
        keys ^= keys >> np.uint64(29)
    return keys


def candidate_pairs(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of documents that share a key, chained in order: (N,) uint64 -> two (P,) index arrays, first < second."""
    order = np.argsort(keys, kind="stable")
    same = keys[order][1:] == keys[order][:-1]
    return order[:-1][same], order[1:][same]


def clusters(num_documents: int, pairs: Iterator[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Connected components by union-find: for each document the smallest index of its cluster. Returns (N,) int64."""
    parent = np.arange(num_documents, dtype=np.int64)

    def find(i: int) -> int:
        root = i
        while parent[root] != root:
            root = parent[root]
        while parent[i] != root:
            parent[i], i = root, parent[i]
        return root

    for left, right in pairs:
        for a, b in zip(left.tolist(), right.tolist(), strict=True):
            a, b = find(a), find(b)
            if a != b:
                parent[max(a, b)] = min(a, b)
    while True:  # flatten what is left of the trees
        flat = parent[parent]
        if np.array_equal(flat, parent):
            return parent
        parent = flat


def survivors(cluster: np.ndarray, rank: np.ndarray) -> np.ndarray:
    """For each document the index of the copy that replaces it, or -1 where it stays.

    In a cluster the largest `rank` (N,) survives, of equal ones the first. Returns (N,) int64.
    """
    return older_copies(cluster.astype(np.uint64), rank)


def similar(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Estimated Jaccard similarity of signatures, row by row: (P, H), (P, H) -> (P,)."""
    return (left == right).mean(axis=1) if len(left) else np.empty(0)


# ---- lines -----------------------------------------------------------------------------------------------------------


def line_keys(lines: list[str]) -> np.ndarray:
    """64-bit keys of lines, equal where lines differ only in case, digits and outer space; 0 where no letters are.

    Lines without letters (rules, brackets, numbers) carry no text that could be boilerplate. Returns (L,) uint64.
    """
    normal = col("line").lower().regexp_replace(r"\d+", "0").regexp_replace(r"^\s+|\s+$", "")
    table = (
        daft.from_arrow(pa.table({"line": pa.array(lines, pa.large_string())}))
        .select(normal.hash().alias("key"), col("line").regexp(r"\p{L}").alias("has_letters"))
        .to_arrow()
    )
    keys = table["key"].to_numpy().astype(np.uint64)
    keys[~table["has_letters"].to_numpy()] = 0
    return keys


def bucket_keys(keys: np.ndarray, documents: np.ndarray, bucket_documents: int) -> np.ndarray:
    """Keys that differ between buckets, so that each bucket counts its own lines; 0 stays 0. (L,), (L,) -> (L,)."""
    bucket = (documents // bucket_documents).astype(np.uint64)
    return np.where(keys == 0, keys, keys ^ (bucket * np.uint64(0x9E3779B97F4A7C15)))


def repeated_lines(
    slices: Callable[[int, int], tuple[np.ndarray, np.ndarray]], num_partitions: int, max_count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Keys of lines seen more than `max_count` times, sorted, and the first document that has each.

    `slices(p, num_partitions)` gives the keys (L,) uint64 of one partition and the documents (L,) int64 they stand in,
    so that only one partition is in memory.
    """
    found_keys, found_first = [], []
    for partition in range(num_partitions):
        keys, documents = slices(partition, num_partitions)
        order = np.lexsort((documents, keys))
        unique, start, counts = np.unique(keys[order], return_index=True, return_counts=True)
        often = (counts > max_count) & (unique != 0)
        found_keys.append(unique[often])
        found_first.append(documents[order][start[often]])
    return np.concatenate(found_keys), np.concatenate(found_first)
