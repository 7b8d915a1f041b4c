"""The steps that look at the whole corpus at once: copies of URLs, near-duplicate documents, repeated lines.

Each goes over compact arrays that the parts left on disk, spreads what it needs over partition files by a hash, works
on one partition at a time, and writes one small file for each part. In memory stay a partition and, for the clusters
of near-duplicates, at most 24 bytes a document.

    keys/NAME.minhash.npy   signatures (n, bands * rows) uint32     keys/NAME.url.npy    what replaces a page, by date
    keys/NAME.docs.npy      kept, bytes, date of each document      keys/NAME.copy.npy   near-duplicates and originals
    keys/NAME.lines.npy     keys of the lines of all documents      keys/NAME.drop.npy   lines to drop, within the part
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from herd.curate.dedup import duplicates as dedup
from herd.curate.funnel import Step
from herd.curate.parts import read_record, read_table, save_array, write_record
from herd.curate.spill import Spill, num_partitions
from herd.log import progress

DOCUMENT_FACTS = np.dtype(
    [
        *(("kept", "?"), ("code", "?"), ("bytes", "<i8"), ("date", "<i8"), ("lines", "<i8")),
        *(("language", "<u8"), ("page", "<u8")),
    ]
)
"""What `docs.npy` holds for each document of a part: `lines` of text, of which keys lie in `lines.npy`; `page`, the
address that it goes by."""

COPY = np.dtype([("doc", "<i8"), ("url", "S240")])
"""What `copy.npy` holds for each near-duplicate: its row in the part, and the URL (its beginning) of what stays."""

_PAIRS_AT_ONCE = 1 << 15


@dataclass(frozen=True)
class Corpus:
    """The parts of a corpus on disk; documents are numbered through all of them."""

    state: Path
    names: list[str]
    rows: list[int]  # documents of each part
    memory_bytes: int  # for one partition of a step

    @property
    def offsets(self) -> np.ndarray:  # (parts + 1,) the first document of each part
        return np.concatenate([[0], np.cumsum(self.rows, dtype=np.int64)])

    def file(self, part: int, kind: str) -> Path:
        """The file of one kind that belongs to a part."""
        return self.state / "keys" / f"{self.names[part]}.{kind}"

    def partition_of(self, documents: np.ndarray, count: int) -> np.ndarray:
        """Cut by whole parts: the partition of each document, of `count`."""
        return (np.searchsorted(self.offsets, documents, side="right") - 1) * count // len(self.names)

    def by_part(self, spill: Spill) -> Iterator[tuple[int, np.ndarray]]:
        """Every part with its rows of a spill cut by `partition_of`, sorted by document."""
        count = spill.num_partitions
        for p, rows in enumerate(spill.read()):
            rows = rows[np.argsort(rows["doc"], kind="stable")]
            parts = range(-(-p * len(self.names) // count), -(-(p + 1) * len(self.names) // count))
            for part in parts:
                first, last = np.searchsorted(rows["doc"], self.offsets[part : part + 2])
                yield part, rows[first:last]


def once(corpus: Corpus, name: str, kinds: tuple[str, ...], work: Callable[[Step], None]) -> Step:
    """Do a global step unless its files are there and sound; its funnel step either way."""
    record = corpus.state / "keys" / f"{name}.json"
    step = Step(name)
    found = read_record(record)
    if found is None:
        record.unlink(missing_ok=True)
        work(step)
        files = [corpus.file(part, kind) for part in range(len(corpus.names)) for kind in kinds]
        write_record(record, sum(corpus.rows), files, step=step.as_dict())
    else:
        step.add(found["step"])
    return step


# ---- URLs ------------------------------------------------------------------------------------------------------------


def drop_old_urls(corpus: Corpus) -> Step:
    """Keep the newest copy of each URL; writes `url.npy`: the date of the kept copy, -1 for it."""
    return once(corpus, "url_dedup", ("url.npy",), lambda step: _drop_old_urls(corpus, step))


def _drop_old_urls(corpus: Corpus, step: Step) -> None:
    (corpus.state / "keys").mkdir(exist_ok=True)
    count = num_partitions(sum(corpus.rows), 96, corpus.memory_bytes)
    record = [("key", "<u8"), ("date", "<i8"), ("doc", "<i8")]
    with (
        Spill(corpus.state / "spill-urls", record, count) as urls,
        Spill(corpus.state / "spill-old", [("doc", "<i8"), ("date", "<i8")], count) as old,
        progress("newest copy of each URL", total=2 * len(corpus.names), unit="parts") as bar,
    ):
        for part, first in enumerate(corpus.offsets[:-1]):
            facts = _raw_facts(corpus, part)
            rows = np.empty(len(facts["key"]), dtype=record)
            rows["key"], rows["date"] = facts["key"], facts["date"]
            rows["doc"] = np.arange(first, first + len(rows))
            rows = rows[facts["wanted"]]
            urls.add(rows, (rows["key"] % np.uint64(count)).astype(np.int64))
            bar.advance()
        for rows in urls.read():
            replaced = dedup.older_copies(rows["key"], rows["date"])
            gone = replaced >= 0
            out = np.empty(int(gone.sum()), dtype=old.dtype)
            out["doc"], out["date"] = rows["doc"][gone], rows["date"][replaced[gone]]
            old.add(out, corpus.partition_of(out["doc"], count))
        for part, rows in corpus.by_part(old):
            facts = _raw_facts(corpus, part)
            newer = np.full(corpus.rows[part], -1, dtype=np.int64)
            newer[rows["doc"] - corpus.offsets[part]] = rows["date"]
            save_array(newer, corpus.file(part, "url.npy"))
            _count(step, facts["bytes"][facts["wanted"]], newer[facts["wanted"]] < 0)
            bar.advance()
    if step.documents_in > step.documents_out:
        step.reasons["url_older_copy"] = step.documents_in - step.documents_out


def _raw_facts(corpus: Corpus, part: int) -> dict[str, np.ndarray]:
    file = corpus.state / "raw" / f"{corpus.names[part]}.parquet"
    table = read_table(file, columns=["url_key", "date_number", "num_bytes", "drop"])
    names = {"key": "url_key", "date": "date_number", "bytes": "num_bytes"}
    facts = {name: table[column].to_numpy() for name, column in names.items()}
    return facts | {"wanted": table["drop"].is_null().to_numpy()}


def _count(step: Step, sizes: np.ndarray, stays: np.ndarray) -> None:
    step.documents_in += len(sizes)
    step.bytes_in += int(sizes.sum())
    step.documents_out += int(stays.sum())
    step.bytes_out += int(sizes[stays].sum())


# ---- documents -------------------------------------------------------------------------------------------------------


def drop_near_duplicates(corpus: Corpus, options: dedup.DocumentDedup) -> Step:
    """Find clusters of near-duplicates over the whole corpus; writes `copy.npy`."""
    return once(corpus, "document_dedup", ("copy.npy",), lambda step: _drop_near_duplicates(corpus, options, step))


def _drop_near_duplicates(corpus: Corpus, options: dedup.DocumentDedup, step: Step) -> None:
    count = num_partitions(sum(corpus.rows), 640, corpus.memory_bytes)
    with Spill(corpus.state / "spill-copies", [("doc", "<i8"), ("survivor", "<i8")], count) as copies:
        if options.enabled:
            clusters = _clusters(corpus, options)
            _choose_survivors(corpus, options, clusters, copies)
            del clusters
        _write_copies(corpus, copies, step)


def _clusters(corpus: Corpus, options: dedup.DocumentDedup) -> dedup.Clusters:
    """Candidates by bands and by the address of a page, verified, joined."""
    clusters = dedup.Clusters(sum(corpus.rows))
    count = num_partitions(sum(corpus.rows) * options.bands, 64, corpus.memory_bytes)
    record = [("key", "<u8"), ("doc", "<i8")]
    verify = _verifier(corpus, options, options.similarity)
    verify_page = _verifier(corpus, options, min(options.similarity, options.page_similarity))
    with (
        Spill(corpus.state / "spill-bands", record, count) as bands,
        Spill(corpus.state / "spill-pages", record, num_partitions(sum(corpus.rows), 64, corpus.memory_bytes)) as pages,
        progress("near-duplicates", total=len(corpus.names) + count, unit="parts and partitions") as bar,
    ):
        for part, first in enumerate(corpus.offsets[:-1]):
            signature = np.load(corpus.file(part, "minhash.npy"))
            facts = np.load(corpus.file(part, "docs.npy"))
            use = facts["kept"] & dedup.has_words(signature)
            keys = dedup.band_keys(signature[use], options.rows) ^ facts["language"][use, None]
            rows = np.empty(keys.size, dtype=record)
            rows["key"] = keys.ravel()
            rows["doc"] = np.repeat(first + np.flatnonzero(use), options.bands)
            bands.add(rows, (rows["key"] % np.uint64(count)).astype(np.int64))
            rows = np.empty(int(use.sum()), dtype=record)
            rows["key"], rows["doc"] = facts["page"][use], first + np.flatnonzero(use)
            pages.add(rows, (rows["key"] % np.uint64(pages.num_partitions)).astype(np.int64))
            bar.advance()
        for rows in pages.read():
            _join(clusters, rows, verify_page)
        for rows in bands.read():
            _join(clusters, rows, verify)
            bar.advance()
    return clusters


_Verify = Callable[[np.ndarray, np.ndarray], np.ndarray]


def _join(clusters: dedup.Clusters, rows: np.ndarray, verify: _Verify) -> None:
    """Join the documents that share a key, where they are as alike as asked for."""
    left, right = dedup.candidate_pairs(rows["key"], rows["doc"])
    for begin in range(0, len(left), _PAIRS_AT_ONCE):
        some = slice(begin, begin + _PAIRS_AT_ONCE)
        one, other = left[some], right[some]
        apart = clusters.roots(one) != clusters.roots(other)  # the joined need no proof
        one, other = one[apart], other[apart]
        near = verify(one, other)
        clusters.join(one[near], other[near])


def _verifier(corpus: Corpus, options: dedup.DocumentDedup, similarity: float) -> _Verify:
    if similarity <= 0:
        return lambda left, right: np.ones(len(left), dtype=bool)
    if options.verify == "exact":
        return lambda left, right: _exact(corpus, left, right) >= similarity
    return lambda left, right: _estimated(corpus, left, right) >= similarity


def _estimated(corpus: Corpus, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Similarity of pairs by their signatures, each part's file read once."""
    if not len(left):
        return np.empty(0)
    documents, place = np.unique(np.concatenate([left, right]), return_inverse=True)
    found = np.concatenate([np.load(corpus.file(part, "minhash.npy"))[rows] for part, rows in _rows(corpus, documents)])
    return dedup.similar(found[place[: len(left)]], found[place[len(left) :]])


def _exact(corpus: Corpus, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Similarity of pairs by their sets of n-grams, each part's file read once."""
    documents = np.unique(np.concatenate([left, right]))
    sets: list[np.ndarray] = []
    for part, rows in _rows(corpus, documents):
        sizes = np.load(corpus.file(part, "shingle_sizes.npy"))
        hashes, ends = np.load(corpus.file(part, "shingles.npy")), np.cumsum(sizes)
        sets += [hashes[ends[row] - sizes[row] : ends[row]].copy() for row in rows]
    pairs = zip(np.searchsorted(documents, left), np.searchsorted(documents, right), strict=True)
    return np.array([dedup.jaccard(sets[a], sets[b]) for a, b in pairs])


def _rows(corpus: Corpus, documents: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Sorted documents as rows of the parts that hold them."""
    offsets = corpus.offsets
    bounds = np.searchsorted(documents, offsets)
    for part in np.flatnonzero(np.diff(bounds)).tolist():
        yield part, documents[bounds[part] : bounds[part + 1]] - offsets[part]


def _choose_survivors(corpus: Corpus, options: dedup.DocumentDedup, clusters: dedup.Clusters, copies: Spill) -> None:
    """Of each cluster the one that ranks first stays; the others go to `copies` with it."""
    offsets, count = corpus.offsets, copies.num_partitions
    is_cluster = np.zeros(sum(corpus.rows), dtype=bool)
    for part in range(len(corpus.names)):
        is_cluster[clusters.members(offsets[part], offsets[part + 1])[1]] = True
    record = [("cluster", "<i8"), ("rank", "<i8"), ("doc", "<i8")]
    with Spill(corpus.state / "spill-clusters", record, count) as members:
        for part in range(len(corpus.names)):
            numbers, cluster = clusters.members(offsets[part], offsets[part + 1])
            firsts = offsets[part] + np.flatnonzero(is_cluster[offsets[part] : offsets[part + 1]])
            rows = np.empty(len(numbers) + len(firsts), dtype=record)
            rows["doc"] = np.concatenate([numbers, firsts])
            rows["cluster"] = np.concatenate([cluster, firsts])
            facts = np.load(corpus.file(part, "docs.npy"))[rows["doc"] - offsets[part]]
            rows["rank"] = {"longest": facts["bytes"], "newest": facts["date"]}.get(options.keep, 0)
            members.add(rows, rows["cluster"] % count)
        for rows in members.read():
            rows = rows[np.argsort(rows["doc"], kind="stable")]
            survivor = dedup.survivors(rows["cluster"], rows["rank"])
            gone = survivor >= 0
            out = np.empty(int(gone.sum()), dtype=copies.dtype)
            out["doc"], out["survivor"] = rows["doc"][gone], rows["doc"][survivor[gone]]
            copies.add(out, corpus.partition_of(out["survivor"], count))


def _write_copies(corpus: Corpus, copies: Spill, step: Step) -> None:
    """Look up the survivors' URLs part by part, then write each part's near-duplicates."""
    count = copies.num_partitions
    with Spill(corpus.state / "spill-named", COPY, count) as named:
        for rows in copies.read():
            rows = rows[np.argsort(rows["survivor"], kind="stable")]
            bounds = np.searchsorted(rows["survivor"], corpus.offsets)
            for part in np.flatnonzero(np.diff(bounds)).tolist():
                mine = rows[bounds[part] : bounds[part + 1]]
                out = np.empty(len(mine), dtype=COPY)
                out["doc"], out["url"] = mine["doc"], _urls(corpus, part, mine["survivor"] - corpus.offsets[part])
                named.add(out, corpus.partition_of(out["doc"], count))
        for part, rows in corpus.by_part(named):
            rows["doc"] -= corpus.offsets[part]
            save_array(rows, corpus.file(part, "copy.npy"))
            facts = np.load(corpus.file(part, "docs.npy"))
            stays = facts["kept"].copy()
            stays[rows["doc"]] = False
            _count(step, facts["bytes"][facts["kept"]], stays[facts["kept"]])
            _add_duplicates(step, corpus, part, rows)


def _urls(corpus: Corpus, part: int, rows: np.ndarray) -> list[bytes]:
    table = read_table(corpus.state / "text" / f"{corpus.names[part]}.parquet", columns=["url"])
    return [url.encode()[:240] for url in table["url"].take(rows).to_pylist()]


def _add_duplicates(step: Step, corpus: Corpus, part: int, copies: np.ndarray) -> None:
    """Count them, and keep the first few as examples."""
    wanted = step.room_for("near_duplicate", len(copies))
    if wanted:
        table = read_table(corpus.state / "text" / f"{corpus.names[part]}.parquet", columns=["url", "text"])
        rows = table.take(copies["doc"][:wanted]).to_pylist()
        for row, url in zip(rows, copies["url"].tolist()):
            step.drop(row["url"], "near_duplicate", f"of {url.decode(errors='ignore')}", row["text"])
    step.reasons["near_duplicate"] += len(copies) - wanted
    step.reasons = +step.reasons


# ---- lines -----------------------------------------------------------------------------------------------------------


def find_repeated_lines(corpus: Corpus, options: dedup.LineDedup) -> None:
    """Find lines that stand too often in a bucket of documents; writes `drop.npy`, line numbers within the part."""
    if options.enabled:
        once(corpus, "repeated_lines", ("drop.npy",), lambda _: _find_repeated_lines(corpus, options))


def _find_repeated_lines(corpus: Corpus, options: dedup.LineDedup) -> None:
    lines = np.array([np.load(corpus.file(part, "docs.npy"))["lines"].sum() for part in range(len(corpus.names))])
    first_line = np.concatenate([[0], np.cumsum(lines, dtype=np.int64)])
    count = num_partitions(int(first_line[-1]), 64, corpus.memory_bytes)
    record = [("key", "<u8"), ("place", "<i8"), ("doc", "<i8")]
    with (
        Spill(corpus.state / "spill-lines", record, count) as spill,
        Spill(corpus.state / "spill-repeated", [("place", "<i8")], count) as repeated,
        progress("repeated lines", total=len(corpus.names), unit="parts") as bar,
    ):
        for part, first in enumerate(corpus.offsets[:-1]):
            rows = _counted_lines(corpus, part, first, options.bucket_documents, np.dtype(record))
            rows["place"] += first_line[part]
            spill.add(rows, (rows["key"] % np.uint64(count)).astype(np.int64))
            bar.advance()
        for rows in spill.read():
            places = dedup.repeated_lines(
                rows["key"], rows["place"], options.max_count, options.keep_first, rows["doc"]
            )
            out = np.empty(len(places), dtype=repeated.dtype)
            out["place"] = places
            repeated.add(out, (np.searchsorted(first_line, places, side="right") - 1) * count // len(corpus.names))
        _write_repeated(corpus, repeated, first_line)


def _counted_lines(corpus: Corpus, part: int, first: int, bucket_documents: int, record: np.dtype) -> np.ndarray:
    """Keys and places of the lines that count: of prose that is still kept, and with letters in them."""
    facts = np.load(corpus.file(part, "docs.npy"))
    counted = facts["kept"] & ~facts["code"]
    counted[np.load(corpus.file(part, "copy.npy"))["doc"]] = False
    keys = np.load(corpus.file(part, "lines.npy"))
    document = np.repeat(np.arange(len(facts)), facts["lines"])
    place = np.flatnonzero(counted[document] & (keys != 0))
    rows = np.empty(len(place), dtype=record)
    rows["key"] = dedup.bucket_keys(keys[place], first + document[place], bucket_documents)
    rows["place"], rows["doc"] = place, first + document[place]
    return rows


def _write_repeated(corpus: Corpus, repeated: Spill, first_line: np.ndarray) -> None:
    count = repeated.num_partitions
    for p, rows in enumerate(repeated.read()):
        places = np.sort(rows["place"])
        for part in range(-(-p * len(corpus.names) // count), -(-(p + 1) * len(corpus.names) // count)):
            begin, end = np.searchsorted(places, first_line[part : part + 2])
            save_array(places[begin:end] - first_line[part], corpus.file(part, "drop.npy"))
