"""Pages: the documentation and sources of the Python that is running, or the user's own pages."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections import Counter
from pathlib import Path

from herd.config import settings
from herd.curate.read.pages import find_files, read_pages
from herd.curate.read.warc import warc_record
from herd.demo import stdlib
from herd.errors import DataError
from herd.log import progress, say
from herd.run import Run, atomic_write, open_run


@settings
class PagesSettings:
    """Gather pages: every importable standard-library module as HTML with its source, or your own pages."""

    out: Path
    """Run folder to write."""
    pages: list[Path] | None = None
    """Your own pages instead: folders or files of HTML, WARC (gz, zst), JSONL (gz, zst), Parquet or text."""
    modules: list[str] | None = None
    """Only these standard-library modules (their submodules are not included by themselves); default: all."""
    sources: bool = True
    """Also take the library's source files."""
    seconds: float = 20.0
    """Time limit for importing and rendering one module, in seconds."""
    processes: int | None = None
    """Child processes that render at the same time; default: one for each core."""

    def __post_init__(self):
        if self.pages and self.modules:
            raise ValueError("pages and modules exclude each other: give your own pages, or name modules to render")
        if self.seconds <= 0:
            raise ValueError("seconds must be above 0")
        if self.processes is not None and self.processes < 1:
            raise ValueError("processes must be at least 1")


def run(settings: PagesSettings) -> Path:
    """Write `pages.warc.gz` and `failures.jsonl`; with the user's own pages, `sources.json` that points to them."""
    with open_run(settings.out, stage="demo pages", settings=settings, inputs={"pages": settings.pages}) as run:
        if run.finished:
            return run.path
        if settings.pages:
            _point_to(run, settings.pages)
        else:
            _render_library(run, settings)
    return run.path


def _point_to(run: Run, paths: list[Path]) -> None:
    counts: Counter = Counter()
    num_pages = sum(1 for file in find_files(paths) for _ in read_pages(file, counts))
    if not num_pages:
        raise DataError(f"{', '.join(map(str, paths))}: no page found; {dict(counts) or 'the files are empty'}")
    say(f"  {num_pages:,} pages; {counts['corrupt']:,} damaged records skipped")
    atomic_write(run.path / "sources.json", json.dumps({"paths": [str(path.resolve()) for path in paths]}))
    run.finish({"pages": num_pages, "corrupt": counts["corrupt"]})


def _render_library(run: Run, settings: PagesSettings) -> None:
    run.need(disk_bytes=60e6, seconds=25)
    names = _chosen(settings.modules)
    folder = run.path / "state" / stdlib.version()
    folder.mkdir(parents=True, exist_ok=True)
    errors = _known_errors(folder)
    waiting = [name for name in names if name not in errors and not (folder / f"{name}.html").exists()]

    with progress("render", total=len(names), unit="modules", done=len(names) - len(waiting)) as bar:

        def report(name: str, error: str) -> None:
            if error:
                atomic_write(folder / f"{name}.error", error)
                errors[name] = error
            bar.advance(failed=len(errors))

        stdlib.render(
            waiting, folder, seconds=settings.seconds, processes=settings.processes or _num_cores(), report=report
        )

    rendered = [name for name in names if (folder / f"{name}.html").exists()]
    if not rendered:
        raise DataError(f"no module could be rendered; the first error: {next(iter(errors.values()), 'none given')}")
    sources = stdlib.source_files(settings.modules) if settings.sources else []
    figures = _write_archive(run.path / "pages.warc.gz", folder, rendered, sources)
    failures = "".join(json.dumps({"module": name, "error": errors[name]}) + "\n" for name in sorted(errors))
    atomic_write(run.path / "failures.jsonl", failures)
    say(f"  {figures['pages']:,} pages and {figures['sources']:,} source files; {len(errors)} modules failed")
    run.finish({**figures, "failed": len(errors)})
    shutil.rmtree(run.path / "state")


def _chosen(modules: list[str] | None) -> list[str]:
    if modules is None:
        return stdlib.module_names() + stdlib.topic_names()
    known = {*stdlib.module_names(), *stdlib.topic_names()}
    unknown = [name for name in modules if name not in known]
    if unknown:
        raise DataError(f"modules: {unknown[0]!r} is not a public module of this Python's standard library")
    return sorted(modules)


def _known_errors(folder: Path) -> dict[str, str]:
    return {file.name.removesuffix(".error"): file.read_text(encoding="utf-8") for file in folder.glob("*.error")}


def _write_archive(path: Path, folder: Path, names: list[str], sources: list[Path]) -> dict[str, int]:
    """Put the rendered pages and the sources into one WARC, whole or not at all."""
    prefix, root = f"python://{stdlib.version()}", stdlib.stdlib_folder()
    date = _date(Path(os.__file__))  # a page is as old as the library it describes
    figures = {"pages": len(names), "sources": len(sources), "html_bytes": 0, "source_bytes": 0}
    aside = path.with_name(f".{path.name}.tmp")
    with open(aside, "wb") as file:
        for name in names:
            content = (folder / f"{name}.html").read_bytes()
            file.write(warc_record(f"{prefix}/doc/{name}.html", date, "text/html", content))
            figures["html_bytes"] += len(content)
        for source in sources:
            content = source.read_bytes()
            url = f"{prefix}/lib/{source.relative_to(root).as_posix()}"
            file.write(warc_record(url, _date(source), "text/plain", content))
            figures["source_bytes"] += len(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)
    return figures


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _date(file: Path) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(file.stat().st_mtime))
