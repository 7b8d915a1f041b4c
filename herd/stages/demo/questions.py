"""Questions: conversations for SFT and for its evaluation, made from what the documents themselves say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from herd.config import settings
from herd.curate.read.pages import find_files, read_pages
from herd.data.rows import write_rows
from herd.demo.facts import facts_of
from herd.demo.questions import QuestionSets, is_trained_on, make_questions, ranked
from herd.errors import DataError
from herd.log import say
from herd.parquet import tell_lost, whole_rows
from herd.run import open_run

_COLUMNS = ["url", "title", "text", "source", "group", "drop"]


@settings
class QuestionsSettings:
    """Make questions and answers from docstrings and signatures, or from titles, headings and definitions."""

    out: Path
    """Run folder to write."""
    documents: Path
    """Documents: a run folder of `herd curate`, or a folder or file of its Parquet."""
    pages: Path | None = None
    """The raw pages behind them, a run folder of `herd demo pages`: tells about modules that have no source."""
    holdout: float = 0.08
    """Share of groups that only the evaluation asks about, the same groups that `herd pack` holds out."""
    max_facts: int = 1200
    """Facts to train on, the best known and clearest first."""
    wordings: int = 4
    """Different wordings in which each fact is asked for its summary in training; signatures get half as many."""
    max_questions: int = 320
    """Questions of the evaluation about trained facts; held-out ones are at most half as many."""
    min_facts: int = 40
    """With fewer facts than this no questions are written: there would be too little to learn from."""
    subject: str | None = None
    """What the model says it was raised on; default: Python's documentation, or "the pages I was given"."""

    def __post_init__(self):
        if not 0 <= self.holdout < 1:
            raise ValueError("holdout must be at least 0 and below 1")
        if min(self.max_facts, self.wordings, self.max_questions, self.min_facts) < 1:
            raise ValueError("max_facts, wordings, max_questions and min_facts must be at least 1")


def run(settings: QuestionsSettings) -> Path:
    """Write `train.jsonl`, `prompts.jsonl` and the three evaluation files, or say that there is too little to ask.

    The manifest's figure `enough` is 1 where questions were written and 0 where not.
    """
    inputs = {"documents": settings.documents, "pages": settings.pages}
    with open_run(settings.out, stage="demo questions", settings=settings, inputs=inputs) as run:
        if run.finished:
            return run.path
        run.need(disk_bytes=3000 * settings.max_facts * settings.wordings / 4)
        facts, uses = facts_of(read_documents(settings.documents), read_manuals(settings.pages))
        facts = ranked(facts, uses)
        kinds = Counter(fact.kind for fact in facts)
        say(f"  {len(facts):,} facts: " + ", ".join(f"{count:,} {kind}" for kind, count in kinds.most_common()))
        num_trained = sum(is_trained_on(fact, settings.holdout) is True for fact in facts)
        figures = {"facts": len(facts), "enough": int(num_trained >= settings.min_facts)}
        if figures["enough"]:
            python = bool(kinds["function"] + kinds["method"] + kinds["class"])
            subject = settings.subject or ("Python's documentation" if python else "the pages I was given")
            sets = make_questions(
                facts,
                holdout=settings.holdout,
                max_facts=settings.max_facts,
                max_questions=settings.max_questions,
                wordings=settings.wordings,
                subject=subject,
            )
            figures |= _write(run.path, sets)
        else:
            say(
                f"  too few to learn answers from: {num_trained} facts to train on, at least {settings.min_facts} are "
                "needed; post-training is left out. More pages, or a smaller min_facts, would change that"
            )
        run.finish(figures)
    return run.path


def read_documents(path: Path) -> Iterator[dict]:
    """The kept documents of a curate run, in order.

    Raises:
        DataError: there is no Parquet, or it has other columns.
    """
    folder = path / "documents" if (path / "documents").is_dir() else path
    files = [folder] if folder.is_file() else sorted(folder.glob("*.parquet"))
    if not files:
        raise DataError(f"{path}: no documents (*.parquet) in it; make them with `herd curate`")
    for file in files:
        try:
            counts: Counter[str] = Counter()
            yield from (row for row in whole_rows(file, counts, _COLUMNS) if row["drop"] is None)
            tell_lost(file, counts)
        except (OSError, pa.ArrowException, KeyError) as error:
            raise DataError(
                f"{file}: not a Parquet file of documents with the columns {', '.join(_COLUMNS)}: {error}"
            ) from None


def read_manuals(pages: Path | None) -> dict[str, str]:
    """The HTML of `pydoc` pages by URL."""
    files = find_files([pages]) if pages else []
    records = (page for file in files for page in read_pages(file, Counter()))
    return {page.url: page.content.decode("utf-8", "replace") for page in records if page.source == "pydoc"}


def _write(folder: Path, sets: QuestionSets) -> dict[str, int]:
    counts = {}
    for name in ("train", "prompts", "unknown", "eval_trained", "eval_heldout", "eval_unknown"):
        rows = getattr(sets, name)
        write_rows(folder / f"{name}.jsonl", rows)
        counts[name] = len(rows)
    say("  " + ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in counts.items()))
    return counts
