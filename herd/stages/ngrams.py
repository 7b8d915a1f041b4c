"""Ngrams: an index on disk of the n-grams of a packed corpus, for contamination and memorization."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from herd.config import settings
from herd.data.ngrams import NgramIndex, build_index, whole
from herd.data.shards import open_shards
from herd.errors import ConfigError
from herd.formats.vocabulary import open_tokenizer
from herd.log import say
from herd.run import open_run
from herd.tokenizer.io import save_tokenizer

_ASKED = 100_000


@settings
class NgramsSettings:
    """Index the n-grams of token shards."""

    out: Path
    """Run folder to write."""
    path: Path
    """Run folder of `herd pack` (its training shards), or a folder of shards."""
    tokenizer: Path
    """The tokenizer of the shards; it is saved with the index."""
    n: int = 8
    """Number of tokens in an n-gram."""

    def __post_init__(self):
        if self.n < 2:
            raise ValueError("n must be at least 2")


def run(settings: NgramsSettings) -> Path:
    """Write `index.json`, `numbers.u64`, `counts.u32` and `tokenizer/`."""
    inputs = {"shards": settings.path, "tokenizer": settings.tokenizer}
    with open_run(settings.out, stage="ngrams", settings=settings, inputs=inputs) as run:
        if run.finished:
            return run.path
        train = settings.path / "train"
        sources = open_shards(train if train.is_dir() else settings.path)
        tokenizer = open_tokenizer(settings.tokenizer)
        if any(one.tokenizer != tokenizer.fingerprint for one in sources.values()):
            raise ConfigError(f"tokenizer: {settings.path} was packed with another tokenizer than {settings.tokenizer}")
        total = sum(int(one.num_tokens.sum()) for one in sources.values())
        run.need(disk_bytes=20 * total + 1e6)
        begin = time.perf_counter()
        index = build_index(whole(sources), run.path, settings.n, tokenizer.fingerprint)
        built = time.perf_counter() - begin
        save_tokenizer(tokenizer, run.path / "tokenizer")
        size = sum((run.path / name).stat().st_size for name in ("numbers.u64", "counts.u32"))
        figures: dict[str, float] = {
            "num_tokens": total,
            "num_distinct": int(index["num_distinct"]),
            "bytes_per_token": round(size / max(total, 1), 2),
            "tokens_per_second": round(total / max(built, 1e-9)),
            "queries_per_second": round(_speed(NgramIndex(run.path))),
        }
        say(f"  {total:,} tokens, {index['num_distinct']:,} different {settings.n}-grams")
        say("  " + ", ".join(f"{name.replace('_', ' ')}: {value:,}" for name, value in list(figures.items())[2:]))
        run.finish(figures)
    return run.path


def _speed(index: NgramIndex) -> float:
    tokens = np.random.default_rng(0).integers(0, 1000, _ASKED + index.n - 1)
    begin = time.perf_counter()
    index.counts(tokens)
    return _ASKED / (time.perf_counter() - begin)
