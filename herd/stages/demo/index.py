"""An index of the demo's pages, and how well it answers questions that a small model cannot."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from herd.config import settings
from herd.curate.read.pages import find_files, read_pages
from herd.data.rows import write_rows
from herd.evals.answers import token_f1
from herd.knowledge.build import index_folder
from herd.knowledge.index import Index
from herd.knowledge.reading import read_out
from herd.log import say
from herd.run import open_run

RIGHT = 0.8
"""The token F1 from which an answer counts as right."""
_MOST_QUESTIONS = 100


@settings
class IndexSettings:
    """Index the pages, and ask it held-out questions."""

    out: Path
    """Run folder to write."""
    pages: Path
    """The raw pages, a run folder of `herd demo pages`."""
    questions: Path | None = None
    """Questions of `herd demo questions` to answer from the index; default: none."""


def run(settings: IndexSettings) -> Path:
    """Write `pages/`, `index/` and `answers.jsonl`; the figures are the shares answered rightly, and declined."""
    inputs = {"pages": settings.pages, "questions": settings.questions}
    with open_run(settings.out, stage="demo index", settings=settings, inputs=inputs) as run:
        if run.finished:
            return run.path
        run.need(disk_bytes=100_000_000)
        say(f"  {_write_pages(settings.pages, run.path / 'pages'):,} pages")
        indexed = index_folder(run.path / "pages", run.path / "index")
        figures: dict[str, float] = {"passages": indexed.passages}
        if settings.questions is not None:
            figures |= _ask(Index(run.path / "index"), settings.questions, run.path / "answers.jsonl")
        run.finish(figures)
    return run.path


def _write_pages(pages: Path, out: Path) -> int:
    """Write the HTML pages as files named by their addresses; of Python's documentation only the manual."""
    out.mkdir(exist_ok=True)
    html = [page for file in find_files([pages]) for page in read_pages(file, Counter()) if page.kind == "html"]
    manual = [page for page in html if page.source == "pydoc"] or html
    for number, page in enumerate(manual):
        name = PurePosixPath(urlsplit(page.url).path).name.removesuffix(".html") or f"page-{number}"
        file = out / f"{name}.html"
        (file if not file.exists() else out / f"{name}-{number}.html").write_bytes(page.content)
    return len(manual)


def _ask(index: Index, questions: Path, out: Path) -> dict[str, float]:
    heldout = [row for row in _rows(questions / "eval_heldout.jsonl") if row["kind"] != "signature"][:_MOST_QUESTIONS]
    unknown = list(_rows(questions / "eval_unknown.jsonl"))[:_MOST_QUESTIONS]
    rows = []
    for row in heldout + unknown:
        reading = read_out(index, row["messages"][0]["content"])
        score = token_f1(reading.text, row["answer"]) if reading else 0.0
        said = {"answer": reading.text, "source": reading.hit.source} if reading else {"answer": None, "source": None}
        rows.append({"question": row["messages"][0]["content"], **said, "wanted": row["answer"], "token_f1": score})
    write_rows(out, rows)
    right = [row["token_f1"] >= RIGHT for row in rows[: len(heldout)]]
    declined = [row["answer"] is None for row in rows[len(heldout) :]]
    figures = {}
    if right:
        figures["heldout_answered_rightly"] = round(sum(right) / len(right), 4)
    if declined:
        figures["invented_names_declined"] = round(sum(declined) / len(declined), 4)
    say("  " + "; ".join(f"{name.replace('_', ' ')}: {share:.0%}" for name, share in figures.items()))
    return figures


def _rows(file: Path) -> Iterator[dict]:
    if not file.exists():  # the pages gave too little to ask
        return
    with file.open(encoding="utf-8") as lines:
        yield from map(json.loads, lines)
