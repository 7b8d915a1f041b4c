"""Tokenizer: train a byte-level BPE vocabulary, as Llama 3's, on the documents a model will be trained on."""

from __future__ import annotations

import json
import shutil
import time
from collections import Counter
from dataclasses import fields
from itertools import islice
from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator

from herd.config import settings
from herd.curate.read.documents import as_list
from herd.curate.read.texts import num_rows, read_texts
from herd.data.split import is_held_out
from herd.errors import ConfigError, DataError
from herd.evals.compression import add_before, compression, compression_table
from herd.formats.vocabulary import open_tokenizer
from herd.log import progress, say
from herd.run import atomic_write, open_run
from herd.tokenizer import Tokenizer
from herd.tokenizer.bpe import NUM_BYTES
from herd.tokenizer.extend import extend_from_counts
from herd.tokenizer.io import save_tokenizer
from herd.tokenizer.pretokens import PretokenCounts, count_pretokens
from herd.tokenizer.specials import NUM_SPECIAL_TOKENS

_SAVE_SECONDS = 8.0
_SAVE_SHARE = 30  # the pause between saves is at least this many times as long as a save


@settings
class TokenizerSettings:
    """Train a byte-level BPE vocabulary with Llama 3's split pattern and special tokens."""

    out: Path
    """Run folder to write, with the tokenizer directly in it."""
    documents: Annotated[list[Path], BeforeValidator(as_list)]
    """Documents: run folders of `herd curate`, or any folders and files of Parquet, JSONL or text; one or a list."""
    vocab_size: int = 8192
    """Size of the vocabulary, including the 256 special tokens (Llama 3: 128256)."""
    base: Path | None = None
    """A tokenizer to extend: it keeps its tokens and ids, and merges are added up to `vocab_size`."""
    holdout: float = 0.08
    """Share (0 to 1) of groups not used for training, the same groups that `herd pack` holds out."""
    max_pretokens: int = 4_000_000
    """Most distinct pre-tokens in memory (about 500 bytes each at the peak); beyond it the rarest are dropped."""

    def __post_init__(self):
        if not 0 <= self.holdout < 1:
            raise ValueError("holdout must be at least 0 and below 1")
        if self.vocab_size < NUM_BYTES + NUM_SPECIAL_TOKENS:
            raise ValueError("vocab_size must be at least 512: 256 bytes and 256 special tokens")
        if self.max_pretokens < 10_000:
            raise ValueError("max_pretokens must be at least 10000")


def run(settings: TokenizerSettings) -> Path:
    """Write the tokenizer and `compression.json`: bytes and characters per token for each source and language, with the
    base's beside, if there is one.
    """
    inputs = {"documents": settings.documents, "base": settings.base}
    with open_run(settings.out, stage="tokenizer", settings=settings, inputs=inputs) as run:
        if run.finished:
            return run.path
        run.need(disk_bytes=1e6 + 400 * settings.vocab_size)
        base = open_tokenizer(settings.base) if settings.base else None
        num_merges = _num_merges(settings, base)
        counts = _count(settings, run.path / "state" / "counts.json")
        with progress("merge", total=num_merges, unit="merges") as bar:
            if base:
                tokenizer = extend_from_counts(base, counts.words, num_merges, bar.advance)
            else:
                tokenizer = Tokenizer.from_counts(counts.words, settings.vocab_size, bar.advance)
        if tokenizer.vocab_size < settings.vocab_size:
            say(f"  the documents hold no more than {tokenizer.vocab_size:,} of {settings.vocab_size:,} rows")
        save_tokenizer(tokenizer, run.path)
        rows = compression(tokenizer, read_texts(settings.documents), settings.holdout)
        if base:
            add_before(rows, compression(base, read_texts(settings.documents), settings.holdout))
        say(compression_table(rows))
        atomic_write(run.path / "compression.json", json.dumps(rows, indent=1))
        total = {key: sum(row[key] for row in rows) for key in ("bytes", "characters", "tokens")}
        run.finish(
            {
                "vocab_size": tokenizer.vocab_size,
                "bytes_per_token": round(total["bytes"] / total["tokens"], 3),
                "characters_per_token": round(total["characters"] / total["tokens"], 3),
                "pretokens": len(counts.words),
                "largest_undercount": counts.shortfall,
            }
        )
        shutil.rmtree(run.path / "state", ignore_errors=True)
    return run.path


def _num_merges(settings: TokenizerSettings, base: Tokenizer | None) -> int:
    num_rows = base.vocab_size if base else NUM_BYTES + NUM_SPECIAL_TOKENS
    if base and settings.vocab_size <= num_rows:
        raise ConfigError(f"vocab_size {settings.vocab_size} does not extend the base, which has {num_rows} rows")
    return settings.vocab_size - num_rows


def _count(settings: TokenizerSettings, saved: Path) -> PretokenCounts:
    """Pre-token counts of all groups that are not held out, saved every few seconds so that the run can be resumed."""
    counts = _load(saved)
    begun = counts.num_texts
    next_save = time.monotonic() + _SAVE_SECONDS
    with progress("count", total=num_rows(settings.documents), unit="rows") as bar:
        documents = read_texts(settings.documents, seen=bar.advance)
        texts = (d.text for d in documents if not is_held_out(d.group, settings.holdout))

        def after_batch(counts: PretokenCounts) -> None:
            nonlocal next_save
            bar.advance(0, pretokens=len(counts.words))
            if (now := time.monotonic()) > next_save:
                atomic_write(saved, json.dumps({f.name: getattr(counts, f.name) for f in fields(counts)}))
                took = time.monotonic() - now
                next_save = now + max(_SAVE_SECONDS, _SAVE_SHARE * took)

        count_pretokens(
            islice(texts, begun, None), counts=counts, max_distinct=settings.max_pretokens, after_batch=after_batch
        )
    if not counts.num_texts:
        folders = ", ".join(map(str, as_list(settings.documents)))
        raise DataError(f"{folders}: no document to train on: all are dropped, empty or held out")
    return counts


def _load(saved: Path) -> PretokenCounts:
    """The counts of an interrupted run, or empty ones."""
    if not saved.exists():
        return PretokenCounts()
    content = json.loads(saved.read_bytes())
    return PretokenCounts(**content | {"words": Counter(content["words"])})
