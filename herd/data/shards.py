"""Token shards on disk: `<source>-00000.npy` (uint32, memory-mapped) with a JSON manifest beside each.

A manifest names its source and tokenizer and holds, per document, where it ends, its bytes of text and its quality.
Every document starts with begin-of-text and ends with end-of-text.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from herd.errors import CheckpointError, ConfigError, DataError
from herd.run import atomic_write, fingerprint, read_manifest

FORMAT = 1
"""Version of the shard's manifest."""


@dataclass(frozen=True, eq=False)
class Documents:
    """The documents of one source, in one or several files. Arrays have one entry per document."""

    source: str
    storage: tuple[np.ndarray, ...]  # the tokens of each shard, one after the other
    shard: np.ndarray  # which storage
    start: np.ndarray  # first token within it
    num_tokens: np.ndarray
    num_bytes: np.ndarray  # of UTF-8 text
    quality: np.ndarray  # 0 to 1
    trained: tuple[np.ndarray, ...] | None = None  # beside each storage: which tokens are learned; None: all
    bundle: np.ndarray | None = None  # documents of the same number share a row (the answers of a pair); None: free
    tokenizer: str = ""  # fingerprint

    def __len__(self) -> int:
        return len(self.start)

    def tokens(self, document: int, start: int = 0, length: int | None = None) -> np.ndarray:
        """`length` tokens of a document from `start` on (all of them by default)."""
        return self._stretch(self.storage, document, start, length)

    def is_trained(self, document: int, start: int = 0, length: int | None = None) -> np.ndarray | None:
        """The loss mask of those tokens; None if all have a loss."""
        return None if self.trained is None else self._stretch(self.trained, document, start, length)

    def select(self, keep: np.ndarray) -> Documents:
        """Only the documents where `keep` is true (or of these numbers)."""
        names = ("shard", "start", "num_tokens", "num_bytes", "quality", "bundle")
        columns = {name: getattr(self, name) for name in names}
        return replace(self, **{name: column[keep] for name, column in columns.items() if column is not None})

    def better_than(self, percentile: float) -> Documents:
        """Only the documents whose quality is at or above that percentile (0 to 100) of this source."""
        if percentile <= 0 or not len(self):
            return self
        return self.select(self.quality >= np.percentile(self.quality, percentile))

    def _stretch(self, arrays: Sequence[np.ndarray], document: int, start: int, length: int | None) -> np.ndarray:
        begin = self.start[document] + start
        stop = self.start[document] + self.num_tokens[document] if length is None else begin + length
        stretch: np.ndarray = arrays[self.shard[document]][begin:stop]
        return stretch


def in_memory(
    source: str,
    documents: Sequence[Sequence[int] | np.ndarray],
    *,
    trained: Sequence[Sequence[bool] | np.ndarray] | None = None,
    num_bytes: Sequence[int] | None = None,
    bundle: Sequence[int] | None = None,
    tokenizer: str = "",
) -> Documents:
    """Documents given as token ids, each with its own loss mask if `trained` is given."""
    lengths = np.array([len(document) for document in documents], dtype=np.int64)
    flat = np.concatenate([np.asarray(document, dtype=np.uint32) for document in documents] or [np.zeros(0, np.uint32)])
    mask = None if trained is None else (np.concatenate([np.asarray(row, dtype=bool) for row in trained]),)
    return Documents(
        source=source,
        storage=(flat,),
        shard=np.zeros(len(lengths), np.int64),
        start=np.cumsum(lengths) - lengths,
        num_tokens=lengths,
        num_bytes=np.asarray(num_bytes if num_bytes is not None else lengths * 0, np.int64),
        quality=np.ones(len(lengths), np.float32),
        trained=mask,
        bundle=None if bundle is None else np.asarray(bundle, np.int64),
        tokenizer=tokenizer,
    )


class ShardWriter:
    """Gathers documents of one source and writes them as the shard `<source>-<number>`."""

    def __init__(self, folder: Path, source: str, number: int, *, tokenizer: str):
        self.folder, self.source, self.number, self.tokenizer = folder, source, number, tokenizer
        self._tokens: list[np.ndarray] = []
        self._bytes: list[int] = []
        self._quality: list[float] = []

    def add(self, tokens: Sequence[int] | np.ndarray, *, num_bytes: int, quality: float = 1.0) -> None:
        """Append one document (with its begin- and end-of-text); `num_bytes` is the size of its UTF-8 text."""
        self._tokens.append(np.asarray(tokens, dtype=np.uint32))
        self._bytes.append(num_bytes)
        self._quality.append(round(float(quality), 4))

    def close(self) -> dict[str, int]:
        """Write the shard, its manifest last; returns its numbers of documents, tokens and bytes."""
        ends = np.cumsum([len(document) for document in self._tokens]).tolist()
        counts = {"documents": len(ends), "tokens": ends[-1] if ends else 0, "bytes": sum(self._bytes)}
        lists = {"document_ends": ends, "document_bytes": self._bytes, "document_quality": self._quality}
        manifest = {"format": FORMAT, "source": self.source, "tokenizer": self.tokenizer} | counts | lists
        buffer = io.BytesIO()
        np.save(buffer, np.concatenate(self._tokens) if self._tokens else np.zeros(0, np.uint32))
        file = self.folder / f"{self.source}-{self.number:05d}.npy"
        atomic_write(file, buffer.getvalue())
        atomic_write(file.with_suffix(".json"), json.dumps(manifest))
        return counts


def open_shards(folder: Path) -> dict[str, Documents]:
    """Every source of a folder of shards, memory-mapped.

    Raises:
        DataError: no shards there, or one that is damaged or does not match its manifest.
        CheckpointError: a shard of another format, or shards of different tokenizers.
    """
    shards: dict[str, list[tuple[dict[str, Any], np.ndarray]]] = {}
    for file in sorted(Path(folder).glob("*-*.json")):
        manifest = _read_manifest(file)
        shards.setdefault(manifest["source"], []).append((manifest, _read_tokens(file.with_suffix(".npy"), manifest)))
    if not shards:
        raise DataError(f"{folder}: no token shards (`<source>-00000.npy` with its .json); make them with `herd pack`")
    tokenizers = {manifest["tokenizer"] for entries in shards.values() for manifest, _ in entries}
    if len(tokenizers) > 1:
        raise CheckpointError(
            f"{folder}: shards of {len(tokenizers)} different tokenizers lie together; pack them anew"
        )
    return {source: _join(source, entries) for source, entries in shards.items()}


def open_heldout(packed: Path) -> dict[str, Documents]:
    """The held-out sources of a `herd pack` run; empty if there were so few groups that none was held out.

    Raises:
        DataError: not the run folder of `herd pack`.
    """
    folder = Path(packed) / "heldout"
    if not folder.is_dir() and not (Path(packed) / "train").is_dir():
        raise DataError(f"{packed}: has neither train/ nor heldout/ shards; expected the run folder of `herd pack`")
    return open_shards(folder) if folder.is_dir() else {}


def content_hashes(packed: Path, side: str = "train") -> dict[str, str]:
    """The content hash of each source of a `herd pack` run (`train` or `heldout`): of the tokens of all its shards."""
    recorded: dict[str, Any] = read_manifest(packed).get("outputs", {}) if (packed / "run.json").exists() else {}
    digests: dict[str, Any] = {}
    for file in sorted((packed / side).glob("*-*.json")):
        tokens = file.with_suffix(".npy")
        known = recorded.get(f"{side}/{tokens.name}", {}).get("sha256") or fingerprint(tokens)
        digests.setdefault(_read_manifest(file)["source"], hashlib.sha256()).update(known.encode())
    return {source: digest.hexdigest()[:16] for source, digest in digests.items()}


def _join(source: str, entries: list[tuple[dict[str, Any], np.ndarray]]) -> Documents:
    ends = [np.asarray(manifest["document_ends"], dtype=np.int64) for manifest, _ in entries]
    starts = [np.concatenate([[0], end[:-1]]) for end in ends]
    return Documents(
        source=source,
        storage=tuple(tokens for _, tokens in entries),
        shard=np.repeat(np.arange(len(entries)), [len(end) for end in ends]),
        start=np.concatenate(starts),
        num_tokens=np.concatenate(ends) - np.concatenate(starts),
        num_bytes=np.concatenate([np.asarray(manifest["document_bytes"], np.int64) for manifest, _ in entries]),
        quality=np.concatenate([np.asarray(manifest["document_quality"], np.float32) for manifest, _ in entries]),
        tokenizer=entries[0][0]["tokenizer"],
    )


def _read_manifest(file: Path) -> dict[str, Any]:
    try:
        manifest: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        found = manifest["format"]
        lists = {len(manifest[name]) for name in ("document_ends", "document_bytes", "document_quality")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file}: not a shard manifest ({error}); pack the documents anew") from None
    if found != FORMAT:
        raise CheckpointError(f"{file}: shard of format {found}, this Herd reads format {FORMAT}; pack anew")
    if lists != {manifest["documents"]}:
        raise DataError(f"{file}: its lists disagree about the number of documents; pack the documents anew")
    edges = [0, *manifest["document_ends"]]
    if edges != sorted(edges) or edges[-1] != manifest["tokens"]:
        raise DataError(
            f"{file}: its document_ends do not ascend to its {manifest['tokens']} tokens; pack the documents anew"
        )
    return manifest


def _read_tokens(file: Path, manifest: dict[str, Any]) -> np.ndarray:
    try:
        tokens: np.ndarray = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: cannot be read as a token shard ({error}); pack the documents anew") from None
    if tokens.dtype != np.uint32 or tokens.shape != (manifest["tokens"],):
        raise DataError(
            f"{file}: holds {tokens.dtype} {tokens.shape}, its manifest says {manifest['tokens']} uint32 tokens; "
            "pack the documents anew"
        )
    return tokens


def open_trained_with(folder: Path, fingerprint: str, tokenizer: str) -> dict[str, Documents]:
    """The shards of a folder; they must have been packed with this tokenizer.

    Shards of somebody else's making may name no tokenizer; those are believed. `tokenizer` is its name for messages.

    Raises:
        ConfigError: they were packed with another tokenizer.
    """
    sources = open_shards(folder)
    if {documents.tokenizer for documents in sources.values()} - {"", fingerprint}:
        raise ConfigError(
            f"{folder.parent}: packed with another tokenizer than {tokenizer}; give the one that its inputs.json "
            "names, or pack the documents anew (herd pack)"
        )
    return sources
