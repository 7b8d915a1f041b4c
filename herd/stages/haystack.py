"""Haystack: long prompts with hidden facts to find, as rows for `herd evaluate suite=long`."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from dataclasses import field
from pathlib import Path
from typing import Any

from herd.config import settings
from herd.data.rows import write_rows
from herd.errors import ConfigError, DataError
from herd.evals.haystack import KINDS, NEEDLES, made_row, sentences_of
from herd.evals.needle import DEPTHS, grid_lengths
from herd.evals.rows import rows_of
from herd.formats.checkpoint import open_checkpoint
from herd.log import progress, say
from herd.run import open_run


@settings
class HaystackSettings:
    """Make needle-in-a-haystack grids and RULER's tasks from your own text."""

    out: Path
    """Run folder to write: `rows.jsonl`."""
    path: Path
    """Checkpoint whose tokenizer counts lengths, and whose context the longest prompt fills."""
    text: list[Path]
    """Text to hide needles in: plain text, or JSONL or Parquet with `text`; ideally text that no model has seen."""
    kinds: list[str] = field(default_factory=lambda: [kind for kind in KINDS if kind != "qa"])
    """Kinds of needles (plain, style, paraphrased, multi) and of RULER's tasks (single, multikey, multivalue,
    multiquery, tracking, common, frequent, qa)."""
    questions: Path | None = None
    """For `qa`: rows with `context`, `question` and `answers`, such as SQuAD's."""
    lengths: list[int] | None = None
    """Tokens of prompt, template and answer; default: doubling from 1,024 to the context."""
    trials: int = 2
    """Prompts for each kind, length and depth."""
    seed: int = 0
    """Seed of the hidden facts."""

    def __post_init__(self) -> None:
        if unknown := set(self.kinds) - set(KINDS):
            raise ValueError(f"kinds: {min(unknown)} is not one of {', '.join(KINDS)}")
        if "qa" in self.kinds and self.questions is None:
            raise ValueError("questions: the kind qa needs rows with context, question and answers")
        if self.trials < 1 or min(self.lengths or [256]) < 256:
            raise ValueError("trials must be at least 1, lengths at least 256 tokens")


def run(settings: HaystackSettings) -> Path:
    """Write `rows.jsonl`; needles are placed at five depths, other kinds at varying ones."""
    inputs: dict[str, Any] = {"model": settings.path, "text": settings.text, "questions": settings.questions}
    with open_run(settings.out, stage="haystack", settings=settings, inputs=inputs) as run:
        if run.finished:
            return run.path
        checkpoint = open_checkpoint(settings.path)
        context = checkpoint.config.max_position_embeddings
        lengths = settings.lengths or grid_lengths(context, min(1024, context))
        if beyond := [length for length in lengths if length > context]:
            raise ConfigError(f"lengths: {max(beyond):,} tokens are beyond the context of {settings.path}, {context:,}")
        sentences = [one for text in _texts(settings.text) for one in sentences_of(text)]
        if not sentences:
            raise DataError(f"text: nothing to read in {', '.join(map(str, settings.text))}")
        rows = list(_rows(settings, checkpoint.tokenizer, sentences, lengths))
        write_rows(run.path / "rows.jsonl", rows)
        listed = ", ".join(f"{length:,}" for length in lengths)
        say(f"  {len(rows):,} rows of {len(settings.kinds)} kinds, up to {listed} tokens")
        run.finish({"rows": len(rows), "longest_tokens": max(lengths)})
    return run.path


def _rows(settings: HaystackSettings, tokenizer: Any, sentences: list[str], lengths: list[int]) -> Iterator[dict]:
    questions = list(rows_of(settings.questions)) if settings.questions else []
    cells = [(kind, length) for kind in settings.kinds for length in lengths]
    with progress("haystack", total=len(cells), unit="cells") as bar:
        for kind, length in cells:
            depths = DEPTHS if kind in NEEDLES else (0.5,)
            for trial in range(settings.trials):
                for depth in depths:
                    place = depth if kind in NEEDLES else ((trial * 0.6180339887498949) + 0.25) % 1.0
                    fixed: dict[str, Any] = {
                        "length": length,
                        "depth": round(place, 3),
                        "trial": trial,
                        "seed": settings.seed,
                    }
                    yield made_row(kind, tokenizer, sentences, questions=questions, **fixed)
            bar.advance(1)


def _texts(files: list[Path]) -> Iterator[str]:
    for file in files:
        if {".jsonl", ".parquet"} & set(file.suffixes):
            yield from (str(row["text"]) for row in rows_of(file))
            continue
        try:
            packed = file.read_bytes()
            yield (gzip.decompress(packed) if file.suffix == ".gz" else packed).decode("utf-8")
        except (OSError, EOFError, UnicodeDecodeError) as error:
            raise DataError(f"{file}: cannot be read as text ({error})") from None
