"""Make an index of a folder's files for search and citations; a second run reads only what has changed.

HTML, Markdown, text, code, LaTeX, JSON, CSV, docx, pptx and xlsx are read, PDF with `pip install pypdf`; files left out
are listed with the reason. `encoder=FOLDER` adds search by meaning. See docs/assistant.md.
"""

from __future__ import annotations

from pathlib import Path

from herd.config import settings
from herd.knowledge.build import MAX_FILE_BYTES, Indexed, index_folder
from herd.knowledge.store import FILE
from herd.log import say, size

_NAMES_SHOWN = 3


@settings
class IndexSettings:
    """The folder and its index."""

    path: Path
    """Folder of your files, read with all its subfolders."""
    out: Path
    """Folder of the index; an existing index is updated."""
    encoder: Path | None = None
    """Encoder for search by meaning: a folder (BERT, MiniLM, RoBERTa) or an installed package; kept for updates."""
    max_bytes: int = MAX_FILE_BYTES
    """Largest file, in bytes; larger ones are left out and listed."""


def run(settings: IndexSettings) -> None:
    """Write the index and print how many files were added, changed, removed or left out.

    Raises:
        DataError: no such folder, or the index is damaged or of another folder.
        CheckpointError: the encoder cannot be read, or another process writes this index.
    """
    indexed = index_folder(settings.path, settings.out, encoder=settings.encoder, max_bytes=settings.max_bytes)
    say(_summary(indexed))
    say(f"{settings.out}: {indexed.passages:,} passages, {size((settings.out / FILE).stat().st_size)}")
    say(f'  herd search {settings.out} "your question"')


def _summary(indexed: Indexed) -> str:
    lines = [f"{indexed.added:,} files added, {indexed.changed:,} changed, {indexed.unchanged:,} as before, "
             f"{indexed.removed:,} gone"]  # fmt: skip
    if indexed.without_vector:
        lines.append(
            f"  {indexed.without_vector:,} passages are indexed by words only: the encoder has no words for them"
        )
    for reason, names in sorted(indexed.left_out.items()):
        more = f" and {len(names) - _NAMES_SHOWN:,} more" if len(names) > _NAMES_SHOWN else ""
        lines.append(f"  left out, {reason}: {len(names):,} ({'; '.join(names[:_NAMES_SHOWN])}{more})")
    return "\n".join(lines)
