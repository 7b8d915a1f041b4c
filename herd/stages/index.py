"""Make an index of a folder's files to search in and cite from; given again, it reads only what has changed.

HTML, Markdown, text, code, LaTeX, JSON, CSV, docx, pptx and xlsx are read, PDF with `pip install pypdf`; what is left
out is told with its reason. `encoder=FOLDER` adds search by meaning. See docs/assistant.md.
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
    """Which folder, and where its index goes."""

    path: Path
    """Folder of your files; all folders in it are read too."""
    out: Path
    """Folder of the index; an index that lies there is brought up to date."""
    encoder: Path | None = None
    """Encoder for search by meaning: a folder (BERT, MiniLM, RoBERTa) or an installed package; remembered."""
    max_bytes: int = MAX_FILE_BYTES
    """Bytes of a file; a larger one is left out and told of."""


def run(settings: IndexSettings) -> None:
    """Write the index and say what became of the files.

    Raises:
        DataError: no such folder, or the index is damaged or of another folder.
        CheckpointError: the encoder cannot be read, or another process writes this index.
    """
    found = index_folder(settings.path, settings.out, encoder=settings.encoder, max_bytes=settings.max_bytes)
    say(_told(found))
    say(f"{settings.out}: {found.passages:,} passages, {size((settings.out / FILE).stat().st_size)}")
    say(f'  herd search {settings.out} "your question"')


def _told(found: Indexed) -> str:
    lines = [f"{found.added:,} files added, {found.changed:,} changed, {found.unchanged:,} as before, "
             f"{found.removed:,} gone"]  # fmt: skip
    if found.without_vector:
        lines.append(f"  {found.without_vector:,} passages are found by words only: the encoder has no words for them")
    for reason, names in sorted(found.left_out.items()):
        more = f" and {len(names) - _NAMES_SHOWN:,} more" if len(names) > _NAMES_SHOWN else ""
        lines.append(f"  left out, {reason}: {len(names):,} ({'; '.join(names[:_NAMES_SHOWN])}{more})")
    return "\n".join(lines)
