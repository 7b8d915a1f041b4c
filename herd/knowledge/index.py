"""An index of one's own files, searched: by words (BM25), and by meaning where it has an encoder's vectors.

index = herd.Index("notes.index")
for hit in index.search("Who pays for a lost key?"):
    print(hit.file, hit.heading, hit.place, hit.text)
"""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from herd.errors import DataError, RequestError
from herd.formats.encoder import open_encoder
from herd.knowledge.store import about, connect, told
from herd.knowledge.terms import is_han, lookups
from herd.model.encoder import Encoder

MAX_TERMS = 300
_DEPTH = 100  # hits of each way that are merged
_FLAT = 60  # reciprocal rank fusion's constant; Source: Cormack et al. 2009
_OFTEN = 0.1  # of all passages: a word in more of them tells little and costs most of the time
_FEW = 2000
_MOST_UNKNOWN = 0.1
_LEAST_LETTERS = 1.5
_LEAST_HAN = 2000


@dataclass(frozen=True)
class Hit:
    """A passage that was found."""

    file: str  # below the folder that was indexed
    heading: str
    place: str  # `line 12`, `page 3`, `#install`
    text: str
    score: float  # BM25, or the sum of reciprocal ranks where two ways were merged; larger is better
    ways: tuple[str, ...]  # `words`, `meaning`
    stale: bool  # the file has changed or is gone since it was indexed
    number: int = 0  # of the passage in its index

    @property
    def source(self) -> str:
        """File, heading and place in a line."""
        return " · ".join(part for part in (self.file, self.heading, self.place) if part)


class Index:
    """An index that `herd index` made, open for questions; one object may be asked from several threads.

    Raises:
        DataError: no index lies there, or it is damaged.
    """

    def __init__(self, place: Path | str) -> None:
        self.place = Path(place)
        self._base = connect(self.place)
        self._lock = threading.Lock()
        self._vectors: tuple[np.ndarray, np.ndarray] | None = None
        self._encoder: Encoder | None = None
        with told(self.place):
            self.about = about(self._base)
            self.passages: int = self._base.execute("SELECT count(*) FROM passages").fetchone()[0]
        self.root = Path(self.about.get("root", ""))

    @property
    def has_vectors(self) -> bool:
        """Whether it can be searched by meaning."""
        return "encoder" in self.about

    def left_out(self) -> dict[str, str]:
        """The files that were read in vain, and why: name -> reason and detail."""
        with self._lock, told(self.place):
            rows = self._base.execute("SELECT name, reason, detail FROM files WHERE reason IS NOT NULL ORDER BY name")
            return {name: f"{reason}: {detail}" for name, reason, detail in rows}

    def search(self, question: str, limit: int = 5, *, words_only: bool = False) -> list[Hit]:
        """The passages nearest to a question, best first.

        Words and meaning are merged by their ranks. Where the encoder does not know the question's script, words alone
        decide (`ways` of each hit tells).

        Raises:
            RequestError: a question without a word, or with too many.
            CheckpointError: the index's encoder is gone or another.
        """
        wanted = lookups(question)
        if not wanted:
            raise RequestError("the question holds no word; expected a few words to look for")
        if len(wanted) > MAX_TERMS:
            raise RequestError(f"the question has {len(wanted):,} different words, at most {MAX_TERMS} are looked for")
        depth = max(limit, _DEPTH)
        with self._lock, told(self.place):
            found = {"words": self._by_words(wanted, depth)}
            if self.has_vectors and not words_only and understood(self._its_encoder(), question):
                found["meaning"] = self._by_meaning(question, depth)
            scores = found["words"] if len(found) == 1 else _merged(list(found.values()))
            best = sorted(scores, key=lambda number: -scores[number])[:limit]
            return [self._hit(n, scores[n], tuple(way for way, ranked in found.items() if n in ranked)) for n in best]

    def rarity(self, words: Sequence[str]) -> dict[str, float]:
        """How much each word tells: the logarithm of how few passages hold it; most where none does."""
        query = "SELECT count(*) FROM words WHERE words MATCH ?"
        with self._lock, told(self.place):
            counts = {word: self._base.execute(query, (f'"{word}"',)).fetchone()[0] for word in words}
        return {word: math.log(1 + self.passages / (1 + count)) for word, count in counts.items()}

    def begins(self, hit: Hit) -> bool:
        """Whether a passage is the first below its heading."""
        query = "SELECT f.name, p.heading FROM passages p JOIN files f ON p.file = f.id WHERE p.id = ?"
        with self._lock, told(self.place):
            before = self._base.execute(query, (hit.number - 1,)).fetchone()
        return before != (hit.file, hit.heading)

    def covered(self, question: str, hits: Sequence[Hit]) -> float:
        """The share (0 to 1) of a question's words that one of these passages holds, weighed by their rarity here.

        English words are compared by their stems. A word that no passage of the index holds weighs most.
        """
        wanted = lookups(question)[:MAX_TERMS]
        with self._lock, told(self.place):
            weights = {term: math.log(1 + self.passages / (1 + self._count(term, self.passages))) for term in wanted}
            whole = sum(weights.values())
            held = dict.fromkeys((hit.number for hit in hits), 0.0)
            query = f"SELECT rowid FROM words WHERE words MATCH ? AND rowid IN ({', '.join('?' * len(held))})"
            for term, weight in weights.items():
                for (number,) in self._base.execute(query, (term, *held)):
                    held[number] += weight
            return max(held.values(), default=0.0) / whole if whole else 0.0

    def _count(self, term: str, most: int) -> int:
        query = "SELECT count(*) FROM (SELECT 1 FROM words WHERE words MATCH ? LIMIT ?)"
        return self._base.execute(query, (term, most)).fetchone()[0]

    def _by_words(self, wanted: list[str], depth: int) -> dict[int, float]:
        most = max(_FEW, int(_OFTEN * self.passages))
        counts = {term: self._count(term, most + 1) for term in wanted}
        there = [term for term in wanted if counts[term]]
        asked = [term for term in there if counts[term] <= most] or there
        if not asked:
            return {}
        query = "SELECT rowid, -rank FROM words WHERE words MATCH ? ORDER BY rank LIMIT ?"
        return dict(self._base.execute(query, (" OR ".join(asked), depth)).fetchall())

    def _by_meaning(self, question: str, depth: int) -> dict[int, float]:
        if self._vectors is None:
            rows = self._base.execute("SELECT passage, vector FROM vectors WHERE vector IS NOT NULL").fetchall()
            matrix = np.frombuffer(b"".join(vector for _, vector in rows), "<f2").astype(np.float32)
            numbers = np.array([number for number, _ in rows], np.int64)
            self._vectors = numbers, matrix.reshape(len(rows), self._its_encoder().size)
        numbers, matrix = self._vectors
        alike = matrix @ self._its_encoder().embed([question])[0].numpy()
        best = np.argsort(-alike, kind="stable")[:depth]
        return {int(numbers[at]): float(alike[at]) for at in best}

    def _its_encoder(self) -> Encoder:
        if self._encoder is None:
            self._encoder = open_encoder(self.about["encoder"])
            if self._encoder.fingerprint != self.about.get("fingerprint"):
                where = self.about["encoder"]
                raise DataError(f"{where} is no longer the encoder of {self.place}; run herd index again")
        return self._encoder

    def _hit(self, number: int, score: float, ways: tuple[str, ...]) -> Hit:
        query = """SELECT f.name, p.heading, p.place, p.text, f.size, f.changed
                   FROM passages p JOIN files f ON p.file = f.id WHERE p.id = ?"""
        name, heading, place, text, size, changed = self._base.execute(query, (number,)).fetchone()
        try:
            status = (self.root / name).stat()
            stale = (status.st_size, status.st_mtime_ns) != (size, changed)
        except OSError:
            stale = True
        return Hit(name, heading, place, text, score, ways, stale, number)


def understood(encoder: Encoder, text: str) -> bool:
    """Whether an encoder has words for a text, and not only signs for the unknown or single letters."""
    tokens = encoder.tokenizer.encode(text, add_special_tokens=False).tokens
    unknown = sum(token in ("[UNK]", "<unk>") for token in tokens)
    if not tokens or unknown > _MOST_UNKNOWN * len(tokens):
        return False
    letters = sum(len(token.removeprefix("##").removeprefix("▁")) for token in tokens)
    return letters >= _LEAST_LETTERS * len(tokens) or (is_han(text) and _knows_han(encoder))


@functools.lru_cache(maxsize=1)
def _knows_han(encoder: Encoder) -> bool:
    """Whether a vocabulary holds Han as texts use it: the few hundred signs in an English one are strays."""
    return sum(map(is_han, encoder.tokenizer.get_vocab())) >= _LEAST_HAN


def _merged(rankings: list[dict[int, float]]) -> dict[int, float]:
    """Reciprocal rank fusion: each ranking gives 1 / (60 + rank)."""
    merged: dict[int, float] = {}
    for ranking in rankings:
        for rank, number in enumerate(sorted(ranking, key=lambda number: -ranking[number]), 1):
            merged[number] = merged.get(number, 0.0) + 1 / (_FLAT + rank)
    return merged
