"""Forget: which shards and checkpoints hold a document, by its URL, and a corpus without it.

`herd forget URL pack=runs/demo/pack runs=runs out=runs/without`. A checkpoint does not forget by this: it must be
trained anew from the corpus that is written, and what it lists is what then has to go.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import ClassVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from herd.config import settings
from herd.errors import DataError
from herd.log import say
from herd.run import atomic_folder, atomic_write
from herd.safety.memory import Corpus, Held, checkpoints_of, matches, tainted

_QUOTED = 50  # tokens that another document shares with it, to be named as one that quotes it


@settings
class ForgetSettings:
    """Which document, and where it is looked for."""

    bare_words: ClassVar = ("path", "out")

    path: str
    """The document's URL."""
    pack: Path
    """Run folder of `herd pack`."""
    out: Path | None = None
    """Folder for the corpus without it; nothing is written when not given."""
    prefix: bool = False
    """Take all documents whose URL begins so."""
    runs: Path | None = None
    """Folder under which run folders are looked through; default: the one that holds the pack."""
    documents: list[Path] | None = None
    """The documents that were packed; default: as the pack's run folder names them."""


def run(settings: ForgetSettings) -> None:
    """Print who holds it; write `documents/` and `forgotten.json` into `out`.

    Raises:
        DataError: no document has that URL.
    """
    corpus = Corpus(settings.pack, settings.documents or ())
    held = [one for one in corpus.rows() if _is_meant(one.row["url"] or "", settings)]
    if not held:
        how = "begins so" if settings.prefix else "is it (prefix=true takes all that begin so)"
        raise DataError(f"{settings.path}: of the documents that {settings.pack} packed no URL {how}")
    for one in held:
        print(f"{settings.pack / one.shard}, document {one.number}: {one.row['url']}")
    quoting = _quoting(corpus, held)
    for other in quoting:
        print(f"  {other['shard']}, document {other['document']} has {other['tokens']} tokens in a row of it; it stays")
    folders = tainted(settings.runs or settings.pack.resolve().parent, corpus)
    places = [place for folder, _ in folders for place in checkpoints_of(folder)]
    if all(one.side == "heldout" for one in held):
        say("  it was held out: checkpoints were measured on it and did not learn from it")
    for place in places:
        print(f"checkpoint {place}")
    say(f"{len(held):,} documents, {len(folders):,} runs that came of the corpus, {len(places):,} checkpoints")
    if settings.out is not None:
        left = _write(corpus, settings)
        record = {"url": settings.path, "held": [one.__dict__ for one in held], "quoted_by": quoting}
        record |= {"runs": [str(folder) for folder, _ in folders], "checkpoints": [str(place) for place in places]}
        atomic_write(settings.out / "forgotten.json", json.dumps(record, indent=1, ensure_ascii=False) + "\n")
        say(f"{settings.out}: {left:,} documents without it; now pack and train anew from there")


def _is_meant(url: str, settings: ForgetSettings) -> bool:
    return url.startswith(settings.path) if settings.prefix else url == settings.path


def _quoting(corpus: Corpus, held: list[Held]) -> list[dict]:
    """Other training documents with a long stretch of one of these."""
    mine = {(one.shard, one.number) for one in held}
    found: dict[tuple[str, int], int] = {}
    for name, stored, ends in list(corpus.shards()):
        for shard, number in mine:
            if shard == name:
                begin = int(ends[number - 1]) if number else 0
                for match in matches(stored[begin : int(ends[number])].tolist(), _Others(corpus, mine), _QUOTED):
                    key = match.shard, match.number
                    found[key] = max(found.get(key, 0), match.end - match.start)
    return [{"shard": shard, "document": number, "tokens": tokens} for (shard, number), tokens in sorted(found.items())]


class _Others(Corpus):
    """A corpus without some documents."""

    def __init__(self, corpus: Corpus, without: set[tuple[str, int]]) -> None:
        self.pack, self._without = corpus.pack, without

    def shards(self):
        """Of each shard what is left: tokens of the others are as they are, these are no token."""
        for name, stored, ends in super().shards():
            numbers = [number for shard, number in self._without if shard == name]
            if numbers:
                stored = stored.copy()
                for number in numbers:
                    stored[int(ends[number - 1]) if number else 0 : int(ends[number])] = 2**32 - 1
            yield name, stored, ends


def _write(corpus: Corpus, settings: ForgetSettings) -> int:
    """The Parquet files with their names and rows but for these; files of several folders get the folder's number."""
    left = 0
    assert settings.out is not None
    with atomic_folder(settings.out / "documents") as aside:
        for place, file in enumerate(corpus.files):
            table = pq.read_table(file)
            urls = pc.fill_null(table["url"], "")
            meant = pc.starts_with(urls, settings.path) if settings.prefix else pc.equal(urls, settings.path)
            kept = table.filter(pc.invert(meant)) if isinstance(urls, pa.ChunkedArray) else table
            name = file.name if len(corpus.documents) == 1 else f"{place:06d}-{file.name}"
            pq.write_table(kept, aside / name)
            left += sum(value is None for value in kept["drop"].to_pylist())
    return left
